"""Integer arithmetic of indices and sizes: polynomials over variables and sizes, with bounds.

`Poly` is the normal form of an index expression: integer coefficients over monomials of *atoms*. An atom is a rank
variable, a size, or an opaque sub-expression (floor division, modulo, an indirect access), named by its text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tcc.ir.expr import (
    Call,
    Const,
    Expr,
    Size,
    Var,
    call,
    text,
    transform,
    variables,
    walk,
)

Monomial = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Poly:
    """Σ coefficient · product of atoms; `atoms` maps each atom's text to its expression."""

    terms: Mapping[Monomial, int]
    atoms: Mapping[str, Expr] = field(default_factory=dict)

    def __add__(self, other: Poly) -> Poly:
        out = dict(self.terms)
        for key, value in other.terms.items():
            out[key] = out.get(key, 0) + value
        return Poly({k: v for k, v in out.items() if v}, {**self.atoms, **other.atoms})

    def __mul__(self, other: Poly) -> Poly:
        out: dict[Monomial, int] = {}
        for ka, va in self.terms.items():
            for kb, vb in other.terms.items():
                key = tuple(sorted(ka + kb))
                out[key] = out.get(key, 0) + va * vb
        return Poly({k: v for k, v in out.items() if v}, {**self.atoms, **other.atoms})

    def scaled(self, factor: int) -> Poly:
        return Poly({k: v * factor for k, v in self.terms.items() if factor}, self.atoms)

    def __sub__(self, other: Poly) -> Poly:
        return self + other.scaled(-1)

    @property
    def constant(self) -> int | None:
        """The value when no atom occurs, else None."""
        return self.terms.get((), 0) if all(not k for k in self.terms) else None

    def coefficient(self, atom: str) -> Poly | None:
        """The factor of `atom` when the polynomial is linear in it, else None."""
        out: dict[Monomial, int] = {}
        for key, value in self.terms.items():
            if key.count(atom) > 1:
                return None
            if atom in key:
                rest = list(key)
                rest.remove(atom)
                out[tuple(rest)] = value
        return Poly(out, self.atoms)

    def without(self, atom: str) -> Poly:
        return Poly({k: v for k, v in self.terms.items() if atom not in k}, self.atoms)

    def same(self, other: Poly) -> bool:
        return not (self - other).terms

    def mentions(self, names: list[str] | tuple[str, ...] | set[str]) -> bool:
        """Whether a rank variable of `names` occurs, also inside opaque atoms."""
        used = {atom for key in self.terms for atom in key}
        wanted = set(names)
        return any(v in wanted for a in used for v in variables(self.atoms[a]))

    def expr(self) -> Expr:
        """An expression with this value: variables first, constants last."""
        out: Expr | None = None
        for key in sorted(self.terms, key=lambda k: (not k, -len(k), k)):
            factor = self.terms[key]
            term: Expr | None = None
            for atom in key:
                term = self.atoms[atom] if term is None else call("mul", term, self.atoms[atom])
            size = abs(factor)
            if term is None:
                term = Const(size)
            elif size != 1:
                term = call("mul", term, Const(size))
            if out is None:
                out = term if factor > 0 else _negated(term)
            else:
                out = call("add" if factor > 0 else "sub", out, term)
        return out if out is not None else Const(0)


def _negated(e: Expr) -> Expr:
    return Const(-e.value) if isinstance(e, Const) else call("neg", e)


def poly(e: Expr) -> Poly:
    """The normal form of an integer expression."""
    if isinstance(e, Const) and isinstance(e.value, int):
        return Poly({(): int(e.value)} if e.value else {})
    if isinstance(e, Call):
        if e.op in ("add", "sub", "mul"):
            a, b = poly(e.args[0]), poly(e.args[1])
            return a + b if e.op == "add" else a - b if e.op == "sub" else a * b
        if e.op == "neg":
            return poly(e.args[0]).scaled(-1)
    name = text(e)
    return Poly({(name,): 1}, {name: e})


def same(a: Expr, b: Expr) -> bool:
    """Whether two integer expressions are equal as polynomials."""
    return a is b or poly(a).same(poly(b))


Extents = Mapping[str, Expr]  # rank variable -> extent (exclusive upper bound, lower bound 0)


def divisor(e: Expr) -> int | None:
    """n where an index is a quotient or a remainder by the number n."""
    if not isinstance(e, Call) or e.op not in ("floordiv", "mod"):
        return None
    by = e.args[1]
    return int(by.value) if isinstance(by, Const) else None


def gap(e: Expr) -> Poly | None:
    """What is 0 or more exactly where a comparison of indices holds; None for anything else."""
    if not isinstance(e, Call) or e.op not in ("le", "lt", "ge", "gt"):
        return None
    a, b = e.args if e.op in ("le", "lt") else (e.args[1], e.args[0])
    return poly(b) - poly(a) - Poly({(): 1} if e.op in ("lt", "gt") else {})


def bounds(e: Expr, extents: Extents) -> tuple[Poly, Poly] | None:
    """Inclusive lower and upper bound of an index over the box of its variables, or None when not derivable."""
    p = poly(e)
    lo = hi = Poly({})
    for key, factor in p.terms.items():
        moving = [a for a in key if not isinstance(p.atoms[a], Size)]
        fixed = Poly({tuple(a for a in key if a not in moving): 1}, p.atoms)
        if not moving:
            lo, hi = lo + fixed.scaled(factor), hi + fixed.scaled(factor)
            continue
        span = _atom_bounds(p.atoms[moving[0]], extents) if len(moving) == 1 else None
        if span is None:
            return None
        small, large = (span[0] * fixed).scaled(factor), (span[1] * fixed).scaled(factor)
        if factor < 0:
            small, large = large, small
        lo, hi = lo + small, hi + large
    return lo, hi


