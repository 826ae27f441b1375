"""Operands that are read beyond their edges: a copy with the edges filled in, so that every read lies inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.expr import Access, Expr, Var, accesses
from tcc.ir.index import Poly, bounds, poly, within
from tcc.passes._algebra import size_estimate


@dataclass(frozen=True)
class Padded:
    """`copy`, over variables `names`, makes the padded tensor of shape `shape`; `read` is the old access in it."""

    copy: Einsum
    names: tuple[str, ...]
    shape: tuple[Expr, ...]
    read: Access


def padded(
    c: Cascade, a: Access, name: str, extents: Mapping[str, Expr], most: float = 2.0
) -> Padded | None:
    """X[…, i, …] with lo <= i <= hi  -->  P[…, i - lo, …] with P[…, y, …] = X[…, y + lo, …] for 0 <= y <= hi - lo.

    None when every read lies inside already, when an index has no bounds, or when the copy would be more than `most`
    times larger than X.
    """
    shape = [c.resolved(n) for n in c.tensors[a.tensor].shape]
    extents = {v: c.resolved(e) for v, e in extents.items()}
    dims: list[Expr] = []
    source: list[Expr] = []
    at: list[Expr] = []
    outside = False
    grown = 1.0
    for n, (i, size) in enumerate(zip(a.indices, shape, strict=True)):
        y = Var(f"y{n}")
        if accesses(i):
            return None
        if within(i, size, extents):
            dims.append(size)
            source.append(y)
            at.append(i)
            continue
        span = bounds(i, extents)
        if span is None:
            return None
        outside = True
        low, high = span
        extent = (high - low + Poly({(): 1})).expr()
        dims.append(extent)
        source.append((poly(y) + low).expr())
        at.append((poly(i) - low).expr())
        grown *= size_estimate(c, extent) / size_estimate(c, size)
    if not outside or grown > most:
        return None
    names = tuple(f"y{n}" for n in range(len(dims)))
    copy = Einsum(name, tuple(Var(v) for v in names), Access(a.tensor, tuple(source)), (), ())
    return Padded(copy, names, tuple(dims), Access(name, tuple(at)))
