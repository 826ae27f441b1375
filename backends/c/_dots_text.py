"""The C text of integer products: bytes times bytes, four at a time, into sums of 32 bits that stay in registers."""

from __future__ import annotations

from tcc.ir.packed import SIDE, string

PANEL, STEP = SIDE  # columns of a panel, products that one instruction adds up
SIZE = PANEL * STEP  # bytes of a panel, for one byte of each string
HALF = 4  # rows whose sums fit in 16 registers
VECTORS = 4  # of sums of one row that stay in registers
AHEAD = 2048  # bytes of columns that are fetched early, where there is arithmetic to hide that

TYPES = """\
/* Products of bytes. dot_sums holds 32-bit sums, one per column; dot_bytes four bytes for each of these columns. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(__clang__)
#define DOT_LANES 16
#elif defined(__AVX2__)
#define DOT_LANES 8
#else
#define DOT_LANES 4
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
static inline void dot_store(int32_t *out, dot_sums c, int first) {
  *(dot_sums_u *)out = first ? c : c + *(dot_sums_u *)out;
}
/* dot_add(s, w, x): s plus the products of the unsigned bytes w and the signed bytes x, added up in fours
   dot_total(s): what such sums are in 32 bits; dot_add keeps them in 16 where DOT_DEPTH says how many fit
   dot_add7, dot_add8: dot_add for w of 7 and of all 8 bits, always in 32 bits
   dot_part(w, n, mask): bits n and up of every byte, perhaps times 2^n, which dot_whole takes back */
#if DOT_LANES == 16 || ((defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))) && !defined(__clang__))
#define DOT_DEPTH(most) INT64_MAX
typedef int dot_ints __attribute__((vector_size(4 * DOT_LANES)));
static inline dot_sums dot_add(dot_sums s, dot_bytes w, dot_sums x) {
#if DOT_LANES == 16
  return (dot_sums)__builtin_ia32_vpdpbusd_v16si((dot_ints)s, (dot_ints)w, (dot_ints)x);
#else
  return (dot_sums)__builtin_ia32_vpdpbusd_v8si((dot_ints)s, (dot_ints)w, (dot_ints)x);
#endif
}
#define dot_add7 dot_add
#define dot_add8 dot_add
#define dot_total(s) (s)
#define dot_part(w, n, mask) ((w) & (uint32_t)(mask) << (n))
#define dot_whole(s, n) ((s) >> (n))
#else
#define DOT_DEPTH(most) (32767 / (2 * 128 * (most)))
typedef int16_t dot_shorts __attribute__((vector_size(4 * DOT_LANES)));
static inline dot_shorts dot_twos(dot_bytes w, dot_sums x) {  /* sums of two products each */
#if defined(__AVX2__)
  typedef char dot_chars __attribute__((vector_size(32)));
  return (dot_shorts)__builtin_ia32_pmaddubsw256((dot_chars)w, (dot_chars)x);
#else
  const dot_shorts even = (dot_shorts)(w & 0x00ff00ff), odd = (dot_shorts)(w >> 8 & 0x00ff00ff);
  return even * ((dot_shorts)x << 8 >> 8) + odd * ((dot_shorts)x >> 8);
#endif
}
static inline dot_sums dot_total(dot_sums s) {  /* sums of two 16-bit sums each */
#if defined(__AVX2__)
  const dot_shorts one = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  return (dot_sums)__builtin_ia32_pmaddwd256((dot_shorts)s, one);
#else
  return (s << 16 >> 16) + (s >> 16);
#endif
}
static inline dot_sums dot_add(dot_sums s, dot_bytes w, dot_sums x) {
  return (dot_sums)((dot_shorts)s + dot_twos(w, x));
}
static inline dot_sums dot_add7(dot_sums s, dot_bytes w, dot_sums x) {
  return s + dot_total((dot_sums)dot_twos(w, x));
}
static inline dot_sums dot_add8(dot_sums s, dot_bytes w, dot_sums x) {  /* two products of 255 * 128 need 17 bits */
  return s + dot_total((dot_sums)dot_twos(w & 0x7f7f7f7f, x)) + dot_total((dot_sums)dot_twos(w & 0x80808080, x));
}
#define dot_part(w, n, mask) ((w) >> (n) & (uint32_t)(mask))
#define dot_whole(s, n) (s)
#endif"""


