"""Quantised weights of other programs: the same values as their own readers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tcc
from tcc import formats
from tcc.ir.diagnostics import CompileError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_gguf_blocks_have_the_values_of_gguf(kind: str, rng: np.random.Generator) -> None:
    gguf = pytest.importorskip("gguf")
    t = gguf.GGMLQuantizationType[kind]
    blocks = gguf.quants.quantize(rng.standard_normal((6, 64)).astype(np.float32), t)
    want = gguf.quants.dequantize(blocks, t)
    np.testing.assert_array_equal(formats.from_gguf(blocks, kind).decode().astype("f4"), want)


def test_gguf_files(tmp_path: Path, rng: np.random.Generator) -> None:
    gguf = pytest.importorskip("gguf")
    x = rng.standard_normal((8, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "test")
    for name, kind in (("a.weight", "Q4_0"), ("b.weight", "Q8_0")):
        t = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(x, t), raw_dtype=t)
    writer.add_tensor("c", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = formats.load_gguf(tmp_path / "model.gguf")
    assert found["a.weight"].dtype.name == "u4[group k 32, scale f16, zero 8]"
    np.testing.assert_array_equal(found["c"], x)
    layer = tcc.quantize(torch.nn.Linear(64, 8), {"": found["b.weight"]})
    np.testing.assert_array_equal(layer.weight.numpy(), found["b.weight"].decode())


def words(codes: Any, bits: int) -> Any:
    """Codes [rows, k] as int32 words [rows, k · bits / 32], the lowest first."""
    parts = codes.reshape(codes.shape[0], -1, 32 // bits).astype(np.uint64)
    shifted = parts << np.arange(0, 32, bits, dtype=np.uint64)
    return torch.from_numpy(shifted.sum(-1, dtype=np.uint64).astype(np.uint32).view(np.int32))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_and_awq_words(bits: int, rng: np.random.Generator, tmp_path: Path) -> None:
    n, k, g = 16, 64, 32
    codes = rng.integers(0, 2**bits, (n, k))
    zeros = rng.integers(0, 2**bits, (k // g, n))
    scales = rng.standard_normal((k // g, n)).astype(np.float16)
    spread = np.repeat(scales.T, g, 1).astype(float)
    given = {"qweight": words(codes, bits).T.contiguous(), "qzeros": words(zeros, bits),
             "scales": torch.from_numpy(scales), "g_idx": torch.arange(k, dtype=torch.int32) // g}  # fmt: skip
    want = (codes - np.repeat(zeros.T, g, 1) - 1) * spread
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({f"up.{n}": t for n, t in given.items()}, tmp_path / "gptq.safetensors")
    (found,) = formats.load_safetensors(tmp_path / "gptq.safetensors", "gptq", bits=bits).values()
    np.testing.assert_array_equal(found.decode(), want)
    with pytest.raises(CompileError, match="not in the order of their groups"):
        formats.from_gptq(given["qweight"], given["scales"], given["qzeros"], bits=bits, g_idx=given["g_idx"].flip(0))  # fmt: skip
    if bits != 4:
        return
    order = np.arange(n).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].ravel()
    awq = formats.from_awq(
        words(codes.T[:, order], 4), given["scales"], words(zeros[:, order], 4)
    )  # nibble i of a word is column order[i]
    np.testing.assert_array_equal(awq.decode(), (codes - np.repeat(zeros.T, g, 1)) * spread)


def test_plain_codes_with_scales(tmp_path: Path, rng: np.random.Generator) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    codes = torch.from_numpy(rng.integers(-128, 128, (4, 32)).astype(np.int8))
    for scale in (torch.rand(4, 2).bfloat16(), torch.rand(4, 1), torch.rand(1)):
        safetensors.save_file({"x.weight": codes, "x.weight_scale": scale}, tmp_path / "x.st")
        found = formats.load_safetensors(tmp_path / "x.st", "plain")["x"]
        wide = scale.double().reshape(-1, scale.numel() // scale.shape[0] if scale.ndim > 1 else 1)
        want = codes.double() * wide.repeat_interleave(32 // wide.shape[1], 1)
        np.testing.assert_array_equal(found.decode(), want.numpy())


def test_int4_weights_of_torch(rng: np.random.Generator) -> None:
    n, k, g = 64, 128, 32
    codes = torch.from_numpy(rng.integers(0, 16, (n, k)).astype(np.int32))
    both = torch.randn(k // g, n, 2).bfloat16()
    scale, zero = both.permute(2, 1, 0).double().repeat_interleave(g, 2)
    want = (codes - 8) * scale + zero
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    for weight in (codes, packed):
        found = formats.from_torch_int4(weight, both, g)
        np.testing.assert_array_equal(found.decode(), want.numpy())
    x = torch.randn(3, k).bfloat16()
    theirs = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, g, both).double()
    ours = x.double() @ torch.from_numpy(found.decode()).T
    torch.testing.assert_close(theirs, ours, rtol=0.05, atol=0.2)  # theirs rounds to bf16


def test_what_can_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.zeros((1, 18), np.uint8)
    wrong: list[tuple[Any, str, str]] = [
        (lambda: formats.from_gguf(rows, "Q6_K"), "T0148", "blocks of Q6_K are not read"),
        (lambda: formats.from_gguf(rows, "Q8_0"), "T0148", "no blocks of 34 bytes"),
        (lambda: formats.load_safetensors("x", "exl2"), "T0148", "no kind `exl2`"),
    ]
    for call, code, message in wrong:
        with pytest.raises(CompileError, match=message) as caught:
            call()
        assert caught.value.diagnostic.code == code
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(CompileError, match="`gguf` is not installed"):
        formats.load_gguf("model.gguf")
