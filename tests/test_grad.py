"""Gradients of cascades: right against finite differences and torch, as few passes as the program, as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_programs import assert_matches, generate

import tcc
from tcc.cli import main
from tcc.gradient import gradient_of
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import interpret
from tcc.ir.ops import OPS
from tcc.passes.count_passes import by_rank, count_passes
from tcc.passes.differentiate import differentiate
from tcc.passes.restrict import restrict
from tcc.targets import find

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def floats(c: Cascade, what: str = "inputs") -> list[str]:
    return [t.name for t in getattr(c, what) if t.dtype.is_float]


def in_f64(text: str) -> Cascade:
    return parse_cascade(re.sub(r"\bf(16|32)\b", "f64", text))


def normal(rng: np.random.Generator, c: Cascade, sizes: dict[str, int]) -> dict[str, Any]:
    """Normal values for the float inputs."""
    shapes = {t.name: tuple(evaluate_size(s, sizes) for s in t.shape) for t in c.inputs}
    return {name: np.asarray(rng.standard_normal(shapes[name])) for name in floats(c)}


def plain_gradient(c: Cascade, wrt: Sequence[str] | None = None) -> Cascade:
    """The gradient without the passes that shorten the program before."""
    return differentiate(restrict(c, find("cpu")), floats(c) if wrt is None else wrt)


def assert_is_gradient(
    c: Cascade, g: Cascade, inputs: dict[str, Any], sizes: dict[str, int], rng: np.random.Generator
) -> int:
    """`g` gives the slope of `c` in random directions; returns how many directions are smooth."""
    outs, wrt = floats(c, "outputs"), floats(c)
    with np.errstate(all="ignore"):
        values = interpret(c, inputs, sizes)
        weights = {k: np.asarray(rng.standard_normal(values[k].shape)) for k in outs}
        cotangents = [t.name for t in g.inputs[len(c.inputs) :]]
        given = {**inputs, **dict(zip(cotangents, (weights[k] for k in outs), strict=True))}
        found = interpret(g, given, {k: v for k, v in sizes.items() if g.rank(k)})

        def at(changed: dict[str, Any]) -> float:
            out = interpret(c, {**inputs, **changed}, sizes)
            return sum(float((weights[k] * out[k]).sum()) for k in outs)

        smooth = 0
        for name, t in zip(wrt, g.outputs, strict=True):
            v = rng.standard_normal(inputs[name].shape)
            x, slopes = inputs[name], []
            for e in (1e-5, 1e-6, 2.5e-7):
                slopes.append((at({name: x + e * v}) - at({name: x - e * v})) / (2 * e))
            unit = 1 + abs(slopes[1])
            if not np.isfinite(slopes).all() or max(slopes) - min(slopes) > 1e-4 * unit:
                continue  # a kink, a step or an infinity
            smooth += 1
            slope = float((found[t.name] * v).sum())
            assert abs(slope - slopes[1]) <= 3e-4 * unit, f"d_{name}: {slope}, not {slopes}\n{g}"
    return smooth


# ---- against finite differences


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.partials])
def test_every_operator_has_the_derivative_that_it_says(
    name: str, rng: np.random.Generator
) -> None:
    op = OPS[name]
    args = ["X[n]", "Y[n]", "Z[n]"][: op.arity]
    body = f"{args[0]} {op.infix} {args[-1]}" if op.infix and op.arity == 2 else None
    body = f"-{args[0]}" if name == "neg" else body or f"{name}({', '.join(args)})"
    if name == "select":
        body = "select(X[n] > 1.0, Y[n], Z[n])"
    if name == "take":
        body = "take(X[n], Y[n], 0) + 2.0 * take(X[n], Y[n], 1)"
    c = parse_cascade(
        "in X: f64[N], Y: f64[N], Z: f64[N]\nout R: f64[N]\n"
        f"R[n] = {body} + 0.0 * (X[n] + Y[n] + Z[n])"
    )
    sizes = {"N": 9}
    inputs = {k: rng.uniform(0.3, 1.8, 9) for k in "XYZ"}
    assert assert_is_gradient(c, plain_gradient(c), inputs, sizes, rng) == 3


def test_every_operator_with_float_values_has_a_derivative() -> None:
    assert [
        n for n, op in OPS.items() if not op.partials and op.result not in ("bool", "int")
    ] == []


@pytest.mark.parametrize("low", [0, 30, 60])
def test_random_programs_have_the_slope_of_finite_differences(
    low: int, rng: np.random.Generator
) -> None:
    checked = 0
    for seed in range(low, low + 30):
        program = generate(seed, points=1500)
        c = in_f64(str(program.cascade))
        if not floats(c) or not floats(c, "outputs"):
            continue
        inputs = {k: np.asarray(v) for k, v in program.inputs.items()}
        for k in floats(c):
            inputs[k] = inputs[k].astype(np.float64) + 1e-3 * rng.standard_normal(inputs[k].shape)
        for gradient in (plain_gradient, gradient_of):
            try:
                g = gradient(c)
            except CompileError as error:
                assert error.diagnostic.code == "T0260", seed
                continue
            print(f"seed {seed}")
            assert str(parse_cascade(str(g))) == str(g)
            checked += assert_is_gradient(c, g, inputs, program.sizes, rng)
    assert checked > 30


@pytest.mark.parametrize("seed", [2, 5, 11, 17, 23, 41, 53, 76, 88, 96])
def test_gradients_of_random_programs_compile(seed: int, rng: np.random.Generator) -> None:
    program = generate(seed, points=1500)
    c = program.cascade
    if not floats(c) or not floats(c, "outputs"):
        return
    try:
        g = gradient_of(c)
    except CompileError:
        return
    inputs = dict(program.inputs)
    for t in g.inputs[len(c.inputs) :]:
        shape = tuple(evaluate_size(s, program.sizes) for s in t.shape)
        inputs[t.name] = np.asarray(rng.standard_normal(shape)).astype(t.dtype.numpy)
    free = {r.name: program.sizes[r.name] for r in g.ranks if r.size is None}
    compiled = tcc.compile(g, target="cpu")
    found = compiled(**inputs, sizes=free)
    found = found if len(compiled.outputs) > 1 else (found,)
    assert_matches(g, dict(zip(compiled.outputs, found, strict=True)), inputs, free)


ACCESSES = {  # what reads A, the shape of A, and what the adjoint says about the points that exist
    "R[i] = A[i]": ("N", "d_A[i] = d_R[i]"),
    "R[i] = A[i + 1]": ("N", "where n - 1 >= 0"),
    "R[i] = A[N - 1 - i]": ("N", "d_R[N - n - 1]"),
    "R[i] = A[2 * i]": ("2 * N", "% 2 == 0"),
    "R[i] = A[i // 2]": ("N", "i // 2 == "),
    "R[i] = A[i - 3]": ("N", "+ 3 < N"),
    "R[i] = A[i + j] * B[j]": ("N + J - 1", "- j"),
    "R[i] = A[2 * i + j] * B[j]": ("2 * N + J", "% 2 == 0"),
    "R[i] = A[4 * i + j] * B[j]": ("4 * N", "// 4"),
    "R[i] = A[i * J + j] * B[j]": ("J * N", "% 4"),
    "R[i] = A[T[i]]": ("N", "T[i] == "),
    "R[i] = A[T[i] + j] * B[j]": ("N", "T[i]"),
    "R[i] = A[i * i]": ("N", "i * i == "),
    "R[i] = A[3]": ("N", "3 == "),
    "R[i] = A[j] * B[j]": ("J", "d_A[j]"),
    "R[i] = A[i] where i >= 2": ("N", "where i >= 2"),
    "R[i] = A[i] + A[N - 1 - i] where i < 4": ("N", "?? 0.0"),
    "R[i] = A[i] * A[i]": ("N", "2.0"),
    "R[i] = A[i] ?? 1.0": ("N", "d_R"),
    "R[i] = A[i] + B[j]": ("N", "* J"),
}


@pytest.mark.parametrize("line", ACCESSES)
def test_adjoints_gather_from_the_points_that_read_an_element(
    line: str, rng: np.random.Generator
) -> None:
    shape, expected = ACCESSES[line]
    ranks = "ranks N=7, J=4, I=N"
    c = parse_cascade(f"{ranks}\nin A: f64[{shape}], B: f64[J], T: i64[I]\nout R: f64[I]\n{line}")
    g = plain_gradient(c)
    assert expected in str(g), str(g)
    sizes = {"N": 7, "J": 4, "I": 7}
    inputs = normal(rng, c, sizes) | {"T": rng.integers(0, 7, 7)}
    assert assert_is_gradient(c, g, inputs, sizes, rng) == 2


def test_two_dimensions_that_share_a_variable_meet_on_the_diagonal(
    rng: np.random.Generator,
) -> None:
    c = parse_cascade("in A: f64[N, N]\nout R: f64[N]\nR[n] = A[n, n] * A[n, 0]")
    assert assert_is_gradient(c, plain_gradient(c), normal(rng, c, {"N": 5}), {"N": 5}, rng) == 1


def test_a_tensor_in_several_definitions_has_one_adjoint(rng: np.random.Generator) -> None:
    c = parse_cascade(
        "in A: f64[N], B: f64[N]\nout R: f64[2 * N]\nT[n] = A[n] * 2.0\nT[n + N] = B[n] * A[n]\n"
        "ranks K=2*N\nR[k] = T[k] * T[k]"
    )
    assert assert_is_gradient(c, plain_gradient(c), normal(rng, c, {"N": 5}), {"N": 5}, rng) == 2


RECURRENCES = {
    "running sum": "S[0] = 0.0\nS[t + 1] = 0.9 * S[t] + X[t]\nY[t] = S[t + 1] * S[t]",
    "state": "S[0] = W[0]\nS[t + 1] = tanh(S[t] * W[1] + X[t])\nY[t] = S[T] * X[t]",
    "two states": "S[0] = 1.0\nU[0] = W[0]\nS[t + 1] = S[t] * W[1] + sin(U[t])\n"
    "U[t + 1] = U[t] * S[t + 1] + X[t]\nY[t] = U[t + 1] + S[t]",
    "two steps back": "S[0] = X[0]\nS[t + 1] = S[t] + 0.5 * S[t - 1] * W[0]\nY[t] = S[t + 1]",
    "an inner value": "S[0] = 1.0\nG[t] = sigmoid(S[t] + X[t])\nS[t + 1] = S[t] * G[t] + W[1]\n"
    "Y[t] = S[t + 1] + G[t]",
    "running maximum": "S[0] = -inf\nS[t + 1] = max(S[t], X[t])\nY[t] = S[t + 1]",
}


@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_recurrences_run_backwards(name: str, steps: int, rng: np.random.Generator) -> None:
    c = parse_cascade(f"in X: f64[T], W: f64[2]\nout Y: f64[T]\n{RECURRENCES[name]}")
    g = plain_gradient(c)
    assert str(parse_cascade(str(g))) == str(g)
    sizes = {"T": steps}
    assert assert_is_gradient(c, g, normal(rng, c, sizes), sizes, rng) == 2


def test_a_matrix_recurrence_runs_backwards(rng: np.random.Generator) -> None:
    text = "ranks I, J=I\nin A: f64[I, J], X: f64[T, I]\nout Y: f64[I]\nS[0, i] = 0.0\n"
    text += "S[t + 1, i] = tanh(A[i, j] * S[t, j]) + X[t, i]\nY[i] = S[T, i]"
    c = parse_cascade(text)
    sizes = {"I": 4, "J": 4, "T": 5}
    assert assert_is_gradient(c, plain_gradient(c), normal(rng, c, sizes), sizes, rng) == 2


# ---- against torch


class Differentiable(torch.autograd.Function):
    """A compiled program with its compiled gradient."""

    @staticmethod
    def forward(ctx: Any, programs: tuple[Any, Any], wrt: list[int], *args: Any) -> Any:
        ctx.programs, ctx.wrt = programs, wrt
        ctx.save_for_backward(*args)
        return programs[0](*args)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        found = ctx.programs[1](*ctx.saved_tensors, *(g.contiguous() for g in cotangents))
        found = found if isinstance(found, tuple) else (found,)
        out: list[Any] = [None] * len(ctx.saved_tensors)
        for n, value in zip(ctx.wrt, found, strict=True):
            out[n] = value
        return (None, None, *out)


def gradcheck(text: str, *args: Any, target: str = "cpu", sizes: Any = None) -> None:
    c = in_f64(text)
    wrt = [n for n, t in enumerate(c.inputs) if t.dtype.is_float]
    programs = tcc.compile(c, target=target), tcc.grad(c, target=target)
    given = [a.requires_grad_() if a.is_floating_point() else a for a in args]
    assert torch.autograd.gradcheck(lambda *x: Differentiable.apply(programs, wrt, *x), given)


def f64(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


CROSS_ENTROPY = """
in X: f64[B, C], Label: i64[B]
out Loss: f64
Max[b] = X[b, c] :: max(c)
Sum[b] = exp(X[b, c] - Max[b])
Loss   = (log(Sum[b]) + Max[b] - X[b, Label[b]]) / B
"""
CHAIN = """
in A: f64[I, J], B: f64[J, K], C: f64[K, L]
out R: f64[I, L]
T[i, k] = A[i, j] * B[j, k]
U[i, k] = tanh(T[i, k])
R[i, l] = U[i, k] * C[k, l]
"""
POOL = """
ranks N, R=3, P=(N - 1) // 2
in X: f64[N]
out Y: f64[P]
Y[p] = X[2 * p + r] :: max(r)
"""
GUARDED = """
in X: f64[M, N]
out Y: f64[M]
Max[m] = X[m, n] :: max(n)
Top[m] = select(abs(Max[m]) == inf, 0.0, Max[m])
Sum[m] = exp(X[m, n] - Top[m])
Y[m]   = log(Sum[m]) + Top[m]
"""
GRADCHECKS = {
    "attention.tcc": (None, [(4, 5), (4, 6), (3, 6)]),
    "attention_causal.tcc": (None, [(4, 6), (4, 6), (3, 6)]),
    "attention_two_pass.tcc": (None, [(4, 5), (4, 6), (3, 6)]),
    "layernorm.tcc": (None, [(3, 6), (6,), (6,)]),
    "rmsnorm.tcc": (None, [(3, 6), (6,)]),
    "softmax.tcc": (None, [(3, 6)]),
    "log_sum_exp.tcc": (None, [(3, 6)]),
    "conv1d_strided.tcc": (None, None),
    "scan.tcc": (None, [(4, 3)]),
    "chain": (CHAIN, [(3, 4), (4, 5), (5, 2)]),
    "pool": (POOL, [(9,)]),
    "guarded": (GUARDED, [(3, 5)]),
}


@pytest.mark.parametrize("name", GRADCHECKS)
def test_gradcheck_of_torch_holds(name: str) -> None:
    torch.manual_seed(0)
    text, shapes = GRADCHECKS[name]
    text = text or (EXAMPLES / name).read_text("utf-8")
    if shapes is None:
        c = in_f64(text)
        sizes = {r.name: 3 for r in c.ranks if r.size is None}
        from tcc.samples import shape_of

        shapes = [shape_of(c, t, sizes) for t in c.inputs]
    gradcheck(text, *(f64(*s) for s in shapes))


def test_gradcheck_holds_for_a_gather() -> None:
    torch.manual_seed(0)
    gradcheck(CROSS_ENTROPY, f64(4, 5), torch.tensor([0, 2, 4, 2]))


def test_attention_has_the_gradients_of_torch() -> None:
    torch.manual_seed(0)
    q, k, v, d = (torch.randn(8, 21), torch.randn(8, 33), torch.randn(5, 33), torch.randn(5, 21))
    for name, causal in (("attention.tcc", False), ("attention_causal.tcc", True)):
        gradient = tcc.grad(EXAMPLES / name, target="cpu")
        assert gradient.inputs == ("Q", "K", "V", "d_AV")
        assert gradient.outputs == ("d_Q", "d_K", "d_V")
        args = [t.T.clone().requires_grad_() for t in (q, k, v)]
        attend = torch.nn.functional.scaled_dot_product_attention
        want = torch.autograd.grad(
            attend(*(a[None] for a in args), is_causal=causal)[0], args, d.T.clone()
        )
        for got, expected in zip(gradient(q, k, v, d), want, strict=True):
            torch.testing.assert_close(got.T, expected, rtol=1e-4, atol=1e-5)


def test_equal_maxima_share_their_cotangent() -> None:
    text = "in X: f64[M, N]\nout Y: f64[M]\nY[m] = X[m, n] :: max(n)"
    x = torch.tensor([[1.0, 3, 3], [2, 2, 2]], dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(x.amax(1).sum(), x)
    got = tcc.grad(text, seeds={"Y": 1.0}, target="numpy")(x.detach())
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("row", [[2.0, 3, 4], [2, 0, 4], [0, 0, 4]])
def test_products_have_gradients_at_zero(row: list[float]) -> None:
    text = "in X: f64[N]\nout Y: f64\nY = X[n] :: prod(n)"
    x = torch.tensor(row, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(x.prod(), x)
    torch.testing.assert_close(tcc.grad(text, target="numpy")(x.detach(), 1.0), want)


# ---- as few passes as the program


def test_the_gradient_of_attention_visits_scores_by_their_row_statistics() -> None:
    """Every sum over the scores is a contraction; the maximum has no adjoint; nothing of the forward is stored."""
    c = tcc.load(EXAMPLES / "attention_two_pass.tcc").node
    g = gradient_of(c, ["Q", "K", "V"], saved=["GM", "SD", "AV"])
    assert [str(d) for d in g.definitions] == [
        "QK[m, p] = Q[e, p] * K[e, m] / sqrt(E)",
        "SN[m, p] = exp(QK[m, p] - GM[p])",
        "d_SNV[f, p] = d_AV[f, p] / SD[p]",
        "d_SD[p] = -(d_AV[f, p] * AV[f, p] / SD[p])",
        "d_SN_SNV[m, p] = d_SNV[f, p] * V[f, m]",
        "d_SN[m, p] = d_SN_SNV[m, p] + d_SD[p]",
        "d_QK[m, p] = d_SN[m, p] * SN[m, p]",
        "d_Q[e, p] = d_QK[m, p] / sqrt(E) * K[e, m]",
        "d_K[e, m] = d_QK[m, p] / sqrt(E) * Q[e, p]",
        "d_V[f, m] = d_SNV[f, p] * SN[m, p]",
    ]


def test_the_gradient_of_attention_walks_the_keys_once_with_saved_statistics() -> None:
    c = tcc.load(EXAMPLES / "attention.tcc").node
    saved = by_rank(count_passes(gradient_of(c, saved=["GM", "SD", "AV"])))
    assert [saved[r].passes for r in "MPF"] == [1, 1, 1]
    assert by_rank(count_passes(gradient_of(c)))["M"].passes <= 3


@pytest.mark.parametrize(
    "text, kept",
    [
        ("Z[m] = exp(X[m, n] - Max[m]) * W[n]\nL[m] = log(Z[m]) + Max[m]", False),
        ("Z[m] = exp(X[m, n] - Max[m])\nL[m] = log(Z[m]) + 2.0 * Max[m]", True),
        ("Z[m] = exp(2.0 * (X[m, n] - Max[m]))\nL[m] = log(Z[m]) / 2.0 + Max[m]", False),
        ("Z[m] = X[m, n] / Max[m]\nL[m] = Z[m] * Max[m]", False),
        ("Z[m] = (X[m, n] - Max[m]) * W[n]\nL[m] = Z[m]", True),
        ("Z[m] = tanh(X[m, n] - Max[m])\nL[m] = Z[m] + Max[m]", True),
        ("Z[m] = exp(X[m, n] - Max[m])\nL[m] = Z[m] / Z[M - 1 - m]", True),
    ],
)
def test_a_reference_has_an_adjoint_only_if_the_result_depends_on_it(
    text: str, kept: bool, rng: np.random.Generator
) -> None:
    c = parse_cascade(
        f"in X: f64[M, N], W: f64[N]\nout L: f64[M]\nMax[m] = X[m, n] :: max(n)\n{text}"
    )
    g = plain_gradient(c)
    assert ("d_Max[" in str(g)) == kept, str(g)
    sizes = {"M": 3, "N": 5}
    inputs = {k: np.abs(v) + 0.1 for k, v in normal(rng, c, sizes).items()}
    assert assert_is_gradient(c, g, inputs, sizes, rng) == 2


# ---- the ways to ask


def test_saved_tensors_are_inputs_and_come_from_the_forward_program() -> None:
    torch.manual_seed(0)
    q, k, v, d = (torch.randn(4, 7), torch.randn(4, 9), torch.randn(3, 9), torch.randn(3, 7))
    path = EXAMPLES / "attention.tcc"
    saved = tcc.grad(path, "Q", saved=("GM", "SD"), target="cpu")
    assert saved.inputs == ("Q", "K", "V", "GM", "SD", "d_AV")
    assert saved.forward.outputs == ("AV", "GM", "SD")
    _, maximum, total = saved.forward(q, k, v)
    torch.testing.assert_close(
        saved(q, k, v, maximum, total, d), tcc.grad(path, "Q", target="cpu")(q, k, v, d)
    )


def test_numbers_as_seeds_and_outputs_before_gradients() -> None:
    text = "in A: f64[N], B: f64[N]\nout Z: f64, Y: f64\nZ = A[n] * B[n]\nY = A[n] * A[n]"
    gradient = tcc.grad(text, "A", of="Z", seeds={"Z": 2.0}, forward=True, target="numpy")
    assert gradient.inputs == ("A", "B") and gradient.outputs == ("Z", "Y", "d_A")
    z, y, d_a = gradient(np.array([1.0, 2.0]), np.array([3.0, 5.0]))
    assert (z, y) == (13.0, 5.0)
    np.testing.assert_array_equal(d_a, [6.0, 10.0])


def test_a_gradient_has_a_gradient(rng: np.random.Generator) -> None:
    c = in_f64((EXAMPLES / "softmax.tcc").read_text("utf-8"))
    g = gradient_of(c)
    again = gradient_of(g)
    sizes = {"M": 3, "N": 5}
    assert assert_is_gradient(g, again, normal(rng, g, sizes), sizes, rng) == 2


def test_an_input_that_no_output_needs_has_the_gradient_zero() -> None:
    gradient = tcc.grad("in A: f32[N], B: f32[N]\nout Z: f32\nZ = A[n]", "B", target="numpy")
    np.testing.assert_array_equal(gradient(np.ones(3, "f"), np.ones(3, "f"), 1.0), np.zeros(3))


def test_element_types_are_those_of_the_inputs() -> None:
    g = tcc.grad("in A: f32[N], B: f64[N]\nout Z: f64\nZ = A[n] * B[n]", target="cpu")
    d_a, d_b = g(np.ones(3, np.float32), np.full(3, 2.0), 1.0)
    assert d_a.dtype == np.float32 and d_b.dtype == np.float64


@pytest.mark.parametrize(
    "text, options, code, words",
    [
        ("in A: f32[N]\nout Z: f32\nZ = A[n]", {"wrt": "B"}, "T0261", "no input `B`"),
        ("in A: f32[N]\nout Z: f32\nZ = A[n]", {"of": "Y"}, "T0261", "no output `Y`"),
        ("in A: f32[N]\nout Z: f32\nZ = A[n]", {"saved": "Y"}, "T0261", "defines no `Y`"),
        ("in A: i32[N]\nout Z: i32\nZ = A[n]", {"wrt": "A"}, "T0261", "`A` is i32"),
        ("in A: i32[N]\nout Z: i32\nZ = A[n]", {"of": "Z"}, "T0261", "`Z` is i32"),
        ("in A: f32\nout Z: f32\nranks T=9\nS[0] = A\nS[t + 1] = S[t] * A\nZ = S[T]\n"
         "stop t when S[t + 1] < 0.1", {}, "T0260", "stops early"),
        ("in A: f32\nout Z: f32\nranks T=9\nS[0] = A\nS[t + 1] = S[t] * A where t < 4\nZ = S[4]",
         {}, "T0260", "exists only in part"),
    ],
)  # fmt: skip
def test_what_has_no_gradient_is_refused(
    text: str, options: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(CompileError) as caught:
        tcc.grad(text, target="numpy", **options)
    assert caught.value.diagnostic.code == code
    assert words in caught.value.diagnostic.message


def test_the_command_prints_a_program_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(EXAMPLES / "attention_causal.tcc")
    assert main(["grad", file, "--wrt", "Q,V", "--saved", "GM", "--forward"]) == 0
    text = capsys.readouterr().out
    assert [t.name for t in parse_cascade(text).outputs] == ["AV", "GM", "d_Q", "d_V"]
    assert main(["grad", file]) == 0
    path = tmp_path / "gradient.tcc"
    path.write_text(capsys.readouterr().out, "utf-8")
    size = ["--size", "P=9,M=9,E=3,F=4"]
    assert main(["run", str(path), "--check", "--target", "cpu", *size]) == 0
    assert main(["grad", file, "--wrt", "Z"]) == 1
