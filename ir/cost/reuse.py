"""How often each tensor is accessed at each level: what the mapping interpreter counts, without running anything.

A run of a leaf reads each distinct element of its operands once and writes each element of its target once. Summed
over all runs this is a closed form wherever an index moves along variables of its own inside the tensor; else the
ends of all tiles are looked at (`tiles`: several reads of one tensor, padding), or all points (`points`: diagonals,
quotients). An index that is read from a tensor depends on data: then the number is an upper bound (`estimated`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcc.ir.cascade import Tensor
from tcc.ir.cost.tiles import CELLS, Site, bounds, evaluate, total
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, accesses, text, variables
from tcc.ir.index import evaluate_size

Array = Any
Affine = tuple[int, dict[str, int]]  # constant, coefficient of each variable
HOW = ("closed", "tiles", "points", "estimated")  # from the best to the worst
_SUBSETS = 6  # more reads of one tensor than this are counted point by point


@dataclass(frozen=True, slots=True)
class Traffic:
    """Elements read and written per (level, tensor), and how each tensor was counted where not in closed form."""

    reads: dict[tuple[str, str], int]
    writes: dict[tuple[str, str], int]
    how: dict[str, str] = field(default_factory=dict)


def traffic(
    s: Site,
    tensors: MappingABC[str, Tensor],
    levels: MappingABC[str, str],
    sizes: MappingABC[str, int],
) -> Traffic:
    """The accesses of all runs of one leaf."""
    e = s.do.einsum
    out = Traffic({}, {})
    if any(s.extents[v] == 0 for v in s.facts.free):
        return out
    groups: dict[str, list[Access]] = {}
    for a in s.facts.reads:
        groups.setdefault(a.tensor, []).append(a)

    def counted(name: str, group: list[Access], first: Iterable[str] = ()) -> int:
        shape = [evaluate_size(n, sizes) for n in tensors[name].shape]
        amount, how = distinct(s, group, shape, sizes, first)
        if how != "closed":
            out.how[name] = max(out.how.get(name, "closed"), how, key=HOW.index)
        return amount

    for name, group in groups.items():
        out.reads[levels[name], name] = counted(name, group)
    target = [Access(e.target, e.indices, e.span)]
    key = (levels[e.target], e.target)
    out.writes[key] = counted(e.target, target)
    if s.facts.reduced or s.do.update:
        set_ = 0 if s.do.update else counted(e.target, target, s.facts.reduced)
        if out.writes[key] != set_:
            out.reads[key] = out.reads.get(key, 0) + out.writes[key] - set_
    return out


def distinct(
    s: Site,
    group: Sequence[Access],
    shape: Sequence[int],
    sizes: MappingABC[str, int],
    first: Iterable[str] = (),
) -> tuple[int, str]:
    """Σ over all runs of the distinct elements of a tensor that some access of `group` names, and how it was
    counted; of the variables in `first` only the first tiles count."""
    exact = s.guard is None or s.guard.whole
    if len(group) > 1:
        group = list({text(a): a for a in group}.values())
    if not shape:
        return s.sum({}, first), "closed" if exact else "estimated"
    if len(group) == 1:
        amount = _closed(s, group[0], shape, sizes, first)
        if amount is not None:
            return amount, "closed" if exact else "estimated"
    if exact and not any(accesses(*a.indices) for a in group):
        forms = [[affine(i, sizes) for i in a.indices] for a in group]
        amount = _intervals(s, forms, shape, first) if len(group) <= _SUBSETS else None
        if amount is not None:
            return amount, "tiles"
        amount = _points(s, group, shape, sizes, first)
        if amount is not None:
            return amount, "points"
    return sum(_most(s, a, shape, first) for a in group), "estimated"


def affine(i: Expr, sizes: MappingABC[str, int]) -> Affine | None:
    """constant + Σ coefficient · variable, or None where an index is not of this form."""
    if isinstance(i, Var):
        return 0, {i.name: 1}
    if isinstance(i, Const):
        return int(i.value), {}
    if isinstance(i, Size):
        return sizes[i.rank], {}
    if isinstance(i, Cast):
        return affine(i.arg, sizes)
    if not isinstance(i, Call):
        return None
    parts = [affine(a, sizes) for a in i.args]
    if any(p is None for p in parts):
        return None
    (c, factors), *rest = [p for p in parts if p is not None]
    if i.op == "neg":
        return -c, {v: -k for v, k in factors.items()}
    if i.op in ("add", "sub"):
        sign = 1 if i.op == "add" else -1
        merged = dict(factors)
        for v, k in rest[0][1].items():
            merged[v] = merged.get(v, 0) + sign * k
        return c + sign * rest[0][0], {v: k for v, k in merged.items() if k}
    if i.op == "mul" and (not factors or not rest[0][1]):
        by, (c, factors) = (c, rest[0]) if not factors else (rest[0][0], (c, factors))
        return c * by, {v: k * by for v, k in factors.items() if k * by}
    return (int(evaluate(i, {}, sizes)), {}) if not variables(i) else None


def _one(_: object) -> int:
    return 1


def _closed(
    s: Site, a: Access, shape: Sequence[int], sizes: MappingABC[str, int], first: Iterable[str]
) -> int | None:
    """One access that moves along variables of its own, inside the tensor: products of sums over tiles."""
    of: dict[str, Any] = {}
    factor = 1
    for i, size in zip(a.indices, shape, strict=True):
        if isinstance(i, Var):  # the usual case
            v = i.name
            if s.extents[v] > size or (v in of and s.longest(v) != 1):
                return None
            if s.longest(v) != 1:
                of[v] = total
            continue
        form = affine(i, sizes)
        if form is None:
            names = variables(i)
            if accesses(i) or any(s.longest(v) != 1 for v in names):
                return None
            if not _stays_inside(i, names, s.extents, size, sizes):
                return None
            continue
        low, high = _ends(form, s.extents)
        if low < 0 or high >= size:
            return None
        moving = [v for v in form[1] if s.longest(v) != 1]
        if any(v in of for v in moving):
            return None
        if len(moving) == 1:
            of[moving[0]] = total
            continue
        if s.guard is not None and any(v in s.guard.cells for v in moving):
            return None
        steps = [abs(form[1][v]) for v in moving]
        of |= dict.fromkeys(moving, _one)
        factor *= sum(
            _values(tuple(zip(steps, lengths, strict=True)))
            * math.prod(s.tiles[v][n] for v, n in zip(moving, lengths, strict=True))
            for lengths in itertools.product(*(s.tiles[v] for v in moving))
        )
    return factor * s.sum(of, first)


def _ends(form: Affine, extents: MappingABC[str, int]) -> tuple[int, int]:
    """The least and the largest value over whole extents."""
    low = high = form[0]
    for v, k in form[1].items():
        low, high = low + min(0, k * (extents[v] - 1)), high + max(0, k * (extents[v] - 1))
    return low, high


def _stays_inside(
    i: Expr,
    names: list[str],
    extents: MappingABC[str, int],
    size: int,
    sizes: MappingABC[str, int],
) -> bool:
    """Whether an index of any form lies in the tensor at all points."""
    if math.prod(extents[v] for v in names) > CELLS:
        return False
    values = np.asarray(evaluate(i, _grid(names, extents), sizes))
    return values.size == 0 or (values.min() >= 0 and values.max() < size)


def _values(parts: tuple[tuple[int, int], ...]) -> int:
    """The number of values of Σ cᵢ·xᵢ, 0 <= xᵢ < nᵢ."""
    if any(n == 0 for _, n in parts):
        return 0
    if _gapless(parts):
        return 1 + sum(c * (n - 1) for c, n in parts)
    sums = np.zeros(1, np.int64)
    for c, n in parts:
        sums = np.unique(np.add.outer(sums, c * np.arange(n)))
    return int(sums.size)


def _gapless(parts: Iterable[tuple[int, int]]) -> bool:
    """Whether the values of Σ cᵢ·xᵢ follow each other without gaps."""
    span = 1
    for c, n in sorted(p for p in parts if p[1] > 1):
        if c > span:
            return False
        span += c * (n - 1)
    return True


# ---- by tiles


def _intervals(
    s: Site, forms: list[list[Affine | None]], shape: Sequence[int], first: Iterable[str]
) -> int | None:
    """|A ∪ B ∪ …| by inclusion and exclusion; in a run every access is a box of intervals, and so is what they share."""
    dimensions = range(len(shape))
    for form in forms:
        moving: set[str] = set()
        for f in form:
            if f is None:
                return None
            own = {v for v in f[1] if s.longest(v) != 1}
            if own & moving:
                return None  # a diagonal
            moving |= own
            lengths = itertools.product(*(s.tiles[v] for v in own))
            if len(own) > 1 or (len(forms) > 1 and own):
                steps = [abs(f[1][v]) for v in own]
                if not all(_gapless(zip(steps, n, strict=True)) for n in lengths):
                    return None
    amount = 0
    for size in range(1, len(forms) + 1):
        for subset in itertools.combinations(forms, size):
            rows = [[f[d] for f in subset] for d in dimensions]
            part = _shared(s, rows, shape, first)  # type: ignore[arg-type]
            if part is None:
                return None
            amount += part if size % 2 else -part
    return amount


def _shared(
    s: Site, rows: list[list[Affine]], shape: Sequence[int], first: Iterable[str]
) -> int | None:
    """Σ over all runs of the elements that several boxes share; rows[d] are the indices of dimension d."""
    parts = []
    done: dict[str, Any] = {}
    for group, names in _components(rows):
        if math.prod(sum(s.tiles[v].values()) for v in names) > CELLS:
            return None
        guarded = [v for v in s.guard.cells if v in names] if s.guard is not None else []
        names = [*guarded, *(v for v in names if v not in guarded)]
        ends: dict[str, tuple[Array, Array]] = {}
        for n, v in enumerate(names):
            view = [1] * len(names)
            view[n] = -1
            low, high = bounds(s.extents[v], s.steps.get(v, ()))
            ends[v] = low.reshape(view), high.reshape(view)
        amount: Array = np.ones([1] * len(names), np.int64)
        for d in group:
            amount = amount * _overlap(rows[d], ends, shape[d])
        amount = np.broadcast_to(amount, [max(low.size for low in (ends[v][0],)) for v in names])
        for n, v in enumerate(guarded):
            assert s.guard is not None
            outer = s.steps.get(v, ())
            outer = outer[: len(outer) - len(s.guard.inner[v])]
            starts = np.searchsorted(ends[v][0].ravel(), bounds(s.extents[v], outer)[0])
            amount = np.add.reduceat(amount, starts, axis=n)
        rest = tuple(range(len(guarded), len(names)))
        parts.append((tuple(guarded), amount.sum(axis=rest)))
        done |= dict.fromkeys(names, _one)
    return s.sum(done, first, parts)


def _components(rows: list[list[Affine]]) -> list[tuple[list[int], list[str]]]:
    """Dimensions whose indices share variables, with these variables."""
    found: list[tuple[list[int], list[str]]] = []
    for d, row in enumerate(rows):
        names = list(dict.fromkeys(v for f in row for v in f[1]))
        group = [d]
        for other in [x for x in found if set(x[1]) & set(names)]:
            found.remove(other)
            group, names = [*other[0], *group], list(dict.fromkeys([*other[1], *names]))
        found.append((group, names))
    return found


def _overlap(row: list[Affine], ends: MappingABC[str, tuple[Array, Array]], size: int) -> Array:
    """How many coordinates inside the tensor all intervals of a row share, at all tiles."""
    low: Array = np.zeros((), np.int64)
    high: Array = np.full((), size - 1, np.int64)
    step = 1
    for constant, factors in row:
        a = b = np.full((), constant, np.int64)
        empty: Array = np.zeros((), bool)
        for v, k in factors.items():
            start, end = ends[v]
            a = a + k * (start if k > 0 else end - 1)
            b = b + k * (end - 1 if k > 0 else start)
            empty = empty | (end <= start)
        moving = [
            abs(k) for v, k in factors.items() if (ends[v][1] - ends[v][0]).max(initial=0) > 1
        ]
        if len(row) == 1 and len(moving) == 1 and moving[0] > 1:  # a, a + k, …, b
            step = moving[0]
            a, b = a + -(-np.maximum(0, -a) // step) * step, np.where(empty, a - 1, b)
            b = np.where(b >= size, b - -(-(b - size + 1) // step) * step, b)
            return np.maximum(0, (b - a) // step + 1)
        low, high = np.maximum(low, a), np.minimum(high, np.where(empty, a - 1, b))
    return np.maximum(0, high - low + 1)


# ---- by points


def _grid(names: Sequence[str], extents: MappingABC[str, int]) -> dict[str, Array]:
    """All points of a box, an axis for each variable."""
    out = {}
    for n, v in enumerate(names):
        view = [1] * len(names)
        view[n] = -1
        out[v] = np.arange(extents[v]).reshape(view)
    return out


def _points(
    s: Site,
    group: Sequence[Access],
    shape: Sequence[int],
    sizes: MappingABC[str, int],
    first: Iterable[str],
) -> int | None:
    """All pairs of a run and an element, each once: tiles are disjoint, so a point knows its run."""
    named = list(dict.fromkeys(v for a in group for v in variables(*a.indices)))
    guarded = [v for v in s.guard.cells if v in named] if s.guard is not None else []
    names = [*guarded, *(v for v in named if v not in guarded)]
    points = math.prod(s.extents[v] for v in names)
    if points * len(group) > CELLS or math.prod(shape) >= 1 << 40:
        return None
    grid = _grid(names, s.extents)
    run: Array = np.zeros([1] * len(names), np.int64)
    tiles: list[int] = []
    for v in names:
        low, _ = bounds(s.extents[v], s.steps.get(v, ()))
        run = run * len(low) + (np.searchsorted(low, grid[v], side="right") - 1)
        tiles.append(len(low))
    if math.prod(tiles) * math.prod(shape) >= 1 << 62:
        return None
    found = []
    full = [s.extents[v] for v in names]
    for a in group:
        place, inside = run, np.ones((), bool)
        for i, size in zip(a.indices, shape, strict=True):
            value = np.asarray(evaluate(i, grid, sizes)).astype(np.int64)
            place, inside = place * size + value, inside & (value >= 0) & (value < size)
        found.append(np.broadcast_to(place, full)[np.broadcast_to(inside, full)])
    pairs = np.unique(np.concatenate(found)) // math.prod(shape)
    per_run = np.bincount(pairs, minlength=math.prod(tiles)).reshape(tiles or [1])
    for n, v in enumerate(guarded):
        assert s.guard is not None
        outer = s.steps.get(v, ())
        outer = outer[: len(outer) - len(s.guard.inner[v])]
        low, _ = bounds(s.extents[v], s.steps.get(v, ()))
        starts = np.searchsorted(low, bounds(s.extents[v], outer)[0])
        per_run = np.add.reduceat(per_run, starts, axis=n)
    rest = tuple(range(len(guarded), per_run.ndim))
    return s.sum(dict.fromkeys(names, _one), first, [(tuple(guarded), per_run.sum(axis=rest))])


def _most(s: Site, a: Access, shape: Sequence[int], first: Iterable[str]) -> int:
    """An upper bound: every point of a run another element, but never more than there are."""
    names = dict.fromkeys(variables(*a.indices), total)
    return min(s.sum(names, first), s.sum({}, first) * math.prod(shape))
