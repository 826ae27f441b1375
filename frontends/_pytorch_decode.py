"""The operator `tcc::decode`: a scaled tensor from its parts, as the arithmetic that its type means.

Its operands keep the types of the parts (`u4` codes in uint8, scales of f16, …), which PyTorch cannot say, so that
whatever reads the tensor decodes it where it is read.
"""

from __future__ import annotations

from typing import Any

from tcc.frontends._pytorch_builder import Builder, Lowering, Value
from tcc.ir.dtype import DType
from tcc.ir.dtype_text import dtype
from tcc.ir.expr import Const
from tcc.ir.scaled_parts import parts_of, value_at

DECODE = "tcc.decode"


def part_type(node: Any) -> DType | None:
    """The element type of a graph's input that only `tcc::decode` reads, in one role."""
    found: set[DType] = set()
    for user in node.users:
        if str(user.target).rpartition(".")[0] != DECODE:
            return None
        codes, parts, kind, axes = user.args
        names = tuple(axes.split())
        listed = parts_of(dtype(kind), names, (Const(1),) * len(names))
        found |= {p.dtype for p, n in zip(listed, (codes, *parts)) if n is node}
    return found.pop() if len(found) == 1 else None


def _decode(b: Builder, codes: Value, parts: Value, kind: str, axes: str) -> Value:
    t, names = dtype(kind), tuple(axes.split())
    out = b.out()
    operands = zip(parts_of(t, names, out.shape), (codes, *parts), strict=True)
    index = b.scope().index(out.shape)
    value = value_at(t, names, {p.path: o.name for p, o in operands}, tuple(index))
    return b.define(out, index, value)


LOWERINGS: dict[str, Lowering] = {DECODE: _decode}

__all__ = ["LOWERINGS", "part_type"]
