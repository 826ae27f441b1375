"""From a mapping to a report: binds sizes, checks against the target, costs every leaf."""

from __future__ import annotations

import math
from collections.abc import Mapping as MappingABC

from tcc.backends.spatial.report import BufferUse, Report
from tcc.ir.cascade import Extern
from tcc.ir.cost import bind_sizes
from tcc.ir.cost.array import leaf_cost, unit_of
from tcc.ir.cost.reuse import Traffic, traffic
from tcc.ir.cost.tiles import Site, footprint, sites
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.expr import Access, Var
from tcc.ir.mapping import Alloc, Do, Kernel, Loop, Mapping, buffers, tensors, walk_nodes
from tcc.ir.target import Target


def build_report(m: Mapping, target: Target, given: MappingABC[str, int]) -> Report:
    """Counts, cycles and energy of every leaf; what does not fit or is not modelled is an error."""
    if target.kind != "array" or not target.units:
        raise CompileError(
            "T0341",
            f"target `{target.name}` is no array",
            helps="choose one whose `kind` is `array`",
        )
    sizes = bind_sizes(m, given)
    types = tensors(m)
    levels = {t.name: "memory" for t in (*m.inputs, *m.outputs)} | {
        n: b.level for n, b in buffers(m).items()
    }
    known = [x.name for x in target.levels]
    for name, level in levels.items():
        if level not in known:
            raise CompileError(
                "T0342",
                f"buffer `{name}` lies at `{level}`, which target `{target.name}` does not have",
                buffers(m)[name].span,
                helps=did_you_mean(level, known) or f"one of {', '.join(known)}",
            )
    word = {n: target.parameter("word_bytes", t.dtype.itemsize) for n, t in types.items()}
    report = Report(m, target, sizes, word)
    for k in m.kernels:
        if isinstance(k, Extern):
            raise CompileError(
                "T0341",
                f"`{k.function}` does not run on an array",
                k.span,
                helps="map the parts before and after it by themselves",
            )
        _check_steps(k)
        found = sites(k, sizes)
        for s in found:
            unit_of(s, target)
        _check_registers(found, target, levels)
        _footprints(k, found, target, sizes, word, report)
        for s in found:
            t = traffic(s, types, levels, sizes)
            _check_counts(s, t)
            cost = leaf_cost(s, target, levels, t, word)
            _count(report, s, t)
            report.leaves[id(s.do)] = cost
    for table, costs in ((report.reads, "read_pj"), (report.writes, "write_pj")):
        for (at, name), n in table.items():
            line = target.level(at)
            pj = n * word[name] / line.line_bytes * getattr(line, costs)
            report.level_pj[at] = report.level_pj.get(at, 0) + pj
    return report


def _count(report: Report, s: Site, t: Traffic) -> None:
    for table, part in ((report.reads, t.reads), (report.writes, t.writes)):
        for key, n in part.items():
            table[key] = table.get(key, 0) + n
    target = s.do.einsum.target
    names = list(dict.fromkeys([*s.do.einsum.free, *s.do.einsum.reduced]))
    report.points[target] = report.points.get(target, 0) + s.swept(names)


def _check_registers(found: list[Site], target: Target, levels: MappingABC[str, str]) -> None:
    """Registers belong to one unit; every leaf must find each element where the others left it."""
    own = {u.level: u for u in target.units if u.level}
    first: dict[str, tuple[Site, dict[str, str]]] = {}
    for s in found:
        e = s.do.einsum
        for a in (Access(e.target, e.indices), *e.reads):
            if levels[a.tensor] not in own:
                continue
            unit = own[levels[a.tensor]]
            bind = {
                v: r
                for v, r in s.do.bind
                if any(isinstance(i, Var) and i.name == v for i in a.indices)
            }
            for v, r in s.do.bind:
                if r not in unit.resources:
                    raise CompileError(
                        "T0342",
                        f"`{a.tensor}` lies in the registers of `{unit.name}`, but `{v}` is on "
                        f"`{r}`",
                        s.do.span,
                        helps="pass it through the buffer",
                    )
            at = {
                n: bind.get(i.name, "") if isinstance(i, Var) else ""
                for n, i in enumerate(a.indices)
            }
            placed = {str(n): r for n, r in at.items()}
            other = first.setdefault(a.tensor, (s, placed))
            if other[1] != placed:
                raise CompileError(
                    "T0342",
                    f"`{e.target}` needs `{a.tensor}` in other elements than "
                    f"`{other[0].do.einsum.target}` does",
                    s.do.span,
                    helps="pass it through the buffer",
                )


