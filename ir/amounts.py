"""Amounts: extents, strides and divisors, which are integers or size expressions such as `M * 4`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from tcc.ir.expr import Call, Const, Expr, call, text
from tcc.ir.index import Poly, divide, evaluate_size, nonnegative, poly

Amount: TypeAlias = "int | Expr"


def amount(e: Amount) -> Amount:
    """The same amount, as an `int` where it is known."""
    if isinstance(e, int):
        return e
    value = poly(e).constant
    return e if value is None else value


def expression(a: Amount) -> Expr:
    """The amount as an expression."""
    return Const(a) if isinstance(a, int) else a


def polynomial(a: Amount) -> Poly:
    """The amount in normal form."""
    return poly(expression(a))


def shown(a: Amount) -> str:
    """The amount as it stands in a layout: `16`, `M`, or in parentheses `(M * 4)`."""
    if isinstance(a, int):
        return str(a)
    written = text(polynomial(a).expr())
    return f"({written})" if isinstance(polynomial(a).expr(), Call) else written


def evaluated(a: Amount, sizes: Mapping[str, int]) -> int:
    """The value under given sizes; KeyError names a size that is missing."""
    return a if isinstance(a, int) else evaluate_size(a, sizes)


def times(a: Amount, b: Amount) -> Amount:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if a == 1:
        return b
    if b == 1:
        return a
    return 0 if a == 0 or b == 0 else call("mul", expression(a), expression(b))


def plus(a: Amount, b: Amount) -> Amount:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0:
        return b
    return a if b == 0 else amount(call("add", expression(a), expression(b)))


def minus(a: Amount, b: Amount) -> Amount:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return a if b == 0 else amount(call("sub", expression(a), expression(b)))


def quotient(a: Amount, b: Amount) -> Amount | None:
    """a / b where b divides a for all sizes, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if b == 1:
        return a
    if b == 0:
        return None
    if a is b:
        return 1
    found = divide(polynomial(a), polynomial(b))
    return None if found is None else amount(found.expr())


def ceildiv(a: Amount, b: Amount) -> Amount:
    """The least integer that is a / b or more, for b >= 1."""
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    exact = quotient(a, b)
    if exact is not None:
        return exact
    if isinstance(b, int):  # ceil(2 M / 12) = ceil(M / 6)
        common = math.gcd(b, *polynomial(a).terms.values())
        if common > 1:
            return ceildiv(quotient(a, common) or 0, b // common)
    rounded = call("add", expression(a), expression(minus(b, 1)))
    return call("floordiv", rounded, expression(b))


def same(a: Amount, b: Amount) -> bool:
    """Whether two amounts are equal for all sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a is b or polynomial(a).same(polynomial(b))


def at_most(a: Amount, b: Amount) -> bool:
    """Whether a <= b is certain for all sizes of 1 or more."""
    if isinstance(a, int) and isinstance(b, int):
        return a <= b
    return nonnegative(polynomial(b) - polynomial(a))


def is_power_of_two(a: Amount) -> bool:
    return isinstance(a, int) and a > 0 and a & (a - 1) == 0
