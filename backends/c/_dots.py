"""Integer products in C: bytes times bytes, four at a time, into sums of 32 bits; and their packed operand.

A buffer of u1, u2, u4 or u8 with the digits [n/64, …, j/(4p), n%64, j%4, j/4%p], p values per byte, is *packed*: element
q of a byte occupies its bits q·W … q·W + W - 1, and what lies beyond the tensor is 0.
"""

from __future__ import annotations

from tcc.backends.c._scalar import scalar
from tcc.backends.c._scope import Interval, Scope, integer_text, plus, span_text
from tcc.ir.cascade import Einsum
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DTYPES, DType
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Var, variables
from tcc.ir.index import poly
from tcc.ir.layout import Layout
from tcc.ir.mapping import Do

PANEL, STEP = 64, 4


def per_byte(t: DType, layout: Layout | None) -> int:
    """How many values of a buffer share a byte: 0 where it is not packed."""
    if layout is None or t.kind != "u" or t.bits not in (1, 2, 4, 8) or not layout.digits:
        return 0
    p = 8 // t.bits
    tail = [(d.dimension, d.divisor, d.modulus) for d in layout.digits[-3 if p > 1 else -2 :]]
    j = tail[-1][0]
    wanted = [(j - 1, 1, PANEL), (j, 1, STEP), *([(j, STEP, p)] if p > 1 else [])]
    return p if tail == wanted else 0


def emit_pack(s: Scope, d: Einsum) -> bool:
    """Prints a leaf that fills panels of a packed buffer, byte by byte; False for any other target."""
    t, place = s.tensor(d.target).dtype, s.storage[d.target]
    p = per_byte(t, place.layout)
    if not p or d.reduced or d.where:
        return False
    *others, column, deep = (i.name for i in d.indices if isinstance(i, Var))
    if len(others) + 2 != len(d.indices) or any(s.intervals[v].step != 1 for v in others):
        return False
    old = {v: s.intervals[v] for v in (column, deep)}
    if not old[deep].whole or old[column].step != PANEL:
        return False
    step, mask = STEP * p, (1 << t.bits) - 1
    bytes_, block, c = s.names.fresh("bytes"), s.names.fresh("block"), s.names.fresh(column)
    lane, part, k = s.names.fresh("lane"), s.names.fresh("part"), s.names.fresh(deep)
    s.intervals[deep] = Interval(Const(0), old[deep].high, 1)
    start = integer_text(s, s.address(Access(d.target, d.indices)))
    s.lines.open("{")
    s.lines.add(f"uint8_t *{bytes_} = {place.pointer} + {_divided(start, p)};")
    s.lines.open(
        f"for (int64_t {block} = 0; {block} < {old[deep].high}; {block} += {step}) {{"
    )
    s.lines.open(f"for (int64_t {c} = 0; {c} < {PANEL}; {c}++) {{")
    s.lines.open(f"for (int64_t {lane} = 0; {lane} < {STEP}; {lane}++) {{")
    s.lines.add("unsigned byte = 0;")
    s.lines.open(f"for (int {part} = 0; {part} < {p}; {part}++) {{")
    s.lines.add(f"const int64_t {k} = {block} + {STEP} * {part} + {lane};")
    low = integer_text(s, plus(old[column].low, Var(c)))
    s.lines.add(f"if ({low} >= {old[column].high} || {k} >= {old[deep].high}) continue;")
    s.counters |= {c: Const(PANEL), k: s.extents[deep]}
    s.intervals[column] = Interval(plus(old[column].low, Var(c)), old[column].high, 1)
    s.intervals[deep] = Interval(Var(k), old[deep].high, 1)
    s.lines.add(f"byte |= ((unsigned)({scalar(s, d.body)}) & {mask}) << {t.bits} * {part};")
    s.lines.close()
    s.lines.add(f"*{bytes_}++ = (uint8_t)byte;")
    for _ in range(4):
        s.lines.close()
    s.intervals.update(old)
    return True


