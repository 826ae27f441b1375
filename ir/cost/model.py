"""cost(mapping, target): traffic, times, memory and energy of a mapping, and what no mapping of the program can beat."""

from __future__ import annotations

import math
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field

from tcc.ir.cascade import Extern, Rank, Tensor
from tcc.ir.cost.array import LeafCost, leaf_cost
from tcc.ir.cost.bound import lower_bound
from tcc.ir.cost.cpu import PARALLEL_POINTS, LeafTime, leaf_times
from tcc.ir.cost.gpu import blocks_of, kernel_time
from tcc.ir.cost.reuse import traffic
from tcc.ir.cost.tiles import Site, footprint, sites
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.index import evaluate_size
from tcc.ir.mapping import Alloc, Buffer, Kernel, Loop, Mapping, buffers, tensors
from tcc.ir.sizes import known_sizes
from tcc.ir.target import Target

Table = dict[tuple[str, str], int]  # (level, tensor) -> elements


@dataclass(slots=True, eq=False)
class KernelCost:
    """One launch. `reads` and `writes` count elements as the mapping interpreter does; `how` names the tensors
    that were not counted in closed form; `moved` are the bytes that come from, or go to, each level."""

    name: str
    prepare: bool
    seconds: float = 0.0
    bound: str = ""
    lower_s: float = 0.0
    lower_by: str = ""
    tasks: int = 1
    cores: int = 1
    flops: float = 0.0
    reads: Table = field(default_factory=dict)
    writes: Table = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)  # seconds per unit or level
    scratch: dict[str, float] = field(default_factory=dict)  # bytes of tile buffers per level
    energy_pj: float = 0.0
    leaves: list[LeafTime | LeafCost] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Cost:
    """A program. `seconds` is one call with caches warm and everything prepared; `prepare_s` is spent once."""

    name: str
    target: str
    sizes: dict[str, int]
    kernels: list[KernelCost]
    seconds: float
    prepare_s: float
    launches: int
    peak_bytes: int
    energy_pj: float
    bound: str
    lower_s: float
    lower_by: str
    notes: tuple[str, ...] = ()


def cost(
    m: Mapping,
    target: Target,
    given: MappingABC[str, int] | None = None,
    *,
    cores: int = 1,
    full: bool = True,
) -> Cost:
    """What a mapping costs on a target, for ranks of the given sizes, on so many cores of a CPU.

    Without `full` only the times: no counts of accesses, no bounds (times are the same). Raises T0126 for a size that is
    missing, T0343 where an array cannot do an operator.
    """
    sizes = bind_sizes(m, given or {})
    types = tensors(m)
    found = buffers(m)
    levels = {t.name: "memory" for t in (*m.inputs, *m.outputs)} | {
        n: b.level for n, b in found.items()
    }
    kernels: list[KernelCost] = []
    notes: dict[str, None] = {}
    sites_: list[list[Site]] = []
    interface = {t.name for t in (*m.inputs, *m.outputs)}
    stored = interface | {b.name for b in m.memory}
    for k in m.kernels:
        if isinstance(k, Extern):
            notes[f"`{k.function}` is not counted"] = None
            continue
        c = KernelCost(k.name, k.prepare)
        at = sites(k, sizes)
        sites_.append(at)
        _work(c, at, types, notes)
        if full or target.kind != "cpu":
            _count(c, at, types, levels, sizes)
        c.scratch = _scratch(at, types, sizes)
        if target.kind == "cpu":
            _on_cpu(c, k, at, target, types, found, sizes, cores)
        elif target.kind == "gpu":
            _on_gpu(c, at, target, types, sizes)
        else:
            _on_array(c, at, target, types, levels, sizes)
        if full:
            c.lower_s, c.lower_by = lower_bound([at], stored, target, types, sizes, c.cores)
        kernels.append(c)
    runs = [c for c in kernels if not c.prepare]
    seconds = sum(c.seconds for c in runs)
    every = target.overheads.call_us * 1e-6
    lower, by = 0.0, ""
    if full:
        needed = [at for c, at in zip(kernels, sites_, strict=True) if not c.prepare]
        most = max((c.cores for c in runs), default=1)
        lower, by = lower_bound(needed, interface, target, types, sizes, most)
    slowest = max(runs, key=lambda c: c.seconds, default=None)
    return Cost(
        m.name, target.name, sizes, kernels, seconds + every,
        sum(c.seconds for c in kernels if c.prepare), len(runs),
        _peak(m, types, sizes, kernels, sites_) if full else 0,
        sum(c.energy_pj for c in runs), slowest.bound if slowest is not None else "",
        lower, by, tuple(notes),
    )  # fmt: skip


