"""The C text that transposes square blocks of vectors in registers, by number of lanes."""

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
