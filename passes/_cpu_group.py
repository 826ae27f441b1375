"""One kernel for one group of definitions on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum, Reduction
from tcc.ir.expr import Access, Call, Expr, Var, accesses, call, text, transform, variables
from tcc.ir.index import poly, within
from tcc.ir.infer import expression_dtype
from tcc.ir.layout import Digit, Layout, row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node, leaves
from tcc.passes._algebra import (
    TYPICAL,
    Contraction,
    contraction,
    elements,
    plain_variables,
    row_variables,
    side_by_side,
    size_estimate,
)
from tcc.passes._cpu_columns import WIDTH, Columns, columns_of, streamed, streams_rows
from tcc.passes._cpu_rows import collide, shared_rows, spaced
from tcc.passes._cpu_tiles import register_tile
from tcc.passes._cpu_vectors import lane_variable, strided, vector_nodes

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper

REUSE = 4  # an operand that is read more often than this may be copied first
PACKED_ROWS = (
    64  # rows of an operand that are packed side by side, so that memory is read in long runs
)
TASKS = 8  # fewer tiles of rows than this leave cores idle


class GroupKernel:
    """One group: outer loops over the rows that its members share, inside them its definitions in order."""

    def __init__(self, m: Mapper, name: str, members: list[Einsum]) -> None:
        self.m, self.c, self.name = m, m.c, name
        self.members = members
        self.rows = row_variables(members, self.c)
        self.usual = self.shape = (m.rows, m.vectors)  # of a register tile: rows, vectors
        self.tile = shared_rows(self) if any(contraction(d) for d in members) else None
        self.locals: MutableMapping[str, Buffer] = {}
        self.used: list[str] = []
        self.column: str | None = None
        self.way = Columns.PACKED
        self.operands: dict[str, Access] = {}  # first operands that are computed into a buffer

    def build(self) -> Kernel:
        if self.tile is None:
            return self._vector_kernel()
        splits = [s for d in self.members if (s := contraction(d, self.tile)) is not None]
        column = splits[0].columns[-1] if len(splits) == 1 else None
        self.column = column if column in self.rows else side_by_side(self.members, self.tile)
        if len(splits) == 1:
            (d,) = (d for d in self.members if contraction(d, self.tile) is not None)
            self.way = columns_of(self, d, splits[0])
        self.shape = register_tile(
            self.size(self.tile), [self.size(s.columns[-1]) for s in splits],
            self.m.lanes, self.m.registers, self.usual, self.way == Columns.PLACE,
        )  # fmt: skip
        rows = [v for v in self.rows if v not in (self.tile, self.column)]
        before, body = self._tile_body()
        again = self.column is not None and self._again(before)
        inner = [b for b in self.locals.values() if again or self._in_column(b)]
        outer = [b for b in self.locals.values() if not any(b is x for x in inner)]
        body = _allocated(inner, (*before, *body) if again else body)
        if self.column is not None:
            unit = self.shape[1] * self.m.lanes
            block = self._column_block() if again else self.m.block_columns // unit * unit
            body = (Loop(self.column, block, body, "core" if again else None),)
        body = _allocated(outer, body if again else (*before, *body))
        one = self.column is not None and not before
        block = self.m.block_rows if one else self.m.block_rows // 2
        block = -(-block // self.shape[0]) * self.shape[0]
        body = (Loop(self.tile, block, body, "core"),)
        for v in reversed(rows):
            body = (Loop(v, 1, body, "core"),)
        names = [*self.rows, *self.used, *(v for d in self.members for v in (*d.free, *d.reduced))]
        return Kernel(self.name, self.m.extents(names), body)

    def size(self, v: str) -> int | None:
        return poly(self.c.resolved(self.c.extent(v))).constant

    def _in_column(self, b: Buffer) -> bool:
        """Whether a buffer holds columns of a block only."""
        return any(isinstance(d, Var) and d.name == self.column for d in b.dims)

    def _again(self, before: tuple[Node, ...]) -> bool:
        """Whether blocks of columns are tasks of their own, in which what precedes the products is computed again."""
        if not before:
            return True
        if any(self.m.in_memory(n.einsum.target) for n in leaves(before)):
            return False
        sizes = [self.size(v) for v in self.rows if v != self.column]
        if any(size is None for size in sizes):
            return True
        return math.prod(size or 1 for size in sizes) < TASKS * self.m.block_rows

    def _column_block(self) -> int:
        """Columns per task: few enough that small problems still have several tasks."""
        assert self.column is not None
        size = poly(self.c.extent(self.column)).constant
        unit = self.shape[1] * self.m.lanes
        if self.way == Columns.PLACE:
            return WIDTH
        if size is None:
            return self.m.block_columns // unit * unit
        return max(unit, min(self.m.block_columns // unit * unit, -(-size // (4 * unit)) * unit))

    # ---- groups without contractions

    def _vector_kernel(self) -> Kernel:
        streams = [streams_rows(self, d) for d in self.members]
        if len(streams) == 1 and streams[0] is not None:
            d = self.members[0]
            return Kernel(self.name, self.m.extents([*d.free, *d.reduced]), streams[0])
        rows = list(self.rows)
        last = self.members[-1]
        if all(map(self.short, self.members)) and plain_variables(last):
            lane = plain_variables(last)[-1]
            if all(set(d.free) <= set(rows) for d in self.members) and lane in rows:
                rows.remove(lane)
        for d in self.members:
            if not self.m.in_memory(d.target):
                self._local(d, rows)
        members = [self._with_near_reads(d, rows) for d in self._reuse(self.members, rows)]
        body: tuple[Node, ...] = tuple(vector_nodes(self.c, members, rows))
        for b in reversed(list(self.locals.values())):
            body = (Alloc(b, body),)
        for v in reversed(rows):
            body = (Loop(v, 1, body, "core"),)
        return Kernel(
            self.name,
            self.m.extents([*rows, *(v for d in members for v in (*d.free, *d.reduced))]),
            body,
        )

    def short(self, d: Einsum) -> bool:
        """Whether a definition reduces nothing, or only over a few coordinates, such as a window."""
        return all((self.size(v) or TYPICAL) <= 2 * self.m.lanes for v in d.reduced)

    def _with_near_reads(self, d: Einsum, rows: list[str]) -> Einsum:
        """A reduction whose operands are read several times each: without reads beyond their edges, and with those that
        stay the same along the lanes' rows laid out along the lanes."""
        if not d.reduced:
            return d
        extents = {v: self.c.extent(v) for v in (*d.free, *d.reduced)}
        points = math.prod(size_estimate(self.c, e) for e in extents.values())
        lane = lane_variable(d, [v for v in extents if v not in rows])

        def rule(n: Expr) -> Expr:
            if not isinstance(n, Access) or points < REUSE * elements(self.c, n.tensor):
                return n
            n = self.m.padded(n, extents)
            if lane is not None and strided(n, lane):
                n = self.m.laid_along(n, lane, extents)
            self.c = self.m.c
            return n

        return replace(d, body=transform(d.body, rule))

    def _local(self, d: Einsum, rows: list[str], layout: Layout | None = None) -> None:
        """A buffer for the window of a member that stays inside the group."""
        names = plain_variables(d)
        inner = [v for v in names if v not in rows]
        level = "L1" if inner else "reg"
        t = self.m.types[d.target]
        self.locals[d.target] = Buffer(d.target, t.dtype, tuple(Var(v) for v in names), level,
                                       layout or row_major(len(names)))  # fmt: skip

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
                out[n:] = [_renamed_tensor(e, d.target, a.tensor) for e in out[n:]]
                break
        return out

    # ---- groups with contractions

    def _tile_body(self) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """The nodes of one tile: those that do not depend on the columns, where these are cut, and the others."""
        assert self.tile is not None
        plan: list[tuple[Einsum, Contraction | None]] = []
        for d in self.members:
            s = contraction(d, self.tile)
            if s is None:
                if not self.m.in_memory(d.target):
                    self._local(
                        d,
                        [*self.outer(), self.tile] if not d.reduced else self.outer(),
                        self._padded(d, s),
                    )
                plan.append((d, None))
                continue
            whole = all(isinstance(i, Var) for i in d.indices) and len(set(d.free)) == len(
                d.indices
            )
            if self.m.in_memory(d.target) or s.scale is not None or s.where or not whole:
                plan += [*self._split(d, s)]
            else:
                self._local(d, self.outer(), self._padded(d, s))
                plan.append((d, s))
        names = [id(d) for d, _ in plan]
        reused = self._reuse([d for d, _ in plan], [])
        split = {i: s for i, (_, s) in zip(names, plan, strict=True)}
        before: list[Node] = []
        nodes: list[Node] = []
        pending: list[Einsum] = []
        for key, d in zip(names, reused, strict=True):
            s = (
                contraction(d, self.tile) if split[key] is not None else None
            )  # its operands may be renamed
            if s is None:
                pending.append(d)
                continue
            first = nodes if self.column is None else before
            early = [x for x in pending if self.column not in x.free]
            first += self._flush(early)
            nodes += self._flush([x for x in pending if not any(x is y for y in early)])
            pending = []
            fill, product = self._contraction(d, s, reused)
            first += fill
            nodes += product
        return tuple(before), (*nodes, *self._flush(pending))

    def outer(self) -> list[str]:
        return [v for v in self.rows if v not in (self.tile, self.column)]

    def _split(self, d: Einsum, s: Contraction) -> list[tuple[Einsum, Contraction | None]]:
        """T = scale · Σ …  -->  T_sum = Σ …;  T = T_sum · scale."""
        name = self.m.fresh(f"{d.target}_sum")
        free = [v for v in d.free if v in (*s.batch, *s.rows, *s.columns)]
        at = tuple(Var(v) for v in free)
        body = call("mul", s.row_factor, s.column_factor)
        inner = Einsum(name, at, body, d.reductions, (), d.span)
        dtype = expression_dtype(self.c, call("mul", s.row_factor, s.column_factor))
        self.m.types[name] = replace(self.c.tensors[d.target], name=name, dtype=dtype,
                                     shape=tuple(self.c.extent(v) for v in free))  # fmt: skip
        self.c = self.m.c = replace(self.c, tensors={**self.c.tensors, name: self.m.types[name]})
        self._local(inner, self.outer(), self._padded(inner, s))
        value: Expr = Access(name, at)
        if s.scale is not None:
            value = call("mul", value, s.scale)
        outer = Einsum(d.target, d.indices, value, (), s.where, d.span)
        if not self.m.in_memory(d.target):
            self._local(outer, self.outer(), self._padded(outer, s))
        return [(inner, replace(s, scale=None, where=())), (outer, None)]

    def _padded(self, d: Einsum, s: Contraction | None) -> Layout | None:
        """Rows and columns padded to the register tile, the columns contiguous, the rows next to them."""
        names = plain_variables(d)
        column = (
            s.columns[-1] if s else next((v for v in reversed(names) if v not in self.rows), None)
        )
        if self.tile not in names or column not in names or column == self.tile:
            return None
        r, n = names.index(self.tile or ""), names.index(column or "")
        others = [Digit(i) for i in range(len(names)) if i not in (r, n)]
        unit = self.columns(d)
        space = unit
        if any(a.tensor == d.target for x in self.members for a in x.reads):
            space = spaced(self, column or "", unit) or unit
        return Layout((*others, Digit(r, self.shape[0]), Digit(r, 1, self.shape[0]),
                       Digit(n, space), Digit(n, 1, space)))  # fmt: skip

    def _flush(self, pending: list[Einsum]) -> list[Node]:
        """Row by row over the tile."""
        if not pending:
            return []
        assert self.tile is not None
        inner = vector_nodes(self.c, pending, [*self.outer(), self.tile])
        return [Loop(self.tile, 1, tuple(inner))]

    def _contraction(
        self, d: Einsum, s: Contraction, members: list[Einsum]
    ) -> tuple[list[Node], list[Node]]:
        """What fills the first operand, and the product itself."""
        m, column = self.m, s.columns[-1]
        before: list[Node] = []
        if self.way == Columns.PLACE:
            packed = s.column_factor
        else:
            packed, before = self._column_operand(d, s, column)
        rows, fill = self._row_operand(d, s, members)
        order = self._depth_order(s)
        sums = tuple(Reduction(v, d.monoid(v)) for v in order)
        leaf: tuple[Node, ...] = (
            Do(Einsum(d.target, d.indices, call("mul", rows, packed), sums, (), d.span),
               ((column, "lane"), (self.tile or "", "unroll"))),
        )  # fmt: skip
        leaf = (Loop(self.tile or "", self.shape[0], leaf),)
        if self.way == Columns.PLACE:
            return fill, list(streamed(self, d, s, leaf))
        leaf, far = self._shallow(leaf, order)  # short chains of roundings
        leaf = (Loop(column, self.columns(d), leaf),)
        if far:  # first operands stay in L2
            leaf = (Loop(order[-1], 8 * m.block_depth, leaf),)
        extra = [v for v in d.free if v not in (self.tile, column, *self.rows)]
        for v in reversed(extra):
            leaf = (Loop(v, 1, leaf),)
        return fill, [*before, *leaf]

    def _depth_order(self, s: Contraction) -> list[str]:
        """The reduced variables, the one that runs farthest innermost."""
        sizes = {v: self.size(v) or TYPICAL for v in s.reduced}
        return sorted(s.reduced, key=lambda v: sizes[v])

    def _shallow(self, leaf: tuple[Node, ...], order: list[str]) -> tuple[tuple[Node, ...], bool]:
        """Loops over the outer part of the reduction, so that what is added up at once is not deeper than a block; and
        whether the innermost variable runs much farther than that."""
        block, last = self.m.block_depth, self.size(order[-1])
        depth = min(last or block, block)
        if last is None or last > block:
            leaf = (Loop(order[-1], block, leaf),)
        for n, v in reversed(list(enumerate(order[:-1]))):
            depth *= self.size(v) or block
            if depth > block:
                for u in reversed(order[: n + 1]):
                    leaf = (Loop(u, 1, leaf),)
                break
        return leaf, len(order) == 1 and (last is None or last > 8 * block)

    def columns(self, d: Einsum) -> int:
        """Columns of a register tile: as many vectors whatever the element's size."""
        return max(
            1, self.shape[1] * self.m.lanes * 4 // max(4, self.m.types[d.target].dtype.itemsize)
        )

    def _row_operand(
        self, d: Einsum, s: Contraction, members: list[Einsum]
    ) -> tuple[Expr, list[Node]]:
        """The first factor as one read: in place, or computed once per tile into a buffer."""
        e = s.row_factor
        known = {x.target: x for x in members}
        while isinstance(e, Call) and e.op == "select" and isinstance(e.args[1], Access):
            # a guard that the operand's own definition has already applied: it holds 0 there
            made = known.get(e.args[1].tensor)
            if made is None or text(e.args[0]) not in {text(p) for p in made.where}:
                break
            e = e.args[1]
        if (
            isinstance(e, Access)
            and not accesses(*e.indices)
            and self.c.tensors[e.tensor].dtype.is_float
        ):
            within = self.m.padded(e, {v: self.c.extent(v) for v in variables(e)})
            self.c = self.m.c
            if not self.outside(within) and not collide(self, within, d, s):
                return within, []
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
        nodes = vector_nodes(self.c, [fill], [*self.outer(), self.tile or ""])
        return access, [Loop(self.tile or "", 1, tuple(nodes))]

    def outside(self, a: Access) -> bool:
        """Whether a read may lie outside its tensor."""
        extents = {v: self.c.extent(v) for v in variables(a)}
        shape = self.c.tensors[a.tensor].shape
        return not all(within(i, n, extents) for i, n in zip(a.indices, shape, strict=True))

    def _temporary(self, name: str, value: Expr, order: list[str]) -> str:
        name = self.m.fresh(name)
        t = self.c.tensors[next(iter(self.c.tensors))]
        self.m.types[name] = replace(t, name=name, dtype=expression_dtype(self.c, value), fill=0, constant=False,
                                     shape=tuple(self.c.extent(v) for v in order), span=None)  # fmt: skip
        self.c = self.m.c = replace(self.c, tensors={**self.c.tensors, name: self.m.types[name]})
        self.used += order
        return name

    def _column_operand(self, d: Einsum, s: Contraction, column: str) -> tuple[Expr, list[Node]]:
        """The second factor in panels of columns: packed once by a kernel of its own before this one, or, where its
        elements are read many times over (windows), tile by tile into a buffer."""
        e, panel = s.column_factor, self.columns(d)
        others = [v for v in variables(e) if v != column and v not in s.reduced]
        inner = [v for v in self._depth_order(s) if v in variables(e)]
        read = sum(elements(self.c, a.tensor) for a in accesses(e))
        size = 1
        for v in (*others, *inner, column):
            size *= size_estimate(self.c, self.c.extent(v))
        if size <= 2 * read or not set(others) <= set(self.outer()):
            return self._pack(d, e, others, inner, column, panel), []
        order = [*others, *inner, column]  # the others are points here: a window of one coordinate
        n, first = len(order) - 1, len(others)
        name = self._temporary(f"{d.target}_columns", e, order)
        layout = Layout((*(Digit(i) for i in range(first)), Digit(n, panel),
                         *(Digit(i) for i in range(first, n)), Digit(n, 1, panel)))  # fmt: skip
        self.locals[name] = Buffer(
            name, self.m.types[name].dtype, tuple(Var(v) for v in order), "L2", layout
        )
        access = Access(name, tuple(Var(v) for v in order))
        return access, list(_panels(Einsum(name, access.indices, e), inner, column, panel, None))

    def _pack(
        self, d: Einsum, e: Expr, others: list[str], inner: list[str], column: str, panel: int
    ) -> Expr:
        order = [*others, *inner, column]
        n = len(order) - 1
        name = self._temporary(f"{d.target}_columns", e, order)
        t = self.m.types[name]
        layout = Layout((*(Digit(i) for i in range(len(others))), Digit(n, panel),
                         *(Digit(i) for i in range(len(others), n)), Digit(n, 1, panel)))  # fmt: skip
        constant = {x.name for x in self.c.inputs if x.constant}
        keep = bool(accesses(e)) and all(a.tensor in constant for a in accesses(e))
        self.m.memory[name] = Buffer(name, t.dtype, t.shape, "memory", layout, 0, keep)
        access = Access(name, tuple(Var(v) for v in order))
        body = _panels(Einsum(name, access.indices, e), inner, column, panel, "core")
        for v in reversed(others):
            body = (Loop(v, 1, body, "core"),)
        self.m.kernels.append(
            Kernel(self.m.fresh(f"pack_{name}"), self.m.extents(order), body, keep)
        )
        return access


def _allocated(buffers: Iterable[Buffer], body: tuple[Node, ...]) -> tuple[Node, ...]:
    """The body inside its buffers."""
    for b in reversed(list(buffers)):
        body = (Alloc(b, body),)
    return body


def _panels(
    d: Einsum, inner: list[str], column: str, panel: int, on: str | None
) -> tuple[Node, ...]:
    """Loops that fill a packed operand panel by panel."""
    body: tuple[Node, ...] = (Do(d, ((column, "lane"),)),)
    for v in reversed(inner):
        body = (Loop(v, 1, body),)
    body = (Loop(column, panel, body, on),)
    whole = on is not None and not any(strided(a, column) for a in d.reads)
    return (Loop(inner[-1], PACKED_ROWS, body, on),) if whole else body


def _renamed_tensor(d: Einsum, old: str, new: str) -> Einsum:
    def rule(n: Expr) -> Expr:
        return Access(new, n.indices, n.span) if isinstance(n, Access) and n.tensor == old else n

    return Einsum(new if d.target == old else d.target, tuple(transform(i, rule) for i in d.indices),
                  transform(d.body, rule), d.reductions, tuple(transform(p, rule) for p in d.where), d.span)  # fmt: skip
