"""Constant operands of few bits are kept as codes without gaps, laid out for the lanes that decode them.

    C: u4[N, K]  -->  memory C_packed: u4[N, K] @memory packed layout [0/64, 1/8, 0%64, 1%8] constant

A panel holds the codes of `PANEL` columns. Word by word, neighbours belong to neighbouring columns, so that a vector of
words has one column per lane, and the 32 / W codes of a word to neighbours along the depth: all that a lane needs is to
shift and mask. Widths that are no power of two are stored as planes of 4, 2 and 1 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum, Tensor
from tcc.ir.dtype import F32, DType, Scaled
from tcc.ir.dtype_codes import fits_bf16, shifts_to_f32
from tcc.ir.dtype_text import dtype
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Var,
    accesses,
    call,
    text,
    transform,
    variables,
)
from tcc.ir.index import poly, within
from tcc.ir.layout import Digit, Layout
from tcc.ir.mapping import Buffer, Do, Kernel, Loop, Node
from tcc.passes._algebra import TYPICAL, elements

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper

PANEL = 64  # columns that are decoded side by side
WORD = 32  # bits
EXACT = 2**16  # whole numbers below this are far from where f32 rounds them
NARROW = 8  # bits of an element that is stored in fewer than it is computed in


@dataclass(frozen=True)
class Narrow:
    """An operand of a product that is kept packed: lanes run along `column`, the codes of a word along `depth`."""

    access: Access
    column: int  # dimensions
    along: int
    depth: str  # the variable


def narrow_operand(m: Mapper, d: Einsum, column: str) -> Narrow | None:
    """The largest constant operand of few bits that a sum reads along `column`; None where there is none that a kernel
    can decode: each lane needs a column of its own, and the depth has to start at a whole word."""
    if d.where or not d.reduced or any(d.monoid(v) != "sum" for v in d.reduced):
        return None
    found = [x for a in d.reads if (x := _narrow(m, d, a, column)) is not None]
    if not found:
        return None
    best = max(found, key=lambda x: elements(m.c, x.access.tensor))
    reads = {text(a) for a in d.reads if a.tensor == best.access.tensor}
    return best if len(reads) == 1 else None


def _narrow(m: Mapper, d: Einsum, a: Access, column: str) -> Narrow | None:
    t = m.c.tensors[a.tensor]
    if not any(x.name == a.tensor and x.constant for x in m.c.inputs) or not storable(t.dtype):
        return None
    if accesses(*a.indices) or not _inside(m, a):
        return None
    columns = [n for n, i in enumerate(a.indices) if column in variables(i)]
    if len(columns) != 1 or not isinstance(a.indices[columns[0]], Var):
        return None
    sizes = {v: poly(m.c.resolved(m.c.extent(v))).constant for v in reversed(d.reduced)}
    whole = max(WORD // w for w, _ in planes(stored(t.dtype)))
    for v in sorted(sizes, key=lambda v: -(sizes[v] or TYPICAL)):
        if (sizes[v] or TYPICAL) < whole // 2:
            break  # most of a word would be empty
        at = [n for n, i in enumerate(a.indices) if v in variables(i)]
        if len(at) != 1 or at == columns:
            continue
        along = poly(m.c.resolved(a.indices[at[0]]))
        step, rest = along.coefficient(v), along.without(v)
        if step is None or step.constant != 1 or rest.mentions([v]):
            continue
        if not any(factor % whole for factor in rest.terms.values()):
            return Narrow(a, columns[0], at[0], v)
    return None


def _inside(m: Mapper, a: Access) -> bool:
    extents = {v: m.c.resolved(m.c.extent(v)) for v in variables(a)}
    shape = [m.c.resolved(n) for n in m.c.tensors[a.tensor].shape]
    return all(within(i, n, extents) for i, n in zip(a.indices, shape, strict=True))


def storable(t: DType) -> bool:
    """Whether elements of a type are kept packed, and decoded where they are used."""
    if isinstance(t.form, Scaled) or t.rounding == "stochastic":
        return False
    if t.name in ("f16", "bf16"):
        return True
    return t.bits <= NARROW and (not t.is_float or t.compute == F32)


def stored(t: DType) -> DType:
    """The type whose codes are kept: the tensor's own, or bf16 where this has all its values and is decoded faster."""
    costly = t.is_float and t.bits > 4 and t.name not in ("f16", "bf16") and not shifts_to_f32(t)
    return dtype("bf16") if costly and fits_bf16(t) else t


def planes(t: DType) -> list[tuple[int, int]]:
    """(bits, lowest bit) of the parts that an element is stored in: integers of 3, 5, 6 and 7 bits are split."""
    if not t.is_integer or t.bits == t.packed_bits:
        return [(t.packed_bits, 0)]
    out, low = [], 0
    for bits in (4, 2, 1):
        if t.bits & bits:
            out.append((bits, low))
            low += bits
    return out


