"""Outputs of scaled types on CPUs: scale, zero and offset of each group, and codes, are those of the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tcc
from tcc import dtypes
from tcc.compare import same_meaning
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.passes.unscale import unscale
from tcc.targets import find

TYPES = [
    "i8[group k 32, scale f32]", "u4[group k 16, scale f16, zero 8]", "i8[group k, scale f32]", "u8[scale f32, zero 128]",
    "f8e4m3fn[group k 32, scale f32]", "i4[group m 2, group k 16, scale bf16]",  # a scale of their own
    "f4e2m1[group k 32, scale e8m0]", "f6e2m3[group k 32, scale e8m0]", "i8[group m, scale e8m0]",  # powers of two
    "u4[group k 32, scale f16, zero u4]", "i5[group k 32, scale f32, zero f16]", "i5[offset f32]",  # zeros and offsets
    "u4[group k 16, scale f16, offset f16]", "u4[group k 16, scale f32, zero u4, offset f32]", "u2[zero 1]",
    "f4e2m1[group k 16, scale f8e4m3fn[scale f32]]", "u4[group k 8, scale u8[group m 2, scale f32]]",  # scales of scales
    "u4[group k 8, scale u8[group k, scale f16], zero u4]",
    "i3[group k 4, scale u6[group k 32, scale f16[scale f32]]]",
    "nf4[group k 32, scale f32]", "codebook[-1, 0, 0.5][group k 4, scale e5m0]",  # tables
    "posit8_0[group k, scale pow2_8]", "posit6_1[group m, scale posit16_1]", "i16[group k 32, scale f64]",
    "i8.stochastic3[group k 32, scale f32.stochastic4]", "f4e2m1.stochastic5[group k 32, scale e8m0]",
    "i8.zero[group k 32, scale f16.zero]",
]  # fmt: skip
PROGRAM = """
    in  X: f32[M, K], Y: f32[K]
    out Z: {t}[M, K], S: f32[M]
    Z[m, k] = X[m, k] * Y[k] + 1.0
    S[m]    = Z[m, k] * Z[m, k]
"""


def same(got: Any, want: Any, name: str) -> None:
    """Bit for bit, but for NaN's payloads."""
    if isinstance(want, dtypes.Encoded):
        assert (got.dtype, got.axes, set(got.parts)) == (want.dtype, want.axes, set(want.parts))
        same(got.codes, want.codes, f"codes of {name}")
        for part, value in want.parts.items():
            same(got.parts[part], value, f"{part} of {name}")
        return
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want, err_msg=name)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want), err_msg=name)


def numbers(rng: np.random.Generator) -> np.ndarray:
    """Groups of all sizes: of zeros, of one sign, of powers of two, with values that are not finite."""
    x = rng.standard_normal((6, 96)) * np.exp(2 * rng.standard_normal((6, 96)))
    x[1], x[2, :40], x[4] = 0.0, np.abs(x[2, :40]), x[4] * 1e-30
    x[5, :32] = np.exp2(rng.integers(-20, 20, 32))
    x[3, 5:8] = np.inf, -np.inf, np.nan
    return x.astype(np.float32)


@pytest.mark.parametrize("types", [TYPES[n::6] for n in range(6)], ids="+".join)
def test_c_stores_what_the_interpreter_stores(types: list[str], rng: np.random.Generator) -> None:
    text = "in X: f32[M, K]\nout " + ", ".join(f"Z{n}: {t}[M, K]" for n, t in enumerate(types))
    text += "\n" + "\n".join(f"Z{n}[m, k] = X[m, k]" for n in range(len(types)))
    x = numbers(rng)
    got, want = tcc.compile(text)(x), tcc.compile(text, target="numpy")(x)
    for t, g, w in zip(types, got, want, strict=True):
        same(g, w, t)


@pytest.mark.parametrize("t", [TYPES[n] for n in (0, 1, 2, 3, 6, 9, 17)])
def test_the_parts_mean_the_whole(t: str) -> None:
    c = parse_cascade(PROGRAM.format(t=t))
    after = unscale(c, find("cpu"))
    assert after.outputs[0].name == "Z_codes" and after.outputs[-1].name == "S"
    assert same_meaning(c, after) == ""


def test_outputs_that_exist_everywhere_have_nothing_but_parts() -> None:
    kind = "u4[group k 16, scale f16, zero u4]"
    text = f"in X: f32[M, K]\nout Y: {kind}[M, K], Z: {kind}[M, K]\nY[m, k] = X[m, k]\nZ[m, k] = -X[m, k]"
    found = [o.name for o in unscale(parse_cascade(text), find("cpu")).outputs]
    assert found == [f"{t}_{p}" for t in "YZ" for p in ("codes", "scale", "zero")]


