"""The C text of stores that go past the caches, and of loads that leave a tensor, in the templates of `_vector_text`."""

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
    "ldw": """$T ldw_$T(const void *p, i64 first, i64 last, $E fill) { /* lanes first ... last - 1 */
  first = first < 0 ? 0 : first < $N ? first : $N;
  last = last < first ? first : last < $N ? last : $N;
#if $B == 64 && defined(__AVX512F__)
  return ($T)__builtin_ia32_loadu${K}512_mask((const $C *)p, ($V)bc_$T(fill), ($M)((1u << last) - (1u << first)));
#elif $B == 32 && defined(__AVX__)
  $I chosen = firstn_$T(last) & ~firstn_$T(first);
  return select_$T(chosen, ($T)__builtin_ia32_maskloadps256((const $X *)p, ($J)chosen), bc_$T(fill));
#else
  $T v = bc_$T(fill);
  for (i64 i = first; i < last; i++) v[i] = ((const $E *)p)[i];
  return v;
#endif
}""",
}
