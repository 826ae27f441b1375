"""The C text of the vector functions: templates over one type.

`$T` is the type (`f32x8`, or the scalar `f32`), `$I` its mask (signed integers of the same width
and number: all ones is true), `$E` the element type, `$N` the number of lanes, `$B` the bytes,
`$X` the `f32` vector of the same bytes and `$J` its mask, `$H` the type of half as many lanes.
The same text is used for vectors and scalars wherever C allows, so that a scalar tail computes
what the lanes compute.
"""

from __future__ import annotations

HEADER = """\
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifndef __has_builtin
#define __has_builtin(name) 0
#endif
typedef float f32;
typedef double f64;
typedef int32_t i32;
typedef int64_t i64;
typedef uint8_t u8;
/* PIN(x) makes x live in a register here: the compiler may not move its load into each use. Vectors of programs have 32
   bytes: where registers are shorter, no one of them holds x. */
#if defined(__AVX512VL__)
#define PIN(x) __asm__("" : "+v"(x))
#elif defined(__AVX__)
#define PIN(x) __asm__("" : "+x"(x))
#else
#define PIN(x) ((void)0)
#endif
"""


def horner(variable: str, coefficients: tuple[str, ...]) -> str:
    """`c0 + x*(c1 + x*(c2 + ...))` as C text."""
    *rest, last = coefficients
    text = f"{last}f"
    for coefficient in reversed(rest):
        text = f"({text} * {variable} + {coefficient}f)"
    return text


# Minimax polynomials (Remez, relative error of the result), rounded to float.
_EXP = horner("r", ("0.5", "1.6666518e-1", "4.1666206e-2", "8.368903e-3", "1.3950514e-3"))
_EXP2 = horner(
    "r",
    ("6.931472e-1", "2.402265e-1", "5.550327e-2", "9.618003e-3", "1.3400537e-3", "1.5476592e-4"),
)
_EXPM1 = horner(
    "r", ("0.5", "1.6666666e-1", "4.1666362e-2", "8.33339e-3", "1.3940646e-3", "1.984588e-4")
)
_LOG = horner(
    "f",
    (
        "3.3333313e-1", "-2.500001e-1", "2.0002119e-1", "-1.6667996e-1", "1.4219552e-1",
        "-1.24055885e-1", "1.18881606e-1", "-1.1675655e-1", "6.746648e-2",
    ),
)  # fmt: skip
_LOG2 = horner(
    "f",
    (
        "-7.2134733e-1", "4.8089823e-1", "-3.6069658e-1", "2.8856748e-1", "-2.396184e-1",
        "2.0460048e-1", "-1.9105592e-1", "1.8617162e-1", "-1.09959014e-1",
    ),
)  # fmt: skip
_TANH = horner(
    "z", ("-3.3333284e-1", "1.3331491e-1", "-5.3743497e-2", "2.0650588e-2", "-5.717045e-3")
)
_ERF = horner(
    "z",
    (
        "1.2837915e-1", "-3.7612483e-1", "1.12816796e-1", "-2.6761096e-2", "4.9844147e-3",
        "-5.943489e-4",
    ),
)  # fmt: skip
_ERFC = horner(
    "t",
    (
        "1.1286522", "6.351359e-1", "1.06263146e-1", "-2.3785349e-2", "3.6537652e-3",
        "-3.25653e-4", "1.1522318e-5",
    ),
)  # fmt: skip
_SIN = horner("z", ("-1.6666655e-1", "8.332155e-3", "-1.9514454e-4"))
_COS = horner("z", ("4.1666646e-2", "-1.3887308e-3", "2.443221e-5"))
# --- scalars: the primitives that the shared text below is written in -----------------------------

