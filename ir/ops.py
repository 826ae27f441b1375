"""Scalar operators and reduction monoids: one row each, with meaning and algebraic laws.

Passes never ask for an operator by name: they ask for the laws recorded here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # np.ndarray of any dtype


@dataclass(frozen=True, slots=True)
class Op:
    """A scalar operator.

    `result` tells the type of the value from the promoted type of the operands: `same`, `float` (integers become f32),
    `bool`, or `int` (operands must be integers or bool). `identity` is a right identity (x op e = x); `zero` annihilates
    (x op z = z for finite x). `ulp` is the error of one evaluation in units of the result's roundoff. `partials` are the
    derivatives by each operand, in the language of cascades over the operands `x`, `y`, `z` and the value `out`.
    `inverse` undoes the operator: (x op y) inverse y = x. `carries` = (a, b) says f(x a y) = f(x) b f(y), `power` = k
    says f(x) = x^k; both hold for positive operands at least. `affine`: affine in each operand when the others stay, and
    whole numbers give whole numbers, so that extremes over a box lie at its corners.
    """

    name: str
    arity: int
    evaluate: Callable[..., Array]
    result: str = "same"
    infix: str = ""
    precedence: int = 0
    commutative: bool = False
    associative: bool = False
    identity: float | bool | None = None
    zero: float | None = None
    monotone: int = 0  # +1 increasing, -1 decreasing in its only argument
    discontinuous: bool = False
    derivative: Callable[..., Array] | None = None  # |d f / d x| at x, for error bounds
    ulp: float = 1.0
    partials: tuple[str, ...] = ()
    inverse: str | None = None
    carries: tuple[str, str] | None = None
    power: float | None = None
    affine: bool = False


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x) if np.size(x) else np.asarray(x)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _floordiv(a: Array, b: Array) -> Array:
    return (
        np.floor_divide(a, np.where(b == 0, 1, b))
        if np.asarray(b).dtype.kind in "iu"
        else np.floor_divide(a, b)
    )


def _mod(a: Array, b: Array) -> Array:
    return np.mod(a, np.where(b == 0, 1, b)) if np.asarray(b).dtype.kind in "iu" else np.mod(a, b)


def _int_pow(a: Array, b: Array) -> Array:
    if np.asarray(a).dtype.kind in "iu" and np.asarray(b).dtype.kind in "iu":
        return np.power(a, np.maximum(b, 0))
    return np.power(np.asarray(a, dtype=np.float64), b)


def _popcount(x: Array) -> Array:
    """How many bits are set in the two's complement of integers, in their own type."""
    x = np.asarray(x)
    if x.dtype.kind not in "iu":
        return x.astype(bool)
    v = x.astype(np.uint64) & np.uint64(2 ** (8 * x.dtype.itemsize) - 1)
    count = np.zeros(v.shape, np.uint64)
    for n in range(8 * x.dtype.itemsize):
        count += v >> np.uint64(n) & np.uint64(1)
    return count.astype(x.dtype)


