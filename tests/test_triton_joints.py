"""Joint reductions and contractions on a grid of blocks: one walk, full and partial tiles, and what is
left out stays out.
"""

from __future__ import annotations

import importlib
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_triton import check, inputs_of

from tcc.ir.cascade_text import parse_cascade
from tcc.ir.expr import Call, Const, Expr, Size, Var, call, text, transform
from tcc.ir.interpret import interpret
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping, print_mapping
from tcc.ir.ops import OPS
from tcc.ir.target import Target
from tcc.ir.target_text import parse_target
from tcc.passes._gpu_joint import parts_of
from tcc.passes._map_gpu import map_gpu

pytest.importorskip("triton")
pytest.importorskip("torch")

triton_backend = importlib.import_module("tcc.backends.triton")
ROOT = Path(__file__).resolve().parent.parent

ATTENTION = """cascade attention
ranks P, M, E={e}, F={f}
in Q: f32[H,P,E], K: f32[H,M,E], V: f32[H,M,F]{more}
out AV: f32[H,P,F]
QK[h,m,p] = Q[h,p,e] * K[h,m,e] / sqrt(E) {where}
GM[h,p]   = QK[h,m,p] :: max(m) {where}
SN[h,m,p] = exp(QK[h,m,p] - GM[h,p]) {where}
SD[h,p]   = SN[h,m,p] {where}
AV_sum[h,p,f] = SN[h,m,p] * V[h,m,f] {where}
AV[h,p,f] = AV_sum[h,p,f] / SD[h,p]
joint m: GM, SD by SD * exp(GM - GM'), AV_sum by AV_sum * exp(GM - GM')
kernel attention: QK, GM, SN, SD, AV_sum, AV
"""
SOFT_CAP = """cascade soft_cap
ranks P, M, E=64, F=64
in Q: f32[P,E], K: f32[M,E], V: f32[M,F]
out AV: f32[P,F]
S[m,p]    = Q[p,e] * K[m,e]
QK[m,p]   = 30.0 * tanh(S[m,p] / 30.0) where m <= p
GM[p]     = QK[m,p] :: max(m) where m <= p
SD[p]     = exp(QK[m,p] - GM[p]) where m <= p
AV_sum[p,f] = exp(QK[m,p] - GM[p]) * V[m,f] where m <= p
AV[p,f]   = AV_sum[p,f] / SD[p]
joint m: GM, SD by SD * exp(GM - GM'), AV_sum by AV_sum * exp(GM - GM')
kernel soft_cap: S, QK, GM, SD, AV_sum, AV
"""
GROUPED = """cascade grouped
ranks P, M, E=64, F=64, G=2
in Q: f32[H,G,P,E], K: f32[H,M,E], V: f32[H,M,F]
out AV: f32[H,G,P,F]
QK[h,g,m,p] = Q[h,g,p,e] * K[h,m,e]
GM[h,g,p]   = QK[h,g,m,p] :: max(m)
SN[h,g,m,p] = exp(QK[h,g,m,p] - GM[h,g,p])
SD[h,g,p]   = SN[h,g,m,p]
AV_sum[h,g,p,f] = SN[h,g,m,p] * V[h,m,f]
AV[h,g,p,f] = AV_sum[h,g,p,f] / SD[h,g,p]
joint m: GM, SD by SD * exp(GM - GM'), AV_sum by AV_sum * exp(GM - GM')
kernel grouped: QK, GM, SN, SD, AV_sum, AV
"""
LOG_SUM_EXP = """cascade log_sum_exp
ranks R, C
in X: f32[R,C]
out L: f32[R], G: f32[R]
G[r] = X[r,c] :: max(c)
S[r] = exp(X[r,c] - G[r])
L[r] = G[r] + log(S[r])
joint c: G, S by S * exp(G - G')
kernel log_sum_exp: G, S, L
"""
CROSS_ENTROPY = """cascade cross_entropy
ranks R, C
in X: f32[R,C], T: i64[R]
out L: f32[R]
G[r]    = X[r,c] :: max(c)
S[r]    = exp(X[r,c] - G[r])
Pick[r] = select(T[r] == c, X[r,c], 0.0)
L[r]    = G[r] + log(S[r]) - Pick[r]
joint c: G, S by S * exp(G - G'), Pick
kernel cross_entropy: G, S, Pick, L
"""
SOFTMAX = """cascade softmax
ranks R, C
in X: f32[R,C]
out Y: f32[R,C]
G[r]   = X[r,c] :: max(c)
E[r,c] = exp(X[r,c] - G[r])
S[r]   = E[r,c]
Y[r,c] = E[r,c] / S[r]
joint c: G, S by S * exp(G - G')
kernel softmax: G, E, S, Y
"""
VARIANCE = """cascade variance
ranks R, C
in X: f32[R,C]
out V: f32[R]
N[r] = f32(1) + 0.0 * f32(c)
A[r] = X[r,c]
U[r] = A[r] / max(N[r], 1.0)
B[r] = (X[r,c] - U[r]) ** 2
V[r] = B[r] / C
joint c: N, A, B by B + 2.0 * {moved} * (A - N * {mean}) + N * {moved} ** 2
kernel variance: N, A, U, B, V
""".format(moved="(A / max(N, 1.0) - A' / max(N', 1.0))", mean="(A / max(N, 1.0))")
FIRST_LARGEST = """cascade first_largest
ranks R, C
in X: f32[R,C]
out I: i64[R]
G[r] = X[r,c] :: max(c)
I[r] = c :: min(c) where X[r,c] == G[r]
joint c: G, I by select(G == G', I, 9223372036854775807)
kernel first_largest: G, I
"""
CAUSAL = "where m <= p"


