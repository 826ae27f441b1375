"""The leaf that decodes: T[…] = W[…] over whole runs of a coded tensor."""

from __future__ import annotations

from tcc.backends.c._coded import SIDE_BY_SIDE, coded_word, form_of
from tcc.backends.c._codes import computed, starts_f32, word
from tcc.backends.c._scope import C_TYPES, Interval, Scope, Storage, integer_text, plus, span_text
from tcc.ir.cascade import Einsum, Tensor
from tcc.ir.coded_leaf import copied, neighbours
from tcc.ir.expr import Access, Const, Expr, Var, call
from tcc.ir.index import simplify_index


def emit_decoded(s: Scope, d: Einsum) -> bool:
    """Whether the leaf reads a coded tensor; then it is printed: runs are decoded to where they belong if the target is
    contiguous along the lanes, else into a buffer, from which they are copied."""
    from tcc.backends.c._leaves import open_loop

    w = copied(d, s.signature.tensors)
    if w is None:
        return False
    t = s.tensor(w.tensor)
    form = form_of(t.dtype)
    if not s.storage[w.tensor].code:  # a buffer of this name: decoded already
        return False
    function = s.use(f"decode_{coded_word(t.dtype)}")
    if not starts_f32(form.element):
        s.use(f"get_{word(form.element)}")
    run = w.indices[t.axes.index(form.run[0])]
    lane = w.indices[t.axes.index(form.lanes[0])] if form.lanes else None
    assert isinstance(run, Var) and (lane is None or isinstance(lane, Var))
    sizes = neighbours(w, t)
    inner = [v for v in (lane, run) if v is not None]
    others = [i.name for i in w.indices if isinstance(i, Var) and i.name not in sizes]
    opened = [open_loop(s, v) for v in others if s.intervals[v].step != 1]
    old = {v.name: s.intervals[v.name] for v in inner}
    blocks: dict[str, Expr] = {}
    s.lines.open("{")
    names = {n: s.names.fresh(n) for n in ("at", "to", "some", "part")}
    step = _direct(s, d, run.name, lane.name if lane else None)
    real = C_TYPES[computed(t.dtype).name]
    count = SIDE_BY_SIDE if step is not None else 1
    lanes = sizes[lane.name] if lane else 1
    s.lines.add(f"int64_t {names['at']}[{count}], {names['some']} = 0;")
    s.lines.add(f"{real} *{names['to']}[{count}];")
    if step is None:
        s.lines.add(f"{real} {names['part']}[{sizes[run.name] * lanes}];")
    for v in inner:
        c = s.names.fresh(v.name)
        n = Const(sizes[v.name])
        s.lines.open(
            f"for (int64_t {c} = 0; {c} < ({span_text(s, old[v.name])}) / {sizes[v.name]}; {c}++) {{"
        )
        whole = old[v.name].step
        s.counters[c] = (
            Const(whole // sizes[v.name]) if whole else call("floordiv", s.extents[v.name], n)
        )
        low = plus(old[v.name].low, call("mul", Var(c), n))
        blocks[v.name] = plus(
            simplify_index(call("floordiv", old[v.name].low, n), s.counters), Var(c)
        )
        s.intervals[v.name] = Interval(low, old[v.name].high, 1, False)
    at, to, some = names["at"], names["to"], names["some"]
    target = s.storage[d.target]
    s.lines.add(f"{at}[{some}] = {integer_text(s, block_of(s, t, w, blocks))};")
    coded = s.storage[w.tensor].pointer
    if step is not None:
        place = integer_text(s, s.address(Access(d.target, d.indices)))
        s.lines.add(f"{to}[{some}] = {target.pointer} + {place};")
        s.lines.open(f"if (++{some} == {count}) {{")
        s.lines.add(f"{function}({coded}, {at}, {to}, {count}, {integer_text(s, step)});")
        s.lines.add(f"{some} = 0;")
        s.lines.close()
    else:
        s.lines.add(f"{to}[0] = {names['part']};")
        s.lines.add(f"{function}({coded}, {at}, {to}, 1, {lanes});")
        _scatter(s, d, run.name, lane.name if lane else None, sizes, names["part"])
    for name, interval in reversed(old.items()):
        s.lines.close()
        s.intervals[name] = interval
    if step is not None:
        s.lines.add(f"{function}({coded}, {at}, {to}, {some}, {integer_text(s, step)});")
    s.lines.close()
    for name, interval in reversed(opened):
        s.lines.close()
        s.intervals[name] = interval
    return True


def block_of(s: Scope, t: Tensor, w: Access, blocks: dict[str, Expr]) -> Expr:
    """The number of a run: other dimensions in order, the lanes' one divided by them, then the runs of a row."""
    form = form_of(t.dtype)
    sizes = dict(form.neighbours)
    order = [k for k in t.axes if k != form.run[0]] + [form.run[0]]
    at: Expr = Const(0)
    for k in order:
        dimension = t.axes.index(k)
        size: Expr = s.signature.resolved(t.shape[dimension])
        i = w.indices[dimension]
        assert isinstance(i, Var)
        if k in sizes:
            size, index = call("floordiv", size, Const(sizes[k])), blocks[i.name]
        else:
            index = s.located(i)
        at = call("add", call("mul", at, size), index)
    return simplify_index(at, s.counters)


def _scatter(
    s: Scope, d: Einsum, run: str, lane: str | None, sizes: dict[str, int], part: str
) -> None:
    """Elements of one run go from `part` to where the target has them, rounded if they have to be."""
    t = s.names.fresh("t")
    old = {v: s.intervals[v] for v in (run, lane) if v is not None}
    s.lines.open(f"for (int64_t {t} = 0; {t} < {sizes[run]}; {t}++) {{")
    s.counters[t] = Const(sizes[run])
    s.intervals[run] = Interval(plus(old[run].low, Var(t)), old[run].high, 1, False)
    place = t
    if lane is not None:
        x = s.names.fresh("l")
        s.lines.open(f"for (int64_t {x} = 0; {x} < {sizes[lane]}; {x}++) {{")
        s.counters[x] = Const(sizes[lane])
        s.intervals[lane] = Interval(plus(old[lane].low, Var(x)), old[lane].high, 1, False)
        place = f"{t} * {sizes[lane]} + {x}"
    target = s.storage[d.target]
    stored = Access(d.target, d.indices)
    address = integer_text(s, s.address(stored))
    s.lines.add(f"{target.pointer}[{address}] = {s.put(stored, f'{part}[{place}]')};")
    s.lines.close()
    if lane is not None:
        s.lines.close()
    s.intervals |= old


def _direct(s: Scope, d: Einsum, run: str, lane: str | None) -> Expr | None:
    """The distance of neighbours along the run in the target, if lanes follow each other there; else None."""
    target: Storage = s.storage[d.target]
    names = [i.name for i in d.indices if isinstance(i, Var)]
    k = names.index(run)
    n = names.index(lane) if lane is not None else None
    assert isinstance(d.body, Access)
    source = computed(s.tensor(d.body.tensor).dtype)
    if target.code is not None or target.dtype != source:
        return None
    if target.strides is not None:
        near = n is None or (isinstance(one := target.strides[n], Const) and one.value == 1)
        return target.strides[k] if near else None
    assert target.layout is not None
    digits = target.layout.digits
    along = [x for x in digits if x.dimension == k]
    if (
        len(along) != 1
        or along[0].divisor != 1
        or any(x.axis != "addr" or x.stride or x.xor for x in digits)
    ):
        return None
    if n is not None and lane is not None:
        last, lanes = digits[-1], form_of(s.tensor(d.body.tensor).dtype).lanes
        width = last.modulus
        aligned = width is None or (
            isinstance(width, int) and lanes is not None and width % lanes[1] == 0
        )
        if last.dimension != n or last.divisor != 1 or not aligned:
            return None
    unit = tuple(Const(1) if x == k else Const(0) for x in range(len(names)))
    return simplify_index(target.layout.address(unit, target.shape), {})
