"""The C text of divisions by what stays the same in a loop, in the templates of `_vector_text`.

1/s is kept as the sum of two floats, of which the first is a little nearer to 0 than 1/s; so both have the sign of s, and
x·inverse + x·rest, rounded once, is x/s as a division rounds it, also where x is infinite. That takes half as long as a
division or less. Divisors of unusual size, 0 and NaN among them, divide.
"""

from __future__ import annotations

DIVISOR_TYPE = (
    "typedef struct { $T by, inverse, rest; int usual; } divisor_$T; /* 1/by = inverse + rest */"
)

DIVISION = {
    "fma": """$T fma_$T($T a, $T b, $T c) { /* a b + c, rounded once */
#if $B == 64 && defined(__AVX512F__) && __has_builtin(__builtin_ia32_vfmadd${K}512_mask)
  return __builtin_ia32_vfmadd${K}512_mask(a, b, c, ($M)-1, 4);
#elif $B == 32 && defined(__FMA__) && __has_builtin(__builtin_ia32_vfmadd${K}256)
  return __builtin_ia32_vfmadd${K}256(a, b, c);
#elif __has_builtin(__builtin_elementwise_fma)
  return __builtin_elementwise_fma(a, b, c);
#else
  $T v;
  for (int i = 0; i < $N; i++) v[i] = __builtin_fma$L(a[i], b[i], c[i]);
  return v;
#endif
}""",
    "divisor": """divisor_$T divisor_of_$T($E s) {
  $T by = bc_$T(s), inverse = 1 / by * ($E)(1 - $roundoff);
  $T rest = fma_$T(-inverse, by, bc_$T(1)) * inverse;
#if $B == 64 && defined(__AVX512F__)
  int usual = abs_$E(s) > ($E)0x1p-60 && abs_$E(s) < ($E)0x1p60;
#elif $B == 32 && defined(__FMA__)
  int usual = abs_$E(s) > ($E)0x1p-60 && abs_$E(s) < ($E)0x1p60;
#else
  int usual = 0; /* no fast multiply-add of vectors this long */
#endif
  return (divisor_$T){by, inverse, rest, usual};
}""",
    "over": """$T over_$T($T x, divisor_$T d) { /* x / d.by */
  return d.usual ? fma_$T(x, d.inverse, x * d.rest) : x / d.by;
}""",
}