def _atom_bounds(e: Expr, extents: Extents) -> tuple[Poly, Poly] | None:
    one = Poly({(): 1})
    if isinstance(e, Var):
        return (Poly({}), poly(extents[e.name]) - one) if e.name in extents else None
    if isinstance(e, Call) and e.op in ("mod", "floordiv"):
        divisor = poly(e.args[1])
        inner = bounds(e.args[0], extents)
        if inner is None or not nonnegative(inner[0]):
            return (Poly({}), divisor - one) if e.op == "mod" else None
        if e.op == "mod":
            return Poly({}), divisor - one
        quotient = divide(inner[1] + one, divisor)
        if quotient is not None:  # exact: floor((q·d - 1) / d) = q - 1
            return Poly({}), quotient - one
        top, by = inner[1].constant, divisor.constant
        return (Poly({}), Poly({(): top // by})) if top is not None and by else None
    return None


def nonnegative(p: Poly) -> bool:
    """Whether p >= 0 is certain for all sizes >= 1: every size shifted by one has only coefficients >= 0."""
    if all(v >= 0 for v in p.terms.values()):
        return all(isinstance(p.atoms[a], Size) for k in p.terms for a in k) or not p.terms
    shifted = Poly({})
    for key, factor in p.terms.items():
        term = Poly({(): factor})
        for atom in key:
            if not isinstance(p.atoms[atom], Size):
                return False
            term = term * Poly({(atom,): 1, (): 1}, p.atoms)
        shifted = shifted + term
    return all(v >= 0 for v in shifted.terms.values())


def divide(p: Poly, d: Poly) -> Poly | None:
    """p / d when d is one monomial that divides every term, else None."""
    if len(d.terms) != 1:
        return None
    ((key, factor),) = d.terms.items()
    out: dict[Monomial, int] = {}
    for k, v in p.terms.items():
        rest = list(k)
        for atom in key:
            if atom not in rest:
                return None
            rest.remove(atom)
        if v % factor:
            return None
        out[tuple(rest)] = v // factor
    return Poly(out, p.atoms)


def within(e: Expr, size: Expr, extents: Extents) -> bool:
    """Whether 0 <= e < size is certain over the box."""
    span = bounds(e, extents)
    if span is None:
        return False
    return nonnegative(span[0]) and nonnegative(poly(size) - Poly({(): 1}) - span[1])


def simplify_index(e: Expr, extents: Extents) -> Expr:
    """The same index with floor divisions and modulos removed where the box allows it.

    (h·32 + d) // 32 --> h,  (h·32 + d) % 32 --> d  for 0 <= d < 32;   (c//32)·32 + c%32 --> c.
    """

    def rule(n: Expr) -> Expr:
        if isinstance(n, Call) and n.op in ("floordiv", "mod"):
            return _split(n, extents)
        return n

    return _join(poly(transform(e, rule))).expr()


def _split(n: Call, extents: Extents) -> Expr:
    """x // d and x % d with x = q·d + r, 0 <= r < d."""
    p, d = poly(n.args[0]), poly(n.args[1])
    if len(d.terms) != 1:
        return n
    quotient, rest = Poly({}), Poly({})
    for key, factor in p.terms.items():
        term = Poly({key: factor}, p.atoms)
        part = divide(term, d)
        if part is None:
            rest = rest + term
        else:
            quotient = quotient + part
    remainder = rest.expr()
    if not within(remainder, n.args[1], extents):
        if not quotient.terms:
            return n
        reduced = call(n.op, remainder, n.args[1])
        return reduced if n.op == "mod" else call("add", quotient.expr(), reduced)
    return quotient.expr() if n.op == "floordiv" else remainder


def _join(p: Poly) -> Poly:
    """f·d·(x // d) + f·(x % d) --> f·x."""
    for key, factor in list(p.terms.items()):
        for atom in key:
            e = p.atoms[atom]
            if not (isinstance(e, Call) and e.op == "mod"):
                continue
            x, d = e.args
            rest = list(key)
            rest.remove(atom)
            quotient = poly(call("floordiv", x, d))
            outer = Poly({tuple(rest): factor}, p.atoms)
            wanted = outer * poly(d) * quotient
            if all(p.terms.get(k) == v for k, v in wanted.terms.items()):
                return _join(p - wanted - outer * poly(e) + outer * poly(x))
    return p


def evaluate_size(e: Expr, sizes: Mapping[str, int]) -> int:
    """The value of a size expression; KeyError names an unknown rank."""
    if isinstance(e, Const):
        return int(e.value)
    if isinstance(e, Size):
        return sizes[e.rank]
    assert isinstance(e, Call), text(e)
    values = [evaluate_size(a, sizes) for a in e.args]
    return _INTEGER[e.op](*values)


_INTEGER: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "div": lambda a, b: a // b,
    "max": max,
    "min": min,
    "pow": lambda a, b: a**b,
}


def is_size(e: Expr) -> bool:
    """Whether the expression is built from constants, sizes and integer operators alone."""
    return all(
        isinstance(n, Size)
        or (isinstance(n, Const) and isinstance(n.value, int))
        or (isinstance(n, Call) and n.op in _INTEGER)
        for n in walk(e)
    )