def _divided(shown: str, p: int) -> str:
    return shown if shown == "0" else f"({shown}) / {p}" if p > 1 else shown


def emit_dots(s: Scope, leaf: Do) -> bool:
    """Prints the leaf as a call of a kernel of integer products; False when its shape or storage does not allow one."""
    d = leaf.einsum
    lanes, rows = leaf.on("lane"), leaf.on("unroll")
    body = d.body
    if len(lanes) != 1 or len(rows) > 1 or len(d.reduced) != 1 or d.where:
        return False
    if not (isinstance(body, Call) and body.spec.name == "mul") or d.monoid(d.reduced[0]) != "sum":
        return False
    lane, deep, row = lanes[0], d.reduced[0], rows[0] if rows else None
    a, b = (x.arg if isinstance(x, Cast) else x for x in body.args)
    if not (isinstance(a, Access) and isinstance(b, Access)) or s.storage[d.target].dtype.name != "i32":
        return False
    p = per_byte(s.tensor(b.tensor).dtype, s.storage[b.tensor].layout)
    if not p or s.tensor(a.tensor).dtype != DTYPES["i8"] or s.unsafe(a) or s.unsafe(b):
        return False
    count = s.intervals[row].step if row else 1
    if count is None or s.intervals[lane].step != PANEL or lane in variables(a):
        return False
    if any(s.intervals[v].step != 1 for v in d.free if v not in (lane, row)):
        return False
    out = Access(d.target, d.indices)
    at_a, at_b, at_c = (_linear(s, x, lane, row, deep) for x in (a, b, out))
    if at_a is None or at_b is None or at_c is None or at_a[deep] != "1" or at_c[lane] != "1":
        return False
    from tcc.backends.c._leaves import first_visit

    bits = 8 // p
    largest = 2**bits - 1
    s.lines.open("{")
    last, base = s.names.fresh("last"), s.names.fresh("rows")
    span = span_text(s, s.intervals[row]) if row else "1"
    s.lines.add(f"const int8_t *{base} = {s.storage[a.tensor].pointer} + {at_a['']};")
    first = "0" if leaf.update else (first_visit(s, d) or "1")
    columns = f"(const uint8_t *){s.storage[b.tensor].pointer} + {_divided(at_b[''], p)}"
    length = span_text(s, s.intervals[deep])
    target = f"{s.storage[d.target].pointer} + {at_c['']}"
    pitch = at_c.get(row or "", "0") if row else "0"

    def called(n: int) -> str:
        starts = [base]
        if row:
            starts += [
                f"{base} + ({r} < {last} ? {r} : {last}) * ({at_a[row]})" for r in range(1, n)
            ]
        s.functions.add(f"dots:{n}:{bits}:{largest}")
        numbers = f"{columns}, {length}, {target}, {pitch}, {first}"
        return f"dots{n}x{PANEL}_u{bits}({', '.join(starts)}, {numbers});"

    if row and count > 1:
        s.lines.add(f"const int64_t {last} = {span} - 1;")
        s.lines.add(f"if ({last} == 0) {called(1)}")
        s.lines.add(f"else {called(count)}")
    else:
        s.lines.add(called(1))
    s.lines.close()
    return True


def check_packed(s: Scope, d: Einsum) -> None:
    """Refuses leaves that read or write single elements of packed bytes."""
    for name in (d.target, *(a.tensor for a in d.reads)):
        if per_byte(s.tensor(name).dtype, s.storage[name].layout) > 1:
            raise CompileError("T0302", f"the C backend reads `{name}` in whole steps of an integer product alone", d.span,
                               helps="give the buffer another layout")  # fmt: skip


def _linear(
    s: Scope, x: Access, lane: str, row: str | None, deep: str
) -> dict[str, str] | None:
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


# ---- the text of the kernels

