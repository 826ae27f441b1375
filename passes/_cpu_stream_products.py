"""Products inside a walk: which operand lies along the lanes, what is packed for it, and what masks it."""

from __future__ import annotations

from collections import ChainMap

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Expr, Var, accesses, call, text, variables
from tcc.ir.index import poly
from tcc.ir.layout import Digit, Layout
from tcc.ir.mapping import Do, Loop, Node
from tcc.passes._algebra import Contraction, contraction, product
from tcc.passes._cpu_masks import ends, masked_tiles
from tcc.passes._cpu_state import StateKernel


class StreamProducts(StateKernel):
    """A product of a tile of rows with a tile of the walk, in register tiles of rows that are unrolled and columns on lanes."""

    panel: int  # columns of a register tile
    block: int  # rows of a task
    prelude: list[Node]  # panels that do not vary along the walk
    panels: dict[str, Access]

    def _split_of(self, d: Einsum) -> Contraction | None:
        """The roles of a product's variables: scores have the lanes as columns, so that what the walk brings is read in
        place; a sum along the walk has whole vectors of its second operand as columns where it has them."""
        if self.tile is None:
            return None
        if self.walk in d.reduced:
            s = contraction(d, row=self.tile)
            if s is not None and s.scale is None and self._in_place(s):
                return s
        return contraction(d, column=self.tile)

    def _in_place(self, s: Contraction) -> bool:
        e, column = s.column_factor, s.columns[-1]
        size = poly(self.c.resolved(self.c.extent(column))).constant
        return (
            isinstance(e, Access)
            and size is not None
            and size % self.panel == 0
            and isinstance(e.indices[-1], Var)
            and e.indices[-1].name == column
            and self.c.tensors[e.tensor].dtype.name == "f32"
            and not any(accesses(i) for i in e.indices)
            and not any(column in variables(i) for i in e.indices[:-1])
        )

    def _product(self, d: Einsum, s: Contraction) -> tuple[list[Node], list[Einsum]]:
        """A product of tiles, columns on lanes and rows unrolled; and what is left to do to its elements."""
        column = s.columns[-1]
        row = self.tile if self.tile in s.rows else s.rows[-1]
        assert row is not None and self.tile is not None
        factor, rest = s.column_factor, []
        fold = s.scale is not None and not set(variables(s.scale)) & {row, self.walk}
        if fold and s.scale is not None:
            factor = call("mul", factor, s.scale)
        if s.where or (s.scale is not None and not fold):
            own: Expr = Access(d.target, d.indices)
            if s.scale is not None and not fold:
                own = call("mul", own, s.scale)
            rest.append(Einsum(d.target, d.indices, own, (), s.where, d.span))
        first, nodes = self._operand(d, s.row_factor)
        second: Expr = factor
        if self.tile not in s.rows:
            second, more = self._panel(f"{d.target}_columns", factor)
            nodes += more
        mask, more = self._mask(d, s)
        nodes += more
        update = self.walk in d.reduced

        def leaf(where: tuple[Expr, ...]) -> tuple[Node, ...]:
            e = Einsum(d.target, d.indices, call("mul", first, second), d.reductions, where, d.span)
            return (Do(e, ((column, "lane"), (row, "unroll")), update=update),)

        order = [
            (row, self.choice.tile_rows),
            (column, self.panel),
        ]  # the longer operand stays near
        inner, outer = order if not update else reversed(order)
        tiles = ends(self.c, mask) if update else None
        loops: tuple[Node, ...] = (
            masked_tiles(*inner, tiles, leaf(()), leaf(mask))
            if tiles is not None
            else (Loop(*inner, leaf(mask)),)
        )
        loops = (Loop(*outer, loops),)
        extra = [v for v in d.free if v not in (row, column, *self.rows)]
        for v in reversed(extra):
            loops = (Loop(v, 1, loops),)
        return [*nodes, *loops], rest

    def _mask(self, d: Einsum, s: Contraction) -> tuple[tuple[Expr, ...], list[Node]]:
        """Which terms a product has; what reads tensors along the lanes is computed into a panel first."""
        column = s.columns[-1]
        stored = [p for p in s.mask if any(column in variables(a) for a in accesses(p))]
        kept = tuple(p for p in s.mask if p not in stored)
        if not stored or column != self.tile:
            return s.mask, []
        panel, nodes = self._panel(f"{d.target}_mask", product(stored, "and"))
        return (*kept, panel), nodes

    def _operand(self, d: Einsum, e: Expr) -> tuple[Expr, list[Node]]:
        """The first factor as one read: in place, or computed into a buffer for this tile."""
        if (
            isinstance(e, Access)
            and not accesses(*e.indices)
            and self.c.tensors[e.tensor].dtype.is_float
        ):
            return e, []
        order = variables(e)
        name = self._temporary(f"{d.target}_rows", e, order)
        fill = Einsum(name, tuple(Var(v) for v in order), e)
        self._local(fill, self.outer())
        return Access(name, fill.indices), list(self._vector_nodes([fill], self.outer()))

    def _panel(self, name: str, e: Expr) -> tuple[Expr, list[Node]]:
        """A value along the lanes: a streamed buffer in place, else computed into one, before the walk where it does
        not vary along it."""
        if isinstance(e, Access) and e.tensor in self.locals and self._is_lane_buffer(e):
            return e, []
        if text(e) in self.panels:
            return self.panels[text(e)], []
        streams = self.walk in variables(e)
        inner = self.locals
        if not streams and isinstance(inner, ChainMap):
            self.locals = inner.maps[1]
        order = [*(v for v in variables(e) if v != self.tile), self.tile or ""]
        name = self._temporary(name, e, order)
        fill = Einsum(name, tuple(Var(v) for v in order), e)
        n = len(order) - 1
        lanes = (Digit(n, self.block), Digit(n, 1, self.block))
        self._local(fill, self.outer(), Layout((*(Digit(i) for i in range(n)), *lanes)))
        self.locals = inner
        nodes = self._vector_nodes([fill], self.outer())
        access = Access(name, fill.indices)
        if streams:
            return access, nodes
        self.prelude += nodes
        self.panels[text(e)] = access
        return access, []

    def _is_lane_buffer(self, e: Access) -> bool:
        b = self.locals[e.tensor]
        last = b.dims[b.layout.digits[-1].dimension]
        return isinstance(last, Var) and last.name == self.tile
