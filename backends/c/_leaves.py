"""Leaves as C: vector loops over a lane variable, scalar loops, and register-tiled inner products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tcc.backends.c._codes import same_codes
from tcc.backends.c._scalar import code_of, literal, scalar, typed
from tcc.backends.c._scope import C_TYPES, Interval, Scope, integer_text, plus, span_text
from tcc.backends.c._streams import computes, fetch, next_rows, stream_test, streaming
from tcc.backends.c._transpose import emit_transposed
from tcc.backends.c._vector import CLASSES, Hoisted, Vector, vector_class
from tcc.backends.c._vector_choice import unpacked
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import DTYPES, F32, F64, DType
from tcc.ir.expr import Access, Cast, Const, Expr, Var, accesses, text, variables, walk
from tcc.ir.index import poly
from tcc.ir.mapping import Do
from tcc.ir.ops import MONOIDS

UNROLL = 4  # vectors per iteration of a full vector loop
LONG = 8  # vectors from which on a loop is worth some preparation
SHORT = 8  # iterations of a loop that are written out
_SIGNS = {"add": "+", "mul": "*", "bit_xor": "^", "or": "|", "and": "&"}
_FOLD = {"add": "hsum", "mul": "hprod", "max": "hmax", "min": "hmin"}


def combine(s: Scope, monoid: str, a: str, b: str, t: DType, suffix: str | None = None) -> str:
    """C text of a ⊕ b, for scalars or for vectors of type `suffix`."""
    op = MONOIDS[monoid].combine
    if op in _SIGNS:
        shown = f"{a} {_SIGNS[op]} {b}"
        return shown if t.bits >= 32 or suffix else f"({C_TYPES[t.name]})({shown})"
    if suffix is None and not t.is_float:
        return f"({a} {'>' if op == 'max' else '<'} {b} ? {a} : {b})"
    return f"{s.use(f'{op}_{suffix or t.name}')}({a}, {b})"


def first_visit(s: Scope, d: Einsum) -> str | None:
    """The condition that no loop has combined into the target before; None when that is certain."""
    if id(d) in s.updates:
        return "0"
    terms = []
    for v in d.reduced:
        interval = s.intervals[v]
        if not interval.whole:
            terms.append(f"{integer_text(s, s.located(Var(v)))} == 0")
    return " && ".join(terms) or None


def emit_do(s: Scope, leaf: Do) -> None:
    """One `do` outside any shared vector loop."""
    from tcc.backends.c._coded_leaf import emit_decoded
    from tcc.backends.c._dots import emit_dots, emit_panels
    from tcc.backends.c._micro import emit_micro
    from tcc.backends.c._packed import emit_pack
    from tcc.backends.c._unpack import emit_unpacked
    from tcc.backends.c._windows import emit_windows

    d = leaf.einsum
    if emit_panels(s, d) or emit_decoded(s, d):
        return
    if s.storage[d.target].packed:
        emit_pack(s, leaf)
        return
    if leaf.update:
        s.updates.add(id(d))
    lanes = leaf.on("lane")
    if emit_dots(s, leaf):
        return
    if lanes and emit_unpacked(s, leaf):
        return
    if lanes and leaf.on("unroll") and (emit_micro(s, leaf) or emit_windows(s, leaf)):
        return
    lane = lanes[0] if lanes else None
    if lane is not None and emit_transposed(s, d, lane):
        return
    open_vars = [v for v in d.free if v != lane and s.intervals[v].step != 1]
    counters = [open_loop(s, v) for v in open_vars]
    reduced = [v for v in d.reduced if v != lane and s.intervals[v].step != 1]
    if lane is None or vector_class(s, [d], lane) is None:
        _scalar_leaf(s, d, ([lane] if lane in d.free and lane else []), d.reduced)
    elif lane in d.free:
        vector_loop(s, lane, [d], {id(d): reduced})
    elif reduced:
        _split_reduction(s, d, lane, reduced)
    else:
        vector_loop(s, lane, [d], {})
    for v, old in reversed(counters):
        s.lines.close()
        s.intervals[v] = old


def open_loop(s: Scope, v: str, short: bool = False) -> tuple[str, Interval]:
    """A loop over the current interval of `v`, which becomes a point in it; written out where it is `short`."""
    old = s.intervals[v]
    c = s.names.fresh(v)
    length = span_text(s, old)
    if short and length.isdigit() and int(length) <= SHORT:
        s.lines.add(f"#pragma GCC unroll {length}")
    s.lines.open(f"for (int64_t {c} = 0; {c} < {length}; {c}++) {{")
    s.intervals[v] = Interval(plus(old.low, Var(c)), old.high, 1, False)
    s.counters[c] = Const(old.step) if old.step else s.extents[v]
    return v, old


def _scalar_leaf(s: Scope, d: Einsum, free: list[str], reduced: list[str]) -> None:
    opened = [open_loop(s, v) for v in free if s.intervals[v].step != 1]
    target = Access(d.target, d.indices)
    t = s.storage[d.target].dtype
    place = f"{s.storage[d.target].pointer}[{integer_text(s, s.address(target))}]"
    old = s.get(d.target, place)
    inner = [p for p in d.where if set(variables(p)) & set(reduced)]
    outer = [p for p in d.where if p not in inner]
    if not reduced:
        code = s.storage[d.target].code
        drawn = code is not None and code.rounding == "stochastic"  # of what is not rounded yet
        value = typed(s, _unrounded(s, d), F64 if drawn else t)
    else:
        monoid = d.monoid(reduced[0])
        first = first_visit(s, d)
        acc = s.names.fresh("sum" if monoid == "sum" else monoid)
        # one chain of additions: in double precision it rounds no more than many short ones
        wide = F64 if t == F32 and MONOIDS[monoid].combine == "add" else t
        start = literal(MONOIDS[monoid].identity, wide)
        s.lines.add(
            f"{C_TYPES[wide.name]} {acc} = {start if first is None else f'{first} ? {start} : {old}'};"
        )
        loops = [open_loop(s, v) for v in reduced if s.intervals[v].step != 1]
        guard = f"if ({' && '.join(scalar(s, p) for p in inner)}) " if inner else ""
        s.lines.add(f"{guard}{acc} = {combine(s, monoid, acc, typed(s, d.body, t), wide)};")
        for v, interval in reversed(loops):
            s.lines.close()
            s.intervals[v] = interval
        value = acc if wide == t else f"({C_TYPES[t.name]}){acc}"
    if outer:
        other = old if id(d) in s.updates else literal(s.tensor(d.target).fill, t)
        value = f"{' && '.join(scalar(s, p) for p in outer)} ? {value} : {other}"
    stored = s.put(target, value)
    last = _unrounded(s, d)
    if (
        not reduced
        and not outer
        and isinstance(last, Cast)
        and same_codes(s.storage[d.target].code, last.dtype)
    ):
        stored = code_of(s, last)
    s.lines.add(f"{place} = {stored};")
    for v, interval in reversed(opened):
        s.lines.close()
        s.intervals[v] = interval


def _split_reduction(s: Scope, d: Einsum, lane: str, reduced: list[str]) -> None:
    """Loops over the other reduced variables around a vector loop that combines into the target."""
    t = s.storage[d.target].dtype
    target = Access(d.target, d.indices)
    place = f"{s.storage[d.target].pointer}[{integer_text(s, s.address(target))}]"
    start = s.put(target, literal(MONOIDS[d.monoid(lane)].identity, t))
    first = first_visit(s, d)
    s.lines.add(f"{place} = {start};" if first is None else f"if ({first}) {place} = {start};")
    loops = [open_loop(s, v) for v in reduced]
    vector_loop(s, lane, [d], {}, accumulate=True)
    for v, old in reversed(loops):
        s.lines.close()
        s.intervals[v] = old


# ---- vector loops


@dataclass
class _Sum:
    """Accumulators of a reduction along the lanes: one vector per unrolled position."""

    names: list[str]
    monoid: str
    kind: str  # vector type


def vector_loop(s: Scope, lane: str, definitions: list[Einsum], inner: dict[int, list[str]],
                accumulate: bool = False, ahead: Sequence[Access] = (), start: str = "0",
                tile: tuple[str, int] | None = None) -> None:  # fmt: skip
    """All definitions for the interval of `lane` from `start` on: full chunks, single vectors, then the tail.

    `inner` lists reduced variables that are looped over inside a chunk; `accumulate`: the target holds a partial result.
    What `ahead` reads in the next row is fetched meanwhile. Large outputs are stored past the caches. `tile` has a variable
    and how many points of it from its interval's start on the loop is for, at once.
    """
    kind = vector_class(s, definitions, lane)
    if kind is None:
        for d in definitions:
            _scalar_leaf(s, d, [lane] if lane in d.free else [], d.reduced)
        return
    old, wide = s.intervals[lane], s.vector_bytes
    s.vector_bytes = _vector_bytes(s, definitions, lane, kind, bool(inner))
    width = s.vector_bytes // DTYPES[kind].itemsize
    length, c = s.names.fresh(f"{lane}_n"), s.names.fresh(lane)
    s.lines.open("{")
    s.lines.add(f"const int64_t {length} = {span_text(s, old)};")
    s.lines.add(f"int64_t {c} = {start};")
    s.counters[c] = Const(old.step) if old.step else s.extents[lane]
    s.intervals[lane] = Interval(plus(old.low, Var(c)), old.high, None, False)
    # a loop of few points is not worth four copies of the body
    unroll = (
        UNROLL
        if old.step is None or old.step >= UNROLL * width
        else max(1, (old.step or 0) // width)
    )
    size = poly(s.signature.resolved(s.extents[lane])).constant
    if inner and old.whole and size is not None and size < 2 * UNROLL * width:
        unroll = max(1, size // width)  # the whole row at once
    elif inner and old.step is not None and old.step >= 4 * UNROLL * width:
        unroll = 2 * UNROLL  # long rows are read in long runs
    if tile is not None or scattered(s, definitions, kind, lane, c):
        unroll = 1  # lanes are read one by one: copies of that would only be long
    reduced_inside = {v for names in inner.values() for v in names}
    sums = {id(d): _sums(s, d, lane, kind, unroll) for d in definitions if lane not in d.free}
    spans = [n for n in (old.step, size) if n is not None]
    long = all(n >= LONG * width for n in spans)
    hoisted = Hoisted(len(s.lines.out), s.lines.depth, reduced_inside, long=long)
    uses: dict[str, int] = {}
    for d in definitions:
        for x in walk(d.body, *d.where):
            uses[text(x)] = uses.get(text(x), 0) + 1
    padded = all(lane in d.free and _padded(s, d, lane, width) for d in definitions)

    def body(positions: int, count: str | None, streamed: frozenset[str] = frozenset()) -> None:
        memos: list[dict[str, str]] = [{} for _ in range(positions)]
        for d in definitions:
            emit = [
                Vector(s, kind, lane, c, j * width, count, memos[j], hoisted, uses, streamed)
                for j in range(positions)
            ]
            if id(d) in sums:
                _add_up(s, d, emit, sums[id(d)], count)
            elif inner.get(id(d)):
                _inner_reduction(s, d, emit, inner[id(d)], count, padded, tile)
            else:
                for e in emit:
                    _map(s, d, e, count, padded)

    if unroll > 1:
        full = f"{c} + {unroll * width} <= {length}; {c} += {unroll * width}"
        first = Vector(s, kind, lane, c, 0, None, hoisted=hoisted)
        large = [d for d in definitions if id(d) not in sums and streaming(s, d, first)]
        if large:
            past = s.names.fresh("past_caches")
            tests = " && ".join(stream_test(s, d, first) for d in large)
            s.lines.add(f"const int {past} = {tests};")
            s.lines.open(f"for (; {past} && {full}) {{")
            body(unroll, None, frozenset(d.target for d in large))
            s.lines.close()
            s.streams = True
        fetched = next_rows(s, ahead, first) if computes(definitions) and not large else []
        s.lines.open(f"for (; {full}) {{")
        fetch(s, fetched, length, unroll * s.vector_bytes)
        body(unroll, None)
        s.lines.close()
    s.lines.open(f"for (; {c} + {width} <= {length}; {c} += {width}) {{")
    body(1, None)
    s.lines.close()
    rest = s.names.fresh("rest")
    s.lines.open(f"if ({c} < {length}) {{")
    s.lines.add(f"const int {rest} = (int)({length} - {c});")
    body(1, rest)
    s.lines.close()
    if padded:
        _clear_padding(s, definitions, lane, c, length, width, kind, old.step)
    s.intervals[lane] = old
    for d in definitions:
        if id(d) in sums:
            _finish(s, d, sums[id(d)], accumulate)
    s.lines.close()
    s.vector_bytes = wide


def _vector_bytes(
    s: Scope, definitions: list[Einsum], lane: str, kind: str, sums: bool = False
) -> int:
    """The scope's vectors, or narrower ones where the loop is too short, does little arithmetic, or stores are padded to
    fewer lanes. `sums`: it adds up terms lane by lane, which pays where wide vectors leave no tail."""
    least = CLASSES[kind][1] * DTYPES[kind].itemsize
    width = s.vector_bytes // DTYPES[kind].itemsize
    size = poly(s.extents[lane]).constant if lane in s.extents else None
    spans = [n for n in (s.intervals[lane].step, size) if n is not None]
    unpacks = any(unpacked(s, d) for d in definitions)
    whole = (sums or unpacks) and bool(spans) and all(n % width == 0 for n in spans)
    narrow = not (whole or computes(definitions))
    narrow |= any(s.coded(d) and not unpacked(s, d) for d in definitions)
    if narrow or s.vector_bytes <= least or any(n < width for n in spans):
        return min(least, s.vector_bytes)
    for d in definitions:
        if lane in d.free and _padded(s, d, lane, width // 2) and not _padded(s, d, lane, width):
            return least
    return s.vector_bytes


def scattered(s: Scope, definitions: list[Einsum], kind: str, lane: str, c: str) -> bool:
    """Whether some value along the lane is not contiguous in memory."""
    e = Vector(s, kind, lane, c, 0, None)
    for d in definitions:
        for a in (*accesses(d.body, *d.where), Access(d.target, d.indices)):
            if lane in variables(a):
                step = e.step(a)
                guarded = any(lane in variables(i) for i, _ in s.unsafe(a))
                if step is None or step.constant != 1 or guarded:
                    return True
    return False


def _padded(s: Scope, d: Einsum, lane: str, width: int) -> bool:
    """Whether the target's storage is padded along the lane variable to whole vectors."""
    place = s.storage[d.target]
    at = [n for n, i in enumerate(d.indices) if isinstance(i, Var) and i.name == lane]
    return place.layout is not None and len(at) == 1 and place.layout.padding(at[0]) % width == 0


