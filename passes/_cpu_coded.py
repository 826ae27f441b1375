"""Coded tensors on a CPU: decoded block by block next to the core that uses them; where that can't be, once per call."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum, Tensor
from tcc.ir.coded_leaf import copied, is_coded_tensor, neighbours
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
    """A copy of a coded tensor; or, for one reduction that reads each of its elements once, such as a vector times a matrix,

    for n by COLUMNS on core { for k by depth { buffer W_block { W_block[k, n] = W[n, k]; the definition, n on lane } } }

    None for anything else."""
    if len(k.members) != 1:
        return None
    (d,) = k.members
    if (w := copied(d, k.m.types)) is not None and k.m.in_memory(d.target) and not k.outside(w):
        return Kernel(k.name, k.m.extents(d.free), (_decoding(d, k.m.types[w.tensor]),))
    reads = coded_reads(k.m, d)
    if len(reads) != 1 or len(d.reduced) != 1 or not k.m.in_memory(d.target):
        return None
    w, deep = reads[0], d.reduced[0]
    names = [i.name for i in w.indices if isinstance(i, Var)]
    plain = len(names) == len(w.indices) == len(set(names)) and all(
        isinstance(i, Var | Const) for i in d.indices
    )
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
    made = m.fresh(made)
    m.types[made] = replace(
        t, name=made, dtype=t.dtype.compute, fill=t.fill, constant=False, span=None
    )
    m.c = replace(m.c, tensors={**m.c.tensors, made: m.types[made]})
    m.memory[made] = Buffer(
        made, t.dtype.compute, t.shape, "memory", row_major(len(t.shape)), t.fill
    )
    names = [f"x{n}" for n in range(len(t.shape))]
    at = tuple(map(Var, names))
    copy = Einsum(made, at, Access(name, at))
    extents = tuple(zip(names, t.shape, strict=True))
    m.kernels.append(Kernel(m.fresh(f"decode_{name}"), extents, (_decoding(copy, t),)))
    return made


def _decoding(d: Einsum, t: Tensor) -> Node:
    """for n by lanes on core { T[n, k] = W[n, k] }, whole rows of runs at once."""
    assert isinstance(d.body, Access) and isinstance(t.dtype.form, Coded)
    sizes = neighbours(d.body, t)
    run = d.body.indices[t.axes.index(t.dtype.form.run[0])]
    body: Node = Do(d)
    for v in reversed(d.body.indices):
        if isinstance(v, Var) and v is not run:
            body = Loop(v.name, sizes.get(v.name, 1), (body,), "core")
    return body


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