SCALAR = {
    "ld": "$T ld_$T(const void *p) { return *(const $T *)p; }",
    "st": "void st_$T(void *p, $T v) { *($T *)p = v; }",
    "bc": "$T bc_$T($T v) { return v; }",
    "select": "$T select_$T($I m, $T a, $T b) { return m ? a : b; }",
    "lt": "$I lt_$T($T a, $T b) { return -($I)(a < b); }",
    "le": "$I le_$T($T a, $T b) { return -($I)(a <= b); }",
    "gt": "$I gt_$T($T a, $T b) { return -($I)(a > b); }",
    "ge": "$I ge_$T($T a, $T b) { return -($I)(a >= b); }",
    "eq": "$I eq_$T($T a, $T b) { return -($I)(a == b); }",
    "ne": "$I ne_$T($T a, $T b) { return -($I)(a != b); }",
    "hsum": "$T hsum_$T($T v) { return v; }",
    "hprod": "$T hprod_$T($T v) { return v; }",
    "hmax": "$T hmax_$T($T v) { return v; }",
    "hmin": "$T hmin_$T($T v) { return v; }",
}
SCALAR_INT = {
    "shl": "$T shl_$T($T v, int n) { return ($T)((u$T)v << n); }",
    "subw": "$T subw_$T($T a, $T b) { return ($T)((u$T)a - (u$T)b); }",
    "any": "int any_$T($T m) { return m != 0; }",
    "ldb": "$T ldb_$T(const void *p) { return -($T)(*(const u8 *)p != 0); }",
    "stb": "void stb_$T(void *p, $T m) { *(u8 *)p = m != 0; }",
}
SCALAR_FLOAT = {
    "bits": "$I bits_$T($T v) { $I r; memcpy(&r, &v, sizeof r); return r; }",
    "unbits": "$T unbits_$T($I v) { $T r; memcpy(&r, &v, sizeof r); return r; }",
    "fromint": "$T fromint_$T($I v) { return ($T)v; }",
    "minq": "$T minq_$T($T a, $T b) { return a < b ? a : b; }",
    "maxq": "$T maxq_$T($T a, $T b) { return a > b ? a : b; }",
    "sqrt": "$T sqrt_$T($T x) { return __builtin_sqrt$L(x); }",
    "floor": "$T floor_$T($T x) { return __builtin_floor$L(x); }",
    "ceil": "$T ceil_$T($T x) { return __builtin_ceil$L(x); }",
    "round": "$T round_$T($T x) { return __builtin_rint$L(x); }",
    "trunc": "$T trunc_$T($T x) { return __builtin_trunc$L(x); }",
}
SIGMOID_F64 = """$T sigmoid_$T($T x) {
  $T e = exp(-abs_$T(x));
  return (x < 0 ? e : 1) / (e + 1);
}"""
LIBM = "$T ${name}_$T($T x) { return ${name}$L(x); }"
LIBM_POW = "$T pow_$T($T x, $T y) { return pow$L(x, y); }"

# --- vectors: memory, lanes, comparison, choice ---------------------------------------------------

VECTOR_TYPE = "typedef $E $T __attribute__((vector_size($B)));"
UNALIGNED_TYPE = "typedef $E ${T}_u __attribute__((vector_size($B), aligned($A), may_alias));"

