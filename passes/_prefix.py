"""Reductions over all that comes before, or after, a coordinate: each value is made of the one before it."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Recurrence, steps
from tcc.ir.dtype import F32, F64
from tcc.ir.expr import Access, Cast, Const, Expr, Var, call, substitute, variables
from tcc.ir.index import gap, poly
from tcc.ir.ops import MONOIDS, OPS, identity_of
from tcc.passes._algebra import fresh

SHORT = 64  # coordinates up to which vectors compute every value anew sooner than one value after another


def running(c: Cascade) -> Cascade:
    """T[i] = e(j) :: ⊕(j) where j <= i  -->  S[0] = identity;  S[i + 1] = S[i] ⊕ e(i);  T[i] = S[i + 1]

    And so for j < i, j >= i and j > i. It takes linear instead of quadratic time. Sums of f32 run in f64: all values hang
    on one chain of roundings.
    """
    names = set(c.tensors)
    made: list[Definition] = []
    nested = {id(d) for s in steps(c) if isinstance(s, Recurrence) for d in s.steps}
    for d in c.definitions:
        if isinstance(d, Einsum) and id(d) not in nested:
            made += _steps(c, d, names)
        else:
            made.append(d)
    return c.with_definitions(tuple(made))


def _steps(c: Cascade, d: Einsum, names: set[str]) -> list[Einsum]:
    found = _way(c, d)
    if found is None:
        return [d]
    i, before, strict = found
    (j,) = d.reduced
    monoid, t, size = MONOIDS[d.monoid(j)], c.tensors[d.target].dtype, c.extent(i)
    wide = F64 if t == F32 and OPS[monoid.combine].inverse is not None else t
    name = fresh(f"{d.target}_run", names)

    def at(index: Expr) -> tuple[Expr, ...]:
        return tuple(index if isinstance(x, Var) and x.name == i else x for x in d.indices)

    def widened(e: Expr) -> Expr:
        return e if wide == t else Cast(wide, e)

    one, step = Const(1), Var(i)
    turned = call("sub", call("sub", size, one), step)
    term = substitute(d.body, {j: step if before else turned})
    count: Expr = call("add", step, one) if before else call("sub", size, step)
    if strict:
        count = step if before else turned
    first = widened(Const(identity_of(monoid, wide.numpy).item()))
    value = call(monoid.combine, Access(name, at(step)), widened(term))
    result: Expr = Access(name, at(count))
    return [
        Einsum(name, at(Const(0)), first, (), (), d.span),
        Einsum(name, at(call("add", step, one)), value, (), (), d.span),
        replace(d, body=result if wide == t else Cast(t, result), reductions=(), where=()),
    ]


def _way(c: Cascade, d: Einsum) -> tuple[str, bool, bool] | None:
    """The variable along which a reduction runs, whether over what comes before it, and whether without its own term."""
    if len(d.reduced) != 1 or len(d.where) != 1 or len(c.defining(d.target)) > 1:
        return None
    (j,) = d.reduced
    between, plain = gap(d.where[0]), [x.name for x in d.indices if isinstance(x, Var)]
    if between is None or d.monoid(j) not in MONOIDS or not c.tensors[d.target].dtype.native:
        return None
    if sorted(plain) != sorted(d.free) or not all(isinstance(x, Var | Const) for x in d.indices):
        return None
    for i in d.free:
        size = poly(c.resolved(c.extent(i))).constant
        long = size is None or size > SHORT
        if not long or i in variables(d.body) or not c.same_size(c.extent(i), c.extent(j)):
            continue
        ahead = poly(call("sub", Var(i), Var(j)))
        for before, least in ((True, between - ahead), (False, between + ahead)):
            if least.constant in (0, -1):
                return i, before, least.constant == -1
    return None