def attention(where: str = "", e: int = 64, f: int = 64, more: str = "") -> str:
    return ATTENTION.format(where=where, e=e, f=f, more=more)


PROGRAMS = {
    "full": attention(),
    "causal": attention(CAUSAL),
    "strictly causal": attention("where m < p", 7, 37),
    "narrow window": attention("where m <= p, m > p - 20", 16, 129),
    "wide window": attention("where m <= p, m > p - 200"),
    "prefix": attention("where m <= p or m < 70"),
    "last rows": attention("where m <= p + (M - P)"),
    "mask": attention("where Keep[h,m,p] > 0.0, m <= p", more=", Keep: f32[H,M,P]"),
    "many columns": attention(CAUSAL, f=300),
    "many columns and sums": attention(CAUSAL, f=300).replace("F]\nQK", "F], SD: f32[H,P]\nQK"),
    "soft cap": SOFT_CAP,
    "grouped heads": GROUPED,
    "log-sum-exp": LOG_SUM_EXP,
    "cross entropy": CROSS_ENTROPY,
    "softmax": SOFTMAX,
    "variance": VARIANCE,
    "first largest": FIRST_LARGEST,
}
SIZES = [
    {"M": 1, "P": 7, "H": 2, "R": 7, "C": 1},
    {"M": 64, "P": 1, "H": 1, "R": 1, "C": 2064},
    {"M": 300, "P": 290, "H": 1, "R": 5, "C": 1027},
]


@pytest.fixture(scope="module")
def h100() -> Target:
    return parse_target((ROOT / "backends/targets/h100.yaml").read_text(), "h100")


def sizes_of(program: str) -> list[dict[str, int]]:
    names = {r.name for r in parse_cascade(program).ranks}
    return [{k: v for k, v in s.items() if k in names} for s in SIZES]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_walk_of_a_joint_means_what_its_cascade_means(name: str, h100: Target) -> None:
    c = parse_cascade(PROGRAMS[name])
    m = map_gpu(c, h100)
    assert print_mapping(parse_mapping(print_mapping(m))) == print_mapping(m)
    for sizes in sizes_of(PROGRAMS[name])[::2]:
        inputs = inputs_of(c, sizes)
        check(c, inputs, interpret_mapping(m, inputs)[0])


