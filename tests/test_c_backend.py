"""The C backend: what generated C computes is what the interpreter says, for every shape, stride,
name and number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from c_runs import built, fenced, run, threads
from random_programs import assert_matches, generate

import tcc
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.interpret import interpret
from tcc.ir.mapping_text import parse_mapping
from tcc.samples import random_inputs

SEEDS, CHUNK = 500, 20

# ---- random programs


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_c_is_the_interpreter_on_random_programs(first: int) -> None:
    for seed in range(first, first + CHUNK):
        p = generate(seed)
        inputs = {name: fenced(a) for name, a in p.inputs.items()}
        program = built(p.cascade)
        assert_matches(p.cascade, run(program, p.cascade, inputs, p.sizes), inputs, p.sizes)
        # what is printed reads back, at both levels
        assert str(parse_cascade(str(p.cascade))) == str(p.cascade)
        assert str(parse_mapping(str(program.mapping))) == str(program.mapping)


@pytest.mark.parametrize("first", range(1000, 1080, 20))
def test_compiled_programs_are_the_interpreter_on_random_programs(first: int) -> None:
    for seed in range(first, first + 20):
        p = generate(seed, points=3000)
        got = tcc.compile(str(p.cascade))(**p.inputs, sizes=_free(p.cascade, p.sizes))
        outputs = [t.name for t in p.cascade.outputs]
        named = dict(zip(outputs, got if len(outputs) > 1 else [got], strict=True))
        assert_matches(p.cascade, named, p.inputs, p.sizes)


def _free(c: Cascade, sizes: Mapping[str, int]) -> dict[str, int]:
    return {r.name: sizes[r.name] for r in c.ranks if r.size is None}


# ---- strides


def restrided(array: Any, rng: np.random.Generator) -> Any:
    """The same values, stored in another way: axes in another order, with gaps, backwards."""
    order = rng.permutation(array.ndim)
    steps = rng.choice([1, 1, 2, 3, -1, -2], array.ndim)
    room = [n * abs(int(s)) for n, s in zip(array.shape, steps, strict=True)]
    store = np.zeros([room[d] for d in order], array.dtype).transpose(np.argsort(order))
    view = store[(*(slice(None, None, int(s)) for s in steps), ...)]
    view[...] = array
    assert view.shape == array.shape
    return view


@pytest.mark.parametrize("first", range(2000, 2060, 10))
def test_inputs_may_have_any_strides(first: int) -> None:
    for seed in range(first, first + 10):
        rng = np.random.default_rng(seed)
        p = generate(seed, points=5000)
        inputs = {name: restrided(a, rng) for name, a in p.inputs.items()}
        assert_matches(
            p.cascade, run(built(p.cascade), p.cascade, inputs, p.sizes), inputs, p.sizes
        )


MATMUL = """
in A: f32[M, K], B: f32[K, N]
out C: f32[M, N]
C[m, n] = A[m, k] * B[k, n]
"""


@pytest.mark.parametrize("size", [(3, 7, 5), (37, 64, 130)])
def test_every_storage_of_an_operand_gives_the_same_product(
    size: tuple[int, int, int], rng: np.random.Generator
) -> None:
    c = parse_cascade(MATMUL)
    program = built(c)
    m, k, n = size
    plain = {
        "A": rng.standard_normal((m, k)).astype(np.float32),
        "B": rng.standard_normal((k, n)).astype(np.float32),
    }
    storages = {
        "row-major": lambda a: a,
        "transposed": lambda a: np.asfortranarray(a),
        "steps": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
        "backwards": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
        "broadcast rows": lambda a: np.broadcast_to(a[:1], a.shape),
        "broadcast columns": lambda a: np.broadcast_to(a[:, :1], a.shape),
        "broadcast": lambda a: np.broadcast_to(a[0, 0], a.shape),
    }
    for left in storages.values():
        for right in storages.values():
            inputs = {"A": left(plain["A"]), "B": right(plain["B"])}
            assert_matches(c, run(program, c, inputs), inputs)


def test_outputs_may_have_any_strides(rng: np.random.Generator) -> None:
    c = parse_cascade(MATMUL)
    inputs = random_inputs(c, {"M": 19, "K": 33, "N": 21}, rng)
    for store in (
        np.full((21, 19), 7, np.float32).T,
        np.full((38, 63), 7, np.float32)[::2, ::3],
        np.full((19, 21), 7, np.float32)[::-1, ::-1],
    ):
        assert_matches(c, run(built(c), c, inputs, outputs={"C": store}), inputs)


# ---- shapes and threads

SIZES = (1, 2, 3, 7, 37, 64, 127, 128, 129)
SHAPED = {
    "matmul": MATMUL,
    "matmul in f64": MATMUL.replace("f32", "f64"),
    "matmul of integers": MATMUL.replace("f32", "i32"),
    "matmul of bytes": """
        in A: i8[M, K], B: i8[K, N]
        out C: i32[M, N]
        C[m, n] = i32(A[m, k]) * i32(B[k, n])
        """,
    "matmul with both operands transposed": """
        in A: f32[K, M], B: f32[N, K]
        out C: f32[M, N]
        C[m, n] = A[k, m] * B[n, k]
        """,
    "matmul of batches": """
        in A: f32[H, M, K], B: f32[H, K, N]
        out C: f32[H, M, N]
        C[h, m, n] = A[h, m, k] * B[h, k, n]
        """,
    "lower triangle of a matmul": """
        in A: f64[M, K], B: f64[K, N]
        out C: f64[M, N]
        C[m, n] = A[m, k] * B[k, n]  where n <= m, k <= m
        """,
    "matmul with bias, residual and norm": """
        in X: f32[M, K], W: f32[K, N], b: f32[N], R: f32[M, N], g: f32[N]
        out Y: f32[M, N]
        A[m, n] = X[m, k] * W[k, n]
        B[m, n] = A[m, n] + b[n] + R[m, n]
        Mean[m] = B[m, n] / N
        D[m, n] = B[m, n] - Mean[m]
        V[m]    = D[m, n] * D[m, n] / N
        Y[m, n] = D[m, n] * rsqrt(V[m] + 1e-5) * g[n]
        """,
    "mlp": """
        in X: f32[M, K], W: f32[K, N], b: f32[N], V: f32[N, P]
        out Y: f32[M, P]
        A[m, n] = X[m, k] * W[k, n]
        G[m, n] = max(A[m, n] + b[n], 0)
        Y[m, p] = G[m, n] * V[n, p]
        """,
    "attention": """
        in Q: f32[P, E], K: f32[M, E], V: f32[M, F]
        out AV: f32[P, F]
        QK[p, m] = Q[p, e] * K[m, e] / sqrt(E)
        GM[p]    = QK[p, m]                     :: max(m)
        SN[p, m] = exp(QK[p, m] - GM[p])
        SD[p]    = SN[p, m]
        AV[p, f] = SN[p, m] / SD[p] * V[m, f]
        """,
    "causal attention of heads": """
        in Q: f32[H, P, E], K: f32[H, M, E], V: f32[H, M, F]
        out AV: f32[H, P, F]
        QK[h, p, m] = Q[h, p, e] * K[h, m, e] / sqrt(E)  where m <= p
        GM[h, p]    = QK[h, p, m]                        :: max(m)
        SN[h, p, m] = exp(QK[h, p, m] - GM[h, p])
        SD[h, p]    = SN[h, p, m]
        AV[h, p, f] = SN[h, p, m] / SD[h, p] * V[h, m, f]
        """,
    "attention in f64, transposed": """
        in Q: f64[E, P], K: f64[E, M], V: f64[F, M]
        out AV: f64[F, P]
        QK[m, p] = Q[e, p] * K[e, m]
        GM[p]    = QK[m, p]            :: max(m)
        SN[m, p] = exp(QK[m, p] - GM[p])
        SD[p]    = SN[m, p]
        AV[f, p] = SN[m, p] / SD[p] * V[f, m]
        """,
    "norm over columns": """
        in X: f32[M, N]
        out Y: f32[M, N]
        S[n]    = X[m, n] * X[m, n] / M
        Y[m, n] = X[m, n] * rsqrt(S[n] + 1e-6)
        """,
    "reductions of integers": """
        in X: i64[M, N]
        out S: i64, L: i64[M], B: i64[N], E: bool[M]
        S    = X[m, n]
        L[m] = X[m, n]      :: max(n)
        B[n] = X[m, n]      :: xor(m)
        E[m] = X[m, n] == 3 :: any(n)
        """,
}
POINTS = 1_200_000  # of one definition


def mixed_sizes(c: Cascade, count: int, seed: int) -> list[dict[str, int]]:
    """Combinations of sizes in which every size occurs for every rank, within the limit of points."""
    ranks = [r.name for r in c.ranks if r.size is None]
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        columns = {r: rng.permutation(SIZES) for r in ranks}
        for n in range(len(SIZES)):
            sizes = {r: int(columns[r][n]) for r in ranks}
            while np.prod([sizes[r] for r in ranks], dtype=float) > POINTS:
                largest = max(ranks, key=lambda r: sizes[r])
                sizes[largest] = int(rng.choice([s for s in SIZES if s < sizes[largest]]))
            found.append(sizes)
    return found[:count]


@pytest.mark.parametrize("name", SHAPED)
def test_c_is_the_interpreter_for_sizes_around_every_tile(name: str) -> None:
    c = parse_cascade(SHAPED[name])
    program = built(c)
    for n, sizes in enumerate(mixed_sizes(c, 18, len(name))):
        rng = np.random.default_rng(n)
        inputs = {k: fenced(v) for k, v in random_inputs(c, sizes, rng).items()}
        for count in (1, 2):
            with threads(count):
                assert_matches(c, run(program, c, inputs, sizes), inputs, sizes)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_number_of_threads_may_change_between_calls(
    count: int, rng: np.random.Generator
) -> None:
    """Also beyond the number that the program was bound with: each thread has scratch of its own."""
    program = tcc.compile(SHAPED["matmul with bias, residual and norm"])
    c = parse_cascade(SHAPED["matmul with bias, residual and norm"])
    inputs = random_inputs(c, {"M": 300, "K": 40, "N": 70}, rng)
    want = program(**inputs)
    with threads(count):
        for _ in range(5):
            np.testing.assert_array_equal(program(**inputs), want)


def test_whole_numbers_may_be_made_of_floats_that_are_made_of_whole_numbers() -> None:
    """Such as the rows between which an image is interpolated: no vector loop mixes them."""
    c = parse_cascade(
        "ranks I=74\nout L: i64[I]\nL[i] = min(i64(max((f32(i) + 0.5) * 0.5 - 0.5, 0.0)) + 1, 36)"
    )
    np.testing.assert_array_equal(run(built(c), c, {})["L"], interpret(c, {})["L"])


def test_ranks_of_size_zero_make_empty_or_neutral_results(rng: np.random.Generator) -> None:
    for name in ("matmul", "matmul of batches", "mlp", "reductions of integers"):
        c = parse_cascade(SHAPED[name])
        program = built(c)
        ranks = [r.name for r in c.ranks]
        for empty in ranks:
            sizes = {r: 0 if r == empty else 3 for r in ranks}
            inputs = random_inputs(c, sizes, rng)
            if name != "reductions of integers":  # a maximum of nothing has no value among integers
                assert_matches(c, run(program, c, inputs, sizes), inputs, sizes)
            got = tcc.compile(SHAPED[name])(**inputs)
            want = interpret(c, inputs)
            for a, t in zip(got if len(c.outputs) > 1 else [got], c.outputs, strict=True):
                np.testing.assert_array_equal(a, want[t.name])


# ---- what has no value of its own


@pytest.mark.parametrize(
    "text",
    [
        "in X: f32[I]\nout Y: f32[I] fill 3\nY[i] = X[i] where i % 3 == 1",
        "in X: f32[I]\nout Y: f32[2 * I] fill -1\nY[2 * i] = X[i]",
        "in X: f32[I]\nout Y: f32[I + 5]\nY[i + 2] = X[i] * 2",
        "in X: i32[I, J]\nout Y: i32[I, J] fill 7\nY[i, j] = X[i, j] where j > i",
        "in X: f32[I], M: bool[I]\nout Y: f32[I] fill 9\nY[i] = X[i] where M[i]",
        "in X: f32[I, J]\nout Y: f32[I] fill 5\nY[i] = X[i, j] :: max(j) where i > 2, j != i",
        "in X: f32[I]\nout Y: f32[I, 3] fill 2\nY[i, 1] = X[i]",
        "in X: f32[I]\nout Y: f32[I + 1] fill 4\nY[i] = X[i]",
        "in X: f32[I]\nout Y: f32[I, I] fill 4\nY[i, i] = X[i]",
    ],
)
def test_gaps_of_an_output_hold_its_fill(text: str, rng: np.random.Generator) -> None:
    c = parse_cascade(text)
    for size in (1, 2, 9, 40):
        sizes = {r.name: size for r in c.ranks if r.size is None}
        inputs = random_inputs(c, sizes, rng)
        assert_matches(c, run(built(c), c, inputs, sizes), inputs, sizes)


# ---- recurrences

COUNTING = """
ranks T
in X: i64[T], Limit: i64
out Last: i64, Steps: i64, All: i64[T + 1]
S[0] = i64(0)
S[t + 1] = S[t] + X[t]
stop t when S[t + 1] >= Limit
Last = S[T]
Steps = i64(S[t + 1] < Limit)
All[t] = S[t]
"""
ROWS = """
ranks I, J=I, T
in A: f64[I, J], B: f64[I]
out X: f64[I], C: f64[T]
D[i]        = abs(A[i, j])                  where j != i
S[0, i]     = 0.0
AS[t, i]    = A[i, j] * S[t, j]             where j != i
S[t + 1, i] = (B[i] - AS[t, i]) / (D[i] + 1.0)
C[t]        = abs(S[t + 1, i] - S[t, i])    :: max(i)
stop t when C[t] < 1e-4
X[i] = S[T, i]
"""
SCAN = """
in X: f32[T, J]
out Y: f32[T, J], Z: f32[J]
S[0, j] = X[0, j]
S[t + 1, j] = max(0.5 * S[t, j], X[t, j]) where t + j > 3
Y[t, j] = S[t + 1, j]
Z[j] = S[T, j]
"""


@pytest.mark.parametrize("limit", [-1, 0, 1, 5, 30, 10**9])
@pytest.mark.parametrize("size", [1, 2, 3, 37])
def test_a_state_is_held_once_its_recurrence_has_stopped(
    limit: int, size: int, rng: np.random.Generator
) -> None:
    c = parse_cascade(COUNTING)
    inputs = {"X": rng.integers(0, 5, size), "Limit": np.array(limit)}
    assert_matches(c, run(built(c), c, inputs), inputs)


@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_iterations_over_vectors_stop_where_the_interpreter_does(
    steps: int, rng: np.random.Generator
) -> None:
    c = parse_cascade(ROWS)
    for size in (1, 3, 37):
        sizes = {"I": size, "J": size, "T": steps}
        inputs = random_inputs(c, sizes, rng)
        assert_matches(c, run(built(c), c, inputs, {"T": steps}), inputs, {"T": steps})


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (37, 3), (64, 129)])
def test_states_may_be_partial(size: tuple[int, int], rng: np.random.Generator) -> None:
    c = parse_cascade(SCAN)
    inputs = {"X": rng.standard_normal(size).astype(np.float32)}
    assert_matches(c, run(built(c), c, inputs), inputs)
