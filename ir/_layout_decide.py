"""Machinery of the layout algebra: a result by its structural rule, by a table where that fails, or a counter-example."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from tcc.ir._layout_digits import Unaligned, build, written_out
from tcc.ir.diagnostics import CompileError
from tcc.ir.layout import Layout
from tcc.ir.layout_table import Table, Unreadable, read_back, sizes_of


def normal(a: Layout) -> Layout:
    """The same places in the shortest text: digits merged and sorted. Needs a shape (T0272)."""
    return build(written_out(a), a.shape, a.offsets, a.bits)


def decided(name: str, rule: Callable[[], Layout], meaning: Callable[..., Layout], *layouts: Layout) -> Layout:  # fmt: skip
    """The result of `rule`; where digits do not line up, that of `meaning`, for which all sizes have to be known."""
    try:
        return rule()
    except Unaligned as error:
        reason = str(error)
    names = sizes_of(*layouts)
    if not names:
        return meaning(*layouts)
    for values in itertools.product((2, 3, 5, 4, 1, 7), repeat=len(names)):
        sizes = dict(zip(names, values))
        try:
            meaning(*(x.bind(sizes) for x in layouts))
        except CompileError as error:
            d = error.diagnostic
            if d.code != "T0271":
                continue
            where = ", ".join(f"{k} = {v}" for k, v in sizes.items())
            raise CompileError("T0271", f"{d.message}, for {where}", helps=d.helps) from None
        if len(names) > 2:
            break
    raise CompileError("T0271", f"{name}: {reason} for all sizes",
                       helps="give sizes, or split dimensions where the other layout does")  # fmt: skip


def read_table(name: str, t: Table, bits: bool = False) -> Layout:
    try:
        return normal(read_back(t, bits))
    except Unreadable as error:
        at = error.coordinate
        raise refused(name, f"the element at {coordinate(at)} belongs at {t.at(at)}, but {error.reason}") from None  # fmt: skip


def refused(name: str, fact: str, helps: str = "no digit layout has these places") -> CompileError:
    """The error that names a coordinate, or a place, at which an operation has no result."""
    return CompileError("T0271", f"{name}: {fact}", helps=helps)


def coordinate(at: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, at))})"
