"""Tiles by the cost model: those of a kernel are the usual ones, unless the model sees others that are clearly faster."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tcc.ir.cascade import Cascade, Einsum, Joint, Rank
from tcc.ir.expr import Expr, Size
from tcc.ir.index import poly
from tcc.ir.mapping import Kernel, Mapping, leaves
from tcc.ir.target import Target
from tcc.passes._cpu_tiles import Tiles, loads, stored_tiles, wanted

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper

CLEAR = 0.97
WAY = 0.85  # the same for a way of packing, whose time depends on what the caches hold
REGISTERS = 2  # register tiles that are tried per number of vectors
CORES = 8  # where the target does not say how many there are
BLOCKS: dict[str, tuple[int, ...]] = {
    "block_rows": (24, 96),
    "block_columns": (128, 512),
    "block_depth": (128, 512),
}
STREAMS: dict[str, tuple[int, ...]] = {"stream_rows": (48, 192), "stream_tile": (96, 384)}
BYTES = 4  # of an element, as a rule


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel, the other ways in which it could read the second operand of its product, and other orders of its loops."""

    kernel: Kernel
    ways: tuple[int, ...] = ()
    orders: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """The tiles of a kernel, and how long it then takes by the model, as a part of what the usual tiles take.

    `gain` is None where nothing was searched.
    """

    tiles: Tiles
    gain: float | None = None
    tried: int = 0
    ranked: tuple[Tiles, ...] = ()  # what was tried, the best by the model first
    measured: bool = False

    @property
    def why(self) -> str:
        """Who chose, in words."""
        if self.measured:
            return "measured by `tcc tune`"
        if self.gain is None:
            return "the target's usual ones"
        if self.gain == 1.0:
            return f"the target's usual ones; by the model none of {self.tried} others is clearly faster"
        return f"by the model {1 / self.gain - 1:.0%} faster than the target's usual ones"


class Search:
    """The choices of one program: kernels that are equal up to names are searched once."""

    def __init__(self, m: Mapper, target: Target) -> None:
        self.m, self.target = m, target
        self.known: dict[str, Choice] = {}

    def choose(
        self, members: Sequence[Einsum], joint: Joint | None, build: Callable[[], Built | None]
    ) -> Choice:
        """The tiles for the kernel of `members`, which `build` makes with the mapper's present tiles (None: tiles do not
        matter for it); the mapper is left as it was."""
        c = self.m.c
        if not self.target.tiles or not sizes_known(c, members):
            return Choice(self.usual)
        key = canonical(c, members, joint, self.m)
        if key in self.target.tuned:
            return Choice(stored_tiles(self.target.tuned[key]), measured=True)
        if key not in self.known:
            self.known[key] = self._search(build, joint is not None)
        return self.known[key]

    def _search(self, build: Callable[[], Built | None], walks: bool) -> Choice:
        """Each size in turn with the best of those before it, for products the register tile first."""
        first = self._cost(self.usual, build)
        if first is None:
            return Choice(self.usual)
        usual, enough = first.seconds, min(first.tasks, self._wanted())
        best, least = self.usual, usual
        times: dict[Tiles, float] = {}

        def attempt(options: list[Tiles]) -> None:
            nonlocal best, least
            for tiles in options:
                found = self._cost(tiles, build)
                if found is None:
                    continue
                times[tiles] = found.seconds if found.tasks >= enough else math.inf
                if times[tiles] < least:
                    best, least = tiles, times[tiles]

        if not walks:
            attempt(self._registers(first.products))
        for name, values in (STREAMS if walks else BLOCKS).items():
            sizes = [v for v in values if not first.same(name, getattr(best, name), v)]
            attempt([t for v in sizes if (t := self._resized(best, name, v)) is not None])
        attempt([replace(best, order=order) for order in first.orders])
        if not least < CLEAR * usual:
            best, least = self.usual, usual
        kept, before = best, least
        attempt([replace(best, way=way) for way in first.ways])
        if not least < WAY * before:
            best, least = kept, before
        ranked = tuple(sorted(times, key=times.__getitem__))
        return Choice(best, least / usual, len(times), ranked)

    @property
    def usual(self) -> Tiles:
        return self.m.tiles

    def _wanted(self) -> int:
        """Tasks that keep all cores busy to the end."""
        return 4 * (self.target.resource("core").count or CORES)

    def _registers(self, products: list[_Product]) -> list[Tiles]:
        """The measured register tiles that should be fastest for some products. They may not load more per product than
        the usual one, and sums have to be about as deep as in measurements: else the tables say too little."""
        most = loads(*self.usual.register)
        speed = {tile: s for tile, s in self.m.speeds.items() if loads(*tile) <= most}
        depth = min((x.depth for x in self.target.tiles if x.dtype == "f32"), default=0) // 2
        if not products or min(p.depth for p in products) < depth:
            return []

        def useful(tile: tuple[int, int]) -> float:
            rows, columns = tile[0], tile[1] * self.m.lanes
            parts = [wanted(p.rows, rows) * wanted(p.columns, columns) for p in products]
            return speed[tile] * min(parts)

        found = sorted(speed, key=lambda t: (-useful(t), t))
        best = [[t for t in found if t[1] == v][:REGISTERS] for v in sorted({v for _, v in found})]
        return [
            replace(self.usual, tile_rows=r, tile_vectors=v, fixed=True)
            for tiles in best
            for r, v in tiles
        ]

    def _resized(self, old: Tiles, name: str, value: int) -> Tiles | None:
        """The tiles with another size, if then a panel of columns fits half of the smallest cache and the rows of a task half
        of the next, or if it is smaller than before."""
        changed: dict[str, Any] = {name: value}
        t = replace(old, **changed)
        if value <= getattr(old, name):
            return t if value < getattr(old, name) else None
        sizes = {x.name: x.bytes for x in self.target.levels if x.bytes}
        panel = t.tile_vectors * self.m.lanes * t.block_depth * BYTES
        rows = t.block_rows * t.block_depth * BYTES
        fits = panel <= sizes.get("L1", panel * 2) // 2 and rows <= sizes.get("L2", rows * 2) // 2
        return t if fits else None

    def _cost(self, tiles: Tiles, build: Callable[[], Built | None]) -> _Trial | None:
        """What such tiles lead to, packing on each call included, on one core."""
        from tcc.ir.cost import cost

        with self.m.trial(tiles) as made:
            built = build()
            if built is None:
                return None
            kernel = built.kernel
            kernels = [k for k in made() if isinstance(k, Kernel) and not k.prepare]
            found = cost(_alone(self.m, kernels), self.target, full=False)
            extents = {v: _number(self.m.c, e) or 1 for v, e in kernel.variables}
        return _Trial(
            built.ways,
            built.orders,
            sum(k.seconds for k in found.kernels),
            found.kernels[-1].tasks,
            [
                _Product(extents[rows], extents[columns], extents[n.einsum.reduced[-1]])
                for n in leaves(kernel.body)
                for columns, on in n.bind
                for rows, by in n.bind
                if (on, by) == ("lane", "unroll") and n.einsum.reduced
            ],
        )


