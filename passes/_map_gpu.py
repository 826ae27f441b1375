"""Maps a cascade onto a grid of blocks: every kernel cuts the variables that all its definitions
share over the grid.

    definitions of one kernel  -->  for grid variables on block { buffers @reg { walks … } }

Of a kernel's variables, those free in every definition go to the grid. The others stay inside a
block: *whole*, in one tile, where their extent is small and known, else *walked* tile by tile. A
tensor with a walked variable is *streamed*: it exists one tile at a time and is computed again in
each walk that reads it, so no buffer grows with a walked rank. Every other tensor of the kernel,
and every tensor that leaves it, ends a walk (a *sink*). Sinks that walk the same variables and do
not need each other share a walk, and so do the fields of a joint reduction: a row whose sum needs
its maximum is walked twice without a joint, once with it, and not at all where it fits.

    for m by 64 { … }  -->  for m by 64 when full { … };  for m by 64 when partial { … }

A walk of sinks with affine predicates visits full tiles without a mask, then partial ones with it,
and skips empty ones; its sinks start at their identities (`do`) and take up each tile (`update`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Field
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Call, Const, Expr, Var, accesses, text, transform, variables, walk
from tcc.ir.joint_verify import walk_of
from tcc.ir.layout import Digit, Layout, row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Mapping, Node
from tcc.ir.mapping_verify import verify
from tcc.ir.target import Target
from tcc.passes._gpu_check import check_reads
from tcc.passes._gpu_joint import Together, corrected, held, identity, parts_of, so_far
from tcc.passes._gpu_merge import Launch, launches_of, merged, ordered, stored_tensors
from tcc.passes._gpu_states import State, find_states
from tcc.passes._gpu_tiles import Space, constant_extent


def map_gpu(c: Cascade, target: Target) -> Mapping:
    """The mapping of `c` with one launch per kernel of `c.groups`, and one per definition outside
    them.

    Predicates must say explicitly where a definition exists. Raises T0220 to T0223 for what has no
    such mapping.
    """
    launches = ordered(c, launches_of(c))
    if target.parameter("merge", 1):
        whole, row = (
            int(target.parameter(p, n)) for p, n in (("whole_extent", 128), ("row_elements", 1024))
        )
        launches = merged(
            c, launches, whole, row, lambda all_, one: _has_mapping(c, target, all_, one)
        )
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
    joints: list[Together] = field(default_factory=list)
    fields: dict[str, Einsum] = field(default_factory=dict)  # of the walk that is being emitted
    between: frozenset[str] = frozenset()  # what that walk evaluates though none of it is walked
    certain: frozenset[str] = frozenset()  # predicates that hold on every tile of that walk

    def kernel(self) -> Kernel:
        self.states, self.members = find_states(self.c, self.members, self.stored)
        check_reads(self.name, self.members, self.states)
        every = [d for s in self.states for d in (s.first, s.step)] + self.members
        for d in every:
            for v in [*d.free, *d.reduced]:
                self.extents.setdefault(v, self.c.extent(v))
        for s in self.states:
            self.extents.setdefault(s.var, self.c.extent(s.var))
        shared = set.intersection(*(set(d.free) for d in every))
        self.grid = [v for v in every[-1].free if v in shared]
        joints = [j for j in self.c.joints if set(j.tensors) <= {d.target for d in self.members}]
        kept = {v for j in joints for d in self.members if d.target in j.tensors for v in d.free}
        self.grid += [v for v in self.extents if v in kept and self._spreads(v, every)]
        steps = frozenset(s.var for s in self.states)
        self.tile = Space(
            self.c, self.target, tuple(self.members), self.extents, tuple(self.grid), steps,
            frozenset(kept), self.stored,
        ).tiles()  # fmt: skip
        made = {d.target: d for d in self.members}
        walks = [held(walk_of(self.c, j), made, lambda d: not self._walked(d.free)) for j in joints]
        self.joints = [w for w in walks if self._walked([w.var]) and len(w.fields) > 1]
        body = self._walks()
        for v in reversed(self.grid):
            body = (Loop(v, self.tile[v], body, "block"),)
        return Kernel(self.name, tuple(self.extents.items()), body)

    def _spreads(self, v: str, every: list[Einsum]) -> bool:
        """Whether the state of a joint is cut over the grid along `v`, which registers can not hold: what lacks `v` is
        computed again in each block, so it may not leave the kernel.
        """
        size = constant_extent(self.c, self.extents[v])
        short = size is not None and size <= int(self.target.parameter("state_extent", 256))
        stored = [d for d in every if d.target in self.stored]
        return (
            v not in self.grid
            and not short
            and not self.states
            and all(v in d.free for d in stored)
            and not any(v in d.reduced for d in every)
        )

    # ---- walks

    def _walked(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(v for v in names if v in self.tile and v not in self.grid)

    def _local(self, tensor: str) -> str:
        """The register copy of a tensor of this kernel; a stored tensor keeps its name for
        memory.
        """
        if tensor not in self.stored:
            return tensor
        return self._fresh(f"{tensor}_tile")

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

    def _rewritten(self, d: Einsum, target: str, update: bool = False) -> Do:
        own = {m.target for m in self.members}
        compared = {
            id(a)
            for n in walk(d.body, *d.where)
            if isinstance(n, Call) and n.spec.result == "bool"
            for a in n.args
        }

        def rule(n: Expr) -> Expr:
            if not isinstance(n, Access) or n.tensor not in own:
                return n
            value = replace(n, tensor=self._local(n.tensor))
            f = self.fields.get(n.tensor)
            return value if f is None or id(n) in compared else so_far(self.c, f, value)

        where = tuple(transform(p, rule) for p in d.where if text(p) not in self.certain)
        return Do(
            replace(d, target=target, body=transform(d.body, rule), where=where), update=update
        )

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
        walks: list[tuple[tuple[str, ...], bool, list[Einsum], Together | None]] = []
        for unit, joint in self._units(sinks):
            streamed = joint is None and bool(self._walked(unit[0].free))
            loops = self._walked(unit[0].free if streamed else unit[0].reduced)
            if (
                joint is None
                and walks
                and walks[-1][3] is None
                and walks[-1][:2] == (loops, streamed)
                and not any(self._needs(unit[0], other) for other in walks[-1][2])
            ):
                walks[-1][2].append(unit[0])
            else:
                walks.append((loops, streamed, unit, joint))
        nodes = after
        for loops, streamed, members, joint in reversed(walks):
            if streamed:
                nodes = (*self._emit(members, loops, (), frozenset(), self._stream), *nodes)
                continue
            kept = [d for d in members if not self._direct(d)]
            stores = tuple(self._store(d) for d in kept if d.target in self.stored)
            if joint is None and self._in_parts(loops, members):
                joint = Together(loops[0], tuple((Field(d.target), d) for d in members))
            walk = (
                self._together(joint)
                if joint is not None
                else self._emit(members, loops, (), frozenset(), self._keep)
            )
            nodes = (*walk, *stores, *nodes)
            for d in reversed(kept):
                nodes = (Alloc(self._buffer(d), nodes),)
        return nodes

    def _units(self, sinks: list[Einsum]) -> list[tuple[list[Einsum], Together | None]]:
        """The sinks in order, the fields of a joint together: after what they need, before what needs them."""
        units: list[tuple[list[Einsum], Together | None]] = [([d], None) for d in sinks]
        for w in self.joints:
            if not all(d in sinks for d in w.members):
                continue
            others = [u for u in units if u[0][0] not in w.members]
            late = [u for u in others if any(self._needs(d, f) for d in u[0] for f in w.members)]
            early = [u for u in others if u not in late]
            early, rest = (
                [u for u in early if any(self._needs(f, d) for d in u[0] for f in w.members)],
                [u for u in early if not any(self._needs(f, d) for d in u[0] for f in w.members)],
            )
            units = [*early, (w.members, w), *sorted([*rest, *late], key=others.index)]
        return units

    def _in_parts(self, loops: tuple[str, ...], members: list[Einsum]) -> bool:
        """Whether a walk has tiles that predicates leave out, or that need none of their masks."""
        if len(loops) != 1 or any(len({d.monoid(v) for v in d.reduced}) > 1 for d in members):
            return False
        return any(loops[0] in variables(p) for d in members for p in d.where)

    # ---- one walk for several sinks, in registers from the first tile to the last

    def _together(self, w: Together) -> tuple[Node, ...]:
        start = tuple(
            Do(Einsum(self._local(d.target), d.indices, identity(self.c, d))) for d in w.members
        )
        conditions = [{text(p): p for p in d.where if w.var in variables(p)} for d in w.members]
        shared = [p for shown, p in conditions[0].items() if all(shown in c for c in conditions)]
        step = self.tile[w.var]
        size = constant_extent(self.c, self.extents[w.var])
        loops: list[Node] = []
        for when, certain in parts_of(
            shared, w.var, step, self.extents, size is not None and size % step == 0
        ):
            self.certain, self.between = certain, w.between
            body = self._fields(w, 0, frozenset(), {})
            loops.append(Loop(w.var, step, body, when=when))
        self.certain, self.between = frozenset(), frozenset()
        return (*start, *loops)

    def _fields(
        self, w: Together, n: int, ready: frozenset[str], old: dict[str, str]
    ) -> tuple[Node, ...]:
        """What a tile does to the fields from the n-th on."""
        if n == len(w.fields):
            return ()
        f, d = w.fields[n]
        self.fields = {e.target: e for e in w.members[:n]}
        producers = self._producers([d], (w.var,), ready)

        def nest(i: int, ready: frozenset[str]) -> tuple[Node, ...]:
            self.fields = {e.target: e for e in w.members[:n]}
            if i < len(producers):
                q = producers[i]
                own = self._emit([q], self._walked(q.reduced), (w.var,), ready, self._local_do)
                return (Alloc(self._buffer(q), (*own, *nest(i + 1, ready | {q.target}))),)
            return remember(ready)

        def remember(ready: frozenset[str]) -> tuple[Node, ...]:
            if not w.remembered(n):
                return step(ready, old)
            name = self._fresh(f"{d.target}_old")
            b = replace(self._buffer(d), name=name)
            keep = Do(Einsum(name, d.indices, Access(self._local(d.target), d.indices)))
            return (Alloc(b, (keep, *step(ready, {**old, d.target: name}))),)

        def step(ready: frozenset[str], old: dict[str, str]) -> tuple[Node, ...]:
            moved = corrected(self.c, w, n, self._local, old)
            move = () if moved is None else (Do(Einsum(self._local(d.target), d.indices, moved)),)
            inner = tuple(p for p in d.where if set(variables(p)) & set(d.reduced))
            take = self._rewritten(replace(d, where=inner), self._local(d.target), True)
            return (*move, take, *self._fields(w, n + 1, ready, old))

        nodes = nest(0, ready)
        self.fields = {}
        return nodes

    def _fresh(self, name: str) -> str:
        while name in self.c.tensors:
            name += "_"
        return name

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
                or not (self._walked(d.free) or name in self.between)
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
