"""Reductions along a strided variable on a CPU: lanes over the columns, results that stay next to the core."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.dtype import F32, F64
from tcc.ir.expr import Access, Cast, Const, call
from tcc.ir.index import poly
from tcc.ir.mapping import Alloc, Do, Kernel, Loop, Node
from tcc.passes._algebra import size_estimate
from tcc.passes._cpu_result import in_result
from tcc.passes._cpu_sums import partial
from tcc.passes._cpu_vectors import LANE_CHUNK

if TYPE_CHECKING:
    from tcc.passes._cpu_vector_kernel import VectorKernel

COLUMNS = 1024  # columns of a task that reduces along rows: their results stay next to the core
NARROW = 64  # the least columns of a task for the sake of what else it makes: runs of fewer are read slowly
NEAR = 1 << 17  # elements that may wait next to the core
TOGETHER = 8  # rows read together: as many lines of one cache set as stay in it
BLOCK = 64  # rows that are added up before they are added to the rest


def column_kernel(k: VectorKernel, column: str, rows: list[str]) -> Kernel:
    """Reductions along a strided variable, and what is made of them: lanes over columns, a few rows at a time."""
    k.members = in_result(k, rows)
    for d in k.members:
        if not k.m.in_memory(d.target):
            k._local(d, rows)
    body: list[Node] = []
    for d in k._reuse(k.members, rows):
        made: list[Node] = [Do(d, ((column, "lane"),))]
        if d.reduced:
            made = _column_sum(k, d, column, rows)
        for v in reversed(_others(d, column, rows)):
            made = [Loop(v, 1, tuple(made))]
        body += made
    nodes: tuple[Node, ...] = tuple(body)
    for b in reversed(list(k.locals.values())):
        nodes = (Alloc(b, nodes),)
    nodes = (Loop(column, _columns_per_task(k, column, rows), nodes, "core"),)
    for v in reversed(rows):
        nodes = (Loop(v, 1, nodes, "core"),)
    names = [*rows, column, *(v for d in k.members for v in (*d.free, *d.reduced))]
    return Kernel(k.name, k.m.extents(names), nodes)


def _column_sum(k: VectorKernel, d: Einsum, column: str, rows: list[str]) -> list[Node]:
    """Rows in turn; a sum of many floats in blocks, so that chains of roundings stay short:

    T_wide = 0;  for each block { part = 0; part += …; T_wide = T_wide + part };  T = T_wide
    """
    lanes = ((column, "lane"),)
    *outer, inner = d.reduced

    def nest(node: Node) -> Node:
        for v in reversed(outer):
            node = Loop(v, 1, (node,))
        return node

    size = poly(k.c.resolved(k.c.extent(inner))).constant
    long = size is None or size > BLOCK or bool(outer)
    if d.monoid(inner) != "sum" or k.m.types[d.target].dtype != F32 or d.where or not long:
        return [nest(Loop(inner, TOGETHER, (Do(d, lanes),)))]
    part = partial(k, d, "part", F32, rows)
    wide = partial(k, d, "wide", F64, rows)
    total = call("add", Access(wide, d.indices), Cast(F64, Access(part, d.indices)))
    block: tuple[Node, ...] = (
        Do(Einsum(part, d.indices, Const(0.0)), lanes),
        Loop(inner, TOGETHER, (Do(replace(d, target=part), lanes, update=True),)),
        Do(Einsum(wide, d.indices, total), lanes),
    )
    return [
        Do(Einsum(wide, d.indices, Const(0.0)), lanes),
        nest(Loop(inner, BLOCK, block)),
        Do(Einsum(d.target, d.indices, Cast(F32, Access(wide, d.indices))), lanes),
    ]


def _others(d: Einsum, column: str, rows: list[str]) -> list[str]:
    """Variables of the results besides the rows and the column."""
    return [v for v in d.free if v != column and v not in rows]


def _columns_per_task(k: VectorKernel, column: str, rows: list[str]) -> int:
    """Columns per task: few enough for several tasks, and for what they hand on to stay near; many enough to read long
    runs."""
    size = poly(k.c.resolved(k.c.extent(column))).constant
    each = max(
        math.prod(size_estimate(k.c, k.c.extent(v)) for v in _others(d, column, rows))
        for d in k.members
    )
    most = min(COLUMNS, max(NARROW, NEAR // each // LANE_CHUNK * LANE_CHUNK))
    return most if size is None else min(most, -(-size // (4 * LANE_CHUNK)) * LANE_CHUNK)
