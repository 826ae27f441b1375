"""Pooling of PyTorch: reductions over windows, restricted to the points that exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcc.frontends._pytorch_builder import Builder, Index, Lowering, NotLowered, Scope, Value
from tcc.frontends._pytorch_pointwise import div
from tcc.frontends._pytorch_sizes import minus, plus, times
from tcc.ir.cascade import Tensor
from tcc.ir.expr import Access, Const, Expr, call

_ZERO = Const(0)


def _per_axis(value: Value, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _window(s: Scope, index: Index, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
            dilation: Sequence[int]) -> Index:  # fmt: skip
    """Coordinates in the input of the points of each window."""
    space = len(kernel)
    at = list(index[: len(index) - space])
    for i, k, st, pad, d in zip(index[-space:], kernel, stride, padding, dilation):
        at.append(minus(plus(times(i, st), times(s.var(Const(k)), d)), pad))
    return at


def _inside(at: Sequence[Expr], sizes: Sequence[Expr]) -> list[Expr]:
    out: list[Expr] = []
    for i, n in zip(at, sizes):
        if not isinstance(i, Const):
            out += [call("ge", i, _ZERO), call("lt", i, n)]
    return out


def _max_pool(space: int, many: bool) -> Lowering:
    """`Y[n,c,p] = X[n,c,p·stride + k·dilation - padding] :: max(k)`, over the points inside X."""

    def lower(b: Builder, x: Tensor, kernel: Value, stride: Value = (), padding: Value = 0, dilation: Value = 1,
              ceil_mode: bool = False) -> Value:  # fmt: skip
        if many and b.used(1):
            raise NotLowered
        kernel = _per_axis(kernel, space)
        stride = _per_axis(stride, space) if stride else kernel
        padding, dilation = _per_axis(padding, space), _per_axis(dilation, space)
        out, s = b.out(0), b.scope()
        index = s.index(out.shape)
        at = _window(s, index, kernel, stride, padding, dilation)
        edges = any(padding) or ceil_mode
        where = _inside(at[-space:], x.shape[-space:]) if edges else []
        y = b.define(out, index, Access(x.name, tuple(at)), "max", where)
        return [y, None] if many else y

    return lower


def _avg_pool(space: int) -> Lowering:
    """Sums of windows divided by their number of points, padding counted unless said otherwise."""

    def lower(b: Builder, x: Tensor, kernel: Value, stride: Value = (), padding: Value = 0, ceil_mode: bool = False,
              count_include_pad: bool = True, divisor_override: Value = None) -> Tensor:  # fmt: skip
        kernel = _per_axis(kernel, space)
        stride = _per_axis(stride, space) if stride else kernel
        padding = _per_axis(padding, space)
        out = b.out()
        total, s = b.temp("sum", out.dtype, out.shape), b.scope()
        index = s.index(out.shape)
        at = _window(s, index, kernel, stride, padding, [1] * space)
        b.define(total, index, Access(x.name, tuple(at)))
        index = b.scope().index(out.shape)
        count: Expr = Const(1)
        for i, k, st, pad, n in zip(index[-space:], kernel, stride, padding, x.shape[-space:]):
            edge = pad if count_include_pad else 0
            if (not pad or count_include_pad) and not ceil_mode:
                count = times(count, k)
                continue
            first = minus(times(i, st), pad)
            last = call("min", plus(first, k), plus(n, edge))
            count = times(count, minus(last, call("max", first, Const(-edge))))
        if divisor_override is not None:
            count = Const(divisor_override)
        return b.define(out, index, div(b.read(total, index), b.read(count, index, out.dtype)))

    return lower


def _adaptive_avg_pool(space: int) -> Lowering:
    """The mean of X[start … end) with start = ⌊i·n / m⌋ and end = ⌈(i + 1)·n / m⌉."""

    def lower(b: Builder, x: Tensor, size: Any) -> Tensor:
        out = b.out()
        total, s = b.temp("sum", out.dtype, out.shape), b.scope()
        index = s.index(out.shape)
        at, where = list(index), []
        ends: list[tuple[Expr, Expr]] = []
        for d in range(len(index) - space, len(index)):
            n, m, i = x.shape[d], out.shape[d], index[d]
            if not isinstance(n, Const) or not isinstance(m, Const):
                raise NotLowered
            longest = max(
                -(-(k + 1) * n.value // m.value) - k * n.value // m.value
                for k in range(int(m.value))
            )
            start: Expr = call("floordiv", times(i, n), m)
            end: Expr = call("floordiv", plus(times(plus(i, 1), n), int(m.value) - 1), m)
            if n.value % m.value == 0:
                start, end = (
                    times(i, int(n.value // m.value)),
                    times(plus(i, 1), int(n.value // m.value)),
                )
            at[d] = plus(start, s.var(Const(longest)))
            if n.value % m.value:
                where.append(call("lt", at[d], end))
            ends.append((start, end))
        b.define(total, index, Access(x.name, tuple(at)), where=where)
        index = b.scope().index(out.shape)
        count: Expr = Const(1)
        for start, end in ends:
            count = times(count, minus(end, start))
        return b.define(out, index, div(b.read(total, index), b.read(count, index, out.dtype)))

    return lower


LOWERINGS: dict[str, Lowering] = {
    "aten.max_pool1d": _max_pool(1, False),
    "aten.max_pool2d": _max_pool(2, False),
    "aten.max_pool3d": _max_pool(3, False),
    "aten.max_pool2d_with_indices": _max_pool(2, True),
    "aten.max_pool3d_with_indices": _max_pool(3, True),
    "aten.avg_pool1d": _avg_pool(1),
    "aten.avg_pool2d": _avg_pool(2),
    "aten.avg_pool3d": _avg_pool(3),
    "aten._adaptive_avg_pool2d": _adaptive_avg_pool(2),
    "aten._adaptive_avg_pool3d": _adaptive_avg_pool(3),
    "aten.adaptive_avg_pool1d": _adaptive_avg_pool(1),
}  # fmt: skip

__all__ = ["LOWERINGS"]
