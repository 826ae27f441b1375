"""C text that exercises one thing of a machine at a time: what `tcc target calibrate` builds and times.

Every function does its work `repeats` times and returns nothing; time is taken outside. Micro-kernels and vector
functions are the very text that the backend emits into programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from tcc.backends.c._micro import micro_kernel, tile_lanes
from tcc.backends.c._scope import C_TYPES
from tcc.backends.c._vector import CLASSES
from tcc.backends.c.toolchain import Toolchain
from tcc.backends.c.vector_math import preamble
from tcc.ir.dtype import DTYPES

FUNCTIONS = (
    "div", "sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "pow",
)  # fmt: skip
MOST_ACCUMULATORS = 24  # of a tile that is worth trying
MOST_ROWS = 12
_CHAINS = {
    16: 12,
    32: 24,
}  # independent sums that hide the latency of one, by the number of registers
_BYTES = {"f32": 4, "f64": 8}


def registers(toolchain: Toolchain) -> int:
    """How many vector registers a core has."""
    return 32 if toolchain.simd in ("avx512", "neon") else 16


def chains(toolchain: Toolchain) -> int:
    """How many independent results `peak_T` and `most_T` compute per repeat."""
    return _CHAINS[registers(toolchain)]


def lanes(dtype: str) -> int:
    """Elements of one vector of a program."""
    return CLASSES[dtype][1]


def widths(toolchain: Toolchain, dtype: str) -> tuple[int, ...]:
    """Lanes of the vectors that the processor has registers for."""
    bits = toolchain.simd_bits or 128
    return tuple(w // (8 * _BYTES[dtype]) for w in (128, 256, 512) if w <= bits)


def legal_tiles(toolchain: Toolchain, dtype: str) -> tuple[tuple[int, int], ...]:
    """Rows x vectors of `lanes` elements of the micro-kernels whose accumulators, one row of B and one element of A stay in
    registers."""
    found = []
    for vectors, rows in product((1, 2, 3, 4, 6), range(1, MOST_ROWS + 1)):
        width = _tile_lanes(toolchain, dtype, rows, vectors)
        wide = vectors * lanes(dtype) // width
        bits = width * _BYTES[dtype] * 8
        each = max(1, -(-bits // toolchain.simd_bits)) if toolchain.simd_bits else 1
        if rows * wide <= MOST_ACCUMULATORS and (rows * wide + wide + 1) * each <= registers(
            toolchain
        ):
            found.append((rows, vectors))
    return tuple(found)


def _tile_lanes(toolchain: Toolchain, dtype: str, rows: int, vectors: int) -> int:
    """Elements of the vectors that the backend prints for a tile."""
    size = max(32, (toolchain.simd_bits or 128) // 8)
    return tile_lanes(rows, vectors * lanes(dtype), DTYPES[dtype], size)


def tiles(toolchain: Toolchain, dtype: str) -> str:
    """`tile_RxV(repeats, a, b, out, depth, panels)`: the micro-kernel over `panels` operands B in turn; A is rows x
    depth, each B depth x (V vectors), row-major."""
    found = {t: _tile_lanes(toolchain, dtype, *t) for t in legal_tiles(toolchain, dtype)}
    used = [f"{dtype}x{width}" for width in sorted(set(found.values()))]
    parts = [preamble([f"{op}_{v}" for v in used for op in ("ld", "st", "bc")], lanes("f32"))]
    for (rows, vectors), width in found.items():
        columns = lanes(dtype) * vectors
        starts = ", ".join(f"a + {r} * depth" for r in range(rows))
        call = (
            f"tile{rows}x{columns}_1_{dtype}({starts}, at, depth, 1, {columns}, out, {columns}, 1);"
        )
        shape = f"{rows}:{columns // width}:{width}"
        parts.append(micro_kernel(f"micro:{shape}:1:{dtype}::{C_TYPES[dtype]}"))
        parts.append(
            f"void tile_{rows}x{vectors}(int64_t repeats, const {dtype} *a, const {dtype} *b, {dtype} *out,"
            " int64_t depth, int64_t panels) {\n"
            f"  const {dtype} *at = b, *end = b + panels * depth * {columns};\n"
            "  for (int64_t r = 0; r < repeats; r++) {\n"
            f"    {call}\n"
            f"    at += depth * {columns};\n"
            "    if (at == end) at = b;\n  }\n}"
        )
    return "\n\n".join(parts) + "\n"


def functions(toolchain: Toolchain, dtype: str, ops: Sequence[str]) -> str:
    """`OP(repeats, n, x, y)`: y[i] = op(x[i]) over n elements, whole vectors, as a leaf of a program does it."""
    width = max(lanes(dtype), (toolchain.simd_bits or 128) // (8 * _BYTES[dtype]))
    vector = f"{dtype}x{width}"
    named = [f"{op}_{vector}" for op in (*ops, "ld", "st") if op != "div"]
    parts = [preamble(named, lanes("f32"))]
    for op in ops:
        value = {"div": "x / ld_{0}(a + i + {1})", "pow": "pow_{0}(x, ld_{0}(a + i + {1}))"}.get(
            op, f"{op}_{{0}}(x)"
        )
        parts.append(
            f"void run_{op}(int64_t repeats, int64_t n, const {dtype} *a, {dtype} *y) {{\n"
            "  for (int64_t r = 0; r < repeats; r++) {\n"
            f"    for (int64_t i = 0; i < n; i += {width}) {{\n"
            f"      const {vector} x = ld_{vector}(a + i);\n"
            f"      st_{vector}(y + i, {value.format(vector, width)});\n"
            '    }\n    __asm__ volatile("" ::: "memory");\n  }\n}'
        )
    return "\n\n".join(parts) + "\n"


def machine(toolchain: Toolchain) -> str:
    """Everything else: `peak_T`, `most_T` (registers), `unpack_B`, and the functions of memory and threads."""
    vectors = [f"{t}x{w}" for t in CLASSES for w in widths(toolchain, t)]
    own = [f"{t}x{lanes(t)}" for t in CLASSES]
    line = max(widths(toolchain, "f32"))
    bits = f"i32x{line}"
    words = f"i32x{lanes('f32')}"
    floats = f"f32x{lanes('f32')}"
    names = [f"{op}_{v}" for v in vectors for op in ("st", "bc")]
    names += [f"{op}_{v}" for v in own for op in ("st", "bc", "max")]
    names += [f"ld_{bits}", f"st_{bits}", f"bc_{bits}", f"iota_{bits}", f"ld_{words}"]
    names += [f"cvt_{floats}_{words}", f"st_{floats}", f"bc_{floats}"]
    count = chains(toolchain)
    parts = [preamble(names, lanes("f32")) + "#include <time.h>"]
    parts += [_chains(f"peak_{v}", v, count, "c{0} = c{0} * x + y;") for v in vectors]
    parts += [
        _chains(f"most_{v}", v, count, f"c{{0}} = max_{v}(c{{0}}, x); PIN(c{{0}});") for v in own
    ]
    parts += [_unpack(n, words, floats) for n in (4, 8)]
    parts.append(_MEMORY.replace("VECTOR", bits).replace("LANES", str(line)))
    return "\n\n".join(parts)


def _chains(name: str, vector: str, count: int, step: str) -> str:
    """`NAME(repeats, p, out)`: so many independent chains of one operator, a step of each per repeat."""
    t = vector.split("x")[0]
    each = range(count)
    return "\n".join((
        f"void {name}(int64_t repeats, const {t} *p, {t} *out) {{",
        f"  const {vector} x = bc_{vector}(p[0]), y = bc_{vector}(p[1]);",
        f"  {vector} {', '.join(f'c{n} = x + bc_{vector}({n})' for n in each)};",
        "  (void)y;",
        "  for (int64_t r = 0; r < repeats; r++) {",
        *(f"    {step.format(n)}" for n in each),
        "  }",
        f"  st_{vector}(out, {' + '.join(f'c{n}' for n in each)});",
        "}",
    ))  # fmt: skip


def _unpack(bits: int, words: str, floats: str) -> str:
    """`unpack_B(repeats, n, p, out)`: the codes in n words, made floats and summed; codes of one word lie in one lane."""
    each = range(32 // bits)
    wide = words.split("x")[1]

    def lines() -> Iterator[str]:
        yield f"void unpack_{bits}(int64_t repeats, int64_t n, const i32 *p, f32 *out) {{"
        yield f"  {floats} {', '.join(f'c{k} = bc_{floats}(0)' for k in each)};"
        yield "  for (int64_t r = 0; r < repeats; r++) {"
        yield f"    for (int64_t i = 0; i < n; i += {wide}) {{"
        yield f"      const {words} w = ld_{words}(p + i);"
        for k in each:
            yield f"      c{k} += cvt_{floats}_{words}((w >> {k * bits}) & {(1 << bits) - 1});"
        yield '    }\n    __asm__ volatile("" ::: "memory");\n  }'
        yield f"  st_{floats}(out, {' + '.join(f'c{k}' for k in each)});\n}}"

    return "\n".join(lines())


# reads in four streams, as prefetchers like it; all sizes in bytes, of whole kilobytes
_MEMORY = """\
static inline void read_slice(int64_t repeats, const char *p, int64_t bytes, int64_t ahead) {
  const int64_t part = bytes / 4;
  VECTOR s0 = bc_VECTOR(0), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t r = 0; r < repeats; r++) {
    for (int64_t i = 0; i < part; i += 64) {
      if (ahead) {
        __builtin_prefetch(p + i + ahead);
        __builtin_prefetch(p + i + part + ahead);
        __builtin_prefetch(p + i + 2 * part + ahead);
        __builtin_prefetch(p + i + 3 * part + ahead);
      }
      for (int64_t j = i; j < i + 64; j += 4 * LANES) {
        s0 |= ld_VECTOR((const i32 *)(p + j));
        s1 |= ld_VECTOR((const i32 *)(p + j + part));
        s2 |= ld_VECTOR((const i32 *)(p + j + 2 * part));
        s3 |= ld_VECTOR((const i32 *)(p + j + 3 * part));
      }
    }
    __asm__ volatile("" ::: "memory");
  }
  s0 |= s1 | s2 | s3;
  __asm__ volatile("" : : "m"(s0));
}

