"""Joint reductions: walking gives what the definitions give, in every form, and their text is exact."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tcc.ir import joint_laws
from tcc.ir.cascade import Cascade, Joint
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.interpret import interpret
from tcc.ir.joint import Form, Split, Stream, Tree, check_body, interpret_joints, run_joint
from tcc.ir.joint_verify import check_joints, holding, walk_of

TILES = (1, 7, 16, 64)
FORMS: list[Form] = [
    *(Stream(t) for t in TILES),
    *(Tree(t) for t in TILES),
    *(Split(p, t) for p in (2, 3) for t in TILES),
]

ATTENTION = """cascade attention
ranks P, M, E=8, F=5
in Q: f64[E, P], K: f64[E, M], V: f64[F, M]
out AV: f64[F, P]
QK[m, p] = Q[e, p] * K[e, m] / sqrt(E)
GM[p] = QK[m, p] :: max(m)
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p] = SN[m, p]
AV_sum[f, p] = SN[m, p] * V[f, m]
AV[f, p] = AV_sum[f, p] / SD[p]
joint m: GM, SD by SD * exp(GM - GM'), AV_sum by AV_sum * exp(GM - GM')
"""
CAUSAL = ATTENTION.replace("/ sqrt(E)", "/ sqrt(E) where m <= p")
MASKED = ATTENTION.replace("/ sqrt(E)", "/ sqrt(E) where Seen[m, p]").replace(
    "V: f64[F, M]", "V: f64[F, M], Seen: bool[M, P]"
)
DIRECT = ATTENTION.replace("Q: f64[E, P], K: f64[E, M]", "S: f64[M, P]").replace(
    "Q[e, p] * K[e, m] / sqrt(E)", "S[m, p] + 0.0"
)
LOG_SUM_EXP = """in X: f64[M, P]
out Y: f64[P]
Max[p] = X[m, p] :: max(m)
Sum[p] = exp(X[m, p] - Max[p])
Y[p] = Max[p] + log(Sum[p])
joint m: Max, Sum by Sum * exp(Max - Max')
"""
# Σ (x - μ')² = Σ (x - μ)² + N (μ - μ')² where μ is the mean of these x
VARIANCE = """in X: f64[M, P]
out Y: f64[P]
S1[p] = X[m, p]
N[p] = 1.0 where X[m, p] == X[m, p]
MU[p] = S1[p] / max(N[p], 1.0)
S2[p] = (X[m, p] - MU[p]) ** 2
Y[p] = S2[p] / N[p]
joint m: S1, N, S2 by S2 + N * (S1 / max(N, 1.0) - S1' / max(N', 1.0)) ** 2
"""
# about any reference R: Σ (x - R')² = Σ (x - R)² + 2 (R - R') Σ (x - R) + N (R - R')²
TAYLOR = """in X: f64[M, P]
out Y: f64[P]
R[p] = X[m, p] :: max(m)
B[p] = select(R[p] == -inf, 0.0, R[p])
N[p] = 1.0 where X[m, p] == X[m, p]
S1[p] = X[m, p] - B[p]
S2[p] = (X[m, p] - B[p]) ** 2
Y[p] = S2[p] / N[p] - (S1[p] / N[p]) ** 2
joint m: R, N, S1 by select(N == 0.0, 0.0, S1 + N * (R - R')), S2 by select(N == 0.0, 0.0, S2 + 2.0 * (R - R') * S1 + N * (R - R') ** 2)
"""
RMS = """in X: f64[P, M], W: f64[M, N]
out Y: f64[P, N]
SS[p] = X[p, m] ** 2
YS[p, n] = X[p, m] * W[m, n]
Y[p, n] = YS[p, n] / sqrt(SS[p] / M + 1e-6)
joint m: SS, YS
"""
ARGMAX = """in X: f64[M, P], W: f64[M, P]
out I: i64[P], Z: f64[P]
Max[p] = X[m, p] :: max(m)
I[p] = m :: min(m) where X[m, p] == Max[p]
Z[p] = W[m, p] :: max(m) where X[m, p] == Max[p]
joint m: Max, I by select(Max == Max', I, 9223372036854775807), Z by select(Max == Max', Z, -inf)
"""


def arrays(c: Cascade, seed: int, **sizes: int) -> dict[str, Any]:
    """Normal random inputs; booleans that hold twice in three times."""
    random = np.random.default_rng(seed)
    known = {"E": 8, "F": 5, **sizes}
    out: dict[str, Any] = {}
    for t in c.inputs:
        shape = [known[str(s.rank)] for s in t.shape]  # type: ignore[union-attr]
        out[t.name] = (
            random.random(shape) < 0.66 if t.dtype.kind == "b" else random.normal(size=shape)
        )
    return out


def agree(text: str, inputs: dict[str, Any], forms: list[Form] | None = None) -> None:
    """Every form gives the outputs of the naive interpreter to 1e-12."""
    c = parse_cascade(text)
    want = interpret(c, inputs)
    for form in forms or FORMS:
        got = interpret_joints(c, inputs, form=form)
        for name, value in want.items():
            np.testing.assert_allclose(
                got[name], value, rtol=1e-12, atol=1e-12, err_msg=f"{name}, {form}"
            )


@pytest.mark.parametrize("text", [ATTENTION, CAUSAL, MASKED, DIRECT])
@pytest.mark.parametrize("m, p", [(1, 1), (1, 3), (37, 5), (64, 3), (65, 70)])
def test_attention_in_one_walk(text: str, m: int, p: int) -> None:
    agree(text, arrays(parse_cascade(text), m * p, M=m, P=p))


def test_rows_of_minus_infinity_give_nan_and_no_other_row_does() -> None:
    inputs = arrays(parse_cascade(DIRECT), 0, M=37, P=4)
    inputs["S"][:, 1] = -np.inf  # a whole row
    inputs["S"][:20, 2] = -np.inf  # whole tiles, at the start
    inputs["S"][9:, 3] = -np.inf  # and at the end
    agree(DIRECT, inputs)
    found = interpret_joints(parse_cascade(DIRECT), inputs, form=Stream(7))["AV"]
    assert np.isnan(found).any(0).tolist() == [False, True, False, False]


def test_rows_that_a_mask_empties_give_what_the_definitions_give() -> None:
    inputs = arrays(parse_cascade(MASKED), 0, M=37, P=4)
    inputs["Seen"][:, 1] = False
    inputs["Seen"][:20, 2] = False
    agree(MASKED, inputs)


@pytest.mark.parametrize("scale", [1e4, 1e-4, 1e-300])
def test_huge_and_tiny_scores(scale: float) -> None:
    inputs = arrays(parse_cascade(DIRECT), 1, M=37, P=4)
    inputs["S"] *= scale
    agree(DIRECT, inputs)
    inputs["S"][3, 0] = np.inf
    inputs["S"][4, 1] = np.nan
    agree(DIRECT, inputs)


@pytest.mark.parametrize("text", [LOG_SUM_EXP, VARIANCE, TAYLOR, RMS, ARGMAX])
@pytest.mark.parametrize("m", [1, 2, 37, 65])
def test_other_joints_in_one_walk(text: str, m: int) -> None:
    inputs = arrays(parse_cascade(text), m, M=m, P=6, N=3)
    agree(text, inputs)
    inputs["X"] = inputs["X"] * 1e3 + 1e3
    agree(text, inputs)


def test_the_first_of_equal_values_is_found_in_every_form() -> None:
    inputs = arrays(parse_cascade(ARGMAX), 0, M=37, P=6)
    inputs["X"] = np.round(inputs["X"])
    inputs["X"][:, 2] = -np.inf
    inputs["X"][:, 3] = np.inf
    agree(ARGMAX, inputs)
    c = parse_cascade(ARGMAX)
    for form in FORMS:
        found = interpret_joints(c, inputs, form=form)["I"]
        assert (found == np.argmax(inputs["X"], axis=0)).all()


def test_nothing_to_walk_gives_the_identities() -> None:
    c = parse_cascade(LOG_SUM_EXP)
    for form in FORMS:
        found = run_joint(c, c.joints[0], {"X": np.zeros((0, 3))}, None, form)
        assert (found["Max"] == -np.inf).all() and (found["Sum"] == 0).all()


def test_the_values_of_the_fields_are_those_of_their_definitions() -> None:
    c = parse_cascade(CAUSAL)
    inputs = arrays(c, 0, M=20, P=20)
    found = run_joint(c, c.joints[0], inputs, form=Split(3, 4))
    scores = np.einsum("ep,em->mp", inputs["Q"], inputs["K"]) / np.sqrt(8)
    scores[np.tril_indices(20, -1)] = -np.inf
    np.testing.assert_allclose(found["GM"], scores.max(0))
    np.testing.assert_allclose(found["SD"], np.exp(scores - scores.max(0)).sum(0), rtol=1e-12)
    assert list(found) == ["GM", "SD", "AV_sum"]


def test_two_joints_one_after_the_other() -> None:
    text = """in X: f64[M, P], V: f64[M, N]
out Z: f64[N, P]
A[p] = X[m, p] :: max(m)
S[p] = exp(X[m, p] - A[p])
T[n, p] = exp(X[m, p] - A[p]) * V[m, n]
H[n, p] = T[n, p] / S[p]
B[p] = H[n, p] :: max(n)
U[p] = exp(H[n, p] - B[p])
Z[n, p] = exp(H[n, p] - B[p]) / U[p]
joint m: A, S by S * exp(A - A'), T by T * exp(A - A')
joint n: B, U by U * exp(B - B')
"""
    agree(text, arrays(parse_cascade(text), 0, M=37, P=3, N=19))


def test_corrections_may_read_other_tensors() -> None:
    text = LOG_SUM_EXP.replace("in X: f64[M, P]", "in X: f64[M, P], H: f64[P]")
    text = text.replace("exp(X[m, p] - Max[p])", "exp((X[m, p] - Max[p]) * H[p])")
    text = text.replace("exp(Max - Max')", "exp((Max - Max') * H[p])")
    inputs = arrays(parse_cascade(text), 0, M=37, P=5)
    inputs["H"] = np.abs(inputs["H"])
    agree(text, inputs)


# ---- text


@pytest.mark.parametrize("text", [ATTENTION, CAUSAL, LOG_SUM_EXP, VARIANCE, TAYLOR, RMS, ARGMAX])
def test_a_joint_reads_back_as_it_is_printed(text: str) -> None:
    c = parse_cascade(text)
    again = parse_cascade(str(c))
    assert str(again) == str(c)
    assert len(again.joints) == 1 and again.joints[0].tensors == c.joints[0].tensors
    assert str(c.joints[0]) in text


def test_a_joint_survives_new_definitions_when_it_still_holds() -> None:
    c = parse_cascade(ATTENTION)
    again = c.with_definitions(tuple(reversed(c.definitions)))
    assert [str(j) for j in again.joints] == [str(j) for j in c.joints]
    kept = tuple(d for d in c.definitions if d.target not in ("AV", "AV_sum"))
    with pytest.raises(CompileError, match=r"T0107|T0135"):
        c.with_definitions(kept)
    assert holding(c, [*c.joints, Joint("m", c.joints[0].fields[1:])]) == c.joints
    assert holding(c, [Joint("e", c.joints[0].fields)]) == ()


def test_a_walk_knows_what_it_streams() -> None:
    c = parse_cascade(VARIANCE)
    w = walk_of(c, c.joints[0])
    assert {t: [d.target for d in ds] for t, ds in w.between.items()} == {
        "S1": [], "N": [], "S2": ["MU"],
    }  # fmt: skip
    assert w.streamed == ()
    c = parse_cascade(ATTENTION)
    assert [d.target for d in walk_of(c, c.joints[0]).streamed] == ["SN"]


# ---- laws and bodies


@pytest.mark.parametrize("text", [ATTENTION, CAUSAL, LOG_SUM_EXP, VARIANCE, TAYLOR, RMS, ARGMAX])
def test_walking_gives_the_definitions(text: str) -> None:
    c = parse_cascade(text.replace("f64", "f32"))
    check_body(c, c.joints[0])


@pytest.mark.parametrize("right, wrong", [
    ("SD by SD * exp(GM - GM')", "SD by SD * exp(2.0 * (GM - GM'))"),
    ("AV_sum by AV_sum * exp(GM - GM')", "AV_sum by AV_sum * exp2(GM - GM')"),
    ("SD by SD * exp(GM - GM')", "SD by select(GM == GM', SD, 0.0)"),
])  # fmt: skip
def test_a_correction_for_another_definition_is_found(right: str, wrong: str) -> None:
    assert right in ATTENTION
    c = parse_cascade(ATTENTION.replace(right, wrong))
    with pytest.raises(CompileError, match=r"T0138.*its definition") as caught:
        check_body(c, c.joints[0])
    d = caught.value.diagnostic
    assert d.span is not None
    assert d.span.source.line(d.span.line)[d.span.column - 1 :].startswith(wrong.split(" by ")[1])


@pytest.mark.parametrize("wrong, law", [
    ("exp(GM' - GM)", "identity"), ("(GM - GM')", "neutral"), ("exp(GM - GM') * 2.0", "neutral"),
    ("exp((GM - GM') ** 3)", "associativity"), ("GM / GM'", "identity"),
])  # fmt: skip
def test_a_broken_law_is_named_with_its_numbers(wrong: str, law: str) -> None:
    with pytest.raises(CompileError, match=rf"T0137.*{law}.*`SD` is .*, not \d.*GM = \d"):
        parse_cascade(ATTENTION.replace("SD * exp(GM - GM')", f"SD * {wrong}"))


def test_the_laws_are_tried_in_a_few_milliseconds_and_once() -> None:
    c = parse_cascade(ATTENTION)
    joint_laws._broken.cache_clear()
    first = time.perf_counter()
    check_joints(c)
    second = time.perf_counter()
    check_joints(parse_cascade(ATTENTION))
    assert joint_laws._broken.cache_info().hits >= 1
    assert second - first < 0.1


# ---- argmax and argmin


@pytest.mark.parametrize("kind", ["argmax", "argmin"])
@pytest.mark.parametrize("body", ["X[m, p]", "X[m, p] * X[m, p] - 0.5", "-X[m, p]"])
def test_places_of_extremes_are_those_of_numpy(kind: str, body: str) -> None:
    c = parse_cascade(f"in X: f64[M, P]\nout I: i64[P]\nI[p] = {body} :: {kind}(m)\n")
    x = np.round(np.random.default_rng(0).normal(size=(37, 6)))
    x[3, 1] = x[9, 1] = np.nan
    x[:, 2] = -np.inf
    x[30, 3] = np.inf
    value = {"X[m, p]": x, "-X[m, p]": -x}.get(body, x * x - 0.5)
    found = interpret(c, {"X": x})["I"]
    assert found.dtype == np.int64
    assert (found == getattr(np, kind)(value, axis=0)).all()


def test_restrict_writes_places_of_extremes_as_ordinary_reductions() -> None:
    from tcc import targets
    from tcc.passes.restrict import restrict

    c = parse_cascade(
        "in X: f32[M, P]\nout I: i64[P]\nI[p] = X[m, p] * 2 :: argmin(m) where m <= p"
    )
    found = [str(d) for d in restrict(c, targets.find("cpu")).definitions]
    assert found == [
        "I_of[p, m] = X[m, p] * 2 where m <= p",
        "I_min[p] = I_of[p, m] :: min(m) where m <= p",
        "I[p] = m :: min(m) where I_of[p, m] == I_min[p] or I_of[p, m] != I_of[p, m], m <= p",
    ]


def test_the_place_in_nothing_is_the_largest_integer() -> None:
    c = parse_cascade("in X: f32[M]\nout I: i64\nI = X[m] :: argmax(m)")
    assert interpret(c, {"X": np.zeros(0, "f")})["I"] == 2**63 - 1
    c = parse_cascade("in X: i32[M, P]\nout I: i64[P]\nI[p] = X[m, p] :: argmax(m) where m > p")
    found = interpret(c, {"X": np.array([[5, 5], [7, 7], [1, 1]], np.int32)})["I"]
    assert found.tolist() == [1, 2]


def test_places_nest_with_other_reductions() -> None:
    x = np.random.default_rng(0).normal(size=(4, 5, 6))
    c = parse_cascade("in X: f64[I, J, K]\nout Z: i64[I]\nZ[i] = X[i, j, k] :: max(j), argmax(k)")
    assert (interpret(c, {"X": x})["Z"] == x.argmax(2).max(1)).all()
    c = parse_cascade("in X: f64[I, J, K]\nout Z: i64[I]\nZ[i] = X[i, j, k] :: argmax(j), max(k)")
    assert (interpret(c, {"X": x})["Z"] == x.max(2).argmax(1)).all()
    c = parse_cascade("in X: f64[I, J, K]\nout Z: i64[I]\nZ[i] = X[i, j, k] :: argmin(j)")
    assert (interpret(c, {"X": x})["Z"] == x.sum(2).argmin(1)).all()


def test_places_compile() -> None:
    import tcc

    text = "in X: f32[M, P]\nout I: i64[P]\nI[p] = X[m, p] * X[m, p] :: argmax(m)"
    x = np.random.default_rng(0).normal(size=(37, 6)).astype("f")
    x[4, 3] = np.nan
    assert (tcc.compile(text)(X=x) == np.argmax(x * x, axis=0)).all()
