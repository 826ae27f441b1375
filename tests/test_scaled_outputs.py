"""Outputs of scaled types on CPUs: the scale of each group from its largest magnitude, codes from the scale."""

from __future__ import annotations

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
    "i8[group k 32, scale f32]",
    "u4[group k 16, scale f16, zero 8]",
    "i8[group k, scale f32]",
    "u8[scale f32, zero 128]",
    "f8e4m3fn[group k 32, scale f32]",
    "i4[group m 2, group k 16, scale bf16]",
]
PROGRAM = """
    in  X: f32[M, K], Y: f32[K]
    out Z: {t}[M, K], S: f32[M]
    Z[m, k] = X[m, k] * Y[k] + 1.0
    S[m]    = Z[m, k] * Z[m, k]
"""


def close(got: dtypes.Encoded, want: dtypes.Encoded) -> None:
    """Equal but for codes at ties of f32 and scales at the last bit."""
    assert got.dtype == want.dtype and got.axes == want.axes
    scale = [
        np.asarray(dtypes.decode(e.parts["scale"], e.dtype.form.scale), float) for e in (got, want)
    ]  # type: ignore[union-attr, arg-type]
    np.testing.assert_allclose(*scale, rtol=1e-2)
    a, b = got.decode(), want.decode()
    assert np.mean(np.abs(a - b) > 1e-5 * (1 + np.abs(b))) < 0.02
    assert np.abs(a - b).max() <= 1.01 * np.abs(b).max() / 7


@pytest.mark.parametrize("t", TYPES)
def test_c_stores_what_the_interpreter_stores(t: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 96)).astype(np.float32), rng.random(96, np.float32)
    x[1], x[2] = 0.0, -1 / np.maximum(y, 1e-3)
    program = PROGRAM.format(t=t)
    got, total = tcc.compile(program)(x, y)
    want, _ = tcc.compile(program, target="numpy")(x, y)
    close(got, want)
    np.testing.assert_allclose(total, (got.decode() ** 2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("t", TYPES[:4])
def test_the_parts_mean_the_whole(t: str) -> None:
    c = parse_cascade(PROGRAM.format(t=t))
    after = unscale(c, find("cpu"))
    assert [o.name for o in after.outputs] == ["Z_codes", "Z_scale", "S"]
    assert same_meaning(c, after) == ""


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


@pytest.mark.parametrize("t", ["f4e2m1[group k 32, scale e8m0]", "u4[group k 32, scale f16, zero u4]"])  # fmt: skip
def test_other_scaled_outputs_are_left_to_the_interpreter(t: str) -> None:
    x = np.ones((2, 64), np.float32)
    program = f"in X: f32[M, K]\nout Z: {t}[M, K]\nZ[m, k] = X[m, k]"
    assert tcc.compile(program, target="numpy")(x).shape == (2, 64)
    with pytest.raises(CompileError) as caught:
        tcc.compile(program)(x)
    assert caught.value.diagnostic.code == "T0302"


def test_a_group_that_does_not_divide_says_so() -> None:
    store = tcc.compile(
        "in X: f32[M, K]\nout Z: i8[group k 32, scale f32][M, K]\nZ[m, k] = X[m, k]", target="cpu"
    )
    with pytest.raises(CompileError) as error:
        store(np.zeros((2, 60), np.float32))
    assert error.value.diagnostic.code == "T0125"
    assert "`K_GROUPS * 32`" in str(error.value)