def _clear_padding(
    s: Scope, definitions: list[Einsum], lane: str, c: str, length: str, width: int, kind: str,
    tile: int | None,
) -> None:  # fmt: skip
    """Whole vectors of padding beyond the tail, up to the end of its tile, hold zeros."""
    d = definitions[0]
    layout = s.storage[d.target].layout
    assert layout is not None
    at = next(n for n, i in enumerate(d.indices) if isinstance(i, Var) and i.name == lane)
    multiple = layout.padding(at)
    if tile is not None and multiple % tile == 0:
        multiple = tile  # what follows belongs to the next tile
    if multiple <= width:
        return
    s.lines.add(f"{c} = ({length} + {width - 1}) / {width} * {width};")
    s.lines.open(f"for (; {c} % {multiple}; {c} += {width}) {{")
    for d in definitions:
        t = s.storage[d.target].dtype
        e = Vector(s, kind, lane, c, 0, None)
        e.store(Access(d.target, d.indices), f"{e.fn('bc', e._loaded(t))}(0)", True)
    s.lines.close()


def _sums(s: Scope, d: Einsum, lane: str, kind: str, unroll: int) -> _Sum:
    t = s.storage[d.target].dtype
    monoid = d.monoid(lane)
    e = Vector(s, kind, lane, "", 0, None)
    names = []
    for _ in range(unroll):
        name = s.names.fresh(d.target)
        names.append(name)
        s.lines.add(f"{e.type(t)} {name} = {_identity(e, monoid, t)};")
    s.use(e.type(t))
    return _Sum(names, monoid, e.type(t))


