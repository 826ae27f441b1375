"""Scalar expressions: the one expression language for values, indices, predicates and sizes.

    e ::= constant | variable | size | T[e, …] | op(e, …) | dtype(e)

A *variable* is a rank variable (lower case), a *size* the extent of a rank (upper case), an *access* reads one element
of a tensor (reading outside the tensor gives its fill value). Nodes compare by identity; `text(e)` is the structural key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tcc.ir.diagnostics import Span
from tcc.ir.dtype import DType
from tcc.ir.ops import OPS, Op


@dataclass(frozen=True, slots=True, eq=False)
class Const:
    """A literal. Its type adapts to its neighbours: `2 * x` has the type of `x`."""

    value: int | float | bool
    span: Span | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Var:
    """The coordinate of a rank variable at the current point of the iteration space (an i64)."""

    name: str
    span: Span | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Size:
    """The extent of a rank (an i64)."""

    rank: str
    span: Span | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """The element of `tensor` at the given coordinates; the tensor's fill value outside its bounds."""

    tensor: str
    indices: tuple[Expr, ...]
    span: Span | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A scalar operator applied to its operands; exists where all operands exist (`??`: where either does)."""

    op: str
    args: tuple[Expr, ...]
    span: Span | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert OPS[self.op].arity == len(self.args), (self.op, len(self.args))

    @property
    def spec(self) -> Op:
        return OPS[self.op]


@dataclass(frozen=True, slots=True, eq=False)
class Cast:
    """The operand converted to `dtype`: floats round to nearest even, float to integer truncates."""

    dtype: DType
    arg: Expr
    span: Span | None = field(default=None, repr=False)


Expr = Const | Var | Size | Access | Call | Cast


def call(op: str, *args: Expr) -> Call:
    """`op` applied to `args`."""
    return Call(op, args)


def children(e: Expr) -> tuple[Expr, ...]:
    """The operands of a node, index expressions included."""
    if isinstance(e, Call):
        return e.args
    if isinstance(e, Access):
        return e.indices
    return (e.arg,) if isinstance(e, Cast) else ()


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every node below the roots, parents first, left to right."""
    stack = list(reversed(roots))
    while stack:
        e = stack.pop()
        yield e
        operands = children(e)
        if operands:
            stack += operands[::-1]


def accesses(*roots: Expr) -> list[Access]:
    """Every access, those inside index expressions included."""
    return [e for e in walk(*roots) if isinstance(e, Access)]


def variables(*roots: Expr) -> list[str]:
    """Names of the rank variables that occur, each once, in order of appearance."""
    return list(dict.fromkeys(e.name for e in walk(*roots) if isinstance(e, Var)))


MAX_DEPTH = (
    150  # levels of nesting that a program's text may have: every walk that recurses relies on it
)


def depth(e: Expr) -> int:
    """The number of nested operators, accesses and casts; 0 for a literal or a name."""
    done: dict[int, int] = {}
    stack = [(e, False)]
    while stack:
        node, ready = stack.pop()
        if id(node) in done:
            continue
        if ready:
            done[id(node)] = 1 + max((done[id(c)] for c in children(node)), default=-1)
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in children(node))
    return done[id(e)]


def with_children(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """The same node over other operands; the node itself when nothing changed."""
    if all(a is b for a, b in zip(children(e), new, strict=True)):
        return e
    if isinstance(e, Call):
        return Call(e.op, new, e.span)
    if isinstance(e, Access):
        return Access(e.tensor, new, e.span)
    assert isinstance(e, Cast)
    return Cast(e.dtype, new[0], e.span)


def transform(e: Expr, rule: Callable[[Expr], Expr]) -> Expr:
    """`rule` applied to every node, operands first; shared nodes stay shared."""
    done: dict[int, Expr] = {}
    stack = [e]
    while stack:
        node = stack[-1]
        if id(node) in done:
            stack.pop()
            continue
        operands = children(node)
        left = [k for k in operands if id(k) not in done]
        if left:
            stack += left
            continue
        stack.pop()
        new = with_children(node, tuple([done[id(k)] for k in operands])) if operands else node
        done[id(node)] = rule(new)
    return done[id(e)]


def substitute(e: Expr, values: Mapping[str, Expr]) -> Expr:
    """Variables replaced by expressions."""
    return transform(e, lambda n: values.get(n.name, n) if isinstance(n, Var) else n)


def text(e: Expr) -> str:
    """The expression as it is written in a program, with the fewest parentheses."""
    return _print(e, 0)


def _print(e: Expr, outer: int) -> str:
    if isinstance(e, Const):
        shown = constant_text(e.value)
        return f"({shown})" if shown.startswith("-") and outer > 10 else shown
    if isinstance(e, Var):
        return e.name
    if isinstance(e, Size):
        return e.rank
    if isinstance(e, Access):
        return f"{e.tensor}[{', '.join(text(i) for i in e.indices)}]" if e.indices else e.tensor
    if isinstance(e, Cast):
        return f"{e.dtype.name}({text(e.arg)})"
    op = e.spec
    if not op.infix:
        return f"{op.name}({', '.join(text(a) for a in e.args)})"
    if op.arity == 1:
        shown = f"{op.infix}{' ' if op.infix == 'not' else ''}{_print(e.args[0], op.precedence)}"
    elif op.infix == "**":
        shown = f"{_print(e.args[0], op.precedence + 1)} ** {_print(e.args[1], op.precedence)}"
    else:
        # comparisons do not chain; the others group to the left
        left = op.precedence + (op.precedence == 5)
        shown = f"{_print(e.args[0], left)} {op.infix} {_print(e.args[1], op.precedence + 1)}"
    return f"({shown})" if op.precedence < outer else shown


def constant_text(value: int | float | bool) -> str:
    """A literal that reads back as the same value of the same kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return "nan" if math.isnan(value) else repr(float(value))
    return str(int(value))
