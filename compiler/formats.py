"""Quantised weights of other programs as `Encoded` tensors, without change of any value: GGUF, GPTQ, AWQ, torch int4.

Weights are [n, k] = [output features, input features], whatever the order of the file. `tcc.quantize(module,
{"layer": weight, …})` puts them into a model.

    >>> import numpy as np
    >>> from tcc import formats
    >>> blocks = np.zeros((1, 18), np.uint8)  # one block of Q4_0: a scale of f16, and 32 codes
    >>> formats.from_gguf(blocks, "Q4_0").dtype.name
    'u4[group k 32, scale f16, zero 8]'
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DType
from tcc.ir.dtype_scaled import Encoded, scaled_form
from tcc.ir.dtype_text import dtype

Array = Any
AXES = ("n", "k")
GGUF = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q8_0": 34}  # bytes of a block of 32
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns lies in nibble i of a word

__all__ = ["from_awq", "from_gguf", "from_gptq", "from_torch_int4", "load_gguf", "load_safetensors"]


def from_gguf(blocks: Array, kind: str) -> Encoded:
    """The weight in the blocks of a GGUF tensor, uint8 [n, bytes of a row]; `kind` is Q4_0, Q4_1, Q5_0 or Q8_0.

    Q4_0 and Q5_0 are (code - 8) · d and (code - 16) · d, Q8_0 is code · d, Q4_1 code · d + m, with d and m of f16 for every
    32 elements. Source: ggml-quants.c. T0148 for another kind, or rows that are no whole blocks.
    """
    if kind not in GGUF:
        raise CompileError("T0148", f"blocks of {kind} are not read", helps=f"one of {', '.join(GGUF)}")  # fmt: skip
    rows = np.ascontiguousarray(blocks, np.uint8)
    if rows.ndim != 2 or rows.shape[1] % GGUF[kind]:
        raise CompileError("T0148", f"rows of shape {list(rows.shape)} are no blocks of {GGUF[kind]} bytes",
                           helps="pass [n, bytes of a row]")  # fmt: skip
    rows = rows.reshape(rows.shape[0], -1, GGUF[kind])
    scale = rows[..., :2].copy().view(np.float16)[..., 0]
    if kind == "Q8_0":
        codes = rows[..., 2:].view(np.int8)
        return _weight("i8[group k 32, scale f16]", codes, scale=scale)
    nibbles = rows[..., -16:]
    codes = np.concatenate((nibbles & 15, nibbles >> 4), -1)
    if kind == "Q4_1":
        offset = rows[..., 2:4].copy().view(np.float16)[..., 0]
        return _weight("u4[group k 32, scale f16, offset f16]", codes, scale=scale, offset=offset)
    if kind == "Q4_0":
        return _weight("u4[group k 32, scale f16, zero 8]", codes, scale=scale)
    high = np.unpackbits(rows[..., 2:6], axis=-1, bitorder="little")
    return _weight("u5[group k 32, scale f16, zero 16]", codes | high << 4, scale=scale)


def from_gptq(
    qweight: Array, scales: Array, qzeros: Array, *, bits: int = 4, g_idx: Array | None = None
) -> Encoded:
    """A GPTQ weight: int32 words of codes along k [k · bits / 32, n], scales [groups, n], zero points [groups, n · bits / 32].

    (code - zero - 1) · scale. 2, 4 or 8 bits. T0148 for groups whose members do not lie together (`desc_act`).
    """
    if bits not in (2, 4, 8):
        raise CompileError("T0148", f"GPTQ words of {bits} bits are not read", helps="2, 4 or 8 bits")  # fmt: skip
    words, zeros, scale = _numpy(qweight), _numpy(qzeros), _numpy(scales)
    codes = _split(words.T, bits)
    group = _group(codes.shape[1], scale.shape[0])
    if g_idx is not None and np.any(_numpy(g_idx) != np.arange(codes.shape[1]) // group):
        raise CompileError("T0148", "the input features are not in the order of their groups",
                           helps="quantise without `desc_act`, or permute the features of the layer")  # fmt: skip
    zero = _split(zeros, bits).T.astype(np.int16) + 1
    name = f"u{bits}[group k {group}, scale {_float(scale)}, zero u{bits + 1}]"
    return _weight(name, codes, scale=scale.T, zero=zero)


def from_awq(qweight: Array, scales: Array, qzeros: Array) -> Encoded:
    """An AWQ weight of 4 bits: words of codes along n, int32 [k, n / 8], scales [groups, n], zero points [groups, n / 8].

    (code - zero) · scale; nibble i of a word is column 0, 2, 4, 6, 1, 3, 5, 7.
    """
    codes, zero, scale = _awq(_numpy(qweight)), _awq(_numpy(qzeros)), _numpy(scales)
    group = _group(codes.shape[1], scale.shape[0])
    name = f"u4[group k {group}, scale {_float(scale)}, zero u4]"
    return _weight(name, codes, scale=scale.T, zero=zero)


def from_torch_int4(weight: Any, scales_and_zeros: Any, group: int) -> Encoded:
    """The weight of `torch._weight_int4pack_mm_for_cpu`: (code - 8) · scale + zero, scales and zeros [k / group, n, 2].

    `weight` is int32 [n, k] as before packing, or uint8 [n, k / 2] as `_convert_weight_to_int4pack_for_cpu` packs it on
    this machine (the order depends on the processor, so PyTorch itself is asked for it).
    """
    import torch

    n, k = scales_and_zeros.shape[1], scales_and_zeros.shape[0] * group
    packed = weight.dtype == torch.uint8 and tuple(weight.shape) == (n, k // 2)
    codes = _int4_unpacked(weight) if packed else weight.numpy()
    if codes.shape != (n, k):
        raise CompileError("T0148", f"a weight of shape {list(weight.shape)} for scales of {[n, k]}",
                           helps="give [n, k], or [n, k / 2] packed by PyTorch")  # fmt: skip
    kind = _TORCH_FLOATS[str(scales_and_zeros.dtype).removeprefix("torch.")]
    parts = scales_and_zeros.permute(2, 1, 0).contiguous()
    stored = parts.view(torch.uint16) if kind == "bf16" else parts
    scale, offset = stored.numpy()
    name = f"u4[group k {group}, scale {kind}, zero 8, offset {kind}]"
    return _weight(name, codes, scale=scale, offset=offset)


def load_gguf(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tensors of a GGUF file by name: `Encoded` where `from_gguf` reads the blocks, else arrays of f16, f32 and the like.

    Tensors of other block types are left out. Needs the package `gguf`; T0316 without it.
    """
    gguf = _package("gguf", "gguf")
    found: dict[str, Any] = {}
    for t in gguf.GGUFReader(os.fspath(path)).tensors:
        kind = t.tensor_type.name
        if kind in GGUF and t.data.ndim == 2:
            found[t.name] = from_gguf(t.data, kind)
        elif kind in ("F32", "F16", "F64", "I8", "I16", "I32", "I64"):
            found[t.name] = np.array(t.data)
    return found