def test_kernels_of_joints_compute_what_their_cascades_mean(h100: Target) -> None:
    jobs, wanted = [], []
    for program in PROGRAMS.values():
        c = parse_cascade(program)
        built = triton_backend.build(map_gpu(c, h100), h100)
        for sizes in sizes_of(program):
            inputs = inputs_of(c, sizes)
            jobs.append(built.job(inputs))
            wanted.append((c, inputs))
    for (c, inputs), outputs in zip(wanted, triton_backend.interpret_all(jobs), strict=True):
        check(c, inputs, dict(zip([t.name for t in c.outputs], outputs, strict=True)))


def test_rows_of_minus_infinity_are_compared_as_they_are(h100: Target) -> None:
    """The value so far counts as 0 in arithmetic, but not where it is compared."""
    target = replace(h100, parameters={**h100.parameters, "walk_elements": 16, "row_elements": 16})
    x = np.full((3, 40), -np.inf, np.float32)
    x[1, 33] = 0
    c = parse_cascade(FIRST_LARGEST)
    m = map_gpu(c, target)
    assert interpret_mapping(m, {"X": x})[0]["I"].tolist() == [0, 33, 0]
    assert triton_backend.build(m, target).run({"X": x})["I"].tolist() == [0, 33, 0]
    c = parse_cascade(LOG_SUM_EXP)
    for found in (
        interpret_mapping(map_gpu(c, target), {"X": x})[0],
        triton_backend.build(map_gpu(c, target), target).run({"X": x}),
    ):
        np.testing.assert_array_equal(found["L"], [-np.inf, 0, -np.inf])


def loops(source: str) -> list[str]:
    return re.findall(r"^ *for (\w+ in range.*):$", source.split("_kernel(")[1], re.MULTILINE)


def test_attention_is_one_walk_without_masks_and_one_for_the_rest(h100: Target) -> None:
    source = triton_backend.emit(map_gpu(parse_cascade(attention(CAUSAL)), h100), h100)
    assert loops(source) == [
        "m_start in range(0, m_full, BLOCK_M)",
        "m_start in range(m_full, tl.minimum(M, p_stop), BLOCK_M)",
    ]
    assert "m_full = tl.minimum(M, p_start + 1) // BLOCK_M * BLOCK_M" in source
    first = source[source.index("in range(0, m_full") : source.index("in range(m_full")]
    assert "mask" not in first
    assert first.count("tl.dot(") == 2
    assert "AV_sum = tl.dot(SN, V, AV_sum, " in first


def test_tiles_without_points_are_no_loop_of_their_own(h100: Target) -> None:
    narrow = print_mapping(map_gpu(parse_cascade(PROGRAMS["narrow window"]), h100))
    assert narrow.count("for m by") == 1
    wide = triton_backend.emit(map_gpu(parse_cascade(PROGRAMS["wide window"]), h100), h100)
    assert len(loops(wide)) == 2
    assert "m_start = m_at + tl.where(m_at >= m_full, m_skip, 0)" in wide


def test_even_tiles_need_one_loop(h100: Target) -> None:
    fixed = attention().replace("ranks P, M,", "ranks P, M=256,")
    assert loops(triton_backend.emit(map_gpu(parse_cascade(fixed), h100), h100)) == [
        "m_start in range(0, 256, BLOCK_M)"
    ]


def test_columns_of_a_state_that_registers_can_not_hold_go_to_other_blocks(h100: Target) -> None:
    for program in (PROGRAMS["many columns"], attention(CAUSAL).replace(", E=64, F=64", ", E=64")):
        shown = print_mapping(map_gpu(parse_cascade(program), h100))
        assert "for f by 64 on block" in shown
        assert shown.count("update AV_sum") == shown.count("for m by 64") == 2


def test_a_joint_whose_state_is_too_large_keeps_what_fits(h100: Target) -> None:
    """The sums leave the kernel, so no other block may compute them again."""
    shown = print_mapping(map_gpu(parse_cascade(PROGRAMS["many columns and sums"]), h100))
    assert "update SD" in shown
    assert "for f by 64 {" in shown


# ---- which tiles

