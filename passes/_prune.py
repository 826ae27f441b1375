"""Equal definitions are shared; definitions and ranks that nothing needs go."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, targets
from tcc.ir.expr import Access, Expr, Size, Var, accesses, transform, walk
from tcc.passes._inline import replaced


def share(c: Cascade) -> Cascade:
    """Two definitions of the same right side become one; a copy of a whole tensor becomes that tensor."""
    outputs = {t.name for t in c.outputs}
    seen: dict[str, str] = {}
    other: dict[str, str] = {}
    for d in c.definitions:
        if (
            not isinstance(d, Einsum)
            or len(c.defining(d.target)) != 1
            or d.target in {a.tensor for a in d.reads}
        ):
            continue
        key = str(replace(d, target="_"))
        if key in seen and d.target not in outputs:
            other[d.target] = seen[key]
        elif key not in seen:
            seen[key] = d.target
    if not other:
        return c

    def rule(n: Expr) -> Expr:
        return (
            Access(other[n.tensor], n.indices, n.span)
            if isinstance(n, Access) and n.tensor in other
            else n
        )

    kept: list[Definition] = []
    for d in c.definitions:
        if d.target in other:
            continue
        if isinstance(d, Extern) and not set(d.operands).isdisjoint(other):
            return c
        kept.append(d if isinstance(d, Extern) else _map(d, rule))
    return replaced(c, tuple(kept))


def _map(d: Einsum, rule: object) -> Einsum:
    body = transform(d.body, rule)  # type: ignore[arg-type]
    where = tuple(transform(p, rule) for p in d.where)  # type: ignore[arg-type]
    indices = tuple(transform(i, rule) for i in d.indices)  # type: ignore[arg-type]
    if body is d.body and all(
        a is b for a, b in zip((*where, *indices), (*d.where, *d.indices), strict=True)
    ):
        return d
    return replace(d, body=body, where=where, indices=indices)


def drop(c: Cascade) -> Cascade:
    """Definitions that no output needs go."""
    needed = {t.name for t in c.outputs} | {
        a.tensor for s in c.stops for a in accesses(s.condition)
    }
    kept: list[Definition] = []
    pending = list(c.definitions)
    while True:
        chosen = [d for d in pending if needed & set(targets(d))]
        if not chosen:
            break
        kept += chosen
        needed |= {a.tensor for d in chosen for a in d.reads}
        pending = [d for d in pending if not any(d is x for x in chosen)]
    if len(kept) == len(c.definitions):
        return c
    order = {id(d): i for i, d in enumerate(c.definitions)}
    return replaced(c, tuple(sorted(kept, key=lambda d: order[id(d)])))


def drop_ranks(c: Cascade) -> Cascade:
    """Ranks with a size of their own that nothing mentions any more go."""
    used: set[str] = {t for r in c.ranks if r.size is None for t in [r.name]}
    for t in c.tensors.values():
        used |= {n.rank for s in t.shape for n in walk(s) if isinstance(n, Size)}
    for d in c.definitions:
        if isinstance(d, Einsum):
            used |= {n.rank for n in walk(d.body, *d.where, *d.indices) if isinstance(n, Size)}
            used |= {
                n.name.upper() for n in walk(d.body, *d.where, *d.indices) if isinstance(n, Var)
            }
    ranks = c.ranks
    for r in reversed(ranks):
        if r.name in used and r.size is not None:
            used |= {n.rank for n in walk(r.size) if isinstance(n, Size)}
    kept = tuple(r for r in ranks if r.name in used)
    return c if len(kept) == len(ranks) else replace(c, ranks=kept)