def load_safetensors(
    path: str | os.PathLike[str], kind: str, *, bits: int = 4
) -> dict[str, Encoded]:
    """The quantised layers of a safetensors file by name.

    `kind` is `gptq` or `awq` (`X.qweight`, `X.qzeros`, `X.scales`), or `plain`: integers `X.weight` of 8 bits [n, k] beside
    `X.weight_scale`, [n, groups] or one number. Needs the packages `safetensors` and `torch`; T0316 without them.
    """
    if kind not in ("gptq", "awq", "plain"):
        raise CompileError("T0148", f"there is no kind `{kind}`", helps="`gptq`, `awq` or `plain`")  # fmt: skip
    _package("torch", "torch")
    with _package("safetensors", "safetensors").safe_open(os.fspath(path), "pt") as file:
        names = set(file.keys())
        ending = ".weight_scale" if kind == "plain" else ".qweight"
        found: dict[str, Encoded] = {}
        for layer in sorted(n.removesuffix(ending) for n in names if n.endswith(ending)):
            given = {
                n: file.get_tensor(f"{layer}.{n}")
                for n in ("weight", "weight_scale", "qweight", "scales", "qzeros", "g_idx")
                if f"{layer}.{n}" in names
            }
            if kind == "plain":
                found[layer] = _plain(given["weight"], given["weight_scale"])
            elif kind == "awq":
                found[layer] = from_awq(given["qweight"], given["scales"], given["qzeros"])
            else:
                words = given["qweight"], given["scales"], given["qzeros"]
                found[layer] = from_gptq(*words, bits=bits, g_idx=given.get("g_idx"))
    return found


