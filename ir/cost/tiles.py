"""The runs of a leaf: which tiles its variables are cut into, and at which of them it runs.

The loops of a mapping cut boxes, so the sum over all runs of a product of functions of the lengths is
the product, over variables, of sums over that variable's tiles. A loop with `when` couples the
variables that its condition names: their tiles are enumerated, down to that loop, and the
condition is evaluated at all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, text, variables
from tcc.ir.index import evaluate_size
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node
from tcc.ir.ops import OPS
from tcc.ir.work import point_operations

Array = Any
Tiles = dict[int, int]  # length of a tile -> how many tiles have it
CELLS = 1 << 21  # tiles and points that are enumerated at most


def cut(tiles: Tiles, step: int) -> Tiles:
    """The tiles that a loop leaves of tiles."""
    out: Tiles = {}
    for length, n in tiles.items():
        whole, rest = divmod(length, step)
        if whole:
            out[step] = out.get(step, 0) + n * whole
        if rest:
            out[rest] = out.get(rest, 0) + n
    return out


def count(tiles: Tiles) -> int:
    """How many tiles there are."""
    return sum(tiles.values())


def total(tiles: Tiles) -> int:
    """The coordinates in all tiles."""
    return sum(length * n for length, n in tiles.items())


def cut_all(extent: int, steps: Iterable[int]) -> Tiles:
    """The tiles that nested loops leave of an extent."""
    tiles = {extent: 1}
    for step in steps:
        tiles = cut(tiles, step)
    return tiles


def bounds(extent: int, steps: Iterable[int]) -> tuple[Array, Array]:
    """The ends of those tiles, in order: lows and highs."""
    low, high = np.zeros(1, np.int64), np.full(1, extent, np.int64)
    for step in steps:
        n = -(-(high - low) // step)
        first = np.repeat(low, n)
        within = np.arange(first.size) - np.repeat(np.cumsum(n) - n, n)
        high = np.minimum(first + (within + 1) * step, np.repeat(high, n))
        low = first + within * step
    return low, high


@dataclass(frozen=True, slots=True, eq=False)
class Guard:
    """The tiles at which the conditions of the enclosing loops hold.

    `cells[v]` are the lengths of the tiles of v down to the last condition, `inner[v]` the steps of
    the loops that cut them further; `mask` has an axis for each of these variables.
    """

    cells: dict[str, Array]
    inner: dict[str, tuple[int, ...]]
    mask: Array
    whole: bool = True  # False: too many tiles to look at, all count


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What a definition is made of, looked up once."""

    free: tuple[str, ...]
    reduced: tuple[str, ...]
    reads: tuple[Access, ...]
    names: tuple[str, ...]  # free and reduced variables, each once
    work: MappingABC[str, int]  # operators per point

    @staticmethod
    def of(e: Einsum) -> Facts:
        free, reduced = tuple(e.free), tuple(e.reduced)
        names = tuple(dict.fromkeys((*free, *reduced)))
        return Facts(free, reduced, tuple(e.reads), names, point_operations(e))


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A leaf with what encloses it, and the tiles that its variables are cut into."""

    kernel: Kernel
    do: Do
    facts: Facts
    path: tuple[Loop | Alloc, ...]
    extents: MappingABC[str, int]
    steps: MappingABC[str, tuple[int, ...]]  # of the enclosing loops, outermost first
    tiles: MappingABC[str, Tiles]
    guard: Guard | None = None

    @property
    def looped(self) -> list[str]:
        """Variables of the enclosing loops, each once."""
        return list(self.steps)

    def longest(self, v: str) -> int:
        """The length of the largest tile of a variable."""
        return max(self.tiles[v], default=0)

    def runs(self) -> int:
        """How often the leaf runs."""
        return self.sum({})

    def swept(self, names: Iterable[str]) -> int:
        """Σ over all runs of the product of the interval lengths of `names`."""
        return self.sum(dict.fromkeys(names, total))

    def sum(
        self,
        of: MappingABC[str, Callable[[Tiles], int]],
        first: Iterable[str] = (),
        parts: Iterable[tuple[tuple[str, ...], Array]] = (),
    ) -> int:
        """Σ over all runs of Π of[v](tile of v); of the variables in `first` only the first tiles count.

        `parts` are factors that were summed before: arrays over the cells of the guarded variables
        named, in whose other variables they are complete.
        """
        guard = self.guard
        names = dict.fromkeys((*of, *self.steps))
        starts = set(first)
        out = 1
        vectors: dict[str, Array] = {}
        for v in names:
            f = of.get(v, count)
            if guard is not None and v in guard.cells:
                vectors[v] = self._vector(guard, v, f, v in starts)
            elif v in starts and v in self.steps:
                out *= 1 if self.tiles[v] else 0
            else:
                out *= f(self.tiles[v])
        if guard is None:
            for _, part in parts:
                out *= int(part)
            return out
        mask: Array = guard.mask
        axes = list(guard.cells)
        for over, part in parts:
            shape = [len(guard.cells[v]) if v in over else 1 for v in axes]
            mask = mask * np.reshape(part, shape)
        for v in reversed(axes):
            mask = mask @ vectors[v] if v in vectors else mask.sum(axis=-1)
        return out * int(mask)

    def _vector(self, guard: Guard, v: str, f: Callable[[Tiles], int], first: bool) -> Array:
        """f of the tiles inside each cell of v."""
        lengths, inner = guard.cells[v], guard.inner[v]
        if first:
            out = np.zeros(len(lengths), np.int64)
            out[:1] = 1
            return out
        known = {int(n): f(cut_all(int(n), inner)) for n in set(lengths.tolist())}
        return np.array([known[n] for n in lengths.tolist()], np.int64)


def sites(
    k: Kernel, sizes: MappingABC[str, int], cells: int = CELLS, hold: bool = False
) -> list[Site]:
    """Every leaf of a kernel, in order; with `hold` those of steps after a stop, too."""
    extents = {v: evaluate_size(e, sizes) for v, e in k.variables}
    found: list[Site] = []
    whole = {v: {n: 1} for v, n in extents.items()}

    def visit(
        n: Node,
        path: tuple[Loop | Alloc, ...],
        steps: dict[str, tuple[int, ...]],
        tiles: dict[str, Tiles],
        guard: Guard | None,
    ) -> None:
        if isinstance(n, Do):
            found.append(
                Site(k, n, Facts.of(n.einsum), path, extents, steps, tiles, _complete(guard, steps))
            )
            return
        inside = (*path, n)
        if isinstance(n, Loop):
            steps = {**steps, n.var: (*steps.get(n.var, ()), n.step)}
            tiles = {**tiles, n.var: cut(tiles[n.var], n.step)}
            if n.when is not None:
                guard = _guard(inside, extents, sizes, cells)
        for child in n.body:
            visit(child, inside, steps, tiles, guard)
        if hold and isinstance(n, Loop):
            for child in n.hold:
                visit(child, inside, steps, tiles, guard)

    for n in k.body:
        visit(n, (), {}, whole, None)
    return found


def _complete(g: Guard | None, steps: MappingABC[str, tuple[int, ...]]) -> Guard | None:
    """The guard with the loops that follow the last condition."""
    if g is None:
        return None
    inner = {v: steps.get(v, ())[len(s) :] for v, s in g.inner.items()}
    return Guard(g.cells, inner, g.mask, g.whole)


def _guard(
    path: tuple[Loop | Alloc, ...],
    extents: MappingABC[str, int],
    sizes: MappingABC[str, int],
    limit: int,
) -> Guard:
    """The conditions of a path; `inner` holds the steps so far, which `_complete` takes away."""
    conditions: list[tuple[Expr, dict[str, tuple[int, ...]]]] = []
    steps: dict[str, tuple[int, ...]] = {}
    for n in path:
        if not isinstance(n, Loop):
            continue
        steps[n.var] = (*steps.get(n.var, ()), n.step)
        if n.when is not None:
            conditions.append((n.when, dict(steps)))
    named = {v.rpartition(".")[0] for when, _ in conditions for v in variables(when)}
    # a loop with a condition may run no tile at all: its variable counts even when it is not named
    axes = [v for v in extents if v in named]
    own = {v: steps.get(v, ()) for v in axes}
    ends = {v: bounds(extents[v], own[v]) for v in axes}
    lengths = {v: high - low for v, (low, high) in ends.items()}
    shape = tuple(len(lengths[v]) for v in axes)
    if math.prod(shape) > limit:
        return Guard(lengths, own, np.ones(shape, np.int64), False)
    mask: Array = np.ones(shape, bool)
    for when, at in conditions:
        grid: dict[str, Array] = {}
        for axis, v in enumerate(axes):
            low, high = _outer(ends[v], extents[v], own[v], at.get(v, ()))
            view = [1] * len(axes)
            view[axis] = -1
            grid[f"{v}.low"], grid[f"{v}.high"] = low.reshape(view), high.reshape(view)
        mask = mask & np.asarray(evaluate(when, grid, sizes), bool)
    return Guard(lengths, own, mask.astype(np.int64))


def _outer(
    ends: tuple[Array, Array], extent: int, steps: tuple[int, ...], at: tuple[int, ...]
) -> tuple[Array, Array]:
    """For each tile, the ends of the tile around it that the first loops, `at`, make."""
    if len(at) == len(steps):
        return ends
    low, high = bounds(extent, at)
    where = np.searchsorted(low, ends[0], side="right") - 1
    return low[where], high[where]


def evaluate(e: Expr, at: MappingABC[str, Array], sizes: MappingABC[str, int]) -> Array:
    """The value of an index or a condition at many points at once."""
    if isinstance(e, Const):
        return e.value
    if isinstance(e, Size):
        return sizes[e.rank]
    if isinstance(e, Var):
        return at[e.name]
    if isinstance(e, Cast):
        return evaluate(e.arg, at, sizes)
    assert isinstance(e, Call), text(e)
    return OPS[e.op].evaluate(*(np.asarray(evaluate(a, at, sizes)) for a in e.args))


def footprint(
    b: Buffer,
    path: Iterable[Loop | Alloc],
    extents: MappingABC[str, int],
    sizes: MappingABC[str, int],
) -> list[int]:
    """The extent of each dimension of a buffer where it is allocated, at the largest tile."""
    loops = [n for n in path if isinstance(n, Loop)]
    out = []
    for d in b.dims:
        if isinstance(d, Var):
            steps = [n.step for n in loops if n.var == d.name]
            out.append(max(cut_all(extents[d.name], steps), default=0))
        else:
            out.append(evaluate_size(d, sizes))
    return out