_TYPES = """/* Sums of products of bytes: dot_sums holds 32-bit sums, one per column; dot_bytes four bytes for each of these columns. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define DOT_LANES 16
#else
#define DOT_LANES 8
#endif
typedef int32_t dot_sums __attribute__((vector_size(4 * DOT_LANES)));
typedef int32_t dot_sums_u __attribute__((vector_size(4 * DOT_LANES), aligned(4), may_alias));
typedef uint32_t dot_bytes __attribute__((vector_size(4 * DOT_LANES)));
typedef uint32_t dot_bytes_u __attribute__((vector_size(4 * DOT_LANES), aligned(1), may_alias));
static inline dot_sums dot_four(const int8_t *x) {  /* the same four bytes for every column */
  int32_t v;
  memcpy(&v, x, 4);
  return v - (dot_sums){0};
}
/* dot_add: s + the products of unsigned bytes w and signed bytes x, added up in fours (16 bits wide: in twos) */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(__clang__)
#define DOT_DEPTH(most) INT64_MAX
#define dot_add(s, w, x) ((dot_sums)__builtin_ia32_vpdpbusd_v16si((dot_v16si)(s), (dot_v16si)(w), (dot_v16si)(x)))
#define dot_add8 dot_add
#define dot_total(c, s) ((c) + (s))
typedef int dot_v16si __attribute__((vector_size(64)));
#elif (defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))) && !defined(__clang__)
#define DOT_DEPTH(most) INT64_MAX
typedef int dot_v8si __attribute__((vector_size(32)));
#define dot_add(s, w, x) ((dot_sums)__builtin_ia32_vpdpbusd_v8si((dot_v8si)(s), (dot_v8si)(w), (dot_v8si)(x)))
#define dot_add8 dot_add
#define dot_total(c, s) ((c) + (s))
#elif defined(__AVX2__)
#define DOT_DEPTH(most) (32767 / (2 * 128 * (most)))  /* as many sums of two products as 16 bits hold */
typedef char dot_v32qi __attribute__((vector_size(32)));
typedef short dot_v16hi __attribute__((vector_size(32)));
static inline dot_sums dot_pairs(dot_bytes w, dot_sums x) {
  return (dot_sums)__builtin_ia32_pmaddubsw256((dot_v32qi)w, (dot_v32qi)x);
}
static inline dot_sums dot_wide(dot_sums s) {  /* neighbouring 16-bit sums added up */
  return (dot_sums)__builtin_ia32_pmaddwd256((dot_v16hi)s, (dot_v16hi){1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
}
static inline dot_sums dot_add(dot_sums s, dot_bytes w, dot_sums x) {
  return (dot_sums)((dot_v16hi)s + (dot_v16hi)dot_pairs(w, x));
}
static inline dot_sums dot_total(dot_sums c, dot_sums s) { return c + dot_wide(s); }
static inline dot_sums dot_add8(dot_sums s, dot_bytes w, dot_sums x) {  /* 255 * 127 * 2 needs more than 16 bits */
  return s + dot_wide(dot_pairs(w & 0x7f7f7f7f, x)) + dot_wide(dot_pairs(w & 0x80808080, x));
}
#else
#define DOT_DEPTH(most) INT64_MAX
static inline dot_sums dot_add(dot_sums s, dot_bytes w, dot_sums x) {
  const dot_bytes u = (dot_bytes)x;
  return s + (dot_sums)(w & 255) * ((dot_sums)(u << 24) >> 24)
      + (dot_sums)(w >> 8 & 255) * ((dot_sums)(u << 16) >> 24)
      + (dot_sums)(w >> 16 & 255) * ((dot_sums)(u << 8) >> 24)
      + (dot_sums)(w >> 24) * ((dot_sums)u >> 24);
}
#define dot_add8 dot_add
#define dot_total(c, s) ((c) + (s))
#endif"""


def dot_functions(used: set[str]) -> list[str]:
    """The C text of the kernels in use, and of what they are made of."""
    keys = sorted(f for f in used if f.startswith("dots:"))
    return [_TYPES, *map(_kernel, keys)] if keys else []


