"""Bounds on values, for one question: can a sum overflow without the factor that is to leave it?

Inputs are taken to lie within ±2^20, extents to be at most 2^24. What is computed elsewhere counts as an input, but its
sign is kept. exp(x - max of x) is at most 1.
"""

from __future__ import annotations

import math

import numpy as np

from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, text
from tcc.ir.ops import MONOIDS, OPS
from tcc.passes._derive_scope import Leaf, Scope

Bounds = tuple[float, float]
INPUT, EXTENT = 2.0**20, 2.0**24
_ANY: Bounds = (-math.inf, math.inf)
_DEPTH = 12  # definitions that are looked through


def largest(t: DType) -> float:
    """The largest finite value of a float type."""
    return float(np.finfo(t.numpy).max)


def overflows(e: Expr, scope: Scope, t: DType, terms: float = EXTENT) -> bool:
    """Whether a sum of `terms` values of `e` may exceed what a type can hold."""
    low, high = interval(e, scope)
    return max(-low, high) * terms > largest(t)


def interval(e: Expr, scope: Scope, depth: int = _DEPTH) -> Bounds:
    """The least and the largest value that an expression can have."""
    if isinstance(e, Const):
        v = float(e.value)
        return (v, v) if not math.isnan(v) else _ANY
    if isinstance(e, Var):
        return 0.0, EXTENT
    if isinstance(e, Size):
        return 1.0, EXTENT
    if isinstance(e, Cast):
        return interval(e.arg, scope, depth)
    if isinstance(e, Access):
        return _tensor(e, scope, depth)
    args = [interval(a, scope, depth) for a in e.args]
    if e.spec.carries == ("add", "mul"):
        high = 0.0 if _below_zero(e.args[0], scope) else args[0][1]
        return _monotone(e, (min(args[0][0], high), high))
    return bounds_of_call(e, args)


def _tensor(e: Access, scope: Scope, depth: int) -> Bounds:
    t = scope.program.tensors.get(e.tensor)
    if t is not None and t.dtype.kind == "b":
        return 0.0, 1.0
    whole = (0.0 if t is not None and t.dtype.kind == "u" else -INPUT, INPUT)
    d = scope.defs.get(e.tensor)
    if d is None or depth == 0 or (d.reduced and e.tensor not in scope.references and len(d.reduced) > 1):  # fmt: skip
        return whole
    near = d.reduced and e.tensor not in scope.references  # of other reductions the sign will do
    low, high = interval(d.body, scope, min(depth - 1, 2) if near else depth - 1)
    for v in d.reduced:
        monoid = MONOIDS[d.monoid(v)]
        if monoid.combine == "add":
            low, high = min(low, low * EXTENT, 0.0), max(high, high * EXTENT, 0.0)
        elif monoid.combine not in ("max", "min"):
            return (0.0, 1.0) if monoid.result == "bool" else _ANY
    if e.tensor in scope.references:
        return low, high
    return max(low, -INPUT), min(high, INPUT) if high >= 0 else high


def _monotone(e: Call, arg: Bounds) -> Bounds:
    with np.errstate(all="ignore"):
        ends = [float(e.spec.evaluate(np.float64(x))) for x in arg]
    if any(math.isnan(x) for x in ends):
        return _ANY
    return (min(ends), max(ends))


def bounds_of_call(e: Call, args: list[Bounds]) -> Bounds:
    """Bounds on the value of an operator, from those on its operands."""
    op = e.spec
    if op.result == "bool":
        return 0.0, 1.0
    if op.monotone:
        return _monotone(e, args[0])
    if op.name == "abs":
        low, high = args[0]
        return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
    if op.name == "select":
        return min(args[1][0], args[2][0]), max(args[1][1], args[2][1])
    if op.name == "mul" and text(e.args[0]) == text(e.args[1]):
        ends = [x * x for x in args[0]]
        return (0.0 if args[0][0] <= 0 <= args[0][1] else min(ends)), max(ends)
    if op.name == "pow":
        exponent = args[1][0] if args[1][0] == args[1][1] else None
        if exponent is not None and exponent > 0:
            with np.errstate(all="ignore"):
                ends = [float(np.float64(abs(x)) ** exponent) for x in args[0]]
            if args[0][0] >= 0:
                return ends[0], ends[1]
            return (0.0 if exponent % 2 == 0 else -max(ends)), max(ends)
        return _ANY
    if op.name in ("add", "sub", "mul", "max", "min") or op.name == OPS["mul"].inverse:
        if op.name == OPS["mul"].inverse:
            low, high = args[1]
            if low <= 0 <= high:
                return (0.0, math.inf) if low >= 0 and args[0][0] >= 0 else _ANY
        with np.errstate(all="ignore"):
            ends = [float(op.evaluate(np.float64(x), np.float64(y))) for x in args[0] for y in args[1]]  # fmt: skip
        ends = [0.0 if math.isnan(x) and op.name == "mul" else x for x in ends]
        return _ANY if any(math.isnan(x) for x in ends) else (min(ends), max(ends))
    if op.name in ("sin", "cos", "sign"):
        return -1.0, 1.0
    return _ANY


