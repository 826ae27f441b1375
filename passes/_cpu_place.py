"""The second operand of a product of few rows is read where it lies, instead of being packed."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Var, accesses, variables
from tcc.ir.mapping import Do, Loop, Node
from tcc.passes._algebra import Contraction, plain_variables
from tcc.passes._cpu_vectors import strided

if TYPE_CHECKING:
    from tcc.passes._cpu_operands import Operands

FEW = 16  # rows for which moving the second operand does not pay
DEPTH = 32  # rows of the second operand that are streamed side by side
RUNS = 8  # the same, for one row of sums
WIDTH = 2048  # columns of a task that streams


class Columns(Enum):
    """How a product reads its second operand."""

    PACKED = "all of it in panels, made by a kernel before this one, or ahead where it is constant"
    PLACE = "where it lies"


def columns_of(k: Operands, d: Einsum, s: Contraction) -> Columns:
    """The way for a product that is the only one of its group: how often its second operand's elements are used, and
    where they lie, decide."""
    e, column = s.column_factor, s.columns[-1]
    rows = [k.size(v) for v in s.rows]
    if not isinstance(e, Access) or not k.m.ready(e.tensor) or k.column != column:
        return Columns.PACKED
    plain = [i.name for i in e.indices if isinstance(i, Var)]
    if (
        any(t.name == e.tensor and t.constant for t in k.c.inputs)
        or accesses(*e.indices)
        or s.mask
        or column not in plain
        or k.outside(e)
        or k.c.tensors[e.tensor].dtype != k.m.types[d.target].dtype
        or None in rows
        or len(s.reduced) > 1
        or not set(variables(e)) <= {*k.outer(), column, *s.reduced}
    ):
        return Columns.PACKED
    count = math.prod(n or 1 for n in rows)
    size = k.size(column)
    along = isinstance(e.indices[-1], Var) and e.indices[-1].name == column
    place = count <= FEW and along and size is not None and size % (2 * k.m.lanes) == 0
    return Columns.PLACE if place else Columns.PACKED


def streamed(k: Operands, d: Einsum, s: Contraction, leaf: tuple[Node, ...]) -> tuple[Node, ...]:
    """for k by DEPTH: the leaf, for all columns of the task: rows of the second operand are read from end to end."""
    leaf = (Loop(s.columns[-1], k.columns(d), leaf),)
    return (Loop(s.reduced[0], DEPTH, leaf),)


def streams_rows(k: Operands, d: Einsum) -> tuple[Node, ...] | None:
    """for n by WIDTH: for k by DEPTH: the leaf with n on lanes, where a long reduction over k reads rows along n, such as
    a vector times a matrix; None for anything else."""
    plain = plain_variables(d)
    if len(d.reduced) != 1 or d.where or k.short(d) or not plain or plain[-1] not in k.rows:
        return None
    lane, deep = plain[-1], d.reduced[0]
    if any(strided(a, lane, k.m.memory.get(a.tensor)) for a in d.reads) or not any(
        lane in variables(a) and strided(a, deep, k.m.memory.get(a.tensor)) for a in d.reads
    ):
        return None
    if not k.m.in_memory(d.target) or set(d.free) != set(k.rows):
        return None
    body: tuple[Node, ...] = (Loop(deep, RUNS, (Do(d, ((lane, "lane"),)),)),)
    body = (Loop(lane, WIDTH, body, "core"),)
    for v in reversed(k.rows):
        body = body if v == lane else (Loop(v, 1, body, "core"),)
    return body
