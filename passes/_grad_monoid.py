"""How the cotangent of a reduction reaches its terms: whole for sums, shared by the maxima, times the others for products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Reduction
from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Const, Expr, Var, call, variables
from tcc.ir.ops import MONOIDS
from tcc.passes._grad_expr import ZERO, times
from tcc.passes._grad_formula import logarithmic
from tcc.passes._grad_sum import Ledger


def weighted(ledger: Ledger, d: Einsum, total: Expr) -> Expr:
    """The derivative by a term of the reduction d, where `total` is the derivative by its result.

    sum:  d_T            max, min:  d_T / |maxima| where the term is one      prod:  d_T · the product of the others
    """
    if not d.reduced:
        return total
    monoid = MONOIDS[d.monoid(d.reduced[0])]
    if monoid.combine == "add":
        return total
    assert monoid.combine in ("max", "min", "mul"), "the others have no float values"
    value = Access(d.target, d.indices)
    if monoid.combine != "mul":
        at_most = call("eq", d.body, value)
        count = _counted(ledger, d, at_most, "ties")
        return call("select", at_most, call("div", total, count), ZERO)
    none = call("eq", d.body, Const(0))
    zeros = _counted(ledger, d, none, "zeros")
    rest = _reduced(ledger, d, call("select", none, Const(1), d.body), "rest", "prod")
    alone = call("select", call("eq", zeros, Const(1)), rest, ZERO)
    shared = call("select", call("eq", zeros, Const(0)), call("div", value, d.body), ZERO)
    return times(total, call("select", none, alone, shared))


def separated(c: Cascade, chosen: set[str]) -> Cascade:
    """Computed terms of the reductions that do not add get a tensor, so that all who compare them see the same value.

    T = e :: max(r)  -->  T_terms = e;  T = T_terms :: max(r)
    """
    taken = set(c.tensors)
    out: list[Definition] = []
    for d in c.definitions:
        if (
            isinstance(d, Einsum)
            and d.target in chosen
            and d.reduced
            and not isinstance(d.body, Access)
        ):
            if MONOIDS[d.monoid(d.reduced[0])].combine != "add":
                name, n = f"{d.target}_terms", 1
                while name in taken:
                    name, n = f"{d.target}_terms{n}", n + 1
                taken.add(name)
                at = tuple(Var(v) for v in (*d.free, *d.reduced))
                out.append(Einsum(name, at, d.body, (), d.where, d.span))
                d = replace(d, body=Access(name, at))
        out.append(d)
    return c.with_definitions(tuple(out)) if len(out) > len(c.definitions) else c


def _counted(ledger: Ledger, d: Einsum, condition: Expr, suffix: str) -> Expr:
    return _reduced(ledger, d, call("select", condition, Const(1.0), ZERO), suffix, "sum")


def _reduced(ledger: Ledger, d: Einsum, body: Expr, suffix: str, monoid: str) -> Expr:
    at = tuple(Var(v) for v in d.free)
    name = ledger.names.tensor(f"{d.target}_{suffix}")
    reductions = tuple(Reduction(v, monoid) for v in d.reduced)
    ledger.define(Einsum(name, at, body, reductions if monoid != "sum" else (), d.where))
    return Access(name, at)


def short_cut(d: Einsum, a: Access, seed: Expr, dtype: Callable[[Expr], DType]) -> Einsum | None:
    """What reaches a read that the sum moves with as a whole, from the value of the sum: no terms are visited again.

    T[p] = Σ_m f(x[m], r[p]) with ∂f/∂r = ρ · f  -->  d_r[p] += d_T[p] · T[p] · ρ
    """
    reduced = set(d.reduced)
    if (
        not reduced
        or set(variables(a)) & reduced
        or MONOIDS[d.monoid(d.reduced[0])].combine != "add"
    ):
        return None
    rate = logarithmic(d.body, a, reduced, dtype)
    if rate is None:
        return None
    body = times(times(seed, Access(d.target, d.indices)), rate)
    where = tuple(p for p in d.where if not set(variables(p)) & reduced)
    return replace(d, body=body, reductions=(), where=where)
