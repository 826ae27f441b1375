"""Other programs agree about element types: ml_dtypes, torch, softposit, gguf, bitsandbytes."""

from __future__ import annotations

import numpy as np
import pytest
from dtype_samples import ML_DTYPES, all_codes, samples

from tcc import dtypes
from tcc.ir.dtype import Scaled
from tcc.ir.dtype_codes import ladder
from tcc.ir.dtype_text import NF4, dtype


@pytest.mark.parametrize("name", ML_DTYPES)
def test_ml_dtypes_agrees(name: str, rng: np.random.Generator) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    t, other = dtype(name), np.dtype(getattr(ml_dtypes, ML_DTYPES[name]))
    codes = all_codes(t)
    with np.errstate(all="ignore"):
        want = codes.view(other).astype(np.float64)
        np.testing.assert_array_equal(dtypes.decode(codes, t), want)
        np.testing.assert_array_equal(dtypes.decode(codes.view(other), t), want)
        # float32, since ml_dtypes rounds float64 twice; for the same reason no subnormals of float32
        x = samples(t, rng).astype(np.float32)
        x = np.concatenate([x[np.abs(x) >= 2.0**-126], np.float32([np.inf, -np.inf, 3e38, -3e38])])
        got, wanted = dtypes.encode(x, t), x.astype(other)
        same = (got == wanted.view(t.numpy)) | np.isnan(wanted.astype(np.float64))
    assert same.all(), x[~same]


@pytest.mark.parametrize("name", ["bf16", "f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz"])
def test_torch_agrees(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from tcc.stored import torch_dtype

    t = dtype(name)
    wanted = torch_dtype(torch, t)
    codes = all_codes(t)
    bits = torch.uint16 if t.bits == 16 else torch.uint8
    want = torch.from_numpy(codes).view(wanted).to(torch.float64).numpy()
    np.testing.assert_array_equal(dtypes.decode(codes, t), want)
    with np.errstate(over="ignore"):
        x = samples(t, rng).astype(np.float32)
    x = x[np.abs(x) <= ladder(t).values[-1]]  # torch's overflow depends on its version
    got = torch.from_numpy(x).to(wanted).view(bits).numpy()
    np.testing.assert_array_equal(dtypes.encode(x, t), got)


@pytest.mark.parametrize("name", ["posit8_0", "posit16_1"])
def test_softposit_agrees(name: str, rng: np.random.Generator) -> None:
    softposit = pytest.importorskip("softposit", reason="softposit is not installed")
    t = dtype(name)
    made = softposit.posit8 if t.bits == 8 else softposit.posit16
    codes = np.delete(all_codes(t), 2 ** (t.bits - 1))[:: t.bits // 8]
    assert [float(made(bits=int(c))) for c in codes] == dtypes.decode(codes, t).tolist()
    x = samples(t, rng)
    assert dtypes.encode(x, t).tolist() == [made(float(v)).v.v for v in x]


def test_gguf_agrees(rng: np.random.Generator) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    kinds = gguf.GGMLQuantizationType
    x = rng.standard_normal((3, 64)).astype(np.float32)
    for kind, name in (("Q8_0", "i8[group k 32, scale f16]"), ("Q4_0", "u4[group k 32, scale f16, zero 8]"),
                       ("Q4_1", "u4[group k 32, scale f16, offset f16]"),
                       ("MXFP4", "f4e2m1[group k 32, scale e8m0]")):  # fmt: skip
        t = dtype(name)
        assert isinstance(t.form, Scaled)
        packed = gguf.quants.quantize(x, kinds[kind])
        blocks = packed.reshape(3, 2, -1)
        heads = {"Q4_1": 4, "MXFP4": 1}.get(kind, 2)
        head, body = blocks[..., :heads], blocks[..., heads:]
        if kind == "Q8_0":
            codes = body.view(np.int8)
        else:
            codes = np.concatenate([body & 15, body >> 4], axis=-1)
        assert t.form.scale is not None
        numbers = np.ascontiguousarray(head).view(t.form.scale.numpy)
        parts = {"scale": numbers[..., 0]}
        if t.form.offset is not None:
            parts["offset"] = numbers[..., 1]
        w = dtypes.Encoded(t, ("n", "k"), codes.reshape(3, 64), parts)
        want = gguf.quants.dequantize(packed, kinds[kind])
        np.testing.assert_array_equal(w.decode().astype(np.float32), want)


def test_nf4_is_that_of_bitsandbytes() -> None:
    """Quantiles of the normal distribution, as create_normal_map makes them."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    up = stats.norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    down = -stats.norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    want = np.sort(np.concatenate([up, [0.0], down]))
    np.testing.assert_allclose(NF4, want / want.max(), atol=1e-6)
