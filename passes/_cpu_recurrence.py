"""Recurrences on a CPU: rows that do not depend on each other around the steps, on all cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum, Recurrence, Stop
from tcc.ir.expr import Access, Const, Expr, Var, call, variables
from tcc.ir.mapping import Do, Kernel, Loop, Node
from tcc.passes._cpu_vectors import vector_nodes

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper

LANES = 256  # rows of a task whose rows are lanes


def recurrence_kernel(m: Mapper, name: str, r: Recurrence) -> Kernel:
    """for each row: for t: every step definition over its other variables. Rows that follow each other in memory are lanes:
    for a block of them: for t."""
    rows = _rows(r) if r.stop is None else []
    lane = next((v for v in rows if all(_last(d) == v for d in r.steps)), None)
    fixed = [v for v in rows if v != lane]
    body: list[Node] = []
    hold: list[Do] = []
    used: list[str] = [*rows, r.var]
    for d in r.steps:
        if len(m.c.defining(d.target)) == 1:
            t = m.c.tensors[d.target]
            m.clear(d.target, t.shape, t.fill)
        used += [v for v in (*d.free, *d.reduced) if v != r.var]
        body += vector_nodes([d], [r.var, *fixed], m.memory)
        if r.stop is not None:
            back = tuple(
                call("sub", i, Const(1)) if r.var in variables(i) else i for i in d.indices
            )
            hold.append(Do(Einsum(d.target, d.indices, Access(d.target, back)), ()))
    loop = Loop(r.var, 1, tuple(body), None, _condition(r.stop), tuple(hold))
    if lane is not None:
        loop = Loop(lane, LANES, (loop,), "core")
    for v in reversed(fixed):
        loop = Loop(v, 1, (loop,), "core")
    return Kernel(name, m.extents(used), (loop,))


def _rows(r: Recurrence) -> list[str]:
    """Variables that every step has, and at which it reads what the steps make where it writes it."""
    place = {
        d.target: {i.name: n for n, i in enumerate(d.indices) if isinstance(i, Var)}
        for d in r.steps
    }
    found = [v for v in r.steps[0].free if v != r.var]

    def kept(v: str, a: Access) -> bool:
        n = place[a.tensor].get(v)
        if n is None:
            return False
        i = a.indices[n]
        others = [x for k, x in enumerate(a.indices) if k != n]
        return isinstance(i, Var) and i.name == v and v not in variables(*others)

    return [
        v
        for v in found
        if all(v in place[d.target] for d in r.steps)
        and all(kept(v, a) for d in r.steps for a in d.reads if a.tensor in place)
    ]


def _last(d: Einsum) -> str | None:
    i = d.indices[-1] if d.indices else None
    return i.name if isinstance(i, Var) else None


def _condition(stop: Stop | None) -> Expr | None:
    return None if stop is None else stop.condition
