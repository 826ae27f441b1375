"""The interpreter of cascades gives what the mathematics says, and its error bounds hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_programs import assert_matches, generate

from tcc.frontends.text import load
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Call
from tcc.ir.infer import expression_dtype
from tcc.ir.interpret import Value, _Interpreter, bind, interpret, interpret_with_bounds

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(text: str, sizes: dict[str, int] | None = None, **inputs: Any) -> dict[str, Any]:
    return interpret(parse_cascade(text), inputs, sizes)


def softmax(x: Any, axis: int) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def attention(q: Any, k: Any, v: Any) -> Any:
    return v @ softmax(k.T @ q / np.sqrt(len(q)), 0)


@pytest.mark.parametrize("e, f, m, p", [(1, 1, 1, 1), (3, 2, 7, 5), (16, 9, 37, 8)])
def test_three_passes_two_passes_and_one_pass_of_attention_agree(
    rng: np.random.Generator, e: int, f: int, m: int, p: int
) -> None:
    q, k, v = (rng.normal(size=s).astype("f") for s in [(e, p), (e, 3 * m), (f, 3 * m)])
    want = attention(*(x.astype(float) for x in (q, k, v)))
    for name in ("attention", "attention_two_pass"):
        got = interpret(load(EXAMPLES / f"{name}.tcc"), {"Q": q, "K": k, "V": v})["AV"]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    tiles = {"Q": q, "BK": k.reshape(e, 3, m), "BV": v.reshape(f, 3, m)}
    got = interpret(load(EXAMPLES / "attention_one_pass.tcc"), tiles)["AV"]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_a_predicate_on_the_scores_makes_attention_causal(rng: np.random.Generator) -> None:
    q, k, v = (rng.normal(size=s).astype("f") for s in [(4, 6), (4, 9), (3, 9)])
    got = interpret(load(EXAMPLES / "attention_causal.tcc"), {"Q": q, "K": k, "V": v})["AV"]
    for p in range(6):
        want = attention(
            *(x.astype(float) for x in (q[:, p : p + 1], k[:, : p + 1], v[:, : p + 1]))
        )
        np.testing.assert_allclose(got[:, p], want[:, 0], rtol=1e-6, atol=1e-6)


def test_fully_masked_rows_give_zero(rng: np.random.Generator) -> None:
    text = (EXAMPLES / "attention_causal.tcc").read_text().replace("m <= p", "Keep[m, p]")
    text = text.replace("V: f32[F, M]", "V: f32[F, M], Keep: bool[M, P]")
    q, k, v = (rng.normal(size=s).astype("f") for s in [(4, 5), (4, 7), (3, 7)])
    keep = rng.random((7, 5)) < 0.5
    keep[:, 2] = False
    got = run(text, Q=q, K=k, V=v, Keep=keep)["AV"]
    assert np.all(got[:, 2] == 0)
    for p in (0, 1, 3, 4):
        at = keep[:, p]
        want = attention(*(x.astype(float) for x in (q[:, p : p + 1], k[:, at], v[:, at])))
        np.testing.assert_allclose(got[:, p], want[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stride, r, p", [(1, 1, 1), (2, 3, 4), (3, 2, 5)])
def test_convolution_is_an_affine_index(
    rng: np.random.Generator, stride: int, r: int, p: int
) -> None:
    torch = pytest.importorskip("torch")
    x, w = rng.normal(size=(2, 3, stride * (p - 1) + r)), rng.normal(size=(4, 3, r))
    text = f"""in X: f64[N, C, {stride}*P + R - {stride}], W: f64[K, C, R]
