"""Fewest passes: what can be derived is derived, what can not is refused, and the values stay the same."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import interpret
from tcc.ir.joint import Split, Stream, Tree, interpret_joints
from tcc.passes.derive import Derivation, derivation, derive
from tcc.passes.restrict import restrict
from tcc.passes.simplify import simplify
from tcc.targets import find

EXAMPLES = Path(__file__).parent.parent / "examples"
FORMS = (Stream(1), Stream(7), Stream(16), Stream(64), Tree(5), Split(3, 4))


def prepared(text: str) -> Cascade:
    """A program as `derive` gets it, in float64."""
    c = parse_cascade(text.replace("f32", "f64"))
    return simplify(restrict(c, find("cpu")), find("cpu"))


def numbers(c: Cascade, sizes: dict[str, int], seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    known = dict(sizes)
    for r in c.ranks:
        if r.size is not None:
            known[r.name] = evaluate_size(r.size, known)
    made: dict[str, Any] = {}
    for t in c.inputs:
        shape = tuple(evaluate_size(s, known) for s in t.shape)
        if t.dtype.kind == "b":
            made[t.name] = rng.random(shape) < 0.6
        elif t.dtype.is_float:
            made[t.name] = (rng.standard_normal(shape) * scale).astype(t.dtype.numpy)
        else:
            made[t.name] = rng.integers(0, 3, shape).astype(t.dtype.numpy)
    return made


def difference(got: Any, want: Any) -> float:
    """The largest error relative to the largest value; elements that are not finite have to be the same."""
    got, want = np.asarray(got, float), np.asarray(want, float)
    known = np.isfinite(want)
    if not np.array_equal(
        np.nan_to_num(got[~known], nan=7.0), np.nan_to_num(want[~known], nan=7.0)
    ):
        return float("inf")
    if not known.any():
        return 0.0
    return float(np.max(np.abs(got - want)[known]) / (1e-300 + np.max(np.abs(want[known]))))


def check(
    c: Cascade, derived: Cascade, inputs: dict[str, Any], sizes: dict[str, int], tolerance: float = 1e-12
) -> None:  # fmt: skip
    with np.errstate(all="ignore"):
        want = interpret(c, inputs, sizes)
        plain = interpret(derived, inputs, sizes)
        for name, value in want.items():
            assert difference(plain[name], value) <= tolerance, (name, plain[name], value)
        for form in FORMS:
            got = interpret_joints(derived, inputs, sizes, form)
            for name, value in want.items():
                assert difference(got[name], value) <= tolerance, (form, name, got[name], value)


def one(text: str, lengths: tuple[int, ...] = (1, 5, 16, 37), scales: tuple[float, ...] = (1.0, 30.0)) -> Derivation:  # fmt: skip
    """The derivation of a program, checked against the naive values over several lengths of K."""
    c = prepared(text)
    d = derivation(c)
    assert parse_cascade(str(d.program)).joints
    for k in lengths:
        for n, scale in enumerate(scales):
            sizes = {"K": k, "P": 3, "F": 2, "H": 2}
            sizes = {r.name: sizes[r.name] for r in c.ranks if r.size is None}
            check(c, d.program, numbers(c, sizes, n, scale), sizes)
    return d


def joints(d: Derivation) -> str:
    return "; ".join(map(str, d.program.joints))


HEAD = "in X: f64[K], V: f64[K], W: f64[K]\nout O: f64\n"

DERIVABLE = {
    "attention, divided behind the sum": ("M = X[k] :: max(k)\nL = exp(X[k] - M)\nO = exp(X[k] - M) / L * V[k]",
        "joint k: M, L by L * exp(M - M'), O_sum by O_sum * exp(M - M')"),
    "soft cap": ("S[k] = 30.0 * tanh(X[k] / 30.0)\nM = S[k] :: max(k)\nL = exp(S[k] - M)\nO = exp(S[k] - M) / L * V[k]",
        "joint k: M, L by L * exp(M - M'), O_sum by O_sum * exp(M - M')"),
    "norm, then a product": ("S = X[k] ** 2\nO = X[k] * W[k] / sqrt(S / K)", "joint k: S, O_sum"),
    "scaled by the largest": ("A = abs(X[k]) :: max(k)\nO = X[k] / A * W[k] * 448", "joint k: A, O_sum"),
    "variance": ("N = 1.0 where k >= 0\nT = X[k]\nO = (X[k] - T / max(N, 1.0)) ** 2",
        "joint k: N, T, O by O + (T' / max(N', 1.0) - T / max(N, 1.0)) ** 2 * N"),
    "entropy": ("M = X[k] :: max(k)\nL = exp(X[k] - M)\nO = exp(X[k] - M) / L * (X[k] - M)",
        "joint k: M, L by L * exp(M - M'), O_sum by select(M == -inf, O_sum, (O_sum - (M' - M) * L) * exp(M - M'))"),
    "shifted twice": ("M = X[k] :: max(k)\nO = X[k] * 0.5 - M :: max(k)", "joint k: M, O_max"),
    "weights by a normaliser": ("M = X[k] :: max(k)\nL = exp(X[k] - M)\nZ = M + log(L)\nO = exp(X[k] - Z) * W[k]",
        "joint k: M, L by L * exp(M - M'), O_sum by O_sum * exp(M - M')"),
    "power of a ratio": ("A = abs(X[k]) :: max(k)\nO = (X[k] / A) ** 2", "joint k: A, O_sum"),
    "largest of a monotone function": ("M = X[k] :: max(k)\nO = exp(M - X[k] * 0.5) :: max(k)", "joint k: M, O_min"),
    "smallest first": ("M = X[k] :: min(k)\nS = exp(M - X[k])\nO = M - log(S)", "joint k: M, S by S * exp(M' - M)"),
    "scaled exponent": ("M = X[k] :: max(k)\nS = exp((X[k] - M) * 0.5)\nO = M + log(S)",
        "joint k: M, S by S * exp((M - M') * 0.5)"),
    "value at the largest": ("M = X[k] :: max(k)\nO = V[k] :: max(k) where X[k] == M", "joint k: M, O by select(M == M', O, -inf)"),
    "mean over ties": ("M = X[k] :: max(k)\nN = select(X[k] == M, 1.0, 0.0)\nO = select(X[k] == M, V[k], 0.0) / N",
        "joint k: M, N by select(M == M', N, 0), O_sum by select(M == M', O_sum, 0)"),
    "weighted variance": ("A = abs(W[k])\nT = abs(W[k]) * X[k]\nO = abs(W[k]) * (X[k] - T / A) ** 2",
        "joint k: A, T, O by select(A == 0.0, O, O + (T' / A' - T / A) ** 2 * A)"),
    "two exponentials": ("M = max(X[k], V[k]) :: max(k)\nO = exp(X[k] - M) + exp(V[k] - M)", "joint k: M, O by O * exp(M - M')"),
    "overflowing without its scale": ("A = abs(X[k]) + 1.0 :: max(k)\nO = X[k] ** 50 / A ** 40",
        "joint k: A, O by select(A == -inf, O, O * (A ** 40 / A' ** 40))"),
}  # fmt: skip


@pytest.mark.parametrize("name", DERIVABLE)
def test_derivable(name: str) -> None:
    text, wanted = DERIVABLE[name]
    d = one(HEAD + text)
    assert [c.walks for c in d.chains] == [1] and not d.barriers
    if wanted is not None:
        assert joints(d) == wanted


REFUSED = {
    "tanh of a difference": ("M = X[k] :: max(k)\nO = tanh(X[k] - M)", "does not split"),
    "rounding": ("A = abs(X[k]) :: max(k)\nO = floor(X[k] / A * 127) * W[k]", "floor(X[k] / A * 127)"),
    "rounding to even": ("A = abs(X[k]) :: max(k)\nO = round(X[k] / A * 7) * A", "round(X[k] / A * 7)"),
    "branch": ("M = X[k] / K\nO = select(X[k] > M, X[k], 0.0)", "is decided by comparing"),
    "predicate": ("M = X[k] / K\nO = V[k] where X[k] > M", "is decided by comparing"),
    "equal to another extreme": ("M = V[k] :: max(k)\nO = V[k] * W[k] :: max(k) where X[k] == M", "not the extreme of the same"),
    "sigmoid": ("M = X[k] :: max(k)\nO = sigmoid(X[k] - M) * V[k]", "does not split"),
    "clamped": ("M = abs(X[k]) :: max(k)\nO = min(X[k] / M, 0.5) * V[k]", "does not split"),
    "softplus": ("M = X[k] :: max(k)\nO = log1p(exp(X[k] - M))", "does not split"),
    "distance to the sum": ("T = X[k]\nO = (X[k] - T) ** 2", "cancel"),
    "sine": ("M = X[k] :: max(k)\nO = sin(X[k] * M)", "does not split"),
    "gaussian": ("M = X[k] / K\nO = exp(-((X[k] - M) ** 2))", "is not a sum"),
    "absolute deviation": ("M = X[k] / K\nO = abs(X[k] - M)", "does not split"),
    "geometric": ("M = X[k] :: max(k)\nO = exp(X[k] * M)", "is not a sum"),
    "rational": ("A = X[k] * X[k]\nO = W[k] / (A + X[k] * X[k])", "does not split"),
    "quotient with remainder": ("A = abs(X[k]) :: max(k)\nO = (X[k] % A) * W[k]", "does not split"),
    "product": ("A = abs(X[k]) :: max(k)\nO = X[k] / A :: prod(k)", "nothing distributes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, why = REFUSED[name]
    d = derivation(prepared(HEAD + text))
    assert [c.walks for c in d.chains] == [2]
    (barrier,) = d.barriers
    assert (barrier.rank, barrier.target) == ("K", "O") and why in barrier.why
    assert barrier.span is not None and barrier.span.line == 2 + text.count("\n") + 1
    assert not d.program.joints


# ---- random chains


def random_chain(seed: int) -> str:
    """References of several kinds, then sums and extremes that follow them by rules that compose."""
    r = random.Random(seed)
    lines = [HEAD.rstrip()]
    kind = seed % 6
    scale = r.choice(["0.5", "2.0", "1.0"])
    base = r.choice(["X[k]", f"X[k] * {scale}", "X[k] + V[k] * 0.1", "3.0 * tanh(X[k])"])
    lines.append(f"S[k] = {base}")
    if kind == 0:  # exponentials shifted by the largest, weighted
        lines += ["M = S[k] :: max(k)", "L = exp(S[k] - M)"]
        factor = r.choice(
            ["V[k]", "V[k] * W[k]", "V[k] / L", "(V[k] - 1.0) / L * 2.0", "V[k] ** 2 / sqrt(L)"]
        )
        lines.append(f"O = exp(S[k] - M) * {factor}")
    elif kind == 1:  # by the smallest, in base two
        lines += ["M = S[k] :: min(k)", "L = exp2(M - S[k])"]
        lines.append(f"O = {r.choice(['V[k]', 'abs(V[k])'])} * exp2((M - S[k]) * {scale}) / L")
    elif kind == 2:  # scales
        lines.append(r.choice(["A = abs(S[k]) :: max(k)", "A = S[k] * S[k]", "A = abs(S[k])"]))
        ratio = r.choice(
            [
                "S[k] / A",
                "abs(S[k] / A)",
                "sqrt(abs(S[k]) / A)",
                "(S[k] / A) ** 2",
                "S[k] * rsqrt(A + 0.1)",
            ]
        )
        lines.append(f"O = {ratio} * {r.choice(['W[k]', 'V[k] * W[k]', '2.5'])}")
    elif kind == 3:  # polynomials around a mean
        lines += ["Mu = S[k] / K"]
        power = r.choice(
            [
                "(S[k] - Mu) ** 2",
                "(S[k] - Mu) * W[k]",
                "(S[k] - Mu) ** 3",
                "(W[k] + S[k] - Mu) * V[k]",
            ]
        )
        lines.append(f"O = {power}" + r.choice(["", " / K"]))
    elif kind == 4:  # payloads
        m = r.choice(["max", "min"])
        lines += [f"M = S[k] :: {m}(k)"]
        lines.append(r.choice(["O = W[k] :: max(k) where S[k] == M", "O = V[k] where S[k] == M",
                               "O = select(S[k] == M, V[k] * 2.0, 0.0)"]))  # fmt: skip
    else:  # polynomials around an extreme, with exponentials
        lines += ["M = S[k] :: max(k)"]
        lines.append(
            f"O = exp(S[k] - M) * {r.choice(['(S[k] - M)', '(S[k] - M) ** 2', '(V[k] + M)'])}"
        )
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(30))
def test_random_chains(seed: int) -> None:
    text = random_chain(seed)
    started = time.perf_counter()
    d = derivation(prepared(text))
    print(f"{time.perf_counter() - started:.3f} s")
    assert [c.walks for c in d.chains] == [1], text + "\n" + str(d.barriers)
    c = prepared(text)
    for k in (1, 6, 21):
        check(c, d.program, numbers(c, {"K": k}, seed), {"K": k}, 1e-11)


# ---- whole programs


ATTENTION = "in Q: f64[E, P], K: f64[E, M], V: f64[F, M]\nout AV: f64[F, P]\n"
CASCADES = {
    "three passes": (EXAMPLES / "attention.tcc").read_text(),
    "causal": (EXAMPLES / "attention_causal.tcc").read_text(),
    "two passes": (EXAMPLES / "attention_two_pass.tcc").read_text(),
    "window": ATTENTION + """