M, P, STEP = Size("M"), Size("P"), 8
m, p = Var("m"), Var("p")
PREDICATES: list[list[Expr]] = [
    [],
    [call("le", m, p)],
    [call("lt", m, p)],
    [call("ge", m, p)],
    [call("le", m, p), call("gt", m, call("sub", p, Const(3)))],
    [call("le", m, p), call("gt", m, call("sub", p, Const(20)))],
    [call("lt", m, Const(13))],
    [call("ne", m, p)],
    [call("or", call("le", m, p), call("lt", m, Const(10)))],
    [call("le", m, call("floordiv", p, Const(2)))],
    [call("le", m, call("add", p, call("sub", M, P)))],
]


def value(e: Expr, known: dict[str, int]) -> bool:
    def rule(n: Expr) -> Expr:
        if isinstance(n, Var | Size):
            return Const(known[n.name if isinstance(n, Var) else n.rank])
        if isinstance(n, Call):
            args = [a.value for a in n.args if isinstance(a, Const)]
            return Const(OPS[n.op].evaluate(*map(np.asarray, args)).item())
        return n

    found = transform(e, rule)
    assert isinstance(found, Const)
    return bool(found.value)


@pytest.mark.parametrize("predicates", PREDICATES, ids=lambda ps: ", ".join(map(text, ps)))
def test_every_tile_with_a_point_is_visited_once(predicates: list[Expr]) -> None:
    for even, (size, rows) in itertools.product((False, True), ((40, 37), (37, 40), (5, 3))):
        if even and size % STEP:
            continue
        parts = parts_of(predicates, "m", STEP, {"m": M, "p": P}, even)
        for low, p_low in itertools.product(range(0, size, STEP), range(0, rows, 4)):
            high, p_high = min(low + STEP, size), min(p_low + 4, rows)
            ends = {"m.low": low, "m.high": high, "p.low": p_low, "p.high": p_high}
            known = {"M": size, "P": rows, **ends}
            visits = [c for when, c in parts if when is None or value(when, known)]
            box = itertools.product(range(low, high), range(p_low, p_high))
            points = [{**known, "m": x, "p": y} for x, y in box]
            held = [[value(q, at) for q in predicates] for at in points]
            assert len(visits) <= 1
            assert visits or not any(map(all, held))
            for n, q in enumerate(predicates):
                assert not visits or text(q) not in visits[0] or all(h[n] for h in held)


def test_ranges_in_triton_are_the_conditions_of_the_mapping(h100: Target) -> None:
    target = replace(h100, parameters={**h100.parameters, "walk_elements": 16})
    jobs, wanted = [], []
    for where in (
        "m <= p",
        "m > p",
        "m <= p, m > p - 3",
        "m <= p, m > p - 40",
        "m < p + 5, m >= p - 70, m < 90",
        "m <= p or m < 20",
        "m != p",
        "m <= 2 * p",
    ):
        c = parse_cascade(
            f"in X: f32[P,M]\nout Y: f32[P], N: i64[P]\nY[p] = X[p,m] where {where}\n"
            f"N[p] = i64(1) + 0 * m where {where}\nkernel k: Y, N\n"
        )
        built = triton_backend.build(map_gpu(c, target), target)
        for sizes in ({"M": 100, "P": 90}, {"M": 64, "P": 150}):
            inputs = inputs_of(c, sizes)
            jobs.append(built.job(inputs))
            wanted.append((c, inputs))
    for (c, inputs), outputs in zip(wanted, triton_backend.interpret_all(jobs), strict=True):
        check(c, inputs, dict(zip([t.name for t in c.outputs], outputs, strict=True)))


# ---- what is left out stays out

TRIANGLES = """cascade triangles
in A: f32[M,K], B: f32[K,N]
out W: f32[M,N], X: f32[M,N], Y: f32[M,N], Z: f32[M,N]
W[m,n] = A[m,k] * B[k,n] where k <= m
X[m,n] = A[m,k] * B[k,n] where k <= n
Y[m,n] = A[m,k] * B[k,n] where k <= n, k <= m
Z[m,n] = A[m,k] * B[k,n] where k >= 5
"""


