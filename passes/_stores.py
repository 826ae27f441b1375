"""Rounding into an element type that nothing computes in becomes a definition of its own, with an explicit conversion."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum
from tcc.ir.expr import Access, Cast


def explicit_stores(c: Cascade) -> Cascade:
    """Z[m] = e :: sum(k), Z: bf16  -->  Z_exact[m] = e :: sum(k);  Z[m] = bf16(Z_exact[m])

    Without a reduction, Z[m] = bf16(e). So no partial sum is rounded, whatever the later passes do with the reduction,
    and what reads Z reads what was stored.
    """
    taken = set(c.tensors)
    made: list[Definition] = []
    for d in c.definitions:
        made += _explicit(c, d, taken) if isinstance(d, Einsum) else [d]
    if len(made) == len(c.definitions) and all(a is b for a, b in zip(made, c.definitions)):
        return c
    return c.with_definitions(tuple(made))


def _explicit(c: Cascade, d: Einsum, taken: set[str]) -> list[Definition]:
    t = c.tensors[d.target].dtype
    if t.native:
        return [d]
    if d.reduced:
        name = f"{d.target}_exact"
        while name in taken:
            name += "_"
        taken.add(name)
        stored = Einsum(d.target, d.indices, Access(name, d.indices), (), (), d.span)
        return [replace(d, target=name), *_explicit(c, stored, taken)]
    if t.in_parts or t.rounding == "stochastic":
        return [d]  # rounded by where an element lies, which no expression says
    if isinstance(d.body, Cast) and d.body.dtype == t:
        return [d]
    return [replace(d, body=Cast(t, d.body))]