VECTOR = {
    "ld": "$T ld_$T(const void *p) { return *(const ${T}_u *)p; }",
    "st": "void st_$T(void *p, $T v) { *(${T}_u *)p = v; }",
    "bc": "$T bc_$T($E s) { return ($T){$splat}; }",
    "iota": "$T iota_$T(void) { return ($T){$count}; }",
    "lt": "$I lt_$T($T a, $T b) { return ($I)(a < b); }",
    "le": "$I le_$T($T a, $T b) { return ($I)(a <= b); }",
    "gt": "$I gt_$T($T a, $T b) { return ($I)(a > b); }",
    "ge": "$I ge_$T($T a, $T b) { return ($I)(a >= b); }",
    "eq": "$I eq_$T($T a, $T b) { return ($I)(a == b); }",
    "ne": "$I ne_$T($T a, $T b) { return ($I)(a != b); }",
    "select": """$T select_$T($I m, $T a, $T b) {
#if $B == 32 && defined(__AVX__) && __has_builtin(__builtin_ia32_blendvps256)
  return ($T)__builtin_ia32_blendvps256(($X)b, ($X)a, ($X)m);
#elif $B == 16 && defined(__SSE4_1__) && __has_builtin(__builtin_ia32_blendvps)
  return ($T)__builtin_ia32_blendvps(($X)b, ($X)a, ($X)m);
#else
  return ($T)((m & ($I)a) | (~m & ($I)b));
#endif
}""",
    "firstn": "$I firstn_$T(i64 n) { return ($I)(iota_$I() < bc_$I(n < $N ? n : $N)); }",
    "ldn": """$T ldn_$T(const void *p, i64 n) {
#if $B == 64 && defined(__AVX512F__)
  return ($T)__builtin_ia32_loadu${K}512_mask((const $C *)p, ($V){0}, ($M)((1u << n) - 1));
#elif $B == 32 && defined(__AVX__)
  return ($T)__builtin_ia32_maskloadps256((const $X *)p, ($J)firstn_$T(n));
#elif $B == 16 && defined(__AVX__)
  return ($T)__builtin_ia32_maskloadps((const $X *)p, ($J)firstn_$T(n));
#else
  $T v = {0};
  for (i64 i = 0; i < n && i < $N; i++) v[i] = ((const $E *)p)[i];
  return v;
#endif
}""",
    "stn": """void stn_$T(void *p, $T v, i64 n) {
#if $B == 64 && defined(__AVX512F__)
  __builtin_ia32_storeu${K}512_mask(($C *)p, ($V)v, ($M)((1u << n) - 1));
#elif $B == 32 && defined(__AVX__)
  __builtin_ia32_maskstoreps256(($X *)p, ($J)firstn_$T(n), ($X)v);
#elif $B == 16 && defined(__AVX__)
  __builtin_ia32_maskstoreps(($X *)p, ($J)firstn_$T(n), ($X)v);
#else
  for (i64 i = 0; i < n && i < $N; i++) (($E *)p)[i] = v[i];
#endif
}""",
    "gather": """$T gather_$T(const void *p, $I index) {
  $T v;
  for (int i = 0; i < $N; i++) v[i] = ((const $E *)p)[index[i]];
  return v;
}""",
}
VECTOR_INT = {
    "shl": "$T shl_$T($T v, int n) { return v << n; }",
    "subw": "$T subw_$T($T a, $T b) { return a - b; }",
    "ldb": """$T ldb_$T(const void *p) {
  u8x$N v;
  memcpy(&v, p, $N);
  return ($T)(__builtin_convertvector(v, $T) != 0);
}""",
    "stb": """void stb_$T(void *p, $T m) {
  u8x$N v = __builtin_convertvector(m & 1, u8x$N);
  memcpy(p, &v, $N);
}""",
    "ldbn": """$T ldbn_$T(const void *p, i64 n) {
  u8x$N v = {0};
  for (i64 i = 0; i < n && i < $N; i++) v[i] = ((const u8 *)p)[i];
  return ($T)(__builtin_convertvector(v, $T) != 0);
}""",
    "stbn": """void stbn_$T(void *p, $T m, i64 n) {
  for (i64 i = 0; i < n && i < $N; i++) ((u8 *)p)[i] = m[i] != 0;
}""",
}
ANY = """int any_$T($T m) {
#if $B == 32 && defined(__AVX__)
  return __builtin_ia32_movmskps256(($X)m) != 0;
#elif $B == 16 && defined(__SSE__)
  return __builtin_ia32_movmskps(($X)m) != 0;
#else
  $E r = 0;
  for (int i = 0; i < $N; i++) r |= m[i];
  return r != 0;
#endif
}"""
ANY_BY_HALVES = """int any_$T($T m) {
  $H a, b;
  memcpy(&a, &m, sizeof a);
  memcpy(&b, (const char *)&m + sizeof a, sizeof b);
  return any_$H(a | b);
}"""
FOLD = "$E h${name}_$T($T v) { return ${op01}; }"
FOLD_BY_HALVES = """$E h${name}_$T($T v) {
  $H a, b;
  memcpy(&a, &v, sizeof a);
  memcpy(&b, (const char *)&v + sizeof a, sizeof b);
  return h${name}_$H(${half});
}"""

