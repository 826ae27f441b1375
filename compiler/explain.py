"""What the compiler made of a program: passes over its ranks, kernels and what was fused into each,
loops, buffers, and calls out of tcc."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from tcc.ir.cascade import Cascade, Einsum, Extern, targets
from tcc.ir.diagnostics import Span
from tcc.ir.expr import Var, text
from tcc.ir.mapping import Alloc, Buffer, Kernel, Loop, Mapping, Node, leaves
from tcc.pass_counts import Derived, RankReport, passes_json, passes_text, place, rank_reports
from tcc.pipeline import Result

if TYPE_CHECKING:
    from tcc.ir.cost import Cost


@dataclass(frozen=True, slots=True)
class BufferReport:
    """Storage between or inside kernels: its level, and its bytes as an expression over ranks."""

    name: str
    level: str
    shape: str
    bytes: str
    constant: bool = False


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One launch: the tensors that it computes (more than one: fused), its tree line by line, and
    what runs in parallel."""

    name: str
    computes: tuple[str, ...]
    tree: tuple[str, ...]
    parallel: tuple[str, ...]
    buffers: tuple[BufferReport, ...]
    prepare: bool = False
    tiles: str = ""  # and who chose them


@dataclass(frozen=True, slots=True)
class SplitReport:
    """A walk in parts: its rank, the coordinates of a part, the components, and what called for it."""

    rank: str
    length: int
    computes: tuple[str, ...]
    tasks: int
    cores: int

    @property
    def why(self) -> str:
        """The reason, in words."""
        rows = "1 row at a time" if self.tasks == 1 else f"{self.tasks} tasks of rows"
        return f"{rows} would leave cores idle, of which there may be {self.cores}"

    def __str__(self) -> str:
        return (
            f"the walk over {self.rank} is cut into parts of {self.length}, merged afterwards: "
            f"{', '.join(self.computes)}; {self.why}"
        )


@dataclass(frozen=True, slots=True)
class ExternReport:
    """A call that is left to PyTorch, and the source line that it comes from."""

    function: str
    computes: tuple[str, ...]
    place: str


