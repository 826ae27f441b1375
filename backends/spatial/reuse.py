"""How often each tensor is accessed at each level: closed forms over trip counts and tile lengths.

The loops of a mapping cut boxes, so the sum over all iterations of a product of lengths is the
product, over variables, of sums over that variable's tiles; the last tile of each loop is counted
with its own length.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from functools import reduce

from tcc.ir.cascade import Einsum, Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Call, Const, Expr, Size, Var, accesses, text, variables, walk
from tcc.ir.index import evaluate_size, poly
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node
from tcc.ir.ops import OPS

Tiles = dict[int, int]  # length of a tile -> how many tiles have it


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A leaf with what encloses it, and the tiles that its variables are cut into."""

    kernel: Kernel
    do: Do
    path: tuple[Loop | Alloc, ...]
    tiles: MappingABC[str, Tiles]

    @property
    def looped(self) -> list[str]:
        """Variables of the enclosing loops, each once."""
        return list(dict.fromkeys(n.var for n in self.path if isinstance(n, Loop)))

    def runs(self) -> int:
        """How often the leaf runs."""
        return _product(count(self.tiles[v]) for v in self.looped)

    def longest(self, v: str) -> int:
        return max(self.tiles[v], default=0)

    def swept(self, names: list[str]) -> int:
        """Σ over all runs of the product of the interval lengths of `names`."""
        rest = [v for v in self.looped if v not in names]
        return _product(total(self.tiles[v]) for v in names) * _product(
            count(self.tiles[v]) for v in rest
        )


def sites(k: Kernel, sizes: MappingABC[str, int]) -> list[Site]:
    """Every leaf of a kernel, in order."""
    extents = {v: evaluate_size(e, sizes) for v, e in k.variables}
    found: list[Site] = []

    def visit(n: Node, path: tuple[Loop | Alloc, ...]) -> None:
        if isinstance(n, Do):
            found.append(Site(k, n, path, {v: cut(extents[v], path, v) for v in extents}))
            return
        if isinstance(n, Loop) and n.until is not None:
            raise not_modelled(
                f"the loop over `{n.var}` that stops early", n.span, "run a fixed number of steps"
            )
        for child in n.body:
            visit(child, (*path, n))

    for n in k.body:
        visit(n, ())
    return found