_QUICK = """$T ${name}q_$T($T a, $T b) { /* a $op b ? a : b */
#if $B == 32 && defined(__AVX__) && __has_builtin(__builtin_ia32_${name}${K}256)
  return __builtin_ia32_${name}${K}256(a, b);
#elif $B == 16 && defined(__SSE2__) && __has_builtin(__builtin_ia32_${name}${K})
  return __builtin_ia32_${name}${K}(a, b);
#elif $B == 64 && defined(__AVX512F__) && !defined(__clang__)
  return __builtin_ia32_${name}${K}512_mask(a, b, a, ($M)-1, 4);
#else
  return select_$T(($I)(a $op b), a, b);
#endif
}"""
_ROUND = """$T ${name}_$T($T x) {
#if $B == 32 && defined(__AVX__) && __has_builtin(__builtin_ia32_round${K}256)
  return __builtin_ia32_round${K}256(x, $mode);
#elif $B == 16 && defined(__SSE4_1__) && __has_builtin(__builtin_ia32_round${K})
  return __builtin_ia32_round${K}(x, $mode);
#elif $B == 64 && defined(__AVX512F__) && __has_builtin(__builtin_ia32_rndscale${K}_mask)
  return __builtin_ia32_rndscale${K}_mask(x, $mode, x, ($M)-1, 4);
#else
  $T v;
  for (int i = 0; i < $N; i++) v[i] = __builtin_${libm}$L(x[i]);
  return v;
#endif
}"""


def _variant(text: str, **values: str) -> str:
    for name, value in values.items():
        text = text.replace("${" + name + "}", value).replace("$" + name, value)
    return text


VECTOR_FLOAT = {
    "bits": "$I bits_$T($T v) { return ($I)v; }",
    "unbits": "$T unbits_$T($I v) { return ($T)v; }",
    "fromint": "$T fromint_$T($I v) { return __builtin_convertvector(v, $T); }",
    "minq": _variant(_QUICK, name="min", op="<"),
    "maxq": _variant(_QUICK, name="max", op=">"),
    "floor": _variant(_ROUND, name="floor", libm="floor", mode="9"),
    "ceil": _variant(_ROUND, name="ceil", libm="ceil", mode="10"),
    "round": _variant(_ROUND, name="round", libm="rint", mode="8"),
    "trunc": _variant(_ROUND, name="trunc", libm="trunc", mode="11"),
    "sqrt": """$T sqrt_$T($T x) {
#if __has_builtin(__builtin_elementwise_sqrt)
  return __builtin_elementwise_sqrt(x);
#elif $B == 32 && defined(__AVX__) && __has_builtin(__builtin_ia32_sqrt${K}256)
  return __builtin_ia32_sqrt${K}256(x);
#elif $B == 16 && defined(__SSE2__) && __has_builtin(__builtin_ia32_sqrt${K})
  return __builtin_ia32_sqrt${K}(x);
#elif $B == 64 && defined(__AVX512F__) && !defined(__clang__)
  return __builtin_ia32_sqrt${K}512_mask(x, x, ($M)-1, 4);
#else
  $T v;
  for (int i = 0; i < $N; i++) v[i] = __builtin_sqrt$L(x[i]);
  return v;
#endif
}""",
}
LANES = """$T ${name}_$T($T x) {
  $T v;
  for (int i = 0; i < $N; i++) v[i] = ${name}_$E(x[i]);
  return v;
}"""
LANES2 = """$T ${name}_$T($T x, $T y) {
  $T v;
  for (int i = 0; i < $N; i++) v[i] = ${name}_$E(x[i], y[i]);
  return v;
}"""
CONVERT = "$to cvt_${to}_$T($T v) { return __builtin_convertvector(v, $to); }"
CONVERT_LOW = """$to cvtlo_${to}_$T($T v) {
  $H a;
  memcpy(&a, &v, sizeof a);
  return $half;
}"""
CONVERT_HIGH = """$to cvthi_${to}_$T($T v) {
  $H a;
  memcpy(&a, (const char *)&v + sizeof a, sizeof a);
  return $half;
}"""
CONVERT_TWO = """$T cvt2_${T}_$to($to low, $to high) {
  $H a = $low, b = $high;
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, $count); /* gcc would build a copy in memory */
#else
  $T v;
  memcpy(&v, &a, sizeof a);
  memcpy((char *)&v + sizeof a, &b, sizeof b);
  return v;
#endif
}"""

