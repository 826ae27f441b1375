"""Reductions, softmax and norms of PyTorch, whole and naive: one definition per reduction, none fused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tcc.frontends._pytorch_builder import Builder, Index, Lowering, NotLowered, Value
from tcc.frontends._pytorch_pointwise import add, div, mul, select, sub
from tcc.frontends._pytorch_sizes import is_one, minus, plus, product, times
from tcc.ir.cascade import Tensor
from tcc.ir.dtype import BOOL, DType
from tcc.ir.expr import Access, Const, Expr, Var, call
from tcc.ir.ops import INDEX_REDUCTIONS

_ZERO, _ONE = Const(0), Const(1)


def axes_of(x: Tensor, dims: Value) -> list[int]:
    """Reduced dimensions, sorted; none given means all."""
    rank = len(x.shape)
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(rank))
    listed = [dims] if isinstance(dims, int) else dims
    return sorted({d % rank for d in listed}) if rank else []


def count_of(x: Tensor, axes: Sequence[int]) -> Expr:
    """The number of elements that one result combines."""
    return product(x.shape[d] for d in axes)


def kept_index(index: Index, axes: Sequence[int], keepdim: bool) -> Index:
    """Coordinates of the result of a reduction over `axes`."""
    if keepdim:
        return [_ZERO if n in axes else i for n, i in enumerate(index)]
    return [i for n, i in enumerate(index) if n not in axes]


def kept_shape(x: Tensor, axes: Sequence[int]) -> list[Expr]:
    """The shape of a reduction's result, reduced dimensions as 1."""
    return [_ONE if n in axes else s for n, s in enumerate(x.shape)]


def reduce(
    b: Builder, out: Tensor, x: Tensor, axes: Sequence[int], keepdim: bool, monoid: str = "sum",
    f: Callable[[Expr], Expr] = lambda e: e, compute: DType | None = None,
) -> Tensor:  # fmt: skip
    """`out[kept…] = f(x[i…]) :: monoid(axes)`."""
    index = b.scope().index(x.shape)
    body = f(b.read(x, index, compute or x.dtype))
    return b.define(out, kept_index(index, axes, keepdim), body, monoid)


def _reduction(monoid: str, f: Callable[[Expr], Expr] = lambda e: e) -> Lowering:
    def lower(
        b: Builder, x: Tensor, dims: Value = None, keepdim: bool = False, dtype: Any = None
    ) -> Tensor:
        out = b.out()
        boolean = monoid in ("any", "all")
        compute = BOOL if boolean else x.dtype if monoid in ("max", "min") else out.dtype
        return reduce(b, out, x, axes_of(x, dims), keepdim, monoid, f, compute)

    return lower


