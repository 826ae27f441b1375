"""Maps a cascade onto a grid of blocks: every kernel cuts the variables that all its definitions
share over the grid.

    definitions of one kernel  -->  for grid variables on block { buffers @reg { walks … } }

Of a kernel's variables, those free in every definition go to the grid. The others stay inside a
block: *whole*, in one tile, where their extent is small and known, else *walked* tile by tile. A
tensor with a walked variable is *streamed*: it exists one tile at a time and is computed again in
each walk that reads it, so no buffer grows with a walked rank. Every other tensor of the kernel,
and every tensor that leaves it, ends a walk (a *sink*). Sinks that walk the same variables and do
not need each other share a walk. A row whose sum needs its maximum is so walked three times, or
not at all where it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Const, Expr, Var, accesses, text, transform, variables
from tcc.ir.index import poly
from tcc.ir.layout import Digit, Layout, row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Mapping, Node
from tcc.ir.mapping_verify import verify
from tcc.ir.target import Target
from tcc.passes._gpu_merge import Launch, launches_of, merged, ordered, stored_tensors
from tcc.passes._gpu_roles import Contraction, contraction
from tcc.passes._gpu_states import State, find_states


def map_gpu(c: Cascade, target: Target) -> Mapping:
    """The mapping of `c` with one launch per kernel of `c.groups`, and one per definition outside
    them.

    Predicates must say explicitly where a definition exists. Raises T0220 to T0223 for what has no
    such mapping.
    """
    launches = ordered(c, launches_of(c))
    if target.parameter("merge", 1):
        whole = int(target.parameter("whole_extent", 128))
        launches = merged(c, launches, whole, lambda all_, one: _has_mapping(c, target, all_, one))
    launches = ordered(c, launches)
    kernels: list[Kernel | Extern] = []
    crossing: list[str] = []
    outputs = {t.name for t in c.outputs}
    for name, members in launches:
        first = members[0]
        if isinstance(first, Extern):
            kernels.append(first)
            continue
        stored = stored_tensors(c, members)
        crossing += [t for t in stored if t not in outputs]
        kernels.append(_kernel(c, target, name, members, stored))
    memory = tuple(
        Buffer(
            t, c.tensors[t].dtype, c.tensors[t].shape, "memory", row_major(len(c.tensors[t].shape))
        )
        for t in dict.fromkeys(crossing)
    )
    return verify(
        Mapping(c.name, target.name, c.ranks, c.inputs, c.outputs, memory, tuple(kernels))
    )


Leaf = Callable[[Einsum, tuple[str, ...], frozenset[str]], tuple[Node, ...]]


def _kernel(
    c: Cascade, target: Target, name: str, members: list[Definition], stored: list[str]
) -> Kernel:
    inside = [d for d in members if isinstance(d, Einsum)]
    return _KernelMapper(c, target, name, inside, frozenset(stored)).kernel()


def _has_mapping(c: Cascade, target: Target, launches: list[Launch], joined: Launch) -> bool:
    """Whether a joined kernel can be mapped, and the launches still have an order."""
    try:
        ordered(c, launches)
        _kernel(c, target, *joined, stored_tensors(c, joined[1]))
    except CompileError:
        return False
    return True


def power_of_two(n: int) -> int:
    """The least power of two that is n or more."""
    return 1 << max(0, n - 1).bit_length()


@dataclass
class _KernelMapper:
    c: Cascade
    target: Target
    name: str
    members: list[Einsum]
    stored: frozenset[str]
    extents: dict[str, Expr] = field(default_factory=dict)
    grid: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    tile: dict[str, int] = field(
        default_factory=dict
    )  # of grid and walked variables; whole variables are absent

    def kernel(self) -> Kernel:
        self.states, self.members = find_states(self.c, self.members, self.stored)
        self._check()
        every = [d for s in self.states for d in (s.first, s.step)] + self.members
        for d in every:
            for v in [*d.free, *d.reduced]:
                self.extents.setdefault(v, self.c.extent(v))
        for s in self.states:
            self.extents.setdefault(s.var, self.c.extent(s.var))
        shared = set.intersection(*(set(d.free) for d in every))
        self.grid = [v for v in every[-1].free if v in shared]
        self._choose_tiles()
        body = self._walks()
        for v in reversed(self.grid):
            body = (Loop(v, self.tile[v], body, "block"),)
        return Kernel(self.name, tuple(self.extents.items()), body)

    # ---- what the kernel may hold

    def _check(self) -> None:
        """In one kernel a variable is one loop, so a tensor is read with the variables that it is
        written with.
        """
        written: dict[str, Einsum] = {}
        for d in self.members:
            for a in d.reads:
                if a.tensor in written:
                    self._same_point(a, written[a.tensor], d)
            if d.target in written and any(
                a.tensor == d.target for m in self.members for a in m.reads
            ):
                raise CompileError(
                    "T0221",
                    f"`{d.target}` is defined in parts and read inside kernel `{self.name}`",
                    d.span,
                    helps="put the definitions that read it into another kernel",
                )
            written[d.target] = d

    def _same_point(self, a: Access, writer: Einsum, reader: Einsum) -> None:
        names = [i.name for i in writer.indices if isinstance(i, Var)]
        plain = len(names) == len(writer.indices) and len(set(names)) == len(names)
        if not plain or [text(i) for i in a.indices] != names:
            raise CompileError(
                "T0222",
                f"`{reader.target}` reads `{text(a)}`, but kernel `{self.name}` computes "
                f"`{text(Access(writer.target, writer.indices))}`",
                a.span or reader.span,
                helps="read it with the variables that it is written with, or use two kernels",
            )

    # ---- tiles

    def _constant(self, v: str) -> int | None:
        """The extent of a variable where it is a known number, derived ranks unfolded."""
        from tcc.ir.expr import Size

        def unfold(n: Expr) -> Expr:
            size = rank.size if isinstance(n, Size) and (rank := self.c.rank(n.rank)) else None
            return transform(size, unfold) if size is not None else n

        return poly(transform(self.extents[v], unfold)).constant

    def _choose_tiles(self) -> None:
        found = [f for d in self.members if self._is_float(d) and (f := contraction(d))]
        if found:
            self._contraction_tiles(found)
        else:
            self._row_tiles()

    def _is_float(self, d: Einsum) -> bool:
        return self.c.tensors[d.target].dtype.is_float and self.c.tensors[d.target].dtype.bits <= 32

    def _contraction_tiles(self, found: list[Contraction]) -> None:
        """Rows, columns and depth by parameters; other grid and reduced variables one coordinate
        at a time.
        """
        rows, columns, depths = (
            {getattr(f, role) for f in found} for role in ("row", "column", "depth")
        )
        sides = {v: "tile_rows" if v in rows else "tile_columns" for v in [*rows, *columns]}
        limit = int(self.target.parameter("whole_extent", 128))
        exact_chain = len(found) > 1 and not self.target.parameter("tf32", 0)
        for v in self.extents:
            size = self._constant(v)
            wanted = int(self.target.parameter(sides.get(v, "tile_depth"), 32))
            if v not in sides and v not in depths:
                wanted = 1
            if any(v == s.var for s in self.states):
                wanted = 1
            if (
                v in self.grid and v in sides and exact_chain
            ):  # exact products use many more registers
                wanted = int(self.target.parameter("chain_rows", 32))
            if v in self.grid:
                self.tile[v] = (
                    wanted
                    if size is None
                    else min(wanted, power_of_two(max(size, 16 if wanted > 1 else 1)))
                )
            elif size is None or size > limit or wanted == 1:
                self.tile[v] = wanted

    def _row_tiles(self) -> None:
        """The variable along which memory is contiguous gets the most elements; what is left goes
        to the next ones.
        """
        inner = [v for v in self.extents if v not in self.grid]
        last = [
            i.name
            for d in self.members
            for a in (*d.reads, Access(d.target, d.indices))
            if a.indices and isinstance(i := a.indices[-1], Var)
        ]
        order = sorted(
            self.extents,
            key=lambda v: (-last.count(v), v in self.grid, -list(self.extents).index(v)),
        )
        budget = int(self.target.parameter("block_elements", 4096)) // (1 if inner else 4)
        row, walk = (int(self.target.parameter(p, 1024)) for p in ("row_elements", "walk_elements"))
        for n, v in enumerate(order):
            size = self._constant(v)
            if any(v == s.var for s in self.states):
                self.tile[v] = 1
            elif v in self.grid:
                most = budget if not inner else 128 if n == 0 else 16
                self.tile[v] = min(budget, most, power_of_two(size) if size is not None else budget)
                budget //= self.tile[v]
            elif size is not None and (size <= row if n == 0 else power_of_two(size) <= budget):
                budget = max(1, budget // power_of_two(size))
            else:
                self.tile[v] = min(budget, walk if n == 0 else 32)
                budget //= self.tile[v]

    # ---- walks

    def _walked(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(v for v in names if v in self.tile and v not in self.grid)

    def _local(self, tensor: str) -> str:
        """The register copy of a tensor of this kernel; a stored tensor keeps its name for
        memory.
        """
        if tensor not in self.stored:
            return tensor
        name = f"{tensor}_tile"
        while name in self.c.tensors:
            name += "_"
        return name

    def _ring(self, s: State) -> Buffer:
        """The register tiles of two steps of a state."""
        indices = s.first.indices[: s.position] + s.first.indices[s.position + 1 :]
        b = replace(self._buffer(replace(s.first, target=s.tensor, indices=indices)), name=s.name)
        dims = (*b.dims[: s.position], Const(2), *b.dims[s.position :])
        moved = (Digit(d.dimension + (d.dimension >= s.position)) for d in b.layout.digits)
        return replace(b, dims=dims, layout=Layout((Digit(s.position), *moved)))

    def _buffer(self, d: Einsum) -> Buffer:
        """The register tile of a definition; the grid's variables come first in its layout."""
        names = d.free
        order = sorted(
            range(len(names)),
            key=lambda i: (self.grid.index(names[i]) if names[i] in self.grid else 99, i),
        )
        layout = Layout(tuple(Digit(i) for i in order))
        dims = tuple(Var(v) for v in names)
        return Buffer(self._local(d.target), self.c.tensors[d.target].dtype, dims, "reg", layout)

    def _rewritten(self, d: Einsum, target: str) -> Do:
        own = {m.target for m in self.members}

        def rule(n: Expr) -> Expr:
            return (
                replace(n, tensor=self._local(n.tensor))
                if isinstance(n, Access) and n.tensor in own
                else n
            )

        where = tuple(transform(p, rule) for p in d.where)
        return Do(replace(d, target=target, body=transform(d.body, rule), where=where))

    def _store(self, d: Einsum) -> Do:
        """The copy of a finished register tile to memory."""
        outer = tuple(p for p in d.where if not set(variables(p)) & set(d.reduced))
        return Do(
            Einsum(d.target, d.indices, Access(self._local(d.target), d.indices), (), outer, d.span)
        )

    def _read_inside(self, tensor: str) -> bool:
        return any(a.tensor == tensor for m in self.members for a in m.reads)

    def _walks(self) -> tuple[Node, ...]:
        sinks = [d for d in self.members if not self._walked(d.free) or d.target in self.stored]
        if not self.states:
            return self._sequence(sinks, ())
        var = self.states[0].var
        late: list[Einsum] = []
        names = {s.name for s in self.states}
        for d in sinks:
            if var in d.free:
                raise CompileError(
                    "T0223",
                    f"`{d.target}` keeps every step of a recurrence",
                    d.span,
                    helps="put it into another kernel, or choose the cpu target",
                )
            if any(a.tensor in names for a in d.reads) or any(
                self._needs(d, other) for other in late
            ):
                late.append(d)
        early = [d for d in sinks if d not in late]
        states: tuple[Node, ...] = tuple(
            Do(e) for s in self.states for e in (s.first, *s.stores[:1])
        )
        states += self._emit([], (var,), (), frozenset(), self._local_do, self.states)
        nodes: tuple[Node, ...] = (*states, *self._sequence(late, ()))
        for s in reversed(self.states):
            nodes = (Alloc(self._ring(s), nodes),)
        return self._sequence(early, nodes)

    def _sequence(self, sinks: list[Einsum], after: tuple[Node, ...]) -> tuple[Node, ...]:
        """The walks that end in `sinks`, then the nodes `after` them, inside the buffers that the
        walks fill.
        """
        walks: list[tuple[tuple[str, ...], bool, list[Einsum]]] = []
        for d in sinks:
            streamed = bool(self._walked(d.free))
            loops = self._walked(d.free) if streamed else self._walked(d.reduced)
            if (
                walks
                and walks[-1][:2] == (loops, streamed)
                and not any(self._needs(d, other) for other in walks[-1][2])
            ):
                walks[-1][2].append(d)
            else:
                walks.append((loops, streamed, [d]))
        nodes = after
        for loops, streamed, members in reversed(walks):
            if streamed:
                nodes = (*self._emit(members, loops, (), frozenset(), self._stream), *nodes)
                continue
            kept = [d for d in members if not self._direct(d)]
            stores = tuple(self._store(d) for d in kept if d.target in self.stored)
            nodes = (*self._emit(members, loops, (), frozenset(), self._keep), *stores, *nodes)
            for d in reversed(kept):
                nodes = (Alloc(self._buffer(d), nodes),)
        return nodes

    def _direct(self, d: Einsum) -> bool:
        """Whether a tensor needs no register copy: it is written once and only to memory."""
        return (
            d.target in self.stored
            and not self._walked(d.reduced)
            and not self._read_inside(d.target)
        )

    def _keep(self, d: Einsum, open_: tuple[str, ...], ready: frozenset[str]) -> tuple[Node, ...]:
        return (self._rewritten(d, d.target if self._direct(d) else self._local(d.target)),)

    def _stream(self, d: Einsum, open_: tuple[str, ...], ready: frozenset[str]) -> tuple[Node, ...]:
        """One tile of a stored streamed tensor, reduced in registers before it goes to memory."""
        if not self._walked(d.reduced):
            return (self._rewritten(d, d.target),)
        reduce = self._emit([d], self._walked(d.reduced), open_, ready, self._local_do)
        return (Alloc(self._buffer(d), (*reduce, self._store(d))),)

    def _local_do(
        self, d: Einsum, open_: tuple[str, ...], ready: frozenset[str]
    ) -> tuple[Node, ...]:
        return (self._rewritten(d, self._local(d.target)),)

    def _emit(
        self,
        ds: list[Einsum],
        loops: tuple[str, ...],
        open_: tuple[str, ...],
        ready: frozenset[str],
        leaf: Leaf,
        states: Sequence[State] = (),
    ) -> tuple[Node, ...]:
        """Loops over `loops`, at each depth first the streamed tensors that are complete there,
        innermost the leaves.

        Innermost, states step one after the other, each after the streamed tensors that it needs.
        """
        producers = self._producers(ds, open_, ready)

        def nest(n: int, ready: frozenset[str]) -> tuple[Node, ...]:
            if n < len(producers):
                q = producers[n]
                own = self._emit([q], self._walked(q.reduced), open_, ready, self._local_do)
                return (Alloc(self._buffer(q), (*own, *nest(n + 1, ready | {q.target}))),)
            if loops:
                inner = self._emit(ds, loops[1:], (*open_, loops[0]), ready, leaf, states)
                return (Loop(loops[0], self.tile[loops[0]], inner),)
            return (
                self._steps(0, open_, ready)
                if states
                else tuple(x for d in ds for x in leaf(d, open_, ready))
            )

        return nest(0, ready)

    def _steps(self, n: int, open_: tuple[str, ...], ready: frozenset[str]) -> tuple[Node, ...]:
        """One step of the states from the n-th on."""
        if n == len(self.states):
            return ()
        s = self.states[n]
        producers = self._producers([s.step], open_, ready)

        def nest(i: int, ready: frozenset[str]) -> tuple[Node, ...]:
            if i < len(producers):
                q = producers[i]
                own = self._emit([q], self._walked(q.reduced), open_, ready, self._local_do)
                return (Alloc(self._buffer(q), (*own, *nest(i + 1, ready | {q.target}))),)
            reduce = self._emit([s.step], self._walked(s.step.reduced), open_, ready, self._step_do)
            stores = tuple(Do(e) for e in s.stores[1:])
            return (*reduce, *stores, *self._steps(n + 1, open_, ready))

        return nest(0, ready)

    def _step_do(
        self, d: Einsum, open_: tuple[str, ...], ready: frozenset[str]
    ) -> tuple[Node, ...]:
        return (self._rewritten(d, d.target),)

    def _producers(
        self, ds: list[Einsum], open_: tuple[str, ...], ready: frozenset[str]
    ) -> list[Einsum]:
        """The streamed tensors below `ds` that can be computed now: all their walked variables
        have a tile.
        """
        wanted: set[str] = set()
        pending = [a.tensor for d in ds for a in d.reads]
        mine = {d.target for d in ds}
        while pending:
            name = pending.pop()
            d = next((m for m in self.members if m.target == name), None)
            if (
                d is None
                or name in ready
                or name in wanted
                or not self._walked(d.free)
                or name in mine
            ):
                continue
            if set(self._walked(d.free)) <= set(open_):
                wanted.add(name)
            pending += [a.tensor for a in d.reads]
        return [m for m in self.members if m.target in wanted]

    def _needs(self, d: Einsum, other: Einsum) -> bool:
        """Whether `d` depends on `other`, directly or through tensors of this kernel."""
        pending, seen = [d], set()
        while pending:
            e = pending.pop()
            for a in accesses(e.body, *e.where):
                if a.tensor == other.target:
                    return True
                for m in self.members:
                    if m.target == a.tensor and m.target not in seen:
                        seen.add(m.target)
                        pending.append(m)
        return False
