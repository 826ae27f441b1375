"""How often each rank is walked, as written and as derived, and what forces each pass: a part of `explain`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tcc.ir.cascade import Cascade, Definition, Einsum
from tcc.ir.diagnostics import Span
from tcc.passes.count_passes import Barrier, Count, by_rank, count_passes

MOST_LINES = 8  # per rank, in the form for people
MOST_COLUMNS = 80  # of a place with its source line


@dataclass(frozen=True, slots=True)
class Derived:
    """The program with everything derived, and the one that is compiled, as far as known.

    `reasons`: reductions `(source, target, why)` of which the second waits for the first even so.
    """

    program: Cascade
    used: Cascade | None = None
    reasons: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BarrierReport:
    """A pass that can start only after another one: the reduction that has to end, and who waits for it.

    `residual` says why no algebra removes it, where it was tried in vain.
    """

    source: str
    target: str
    through: tuple[str, ...]
    why: str
    place: str
    source_place: str
    residual: str = ""


@dataclass(frozen=True, slots=True)
class RankReport:
    """The passes over a rank: most of all tensors that have it, and the barriers between them.

    `derived` is None where the derived program has no such rank, `compiled` where nothing says what is compiled;
    `per_step`: an iterative rank, each of whose steps takes this many. `tensor` is the first that takes them.
    """

    rank: str
    tensor: str
    passes: int
    derived: int | None
    compiled: int | None
    per_step: str
    barriers: tuple[BarrierReport, ...]
    tensors: tuple[
        tuple[str, int], ...
    ] = ()  # each with the passes over its dimension of this rank

    def lines(self) -> Iterator[str]:
        """For people: the counts, then a line per pass."""
        after = f", derived: {self.derived}" if self.derived is not None else ""
        if self.compiled not in (None, self.derived):
            after += f", compiled: {self.compiled} (deriving more would not pay)"
        each = f" at each step of {self.per_step}" if self.per_step else ""
        yield f"passes over {self.rank}: {self.passes}{each}{after}"
        told = [("1", f"{self.barriers[0].source} walks all of {self.rank}", self.barriers[0].source_place)]  # fmt: skip
        for n, b in enumerate(self.barriers, 2):
            number = str(n) if n <= self.passes else "+"
            told.append((number, f"{b.target} {_waits(b)}", b.place))
        hidden = len(told) - MOST_LINES
        told = told[:MOST_LINES]
        width = max(len(words) for _, words, _ in told)
        for number, words, where in told:
            short = where if len(where) <= MOST_COLUMNS else f"{where[: MOST_COLUMNS - 1]}…"
            yield f"  {number:>2}  {words:<{width}}  at {short}"
        for b in self.barriers[:MOST_LINES]:
            if b.residual:
                yield f"      {b.target} waits even so: {b.residual}"
        if hidden > 0:
            yield f"      … and {hidden} more"


def _waits(b: BarrierReport) -> str:
    through = f" (through {_path(b.through)})" if b.through else ""
    return f"needs all of {b.source}{through}"


def _path(names: tuple[str, ...]) -> str:
    return ", ".join(names if len(names) < 5 else (*names[:2], "…", names[-1]))


def rank_reports(written: Cascade, derived: Derived | None) -> tuple[RankReport, ...]:
    """The counts of a program as it is written, beside those of the program that was derived from it."""
    counts = count_passes(written)
    after = count_passes(derived.program) if derived is not None else ()
    used = count_passes(derived.used) if derived is not None and derived.used is not None else ()
    found = []
    for rank, count in by_rank(counts).items():
        left = _same(rank, counts, after)
        reasons = derived.reasons if derived is not None and left != 1 else ()
        found.append(
            RankReport(
                rank,
                count.tensor,
                count.passes,
                left,
                _same(rank, counts, used),
                count.per_step,
                tuple(_barrier(written, b, reasons) for b in count.barriers),
                tuple((c.tensor, c.passes) for c in counts if c.rank == rank),
            )
        )
    return tuple(found)


def _same(rank: str, before: tuple[Count, ...], after: tuple[Count, ...]) -> int | None:
    """The count of the same dimensions in a later program, whose ranks may have other names."""
    same = {(c.tensor, c.dimension) for c in before if c.rank == rank}
    found = [c.passes for c in after if (c.tensor, c.dimension) in same]
    return max(found or [c.passes for c in after if c.rank == rank], default=None)


def _barrier(c: Cascade, b: Barrier, reasons: tuple[tuple[str, str, str], ...]) -> BarrierReport:
    of, until = b.of.target, b.until.target
    mine = [(target, why) for source, target, why in reasons if source == of]
    ends = _reductions(c, b.until) if mine else set()
    residual = next((why for target, why in mine if target in ends), "")
    return BarrierReport(of, until, b.through, b.why, _where(b.until), _where(b.of), residual)


def _reductions(c: Cascade, d: Definition) -> set[str]:
    """The reductions that a definition is streamed into: itself, or the next that read it."""
    found: set[str] = set()
    stack = [d]
    while stack:
        at = stack.pop()
        if at.target in found:
            continue
        found.add(at.target)
        if isinstance(at, Einsum) and not at.reduced:
            stack += c.readers(at.target)
    return found


def _where(d: Definition) -> str:
    return place(d.span) or str(d)


def place(span: Span | None) -> str:
    """The source line itself, behind its place."""
    if span is None:
        return ""
    line = " ".join(span.source.line(span.line).split())
    return f"{span.source.name}:{span.line}{f': {line}' if line else ''}"


def passes_json(ranks: tuple[RankReport, ...]) -> dict[str, Any]:
    """For programs: counts by rank, and the barriers of all ranks."""
    tensors: dict[str, dict[str, int]] = {}
    for r in ranks:
        for name, passes in r.tensors:
            own = tensors.setdefault(name, {})
            own[r.rank] = max(passes, own.get(r.rank, 0))
    return {
        "passes": {r.rank: r.passes for r in ranks},
        "derived": {r.rank: r.derived for r in ranks if r.derived is not None},
        "compiled": {r.rank: r.compiled for r in ranks if r.compiled is not None},
        "per_step": {r.rank: r.per_step for r in ranks if r.per_step},
        "tensors": tensors,
        "barriers": [
            {
                "rank": r.rank,
                "tensor": r.tensor,
                "from": b.source,
                "to": b.target,
                "through": list(b.through),
                "why": f"{b.why}: {b.residual}" if b.residual else b.why,
                "place": b.place,
                "from_place": b.source_place,
            }
            for r in ranks
            for b in r.barriers
        ],
    }


def passes_text(ranks: tuple[RankReport, ...]) -> Iterator[str]:
    """For people: each rank that is walked several times, and the names of the others."""
    for r in ranks:
        if r.barriers:
            yield from r.lines()
    once = [r.rank for r in ranks if not r.barriers]
    if once:
        yield f"one pass over {', '.join(once)}"
