"""Mappings onto a grid of blocks, and the Triton that they print: meaning, text, and what the
assembler says.
"""

from __future__ import annotations

import importlib
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import interpret_with_bounds
from tcc.ir.mapping import Mapping, leaves
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping, print_mapping
from tcc.ir.target import Target
from tcc.ir.target_text import parse_target
from tcc.passes._map_gpu import map_gpu

pytest.importorskip("triton")
pytest.importorskip("torch")

triton_backend = importlib.import_module("tcc.backends.triton")
ROOT = Path(__file__).resolve().parent.parent

LINEAR = """cascade linear
in A: f32[M,K], B: f32[K,N], bias: f32[N], R: f32[M,N]
out Y: f32[M,N]
C[m,n] = A[m,k] * B[k,n]
D[m,n] = C[m,n] + bias[n]
G[m,n] = D[m,n] * 0.5 * (1 + erf(D[m,n] * 0.7071067811865476))
Y[m,n] = G[m,n] + R[m,n]
kernel linear: C, D, G, Y
"""
BATCHED = """cascade batched
in A: f32[B,M,K], W: f32[B,N,K]
out Y: f32[B,M,N]
Y[b,m,n] = A[b,m,k] * W[b,n,k]
"""
SOFTMAX = """cascade softmax
ranks {ranks}
in X: f32[R,C]
out Y: f32[R,C]
G[r]   = X[r,c] :: max(c)
E[r,c] = exp(X[r,c] - G[r])
S[r]   = E[r,c]
Y[r,c] = E[r,c] / S[r]
kernel softmax: G, E, S, Y
"""
LAYER_NORM = """cascade layer_norm
ranks {ranks}
in X: f32[R,C], W: f32[C], B: f32[C]
out Y: f32[R,C]
T[r]   = X[r,c]
U[r,c] = X[r,c] - T[r] / C
S[r]   = U[r,c] * U[r,c]
Y[r,c] = U[r,c] * rsqrt(S[r] / C + 1e-5) * W[c] + B[c]
kernel layer_norm: T, U, S, Y
"""
ATTENTION = """cascade attention
ranks P, M, E={e}, F={f}
in Q: f32[H,E,P], K: f32[H,E,M], V: f32[H,F,M]
out AV: f32[H,F,P]
QK[h,m,p] = Q[h,e,p] * K[h,e,m] / sqrt(E) {where}
GM[h,p]   = QK[h,m,p] :: max(m) {where}
SN[h,m,p] = exp(QK[h,m,p] - GM[h,p]) {where}
SD[h,p]   = SN[h,m,p] {where}
A[h,m,p]  = SN[h,m,p] / SD[h,p] {where}
AV[h,f,p] = A[h,m,p] * V[h,f,m] {where}
kernel attention: QK, GM, SN, SD, A, AV
"""
TWO_KERNELS = """cascade two
in A: f32[M,K], B: f32[K,N]
out S: f32[M], Y: f32[N,M]
C[m,n] = A[m,k] * B[k,n]
S[m]   = C[m,n] :: max(n)
Y[n,m] = C[m,n] - S[m]
kernel product: C
kernel rows: S, Y
"""
ODD = """cascade odd
in int: f32[N], tl: i64[N], K_ptr: f32[M,N]
out pid: f32[M,N], print: f32[N], count: i64[M]
pid[m,n]  = select(n % 3 == 0, int[n + 1] - int[n - 1], tanh(K_ptr[m,tl[n]])) * sign(int[n])
            where n != m
print[n]  = K_ptr[m,n] ** 2 :: min(m)
count[m]  = i64(1) * tl[n] // 2 where K_ptr[m,n] > 0.0
kernel grid: pid
kernel torch: print
"""
ONE_PASS = """cascade one_pass
ranks P, M1, M0=64, E=64, F=37
in Q: f32[E,P], BK: f32[E,M1,M0], BV: f32[F,M1,M0]
out AV: f32[F,P]
BQK[m1,m0,p]  = Q[e,p] * BK[e,m1,m0]
LM[m1,p]      = BQK[m1,m0,p] :: max(m0)
RM[0,p]       = -inf
RM[m1+1,p]    = max(RM[m1,p], LM[m1,p])
SLN[m1,m0,p]  = exp(BQK[m1,m0,p] - RM[m1+1,p])
SLD[m1,p]     = SLN[m1,m0,p]
SLNV[m1,f,p]  = SLN[m1,m0,p] * BV[f,m1,m0]
PRM[m1,p]     = exp(RM[m1,p] - RM[m1+1,p])
RD[0,p]       = 0.0
RD[m1+1,p]    = SLD[m1,p] + RD[m1,p] * PRM[m1,p]
RNV[0,f,p]    = 0.0
RNV[m1+1,f,p] = SLNV[m1,f,p] + RNV[m1,f,p] * PRM[m1,p]
AV[f,p]       = RNV[M1,f,p] / RD[M1,p]
kernel one_pass: BQK, LM, RM, SLN, SLD, SLNV, PRM, RD, RNV, AV
"""
SCAN = """cascade scan
in X: f32[M,N], D: f32[N]
out S: f32[M+1,N], Last: f32[N]
S[0,n]   = D[n]
S[m+1,n] = S[m,n] * 0.5 + X[m,n]
Last[n]  = S[M,n]
kernel scan: S, Last
"""
WINDOW = "where m <= p, m > p - 20"