def test_what_reads_an_output_reads_what_is_stored(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((6, 96)).astype(np.float32), rng.random(96, np.float32)
    z, total = tcc.compile(PROGRAM.format(t=TYPES[9]))(x, y)
    np.testing.assert_allclose(total, (z.decode() ** 2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("body", [
    "Z[m, k] = X[m, k] where k < 5 + m\nS[m, k] = Z[m, k + 1] * 2.0",
    "T[m, k] = X[m, k] where k < 5 + m\nZ[m, k] = T[m, k] + 1.0\nS[m, k] = Z[m, k] * Z[m, k]",
    "Z[m, K - 1 - k] = X[m, k]\nS[m, k] = Z[m, k] * 0.5",
])  # fmt: skip
def test_outputs_that_exist_partly_hold_their_fill(body: str, rng: np.random.Generator) -> None:
    kind = "u4[group k 16, scale f16, zero 8]"
    text = f"in X: f32[M, K]\nout Z: {kind}[M, K] fill 3, S: f32[M, K]\n{body}"
    x = rng.standard_normal((8, 64)).astype(np.float32)
    got, want = (tcc.compile(text, target=t)(x) for t in ("cpu", "numpy"))
    same(got[0], want[0], body)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-6, atol=1e-6)


def test_other_shapes(rng: np.random.Generator) -> None:
    """A rank twice, a dimension without a rank, no dimension, and what is an input and an output."""
    x = rng.standard_normal((8, 8)).astype(np.float32)
    for text in (
        "in X: f32[K, K]\nranks J=K\nout Z: i8[group k 4, scale f32][K, K]\nZ[k, j] = X[k, j]",
        "in X: f32[M, 8]\nranks J=8\nout Z: i8[group m 4, scale f32][M, 8]\nZ[m, j] = X[m, j]",
        "in X: f32[M, K]\nout Z: u4[scale f32, zero u4]\nZ = X[m, k]",
    ):
        same(tcc.compile(text)(x), tcc.compile(text, target="numpy")(x), text)
    kind = "i4[group k 4, scale f16][M, K]"
    both = tcc.compile(f"in X: {kind}\nout X: {kind}, Y: f32[M]\nY[m] = X[m, k]")
    given = dtypes.encode(x, "i4[group k 4, scale f16]", "m k")
    back, total = both(given)
    same(back, given, kind)
    np.testing.assert_allclose(total, given.decode().sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [TYPES[n] for n in (3, 15, 17)])
def test_of_nothing_there_is_no_scale(t: str) -> None:
    text = f"in X: f32[M, K]\nout Z: {t}[M, K]\nZ[m, k] = X[m, k]"
    for shape in ((0, 64), (3, 0)):
        x = np.zeros(shape, np.float32)
        same(tcc.compile(text)(x), tcc.compile(text, target="numpy")(x), t)


def test_a_cache_is_extended_by_quantised_keys() -> None:
    """What is appended is stored by one program and read by the next."""
    torch = pytest.importorskip("torch")
    kind = "i8[group e, scale f32][H, T, E]"
    store = tcc.compile(f"in X: f32[H, T, E]\nout K: {kind}\nK[h, t, e] = X[h, t, e]")
    scores = tcc.compile(
        f"in Q: f32[H, E], K: {kind}\nout S: f32[H, T]\nS[h, t] = Q[h, e] * K[h, t, e]"
    )
    x, q = torch.randn(2, 5, 64), torch.randn(2, 64)
    k = store(x)
    assert isinstance(k.codes, torch.Tensor)
    want = torch.einsum("he,hte->ht", q, torch.from_numpy(k.decode()).float())
    torch.testing.assert_close(scores(q, k), want, rtol=1e-4, atol=1e-4)
    assert np.abs(k.decode() - x.numpy()).max() < 4 / 127


def test_coded_outputs_are_coded_behind_the_program(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    text = "in X: f32[N, K]\nout Z: bf16[coded k 32, lanes n 2][N, K]\nZ[n, k] = X[n, k] * 3.0"
    x = rng.standard_normal((4, 64)).astype(np.float32)
    want = dtypes.encode(x * np.float32(3), "bf16")
    for given in (x, torch.from_numpy(x)):
        got = tcc.compile(text)(given)
        assert isinstance(got.codes, type(given))
        np.testing.assert_array_equal(dtypes.expand(got), want)
    same(tcc.compile(text)(x), tcc.compile(text, target="numpy")(x), "coded")


@pytest.mark.parametrize("text, code, message", [
    ("in X: f32[K]\nout Z: u8[table f16][K]\nZ[k] = X[k]", "T0147", "nothing makes its table"),
    ("ranks K=2*J\nin X: f32[J]\nout Z: i8[scale f32][K]\nZ[2 * j] = X[j]", "T0302", "no i8"),
    ("ranks K=6\nin X: f32[K]\nout Z: i8[group k 4, scale f32][K]\nZ[k] = X[k]", "T0147", "do not divide the 6"),
])  # fmt: skip
def test_outputs_that_nothing_can_store_are_refused(text: str, code: str, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        tcc.compile(text, target="cpu")
    assert caught.value.diagnostic.code == code and caught.value.diagnostic.span is not None


def test_a_group_that_does_not_divide_says_so() -> None:
    store = tcc.compile(
        "in X: f32[M, K]\nout Z: i8[group k 32, scale f32][M, K]\nZ[m, k] = X[m, k]", target="cpu"
    )
    with pytest.raises(CompileError) as error:
        store(np.zeros((2, 60), np.float32))
    assert error.value.diagnostic.code == "T0125"
    assert "`K_GROUPS * 32`" in str(error.value)
