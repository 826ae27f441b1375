"""Reductions over small windows on a CPU whose operand is read beyond its edges: these are filled in next to the core."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Container
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Const, Expr, Var, accesses, substitute, text, transform, variables
from tcc.ir.index import poly
from tcc.ir.layout import row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node
from tcc.passes._cpu_pad import padded
from tcc.passes._cpu_vectors import lane_variable

if TYPE_CHECKING:
    from tcc.passes._cpu_vector_kernel import VectorKernel

NEAR = 1 << 17  # bytes of a padded slice that stays next to a core
TASKS = 8  # fewer of them leave cores idle
TOGETHER = 4  # neighbours that share what they read along the lanes


def neighbours(k: VectorKernel, d: Einsum, rows: list[str]) -> tuple[str, str] | None:
    """The lanes of a reduction over windows, and the row variable along which windows overlap, the outermost one, where an
    operand moves along the lanes and not from row to row: a few rows together load that once, and fetch what their windows
    share once. None for any other, and where few tasks would be left."""
    if not d.reduced or d.where or not k.short(d) or not k.m.in_memory(d.target):
        return None
    inner = [v for v in (*d.free, *d.reduced) if v not in rows]
    lane = lane_variable(d, inner, ChainMap(k.locals, k.m.memory), k._narrow([d]))
    sizes = [k.size(v) for v in rows]
    if lane not in d.free or inner != [lane, *d.reduced] or None in sizes:
        return None
    if math.prod(n or 1 for n in sizes) < TASKS * TOGETHER**2:
        return None
    reads = accesses(d.body)
    overlapping = [set(variables(i)) for a in reads for i in a.indices if set(variables(i)) & set(d.reduced)]  # fmt: skip
    row = next((v for v in rows if any(v in names for names in overlapping)), None)
    if row is None or not any({lane, row} & set(variables(a)) == {lane} for a in reads):
        return None
    return lane, row


def window_kernel(k: VectorKernel, rows: list[str]) -> Kernel | None:
    """One reduction over windows, slice by slice of its operand:

    for c on core { P[c, y, x] = X[c, y - 1, x - 1];  for y { T[c, y, x] = Σ P[c, y + r, x + s] · W[c, r, s] } }

    None where the operand is not read beyond its edges along the lanes, or a slice is too large to stay near.
    """
    (d, *others) = k.members
    if others or not d.reduced or d.where or not k.short(d) or not k.m.in_memory(d.target):
        return None
    a = _leaving(k, d, rows)
    extents = {v: k.c.extent(v) for v in (*d.free, *d.reduced)}
    found = None if a is None else padded(k.c, a, "", extents)
    if a is None or found is None or not k.m.ready(a.tensor):
        return None
    fixed = {
        n: i for n, i in enumerate(a.indices)
        if isinstance(i, Const) or (isinstance(i, Var) and i.name in rows)
    }  # fmt: skip
    inner = [n for n in range(len(a.indices)) if n not in fixed]
    outer = [v for v in rows if v in variables(*fixed.values())]
    sizes = [poly(k.c.resolved(found.shape[n])).constant for n in inner]
    slices = [k.size(v) for v in outer]
    if None in sizes or None in slices or math.prod(n or 1 for n in slices) < TASKS:
        return None
    t = k.c.tensors[a.tensor]
    if math.prod(n or 1 for n in sizes) * t.dtype.compute.itemsize > NEAR:
        return None
    if any(set(variables(a.indices[n])) & set(outer) for n in inner):
        return None
    at = {name: _fresh(name, extents) for name in found.names}
    kept = [n for n, i in enumerate(a.indices) if not isinstance(i, Const)]
    shape = tuple(found.shape[n] for n in kept)
    name = k.m.fresh(f"{a.tensor}_padded")
    k.m.types[name] = replace(
        t, name=name, dtype=t.dtype.compute, shape=shape, constant=False, span=None
    )
    k.c = k.m.c = replace(k.c, tensors={**k.c.tensors, name: k.m.types[name]})
    moved: dict[str, Expr] = {
        old: fixed[n] if n in fixed else Var(new) for n, (old, new) in enumerate(at.items())
    }
    own = [at[found.names[n]] for n in inner]
    place = tuple(moved[found.names[n]] for n in kept)
    copy = Einsum(name, place, substitute(found.copy.body, moved))
    fill: Node = Do(copy, ((own[-1], "lane"),))
    for v in reversed(own[:-1]):
        fill = Loop(v, 1, (fill,))
    new = Access(name, tuple(found.read.indices[n] for n in kept))
    body = transform(d.body, lambda e: new if text(e) == text(a) else e)
    window = tuple(fixed.get(n, found.shape[n]) for n in kept)
    k.locals[name] = Buffer(name, t.dtype.compute, window, "L1", row_major(len(kept)), t.fill)
    windows = k._vector_nodes([k._with_near_reads(replace(d, body=body), rows)], rows)
    for v in reversed([v for v in rows if v not in outer]):
        windows = [Loop(v, 1, tuple(windows))]
    nodes: tuple[Node, ...] = (Alloc(k.locals[name], (fill, *windows)),)
    for v in reversed(outer):
        nodes = (Loop(v, 1, nodes, "core"),)
    names = k.m.extents([*rows, *d.free, *d.reduced])
    return Kernel(
        k.name, (*names, *((v, found.shape[n]) for v, n in zip(own, inner, strict=True))), nodes
    )


def _leaving(k: VectorKernel, d: Einsum, rows: list[str]) -> Access | None:
    """The one operand that is read several times, and beyond its edges along the lanes."""
    extents = {v: k.c.extent(v) for v in (*d.free, *d.reduced)}
    inner = [v for v in extents if v not in rows]
    lane = lane_variable(d, inner, ChainMap(k.locals, k.m.memory), k._narrow([d]))
    found = {text(a): a for a in accesses(d.body) if lane and k._leaves(a, lane, extents)}
    if len(found) != 1 or lane not in d.free:
        return None
    (a,) = found.values()
    return a if k._often(a, extents) else None


def _fresh(name: str, taken: Container[str]) -> str:
    """A name like this one that is not taken."""
    while name in taken:
        name += "_"
    return name
