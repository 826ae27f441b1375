"""The parts of a scaled tensor as plain tensors: what they are called, their shapes, and the value that they mean.

    W: u4[group k 128, scale f16, zero 8][N, K]
    parts  W_codes: u4[N, K], W_scale: f16[N, K / 128]
    value  (f32(W_codes[n, k]) - 8) * f32(W_scale[n, k / 128])

A scale of a scaled type has parts of its own (`W_scale_codes`, `W_scale_scale`); a table is read at the codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcc.ir.cascade import Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, DType, Scaled
from tcc.ir.dtype_scaled import Encoded, scaled_form
from tcc.ir.expr import Access, Cast, Const, Expr, call
from tcc.ir.index import divide, poly

Names = dict[tuple[str, ...], str]  # of the parts, by their paths
Divide = Callable[[Expr, int], Expr]  # a size over an integer that divides it
_BESIDE = ("table", "scale", "zero", "offset")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One plain tensor of a scaled one. `path` leads from the `Encoded` to it: `("scale", "codes")`."""

    path: tuple[str, ...]
    dtype: DType
    shape: tuple[Expr, ...]

    @property
    def name(self) -> str:
        """What the name of the whole gets as its ending."""
        return "_".join(self.path)


def rank_groups(tensors: Iterable[Tensor]) -> dict[str, int]:
    """For each rank that scaled types group, coded ones cut into runs and lanes, and packed ones have several of in a byte:
    the least number of coordinates that is whole groups of all."""
    found: dict[str, int] = {}
    for t in tensors:
        kind: DType | None = t.dtype
        if t.packed and t.axes[-1]:
            rank, form = t.axes[-1].upper(), t.dtype.form
            vector = form.vector if isinstance(form, Scaled) else None
            per = 8 // t.bits * (vector[1] if vector and vector[0] == t.axes[-1] else 1)
            found[rank] = math.lcm(found.get(rank, 1), per)
        if isinstance(t.dtype.form, Coded):
            for variable, n in t.dtype.form.neighbours:
                found[variable.upper()] = math.lcm(found.get(variable.upper(), 1), n)
        while kind is not None and isinstance(kind.form, Scaled):
            lengths = [*kind.form.groups, *((kind.form.vector,) if kind.form.vector else ())]
            for variable, n in lengths:
                if n is not None and n > 1:
                    rank = variable.upper()
                    found[rank] = math.lcm(found.get(rank, 1), n)
            kind = kind.form.scale
    return found


def parts_of(
    t: DType, axes: tuple[str, ...], shape: tuple[Expr, ...], over: Divide | None = None
) -> list[Part]:
    """The parts of a tensor of a scaled type, the codes first; sizes are divided by `over`."""
    return list(_parts(t, axes, shape, (), over or divided, (1,) * len(shape)))


def divided(size: Expr, n: int) -> Expr:
    """size / n, as a product where n divides it."""
    found = divide(poly(size), poly(Const(n)))
    return found.expr() if found is not None else call("floordiv", size, Const(n))


Lengths = tuple[int | None, ...]  # per dimension: coordinates per entry; None: one entry for all


def _lengths(t: DType, axes: tuple[str, ...], outer: Lengths) -> Lengths:
    groups = dict(scaled_form(t).groups)
    if not groups:
        return (None,) * len(axes)
    return tuple(None if n is None else groups.get(a, n) for a, n in zip(axes, outer, strict=True))


def _entries(shape: tuple[Expr, ...], lengths: Lengths, over: Divide) -> tuple[Expr, ...]:
    return tuple(
        Const(1) if n is None else s if n == 1 else over(s, n)
        for s, n in zip(shape, lengths, strict=True)
    )


def _parts(t: DType, axes: tuple[str, ...], whole: tuple[Expr, ...], path: tuple[str, ...],
           over: Divide, outer: Lengths) -> Iterator[Part]:  # fmt: skip
    """The parts of a tensor of entries for `outer` coordinates each of a tensor of shape `whole`."""
    form = scaled_form(t)
    lengths = _lengths(t, axes, outer)
    per_code = list(outer)
    if form.vector is not None:
        per_code[axes.index(form.vector[0])] = form.vector[1]
    codes = _entries(whole, tuple(per_code), over)
    levels = (Const(form.residual),) if form.residual > 1 else ()
    yield Part((*path, "codes"), form.element, (*levels, *codes))
    if form.table is not None:
        width = (Const(form.vector[1]),) if form.vector else ()
        rows = Const(2**form.element.bits)
        yield Part((*path, "table"), form.table, (*levels, rows, *width))
    for name in _BESIDE[1:]:
        part = getattr(form, name)
        if isinstance(part, DType) and isinstance(part.form, Scaled):
            yield from _parts(part, axes, whole, (*path, name), over, lengths)
        elif isinstance(part, DType):
            yield Part((*path, name), part, _entries(whole, lengths, over))


