"""Derivatives of scalar expressions: the chain rule backwards over one expression, from the law of each operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from tcc.ir.diagnostics import Source
from tcc.ir.dtype import DType
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Var,
    call,
    text,
    with_children,
)
from tcc.ir.expr_text import ExprBuilder, Names, parse_tree
from tcc.ir.ops import OPS

ZERO, ONE = Const(0.0), Const(1.0)


def pull_back(
    body: Expr, seed: Expr, value: Expr | None, live: set[str], dtype: Callable[[Expr], DType]
) -> list[tuple[Access, Expr]]:
    """(A, Σ seed · ∂body/∂A) for every access A of `body` to a live tensor; `value` is where body's value can be read.

    Accesses of the same element count as one. Conditions and indices have no derivative.
    """
    order = _below(body, live)
    bars: dict[int, Expr] = {id(body): seed}
    found: dict[str, tuple[Access, Expr]] = {}
    for n in order:
        bar = bars.get(id(n))
        if bar is None or is_zero(bar):
            continue
        if isinstance(n, Access):
            before = found.get(text(n))
            found[text(n)] = (n, bar if before is None else plus(before[1], bar))
        elif isinstance(n, Cast):
            inner = dtype(n.arg)
            _add(bars, n.arg, bar if inner == dtype(bar) else Cast(inner, bar))
        elif isinstance(n, Call):
            out = value if n is body and value is not None else n
            for k, a in enumerate(n.args):
                if _carries(n, k) and any(a is m for m in order):
                    _add(bars, a, times(bar, partial(n, k, out)))
    return list(found.values())


def depends(body: Expr, live: set[str]) -> bool:
    """Whether the derivative of an expression by some live tensor is not zero everywhere."""
    return bool(_below(body, live))


def _add(bars: dict[int, Expr], n: Expr, bar: Expr) -> None:
    bars[id(n)] = plus(bars[id(n)], bar) if id(n) in bars else bar


def _below(body: Expr, live: set[str]) -> list[Expr]:
    """The nodes between `body` and the live accesses, each after all nodes that read it."""
    carried: dict[int, bool] = {}
    out: list[Expr] = []
    stack: list[tuple[Expr, bool]] = [(body, False)]
    while stack:
        n, ready = stack.pop()
        if id(n) in carried:
            continue
        inner = (
            tuple(a for k, a in enumerate(n.args) if _carries(n, k)) if isinstance(n, Call)
            else (n.arg,) if isinstance(n, Cast) and n.dtype.is_float else ()
        )  # fmt: skip
        if not ready:
            stack.append((n, True))
            stack.extend((a, False) for a in inner)
            continue
        mine = isinstance(n, Access) and n.tensor in live
        carried[id(n)] = mine or any(carried[id(a)] for a in inner)
        if carried[id(n)]:
            out.append(n)
    return out[::-1]


def _carries(n: Call, k: int) -> bool:
    """Whether operand k has a derivative that is not zero by law; operators without laws have no float values."""
    return bool(n.spec.partials) and n.spec.partials[k] != "0"


# ---- the laws of operators


def partial(n: Call, k: int, out: Expr) -> Expr:
    """∂n / ∂(operand k), where `out` is n's value."""
    values = {**dict(zip("xyz", n.args, strict=False)), "out": out}
    return _filled(_law(n.spec.partials[k]), values)


@lru_cache(maxsize=128)
def _law(law: str) -> Expr:
    source = Source("partials", law)
    tree = parse_tree("program: expr _NL*", "program", source)
    return ExprBuilder(source, Names(set(), set())).build(tree.children[0])


def _filled(e: Expr, values: dict[str, Expr]) -> Expr:
    """A law over its operands, folded where they are literals."""
    if isinstance(e, Var):
        return values[e.name]
    if not isinstance(e, Call):
        return Const(e.value) if isinstance(e, Const) else e
    args = tuple(_filled(a, values) for a in e.args)
    a, b = args[0], args[-1]
    constant = isinstance(a, Const) and isinstance(b, Const)
    if e.op == "select":
        return choose(*args)
    if e.op == "mul":
        return times(a, b)
    if e.op == "div":
        return over(a, b)
    if e.op == "neg":
        return negated(a)
    if constant and e.op in ("eq", "sub") and len(args) == 2:
        value = OPS[e.op].evaluate(a.value, b.value)  # type: ignore[union-attr]
        return Const(bool(value) if e.op == "eq" else value.item())
    if e.op == "pow" and isinstance(b, Const) and b.value in (0, 1):
        return a if b.value == 1 else ONE
    return with_children(Call(e.op, e.args), args)


# ---- arithmetic that leaves out what is 0 or 1, and keeps signs, choices and divisions outside


def is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and not isinstance(e.value, bool) and e.value == 0


def _is_one(e: Expr) -> bool:
    return isinstance(e, Const) and not isinstance(e.value, bool) and abs(e.value) == 1


def times(a: Expr, b: Expr) -> Expr:
    """a · b."""
    if is_zero(a) or is_zero(b):
        return ZERO
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Const) and _is_one(one):
            return other if one.value > 0 else negated(other)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Call) and one.op == "neg":
            return negated(times(other, one.args[0]) if one is b else times(one.args[0], other))
        if isinstance(one, Call) and one.op == "select":
            p, x, y = one.args
            return choose(p, times(x, other), times(y, other)) if one is a else choose(
                p, times(other, x), times(other, y))  # fmt: skip
    if isinstance(b, Call) and b.op == "div":
        return over(times(a, b.args[0]), b.args[1])
    return call("mul", a, b)


def over(a: Expr, b: Expr) -> Expr:
    """a / b."""
    if is_zero(a) or (isinstance(b, Const) and b.value == 1):
        return a
    if isinstance(a, Call) and a.op == "neg":
        return negated(over(a.args[0], b))
    if isinstance(a, Call) and a.op == "select":
        return choose(a.args[0], over(a.args[1], b), over(a.args[2], b))
    return call("div", a, b)


def negated(a: Expr) -> Expr:
    """-a."""
    if isinstance(a, Const):
        return a if is_zero(a) else Const(-a.value, a.span)
    if isinstance(a, Call) and a.op == "neg":
        return a.args[0]
    if isinstance(a, Call) and a.op == "select":
        return choose(a.args[0], negated(a.args[1]), negated(a.args[2]))
    return call("neg", a)


def plus(a: Expr, b: Expr) -> Expr:
    """a + b."""
    if is_zero(a) or is_zero(b):
        return b if is_zero(a) else a
    if isinstance(b, Call) and b.op == "neg":
        return call("sub", a, b.args[0])
    if isinstance(a, Call) and a.op == "neg":
        return call("sub", b, a.args[0])
    return times(Const(2.0), a) if text(a) == text(b) else call("add", a, b)


def choose(p: Expr, a: Expr, b: Expr) -> Expr:
    """a where p holds, else b."""
    if isinstance(p, Const):
        return a if p.value else b
    return ZERO if is_zero(a) and is_zero(b) else call("select", p, a, b)
