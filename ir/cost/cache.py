"""What moves between caches: the loops whose data fits a level keep it there.

A node is one iteration of a loop (or one leaf). Where everything that a node touches fits a level, each tensor
enters that level once per node: not again while the loops around it leave the tensor where it is, once for
all iterations of the first loop that moves along it, and again for every iteration of those further out. The buffers of
a tile live in one place, so they come from outside only where they do not fit. Caches are warm: what fits as a
whole does not move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field

from tcc.ir.amounts import evaluated
from tcc.ir.cascade import Tensor
from tcc.ir.cost.reuse import Affine, affine
from tcc.ir.cost.tiles import Site, Tiles, count, cut, total
from tcc.ir.expr import Access, variables
from tcc.ir.index import evaluate_size
from tcc.ir.layout import row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Loop, Node


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One access of a leaf: its indices, and how the tensor lies in memory."""

    tensor: str
    forms: tuple[Affine | None, ...]
    names: tuple[tuple[str, ...], ...]  # variables of each index
    every: tuple[str, ...]  # all of them, each once
    shape: tuple[int, ...]
    itemsize: float
    fast: tuple[tuple[int, int], ...]  # dimension and extent of each digit, the fastest first
    home: int  # how many loops enclose the tensor's storage
    writes: bool
    known: dict[tuple[int, ...], tuple[float, float]] = field(default_factory=dict)

    def lines(self, lengths: MappingABC[str, int], line: int) -> tuple[float, float]:
        """The bytes of the cache lines that the access touches while its variables run over intervals of these
        lengths, and in how many runs of neighbouring lines they lie."""
        key = tuple([lengths[v] for v in self.every])
        if key not in self.known:
            self.known[key] = self._lines(lengths, line)
        return self.known[key]

    def _lines(self, lengths: MappingABC[str, int], line: int) -> tuple[float, float]:
        spans = []
        for form, names, size in zip(self.forms, self.names, self.shape, strict=True):
            span = 1
            if form is None:
                for v in names:
                    span *= lengths[v]
            else:
                for v, k in form[1].items():
                    span += abs(k) * (lengths[v] - 1)
            spans.append(min(span, size))
        run = 1
        for d, extent in self.fast:
            run *= min(spans[d], extent)
            if spans[d] < extent:
                break
        every, piece = math.prod(spans) * self.itemsize, run * self.itemsize
        if not piece:
            return 0.0, 0.0
        return (every if piece >= line else every * line / piece), every / piece

    def usual(self, b: Body) -> tuple[float, float]:
        """The same for tiles of mean length."""
        size, runs = self.lines(b.lengths, b.line)
        for v in self.every:
            size *= b.mean[v]
            runs *= b.mean[v]
        return size, runs

    def moves_along(self, v: str) -> bool:
        return v in self.every


@dataclass(slots=True, eq=False)
class Touched:
    """A tensor in a body: its largest use and that one's bytes, the first leaf and whether it reads, the first writer."""

    use: Use
    size: float
    first: int
    read: bool
    writer: int


@dataclass(slots=True, eq=False)
class Body:
    """One iteration of a loop, a leaf, or a whole kernel."""

    loop: Loop | None
    parent: Body | None
    depth: int  # enclosing loops, its own included
    lengths: dict[str, int]  # of the largest tile
    mean: dict[str, float]  # of all tiles, as a share of the largest
    times: float  # how often it runs
    share: float = 1.0  # of the tiles of its loop, those that a condition leaves
    uses: list[tuple[int, Use]] = field(default_factory=list)  # with the number of the leaf
    children: list[Body] = field(default_factory=list)
    touched: dict[str, Touched] = field(default_factory=dict)
    size: float = 0.0  # bytes of all that it touches
    line: int = 0  # bytes of a cache line


@dataclass(slots=True, eq=False)
class Moved:
    """Bytes that one leaf makes move into a level, read and written, and the seconds that it waits for their runs."""

    read: float = 0.0
    written: float = 0.0
    waits: float = 0.0


def bodies(
    found: Sequence[Site],
    tensors: MappingABC[str, Tensor],
    stored: MappingABC[str, Buffer],
    sizes: MappingABC[str, int],
    density: Sequence[float],
    line: int,
) -> Body:
    """The tree of a kernel; `density[n]` is the share of the tiles of leaf n that its conditions leave."""
    k, extents = found[0].kernel, dict(found[0].extents)
    root = Body(None, None, 0, extents, dict.fromkeys(extents, 1.0), 1.0)
    homes: dict[str, int] = {}
    leaves = 0

    def visit(n: Node, body: Body, tiles: dict[str, Tiles], held: float) -> None:
        nonlocal leaves
        if isinstance(n, Alloc):
            homes[n.buffer.name] = body.depth
            for child in n.body:
                visit(child, body, tiles, held)
            return
        if isinstance(n, Do):
            leaf = Body(None, body, body.depth, body.lengths, body.mean, body.times)
            for use in _uses(found[leaves], tensors, stored, sizes, homes):
                leaf.uses.append((leaves, use))
            leaves += 1
            body.children.append(leaf)
            return
        old = tiles[n.var]
        new = cut(old, n.step)
        share = 1.0
        if n.when is not None and leaves < len(density):  # all leaves inside have it
            share, held = (density[leaves] / held if held else 0.0), density[leaves]
        times = body.times * share * count(new) / max(1, count(old))
        lengths = {**body.lengths, n.var: min(n.step, body.lengths[n.var])}
        whole = total(new) / max(1, count(new)) / max(1, lengths[n.var])
        mean = {**body.mean, n.var: whole}
        inner = Body(n, body, body.depth + 1, lengths, mean, times, share)
        body.children.append(inner)
        for child in n.body:
            visit(child, inner, {**tiles, n.var: new}, held)

    for n in k.body:
        visit(n, root, {v: {x: 1} for v, x in extents.items()}, 1.0)
    _gather(root, line)
    return root


