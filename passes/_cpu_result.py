"""Rows and sums on their way to a result lie in the result, where it stays in the caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, text
from tcc.ir.index import poly
from tcc.ir.infer import expression_dtype
from tcc.passes._algebra import Contraction, plain_variables, renamed_tensor
from tcc.passes._cpu_place import Columns
from tcc.passes._cpu_vectors import strided

if TYPE_CHECKING:
    from tcc.passes._cpu_operands import Operands

KEPT = 1 << 24  # bytes; a larger result is stored past the caches, from rows that lie elsewhere


def in_result(k: Operands, rows: list[str]) -> list[Einsum]:
    """The members of a group, with a tensor that only serves a definition of equal points computed in its target:

    E[m, n] = …;  S[m] = E[m, n];  Y[m, n] = f(E[m, n], S[m])  -->  Y[m, n] = …;  S[m] = Y[m, n];  Y[m, n] = f(Y[m, n], S[m])

    So each line of the result comes near the core while its row is computed, and not while it is finished.
    """
    members = list(k.members)
    while (found := _pair(k, members, rows)) is not None:
        members = [renamed_tensor(d, *found) for d in members]
    return members


def _pair(k: Operands, members: list[Einsum], rows: list[str]) -> tuple[str, str] | None:
    """A tensor, and the result in which it may lie."""
    for n, d in enumerate(members):
        if d.reduced or not k.m.in_memory(d.target) or not _kept(k, d):
            continue
        for e in members[:n]:
            if _serves(k, e, d, members[n + 1 :], rows):
                return e.target, d.target
    return None


def sums_in_result(k: Operands, d: Einsum, s: Contraction) -> bool:
    """Whether a product adds up in its result, of which its register tiles leave no edges: then nothing is copied."""
    at, t = Access(d.target, d.indices), k.c.tensors[d.target]
    sizes = [
        (k.size(v), unit) for v, unit in ((k.tile or "", k.shape[0]), (s.columns[-1], k.columns(d)))
    ]
    return (
        _kept(k, d)
        and not s.mask
        and not k.decodes
        and k.way in (Columns.PACKED, Columns.PLACE)
        and all(n is not None and n % unit == 0 for n, unit in sizes)
        and t.dtype == expression_dtype(k.c, d.body)
        and not strided(at, s.columns[-1], k.m.memory.get(d.target))
        and not any(a.tensor == d.target for x in k.members for a in x.reads)
    )


def _kept(k: Operands, d: Einsum) -> bool:
    """Whether a definition makes all of a result that is known to be small enough to stay in the caches."""
    t = k.c.tensors[d.target]
    sizes = [poly(k.c.resolved(n)).constant for n in t.shape]
    total = t.dtype.itemsize
    for size in sizes:
        total *= KEPT + 1 if size is None else size
    return total <= KEPT and len(k.c.defining(d.target)) == 1


def _serves(k: Operands, e: Einsum, d: Einsum, later: list[Einsum], rows: list[str]) -> bool:
    """Whether `e` makes nothing but elements that `d` replaces one by one, and that no later definition reads."""
    made, result = k.c.tensors[e.target], k.c.tensors[d.target]
    if e.reduced or k.m.in_memory(e.target) or len(k.c.defining(e.target)) > 1:
        return False
    if (made.dtype, made.fill) != (result.dtype, result.fill) or not made.dtype.native:
        return False
    at = [text(i) for i in d.indices]
    inner = [v for v in plain_variables(d) if v not in rows]
    if not inner or len(plain_variables(d)) != len(at) or [text(i) for i in e.indices] != at:
        return False
    if [text(k.c.resolved(x)) for x in made.shape] != [text(k.c.resolved(x)) for x in result.shape]:
        return False
    own = [[text(i) for i in a.indices] == at for a in d.reads if a.tensor == e.target]
    return bool(own) and all(own) and not any(a.tensor == e.target for x in later for a in x.reads)