QK[m, p] = Q[e, p] * K[e, m] where m <= p, m > p - 4
GM[p]    = QK[m, p]                    :: max(m)
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p]    = SN[m, p]
A[m, p]  = SN[m, p] / SD[p]
AV[f, p] = A[m, p] * V[f, m]""",
    "masked by data": "in Q: f64[E, P], K: f64[E, M], V: f64[F, M], B: bool[M, P]\nout AV: f64[F, P]\n" + """
QK[m, p] = Q[e, p] * K[e, m] where B[m, p]
GM[p]    = QK[m, p]                    :: max(m)
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p]    = SN[m, p]
AV[f, p] = SN[m, p] / SD[p] * V[f, m]""",
}  # fmt: skip


@pytest.mark.parametrize("name", CASCADES)
@pytest.mark.parametrize("keys", [1, 5, 37])
def test_attention(name: str, keys: int) -> None:
    c = prepared(CASCADES[name])
    d = derivation(c)
    assert [x.walks for x in d.chains] == [1]
    sizes = {"E": 3, "P": 6, "M": keys, "F": 2}
    check(c, d.program, numbers(c, sizes), sizes)
    assert derive(c, find("cpu")).joints


@pytest.mark.parametrize("scale", [1e4, 1e-30])
def test_huge_and_tiny_scores(scale: float) -> None:
    c = prepared(CASCADES["three passes"])
    d = derivation(c)
    sizes = {"E": 2, "P": 4, "M": 37, "F": 3}
    inputs = numbers(c, sizes)
    inputs["Q"] = inputs["Q"] * scale
    check(c, d.program, inputs, sizes)


def test_rows_without_a_key_are_zero() -> None:
    """With a window beyond the keys, a row is empty: 0, in the naive program and behind a deferred division."""
    c = prepared(CASCADES["window"])
    d = derivation(c)
    assert "select(" in str(next(x for x in d.program.definitions if x.target == "AV"))
    sizes = {"E": 2, "P": 9, "M": 3, "F": 2}
    inputs = numbers(c, sizes)
    check(c, d.program, inputs, sizes)
    assert np.all(interpret(d.program, inputs, sizes)["AV"][:, 8] == 0)


def test_scores_of_minus_infinity() -> None:
    """Masks that add -inf: whole tiles of it, and a first key of it."""
    c = prepared("""