def _identity(e: Vector, monoid: str, t: DType) -> str:
    value = MONOIDS[monoid].identity
    if t.kind == "b":
        return f"{e.fn('bc', e.integer)}({-1 if value else 0})"
    return f"{e.fn('bc', e._class(t))}({literal(value, e._class(t))})"


def _masked(s: Scope, d: Einsum, e: Vector, value: str, monoid: str, t: DType, count: str | None,
            predicates: list[Expr]) -> str:  # fmt: skip
    """The value where it takes part in the reduction, the identity elsewhere."""
    masks = [e.mask(p) for p in predicates]
    if count is not None:
        masks.append(f"{e.fn('firstn', e.integer)}({count})")
    if not masks:
        return value
    return f"{e.fn('select', t)}({' & '.join(masks)}, {value}, {_identity(e, monoid, t)})"


def _add_up(s: Scope, d: Einsum, emit: list[Vector], sums: _Sum, count: str | None) -> None:
    t = s.storage[d.target].dtype
    inner = [p for p in d.where if set(variables(p)) & set(d.reduced)]
    for e, name in zip(emit, sums.names, strict=False):
        value = _masked(s, d, e, e.value(d.body, t), sums.monoid, t, count, inner)
        s.lines.add(f"{name} = {combine(s, sums.monoid, name, value, t, sums.kind)};")