def cut(extent: int, path: tuple[Loop | Alloc, ...], v: str) -> Tiles:
    """The tiles that the loops of a path leave of a variable."""
    tiles = {extent: 1} if extent else {}
    for loop in path:
        if isinstance(loop, Loop) and loop.var == v:
            new: Tiles = {}
            for length, n in tiles.items():
                for piece, m in ((loop.step, length // loop.step), (length % loop.step, 1)):
                    if piece and m:
                        new[piece] = new.get(piece, 0) + n * m
            tiles = new
    return tiles


def count(tiles: Tiles) -> int:
    return sum(tiles.values())


def total(tiles: Tiles) -> int:
    return sum(length * n for length, n in tiles.items())


@dataclass(frozen=True, slots=True)
class Traffic:
    """Elements read and written per (level, tensor)."""

    reads: dict[tuple[str, str], int]
    writes: dict[tuple[str, str], int]


def traffic(
    s: Site,
    tensors: MappingABC[str, Tensor],
    levels: MappingABC[str, str],
    sizes: MappingABC[str, int],
) -> Traffic:
    """The accesses of all runs of one leaf: each distinct element once per run."""
    e = s.do.einsum
    out = Traffic({}, {})
    groups: dict[str, dict[str, Access]] = {}
    for a in e.reads:
        groups.setdefault(a.tensor, {})[text(a)] = a
    for name, group in groups.items():
        several = list(group.values())
        for a, b in itertools.combinations(several, 2):
            if not _disjoint(s, a, b, sizes):
                raise not_modelled(
                    f"`{e.target}`, which reads `{text(a)}` and `{text(b)}`, which may overlap",
                    e.span,
                    "give one of them a copy of the tensor",
                )
        amount = sum(_touched(s, a, tensors, sizes, {}) for a in several)
        out.reads[levels[name], name] = amount
    target = Access(e.target, e.indices, e.span)
    key = (levels[e.target], e.target)
    written = _touched(s, target, tensors, sizes, {})
    first = _touched(s, target, tensors, sizes, dict.fromkeys(e.reduced, 1))
    out.writes[key] = written
    if written != first:
        out.reads[key] = out.reads.get(key, 0) + written - first
    return out


def _touched(
    s: Site,
    a: Access,
    tensors: MappingABC[str, Tensor],
    sizes: MappingABC[str, int],
    runs: MappingABC[str, int],
) -> int:
    """Σ over all runs of the distinct elements of one access; `runs` overrides tile counts."""
    amount = 1
    used: set[str] = set()
    for i, dimension in zip(a.indices, tensors[a.tensor].shape, strict=True):
        names = variables(i)
        moving = [v for v in names if s.longest(v) > 1]
        if used & set(moving) or any(isinstance(n, Access) for n in walk(i)):
            raise not_modelled(
                f"the index `{text(i)}` of `{text(a)}`",
                a.span,
                "use each variable in one index, and no tensor in an index",
            )
        _check_bounds(s, i, evaluate_size(dimension, sizes), a, sizes)
        if not moving:
            continue
        used |= set(moving)
        if isinstance(i, Var):
            amount *= total(s.tiles[i.name])
            continue
        factors = _coefficients(i, moving, sizes, a)
        amount *= sum(
            _distinct(tuple(zip(factors, lengths, strict=True)))
            * _product(s.tiles[v][n] for v, n in zip(moving, lengths, strict=True))
            for lengths in itertools.product(*(s.tiles[v] for v in moving))
        )
    return amount * _product(runs.get(v, count(s.tiles[v])) for v in s.looped if v not in used)


def _check_bounds(s: Site, i: Expr, size: int, a: Access, sizes: MappingABC[str, int]) -> None:
    """Elements outside a tensor are its fill and cost nothing; the closed forms do not see that."""
    extents = {v: total_extent(s.kernel, v, sizes) for v in variables(i)}
    if isinstance(i, Var):
        inside = extents[i.name] <= size
    elif isinstance(i, Call) and i.op == "mod" and isinstance(i.args[1], Const):
        inside = int(i.args[1].value) <= size
    else:
        affine = all(isinstance(e, Var) or not variables(e) for e in poly(i).atoms.values())
        ranges = [(0, n - 1) if affine else range(n) for n in extents.values()]
        points = (dict(zip(extents, p, strict=True)) for p in itertools.product(*ranges))
        inside = all(0 <= evaluate(i, p, sizes) < size for p in points)
    if not inside:
        raise not_modelled(
            f"`{text(a)}`, which may lie outside of its tensor", a.span, "pad the tensor first"
        )


def total_extent(k: Kernel, v: str, sizes: MappingABC[str, int]) -> int:
    return evaluate_size(dict(k.variables)[v], sizes)


def _coefficients(i: Expr, moving: list[str], sizes: MappingABC[str, int], a: Access) -> list[int]:
    p = poly(i)
    out = []
    for v in moving:
        c = p.coefficient(v)
        opaque = any(v in variables(e) for e in p.atoms.values() if not isinstance(e, Var))
        if (
            c is None
            or opaque
            or any(isinstance(e, Var) for k in c.terms for e in (c.atoms[x] for x in k))
        ):
            raise not_modelled(
                f"the index `{text(i)}` of `{text(a)}`", a.span, "use affine indices"
            )
        out.append(abs(evaluate_size(c.expr(), sizes)))
    return out


def _distinct(parts: tuple[tuple[int, int], ...]) -> int:
    """The number of values of Σ cᵢ·xᵢ, 0 <= xᵢ < nᵢ."""
    span = 1  # values so far fill 0 .. span-1 without gaps
    for c, n in sorted(parts):
        if c > span:
            break
        span += c * (n - 1)
    else:
        return span
    sums = {0}
    for c, n in parts:
        sums = {x + c * k for x in sums for k in range(n)}
    return len(sums)


def _disjoint(s: Site, a: Access, b: Access, sizes: MappingABC[str, int]) -> bool:
    """Whether some dimension, fixed within a run, always differs between two accesses."""
    for i, j in zip(a.indices, b.indices, strict=True):
        names = list(dict.fromkeys(variables(i, j)))
        if any(s.longest(v) > 1 for v in names):
            continue
        ranges = [range(total_extent(s.kernel, v, sizes)) for v in names]
        points = (dict(zip(names, p, strict=True)) for p in itertools.product(*ranges))
        if all(evaluate(i, p, sizes) != evaluate(j, p, sizes) for p in points):
            return True
    return False


def evaluate(e: Expr, point: MappingABC[str, int], sizes: MappingABC[str, int]) -> int:
    """The value of an index at a point."""
    if isinstance(e, Const):
        return int(e.value)
    if isinstance(e, Size):
        return sizes[e.rank]
    if isinstance(e, Var):
        return point[e.name]
    assert isinstance(e, Call), text(e)
    return int(OPS[e.op].evaluate(*(evaluate(a, point, sizes) for a in e.args)))


def footprint(
    b: Buffer, path: tuple[Loop | Alloc, ...], k: Kernel, sizes: MappingABC[str, int]
) -> list[int]:
    """The extent of each dimension of a buffer where it is allocated, at the largest tile."""
    out = []
    for d in b.dims:
        if isinstance(d, Var):
            out.append(max(cut(total_extent(k, d.name, sizes), path, d.name), default=0))
        else:
            out.append(evaluate_size(d, sizes))
    return out


def operands(e: Einsum) -> list[Access]:
    """Accesses of body and predicates, equal ones once; not those inside indices."""
    return list({text(a): a for a in accesses(e.body, *e.where)}.values())


def not_modelled(what: str, span: object, advice: str) -> CompileError:
    return CompileError("T0340", f"the array model cannot count {what}", span, helps=advice)  # type: ignore[arg-type]


def _product(values: object) -> int:
    return reduce(lambda a, b: a * b, values, 1)  # type: ignore[call-overload, no-any-return]
