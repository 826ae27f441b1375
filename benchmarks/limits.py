"""What memory alone allows: the fastest known loop that reads a case's inputs and writes as many bytes as its result.

It reads each input once, adds up what it read, and stores the sums: with ordinary or non-temporal
stores, in one or four streams, whichever is fastest here. The output lies on huge pages that are
touched before, so that no page fault counts.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from torch import Tensor

SOURCE = """
#include <stdint.h>
typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));
#if defined(__clang__)
#define STREAM(p, v) __builtin_nontemporal_store(v, (v8 *)(p))
#elif defined(__AVX__)
#define STREAM(p, v) __builtin_ia32_movntps256(p, v)
#else
#define STREAM(p, v) (*(v8 *)(p) = (v))
#endif
#define LD(p) (*(const v8u *)(p))
static volatile float sink;

/* y = a (+ b): n floats, a multiple of 64 per stream; y is aligned to 64 bytes */
#define MOVE(name, STORE, SUM)                                                          \\
  void name(float *y, const float *a, const float *b, int64_t n, int64_t streams) {    \\
    int64_t part = n / streams / 1024;                                                  \\
    _Pragma("omp parallel for schedule(static)")                                        \\
    for (int64_t k = 0; k < part; k++)                                                  \\
      for (int64_t i = k * 1024; i < k * 1024 + 1024; i += 16)                          \\
        for (int64_t s = 0; s < streams; s++) {                                         \\
          int64_t j = s * part * 1024 + i;                                              \\
          __builtin_prefetch(a + j + 512);                                              \\
          STORE(y + j, SUM(j)); STORE(y + j + 8, SUM(j + 8));                           \\
        }                                                                               \\
  }
#define ONE(j) LD(a + (j))
#define TWO(j) (LD(a + (j)) + LD(b + (j)))
#define KEEP(p, v) (*(v8 *)(p) = (v))
MOVE(copy_plain, KEEP, ONE)
MOVE(copy_stream, STREAM, ONE)
MOVE(add_plain, KEEP, TWO)
MOVE(add_stream, STREAM, TWO)

void read_all(float *y, const float *a, const float *b, int64_t n, int64_t streams) {
  int64_t part = n / streams / 1024;
  float total = 0;
  #pragma omp parallel for schedule(static) reduction(+ : total)
  for (int64_t k = 0; k < part; k++) {
    v8 s0 = {0}, s1 = {0};
    for (int64_t i = k * 1024; i < k * 1024 + 1024; i += 16)
      for (int64_t s = 0; s < streams; s++) {
        const float *p = a + s * part * 1024 + i;
        __builtin_prefetch(p + 512);
        s0 += LD(p), s1 += LD(p + 8);
      }
    s0 += s1;
    total += s0[0] + s0[7];
  }
  sink = total;
}
"""


def moves(inputs: tuple[Tensor, ...], result: Tensor) -> tuple[Callable[[], None], int]:
    """The fastest loop that moves the bytes of a case, and how many bytes these are.

    `inputs` of which the largest one or two count, `result` of their size, or much smaller: then
    the loop only reads.
    """
    from tcc.backends.c.launch import Block
    from tcc.backends.c.toolchain import build, find_toolchain

    library = ctypes.CDLL(str(build(SOURCE, find_toolchain())))
    large = sorted(inputs, key=Tensor.numel, reverse=True)[:2]
    large = [x.contiguous() for x in large if 4 * x.numel() > large[0].numel()]
    count = large[0].numel()
    writes = 2 * result.numel() > count
    block = Block(4 * count if writes else 64)
    ctypes.memset(block.address, 0, block.size)
    names = ["read_all"]
    if writes:
        names = ["copy_plain", "copy_stream"] if len(large) == 1 else ["add_plain", "add_stream"]

    def bound(name: str, streams: int) -> Callable[[], None]:
        function = library[name]
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (large[0], large[-1])]
        arguments = (ctypes.c_void_p(block.address), *pointers, ctypes.c_int64(count))
        kept = (large, block)

        def call() -> None:
            assert kept
            function(*arguments, ctypes.c_int64(streams))

        return call

    candidates = [bound(name, streams) for name in names for streams in (1, 4)]
    best = min(candidates, key=_seconds)
    return best, 4 * (count * len(large) + (count if writes else 0))


def _seconds(call: Callable[[], None]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
