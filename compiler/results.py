"""Arrays that a caller gives for the results of a call (`out=`): checked, never cast, never an operand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError


def arranged(c: Cascade, out: Any) -> list[Any]:
    """One array per output, from an array, a sequence in the order of the outputs, or a mapping by name; T0149."""
    names = [t.name for t in c.outputs]
    if isinstance(out, Mapping):
        if set(out) != set(names):
            raise _wrong(f"`out` names {_listed(out)}, the outputs are {_listed(names)}")
        return [out[n] for n in names]
    found = list(out) if isinstance(out, (tuple, list)) else [out]
    if len(found) != len(names):
        raise _wrong(f"`out` has {len(found)} arrays for {len(names)} outputs ({_listed(names)})")
    return found


def checked(
    c: Cascade,
    given: Sequence[Any],
    wanted: Sequence[tuple[Any, Any, Any]],
    operands: Sequence[Any],
) -> list[int]:
    """The addresses of the given results; T0149 where one has another shape, type or strides than a call would
    allocate, or shares memory with an operand or another result."""
    taken = [_extent(x) for x in operands]
    addresses = []
    for t, x, (shape, strides, dtype) in zip(c.outputs, given, wanted, strict=True):
        if not (isinstance(x, np.ndarray) or hasattr(x, "data_ptr")):
            raise _wrong(
                f"`out` for `{t.name}` is a `{type(x).__name__}`", "give an array or a tensor"
            )
        array = isinstance(x, np.ndarray)
        own = tuple(n // x.itemsize for n in x.strides) if array else tuple(x.stride())
        device = True if array else x.is_cpu and not x.requires_grad
        kind = x.dtype == dtype
        if tuple(x.shape) != tuple(shape) or not kind or not device:
            raise _wrong(
                f"`out` for `{t.name}` is {x.dtype}{list(x.shape)}, the result {dtype}{list(shape)}"
            )
        if any(n > 1 and a != b for n, a, b in zip(shape, own, strides, strict=True)):
            raise _wrong(f"`out` for `{t.name}` has strides {list(own)}, not {list(strides)}")
        if array and not x.flags.writeable:
            raise _wrong(f"`out` for `{t.name}` cannot be written")
        low, high = _extent(x)
        if any(low < b and a < high for a, b in taken):
            raise _wrong(f"`out` for `{t.name}` shares memory with an operand or another result",
                         "give memory of its own: results are written while operands are read")  # fmt: skip
        taken.append((low, high))
        addresses.append(low)
    return addresses


def _extent(x: Any) -> tuple[int, int]:
    """The addresses from its first byte to behind its last one."""
    if isinstance(x, np.ndarray):
        start, size = int(x.__array_interface__["data"][0]), x.itemsize
        steps = list(x.strides)
    else:
        start, size = x.data_ptr(), x.element_size()
        steps = [n * size for n in x.stride()]
    if 0 in x.shape:
        return start, start
    ends = [(n - 1) * step for n, step in zip(x.shape, steps, strict=True)]
    return start + sum(min(0, e) for e in ends), start + sum(max(0, e) for e in ends) + size


def _listed(names: Any) -> str:
    return ", ".join(f"`{n}`" for n in names) or "none"


def _wrong(message: str, *helps: str) -> CompileError:
    return CompileError(
        "T0149", message, helps=helps or ("give what a call without `out` returns",)
    )