@dataclass(frozen=True, slots=True)
class EagerReport:
    """A graph that PyTorch runs as it is, and why."""

    graph: str
    reason: str
    place: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The report. `str` is for people, `.json()` for programs; both start with the summary."""

    program: str
    target: str
    definitions: int
    kernels: tuple[KernelReport, ...]
    memory: tuple[BufferReport, ...]
    externs: tuple[ExternReport, ...]
    ran: tuple[tuple[str, bool], ...]
    ranks: tuple[RankReport, ...] = ()
    eager: tuple[EagerReport, ...] = ()
    cost: Cost | None = None  # where every size is known
    split: tuple[SplitReport, ...] = ()

    def json(self) -> dict[str, Any]:
        """The report as dictionaries, lists, strings and numbers."""
        from tcc.cost_report import cost_json

        return {
            "program": self.program,
            "target": self.target,
            "definitions": self.definitions,
            "ran": [{"name": name, "changed": changed} for name, changed in self.ran],
            **passes_json(self.ranks),
            "split": [
                {"rank": s.rank, "length": s.length, "computes": list(s.computes), "why": s.why}
                for s in self.split
            ],
            "kernels": [
                {
                    "name": k.name,
                    "computes": list(k.computes),
                    "parallel": list(k.parallel),
                    "tree": list(k.tree),
                    "buffers": [_buffer_json(b) for b in k.buffers],
                    "prepare": k.prepare,
                    "tiles": k.tiles,
                }
                for k in self.kernels
            ],
            "memory": [_buffer_json(b) for b in self.memory],
            "externs": [
                {"function": e.function, "computes": list(e.computes), "place": e.place}
                for e in self.externs
            ],
            "eager": [{"graph": g.graph, "reason": g.reason, "place": g.place} for g in self.eager],
            "cost": cost_json(self.cost) if self.cost is not None else None,
        }

    def __str__(self) -> str:
        from tcc.cost_report import cost_lines

        cost = cost_lines(self.cost) if self.cost is not None else []
        split = [str(x) for x in self.split]
        parts = [
            self._summary(),
            self._list(),
            cost,
            passes_text(self.ranks),
            split,
            self._details(),
        ]
        return "\n".join(line for part in parts for line in part) + "\n"

    def _summary(self) -> list[str]:
        fused = sum(len(k.computes) > 1 for k in self.kernels)
        near = sum(len(k.buffers) for k in self.kernels)
        stored = len([b for b in self.memory if not b.constant])
        lines = [
            f"{self.program} for {self.target}: {_count(self.definitions, 'definition')} in "
            f"{_count(len(self.kernels), 'kernel')}, {fused} of them fused"
        ]
        ran = [f"{name}{'' if changed else ' (unchanged)'}" for name, changed in self.ran]
        if ran:
            lines.append(f"ran: {', '.join(ran)}")
        constant = [b for b in self.memory if b.constant]
        lines.append(
            f"between kernels: {_count(stored, 'tensor')} in memory; "
            f"inside them: {_count(near, 'buffer')} near the cores"
        )
        if constant:
            names = ", ".join(b.name for b in constant[:3])
            more = ", …" if len(constant) > 3 else ""
            lines.append(f"prepared ahead: {_count(len(constant), 'tensor')} ({names}{more})")
        if self.externs:
            lines.append(f"left to PyTorch: {_count(len(self.externs), 'call')}")
            lines += [
                f"  {e.function} -> {', '.join(e.computes)}{f'  at {e.place}' if e.place else ''}"
                for e in self.externs
            ]
        for g in self.eager:
            lines.append(
                f"runs eagerly: {g.graph}: {g.reason}{f'  at {g.place}' if g.place else ''}"
            )
        return lines

    def _list(self) -> list[str]:
        width = max((len(k.name) for k in self.kernels), default=0)
        found = []
        for k in self.kernels:
            how = f"  on {', '.join(k.parallel)}" if k.parallel else ""
            once = "  (once)" if k.prepare else ""
            found.append(f"  {k.name:<{width}}  {' + '.join(k.computes)}{how}{once}")
        return ["kernels", *found] if found else []

    def _details(self) -> list[str]:
        lines: list[str] = []
        for k in self.kernels:
            if not k.tree:
                continue
            lines += ["", f"kernel {k.name}", *([f"  # {k.tiles}"] if k.tiles else [])]
            lines += [f"  {line}" for line in k.tree]
            lines += [f"  {b.name} {b.shape} at {b.level}: {b.bytes} bytes" for b in k.buffers]
        if self.memory:
            lines += ["", "memory"]
            lines += [
                f"  {b.name} {b.shape}: {b.bytes} bytes{', prepared ahead' if b.constant else ''}"
                for b in self.memory
            ]
        return lines


def explain(result: Result, sizes: MappingABC[str, int] | None = None) -> Explanation:
    """The report on what the passes made; with its cost, where the sizes of all ranks are known."""
    from tcc.cost_report import predicted

    program, first = result.program, result.stages[0].program
    ran = tuple((s.name, s.changed) for s in result.stages if s.name != "input")
    externs: Iterable[Extern]
    memory: tuple[BufferReport, ...] = ()
    if isinstance(program, Mapping):
        kernels = tuple(_kernel(k) for k in program.kernels if isinstance(k, Kernel))
        externs = (k for k in program.kernels if isinstance(k, Extern))
        memory = tuple(_report(b, {}) for b in program.memory)
    else:
        kernels = tuple(_grouped(program))
        externs = (d for d in program.definitions if isinstance(d, Extern))
    calls = tuple(_call(e) for e in externs)
    if isinstance(first, Cascade):
        count = sum(isinstance(d, Einsum) for d in first.definitions)
        ranks = rank_reports(first, _derived(result))
    else:
        count, ranks = sum(len(k.computes) for k in kernels), ()
    cost = predicted(program, result.target, sizes or {}) if isinstance(program, Mapping) else None
    return Explanation(program.name, result.target.name, count, kernels, memory, calls, ran, ranks,
                       cost=cost, split=_split(result))  # fmt: skip


def _split(result: Result) -> tuple[SplitReport, ...]:
    """The walks that the pass `split` cut."""
    from tcc.passes.split import cuts

    names = [s.name for s in result.stages]
    if "split" not in names[1:]:
        return ()
    start = result.stages[names.index("split") - 1].program
    found = cuts(start, result.target) if isinstance(start, Cascade) else []
    return tuple(
        SplitReport(x.joint.var.upper(), x.length, x.joint.tensors, x.tasks, x.cores) for x in found
    )


def _derived(result: Result) -> Derived | None:
    """What can be derived of the program, with what forbids more, and what the pass made of it."""
    from tcc.passes.derive import derivation

    made = {s.name: s.program for s in result.stages}
    start, used = made.get("simplify", result.stages[0].program), made.get("derive")
    if not isinstance(start, Cascade) or start.joints:
        return None
    found = derivation(start)
    reasons = tuple((b.source, b.target, b.why) for b in found.barriers)
    return Derived(found.program, used if isinstance(used, Cascade) else None, reasons)


class Graph(Protocol):
    """A graph of `tcc.dynamo`: its compiled programs and calls, or why it runs eagerly."""

    name: str
    captured: Any
    reason: str
    span: Span | None
    programs: list[Any]

    @property
    def externs(self) -> list[Extern]: ...


def explain_graphs(name: str, graphs: Iterable[Graph]) -> Explanation:
    """One report on all graphs of a function; kernels and ranks of different programs get their number."""
    graphs = list(graphs)
    reports: list[Explanation] = [p.explain() for g in graphs for p in g.programs]
    several = len(reports) > 1
    kernels = [
        replace(k, name=f"{n}.{k.name}") if several else k
        for n, r in enumerate(reports)
        for k in r.kernels
    ]
    ranks = [
        replace(k, rank=f"{n}.{k.rank}") if several else k
        for n, r in enumerate(reports)
        for k in r.ranks
    ]
    changed: dict[str, bool] = {}
    for r in reports:
        for step, yes in r.ran:
            changed[step] = changed.get(step, False) or yes
    return Explanation(
        name,
        ", ".join(dict.fromkeys(r.target for r in reports)) or "PyTorch",
        sum(r.definitions for r in reports),
        tuple(kernels),
        tuple(b for r in reports for b in r.memory),
        tuple(_call(e) for g in graphs for e in g.externs),
        tuple(changed.items()),
        tuple(ranks),
        tuple(EagerReport(g.name, g.reason, place(g.span)) for g in graphs if g.captured is None),
        split=tuple(
            replace(x, rank=f"{n}.{x.rank}") if several else x
            for n, r in enumerate(reports)
            for x in r.split
        ),
    )


def _call(e: Extern) -> ExternReport:
    return ExternReport(e.function, targets(e), place(e.span))


def _grouped(c: Cascade) -> Iterable[KernelReport]:
    """Kernels of a cascade without mapping: its groups, or one per definition."""
    externs = {name for d in c.definitions if isinstance(d, Extern) for name in targets(d)}
    groups = c.groups or tuple(
        (d.target, (d.target,)) for d in c.definitions if isinstance(d, Einsum)
    )
    for name, members in groups:
        if not set(members) <= externs:
            yield KernelReport(name, tuple(dict.fromkeys(members)), (), (), ())


def _kernel(k: Kernel) -> KernelReport:
    computes = tuple(dict.fromkeys(n.einsum.target for n in leaves(k.body)))
    tree: list[str] = []
    parallel: dict[str, dict[str, None]] = {}  # resource -> variables
    found: list[BufferReport] = []

    def visit(nodes: tuple[Node, ...], depth: int, steps: dict[str, str]) -> None:
        pad = "  " * depth
        for n in nodes:
            if isinstance(n, Loop):
                on, when = f" on {n.on}" * bool(n.on), n.when and f" when {text(n.when)}"
                tree.append(f"{pad}for {n.var} by {n.step}{on}{when or ''}")
                if n.on:
                    parallel.setdefault(n.on, {})[n.var] = None
                visit(n.body, depth + 1, {**steps, n.var: str(n.step)})
            elif isinstance(n, Alloc):
                found.append(_report(n.buffer, steps))
                visit(n.body, depth, steps)
            else:
                bound = f"  [{', '.join(f'{v} on {r}' for v, r in n.bind)}]" if n.bind else ""
                tree.append(f"{pad}{'update ' * n.update}{n.einsum}{bound}")
                for v, r in n.bind:
                    if r != "unroll":
                        parallel.setdefault(r, {})[v] = None

    visit(k.body, 0, {v: text(e) for v, e in k.variables})
    shared = tuple(f"{r}({', '.join(names)})" for r, names in parallel.items())
    return KernelReport(k.name, computes, tuple(tree), shared, tuple(found), k.prepare, k.note)


def _report(b: Buffer, steps: dict[str, str]) -> BufferReport:
    extents = [steps.get(d.name, d.name) if isinstance(d, Var) else text(d) for d in b.dims]
    factor, rest = b.dtype.itemsize, []
    for e in extents:
        if e.isdigit():
            factor *= int(e)
        else:
            rest.append(e if e.isidentifier() else f"({e})")
    shape = f"{b.dtype}[{', '.join(text(d) for d in b.dims)}]"
    return BufferReport(b.name, b.level, shape, " * ".join([str(factor), *rest]), b.constant)


def _buffer_json(b: BufferReport) -> dict[str, Any]:
    return {
        "name": b.name,
        "level": b.level,
        "shape": b.shape,
        "bytes": b.bytes,
        "constant": b.constant,
    }


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
