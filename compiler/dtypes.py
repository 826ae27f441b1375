"""Element types from Python: `tcc.dtype("f8e4m3fn")`, and arrays to and from their codes.

Tensors of types that NumPy has are passed as they are. Integers of other widths are passed as values in the next wider
NumPy type (`i5` in int8). All others are passed, and returned, as codes: unsigned integers that `encode` makes and
`decode` reads; a scaled type as an `Encoded`, which has codes, scales and whatever else its groups share.

    >>> from tcc import dtypes
    >>> codes = dtypes.encode([0.3, 1.0, -7.0], "f4e2m1")
    >>> codes, dtypes.decode(codes, "f4e2m1")
    (array([ 1,  2, 15], dtype=uint8), array([ 0.5,  1. , -6. ]))
    >>> w = dtypes.encode([[1.0, 2.0, 3.0, 4.0]], "i4[group k 2, scale f16]", "n k")
    >>> w.codes, w.decode().shape
    (array([[4, 7, 5, 7]], dtype=int8), (1, 4))
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tcc.ir import dtype_codes
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, DType
from tcc.ir.dtype_coded import decode_codes, encode_codes
from tcc.ir.dtype_scaled import Encoded, decode_scaled, encode_scaled
from tcc.ir.dtype_text import dtype

Array = Any

__all__ = ["DType", "Encoded", "compress", "decode", "dtype", "encode", "expand", "pack", "unpack"]


def encode(
    values: Array,
    to: str | DType,
    axes: str | tuple[str, ...] = (),
    *,
    positions: Array | None = None,
    table: Array | None = None,
) -> Any:
    """`values` rounded into a type: its codes, or an `Encoded` if it is scaled.

    `axes` names the dimensions for a scaled type ("n k"); `table` holds the values of its table. `positions` are what
    stochastic rounding draws its random numbers from (default: row-major).
    """
    t = dtype(to) if isinstance(to, str) else to
    if t.in_parts:
        return encode_scaled(values, t, _axes(axes), table)
    if t.kind == "b":
        return np.asarray(values).astype(bool)
    return dtype_codes.encode(values, t, positions)


def decode(stored: Any, of: str | DType | None = None) -> Array:
    """The values of codes: float64 (integers stay integers), exactly. T0148 for codes that the type does not have."""
    if isinstance(stored, Encoded):
        return decode_scaled(stored, stored.dtype, stored.axes)
    if of is None:
        raise CompileError(
            "T0148", "codes alone do not say what they mean", helps="give their dtype"
        )
    t = dtype(of) if isinstance(of, str) else of
    return t.load(stored)


def compress(codes: Array, to: str | DType, axes: str | tuple[str, ...]) -> Encoded:
    """A coded tensor of an element type's codes (of native floats: their values), bit for bit: NaNs keep their payloads.

    `axes` names the dimensions ("n k"). T0147 for runs and lanes that do not divide the tensor, T0148 for other arrays.
    """
    t = dtype(to) if isinstance(to, str) else to
    if not isinstance(t.form, Coded):
        raise CompileError("T0147", f"{t} is not coded", helps="as in `bf16[coded k 256]`")
    return encode_codes(codes, t, _axes(axes))


def expand(stored: Encoded) -> Array:
    """The codes of a coded tensor's elements, as unsigned integers: what `compress` was given. T0148 for a damaged stream."""
    return decode_codes(stored)


def pack(codes: Array, of: str | DType) -> Array:
    """Codes as uint8 without gaps: element i starts at bit (i · bits) % 8, from the lowest, of byte (i · bits) // 8."""
    t = dtype(of) if isinstance(of, str) else of
    flat = np.ascontiguousarray(codes).ravel().astype(np.int64).astype(np.uint64)
    bits = (flat[:, None] >> np.arange(t.bits, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")


def unpack(packed: Array, of: str | DType, shape: tuple[int, ...]) -> Array:
    """The codes that `pack` packed, in an array of a shape."""
    t = dtype(of) if isinstance(of, str) else of
    count = int(np.prod(shape))
    bits = np.unpackbits(np.asarray(packed, np.uint8), count=count * t.bits, bitorder="little")
    weights = np.uint64(1) << np.arange(t.bits, dtype=np.uint64)
    codes = (bits.reshape(count, t.bits).astype(np.uint64) * weights).sum(1, dtype=np.uint64)
    if t.is_integer:
        return dtype_codes.encode(codes, replace(t, saturate=False)).reshape(shape)
    return codes.astype(t.numpy).reshape(shape)


def _axes(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axes.replace(",", " ").split()) if isinstance(axes, str) else tuple(axes)