def _inner_reduction(s: Scope, d: Einsum, emit: list[Vector], reduced: list[str], count: str | None,
                     padded: bool, tile: tuple[str, int] | None = None) -> None:  # fmt: skip
    """The lanes are kept while the reduced variables run, for all points of a tile."""
    t = s.storage[d.target].dtype
    monoid = d.monoid(reduced[0])
    target = Access(d.target, d.indices)
    first = first_visit(s, d)
    inner = [p for p in d.where if set(variables(p)) & set(d.reduced)]
    names: list[str] = []
    for _, e in _positions(s, emit, tile):
        name = s.names.fresh(d.target)
        start = _identity(e, monoid, t)
        if first is not None:
            start = f"{first} ? {start} : {e.value(target, t)}"
        s.lines.add(f"{e.type(t)} {name} = {start};")
        names.append(name)
    loops = [open_loop(s, v, short=True) for v in reduced]
    hoisted = emit[0].hoisted
    if hoisted is not None:
        hoisted.counters |= {
            n.name for v in reduced for n in walk(s.intervals[v].low) if isinstance(n, Var)
        }
    for n, e in _positions(s, emit, tile):
        fresh = Vector(s, e.kind, e.lane, e.counter, e.offset, e.count, {}, hoisted, e.uses)
        value = _masked(s, d, fresh, fresh.value(d.body, t), monoid, t, None, inner)
        s.lines.add(f"{names[n]} = {combine(s, monoid, names[n], value, t, e.type(t))};")
    for v, old in reversed(loops):
        s.lines.close()
        s.intervals[v] = old
    for n, e in _positions(s, emit, tile):
        _store(s, d, e, names[n], t, count, padded)