def _below_zero(arg: Expr, scope: Scope) -> bool:
    """Whether an exponent is x - r with r the largest x of the same elements (or r - x with r the smallest)."""
    leaves = [x for leaf in scope.split(arg, "add") for x in _terms(leaf, scope)]
    gone = [x for x in leaves if x.kind == "reference"]
    if len(gone) != 1:
        return False
    found = extreme(gone[0].expr, scope)
    if found is None:
        return False
    field, monoid = found
    rest = sorted(x.key for x in leaves if x is not gone[0])
    d = scope.defs[field]
    own = sorted(x.key for x in _terms(Leaf(d.body, "data"), scope))
    if monoid == "max" and gone[0].inverse:
        return rest == own
    flipped = sorted((k, not i) for k, i in own)
    return monoid == "min" and not gone[0].inverse and rest == flipped


def _terms(leaf: Leaf, scope: Scope) -> list[Leaf]:
    """The terms of a sum, whatever they depend on."""
    e = leaf.expr
    if isinstance(e, Call) and e.op in ("add", "sub"):
        a = _terms(Leaf(e.args[0], scope.kind(e.args[0])), scope)
        b = _terms(Leaf(e.args[1], scope.kind(e.args[1]), e.op == "sub"), scope)
        out = [*a, *b]
    elif isinstance(e, Call) and e.op == "neg":
        out = [Leaf(x.expr, x.kind, not x.inverse) for x in _terms(Leaf(e.args[0], scope.kind(e.args[0])), scope)]  # fmt: skip
    else:
        return [leaf]
    return [Leaf(x.expr, x.kind, not x.inverse) for x in out] if leaf.inverse else out


def extreme(e: Expr, scope: Scope) -> tuple[str, str] | None:
    """The component of `max` or `min` that a reference is, but for infinite values."""
    e = regular(scope.expanded(e), scope)
    while isinstance(e, Cast):
        e = e.arg
    if isinstance(e, Access) and e.tensor in scope.references:
        return e.tensor, scope.monoid(e.tensor)
    return None


def regular(e: Expr, scope: Scope) -> Expr:
    """An expression of references without choices that only infinite values make."""
    if isinstance(e, Call):
        if e.op == "select" and scope.used(e.args[0]) and scope.extremes(e.args[0]):
            found = {_holds(e.args[0], scope, float(x)) for x in (-7.5, -1e6, 0.0, 1e-9, 3.25, 1e6)}
            if len(found) == 1 and None not in found:
                return regular(e.args[1] if True in found else e.args[2], scope)
        return Call(e.op, tuple(regular(a, scope) for a in e.args), e.span)
    return e


def _holds(e: Expr, scope: Scope, value: float) -> bool | None:
    """Whether a predicate over references holds where all have this value; None when it depends on something else."""
    if isinstance(e, Const):
        return bool(e.value)
    made = _number(e, scope, value)
    return None if made is None else bool(made)


def _number(e: Expr, scope: Scope, value: float) -> float | None:
    if isinstance(e, Const):
        return e.value
    if isinstance(e, Access):
        return value if e.tensor in scope.references else None
    if isinstance(e, Cast):
        return _number(e.arg, scope, value)
    if not isinstance(e, Call):
        return None
    args = [_number(a, scope, value) for a in e.args]
    if any(a is None for a in args):
        return None
    with np.errstate(all="ignore"):
        return float(e.spec.evaluate(*[np.asarray(a) for a in args]))
