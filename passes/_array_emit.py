"""The loop nest of one array kernel: where tensors are kept, and the copies in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tcc.ir.cascade import Cascade, Einsum, Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Expr, Var, text, transform, variables
from tcc.ir.index import poly
from tcc.ir.layout import row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Loop, Node
from tcc.ir.target import Target, Unit
from tcc.passes._algebra import fresh


@dataclass(slots=True, eq=False)
class Leaf:
    """A definition on a unit: bound variables, loops of its own, the operand that is preloaded."""

    einsum: Einsum
    stage: int
    unit: Unit
    bind: dict[str, str]
    local: list[tuple[str, int]]
    still: Access | None


@dataclass(slots=True, eq=False)
class Plan:
    """What `map_array` decided about one kernel."""

    c: Cascade
    target: Target
    made: dict[str, Tensor]
    leaves: list[Leaf]
    outer: list[str]
    walked: str | None
    step: dict[str, int]
    leaving: set[str]
    taken: set[str]
    length: Callable[[str, int], int | None]


@dataclass(slots=True, eq=False)
class _Home:
    """Where a tensor of the kernel is kept; `stage` is None when it outlives a walk."""

    name: str
    level: str
    dims: tuple[Expr, ...]
    stage: int | None


@dataclass(slots=True, eq=False)
class _Place:
    """Buffers that live at one place of the tree, and the copies that fill them."""

    buffers: list[Buffer] = field(default_factory=list)
    copies: list[Node] = field(default_factory=list)


def emit(plan: Plan) -> tuple[Node, ...]:
    """The tree of a kernel."""
    return _Emitter(plan).tree()


class _Emitter:
    def __init__(self, plan: Plan) -> None:
        self.p = plan
        self.count = {r.name: r.count for r in plan.target.resources}
        self.used = {level.name: 0.0 for level in plan.target.levels}
        self.homes = {t: self._home(t) for t in plan.made}
        self.depths = [_Place() for _ in range(len(plan.outer) + 1)]
        self.stages: dict[int, _Place] = {}
        self.inputs: dict[tuple[object, str], str] = {}
        self.nodes: dict[int, list[Node]] = {}

    def tree(self) -> tuple[Node, ...]:
        p = self.p
        inner = _Place()
        for h in self.homes.values():
            if h.level != "memory":
                place = inner if h.stage is None else self.stages.setdefault(h.stage, _Place())
                place.buffers.append(self._buffer(h))
        for n, leaf in enumerate(p.leaves):
            self.nodes.setdefault(leaf.stage, []).append(self._leaf(leaf))
            if not any(x.einsum.target == leaf.einsum.target for x in p.leaves[n + 1 :]):
                self._leave(leaf)
        body: list[Node] = []
        for stage in sorted(self.nodes):
            place = self.stages.get(stage, _Place())
            nodes = _wrap(place, self.nodes[stage])
            if stage % 2 and p.walked in p.step and p.walked is not None:
                nodes = [Loop(p.walked, p.step[p.walked], tuple(nodes))]
            body += nodes
        body = _wrap(inner, body)
        for n in range(len(p.outer), -1, -1):
            body = _wrap(self.depths[n], body)
            if n and (step := p.step.get(p.outer[n - 1])):
                body = [Loop(p.outer[n - 1], step, tuple(body))]
        return tuple(body)

    # ---- where the kernel's own tensors are kept

    def _home(self, t: str) -> _Home:
        p = self.p
        writers = [x for x in p.leaves if x.einsum.target == t]
        users = [
            (x, a) for x in p.leaves for a in (_target(x.einsum), *x.einsum.reads) if a.tensor == t
        ]
        self._check_slices(t, users)
        alone = all(x in writers for x, _ in users) and len(writers) == 1
        if t in p.leaving and alone and not writers[0].einsum.reduced:
            return _Home(t, "memory", (), None)
        stages = {x.stage for x, _ in users}
        carried = any(p.walked in x.einsum.reduced for x in writers)
        stage = min(stages) if len(stages) == 1 and not carried else None
        dims = tuple(self._dimension(t, n, users) for n in range(len(p.made[t].shape)))
        level = self._level(t, users, dims, stage)
        name = fresh(f"{t}_{level}", p.taken) if t in p.leaving else t
        return _Home(name, level, dims, stage)

    def _dimension(self, t: str, axis: int, users: list[tuple[Leaf, Access]]) -> Expr:
        first = users[0][1].indices[axis]
        if isinstance(first, Var) and all(_is_var(a.indices[axis], first.name) for _, a in users):
            return Var(first.name)
        return self.p.made[t].shape[axis]

    def _check_slices(self, t: str, users: list[tuple[Leaf, Access]]) -> None:
        """A tensor that is made tile by tile must be read by the same variable."""
        made = users[0][1]
        for x, a in users:
            for i, own in zip(a.indices, made.indices, strict=True):
                if isinstance(own, Var) and own.name in self.p.outer and not _is_var(i, own.name):
                    raise CompileError(
                        "T0243",
                        f"`{x.einsum.target}` reads `{text(a)}`, which its kernel makes tile by "
                        f"tile of `{own.name}`",
                        a.span or x.einsum.span,
                        helps="put them into two kernels",
                    )

    def _level(
        self, t: str, users: list[tuple[Leaf, Access]], dims: tuple[Expr, ...], stage: int | None
    ) -> str:
        """A unit's registers, where all users have each element in one place; else the buffer."""
        unit = users[0][0].unit
        if not unit.level or any(x.unit is not unit for x, _ in users):
            return "buffer"
        first = users[0][0].bind
        if any(x.bind != first for x, _ in users) or set(first) - {
            d.name for d in dims if isinstance(d, Var)
        }:
            return "buffer"
        elements = 1
        for d in dims:
            length = self.p.length(d.name, stage or 0) if isinstance(d, Var) else poly(d).constant
            if length is None:
                return "buffer"
            count = self.count[first[d.name]] if isinstance(d, Var) and d.name in first else 1
            elements *= -(-length // count)
        size = elements * self.p.target.parameter("word_bytes", self.p.made[t].dtype.itemsize)
        limit = self.p.target.level(unit.level).bytes
        if limit and self.used[unit.level] + size > limit:
            return "buffer"
        self.used[unit.level] += size
        return unit.level

    def _buffer(self, h: _Home) -> Buffer:
        t = next(t for t, other in self.homes.items() if other is h)
        return Buffer(
            h.name,
            self.p.made[t].dtype,
            h.dims,
            h.level,
            row_major(len(h.dims)),
            self.p.made[t].fill,
        )

    # ---- leaves

    def _leaf(self, leaf: Leaf) -> Node:
        e = leaf.einsum

        def rule(n: Expr) -> Expr:
            return self._source(n, leaf.stage) if isinstance(n, Access) else n

        body = transform(e.body, rule)
        new = replace(
            e,
            target=self.homes[e.target].name,
            body=body,
            where=tuple(transform(p, rule) for p in e.where),
        )
        if leaf.still is None:
            return _looped(leaf.local, (Do(new, _pairs(leaf.bind), span=e.span),))
        still = leaf.still
        home = self.homes.get(still.tensor)
        if home is not None and home.level == leaf.unit.level:
            return _looped(leaf.local, (Do(new, _pairs(leaf.bind), span=e.span),))
        if not all(isinstance(i, Var) for i in still.indices) or len(set(variables(still))) != len(
            still.indices
        ):
            raise CompileError(
                "T0244",
                f"`{text(still)}` cannot stay in the elements: its indices are no plain variables",
                still.span or e.span,
                helps="use the dataflow `output`",
            )
        source = self._source(still, leaf.stage)
        dtype = (self.p.made.get(still.tensor) or self.p.c.tensors[still.tensor]).dtype
        kept = Access(fresh(f"{still.tensor}_{leaf.unit.level}", self.p.taken), still.indices)
        load = Do(
            Einsum(kept.tensor, kept.indices, source, span=e.span), _pairs(leaf.bind), span=e.span
        )
        shown = text(source)
        new = replace(
            new,
            body=transform(
                new.body, lambda n: kept if isinstance(n, Access) and text(n) == shown else n
            ),
        )
        b = Buffer(
            kept.tensor, dtype, still.indices, leaf.unit.level, row_major(len(still.indices))
        )
        return _looped(leaf.local, (Alloc(b, (load, Do(new, _pairs(leaf.bind), span=e.span))),))

    def _source(self, a: Access, stage: int) -> Access:
        """Where a leaf reads a tensor from; copies of inputs are made on first use."""
        p = self.p
        if a.tensor in self.homes:
            return Access(self.homes[a.tensor].name, a.indices, a.span)
        names = [i.name for i in a.indices if isinstance(i, Var)]
        if not names or len(names) != len(a.indices) or len(set(names)) != len(names):
            return a  # read where it lies
        walks = p.walked in names and p.walked in p.step and stage % 2 == 1
        looped = [n for n, v in enumerate(p.outer, 1) if v in names and v in p.step]
        key: object = stage if walks else f"depth {max(looped, default=0)}"
        place = (
            self.stages.setdefault(stage, _Place())
            if walks
            else self.depths[max(looped, default=0)]
        )
        if (key, text(a)) not in self.inputs:
            name = self.inputs[key, text(a)] = fresh(f"{a.tensor}_buffer", p.taken)
            t = p.c.tensors[a.tensor]
            place.buffers.append(
                Buffer(name, t.dtype, a.indices, "buffer", row_major(len(a.indices)), t.fill)
            )
            place.copies.append(Do(Einsum(name, a.indices, a, span=a.span), (), span=a.span))
        return Access(self.inputs[key, text(a)], a.indices, a.span)

    def _leave(self, leaf: Leaf) -> None:
        """The copy of a finished result to memory."""
        e, p = leaf.einsum, self.p
        home = self.homes[e.target]
        if e.target not in p.leaving or home.level == "memory":
            return
        done = p.walked not in e.reduced
        stage = leaf.stage if done or leaf.stage % 2 == 0 else leaf.stage + 1
        inside = home.level == leaf.unit.level
        copy = Do(
            Einsum(e.target, e.indices, Access(home.name, e.indices), span=e.span),
            _pairs(leaf.bind) if inside else (),
            span=e.span,
        )
        self.nodes.setdefault(stage, []).append(_looped(leaf.local if inside else [], (copy,)))


def _looped(loops: list[tuple[str, int]], nodes: tuple[Node, ...]) -> Node:
    """Nodes (one, when there are no loops) inside the loops, the first outermost."""
    for v, step in reversed(loops):
        nodes = (Loop(v, step, nodes),)
    assert len(nodes) == 1
    return nodes[0]


def _wrap(place: _Place, body: list[Node]) -> list[Node]:
    nodes = [*place.copies, *body]
    for b in reversed(place.buffers):
        nodes = [Alloc(b, tuple(nodes))]
    return nodes


def _pairs(bind: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(bind.items())


def _target(e: Einsum) -> Access:
    return Access(e.target, e.indices, e.span)


def _is_var(e: Expr, name: str) -> bool:
    return isinstance(e, Var) and e.name == name
