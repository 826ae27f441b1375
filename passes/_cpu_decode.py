"""Products with packed operands: of few rows straight from the codes, of many through panels that are decoded once.

few rows:   for n by 64 on core { for g { part = Σ over one group of x · code;  sum += part · scale }  Y = sum }
many rows:  for n by 256 on core { for k by 256 { columns = decoded codes;  sum += rows · columns }  Y = sum }
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum, Reduction
from tcc.ir.expr import Access, Expr, Var, accesses, call, text, variables
from tcc.ir.infer import expression_dtype
from tcc.ir.layout import Digit, Layout
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node
from tcc.passes._algebra import Contraction, factors, plain_variables, product
from tcc.passes._cpu_packed import (
    PANEL,
    Narrow,
    beside,
    narrow_operand,
    packed,
    panels,
    planes,
    stored,
)
from tcc.passes._cpu_tiles import LINE, busy

if TYPE_CHECKING:
    from tcc.passes._cpu_group import GroupKernel

FEW = 8  # rows of sums that stay in registers while codes are decoded
SOME = 32  # rows for which it is cheaper to decode again than to store what is decoded, if one table is enough
CHAIN = 256  # terms that are added up one after another
BLOCK = 256  # columns of a task that decodes panels
ROWS = 128  # rows of such a task: the more, the less often the same codes are decoded


# ---- few rows


def decoding_kernel(k: GroupKernel) -> Kernel | None:
    """The kernel of a group whose products have few rows and packed second operands, and whose other members are
    element-wise along the same columns; None for any other."""
    column = _column(k)
    if column is None:
        return None
    outer = [v for v in k.rows if v != column and not _is_row(k, v)]
    body: list[Node] = []
    for d in k.members:
        if not k.m.in_memory(d.target):
            k._local(d, outer, _padded(d, outer, column))
        body += _sum(k, d, column, outer) if d.reduced else [_lanes(d, column, outer)]
    nodes: tuple[Node, ...] = tuple(body)
    for b in reversed(list(k.locals.values())):
        nodes = (Alloc(b, nodes),)
    nodes = (Loop(column, PANEL, nodes, "core"),)
    for v in reversed(outer):
        nodes = (Loop(v, 1, nodes, "core"),)
    names = [*outer, column, *k.used, *(v for d in k.members for v in (*d.free, *d.reduced))]
    return Kernel(k.name, k.m.extents(names), nodes)


def _column(k: GroupKernel) -> str | None:
    """The variable that runs along the lanes of all members."""
    sums = [d for d in k.members if d.reduced]
    plain = plain_variables(sums[0]) if sums else []
    if not plain or (column := plain[-1]) not in k.rows:
        return None
    for d in k.members:
        if column not in plain_variables(d) or k.m.types[d.target].dtype.name != "f32":
            return None
        if d.reduced and (narrow_operand(k.m, d, column) is None or not _few(k, d, column)):
            return None
    return column


def _is_row(k: GroupKernel, v: str) -> bool:
    """Whether no packed operand depends on a variable."""
    return all(
        v not in variables(*n.access.indices)
        for d in k.members for column in [plain_variables(d)[-1]]
        if d.reduced and (n := narrow_operand(k.m, d, column)) is not None
    )  # fmt: skip


def _few(k: GroupKernel, d: Einsum, column: str) -> bool:
    n = narrow_operand(k.m, d, column)
    assert n is not None
    rows = [v for v in d.free if v not in variables(*n.access.indices)]
    others = [v for v in d.free if v not in rows and v != column]
    return set(others) <= set(k.rows) and _rows_at_once(k, n, rows) is not None


def _rows_at_once(k: GroupKernel, n: Narrow, rows: list[str]) -> dict[str, int] | None:
    """How many coordinates of each row variable are summed side by side; None where codes are better decoded once."""
    sizes = [k.size(v) for v in rows]
    if None in sizes:
        return None
    known = {v: size or 1 for v, size in zip(rows, sizes, strict=True)}
    if math.prod(known.values()) <= FEW:
        return known
    t = stored(k.c.tensors[n.access.tensor].dtype)
    if len(rows) > 1 or known[rows[0]] > SOME or t.packed_bits > 4 or len(planes(t)) > 1:
        return None
    tile = max(r for r in range(1, FEW + 1) if known[rows[0]] % r == 0)
    return {rows[0]: tile} if tile > FEW // 2 else None


def _lanes(d: Einsum, column: str, outer: list[str]) -> Node:
    """An element-wise definition along the lanes, row by row."""
    node: Node = Do(d, ((column, "lane"),))
    for v in reversed([v for v in d.free if v != column and v not in outer]):
        node = Loop(v, 1, (node,))
    return node


def _padded(d: Einsum, outer: list[str], column: str) -> Layout:
    names = plain_variables(d)
    return panels(len(names), names.index(column), None, 1)


def _buffer(k: GroupKernel, name: str, value: Expr, order: list[str], column: str) -> Buffer:
    """A tile of values with whole vectors of columns."""
    made = k._temporary(name, value, order)
    layout = panels(len(order), order.index(column), None, 1)
    return Buffer(made, k.m.types[made].dtype, tuple(map(Var, order)), "L1", layout)


def _sum(k: GroupKernel, d: Einsum, column: str, outer: list[str]) -> list[Node]:
    """A sum whose factors that do not run with the codes of a word multiply sums of the others:

    Y = Σ x · code · scale   -->   for g { part = Σ x · code;  sum += part · scale };  Y = sum
    """
    n = narrow_operand(k.m, d, column)
    assert n is not None
    body = beside(k.m, packed(k.m, n, d.body), column)
    k.c = k.m.c
    rows = [v for v in d.free if v != column and v not in outer]
    parts = factors(body)
    inner = [f for f in parts if n.depth in variables(f)]
    scale = [f for f in parts if n.depth not in variables(f)]
    groups = [v for v in d.reduced if v != n.depth]
    lanes = ((column, "lane"), *((v, "unroll") for v in rows))
    points = [v for v in outer if v in d.free]
    at = [*points, *groups, *rows, column]

    part = _buffer(k, f"{d.target}_part", product(inner), at, column)
    value = Access(part.name, tuple(map(Var, at)))
    leaf: Node = Do(Einsum(part.name, value.indices, product(inner), (Reduction(n.depth, "sum"),)), lanes)  # fmt: skip
    if (k.size(n.depth) or CHAIN + 1) > CHAIN:
        leaf = Loop(n.depth, CHAIN, (leaf,))
    for v, tile in (_rows_at_once(k, n, rows) or {}).items():
        if tile < (k.size(v) or tile):
            leaf = Loop(v, tile, (leaf,))
    total: Expr = call("mul", value, product(scale)) if scale else value
    if not groups:
        done = _lanes(replace(d, body=total, reductions=()), column, outer)
        return [Alloc(part, (leaf, done))]
    sums = _buffer(k, f"{d.target}_sum", total, [*points, *rows, column], column)
    whole = Access(sums.name, tuple(map(Var, [*points, *rows, column])))
    added = Einsum(sums.name, whole.indices, total, tuple(Reduction(v, "sum") for v in groups))
    nodes: tuple[Node, ...] = (Alloc(part, (leaf, _lanes(added, column, outer))),)
    for v in reversed(groups):
        nodes = (Loop(v, 1, nodes),)
    done = _lanes(replace(d, body=whole, reductions=()), column, outer)
    return [Alloc(sums, (*nodes, done))]


# ---- many rows


def decodes(k: GroupKernel, d: Einsum, s: Contraction) -> bool:
    """Whether a product's second operand is decoded panel by panel, next to the core that uses it."""
    column = s.columns[-1]
    n = narrow_operand(k.m, d, column) if column == k.column and not s.mask else None
    if n is None or k.m.types[d.target].dtype.name != "f32":
        return False
    e = s.column_factor
    if (
        text(n.access) not in {text(a) for a in accesses(e)}
        or expression_dtype(k.c, e).name != "f32"
    ):
        return False
    return set(variables(e)) <= {*k.outer(), column, *s.reduced}


