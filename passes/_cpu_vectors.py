"""Vector loops: which variable runs over lanes, and which definitions share a loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Var, text, variables, walk
from tcc.ir.index import divisor, poly
from tcc.ir.mapping import Buffer, Do, Loop, Node

LANE_CHUNK = 32  # coordinates of the lane variable per iteration of a vector loop
LEAST = 16  # coordinates that are worth a vector loop of their own


def column_of(members: list[Einsum], rows: list[str], buffers: Mapping[str, Buffer]) -> str | None:
    """The last row variable, when the reductions read contiguously along it and strided along what they reduce.

    The column is the last index of every target.
    """
    reductions = [d for d in members if d.reduced]
    if not reductions or not rows:
        return None
    column = next(
        (v for v in reversed(reductions[0].free) if v in rows and _along(reductions, v, buffers)),
        None,
    )
    for d in members:
        plain = [i.name for i in d.indices if isinstance(i, Var)]
        if column is None or not plain or plain[-1] != column:
            return None
    return column


def _along(reductions: list[Einsum], column: str, buffers: Mapping[str, Buffer]) -> bool:
    """Whether some reads of every reduction are contiguous along `column`, and not along what is reduced, as windows are; and
    all others stay the same."""
    for d in reductions:
        ways = [(_contiguous(a, column, buffers.get(a.tensor)), a) for a in d.reads]
        along = [a for way, a in ways if way > 0]
        if not along or any(way < 0 for way, _ in ways):
            return False
        if any(_contiguous(a, v, buffers.get(a.tensor)) > 0 for a in along for v in d.reduced):
            return False
    return True


def vector_nodes(
    members: list[Einsum],
    rows: list[str],
    buffers: Mapping[str, Buffer],
    narrow: Collection[str] = (),
) -> list[Node]:
    """Definitions in order, each over its variables that `rows` does not fix, neighbours sharing one vector loop.

    `buffers` says how what is neither input nor output lies in memory. Lanes run along `narrow` variables, which are too
    short for a vector, only where nothing else is there.
    """
    nodes: list[Node] = []
    stage: list[Einsum] = []
    lane: str | None = None

    def flush() -> None:
        if stage and lane is not None:
            leaves = tuple(Do(d, ((lane, "lane"),)) for d in stage)
            nodes.append(_by_period(Loop(lane, LANE_CHUNK, leaves), stage))
        stage.clear()

    for d in members:
        inner = [v for v in (*d.free, *d.reduced) if v not in rows]
        mine = lane_variable(d, inner, buffers, narrow)
        if mine is None:
            flush()
            nodes.append(Do(d))
            continue
        others = [v for v in inner if v != mine]
        if others:
            flush()
            turned = across(d, mine, others, buffers)
            nodes.append(
                _nest(
                    d,
                    mine,
                    [v for v in others if v in d.free and v != turned],
                    [v for v in others if v not in d.free],
                )
            )
            continue
        if mine != lane or not _compatible(stage, d, mine):
            flush()
        lane = mine
        stage.append(d)
    flush()
    return nodes


def _by_period(loop: Loop, members: list[Einsum]) -> Loop:
    """A vector loop; where members read at v / n and v % n, as reshaped tensors are read, inside one over stretches of n, in
    which the quotient stays the same and the remainders follow each other."""
    indices = [i for d in members for i in (*d.indices, *(i for a in d.reads for i in a.indices))]
    inner = [e for e in walk(*indices) if variables(e) == [loop.var]]
    found = {n for e in inner if (n := divisor(e)) is not None}
    period = min(found, default=0)
    if period < LEAST or any(n % period for n in found):
        return loop
    return Loop(loop.var, period, (loop,))


def across(
    d: Einsum, lane: str, others: Sequence[str], buffers: Mapping[str, Buffer]
) -> str | None:
    """The other variable along which something lies that an element-wise definition reads or writes: its leaf then
    runs over tiles of both, which are transposed in registers."""
    if d.reduced:
        return None
    for v in others:
        if any(
            lies_across(a, lane, v, buffers.get(a.tensor))
            for a in (*d.reads, Access(d.target, d.indices))
        ):
            return v
    return None


def lies_across(a: Access, lane: str, v: str, stored: Buffer | None) -> bool:
    """Whether elements that follow each other along `v` do in memory, and those along the lanes do not."""
    return _contiguous(a, lane, stored) < 0 and _contiguous(a, v, stored) > 0


def _nest(d: Einsum, lane: str, free: list[str], reduced: list[str]) -> Node:
    """Loops over the other variables; reduced ones inside the vector loop where the lanes are kept."""
    leaf: Node = Do(d, ((lane, "lane"),))
    if lane not in d.free:
        leaf = Loop(lane, LANE_CHUNK, (leaf,))
        for v in reversed(reduced):
            leaf = Loop(v, 1, (leaf,))
    for v in reversed(free):
        leaf = Loop(v, 1, (leaf,))
    return leaf


def lane_variable(
    d: Einsum, inner: list[str], buffers: Mapping[str, Buffer], narrow: Collection[str] = ()
) -> str | None:
    """The variable along which most reads and writes are contiguous; the target counts twice. Rather one that is not
    `narrow`."""
    if not inner:
        return None

    def score(v: str) -> tuple[bool, int, bool, int]:
        weighed = [*((a, 1) for a in d.reads), (Access(d.target, d.indices), 2)]
        near = sum(weight * _contiguous(a, v, buffers.get(a.tensor)) for a, weight in weighed)
        return v not in narrow, near, v in d.free, inner.index(v)

    return max(inner, key=score)


def nearest_last(names: list[str], d: Einsum) -> list[str]:
    """Variables, those last along which most reads of a definition are contiguous: the order for what is made for it."""
    return sorted(names, key=lambda v: sum(_contiguous(a, v, None) > 0 for a in d.reads))


def strided(a: Access, v: str, stored: Buffer | None) -> bool:
    """Whether consecutive coordinates of a variable read elements that lie apart."""
    return _contiguous(a, v, stored) < 0


def _contiguous(a: Access, v: str, stored: Buffer | None) -> int:
    """1: consecutive elements; 0: the same element, or not at all; -1: strided."""
    last = stored.layout.digits[-1].dimension if stored and a.indices else len(a.indices) - 1
    for n, i in enumerate(a.indices):
        if v in variables(i):
            step = poly(i).coefficient(v)
            return 1 if n == last and step is not None and step.constant == 1 else -1
    return 0


def _compatible(stage: list[Einsum], d: Einsum, lane: str) -> bool:
    """Whether d may share the loop: it reads what the stage makes only at its own point, and never a finished sum."""
    own = {x.target: x for x in stage}
    for a in d.reads:
        made = own.get(a.tensor)
        if made is None:
            continue
        if lane not in made.free or [text(i) for i in a.indices] != [text(i) for i in made.indices]:
            return False
    for x in stage:
        for a in x.reads:
            if a.tensor == d.target and [text(i) for i in a.indices] != [
                text(i) for i in d.indices
            ]:
                return False
    return d.target not in own or lane in d.free
