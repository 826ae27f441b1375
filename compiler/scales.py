"""Scales of groups by least squared error, instead of by the largest magnitude alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tcc.ir.dtype import DType, Float, Scaled
from tcc.ir.dtype_codes import integer_range
from tcc.ir.dtype_scaled import (
    Encoded,
    encode_scaled,
    group_sizes,
    plain_scales,
    scaled_form,
    spread,
)

Array = Any
SHRUNK = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_ROWS = 1 << 22  # elements that are tried at once


def encode_closely(values: Array, t: DType, axes: tuple[str, ...]) -> Encoded:
    """`encode_scaled`, each group with the scale, of a few, that gives the least sum of squared errors.

    A scale is tried as the plain quantiser chooses it and up to 30 % smaller, which cuts off the largest values; for
    integers that reach farther down than up, also negated (then the largest value gets the lowest code). Types with
    stored zero points, offsets, tables or scales of scales, and scales that are powers of two, are encoded plainly.
    """
    x = np.asarray(values, np.float64)
    form = scaled_form(t)
    factors = _factors(form)
    if not factors or not x.size:
        return encode_scaled(x, t, axes)
    sizes = group_sizes(t, axes, x.shape)
    rows = max(1, _ROWS // max(1, x[0].size))
    if sizes[0] == 1 and len(x) > rows:  # no group spans rows: in pieces
        made = [_chosen(x[n : n + rows], t, axes, factors) for n in range(0, len(x), rows)]
        return encode_scaled(x, t, axes, stretch=np.concatenate(made))
    return encode_scaled(x, t, axes, stretch=_chosen(x, t, axes, factors))


def _factors(form: Scaled) -> tuple[float, ...]:
    scale, element = form.scale, form.element
    if (
        scale is None or form.table is not None or form.offset is not None
        or isinstance(form.zero, DType) or isinstance(scale.form, Scaled)
        or not scale.is_float or (isinstance(scale.form, Float) and not scale.form.mantissa)
    ):  # fmt: skip
        return ()
    if not element.is_integer:
        return (1.0, *SHRUNK) if element.bits <= 8 else ()
    low, high = (bound - (form.zero or 0) for bound in integer_range(element))
    if element.bits > 6 or not low < 0 < high:
        return ()
    signed = not isinstance(scale.form, Float) or scale.form.signed
    negated = (
        high / low if signed and -low > high else None
    )  # the largest value gets the lowest code
    return (1.0, *SHRUNK) if negated is None else (1.0, *SHRUNK, negated, *(negated * s for s in SHRUNK))  # fmt: skip


def _chosen(x: Array, t: DType, axes: tuple[str, ...], factors: tuple[float, ...]) -> Array:
    """Per group the factor with the least squared error."""
    form, sizes = scaled_form(t), group_sizes(t, axes, x.shape)
    zero = form.zero or 0
    assert isinstance(zero, int) and form.scale is not None
    plain = plain_scales(x, t, axes)
    element = replace(form.element, saturate=True, rounding=form.element.rounding or "nearest")
    best = least = None
    for factor in factors:
        with np.errstate(all="ignore"):
            scale = form.scale.load(form.scale.store(plain * factor)).astype(np.float64)
        full = spread(np.where((scale == 0) | ~np.isfinite(scale), 1.0, scale), sizes)
        shifted = x / full
        if element.is_integer:
            low, high = integer_range(element)
            value = np.clip(np.rint(shifted), low - zero, high - zero)
        else:
            value = element.load(element.store(shifted))
        error = _per_group((value - shifted) ** 2 * full**2, sizes)
        if best is None:
            best, least = np.full(error.shape, factor), error
            continue
        better = error < least
        best, least = np.where(better, factor, best), np.where(better, error, least)
    return best


def _per_group(x: Array, sizes: tuple[int, ...]) -> Array:
    split: list[int] = []
    for n, g in zip(x.shape, sizes):
        split += [n // g, g]
    return x.reshape(split).sum(tuple(range(1, 2 * x.ndim, 2)))
