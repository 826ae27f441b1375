"""Coded tensors in C: an argument of its own, and functions that decode runs side by side.

A coded tensor is passed as the address of a `tcc_coded`, which `compiler/coded.py` fills. `decode_T` decodes whole runs
with all their lanes, up to four at once; `tcc.ir.dtype_coded` states the format. With AVX-512 the 16 lanes of a run are
those of a vector: words are spread to the lanes that need one, and a table of 2^8 bytes is looked up in registers.
`times4_T` and `times1_T` then multiply and add up what they decode.
Elsewhere lanes take their words one after the other, and then step side by side. Neither reads outside of the arguments,
whatever the words are.
"""

from __future__ import annotations

from tcc.backends.c._codes import computed, is_coded, starts_f32, word
from tcc.ir.dtype import Coded, DType
from tcc.ir.dtype_coded import LENGTH, WORD, raw_bits, raw_type
from tcc.ir.dtype_codes import float_form
from tcc.ir.mapping import Mapping

SIDE_BY_SIDE = 4  # runs
AHEAD = 2048  # elements that are fetched ahead: each run is on pages of its own
STRUCT = """typedef struct {
  const void *raw;        /* sign and mantissa of each element */
  const uint16_t *words;  /* the codes */
  const uint32_t *start;  /* the first word of each run */
  const uint16_t *table;  /* symbol + 4096 * bits, by the next bits */
  int64_t last;           /* from here on there are as many words as a run has lanes, and no more */
  uint8_t length[256], symbol[256];  /* the table, if it has no more entries and symbols have 8 bits */
} tcc_coded;"""


def coded_word(t: DType) -> str:
    """The type's name as a part of a C identifier."""
    form = form_of(t)
    lanes = form.lanes[1] if form.lanes else 1
    return f"{word(form.element)}_{form.run[1]}x{lanes}_{form.window}"


def form_of(t: DType) -> Coded:
    assert isinstance(t.form, Coded), t
    return t.form


def decoding(t: DType) -> str:
    """`decode_T(w, at, to, count, step)`: decodes the runs at[0 … count - 1]; element t of lane l of run j goes to
    to[j][t * step + l]. Besides, `get_E` of the element type has to be there if C stores it otherwise than it computes."""
    name, real = coded_word(t), "float" if computed(t).name == "f32" else "double"
    fast = _vectors(t, False)
    head = f"static void decode_{name}(const tcc_coded *w, const int64_t *at, {real} *const *to, int64_t count, int64_t step) {{"
    scalar = _scalar(t, real)
    if fast:
        n = SIDE_BY_SIDE
        body = f"""#ifdef TCC_EXPAND
  int64_t j = 0;
  for (; j + {n} <= count; j += {n}) decode{n}_{name}(w, at + j, to + j, step);
  for (; j < count; j++) decode1_{name}(w, at + j, to + j, step);
#else
{scalar}
#endif"""
    else:
        body = scalar
    return f"{fast}{head}\n{body}\n}}"


def decoding_functions(m: Mapping, used: set[str]) -> list[str]:
    """The C text of the functions in use."""
    types = {coded_word(t.dtype): t.dtype for t in m.inputs if isinstance(t.dtype.form, Coded)}
    functions = [decoding(types[name]) for name in sorted(types) if f"decode_{name}" in used]
    functions += [_vectors(types[name], True) for name in sorted(types) if f"times_{name}" in used]
    return [STRUCT, *functions] if types else []


def _scalar(t: DType, real: str) -> str:
    form = form_of(t)
    element = float_form(form.element)
    lanes, run = (form.lanes[1] if form.lanes else 1), form.run[1]
    raw = f"{raw_type(form.element).name}_t"
    kind = f"uint{8 * form.element.itemsize}_t"
    place = "out[(t + u) * step + l]"
    store = f"memcpy(&{place}, &c, sizeof c);"
    if starts_f32(form.element):
        store = f"const uint32_t v = (uint32_t)c << {32 - form.element.bits};\n          memcpy(&{place}, &v, 4);"
    elif is_coded(form.element):
        store = f"{place} = get_{word(form.element)}(c);"
    m, e = element.mantissa, element.exponent
    every = WORD // form.window

    def steps(count: int) -> str:
        return f"""      if (next > last) next = last;  /* no lane takes more than one word at once */
      for (int64_t l = 0; l < {lanes}; l++) {{
        const uint32_t takes = held[l] < {WORD};  /* a branch would be guessed wrong half the time */
        bits[l] |= (words[next] & -takes) << (held[l] & 31);
        held[l] += {WORD} * takes;
        next += takes;
      }}
      for (int64_t u = 0; u < {count}; u++) {{
        uint32_t entry[{lanes}];
        for (int64_t l = 0; l < {lanes}; l++) entry[l] = table[bits[l] & {2**form.window - 1}];
        for (int64_t l = 0; l < {lanes}; l++) {{
          const {kind} r = raw[(t + u) * {lanes} + l];
          const {kind} c = ({kind})(r >> {m} << {m + e} | ({kind})(entry[l] % {LENGTH}) << {m} | (r & {hex(2**m - 1)}ull));
          bits[l] >>= entry[l] / {LENGTH};
          held[l] -= entry[l] / {LENGTH};
          {store}
        }}
      }}"""

    rest = f"    t = {run // every * every};\n{steps(run % every)}\n" if run % every else ""
    return f"""  const uint16_t *const words = w->words, *const table = w->table;
  const int64_t last = w->last;
  for (int64_t j = 0; j < count; j++) {{
    {real} *restrict const out = to[j];
    const {raw} *raw = (const {raw} *)w->raw + at[j] * {run * lanes};
    int64_t next = w->start[at[j]], t = 0;
    uint32_t bits[{lanes}] = {{0}}, held[{lanes}] = {{0}};
    for (; t < {run // every * every}; t += {every}) {{
{steps(every)}
    }}
{rest}  }}"""


