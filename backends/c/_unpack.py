"""Leaves that read packed codes along the lanes: words are loaded once, every code of them is decoded in registers.

    for k by 8 { words = ld(…);  for j in 0 .. 8 { sum += x[k + j] * value(words & 15);  words >>= 4 } }

The layout has to be the one of `tcc.passes._cpu_packed`: panels of columns, in which neighbouring words belong to
neighbouring columns, and the codes of a word to neighbours along the depth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from tcc.backends.c._decode import Decoder, decoder
from tcc.backends.c._packed import WORD
from tcc.backends.c._scope import Interval, Scope, integer_text, plus, span_text
from tcc.backends.c._vector import Hoisted, Vector
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import F32, DType
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Var,
    accesses,
    call,
    text,
    transform,
    variables,
    walk,
)
from tcc.ir.index import Poly, poly, simplify_index
from tcc.ir.mapping import Do

LANE = "lane__"  # stands for the number of a lane while addresses are found
ROWS = 8  # of a leaf: so many sums per vector of columns


@dataclass
class _Read:
    """A packed operand: where its words lie, and what is made of its codes."""

    access: Access
    panel: int  # columns
    per: int  # codes of a word
    decoder: Decoder
    pointer: str = ""
    words: tuple[str, ...] = ()


def emit_unpacked(s: Scope, leaf: Do) -> bool:
    """Prints a leaf that sums or stores what it decodes; False when its shape or storage does not allow it."""
    d, lane = leaf.einsum, leaf.on("lane")[0]
    place = s.storage[d.target]
    packed = {text(a): a for a in accesses(d.body) if s.storage[a.tensor].packed}
    packed = {t: a for t, a in packed.items() if s.storage[a.tensor].layout is not None}
    if not packed or place.dtype != F32 or place.code is not None or d.where:
        return False
    if lane not in d.free or any(d.monoid(v) != "sum" for v in d.reduced):
        return False
    depth = _depth(s, d, list(packed.values()), lane)
    if depth is None:
        return False
    rows = [v for v in leaf.on("unroll") if v != depth]
    if any(
        s.intervals[v].step != 1 for v in (*d.free, *d.reduced) if v not in (lane, depth, *rows)
    ):
        return False
    if any(not 0 < _rows(s, v) <= ROWS for v in rows):
        return False
    reads = [_read(s, a, lane, d.body) for a in packed.values()]
    if not all(reads) or not _computable(s, d, lane):
        return False
    _Printer(s, d, lane, depth, rows, [r for r in reads if r is not None]).emit()
    return True


def _rows(s: Scope, v: str) -> int:
    """How many coordinates a variable runs over, where that is the same in every tile; else 0."""
    n, interval = poly(s.signature.resolved(s.extents[v])).constant or 0, s.intervals[v]
    if interval.step is None:
        return n if poly(interval.low).constant == 0 else 0
    return interval.step if n % interval.step == 0 else 0


def _depth(s: Scope, d: Einsum, reads: list[Access], lane: str) -> str | None:
    """The variable along which the codes of a word follow each other."""
    found: set[str] = set()
    for a in reads:
        layout = s.storage[a.tensor].layout
        assert layout is not None
        along = a.indices[layout.digits[-1].dimension]
        for v in variables(along):
            one = poly(along).coefficient(v)
            if v != lane and s.intervals[v].step != 1 and one is not None and one.constant == 1:
                found.add(v)
    return found.pop() if len(found) == 1 else None


def _read(s: Scope, a: Access, lane: str, body: Expr) -> _Read | None:
    """How an operand is read, where its layout is one of panels and the leaf starts at a whole word."""
    place = s.storage[a.tensor]
    assert place.layout is not None and place.code is not None
    if len(place.layout.digits) != len(a.indices) + 2 or s.unsafe(a):
        return None
    *others, outer, deep, column, code = place.layout.digits
    per, panel = WORD // place.packed, column.modulus
    if not isinstance(panel, int) or panel % 16 or panel % per or code.modulus != per:
        return None
    if (deep.dimension, deep.divisor) != (code.dimension, per) or code.divisor != 1:
        return None
    if (outer.dimension, outer.divisor) != (column.dimension, panel) or column.divisor != 1:
        return None
    if any(x.divisor != 1 or x.modulus is not None or x.stride is not None for x in others):
        return None
    if a.indices[column.dimension] != Var(lane) and text(a.indices[column.dimension]) != lane:
        return None
    first = _coordinate(s, a, code.dimension), _coordinate(s, a, column.dimension)
    for at, unit in zip(first, (per, panel), strict=True):
        if any(factor % unit for factor in poly(at).terms.values()):
            return None
    made = decoder(s, a, body)
    return None if made is None else _Read(a, panel, per, made)


def _coordinate(s: Scope, a: Access, dimension: int) -> Expr:
    """Where the leaf starts along a dimension of an operand's window."""
    base = s.storage[a.tensor].base[dimension]
    return simplify_index(call("sub", s.located(a.indices[dimension]), base), s.counters)