def decoding_tile(k: GroupKernel, size: int | None) -> tuple[int, int]:
    """(rows, vectors) of a register tile whose columns divide a panel."""
    lanes = k.m.lanes
    tiles = [
        (r, v) for v in (1, 2, 4) for r in range(1, k.m.registers)
        if PANEL % (v * lanes) == 0 and r * v + (v if r > 1 else 1) + 1 <= k.m.registers
    ]  # fmt: skip
    usual = k.usual if k.usual in tiles else tiles[-1]
    if size is None:
        return usual
    return max([usual, *tiles], key=lambda t: (round(busy(size, [PANEL], lanes, t), 3), t == usual))


def decoding_columns(size: int | None) -> int:
    """Columns per task: whole panels, few enough that small problems still have several tasks."""
    return BLOCK if size is None else max(PANEL, min(BLOCK, -(-size // (8 * PANEL)) * PANEL))


def decoded(k: GroupKernel, d: Einsum, s: Contraction) -> tuple[list[Node], list[Node]]:
    """What fills the first operand, and the product: blocks of the second operand come decoded into a buffer."""
    column, tile = s.columns[-1], k.tile or ""
    n = narrow_operand(k.m, replace(d, where=()), column)
    assert n is not None
    rows, fill = (s.row_factor, []) if _in_place(k, s.row_factor) else k._row_operand(d, s)
    e = beside(k.m, packed(k.m, n, s.column_factor), column)
    k.c = k.m.c
    groups = [v for v in k._depth_order(s) if v != n.depth]
    used = variables(e)
    order = [*(v for v in used if v not in (*s.reduced, column)), *groups, n.depth, column]
    order = [v for v in order if v in used]
    unit = k.shape[1] * k.m.lanes
    name = k._temporary(f"{d.target}_columns", e, order)
    outer = [i for i, v in enumerate(order) if v not in s.reduced and v != column]
    inner = [i for i, v in enumerate(order) if v in s.reduced]
    last = len(order) - 1
    layout = Layout((*map(Digit, outer), Digit(last, unit), *map(Digit, inner), Digit(last, 1, unit)))  # fmt: skip
    at = tuple(map(Var, order))
    b = Buffer(name, k.m.types[name].dtype, at, "L2", layout)
    fill_columns: Node = Do(Einsum(name, at, e), ((column, "lane"),))
    for v in reversed(groups):
        fill_columns = Loop(v, 1, (fill_columns,))
    blocks, filled = [b], [fill_columns]
    if (
        rows is s.row_factor
    ):  # neighbours in a register tile may lie such that they drive each other out
        rows, near, copy = _rows_near(
            k, d, rows, [v for v in (*groups, n.depth) if v in variables(rows)]
        )
        blocks.append(near)
        filled.append(copy)
    body = call("mul", rows, Access(name, at))
    sums = tuple(Reduction(v, d.monoid(v)) for v in (*groups, n.depth))
    leaf: Node = Do(Einsum(d.target, d.indices, body, sums, (), d.span), ((column, "lane"), (tile, "unroll")))  # fmt: skip
    leaf = Loop(column, unit, (Loop(tile, k.shape[0], (leaf,)),))
    nodes: tuple[Node, ...] = (*filled, leaf)
    for block in reversed(blocks):
        nodes = (Alloc(block, nodes),)
    (node,) = nodes
    size = k.size(n.depth)
    if size is None or size > CHAIN:
        node = Loop(n.depth, CHAIN, (node,))
    for i, v in enumerate(reversed(groups)):
        node = Loop(v, max(1, CHAIN // size) if size and not i else 1, (node,))
    return fill, [node]


def _in_place(k: GroupKernel, e: Expr) -> bool:
    """Whether rows are read as they are, always inside their tensor."""
    return (
        isinstance(e, Access)
        and k.m.in_memory(e.tensor)
        and not accesses(*e.indices)
        and not k.outside(e)
    )


def _rows_near(k: GroupKernel, d: Einsum, e: Expr, depth: list[str]) -> tuple[Expr, Buffer, Node]:
    """A block of rows next to the core, each on lines of its own; how it is read, where it lies, what fills it."""
    tile = k.tile or ""
    others = [v for v in variables(e) if v != tile and v not in depth]
    order = [*others, tile, *depth]
    name = k._temporary(f"{d.target}_rows", e, order)
    last = len(order) - 1
    space = min(k.size(depth[-1]) or CHAIN, CHAIN) + LINE // 4
    layout = Layout((*map(Digit, range(last)), Digit(last, space), Digit(last, 1, space)))
    at = tuple(map(Var, order))
    copy: Node = Do(Einsum(name, at, e), ((depth[-1], "lane"),))
    for v in (*reversed(depth[:-1]), tile):
        copy = Loop(v, 1, (copy,))
    return Access(name, at), Buffer(name, k.m.types[name].dtype, at, "L2", layout), copy
