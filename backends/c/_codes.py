"""Codes in C: `get_T` decodes one stored element, `put_T` rounds a value to its code, both as the reference does.

bf16 and f16 are computed (eight at a time: `ld_T ldn_T st_T stn_T rnd_T`); other floats of up to 10 bits are looked up in the
reference's own table, and rounded by its ladder; wider ones are computed (`_wide_codes`); integers of any width are cut to it,
or saturate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from tcc.backends.c._draws import DRAW
from tcc.backends.c._wide_codes import wide_functions
from tcc.ir.dtype import DTYPES, Coded, DType, Float, Posit, Scaled, Table
from tcc.ir.dtype_codes import encode, float_form, integer_range, ladder, table
from tcc.ir.expr import Cast, walk
from tcc.ir.mapping import Kernel, Mapping, leaves, tensors

TABLE_BITS = 10
HALVES = ("bf16", "f16")  # have vector functions


def is_coded(t: DType) -> bool:
    """Whether elements are stored otherwise than C computes with them."""
    return not t.native or t.name == "f16"


def computed(t: DType) -> DType:
    """The type in which C computes with elements of `t`."""
    return DTYPES["f32"] if t.compute.name == "f16" else t.compute


def same_codes(stored: DType | None, t: DType) -> bool:
    """Whether what is stored are the codes of a type, however it rounds to them."""
    if stored is None or stored.rounding == "stochastic" or stored.name in HALVES:
        return False
    return t.form is not None and (t.form, t.bits) == (stored.form, stored.bits)


def supported(t: DType) -> bool:
    """Whether C can read and write such elements."""
    if not is_coded(t) or t.name in HALVES:
        return True
    if isinstance(t.form, Coded):  # read only, by leaves that decode
        return supported(t.form.element) or starts_f32(t.form.element)
    return not isinstance(t.form, Scaled)


def starts_f32(t: DType) -> bool:
    """Whether codes are the first bits of those of an f32 with the same value."""
    if not t.is_float or isinstance(t.form, Posit | Table | Scaled | Coded):
        return False
    form = float_form(t)
    return (form.exponent, form.bias, form.specials, form.signed, form.subnormal) == (
        8,
        127,
        "ieee",
        True,
        True,
    )


def stored_type(t: DType) -> str:
    """The C type of a stored element; of all that a coded tensor is passed as."""
    if isinstance(t.form, Coded):
        return "tcc_coded"
    if t.kind == "b":
        return "uint8_t"
    if not is_coded(t):
        return {"f32": "float", "f64": "double"}.get(t.name) or f"{t.numpy.name}_t"
    return f"{t.numpy.name}_t" if t.is_integer else f"uint{8 * t.itemsize}_t"


def word(t: DType) -> str:
    """The type's name as a part of a C identifier."""
    if re.fullmatch(r"\w+", t.name):
        return t.name
    if "[" not in t.name:
        return t.name.replace(".", "_")
    import zlib

    return f"codebook_{zlib.crc32(t.name.encode()):08x}"


def code_functions(m: Mapping, used: set[str]) -> list[str]:
    """The C text of the functions in use, for the element types of a mapping's tensors and conversions."""
    types = [t.dtype for t in tensors(m).values()]
    types += [t.form.element for t in types if isinstance(t.form, Coded)]
    for k in m.kernels:
        for leaf in leaves(k.body) if isinstance(k, Kernel) else ():
            parts = walk(leaf.einsum.body, *leaf.einsum.where, *leaf.einsum.indices)
            types += [e.dtype for e in parts if isinstance(e, Cast)]
    out = [DRAW] if any(t.rounding == "stochastic" for t in types) else []
    for t in sorted({word(t): t for t in types if is_coded(t)}.values(), key=word):
        name = word(t)
        mine = {f for f in used if re.fullmatch(rf"\w+_{name}(_f32x8|_float|_u64)?", f)}
        if not mine:
            continue
        if t.name in HALVES:
            out.append(_BF16 if t.name == "bf16" else _F16)
            if any(f.endswith("_f32x8") for f in mine):
                out.append((_BF16_LANES if t.name == "bf16" else _F16_LANES) + _LANES.replace("$T", name))  # fmt: skip
        elif t.is_integer:
            out.append(_integer(t, name))
        elif isinstance(t.form, Table) or t.bits <= TABLE_BITS:
            out.append(_table(t, name))
        else:
            real = "float" if computed(t).name == "f32" else "double"
            out.append(wide_functions(t, name, stored_type(t), real))
    return out


_BF16 = """static inline float get_bf16(uint16_t c) {
  const uint32_t b = (uint32_t)c << 16;
  float v;
  memcpy(&v, &b, 4);
  return v;
}
static inline uint16_t put_bf16(float v) {
  uint32_t b;
  memcpy(&b, &v, 4);
  return v != v ? 0x7fc0 : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}"""

