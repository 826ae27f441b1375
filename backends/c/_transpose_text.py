"""The C text that moves lanes between vectors: square blocks are transposed in registers, by number of lanes, and every
second element is loaded."""

from __future__ import annotations

SHUFFLE = """\
/* lanes of a and b, those of b counting on; I is their mask type */
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(I, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(I, a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif
"""
# r[i][j] and r[j][i] change places
TRANSPOSE = {
    4: """void transpose_$T($T *r) {
  $T a = SHUFFLE($I, r[0], r[1], 0, 4, 2, 6), b = SHUFFLE($I, r[0], r[1], 1, 5, 3, 7);
  $T c = SHUFFLE($I, r[2], r[3], 0, 4, 2, 6), d = SHUFFLE($I, r[2], r[3], 1, 5, 3, 7);
  r[0] = SHUFFLE($I, a, c, 0, 1, 4, 5), r[2] = SHUFFLE($I, a, c, 2, 3, 6, 7);
  r[1] = SHUFFLE($I, b, d, 0, 1, 4, 5), r[3] = SHUFFLE($I, b, d, 2, 3, 6, 7);
}""",
    8: """void transpose_$T($T *r) {
  $T t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = SHUFFLE($I, r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = SHUFFLE($I, r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = SHUFFLE($I, t[i + j], t[i + 2 + j], 0, 1, 8, 9, 4, 5, 12, 13);
      r[i + 2 * j + 1] = SHUFFLE($I, t[i + j], t[i + 2 + j], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int i = 0; i < 4; i++) {
    $T low = r[i], high = r[i + 4];
    r[i] = SHUFFLE($I, low, high, 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = SHUFFLE($I, low, high, 4, 5, 6, 7, 12, 13, 14, 15);
  }
}""",
}

SECOND = {
    "ld2": """$T ld2_$T(const void *p) {  /* every second element, and none behind the last of them */
  return SHUFFLE($I, ld_$T(p), ld_$T((const $E *)p + $N - 1), $second);
}""",
    "ld2n": """$T ld2n_$T(const void *p, i64 n) {
  $T a = ldn_$T(p, 2 * n - 1 < $N ? 2 * n - 1 : $N);
  $T b = ldn_$T((const $E *)p + $N - 1, 2 * n > $N ? 2 * n - $N : 0);
  return SHUFFLE($I, a, b, $second);
}""",
}
