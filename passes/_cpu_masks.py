"""Products of which predicates leave out terms: tiles with all terms, with some, and without any, which are skipped."""

from __future__ import annotations

from collections.abc import Sequence

from tcc.ir.cascade import Cascade
from tcc.ir.expr import Const, Expr, variables
from tcc.ir.mapping import Loop, Node
from tcc.passes._polyhedra import tile_conditions

Ends = tuple[Expr, Expr]  # conditions on ends of intervals: every point takes part; some do


def ends(c: Cascade, mask: Sequence[Expr]) -> Ends | None:
    """What the ends of a tile say about the terms in it; None where the predicates are not affine, or there are none."""
    return tile_conditions(mask, {v: c.extent(v) for v in variables(*mask)}) if mask else None


def masked_tiles(
    var: str, step: int, found: Ends, full: tuple[Node, ...], part: tuple[Node, ...]
) -> tuple[Node, ...]:
    """for v by step when every term takes part { full }; for v by step when some do { part }"""
    every, some = found
    return (*_tiles(var, step, every, full), *_tiles(var, step, some, part))


def _tiles(var: str, step: int, when: Expr, body: tuple[Node, ...]) -> tuple[Node, ...]:
    if not isinstance(when, Const):
        return (Loop(var, step, body, when=when),)
    return (Loop(var, step, body),) if when.value else ()