def value_at(t: DType, axes: tuple[str, ...], names: Names, at: tuple[Expr, ...]) -> Expr:
    """The element of a scaled tensor at `at`, from its parts, which have these names."""
    return _value(t, axes, names, at, (), (1,) * len(at), t.compute)


def _value(t: DType, axes: tuple[str, ...], names: Names, at: tuple[Expr, ...],
           path: tuple[str, ...], outer: Lengths, compute: DType) -> Expr:  # fmt: skip
    form = scaled_form(t)
    lengths = _lengths(t, axes, outer)
    value = _element(form, axes, names, at, path, outer, compute)

    def entry(name: str) -> Expr:
        return Cast(compute, Access(names[(*path, name)], _coordinates(at, lengths)))

    if isinstance(form.zero, DType):
        value = call("sub", value, entry("zero"))
    elif form.zero:
        value = call("sub", value, Const(form.zero))
    if form.scale is not None and isinstance(form.scale.form, Scaled):
        inner = _value(form.scale, axes, names, at, (*path, "scale"), lengths, compute)
        value = call("mul", value, inner)
    elif form.scale is not None:
        value = call("mul", value, entry("scale"))
    return value if form.offset is None else call("add", value, entry("offset"))


def _coordinates(at: tuple[Expr, ...], lengths: Lengths) -> tuple[Expr, ...]:
    return tuple(
        Const(0) if n is None else i if n == 1 else call("floordiv", i, Const(n))
        for i, n in zip(at, lengths, strict=True)
    )


def _element(form: Scaled, axes: tuple[str, ...], names: Names,
             at: tuple[Expr, ...], path: tuple[str, ...], outer: Lengths, compute: DType) -> Expr:  # fmt: skip
    codes = names[(*path, "codes")]
    if form.table is None:
        return Cast(compute, Access(codes, _coordinates(at, outer)))
    per_code = list(outer)
    within: tuple[Expr, ...] = ()
    if form.vector is not None:
        axis = axes.index(form.vector[0])
        per_code[axis] = form.vector[1]
        within = (call("mod", at[axis], Const(form.vector[1])),)
    found: Expr | None = None
    for level in range(form.residual):
        first = (Const(level),) if form.residual > 1 else ()
        code = Access(codes, (*first, *_coordinates(at, tuple(per_code))))
        row = Cast(compute, Access(names[(*path, "table")], (*first, code, *within)))
        found = row if found is None else call("add", found, row)
    assert found is not None
    return found


# ---- arguments


def split(value: Any, t: Tensor, parts: list[Part]) -> list[Any]:
    """The arrays of an `Encoded` that `parts` describe, in their order; T0148 for anything else."""
    found = checked(value, t)
    return [_found(found, p) for p in parts]


def checked(value: Any, t: Tensor) -> Encoded:
    """The argument for a tensor of a scaled or coded type, if it is one; T0148 for anything else."""
    if not isinstance(value, Encoded):
        raise CompileError("T0148", f"`{t.name}`: a {type(value).__name__} is no tensor of {t.dtype}", t.span,
                           helps="pass `tcc.dtypes.encode(x, dtype, axes)`, or `tcc.dtypes.Encoded(…)` of its parts")  # fmt: skip
    if value.dtype != t.dtype:
        raise CompileError("T0148", f"`{t.name}` is {value.dtype}, not {t.dtype}", t.span, helps="encode it again")  # fmt: skip
    assert isinstance(t.dtype.form, Scaled | Coded)
    named = t.dtype.form.ranks
    if value.axes != t.axes and any(
        (a in named or b in named) and a != b for a, b in zip(value.axes, t.axes)
    ):
        raise CompileError("T0148", f"`{t.name}` is encoded over {', '.join(value.axes)}, but declared over "
                           f"{', '.join(t.axes)}", t.span, helps="give its dimensions those names")  # fmt: skip
    return value


def _found(value: Encoded, part: Part) -> Any:
    found: Any = value
    for step in part.path:
        found = found.codes if step == "codes" else found.parts[step]
    if 0 in value.shape:  # nothing is read, but every part has its declared shape
        shape = np.shape(found)
        wanted = [s.value if isinstance(s, Const) else n for s, n in zip(part.shape, shape)]
        if tuple(wanted) != shape:
            return np.zeros([int(n) for n in wanted], part.dtype.numpy)
    return found
