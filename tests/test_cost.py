"""The cost of a mapping: accesses equal the interpreter's, traffic and bounds follow from footprints."""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import generate

from tcc.ir.cascade_text import parse_cascade
from tcc.ir.cost import Cost, cost
from tcc.ir.cost.cpu import tile_seconds
from tcc.ir.cost.reuse import distinct
from tcc.ir.cost.tiles import bounds, sites
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import F32
from tcc.ir.mapping import Kernel, Loop, Mapping, walk_nodes
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping
from tcc.ir.target import Target
from tcc.pipeline import names_for, passes, run
from tcc.samples import every_size, random_inputs
from tcc.targets import find

MATMUL = "in A: f32[M,K], B: f32[K,N]\nout C: f32[M,N]\nC[m,n] = A[m,k] * B[k,n]"
ATTENTION = """
in Q: f32[P,E], K: f32[M,E], V: f32[M,F]
out AV: f32[P,F]
QK[p,m] = Q[p,e] * K[m,e] / sqrt(E) WHERE
GM[p]   = QK[p,m] :: max(m)
SN[p,m] = exp(QK[p,m] - GM[p])
SD[p]   = SN[p,m]
A[p,m]  = SN[p,m] / SD[p]
AV[p,f] = A[p,m] * V[m,f]
"""
PROGRAMS = {
    "matmul": MATMUL,
    "attention": ATTENTION.replace("WHERE", ""),
    "causal": ATTENTION.replace("WHERE", "where m <= p"),
    "window": ATTENTION.replace("WHERE", "where m <= p, p - m < 9"),
    "softmax": """
        in X: f32[M,N]
        out Y: f32[M,N]
        T[m] = X[m,n] :: max(n)
        E[m,n] = exp(X[m,n] - T[m])
        S[m] = E[m,n]
        Y[m,n] = E[m,n] / S[m]""",
    "padded convolution": """
        ranks R=3
        in X: f32[C,N], W: f32[D,C,R]
        out Y: f32[D,N]
        Y[d,n] = X[c, n + r - 1] * W[d,c,r]""",
    "strided": "ranks R=3\nin X: f32[2*N+R-2], W: f32[R]\nout Y: f32[N]\nY[n] = X[2*n+r] * W[r]",
    "neighbours": "in A: f32[M]\nout B: f32[M]\nB[m] = A[m-1] + A[m] * A[m+2]",
    "gram": "ranks N=M\nin A: f32[M,K]\nout G: f32[M,N]\nG[m,n] = A[m,k] * A[n,k]",
    "diagonal": "in A: f32[M,M]\nout d: f32[M]\nd[m] = A[m,m] + A[m, M-1-m]",
    "flattened": "ranks V=M*N\nin X: f32[M,N]\nout Y: f32[V]\nY[v] = X[v // N, v % N]",
}
SMALL = {
    "tile_rows": 3, "tile_vectors": 1, "block_rows": 7, "block_columns": 16, "block_depth": 5,
    "stream_rows": 16, "stream_tile": 12, "stream_row": 20, "tile_columns": 16, "tile_depth": 16,
    "whole_extent": 8, "row_elements": 8, "walk_elements": 16,
}  # fmt: skip


def mapped(text: str, target: Target) -> Mapping:
    m = run(parse_cascade(text), target, passes(names_for(target))).mapping
    assert m is not None
    return m


def check(
    m: Mapping, target: Target, inputs: MappingABC[str, np.ndarray], sizes: dict[str, int]
) -> Cost:
    """Asserts that reads, writes and points are the interpreter's, but where data decides."""
    _, counts = interpret_mapping(m, inputs, sizes)
    c = cost(m, target, sizes)
    guessed = {t for k in c.kernels for t, how in k.how.items() if how == "estimated"}
    for name, wanted in (("reads", counts.reads), ("writes", counts.writes)):
        found: dict[tuple[str, str], int] = {}
        for k in c.kernels:
            for key, n in getattr(k, name).items():
                found[key] = found.get(key, 0) + n
        exact = {key for key in (*found, *wanted) if key[1] not in guessed}
        assert {k: found.get(k, 0) for k in exact} == {k: wanted.get(k, 0) for k in exact}, str(m)
        for key in {*found, *wanted} - exact:
            assert found.get(key, 0) >= wanted.get(key, 0)
    points: dict[str, int] = {}
    for k in c.kernels:
        for t, n in k.points.items():
            points[t] = points.get(t, 0) + n
    assert {t: n for t, n in points.items() if n} == {t: n for t, n in counts.points.items() if n}
    return c


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", ["cpu", "h100"])
@pytest.mark.parametrize("small", [False, True])
def test_accesses_are_those_of_the_interpreter(name: str, kind: str, small: bool) -> None:
    target = find(kind)
    if small:
        target = replace(target, parameters={**target.parameters, **SMALL})
    c = parse_cascade(PROGRAMS[name])
    sizes = {r.name: n for r, n in zip([r for r in c.ranks if r.size is None], (37, 21, 19, 5))}
    m = mapped(PROGRAMS[name], target)
    inputs = random_inputs(c, sizes, np.random.default_rng(0))
    found = check(m, target, inputs, sizes)
    assert all(how != "estimated" for k in found.kernels for how in k.how.values())


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["cpu", "h100"]), st.booleans())
def test_accesses_of_any_program_are_those_of_the_interpreter(
    seed: int, kind: str, small: bool
) -> None:
    program = generate(seed, without=("stop",), points=300)
    target = find(kind)
    if small:
        target = replace(target, parameters={**target.parameters, **SMALL})
    try:
        m = mapped(str(program.cascade), target)
    except CompileError as error:
        if not error.diagnostic.code.startswith("T02"):
            raise
        return
    sizes = {r.name: program.sizes[r.name] for r in m.ranks if r.size is None}
    check(m, target, program.inputs, sizes)