def _work(
    c: KernelCost, found: list[Site], types: MappingABC[str, Tensor], notes: dict[str, None]
) -> None:
    for s in found:
        target = s.do.einsum.target
        if any(s.extents[v] == 0 for v in s.facts.free):
            continue
        points = s.swept(s.facts.names)
        c.points[target] = c.points.get(target, 0) + points
        work = s.facts.work
        c.flops += points * (sum(work.values()) + work.get("mul_add", 0))
    for n in found:
        if any(isinstance(x, Loop) and x.until is not None for x in n.path):
            notes["loops that stop early count with all their steps"] = None


def _count(
    c: KernelCost,
    found: list[Site],
    types: MappingABC[str, Tensor],
    levels: MappingABC[str, str],
    sizes: MappingABC[str, int],
) -> None:
    for s in found:
        t = traffic(s, types, levels, sizes)
        for table, part in ((c.reads, t.reads), (c.writes, t.writes)):
            for key, n in part.items():
                table[key] = table.get(key, 0) + n
        c.how |= t.how


def _scratch(
    found: list[Site], types: MappingABC[str, Tensor], sizes: MappingABC[str, int]
) -> dict[str, float]:
    """The largest bytes of tile buffers that live together, per level."""
    out: dict[str, float] = {}
    known: dict[str, float] = {}
    for s in found:
        live: dict[str, float] = {}
        for n, node in enumerate(s.path):
            if isinstance(node, Alloc):
                b = node.buffer
                if b.name not in known:
                    extents = footprint(b, s.path[:n], s.extents, sizes)
                    known[b.name] = math.prod(extents) * b.bits / 8
                live[b.level] = live.get(b.level, 0) + known[b.name]
        for level, size in live.items():
            out[level] = max(out.get(level, 0), size)
    return out


