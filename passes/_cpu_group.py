"""One kernel for one group of definitions on a CPU."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum, Reduction
from tcc.ir.expr import (
    Access,
    Const,
    Expr,
    Var,
    accesses,
    call,
    text,
    transform,
    variables,
)
from tcc.ir.index import poly
from tcc.ir.infer import expression_dtype
from tcc.ir.layout import Digit, Layout, row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node, leaves
from tcc.passes._algebra import (
    Contraction,
    contraction,
    elements,
    plain_variables,
    product,
    row_variables,
    side_by_side,
    size_estimate,
    tile_variable,
)
from tcc.passes._cpu_columns import column_kernel
from tcc.passes._cpu_masks import ends, masked_tiles
from tcc.passes._cpu_vectors import across, column_of, vector_nodes
from tcc.passes._empty_rows import defers, mask_of, some_term

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper

TURNED = 64  # rows and columns of a tile that is transposed
TASKS = 8  # fewer tiles of rows than this leave cores idle


class GroupKernel:
    """One group: outer loops over the rows that its members share, inside them its definitions in order."""

    def __init__(self, m: Mapper, name: str, members: list[Einsum]) -> None:
        self.m, self.c, self.name = m, m.c, name
        self.members = members
        self.tile = tile_variable(members) if any(contraction(d) for d in members) else None
        self.rows = row_variables(members, self.c)
        self.locals: MutableMapping[str, Buffer] = {}
        self.used: list[str] = []
        self.column: str | None = None
        self.operands: dict[str, Access] = {}  # first operands that are computed into a buffer

    def build(self) -> Kernel:
        if self.tile is None:
            return self._vector_kernel()
        splits = [s for d in self.members if (s := contraction(d, self.tile)) is not None]
        column = splits[0].columns[-1] if len(splits) == 1 else None
        self.column = column if column in self.rows else side_by_side(self.members, self.tile)
        rows = [v for v in self.rows if v not in (self.tile, self.column)]
        before, body = self._tile_body()
        again = self.column is not None and self._again(before)
        inner = [b for b in self.locals.values() if again or self._in_column(b)]
        outer = [b for b in self.locals.values() if not any(b is x for x in inner)]
        body = _allocated(inner, (*before, *body) if again else body)
        if self.column is not None:
            block = self._column_block() if again else self.m.block_columns
            body = (Loop(self.column, block, body, "core" if again else None),)
        body = _allocated(outer, body if again else (*before, *body))
        one = self.column is not None and not before
        block = self.m.block_rows if one else self.m.block_rows // 2
        body = (Loop(self.tile, block, body, "core"),)
        for v in reversed(rows):
            body = (Loop(v, 1, body, "core"),)
        names = [*self.rows, *self.used, *(v for d in self.members for v in (*d.free, *d.reduced))]
        return Kernel(self.name, self.m.extents(names), body)

    def _in_column(self, b: Buffer) -> bool:
        """Whether a buffer holds columns of a block only."""
        return any(isinstance(d, Var) and d.name == self.column for d in b.dims)

    def _again(self, before: tuple[Node, ...]) -> bool:
        """Whether blocks of columns are tasks of their own, in which what precedes the products is computed again."""
        if not before:
            return True
        if any(self.m.in_memory(n.einsum.target) for n in leaves(before)):
            return False
        sizes = [poly(self.c.resolved(self.c.extent(v))).constant for v in (*self.rows,)]
        if any(size is None for size in sizes):
            return True
        return math.prod(size or 1 for size in sizes) < TASKS * self.m.block_rows

    def _column_block(self) -> int:
        """Columns per task: few enough that small problems still have several tasks."""
        assert self.column is not None
        size = poly(self.c.extent(self.column)).constant
        unit = self.m.columns
        if size is None:
            return self.m.block_columns
        return max(unit, min(self.m.block_columns, -(-size // (4 * unit)) * unit))

    # ---- groups without contractions

    def _vector_kernel(self) -> Kernel:
        rows = list(self.rows)
        if (column := column_of(self.members, rows, self.m.memory)) is not None:
            return column_kernel(self, column, [v for v in rows if v != column])
        last = self.members[-1]
        tiles: dict[str, int] = {}
        if not any(d.reduced for d in self.members) and plain_variables(last):
            lane = plain_variables(last)[-1]
            if all(set(d.free) <= set(rows) for d in self.members) and lane in rows:
                rows.remove(lane)
                turned = [across(d, lane, rows, self.m.memory) for d in self.members]
                if found := next((v for v in turned if v is not None), None):
                    rows.remove(found)
                    tiles = dict.fromkeys((found, lane), TURNED)
        for d in self.members:
            if not self.m.in_memory(d.target):
                self._local(d, rows)
        members = self._reuse(self.members, rows)
        body: tuple[Node, ...] = tuple(self._vector_nodes(members, rows))
        for b in reversed(list(self.locals.values())):
            body = (Alloc(b, body),)
        for v in reversed(tiles):
            body = (Loop(v, tiles[v], body, "core"),)
        for v in reversed(rows):
            body = (Loop(v, 1, body, "core"),)
        return Kernel(
            self.name,
            self.m.extents([*rows, *(v for d in members for v in (*d.free, *d.reduced))]),
            body,
        )

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

    def _vector_nodes(self, members: list[Einsum], rows: list[str]) -> list[Node]:
        return vector_nodes(members, rows, ChainMap(self.locals, self.m.memory))

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
                        [*self._outer(), self.tile] if not d.reduced else self._outer(),
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
                self._local(d, self._outer(), self._padded(d, s))
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
            fill, leaf = self._contraction(d, s)
            first += fill
            nodes += leaf
        return tuple(before), (*nodes, *self._flush(pending))

    def _outer(self) -> list[str]:
        return [v for v in self.rows if v not in (self.tile, self.column)]

    def _split(self, d: Einsum, s: Contraction) -> list[tuple[Einsum, Contraction | None]]:
        """T = scale · Σ …  -->  T_sum = Σ …;  T = T_sum · scale."""
        name = self.m.fresh(f"{d.target}_sum")
        free = [v for v in d.free if v in (*s.batch, *s.rows, *s.columns)]
        at = tuple(Var(v) for v in free)
        body = call("mul", s.row_factor, s.column_factor)
        inner = Einsum(name, at, body, d.reductions, s.mask, d.span)
        dtype = expression_dtype(self.c, call("mul", s.row_factor, s.column_factor))
        self.m.types[name] = replace(self.c.tensors[d.target], name=name, dtype=dtype,
                                     shape=tuple(self.c.extent(v) for v in free))  # fmt: skip
        self.c = self.m.c = replace(self.c, tensors={**self.c.tensors, name: self.m.types[name]})
        self._local(inner, self._outer(), self._padded(inner, s))
        value: Expr = Access(name, at)
        if s.scale is not None:
            value = call("mul", value, s.scale)
        plan: list[tuple[Einsum, Contraction | None]] = [(inner, replace(s, scale=None, where=()))]
        if s.scale is not None and not defers(self.c, d, [s.scale]):
            held, more = self._some_term(d)
            value = call("select", held, value, Const(0.0))
            plan += [(x, None) for x in more]
        outer = Einsum(d.target, d.indices, value, (), s.where, d.span)
        if not self.m.in_memory(d.target):
            self._local(outer, self._outer(), self._padded(outer, s))
        return [*plan, (outer, None)]

    def _some_term(self, d: Einsum) -> tuple[Expr, list[Einsum]]:
        """Whether a sum has a term, and the definitions that this needs."""
        found = some_term(self.c, d)
        if found is not None and not isinstance(found, bool):
            return found, []
        mask = mask_of(d)
        order = [v for v in d.free if v in {*variables(*mask), *self.rows}]
        name = self._temporary(f"{d.target}_any", Const(True), order)
        at = tuple(Var(v) for v in order)
        reductions = tuple(Reduction(v, "any") for v in d.reduced)
        made = Einsum(name, at, Const(True), reductions, tuple(mask), d.span)
        self._local(made, self._outer())
        return Access(name, at), [made]

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
        return Layout((*others, Digit(r, self.m.rows), Digit(r, 1, self.m.rows),
                       Digit(n, self._columns(d)), Digit(n, 1, self._columns(d))))  # fmt: skip

    def _flush(self, pending: list[Einsum]) -> list[Node]:
        """Row by row over the tile."""
        if not pending:
            return []
        assert self.tile is not None
        inner = self._vector_nodes(pending, [*self._outer(), self.tile])
        return [Loop(self.tile, 1, tuple(inner))]

    def _contraction(self, d: Einsum, s: Contraction) -> tuple[list[Node], list[Node]]:
        """What fills the first operand, and the product itself."""
        m, column, tile = self.m, s.columns[-1], self.tile or ""
        packed, before = self._column_operand(f"{d.target}_columns", d, s, s.column_factor)
        mask, more = self._mask(d, s)
        rows, fill = self._row_operand(d, s)
        body = call("mul", rows, packed)

        def leaf(where: tuple[Expr, ...], update: bool) -> tuple[Node, ...]:
            e = Einsum(d.target, d.indices, body, d.reductions, where, d.span)
            return (Do(e, ((column, "lane"), (tile, "unroll")), update=update),)

        deep, size = len(s.reduced) == 1, poly(self.c.extent(s.reduced[0])).constant
        tiles = ends(self.c, mask) if deep else None
        zero: tuple[Node, ...] = ()
        nodes: tuple[Node, ...] = (Loop(tile, m.rows, leaf(mask, False)),)
        if tiles is not None:  # no tile has to come first: the sum starts as 0
            walk, full = s.reduced[0], leaf((), True)
            part = masked_tiles(tile, m.rows, tiles, full, leaf(mask, True))
            part = (Loop(walk, max(1, m.block_depth // 4), part),)
            nodes = masked_tiles(walk, m.block_depth, tiles, (Loop(tile, m.rows, full),), part)
            start = Do(Einsum(d.target, d.indices, Const(0.0)), ((column, "lane"),))
            zero = (Loop(tile, 1, (start,)),)
        elif deep and (size is None or size > m.block_depth):  # short chains of roundings
            nodes = (Loop(s.reduced[0], m.block_depth, nodes),)
        nodes = (Loop(column, self._columns(d), nodes),)
        if deep and (size is None or size > 8 * m.block_depth):  # first operands stay in L2
            nodes = (Loop(s.reduced[0], 8 * m.block_depth, nodes),)
        nodes = (*zero, *nodes)
        extra = [v for v in d.free if v not in (tile, column, *self.rows)]
        for v in reversed(extra):
            nodes = (Loop(v, 1, nodes),)
        return fill, [*before, *more, *nodes]

    def _mask(self, d: Einsum, s: Contraction) -> tuple[tuple[Expr, ...], list[Node]]:
        """Which terms a product has; what reads tensors along the columns is packed as they are."""
        column = s.columns[-1]
        stored = [p for p in s.mask if any(column in variables(a) for a in accesses(p))]
        if not stored:
            return s.mask, []
        e, nodes = self._column_operand(f"{d.target}_mask", d, s, product(stored, "and"))
        return (*(p for p in s.mask if p not in stored), e), nodes

    def _columns(self, d: Einsum) -> int:
        """Columns of a register tile: as many vectors whatever the element's size."""
        return max(1, self.m.columns * 4 // max(4, self.m.types[d.target].dtype.itemsize))

    def _row_operand(self, d: Einsum, s: Contraction) -> tuple[Expr, list[Node]]:
        """The first factor as one read: in place, or computed once per tile into a buffer."""
        e = s.row_factor
        if (
            isinstance(e, Access)
            and not accesses(*e.indices)
            and self.c.tensors[e.tensor].dtype.is_float
        ):
            return e, []
        names = [v for v in variables(e) if v != self.tile]
        order = [
            *(v for v in names if v not in s.reduced),
            self.tile or "",
            *(v for v in s.reduced if v in names),
        ]
        if text(e) in self.operands:
            return self.operands[text(e)], []
        name = self._temporary(f"{d.target}_rows", e, order)
        self.locals[name] = Buffer(
            name,
            self.m.types[name].dtype,
            tuple(Var(v) for v in order),
            "L2",
            row_major(len(order)),
        )
        access = self.operands[text(e)] = Access(name, tuple(Var(v) for v in order))
        fill = Einsum(name, access.indices, e)
        nodes = self._vector_nodes([fill], [*self._outer(), self.tile or ""])
        return access, [Loop(self.tile or "", 1, tuple(nodes))]

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
        column, panel = s.columns[-1], self._columns(d)
        others = [v for v in variables(e) if v != column and v not in s.reduced]
        inner = [v for v in s.reduced if v in variables(e)]
        read = sum(elements(self.c, a.tensor) for a in accesses(e))
        size = 1
        for v in (*others, *inner, column):
            size *= size_estimate(self.c, self.c.extent(v))
        if size <= 2 * read or not set(others) <= set(self._outer()):
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
        return (Loop(column, panel, body, on),)


def _allocated(buffers: Iterable[Buffer], body: tuple[Node, ...]) -> tuple[Node, ...]:
    """The body inside its buffers."""
    for b in reversed(list(buffers)):
        body = (Alloc(b, body),)
    return body


def _renamed_tensor(d: Einsum, old: str, new: str) -> Einsum:
    def rule(n: Expr) -> Expr:
        return Access(new, n.indices, n.span) if isinstance(n, Access) and n.tensor == old else n

    return Einsum(new if d.target == old else d.target, tuple(transform(i, rule) for i in d.indices),
                  transform(d.body, rule), d.reductions, tuple(transform(p, rule) for p in d.where), d.span)  # fmt: skip