def has_vectors(t: DType) -> bool:
    """Whether 16 lanes are a vector with AVX-512: elements are f32 with fewer bits, and codes are short."""
    form = form_of(t)
    lanes = form.lanes[1] if form.lanes else 1
    return starts_f32(form.element) and lanes == 16 and form.window <= 8


def _vectors(t: DType, times: bool) -> str:
    """The functions for 16 lanes in a vector, empty where there are none."""
    if not has_vectors(t):
        return ""
    functions = "\n".join(_abreast(t, n, times) for n in (SIDE_BY_SIDE, 1))
    return f"""{_HEAD}#ifdef TCC_EXPAND
{functions}
#endif
"""


_HEAD = """#ifndef TCC_EXPAND
#if defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#if __has_builtin(__builtin_ia32_expandhi256_maskz) && __has_builtin(__builtin_ia32_vpermt2varqi512_maskz)
#define TCC_EXPAND
typedef uint32_t u32x16_c __attribute__((vector_size(64)));
typedef int32_t i32x16_c __attribute__((vector_size(64)));
typedef float f32x16_c __attribute__((vector_size(64)));
typedef float f32x16_cu __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i32x16_cu __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i32x4_cu __attribute__((vector_size(16), aligned(1), may_alias));
typedef char i8x64_c __attribute__((vector_size(64)));
typedef int16_t i16x16_c __attribute__((vector_size(32)));
typedef int16_t i16x16_cu __attribute__((vector_size(32), aligned(2), may_alias));
typedef char i8x16_cu __attribute__((vector_size(16), aligned(1), may_alias));
/* the entries of bytes 0, 4, 8, … in a table of 128 bytes */
static inline u32x16_c entry_c(i8x64_c at, const i8x64_c *table) {
  return (u32x16_c)__builtin_ia32_vpermt2varqi512_maskz(at, table[0], table[1], 0x1111111111111111ull);
}
/* 16 bytes, each as the two highest of 32 bits */
static inline i32x16_c twice_c(const void *p) {
  const i8x64_c at = {
#define AT_C(n) -1, -1, n, n
    AT_C(0), AT_C(1), AT_C(2), AT_C(3), AT_C(4), AT_C(5), AT_C(6), AT_C(7),
    AT_C(8), AT_C(9), AT_C(10), AT_C(11), AT_C(12), AT_C(13), AT_C(14), AT_C(15),
#undef AT_C
  };
  const i32x16_c all = __builtin_ia32_broadcasti32x4_512(*(const i32x4_cu *)p, (i32x16_c){0}, -1);
  return (i32x16_c)__builtin_ia32_pshufb512_mask((i8x64_c)all, at, (i8x64_c){0}, -1);
}
static inline u32x16_c choice_c(i32x16_c mask, u32x16_c a, u32x16_c b) {
  return ((u32x16_c)mask & a) | (~(u32x16_c)mask & b);
}
static inline u32x16_c shifted_c(u32x16_c v, u32x16_c n, int left) {
  return (u32x16_c)(left ? __builtin_ia32_psllv16si_mask((i32x16_c)v, (i32x16_c)n, (i32x16_c){0}, -1)
                         : __builtin_ia32_psrlv16si_mask((i32x16_c)v, (i32x16_c)n, (i32x16_c){0}, -1));
}
#endif
#endif
#endif
"""