in S: f64[K, P], V: f64[K]
out O: f64[P]
M[p] = S[k, p] :: max(k)
L[p] = exp(S[k, p] - M[p])
O[p] = exp(S[k, p] - M[p]) / L[p] * V[k]""")
    d = derivation(c)
    sizes = {"K": 20, "P": 3}
    inputs = numbers(c, sizes)
    inputs["S"][:9, 0] = -np.inf
    inputs["S"][5:, 1] = -np.inf
    inputs["S"][0, 2] = -np.inf
    check(c, d.program, inputs, sizes)


def test_exponentials_are_shared_and_names_stay() -> None:
    d = derivation(prepared(CASCADES["three passes"]))
    assert str(d.program).count("exp(QK") == 1
    assert [x.target for x in d.program.definitions] == ["QK", "GM", "SN", "SD", "AV_sum", "AV"]
    assert joints(d) == "joint m: GM, SD by SD * exp(GM - GM'), AV_sum by AV_sum * exp(GM - GM')"


def test_other_names_for_the_same_variables() -> None:
    """Definitions that call the walked and the shared variables otherwise are renamed."""
    d = one("""
ranks P, R=P, K, J=K, F
in  X: f64[P, K], V: f64[K, F]
out O: f64[P, F]
M[p]    = X[p, k] :: max(k)
L[r]    = exp(X[r, j] - M[r])
O[r, f] = exp(X[r, j] - M[r]) / L[r] * V[j, f]""")
    assert joints(d) == "joint k: M, L by L * exp(M - M'), O_sum by O_sum * exp(M - M')"


def test_several_chains() -> None:
    d = one("""
