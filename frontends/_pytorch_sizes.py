"""Sizes of traced tensors as size expressions: sympy expressions over dynamo's symbols to the cascade's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tcc.ir.dtype import F64
from tcc.ir.expr import Cast, Const, Expr, Size, call
from tcc.ir.index import is_size, poly


class Unsupported(Exception):
    """A graph that tcc leaves to PyTorch; the message is the reason."""


_FOLDED = {"Add": "add", "Mul": "mul", "Max": "max", "Min": "min"}
_BINARY = {
    "FloorDiv": "floordiv", "CleanDiv": "floordiv", "Mod": "mod", "PythonMod": "mod",
    "IntTrueDiv": "div", "FloatTrueDiv": "div", "FloatPow": "pow",
}  # fmt: skip
_UNARY = {
    "sqrt": "sqrt",
    "log": "log",
    "exp": "exp",
    "tanh": "tanh",
    "sin": "sin",
    "cos": "cos",
    "abs": "abs",
}
_FLOATS = ("IntTrueDiv", "FloatTrueDiv", "FloatPow", "ToFloat")


def size_expression(value: Any) -> Expr:
    """An int, SymInt or SymFloat as an expression over sizes; raises `Unsupported` for what has none."""
    if isinstance(value, (bool, int, float)):
        return Const(value)
    e = _convert(value.node.expr)
    return poly(e).expr() if is_size(e) else e


def symbols(value: Any) -> list[str]:
    """The names of the symbols in a SymInt, sorted."""
    if isinstance(value, (bool, int, float)):
        return []
    return sorted(str(s) for s in value.node.expr.free_symbols)


def _convert(e: Any) -> Expr:
    kind = type(e).__name__
    if e.is_Symbol:
        name = str(e)
        if not name.startswith("s"):
            raise Unsupported(f"the size `{name}` depends on data")
        return Size(name.upper())
    if e.is_Integer:
        return Const(int(e))
    if e.is_Float:
        return Const(float(e))
    args = [_convert(a) for a in e.args]
    if kind in _FOLDED:
        return _fold(_FOLDED[kind], args)
    if kind == "ToFloat":
        return Cast(F64, args[0])
    if kind in _BINARY:
        if kind in _FLOATS:
            args = [a if isinstance(a, Cast) else Cast(F64, a) for a in args]
        return call(_BINARY[kind], *args)
    if kind in ("Pow", "PowByNatural") and e.args[1].is_Integer and int(e.args[1]) >= 0:
        return _fold("mul", [args[0]] * int(e.args[1])) if int(e.args[1]) else Const(1)
    if kind == "CeilDiv":
        return call("floordiv", call("sub", call("add", args[0], args[1]), Const(1)), args[1])
    if kind == "ModularIndexing":
        return call("mod", call("floordiv", args[0], args[1]), args[2])
    if kind == "Identity":
        return args[0]
    if kind.startswith("OpaqueUnaryFn_") and kind[14:] in _UNARY:
        return call(_UNARY[kind[14:]], args[0] if isinstance(args[0], Cast) else Cast(F64, args[0]))
    raise Unsupported(f"the size `{e}` is no integer arithmetic")


def _fold(op: str, args: list[Expr]) -> Expr:
    out = args[0]
    for a in args[1:]:
        out = call(op, out, a)
    return out


# ---- index arithmetic with the trivial cases folded


def plus(a: Expr, b: Expr | int) -> Expr:
    """a + b."""
    return _arith("add", a, b)


def minus(a: Expr, b: Expr | int) -> Expr:
    """a - b."""
    return _arith("sub", a, b)


def times(a: Expr, b: Expr | int) -> Expr:
    """a * b."""
    return _arith("mul", a, b)


_ARITH: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
}  # fmt: skip


def _arith(op: str, a: Expr, b: Expr | int) -> Expr:
    b = Const(b) if isinstance(b, int) else b
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(_ARITH[op](int(a.value), int(b.value)))
    if isinstance(b, Const):
        if op in ("add", "sub") and b.value == 0:
            return a
        if op in ("add", "sub") and b.value < 0:
            return call("sub" if op == "add" else "add", a, Const(-b.value))
        if op == "mul" and b.value in (0, 1):
            return a if b.value else b
    if isinstance(a, Const):
        if op == "add" and a.value == 0:
            return b
        if op == "mul" and a.value in (0, 1):
            return b if a.value else a
    return call(op, a, b)


def is_one(size: Expr) -> bool:
    """Whether a size is the constant 1."""
    return isinstance(size, Const) and size.value == 1


def product(sizes: Any) -> Expr:
    """The number of elements of a shape."""
    out: Expr = Const(1)
    for s in sizes:
        out = times(out, s)
    return out