def dot_functions(used: set[str]) -> list[str]:
    """The C text of the kernels in use, and of what they are made of."""
    wanted = {
        (int(r), int(b)) for f in used if f.startswith("dots:") for r, b in [f.split(":")[1:]]
    }
    wanted |= {(HALF, bits) for rows, bits in wanted if rows > HALF}
    bits = sorted({bits for rows, bits in wanted if rows == 1})
    return [TYPES, *map(_sums, bits), *(_kernel(*key) for key in sorted(wanted))] if wanted else []


def _sums(bits: int) -> str:
    """`VECTORS` sums of one row, which stay in registers."""
    names = [f"0_{v}" for v in range(VECTORS)]
    return "\n".join([
        f"/* *out[v][column] = the sum over j of x[j] * columns[j][column], columns of {bits} bits */",
        "static inline __attribute__((always_inline))",
        f"void dots_u{bits}(const int8_t *x0, const uint8_t *columns, int64_t length,",
        f"    {', '.join(f'dot_sums *out{v}' for v in range(VECTORS))}) {{",
        _steps(bits),
        *_products(1, bits, "  "),
        *(f"  *out{v} = c{n};" for v, n in enumerate(names)),
        "}",
    ])  # fmt: skip


def _kernel(rows: int, bits: int) -> str:
    """`rows` x 64 sums over `length` products, of columns that have `bits` bits each.

    The columns are taken a few vectors at a time, so that their sums stay in registers.
    """
    vectors = VECTORS if rows == 1 else 2
    x = [f"const int8_t *x{i}" for i in range(rows)]
    name = f"void dots{rows}x{PANEL}_u{bits}"
    operands = "const uint8_t *columns, int64_t length"
    out = "int32_t *restrict out, int64_t pitch, int first"
    lines = [
        f"/* out[{rows}][{PANEL}] (+)= the sum over j of x[row][j] * columns[j][column], columns of {bits} bits */",
        "static __attribute__((noinline))",
        f"{name}({', '.join(x)},",
        f"    {operands}, {out}) {{",
    ]
    if rows > HALF:
        half = name.removeprefix("void ").replace(f"dots{rows}", f"dots{HALF}")
        lines.append("#if DOT_LANES < 16  /* with 16 registers */")
        for i in range(0, rows, HALF):
            mine = ", ".join(f"x{n}" for n in range(i, i + HALF))
            lines.append(f"  {half}({mine}, columns, length, out + {i} * pitch, pitch, first);")
        lines.append("#else")
    if rows > 1:
        lines.append(_steps(bits))
    lines.append(
        f"  for (int at = 0; at < {PANEL}; at += {vectors} * DOT_LANES, columns += {4 * vectors} * DOT_LANES) {{"
    )
    if rows > 1:
        lines += _products(rows, bits, "    ")
    else:
        lines.append(f"    dot_sums {', '.join(f'c0_{v}' for v in range(vectors))};")
        sums = ", ".join(f"&c0_{v}" for v in range(vectors))
        lines.append(f"    dots_u{bits}(x0, columns, length, {sums});")
    for i in range(rows):
        for v in range(vectors):
            lines.append(
                f"    dot_store(out + {i} * pitch + at + {v} * DOT_LANES, c{i}_{v}, first);"
            )
    lines += ["  }", *(["#endif"] if rows > HALF else []), "}"]
    return "\n".join(lines)


def _steps(bits: int) -> str:
    step = STEP * string(bits)[1]
    return f"  const int64_t steps = (length + {step - 1}) / {step};"


