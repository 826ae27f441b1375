"""Existence becomes explicit: every definition's `where` says all that decides which of its points exist."""

from __future__ import annotations

from collections.abc import Iterator

from tcc.ir.cascade import Cascade, Definition, Einsum, nested
from tcc.ir.expr import (
    Access,
    Call,
    Const,
    Expr,
    Var,
    accesses,
    call,
    substitute,
    text,
    transform,
    variables,
    walk,
)
from tcc.ir.index import within
from tcc.ir.target import Target
from tcc.passes._stores import explicit_stores

Domains = dict[
    str, tuple[tuple[str, ...], tuple[Expr, ...]]
]  # tensor -> variables of its dimensions, predicates


def restrict(c: Cascade, target: Target) -> Cascade:
    """A definition that reads a tensor gets that tensor's predicates; afterwards nothing is inherited.

    S[m,p] = … where m <= p;  E[m,p] = exp(S[m,p])  -->  E[m,p] = exp(S[m,p]) where m <= p
    a ?? b  -->  select(a exists, a ?? b, b)
    T = e :: max(m), sum(k)  -->  T_k = e :: sum(k);  T = T_k :: max(m)
    Z = e :: sum(k), Z: bf16  -->  Z_exact = e :: sum(k);  Z = bf16(Z_exact)
    I = e :: argmax(m)  -->  I_of[m] = e;  I_max = I_of[m] :: max(m);  I = m :: min(m) where I_of[m] == I_max or NaN
    """
    taken = set(c.tensors)
    c = c.with_definitions(tuple(part for d in c.definitions for part in _single(d, taken)))
    c = explicit_stores(c)
    partial: set[str] = (
        set()
    )  # tensors with several definitions that need a companion that says where they exist
    while True:
        found = _restricted(c, partial)
        if isinstance(found, str):
            partial.add(found)
        else:
            return c.with_definitions(found)


def _restricted(c: Cascade, partial: set[str]) -> tuple[Definition, ...] | str:
    """The definitions with all predicates; or the name of a tensor that turns out to need a companion."""
    domains: Domains = {}
    companions: dict[str, str] = {}
    for name in sorted(partial):
        t = c.tensors[name]
        companions[name] = _fresh(f"{name}_exists", set(c.tensors))
        at = tuple(f"d{n}" for n in range(len(t.shape)))
        domains[name] = (at, (Access(companions[name], tuple(Var(v) for v in at)),))
    out: list[Definition] = []
    for d in c.definitions:
        if not isinstance(d, Einsum):
            out.append(d)
            continue
        d = _explicit(c, d, domains)
        free = set(d.free)
        held = tuple(p for p in d.where if set(variables(p)) <= free)
        if d.target in companions:
            body: Expr = Const(True)
            for n, p in enumerate(held):
                body = p if n == 0 else call("and", body, p)
            out.append(Einsum(companions[d.target], d.indices, body, (), (), d.span))
        elif held and len(c.defining(d.target)) > 1:
            return d.target
        elif held:
            plain = [i.name for i in d.indices if isinstance(i, Var)]
            if len(plain) != len(d.indices):
                return d.target
            domains[d.target] = (tuple(plain), held)
        out.append(d)
    return tuple(out)


def _fresh(name: str, taken: set[str]) -> str:
    out, n = name, 1
    while out in taken:
        n += 1
        out = f"{name}{n}"
    return out


def _single(d: Definition, taken: set[str]) -> Iterator[Definition]:
    """A definition that reduces with different monoids, one monoid at a time."""
    parts = nested(d, taken) if isinstance(d, Einsum) else None
    if parts is None:
        yield d
        return
    taken |= {p.target for p in parts}
    for p in parts:
        yield from _single(p, taken)


def _explicit(c: Cascade, d: Einsum, domains: Domains) -> Einsum:
    extents = c.extents(d)

    def condition(a: Access) -> list[Expr]:
        if a.tensor not in domains:
            return []
        names, predicates = domains[a.tensor]
        values = dict(zip(names, a.indices, strict=True))
        found = [substitute(p, values) for p in predicates]
        shape = c.tensors[a.tensor].shape
        outside = [
            call("or", call("lt", i, Const(0)), call("ge", i, s))
            for i, s in zip(a.indices, shape, strict=True)
            if not (isinstance(i, Var) and c.same_size(extents[i.name], s))
            and not within(i, s, extents)
        ]  # reading outside gives the fill, which exists
        for o in outside:
            found = [call("or", o, p) for p in found]
        return found

    def rule(n: Expr) -> Expr:
        if not (isinstance(n, Call) and n.op == "coalesce") or id(n) in explicit:
            return n
        held: Expr | None = None
        for a in accesses(n.args[0]):
            for p in condition(a):
                held = p if held is None else call("and", held, p)
        if held is None:
            return n.args[0]
        return call(
            "select", held, n, n.args[1]
        )  # `map` drops the `??`: under the condition it has nothing to do

    explicit = {
        id(n.args[1])
        for n in walk(d.body, *d.where)
        if isinstance(n, Call)
        and n.op == "select"
        and isinstance(n.args[1], Call)
        and n.args[1].op == "coalesce"
        if text(n.args[1].args[1]) == text(n.args[2])
    }
    body = transform(d.body, rule)
    guarded = {id(a) for e in (d.body, *d.where) for n in _selected(e) for a in accesses(n)}
    where = [transform(p, rule) for p in d.where]
    seen = {text(p) for p in where}
    reduced = set(d.reduced)
    for a in accesses(d.body, *d.where, *d.indices):
        if id(a) in guarded:
            continue
        mine = [v for v in variables(a) if v in reduced]
        for p in condition(a):
            if mine and not set(variables(p)) & reduced:
                p = call(
                    "and", p, call("ge", Var(mine[0]), Const(0))
                )  # restricts the reduction, not the target
            if text(p) not in seen:
                seen.add(text(p))
                where.append(p)
    if (
        body is d.body
        and len(where) == len(d.where)
        and all(a is b for a, b in zip(where, d.where, strict=True))
    ):
        return d
    return Einsum(d.target, d.indices, body, d.reductions, tuple(where), d.span)


def _selected(e: Expr) -> list[Expr]:
    """The left sides of `??`, whose absence does not make the definition absent."""
    return [n.args[0] for n in walk(e) if isinstance(n, Call) and n.op == "coalesce"]
