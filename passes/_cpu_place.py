"""Where a product reads its second operand: in panels made ahead, in blocks packed next to the core, or where it lies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.dtype import Coded
from tcc.ir.expr import Access, Expr, Var, accesses, call, variables
from tcc.ir.layout import Digit, Layout
from tcc.ir.mapping import Alloc, Buffer, Do, Loop, Node
from tcc.passes._algebra import TYPICAL, Contraction, plain_variables
from tcc.passes._cpu_coded import run_and_lanes, whole
from tcc.passes._cpu_rows import BYTES, collide
from tcc.passes._cpu_tiles import LINE
from tcc.passes._cpu_vectors import strided

if TYPE_CHECKING:
    from tcc.passes._cpu_operands import Operands

FEW = 16  # rows for which moving a small second operand of short rows does not pay
SHORT = 1024  # columns of an operand whose rows are short: many of them follow each other in memory
SMALL = 1 << 20  # elements of an operand that may well be in a cache
DEPTH = 32  # rows of the second operand that are streamed side by side
SOME = 256  # rows for which writing the second operand to memory once more does not pay
NEAR_ROWS = 128  # rows of a task that packs its blocks itself
NEAR_BLOCK = 61440  # elements of such a block
THIN = 32  # rows whose sums are small enough for wide blocks, which are read in long runs
RUNS = 8  # the same, for one row of sums, and for copies
WIDTH = 2048  # columns of a task that streams
WIDE = 1056  # columns of a wide block


class Columns(Enum):
    """How a product reads its second operand."""

    PACKED = "all of it in panels, made by a kernel before this one, or ahead where it is constant"
    PLACE = "where it lies"
    NEAR = "block by block in panels, next to the core that uses them"
    BLOCKS = "in panels made as above, block by block, next to which blocks of the first operand are copied"


def columns_of(k: Operands, d: Einsum, s: Contraction) -> Columns:
    """The way for a product that is the only one of its group: the chosen one, or else the usual one."""
    k.ways = possible = ways(k, d, s)
    chosen = list(Columns)[k.choice.way - 1] if 0 < k.choice.way <= len(Columns) else None
    return chosen if chosen in possible else possible[0]


def ways(k: Operands, d: Einsum, s: Contraction) -> list[Columns]:
    """The ways that are possible, the usual one first: how often the second operand's elements are used, and where they
    lie, decide which that is."""
    e, column = s.column_factor, s.columns[-1]
    rows = [k.size(v) for v in s.rows]
    if not isinstance(e, Access) or not _readable(k, e, d) or k.column != column:
        return [Columns.PACKED]
    sizes = run_and_lanes(k, e)
    if (
        s.mask
        or column not in [i.name for i in e.indices if isinstance(i, Var)]
        or len(s.reduced) > 1
        or not set(variables(e)) <= {*k.outer(), column, *s.reduced}
    ):
        return [Columns.PACKED]
    first = s.row_factor
    copies = isinstance(first, Access) and _readable(k, first, d)
    if sizes:
        return [Columns.NEAR if copies else Columns.PACKED]
    known = any(t.name == e.tensor and t.constant for t in k.c.inputs)
    count = 0 if None in rows else math.prod(n or 1 for n in rows)  # 0: a task packs for its rows
    size = k.size(column)
    along = isinstance(e.indices[-1], Var) and e.indices[-1].name == column
    fits = along and size is not None and size % (2 * k.m.lanes) == 0
    possible = [Columns.PACKED]
    if not known and count and fits:
        possible.append(Columns.PLACE)
    if copies:
        possible += [Columns.BLOCKS] if known else [Columns.NEAR, Columns.BLOCKS]
    usual = Columns.PACKED
    if Columns.PLACE in possible and count <= FEW and size is not None and size <= SHORT and (
        size * (k.size(s.reduced[0]) or TYPICAL) <= SMALL
    ):  # fmt: skip
        usual = Columns.PLACE
    elif copies and count <= SOME:
        usual = Columns.PACKED if known else Columns.NEAR
    elif isinstance(first, Access) and copies and collide(k, first, d, s):
        usual = Columns.BLOCKS
    return sorted(possible, key=lambda way: way != usual)


def _readable(k: Operands, e: Access, d: Einsum) -> bool:
    """Whether a read of memory needs no test and no conversion, or is decoded by a copy."""
    if not k.m.ready(e.tensor) or accesses(*e.indices) or k.outside(e):
        return False
    t, wanted = k.c.tensors[e.tensor].dtype, k.m.types[d.target].dtype
    return wanted == (t.compute if isinstance(t.form, Coded) else t)


def streamed(k: Operands, d: Einsum, s: Contraction, leaf: tuple[Node, ...]) -> tuple[Node, ...]:
    """for k by DEPTH: the leaf, for all columns of the task: rows of the second operand are read from end to end."""
    leaf = (Loop(s.columns[-1], k.columns(d), leaf),)
    return (Loop(s.reduced[0], DEPTH, leaf),)


def wide(k: Operands, e: Expr, column: str) -> bool:
    """Whether blocks of the second operand are wide: few rows, and elements that follow each other along the columns."""
    stored = k.m.memory.get(e.tensor) if isinstance(e, Access) else None
    few = (k.size(k.tile or "") or SOME) <= THIN
    return few and isinstance(e, Access) and not strided(e, column, stored)


def blocks(k: Operands, d: Einsum, s: Contraction, block: int) -> list[Node]:
    """The product of one task of `block` columns: its sums stay next to the core, and blocks of its operands come there.

    for k by depth { pack columns, unless they are; copy rows where they collide; for n by panel { for m by height { … } } }

    The two innermost loops may stand the other way round.
    """
    deep, column, tile = s.reduced[0], s.columns[-1], k.tile or ""
    panel, height = k.columns(d), k.shape[0]
    depth = k.choice.block_depth
    if k.way == Columns.NEAR:
        sizes = run_and_lanes(k, e) if isinstance(e := s.column_factor, Access) else {}
        depth = whole(min(depth, max(1, NEAR_BLOCK // block)), sizes.get(deep, 1))
    body: list[Node] = []
    buffers: list[Buffer] = []

    def copied(
        name: str, e: Access, inner: tuple[str, str], layout: Layout, loops: Callable[[Node], Node]
    ) -> Access:
        coded = run_and_lanes(k, e)
        others = [v for v in variables(e) if v not in inner]
        order = [*others, *inner]
        made = k._temporary(name, e, order)
        digits = tuple(map(Digit, range(len(others))))
        moved = tuple(replace(g, dimension=g.dimension + len(others)) for g in layout.digits)
        at = tuple(map(Var, order))
        buffers.append(Buffer(made, k.m.types[made].dtype, at, "L2", Layout((*digits, *moved))))
        copy = Einsum(made, at, e)
        body.append(Do(copy) if coded else loops(Do(copy, ((inner[1], "lane"),))))
        return Access(made, at)

    e = s.column_factor
    assert isinstance(e, Access)
    turned = strided(e, column, k.m.memory.get(e.tensor))

    def panels(leaf: Node) -> Node:
        if turned:
            return Loop(column, panel, (leaf,))
        return Loop(deep, RUNS, (Loop(column, panel, (Loop(deep, 1, (leaf,)),)),))

    layout = Layout((Digit(1, panel), Digit(0), Digit(1, 1, panel)))
    if k.way == Columns.NEAR:
        columns: Expr = copied(f"{d.target}_columns", e, (deep, column), layout, panels)
    else:
        columns, _ = k._column_operand(f"{d.target}_columns", d, s, e)
    rows = s.row_factor
    assert isinstance(rows, Access)
    if collide(k, rows, d, s):
        space = depth + LINE // BYTES
        layout = Layout((Digit(0), Digit(1, space), Digit(1, 1, space)))
        rows = copied(
            f"{d.target}_rows", rows, (tile, deep), layout, lambda leaf: Loop(tile, 1, (leaf,))
        )
    product = Einsum(d.target, d.indices, call("mul", rows, columns), d.reductions, (), d.span)
    leaf: Node = Do(product, ((column, "lane"), (tile, "unroll")))
    body.append(k.nested({"columns": [(column, panel)], "rows": [(tile, height)]}, leaf))
    nodes: tuple[Node, ...] = tuple(body)
    for b in reversed(buffers):
        nodes = (Alloc(b, nodes),)
    return [Loop(deep, depth, nodes)]


def streams_rows(k: Operands, d: Einsum) -> tuple[Node, ...] | None:
    """for n by WIDTH: for k by RUNS: the leaf with n on lanes, where a long reduction over k reads rows along n, such as
    a vector times a matrix; None for anything else."""
    plain = plain_variables(d)
    if len(d.reduced) != 1 or d.where or k.short(d) or not plain or plain[-1] not in k.rows:
        return None
    lane, deep = plain[-1], d.reduced[0]
    if all(lane in variables(a) for a in d.reads):
        return None  # each element counts once, to be added up as exactly as may be
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