def attention(where: str = "", e: int = 64, f: int = 64) -> str:
    return ATTENTION.format(where=where, e=e, f=f)


BITS = """cascade bits
in A: i32[M,N], B: i64[M,N]
out Y: i32[M,N], Z: i64[M,N]
Y[m,n] = popcount(A[m,n] ^ 5)
Z[m,n] = popcount(B[m,n] - 3)
"""
PROGRAMS = {
    "linear": LINEAR,
    "batched": BATCHED,
    "softmax walked": SOFTMAX.format(ranks="R"),
    "softmax whole": SOFTMAX.format(ranks="R, C=129"),
    "layer norm walked": LAYER_NORM.format(ranks="R"),
    "layer norm whole": LAYER_NORM.format(ranks="R, C=37"),
    "attention": attention(),
    "attention causal": attention("where m <= p"),
    "attention strictly causal": attention("where m < p", 7, 37),
    "attention window": attention(WINDOW, 16, 129),
    "attention in one pass": ONE_PASS,
    "scan": SCAN,
    "two kernels": TWO_KERNELS,
    "odd names": ODD,
    "bits": BITS,
}
SIZES = [
    {"M": 1, "K": 7, "N": 37, "B": 3, "R": 7, "C": 1, "P": 7, "H": 2, "M1": 3},
    {"M": 64, "K": 129, "N": 7, "B": 1, "R": 1, "C": 64, "P": 1, "H": 1, "M1": 1},
    {"M": 129, "K": 37, "N": 64, "B": 2, "R": 37, "C": 1027, "P": 129, "H": 1, "M1": 2},
    {"M": 37, "K": 1, "N": 129, "B": 2, "R": 5, "C": 37, "P": 64, "H": 2, "M1": 2},
]


@pytest.fixture(scope="module")
def h100() -> Target:
    return parse_target((ROOT / "backends/targets/h100.yaml").read_text(), "h100")


