"""Tensors that PyTorch makes from nothing: constants, ranges and triangles."""

from __future__ import annotations

import math
from typing import Any

from tcc.frontends._pytorch_builder import Builder, Lowering, Value
from tcc.frontends._pytorch_sizes import minus
from tcc.ir.cascade import Tensor
from tcc.ir.dtype import F64, I64
from tcc.ir.expr import Cast, Const, Expr, call


def constant(b: Builder, value: Value) -> Tensor:
    """A tensor with the same value everywhere."""
    out = b.out()
    index = b.scope().index(out.shape)
    return b.define(out, index, b.read(value, index, out.dtype))


def _filled(value: int) -> Lowering:
    return lambda b, *_, **__: constant(b, value)


def _full(b: Builder, size: Any, value: Value, **_: Any) -> Tensor:
    return constant(b, value)


def _new_full(b: Builder, x: Tensor, size: Any, value: Value, **_: Any) -> Tensor:
    return constant(b, value)


def _scalar_tensor(b: Builder, value: Value, **_: Any) -> Tensor:
    return constant(b, value)


def _fill(b: Builder, x: Tensor, value: Value, **_: Any) -> Tensor:
    return constant(b, value)


def _arange(
    b: Builder, *limits: Value, start: Value = 0, end: Value = None, step: Value = 1, **_: Any
) -> Tensor:
    """`Y[i] = start + i·step`; floats are computed in f64 and rounded once."""
    if len(limits) > 1:
        start = limits[0]
    if len(limits) > 2:
        step = limits[2]
    out = b.out()
    index = b.scope().index(out.shape)
    return b.define(out, index, _line(b, index[0], start, step, out))


def _line(b: Builder, i: Expr, start: Value, step: Value, out: Tensor) -> Expr:
    parts = [v for v in (start, step) if isinstance(v, (int, float))]
    if (
        any(isinstance(v, float) and v != int(v) for v in parts if math.isfinite(v))
        or out.dtype.is_float
    ):
        at = Cast(F64, i)
        first, by = (b.read(v, [], F64) for v in (start, step))
        return call("add", first, call("mul", at, by))
    first, by = (b.read(int(v) if isinstance(v, float) else v, [], I64) for v in (start, step))
    value = i if isinstance(by, Const) and by.value == 1 else call("mul", i, by)
    return value if isinstance(first, Const) and first.value == 0 else call("add", value, first)


def _iota(b: Builder, length: Value, *, start: Value, step: Value, **_: Any) -> Tensor:
    return _arange(b, start, None, step)


def _eye(b: Builder, *_: Any, **__: Any) -> Tensor:
    out = b.out()
    index = b.scope().index(out.shape)
    return b.define(out, index, call("eq", index[0], index[1]))


def _triangle(op: str) -> Lowering:
    """X on one side of diagonal k, 0 on the other."""

    def lower(b: Builder, x: Tensor, k: Value = 0) -> Tensor:
        out = b.out()
        index = b.scope().index(out.shape)
        zero = Const(False) if out.dtype.kind == "b" else Const(0)
        kept = call(op, minus(index[-1], index[-2]), Const(k) if isinstance(k, int) else k)
        return b.define(out, index, call("select", kept, b.read(x, index), zero))

    return lower


LOWERINGS: dict[str, Lowering] = {
    "aten.full": _full,
    "aten.new_full": _new_full,
    "aten.full_like": _fill,
    "aten.fill": _fill,
    "aten.scalar_tensor": _scalar_tensor,
    **{f"aten.{prefix}{suffix}": _filled(value) for value, names in (
        (0, ("zeros", "empty")), (1, ("ones",))) for prefix in ("", "new_") for n in names
        for suffix in ((n, f"{n}_like") if not prefix else (n,))},
    "aten.empty_strided": _filled(0),
    "aten.new_empty_strided": _filled(0),
    "aten.zero": _filled(0),
    "aten.arange": _arange,
    "prims.iota": _iota,
    "aten.eye": _eye,
    "aten.tril": _triangle("le"),
    "aten.triu": _triangle("ge"),
}  # fmt: skip

__all__ = ["LOWERINGS", "constant"]
