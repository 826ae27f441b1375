"""Integer products in C: bytes times bytes, four at a time, into sums of 32 bits; and their packed operand.

A buffer of u1 … u8 with the digits [n/64, …, j/(4p), n%64, j%4, j/4%p], p values per byte or string of bytes, is *packed*:
element q of a string has its bits q·W … q·W + W - 1, and what lies beyond the tensor is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcc.backends.c._dots_text import HALF, PANEL, SIZE, STEP
from tcc.backends.c._scalar import scalar
from tcc.backends.c._scope import Interval, Scope, integer_text, plus, span_text
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import DTYPES
from tcc.ir.expr import Access, Call, Cast, Const, Var, variables
from tcc.ir.index import poly
from tcc.ir.mapping import Do
from tcc.ir.packed import BYTE, string


def panel_bits(s: Scope, tensor: str) -> int:
    """The bits of a value of a tensor that lies in such panels; else 0."""
    t, place = s.tensor(tensor).dtype, s.storage[tensor]
    if place.layout is None or t.kind != "u" or t.bits > BYTE:
        return 0
    if t.bits < BYTE and place.packed != t.bits:
        return 0
    p = string(t.bits)[1]
    tail = [(d.dimension, d.divisor, d.modulus) for d in place.layout.digits[-3 if p > 1 else -2 :]]
    j = tail[-1][0] if tail else 0
    wanted = [(j - 1, 1, PANEL), (j, 1, STEP), *([(j, STEP, p)] if p > 1 else [])]
    return t.bits if tail == wanted else 0


def emit_panels(s: Scope, d: Einsum) -> bool:
    """Prints a leaf that fills panels of a packed buffer, string by string; False for any other target."""
    place, bits = s.storage[d.target], panel_bits(s, d.target)
    if not bits or d.reduced or d.where:
        return False
    *others, column, deep = (i.name for i in d.indices if isinstance(i, Var))
    if len(others) + 2 != len(d.indices) or any(s.intervals[v].step != 1 for v in others):
        return False
    old = {v: s.intervals[v] for v in (column, deep)}
    if not old[deep].whole or old[column].step != PANEL:
        return False
    size, p = string(bits)
    bytes_, block, c = s.names.fresh("bytes"), s.names.fresh("block"), s.names.fresh(column)
    lane, part, k = s.names.fresh("lane"), s.names.fresh("part"), s.names.fresh(deep)
    s.intervals[deep] = Interval(Const(0), old[deep].high, 1)
    start = integer_text(s, s.address(Access(d.target, d.indices)))
    s.lines.open("{")
    s.lines.add(f"uint8_t *{bytes_} = (uint8_t *){place.pointer} + {_in_bytes(start, bits)};")
    last = f"{block} < {old[deep].high}; {block} += {STEP * p}, {bytes_} += {(size - 1) * SIZE}"
    s.lines.open(f"for (int64_t {block} = 0; {last}) {{")
    s.lines.open(f"for (int64_t {c} = 0; {c} < {PANEL}; {c}++) {{")
    s.lines.open(f"for (int64_t {lane} = 0; {lane} < {STEP}; {lane}++, {bytes_}++) {{")
    s.lines.add("uint64_t string = 0;")
    s.lines.open(f"for (int {part} = 0; {part} < {p}; {part}++) {{")
    s.lines.add(f"const int64_t {k} = {block} + {STEP} * {part} + {lane};")
    low = integer_text(s, plus(old[column].low, Var(c)))
    s.lines.add(f"if ({low} >= {old[column].high} || {k} >= {old[deep].high}) continue;")
    s.counters |= {c: Const(PANEL), k: s.extents[deep]}
    s.intervals[column] = Interval(plus(old[column].low, Var(c)), old[column].high, 1)
    s.intervals[deep] = Interval(Var(k), old[deep].high, 1)
    value = f"((uint64_t)({scalar(s, d.body)}) & {(1 << bits) - 1})"
    s.lines.add(f"string |= {value} << {bits} * {part};")
    s.lines.close()
    for i in range(size):
        s.lines.add(f"{bytes_}[{i * SIZE}] = (uint8_t)(string >> {8 * i});")
    for _ in range(4):
        s.lines.close()
    s.intervals.update(old)
    return True


def _in_bytes(shown: str, bits: int) -> str:
    """The byte at which the panel of a position starts."""
    size, p = string(bits)
    if shown == "0":
        return shown
    return (f"({shown}) / {p}" if p > 1 else shown) + (f" * {size}" if size > 1 else "")


@dataclass(frozen=True)
class Products:
    """The C text of the operands of an integer product."""

    bits: int  # of a column value
    count: int  # rows of the tile
    row: str | None
    deep: str
    lane: str
    rows: str
    columns: str
    length: str
    pitch: str  # of the rows


def products(s: Scope, leaf: Do) -> Products | None:
    """The operands of a leaf that a kernel of integer products computes; None when its shape or storage does not allow one."""
    d = leaf.einsum
    lanes, rows = leaf.on("lane"), leaf.on("unroll")
    body = d.body
    if len(lanes) != 1 or len(rows) > 1 or len(d.reduced) != 1 or d.where:
        return None
    if not (isinstance(body, Call) and body.spec.name == "mul") or d.monoid(d.reduced[0]) != "sum":
        return None
    lane, deep, row = lanes[0], d.reduced[0], rows[0] if rows else None
    a, b = (x.arg if isinstance(x, Cast) else x for x in body.args)
    if not (isinstance(a, Access) and isinstance(b, Access)):
        return None
    bits = panel_bits(s, b.tensor)
    if not bits or s.tensor(a.tensor).dtype != DTYPES["i8"] or s.unsafe(a) or s.unsafe(b):
        return None
    count = s.intervals[row].step if row else 1
    if count is None or s.intervals[lane].step != PANEL or lane in variables(a):
        return None
    if any(s.intervals[v].step != 1 for v in d.free if v not in (lane, row)):
        return None
    at_a, at_b = (_linear(s, x, lane, row, deep) for x in (a, b))
    if at_a is None or at_b is None or at_a[deep] != "1":
        return None
    return Products(
        bits, count, row, deep, lane, f"{s.storage[a.tensor].pointer} + {at_a['']}",
        f"(const uint8_t *){s.storage[b.tensor].pointer} + {_in_bytes(at_b[''], bits)}",
        span_text(s, s.intervals[deep]), at_a[row] if row else "0",
    )  # fmt: skip


def emit_dots(s: Scope, leaf: Do) -> bool:
    """Prints the leaf as a call of a kernel of integer products; False when its shape or storage does not allow one."""
    d = leaf.einsum
    x = products(s, leaf)
    if x is None or s.storage[d.target].dtype.name != "i32":
        return False
    at = _linear(s, Access(d.target, d.indices), x.lane, x.row, x.deep)
    if at is None or at[x.lane] != "1":
        return False
    from tcc.backends.c._leaves import first_visit

    s.lines.open("{")
    last, base = s.names.fresh("last"), s.names.fresh("rows")
    span = span_text(s, s.intervals[x.row]) if x.row else "1"
    s.lines.add(f"const int8_t *{base} = {x.rows};")
    first = "0" if leaf.update else (first_visit(s, d) or "1")
    target = f"{s.storage[d.target].pointer} + {at['']}"
    pitch = at.get(x.row or "", "0") if x.row else "0"

    def called(n: int) -> str:
        starts = [base]
        if x.row:
            starts += [f"{base} + ({r} < {last} ? {r} : {last}) * ({x.pitch})" for r in range(1, n)]
        s.functions.add(f"dots:{n}:{x.bits}")
        numbers = f"{x.columns}, {x.length}, {target}, {pitch}, {first}"
        return f"dots{n}x{PANEL}_u{x.bits}({', '.join(starts)}, {numbers});"

    if x.row and x.count > 1:
        s.lines.add(f"const int64_t {last} = {span} - 1;")
        s.lines.add(f"if ({last} == 0) {called(1)}")
        if x.count > HALF:
            s.lines.add(f"else if ({last} < {HALF}) {called(HALF)}")
        s.lines.add(f"else {called(x.count)}")
    else:
        s.lines.add(called(1))
    s.lines.close()
    return True


def _linear(s: Scope, x: Access, lane: str, row: str | None, deep: str) -> dict[str, str] | None:
    """The address of an operand: at the tile's start, and by how much it moves with each variable that it is linear in."""
    names = {v: f"{v}__at" for v in (lane, row, deep) if v is not None and v in variables(x)}
    old = dict(s.intervals)
    found: dict[str, str] = {}
    found[""] = integer_text(s, s.address(x))
    for v, name in names.items():
        s.intervals[v] = Interval(plus(old[v].low, Var(name)), old[v].high, None)
        s.counters[name] = Const(old[v].step or 1) if old[v].step else s.extents[v]
        moved = poly(s.address(x))
        s.intervals[v] = old[v]
        k = moved.coefficient(name)
        if k is None or k.mentions([name]) or moved.without(name).mentions([name]):
            found[v] = ""  # in panels
            continue
        found[v] = integer_text(s, k.expr())
    if row is not None and row in names and not found[row]:
        return None
    return found