def inputs_of(c: Cascade, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Random inputs of the given sizes; integer inputs are coordinates, some of them outside."""
    rng = np.random.default_rng(zlib.crc32(f"{c.name} {sizes}".encode()))
    known = {
        **sizes,
        **{r.name: evaluate_size(r.size, sizes) for r in c.ranks if r.size is not None},
    }
    out = {}
    for t in c.inputs:
        shape = [evaluate_size(s, known) for s in t.shape]
        integers = rng.integers(-1, 5, shape).astype(t.dtype.numpy) if t.dtype.is_integer else None
        out[t.name] = (
            integers if integers is not None else rng.standard_normal(shape).astype(np.float32)
        )
    return out


def dots(source: str) -> int:
    return source.count("tl.dot(")


def check(
    c: Cascade, inputs: dict[str, np.ndarray], got: dict[str, np.ndarray], factor: float = 4
) -> None:
    """Integers exactly, floats within the interpreter's bound."""
    for name, value in interpret_with_bounds(c, inputs).items():
        assert got[name].shape == value.data.shape
        assert got[name].dtype == value.data.dtype
        bound = np.zeros(1) if value.error is None else factor * value.error + 1e-30
        wrong = np.abs(got[name].astype(np.float64) - value.data.astype(np.float64)) > bound
        assert not wrong.any(), (
            name,
            np.argwhere(wrong)[:4],
            got[name][wrong][:4],
            value.data[wrong][:4],
        )


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_mapping_means_what_its_cascade_means(name: str, h100: Target) -> None:
    c = parse_cascade(PROGRAMS[name])
    m = map_gpu(c, h100)
    for sizes in SIZES[:3]:
        inputs = inputs_of(c, sizes)
        check(c, inputs, interpret_mapping(m, inputs)[0])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_mapping_reads_back_as_it_prints(name: str, h100: Target) -> None:
    shown = print_mapping(map_gpu(parse_cascade(PROGRAMS[name]), h100))
    again = parse_mapping(shown)
    assert print_mapping(again) == shown
    assert triton_backend.emit(again, h100) == triton_backend.emit(parse_mapping(shown), h100)


def test_kernels_compute_what_their_cascades_mean(h100: Target) -> None:
    """One process of Triton's interpreter for all programs and sizes: it is slow to start."""
    jobs, wanted = [], []
    for name, text in PROGRAMS.items():
        c = parse_cascade(text)
        program = triton_backend.build(map_gpu(c, h100), h100)
        for sizes in SIZES if "attention" not in name else SIZES[:3]:
            inputs = inputs_of(c, sizes)
            jobs.append(program.job(inputs))
            wanted.append((c, inputs))
    for (c, inputs), outputs in zip(wanted, triton_backend.interpret_all(jobs), strict=True):
        check(c, inputs, dict(zip([t.name for t in c.outputs], outputs, strict=True)))


def test_no_buffer_grows_with_a_walked_rank(h100: Target) -> None:
    m = map_gpu(parse_cascade(attention("where m <= p")), h100)
    assert not m.memory
    (k,) = m.kernels
    shown = print_mapping(m)
    assert shown.count("for m by") == 2 * 3  # three passes over the keys: full tiles, partial ones
    assert shown.count("do QK[") == 2 * 3  # with the scores of a tile computed again in each
    updates = [d for d in leaves(k.body) if d.update]  # type: ignore[union-attr]
    assert len(updates) == 2 * 3


@pytest.mark.parametrize("name", ["attention causal", "attention in one pass"])
def test_kernels_join_where_registers_can_hold_what_crosses(name: str, h100: Target) -> None:
    alone = re.sub(r"kernel .*\n", "", PROGRAMS[name])
    m = map_gpu(parse_cascade(alone), h100)
    assert len(m.kernels) == 1
    assert not m.memory
    text = (ROOT / "backends/targets/h100.yaml").read_text().replace("merge: 1", "merge: 0")
    assert len(map_gpu(parse_cascade(alone), parse_target(text, "h100")).kernels) > 5


def test_independent_reductions_share_a_walk(h100: Target) -> None:
    c = parse_cascade("""cascade moments
in X: f32[R,C]
out V: f32[R]
S[r] = X[r,c]
T[r] = X[r,c] * X[r,c]
V[r] = T[r] / C - (S[r] / C) ** 2
kernel moments: S, T, V
""")
    assert print_mapping(map_gpu(c, h100)).count("for c by") == 1


def test_user_names_never_become_python_of_their_own() -> None:
    assert triton_backend.mangled("int") == "int_"
    assert triton_backend.mangled("tl") == "tl_"
    assert triton_backend.mangled('"; rm').isidentifier()
    assert triton_backend.mangled("_tanh") == "u_tanh"
    assert triton_backend.mangled("ﬁ") != triton_backend.mangled(
        "fi"
    )  # Python would take them for the same name


def test_source_opens_with_the_cascade_and_keeps_names(h100: Target) -> None:
    source = triton_backend.emit(map_gpu(parse_cascade(LINEAR), h100), h100)
    assert '"""C[m, n] = A[m, k] * B[k, n]\n' in source
    assert "C = tl.dot(A, B, C, " in source
    assert "def linear(A, B, bias, R):" in source
    assert max(map(len, source.splitlines())) < 160


def test_the_running_form_of_attention_becomes_one_loop(h100: Target) -> None:
    source = triton_backend.emit(map_gpu(parse_cascade(ONE_PASS), h100), h100)
    assert re.findall(r"^ *for (\w+) in", source, re.MULTILINE) == ["m1"]
    assert "RM_next = tl.maximum(RM, LM, " in source
    assert source.count("tl.dot(") == 2


def test_a_recurrence_that_stops_is_refused(h100: Target) -> None:
    text = "ranks T=9\nin X: f32[N]\nout Z: f32[N]\nS[0,n] = X[n]\nS[t+1,n] = S[t,n] * 0.5\n"
    text += "C[t] = S[t,n] :: max(n)\nZ[n] = S[T,n]\nstop t when C[t] < 0.1\nkernel k: S, C, Z\n"
    assert rejected(text, h100).diagnostic.code == "T0223"


RESOURCES = {
    "one pass": ONE_PASS,
    "odd names": ODD,
    "scan": SCAN,
    "linear": LINEAR,
    "softmax": PROGRAMS["softmax walked"],
    "causal": attention("where m <= p"),
}


@pytest.mark.parametrize("name", RESOURCES)
def test_exact_kernels_fit_sm_90_without_spills(name: str, h100: Target) -> None:
    for built in triton_backend.compile_ahead(map_gpu(parse_cascade(RESOURCES[name]), h100), h100):
        assert built["spills"] == built["stack_bytes"] == 0
        assert built["shared_bytes"] <= 227 << 10
        assert built["cubin"][:4] == b"\x7fELF"


@pytest.mark.parametrize("name", ["linear", "causal"])
def test_tf32_products_run_on_tensor_cores(name: str) -> None:
    text = (ROOT / "backends/targets/h100.yaml").read_text().replace("tf32: 0", "tf32: 1")
    target = parse_target(text, "h100")
    (built,) = triton_backend.compile_ahead(map_gpu(parse_cascade(RESOURCES[name]), target), target)
    assert re.search(r"wgmma\.mma_async|mma\.sync", built["ptx"])
    assert built["spills"] == 0
    assert built["shared_bytes"] <= 227 << 10


def rejected(text: str, target: Target) -> CompileError:
    with pytest.raises(CompileError) as caught:
        map_gpu(parse_cascade(text), target)
    assert caught.value.diagnostic.span is not None
    assert caught.value.diagnostic.helps
    return caught.value


def test_a_kernel_that_reads_its_own_tensor_elsewhere_is_refused(h100: Target) -> None:
    text = "in X: f32[N]\nout Z: f32[N]\nY[n] = X[n] * 2\nZ[n] = Y[n - 1]\nkernel k: Y, Z\n"
    error = rejected(text, h100)
    assert error.diagnostic.code == "T0222"
    assert "`Z` reads `Y[n - 1]`" in error.diagnostic.message


def test_kernels_that_need_each_other_are_refused(h100: Target) -> None:
    text = "in X: f32[N]\nout Z: f32[N]\nY[n] = X[n]\nW[n] = Y[n]\nZ[n] = W[n]\n"
    error = rejected(text + "kernel a: Y, Z\nkernel b: W\n", h100)
    assert error.diagnostic.code == "T0220"


def test_a_step_that_is_no_power_of_two_is_refused(h100: Target) -> None:
    m: Mapping = map_gpu(parse_cascade(LINEAR), h100)
    with pytest.raises(CompileError) as caught:
        triton_backend.emit(parse_mapping(print_mapping(m).replace("by 32", "by 48")), h100)
    assert caught.value.diagnostic.code == "T0362"
