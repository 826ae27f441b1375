"""Scaled inputs: taken apart by `unscale`, passed in parts, and the same numbers as the interpreter of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tcc
from tcc import dtypes
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype_scaled import random_stored
from tcc.passes.unscale import unscale
from tcc.targets import find

W4 = "in A: f32[M, K], W: u4[group k 128, scale f16, zero 8][N, K]\nout C: f32[M, N]\nC[m, n] = A[m, k] * W[n, k]\n"
TYPES = [
    "i4[group k 8, scale f16]", "u4[group k 4, scale f16, zero u4]", "u4[group k 16, scale f16, offset f16]",
    "f4e2m1[group k 16, scale e8m0]", "f4e2m1[group k 16, scale f8e4m3fn[scale f32]]", "i8[scale f32]",
    "u4[group k 8, scale u8[group k, scale f16], zero u4]", "u8[vector k 8, table f16, residual 2]",
    "u3[table f32]", "i3[group k 4, group n 2, scale bf16]", "u2[zero 1]", "u4[vector n 2, table bf16]",
    "u4[group k 8, scale u8[group n 2, scale f32]]", "posit8_0[group k, scale pow2_8]",
]  # fmt: skip


def test_a_read_becomes_arithmetic_on_the_parts() -> None:
    made = unscale(parse_cascade(W4), find("cpu"))
    assert [str(t) for t in made.inputs] == [
        "A: f32[M, K]", "W_codes: u4[N, K]", "W_scale: f16[N, K_GROUPS]"
    ]  # fmt: skip
    assert str(made.definitions[0]) == (
        "C[m, n] = A[m, k] * ((f32(W_codes[n, k]) - 8) * f32(W_scale[n, k // 128]))"
    )
    assert str(made.rank("K").size) and str(parse_cascade(str(made))) == str(made)
    assert unscale(made, find("cpu")) is made


def test_names_fills_and_fixed_sizes() -> None:
    text = """
        ranks K=8
        in  W: u8[vector k 4, table f16, residual 2][K] fill 3, W_codes: f32[K]
        out Z: f32[K]
        Z[k] = W[k + 1] * W_codes[k]"""
    made = unscale(parse_cascade(text), find("cpu"))
    assert [str(t) for t in made.inputs[:2]] == ["W_codes_: u8[2, 2]", "W_table: f16[2, 256, 4]"]
    assert (
        "select(k + 1 >= 0 and k + 1 < K, f32(W_table[0, W_codes_[0, (k + 1) // 4], (k + 1) % 4]) +"
        in str(made)
    )
    assert "3.0)" in str(made)


@pytest.mark.parametrize("types", [TYPES[:7], TYPES[7:]], ids=["one", "other"])
@pytest.mark.parametrize("head", ["", "ranks N=6, K=32\n"], ids=["symbolic", "fixed"])
def test_c_computes_what_the_interpreter_means(
    types: list[str], head: str, rng: np.random.Generator
) -> None:
    names = [f"W{n}" for n in range(len(types))]
    text = head + "in A: f32[M, K], " + ", ".join(f"{n}: {t}[N, K]" for n, t in zip(names, types))
    text += "\nout C: f32[M, N], " + ", ".join(f"D{n}: f32[N, K]" for n in names) + "\n"
    text += (
        f"C[m, n] = A[m, k] * ({' + '.join(f'{n}[n, k]' for n in names)} + {names[0]}[n, k - 3])\n"
    )
    text += "\n".join(f"D{n}[n, k] = {n}[n, k]" for n in names)
    a = rng.standard_normal((3, 32)).astype(np.float32)
    given = [random_stored(tcc.dtype(t), ("n", "k"), (6, 32), rng, 2) for t in types]
    want = tcc.parse(text).interpret(a, *given)
    got = tcc.compile(text, target="cpu", verify_each=True)(a, *given)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-4)
    for t, w, g in zip(types, want[1:], got[1:], strict=True):
        exact = "scale u8[" not in t and "scale f8" not in t and "offset" not in t
        np.testing.assert_allclose(g, w, rtol=0 if exact else 3e-7, atol=0 if exact else 1e-6)


def test_arguments_and_their_errors(rng: np.random.Generator) -> None:
    product = tcc.compile(W4)
    a = rng.standard_normal((2, 256)).astype(np.float32)
    w = dtypes.encode(
        rng.standard_normal((5, 256)), "u4[group k 128, scale f16, zero 8]", axes="n k"
    )
    want = a @ w.decode().T
    np.testing.assert_allclose(product(W=w, A=a), want, rtol=1e-4, atol=1e-4)
    into = np.empty((2, 5), np.float32)
    np.testing.assert_array_equal(product(a, w, out=into), product(a, w))
    empty = dtypes.Encoded(w.dtype, w.axes, w.codes[:, :0], {"scale": np.ones((5, 0), np.float16)})
    np.testing.assert_array_equal(product(a[:, :0], empty), np.zeros((2, 5)))
    wrong: list[tuple[Any, str]] = [
        (w.codes, "`W`: a ndarray is no tensor of u4"),
        (dtypes.encode(w.decode(), "u4[group k 64, scale f16, zero 8]", "n k"), "not u4"),
        (dtypes.Encoded(w.dtype, ("k", "n"), w.codes.T, {"scale": w.parts["scale"].T}), "over k, n"),
    ]  # fmt: skip
    for value, message in wrong:
        with pytest.raises(CompileError, match=message):
            product(a, value)
    with pytest.raises(CompileError, match="`codes` has the value 16"):
        dtypes.Encoded(w.dtype, w.axes, w.codes + np.uint8(16 - w.codes.max()), dict(w.parts))


def test_torch_tensors_as_parts(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    w = dtypes.encode(
        rng.standard_normal((5, 128)), "u4[group k 128, scale f16, zero 8]", axes="n k"
    )
    parts = {n: torch.from_numpy(p) for n, p in w.parts.items()}
    tensors = dtypes.Encoded(w.dtype, w.axes, torch.from_numpy(w.codes), parts)
    a = torch.randn(3, 128)
    program = tcc.compile(W4.replace("[N, K]\n", "[N, K] constant\n"))
    for scale in (1.0, 2.0):  # what was made of a constant is made again when that changes
        parts["scale"].mul_(scale)
        want = a.double() @ torch.from_numpy(tensors.decode()).T
        torch.testing.assert_close(program(a, tensors).double(), want, rtol=1e-4, atol=1e-4)


def test_gradients_leave_encoded_inputs_out(rng: np.random.Generator) -> None:
    text = W4.replace("128", "8")
    w = dtypes.encode(rng.standard_normal((5, 16)), "u4[group k 8, scale f16, zero 8]", axes="n k")
    a, d = rng.standard_normal((3, 16)).astype("f4"), rng.standard_normal((3, 5)).astype("f4")
    np.testing.assert_allclose(tcc.grad(text)(a, w, d), d @ w.decode(), rtol=1e-4, atol=1e-5)
    with pytest.raises(CompileError, match="only floats have gradients"):
        tcc.grad(text, "W")


def test_sizes_of_groups_follow_from_those_of_ranks() -> None:
    from tcc.ir.cost import cost

    result = tcc.compile(W4).result
    assert result.mapping is not None
    assert cost(result.mapping, result.target, {"M": 4, "N": 16, "K": 256}).seconds > 0
