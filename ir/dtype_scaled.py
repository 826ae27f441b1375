"""Scaled and tabled tensors in NumPy (coded ones: `dtype_coded`): their parts, the values that they mean, and a plain quantiser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tcc.ir.diagnostics import CompileError, Span
from tcc.ir.dtype import Coded, DType, Scaled
from tcc.ir.dtype_coded import check_parts, coded_shape, decode_coded, encode_coded
from tcc.ir.dtype_codes import (
    binade,
    decode,
    encode,
    integer_range,
    largest,
    pack_rows,
    unpack_rows,
)

Array = Any
Axes = tuple[str, ...]
Sizes = tuple[int, ...]  # of a dimension: how many coordinates share an entry


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tensor of a scaled type: `codes`, and by name (`scale`, `zero`, `offset`, `table`) what its groups share.

    `axes` are the variables of its dimensions' ranks, by which the type names its groups. A part has the shape of the
    tensor with every grouped dimension divided by its group; a scale of a scaled type is an
    `Encoded` itself, whose type counts its groups in scales. Tables
    have the shape [residual, codes, vector], codes [residual, …, n / vector]; without residual or vector, those are
    left out. Codes that are `packed`, of 1, 2 or 4 bits, are bytes: the last dimension has several to a byte, the first in the
    lowest bits. Arrays are NumPy's, or torch tensors on the CPU. T0148 for parts of wrong shapes, and for integers out of
    range.
    """

    dtype: DType
    axes: Axes
    codes: Array
    parts: dict[str, Any] = field(default_factory=dict)
    packed: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.dtype.form, Coded):
            check_ranks(self.dtype, self.axes, np.ndim(self.codes) - 1)
            check_parts(self)
            return
        form = scaled_form(self.dtype)
        shape = self.shape
        check_groups(self.dtype, self.axes, shape)
        for name, (wanted, t) in part_shapes(self.dtype, self.axes, shape).items():
            if name not in self.parts:
                raise CompileError("T0148", f"{self.dtype} needs its `{name}`: {t} of shape {list(wanted)}",
                                   helps="pass every part")  # fmt: skip
            found = np.shape(self.parts[name])
            if found != wanted:
                raise CompileError("T0148", f"`{name}` has the shape {list(found)}, not {list(wanted)}",
                                   helps=f"one entry per group of {self.dtype} over {list(shape)}")  # fmt: skip
        extra = [n for n in self.parts if getattr(form, n, None) is None]
        if extra:
            raise CompileError("T0148", f"{self.dtype} has no `{extra[0]}`", helps="leave it out")
        if not self.packed:
            check_codes("codes", self.codes, form.element)
        for name, (_, t) in part_shapes(self.dtype, self.axes, shape).items():
            check_codes(name, self.parts[name], t)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor of values."""
        if isinstance(self.dtype.form, Coded):
            return coded_shape(self.codes, self.dtype, self.axes)
        form = scaled_form(self.dtype)
        shape = list(np.shape(self.codes))[1 if form.residual > 1 else 0 :]
        if self.packed:
            check_bytes(self.codes, form.element)
            shape[-1] *= 8 // form.element.bits
        if form.vector is not None:
            shape[_axis(self.dtype, self.axes, form.vector[0])] *= form.vector[1]
        return tuple(shape)

    def decode(self) -> Array:
        """The values: float64 of the tensor's shape."""
        return decode_scaled(self, self.dtype, self.axes)

    def pack(self) -> Encoded:
        """The same tensor with its codes as bytes without gaps, as a `packed` input takes it. T0148 for codes of other than
        1, 2 or 4 bits, and for rows that are no whole bytes."""
        if self.packed:
            return self
        element = self.dtype.form.element if isinstance(self.dtype.form, Scaled) else None
        last = np.shape(self.codes)[-1] if np.ndim(self.codes) else 0
        if element is None or element.bits not in (1, 2, 4) or last * element.bits % 8 or not last:
            raise CompileError("T0148", f"rows of {last} codes of {self.dtype} are no whole bytes",
                               helps="pack codes of 1, 2 or 4 bits, in rows of whole bytes")  # fmt: skip
        return replace(self, codes=_like(pack_rows(self.codes, element), self.codes), packed=True)

    def unpack(self) -> Encoded:
        """The same tensor with its codes in bytes of their own."""
        if not self.packed:
            return self
        codes = unpack_rows(self.codes, scaled_form(self.dtype).element)
        return replace(self, codes=_like(codes, self.codes), packed=False)