def _mean(
    b: Builder, x: Tensor, dims: Value = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    out, axes = b.out(), axes_of(x, dims)
    total = reduce(b, b.temp("sum", out.dtype, out.shape), x, axes, keepdim, compute=out.dtype)
    index = b.scope().index(out.shape)
    return b.define(
        out, index, div(b.read(total, index), b.read(count_of(x, axes), index, out.dtype))
    )


def mean_of(b: Builder, x: Tensor, axes: Sequence[int], prefix: str = "") -> Tensor:
    """The mean over `axes`, kept as dimensions of size 1."""
    shape = kept_shape(x, axes)
    total = reduce(b, b.temp(f"{prefix}sum", x.dtype, shape), x, axes, True)
    index = b.scope().index(shape)
    body = div(b.read(total, index), b.read(count_of(x, axes), index, x.dtype))
    return b.define(b.temp(f"{prefix}mean", x.dtype, shape), index, body)


def squares_about(b: Builder, x: Tensor, mean: Tensor, axes: Sequence[int]) -> Tensor:
    """Σ (x - mean)² over `axes`, kept as dimensions of size 1."""
    index = b.scope().index(x.shape)
    centred = b.define(
        b.temp("centred", x.dtype, x.shape), index, sub(b.read(x, index), b.read(mean, index))
    )
    shape = kept_shape(x, axes)
    return reduce(b, b.temp("squares", x.dtype, shape), centred, axes, True, f=lambda e: mul(e, e))


def _variance(root: bool, with_mean: bool = False) -> Lowering:
    def lower(b: Builder, x: Tensor, dims: Value = None, unbiased: Any = None, keepdim: bool = False, *,
              correction: Any = None) -> Value:  # fmt: skip
        axes = axes_of(x, dims)
        if correction is None:
            correction = 1 if unbiased is None else int(unbiased)
        mean = mean_of(b, x, axes)
        squares = squares_about(b, x, mean, axes)
        out = b.out(0)
        index = b.scope().index(squares.shape)
        free = call("max", minus(count_of(x, axes), int(correction)), _ZERO)
        if correction != int(correction):
            raise NotLowered
        value: Expr = div(b.read(squares, index), b.read(free, index, x.dtype))
        value = call("sqrt", value) if root else value
        target = index if keepdim else [i for n, i in enumerate(index) if n not in axes]
        first = b.define(out, target, value)
        if not with_mean:
            return first
        index = b.scope().index(mean.shape)
        target = index if keepdim else [i for n, i in enumerate(index) if n not in axes]
        return [first, b.define(b.out(1), target, b.read(mean, index))]

    return lower


def _with_index(monoid: str) -> Lowering:
    """max.dim, min.dim: the values, and the first coordinates at which they are taken, if these are read."""

    def lower(b: Builder, x: Tensor, dim: Value = None, keepdim: bool = False) -> Value:
        if isinstance(dim, Tensor):  # the element-wise overload
            from tcc.frontends._pytorch_pointwise import pointwise

            return pointwise(b, lambda p, q: call(monoid, p, q), x, dim)
        axes = axes_of(x, dim)
        if not isinstance(b.node.meta["val"], (list, tuple)):
            return reduce(b, b.out(), x, axes, keepdim, monoid)
        values = reduce(b, b.out(0), x, axes, keepdim, monoid)
        return [values, places(b, b.out(1), x, axes, keepdim, values) if b.used(1) else None]

    return lower


def places(
    b: Builder, out: Tensor, x: Tensor, axes: Sequence[int], keepdim: bool, extreme: Tensor
) -> Tensor:
    """The first coordinate over `axes` (counted through, the last fastest) at which x is its extreme, or NaN."""
    index = b.scope().index(x.shape)
    kept = kept_index(index, axes, keepdim)
    place: Expr = _ZERO
    for n in axes:
        place = plus(times(place, x.shape[n]), index[n])
    value = b.read(x, index)
    held = call("or", call("eq", value, b.read(extreme, kept)), call("ne", value, value))
    return b.define(out, kept, place, "min", [held])


def _place(kind: str) -> Lowering:
    """argmax, argmin: of one dimension, or of all counted through."""

    def lower(b: Builder, x: Tensor, dim: Value = None, keepdim: bool = False) -> Tensor:
        axes = axes_of(x, dim)
        index = b.scope().index(x.shape)
        if len(axes) == 1 and isinstance(index[axes[0]], Var):
            return b.define(b.out(), kept_index(index, axes, keepdim), b.read(x, index), kind)
        out, monoid = b.out(), INDEX_REDUCTIONS[kind]
        shape = kept_shape(x, axes) if keepdim else out.shape
        extreme = reduce(b, b.temp(monoid, x.dtype, shape), x, axes, keepdim, monoid)
        return places(b, out, x, axes, keepdim, extreme)

    return lower


def _aminmax(b: Builder, x: Tensor, *, dim: Value = None, keepdim: bool = False) -> list[Value]:
    axes = axes_of(x, dim)
    return [
        reduce(b, b.out(k), x, axes, keepdim, m) if b.used(k) else None
        for k, m in enumerate(("min", "max"))
    ]


def _vector_norm(b: Builder, x: Tensor, ord: Value = 2, dim: Value = None, keepdim: bool = False, *,
                 dtype: Any = None) -> Tensor:  # fmt: skip
    out, axes = b.out(), axes_of(x, dim)
    size = lambda e: call("abs", e)  # noqa: E731
    if ord in (math.inf, -math.inf):
        return reduce(b, out, x, axes, keepdim, "max" if ord > 0 else "min", size, out.dtype)
    if ord == 0:
        return reduce(b, out, x, axes, keepdim, "sum", lambda e: call("ne", e, _ZERO))
    if ord == 1:
        return reduce(b, out, x, axes, keepdim, "sum", size, out.dtype)
    power: Callable[[Expr], Expr] = lambda e: mul(e, e)  # noqa: E731
    if ord != 2:
        power = lambda e: call("pow", call("abs", e), Const(float(ord)))  # noqa: E731
    total = reduce(
        b, b.temp("powers", out.dtype, out.shape), x, axes, keepdim, "sum", power, out.dtype
    )
    index = b.scope().index(out.shape)
    t = b.read(total, index)
    return b.define(out, index, call("sqrt", t) if ord == 2 else call("pow", t, Const(1 / ord)))


# ---- softmax


def exponentials(
    b: Builder, x: Tensor, axes: Sequence[int], safe: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """max(x), exp(x - max) and its sum over `axes`; `safe`: rows of -inf alone count from 0 instead of from -inf."""
    shape = kept_shape(x, axes)
    top = reduce(b, b.temp("max", x.dtype, shape), x, axes, True, "max")
    index = b.scope().index(x.shape)
    m = b.read(top, index)
    if safe:
        m = select(call("eq", m, Const(-math.inf)), Const(0.0), m)
    e = b.define(b.temp("exp", x.dtype, x.shape), index, call("exp", sub(b.read(x, index), m)))
    return top, e, reduce(b, b.temp("sum", x.dtype, shape), e, axes, True)


def normalised(b: Builder, out: Tensor, e: Tensor, total: Tensor, safe: bool = False) -> Tensor:
    """e / total; `safe`: 0 where the total is 0."""
    index = b.scope().index(e.shape)
    t = b.read(total, index)
    if safe:
        t = select(call("eq", t, _ZERO), Const(1.0), t)
    return b.define(out, index, div(b.read(e, index), t))


def _as_computed(b: Builder, x: Tensor, dtype: DType) -> Tensor:
    if x.dtype == dtype:
        return x
    index = b.scope().index(x.shape)
    return b.define(b.temp("cast", dtype, x.shape), index, b.read(x, index, dtype))


def _softmax(safe: bool) -> Lowering:
    def lower(b: Builder, x: Tensor, dim: int, *ignored: Any, **__: Any) -> Tensor:
        out = b.out()
        x = _as_computed(b, x, out.dtype)
        _top, e, total = exponentials(b, x, axes_of(x, dim), safe)
        return normalised(b, out, e, total, safe)

    return lower


def _log_softmax(b: Builder, x: Tensor, dim: int, *ignored: Any, **__: Any) -> Tensor:
    """x - max - log Σ exp(x - max)."""
    out = b.out()
    x = _as_computed(b, x, out.dtype)
    top, _e, total = exponentials(b, x, axes_of(x, dim))
    index = b.scope().index(out.shape)
    body = sub(sub(b.read(x, index), b.read(top, index)), call("log", b.read(total, index)))
    return b.define(out, index, body)


def _finite(m: Expr) -> Expr:
    """m, or 0 where it is infinite."""
    return select(call("eq", call("abs", m), Const(math.inf)), Const(0.0), m)


def _logsumexp(b: Builder, x: Tensor, dims: Value, keepdim: bool = False) -> Tensor:
    out, axes = b.out(), axes_of(x, dims)
    x = _as_computed(b, x, out.dtype)
    shape = kept_shape(x, axes)
    top = reduce(b, b.temp("max", x.dtype, shape), x, axes, True, "max")
    index = b.scope().index(x.shape)
    e = b.define(b.temp("exp", x.dtype, x.shape), index,
                 call("exp", sub(b.read(x, index), _finite(b.read(top, index)))))  # fmt: skip
    total = reduce(b, b.temp("sum", x.dtype, shape), e, axes, True)
    index = b.scope().index(shape)
    body = add(call("log", b.read(total, index)), _finite(b.read(top, index)))
    return b.define(
        out, index if keepdim else [i for n, i in enumerate(index) if n not in axes], body
    )


# ---- norms


def _scale_and_shift(b: Builder, value: Expr, index: Index, weight: Value, bias: Value) -> Expr:
    if weight is not None:
        value = mul(value, b.read(weight, index))
    return value if bias is None else add(value, b.read(bias, index))


def _moments(b: Builder, x: Tensor, axes: Sequence[int], eps: float) -> tuple[Tensor, Tensor]:
    """mean and 1 / √(variance + eps) over `axes`."""
    mean = mean_of(b, x, axes)
    squares = squares_about(b, x, mean, axes)
    index = b.scope().index(squares.shape)
    variance = div(b.read(squares, index), b.read(count_of(x, axes), index, x.dtype))
    rstd = b.define(
        b.temp("rstd", x.dtype, squares.shape),
        index,
        call("rsqrt", add(variance, Const(float(eps)))),
    )
    return mean, rstd


def _reshaped(b: Builder, k: int, t: Tensor) -> Value:
    """Result number k: `t` without, or with other, dimensions of size 1; None when nobody reads it."""
    if not b.used(k):
        return None
    out = b.out(k)
    index = b.scope().index(out.shape)
    rest = iter([i for i, s in zip(index, out.shape) if not is_one(s)])
    return b.define(
        out, index, Access(t.name, tuple(_ZERO if is_one(s) else next(rest) for s in t.shape))
    )


def _layer_norm(
    b: Builder, x: Tensor, shape: Sequence[Value], weight: Value, bias: Value, eps: float
) -> list[Value]:
    axes = list(range(len(x.shape) - len(shape), len(x.shape)))
    mean, rstd = _moments(b, x, axes, eps)
    out = b.out(0)
    index = b.scope().index(out.shape)
    value = mul(sub(b.read(x, index), b.read(mean, index)), b.read(rstd, index))
    y = b.define(out, index, _scale_and_shift(b, value, index, weight, bias))
    return [y, _reshaped(b, 1, mean), _reshaped(b, 2, rstd)]


def _rms_norm(
    b: Builder, x: Tensor, shape: Sequence[Value], weight: Value = None, eps: Value = None
) -> Value:
    """x / √(mean(x²) + eps) · weight."""
    axes = list(range(len(x.shape) - len(shape), len(x.shape)))
    small = {32: 2.0**-23, 64: 2.0**-52}[x.dtype.bits] if eps is None else float(eps)
    kept = kept_shape(x, axes)
    squares = reduce(b, b.temp("squares", x.dtype, kept), x, axes, True, f=lambda e: mul(e, e))
    index = b.scope().index(kept)
    mean = div(b.read(squares, index), b.read(count_of(x, axes), index, x.dtype))
    rstd = b.define(b.temp("rstd", x.dtype, kept), index, call("rsqrt", add(mean, Const(small))))
    many = isinstance(b.node.meta["val"], (list, tuple))
    out = b.out(0)
    index = b.scope().index(out.shape)
    value = mul(b.read(x, index), b.read(rstd, index))
    y = b.define(out, index, _scale_and_shift(b, value, index, weight, None))
    return [y, _reshaped(b, 1, rstd)] if many else y


def _group_norm(b: Builder, x: Tensor, weight: Value, bias: Value, n: Value, c: Value, hw: Value, group: int,
                eps: float) -> list[Value]:  # fmt: skip
    """Layer norm over the channels and places of a group, with weights per channel."""
    channels = x.shape[1]
    if not isinstance(channels, Const):
        raise NotLowered
    per = int(channels.value) // group
    grouped = (x.shape[0], Const(group), Const(per), *x.shape[2:])
    s = b.scope()
    index = s.index(grouped)
    at = [index[0], plus(times(index[1], per), index[2]), *index[3:]]
    g = b.define(b.temp("groups", x.dtype, grouped), index, Access(x.name, tuple(at)))
    mean, rstd = _moments(b, g, list(range(2, len(grouped))), eps)
    out = b.out(0)
    index = b.scope().index(out.shape)
    of = index[1] if per == 1 else call("floordiv", index[1], Const(per))
    of = _ZERO if group == 1 else of
    ones = [_ZERO] * (len(grouped) - 2)
    group_mean, group_rstd = (Access(t.name, (index[0], of, *ones)) for t in (mean, rstd))
    value: Expr = mul(sub(b.read(x, index), group_mean), group_rstd)
    for t, op in ((weight, mul), (bias, add)):
        if t is not None:
            value = op(value, Access(t.name, (index[1],)))
    return [b.define(out, index, value), _reshaped(b, 1, mean), _reshaped(b, 2, rstd)]


def _batch_norm(
    b: Builder, x: Tensor, weight: Value, bias: Value, mean: Tensor, var: Tensor, *rest: Any
) -> list[Value]:
    """Inference: the running moments, per channel."""
    if b.used(1) or b.used(2):
        raise NotLowered
    eps = float(rest[-1])
    out = b.out(0)
    index = b.scope().index(out.shape)
    of_mean, of_var = (Access(t.name, (index[1],)) for t in (mean, var))
    value: Expr = mul(sub(b.read(x, index), of_mean), call("rsqrt", add(of_var, Const(eps))))
    for t, op in ((weight, mul), (bias, add)):
        if t is not None:
            value = op(value, Access(t.name, (index[1],)))
    return [b.define(out, index, value), None, None]


# ---- scans


def _cumulative(monoid: str) -> Lowering:
    """`Y[i] = X[j] :: monoid(j) where j <= i`."""

    def lower(b: Builder, x: Tensor, dim: int, *_: Any, **__: Any) -> Value:
        out = b.out()
        if not x.shape or is_one(x.shape[dim]):
            index = b.scope().index(out.shape)
            return b.define(out, index, b.read(x, index, out.dtype))
        s = b.scope()
        index = s.index(out.shape)
        j = s.var(x.shape[dim])
        at = list(index)
        at[dim] = j
        return b.define(
            out, index, b.read(x, at, out.dtype), monoid, where=[call("le", j, index[dim])]
        )

    return lower


LOWERINGS: dict[str, Lowering] = {
    "aten.sum": _reduction("sum"),
    "aten.prod": _reduction("prod"),
    "aten.amax": _reduction("max"),
    "aten.amin": _reduction("min"),
    "aten.any": _reduction("any"),
    "aten.all": _reduction("all"),
    "aten.max": _with_index("max"),
    "aten.min": _with_index("min"),
    "aten.argmax": _place("argmax"),
    "aten.argmin": _place("argmin"),
    "aten.aminmax": _aminmax,
    "aten.mean": _mean,
    "aten.var": _variance(False),
    "aten.std": _variance(True),
    "aten.var_mean": _variance(False, with_mean=True),
    "aten.linalg_vector_norm": _vector_norm,
    "aten._softmax": _softmax(False),
    "aten._safe_softmax": _softmax(True),
    "aten._log_softmax": _log_softmax,
    "aten.logsumexp": _logsumexp,
    "aten.native_layer_norm": _layer_norm,
    "aten._fused_rms_norm": _rms_norm,
    "aten.rms_norm": _rms_norm,
    "aten.native_group_norm": _group_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    "aten.cumsum": _cumulative("sum"),
    "aten.cumprod": _cumulative("prod"),
}  # fmt: skip

__all__ = ["LOWERINGS", "axes_of", "exponentials", "mean_of", "normalised", "reduce"]