_F16 = """static inline float get_f16(uint16_t c) {
#if defined(__F16C__)
  typedef int16_t i16x8_h __attribute__((vector_size(16)));
  typedef float f32x4_h __attribute__((vector_size(16)));
  return ((f32x4_h)__builtin_ia32_vcvtph2ps((i16x8_h){(int16_t)c}))[0];
#else
  const uint32_t low = (uint32_t)(c & 0x7fff) << 13, sign = (uint32_t)(c & 0x8000) << 16;
  uint32_t b;
  float v;
  memcpy(&v, &low, 4);
  v *= 0x1p112f;  /* exact, subnormals as well */
  memcpy(&b, &v, 4);
  b = ((c & 0x7c00) == 0x7c00 ? 0x7f800000 | low : b) | sign;
  memcpy(&v, &b, 4);
  return v;
#endif
}
static inline uint16_t put_f16(float v) {
  uint32_t b;
  memcpy(&b, &v, 4);
  const uint32_t sign = b >> 16 & 0x8000, a = b & 0x7fffffff;
  if (a > 0x7f800000) return 0x7e00;
  if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  /* rounds to 2^16 or more */
  if (a >= 0x38800000) return (uint16_t)(sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
  float f;
  memcpy(&f, &a, 4);
  f += 0.5f;  /* its last bit is the last one of a subnormal */
  memcpy(&b, &f, 4);
  return (uint16_t)(sign | (b - 0x3f000000));
}"""

_HALF_TYPES = """
#ifndef TCC_HALVES
#define TCC_HALVES
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint16_t u16x8_u __attribute__((vector_size(16), aligned(2), may_alias));
typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
#endif
"""

_BF16_LANES = (
    _HALF_TYPES
    + """static inline f32x8 wide_bf16(u16x8 c) {
#if defined(__AVX2__) && !defined(__clang__)
  return (f32x8)((u32x8)__builtin_ia32_pmovzxwd256((i16x8)c) << 16);
#else
  return (f32x8)(__builtin_convertvector(c, u32x8) << 16);
#endif
}
static inline u16x8 narrow_bf16(f32x8 v) {
  u32x8 b = (u32x8)v;
  b = (b + 0x7fff + (b >> 16 & 1)) >> 16;
  b = (u32x8)((v == v) & (i32x8)b) | (u32x8)((v != v) & 0x7fc0);
#if defined(__SSE4_1__) && !defined(__clang__)
  typedef int32_t i32x4_h __attribute__((vector_size(16)));
  i32x4_h half[2];
  memcpy(half, &b, 32);
  return (u16x8)__builtin_ia32_packusdw128(half[0], half[1]);
#else
  return __builtin_convertvector(b, u16x8);
#endif
}
"""
)

_F16_LANES = (
    _HALF_TYPES
    + """static inline f32x8 wide_f16(u16x8 c) {
#if defined(__F16C__)
  return (f32x8)__builtin_ia32_vcvtph2ps256((i16x8)c);
#else
  f32x8 v;
  for (int i = 0; i < 8; i++) v[i] = get_f16(c[i]);
  return v;
#endif
}
static inline u16x8 narrow_f16(f32x8 v) {
#if defined(__F16C__)
  return (u16x8)__builtin_ia32_vcvtps2ph256(v, 0);
#else
  u16x8 c;
  for (int i = 0; i < 8; i++) c[i] = put_f16(v[i]);
  return c;
#endif
}
"""
)

_LANES = """static inline f32x8 ld_$T_f32x8(const void *p) { return wide_$T(*(const u16x8_u *)p); }
static inline f32x8 ldn_$T_f32x8(const void *p, int64_t n) {
  u16x8 c = {0};
  memcpy(&c, p, (size_t)(n < 8 ? n : 8) * 2);
  return wide_$T(c);
}
static inline void st_$T_f32x8(void *p, f32x8 v) { *(u16x8_u *)p = narrow_$T(v); }
static inline void stn_$T_f32x8(void *p, f32x8 v, int64_t n) {
  const u16x8 c = narrow_$T(v);
  memcpy(p, &c, (size_t)(n < 8 ? n : 8) * 2);
}
static inline f32x8 rnd_$T_f32x8(f32x8 v) { return wide_$T(narrow_$T(v)); }"""