def _computable(s: Scope, d: Einsum, lane: str) -> bool:
    """Whether all values along the lanes are f32, i32 or bool; codes are one of these when they are decoded."""

    def visit(e: Expr) -> bool:
        if lane not in variables(e) or (
            isinstance(e, Access)
            and s.storage[e.tensor].packed
            and s.storage[e.tensor].layout is not None
        ):
            return True
        if isinstance(e, Var) or s.dtype(e).name not in ("f32", "i32", "bool"):
            return False
        if isinstance(e, Call) and s.dtype(e).is_integer and e.op in ("floordiv", "mod", "pow"):
            return False
        if isinstance(e, Access):
            return not any(lane in variables(x) for i in e.indices for x in accesses(i))
        return all(visit(x) for x in (e.args if isinstance(e, Call) else (e.arg,) if isinstance(e, Cast) else ()))  # fmt: skip

    return visit(d.body)


class _Lanes(Vector):
    """A vector at a known place: the counter of its lanes tells where they lie, and is 0 where a vector starts."""

    def step(self, a: Access) -> Poly | None:
        found, layout = super().step(a), self.s.storage[a.tensor].layout
        if found is None and layout is not None:  # whole vectors lie in a panel of their target
            last = layout.digits[-1]
            inside = last.divisor == 1 and isinstance(last.modulus, int) and last.modulus % self.lanes == 0  # fmt: skip
            if inside and text(a.indices[last.dimension]) == self.lane:
                return poly(Const(1))
        return found

    def place(self, a: Access) -> str:
        old = self.s.intervals[self.lane]
        low = transform(old.low, lambda n: Const(0) if isinstance(n, Var) and n.name == LANE else n)
        self.s.intervals[self.lane] = replace(old, low=simplify_index(low, self.s.counters))
        found = super().place(a).replace(f" + {LANE}", "")
        self.s.intervals[self.lane] = old
        return found

    def _gather(self, a: Access, t: DType) -> str:
        return super()._gather(a, t).replace(LANE, "0")

    def _index(self, e: Var) -> str:
        return super()._index(e).replace(LANE, "0")


