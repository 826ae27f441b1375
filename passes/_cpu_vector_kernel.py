"""Kernels without products: loops over rows, vector loops inside them."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace

from tcc.ir.cascade import Einsum
from tcc.ir.expr import (
    Access,
    Expr,
    text,
    transform,
    variables,
)
from tcc.ir.index import within
from tcc.ir.mapping import Alloc, Do, Kernel, Loop
from tcc.passes._algebra import (
    TYPICAL,
    elements,
    plain_variables,
    renamed_tensor,
    size_estimate,
)
from tcc.passes._cpu_coded import decoding_rows
from tcc.passes._cpu_columns import column_kernel
from tcc.passes._cpu_operands import Operands
from tcc.passes._cpu_place import streams_rows
from tcc.passes._cpu_result import in_result
from tcc.passes._cpu_sums import in_blocks
from tcc.passes._cpu_vectors import across, column_of, lane_variable, strided
from tcc.passes._cpu_window import TASKS, TOGETHER, neighbours, window_kernel

TURNED = 64  # rows and columns of a tile that is transposed
REUSE = 2  # an operand that is read more often than this may be copied first
LONG = 1 << 14  # elements of a task that is a part of one row


class VectorKernel(Operands):
    """A group none of whose members is a product that is worth register tiles."""

    def _vector_kernel(self) -> Kernel:
        rows = list(self.rows)
        if (coded := decoding_rows(self)) is not None:
            return coded
        first = self.members[0]
        if len(self.members) == 1 and (body := streams_rows(self, first)) is not None:
            return Kernel(self.name, self.m.extents([*first.free, *first.reduced]), body)
        if (column := column_of(self.members, rows, self.m.memory)) is not None:
            return column_kernel(self, column, [v for v in rows if v != column])
        last = self.members[-1]
        tiles: dict[str, int] = {}
        if all(map(self.short, self.members)) and plain_variables(last):
            lane = plain_variables(last)[-1]
            if all(set(d.free) <= set(rows) for d in self.members) and lane in rows:
                rows.remove(lane)
                turned = [across(d, lane, rows, self.m.memory) for d in self.members]
                if found := next((v for v in turned if v is not None), None):
                    rows.remove(found)
                    tiles = dict.fromkeys((found, lane), TURNED)
        if (near := window_kernel(self, rows)) is not None:
            return near
        self.members = in_result(self, rows)
        for d in self.members:
            if not self.m.in_memory(d.target):
                self._local(d, rows)
        members = [self._with_near_reads(d, rows) for d in self._reuse(self.members, rows)]
        few = neighbours(self, members[0], rows) if len(members) == 1 else None
        if few is not None:
            tiles = {v: TOGETHER if v == few[1] else 1 for v in rows}
            rows = []
            body = (Do(members[0], ((few[0], "lane"), (few[1], "unroll"))),)
        else:
            body = tuple(in_blocks(self, self._vector_nodes(members, rows), rows))
        for b in reversed(list(self.locals.values())):
            body = (Alloc(b, body),)
        cut = [v for v in self.rows if v not in rows and v not in tiles]
        if not tiles and math.prod(self.size(v) or TYPICAL for v in rows) < TASKS:
            tiles = dict.fromkeys(cut, LONG)  # few rows, which would leave cores idle
        for v in reversed(tiles):
            body = (Loop(v, tiles[v], body, "core"),)
        for v in reversed(rows):
            body = (Loop(v, 1, body, "core"),)
        return Kernel(
            self.name,
            self.m.extents([*rows, *(v for d in members for v in (*d.free, *d.reduced))]),
            body,
        )

    def _with_near_reads(self, d: Einsum, rows: list[str]) -> Einsum:
        """A reduction whose operands are read several times each: without reads beyond their edges, and with those that
        stay the same along the lanes' rows laid out along the lanes."""
        if not d.reduced:
            return d
        extents = {v: self.c.extent(v) for v in (*d.free, *d.reduced)}
        stored = ChainMap(self.locals, self.m.memory)
        inner = [v for v in extents if v not in rows]
        lane = lane_variable(d, inner, stored, self._narrow([d]))

        def rule(n: Expr) -> Expr:
            if not isinstance(n, Access) or not self._often(n, extents):
                return n
            if lane is None or self._leaves(n, lane, extents):
                n = self.m.padded(n, extents)
            if lane is not None and strided(n, lane, self.m.memory.get(n.tensor)):
                n = self.m.laid_along(n, lane, extents)
            self.c = self.m.c
            return n

        return replace(d, body=transform(d.body, rule))

    def _often(self, a: Access, extents: Mapping[str, Expr]) -> bool:
        """Whether elements of an operand are read several times each."""
        points = math.prod(size_estimate(self.c, e) for e in extents.values())
        return points >= REUSE * elements(self.c, a.tensor)

    def _leaves(self, a: Access, v: str, extents: Mapping[str, Expr]) -> bool:
        """Whether a read leaves its tensor along a variable."""
        shape = self.c.tensors[a.tensor].shape
        indices = zip(a.indices, shape, strict=True)
        return any(v in variables(i) and not within(i, n, extents) for i, n in indices)

    def _reuse(self, members: list[Einsum], rows: list[str]) -> list[Einsum]:
        """An element-wise definition overwrites the buffer of an operand that nothing reads later."""
        out = list(members)
        for n, d in enumerate(out):
            b = self.locals.get(d.target)
            if b is None or d.reduced:
                continue
            for a in d.reads:
                s = self.locals.get(a.tensor)
                same_place = [text(i) for i in a.indices] == [text(i) for i in d.indices]
                everywhere = all(
                    [text(i) for i in x.indices] == [text(i) for i in d.indices]
                    for x in d.reads if x.tensor == a.tensor
                )  # fmt: skip
                later = any(x.tensor == a.tensor for e in out[n + 1 :] for x in e.reads)
                if s is None or not same_place or not everywhere or later or s.dtype != b.dtype:
                    continue
                if not [v for v in plain_variables(d) if v not in rows] or a.tensor == d.target:
                    continue
                del self.locals[d.target]
                out[n:] = [renamed_tensor(e, d.target, a.tensor) for e in out[n:]]
                break
        return out
