"""The correction of a sum when its references move, found by taking its body apart.

    exp(a(x) + h(r))     ratio      T · exp(h(r') - h(r))
    e where x == r       choice     T where r' == r, else the identity      (r the largest or smallest x)
    p(x, r)              Taylor     Σ_j (ρ' - ρ)^j · S_j, with S_j = Σ_x ∂^j p / j!

and products of these, in which Taylor's S_j have the ratio and the choice, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Call, Cast, Const, Expr, call, text, transform
from tcc.ir.ops import MONOIDS, OPS
from tcc.passes._derive_interval import extreme, regular
from tcc.passes._derive_scope import Leaf, Scope, is_zero, joined, negated

DEGREE = 4


class NotFound(Exception):
    """No correction was found; the argument is the part of the body that resists."""

    def __init__(self, why: str, part: Expr | None = None) -> None:
        super().__init__(why)
        self.why, self.part = why, part


@dataclass
class Parts:
    """A sum's body taken apart: Π others · Π polynomial, its ratio and its choices."""

    others: list[Leaf] = field(default_factory=list)
    polynomial: list[Expr] = field(default_factory=list)
    ratio: Expr | None = None
    choices: list[Expr] = field(default_factory=list)  # predicates under which T stays


def primed(e: Expr, scope: Scope, prime: bool) -> Expr:
    """An expression of references over the components' values in a partial state, or in the state that it joins."""

    def rule(n: Expr) -> Expr:
        if isinstance(n, Access) and n.tensor in scope.references:
            return Access(n.tensor + ("'" if prime else ""), ())
        return n

    return transform(scope.expanded(e), rule)


# ---- ratios


def difference(e: Expr, scope: Scope, minus: bool = False) -> Expr | None:
    """e(r') - e(r) for an expression that is linear in parts that depend on references alone; None where it is 0."""
    kind = scope.kind(e)
    if kind in ("data", "constant"):
        return None
    if isinstance(e, Access):
        value = scope.inner(e)
        if value is not None:
            return difference(value, scope, minus)
    if isinstance(e, Cast) and e.dtype.is_float:
        return difference(e.arg, scope, minus)
    if isinstance(e, Call):
        if e.op in ("add", "sub"):
            a = difference(e.args[0], scope, minus)
            b = difference(e.args[1], scope, minus != (e.op == "sub"))
            return b if a is None else a if b is None else call("add", a, b)
        if e.op == "neg":
            return difference(e.args[0], scope, not minus)
        if e.op in ("mul", "div"):
            a, b = e.args
            if e.op == "mul" and scope.kind(a) == "constant":
                a, b = b, a
            if scope.kind(b) == "constant":
                inner = difference(a, scope, minus)
                return None if inner is None else call(e.op, inner, b)
    if kind == "mixed":
        raise NotFound("is not a sum of a part that varies and a reference", e)
    if scope.extremes(e):
        made = regular(scope.expanded(e), scope)
        if text(made) != text(e):
            return difference(made, scope, minus)
    new, old = primed(e, scope, True), primed(e, scope, False)
    return call("sub", old, new) if minus else call("sub", new, old)


# ---- taking apart


def apart(e: Expr, scope: Scope) -> Parts:
    """The factors of a sum's body by what they contribute to the correction; NotFound when one has no rule."""
    found = Parts()
    _apart(e, scope, found, False)
    return found