def _like(made: Array, given: Array) -> Array:
    """An array as a tensor of PyTorch, if it is made of one."""
    if isinstance(given, np.ndarray):
        return made
    import torch

    return torch.from_numpy(made)


def check_bytes(codes: Array, element: DType) -> None:
    """T0148 for what no bytes of packed codes are."""
    if (
        element.bits not in (1, 2, 4)
        or not np.ndim(codes)
        or str(codes.dtype).split(".")[-1] != "uint8"
    ):
        raise CompileError("T0148", f"{codes.dtype} numbers of {np.ndim(codes)} dimensions are no packed codes of {element}",
                           helps="pass uint8, codes of 1, 2 or 4 bits, or what `Encoded.pack()` makes")  # fmt: skip


def check_codes(name: str, codes: Array, t: DType) -> None:
    """T0148 for an integer part with a value that its type lacks."""
    if t.native or not t.is_integer or isinstance(codes, Encoded) or not np.size(codes):
        return
    low, high = integer_range(t)
    for found in (int(codes.min()), int(codes.max())):
        if not low <= found <= high:
            raise CompileError("T0148", f"`{name}` has the value {found}, but {t} has values from {low} to {high}",
                               helps="clip the values, or choose a wider type")  # fmt: skip


def scaled_form(t: DType) -> Scaled:
    """The form of a scaled type; T0147 for another."""
    if not isinstance(t.form, Scaled):
        raise CompileError(
            "T0147", f"{t} is not scaled", helps="as in `i4[group k 128, scale f16]`"
        )
    return t.form


def _axis(t: DType, axes: Axes, rank: str) -> int:
    if rank not in axes:
        raise CompileError("T0147", f"{t} names the rank `{rank}`, which the tensor over {', '.join(axes) or 'no rank'} lacks",
                           helps="name ranks of the tensor, by their variables")  # fmt: skip
    return axes.index(rank)


def group_sizes(t: DType, axes: Axes, shape: tuple[int, ...]) -> Sizes:
    """Per dimension, how many coordinates share a scale; all of them where no rank is named."""
    groups = dict(scaled_form(t).groups)
    if not groups:
        return tuple(max(1, n) for n in shape)
    return tuple((groups[a] or max(1, n)) if a in groups else 1 for a, n in zip(axes, shape))


def check_groups(t: DType, axes: Axes, shape: tuple[int | None, ...]) -> None:
    """T0147 for a rank that the tensor lacks, and for a group that does not divide one (of known size)."""
    check_ranks(t, axes, len(shape))
    what = "groups"
    if isinstance(t.form, Coded):
        what = "runs or lanes"
        lengths: tuple[tuple[str, int | None], ...] = t.form.neighbours
    else:
        lengths = (*scaled_form(t).groups, *((v,) if (v := scaled_form(t).vector) else ()))
    for k, n in lengths:
        size = shape[_axis(t, axes, k)]
        if n is not None and size is not None and size % n:
            raise CompileError("T0147", f"{what} of {n} do not divide the {size} elements along `{k}`",
                               helps="choose a divisor, or pad the tensor")  # fmt: skip
    inner = t.form.scale if isinstance(t.form, Scaled) else None
    if inner is not None and isinstance(inner.form, Scaled):
        check_groups(inner, axes, shape)


def check_ranks(t: DType, axes: Axes, count: int) -> None:
    """T0147 for dimensions without a rank each, and for a rank of the type that the tensor lacks."""
    if len(axes) != count:
        raise CompileError("T0147", f"{count} dimensions need as many ranks, not `{', '.join(axes)}`",
                           helps='name them, as in `axes="n k"`')  # fmt: skip
    assert isinstance(t.form, Scaled | Coded)
    for k in t.form.ranks:
        _axis(t, axes, k)