def _abreast(t: DType, runs: int, times: bool = False) -> str:
    """One function for so many runs. Each waits for itself at every step, so that all do a part of it before any does the
    next. `times`: the elements are multiplied with x and added up, and are stored nowhere."""
    form = form_of(t)
    every, wide = WORD // form.window, form.window == 8
    name, run = coded_word(t), form.run[1]
    stored = 8 * raw_type(form.element).itemsize
    tables = 4 if wide else 2
    if times:
        given = "const float *x, float *out, int first"
        head = [
            f"static __attribute__((noinline)) void times{runs}_{name}(const tcc_coded *w, const int64_t *at, {given}) {{"
        ]
    else:
        given = "float *const *to, int64_t step"
        head = [
            f"static void decode{runs}_{name}(const tcc_coded *w, const int64_t *at, {given}) {{"
        ]
    lines = [
        *head,
        f"  i8x64_c length[{tables}], symbol[{tables}];",
        f"  memcpy(length, w->length, {64 * tables});",
        f"  memcpy(symbol, w->symbol, {64 * tables});",
        "  const uint16_t *const words = w->words;",
        "  const int64_t last = w->last;",
        f"  const i32x16_c word = (i32x16_c){{0}} + {WORD}, field = (i32x16_c){{0}} + 0x7f800000;",
    ]
    for j in range(runs):
        lines += [
            f"  const uint{stored}_t *raw{j} = (const uint{stored}_t *)w->raw + at[{j}] * {run * 16};",
            f"  int64_t next{j} = w->start[at[{j}]];",
            f"  u32x16_c bits{j} = {{0}}, held{j} = {{0}};",
            f"  f32x16_c sum{j} = {{0}};" if times else f"  float *to{j} = to[{j}];",
        ]
    for inside in (True, False):
        if not inside and run % every == 0:
            break
        if inside:
            lines.append(f"  for (int64_t t = 0; t < {run // every}; t++) {{")
        for at in range(every) if inside else range(run % every):
            parts = [
                *(_words() if at == 0 else []),
                *_element(at, wide, raw_bits(form.element), stored),
            ]
            parts.append(
                "sum$ += value * (f32x16_c)v$;" if times else "*(i32x16_cu *)to$ = v$; to$ += step;"
            )
            lines.append("    {")
            if times:
                lines.append(f"      const f32x16_c value = x[{at}] - (f32x16_c){{0}};")
            lines += ["      " + part.replace("$", str(j)) for part in parts for j in range(runs)]
            lines.append("    }")
        if inside:
            lines += [f"    raw{j} += {16 * every};" for j in range(runs)]
            lines += [f"    x += {every};"] * times
            lines.append("  }")
    if times:
        for j in range(runs):
            place = f"*(f32x16_cu *)(out + {16 * j})"
            lines.append(f"  if (!first) sum{j} += {place};")
            lines.append(f"  {place} = sum{j};")
    return "\n".join([*lines, "}"])


def _words() -> list[str]:
    """Every lane of run $ that has room for a word takes the next one."""
    return [
        "const uint16_t need$ = __builtin_ia32_ucmpd512_mask((i32x16_c)held$, word, 1, -1);",
        "const i16x16_c more$ = __builtin_ia32_expandhi256_maskz(*(const i16x16_cu *)(words + next$), (i16x16_c){0}, need$);",
        "const i32x16_c given$ = __builtin_ia32_pmovzxwd512_mask(more$, (i32x16_c){0}, -1);",
        "bits$ |= shifted_c((u32x16_c)given$, held$, 1);",
        "held$ = (u32x16_c)__builtin_ia32_paddd512_mask((i32x16_c)held$, word, (i32x16_c)held$, need$);",
        "next$ += __builtin_popcount(need$);",
        "next$ = next$ < last ? next$ : last;",
        f"__builtin_prefetch(raw$ + {AHEAD});",
        f"__builtin_prefetch(words + next$ + {AHEAD // 8});",
    ]


def _element(step: int, wide: bool, width: int, stored: int) -> list[str]:
    """v$, the elements of run $ at a step: an exponent, then sign and mantissa."""
    at = "(i8x64_c)bits$"
    if wide:
        parts = [
            "const i32x16_c high$ = -(i32x16_c)(bits$ >> 7 & 1);",
            f"const u32x16_c n$ = choice_c(high$, entry_c({at}, length + 2), entry_c({at}, length));",
            f"const u32x16_c s$ = choice_c(high$, entry_c({at}, symbol + 2), entry_c({at}, symbol));",
        ]
    else:
        parts = [
            f"const u32x16_c n$ = entry_c({at}, length);",
            f"const u32x16_c s$ = entry_c({at}, symbol);",
        ]
    raw = f"(raw$ + {16 * step})"
    load = {
        8: f"__builtin_ia32_pmovsxbd512_mask(*(const i8x16_cu *){raw}, (i32x16_c){{0}}, -1)",
        16: f"__builtin_ia32_pmovsxwd512_mask(*(const i16x16_cu *){raw}, (i32x16_c){{0}}, -1)",
        32: f"*(const i32x16_cu *){raw}",
    }[stored]
    placed = f"{load} << {32 - width} >> 8" if width != 8 else f"twice_c{raw}"
    return [
        *parts,
        "bits$ = shifted_c(bits$, n$, 0);",
        "held$ -= n$;",
        f"const i32x16_c r$ = {placed};  /* sign and mantissa where f32 has them */",
        "const i32x16_c v$ = __builtin_ia32_pternlogd512_mask(field, (i32x16_c)(s$ << 23), r$, 0xca, -1);",
    ]
