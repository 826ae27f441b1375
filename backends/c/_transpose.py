"""Element-wise leaves whose tensors lie along different variables: square blocks are transposed in registers."""

from __future__ import annotations

from tcc.backends.c._scope import Interval, Scope, plus, span_text
from tcc.backends.c._vector import CLASSES, Vector, vector_class
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import DTYPES
from tcc.ir.expr import Access, Const, Expr, Var, accesses, text, variables, walk
from tcc.ir.index import poly


def across(s: Scope, d: Einsum, lane: str) -> str | None:
    """The variable along which some tensors of an element-wise leaf are contiguous that are not along `lane`."""
    if d.reduced:
        return None
    for v in d.free:
        interval = s.intervals[v]
        if v == lane or interval.step == 1:
            continue
        if any(_unit(s, a, v, lane) for a in (*accesses(d.body, *d.where), _target(d))):
            return v
    return None


def _target(d: Einsum) -> Access:
    return Access(d.target, d.indices)


def _unit(s: Scope, a: Access, v: str, lane: str) -> bool:
    """Whether an access has consecutive elements along `v`, and others along `lane`, always inside the tensor."""
    if lane not in variables(a) or v not in variables(a) or s.unsafe(a):
        return False
    if s.storage[a.tensor].packed:
        return False
    if any(accesses(i) for i in a.indices):
        return False
    old = {x: s.intervals[x] for x in (v, lane)}
    for x, name in ((v, "across__"), (lane, "along__")):
        step = old[x].step
        s.counters[name] = Const(step) if step else s.extents[x]
        s.intervals[x] = Interval(plus(old[x].low, Var(name)), old[x].high, None, False)
    p = poly(s.address(a))
    s.intervals.update(old)
    steps = p.coefficient("across__"), p.coefficient("along__")
    if any(k is None or k.mentions(["across__", "along__"]) for k in steps):
        return False
    rest = p.without("across__").without("along__")
    one, other = steps
    return (
        not rest.mentions(["across__", "along__"])
        and one is not None and one.constant == 1
        and other is not None and other.constant != 1
    )  # fmt: skip


def emit_transposed(s: Scope, d: Einsum, lane: str) -> bool:
    """Prints an element-wise leaf in blocks of as many rows as a vector has lanes; False where nothing lies across.

    What is contiguous along the other variable is loaded row by row, transposed, and then is what a load along the
    lanes would have given; a target that lies across is transposed back. The borders go lane by lane.
    """
    from tcc.backends.c._leaves import vector_loop

    v = across(s, d, lane)
    kind = vector_class(s, [d], lane)
    if (
        v is None
        or kind is None
        or s.coded(d)
        or any(s.intervals[x].step != 1 for x in d.free if x not in (v, lane))
    ):
        return False
    width = CLASSES[kind][1]
    old = {x: s.intervals[x] for x in (v, lane)}
    if any(i.step is not None and i.step < width for i in old.values()):
        return False
    turned = {text(a): a for a in accesses(d.body, *d.where) if _unit(s, a, v, lane)}
    back = _unit(s, _target(d), v, lane)
    sizes = {x: s.names.fresh(f"{x}_n") for x in (v, lane)}
    counters = {x: s.names.fresh(x) for x in (v, lane)}
    s.lines.open("{")
    for x, name in sizes.items():
        s.lines.add(f"const int64_t {name} = {span_text(s, old[x])};")
    whole = {x: f"{name} / {width} * {width}" for x, name in sizes.items()}
    for x, c in counters.items():
        s.counters[c] = Const(old[x].step or 1) if old[x].step else s.extents[x]
    a, c = counters[lane], counters[v]
    s.lines.open(f"for (int64_t {a} = 0; {a} < {whole[lane]}; {a} += {width}) {{")
    s.lines.open(f"for (int64_t {c} = 0; {c} < {whole[v]}; {c} += {width}) {{")
    wide, s.vector_bytes = s.vector_bytes, width * DTYPES[kind].itemsize
    _block(s, d, lane, v, kind, counters, turned, back)
    s.vector_bytes = wide
    s.lines.close()
    s.lines.close()
    for first, last in ((None, whole[v]), (whole[v], None)):
        # the lanes that are left, and then the rest of the other variable
        s.intervals.update(old)
        k = s.names.fresh(v)
        s.counters[k] = s.counters[c]
        s.lines.open(f"for (int64_t {k} = {first or 0}; {k} < {last or sizes[v]}; {k}++) {{")
        s.intervals[v] = Interval(plus(old[v].low, Var(k)), old[v].high, 1, False)
        vector_loop(s, lane, [d], {}, start=whole[lane] if first is None else "0")
        s.lines.close()
    s.intervals.update(old)
    s.lines.close()
    return True


def _block(
    s: Scope, d: Einsum, lane: str, v: str, kind: str, counters: dict[str, str],
    turned: dict[str, Access], back: bool,
) -> None:  # fmt: skip
    width = CLASSES[kind][1]
    old = {x: s.intervals[x] for x in (v, lane)}
    start = {x: plus(old[x].low, Var(c)) for x, c in counters.items()}
    uses: dict[str, int] = {}
    for part in walk(d.body, *d.where):
        uses[text(part)] = uses.get(text(part), 0) + 1

    def at(x: str, offset: int) -> None:
        low: Expr = plus(start[x], Const(offset)) if offset else start[x]
        s.intervals[x] = Interval(low, old[x].high, 1, False)

    blocks = {}
    for key, a in turned.items():
        s.intervals[v] = Interval(start[v], old[v].high, None, False)
        name = s.names.fresh(a.tensor)
        t = s.dtype(a)
        rows = []
        for n in range(width):
            at(lane, n)
            e = Vector(s, kind, v, counters[v], 0, None)
            rows.append(e.value(a, t))
        s.lines.add(f"{e.type(t)} {name}[{width}] = {{{', '.join(rows)}}};")
        s.lines.add(f"{e.fn('transpose', e.integer if t.kind == 'b' else t)}({name});")
        blocks[key] = name
    s.intervals[lane] = Interval(start[lane], old[lane].high, None, False)
    t = s.storage[d.target].dtype
    results = []
    for n in range(width):
        at(v, n)
        memo = {key: f"{name}[{n}]" for key, name in blocks.items()}
        e = Vector(s, kind, lane, counters[lane], 0, None, memo, None, uses)
        value = e.chosen(d, e.value(d.body, t), t)
        if back:
            results.append(e.named(t, value))
        else:
            e.store(_target(d), value, True)
    if back:
        name = s.names.fresh(d.target)
        s.intervals[v] = Interval(start[v], old[v].high, None, False)
        e = Vector(s, kind, v, counters[v], 0, None)
        s.lines.add(f"{e.type(t)} {name}[{width}] = {{{', '.join(results)}}};")
        s.lines.add(f"{e.fn('transpose', e.integer if t.kind == 'b' else t)}({name});")
        for n in range(width):
            at(lane, n)
            e.store(_target(d), f"{name}[{n}]", True)
    s.intervals.update(old)
