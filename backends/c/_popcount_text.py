"""How many bits are set: by an instruction where there is one, else fields of 2, 4 and 8 bits are added up."""

POPCOUNT = {
    "popcount": """$T popcount_$T($T x) {
#if $B == 64 && defined(__AVX512VPOPCNTDQ__) && !defined(__clang__)
  typedef $Z words __attribute__((vector_size($B)));
  return ($T)__builtin_ia32_vpopcount${P}_v${N}${Q}((words)x);
#elif $B == 32 && defined(__AVX512VPOPCNTDQ__) && defined(__AVX512VL__) && !defined(__clang__)
  typedef $Z words __attribute__((vector_size($B)));
  return ($T)__builtin_ia32_vpopcount${P}_v${N}${Q}((words)x);
#endif
  typedef u$E fields __attribute__((vector_size($B)));
  fields v = (fields)x;
  v = v - (v >> 1 & (u$E)0x5555555555555555u);
  v = (v & (u$E)0x3333333333333333u) + (v >> 2 & (u$E)0x3333333333333333u);
  v = (v + (v >> 4)) & (u$E)0x0f0f0f0f0f0f0f0fu;
  return ($T)(v * (u$E)0x0101010101010101u >> (8 * sizeof(u$E) - 8));
}"""
}
SCALAR_POPCOUNT = {
    "popcount": "$T popcount_$T($T x) { return __builtin_popcountll((u$E)x); }",
}