def check_declared(
    t: DType, axes: Axes, shape: tuple[int | None, ...], span: Span | None, made: bool = False
) -> None:
    """`check_groups` of a declaration, whose errors point at it, if its type is scaled; what is `made` has no table."""
    if not t.in_parts:
        return
    try:
        check_groups(t, axes, shape)
    except CompileError as error:
        d = error.diagnostic
        raise CompileError(d.code, d.message, span, helps=d.helps) from None
    if made and isinstance(t.form, Scaled) and t.form.table is not None:
        raise CompileError("T0147", f"an output can not be {t}: nothing makes its table", span,
                           helps="declare the codes as an output, and compute them from a table that is an input")  # fmt: skip


def check_conversion(t: DType, span: Span | None) -> None:
    """T0147 for a type into which values round by their place in a tensor, which no expression has."""
    if t.in_parts or t.rounding == "stochastic":
        raise CompileError("T0147", f"an expression can not be {t}", span,
                           helps="its rounding depends on the place: declare an output of that type")  # fmt: skip


def part_shapes(
    t: DType, axes: Axes, shape: tuple[int, ...]
) -> dict[str, tuple[tuple[int, ...], DType]]:
    """The shape and type of each part beside the codes."""
    form = scaled_form(t)
    sizes = group_sizes(t, axes, shape)
    per_group = tuple(n // g for n, g in zip(shape, sizes))
    found = {}
    if form.table is not None:
        table = (2**form.element.bits, *((form.vector[1],) if form.vector else ()))
        found["table"] = ((form.residual, *table) if form.residual > 1 else table, form.table)
    for name, part in (("scale", form.scale), ("zero", form.zero), ("offset", form.offset)):
        if isinstance(part, DType):
            found[name] = (per_group, part)
    return found


def inner_type(t: DType, sizes: Sizes, axes: Axes) -> DType:
    """A scale's own type, its groups counted in scales instead of elements."""
    from tcc.ir.dtype_text import scaled_name

    form = t.form
    if not isinstance(form, Scaled):
        return t
    count = dict(zip(axes, sizes))
    groups = tuple((k, n // count[k] if n is not None else None) for k, n in form.groups)
    made = replace(form, groups=groups)
    return replace(t, name=scaled_name(made), form=made)


def spread(part: Array, sizes: Sizes) -> Array:
    """An entry per group --> an entry per element."""
    for axis, n in enumerate(sizes):
        if n > 1:
            part = np.repeat(part, n, axis=axis)
    return part


# ---- decoding


def decode_scaled(stored: Any, t: DType, axes: Axes) -> Array:
    """(value(code) - zero) · scale + offset in float64, of the parts' exact values. T0148 for what is not `Encoded`."""
    if not isinstance(stored, Encoded):
        raise CompileError("T0148", f"a {type(stored).__name__} is no tensor of {t}",
                           helps="pass `tcc.dtypes.encode(x, dtype, axes)`, or `tcc.dtypes.Encoded(…)` of its parts")  # fmt: skip
    if stored.dtype != t:
        raise CompileError(
            "T0148", f"the tensor is {stored.dtype}, not {t}", helps="encode it again"
        )
    if isinstance(t.form, Coded):
        return decode_coded(stored)
    stored = stored.unpack()
    form = scaled_form(t)
    shape = stored.shape
    sizes = group_sizes(t, axes, shape)
    value = _elements(stored.codes, form, stored.parts, axes)
    zero, parts = form.zero, stored.parts
    if isinstance(zero, DType):
        value = value - spread(zero.load(parts["zero"]).astype(np.float64), sizes)
    elif zero is not None:
        value = value - zero
    if form.scale is not None:
        scale = inner_type(form.scale, sizes, axes).load(parts["scale"], axes)
        value = value * spread(scale.astype(np.float64), sizes)
    if form.offset is not None:
        value = value + spread(form.offset.load(parts["offset"]).astype(np.float64), sizes)
    return value


def _elements(codes: Array, form: Scaled, parts: dict[str, Any], axes: Axes) -> Array:
    if form.table is None:
        return form.element.load(codes).astype(np.float64)
    at = decode(codes, form.element).astype(np.int64)
    tables = form.table.load(parts["table"]).astype(np.float64)
    levels = zip(at, tables) if form.residual > 1 else [(at, tables)]
    total = sum(table[index] for index, table in levels)
    if form.vector is None:
        return total
    axis = axes.index(form.vector[0])
    moved = np.moveaxis(np.asarray(total), -1, axis + 1)
    shape = list(np.shape(at)[1:] if form.residual > 1 else np.shape(at))
    shape[axis] *= form.vector[1]
    return moved.reshape(shape)


# ---- encoding


def encode_scaled(
    values: Array, t: DType, axes: Axes, table: Array | None = None, stretch: Array | float = 1.0
) -> Encoded:
    """A plain quantiser: scales from the largest magnitude of each group (with a zero or offset: from its range).

    Scales of e8m0 are 2^(⌊log2 max⌋ - e), with 2^e the largest power of two among the elements, as MX has it; others
    are max / (largest element), rounded into their type. Codes are then the nearest ones to value / scale. With a
    table (`table`: values of its shape) each vector takes the nearest row, level by level. `stretch`, one number or one
    per group, multiplies the scales.
    """
    x = np.asarray(values, np.float64)
    check_groups(t, axes, x.shape)
    if isinstance(t.form, Coded):
        return encode_coded(x, t, axes)
    form = scaled_form(t)
    sizes = group_sizes(t, axes, x.shape)
    parts: dict[str, Any] = {}
    if form.table is not None:
        return _encode_by_table(x, t, axes, table)
    low, high, wanted = _ranges(x, form, sizes)
    least, most = element_range(form)
    element = replace(form.element, saturate=True,
                      rounding=form.element.rounding or "nearest")  # fmt: skip
    wanted = wanted * stretch
    scale = np.ones_like(wanted)
    if form.scale is not None:
        parts["scale"], scale = _scales(wanted, form, most, sizes, axes, np.maximum(high, -low))
    safe = np.where((scale == 0) | ~np.isfinite(scale), 1.0, scale)
    if form.offset is not None:
        parts["offset"] = form.offset.store(low - least * scale)
        offset = form.offset.load(parts["offset"]).astype(np.float64)
        x = x - spread(offset, sizes)
    shifted = x / spread(safe, sizes)
    if isinstance(form.zero, DType):
        kind = replace(form.zero, saturate=True, rounding=form.zero.rounding or "nearest")
        parts["zero"] = kind.store(least - low / safe)
        shifted = shifted + spread(form.zero.load(parts["zero"]).astype(np.float64), sizes)
    elif form.zero is not None:
        shifted = shifted + form.zero
    return Encoded(t, axes, encode(shifted, element), parts)


def plain_scales(x: Array, t: DType, axes: Axes) -> Array:
    """The scale of each group before it is rounded: its largest magnitude, or range, over that of the codes."""
    check_groups(t, axes, x.shape)
    return _ranges(x, scaled_form(t), group_sizes(t, axes, x.shape))[2]


def _ranges(x: Array, form: Scaled, sizes: Sizes) -> tuple[Array, Array, Array]:
    """The least and the largest value of each group that codes have to reach, and the scale with which they do."""
    low, high = _extremes(x, sizes)
    least, most = element_range(form)
    if isinstance(form.zero, DType) or form.offset is not None:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        return low, high, (high - low) / (most - least)
    return low, high, (np.maximum(high, -low) + 0.0) / reach(least, most)


def element_range(form: Scaled) -> tuple[float, float]:
    """The least and the largest value of an element, before it is scaled."""
    zero = form.zero if isinstance(form.zero, int) else 0
    if form.element.is_integer:
        low, high = integer_range(form.element)
        return float(low - zero), float(high - zero)
    most = largest(form.element)
    return -most, most


def reach(least: float, most: float) -> float:
    """The magnitude that codes reach in both directions; of those that reach in one alone, in that."""
    return (min(most, -least) or max(most, -least)) if least < 0 else most


def _extremes(x: Array, sizes: Sizes) -> tuple[Array, Array]:
    """The least and the largest finite value of each group."""
    split: list[int] = []
    for n, g in zip(x.shape, sizes):
        split += [n // g, g]
    blocks = np.where(np.isfinite(x), x, 0.0).reshape(split)
    inner = tuple(range(1, 2 * x.ndim, 2))
    return np.min(blocks, axis=inner, initial=np.inf), np.max(blocks, axis=inner, initial=-np.inf)


def _scales(wanted: Array, form: Scaled, most: float, sizes: Sizes, axes: Axes,
            size: Array) -> tuple[Any, Array]:  # fmt: skip
    assert form.scale is not None
    t = inner_type(form.scale, sizes, axes)
    with np.errstate(all="ignore"):
        if form.scale.name == "e8m0":
            power = np.frexp(size)[1] - 1 - binade(most)
            wanted = np.where(size > 0, np.ldexp(1.0, np.clip(power, -127, 127)), 1.0)
    stored = t.store(wanted, axes)
    back = t.load(stored, axes).astype(np.float64)
    return stored, back


def _encode_by_table(x: Array, t: DType, axes: Axes, table: Array | None) -> Encoded:
    form = scaled_form(t)
    if table is None:
        raise CompileError(
            "T0148", f"encoding into {t} needs its table", helps="pass `table=…`, one row per code"
        )
    if form.scale is not None or form.zero is not None or form.offset is not None:
        raise CompileError("T0148", f"there is no quantiser for {t}, which has a table and scales",
                           helps="make the parts, and pass `tcc.dtypes.Encoded(…)`")  # fmt: skip
    assert form.table is not None
    stored = form.table.store(np.asarray(table, np.float64))
    rows = form.table.load(stored).astype(np.float64)
    rows = rows if form.residual > 1 else rows[None]
    if form.vector is None:
        vectors = x[..., None]
        rows = rows[..., None]
    else:
        axis, n = axes.index(form.vector[0]), form.vector[1]
        split = [*x.shape[:axis], x.shape[axis] // n, n, *x.shape[axis + 1 :]]
        vectors = np.moveaxis(x.reshape(split), axis + 1, -1)
    codes = []
    for level in rows:
        apart = ((vectors[..., None, :] - level) ** 2).sum(-1)
        codes.append(np.argmin(apart, axis=-1))
        vectors = vectors - level[codes[-1]]
    made = np.stack(codes) if form.residual > 1 else codes[0]
    return Encoded(t, axes, made.astype(form.element.numpy), {"table": stored})


def random_stored(
    t: DType, axes: Axes, shape: tuple[int, ...], random: np.random.Generator, limit: int
) -> Any:
    """A random stored tensor: floats are normal, integers from 0 to below `limit`, where the type has them."""
    if t.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if t.is_integer:
        top = min(limit, integer_range(t)[1] + 1)
        return random.integers(0, max(1, top), shape).astype(t.numpy)
    if not isinstance(t.form, Scaled):
        return t.store(random.standard_normal(shape), axes)
    form = t.form
    check_groups(t, axes, shape)
    if form.table is None:
        return t.store(random.standard_normal(shape), axes)
    small = list(shape)
    if form.vector is not None:
        small[_axis(t, axes, form.vector[0])] //= form.vector[1]
    levels = [form.residual] if form.residual > 1 else []
    codes = random_stored(form.element, axes, (*levels, *small), random, 2**form.element.bits)
    parts = {
        name: random_stored(
            inner_type(part, group_sizes(t, axes, shape), axes), axes, wanted, random, 2
        )
        for name, (wanted, part) in part_shapes(t, axes, shape).items()
    }
    return Encoded(t, axes, codes, parts)