# --- the mathematics, for vectors and scalars alike -----------------------------------------------

NUMBER = {
    "sign": """$T sign_$T($T x) {
  $T zero = bc_$T(0);
  return select_$T(gt_$T(x, zero), bc_$T(1), select_$T(lt_$T(x, zero), bc_$T(-1), x));
}""",
}
INT = {
    "min": "$T min_$T($T a, $T b) { return select_$T(lt_$T(a, b), a, b); }",
    "max": "$T max_$T($T a, $T b) { return select_$T(gt_$T(a, b), a, b); }",
    "abs": """$T abs_$T($T x) {
  $T zero = bc_$T(0);
  return select_$T(lt_$T(x, zero), subw_$T(zero, x), x);
}""",
    "all": "int all_$T($T m) { return !any_$T(~m); }",
}
FLOAT = {
    # x86 returns b when either is NaN; so only a NaN in a has to be put back
    "min": "$T min_$T($T a, $T b) { return select_$T(ne_$T(a, a), a, minq_$T(a, b)); }",
    "max": "$T max_$T($T a, $T b) { return select_$T(ne_$T(a, a), a, maxq_$T(a, b)); }",
    "abs": "$T abs_$T($T x) { return unbits_$T(bits_$T(x) & bc_$I($magnitude)); }",
    "copysign": """$T copysign_$T($T x, $T y) {
  return unbits_$T((bits_$T(x) & bc_$I($magnitude)) | (bits_$T(y) & ~bc_$I($magnitude)));
}""",
    "rsqrt": "$T rsqrt_$T($T x) { return 1 / sqrt_$T(x); }",
}
FLOAT32 = {
    "scale2": """$T scale2_$T($T p, $T t) { /* p * 2^n (subnormals too), t = n + 1.5*2^23 */
#if $B == 64 && defined(__AVX512F__)
  return __builtin_ia32_scalefps512_mask(p, t - 12582912.0f, p, ($M)-1, 4);
#elif $B == 32 && defined(__AVX512VL__)
  return __builtin_ia32_scalefps256_mask(p, t - 12582912.0f, p, ($M)-1);
#else
  $I n = subw_$I(bits_$T(t), bc_$I(0x4b400000));
  $I half = n >> 1;
  $T a = unbits_$T(shl_$I(n - half + 127, 23)), b = unbits_$T(shl_$I(half + 127, 23));
  return p * a * b;
#endif
}""",
    "exp": f"""$T exp_$T($T x) {{ /* 2^n * e^r, |r| <= ln(2)/2 */
  $T y = maxq_$T(bc_$T(-105.0f), minq_$T(bc_$T(89.0f), x));
  $T t = y * 1.44269504f + 12582912.0f;
  $T n = t - 12582912.0f;
  $T r = y - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  $T p = {_EXP};
  p = p * (r * r) + r + 1.0f;
  return scale2_$T(p, t);
}}""",
    "exp2": f"""$T exp2_$T($T x) {{
  $T y = maxq_$T(bc_$T(-152.0f), minq_$T(bc_$T(129.0f), x));
  $T t = y + 12582912.0f;
  $T r = y - (t - 12582912.0f);
  $T p = {_EXP2};
  p = p * r + 1.0f;
  return scale2_$T(p, t);
}}""",
    "expm1": f"""$T expm1_$T($T x) {{ /* 2^n * (e^r - 1) + (2^n - 1), halved so that 2^n exists */
  $T y = maxq_$T(bc_$T(-18.0f), minq_$T(bc_$T(89.0f), x));
  $T t = y * 1.44269504f + 12582912.0f;
  $T n = t - 12582912.0f;
  $T r = y - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  $T p = {_EXPM1};
  p = p * (r * r) + r;
  $T half = unbits_$T(shl_$I(subw_$I(bits_$T(t), bc_$I(0x4b400000 - 126)), 23));
  p = (p * half + (half - 0.5f)) * 2.0f;
  return select_$T(lt_$T(abs_$T(x), bc_$T(1e-8f)), x, p);
}}""",
    "log": f"""$T log_$T($T x) {{ /* n ln 2 + log(1 + f), sqrt(1/2) <= 1 + f < sqrt(2) */
  $I small = lt_$T(x, bc_$T(1.17549435e-38f));
  $T y = select_$T(small, x * 8388608.0f, x);
  $I n = subw_$I(bits_$T(y), bc_$I(0x3f3504f3)) >> 23;
  $T f = unbits_$T(subw_$I(bits_$T(y), shl_$I(n, 23))) - 1.0f;
  $T k = fromint_$T(n - (small & 23));
  $T z = f * f;
  $T p = {_LOG};
  p = p * f * z + k * -2.12194440e-4f;
  p = p - z * 0.5f;
  p = (f + p) + k * 0.693359375f;
  $I plain = gt_$T(x, bc_$T(0)) & lt_$T(x, bc_$T(INFINITY));
  $T other = select_$T(lt_$T(x, bc_$T(0)), bc_$T(NAN), x);
  other = select_$T(eq_$T(x, bc_$T(0)), bc_$T(-INFINITY), other);
  return select_$T(plain, p, other);
}}""",
    "log2": f"""$T log2_$T($T x) {{
  $I small = lt_$T(x, bc_$T(1.17549435e-38f));
  $T y = select_$T(small, x * 8388608.0f, x);
  $I n = subw_$I(bits_$T(y), bc_$I(0x3f3504f3)) >> 23;
  $T f = unbits_$T(subw_$I(bits_$T(y), shl_$I(n, 23))) - 1.0f;
  $T k = fromint_$T(n - (small & 23));
  $T p = {_LOG2};
  /* f/ln 2 with the rounding error of 1/ln 2 put back: 1.44269504 = 1.5 - 0.0573049... */
  p = p * f - 5.7304959e-2f;
  p = k + (f * 1.5f + f * p);
  $I plain = gt_$T(x, bc_$T(0)) & lt_$T(x, bc_$T(INFINITY));
  $T other = select_$T(lt_$T(x, bc_$T(0)), bc_$T(NAN), x);
  other = select_$T(eq_$T(x, bc_$T(0)), bc_$T(-INFINITY), other);
  return select_$T(plain, p, other);
}}""",
    "log1p": f"""$T log1p_$T($T x) {{ /* log u + c/u for u = fl(1 + x), c = (1 + x) - u */
  $T u = x + 1.0f;
  $T c = select_$T(lt_$T(x, bc_$T(1)), x - (u - 1.0f), 1.0f - (u - x)) / u;
  $I n = subw_$I(bits_$T(u), bc_$I(0x3f3504f3)) >> 23;
  $T f = unbits_$T(subw_$I(bits_$T(u), shl_$I(n, 23))) - 1.0f;
  $T k = fromint_$T(n);
  $T z = f * f;
  $T p = {_LOG};
  p = p * f * z + (k * -2.12194440e-4f + c);
  p = p - z * 0.5f;
  p = (f + p) + k * 0.693359375f;
  $I plain = gt_$T(x, bc_$T(-1)) & lt_$T(x, bc_$T(INFINITY));
  plain = plain & gt_$T(abs_$T(x), bc_$T(1e-8f));
  $T other = select_$T(lt_$T(x, bc_$T(-1)), bc_$T(NAN), x);
  other = select_$T(eq_$T(x, bc_$T(-1)), bc_$T(-INFINITY), other);
  return select_$T(plain, p, other);
}}""",
    "tanh": f"""$T tanh_$T($T x) {{
  $T a = abs_$T(x), z = x * x;
  $T large = 1.0f - 2.0f / (exp_$T(a + a) + 1.0f);
  $T small = {_TANH};
  small = a + a * z * small;
  return copysign_$T(select_$T(lt_$T(a, bc_$T(0.625f)), small, large), x);
}}""",
    "sigmoid": """$T sigmoid_$T($T x) { /* e = exp(-|x|): 1/(1 + e) or e/(1 + e) */
  $T e = exp_$T(-abs_$T(x));
  return select_$T(lt_$T(x, bc_$T(0)), e, bc_$T(1)) / (e + 1.0f);
}""",
    "erf": f"""$T erf_$T($T x) {{ /* x + x P(x*x); from 0.925 on 1 - exp(-|x| P(|x|)) */
  $T a = abs_$T(x), z = x * x;
  $T t = minq_$T(bc_$T(3.95f), a);
  $T large = {_ERFC};
  large = 1.0f - exp_$T(-(t * large));
  $T small = {_ERF};
  small = a + a * small;
  return copysign_$T(select_$T(lt_$T(a, bc_$T(0.925f)), small, large), x);
}}""",
    "sin": f"""$T sin_$T($T x) {{
  if (any_$I(gt_$T(abs_$T(x), bc_$T(1e5f)))) return sinlibm_$T(x);
  $I q;
  $T r = quarter_$T(x, &q), z = r * r;
  $T s = {_SIN};
  $T c = {_COS};
  s = r + r * z * s;
  c = 1.0f - z * 0.5f + z * z * c;
  $T y = unbits_$T(bits_$T(select_$T(-(q & 1), c, s)) ^ shl_$I(q & 2, 30));
  return select_$T(lt_$T(abs_$T(x), bc_$T(1e-4f)), x, y);
}}""",
    "cos": f"""$T cos_$T($T x) {{
  if (any_$I(gt_$T(abs_$T(x), bc_$T(1e5f)))) return coslibm_$T(x);
  $I q;
  $T r = quarter_$T(x, &q), z = r * r;
  $T s = {_SIN};
  $T c = {_COS};
  s = r + r * z * s;
  c = 1.0f - z * 0.5f + z * z * c;
  return unbits_$T(bits_$T(select_$T(-(q & 1), s, c)) ^ shl_$I((q + 1) & 2, 30));
}}""",
}
QUARTER_TURNS = """$D quarterturn_$D($D x, $D *n) { /* x - n pi/2, pi/2 as 33 bits and the rest */
  *n = (x * 6.36619772367581382433e-01 + 6755399441055744.0) - 6755399441055744.0;
  $D r = x - *n * 1.57079632673412561417e+00;
  return r - *n * 6.07710050650619224932e-11;
}"""
QUARTER_SCALAR = """f32 quarter_f32(f32 x, i32 *q) {
  f64 n, r = quarterturn_f64(x, &n);
  *q = (i32)(i64)n;
  return (f32)r;
}"""
QUARTER_VECTOR = """$T quarter_$T($T x, $I *q) {
  $D n, m;
  $D low = quarterturn_$D(cvtlo_${D}_$T(x), &n), high = quarterturn_$D(cvthi_${D}_$T(x), &m);
  *q = __builtin_convertvector(cvt2_${T}_$D(n, m), $I);
  return cvt2_${T}_$D(low, high);
}"""
