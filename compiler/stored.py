"""How elements of types that NumPy lacks come in and go out: as codes, and in torch as its own type where it has one."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcc.ir.cascade import Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DTYPES, DType
from tcc.ir.dtype_codes import same_bits
from tcc.ir.packed import packed_bytes, unpacked

Array = Any
_TORCH = {
    "bf16": "bfloat16", "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e4m3fnuz": "float8_e4m3fnuz",
    "f8e5m2fnuz": "float8_e5m2fnuz", "e8m0": "float8_e8m0fnu",
}  # fmt: skip


def torch_dtype(torch: Any, dtype: DType) -> Any:
    """The torch type with the same values, else that of the codes; None when this torch has none."""
    name = dtype.name.removesuffix(".sat")
    return getattr(torch, _TORCH.get(name, dtype.numpy.name), None)


def stored_type(t: Tensor) -> DType:
    """The type of what is passed for a tensor: bytes, where it is packed."""
    return DTYPES["u8"] if t.packed else t.dtype


def numpy_dtype(t: Tensor) -> np.dtype[Any]:
    """The NumPy type of what is passed for a tensor."""
    return stored_type(t).numpy


def check_form(value: Any, t: Tensor) -> None:
    """T0148 for an `Encoded` that is packed where its tensor is not declared so, or the other way round."""
    if getattr(value, "packed", t.packed) != t.packed:
        fact, advice = "is packed", "declare the input `packed`, or pass `.unpack()` of it"
        if t.packed:
            fact, advice = "is not packed", "pass `.pack()` of it"
        raise CompileError("T0148", f"the argument for `{t}` {fact}", t.span, helps=advice)


def is_scaled(t: Tensor) -> bool:
    """Whether a tensor comes as an `Encoded`."""
    return t.dtype.in_parts


def coded(array: Array, t: Tensor) -> Array:
    """The codes of an array that has them, or has the same values as `ml_dtypes` arrays do; T0148 if neither."""
    if t.dtype.native or t.packed or array.dtype == t.dtype.numpy:
        return array
    try:
        return same_bits(array, t.dtype)
    except CompileError as error:
        d = error.diagnostic
        raise CompileError(d.code, f"`{t.name}`: {d.message}", t.span, helps=d.helps) from None


def to_numpy(value: Any, t: Tensor) -> Any:
    """An argument as the interpreter takes it."""
    if is_scaled(t):
        return value
    if t.packed:
        return unpacked(t, value if isinstance(value, np.ndarray) else value.numpy())
    if isinstance(value, np.ndarray):
        return value
    value = value.detach()
    if value.dtype.is_floating_point and not t.dtype.native:
        import torch

        bits = torch.uint8 if t.dtype.itemsize == 1 else torch.uint16
        value = value.contiguous().view(bits)
    return value.numpy()


def passed(t: Tensor, elements: Array) -> Array:
    """What a call takes for the elements that an interpreter takes."""
    if t.packed and is_scaled(t):
        return elements.pack()
    return packed_bytes(t, elements) if t.packed else elements


def to_torch(torch: Any, stored: Array, t: Tensor) -> Any:
    """An interpreter's output as a torch tensor."""
    return as_tensor(torch, stored, t.dtype)


def as_tensor(torch: Any, stored: Any, dtype: DType) -> Any:
    """Stored elements of a type as a torch tensor of the type that torch has for them; tensors as they are."""
    if isinstance(stored, torch.Tensor):
        return stored
    made = torch.from_numpy(np.array(stored, order="C"))
    wanted = torch_dtype(torch, dtype)
    return made if made.dtype == wanted else made.view(wanted)