def packed(m: Mapper, x: Narrow, e: Expr) -> Expr:
    """An expression that reads an operand, reading its packed copy: made once, by kernels before this one."""
    t = m.c.tensors[x.access.tensor]
    kept = stored(t.dtype)
    parts: list[tuple[Access, int]] = []
    for bits, low in planes(kept):
        parts.append((Access(_plane(m, x, t, kept, bits, low), x.access.indices), low))

    values: list[Expr] = [Cast(F32, a) for a, _ in parts]
    whole, real = _joined([a for a, _ in parts], parts, int), _joined(values, parts, float)

    def rule(n: Expr) -> Expr:
        if isinstance(n, Access) and text(n) == text(x.access):
            return whole
        if isinstance(n, Cast) and n.dtype == F32 and text(n.arg) == text(whole):
            return real
        if isinstance(n, Call) and _shifts(n) and text(n.args[0]) == text(real):
            # whole numbers, exact in any order: what is subtracted goes into the table of one part
            return _joined([call(n.op, values[0], n.args[1]), *values[1:]], parts, float)
        return n

    return transform(e, rule)


def _shifts(e: Call) -> bool:
    """Whether a small whole number is added or subtracted."""
    by = e.args[-1].value if isinstance(e.args[-1], Const) else 0.5
    moves = len(e.args) == 2 and e.spec.affine and e.spec.identity == 0
    return moves and float(by).is_integer() and abs(by) < EXACT


def _joined(values: list[Expr], parts: list[tuple[Access, int]], number: type) -> Expr:
    """low + 16 · high"""
    out = values[0]
    for value, (_, low) in zip(values[1:], parts[1:], strict=True):
        out = call("add", out, call("mul", value, Const(number(2**low))))
    return out


def _plane(m: Mapper, x: Narrow, t: Tensor, kept: DType, bits: int, low: int) -> str:
    """The name of the packed copy of one plane of a tensor."""
    key = (t.name, x.column, x.along, low)
    if key in m.copies:
        return m.copies[key]
    element, split = kept, bits < kept.packed_bits
    top = low + bits == kept.bits
    if split:
        element = dtype(f"{kept.kind if top else 'u'}{bits}")
    name = m.fresh(f"{t.name}_{low}_packed" if split else f"{t.name}_packed")
    names = [f"y{n}" for n in range(len(t.shape))]
    value: Expr = Access(t.name, tuple(map(Var, names)))
    if low:
        value = call("floordiv", value, Const(2**low))
    if split and not top:
        value = call("bit_and", value, Const(2**bits - 1))
    layout = panels(len(t.shape), x.column, x.along, WORD // bits)
    _copy(m, name, replace(t, dtype=element), layout, value, names, x.column, packed=True)
    m.copies[key] = name
    return name


def panels(rank: int, column: int, along: int | None, per: int) -> Layout:
    """[…, column/64, along/per, column%64, along%per]; without `along`, panels of whole values."""
    others = [Digit(n) for n in range(rank) if n not in (column, along)]
    if along is None:
        return Layout((*others, Digit(column, PANEL), Digit(column, 1, PANEL)))
    return Layout((*others, Digit(column, PANEL), Digit(along, per), Digit(column, 1, PANEL),
                   Digit(along, 1, per)))  # fmt: skip


def beside(m: Mapper, e: Expr, column: str) -> Expr:
    """An expression whose other constant operands, scales for instance, are laid out along the column's lanes too."""
    constant = {x.name for x in m.c.inputs if x.constant}

    def rule(n: Expr) -> Expr:
        if not isinstance(n, Access) or n.tensor not in constant or column not in variables(n):
            return n
        at = [i for i, index in enumerate(n.indices) if column in variables(index)]
        if len(at) != 1 or not isinstance(n.indices[at[0]], Var) or accesses(*n.indices):
            return n
        t = m.c.tensors[n.tensor]
        if (t.name, at[0], None, 0) not in m.copies and _inside(m, n):
            name = m.copies[t.name, at[0], None, 0] = m.fresh(f"{t.name}_panels")
            names = [f"y{i}" for i in range(len(t.shape))]
            layout = panels(len(t.shape), at[0], None, 1)
            value = Access(t.name, tuple(map(Var, names)))
            _copy(m, name, t, layout, value, names, at[0], packed=False)
        found = m.copies.get((t.name, at[0], None, 0))
        return n if found is None else replace(n, tensor=found)

    return transform(e, rule)


def _copy(m: Mapper, name: str, t: Tensor, layout: Layout, value: Expr, names: list[str], column: int,
          *, packed: bool) -> None:  # fmt: skip
    """A constant buffer, and the kernel that fills it panel by panel."""
    made = replace(t, name=name, constant=False, span=None)
    m.types[name] = made
    m.c = replace(m.c, tensors={**m.c.tensors, name: made})
    m.memory[name] = Buffer(name, t.dtype, t.shape, "memory", layout, 0, True, packed=packed)
    d = Einsum(name, tuple(map(Var, names)), value)
    body: tuple[Node, ...] = (Do(d, ((names[column], "lane"),)),)
    for n in range(len(names)):
        if not packed and n != column:
            body = (Loop(names[n], 1, body),)
    body = (Loop(names[column], PANEL, body, "core"),)
    extents = tuple(zip(names, t.shape, strict=True))
    m.kernels.append(Kernel(m.fresh(f"pack_{name}"), extents, body, True))