def _positions(
    s: Scope, emit: list[Vector], tile: tuple[str, int] | None
) -> Iterator[tuple[int, Vector]]:
    """The vectors at all points of a tile, counted; while one is looked at, the tile's variable is that point."""
    if tile is None:
        yield from enumerate(emit)
        return
    row, rows = tile
    old = s.intervals[row]
    for r in range(rows):
        s.intervals[row] = Interval(plus(old.low, Const(r)), old.high, 1, False)
        for n, e in enumerate(emit):
            yield r * len(emit) + n, e
    s.intervals[row] = old


def _map(s: Scope, d: Einsum, e: Vector, count: str | None, padded: bool) -> None:
    t = s.storage[d.target].dtype
    if d.reduced:  # every reduced variable is a point: combine into the target
        monoid = d.monoid(d.reduced[0])
        first = first_visit(s, d)
        inner = [p for p in d.where if set(variables(p)) & set(d.reduced)]
        value = _masked(s, d, e, e.value(d.body, t), monoid, t, None, inner)
        if first is not None:
            old = e.value(Access(d.target, d.indices), t)
            value = f"{first} ? {value} : {combine(s, monoid, old, f'({value})', t, e.type(t))}"
    else:
        value = e.value(_unrounded(s, d), t)
    _store(s, d, e, value, t, count, padded)
    e.memo.pop(text(Access(d.target, d.indices)), None)
    stale = [k for k in e.memo if f"{d.target}[" in k]
    for k in stale:
        del e.memo[k]


