"""Products with a coded tensor whose decoded elements never leave the registers.

    buffer T { T[k, n] = W[n, k];  Y[n] += X[k] * T[k, n] }      n on lanes

Text for this, where a vector holds all lanes of a run, stands in front of the usual one, which decodes a block first.
"""

from __future__ import annotations

from collections.abc import Callable

from tcc.backends.c._coded import SIDE_BY_SIDE, coded_word, has_vectors
from tcc.backends.c._coded_leaf import block_of
from tcc.backends.c._leaves import first_visit
from tcc.backends.c._scope import Interval, Scope, integer_text, plus, span_text
from tcc.ir.cascade import Einsum
from tcc.ir.coded_leaf import copied, neighbours
from tcc.ir.dtype import F32
from tcc.ir.expr import Access, Call, Const, Expr, Var, call, text, variables
from tcc.ir.index import poly, simplify_index
from tcc.ir.mapping import Alloc, Do


def emit_times(s: Scope, n: Alloc, usual: Callable[[], None]) -> bool:
    """Prints a block that is decoded for one product, its usual text included; False, and nothing is printed, for others."""
    if len(n.body) != 2 or not all(isinstance(x, Do) for x in n.body):
        return False
    copy, leaf = (x for x in n.body if isinstance(x, Do))
    d, lanes = leaf.einsum, leaf.on("lane")
    w = copied(copy.einsum, s.signature.tensors)
    if w is None or copy.einsum.target != n.buffer.name or not s.storage[w.tensor].code:
        return False
    t = s.tensor(w.tensor)
    sizes = neighbours(w, t)
    if not has_vectors(t.dtype) or d.where or leaf.update or leaf.on("unroll"):
        return False
    if len(lanes) != 1 or len(d.reduced) != 1 or set(sizes) != {*lanes, *d.reduced}:
        return False
    (lane,), (run,) = lanes, d.reduced
    x = _other(d, Access(n.buffer.name, copy.einsum.indices))
    if x is None or lane in variables(x) or s.unsafe(x) or d.monoid(run) != "sum":
        return False
    y = Access(d.target, d.indices)
    if any(s.storage[a.tensor].dtype != F32 or s.storage[a.tensor].code for a in (x, y)):
        return False
    if any(v != lane and s.intervals[v].step != 1 for v in d.free):
        return False
    if not _adjacent(s, x, run) or not _adjacent(s, y, lane):
        return False
    s.lines.add("#ifdef TCC_EXPAND")
    _emit(s, w, x, d, lane, run)
    s.lines.add("#else")
    usual()
    s.lines.add("#endif")
    return True


def _other(d: Einsum, block: Access) -> Access | None:
    """What the block is multiplied with, if the body is a product of two reads."""
    if not isinstance(d.body, Call) or d.body.op != "mul":
        return None
    reads = [a for a in d.body.args if isinstance(a, Access)]
    others = [a for a in reads if a.tensor != block.tensor]
    mine = [a for a in reads if text(a) == text(block)]
    return others[0] if len(others) == len(mine) == 1 else None


def _adjacent(s: Scope, a: Access, v: str) -> bool:
    """Whether neighbours along a variable are neighbours in memory."""
    old = s.intervals[v]
    name = f"{v}__at"
    s.intervals[v] = Interval(plus(old.low, Var(name)), old.high, 1, False)
    s.counters[name] = Const(old.step) if old.step else s.extents[v]
    address = poly(s.address(a))
    s.intervals[v] = old
    step = address.coefficient(name)
    return step is not None and step.constant == 1 and not address.without(name).mentions([name])


def _emit(s: Scope, w: Access, x: Access, d: Einsum, lane: str, run: str) -> None:
    t = s.tensor(w.tensor)
    sizes, old = neighbours(w, t), dict(s.intervals)
    s.use(f"decode_{coded_word(t.dtype)}")
    name = s.use(f"times_{coded_word(t.dtype)}").removeprefix("times_")
    first, some = first_visit(s, d), s.names.fresh("some")
    count, at = s.names.fresh("runs"), s.names.fresh("at")
    blocks: dict[str, Expr] = {}
    counters = {v: s.names.fresh(v) for v in (lane, run)}
    for v, c in counters.items():
        size, here = Const(sizes[v]), old[v]
        whole = Const(here.step // sizes[v]) if here.step else call("floordiv", s.extents[v], size)
        s.counters[c] = whole
        start = simplify_index(call("floordiv", here.low, size), s.counters)
        blocks[v] = plus(start, Var(c))
        low = plus(here.low, call("mul", Var(c), size))
        s.intervals[v] = Interval(low, here.high, 1, False)
    outer, inner = counters[lane], counters[run]
    s.lines.open("{")
    s.lines.add(f"const int64_t {count} = ({span_text(s, old[lane])}) / {sizes[lane]};")
    s.lines.open(f"for (int64_t {outer} = 0, {some}; {outer} < {count}; {outer} += {some}) {{")
    s.lines.add(f"{some} = {count} - {outer} < {SIDE_BY_SIDE} ? 1 : {SIDE_BY_SIDE};")
    runs = f"({span_text(s, old[run])}) / {sizes[run]}"
    s.lines.open(f"for (int64_t {inner} = 0; {inner} < {runs}; {inner}++) {{")
    places = [
        integer_text(s, block_of(s, t, w, {**blocks, lane: plus(blocks[lane], Const(j))}))
        for j in range(SIDE_BY_SIDE)
    ]
    s.lines.add(f"const int64_t {at}[{SIDE_BY_SIDE}] = {{{', '.join(places)}}};")
    begins = f"{inner} == 0" if first is None else f"{first} && {inner} == 0"
    operands = [f"{s.storage[w.tensor].pointer}", at]
    for a in (x, Access(d.target, d.indices)):
        operands.append(f"{s.storage[a.tensor].pointer} + {integer_text(s, s.address(a))}")
    given = ", ".join([*operands, begins])
    s.lines.add(f"if ({some} == 1) times1_{name}({given});")
    s.lines.add(f"else times{SIDE_BY_SIDE}_{name}({given});")
    for _ in range(3):
        s.lines.close()
    s.intervals.clear()
    s.intervals.update(old)