def _check_steps(k: Kernel) -> None:
    """How many steps a loop takes must not depend on data."""
    for n in walk_nodes(k.body):
        if isinstance(n, Loop) and n.until is not None:
            raise CompileError(
                "T0340",
                f"the array model cannot count the loop over `{n.var}` that stops early",
                n.span,
                helps="run a fixed number of steps",
            )


def _check_counts(s: Site, t: Traffic) -> None:
    """Every access must have been counted exactly."""
    for name, how in t.how.items():
        if how == "estimated":
            raise CompileError(
                "T0340",
                f"the array model cannot count how `{s.do.einsum.target}` accesses `{name}`",
                s.do.span,
                helps="use no tensor in an index",
            )


def _footprints(
    k: Kernel,
    found: list[Site],
    target: Target,
    sizes: MappingABC[str, int],
    word: MappingABC[str, float],
    report: Report,
) -> None:
    """The size of each buffer (in registers: one element's part); what lives together must fit."""
    own = {u.level: u for u in target.units if u.level}
    count = {r.name: r.count for r in target.resources}
    for s in found:
        for n, node in enumerate(s.path):
            if not isinstance(node, Alloc) or node.buffer.name in report.buffers:
                continue
            b = node.buffer
            extents = footprint(b, s.path[:n], s.extents, sizes)
            each = 1
            user = next((x.do for x in found if _touches(x, b.name)), None)
            for axis, length in enumerate(extents):
                spread = 1
                if b.level in own and user is not None:
                    spread = count.get(_bound_axis(user, b.name, axis), 1)
                each *= math.ceil(length / spread)
            size = math.prod(extents)
            report.buffers[b.name] = BufferUse(
                b.name, b.level, tuple(extents), size, each * word[b.name]
            )
    for s in found:
        live: dict[str, float] = {}
        for node in s.path:
            if isinstance(node, Alloc):
                use = report.buffers[node.buffer.name]
                live[use.level] = live.get(use.level, 0) + use.bytes_each
        for level, need in live.items():
            report.peak[level] = max(report.peak.get(level, 0), need)
            room = target.level(level).bytes
            if room and need > room:
                names = [
                    x.buffer.name
                    for x in s.path
                    if isinstance(x, Alloc) and x.buffer.level == level
                ]
                largest = max(names, key=lambda x: report.buffers[x].bytes_each)
                raise CompileError(
                    "T0344",
                    f"level `{level}` of `{target.name}` holds {room} bytes, but `{k.name}` needs "
                    f"{need:.0f} at `{s.do.einsum.target}`, most of them for `{largest}`",
                    s.do.span,
                    helps="use smaller tiles: the options `tile_reduction` and `tile_stream` of "
                    "the pass cut the variables that are kept whole",
                )


def _touches(s: Site, name: str) -> bool:
    e = s.do.einsum
    return e.target == name or any(a.tensor == name for a in e.reads)


def _bound_axis(do: Do, name: str, axis: int) -> str:
    """The dimension that an axis of a tensor is spread over in a leaf; empty when it is not."""
    e = do.einsum
    a = next(a for a in (Access(e.target, e.indices), *e.reads) if a.tensor == name)
    i = a.indices[axis]
    return dict(do.bind).get(i.name, "") if isinstance(i, Var) else ""
