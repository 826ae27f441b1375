"""Coded tensors on a CPU: decoded block by block next to the core that uses them; where that can't be, once per call."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.coded_leaf import is_coded_tensor, neighbours
from tcc.ir.dtype import Coded
from tcc.ir.expr import Access, Const, Expr, Var, transform
from tcc.ir.layout import row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node

if TYPE_CHECKING:
    from tcc.passes._cpu_operands import Operands
    from tcc.passes._map_cpu import Mapper

COLUMNS = 64  # results of a block
ELEMENTS = 16384  # of a decoded block


def coded_reads(m: Mapper, d: Einsum) -> list[Access]:
    """What a definition reads of coded tensors."""
    return [a for a in d.reads if is_coded_tensor(m.types, a.tensor)]


def whole(n: int, of: int) -> int:
    """The least multiple of `of` that is not less than n."""
    return -(-n // of) * of


def run_and_lanes(k: Operands, e: Access) -> dict[str, int]:
    """By variable of a read, of how many neighbours its tiles are multiples; nothing where the tensor is not coded."""
    t = k.c.tensors[e.tensor]
    return neighbours(e, t) if isinstance(t.dtype.form, Coded) else {}


def decoding_rows(k: Operands) -> Kernel | None:
    """for n by COLUMNS on core { buffer W_block; for k by depth { decode; the definition, n on lane } }, for one reduction
    that reads each element of a coded tensor once, such as a vector times a matrix; None for anything else."""
    if len(k.members) != 1:
        return None
    (d,) = k.members
    reads = coded_reads(k.m, d)
    if len(reads) != 1 or len(d.reduced) != 1 or not k.m.in_memory(d.target):
        return None
    w, deep = reads[0], d.reduced[0]
    names = [i.name for i in w.indices if isinstance(i, Var)]
    plain = len(names) == len(w.indices) == len(set(names)) and all(isinstance(i, Var | Const) for i in d.indices)
    if not plain or set(names) != {*d.free, deep} or k.outside(w) or not d.free:
        return None
    sizes = run_and_lanes(k, w)
    lane = next((v for v in sizes if v != deep), d.free[-1])
    if lane == deep or deep not in sizes:
        return None
    width = whole(COLUMNS, sizes.get(lane, 1))
    depth = whole(max(1, ELEMENTS // width), sizes[deep])
    others = [v for v in d.free if v != lane]
    order = [*others, deep, lane]
    at = tuple(map(Var, order))
    name = k._temporary(f"{w.tensor}_block", w, order)
    buffer = Buffer(name, k.m.types[name].dtype, at, "L2", row_major(len(order)))

    def rule(n: Expr) -> Expr:
        return Access(name, at) if isinstance(n, Access) and n.tensor == w.tensor else n

    decoded = Do(Einsum(name, at, w))
    used = replace(
        d, body=transform(d.body, rule), where=tuple(transform(p, rule) for p in d.where)
    )
    body: Node = Alloc(buffer, (decoded, Do(used, ((lane, "lane"),))))
    body = Loop(lane, width, (Loop(deep, depth, (body,)),), "core")
    for v in reversed(others):
        body = Loop(v, 1, (body,), "core")
    return Kernel(k.name, k.m.extents([*d.free, *d.reduced]), (body,))


def values_of(m: Mapper, name: str) -> str:
    """The name of a tensor in memory that a kernel of its own fills with the values of a coded one, at every call."""
    made = f"{name}_values"
    if made in m.memory:
        return made
    t = m.types[name]
    assert isinstance(t.dtype.form, Coded)
    made = m.fresh(made)
    m.types[made] = replace(t, name=made, dtype=t.dtype.compute, fill=t.fill, constant=False, span=None)
    m.c = replace(m.c, tensors={**m.c.tensors, made: m.types[made]})
    m.memory[made] = Buffer(made, t.dtype.compute, t.shape, "memory", row_major(len(t.shape)), t.fill)
    names = [f"x{n}" for n in range(len(t.shape))]
    at = tuple(map(Var, names))
    copy = Einsum(made, at, Access(name, at))
    body: Node = Do(copy)
    sizes = neighbours(Access(name, at), t)
    run = names[t.axes.index(t.dtype.form.run[0])]
    for v in reversed(names):
        if v != run:
            body = Loop(v, sizes.get(v, 1), (body,), "core")
    kernel = Kernel(m.fresh(f"decode_{name}"), tuple(zip(names, t.shape, strict=True)), (body,))
    m.kernels.append(kernel)
    return made


def from_values(m: Mapper, d: Einsum) -> Einsum:
    """The definition with reads of decoded tensors in memory for those of coded ones."""
    names = {a.tensor: values_of(m, a.tensor) for a in coded_reads(m, d)}
    if not names:
        return d

    def rule(n: Expr) -> Expr:
        if isinstance(n, Access) and n.tensor in names:
            return Access(names[n.tensor], n.indices, n.span)
        return n

    return replace(d, body=transform(d.body, rule), where=tuple(transform(p, rule) for p in d.where),
                   indices=tuple(transform(i, rule) for i in d.indices))  # fmt: skip
