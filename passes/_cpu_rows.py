"""Which rows the products of a group share, and how their operands' rows lie in a cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, accesses, variables
from tcc.ir.index import poly
from tcc.passes._algebra import (
    Contraction,
    contraction,
    elements,
    row_variables,
    size_estimate,
    tile_variable,
)
from tcc.passes._cpu_tiles import LINE, WAYS, busy, collisions, register_tile

if TYPE_CHECKING:
    from tcc.passes._cpu_operands import Operands

BYTES = 4  # of an element, as a rule


def shared_rows(k: Operands) -> str | None:
    """The rows of the products: rather such that no second operand is made of overlapping windows, that whole register tiles
    fit, and that second operands are packed ahead."""
    usual = tile_variable(k.members)
    best, chosen = (False, 0.0, False), usual
    for v in [usual, *reversed(row_variables(k.members))]:
        found = [contraction(d, v) for d in k.members if contraction(d) is not None]
        splits = [s for s in found if s is not None]
        if v is None or len(splits) < len(found):
            continue
        whole = not any(_windows(k, s) for s in splits)
        score = (whole, round(_busy(k, v, splits), 1), all(_ahead(k, s) for s in splits))
        if score > best:
            best, chosen = score, v
    return chosen


def _windows(k: Operands, s: Contraction) -> bool:
    """Whether the second operand, with an element for each point, is much larger than what it is made of."""
    read = sum(elements(k.c, a.tensor) for a in accesses(s.column_factor))
    names = variables(s.column_factor)
    return math.prod(size_estimate(k.c, k.c.extent(v)) for v in names) > 2 * read


def _ahead(k: Operands, s: Contraction) -> bool:
    """Whether the second operand is made of constants only."""
    constant = {t.name for t in k.c.inputs if t.constant}
    return all(a.tensor in constant for a in accesses(s.column_factor))


def _busy(k: Operands, tile: str, splits: list[Contraction]) -> float:
    """About which part of its peak the arithmetic reaches; 1 where extents are unknown."""
    rows, columns = k.size(tile), [k.size(s.columns[-1]) for s in splits]
    known = [n for n in columns if n is not None]
    if rows is None or len(known) < len(columns):
        return 1.0
    m = k.m
    shape = register_tile(rows, known, m.lanes, m.registers, k.usual, False, m.speeds, m.joined)
    return busy(rows, known, k.m.lanes, shape)


def spaced(k: Operands, v: str, unit: int) -> int | None:
    """Elements from row to row of a buffer whose rows run along `v`: a multiple of the unit, such that the rows of a
    register tile do not fall on the same lines of a small cache. None where the extent is unknown."""
    size = k.size(v)
    if size is None:
        return None
    space = -(-size // unit) * unit
    while collisions(k.shape[0], space * BYTES) > 1 + k.shape[0] // 8:
        space += math.lcm(unit, LINE // BYTES) if space * BYTES % LINE == 0 else unit
    return space


def collide(k: Operands, a: Access, d: Einsum, s: Contraction) -> bool:
    """Whether rows read in place would drive each other out of the smallest cache, and a copy of them pays."""
    columns, rows = k.size(s.columns[-1]), k.size(k.tile or "") or k.shape[0]
    stride = _stride(k, a, k.tile or "")
    if stride is None or columns is None or len(s.reduced) > 1:
        return False
    rows = min(k.shape[0], rows)
    return columns >= 8 * k.columns(d) and collisions(rows, stride * BYTES) > WAYS


def deep(k: Operands, a: Access, d: Einsum, s: Contraction) -> bool:
    """Whether what one register tile reads in place of rows that lie side by side, a line for each term of its sums, would
    drive each other out of the smallest cache, and a copy of them pays."""
    columns, depth = k.size(s.columns[-1]), k.size(s.reduced[-1])
    if len(s.reduced) > 1 or columns is None or depth is None or columns < 2 * k.columns(d):
        return False
    stride = _stride(k, a, s.reduced[-1])
    return (
        stride is not None
        and _stride(k, a, k.tile or "") == 1
        and collisions(min(depth, k.choice.block_depth), stride * BYTES) > WAYS
    )


def _stride(k: Operands, a: Access, v: str) -> int | None:
    """Elements of a row-major tensor from one coordinate of a variable to the next; None where that is unknown."""
    shape = [poly(k.c.resolved(n)).constant for n in k.c.tensors[a.tensor].shape]
    steps = [poly(i).coefficient(v) for i in a.indices]
    if None in shape or any(step is None or step.constant is None for step in steps):
        return None
    return sum(
        (step.constant or 0) * math.prod(x or 1 for x in shape[n + 1 :])
        for n, step in enumerate(steps) if step is not None
    )  # fmt: skip
