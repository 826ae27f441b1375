"""What the products of a kernel read: rows in place or computed per tile, columns packed into panels."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.expr import (
    Access,
    Expr,
    Var,
    accesses,
    text,
    variables,
)
from tcc.ir.index import poly, within
from tcc.ir.infer import expression_dtype
from tcc.ir.layout import Digit, Layout, row_major
from tcc.ir.mapping import Buffer, Do, Kernel, Loop, Node
from tcc.passes._algebra import (
    TYPICAL,
    Contraction,
    contraction,
    elements,
    plain_variables,
    product,
    row_variables,
    size_estimate,
)
from tcc.passes._cpu_place import Columns
from tcc.passes._cpu_rows import collide, deep, shared_rows, spaced
from tcc.passes._cpu_tiles import distinct_orders, order_of
from tcc.passes._cpu_vectors import across, strided, vector_nodes

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper

PACKED_ROWS = (
    64  # rows of an operand that are packed side by side, so that memory is read in long runs
)


class Operands:
    """The variables of a kernel's tile, its buffers, and the operands of its products."""

    def __init__(self, m: Mapper, name: str, members: list[Einsum]) -> None:
        self.m, self.c, self.name = m, m.c, name
        self.members = members
        self.rows = row_variables(members, self.c)
        self.choice = m.tiles
        self.usual = self.shape = m.tiles.register  # of a register tile: rows, vectors
        self.tile = shared_rows(self) if any(contraction(d) for d in members) else None
        self.locals: MutableMapping[str, Buffer] = {}
        self.used: list[str] = []
        self.column: str | None = None
        self.way = Columns.PACKED
        self.ways = [Columns.PACKED]  # that are possible, the usual one first
        self.orders: set[int] = {0}  # of loops over register tiles, that differ
        self.decodes = False  # the second operand, block by block
        self.wide = False  # blocks of columns are
        self.high = False  # tasks are: many rows of few columns
        self.together = 1  # columns that are decoded together, where the second operand is coded
        self.operands: dict[str, Access] = {}  # first operands that are computed into a buffer

    def size(self, v: str) -> int | None:
        return poly(self.c.resolved(self.c.extent(v))).constant

    def nested(self, loops: Mapping[str, Sequence[tuple[str, int]]], leaf: Node) -> Node:
        """The leaf inside the loops of each kind, in the order that was chosen."""
        kinds = [kind for kind, found in loops.items() if found]
        self.orders |= set(distinct_orders(kinds))
        for kind in reversed(order_of(self.choice.order, kinds)):
            for v, step in reversed(loops[kind]):
                leaf = Loop(v, step, (leaf,))
        return leaf

    def outer(self) -> list[str]:
        return [v for v in self.rows if v not in (self.tile, self.column)]

    def short(self, d: Einsum) -> bool:
        """Whether a definition reduces nothing, or only over a few coordinates, such as a window."""
        return all((self.size(v) or TYPICAL) <= 2 * self.m.lanes for v in d.reduced)

    def columns(self, d: Einsum) -> int:
        """Columns of a register tile: as many vectors whatever the element's size."""
        return max(
            1, self.shape[1] * self.m.lanes * 4 // max(4, self.m.types[d.target].dtype.itemsize)
        )

    def outside(self, a: Access) -> bool:
        """Whether a read may lie outside its tensor."""
        extents = {v: self.c.resolved(self.c.extent(v)) for v in variables(a)}
        shape = [self.c.resolved(n) for n in self.c.tensors[a.tensor].shape]
        return not all(within(i, n, extents) for i, n in zip(a.indices, shape, strict=True))

    def _local(self, d: Einsum, rows: list[str], layout: Layout | None = None) -> None:
        """A buffer for the window of a member that stays inside the group."""
        names = plain_variables(d)
        inner = [v for v in names if v not in rows]
        level = "L1" if inner else "reg"
        t = self.m.types[d.target]
        self.locals[d.target] = Buffer(d.target, t.dtype, tuple(Var(v) for v in names), level,
                                       layout or row_major(len(names)))  # fmt: skip

    def _vector_nodes(self, members: list[Einsum], rows: list[str]) -> list[Node]:
        stored = ChainMap(self.locals, self.m.memory)
        return vector_nodes(members, rows, stored, self._narrow(members))

    def _narrow(self, members: list[Einsum]) -> set[str]:
        """Reduced variables that are too short for one vector."""
        reduced = {v for d in members for v in d.reduced}
        return {v for v in reduced if (self.size(v) or TYPICAL) < self.m.lanes}

    def _depth_order(self, s: Contraction) -> list[str]:
        """The reduced variables, the one that runs farthest innermost."""
        sizes = {v: self.size(v) or TYPICAL for v in s.reduced}
        return sorted(s.reduced, key=lambda v: sizes[v])

    def _mask(self, d: Einsum, s: Contraction) -> tuple[tuple[Expr, ...], list[Node]]:
        """Which terms a product has; what reads tensors along the columns is packed as they are."""
        column = s.columns[-1]
        stored = [p for p in s.mask if any(column in variables(a) for a in accesses(p))]
        if not stored:
            return s.mask, []
        e, nodes = self._column_operand(f"{d.target}_mask", d, s, product(stored, "and"))
        return (*(p for p in s.mask if p not in stored), e), nodes

    def _row_operand(self, d: Einsum, s: Contraction) -> tuple[Expr, list[Node]]:
        """The first factor as one read: in place, or computed once per tile into a buffer."""
        e = s.row_factor
        if (
            isinstance(e, Access)
            and not accesses(*e.indices)
            and self.c.tensors[e.tensor].dtype.is_float
        ):
            within = self.m.padded(e, {v: self.c.extent(v) for v in variables(e)})
            self.c = self.m.c
            if not self.outside(within) and not collide(self, within, d, s):
                side = self.m.ready(within.tensor) and deep(self, within, d, s)
                return self._side_by_side(within, d) if side else (within, [])
        names = [v for v in variables(e) if v != self.tile]
        order = [
            *(v for v in names if v not in s.reduced),
            self.tile or "",
            *(v for v in s.reduced if v in names),
        ]
        if text(e) in self.operands:
            return self.operands[text(e)], []
        name = self._temporary(f"{d.target}_rows", e, order)
        n, space = len(order) - 1, spaced(self, order[-1], 1)
        last = (Digit(n),) if space is None else (Digit(n, space), Digit(n, 1, space))
        self.locals[name] = Buffer(name, self.m.types[name].dtype, tuple(Var(v) for v in order), "L2",
                                   Layout((*map(Digit, range(n)), *last)))  # fmt: skip
        access = self.operands[text(e)] = Access(name, tuple(Var(v) for v in order))
        fill = Einsum(name, access.indices, e)
        nodes = self._vector_nodes([fill], [*self.outer(), self.tile or ""])
        return access, [Loop(self.tile or "", 1, tuple(nodes))]

    def _side_by_side(self, e: Access, d: Einsum) -> tuple[Expr, list[Node]]:
        """A copy of the tile's rows in which the elements of all rows with one coordinate of the reduced variable follow each
        other, as they do in memory, and those of the next coordinate come right behind."""
        if text(e) in self.operands:
            return self.operands[text(e)], []
        order = [*(v for v in variables(e) if v != self.tile), self.tile or ""]
        at = tuple(map(Var, order))
        name = self._temporary(f"{d.target}_rows", e, order)
        t = self.m.types[name]
        self.locals[name] = Buffer(name, t.dtype, at, "L2", row_major(len(order)))
        access = self.operands[text(e)] = Access(name, at)
        return access, self._vector_nodes([Einsum(name, at, e)], self.outer())

    def _temporary(self, name: str, value: Expr, order: list[str]) -> str:
        name = self.m.fresh(name)
        t = self.c.tensors[next(iter(self.c.tensors))]
        self.m.types[name] = replace(t, name=name, dtype=expression_dtype(self.c, value), fill=0, constant=False,
                                     shape=tuple(self.c.extent(v) for v in order), span=None)  # fmt: skip
        self.c = self.m.c = replace(self.c, tensors={**self.c.tensors, name: self.m.types[name]})
        self.used += order
        return name

    def _column_operand(
        self, name: str, d: Einsum, s: Contraction, e: Expr
    ) -> tuple[Expr, list[Node]]:
        """A value over columns in panels of them: packed once by a kernel of its own before this one, or, where its
        elements are read many times over (windows), tile by tile into a buffer."""
        column, panel = s.columns[-1], self.columns(d)
        others = [v for v in variables(e) if v != column and v not in s.reduced]
        inner = [v for v in self._depth_order(s) if v in variables(e)]
        read = sum(elements(self.c, a.tensor) for a in accesses(e))
        size = 1
        for v in (*others, *inner, column):
            size *= size_estimate(self.c, self.c.extent(v))
        if size <= 2 * read or not set(others) <= set(self.outer()):
            return self._pack(name, e, others, inner, column, panel), []
        order = [*others, *inner, column]  # the others are points here: a window of one coordinate
        n, first = len(order) - 1, len(others)
        name = self._temporary(name, e, order)
        layout = Layout((*(Digit(i) for i in range(first)), Digit(n, panel),
                         *(Digit(i) for i in range(first, n)), Digit(n, 1, panel)))  # fmt: skip
        self.locals[name] = Buffer(
            name, self.m.types[name].dtype, tuple(Var(v) for v in order), "L2", layout
        )
        access = Access(name, tuple(Var(v) for v in order))
        return access, list(
            self._panels(Einsum(name, access.indices, e), inner, column, panel, None)
        )

    def _pack(
        self, name: str, e: Expr, others: list[str], inner: list[str], column: str, panel: int
    ) -> Expr:
        order = [*others, *inner, column]
        n = len(order) - 1
        name = self._temporary(name, e, order)
        t = self.m.types[name]
        layout = Layout((*(Digit(i) for i in range(len(others))), Digit(n, panel),
                         *(Digit(i) for i in range(len(others), n)), Digit(n, 1, panel)))  # fmt: skip
        constant = {x.name for x in self.c.inputs if x.constant}
        keep = bool(accesses(e)) and all(a.tensor in constant for a in accesses(e))
        self.m.memory[name] = Buffer(name, t.dtype, t.shape, "memory", layout, 0, keep)
        access = Access(name, tuple(Var(v) for v in order))
        body = self._panels(Einsum(name, access.indices, e), inner, column, panel, "core")
        for v in reversed(others):
            body = (Loop(v, 1, body, "core"),)
        self.m.kernels.append(
            Kernel(self.m.fresh(f"pack_{name}"), self.m.extents(order), body, keep)
        )
        return access

    def _panels(
        self, d: Einsum, inner: list[str], column: str, panel: int, on: str | None
    ) -> tuple[Node, ...]:
        """Loops that fill a packed operand panel by panel."""
        body: tuple[Node, ...] = (Do(d, ((column, "lane"),)),)
        turned = across(d, column, inner, ChainMap(self.locals, self.m.memory))
        for v in reversed(inner):
            if v != turned:
                body = (Loop(v, 1, body),)
        body = (Loop(column, panel, body, on),)
        apart = any(strided(a, column, self.m.memory.get(a.tensor)) for a in d.reads)
        whole = on is not None and inner and turned is None and not apart
        return (Loop(inner[-1], PACKED_ROWS, body, on),) if whole else body
