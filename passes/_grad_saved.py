"""What a gradient need not compute: tensors that the forward program has saved, and what these are copies of."""

from __future__ import annotations

from collections.abc import Collection

from tcc.ir.cascade import Cascade, Definition, Einsum, targets
from tcc.ir.expr import Access, Var


def unsaved(c: Cascade, saved: Collection[str]) -> list[Definition]:
    """The definitions of all other tensors. Where a saved tensor is a copy, what it is a copy of is read from it.

    T saved, S[p] = X[k, p] …;  T[0, p] = S[p]  -->  S[p] = T[0, p]
    """
    copies: dict[str, Einsum] = {}
    kept: list[Definition] = []
    for d in c.definitions:
        if not set(saved) & set(targets(d)):
            kept.append(d)
        elif isinstance(d, Einsum) and isinstance(d.body, Access) and not d.reduced:
            names = [i.name for i in d.body.indices if isinstance(i, Var)]
            if len(set(names)) == len(d.body.indices) and set(names) == set(d.free):
                copies[d.body.tensor] = Einsum(
                    d.body.tensor, d.body.indices, Access(d.target, d.indices), (), d.where, d.span
                )
    return [copies.get(d.target, d) if isinstance(d, Einsum) else d for d in kept]
