"""A joint reduction on a CPU: one walk over its variable in tiles, the state of every row kept near the core."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum, Joint
from tcc.ir.expr import (
    Access,
    Const,
    Expr,
    Var,
    call,
    text,
    variables,
)
from tcc.ir.index import poly
from tcc.ir.layout import Digit, Layout
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node
from tcc.ir.ops import MONOIDS
from tcc.passes._algebra import contraction, plain_variables
from tcc.passes._cpu_invariant import before_walk, uniform_first
from tcc.passes._cpu_stage import reading, shared_around
from tcc.passes._cpu_stream_products import StreamProducts
from tcc.passes._cpu_vectors import across, lies_across
from tcc.passes._polyhedra import tile_conditions

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper

MARGIN = 8  # a lane variable shorter than this wastes more than a vector loop along the walk


class StreamKernel(StreamProducts):
    """for rows on core { states = identities; for tiles of the walk { streamed; corrected states; updates }; finish }

    The state of a tile of rows is corrected towards the new references before a tile of the walk is added. Tiles at
    which an affine predicate holds everywhere run without it, tiles at which it holds nowhere do not run.
    """

    def __init__(self, m: Mapper, name: str, members: list[Einsum], joint: Joint) -> None:
        super().__init__(m, name, members, joint)
        self.panel = self.choice.tile_vectors * m.lanes
        self.tile = self._lane_row()
        self.block = self._block()
        self.prelude: list[Node] = []  # panels that do not vary along the walk
        self.panels: dict[str, Access] = {}

    def _lane_row(self) -> str | None:
        """The row variable along which a contraction over the walk can run: lanes of the scores."""
        splits = [d for d in self.members if self.walk in (*d.free, *d.reduced) and contraction(d)]
        for v in reversed(self.rows):
            size = poly(self.c.resolved(self.c.extent(v))).constant
            if size is not None and size < MARGIN:
                continue
            if splits and all(contraction(d, column=v) or contraction(d, row=v) for d in splits):
                return v
        return None

    def _block(self) -> int:
        size = poly(self.c.resolved(self.c.extent(self.tile))).constant if self.tile else 1
        if size is None:
            return self.choice.stream_rows
        panel, blocks = self.panel, -(-size // self.choice.stream_rows)
        return max(panel, -(-size // (blocks * panel)) * panel)  # blocks of equal length

    def build(self) -> Kernel:
        before, during, after = self._phases()
        outer = self.outer()
        for d in self.members:
            if not self.m.in_memory(d.target) and self.walk not in d.free:
                self._keep(d)
        if self.tile is None:
            ahead, during = before_walk(self, during)
            before += ahead
        nodes: list[Node] = self._rows_first(before)
        nodes += self._rows_first(
            [x for d in self.members if d.target in self.fields for x in self._start(d)]
        )
        loops: list[Node] = self._walks(during)
        if self.tile is None:
            loops = [uniform_first(self, n) for n in loops]
        nodes += [*self.prelude, *loops]
        nodes += self._rows_first(after)
        body = tuple(nodes)
        for b in reversed(list(self.locals.values())):
            body = (Alloc(b, body),)
        if self.tile is not None:
            body = (Loop(self.tile, self.block, body, "core"),)
        for v in reversed(outer):
            body = (Loop(v, 1, body, "core"),)
        names = [*self.rows, *self.used, *(v for d in self.members for v in (*d.free, *d.reduced))]
        return Kernel(self.name, self.m.extents(names), body)

    def tiles(self) -> str:
        """What it is cut into, in words."""
        t = self.choice
        return (
            f"register tiles of {t.tile_rows} rows x {t.tile_vectors} vectors, {self.block} rows a task, walked by "
            f"{t.stream_tile}"
        )

    def outer(self) -> list[str]:
        return [v for v in self.rows if v != self.tile]

    def _phases(self) -> tuple[list[Einsum], list[Einsum], list[Einsum]]:
        """Definitions before the walk, in it, and after it."""
        needed: set[str] = set(self.fields)
        for d in reversed(self.members):
            if d.target in needed:
                needed |= {a.tensor for a in d.reads}
        depends: set[str] = set(self.fields)
        before: list[Einsum] = []
        during: list[Einsum] = []
        after: list[Einsum] = []
        for d in self.members:
            if d.target in self.fields or self.walk in d.free:
                during.append(d)
                depends.add(d.target)
            elif any(a.tensor in depends for a in d.reads):
                depends.add(d.target)
                (during if d.target in needed else after).append(d)
            else:
                before.append(d)
        return before, during, after

    # ---- buffers

    def _keep(self, d: Einsum) -> None:
        self._local(d, self.outer(), self._layout(d))

    def _layout(self, d: Einsum) -> Layout | None:
        """The lane variable padded to the tile, and the rows of a product next to it padded to the register tile."""
        s = self._split_of(d)
        names = plain_variables(d)
        if self.tile is None:
            return None
        lane, row, unit = self.tile, self.walk if self.walk in names else None, self.block
        if s is not None and self.tile in s.rows:
            lane, row, unit = s.columns[-1], self.tile, self.panel
        elif s is not None:
            row = s.rows[-1]
        if lane not in names:
            return None
        n = names.index(lane)
        r = names.index(row) if row in names else None
        others = [Digit(i) for i in range(len(names)) if i not in (r, n)]
        inner = (
            ()
            if r is None
            else (Digit(r, self.choice.tile_rows), Digit(r, 1, self.choice.tile_rows))
        )
        return Layout((*others, *inner, Digit(n, unit), Digit(n, 1, unit)))

    # ---- nodes

    def _rows_first(self, members: Sequence[Einsum]) -> list[Node]:
        """Definitions without the walk, for the rows of a tile."""
        out: list[Node] = []
        for d in members:
            own = list(d.free)
            by_row = self.tile is not None and self.tile in own and own[-1] != self.tile and not (
                self._is_lane(d))  # fmt: skip
            if by_row and self.tile is not None:
                inner = self._vector_nodes([d], [*self.outer(), self.tile])
                out.append(Loop(self.tile, 1, tuple(inner)))
            else:
                out += self._vector_nodes([d], self.outer())
        return out

    def _is_lane(self, d: Einsum) -> bool:
        """Whether the target lies along the lanes."""
        b = self.locals.get(d.target)
        return b is not None and plain_variables(d)[b.layout.digits[-1].dimension] == self.tile

    def _walks(self, during: list[Einsum]) -> list[Node]:
        """The loops over the walk: tiles at which the affine predicates hold everywhere, then the others, of which the
        parts that no field needs are left out."""
        step = self.choice.stream_tile if self.tile is not None else self.choice.stream_row
        predicates = {text(p): p for d in during for p in d.where if self.walk in variables(p)}
        names = {self.walk, *(v for p in predicates.values() for v in variables(p))}
        tiles = {v: self.c.extent(v) for v in (*self.rows, self.walk) if v in names}
        known = {
            shown: p for shown, p in predicates.items()
            if set(variables(p)) <= set(tiles)
            and (found := tile_conditions([p], tiles)) is not None and not _is(found[0], True)
        }  # fmt: skip
        every = tile_conditions(list(known.values()), tiles)
        if not known or every is None:
            return [self._loop(during, None, step)]
        whole, part = every
        fields = [d for d in during if d.target in self.fields]
        shared = [p for t, p in known.items() if all(t in map(text, d.where) for d in fields)]
        if len(shared) < len(known):
            found = tile_conditions(shared, tiles)
            assert found is not None
            part = call("and", call("or", *found), call("not", whole))
        plain = [replace(d, where=self._unproven(d, set(known))) for d in during]
        loops: list[Node] = []
        if not _is(whole, False):
            loops.append(self._loop(plain, None if _is(whole, True) else whole, step))
        if not _is(part, False):
            fine = self._loop(during, call("or", whole, part), max(1, step // 4))
            loops.append(Loop(self.walk, step, (fine,), when=part))
        return loops

    def _unproven(self, d: Einsum, proven: set[str]) -> tuple[Expr, ...]:
        """The predicates that are left where some hold; those that alone say what is reduced stay."""
        left = tuple(p for p in d.where if text(p) not in proven)
        gone = set(d.reduced) - set(variables(d.body, *left))
        return d.where if gone else left

    def _loop(self, during: list[Einsum], when: Expr | None, step: int) -> Loop:
        outside = self.locals
        inner: dict[str, Buffer] = {}
        self.locals = ChainMap(inner, outside)
        body = tuple(self._tile_nodes(during))
        self.locals = outside
        for b in reversed(list(inner.values())):
            body = (Alloc(b, body),)
        return Loop(self.walk, step, body, when=when)

    def _tile_nodes(self, during: list[Einsum]) -> list[Node]:
        """One tile of the walk."""
        plan = [self._unguarded(d, during) for d in during]
        plan, references = self._references(plan)
        self._keep_streamed(plan)  # before what reads them is staged: it asks how they lie
        plan = self._staged(plan)
        self._keep_streamed(plan)
        plan = self._reuse_streamed(plan)
        nodes: list[Node] = []
        pending: list[Einsum] = []
        sums: list[Einsum] = []  # what follows the vector loops that are pending

        def flush() -> None:
            nodes.extend([*self._vectors(pending), *self._rows_first(sums)])
            pending.clear()
            sums.clear()

        for d in plan:
            field = self.fields.get(d.target)
            s = self._split_of(d)
            made = {x.target for x in sums}
            if any(a.tensor in made for a in d.reads):
                flush()
            if field is not None:
                if sums or any(x.target in self.fields for x in pending):
                    flush()
                nodes += self._corrected(field, d)
            if s is not None:
                flush()
                leaf, rest = self._product(d, s)
                nodes += leaf
                pending += rest
            elif self._is_wide(d):
                zero, part, after = self._wide_sum(d)
                nodes += self._rows_first([zero])
                pending.append(part)
                sums += after
            else:
                pending.append(d)
            if d.target in references:
                flush()
                nodes += self._reference(d, references)
        flush()
        return nodes

    def _keep_streamed(self, plan: list[Einsum]) -> None:
        for d in plan:
            streamed = self.walk in d.free and not self.m.in_memory(d.target)
            if streamed and d.target not in self.locals:
                self._keep(d)

    def _reuse_streamed(self, plan: list[Einsum]) -> list[Einsum]:
        """Only what lives for one tile of the walk may be overwritten."""
        both = self.locals
        assert isinstance(both, ChainMap)
        self.locals = both.maps[0]
        plan = self._reuse(plan, [])
        self.locals = both
        return plan

    def _vectors(self, members: list[Einsum]) -> list[Node]:
        """Vector loops: along the lanes of rows where there are any, else along the walk."""
        if not members:
            return []
        if self.tile is None:
            return [self._updating(n) for n in self._vector_nodes(members, self.outer())]
        out: list[Node] = []
        stage: list[Einsum] = []
        for d in [*members, None]:
            if (
                d is not None
                and self.walk in d.free
                and self.tile in d.free
                and not d.reduced
                and self._across(d) is None
            ):
                stage.append(d)
                continue
            if d is not None and self._joins(d, stage):
                stage.append(d)
                continue
            if stage:
                inner = self._vector_nodes(stage, [*self.outer(), self.walk])
                out.append(Loop(self.walk, 1, tuple(inner)))
                stage = []
            if d is not None:
                out += self._vector_nodes([d], self.outer())
        return [self._updating(n) for n in out]

    def _joins(self, d: Einsum, stage: list[Einsum]) -> bool:
        """Whether a reduction along the walk adds up what the stage makes while it is in registers."""
        made = {x.target: [text(i) for i in x.indices] for x in stage}
        near = all([text(i) for i in a.indices] == made.get(a.tensor) for a in d.reads)
        return near and d.reduced == [self.walk] and self.tile in d.free and bool(d.reads)

    def _across(self, d: Einsum) -> str | None:
        """The walk, where something that lies along it is read, or written, in lanes of rows."""
        assert self.tile is not None
        return across(d, self.tile, [self.walk], ChainMap(self.locals, self.m.memory))

    def _staged(self, plan: list[Einsum]) -> list[Einsum]:
        """What reads a tensor along the walk is computed once per tile, with lanes of rows: the largest expression
        around such a read that all its readers share."""
        if self.tile is None:
            return plan
        out = list(plan)
        for d in plan:
            for a in d.reads:
                stored = self.locals.get(a.tensor) or self.m.memory.get(a.tensor)
                if not lies_across(a, self.tile, self.walk, stored):
                    continue
                readers = [x for x in out if any(text(b) == text(a) for b in x.reads)]
                if not readers or any(self._split_of(x) is not None for x in readers):
                    continue
                if len(readers) == 1 and not readers[0].reduced:
                    continue
                e = shared_around(a, readers)
                order = [*(v for v in variables(e) if v != self.tile), self.tile]
                at = tuple(Var(v) for v in order)
                name = self._temporary(f"{d.target}_of", e, order)
                new = Access(name, at)
                first = out.index(readers[0])
                out = [reading(x, text(e), new) if x in readers else x for x in out]
                out.insert(first, Einsum(name, at, e))
        return out

    def _updating(self, n: Node) -> Node:
        """Reductions along the walk combine into the state."""
        if isinstance(n, Do):
            return replace(n, update=self.walk in n.einsum.reduced)
        return replace(n, body=tuple(self._updating(x) for x in n.body))

    def _unguarded(self, d: Einsum, during: list[Einsum]) -> Einsum:
        """Without predicates that have no effect: on a tensor all of whose readers have them, and on a reduction of a
        tensor that already holds the identity where they fail."""
        if d.target in self.fields:
            if isinstance(d.body, Access) and float(MONOIDS[d.monoid(self.walk)].identity) == 0:
                made = next((x for x in during if x.target == d.body.tensor), None)
                if made is not None and not made.reduced:
                    held = {text(p) for p in made.where}
                    return replace(d, where=self._unproven(d, held))
            return d
        if not d.reduced or self.m.in_memory(d.target):
            return d
        readers = [x for x in self.members if any(a.tensor == d.target for a in x.reads)]
        kept = tuple(p for p in d.where if not all(text(p) in {text(q) for q in r.where} for r in readers))  # fmt: skip
        return replace(d, where=kept)


def _is(e: Expr, value: bool) -> bool:
    return isinstance(e, Const) and e.value is value
