"""The C text of stores that go past the caches, in the templates of `_vector_text`."""

from __future__ import annotations

STREAM = {
    "nt": """void nt_$T(void *p, $T v) { /* past the caches; p is a multiple of $B */
#if defined(__clang__)
  __builtin_nontemporal_store(v, ($T *)p);
#elif $B == 64 && defined(__AVX512F__)
  __builtin_ia32_movntps512((float *)p, ($X)v);
#elif $B == 32 && defined(__AVX__)
  __builtin_ia32_movntps256((float *)p, ($X)v);
#elif $B == 16 && defined(__SSE__)
  __builtin_ia32_movntps((float *)p, ($X)v);
#else
  *($T *)p = v;
#endif
}""",
}