def _apart(e: Expr, scope: Scope, out: Parts, inverse: bool) -> None:
    kind = scope.kind(e)
    if kind != "mixed":
        out.others.append(Leaf(e, kind, inverse))
        return
    value = scope.inner(e) if isinstance(e, Access) else None
    if value is not None:
        inner = Parts()
        _apart(value, scope, inner, inverse)
        if inner.polynomial:
            out.others += inner.others
            out.polynomial += inner.polynomial
        else:
            out.others.append(Leaf(e, kind, inverse))
        _join(out, inner)
        return
    if isinstance(e, Cast) and isinstance(e.arg, Call) and e.arg.spec.result == "bool":  # fmt: skip
        if not inverse:
            out.others.append(Leaf(e, kind))
            out.choices.append(choice(e.arg, scope))
            return
    if isinstance(e, Call):
        op = e.spec
        if op.name == "mul":
            _apart(e.args[0], scope, out, inverse)
            _apart(e.args[1], scope, out, inverse)
            return
        if op.name == OPS["mul"].inverse:
            _apart(e.args[0], scope, out, inverse)
            _apart(e.args[1], scope, out, not inverse)
            return
        if op.name == "neg" and not inverse:
            out.others.append(Leaf(Const(-1), "constant"))
            _apart(e.args[0], scope, out, inverse)
            return
        if op.carries == ("add", "mul") or (op.name == "pow" and isinstance(e.args[0], Const)):
            arg = e.args[-1]
            moved = difference(arg, scope, inverse)
            assert moved is not None
            ratio = call(op.name, moved) if op.arity == 1 else call("pow", e.args[0], moved)
            out.ratio = ratio if out.ratio is None else call("mul", out.ratio, ratio)
            out.others.append(Leaf(e, kind, inverse))
            return
        if op.name == "select" and is_zero(e.args[2], "mul") and not inverse:
            inner = Parts()
            _apart(e.args[1], scope, inner, False)
            if scope.kind(e.args[0]) == "mixed":
                inner.choices.append(choice(e.args[0], scope))
            elif scope.kind(e.args[0]) == "reference":
                raise NotFound("is chosen by a reference", e)
            if inner.polynomial:
                rest = joined(inner.others, "mul")
                out.others.append(Leaf(call("select", e.args[0], rest, e.args[2]), kind))
                out.polynomial += inner.polynomial
            else:
                out.others.append(Leaf(e, kind))
            _join(out, inner)
            return
        if (
            len(e.args) > 1
            and scope.kind(e.args[0]) != "reference"
            and _alike(e, scope, out, inverse)
        ):
            return
    if inverse:
        raise NotFound("divides, and does not split", e)
    out.polynomial.append(e)


def _alike(e: Call, scope: Scope, out: Parts, inverse: bool) -> bool:
    """(a ⊕ b) has the ratio that both a and b have."""
    branches = e.args[1:] if e.op == "select" else e.args
    if e.op not in ("select", "add", "sub") or (e.op == "select" and scope.refers(e.args[0])):
        return False
    ratios: list[Expr] = []
    for a in branches:
        inner = Parts()
        try:
            _apart(a, scope, inner, inverse)
        except NotFound:
            return False
        if inner.ratio is None or inner.polynomial or inner.choices:
            return False
        ratios.append(inner.ratio)
    if len({text(r) for r in ratios}) != 1:
        return False
    out.others.append(Leaf(e, "mixed", inverse))
    out.ratio = ratios[0] if out.ratio is None else call("mul", out.ratio, ratios[0])
    return True


def _join(out: Parts, inner: Parts) -> None:
    if inner.ratio is not None:
        out.ratio = inner.ratio if out.ratio is None else call("mul", out.ratio, inner.ratio)
    out.choices += inner.choices


def choice(p: Expr, scope: Scope) -> Expr:
    """The condition under which the elements of a part that satisfied `x == r` still do."""
    parts = _alternatives(p)
    equal = [q for q in parts if scope.refers(q)]
    others = [q for q in parts if not scope.refers(q)]
    if len(equal) != 1 or not (isinstance(equal[0], Call) and equal[0].op == "eq"):
        raise NotFound("is decided by comparing with a reference that may still change", p)
    a, b = equal[0].args
    if scope.kind(a) == "reference":
        a, b = b, a
    found = extreme(b, scope) if scope.kind(b) == "reference" and scope.kind(a) == "data" else None
    if found is None or text(scope.expanded(a)) != text(scope.defs[found[0]].body):
        raise NotFound(
            "is decided by comparing with a reference that is not the extreme of the same values", p
        )
    name = found[0]
    old, new = Access(name, ()), Access(f"{name}'", ())
    stays: Expr = call("eq", old, new)
    for q in others:  # x != x: a partial NaN stays one
        if not (isinstance(q, Call) and q.op == "ne" and text(q.args[0]) == text(q.args[1]) == text(a)):  # fmt: skip
            raise NotFound("is decided by more than a comparison with a reference", p)
        stays = call("or", stays, call("ne", old, old))
    return stays