def _on_cpu(
    c: KernelCost,
    k: Kernel,
    found: list[Site],
    target: Target,
    types: MappingABC[str, Tensor],
    held: MappingABC[str, Buffer],
    sizes: MappingABC[str, int],
    cores: int,
) -> None:
    c.tasks = tasks(k, found)
    points = math.prod(evaluate_size(e, sizes) for _, e in k.variables)
    forks = cores > 1 and c.tasks > 1 and points > PARALLEL_POINTS
    c.cores = min(cores, c.tasks) if forks else 1
    if not found:
        return
    c.leaves = list(leaf_times(found, target, types, held, sizes, c.cores))
    rounds = -(-c.tasks // c.cores)  # tiles that the busiest core takes
    for leaf in c.leaves:
        assert isinstance(leaf, LeafTime)
        slower = "operators" if leaf.compute_s >= leaf.data_s else _widest(leaf.bytes)
        c.busy[slower] = c.busy.get(slower, 0.0) + leaf.seconds * rounds / c.tasks
        for level, size in leaf.bytes.items():
            c.moved[level] = c.moved.get(level, 0.0) + size
    if forks:
        c.busy["fork"] = target.overheads.fork_us * 1e-6
    c.seconds = sum(c.busy.values())
    c.bound = _widest(c.busy)


def tasks(k: Kernel, found: list[Site]) -> int:
    """The tiles that directly nested parallel loops make together."""
    nodes, n = k.body, 1
    names: dict[str, None] = {}
    while len(nodes) == 1 and isinstance(nodes[0], Loop) and nodes[0].on is not None:
        loop = nodes[0]
        names[loop.var] = None
        nodes = loop.body
    if not found:
        return 1
    for v in names:
        extent, at = found[0].extents[v], 0
        for node in found[0].path[: len(names)]:
            if isinstance(node, Loop) and node.var == v:
                at = node.step
        n *= max(1, -(-extent // at)) if at else 1
    return n


def _on_gpu(
    c: KernelCost,
    found: list[Site],
    target: Target,
    types: MappingABC[str, Tensor],
    sizes: MappingABC[str, int],
) -> None:
    c.tasks = blocks_of(found)
    c.busy, c.moved = kernel_time(found, target, types, sizes, c.reads, c.writes, c.tasks)
    launch = target.overheads.launch_us * 1e-6
    c.seconds = max(c.busy.values(), default=0.0) + launch
    if launch:
        c.busy["launch"] = launch
    c.bound = _widest(c.busy)


def _on_array(
    c: KernelCost,
    found: list[Site],
    target: Target,
    types: MappingABC[str, Tensor],
    levels: MappingABC[str, str],
    sizes: MappingABC[str, int],
) -> None:
    word = {n: target.parameter("word_bytes", t.dtype.itemsize) for n, t in types.items()}
    clock = target.parameter("clock_mhz", 1000) * 1e6
    for s in found:
        leaf = leaf_cost(s, target, levels, traffic(s, types, levels, sizes), word)
        c.leaves.append(leaf)
        for name, cycles in ((leaf.unit or leaf.kind, leaf.cycles), ("transfer", leaf.transfer)):
            if cycles:
                c.busy[name] = c.busy.get(name, 0.0) + cycles / clock
        c.energy_pj += leaf.energy_pj
    for table, kind in ((c.reads, "read_pj"), (c.writes, "write_pj")):
        for (at, name), n in table.items():
            level = target.level(at)
            c.moved[at] = c.moved.get(at, 0.0) + n * word[name]
            c.energy_pj += n * word[name] / level.line_bytes * getattr(level, kind)
    c.seconds = sum(c.busy.values())
    c.bound = _widest(c.busy)


def _widest(amounts: MappingABC[str, float]) -> str:
    return max(amounts, key=lambda n: amounts[n], default="")


def _peak(
    m: Mapping,
    types: MappingABC[str, Tensor],
    sizes: MappingABC[str, int],
    kernels: list[KernelCost],
    found: list[list[Site]],
) -> int:
    """Inputs, outputs, constants, what passes between kernels while it is needed, and tile buffers of one core."""

    def size(name: str) -> int:
        t = types[name]
        bits = packed.get(name, t.bits)
        return (math.prod(evaluate_size(n, sizes) for n in t.shape) * bits + 7) // 8

    packed = {b.name: b.bits for b in m.memory if b.packed}
    always = sum(size(n) for n in dict.fromkeys(t.name for t in (*m.inputs, *m.outputs)))
    always += sum(size(b.name) for b in m.memory if b.constant)
    used = [{x for s in at for x in (s.do.einsum.target, *(a.tensor for a in s.facts.reads))} for at in found]  # fmt: skip
    peak = 0
    for n, c in enumerate(kernels):
        live = sum(
            size(b.name)
            for b in m.memory
            if not b.constant
            and any(b.name in u for u in used[: n + 1])
            and any(b.name in u for u in used[n:])
        )
        peak = max(peak, live + int(sum(c.scratch.values())))
    return always + peak


def bind_sizes(m: Mapping, given: MappingABC[str, int]) -> dict[str, int]:
    """The size of every rank; T0126 names one that is missing or unknown."""
    names = [r.name for r in m.ranks]
    for name, value in given.items():
        if name not in names:
            raise CompileError(
                "T0126",
                f"`{m.name}` has no rank `{name}`",
                helps=did_you_mean(name, names) or f"its ranks: {', '.join(names)}",
            )
        if value < 1:
            raise CompileError(
                "T0110",
                f"rank `{name}` has size {value}",
                helps="the model needs sizes of 1 or more",
            )
    known = known_sizes(m.ranks, given)
    out = {r.name: int(known[r.name]) for r in m.ranks if r.size is None and r.name in known}
    for r in m.ranks:
        if r.size is None and r.name not in out:
            raise CompileError(
                "T0126",
                f"the size of rank `{r.name}` is not known",
                r.span,
                helps=f"give it, as in `--size {r.name}=64`",
            )
    pending: list[Rank] = [r for r in m.ranks if r.size is not None]
    for _ in range(len(pending)):  # sizes may refer to ranks that are declared later
        for r in pending:
            try:
                assert r.size is not None
                out[r.name] = evaluate_size(r.size, out)
            except KeyError:
                continue
    for r in pending:
        if r.name in given and given[r.name] != out[r.name]:
            raise CompileError(
                "T0125",
                f"rank `{r.name}` has size {out[r.name]}, not {given[r.name]}",
                r.span,
                helps="its size is fixed by its declaration",
            )
    return out
