"""Vector loops: which variable runs over lanes, and which definitions share a loop."""

from __future__ import annotations

from collections.abc import Callable

from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.expr import Access, text, variables
from tcc.ir.index import poly
from tcc.ir.mapping import Do, Loop, Node

LANE_CHUNK = 32  # coordinates of the lane variable per iteration of a vector loop


def vector_nodes(c: Cascade, members: list[Einsum], rows: list[str]) -> list[Node]:
    """Definitions in order, each over its variables that `rows` does not fix, neighbours sharing one vector loop."""
    nodes: list[Node] = []
    stage: list[Einsum] = []
    lane: str | None = None

    def flush() -> None:
        if stage and lane is not None:
            nodes.append(Loop(lane, LANE_CHUNK, tuple(Do(d, ((lane, "lane"),)) for d in stage)))
        stage.clear()

    for d in members:
        inner = [v for v in (*d.free, *d.reduced) if v not in rows]
        mine = lane_variable(d, inner)
        if mine is None:
            flush()
            nodes.append(Do(d))
            continue
        others = [v for v in inner if v != mine]
        if others:
            flush()
            nodes.append(
                _nest(
                    d,
                    mine,
                    [v for v in others if v in d.free],
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


def lane_variable(d: Einsum, inner: list[str]) -> str | None:
    """The variable along which most reads and writes are contiguous; the target counts twice."""
    if not inner:
        return None
    score: Callable[[str], tuple[int, bool, int]] = lambda v: (  # noqa: E731
        sum(
            weight * _contiguous(a, v)
            for a, weight in [*((a, 1) for a in d.reads), (Access(d.target, d.indices), 2)]
        ),
        v in d.free,
        inner.index(v),
    )
    return max(inner, key=score)


def strided(a: Access, v: str) -> bool:
    """Whether consecutive coordinates of a variable read elements that lie apart."""
    return _contiguous(a, v) < 0


def _contiguous(a: Access, v: str) -> int:
    """1: consecutive elements; 0: the same element, or not at all; -1: strided."""
    for n, i in enumerate(reversed(a.indices)):
        if v in variables(i):
            step = poly(i).coefficient(v)
            return 1 if n == 0 and step is not None and step.constant == 1 else -1
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
