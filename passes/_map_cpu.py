"""How a cascade runs on a CPU: tiles for caches, packed operands for contractions, vector lanes for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Mapping as Mapping_
from contextlib import contextmanager
from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Recurrence, Stop, steps, targets
from tcc.ir.coded_leaf import undecodable
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import (
    Access,
    Const,
    Expr,
    Var,
    accesses,
    call,
    variables,
)
from tcc.ir.layout import row_major
from tcc.ir.mapping import Buffer, Do, Kernel, Loop, Mapping, Node
from tcc.ir.mapping_verify import verify
from tcc.ir.target import Target
from tcc.passes._algebra import fills
from tcc.passes._cpu_coded import coded_reads, from_values
from tcc.passes._cpu_dots import dots_kernels, row_operands
from tcc.passes._cpu_group import GroupKernel
from tcc.passes._cpu_pad import padded
from tcc.passes._cpu_place import Columns
from tcc.passes._cpu_stream import StreamKernel
from tcc.passes._cpu_tiles import Tiles, measured, usual_tiles
from tcc.passes._cpu_vectors import vector_nodes
from tcc.passes._search import Built, Search


def map_cpu(c: Cascade, target: Target, search: bool = True) -> Mapping:
    """One kernel per group of `c`, preceded by the kernels that pack its contractions' second operands."""
    return verify(Mapper(c, target, search).run())