class _Printer:
    def __init__(
        self, s: Scope, d: Einsum, lane: str, depth: str, rows: list[str], reads: list[_Read]
    ) -> None:
        self.s, self.d, self.lane, self.depth, self.rows = s, d, lane, depth, rows
        self.reads = sorted(reads, key=lambda r: -r.per)
        self.lanes = s.vector_bytes // 4
        self.points: list[dict[str, int]] = [{}]
        for v in rows:
            self.points = [{**p, v: i} for p in self.points for i in range(_rows(s, v))]
        many = len(self.points) * len(reads)
        sums = 16 if self.lanes == 16 else 8  # that stay in registers, with what they are made of
        self.vectors = 2 ** min(2, max(0, (sums // many).bit_length() - 1))
        self.together = 1  # codes between two shifts
        self.low: Expr = Const(0)
        self.count: str | None = None
        self.uses: dict[str, int] = {}
        for x in walk(d.body):
            self.uses[text(x)] = self.uses.get(text(x), 0) + 1

    def emit(self) -> None:
        s, old = self.s, self.s.intervals[self.lane]
        s.lines.open("{")
        single = len(self.reads) == 1 and self._length().isdigit()
        self.together = self.reads[0].decoder.together(self.lanes) if single else 1
        if self.together > 1 and int(self._length()) % self.together:
            self.together = 1
        for r in self.reads:
            r.decoder.declare(s, self.lanes, self.together)
        unit, length = self.vectors * self.lanes, s.names.fresh(f"{self.lane}_n")
        s.counters[LANE] = Const(self.lanes)
        s.lines.add(f"const int64_t {length} = {span_text(s, old)};")
        if old.step == unit:
            s.lines.open(f"if ({length} == {unit}) {{")
            self._columns(old.low, self.vectors, None)
        else:
            b = self._block(f"{length} / {unit}", old)
            self._columns(plus(old.low, call("mul", Var(b), Const(unit))), self.vectors, None)
        s.lines.close()
        size = poly(s.signature.resolved(s.extents[self.lane])).constant
        if size is None or size % unit or old.step is None or old.step % unit:
            b = self._block(f"({length} + {self.lanes - 1}) / {self.lanes}", old, f"{length} / {unit} * {self.vectors}")  # fmt: skip
            rest, left = s.names.fresh("rest"), f"{length} - {b} * {self.lanes}"
            s.lines.add(f"const int {rest} = {left} < {self.lanes} ? (int)({left}) : {self.lanes};")
            self._columns(plus(old.low, call("mul", Var(b), Const(self.lanes))), 1, rest)
            s.lines.close()
        s.intervals[self.lane] = old
        s.lines.close()

    def _block(self, end: str, old: Interval, start: str = "0") -> str:
        """Opens a loop over blocks of columns; its counter."""
        s, b = self.s, self.s.names.fresh(f"{self.lane}_block")
        s.lines.open(f"for (int64_t {b} = {start}; {b} < {end}; {b}++) {{")
        s.counters[b] = Const(old.step) if old.step else s.extents[self.lane]
        return b

    def _columns(self, low: Expr, vectors: int, count: str | None) -> None:
        """Some vectors of columns from `low` on: their sums, or what is stored for them."""
        from tcc.backends.c._leaves import first_visit

        s, d = self.s, self.d
        self.low, self.count = low, count
        s.intervals[self.lane] = Interval(low, s.intervals[self.lane].high, None, False)
        for r in self.reads:
            r.pointer = s.names.fresh(f"{s.storage[r.access.tensor].pointer}_words")
            start = f"{s.storage[r.access.tensor].pointer} + {self._start(r)}"
            s.lines.add(f"const uint32_t *{r.pointer} = {start};")
        sums: list[list[str]] = []
        summed = self.depth in d.reduced
        for _ in self.points if summed else ():
            names = [s.names.fresh(d.target) for _ in range(vectors)]
            sums.append(names)
            s.lines.add(f"{s.use(f'f32x{self.lanes}')} {', '.join(f'{n} = {{0}}' for n in names)};")
        first = first_visit(s, d) if summed else None
        old = s.intervals[self.depth]
        self._walk(vectors, sums)
        s.intervals[self.depth] = old
        for point, names in zip(self.points, sums, strict=False):
            before = self._at(point)
            for v, name in enumerate(names):
                e = self._vector(v, {}, None)
                target = Access(d.target, d.indices)
                value = name
                if first is not None:
                    value = f"{first} ? {name} : {name} + {e.value(target, F32)}"
                e.store(target, value, self._whole())
            s.intervals.update(before)

    def _whole(self) -> bool:
        """Whether stores may fill whole vectors beyond the tail: the target is padded to them."""
        place = self.s.storage[self.d.target]
        at = [n for n, i in enumerate(self.d.indices) if isinstance(i, Var) and i.name == self.lane]
        return (
            place.layout is not None
            and len(at) == 1
            and place.layout.padding(at[0]) % self.lanes == 0
        )

    def _at(self, point: dict[str, int]) -> dict[str, Interval]:
        """Makes the rows' variables points; what they were."""
        s = self.s
        before = {v: s.intervals[v] for v in point}
        for v, i in point.items():
            low = plus(before[v].low, Const(i)) if i else before[v].low
            s.intervals[v] = Interval(low, before[v].high, 1, False)
        return before

    def _vector(self, v: int, memo: dict[str, str], hoisted: Hoisted | None) -> Vector:
        """Prints values of one vector of columns."""
        low = plus(self.low, Const(v * self.lanes)) if v else self.low
        interval = self.s.intervals[self.lane]
        self.s.intervals[self.lane] = replace(interval, low=plus(low, Var(LANE)))
        return _Lanes(self.s, "f32", self.lane, LANE, 0, self.count, memo, hoisted, self.uses)

    def _start(self, r: _Read) -> str:
        """The first word of the columns, in words."""
        s, layout = self.s, self.s.storage[r.access.tensor].layout
        assert layout is not None
        shape = s.storage[r.access.tensor].shape
        *others, outer, deep, _, _ = layout.digits
        at: Expr = Const(0)
        for x in others:
            at = plus(call("mul", at, shape[x.dimension]), _coordinate(s, r.access, x.dimension))
        column, along = (_coordinate(s, r.access, x.dimension) for x in (outer, deep))
        for index, size, unit in (
            (column, shape[outer.dimension], r.panel),
            (along, shape[deep.dimension], r.per),
        ):
            count = call("floordiv", plus(size, Const(unit - 1)), Const(unit))
            at = plus(call("mul", at, count), call("floordiv", index, Const(unit)))
        at = plus(call("mul", at, Const(r.panel)), call("mod", column, Const(r.panel)))
        return integer_text(s, simplify_index(at, s.counters))

    # ---- along the depth

    def _length(self) -> str:
        """C text of how far the depth runs."""
        return span_text(self.s, self.s.intervals[self.depth])

    def _walk(self, vectors: int, sums: list[list[str]]) -> None:
        """A loop per size of word: the words with most codes are loaded outermost."""
        s, old = self.s, self.s.intervals[self.depth]
        length, done = self._length(), ""
        low = old.low
        for per, group in groupby(self.reads, key=lambda r: r.per):
            k = s.names.fresh(self.depth)
            s.lines.open(f"for (int64_t {k} = 0; {k} < {length}; {k} += {per}) {{")
            done = f"{done} + {k}" if done else k
            low = plus(low, Var(k))
            for r in group:
                names = [s.names.fresh("w") for _ in range(vectors)]
                at = f"({done})" if "+" in done else done
                loads = [
                    f"{n} = {s.use(f'ld_i32x{self.lanes}')}({r.pointer} + {at} * {r.panel // per}"
                    f"{f' + {v * self.lanes}' if v else ''})"
                    for v, n in enumerate(names)
                ]
                s.lines.add(f"{s.use(f'i32x{self.lanes}')} {', '.join(loads)};")
                r.words = tuple(names)
            exact = length.isdigit() and int(length) % per == 0
            if exact:
                length = str(per)
            else:
                end = s.names.fresh(f"{self.depth}_end")
                left = f"{length} - {k}"
                s.lines.add(f"const int64_t {end} = {left} < {per} ? {left} : {per};")
                length = end
        j = s.names.fresh(self.depth)
        if length.isdigit():
            s.lines.add(f"#pragma GCC unroll {min(8, int(length) // self.together)}")
        step = f"{j}++" if self.together == 1 else f"{j} += {self.together}"
        s.lines.open(f"for (int64_t {j} = 0; {j} < {length}; {step}) {{")
        s.counters[j] = Const(self.reads[-1].per)
        for part in range(self.together):
            here = plus(low, Var(j))
            here = plus(here, Const(part)) if part else here
            s.intervals[self.depth] = Interval(here, old.high, 1, False)
            hoisted = [Hoisted(len(s.lines.out), s.lines.depth) for _ in self.points]  # per row
            for v in range(vectors):
                self._point(v, part, sums, hoisted)
        s.lines.close()
        for _ in groupby(self.reads, key=lambda r: r.per):
            s.lines.close()

    def _point(self, v: int, part: int, sums: list[list[str]], hoisted: list[Hoisted]) -> None:
        """One coordinate of the depth for one vector of columns: decode, use, move on to the next code."""
        s, d = self.s, self.d
        memo: dict[str, str] = {}
        for r in self.reads:
            r.decoder.lanes(s, self.lanes, r.words[v], memo, part)
        for row, point in enumerate(self.points):
            before = self._at(point)
            e = self._vector(v, dict(memo), hoisted[row])
            value = e.value(d.body, F32)
            if sums:
                s.lines.add(f"{sums[row][v]} += {value};")
            else:
                e.store(Access(d.target, d.indices), value, self._whole())
            s.intervals.update(before)
        if part == self.together - 1:
            shifts = [f"{r.words[v]} >>= {self.together * WORD // r.per};" for r in self.reads]
            s.lines.add(" ".join(shifts))