def _gather(b: Body, line: int) -> None:
    """Uses of the children belong to their parents, too; of a tensor's the largest says what a body touches."""
    for child in b.children:
        _gather(child, line)
        b.uses += child.uses
    b.line = line
    for leaf, use in b.uses:
        size = use.lines(b.lengths, line)[0]
        t = b.touched.get(use.tensor)
        if t is None:
            t = b.touched[use.tensor] = Touched(use, size, leaf, not use.writes, -1)
        elif size > t.size:
            t.use, t.size = use, size
        if leaf == t.first and not use.writes:
            t.read = True
        if use.writes and t.writer < 0:
            t.writer = leaf
    b.size = sum(t.size for t in b.touched.values())


def _uses(
    s: Site,
    tensors: MappingABC[str, Tensor],
    stored: MappingABC[str, Buffer],
    sizes: MappingABC[str, int],
    homes: MappingABC[str, int],
) -> list[Use]:
    e = s.do.einsum
    out: list[Use] = []
    for a, writes in [*((a, False) for a in s.facts.reads), (Access(e.target, e.indices), True)]:
        if not a.indices:
            continue
        t = tensors[a.tensor]
        shape = tuple(evaluate_size(s, sizes) for s in t.shape)
        forms = tuple(affine(i, sizes) for i in a.indices)
        names = tuple(
            tuple(f[1]) if f is not None else tuple(variables(i))
            for f, i in zip(forms, a.indices, strict=True)
        )
        b = stored.get(a.tensor)
        layout = b.layout if b is not None else row_major(len(shape))
        width = (t if b is None else b).bits / 8
        fast = tuple(
            (d.dimension, evaluated(extent, sizes))
            for d, extent in reversed(list(zip(layout.digits, layout.extents(shape))))
        )
        home = homes.get(a.tensor, -1)
        every = tuple(dict.fromkeys(v for own in names for v in own))
        out.append(Use(a.tensor, forms, names, every, shape, width, fast, home, writes))
    return out


@dataclass(frozen=True, slots=True)
class Runs:
    """How bytes that enter a level lie: in `count` runs of neighbouring lines, of `length` bytes each, of which `beside` are
    read side by side, in pieces of `piece` bytes."""

    amount: float
    count: float
    length: float
    beside: float
    piece: float
    writes: bool


def moved(
    root: Body, capacity: float, leaves: int, waits: Callable[[Runs], float] = lambda _: 0.0
) -> list[Moved]:
    """What every leaf makes move into a level that holds `capacity` bytes, where runs make a core wait so many seconds."""
    out = [Moved() for _ in range(leaves)]
    stack = [root]
    while stack:
        b = stack.pop()
        fits = b.size <= capacity
        if not b.times or (fits and b is root):
            continue  # the caches are warm
        if b.children and not fits:
            stack += b.children
            continue
        for t in b.touched.values():
            own, pieces = t.use.usual(b)
            amount = _entering(b, t.use, own) if fits else own * b.times
            if not amount:
                continue
            length, count = own / pieces, amount / own * pieces
            beside, piece = _side_by_side(b, t.use)
            if t.writer >= 0:
                out[t.writer].written += amount
                out[t.writer].waits += waits(Runs(amount, count, length, beside, piece, True))
            if t.read:
                out[t.first].read += amount
                out[t.first].waits += waits(Runs(amount, count, length, beside, piece, False))
    return out


def _side_by_side(b: Body, use: Use) -> tuple[float, float]:
    """How many runs a body reads piece by piece in turn, and the bytes of a piece."""
    size, runs = use.lines(b.lengths, b.line)
    length = size / runs
    while True:
        inner = next((c for c in b.children if any(u is use for _, u in c.uses)), None)
        if inner is None:
            return 1.0, length
        size, runs = use.lines(inner.lengths, b.line)
        if size / runs < length:
            return runs, size / runs
        b = inner


def _entering(b: Body, use: Use, size: float) -> float:
    """The bytes of one tensor that enter a level in which `b` fits."""
    while b.parent is not None:
        if b.loop is not None:
            if b.depth <= use.home:
                return 0.0  # the same storage again
            if use.moves_along(b.loop.var):
                whole = use.usual(b.parent)[0] * b.share
                return min(whole, size * b.times / b.parent.times) * b.parent.times
        b = b.parent
    return size if use.home < 0 else 0.0
