"""Sums of polynomials in a running reference, kept as Taylor coefficients that are re-based when it moves.

    S_i(ρ) = Σ_x ∂^i p(x; ρ) / i!        S_i(ρ') = Σ_{j ≥ i} binom(j, i) (ρ' - ρ)^(j-i) S_j(ρ)

With ρ the mean of what was summed so far, S_1 of a square is 0, and this is the merge of two variances by Chan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tcc.ir.cascade import Einsum, Reduction
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, call, transform, variables
from tcc.passes._derive_correction import Parts, primed, replaced, taylor
from tcc.passes._derive_field import Reduced, key_of, restricted
from tcc.passes._derive_numeric import vanishes
from tcc.passes._derive_running import running
from tcc.passes._derive_scope import Leaf, joined, negated


@dataclass(frozen=True, eq=False)
class Rebased:
    """The first sum's name and body, all corrections in order, and the final value where it is not the first sum."""

    name: str
    body: Expr
    corrections: list[tuple[str, Expr | None]]
    final: Expr | None


class Polynomial(Reduced):
    """A sum of polynomials."""

    def rebased(self, parts: Parts, where: tuple[Expr, ...], apart: bool) -> Rebased:
        """The re-based sums; `apart`: the reduction's own name is that of its final value."""
        d, scope = self.d, self.scope
        t = taylor(parts.polynomial, scope)
        found = running(t.reference, scope, len(t.terms) - 1)
        rho = t.reference
        if found.mean is not None:
            count = self.count(found.mean)
            rho, terms = self.running_mean(t.reference, count, t.terms)
        else:
            terms = t.terms
        scope = self.scope = self.rescoped()
        ends_elsewhere = found.mean is not None and restricted(
            (*where, *found.mean.where), self.var
        )
        name = self.name
        if apart or ends_elsewhere:
            name = self.program.fresh(f"{self.name}_{self.monoid.name}")
        body = joined([*parts.others, Leaf(terms[0], "mixed")], "mul")
        if rho is t.reference and not apart:
            body = d.body
        sums: list[Expr | None] = [Access(name, ())]
        new: list[tuple[str, int]] = []
        for i, term in enumerate(terms[1:], 1):
            value = joined([*parts.others, Leaf(term, "data")], "mul")
            sums.append(self.summed(value, where, i, new))
        delta = call("sub", primed(rho, scope, True), primed(rho, scope, False))
        corrections: list[tuple[str, Expr | None]] = []
        for target, i in reversed(new):
            own = sums[i]
            minus = isinstance(own, Call) and own.op == "neg"
            signed = [None if x is None else negated(x) for x in sums] if minus else sums
            corrections.append((target, self.moved(signed, i, delta, parts)))
        corrections.append((name, self.moved(sums, 0, delta, parts)))
        final: Expr | None = None
        if ends_elsewhere:
            placed = [None if s is None else self.placed(s) for s in sums]
            placed[0] = Access(name, d.indices)
            final = self.shifted(placed, 0, call("sub", t.reference, rho))
        return Rebased(name, body, corrections, final)

    def placed(self, e: Expr) -> Expr:
        """An expression over components with their indices."""

        def rule(n: Expr) -> Expr:
            if isinstance(n, Access) and not n.indices and n.tensor in self.program.defs:
                return Access(n.tensor, self.program.defs[n.tensor].indices)
            return n

        return transform(e, rule)

    def count(self, mean: Einsum) -> str:
        """The component that counts what `mean` has summed so far."""
        inside = tuple(p for p in mean.where if self.var in variables(p))
        where = mean.where if inside else (*mean.where, call("ge", Var(self.var), Const(0)))
        one = Einsum("", mean.indices, Cast(self.type, Const(1.0)), (), where, mean.span)
        return self.shared(one, f"{mean.target}_count")

    def running_mean(self, rho: Expr, count: str, terms: list[Expr]) -> tuple[Expr, list[Expr]]:
        """A reference that is the mean of what was summed so far, in place of one that is only at the end."""
        extent = self.program.c.extent(self.var)
        n = call("max", Access(count, self.program.defs[count].indices), Const(1.0))
        divided = self.scope.expanded(rho)
        if (
            isinstance(divided, Call)
            and divided.op == "div"
            and _same_number(divided.args[1], extent)
        ):
            value = call("div", divided.args[0], n)
        else:
            value = call("mul", rho, call("div", extent, n))
        base = rho.tensor if isinstance(rho, Access) else self.name
        indices = tuple(Var(v) for v in self.d.free if v in variables(value))
        made = Einsum(self.program.fresh(f"{base}_so_far"), indices, value, (), (), self.d.span)
        for other in self.program.added:
            if key_of(self.program.defs[other]) == key_of(made):
                made = self.program.defs[other]
        self.program.put(made, self.type)
        new = Access(made.target, indices)
        return new, [replaced(self.scope.expanded_to(x, rho), rho, new) for x in terms]

    def summed(
        self, value: Expr, where: tuple[Expr, ...], i: int, new: list[tuple[str, int]]
    ) -> Expr | None:
        """Σ value as an expression over components; None when it is 0."""
        d = self.d
        if not self.scope.varies(value) and not self.scope.refers(value):
            every = call("ge", Var(self.var), Const(0))
            inside = where if restricted(where, self.var) else (*where, every)
            row = tuple(Var(v) for v in d.free if v in self.row())
            one = Einsum("", row, Cast(self.type, Const(1.0)), (), inside, d.span)
            count = Access(self.shared(one, f"{self.name}_count"), ())
            minus = isinstance(value, Const) and value.value < 0
            size = Const(-value.value) if isinstance(value, Const) and minus else value
            found = (
                count if isinstance(size, Const) and size.value == 1 else call("mul", count, size)
            )
            return call("neg", found) if minus else found
        sign = isinstance(value, Call) and value.op == "neg"
        bare = value.args[0] if isinstance(value, Call) and sign else value
        at = tuple(Var(v) for v in d.free if v in variables(bare, *where))
        one = Einsum("", at, self.typed(bare), (Reduction(self.var, "sum"),), where, d.span)
        scope = self.rescoped()
        if vanishes(scope, list(scope.references), one):
            return None
        if not scope.refers(bare):
            found = Access(self.shared(one, f"{self.name}_d{i}"), ())
        else:
            key = key_of(one)
            same = [f for f in scope.references if key_of(self.program.defs[f]) == key]
            if same:
                found = Access(same[0], ())
            else:
                made = replace(one, target=self.program.fresh(f"{self.name}_d{i}"), indices=d.indices)  # fmt: skip
                self.program.put(made, self.type)
                new.append((made.target, i))
                found = Access(made.target, ())
        return call("neg", found) if sign else found

    def row(self) -> set[str]:
        """The variables that all components so far share with this one: a row of the walk."""
        every = [set(self.program.defs[f].free) for f in self.before]
        return set.intersection(*every) if every else set(self.d.free)

    def moved(self, sums: list[Expr | None], i: int, delta: Expr, parts: Parts) -> Expr:
        """S_i towards the new reference."""
        value = self.correction(self.shifted(sums, i, delta), parts)
        value = self.shifted(sums, i, delta) if value is None else value
        own = sums[i]
        assert own is not None
        return self.safe(own, value)

    def shifted(self, sums: list[Expr | None], i: int, delta: Expr) -> Expr:
        """Σ_{j ≥ i} binom(j, i) · δ^(j-i) · S_j."""
        out = sums[i]
        assert out is not None
        for j in range(i + 1, len(sums)):
            s = sums[j]
            if s is None:
                continue
            power: Expr = delta if j == i + 1 else call("pow", delta, Const(j - i))
            factor = math.comb(j, i)
            negative = isinstance(s, Call) and s.op == "neg"
            term = call("mul", power, s.args[0] if isinstance(s, Call) and negative else s)
            if factor != 1:
                term = call("mul", Const(float(factor)), term)
            out = call("sub" if negative else "add", out, term)
        return out


def _same_number(a: Expr, b: Expr) -> bool:
    """Whether two sizes are written as the same number or rank."""
    while isinstance(a, Cast):
        a = a.arg
    if isinstance(a, Const) and isinstance(b, Const):
        return float(a.value) == float(b.value)
    return isinstance(a, Size) and isinstance(b, Size) and a.rank == b.rank