def test_excluded_points_never_leak(h100: Target) -> None:
    """NaN and infinities in one factor count only where the point exists."""
    jobs, wanted = [], []
    for program in (attention(CAUSAL), PROGRAMS["mask"], PROGRAMS["prefix"], TRIANGLES):
        c = parse_cascade(program)
        names = {r.name for r in c.ranks}
        sizes = {"M": 150, "P": 150, "H": 1, "K": 70, "N": 90}
        inputs = inputs_of(c, {k: v for k, v in sizes.items() if k in names})
        rng = np.random.default_rng(0)
        for name in {"V", "A", "B"} & set(inputs):
            flat = inputs[name].reshape(-1)
            for bad in (np.nan, np.inf, -np.inf):
                flat[rng.integers(0, flat.size, 3)] = bad
        built = triton_backend.build(map_gpu(c, h100), h100)
        jobs.append(built.job(inputs))
        wanted.append((c, inputs))
    for (c, inputs), outputs in zip(wanted, triton_backend.interpret_all(jobs), strict=True):
        for got, want in zip(outputs, interpret(c, inputs).values(), strict=True):
            assert 0 < (~np.isfinite(want)).sum() < want.size / 2
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["full", "causal", "wide window", "soft cap", "log-sum-exp"])
def test_kernels_of_joints_fit_sm_90_without_spills(name: str, h100: Target) -> None:
    (built,) = triton_backend.compile_ahead(map_gpu(parse_cascade(PROGRAMS[name]), h100), h100)
    assert built["spills"] == built["stack_bytes"] == 0
    assert built["shared_bytes"] <= 227 << 10


@pytest.mark.parametrize("name", ["full", "causal"])
def test_attention_in_one_walk_runs_on_tensor_cores(name: str, h100: Target) -> None:
    target = replace(h100, parameters={**h100.parameters, "tf32": 1})
    (built,) = triton_backend.compile_ahead(map_gpu(parse_cascade(PROGRAMS[name]), target), target)
    assert "wgmma.mma_async" in built["ptx"]
    assert built["spills"] == 0


# ---- contractions

GENERAL = {
    "max of sums": "in A: f32[M,K], B: f32[K,N]\nout Y: f32[M,N]\nY[m,n] = A[m,k] + B[k,n] :: max(k)\n",
    "min of differences": "in A: f32[M,K], B: f32[N,K]\nout Y: f32[M,N]\n"
    "Y[m,n] = A[m,k] - B[n,k] :: min(k) where k <= m\n",
    "integers": "in A: i32[M,K], B: i32[K,N]\nout Y: i32[M,N]\nY[m,n] = A[m,k] * B[k,n]\n",
    "any of both": "in A: i32[M,K], B: i32[K,N]\nout Y: bool[M,N]\n"
    "Y[m,n] = A[m,k] > 0 and B[k,n] > 2 :: any(k)\n",
}


def test_products_without_a_matrix_unit_are_tiled(h100: Target) -> None:
    jobs, wanted = [], []
    for program in GENERAL.values():
        c = parse_cascade(program)
        mapped = map_gpu(c, h100)
        shown = print_mapping(mapped)
        assert re.search(r"for m by 32 on block .*\n *for n by 32 on block", shown)
        assert "for k by 8" in shown
        built = triton_backend.build(mapped, h100)
        assert "tl.dot(" not in built.source
        inputs = inputs_of(c, {"M": 40, "N": 37, "K": 19})
        jobs.append(built.job(inputs))
        wanted.append((c, inputs))
    for (c, inputs), outputs in zip(wanted, triton_backend.interpret_all(jobs), strict=True):
        check(c, inputs, dict(zip([t.name for t in c.outputs], outputs, strict=True)))


def test_the_larger_of_nan_and_a_number_is_nan(h100: Target) -> None:
    c = parse_cascade("in X: f32[N]\nout Y: f32[N]\nY[n] = max(X[n], 0.0) + min(X[n], 1.0)\n")
    x = np.array([np.nan, -1, 2, np.inf], np.float32)
    (out,) = triton_backend.build(map_gpu(c, h100), h100).run({"X": x}).values()
    np.testing.assert_array_equal(out, [np.nan, -1, 3, np.inf])