TRIANGLE = """
mapping triangle for cpu
ranks P, M
in  A: f32[P, M]
out Z: f32[P]

kernel k over p: P, m: M {
  for p by 8 on core {
    for p by 1 {
      do Z[p] = 0.0
    }
    for m by 4 when m.low < p.high {
      for p by 3 {
        update Z[p] = A[p, m] where m <= p
        for m by 2 when m.high <= p.low + 2 and p.low % 2 == 0 {
          update Z[p] = A[p, m] * A[p, 0]
        }
      }
    }
  }
}
"""


@pytest.mark.parametrize("p", [1, 8, 9, 23, 40])
@pytest.mark.parametrize("m", [1, 4, 7, 30])
def test_conditions_of_loops_are_counted_exactly(p: int, m: int) -> None:
    mapping = parse_mapping(TRIANGLE)
    inputs = {"A": np.ones((p, m), "float32")}
    found = check(mapping, find("cpu"), inputs, {"P": p, "M": m})
    assert found.kernels[0].points


@settings(max_examples=100)
@given(st.integers(0, 60), st.lists(st.integers(1, 20), max_size=3))
def test_ends_of_tiles_are_those_of_nested_loops(extent: int, steps: list[int]) -> None:
    wanted = [(0, extent)]
    for step in steps:
        wanted = [
            (at, min(at + step, high)) for low, high in wanted for at in range(low, high, step)
        ]
    low, high = bounds(extent, steps)
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == wanted


def test_an_index_that_is_read_is_an_upper_bound_and_says_so() -> None:
    m = mapped("in A: f32[N,K], i: i32[M]\nout B: f32[M,K]\nB[m,k] = A[i[m],k]", find("cpu"))
    found = cost(m, find("cpu"), {"N": 50, "K": 8, "M": 30})
    assert found.kernels[0].how == {"A": "estimated"}
    assert found.kernels[0].reads["memory", "A"] <= 30 * 8


def test_too_many_tiles_count_as_all_and_say_so() -> None:
    k = parse_mapping(TRIANGLE).kernels[0]
    assert isinstance(k, Kernel)
    sizes = {"P": 40, "M": 30}
    exact, most = sites(k, sizes)[1], sites(k, sizes, cells=3)[1]
    assert exact.runs() < most.runs()
    reads = exact.facts.reads
    assert distinct(exact, reads, (40, 30), sizes)[1] == "closed"
    assert distinct(most, reads, (40, 30), sizes)[1] == "estimated"


# ---- time


def test_what_fits_a_cache_is_not_moved_again() -> None:
    target = find("cpu")
    m = mapped(MATMUL, target)
    small = cost(m, target, {"M": 32, "N": 32, "K": 32})
    assert all("memory" not in k.moved and "L3" not in k.moved for k in small.kernels)
    large = cost(m, target, {"M": 2048, "N": 2048, "K": 2048})
    compulsory = 3 * 4 * 2048**2
    (product,) = [k for k in large.kernels if not k.name.startswith("pack")]
    assert product.moved["memory"] >= compulsory
    assert product.moved["L2"] > product.moved["memory"]


def test_short_runs_from_memory_take_longer_unless_some_are_read_side_by_side() -> None:
    """Columns of 32 from top to bottom; of 8 rows in turn; of as many rows as no prefetcher follows; whole rows."""

    def seconds(text: str) -> float:
        loops = [f"for {x.replace(':', ' by ')} {{\n" for x in text.split()]
        body = "".join(loops) + "do S[m] = X[m, n] with n on lane\n" + "}\n" * len(loops)
        head = "mapping f for cpu\nranks M=8192, N=8192\nin X: f32[M, N]\nout S: f32[M]\n"
        m = parse_mapping(f"{head}kernel k over m: 8192, n: 8192 {{\n{body}}}\n")
        return cost(m, target, {}, cores=1).kernels[0].seconds

    target = replace(find("cpu"), runs={64: 2.0, 1024: 8.0})
    slow, beside, many, whole = (
        seconds(t) for t in ("n:32 m:1", "n:1024 m:8 n:32 m:1", "n:512 m:64 n:32 m:1", "m:1 n:8192")
    )
    at_once = 4 * 8192**2 / 20e9
    assert slow == pytest.approx(4 * 8192**2 / 3.5e9, rel=0.02)
    assert many == pytest.approx(slow, rel=0.02)
    assert beside < 0.6 * slow and whole == pytest.approx(at_once, rel=0.02)