def _alternatives(p: Expr) -> list[Expr]:
    if isinstance(p, Call) and p.op == "or":
        return [*_alternatives(p.args[0]), *_alternatives(p.args[1])]
    return [p]


# ---- Taylor


@dataclass
class Taylor:
    """A polynomial in one expression ρ of references, as its derivatives over i!: p(ρ + δ) = Σ δ^i · terms[i]."""

    reference: Expr
    terms: list[Expr]


def taylor(factors: list[Expr], scope: Scope) -> Taylor:
    """The product of polynomials; NotFound when a factor is none, or when there are two references."""
    work = _Taylor(scope)
    terms = work.of(factors[0])
    for f in factors[1:]:
        terms = work.product(terms, work.of(f))
    while len(terms) > 1 and _is(terms[-1], 0):
        terms.pop()
    if len(terms) - 1 > DEGREE:
        raise NotFound(f"is a polynomial of degree {len(terms) - 1} in its reference", factors[0])
    if work.reference is None:
        raise NotFound("does not split", factors[0])
    return Taylor(work.reference, terms)


class _Taylor:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.reference: Expr | None = None

    def rho(self, e: Expr) -> None:
        if self.reference is None:
            self.reference = e
        elif text(self.reference) != text(e):
            raise NotFound("depends on two references that do not split", e)

    def of(self, e: Expr) -> list[Expr]:
        kind = self.scope.kind(e)
        if kind in ("data", "constant"):
            return [e]
        if kind == "reference":
            self.rho(e)
            return [e, Const(1.0)]
        value = self.scope.inner(e) if isinstance(e, Access) else None
        if value is not None:
            return self.of(value)
        if isinstance(e, Cast) and e.dtype.is_float:
            return [Cast(e.dtype, x) if not isinstance(x, Const) else x for x in self.of(e.arg)]
        if isinstance(e, Call):
            if e.op in ("add", "sub"):
                return self.sum(e)
            if e.op == "neg":
                return [negated(x) for x in self.of(e.args[0])]
            if e.op == "mul":
                return self.product(self.of(e.args[0]), self.of(e.args[1]))
            if e.op == "div" and not self.scope.refers(e.args[1]):
                return [call("div", x, e.args[1]) for x in self.of(e.args[0])]
            if e.op == "pow" and isinstance(e.args[1], Const):
                n = e.args[1].value
                if n == int(n) and 1 <= n <= DEGREE:
                    return self.power(e, self.of(e.args[0]), int(n))
        raise NotFound("does not split into what varies and what its references are", e)

    def power(self, e: Expr, base: list[Expr], n: int) -> list[Expr]:
        if len(base) == 2 and isinstance(
            base[1], Const
        ):  # (a + bδ)^n = Σ binom(n, i) a^(n-i) b^i δ^i
            out = [e]
            for i in range(1, n + 1):
                rest = n - i
                left = base[0] if rest == 1 else call("pow", base[0], Const(rest))
                factor = Const(float(math.comb(n, i) * base[1].value ** i))
                out.append(factor if rest == 0 else _times(factor, left))
            return out
        out = base
        for _ in range(n - 1):
            out = self.product(out, base)
        return [e, *out[1:]]

    def sum(self, e: Call) -> list[Expr]:
        """Terms that are references count as one."""
        from tcc.passes._derive_interval import _terms

        leaves = _terms(Leaf(e, "mixed"), self.scope)
        gone = [x for x in leaves if x.kind == "reference"]
        if len(gone) > 1 and all(x.kind != "mixed" for x in leaves):
            minus = all(x.inverse for x in gone)
            flipped = [Leaf(x.expr, x.kind, False) for x in gone] if minus else gone
            self.rho(joined(flipped, "add"))
            return [e, Const(-1.0 if minus else 1.0)]
        a, b = self.of(e.args[0]), self.of(e.args[1])
        size = max(len(a), len(b))
        out: list[Expr] = [e]
        for i in range(1, size):
            x = a[i] if i < len(a) else Const(0.0)
            y = b[i] if i < len(b) else Const(0.0)
            out.append(_added(x, y, e.op == "sub"))
        return out

    def product(self, a: list[Expr], b: list[Expr]) -> list[Expr]:
        out: list[Expr] = []
        for n in range(len(a) + len(b) - 1):
            total: Expr = Const(0.0)
            for i in range(n + 1):
                if i < len(a) and n - i < len(b):
                    total = _added(total, _times(a[i], b[n - i]), False)
            out.append(total)
        return out


