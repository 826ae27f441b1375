"""A coded tensor as one argument of a kernel: the addresses of its parts, and its table once more, entry by entry."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcc.ir.cascade import Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DTYPES
from tcc.ir.dtype_coded import LENGTH
from tcc.ir.dtype_scaled import Encoded

Array = Any


def stand_in(t: Tensor) -> Tensor:
    """What the caller's cascade has for a coded input: an array of integers of the tensor's shape."""
    return Tensor(t.name, DTYPES["i64"], t.shape, 0, t.span)


def argument(value: Encoded, t: Tensor) -> Array:
    """An array of the tensor's shape whose first element is the `tcc_coded` of the C backend, all strides 0.

    The parts are not copied and have to live as long as the array is used. T0148 for parts that are not contiguous.
    """
    names = ("codes", "words", "start", "table")
    parts = [np.asarray(value.codes), *(np.asarray(value.parts[n]) for n in names[1:])]
    for name, part in zip(names, parts):
        if not part.flags.c_contiguous or not part.flags.aligned:
            raise CompileError("T0148", f"`{t.name}`: `{name}` does not lie in memory as one row-major array", t.span,
                               helps=f"pass `np.ascontiguousarray({name})`")  # fmt: skip
    lanes = parts[0].shape[-1]
    made = np.zeros(5 + 2 * 256 // 8, np.int64)
    made[:4] = [part.ctypes.data for part in parts]
    made[4] = parts[1].size - lanes
    table = parts[3]
    if table.size <= 256:
        entries = made[5:].view(np.uint8).reshape(2, 256)
        entries[0] = np.resize(table // LENGTH, 256)
        entries[1] = np.resize(table % LENGTH, 256) & 0xFF
    shown = np.lib.stride_tricks.as_strided(made, value.shape, (0,) * len(value.shape))
    shown.flags.writeable = False
    return shown