def test_a_condition_leaves_traffic_and_work_out() -> None:
    target = find("cpu")
    sizes = {"P": 2048, "M": 2048, "E": 64, "F": 64}
    full = cost(mapped(PROGRAMS["attention"], target), target, sizes)
    causal = cost(mapped(PROGRAMS["causal"], target), target, sizes)
    assert 0.4 < causal.kernels[0].flops / full.kernels[0].flops < 0.7
    assert causal.seconds < 0.8 * full.seconds
    assert sum(causal.kernels[0].moved.values()) < sum(full.kernels[0].moved.values())


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("n", [40, 500])
def test_no_prediction_is_below_the_bound(name: str, n: int) -> None:
    target = find("cpu")
    m = mapped(PROGRAMS[name], target)
    sizes = {r.name: n for r in m.ranks if r.size is None}
    found = cost(m, target, sizes)
    assert found.lower_s <= found.seconds * 1.001
    assert all(k.lower_s <= k.seconds * 1.001 for k in found.kernels), found.kernels


def test_the_bound_of_a_product_is_compulsory_traffic_or_peak() -> None:
    target = find("cpu")
    m = mapped(MATMUL, target)
    square = cost(m, target, {"M": 1024, "N": 1024, "K": 1024})
    assert square.lower_s == pytest.approx(1024**3 / (target.rate("mul_add", "f32") * 1e9))
    thin = cost(m, target, {"M": 1, "N": 8192, "K": 8192})
    assert thin.lower_s == pytest.approx(4 * (8192**2 + 2 * 8192) / 20e9)
    assert thin.lower_by.startswith("memory")


def test_cores_share_tasks_and_levels() -> None:
    target = find("cpu")
    m = mapped(MATMUL, target)
    sizes = {"M": 1024, "N": 1024, "K": 512}
    one, two = cost(m, target, sizes), cost(m, target, sizes, cores=2)
    assert 0.45 < two.seconds / one.seconds < 0.7
    single = cost(m, target, {"M": 16, "N": 16, "K": 4096}, cores=2)
    assert single.kernels[-1].cores == 1  # one task of rows and columns


def test_measured_tiles_are_taken_at_their_rates() -> None:
    from tcc.ir.target import Tile

    tiles = [Tile("f32", 6, 2, 8, d, "L1", 2 * 96 * d / (d * 2 + 10)) for d in (32, 128, 512)]
    target = replace(find("cpu"), tiles=tuple(tiles))
    step, run_ = tile_seconds(target, F32, 6, 16)
    assert step == pytest.approx(2e-9) and run_ == pytest.approx(10e-9, rel=0.3)


def test_prepare_kernels_count_once_and_memory_is_planned() -> None:
    text = "in X: f32[M,K], W: f32[K,N]\nout Y: f32[M,N]\nY[m,n] = X[m,k] * W[k,n]"
    c = parse_cascade(text)
    c = replace(c, inputs=tuple(replace(t, constant=t.name == "W") for t in c.inputs))
    target = find("cpu")
    m = run(c, target, passes(names_for(target))).mapping
    assert m is not None
    found = cost(m, target, {"M": 64, "N": 64, "K": 64})
    assert found.launches == 1 and found.prepare_s > 0
    assert found.peak_bytes >= 4 * 64 * 64 * 4
    without = cost(m, target, {"M": 64, "N": 64, "K": 64}, full=False)
    assert without.seconds == found.seconds and not without.kernels[0].reads


def test_one_function_for_all_kinds_of_targets() -> None:
    from tcc.backends.spatial import build

    sizes = {"M": 100, "N": 60, "K": 50}
    array = find("array-16x16")
    m = mapped(MATMUL, array)
    found, report = cost(m, array, sizes), build(m, array, sizes)
    assert found.seconds == pytest.approx(report.seconds)
    assert found.energy_pj == pytest.approx(report.energy_pj)
    assert found.kernels[0].reads == report.reads
    gpu = find("h100")
    found = cost(mapped(MATMUL, gpu), gpu, {"M": 4096, "N": 4096, "K": 4096})
    assert found.seconds >= found.kernels[0].moved["memory"] / 3350e9
    assert found.kernels[0].tasks == 64 * 64


def test_sizes_are_checked() -> None:
    target = find("cpu")
    m = mapped(MATMUL, target)
    for given_, code in (({"M": 1}, "T0126"), ({"M": 1, "N": 1, "K": 1, "Q": 2}, "T0126")):
        with pytest.raises(CompileError) as caught:
            cost(m, target, given_)
        assert caught.value.diagnostic.code == code
    assert every_size(parse_cascade(MATMUL), {"M": 1, "N": 2, "K": 3})["K"] == 3
    assert any(
        isinstance(n, Loop) for k in m.kernels if isinstance(k, Kernel) for n in walk_nodes(k.body)
    )