out Y: f64[N, K, P]
Y[n, k, p] = X[n, c, {stride}*p + r] * W[k, c, r]"""
    want = torch.nn.functional.conv1d(torch.tensor(x), torch.tensor(w), stride=stride).numpy()
    np.testing.assert_allclose(run(text, X=x, W=w)["Y"], want, atol=1e-12)


def test_reading_outside_gives_the_fill(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, w = rng.normal(size=(1, 2, 5, 6)).astype("f"), rng.normal(size=(3, 2, 3, 3)).astype("f")
    want = torch.nn.functional.conv2d(
        torch.tensor(x).double(), torch.tensor(w).double(), padding=1
    ).numpy()
    got = interpret(load(EXAMPLES / "conv2d.tcc"), {"X": x, "W": w})["Y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    text = "in A: i32[I] fill -7\nout Z: i32[I]\nZ[i] = A[i + 1] + A[I - 1 - i]"
    assert run(text, A=np.array([1, 2, 3], "i4"))["Z"].tolist() == [5, 5, -6]


def test_indirect_access_gathers(rng: np.random.Generator) -> None:
    table, where = rng.normal(size=(5, 3)), np.array([4, 0, 5, -1])
    got = run(
        "in T: f64[V, D], J: i64[B]\nout X: f64[B, D]\nX[b, d] = T[J[b], d]", T=table, J=where
    )["X"]
    np.testing.assert_array_equal(got, [table[4], table[0], [0, 0, 0], [0, 0, 0]])


def test_ragged_ranks_are_given_by_offsets(rng: np.random.Generator) -> None:
    x, off = rng.normal(size=9).astype("f"), np.array([0, 3, 3, 9])
    got = interpret(load(EXAMPLES / "ragged_sum.tcc"), {"X": x, "Off": off})
    assert got["Sum"].tolist() == pytest.approx([x[:3].sum(), 0, x[3:].sum()])
    assert got["Largest"].tolist() == [x[:3].max(), -np.inf, x[3:].max()]


def test_jacobi_stops_and_keeps_its_state(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(6, 6)), rng.normal(size=6)
    got = interpret(load(EXAMPLES / "jacobi.tcc"), {"A": a, "B": b})
    full = a.copy()
    np.fill_diagonal(full, np.abs(a).sum(1) - np.abs(np.diag(a)) + 1)
    np.testing.assert_allclose(got["X"], np.linalg.solve(full, b), atol=1e-3)
    x, n = np.zeros(6), 0
    while n < 100:
        new = (b - (a @ x - np.diag(a) * x)) / np.diag(full)
        moved, x = np.abs(new - x).max(), new
        if moved < 1e-4:
            break
        n += 1
    assert got["Steps"] == n
    np.testing.assert_allclose(got["X"], x, atol=1e-12)


def test_conjugate_gradients_solve_a_positive_system(rng: np.random.Generator) -> None:
    text = """cascade cg
ranks I, J=I, T=12
in A: f64[I, J], B: f64[I]
out X: f64[I]
XS[0, i] = 0.0
R[0, i] = B[i]
P[0, i] = B[i]
RR[t] = R[t, i] * R[t, i]
AP[t, i] = A[i, j] * P[t, j]
PAP[t] = P[t, i] * AP[t, i]
Alpha[t] = select(PAP[t] > 1e-300, RR[t] / PAP[t], 0.0)
XS[t + 1, i] = XS[t, i] + Alpha[t] * P[t, i]
R[t + 1, i] = R[t, i] - Alpha[t] * AP[t, i]
New[t] = R[t + 1, i] * R[t + 1, i]
Beta[t] = select(RR[t] > 1e-300, New[t] / RR[t], 0.0)
P[t + 1, i] = R[t + 1, i] + Beta[t] * P[t, i]
X[i] = XS[T, i]
"""
    m = rng.normal(size=(6, 6))
    a, b = m @ m.T + np.eye(6), rng.normal(size=6)
    np.testing.assert_allclose(run(text, A=a, B=b)["X"], np.linalg.solve(a, b), atol=1e-8)


def test_scans_run_along_their_rank(rng: np.random.Generator) -> None:
    x = rng.normal(size=(7, 3)).astype("f")
    got = interpret(load(EXAMPLES / "scan.tcc"), {"X": x})
    np.testing.assert_allclose(got["Total"], np.cumsum(x.astype(float), 0), rtol=1e-6)
    np.testing.assert_array_equal(got["Peak"], np.maximum.accumulate(x, 0))


EXISTENCE = """ranks I
in A: i64[I], B: i64[I]
out Z: i64[I] fill 9
"""


@pytest.mark.parametrize(
    "lines, want",
    [
        ("Z[i] = A[i] where i < 2", [1, 2, 9, 9]),
        ("T[i] = A[i] where i < 2\nZ[i] = T[i] + B[i]", [11, 22, 9, 9]),
        ("T[i] = A[i] where i < 2\nZ[i] = (T[i] ?? 0) + B[i]", [11, 22, 30, 40]),
        ("T[i] = A[i] where i < 2\nU[i] = B[i] where i > 2\nZ[i] = T[i] ?? U[i]", [1, 2, 9, 40]),
        (
            "T[i] = A[i] where i < 2\nU[i] = B[i] where i > 2\nZ[i] = T[i] ?? U[i] ?? 5",
            [1, 2, 5, 40],
        ),
        ("T[i] = A[i] where i < 2\nZ[i] = T[i + 2 - i % 2] * 0 + A[i]", [9, 9, 3, 4]),
        ("T[i] = A[i] where i < 2\nS = T[i]\nZ[i] = S", [3, 3, 3, 3]),
        ("S = A[i] where 2 > 3\nZ[i] = A[i] + S", [9, 9, 9, 9]),
        ("S = A[i] where i > 7\nZ[i] = A[i] + S", [1, 2, 3, 4]),
        ("G[i] = A[i] > 2\nZ[i] = A[i] where not G[i]", [1, 2, 9, 9]),
        ("T[i] = A[i] where i < 2\nZ[i] = A[T[i]]", [2, 3, 9, 9]),
        ("T[i] = i + 1 where i > 1\nS = A[T[i]] + 1\nZ[i] = S", [6, 6, 6, 6]),
    ],
)
def test_what_reads_an_absent_element_is_absent(lines: str, want: list[int]) -> None:
    a = np.array([1, 2, 3, 4])
    assert run(EXISTENCE + lines, A=a, B=a * 10)["Z"].tolist() == want


def test_empty_reductions_give_the_identity() -> None:
    text = """in A: i32[I], G: bool[I]
