"""Sums that may have no term: what follows the sum must not turn their 0 into something else."""

from __future__ import annotations

from collections.abc import Sequence

from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.expr import Expr, accesses, variables
from tcc.passes._polyhedra import nonempty


def mask_of(d: Einsum) -> list[Expr]:
    """The predicates that say which terms a reduction has."""
    return [p for p in d.where if set(variables(p)) & set(d.reduced)]


def some_term(c: Cascade, d: Einsum) -> Expr | bool | None:
    """Where a reduction has a term, extents being 1 or more: a predicate, True for everywhere, None for unknown."""
    mask = mask_of(d)
    if not mask:
        return True
    if len(d.reduced) != 1 or accesses(*mask):
        return None
    found = nonempty(mask, d.reduced[0], c.extent(d.reduced[0]))
    return None if found is False else found


def defers(c: Cascade, d: Einsum, scale: Sequence[Expr]) -> bool:
    """Whether a factor may follow the sum: 0 times what is read may be NaN, where there is no term."""
    return not accesses(*scale) or some_term(c, d) is True