def _is(e: Expr, value: float) -> bool:
    return isinstance(e, Const) and not isinstance(e.value, bool) and e.value == value


def _added(a: Expr, b: Expr, minus: bool) -> Expr:
    if _is(a, 0):
        return negated(b) if minus else b
    if _is(b, 0):
        return a
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(a.value - b.value if minus else a.value + b.value)
    if text(a) == text(b):
        return Const(0.0) if minus else _times(Const(2.0), a)
    if not minus and isinstance(b, Call) and b.op == "neg":
        return _added(a, b.args[0], True)
    return call("sub" if minus else "add", a, b)


def _times(a: Expr, b: Expr) -> Expr:
    if isinstance(b, Const) and not isinstance(a, Const):
        a, b = b, a
    if isinstance(a, Const):
        if isinstance(b, Const):
            return Const(a.value * b.value)
        if a.value == 0:
            return Const(0.0)
        if a.value in (1, -1):
            return b if a.value == 1 else negated(b)
        if isinstance(b, Call) and b.op == "neg":
            return _times(Const(-a.value), b.args[0])
    if isinstance(a, Call) and a.op == "neg":
        return negated(_times(a.args[0], b))
    if isinstance(b, Call) and b.op == "neg":
        return negated(_times(a, b.args[0]))
    return call("mul", a, b)


# ---- monotone bodies of max and min


def monotone(e: Expr, scope: Scope, sign_of: object = None) -> tuple[Expr, int] | None:
    """The one sub-expression that varies, and whether `e` increases (1) or decreases (-1) in it; None when unknown."""
    from tcc.passes._derive_interval import interval

    direction = 1
    while True:
        kind = scope.kind(e)
        if kind == "data":
            return e, direction
        if kind != "mixed":
            return None
        if isinstance(e, Access):
            value = scope.inner(e)
            if value is None:
                return None
            e = value
            continue
        if isinstance(e, Cast):
            if not e.dtype.is_float:
                return None
            e = e.arg
            continue
        assert isinstance(e, Call)
        moving = [n for n, a in enumerate(e.args) if scope.varies(a)]
        if len(moving) != 1:
            return None
        n, op = moving[0], e.spec
        if op.monotone:
            direction *= op.monotone
        elif op.name == "add" or op.name in {
            m.combine for m in MONOIDS.values() if m.group == "add"
        }:
            pass
        elif op.name == OPS["add"].inverse:
            direction *= 1 if n == 0 else -1
        elif op.name == "mul" or (op.name == OPS["mul"].inverse and n == 0):
            low, high = interval(e.args[1 - n], scope)
            if low < 0 < high:
                return None
            direction *= 1 if low >= 0 else -1
        else:
            return None
        e = e.args[n]


def replaced(e: Expr, old: Expr, new: Expr) -> Expr:
    """`e` with one sub-expression, by its text, replaced."""
    key = text(old)
    return transform(e, lambda n: new if text(n) == key else n)


def spread(d: Einsum) -> bool:
    """Whether predicates restrict what a definition reduces."""
    return any(v in d.reduced for p in d.where for v in _variables(p))


def _variables(p: Expr) -> list[str]:
    from tcc.ir.expr import variables

    return variables(p)