in  X: f64[P, K], Y: f64[K, H]
out A: f64[P], B: f64[H]
M[p] = X[p, k] :: max(k)
L[p] = exp(X[p, k] - M[p])
A[p] = M[p] + log(L[p])
S[h] = abs(Y[k, h]) :: max(k)
B[h] = Y[k, h] / S[h]""")
    assert joints(d) == "joint k: M, L by L * exp(M - M'); joint k: S, B_sum"


def test_fields_behind_a_barrier_start_a_walk_of_their_own() -> None:
    d = one("""
in  X: f64[K], V: f64[K]
out O: f64
M = X[k] :: max(k)
N = tanh(X[k] - M) :: min(k)
A = tanh(X[k] - M)
B = V[k] * exp(X[k] - A)
O = B + N""")
    assert [c.walks for c in d.chains] == [2]
    assert {b.target for b in d.barriers} == {"A"}
    assert joints(d) == "joint k: M, N_min; joint k: A, B_sum" or d.barriers


def test_layer_norm_then_a_matmul() -> None:
    d = one(
        """
in  X: f64[P, K], W: f64[K, F], G: f64[K], B: f64[K]
out O: f64[P, F]
Mu[p]   = X[p, k] / K
S[p]    = (X[p, k] - Mu[p]) ** 2 / K
Y[p, k] = (X[p, k] - Mu[p]) * rsqrt(S[p] + 1e-5) * G[k] + B[k]
O[p, f] = Y[p, k] * W[k, f]""",
        scales=(1.0,),
    )
    assert [c.walks for c in d.chains] == [1]


def test_variance_of_a_large_mean_does_not_cancel() -> None:
    c = prepared("in X: f64[K]\nout S: f64\nMu = X[k] / K\nS = (X[k] - Mu) ** 2 / K")
    d = derivation(c)
    x = np.random.default_rng(0).standard_normal(1000) + 1e6
    want = float(np.var(x))
    for form in FORMS:
        got = float(interpret_joints(d.program, {"X": x}, {"K": 1000}, form)["S"])
        assert abs(got - want) <= 1e-9 * want


# ---- profit


def test_what_stays_as_it_was() -> None:
    """A row that fits near a core and is walked again for an output gains nothing."""
    target = find("cpu")
    for name in ("layernorm", "rmsnorm", "softmax"):
        c = prepared((EXAMPLES / f"{name}.tcc").read_text())
        assert derive(c, target) is c
    softmax = prepared((EXAMPLES / "softmax.tcc").read_text())
    assert derive(softmax, target, always=True).joints
    small = prepared(
        "in X: f32[4, 100]\nout L: f32[4]\nM[a] = X[a, b] :: max(b)\n"
        "S[a] = exp(X[a, b] - M[a])\nL[a] = M[a] + log(S[a])"
    )
    assert derive(small, target) is small
    assert derive(prepared((EXAMPLES / "log_sum_exp.tcc").read_text()), target).joints


def test_deriving_twice_changes_nothing() -> None:
    target = find("cpu")
    for name in ("attention", "attention_causal", "log_sum_exp"):
        c = derive(prepared((EXAMPLES / f"{name}.tcc").read_text()), target)
        assert derive(c, target) is c


# ---- graphs of PyTorch


def graph(f: Any, *args: Any) -> Cascade:
    """A function as dynamo and AOTAutograd would hand it over, up to `derive`."""
    torch = pytest.importorskip("torch")
    from torch._functorch.aot_autograd import aot_export_joint_simple

    from tcc.frontends.pytorch import capture, decompositions

    def flat(*a: Any) -> tuple[Any, ...]:
        made = f(*a)
        return tuple(made) if isinstance(made, (tuple, list)) else (made,)

    with torch.no_grad():
        gm = aot_export_joint_simple(flat, args, trace_joint=False, decompositions=decompositions())
    return simplify(restrict(capture(gm).cascade, find("cpu")), find("cpu"))


def naive_attention(q: Any, k: Any, v: Any, m: Any) -> Any:
    return (q @ k.transpose(-1, -2) * 0.125 + m).softmax(-1) @ v


def masked(q: Any, k: Any, v: Any, m: Any) -> Any:
    return (q @ k.transpose(-1, -2)).masked_fill(m < 0, float("-inf")).softmax(-1) @ v


def soft_cap(q: Any, k: Any, v: Any, m: Any) -> Any:
    return (20 * (q @ k.transpose(-1, -2) / 20).tanh()).softmax(-1) @ v


def linear_bias(q: Any, k: Any, v: Any, m: Any) -> Any:
    import torch

    distance = torch.arange(k.shape[-2])[None, :] - torch.arange(q.shape[-2])[:, None]
    return (q @ k.transpose(-1, -2) + distance.abs() * -0.5).softmax(-1) @ v


def library(q: Any, k: Any, v: Any, m: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def library_masked(q: Any, k: Any, v: Any, m: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=m > 0)


def grouped(q: Any, k: Any, v: Any, m: Any) -> Any:
    import torch

    k, v = k[:, :2].repeat_interleave(2, 1), v[:, :2].repeat_interleave(2, 1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize(
    "f",
    [naive_attention, masked, soft_cap, linear_bias, library, library_masked, grouped],
    ids=lambda f: f.__name__,
)
def test_attention_of_pytorch(f: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.float64) for n in (5, 9, 9))
    c = graph(f, q, k, v, torch.randn(5, 9, dtype=torch.float64))
    derived = derive(c, find("cpu"))
    (joint,) = derived.joints
    assert len(joint.fields) == 3 and [f.correction is None for f in joint.fields] == [True, False, False]  # fmt: skip
    check(c, derived, numbers(c, {}), {})


def test_losses_and_norms_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, t = torch.randn(6, 11, dtype=torch.float64), torch.randint(0, 3, (6,))
    g = torch.randn(11, dtype=torch.float64)
    w = torch.randn(11, 3, dtype=torch.float64)
    cases: list[tuple[Any, tuple[Any, ...], int]] = [
        (functional.cross_entropy, (x, t), 2),
        (lambda a: torch.logsumexp(a, -1), (x,), 2),
        (lambda a: torch.var(a, -1), (x,), 3),
        (lambda a: torch.std(a, 0), (x,), 3),
        (lambda a: torch.max(a, -1), (x,), 2),
        (lambda a, b: functional.layer_norm(a, (11,), b, b), (x, g), 3),
        (lambda a, b: functional.layer_norm(a, (11,)) @ b, (x, w), 5),
        (lambda a, b: functional.rms_norm(a, (11,)) @ b, (x, w), 2),
    ]
    for f, args, fields in cases:
        c = graph(f, *args)
        d = derivation(c)
        assert not d.barriers
        assert [len(j.fields) for j in d.program.joints] == [fields], str(d.program)
        check(c, d.program, numbers(c, {}), {}, 1e-11)


def test_an_embedded_loss_needs_no_normalised_copy() -> None:
    """Cross entropy reads one element of each row of log-probabilities: they are never written."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional.cross_entropy
    h, w, t = torch.randn(6, 8), torch.randn(8, 40000), torch.randint(0, 3, (6,))
    c = graph(lambda h, w, t: f(h @ w, t), h, w, t)
    derived = derive(c, find("cpu"))
    assert [len(j.fields) for j in derived.joints] == [2]
    large = [n for n, x in derived.tensors.items() if len(x.shape) == 2 and n not in ("arg0_1", "arg1_1")]  # fmt: skip
    assert len(large) == 1  # the logits


# ---- searching for another form


def test_computer_algebra_only_where_nothing_else_helps() -> None:
    import subprocess
    import sys

    code = """
import sys
sys.path.insert(0, 'tests')
from test_derive import derivation, prepared, DERIVABLE, HEAD
for text, _ in DERIVABLE.values():
    derivation(prepared(HEAD + text))
assert 'sympy' not in sys.modules
d = derivation(prepared(HEAD + 'A = abs(X[k]) :: max(k)\\nO = abs(X[k]) ** 2 * A + abs(X[k]) ** 2 * log1p(A)'))
assert d.chains[0].walks == 1, d.barriers
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, timeout=120
    )