void read_plain(int64_t repeats, const char *p, int64_t bytes) { read_slice(repeats, p, bytes, 0); }

void read_ahead(int64_t repeats, const char *p, int64_t bytes) { read_slice(repeats, p, bytes, 1024); }

/* runs of so many bytes, each far from the one before */
void read_runs(int64_t repeats, const char *p, int64_t bytes, int64_t run, int64_t apart) {
  VECTOR s = bc_VECTOR(0);
  for (int64_t r = 0; r < repeats; r++) {
    for (int64_t i = 0; i + run <= apart; i += run)
      for (int64_t j = i; j + apart <= bytes + i; j += apart)
        for (int64_t k = j; k < j + run; k += 4 * LANES) s |= ld_VECTOR((const i32 *)(p + k));
    __asm__ volatile("" ::: "memory");
  }
  __asm__ volatile("" : : "m"(s));
}

/* every thread reads a slice of its own */
void read_all(int64_t repeats, const char *p, int64_t bytes, int64_t threads) {
  const int64_t slice = bytes / threads / 1024 * 1024;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t t = 0; t < threads; t++) read_slice(repeats, p + t * slice, slice, 1024);
}

void write_plain(int64_t repeats, char *p, int64_t bytes) {
  VECTOR v = iota_VECTOR();
  for (int64_t r = 0; r < repeats; r++) {
    for (int64_t i = 0; i < bytes; i += 4 * LANES) st_VECTOR((i32 *)(p + i), v);
    v += 1;
    __asm__ volatile("" ::: "memory");
  }
}

