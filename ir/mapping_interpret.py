"""The meaning of mappings: a NumPy interpreter that runs the loops in order and counts accesses per memory level.

A `do` reads each distinct element of its operands once from the level where it lies, and writes (or reads and writes,
when it combines) each distinct element of its target once. Levels named `memory` hold inputs, outputs and memory buffers.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcc.ir.cascade import Einsum, Extern
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Expr, Var, text, variables
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import ExternCall, Value, _Interpreter, bind
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Mapping, Node, signature
from tcc.ir.ops import MONOIDS, OPS, identity_of
from tcc.ir.storage import as_stored, load, positions

Array = Any
Interval = tuple[int, int]


@dataclass
class Counts:
    """Element reads and writes per (level, tensor), and scalar operations per operator."""

    reads: dict[tuple[str, str], int] = field(default_factory=dict)
    writes: dict[tuple[str, str], int] = field(default_factory=dict)
    launches: int = 0
    points: dict[str, int] = field(
        default_factory=dict
    )  # evaluated points of the iteration space, per target

    def add(self, table: dict[Any, int], key: Any, amount: int) -> None:
        table[key] = table.get(key, 0) + amount


def interpret_mapping(
    m: Mapping,
    inputs: MappingABC[str, Array],
    sizes: MappingABC[str, int] | None = None,
    *,
    extern: ExternCall | None = None,
) -> tuple[dict[str, Array], Counts]:
    """The outputs of `m` by name, and how often each level was accessed."""
    with np.errstate(all="ignore"):
        runner = _Runner(m, bind(signature(m), inputs, sizes), extern)
        return runner.outputs(inputs), runner.counts


class _Runner(_Interpreter):
    """Leaves are evaluated by the cascade interpreter, over grids that are the current intervals."""

    def __init__(self, m: Mapping, sizes: dict[str, int], extern: ExternCall | None) -> None:
        super().__init__(signature(m), sizes, extern, False)
        self.m, self.counts = m, Counts()
        self.level = {t.name: "memory" for t in (*m.inputs, *m.outputs)} | {
            b.name: b.level for b in m.memory
        }
        self.window: dict[str, list[Interval]] = {}
        self.intervals: dict[str, Interval] = {}
        self.whole: dict[str, Interval] = {}

    def outputs(self, inputs: MappingABC[str, Array]) -> dict[str, Array]:
        """The outputs by name, after all kernels have run."""
        for t in self.m.inputs:
            self.values[t.name] = Value(load(t, inputs[t.name]))
        for t in self.m.outputs:
            if t.name not in self.values:
                self._allocate(t.name, t.shape)
        for b in self.m.memory:
            self._allocate(b.name, b.dims)
        for k in self.m.kernels:
            if isinstance(k, Extern):
                self.step(k)
            else:
                self._kernel(k)
        return {t.name: t.dtype.store(self.values[t.name].data, t.axes) for t in self.m.outputs}

    def _allocate(self, name: str, shape: tuple[Expr, ...]) -> None:
        """Undefined content: NaN, or the largest integer, so that a read before a write shows."""
        dtype = self.c.tensors[name].dtype
        extents = tuple(evaluate_size(s, self.sizes) for s in shape)
        poison = (
            np.nan if dtype.is_float else np.iinfo(dtype.numpy).max if dtype.is_integer else True
        )
        self.values[name] = Value(np.full(extents, poison, dtype.working))

    def _kernel(self, k: Kernel) -> None:
        self.counts.launches += 1
        self.intervals = {v: (0, evaluate_size(e, self.sizes)) for v, e in k.variables}
        self.whole = dict(self.intervals)
        for n in k.body:
            self._node(n)

    def _node(self, n: Node) -> None:
        if isinstance(n, Do):
            self._leaf(n)
        elif isinstance(n, Alloc):
            self._alloc(n.buffer)
            for child in n.body:
                self._node(child)
            self.window.pop(n.buffer.name)
        else:
            self._loop(n)

    def _alloc(self, b: Buffer) -> None:
        self._allocate(b.name, self.c.tensors[b.name].shape)
        self.level[b.name] = b.level
        self.window[b.name] = [
            self.intervals[d.name] if isinstance(d, Var) else (0, evaluate_size(d, self.sizes))
            for d in b.dims
        ]

    def _loop(self, n: Loop) -> None:
        low, high = self.intervals[n.var]
        stopped = False
        for at in range(low, high, n.step):
            self.intervals[n.var] = (at, min(at + n.step, high))
            if n.when is not None and not self._holds(n.when):
                continue
            for child in n.hold if stopped else n.body:
                self._node(child)
            if n.until is not None and not stopped:
                self.grid = {n.var: np.asarray(at)}
                stopped = bool(np.all(self.evaluate(n.until, []).data))
        self.intervals[n.var] = (low, high)

    def _holds(self, when: Expr) -> bool:
        """A condition on the ends of the current intervals."""
        self.grid = {}
        for v, (low, high) in self.intervals.items():
            self.grid |= {f"{v}.low": np.asarray(low), f"{v}.high": np.asarray(high)}
        return bool(np.all(self.evaluate(when, []).data))

    def _leaf(self, n: Do) -> None:
        e = n.einsum
        free, reduced = e.free, e.reduced
        order = [*free, *reduced]
        self.grid = {}
        for i, v in enumerate(order):
            shape = [1] * len(order)
            shape[i] = -1
            self.grid[v] = np.arange(*self.intervals[v]).reshape(shape)
        full = tuple(self.grid[v].size for v in order)
        if 0 in full[: len(free)]:
            return
        self.counts.add(self.counts.points, e.target, int(np.prod(full)))
        body = self.evaluate(e.body, order).data
        inner: list[Array] = []
        outer: list[Array] = []
        for p in e.where:
            (inner if set(variables(p)) & set(reduced) else outer).append(
                self.evaluate(p, order).data
            )
        data = np.broadcast_to(body, full)
        target = self.c.tensors[e.target]
        dtype = target.dtype.working
        for i in reversed(range(len(reduced))):
            m, axis = MONOIDS[e.monoid(reduced[i])], (len(free) + i,)
            if m.result != "bool":
                data = data.astype(dtype) if data.dtype == bool else data
            if i == len(reduced) - 1:
                for p in inner:
                    data = np.where(np.broadcast_to(p, full), data, identity_of(m, data.dtype))
            data = m.fold(data, axis=axis) if data.shape[-1] else np.full(
                data.shape[:-1], identity_of(m, data.dtype))  # fmt: skip
        self._store(e, np.asarray(data), outer, order, full[: len(free)], n.update)
        self._count_reads(e, order)

    def _store(
        self, e: Einsum, data: Array, outer: list[Array], order: list[str], shape: tuple[int, ...],
        update: bool,
    ) -> None:  # fmt: skip
        out = self.values[e.target].data
        at = []
        for i in e.indices:
            v = np.asarray(self.evaluate(i, order).data)
            at.append(np.broadcast_to(v.reshape(v.shape[: len(shape)]), shape))
        where = tuple(at)
        self._inside(e.target, where, e)
        first = not update and all(self.intervals[v][0] == self.whole[v][0] for v in e.reduced)
        new = np.broadcast_to(data, shape)
        stored = self.c.tensors[e.target].dtype
        if not stored.native:
            new = as_stored(new, None, stored, positions(where, out.shape))[0]
        new = new.astype(out.dtype)
        if not first:
            m = MONOIDS[e.monoid(e.reduced[0])]
            new = np.asarray(OPS[m.combine].evaluate(out[where], new)).astype(out.dtype)
        for p in outer:
            held = np.broadcast_to(np.asarray(p).reshape(np.shape(p)[: len(shape)]), shape)
            other = out[where] if update else np.asarray(self.c.tensors[e.target].fill, out.dtype)
            new = np.where(held, new, other)
        out[where] = new
        touched = _distinct(where, shape)
        key = (self.level[e.target], e.target)
        self.counts.add(self.counts.writes, key, touched)
        if not first:
            self.counts.add(self.counts.reads, key, touched)

    def _inside(self, name: str, at: tuple[Array, ...], e: Einsum) -> None:
        for i, (low, high) in enumerate(self.window.get(name, [])):
            if at[i].size and (at[i].min() < low or at[i].max() >= high):
                raise CompileError("T0208", f"`{text(e.body)}` touches `{name}` outside the window [{low}, {high}) of its "
                                   f"dimension {i}", e.span, helps="allocate the buffer outside that loop")  # fmt: skip

    def _count_reads(self, e: Einsum, order: list[str]) -> None:
        seen: dict[str, list[tuple[Array, ...]]] = {}
        for a in e.reads:
            shape = self.values[a.tensor].data.shape
            at = [np.asarray(self.evaluate(i, order).data) for i in a.indices]
            at = list(np.broadcast_arrays(*at)) if at else []
            ok = np.ones(at[0].shape, bool) if at else np.ones((), bool)
            for i, n in zip(at, shape, strict=True):
                ok = ok & (i >= 0) & (i < n)
            picked = tuple(i[ok] for i in at)
            self._inside(a.tensor, picked, e)
            seen.setdefault(a.tensor, []).append(picked)
        for name, groups in seen.items():
            key = (self.level[name], name)
            if not groups[0]:
                self.counts.add(self.counts.reads, key, 1)
                continue
            joined = tuple(np.concatenate([g[d] for g in groups]) for d in range(len(groups[0])))
            self.counts.add(self.counts.reads, key, _distinct(joined, self.values[name].data.shape))


def _distinct(at: tuple[Array, ...], shape: tuple[int, ...]) -> int:
    """How many different coordinates occur."""
    if not at:
        return 1
    flat = np.zeros(at[0].shape, np.int64)
    for i in at:
        flat = flat * (int(i.max(initial=0)) + 1) + i
    return int(np.unique(flat).size)
