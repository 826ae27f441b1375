"""Stochastic rounding in C: `tcc_draw(seed, position)` is the random number of a place, that of `tcc.ir.random_bits`."""

DRAW = """static inline double tcc_draw(uint64_t seed, int64_t at) {  /* Philox4x32-10 */
  uint32_t a = (uint32_t)at, b = (uint32_t)((uint64_t)at >> 32), c = 0, d = 0;
  uint32_t k = (uint32_t)seed, l = (uint32_t)(seed >> 32);
  for (int n = 0; n < 10; n++, k += 0x9e3779b9u, l += 0xbb67ae85u) {
    const uint64_t p = (uint64_t)a * 0xd2511f53u, q = (uint64_t)c * 0xcd9e8d57u;
    a = (uint32_t)(q >> 32) ^ b ^ k, b = (uint32_t)q;
    c = (uint32_t)(p >> 32) ^ d ^ l, d = (uint32_t)p;
  }
  return a * 0x1p-32;
}"""
