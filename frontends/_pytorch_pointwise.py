"""Element-wise operators of PyTorch as scalar expressions: one row each, the mathematics in the row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tcc.frontends._pytorch_builder import Builder, Lowering, NotLowered, Value
from tcc.ir.cascade import Tensor
from tcc.ir.dtype import BOOL, DType
from tcc.ir.expr import Call, Const, Expr, call
from tcc.ir.index import same

_ZERO, _ONE, _HALF = Const(0), Const(1), Const(0.5)


def add(a: Expr, b: Expr) -> Call:
    return call("add", a, b)


def sub(a: Expr, b: Expr) -> Call:
    return call("sub", a, b)


def mul(a: Expr, b: Expr) -> Call:
    return call("mul", a, b)


def div(a: Expr, b: Expr) -> Call:
    return call("div", a, b)


def select(p: Expr, a: Expr, b: Expr) -> Call:
    return call("select", p, a, b)


def pointwise(
    b: Builder, f: Callable[..., Expr], *operands: Value, compute: DType | None = None
) -> Tensor:
    """`Y[i…] = f(x[i…], …)`, operands broadcast and converted to `compute` (the result's type unless given)."""
    out = b.out()
    index = b.scope().index(out.shape)
    values = [b.read(x, index, compute or out.dtype) for x in operands]
    return b.define(out, index, f(*values))


def common_dtype(b: Builder, *operands: Any) -> DType:
    """The type that PyTorch computes in for these operands."""
    from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

    kind = ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT
    raw = [a.meta["val"] if hasattr(a, "meta") else a for a in operands]
    return b.dtype(elementwise_dtypes(*raw, type_promotion_kind=kind)[0])


def _simple(f: Callable[..., Expr]) -> Lowering:
    return lambda b, *operands, **kw: pointwise(b, f, *operands)


def _compare(op: str) -> Lowering:
    def lower(b: Builder, x: Value, y: Value) -> Tensor:
        return pointwise(
            b, lambda p, q: call(op, p, q), x, y, compute=common_dtype(b, *b.node.args[:2])
        )

    return lower


def _logical(f: Callable[..., Expr]) -> Lowering:
    return lambda b, *operands: pointwise(b, f, *operands, compute=BOOL)


def _scaled(op: str, swap: bool = False) -> Lowering:
    """a ± alpha·b; swapped, b - alpha·a."""

    def lower(b: Builder, x: Value, y: Value, alpha: Value = 1) -> Tensor:
        def f(p: Expr, q: Expr, k: Expr) -> Expr:
            p, q = (q, p) if swap else (p, q)
            if alpha != 1:
                q = mul(q, k)
            return call(op, p, q)

        if b.out_dtype() == BOOL:  # a bool sum is `or`
            if op != "add" or alpha != 1:
                raise NotLowered
            return pointwise(b, lambda p, q: call("or", p, q), x, y)
        return pointwise(b, f, x, y, alpha)

    return lower


def _mul(b: Builder, x: Value, y: Value) -> Tensor:
    return pointwise(b, (lambda p, q: call("and", p, q)) if b.out_dtype() == BOOL else mul, x, y)


def _truncated(p: Expr, q: Expr) -> Expr:
    """Integer division towards zero: floor, and one more where signs differ and a rest is left."""
    floor = call("floordiv", p, q)
    differ = call("ne", call("lt", p, _ZERO), call("lt", q, _ZERO))
    rest = call("ne", call("mod", p, q), _ZERO)
    return add(floor, select(call("and", differ, rest), _ONE, _ZERO))


def _div(b: Builder, x: Value, y: Value, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is None:
        return pointwise(b, div, x, y)
    if rounding_mode == "floor":
        return pointwise(b, lambda p, q: call("floordiv", p, q), x, y)
    whole = b.out_dtype().is_integer
    return pointwise(b, _truncated if whole else lambda p, q: call("trunc", div(p, q)), x, y)


def _fmod(b: Builder, x: Value, y: Value) -> Tensor:
    """The remainder with the sign of the dividend."""

    def f(p: Expr, q: Expr) -> Expr:
        m = call("mod", p, q)
        differ = call("ne", call("lt", m, _ZERO), call("lt", p, _ZERO))
        return select(call("and", differ, call("ne", m, _ZERO)), sub(m, q), m)

    return pointwise(b, f, x, y)


def _pow(b: Builder, x: Value, y: Value) -> Tensor:
    whole = isinstance(y, (int, float)) and y == int(y)
    if whole and 1 <= int(y) <= 4:
        out: Callable[[Expr], Expr] = lambda p: p  # noqa: E731
        for _ in range(int(y) - 1):
            out = (lambda g: lambda p: mul(g(p), p))(out)
        return pointwise(b, out, x)
    if isinstance(y, (int, float)) and b.out_dtype().is_float:
        rows: dict[float, Callable[[Expr], Expr]] = {
            0.5: lambda p: call("sqrt", p), -0.5: lambda p: call("rsqrt", p), -1: lambda p: div(_ONE, p),
            -2: lambda p: div(_ONE, mul(p, p)),
        }  # fmt: skip
        if y in rows:
            return pointwise(b, rows[y], x)
    return pointwise(b, lambda p, q: call("pow", p, q), x, y)


def _clamp(b: Builder, x: Value, low: Value = None, high: Value = None) -> Tensor:
    def f(p: Expr, *limits: Expr) -> Expr:
        rest = list(limits)
        if low is not None:
            p = call("max", p, rest.pop(0))
        return call("min", p, rest.pop(0)) if high is not None else p

    return pointwise(b, f, x, *[v for v in (low, high) if v is not None])


def _where(b: Builder, p: Value, x: Value, y: Value) -> Tensor:
    out = b.out()
    index = b.scope().index(out.shape)
    body = select(b.read(p, index, BOOL), b.read(x, index, out.dtype), b.read(y, index, out.dtype))
    return b.define(out, index, body)


def _masked_fill(b: Builder, x: Value, mask: Value, value: Value) -> Tensor:
    return _where(b, mask, value, x)


def _gelu(b: Builder, x: Value, approximate: str = "none") -> Tensor:
    def f(p: Expr) -> Expr:
        if approximate == "tanh":
            inner = mul(
                Const(math.sqrt(2 / math.pi)), add(p, mul(Const(0.044715), mul(mul(p, p), p)))
            )
            return mul(mul(_HALF, p), add(_ONE, call("tanh", inner)))
        return mul(mul(_HALF, p), add(_ONE, call("erf", mul(p, Const(math.sqrt(0.5))))))

    return pointwise(b, f, x)


def _elu(
    b: Builder, x: Value, alpha: Value = 1, scale: Value = 1, input_scale: Value = 1
) -> Tensor:
    def f(p: Expr, a: Expr, s: Expr, i: Expr) -> Expr:
        below = mul(mul(a, s), call("expm1", mul(p, i)))
        return select(call("gt", p, _ZERO), mul(p, s), below)

    return pointwise(b, f, x, alpha, scale, input_scale)


def _softplus(b: Builder, x: Value, beta: Value = 1, threshold: Value = 20) -> Tensor:
    def f(p: Expr, k: Expr, t: Expr) -> Expr:
        return select(call("gt", mul(p, k), t), p, div(call("log1p", call("exp", mul(p, k))), k))

    return pointwise(b, f, x, beta, threshold)


def _round(b: Builder, x: Value, decimals: int = 0) -> Tensor:
    if decimals:
        raise NotLowered
    return pointwise(b, lambda p: call("round", p), x)


def _log_sigmoid(b: Builder, x: Value) -> list[Value]:
    """min(x, 0) - log(1 + exp(-|x|))."""
    if b.used(1):
        raise NotLowered
    out = b.out(0)
    index = b.scope().index(out.shape)
    p = b.read(x, index)
    tail = call("log1p", call("exp", call("neg", call("abs", p))))
    return [b.define(out, index, sub(call("min", p, _ZERO), tail)), None]


def _convert(b: Builder, x: Value, *_: Any, **__: Any) -> Tensor:
    """The same values as another type; the tensor itself when the type is the same."""
    if isinstance(x, Tensor) and x.dtype == b.out_dtype():
        return x
    return pointwise(b, lambda p: p, x)


def _identity(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _math(f: Callable[[Expr], Expr]) -> Lowering:
    """A function of a float; integers are converted first."""
    return lambda b, x, **kw: pointwise(b, f, x)


def _test(f: Callable[[Expr], Expr]) -> Lowering:
    return lambda b, x: pointwise(b, f, x, compute=x.dtype)


def _sign(p: Expr) -> Expr:
    """0 at nan, as PyTorch has it."""
    return sub(select(call("gt", p, _ZERO), _ONE, _ZERO), select(call("lt", p, _ZERO), _ONE, _ZERO))


def _bitwise(bit: str, boolean: str) -> Lowering:
    def lower(b: Builder, x: Value, y: Value) -> Tensor:
        op = boolean if b.out_dtype() == BOOL else bit
        return pointwise(b, lambda p, q: call(op, p, q), x, y)

    return lower


def _bitwise_not(b: Builder, x: Value) -> Tensor:
    if b.out_dtype() == BOOL:
        return pointwise(b, lambda p: call("not", p), x)
    return pointwise(b, lambda p: sub(call("neg", p), _ONE), x)


def _addcmul(op: Callable[[Expr, Expr], Expr]) -> Lowering:
    """x + value · op(y, z)."""

    def lower(b: Builder, x: Value, y: Value, z: Value, value: Value = 1) -> Tensor:
        def f(p: Expr, q: Expr, r: Expr, k: Expr) -> Expr:
            term = op(q, r)
            return add(p, term if value == 1 else mul(k, term))

        return pointwise(b, f, x, y, z, value)

    return lower


def _expand(b: Builder, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Broadcasting, written out."""
    wanted = b.out_shape()
    if len(wanted) == len(x.shape) and all(same(m, n) for m, n in zip(wanted, x.shape)):
        return x
    return pointwise(b, lambda p: p, x)


def _copy(b: Builder, x: Value, y: Value, *_: Any) -> Tensor:
    return pointwise(b, lambda p: p, y)


_INFINITY, _LN10 = Const(math.inf), Const(math.log(10))
_FUNCTIONS: dict[str, Callable[[Expr], Expr]] = {
    **{name: (lambda op: lambda x: call(op, x))(name) for name in (
        "exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "sqrt", "rsqrt",
        "abs", "floor", "ceil", "trunc", "neg")},
    "log10": lambda x: div(call("log", x), _LN10),
    "reciprocal": lambda x: div(_ONE, x),
    "square": lambda x: mul(x, x),
    "tan": lambda x: div(call("sin", x), call("cos", x)),
    "sinh": lambda x: mul(_HALF, sub(call("expm1", x), call("expm1", call("neg", x)))),
    "cosh": lambda x: mul(_HALF, add(call("exp", x), call("exp", call("neg", x)))),
    "sign": _sign,
    "sgn": _sign,
    "relu": lambda x: call("max", x, _ZERO),
    "silu": lambda x: mul(x, call("sigmoid", x)),
    "hardsigmoid": lambda x: div(call("min", call("max", add(x, Const(3)), _ZERO), Const(6)), Const(6)),
    "hardswish": lambda x: div(mul(x, call("min", call("max", add(x, Const(3)), _ZERO), Const(6))), Const(6)),
    "mish": lambda x: mul(x, call("tanh", select(call("gt", x, Const(20)), x, call("log1p", call("exp", x))))),
}  # fmt: skip
_TESTS: dict[str, Callable[[Expr], Expr]] = {
    "isnan": lambda x: call("ne", x, x),
    "isinf": lambda x: call("eq", call("abs", x), _INFINITY),
    "isfinite": lambda x: call("lt", call("abs", x), _INFINITY),
    "isposinf": lambda x: call("eq", x, _INFINITY),
    "isneginf": lambda x: call("eq", x, Const(-math.inf)),
}

LOWERINGS: dict[str, Lowering] = {
    **{f"aten.{name}": _math(f) for name, f in _FUNCTIONS.items()},
    **{f"aten.{name}": _test(f) for name, f in _TESTS.items()},
    **{f"aten.{name}": _compare(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "aten.add": _scaled("add"),
    "aten.sub": _scaled("sub"),
    "aten.rsub": _scaled("sub", swap=True),
    "aten.mul": _mul,
    "aten.div": _div,
    "aten.true_divide": _div,
    "aten.floor_divide": lambda b, x, y: _div(b, x, y, "floor"),
    "aten.remainder": lambda b, x, y: pointwise(b, lambda p, q: call("mod", p, q), x, y),
    "aten.fmod": _fmod,
    "aten.pow": _pow,
    "aten.maximum": _simple(lambda p, q: call("max", p, q)),
    "aten.minimum": _simple(lambda p, q: call("min", p, q)),
    "aten.clamp": _clamp,
    "aten.clamp_min": lambda b, x, low: _clamp(b, x, low),
    "aten.clamp_max": lambda b, x, high: _clamp(b, x, None, high),
    "aten.hardtanh": lambda b, x, low=-1, high=1: _clamp(b, x, low, high),
    "aten.relu6": lambda b, x: _clamp(b, x, 0, 6),
    "aten.where": _where,
    "aten.masked_fill": _masked_fill,
    "aten.logical_and": _logical(lambda p, q: call("and", p, q)),
    "aten.logical_or": _logical(lambda p, q: call("or", p, q)),
    "aten.logical_xor": _logical(lambda p, q: call("ne", p, q)),
    "aten.logical_not": _logical(lambda p: call("not", p)),
    "aten.bitwise_and": _bitwise("bit_and", "and"),
    "aten.bitwise_or": _bitwise("bit_or", "or"),
    "aten.bitwise_xor": _bitwise("bit_xor", "ne"),
    "aten.bitwise_not": _bitwise_not,
    "aten.gelu": _gelu,
    "aten.leaky_relu": lambda b, x, slope=0.01: pointwise(
        b, lambda p, k: select(call("gt", p, _ZERO), p, mul(p, k)), x, slope),
    "aten.elu": _elu,
    "aten.softplus": _softplus,
    "aten.threshold": lambda b, x, t, v: pointwise(
        b, lambda p, q, r: select(call("le", p, q), r, p), x, t, v),
    "aten.threshold_backward": lambda b, g, x, t: pointwise(
        b, lambda p, q, r: select(call("le", q, r), _ZERO, p), g, x, t),
    "aten.log_sigmoid_forward": _log_sigmoid,
    "aten.round": _round,
    "aten.addcmul": _addcmul(mul),
    "aten.addcdiv": _addcmul(div),
    "aten.lerp": _simple(lambda p, q, w: add(p, mul(w, sub(q, p)))),
    "aten._to_copy": _convert,
    "prims.convert_element_type": _convert,
    "aten.to": _convert,
    "aten.clone": _identity,
    "aten.alias": _identity,
    "aten.detach": _identity,
    "aten.contiguous": _identity,
    "aten.lift_fresh_copy": _identity,
    "aten.lift_fresh": _identity,
    "prims.view_of": _identity,
    "aten.positive": _identity,
    "aten.expand": _expand,
    "aten.copy": _copy,
}  # fmt: skip

__all__ = ["LOWERINGS", "add", "common_dtype", "div", "mul", "pointwise", "select", "sub"]
