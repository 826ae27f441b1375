"""What a leaf costs on an array: cycles from what moves along which dimension, energy of operators.

Operands enter at an edge and are handed from element to element, so each dimension along which
something moves adds its length minus one to every run (*skew*). Loading registers takes one cycle
per row of elements (*preload*); reading results out of them hides behind the next run. Copies
between levels take their bytes over the slower bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field

from tcc.ir.cascade import Einsum
from tcc.ir.cost.reuse import Traffic
from tcc.ir.cost.tiles import Site
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.expr import Access, accesses, text, variables
from tcc.ir.target import Target, Unit
from tcc.ir.work import is_move, point_operations


@dataclass(slots=True, eq=False)
class LeafCost:
    """All runs of one leaf together."""

    kernel: str
    text: str
    kind: str  # compute, preload, drain, transfer
    unit: str
    runs: int
    points: int
    cycles: float
    steps: float = 0  # cycles in which points are computed
    skew: int = 0  # cycles per run until the last element has its first operands
    busy: float = 0  # element-cycles of useful work
    utilisation: float = 0
    transfer: float = 0  # cycles of the memory traffic of a leaf that computes
    energy_pj: float = 0
    bound: dict[str, str] = field(default_factory=dict)
    time: list[str] = field(default_factory=list)
    stationary: list[str] = field(default_factory=list)
    moves: dict[str, list[str]] = field(
        default_factory=dict
    )  # dimension -> tensors that are handed along it
    reduces: list[str] = field(default_factory=list)  # dimensions along which partial sums move


def leaf_cost(
    s: Site, target: Target, levels: MappingABC[str, str], t: Traffic, word: MappingABC[str, float]
) -> LeafCost:
    """Cycles and energy of the operators of one leaf."""
    e = s.do.einsum
    names = list(dict.fromkeys(variables(e.body, *e.where, *e.indices)))
    bound = dict(s.do.bind)
    unit = unit_of(s, target)
    count = {r.name: r.count for r in target.resources}
    elements = _product([count[r] for r in unit.resources]) if unit else 0
    own = {u.level: u for u in target.units if u.level}
    time = [v for v in names if v not in bound and s.longest(v) > 1]
    cost = LeafCost(
        s.kernel.name,
        text(Access(e.target, e.indices)),
        "compute",
        unit.name if unit else "",
        s.runs(),
        s.swept(names),
        0,
        bound=bound,
        time=time,
    )
    moved = _transfer_cycles(t, target, word)
    sources = [a for a in operands(e) if a.tensor]
    if is_move(e):
        outside = levels[sources[0].tensor] not in own
        if levels[e.target] in own and outside:
            cost.kind = "preload"
            cost.cycles = s.swept(time) * _rows(own[levels[e.target]], count)
        elif levels[e.target] not in own and not outside:
            cost.kind = "drain"
            cost.cycles = (
                s.swept(time)
                * _rows(own[levels[sources[0].tensor]], count)
                * target.parameter("drain", 0)
            )
        elif levels[e.target] not in own:
            cost.kind = "transfer"
        if cost.kind != "compute":
            cost.transfer = moved
            return cost
    if unit is None:
        raise CompileError(
            "T0343",
            f"`{e.target}` runs on no unit of `{target.name}`",
            s.do.span,
            helps="bind a variable of it to a parallel dimension",
        )
    work = point_operations(e)
    cycles = 0.0
    for op, n in work.items():
        c = unit.cost(op)
        if c is None:
            raise CompileError(
                "T0343",
                f"`{e.target}` needs `{op}`, which unit `{unit.name}` of `{target.name}` cannot do",
                s.do.span,
                helps="bind it to another unit, or list the operator there",
            )
        cycles += n * c.cycles
        cost.energy_pj += n * c.pj * cost.points
    cycles = max(1.0, cycles)
    _movement(s, unit, sources, levels, cost)
    hop = target.parameter("hop_cycles", 1)
    cost.skew = int(hop * sum(count[r] - 1 for r in {**cost.moves, **dict.fromkeys(cost.reduces)}))
    cost.steps = cycles * s.swept(time)
    cost.cycles = cost.steps + cost.runs * cost.skew
    cost.busy = cost.points * cycles
    cost.utilisation = cost.busy / (elements * cost.cycles) if cost.cycles else 0
    cost.transfer = moved
    return cost


def operands(e: Einsum) -> list[Access]:
    """Accesses of body and predicates, equal ones once; not those inside indices."""
    return list({text(a): a for a in accesses(e.body, *e.where)}.values())


def _movement(
    s: Site, unit: Unit, sources: list[Access], levels: MappingABC[str, str], cost: LeafCost
) -> None:
    e = s.do.einsum
    for v, r in s.do.bind:
        for a in sources:
            if v not in variables(*a.indices) and levels[a.tensor] != unit.level and a.indices:
                cost.moves.setdefault(r, []).append(a.tensor)
        if v in e.reduced:
            cost.reduces.append(r)
    still = [
        a
        for a in (Access(e.target, e.indices), *sources)
        if not set(variables(*a.indices)) & set(cost.time)
    ]
    cost.stationary = list(dict.fromkeys(a.tensor for a in still)) if cost.time else []


def unit_of(s: Site, target: Target) -> Unit | None:
    """The unit that spans a leaf's dimensions; for unbound work the smallest that can do it."""
    known = [r.name for r in target.resources]
    used = [r for _, r in s.do.bind]
    for v, r in s.do.bind:
        if r not in known:
            raise CompileError(
                "T0343",
                f"`{r}` is no parallel dimension of `{target.name}`",
                s.do.span,
                helps=did_you_mean(r, known) or f"one of {', '.join(known)}",
            )
        if used.count(r) > 1:
            raise CompileError(
                "T0343",
                f"two variables of `{s.do.einsum.target}` are bound to `{r}`",
                s.do.span,
                helps="bind one variable to each dimension",
            )
        if s.longest(v) > target.resource(r).count:
            raise CompileError(
                "T0343",
                f"`{v}` has tiles of {s.longest(v)}, but `{r}` has {target.resource(r).count} "
                "elements",
                s.do.span,
                helps=f"add a loop `for {v} by {target.resource(r).count}`",
            )
    fitting = [u for u in target.units if set(used) <= set(u.resources)]
    if used and not fitting:
        raise CompileError(
            "T0343",
            f"no unit of `{target.name}` spans {', '.join(used)}",
            s.do.span,
            helps="bind variables to the dimensions of one unit",
        )
    if not used:
        work = point_operations(s.do.einsum)
        fitting = [u for u in fitting if all(u.cost(op) for op in work)]
    return min(fitting, key=lambda u: len(u.resources), default=None)


def _rows(unit: Unit, count: MappingABC[str, int]) -> int:
    """Cycles to reach every element of a unit once, from the edge that its last dimension spans."""
    return _product([count[r] for r in unit.resources[:-1]])


def _transfer_cycles(t: Traffic, target: Target, word: MappingABC[str, float]) -> float:
    """The time of a leaf's traffic at the levels that have a bandwidth, the slowest of them."""
    slowest = 0.0
    clock = target.parameter("clock_mhz", 1000) * 1e6
    for level in target.levels:
        size = sum(
            n * word[name]
            for part in (t.reads, t.writes)
            for (at, name), n in part.items()
            if at == level.name
        )
        if size and level.bandwidth_gbps:
            slowest = max(slowest, size / (level.bandwidth_gbps * 1e9) * clock)
    return slowest


def _product(values: list[int]) -> int:
    out = 1
    for v in values:
        out *= v
    return out
