"""Between stored elements and the values that interpreters compute with: loading a tensor, rounding into its type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tcc.ir.cascade import Cascade, Einsum, Tensor, targets
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, DType, Scaled

Array = Any


def load(t: Tensor, stored: Any) -> Array:
    """The values of a stored tensor, in the type that interpreters work in; errors name the tensor."""
    try:
        return t.dtype.load(stored, t.axes)
    except CompileError as error:
        d = error.diagnostic
        raise CompileError(
            d.code, f"`{t.name}`: {d.message}", d.span or t.span, helps=d.helps
        ) from None


def loading_error(t: Tensor, data: Array) -> Array:
    """Decoding is exact, but for the products and sums of a scaled type in its compute type."""
    if isinstance(t.dtype.form, Scaled):
        return np.abs(data) * t.dtype.compute.roundoff * 4
    return np.zeros(data.shape)


def as_stored(
    data: Array, error: Array | None, t: DType, positions: Array | None = None
) -> tuple[Array, Array | None]:
    """Values and their error bounds as `t` holds them.

    Rounding is monotone: an error of e moves a result no further than to what v - e or v + e rounds to.
    """
    data = np.asarray(data)
    if t.is_float and data.dtype.kind in "iub":  # first what it is in the type that computes
        data = data.astype(t.compute.numpy).astype(np.float64)
    if isinstance(t.form, Coded):  # lossless
        t = t.form.element
    if isinstance(t.form, Scaled):  # its groups are known when the tensor is complete
        return data, None if error is None else np.where(np.asarray(error) == 0, 0.0, np.inf)
    made = t.load(t.store(data, positions=positions))
    if error is None or not np.any(error):
        return made, error
    ends = [t.load(t.store(data + e, positions=positions)).astype(float) for e in (-error, error)]
    moved = np.maximum(*(np.abs(end - made) for end in ends))
    lost = np.isnan(moved) | ((ends[0] > ends[1]) & (t.is_integer and not t.saturate))
    return made, np.where(lost, np.inf, moved)


def settle(c: Cascade, step: object, values: dict[str, Any], exact: dict[str, Any]) -> None:
    """What reads a scaled output, once that is complete, reads what is stored; `exact` keeps what it is made from."""
    t = c.tensors.get(step.target) if isinstance(step, Einsum) else None
    if t is None or not isinstance(t.dtype.form, Scaled) or t.dtype.form.table is not None:
        return
    if sum(t.name in targets(d) for d in c.definitions) > 1:
        return
    v = exact[t.name] = values[t.name]
    values[t.name] = replace(v, data=t.dtype.load(t.dtype.store(filled(v, t), t.axes), t.axes))


def filled(v: Any, t: Tensor) -> Array:
    """The data of a tensor, its fill where it does not exist."""
    return v.data if v.present is None else np.where(v.present, v.data, np.asarray(t.fill, v.data.dtype))  # fmt: skip


def positions(target: tuple[Array, ...], shape: tuple[int, ...]) -> Array:
    """The row-major position of each element that a block writes."""
    at: Array = np.zeros((), np.int64)
    for i, n in zip(target, shape, strict=True):
        at = at * n + i
    return at
