"""Element types in programs: reads decode, stores round once, reductions are exact up to there."""

from __future__ import annotations

import numpy as np
import pytest

import tcc
from tcc import dtypes, targets
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.interpret import interpret
from tcc.passes.derive import derivation
from tcc.passes.restrict import restrict


def test_what_is_read_is_decoded_and_what_is_written_is_rounded_once(
    rng: np.random.Generator,
) -> None:
    c = parse_cascade("""
        in  A: f8e4m3fn[M, K], W: i4[group k 4, scale f16, zero u4][N, K]
        out C: bf16[M, N], D: f32[M, N]
        C[m, n] = A[m, k] * W[n, k]
        D[m, n] = C[m, n] * 2.0""")
    a = dtypes.encode(rng.standard_normal((3, 8)), "f8e4m3fn")
    w = dtypes.encode(rng.standard_normal((5, 8)), "i4[group k 4, scale f16, zero u4]", "n k")
    exact = dtypes.decode(a, "f8e4m3fn") @ w.decode().T
    got = interpret(c, {"A": a, "W": w})
    np.testing.assert_array_equal(got["C"], dtypes.encode(exact, "bf16"))
    np.testing.assert_array_equal(got["D"], 2 * dtypes.decode(got["C"], "bf16"))


def test_stores_draw_their_random_numbers_by_position(rng: np.random.Generator) -> None:
    c = parse_cascade("in X: f32[M, N]\nout Z: f8e5m2.stochastic9[N, M]\nZ[n, m] = X[m, n] * 3.0")
    x = rng.standard_normal((4, 6)).astype(np.float32)
    want = dtypes.encode(x.T.astype(np.float64) * 3, "f8e5m2.stochastic9")
    np.testing.assert_array_equal(interpret(c, {"X": x})["Z"], want)


def test_reductions_into_narrow_types_are_explicit_after_restrict() -> None:
    c = parse_cascade(
        "in A: bf16[M, K]\nout Z: bf16[M], Y: u3[M]\nZ[m] = A[m, k]\nY[m] = i32(A[m, 0])"
    )
    made = restrict(c, targets.find("cpu"))
    assert [str(d) for d in made.definitions] == [
        "Z_exact[m] = A[m, k]", "Z[m] = bf16(Z_exact[m])", "Y[m] = u3(i32(A[m, 0]))",
    ]  # fmt: skip
    assert made.tensors["Z_exact"].dtype.name == "f32"
    assert restrict(made, targets.find("cpu")) is made


def test_a_rounded_reference_is_a_barrier_for_one_walk() -> None:
    c = parse_cascade("""
        in  X: f32[M, P]
        out Z: f32[P], G: bf16[P]
        G[p] = X[m, p] :: max(m)
        Z[p] = exp(X[m, p] - G[p])""")
    report = derivation(restrict(c, targets.find("cpu")))
    assert [b.why for b in report.barriers if "rounds" in b.why] or not report.program.joints


def test_calls_take_encoded_tensors_and_arrays_of_ml_dtypes(rng: np.random.Generator) -> None:
    text = "in A: bf16[M, K], W: i4[group k 4, scale f16][N, K]\nout C: f32[M, N]\nC[m, n] = A[m, k] * W[n, k]"
    program = tcc.compile(text, target="numpy")
    a = dtypes.encode(rng.standard_normal((3, 8)), "bf16")
    w = dtypes.encode(rng.standard_normal((5, 8)), "i4[group k 4, scale f16]", "n k")
    got = program(a, w)
    np.testing.assert_allclose(got, dtypes.decode(a, "bf16") @ w.decode().T, rtol=1e-6)
    with pytest.raises(CompileError, match="is no tensor of i4"):
        program(a, np.ones((5, 8)))
    with pytest.raises(CompileError, match="`A`: float32 numbers are no codes of bf16"):
        program(np.ones((3, 8), np.float32), w)
    np.testing.assert_allclose(tcc.compile(text, target="cpu")(a, w), got, rtol=1e-5, atol=1e-5)
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    np.testing.assert_array_equal(program(a.view(ml_dtypes.bfloat16), w), got)


@pytest.mark.parametrize("name, values, message", [
    ("u3", np.uint8([1, 8]), "`W` has an element 8, but u3 has values from 0 to 7"),
    ("i3", np.int8([3, -5]), "`W` has an element -5, but i3 has values from -4 to 3"),
    ("f6e3m2", np.uint8([1, 64]), "`W` has an element 64, but f6e3m2 has codes from 0 to 63"),
    ("i3", np.int64([1, 2]), "int64 numbers are no codes of i3"),
])  # fmt: skip
def test_values_that_a_type_lacks_are_refused_where_it_is_declared(
    name: str, values: np.ndarray, message: str
) -> None:
    program = tcc.compile(f"in W: {name}[N]\nout Z: f32[N]\nZ[n] = f32(W[n])", target="cpu")
    with pytest.raises(CompileError, match=message) as caught:
        program(values)
    d = caught.value.diagnostic
    assert d.code == "T0148" and d.helps and d.span is not None and d.span.line == 1


def test_parts_of_another_type_are_refused_where_the_tensor_is_declared() -> None:
    t = dtypes.dtype("i4[group k 4, scale f16]")
    program = tcc.compile(f"in W: {t}[N, K]\nout Z: f32[N]\nZ[n] = W[n, k]", target="cpu")
    codes, scale = np.zeros((2, 8), np.int8), np.ones((2, 2), np.float16)
    for parts, code in (
        ((codes, scale.astype(np.float32)), "T0142"),
        ((codes.astype(np.float32), scale), "T0148"),
    ):
        with pytest.raises(CompileError) as caught:
            program(dtypes.Encoded(t, ("n", "k"), parts[0], {"scale": parts[1]}))
        assert caught.value.diagnostic.code == code and caught.value.diagnostic.span is not None