def _products(rows: int, bits: int, pad: str) -> list[str]:
    """Lines that compute the sums `c{row}_{vector}` of the vectors of columns that lie at `columns`.

    Where there is one row, the second of two parts of a byte is not shifted into place: it has sums of its own, which are.
    """
    size, p = string(bits)
    vectors = VECTORS if rows == 1 else 2
    short = bits < 5  # sums of 16 bits hold the products of a string
    apart = rows == 1 and short and size == 1
    sums = [f"{i}_{v}" for i in range(rows) for v in range(vectors)]
    parts = [0, 1] if apart else [0]
    add = "dot_add" if short else "dot_add8" if bits == 8 else "dot_add7"

    def zeros(prefix: str) -> str:
        return f"dot_sums {', '.join(f'{prefix}{n} = {{0}}' for n in sums)};"

    lines, outer = [f"{pad}{zeros('c')}"], pad
    if short:
        lines += [
            f"{pad}for (int64_t block = 0, end; block < steps; block = end) {{",
            f"{pad}  end = steps - block > DOT_DEPTH({2**bits - 1}) / {p} ? block + DOT_DEPTH({2**bits - 1}) / {p} : steps;",
            *(f"{pad}  {zeros(f's{q}_')}" for q in parts),
            f"{pad}  for (int64_t k = block; k < end; k++) {{",
        ]
        pad += "    "
    else:
        lines.append(f"{pad}for (int64_t k = 0; k < steps; k++) {{")
        pad += "  "
    lines.append(f"{pad}const uint8_t *w = columns + k * {size * SIZE};")
    loaded = 0  # bytes of the strings
    for q in range(p):
        while loaded < size and 8 * loaded < bits * (q + 1):
            for v in range(vectors):
                at = f"w + {loaded * SIZE} + {4 * v} * DOT_LANES"
                name = f"w{loaded}_{v}"
                lines.append(f"{pad}dot_bytes {name} = *(const dot_bytes_u *)({at}); PIN({name});")
                if rows > 1:
                    lines.append(f"{pad}__builtin_prefetch({at} + {AHEAD});")
            loaded += 1
        lines.append(f"{pad}{{")
        for v in range(vectors):
            lines.append(f"{pad}  const dot_bytes u{v} = {_value(bits, q, v, apart)};")
        into = f"s{q % 2 if apart else 0}_" if short else "c"
        for i in range(rows):
            lines.append(
                f"{pad}  const dot_sums f{i} = dot_four(x{i} + k * {STEP * p} + {STEP * q});"
            )
            adds = (f"{into}{i}_{v} = {add}({into}{i}_{v}, u{v}, f{i});" for v in range(vectors))
            lines.append(f"{pad}  {' '.join(adds)}")
        lines.append(f"{pad}}}")
    if short:
        lines.append(f"{outer}  }}")
        for q in parts:
            total = [f"dot_total(s{q}_{n})" for n in sums]
            total = [f"dot_whole({t}, {bits * q})" if apart and q else t for t in total]
            lines += [f"{outer}  c{n} += {t};" for n, t in zip(sums, total, strict=True)]
    lines.append(f"{outer}}}")
    return lines


def _value(bits: int, q: int, v: int, apart: bool) -> str:
    """Value q of every string, in a byte each."""
    i, low = divmod(bits * q, 8)
    here = f"w{i}_{v}"
    if bits == 8:
        return here
    if apart:
        pair = low - bits * (q % 2)
        return f"dot_part({f'{here} >> {pair}' if pair else here}, {bits * (q % 2)}, {_mask(2**bits - 1)})"
    first = min(bits, 8 - low)  # bits in this byte
    value = f"{f'{here} >> {low}' if low else here} & {_mask(2**first - 1)}"
    if first == bits:
        return value
    return f"({value}) | (w{i + 1}_{v} << {first} & {_mask(2**bits - 2**first)})"


def _mask(byte: int) -> str:
    return f"0x{int(f'{byte:02x}' * 4, 16):08x}"
