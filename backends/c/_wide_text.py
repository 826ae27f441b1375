"""The C text of functions on vectors of 64 bytes that AVX-512 has shorter ways for, in the templates of `_vector_text`."""

from __future__ import annotations

from tcc.backends.c._vector_text import FLOAT32

_PLAIN = FLOAT32["exp"].split("\n", 1)[1].removesuffix("\n}")
_ROOTS = ("1.0f, " + ", ".join(f"{2 ** (n / 16):.9g}f" for n in range(1, 16))).replace(
    ", 1.41421356f", ",\n    1.41421356f"
)

WIDE = {
    "exp": f"""$T exp_$T($T x) {{ /* 2^n * e^r; n in sixteenths, |r| <= ln(2)/32, where AVX-512 looks up 2^(n mod 1) */
#if $B == 64 && defined(__AVX512DQ__) && __has_builtin(__builtin_ia32_permvarsf512_mask)
  const $T roots = {{{_ROOTS}}};
  $T t = x * 1.44269504f + 786432.0f; /* 1.5*2^19 */
  $T n = t - 786432.0f;
  $T r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  r = __builtin_ia32_rangeps512_mask(r, bc_$T(0.03f), 2, r, ($M)-1, 4); /* beyond f32 n alone decides */
  $T root = __builtin_ia32_permvarsf512_mask(roots, bits_$T(t), roots, ($M)-1);
  $T p = (1.66666667e-1f * r + 0.5f) * r + 1.0f;
  p = root * r * p + root;
  return __builtin_ia32_scalefps512_mask(p, n, p, ($M)-1, 4);
#else
{_PLAIN}
#endif
}}""",
}