_BOUND = 2 / math.sqrt(math.pi)
_ROWS = [
    # infix, loosest first
    Op("coalesce", 2, lambda a, b: a, infix="??", precedence=1, associative=True, partials=("1", "0")),
    Op("or", 2, np.logical_or, "bool", "or", 2, True, True, identity=False),
    Op("and", 2, np.logical_and, "bool", "and", 3, True, True, identity=True),
    Op("not", 1, np.logical_not, "bool", "not", 4),
    Op("eq", 2, np.equal, "bool", "==", 5, True, discontinuous=True),
    Op("ne", 2, np.not_equal, "bool", "!=", 5, True, discontinuous=True),
    Op("lt", 2, np.less, "bool", "<", 5, discontinuous=True),
    Op("le", 2, np.less_equal, "bool", "<=", 5, discontinuous=True),
    Op("gt", 2, np.greater, "bool", ">", 5, discontinuous=True),
    Op("ge", 2, np.greater_equal, "bool", ">=", 5, discontinuous=True),
    Op("bit_or", 2, np.bitwise_or, "int", "|", 6, True, True, identity=0),
    Op("bit_xor", 2, np.bitwise_xor, "int", "^", 7, True, True, identity=0),
    Op("bit_and", 2, np.bitwise_and, "int", "&", 8, True, True),
    Op("add", 2, np.add, "same", "+", 10, True, True, identity=0, inverse="sub", partials=("1", "1"), affine=True),
    Op("sub", 2, np.subtract, "same", "-", 10, identity=0, partials=("1", "-1"), affine=True),
    Op("mul", 2, np.multiply, "same", "*", 11, True, True, identity=1, zero=0, inverse="div", partials=("y", "x"), affine=True),
    Op("div", 2, np.divide, "float", "/", 11, identity=1, partials=("1 / y", "-(out / y)")),
    Op("floordiv", 2, _floordiv, "same", "//", 11, discontinuous=True, partials=("0", "0")),
    Op("mod", 2, _mod, "same", "%", 11, discontinuous=True, partials=("1", "-(x // y)")),
    Op("neg", 1, np.negative, "same", "-", 12, monotone=-1, partials=("-1",), affine=True),
    Op("pow", 2, _int_pow, "same", "**", 13, identity=1, ulp=4,
       partials=("select(y == 0, 0, y * x ** (y - 1))", "select(x == 0, 0, out * log(x))")),
    # functions
    Op("max", 2, np.maximum, commutative=True, associative=True, identity=-math.inf,
       partials=("select(x > y, 1, select(x == y, 0.5, 0))", "select(y > x, 1, select(x == y, 0.5, 0))")),
    Op("min", 2, np.minimum, commutative=True, associative=True, identity=math.inf,
       partials=("select(x < y, 1, select(x == y, 0.5, 0))", "select(y < x, 1, select(x == y, 0.5, 0))")),
    Op("select", 3, np.where, partials=("0", "select(x, 1, 0)", "select(x, 0, 1)")),
    Op("take", 3, lambda a, b, i: np.where(np.asarray(i) == 0, a, b),
       partials=("select(z == 0, 1, 0)", "select(z == 0, 0, 1)", "0")),
    Op("exp", 1, np.exp, "float", monotone=1, derivative=np.exp, ulp=4, carries=("add", "mul"), partials=("out",)),
    Op("exp2", 1, np.exp2, "float", monotone=1, derivative=lambda x: 0.7 * np.exp2(x), ulp=4,
       carries=("add", "mul"), partials=("0.6931471805599453 * out",)),
    Op("expm1", 1, np.expm1, "float", monotone=1, derivative=np.exp, ulp=4, partials=("exp(x)",)),
    Op("log", 1, np.log, "float", monotone=1, derivative=lambda x: 1 / np.abs(x), ulp=4, carries=("mul", "add"), partials=("1 / x",)),
    Op("log2", 1, np.log2, "float", monotone=1, derivative=lambda x: 1.45 / np.abs(x), ulp=4, carries=("mul", "add"),
       partials=("1.4426950408889634 / x",)),
    Op("log1p", 1, np.log1p, "float", monotone=1, derivative=lambda x: 1 / np.abs(1 + x), ulp=4, partials=("1 / (1 + x)",)),
    Op("tanh", 1, np.tanh, "float", monotone=1, derivative=lambda x: 1 - np.tanh(x) ** 2, ulp=4, partials=("1 - out * out",)),
    Op("sigmoid", 1, _sigmoid, "float", monotone=1, derivative=lambda x: _sigmoid(x) * _sigmoid(-x), ulp=8,
       partials=("out * (1 - out)",)),
    Op("erf", 1, _erf, "float", monotone=1, derivative=lambda x: _BOUND * np.exp(-x * x), ulp=8,
       partials=("1.1283791670955126 * exp(-(x * x))",)),
    Op("sin", 1, np.sin, "float", derivative=lambda x: np.ones_like(x), ulp=4, partials=("cos(x)",)),
    Op("cos", 1, np.cos, "float", derivative=lambda x: np.ones_like(x), ulp=4, partials=("-sin(x)",)),
    Op("sqrt", 1, np.sqrt, "float", monotone=1, derivative=lambda x: 0.5 / np.sqrt(np.abs(x)), carries=("mul", "mul"), power=0.5,
       partials=("0.5 / out",)),
    Op("rsqrt", 1, lambda x: 1 / np.sqrt(x), "float", monotone=-1, derivative=lambda x: 0.5 * np.abs(x) ** -1.5, ulp=3,
       carries=("mul", "mul"), power=-0.5, partials=("-0.5 * out * out * out",)),
    Op("abs", 1, np.abs, derivative=lambda x: np.ones_like(x), ulp=0, carries=("mul", "mul"), partials=("sign(x)",)),
    Op("sign", 1, np.sign, discontinuous=True, ulp=0, partials=("0",)),
    Op("popcount", 1, _popcount, "int", discontinuous=True, ulp=0),
    Op("floor", 1, np.floor, discontinuous=True, ulp=0, partials=("0",)),
    Op("ceil", 1, np.ceil, discontinuous=True, ulp=0, partials=("0",)),
    Op("round", 1, np.round, discontinuous=True, ulp=0, partials=("0",)),
    Op("trunc", 1, np.trunc, discontinuous=True, ulp=0, partials=("0",)),
]  # fmt: skip
OPS: dict[str, Op] = {op.name: op for op in _ROWS}
INFIX: dict[tuple[str, int], Op] = {(op.infix, op.arity): op for op in _ROWS if op.infix}


@dataclass(frozen=True, slots=True)
class Monoid:
    """A reduction: associative and commutative `combine` (an operator) with identity; `fold` reduces NumPy axes.

    `group` names the operator that distributes over `combine`, if one does: (a ⊗ b) ⊕ (a ⊗ c) = a ⊗ (b ⊕ c).
    """

    name: str
    combine: str
    identity: float | bool
    fold: Callable[..., Array]
    group: str | None = None
    result: str = "same"


def _xor(x: Array, axis: tuple[int, ...]) -> Array:
    return np.bitwise_xor.reduce(x, axis=axis)


MONOIDS: dict[str, Monoid] = {
    m.name: m
    for m in [
        Monoid("sum", "add", 0, np.sum, group="mul"),
        Monoid("prod", "mul", 1, np.prod),
        Monoid("max", "max", -math.inf, np.max, group="add"),
        Monoid("min", "min", math.inf, np.min, group="add"),
        Monoid("any", "or", False, np.any, group="and", result="bool"),
        Monoid("all", "and", True, np.all, group="or", result="bool"),
        Monoid("xor", "bit_xor", 0, _xor, result="int"),
    ]
}
# reductions that give the least coordinate at which an extreme is taken, by the monoid that finds the extreme
INDEX_REDUCTIONS = {"argmax": "max", "argmin": "min"}
# reductions of the language that this version does not evaluate yet: the parser names them in its error
PLANNED_MONOIDS = ("topk",)


def identity_of(monoid: Monoid, dtype: Any) -> Any:
    """The identity of a monoid in a NumPy dtype: infinities become the extreme integers."""
    value, dtype = monoid.identity, np.dtype(dtype)
    if isinstance(value, float) and math.isinf(value):
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            return dtype.type(info.max if value > 0 else info.min)
        if dtype.kind == "b":
            return dtype.type(value > 0)
    return dtype.type(value)