def _integer(t: DType, name: str) -> str:
    low, high = integer_range(t)
    c, wide = stored_type(t), f"{computed(t).numpy.name}_t"
    unused = 64 - t.bits
    cut = (
        f"({c})((int64_t)((uint64_t)v << {unused}) >> {unused})" if low else f"({c})(v & {high}ll)"
    )
    least, most = (f"-{high}ll - 1", f"{high}ll") if low else ("0", f"{high}ull")
    top = "" if t.bits == 64 else f" : v > {high}ll ? {high}ll"
    if t.saturate:
        cut = f"({c})(v < {least} ? {least}{top} : v)"
    elif t.bits == 64:
        cut = f"({c})v"
    natural = f"({c})(v > {most} ? {most} : v)" if t.saturate else f"put_{name}((int64_t)v)"
    turned = "nearbyint(v)" if t.rounding == "nearest" else "trunc(v)"
    place, drawn = "", ""
    if t.rounding == "stochastic":
        turned, place, drawn = (
            "floor(v)",
            ", int64_t place",
            "const double part = v - floor(v);\n  ",
        )
        turned += f" + (tcc_draw({t.seed}ull, place) < part)"
    end = "v >= 0x1p62 ? (int64_t)1 << 62 : v <= -0x1p62 ? -((int64_t)1 << 62) : (int64_t)v"
    whole = (
        f"put_{name}(v != v ? 0 : {end})"  # beyond what i64 holds, the lowest bits do not matter
    )
    if t.saturate:
        wider = "int64_t" if low else "uint64_t"
        whole = (
            f"({c})(v != v ? 0 : v <= {low or 0}. ? {least} : v >= {high}. ? {most} : ({wider})v)"
        )
    return f"""static inline {wide} get_{name}({c} v) {{ return ({wide})v; }}
static inline {c} put_{name}(int64_t v) {{ return {cut}; }}
static inline {c} put_{name}_u64(uint64_t v) {{ return {natural}; }}
static inline {c} put_{name}_float(double v{place}) {{
  {drawn}v = {turned};
  return {whole};
}}"""


def _numbers(values: Iterable[float], suffix: str) -> str:
    def shown(v: float) -> str:
        if np.isnan(v):
            return "NAN"
        if np.isinf(v):
            return "INFINITY" if v > 0 else "-INFINITY"
        return f"{float(v).hex()}{suffix}"

    return ", ".join(shown(v) for v in values)


def _table(t: DType, name: str) -> str:
    """The reference's values and ladder as arrays; rounding is a binary search."""
    single = computed(t).name == "f32"
    c, real = stored_type(t), "float" if single else "double"
    rungs = ladder(t)
    codes = [int(v) for v in rungs.codes]
    drawn = t.rounding == "stochastic"
    down = t.rounding == "zero" or drawn
    turn = rungs.values[1:] if down else rungs.turn  # where the code before ends
    if len(turn) == len(codes) or down:
        codes += [int(encode(np.asarray([np.inf]), t)[0])]
    odd = [int(v) for v in rungs.odd]
    sign = 1 << (t.bits - 1)
    nan = int(encode(np.asarray([np.nan]), t)[0])
    after = ""
    if isinstance(t.form, Posit):
        after = (
            f"  if (isinf(v)) return {sign};\n{'' if down else '  if (a > 0 && at == 0) at = 1;'}\n"
            f"  return ({c})(v < 0 ? -codes[at] & {2 * sign - 1} : codes[at]);"
        )
    elif isinstance(t.form, Table):
        after = f"  return ({c})codes[at];"
    else:
        assert isinstance(t.form, Float)
        if t.form.signed:
            kept = " && codes[at]" if t.form.specials == "fnuz" else ""
            after = f"  return ({c})(signbit(v){kept} ? codes[at] | {sign} : codes[at]);"
        else:
            lost = "v < 0" if t.form.subnormal else "v <= 0"
            after = f"  return ({c})({lost} ? {nan} : codes[at]);"
    if drawn:
        above = f"at < {len(turn)} ? values[at + 1] : {_numbers([rungs.beyond], '')}"
        after = f"  if (a >= values[0] && tcc_draw({t.seed}ull, place) < (a - values[at]) / (({above}) - values[at])) at++;\n{after}"
    elif down and rungs.signed:
        after = f"  if (isinf(v)) at = {len(codes) - 1};\n{after}"
    elif down:
        after = f"  if (a < 0 && a > values[at] && at < {len(turn)}) at++;\n{after}"
    size = "fabs(v)" if rungs.signed else "v"
    before = "<=" if down else "<"
    tie = "" if down else f"\n  if (at < {len(turn)} && turn[at] == a && odd[at]) at++;"
    evens = (
        ""
        if down
        else f"\n  static const unsigned char odd[{len(odd)}] = {{{', '.join(map(str, odd))}}};"
    )
    if drawn or (down and not rungs.signed):
        evens = f"\n  static const double values[{len(rungs.values)}] = {{{_numbers(rungs.values, '')}}};"
    return f"""static inline {real} get_{name}({c} c) {{
  static const {real} values[{2**t.bits}] = {{{_numbers(table(t), "f" if single else "")}}};
  return values[c & {2**t.bits - 1}];
}}
static inline {c} put_{name}(double v{", int64_t place" * drawn}) {{
  static const double turn[{len(turn)}] = {{{_numbers(turn, "")}}};
  static const int codes[{len(codes)}] = {{{", ".join(map(str, codes))}}};{evens}
  const double a = {size};
  int at = 0;
  if (v != v) return {nan};
  for (int n = {len(turn)}; n;) {{
    const int half = n / 2;
    if (turn[at + half] {before} a) at += half + 1, n -= half + 1; else n = half;
  }}{tie}
{after}
}}"""