/* stores past the caches, where the compiler has them */
#if defined(__clang__) && __has_builtin(__builtin_nontemporal_store)
#define STREAM(p, v) __builtin_nontemporal_store(v, p)
#define STREAM_TYPE f32x4
#define STREAM_END ((void)0)
#elif defined(__AVX__) && defined(__x86_64__)
typedef float stream_vector __attribute__((vector_size(32)));
#define STREAM(p, v) __builtin_ia32_movntps256((float *)(p), v)
#define STREAM_TYPE stream_vector
#define STREAM_END __builtin_ia32_sfence()
#elif defined(__SSE__)
typedef float stream_vector __attribute__((vector_size(16)));
#define STREAM(p, v) __builtin_ia32_movntps((float *)(p), v)
#define STREAM_TYPE stream_vector
#define STREAM_END __builtin_ia32_sfence()
#endif

int64_t can_stream(int64_t unused) {
  (void)unused;
#ifdef STREAM
  return 1;
#else
  return 0;
#endif
}

void write_stream(int64_t repeats, char *p, int64_t bytes) {
#ifdef STREAM
  STREAM_TYPE v = {1, 2, 3, 4};
  for (int64_t r = 0; r < repeats; r++) {
    for (int64_t i = 0; i < bytes; i += (int64_t)sizeof v) STREAM((STREAM_TYPE *)(p + i), v);
    STREAM_END;
  }
#endif
}

/* one cycle through all lines of 64 bytes, in an order that no prefetcher knows */
void chain(int64_t lines, char *p) {
  uint64_t state = 88172645463325252ull;
  for (int64_t i = 0; i < lines; i++) *(int64_t *)(p + 64 * i) = i;
  for (int64_t i = lines - 1; i > 0; i--) {
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    int64_t *a = (int64_t *)(p + 64 * i), *b = (int64_t *)(p + 64 * (int64_t)(state % (uint64_t)i));
    int64_t kept = *a; *a = *b; *b = kept;
  }
}

/* 1024 steps per repeat; the last line is kept, so that the next call goes on from there */
void chase(int64_t repeats, char *p, int64_t *at) {
  int64_t line = *at;
  for (int64_t r = 0; r < repeats * 1024; r++) line = *(int64_t *)(p + 64 * line);
  *at = line;
}

/* the first touch of every page */
void touch(int64_t pages, char *p) {
  for (int64_t i = 0; i < pages; i++) *(volatile char *)(p + 4096 * i) = 1;
}

/* returns the least nanoseconds of one of `repeats` parallel regions; gives up after 20 ms */
int64_t fork_threads(int64_t repeats, int64_t threads) {
  int64_t best = INT64_MAX, spent = 0;
  for (int64_t r = 0; r < repeats && spent < 20000000; r++) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
#pragma omp parallel num_threads(threads)
    __asm__ volatile("" ::: "memory");
    clock_gettime(CLOCK_MONOTONIC, &b);
    const int64_t taken = (b.tv_sec - a.tv_sec) * 1000000000 + (b.tv_nsec - a.tv_nsec);
    spent += taken;
    if (taken < best) best = taken;
  }
  return best;
}
"""
