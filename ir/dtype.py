"""Element types: what values an element may have, independent of where it lies and whether it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """A scalar type: `kind` is `f` (IEEE float), `i`, `u` (two's complement, unsigned) or `b` (bool)."""

    name: str
    kind: str
    bits: int

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory."""
        return max(1, self.bits // 8)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy type with the same values and bytes."""
        return np.dtype(_NUMPY[self.name])

    @property
    def roundoff(self) -> float:
        """Unit roundoff: half the distance from 1 to the next value; 0 for exact types."""
        return {64: 2.0**-53, 32: 2.0**-24, 16: 2.0**-11}[self.bits] if self.is_float else 0.0

    def __str__(self) -> str:
        return self.name


_NUMPY = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bool": "bool",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8",
    "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8",
}  # fmt: skip

DTYPES: dict[str, DType] = {
    name: DType(name, name[0], 1 if name == "bool" else int(name[1:])) for name in _NUMPY
}
F64, F32, I64, I32, BOOL = (DTYPES[name] for name in ("f64", "f32", "i64", "i32", "bool"))


def from_numpy(dtype: np.dtype[Any]) -> DType | None:
    """The tcc type of a NumPy type, or None when there is none."""
    names = {np.dtype(value): key for key, value in _NUMPY.items()}
    return DTYPES.get(names.get(np.dtype(dtype), ""))


def promote(a: DType, b: DType) -> DType:
    """The least type that both operands convert to: floats beat integers, wider beats narrower.

    >>> promote(DTYPES["i64"], DTYPES["f32"]).name
    'f32'
    """
    order = "buif"
    if a.kind != b.kind:
        hi, lo = (a, b) if order.index(a.kind) > order.index(b.kind) else (b, a)
        if hi.kind == "i" and lo.kind == "u" and lo.bits >= hi.bits:
            return DTYPES[f"i{min(64, lo.bits * 2)}"]
        return hi
    return a if a.bits >= b.bits else b