# ---- pieces

_TORCH_FLOATS = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}


def _weight(kind: str, codes: Array, **parts: Array) -> Encoded:
    t = dtype(kind)
    flat = np.ascontiguousarray(codes.reshape(codes.shape[0], -1), t.numpy)
    kept = {n: np.ascontiguousarray(p) for n, p in parts.items()}
    zero = scaled_form(t).zero
    if isinstance(zero, DType):
        kept["zero"] = kept["zero"].astype(zero.numpy)
    return Encoded(t, AXES, flat, kept)


def _plain(codes: Any, scale: Any) -> Encoded:
    made, scales = _numpy(codes), _numpy(scale)
    n, k = made.shape
    scales = scales.reshape(n, -1) if scales.size > 1 else scales.reshape(1, 1)
    groups = f"group k {_group(k, scales.shape[1])}, " if scales.size > 1 else ""
    kind = "i8" if made.dtype == np.int8 else "u8"
    return _weight(f"{kind}[{groups}scale {_float(scales)}]", made, scale=scales)


def _group(k: int, groups: int) -> int:
    if groups < 1 or k % groups:
        raise CompileError("T0147", f"{groups} groups do not divide {k} input features",
                           helps="give one row of scales per group")  # fmt: skip
    return k // groups


def _split(words: Array, bits: int) -> Array:
    """int32 words [rows, w] as codes [rows, w · 32 / bits], the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words.astype(np.int32).view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return codes.reshape(words.shape[0], -1).astype(np.uint8)


def _awq(words: Array) -> Array:
    """Words [rows, n / 8] as codes [n, rows]."""
    nibbles = _split(words, 4).reshape(words.shape[0], -1, 8)
    columns = np.empty_like(nibbles)
    columns[..., list(_AWQ)] = nibbles
    return np.ascontiguousarray(columns.reshape(words.shape[0], -1).T)


def _numpy(value: Any) -> Array:
    """An array of a tensor or an array; bf16 as its codes."""
    if isinstance(value, np.ndarray):
        return value
    if str(value.dtype) == "torch.bfloat16":
        import torch

        value = value.contiguous().view(torch.uint16)
    return value.numpy()


def _float(scale: Array) -> str:
    found = {"float16": "f16", "float32": "f32", "uint16": "bf16"}.get(scale.dtype.name)
    if found is None:
        raise CompileError("T0148", f"scales of {scale.dtype}", helps="f16, bf16 or f32")
    return found


def _int4_unpacked(packed: Any) -> Array:
    """Codes [n, k] of what PyTorch has packed: it permutes nibbles, and shows how when it packs their numbers."""
    import torch

    n, k = packed.shape[0], packed.shape[1] * 2
    numbers = torch.arange(n * k, dtype=torch.int64).reshape(n, k)
    place = np.zeros(n * k, np.int64)
    for digit in range((max(1, n * k - 1).bit_length() + 3) // 4):
        shown = ((numbers >> (4 * digit)) & 15).int()
        order = torch._convert_weight_to_int4pack_for_cpu(shown, 1)
        place |= _nibbles(order.numpy()).astype(np.int64) << (4 * digit)
    codes = np.empty(n * k, np.uint8)
    codes[place] = _nibbles(packed.numpy())
    return codes.reshape(n, k)


def _nibbles(array: Array) -> Array:
    flat = array.ravel()
    return np.stack((flat & 15, flat >> 4), -1).ravel()


def _package(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CompileError("T0316", f"the package `{name}` is not installed", helps=f"pip install {install}") from None  # fmt: skip
