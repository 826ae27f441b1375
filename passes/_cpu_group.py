"""One kernel for one group of definitions on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from tcc.ir.cascade import Einsum, Reduction
from tcc.ir.expr import (
    Access,
    Const,
    Expr,
    Var,
    call,
    variables,
)
from tcc.ir.index import poly
from tcc.ir.infer import expression_dtype
from tcc.ir.layout import Digit, Layout
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node, leaves
from tcc.passes._algebra import (
    Contraction,
    contraction,
    plain_variables,
    side_by_side,
)
from tcc.passes._cpu_coded import run_and_lanes
from tcc.passes._cpu_decode import (
    ROWS,
    decoded,
    decodes,
    decoding_columns,
    decoding_kernel,
    decoding_tile,
)
from tcc.passes._cpu_masks import ends, masked_tiles
from tcc.passes._cpu_place import (
    NEAR_ROWS,
    WIDE,
    WIDTH,
    Columns,
    blocks,
    columns_of,
    wide,
)
from tcc.passes._cpu_result import sums_in_result
from tcc.passes._cpu_rows import spaced
from tcc.passes._cpu_tiles import ORDERS, register_tile
from tcc.passes._cpu_vector_kernel import VectorKernel
from tcc.passes._cpu_vectors import lies_across
from tcc.passes._cpu_window import TASKS
from tcc.passes._empty_rows import defers, mask_of, some_term


class GroupKernel(VectorKernel):
    """One group: outer loops over the rows that its members share, inside them its definitions in order."""

    def build(self) -> Kernel:
        if (few := decoding_kernel(self)) is not None:
            self.tile = None  # of no product
            return few
        if self.tile is None:
            return self._vector_kernel()
        splits = [s for d in self.members if (s := contraction(d, self.tile)) is not None]
        column = splits[0].columns[-1] if len(splits) == 1 else None
        self.column = column if column in self.rows else side_by_side(self.members, self.tile)
        if len(splits) == 1:
            (d,) = (d for d in self.members if contraction(d, self.tile) is not None)
            self.way = columns_of(self, d, splits[0])
            factor = splits[0].column_factor
            self.decodes = decodes(self, d, splits[0])
            self.wide = self.way == Columns.NEAR and wide(self, factor, self.column or "")
            if self.way == Columns.NEAR and isinstance(factor, Access):
                self.together = run_and_lanes(self, factor).get(self.column or "", 1)
        self.shape = self._register_tile([self.size(s.columns[-1]) for s in splits])
        if self.decodes:
            self.shape = decoding_tile(self, self.size(self.tile))
        rows = [v for v in self.rows if v not in (self.tile, self.column)]
        before, body = self._tile_body()
        again = self.column is not None and self._again(before)
        self.high = not before and self._high()
        inner = [b for b in self.locals.values() if again or self._in_column(b)]
        outer = [b for b in self.locals.values() if not any(b is x for x in inner)]
        body = _allocated(inner, (*before, *body) if again else body)
        if self.column is not None:
            unit = math.lcm(self.shape[1] * self.m.lanes, self.together)
            cut = again or self.decodes
            block = self._column_block() if cut else self.choice.block_columns // unit * unit
            body = (Loop(self.column, block, body, "core" if again else None),)
        body = _allocated(outer, body if again else (*before, *body))
        one = self.column is not None and not before
        block = self.choice.block_rows if one else self.choice.block_rows // 2
        if self.high:
            block = -(-(self.size(self.tile) or 1) // self._row_blocks())
        near = self.way == Columns.NEAR and self._column_tasks() >= TASKS
        if near or self.way == Columns.BLOCKS:
            block = max(block, NEAR_ROWS)
        block = min(ROWS, self.size(self.tile) or ROWS) if self.decodes else block
        block = self._row_block(block, rows)
        body = (Loop(self.tile, block, body, "core"),)
        for v in reversed(rows):
            body = (Loop(v, 1, body, "core"),)
        names = [*self.rows, *self.used, *(v for d in self.members for v in (*d.free, *d.reduced))]
        return Kernel(self.name, self.m.extents(names), body)

    def tiles(self) -> str:
        """What it is cut into, in words."""
        t, (rows, vectors) = self.choice, self.shape
        return (
            f"register tiles of {rows} rows x {vectors} vectors, about {t.block_rows} x {t.block_columns} results a task, "
            f"{t.block_depth} terms at once"
            + (f", loops over {', '.join(ORDERS[t.order])}" if t.order else "")
        )

    def _row_block(self, rows: int, outer: list[str]) -> int:
        """Whole register tiles; and all rows at once where they are few more, and there are tasks without cutting them."""
        size, tasks = self.size(self.tile or ""), [self.size(v) or 1 for v in outer]
        if size is not None and rows < size <= rows + rows // 3 and math.prod(tasks) >= TASKS:
            rows = size
        return -(-rows // self.shape[0]) * self.shape[0]

    def _register_tile(self, columns: list[int | None]) -> tuple[int, int]:
        """Rows and vectors: what was chosen, unless only some tiles are possible and it is none of them."""
        whole = self.way == Columns.PLACE
        unit = self.choice.tile_vectors * self.m.lanes
        if self.choice.fixed and not (whole and any((n or 1) % unit for n in columns)):
            return self.usual
        rows = self.size(self.tile or "")
        found = register_tile(
            rows,
            columns,
            self.m.lanes,
            self.m.registers,
            self.usual,
            whole,
            self.m.speeds,
            self.m.joined,
        )
        return self.usual if found[1] * self.m.lanes % self.together else found

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
        return math.prod(size or 1 for size in sizes) < TASKS * self.choice.block_rows

    def _column_block(self) -> int:
        """Columns per task: few enough that small problems still have several tasks."""
        assert self.column is not None
        size = poly(self.c.extent(self.column)).constant
        if self.decodes:
            return decoding_columns(size)
        unit = math.lcm(self.shape[1] * self.m.lanes, self.together)
        most = WIDE if self.wide else self.choice.block_columns
        most = max(1, (WIDTH if self.way == Columns.PLACE else most) // unit) * unit
        tasks = 4
        if self.high:
            outer = math.prod(self.size(v) or 1 for v in self.outer())
            tasks = max(1, 2 * TASKS // (self._row_blocks() * outer))
        return most if size is None else max(unit, min(most, -(-size // (tasks * unit)) * unit))

    def _column_tasks(self) -> int:
        """How many blocks of columns there are, for all rows that are not part of a tile."""
        sizes = [self.size(v) for v in (*self.outer(), self.column or "")]
        if None in sizes:
            return TASKS
        *outer, columns = (n or 1 for n in sizes)
        return math.prod(outer) * -(-columns // self._column_block())

    def _high(self) -> bool:
        """Whether tasks have many rows and, for that, few columns: panels that were packed before come from far, and each
        should come once."""
        usual = self.choice.block_rows == self.m.search.usual.block_rows
        known = None not in [self.size(v) for v in (*self.outer(), self.tile or "")]
        packed = self.way == Columns.PACKED and not self.decodes and self.column is not None
        return packed and usual and known

    def _row_blocks(self) -> int:
        """Into how many blocks of about as many rows the rows are cut then."""
        return -(-(self.size(self.tile or "") or 1) // NEAR_ROWS)

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
            if s.scale is not None or s.where or not whole:
                plan += self._split(d, s)
            elif self.m.in_memory(d.target):
                plan += [(d, s)] if sums_in_result(self, d, s) else self._split(d, s)
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
            fill, leaf = self._contraction(d, s)
            first += fill
            nodes += leaf
        return tuple(before), (*nodes, *self._flush(pending))

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
        self._local(inner, self.outer(), self._padded(inner, s))
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
            self._local(outer, self.outer(), self._padded(outer, s))
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
        self._local(made, self.outer())
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
        unit = self.columns(d)
        space = unit
        if not self.decodes and any(a.tensor == d.target for x in self.members for a in x.reads):
            space = spaced(self, column or "", unit) or unit
        return Layout((*others, Digit(r, self.shape[0]), Digit(r, 1, self.shape[0]),
                       Digit(n, space), Digit(n, 1, space)))  # fmt: skip

    def _flush(self, pending: list[Einsum]) -> list[Node]:
        """Row by row over the tile, or all of it at once where results lie along the rows."""
        if not pending:
            return []
        assert self.tile is not None
        if len(pending) == 1 and self._lies_across(pending[0]):
            return self._vector_nodes(pending, self.outer())
        inner = self._vector_nodes(pending, [*self.outer(), self.tile])
        return [Loop(self.tile, 1, tuple(inner))]

    def _lies_across(self, d: Einsum) -> bool:
        """Whether a definition that reduces nothing writes what is contiguous along the rows of the tile, from sums that are
        contiguous along the columns."""
        target = Access(d.target, d.indices)
        stored = self.m.memory.get(d.target)
        return any(
            not d.reduced and lies_across(target, v, self.tile or "", stored)
            for a in d.reads if a.tensor in self.locals
            for v in variables(a) if lies_across(a, self.tile or "", v, self.locals[a.tensor])
        )  # fmt: skip

    def _contraction(self, d: Einsum, s: Contraction) -> tuple[list[Node], list[Node]]:
        """What fills the first operand, and the product itself."""
        if self.decodes:
            return decoded(self, d, s)
        column, tile = s.columns[-1], self.tile or ""
        if self.way in (Columns.NEAR, Columns.BLOCKS):
            return [], blocks(self, d, s, self._column_block())
        packed, before = s.column_factor, list[Node]()
        if self.way != Columns.PLACE:
            packed, before = self._column_operand(f"{d.target}_columns", d, s, packed)
        mask, more = self._mask(d, s)
        rows, fill = self._row_operand(d, s)
        body, order, height = call("mul", rows, packed), self._depth_order(s), self.shape[0]
        sums = tuple(Reduction(v, d.monoid(v)) for v in order)

        def leaf(where: tuple[Expr, ...], update: bool) -> Node:
            e = Einsum(d.target, d.indices, body, sums, where, d.span)
            return Do(e, ((column, "lane"), (tile, "unroll")), update=update)

        tiles = ends(self.c, mask) if len(order) == 1 else None
        zero: tuple[Node, ...] = ()
        if tiles is not None:  # no tile has to come first: the sum starts as 0
            walk = order[0]
            full: tuple[Node, ...] = (leaf((), True),)
            part = masked_tiles(tile, height, tiles, full, (leaf(mask, True),))
            part = (Loop(walk, max(1, self.choice.block_depth // 4), part),)
            full = (Loop(tile, height, full),)
            nodes = masked_tiles(walk, self.choice.block_depth, tiles, full, part)
            start = Do(Einsum(d.target, d.indices, Const(0.0)), ((column, "lane"),))
            zero = (Loop(tile, 1, (start,)),)
            nodes = (Loop(column, self.columns(d), nodes),)
        else:
            loops = {"columns": [(column, self.columns(d))], "rows": [(tile, height)]}
            nodes = (self.nested({**loops, "depth": self._shallow(order)}, leaf(mask, False)),)
        far = 8 * self.choice.block_depth
        if len(order) == 1 and (self.size(order[0]) or far + 1) > far:  # first operands stay in L2
            nodes = (Loop(order[0], far, nodes),)
        nodes = (*zero, *nodes)
        extra = [v for v in d.free if v not in (tile, column, *self.rows)]
        for v in reversed(extra):
            nodes = (Loop(v, 1, nodes),)
        return fill, [*before, *more, *nodes]

    def _shallow(self, order: list[str]) -> list[tuple[str, int]]:
        """Loops over the outer part of the reduction, so that what is added up at once, in short chains of roundings, is not
        deeper than a block, or two if that is all of it."""
        block, last = self.choice.block_depth, self.size(order[-1])
        depth, loops = last or block, list[tuple[str, int]]()
        if last is None or last > 2 * block:
            depth, loops = block, [(order[-1], block)]
        for n, v in reversed(list(enumerate(order[:-1]))):
            depth *= self.size(v) or block
            if depth > block:
                return [*((u, 1) for u in order[: n + 1]), *loops]
        return loops


def _allocated(buffers: Iterable[Buffer], body: tuple[Node, ...]) -> tuple[Node, ...]:
    """The body inside its buffers."""
    for b in reversed(list(buffers)):
        body = (Alloc(b, body),)
    return body
