"""Reductions over windows for several neighbours at once: what they share along the lanes is loaded once."""

from __future__ import annotations

from tcc.backends.c._scalar import inside
from tcc.backends.c._scope import Interval, Scope, plus, span_text
from tcc.backends.c._vector import vector_class
from tcc.ir.cascade import Einsum
from tcc.ir.expr import Const, accesses, variables
from tcc.ir.index import poly
from tcc.ir.mapping import Do


def emit_windows(s: Scope, leaf: Do) -> bool:
    """Prints a leaf with neighbours on `unroll`: whole tiles that lie inside all operands at once, the others one by one.

    False where the leaf is no reduction over windows that keeps its lanes.
    """
    from tcc.backends.c._leaves import open_loop, vector_loop

    d = leaf.einsum
    lane, row = leaf.on("lane")[0], leaf.on("unroll")[0]
    rows = s.intervals[row].step
    reduced = [v for v in d.reduced if s.intervals[v].step != 1]
    points = [v for v in d.free if v not in (lane, row)]
    if rows is None or rows < 2 or not reduced or d.where or lane not in d.free:
        return False
    if row not in d.free or any(s.intervals[v].step != 1 for v in points):
        return False
    tests = _inside(s, d, lane, row, rows)
    if tests is None or vector_class(s, [d], lane) is None:
        return False
    size = poly(s.signature.resolved(s.extents[row])).constant
    if size is None or size % rows:
        tests = [f"{span_text(s, s.intervals[row])} == {rows}", *tests]
    inner = {id(d): reduced}
    s.lines.open(f"if ({' && '.join(tests)}) {{" if tests else "{")
    s.trusted = True
    vector_loop(s, lane, [d], inner, tile=(row, rows))
    s.trusted = False
    s.lines.close()
    if tests:
        s.lines.open("else {")
        v, old = open_loop(s, row)
        vector_loop(s, lane, [d], inner)
        s.lines.close()
        s.intervals[v] = old
        s.lines.close()
    return True


def _inside(s: Scope, d: Einsum, lane: str, row: str, rows: int) -> list[str] | None:
    """C tests that all reads of a whole tile lie inside their tensors: those of its first and last corner. None where
    these do not tell."""
    guards = [g for a in accesses(d.body) for g in s.unsafe(a)]
    names = {v for i, _ in guards for v in variables(i)}
    if lane in names:
        return None
    for i, _ in guards:
        for v in {row, *d.reduced} & set(variables(i)):
            step = poly(i).coefficient(v)
            if step is None or step.constant is None or step.constant < 0:
                return None
    old = {v: s.intervals[v] for v in (row, *d.reduced)}
    tests: list[str] = []
    for last in (False, True):
        for v, interval in old.items():
            length = rows if v == row else poly(s.signature.resolved(s.extents[v])).constant
            if length is None or (v != row and not interval.whole):
                s.intervals.update(old)
                return None
            at = plus(interval.low, Const(length - 1)) if last else interval.low
            s.intervals[v] = Interval(at, interval.high, 1, False)
        tests += [inside(s, [g]) for g in guards]
        s.intervals.update(old)
    return list(dict.fromkeys(tests))
