"""The launches of a program, and which of them join because registers can hold what crosses.

kernel a: QK, GM, SN, SD;  kernel b: AV  -->  kernel b: QK, GM, SN, SD, AV
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Recurrence, steps, targets
from tcc.ir.diagnostics import CompileError
from tcc.ir.ops import MONOIDS
from tcc.passes._algebra import contractions
from tcc.passes._gpu_tiles import constant_extent

Launch = tuple[str, list[Definition]]


def launches_of(c: Cascade) -> list[Launch]:
    """The kernels of the program; a definition that no kernel names gets its own."""
    of = {t: name for name, members in c.groups for t in members}
    found: dict[str, list[Definition]] = {}
    for d in c.definitions:
        name = of.get(targets(d)[0], f"{c.name}_{targets(d)[0]}")
        found.setdefault(name, []).append(d)
    for name, members in found.items():
        for d in members:
            if isinstance(d, Extern) and len(members) > 1:
                raise CompileError(
                    "T0220",
                    f"kernel `{name}` holds the call `{d.function}`",
                    d.span,
                    helps="a call of an outside function is a launch of its own",
                )
    return list(found.items())


def ordered(c: Cascade, launches: list[Launch]) -> list[Launch]:
    """The launches, each after those whose results it reads, otherwise in program order."""
    done = {t.name for t in c.inputs}
    out: list[Launch] = []
    pending = list(launches)
    while pending:
        for launch in pending:
            own = {t for d in launch[1] for t in targets(d)}
            if all(a.tensor in done or a.tensor in own for d in launch[1] for a in d.reads):
                break
        else:
            name, members = pending[0]
            raise CompileError(
                "T0220",
                f"kernel `{name}` and another kernel need each other's results",
                members[0].span,
                helps="put their definitions into one kernel, or split one of them",
            )
        pending.remove(launch)
        done |= own
        out.append(launch)
    return out


def stored_tensors(c: Cascade, members: list[Definition]) -> list[str]:
    """What of a kernel's results other launches read, or the caller."""
    written = list(dict.fromkeys(d.target for d in members if isinstance(d, Einsum)))
    wanted = {a.tensor for other in c.definitions if other not in members for a in other.reads}
    wanted |= {t.name for t in c.outputs}
    return [t for t in written if t in wanted]


def merged(
    c: Cascade,
    launches: list[Launch],
    whole: int,
    row: int,
    possible: Callable[[list[Launch], Launch], bool],
) -> list[Launch]:
    """The launches, a kernel joined with one that it reads wherever that takes no parallelism away.

    A variable may leave the grid when it is short, so that it stays in one tile (at most `whole`
    coordinates, or `row` where no matrix product needs the registers), when it is that of a
    recurrence, whose steps follow each other anyway, or when the reader walks it and what it reads
    is cheap to compute again in each walk: every reduction of the first kernel is short. `possible`
    tells whether a joined kernel has a mapping.
    """
    sequential = {s.var for s in steps(c) if isinstance(s, Recurrence)}
    position = {id(d): n for n, d in enumerate(c.definitions)}
    changed = True
    while changed:
        changed = False
        for a, b in _pairs(launches):
            both = sorted([*a[1], *b[1]], key=lambda d: position[id(d)])
            lost = (_grid(a[1]) | _grid(b[1])) - _grid(both)
            products = any(next(contractions(d, MONOIDS), None) is not None for d in both)
            short = whole if products else row
            cheap = all(
                _short(c, v, whole) for d in a[1] if isinstance(d, Einsum) for v in d.reduced
            )
            walked = _grid(a[1]) - _grid(b[1]) if cheap else set()
            if any(
                v not in sequential and v not in walked and not _short(c, v, short) for v in lost
            ):
                continue
            if _grid(a[1]) and _grid(b[1]) and not _grid(both):
                continue
            joined = (b[0], both)
            rest = [joined if x is b else x for x in launches if x is not a]
            if possible(rest, joined):
                launches, changed = rest, True
                break
    return launches


def _pairs(launches: list[Launch]) -> list[tuple[Launch, Launch]]:
    """Kernels and those that read their results."""
    writer: Mapping[str, Launch] = {t: x for x in launches for d in x[1] for t in targets(d)}
    found = []
    for b in launches:
        for a in {
            id(w): w for d in b[1] for r in d.reads if (w := writer.get(r.tensor)) is not None
        }.values():
            if a is not b and all(isinstance(d, Einsum) for d in (*a[1], *b[1])):
                found.append((a, b))
    return found


def _grid(members: list[Definition]) -> set[str]:
    return set.intersection(*(set(d.free) for d in members if isinstance(d, Einsum)))


def _short(c: Cascade, v: str, whole: int) -> bool:
    extent = constant_extent(c, c.extent(v))
    return extent is not None and extent <= whole