def _kernel(key: str) -> str:
    """`rows` x 64 sums over `length` products. The columns are taken a few vectors at a time, so that all sums of these
    stay in registers: more vectors where there are fewer rows."""
    _, r, b, most = key.split(":")
    rows, bits = int(r), int(b)
    p = 8 // bits
    vectors = 2 if rows > 1 else 4
    args = [*(f"const int8_t *x{i}" for i in range(rows)), "const uint8_t *columns", "int64_t length",
            "int32_t *restrict out", "int64_t pitch", "int first"]  # fmt: skip
    lines = [
        f"/* out[{rows}][{PANEL}] (+)= sum over j of x[row][j] * columns[j][column], columns 0 … {most} */",
        "static __attribute__((noinline))",
        f"void dots{rows}x{PANEL}_u{bits}({', '.join(args)}) {{",
        f"  for (int at = 0; at < {PANEL}; at += {vectors} * DOT_LANES, columns += {4 * vectors} * DOT_LANES) {{",
    ]
    names = [(i, v) for i in range(rows) for v in range(vectors)]
    for i in range(rows):
        lines.append("    dot_sums " + ", ".join(f"c{i}_{v} = {{0}}" for v in range(vectors)) + ";")
    narrow = bits < 8
    pad = "    "
    if narrow:
        lines.append(f"{pad}const int64_t steps = (length + {STEP * p - 1}) / {STEP * p}, depth = DOT_DEPTH({most}) / {p};")
        lines.append(f"{pad}for (int64_t block = 0; block < steps; block += depth) {{")
        pad += "  "
        for i in range(rows):
            lines.append(f"{pad}dot_sums " + ", ".join(f"s{i}_{v} = {{0}}" for v in range(vectors)) + ";")
        lines.append(f"{pad}const int64_t end = depth < steps - block ? block + depth : steps;")
        lines.append(f"{pad}for (int64_t k = block; k < end; k++) {{")
    else:
        lines.append(f"{pad}const int64_t steps = (length + {STEP - 1}) / {STEP};")
        lines.append(f"{pad}for (int64_t k = 0; k < steps; k++) {{")
    pad += "  "
    for v in range(vectors):
        lines.append(f"{pad}const dot_bytes w{v} = *(const dot_bytes_u *)(columns + k * {4 * PANEL} + {4 * v} * DOT_LANES);")
    mask = int(f"{2**bits - 1:02x}" * 4, 16)
    for q in range(p):
        lines.append(f"{pad}{{")
        shown = []
        for v in range(vectors):
            if not narrow:
                shown.append(f"w{v}")
                continue
            moved = f"w{v} >> {bits * q}" if q else f"w{v}"
            lines.append(f"{pad}  const dot_bytes u{v} = {moved} & 0x{mask:08x};")
            shown.append(f"u{v}")
        for i in range(rows):
            lines.append(f"{pad}  const dot_sums f{i} = dot_four(x{i} + k * {STEP * p} + {STEP * q});")
            adds = " ".join(
                f"s{i}_{v} = dot_add(s{i}_{v}, {shown[v]}, f{i});" if narrow
                else f"c{i}_{v} = dot_add8(c{i}_{v}, {shown[v]}, f{i});"
                for v in range(vectors)
            )  # fmt: skip
            lines.append(f"{pad}  {adds}")
        lines.append(f"{pad}}}")
    pad = pad[2:]
    lines.append(f"{pad}}}")
    if narrow:
        for i in range(rows):
            lines.append(f"{pad}" + " ".join(f"c{i}_{v} = dot_total(c{i}_{v}, s{i}_{v});" for v in range(vectors)))
        pad = pad[2:]
        lines.append(f"{pad}}}")
    for i, v in names:
        place = f"(dot_sums_u *)(out + {i} * pitch + at + {v} * DOT_LANES)"
        lines.append(f"    *{place} = first ? c{i}_{v} : c{i}_{v} + *{place};")
    lines += ["  }", "}"]
    return "\n".join(lines)