class Mapper:
    def __init__(self, c: Cascade, target: Target, search: bool = True) -> None:
        self.c = c
        self.target = target.name
        self.lanes = max(1, target.resource("lane").count)
        self.registers = int(target.parameter("registers", 16))
        self.joined = max(1, int(target.parameter("register_lanes", 0)) // self.lanes)
        self.tiles = usual_tiles(target)
        self.speeds = measured(target, self.lanes, self.tiles.register)
        self.memory: dict[str, Buffer] = {}
        self.kernels: list[Kernel | Extern] = []
        self.names = set(c.tensors) | {name for name, _ in c.groups}
        self.types = dict(c.tensors)
        self.copies: dict[tuple[str, int, int | None, int], str] = {}  # of constant operands
        self.search = Search(self, target if search else replace(target, tiles=(), tuned={}))
        self.making: set[str] = set()  # what the kernel that is being made computes

    def run(self) -> Mapping:
        self._decode_recurrences()
        groups = self._groups()
        self._memory(groups)
        row_operands(self, [members for _, members in groups])
        for name, members in groups:
            first = members[0]
            if isinstance(first, Extern):
                self.kernels.append(first)
                continue
            einsums = [d for d in members if isinstance(d, Einsum)]
            self.making = {d.target for d in einsums}
            recurrence = next(
                (
                    s
                    for s in self._recurrences()
                    if s.steps[0].target in {d.target for d in einsums}
                ),
                None,
            )
            if recurrence is not None and any(d is s for d in einsums for s in recurrence.steps):
                self.kernels.append(_recurrence_kernel(self, name, recurrence))
            else:
                self._clear(einsums)
                self._group(name, self._decoded(name, einsums))
        return Mapping(self.c.name, self.target, self.c.ranks, self.c.inputs, self.c.outputs, tuple(self.memory.values()),
                       tuple(self.kernels))  # fmt: skip

    def _group(self, name: str, members: list[Einsum]) -> None:
        """The kernel of a group, with the tiles that the search prefers."""
        made = {d.target for d in members}
        joint = next((j for j in self.c.joints if set(j.tensors) <= made), None)
        if joint is None and dots_kernels(self, name, members):
            return

        def build(untiled: bool = False, why: str = "") -> Built | None:
            k = (
                GroupKernel(self, name, members)
                if joint is None
                else StreamKernel(self, name, members, joint)
            )
            if k.tile is None and not untiled:
                return None
            found = k.build()
            if k.tile is not None:
                found = replace(found, note=f"{k.tiles()}: {why}")
            self.kernels.append(found)
            ways = tuple(list(Columns).index(way) + 1 for way in k.ways[1:])
            return Built(found, ways, tuple(sorted(k.orders - {0})))

        choice = self.search.choose(members, joint, build)
        usual, self.tiles = self.tiles, choice.tiles
        build(True, choice.why)
        self.tiles = usual

    def _decode_recurrences(self) -> None:
        """Recurrences read decoded tensors."""
        inside = [d for r in self._recurrences() for d in r.steps]
        made = tuple(
            from_values(self, d) if any(d is x for x in inside) and isinstance(d, Einsum) else d
            for d in self.c.definitions
        )
        if any(a is not b for a, b in zip(made, self.c.definitions, strict=True)):
            self.c = replace(self.c, definitions=made)

    def _decoded(self, name: str, members: list[Einsum]) -> list[Einsum]:
        """The members of a group; they read decoded tensors if their kernels would read coded ones in other ways than run
        by run."""
        if not any(coded_reads(self, d) for d in members):
            return members
        made = {d.target for d in members}
        joint = next((j for j in self.c.joints if set(j.tensors) <= made), None)
        with self.trial(self.tiles) as kernels:
            k = (
                GroupKernel(self, name, members)
                if joint is None
                else StreamKernel(self, name, members, joint)
            )
            every = [k.build(), *kernels()]
            bad = any(isinstance(x, Kernel) and undecodable(x, self.types) for x in every)
        return [from_values(self, d) for d in members] if bad else members

    @contextmanager
    def trial(self, tiles: Tiles) -> Iterator[Callable[[], list[Kernel | Extern]]]:
        """Kernels that are made in here, with these tiles, are forgotten afterwards."""
        kept = (
            self.c, self.memory, self.kernels, self.names, self.types, self.tiles, self.copies,
        )  # fmt: skip
        self.memory, self.kernels, self.copies = dict(self.memory), [], dict(self.copies)
        self.names, self.types, self.tiles = set(self.names), dict(self.types), tiles
        try:
            yield lambda: self.kernels
        finally:
            (self.c, self.memory, self.kernels, self.names, self.types, self.tiles, self.copies) = (
                kept
            )

    def _recurrences(self) -> list[Recurrence]:
        return [s for s in steps(self.c) if isinstance(s, Recurrence)]

    def _groups(self) -> list[tuple[str, list[Definition]]]:
        """The groups' definitions; without groups, every definition and every recurrence alone."""
        if not self.c.groups:
            out: list[tuple[str, list[Definition]]] = []
            for s in steps(self.c):
                members: list[Definition] = list(s.steps) if isinstance(s, Recurrence) else [s]
                out.append((f"k{len(out)}_{targets(members[-1])[-1]}", members))
            return out
        left = list(self.c.definitions)
        found = []
        for name, made in self.c.groups:
            # a tensor with several definitions appears in several groups, in program order
            members = []
            for t in made:
                d = next((d for d in left if t in targets(d)), None)
                if d is not None and not any(d is m for m in members):
                    members.append(d)
                    left = [x for x in left if x is not d]
            if not members:
                raise CompileError("T0211", f"kernel `{name}` has no definitions left",
                                   helps="name each tensor in one `kernel` line per definition")  # fmt: skip
            found.append(
                (
                    name,
                    sorted(members, key=lambda d: [x is d for x in self.c.definitions].index(True)),
                )
            )
        if left:
            raise CompileError("T0211", f"`{left[0].target}` is in no kernel", left[0].span,
                               helps="add it to a `kernel` line, or remove them all")  # fmt: skip
        return found

    def _memory(self, groups: list[tuple[str, list[Definition]]]) -> None:
        """Tensors that leave their group live in memory."""
        kept = {t.name for t in (*self.c.outputs, *self.c.inputs)}
        readers: dict[str, list[Definition]] = {}
        for d in self.c.definitions:
            for a in d.reads:
                readers.setdefault(a.tensor, []).append(d)
        for _, members in groups:
            own = {id(d) for d in members}
            inside = {t for d in members for t in targets(d)}
            shared = any(len(self.c.defining(t)) > 1 for t in inside) or isinstance(
                members[0], Extern
            )
            for t in sorted(inside - kept):
                outside = any(id(d) not in own for d in readers.get(t, []))
                whole = all(
                    isinstance(i, Var)
                    for d in members
                    if isinstance(d, Einsum) and d.target == t
                    for i in d.indices
                )
                if outside or shared or not whole or len(members) == 1:
                    tensor = self.c.tensors[t]
                    self.memory[t] = Buffer(
                        t,
                        tensor.dtype,
                        tensor.shape,
                        "memory",
                        row_major(len(tensor.shape)),
                        tensor.fill,
                    )

    def in_memory(self, name: str) -> bool:
        return name in self.memory or any(t.name == name for t in (*self.c.outputs, *self.c.inputs))

    def ready(self, name: str) -> bool:
        """Whether a tensor lies in memory before the kernel that is being made runs."""
        return self.in_memory(name) and name not in self.making

    def fresh(self, name: str) -> str:
        out, n = name, 1
        while out in self.names:
            n += 1
            out = f"{name}{n}"
        self.names.add(out)
        return out

    def extents(self, names: list[str]) -> tuple[tuple[str, Expr], ...]:
        return tuple((v, self.c.extent(v)) for v in dict.fromkeys(names))

    def padded(self, a: Access, extents: Mapping_[str, Expr]) -> Access:
        """The read in a copy of its tensor with the edges filled in, where it reads beyond them: made by a kernel of its
        own before this one."""
        if not self.ready(a.tensor) or padded(self.c, a, "", extents) is None:
            return a
        found = padded(self.c, a, self.fresh(f"{a.tensor}_padded"), extents)
        assert found is not None
        old = self.c.tensors[a.tensor]
        t = replace(old, name=found.read.tensor, shape=found.shape, constant=False, span=None)
        keep = any(x.name == a.tensor and x.constant for x in self.c.inputs)
        self.types[t.name] = t
        self.c = replace(self.c, tensors={**self.c.tensors, t.name: t})
        self.memory[t.name] = Buffer(
            t.name, t.dtype, t.shape, "memory", row_major(len(t.shape)), t.fill, keep
        )
        body: Node = Do(found.copy, ((found.names[-1], "lane"),))
        for v in reversed(found.names[:-1]):
            body = Loop(v, 1, (body,), "core")
        sizes = tuple(zip(found.names, found.shape, strict=True))
        self.kernels.append(Kernel(self.fresh(f"pad_{t.name}"), sizes, (body,), keep))
        return found.read

    def laid_along(self, a: Access, lane: str, extents: Mapping_[str, Expr]) -> Access:
        """The read in a copy of its tensor that is contiguous along a variable which indexes it alone: made by a kernel
        of its own before this one."""
        at = [n for n, i in enumerate(a.indices) if isinstance(i, Var) and i.name == lane]
        t = self.c.tensors[a.tensor]
        if not self.ready(a.tensor) or len(at) != 1 or accesses(*a.indices) or not all(
            n in at or lane not in variables(i) for n, i in enumerate(a.indices)
        ):  # fmt: skip
            return a
        order = [*(n for n in range(len(a.indices)) if n not in at), *at]
        name = self.fresh(f"{a.tensor}_along")
        shape = tuple(t.shape[n] for n in order)
        keep = any(x.name == a.tensor and x.constant for x in self.c.inputs)
        self.types[name] = replace(t, name=name, shape=shape, constant=False, span=None)
        self.c = replace(self.c, tensors={**self.c.tensors, name: self.types[name]})
        self.memory[name] = Buffer(name, t.dtype, shape, "memory", row_major(len(shape)), 0, keep)
        names = [f"y{n}" for n in range(len(order))]
        copy = Einsum(
            name, tuple(Var(names[n]) for n in order), Access(a.tensor, tuple(map(Var, names)))
        )
        body: Node = Do(copy, ((names[at[0]], "lane"),))
        for n in reversed(order[:-1]):
            body = Loop(names[n], 1, (body,), "core")
        self.kernels.append(
            Kernel(
                self.fresh(f"turn_{name}"), tuple(zip(names, t.shape, strict=True)), (body,), keep
            )
        )
        return Access(name, tuple(a.indices[n] for n in order))

    def _clear(self, members: list[Einsum]) -> None:
        """Tensors whose definitions may leave gaps start out as their fill."""
        for d in members:
            t = self.c.tensors[d.target]
            if self.c.defining(d.target)[0] is d and not fills(self.c, d):
                self.clear(d.target, t.shape, t.fill)

    def clear(self, name: str, shape: tuple[Expr, ...], fill: float) -> None:
        names = [f"i{n}" for n in range(len(shape))]
        value = Const(fill) if self.c.tensors[name].dtype.is_float else Const(int(fill))
        body: Node = Do(
            Einsum(name, tuple(Var(v) for v in names), value),
            ((names[-1], "lane"),) if names else (),
        )
        for v in reversed(names[:-1]):
            body = Loop(v, 1, (body,), "core")
        self.kernels.append(
            Kernel(self.fresh(f"clear_{name}"), tuple(zip(names, shape, strict=True)), (body,))
        )


def _recurrence_kernel(m: Mapper, name: str, r: Recurrence) -> Kernel:
    """for t: every step definition over its other variables."""
    body: list[Node] = []
    hold: list[Do] = []
    used: list[str] = [r.var]
    for d in r.steps:
        if len(m.c.defining(d.target)) == 1:
            t = m.c.tensors[d.target]
            m.clear(d.target, t.shape, t.fill)
        inner = [v for v in (*d.free, *d.reduced) if v != r.var]
        used += inner
        body += vector_nodes([d], [r.var], m.memory)
        if r.stop is not None:
            back = tuple(
                call("sub", i, Const(1)) if r.var in variables(i) else i for i in d.indices
            )
            hold.append(Do(Einsum(d.target, d.indices, Access(d.target, back)), ()))
    until = _condition(r.stop)
    loop = Loop(r.var, 1, tuple(body), None, until, tuple(hold))
    return Kernel(name, m.extents(used), (loop,))


def _condition(stop: Stop | None) -> Expr | None:
    return None if stop is None else stop.condition
