"""Which expressions are whole numbers whatever type they are computed in, and between which bounds they lie."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product as combinations

from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.dtype import I32, DType
from tcc.ir.dtype_codes import integer_range
from tcc.ir.expr import Access, Call, Cast, Const, Expr
from tcc.ir.infer import expression_dtype
from tcc.ir.ops import OPS

EXACT = {32: 2**24, 64: 2**53, 16: 2**11}  # whole numbers up to here are floats of these bits
LIMIT = 2**31  # of magnitudes that are of any use here


@dataclass(frozen=True)
class Whole:
    """The value of an expression as an i32 expression, and inclusive bounds."""

    value: Expr
    low: int
    high: int

    @property
    def largest(self) -> int:
        """The largest magnitude."""
        return max(-self.low, self.high)


def whole(c: Cascade, e: Expr) -> Whole | None:
    """The expression over integers, where it is certain that it is one and that every step of it is exact in its own
    type and in i32; None for anything else.

    f32(Q) * (f32(W) - 8)  -->  i32(Q) * (i32(W) - 8), for Q: i8 and W: u4 within [-1920, 1920]
    """
    if isinstance(e, Const):
        v = e.value
        if isinstance(v, bool) or v != v or abs(v) > LIMIT or v != int(v):
            return None
        return Whole(Const(int(v)), int(v), int(v))
    t = expression_dtype(c, e)
    if isinstance(e, Cast):
        found = whole(c, e.arg)
        if found is not None and _holds(e.dtype, found):
            return found
        return _opaque(e, t, e.dtype)
    if isinstance(e, Access):
        return _read(c, e, t)
    if not isinstance(e, Call):
        return None
    parts = [whole(c, a) for a in e.args]
    args = [p for p in parts if p is not None]
    if not OPS[e.op].affine or len(args) != len(parts):
        return _opaque(e, t, t)
    ends = [int(e.spec.evaluate(*x)) for x in combinations(*((a.low, a.high) for a in args))]
    made = Whole(Call(e.op, tuple(a.value for a in args), e.span), min(ends), max(ends))
    return made if _holds(t, made) and made.largest <= LIMIT else None


def _read(c: Cascade, e: Access, t: DType) -> Whole | None:
    """An element: within the bounds of its type, or of what an element-wise definition makes it."""
    stored = c.tensors[e.tensor].dtype
    found = _opaque(e, t, stored)
    made = c.defining(e.tensor)
    if found is None or stored.bits <= 8 or len(made) != 1:
        return found
    (d,) = made
    if not isinstance(d, Einsum) or d.reduced or (inner := whole(c, d.body)) is None:
        return found
    fill = int(c.tensors[e.tensor].fill)
    return Whole(found.value, min(inner.low, fill), max(inner.high, fill))


def _holds(t: DType, w: Whole) -> bool:
    """Whether a type holds all whole numbers within the bounds."""
    if t.bits == 0:  # a literal's type: it adapts
        return True
    if t.is_integer:
        low, high = integer_range(t)
        return low <= w.low and w.high <= high
    return t.form is None and w.largest <= EXACT.get(t.bits, 0)


def _opaque(e: Expr, t: DType, stored: DType) -> Whole | None:
    """An integer of type `t` that nothing more is known about than the type that it was stored in."""
    if not t.is_integer or not stored.is_integer or stored.bits > 32 or stored.name == "u32":
        return None
    return Whole(e if t == I32 else Cast(I32, e), *integer_range(stored))
