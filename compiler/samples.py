"""Random inputs of a program, and what it means for two results to agree."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcc.ir.cascade import Cascade, Einsum, Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype_scaled import random_stored
from tcc.ir.expr import Access, Expr, walk
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import Value, bind
from tcc.ir.scaled_parts import rank_groups
from tcc.ir.sizes import resolution_order, size_value

Array = Any
_LARGEST_INTEGER = 8  # exclusive; of integer inputs that index nothing


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a result lies from the reference: largest errors, and elements beyond the bound."""

    max_abs_error: float
    max_rel_error: float
    outside: int
    first_outside: tuple[int, ...] | None = None

    @property
    def holds(self) -> bool:
        return self.outside == 0


def all_sizes(
    c: Cascade, given: MappingABC[str, int], default: int
) -> tuple[dict[str, int], list[str]]:
    """A size for every rank that has none: the given one or `default` (rounded up to whole groups of
    scaled types); and the ranks that got the default.

    Raises what `bind` raises for sizes that contradict each other or overflow, without allocating
    anything.
    """
    groups = rank_groups(c.inputs)
    fitting = {name: -(-default // n) * n for name, n in groups.items()}
    sizes = {
        r.name: given.get(r.name, fitting.get(r.name, default)) for r in c.ranks if r.size is None
    }
    check = {**sizes, **given}
    for r in c.ranks:
        if r.size is not None and r.name in given:
            value = evaluate_size(r.size, check)
            if value != given[r.name]:
                raise CompileError(
                    "T0125",
                    f"rank `{r.name}` has size {value}, not {given[r.name]}",
                    r.span,
                    helps="its size is fixed by its declaration",
                )
    for t in c.inputs:
        shape_of(c, t, check)
    bind(c, {t.name: Shaped(shape_of(c, t, check)) for t in c.inputs}, {**given, **sizes})
    return sizes, [r.name for r in c.ranks if r.size is None and r.name not in given]


class Shaped:
    """Stands for an array of which only the shape matters, however large."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def random_inputs(
    c: Cascade, sizes: MappingABC[str, int], rng: np.random.Generator
) -> dict[str, Array]:
    """Inputs of the declared types: floats are normal, integers small, not negative and inside what
    they index."""
    limits = _index_limits(c)
    known = every_size(c, sizes)
    found = {}
    for t in c.inputs:
        shape = shape_of(c, t, sizes)
        try:
            found[t.name] = _random(t, shape, limits.get(t.name, []), known, rng)
        except (MemoryError, ValueError, OverflowError):
            raise CompileError(
                "T0307",
                f"no memory for `{t}` with shape {list(shape)}",
                t.span,
                helps="choose smaller sizes",
            ) from None
    return found


def _random(
    t: Tensor,
    shape: tuple[int, ...],
    limits: list[Expr],
    sizes: MappingABC[str, int],
    rng: np.random.Generator,
) -> Array:
    if not t.dtype.native:
        bound = min([evaluate_size(e, sizes) for e in limits], default=_LARGEST_INTEGER)
        return random_stored(t.dtype, t.axes, shape, rng, bound)
    if t.dtype.is_float:
        kind = np.float64 if t.dtype.bits == 64 else np.float32
        return rng.standard_normal(shape, kind).astype(t.dtype.numpy)
    if not t.dtype.is_integer:
        return rng.random(shape) < 0.5
    bound = min([evaluate_size(e, sizes) for e in limits], default=_LARGEST_INTEGER)
    return rng.integers(0, max(1, min(bound, np.iinfo(t.dtype.numpy).max)), shape, t.dtype.numpy)


def every_size(c: Cascade, sizes: MappingABC[str, int]) -> dict[str, int]:
    """The sizes of all ranks, from those that have none of their own."""
    known = dict(sizes)
    for r in resolution_order({r.name: r for r in c.ranks}):
        if r.size is not None:
            known[r.name] = size_value(r.size, known, r)
    return known


def most_points(c: Cascade, sizes: MappingABC[str, int]) -> int:
    """The number of points of the largest iteration space."""
    known = every_size(c, sizes)
    boxes = (c.extents(d).values() for d in c.definitions if isinstance(d, Einsum))
    return max((math.prod(evaluate_size(e, known) for e in box) for box in boxes), default=0)


def shape_of(c: Cascade, t: Tensor, sizes: MappingABC[str, int]) -> tuple[int, ...]:
    """The shape of a tensor when the ranks without size have the given ones."""
    known = every_size(c, sizes)
    shape = tuple(evaluate_size(s, known) for s in t.shape)
    for n in shape:
        if n < 0:
            raise CompileError(
                "T0110",
                f"`{t.name}` has the negative size {n}",
                t.span,
                helps="sizes are 0 or more",
            )
    return shape


def _index_limits(c: Cascade) -> dict[str, list[Expr]]:
    """For each tensor that is used as an index: the extents of the dimensions that it indexes."""
    found: dict[str, list[Expr]] = {}
    for d in c.definitions:
        if not isinstance(d, Einsum):
            continue
        for a in (*d.reads, Access(d.target, d.indices)):
            for i, extent in zip(a.indices, c.tensors[a.tensor].shape):
                for inner in walk(i):
                    if isinstance(inner, Access):
                        found.setdefault(inner.tensor, []).append(extent)
    return found


def agreement(got: Array, want: Array, bound: Array | None) -> Agreement:
    """`got` against `want`: floats within `bound` per element (infinite: anything goes), the rest
    exactly."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return Agreement(math.inf, math.inf, max(1, want.size))
    with np.errstate(all="ignore"):
        if want.dtype.kind != "f":
            wrong = got != want
            apart = np.abs(got.astype(np.float64) - want.astype(np.float64))
        else:
            a, b = got.astype(np.float64), want.astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            apart = np.where(same, 0.0, np.abs(a - b))
            allowed = np.asarray(np.inf if bound is None else bound, np.float64)
            # beyond the largest number of the type an infinity is as right as a finite result
            wrong = ~same & ~(apart <= allowed) & ~np.isnan(allowed) & np.isfinite(allowed)
            wrong |= (np.isnan(a) != np.isnan(b)) & np.isfinite(allowed)
        finite = np.isfinite(apart)
        relative = np.where(
            apart > 0, apart / np.maximum(np.abs(want.astype(np.float64)), 1e-300), 0.0
        )
        where = np.argwhere(wrong)
        first = tuple(int(i) for i in where[0]) if len(where) else None
        worst = (
            math.inf if np.any(wrong & ~finite) else float(np.max(apart, where=finite, initial=0.0))
        )
        return Agreement(
            worst,
            float(np.max(relative, where=np.isfinite(relative), initial=0.0)),
            len(where),
            first,
        )


def numbers(t: Tensor, stored: Array) -> Array:
    """The values of a stored tensor, which may be codes."""
    return stored if t.dtype.native else t.dtype.load(stored, t.axes)


def worst(found: Iterable[Agreement]) -> Agreement:
    """All of them as one."""
    found = list(found)
    return Agreement(
        max((a.max_abs_error for a in found), default=0.0),
        max((a.max_rel_error for a in found), default=0.0),
        sum(a.outside for a in found),
        next((a.first_outside for a in found if a.outside), None),
    )


def bounds_of(values: MappingABC[str, Value]) -> dict[str, Array]:
    """The error bounds of interpreted outputs."""
    return {name: v.error for name, v in values.items()}
