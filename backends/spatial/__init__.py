"""Spatial arrays: what a mapping does on a 2-D array with a row beside it, and what it costs.

`build(mapping, target, sizes)` counts accesses, cycles and energy in closed form, without running
anything. The counts equal those of `tcc.ir.mapping_interpret`. Leaves run one after another: work
that could overlap is not overlapped yet.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcc.backends.spatial.report import Report
    from tcc.ir.mapping import Mapping
    from tcc.ir.target import Target


def build(mapping: Mapping, target: Target, sizes: MappingABC[str, int] | None = None) -> Report:
    """The dataflow, access counts, cycles and energy of `mapping` for ranks of the given sizes."""
    from tcc.backends.spatial.model import build_report

    return build_report(mapping, target, sizes or {})


__all__ = ["build"]