@dataclass(frozen=True, slots=True)
class _Product:
    """Extents of a product: its rows, its columns, and what it sums over innermost."""

    rows: int
    columns: int
    depth: int


@dataclass(frozen=True, slots=True)
class _Trial:
    """The other ways and orders, one call's seconds, the tasks of the kernel, and the products in it."""

    ways: tuple[int, ...]
    orders: tuple[int, ...]
    seconds: float
    tasks: int
    products: list[_Product]

    def same(self, name: str, old: int, new: int) -> bool:
        """Whether two sizes of blocks both hold all of every product."""
        extents = {
            "block_rows": [p.rows for p in self.products],
            "block_columns": [p.columns for p in self.products],
            "block_depth": [p.depth for p in self.products],
        }
        return max(extents.get(name, [old + 1]), default=0) <= min(old, new)


def _alone(m: Mapper, kernels: list[Kernel]) -> Mapping:
    """Some kernels as a program of their own."""
    used: dict[str, None] = {}
    for k in kernels:
        for n in leaves(k.body):
            e = n.einsum
            used |= dict.fromkeys([e.target, *(a.tensor for a in e.reads)])
    memory = tuple(b for b in m.memory.values() if b.name in used)
    own = {b.name for b in memory}
    inputs = tuple(t for t in m.c.inputs if t.name in used)
    outputs = tuple(t for t in m.c.outputs if t.name in used)
    own |= {t.name for t in (*inputs, *outputs)}
    ranks = tuple(r for r in m.c.ranks if _number(m.c, Size(r.name)) is not None)
    return Mapping("kernel", m.target, tuple(_fixed(m.c, r) for r in ranks), inputs, outputs, memory,
                   tuple(kernels))  # fmt: skip


def _fixed(c: Cascade, r: Rank) -> Rank:
    return replace(r, size=c.resolved(Size(r.name)))


def _number(c: Cascade, e: Expr) -> int | None:
    return poly(c.resolved(e)).constant


def sizes_known(c: Cascade, members: Sequence[Einsum]) -> bool:
    """Whether all extents and shapes that a kernel's members mention are numbers."""
    names = {t for d in members for t in (d.target, *(a.tensor for a in d.reads))}
    shapes = [n for t in names for n in c.tensors[t].shape]
    extents = [e for d in members for e in c.extents(d).values()]
    return all(_number(c, e) is not None for e in (*shapes, *extents))


def canonical(c: Cascade, members: Sequence[Einsum], joint: Joint | None, m: Mapper) -> str:
    """What a kernel computes and where its tensors lie, with names in order of appearance and numbers for sizes."""
    extents = {v: _number(c, e) for d in members for v, e in c.extents(d).items()}
    constant = {t.name for t in c.inputs if t.constant}
    order: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        word = found[0]
        if word in c.tensors or word in extents:
            return order.setdefault(word, f"_{len(order)}")
        return str(_number(c, Size(word))) if c.rank(word) is not None else word

    lines = [str(d) for d in members] + ([str(joint)] if joint is not None else [])
    lines = [re.sub(r"[A-Za-z_]\w*", rename, line) for line in lines]
    for word, name in order.items():
        t = c.tensors.get(word)
        if t is not None:
            place = m.memory.get(word)
            where = str(place.layout) if place else "memory" if m.in_memory(word) else "kernel"
            shape = [_number(c, n) for n in t.shape]
            lines.append(f"{name}: {t.dtype}{shape} fill {t.fill} {word in constant} {where}")
        if word in extents:
            lines.append(f"{name} < {extents[word]}")
    return "\n".join(lines)
