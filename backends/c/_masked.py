"""Register-tiled inner products of which predicates leave out some terms: what they exclude is never added."""

from __future__ import annotations

from tcc.backends.c._scalar import scalar, typed
from tcc.backends.c._scope import Interval, Scope, plus, span_text
from tcc.backends.c._vector import Vector
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import DTYPES
from tcc.ir.expr import Access, Call, Const, Expr, Var, accesses, text, variables, walk


def emit_masked(
    s: Scope, d: Einsum, lane: str, row: str, vectors: int, width: int, kind: str, update: bool
) -> None:
    """T[rows, columns] ⊕= Σ A[row, …] · B[…, column] where …, with named accumulators.

    A predicate without row and column skips a step; one without column is decided once per row and step, one without
    row once per vector of columns. Excluded terms are left out of the sum, not multiplied by 0: they may be infinite.
    """
    from tcc.backends.c._leaves import first_visit, open_loop

    assert isinstance(d.body, Call)
    t = s.storage[d.target].dtype
    a, b = d.body.args
    old = {v: s.intervals[v] for v in (lane, row)}
    rows = old[row].step or 1
    s.lines.open("{")
    last, counter = s.names.fresh("last"), s.names.fresh(lane)
    s.lines.add(f"const int64_t {last} = {span_text(s, old[row])} - 1, {counter} = 0;")
    s.counters[counter] = Const(old[lane].step or 1)
    s.intervals[lane] = Interval(plus(old[lane].low, Var(counter)), old[lane].high, None, False)
    wide, s.vector_bytes = s.vector_bytes, width * DTYPES[kind].itemsize
    uses: dict[str, int] = {}
    for n in walk(*d.where):
        uses[text(n)] = uses.get(text(n), 0) + 1

    def vector(j: int) -> Vector:
        return Vector(s, kind, lane, counter, j * width, None, {}, None, uses)

    def at_row(at: Expr) -> None:
        s.intervals[row] = Interval(plus(old[row].low, at), old[row].high, 1, False)

    vec = vector(0).type(t)
    sums = [[s.names.fresh(d.target) for _ in range(vectors)] for _ in range(rows)]
    for names in sums:
        s.lines.add(f"{s.use(vec)} {', '.join(f'{n} = {{0}}' for n in names)};")
    loops = [open_loop(s, v) for v in d.reduced if s.intervals[v].step != 1]
    by_row = [p for p in d.where if row in variables(p)]
    by_lane = [p for p in d.where if lane in variables(p) and p not in by_row]
    others = [p for p in d.where if p not in by_row and p not in by_lane]
    s.lines.open(f"if ({' && '.join(scalar(s, p) for p in others)}) {{" if others else "{")
    columns = [vector(j) for j in range(vectors)]
    operands = [e.value(b, t) for e in columns]
    masks = [
        e.named(e.integer, " & ".join(map(e.mask, by_lane))) if by_lane else "" for e in columns
    ]
    branches = [p for p in by_row if lane not in variables(p) and not accesses(p)]
    chosen = [p for p in by_row if p not in branches]
    for i, names in enumerate(sums):
        # rows behind the last one are computed from it, into rows of padding
        at_row(Var(f"({i} < {last} ? {i} : {last})") if i else Const(0))
        test = " && ".join(scalar(s, p) for p in branches)
        s.lines.open(f"if ({test}) {{" if test else "{")
        factor = s.names.fresh("x")
        s.lines.add(f"const {vec} {factor} = {columns[0].fn('bc', t)}({typed(s, a, t)});")
        for j, name in enumerate(names):
            e = vector(j)
            mask = " & ".join([*filter(None, [masks[j]]), *map(e.mask, chosen)])
            total = f"{name} + {factor} * {operands[j]}"
            value = f"{e.fn('select', t)}({mask}, {total}, {name})" if mask else total
            s.lines.add(f"{name} = {value};")
        s.lines.close()
    s.lines.close()
    for v, before in reversed(loops):
        s.lines.close()
        s.intervals[v] = before
    first = "0" if update else first_visit(s, d)
    target = Access(d.target, d.indices)
    for i, names in enumerate(sums):
        at_row(Const(i))
        for j, name in enumerate(names):
            e = vector(j)
            held = f"{name} + {e.value(target, t)}"
            value = (
                name if first is None else held if first == "0" else f"{first} ? {name} : {held}"
            )
            e.store(target, value, True)
    s.intervals.update(old)
    s.vector_bytes = wide
    s.lines.close()