out S: i32, M: i32, N: i32, P: i32, Any: bool, All: bool
S = A[i] where G[i]
M = A[i] :: max(i) where G[i]
N = A[i] :: min(i) where G[i]
P = A[i] :: prod(i) where G[i]
Any = A[i] > 0 :: any(i) where G[i]
All = A[i] > 0 :: all(i) where G[i]
"""
    got = run(text, A=np.array([1, 2], "i4"), G=np.zeros(2, bool))
    info = np.iinfo("i4")
    assert [got[n] for n in "SMNP"] == [0, info.min, info.max, 1]
    assert not got["Any"] and got["All"]


def test_mixed_reductions_equal_two_definitions(rng: np.random.Generator) -> None:
    a = rng.integers(-9, 9, (5, 6))
    head = "in A: i64[I, J]\nout Z: i64\n"
    for clause, want in [
        ("max(i)", a.sum(1).max()),
        ("sum(i), max(j)", a.max(1).sum()),
        ("sum(j), max(i)", a.max(0).sum()),
        ("min(j)", a.sum(0).min()),
    ]:
        assert run(f"{head}Z = A[i, j] :: {clause}", A=a)["Z"] == want
    masked = run(f"{head}Z = A[i, j] :: sum(i), max(j) where i < 3", A=a)["Z"]
    assert masked == a[:3].max(1).sum()


def test_integers_are_exact_and_wrap() -> None:
    text = "in A: u8[I]\nout Z: u8[I], S: u8\nZ[i] = A[i] - 5\nS = A[i]"
    got = run(text, A=np.array([3, 250, 7], "u1"))
    assert got["Z"].tolist() == [254, 245, 2] and got["S"] == (3 + 250 + 7) % 256
    big = 2**62 + 1
    text = "in A: i64[I]\nout Z: i64[I]\nZ[i] = A[i] + 1"
    assert run(text, A=np.array([big]))["Z"].tolist() == [big + 1]


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("matmul", {}),
        ("softmax", {}),
        ("layernorm", {}),
        ("rmsnorm", {}),
        ("log_sum_exp", {}),
        ("mlp_gelu", {}),
        ("matmul_bias_gelu", {}),
    ],
)
def test_examples_equal_torch_in_double_precision(
    name: str, sizes: dict[str, int], rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    c = load(EXAMPLES / f"{name}.tcc")
    n = {"M": 5, "K": 7, "N": 9, "H": 6}
    x = {t.name: rng.normal(size=[n[str(s.rank)] for s in t.shape]).astype("f") for t in c.inputs}  # type: ignore[union-attr]
    a = {k: torch.tensor(v).double() for k, v in x.items()}
    want = {
        "matmul": lambda: a["A"] @ a["B"],
        "softmax": lambda: a["X"].softmax(-1),
        "layernorm": lambda: F.layer_norm(a["X"], (9,), a["Gain"], a["Bias"]),
        "rmsnorm": lambda: F.rms_norm(a["X"], (9,), a["Gain"], 1e-6),
        "log_sum_exp": lambda: a["X"].logsumexp(-1),
        "mlp_gelu": lambda: (
            F.gelu(a["X"] @ a["W1"] + a["B1"], approximate="tanh") @ a["W2"] + a["B2"]
        ),
        "matmul_bias_gelu": lambda: F.gelu(a["X"] @ a["W"] + a["Bias"]),
    }[name]()
    got = interpret(c, x, sizes)[c.outputs[0].name]
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-6, atol=2e-6)


# ---- binding of sizes


def test_a_size_expression_of_an_input_gives_the_unknown_rank() -> None:
    c = load(EXAMPLES / "conv1d_strided.tcc")
    x, w = np.zeros((3, 2 * 5 + 4 - 2), "f"), np.zeros((2, 3, 4), "f")
    assert bind(c, {"X": x, "W": w})["P"] == 5
    with pytest.raises(CompileError, match="dimension 1 of `X` is 13"):
        bind(c, {"X": np.zeros((3, 13), "f"), "W": w})


# ---- bounds


class _Declared(_Interpreter):
    """The interpreter with floats in their declared types: one evaluation that a backend may do."""

    def storage(self, t: Any) -> Value:
        value = super().storage(t)
        if value.data.dtype == np.float64 and t.dtype.numpy != np.float64:
            value.data = value.data.astype(t.dtype.numpy)
        return value

    def _call(self, e: Call, args: list[Value]) -> Value:
        value = super()._call(e, args)
        dtype = expression_dtype(self.c, e)
        if not dtype.is_float or e.op == "coalesce":
            return value
        keep = 1 if e.op == "select" else 0
        data = [np.asarray(a.data) for a in args]
        data = data[:keep] + [d.astype(dtype.numpy) for d in data[keep:]]
        return Value(
            np.asarray(e.spec.evaluate(*data)).astype(dtype.numpy), value.present, value.error
        )


def declared_precision(c: Cascade, inputs: Any, sizes: Any) -> dict[str, Any]:
    with np.errstate(all="ignore"):
        found = _Declared(c, bind(c, inputs, sizes), None, False).run(inputs)
    return {name: v.data for name, v in found.items()}


@pytest.mark.parametrize("block", range(6))
def test_the_bound_holds_for_an_evaluation_in_the_declared_types(block: int) -> None:
    judged = unknown = 0
    for seed in range(1000 + block * 50, 1050 + block * 50):
        p = generate(seed)
        assert_matches(
            p.cascade, declared_precision(p.cascade, p.inputs, p.sizes), p.inputs, p.sizes
        )
        for v in interpret_with_bounds(p.cascade, p.inputs, p.sizes).values():
            judged += np.size(v.error)
            unknown += int(np.sum(~np.isfinite(v.error)))
    assert unknown < 0.05 * judged


def test_a_wrong_result_is_reported_with_the_program() -> None:
    p = next(q for seed in range(99) if (q := generate(seed)).cascade.outputs[0].dtype.is_float)
    right = interpret(p.cascade, p.inputs, p.sizes)
    assert_matches(p.cascade, right, p.inputs, p.sizes)
    name = p.cascade.outputs[0].name
    with pytest.raises(AssertionError, match="cascade random_"):
        assert_matches(p.cascade, right | {name: right[name] * 2 + 3}, p.inputs, p.sizes)


def test_bounds_are_tight_enough_to_tell_a_wrong_sum(rng: np.random.Generator) -> None:
    text = "in A: f32[M, K], B: f32[K, N]\nout C: f32[M, N]\nC[m, n] = A[m, k] * B[k, n]"
    x = {"A": rng.normal(size=(8, 64)).astype("f"), "B": rng.normal(size=(64, 8)).astype("f")}
    c = parse_cascade(text)
    assert np.max(interpret_with_bounds(c, x)["C"].error) < 64 * 2**-24 * 64 * 3
    wrong = x["A"][:, 1:].astype(float) @ x["B"][1:].astype(float)
    with pytest.raises(AssertionError, match="`C` differs"):
        assert_matches(c, {"C": wrong.astype("f")}, x)


def test_the_bound_is_infinite_where_rounding_decides() -> None:
    c = parse_cascade("in A: f32[I]\nout Z: f32[I]\nZ[i] = floor(A[i] * 3.0)")
    v = interpret_with_bounds(c, {"A": np.array([1 / 3, 0.5], "f")})["Z"]
    assert v.error is not None and np.isinf(v.error).tolist() == [True, False]
    c = parse_cascade(
        "in A: f32[I]\nout Z: f32[I]\nT[i] = A[i] * 3.0\nZ[i] = A[i] where T[i] > 1.0"
    )
    v = interpret_with_bounds(c, {"A": np.array([1 / 3, 0.5], "f")})["Z"]
    assert v.error is not None and np.isinf(v.error).tolist() == [True, False]