def _unrounded(s: Scope, d: Einsum) -> Expr:
    """What is stored, before the conversion that the store itself makes."""
    place = s.storage[d.target]
    if isinstance(d.body, Cast) and d.body.dtype == place.code:
        if place.dtype.is_float and s.dtype(d.body.arg) == place.dtype:
            return d.body.arg
    return d.body


def _store(
    s: Scope, d: Einsum, e: Vector, value: str, t: DType, count: str | None, padded: bool
) -> None:
    value = e.chosen(d, value, t)
    if padded and count is not None:
        keep = f"{e.fn('firstn', e.integer)}({count})"
        value = f"{e.fn('select', t)}({keep}, {value}, {e.fn('bc', e._loaded(t))}(0))"
    e.store(Access(d.target, d.indices), value, padded)


def _finish(s: Scope, d: Einsum, sums: _Sum, accumulate: bool) -> None:
    """Adds the accumulators up and combines them into the target."""
    t = s.storage[d.target].dtype
    total = sums.names[0]
    for name in sums.names[1:]:
        total = combine(s, sums.monoid, total, name, t, sums.kind)
        total = f"({total})" if not total.endswith(")") else total
    op = MONOIDS[sums.monoid].combine
    if t.kind == "b":
        value = f"({s.use(f'any_{sums.kind}' if op == 'or' else f'all_{sums.kind}')}({total}) != 0)"
    elif op == "bit_xor":
        wide = s.names.fresh("wide")
        s.lines.add(f"{sums.kind} {wide} = {total};")
        value = " ^ ".join(f"{wide}[{n}]" for n in range(int(sums.kind.split("x")[1])))
    else:
        value = f"{s.use(f'{_FOLD[op]}_{sums.kind}')}({total})"
    place = (
        f"{s.storage[d.target].pointer}[{integer_text(s, s.address(Access(d.target, d.indices)))}]"
    )
    first = None if not accumulate else "0"
    if not accumulate:
        first = first_visit(s, d)
    if accumulate or first is not None:
        joined = combine(s, sums.monoid, s.get(d.target, place), value, t)
        value = joined if accumulate else f"{first} ? {value} : {joined}"
    outer = [p for p in d.where if not set(variables(p)) & set(d.reduced)]
    if outer and not accumulate:
        other = (
            s.get(d.target, place) if id(d) in s.updates else literal(s.tensor(d.target).fill, t)
        )
        value = f"{' && '.join(scalar(s, p) for p in outer)} ? {value} : {other}"
    s.lines.add(f"{place} = {s.put(Access(d.target, d.indices), value)};")
