"""First-order forward error bounds of scalar operators, for a working precision with unit roundoff u."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcc.ir.ops import Op

Array = Any


def propagate(op: Op, x: list[Array], errors: list[Array | None], result: Array, u: float) -> Array:
    """A bound on |computed - exact| for `op` on operands with the given error bounds.

    Where a discontinuity may be crossed the bound is infinite. Errors are doubled on amplification to cover the second
    order. Source: standard running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3).
    """
    e = [np.zeros(()) if v is None else v for v in errors]
    magnitude = np.abs(np.nan_to_num(np.asarray(result, dtype=np.float64), posinf=0, neginf=0))
    least, largest = (2.0**-126, 2.0**127 * 1.99) if u > 2.0**-50 else (2.0**-1022, np.inf)
    if u == 2.0**-11:  # f16
        least, largest = 2.0**-14, 65504.0
    own = u * op.ulp * magnitude + np.where(
        (magnitude > 0) & (u > 0), least, 0.0
    )  # small results may become 0
    own = np.where((magnitude > largest) & (u > 0), np.inf, own)
    kind = op.name
    if kind in ("add", "sub"):
        return e[0] + e[1] + own
    if kind == "mul":
        return _times(x[0], e[1]) + _times(x[1], e[0]) + e[0] * e[1] + own
    if kind == "div":
        near = np.abs(x[1]) <= 2 * e[1]
        safe = np.where(x[1] == 0, 1, np.abs(x[1]))
        moved = np.where(e[0] + e[1] > 0, 2 * (e[0] + magnitude * e[1]) / safe, 0.0)
        return np.where(near & (e[1] > 0), np.inf, moved) + own
    if kind in ("max", "min"):
        return np.maximum(*np.broadcast_arrays(e[0], e[1]))
    if kind == "select":
        chosen = np.where(x[0], e[1], e[2])
        apart = np.abs(np.nan_to_num(np.asarray(x[1], np.float64) - np.asarray(x[2], np.float64)))
        if np.asarray(result).dtype.kind == "b":
            apart = np.where(apart > 0, np.inf, 0.0)
        return np.where(e[0] > 0, apart + e[1] + e[2], chosen)
    if kind == "take":
        return np.where(x[2] == 0, e[0], e[1])
    if kind == "neg":
        return e[0]
    if kind == "pow":
        base = np.where(x[0] == 0, 1, np.abs(x[0]))
        exponent = np.abs(np.asarray(x[1], dtype=np.float64))
        amplified = magnitude * (exponent * e[0] / base + np.abs(np.log(base)) * e[1])
        rounding = u * magnitude * (4 + 4 * np.abs(exponent * np.log(base)))
        return np.where(e[0] + e[1] > 0, 2 * amplified, 0.0) + rounding + own
    if kind in ("and", "or", "not", "bit_and", "bit_or", "bit_xor"):
        return sum(e, np.zeros(()))
    if op.discontinuous:
        return _jump(op, x, e, result, u)
    if op.derivative is not None:
        # the derivative's largest value over the interval: at its ends, its middle, or where functions peak
        low, high = x[0] - e[0], x[0] + e[0]
        points = [low, high, np.asarray(x[0]), np.clip(0.0, low, high), np.clip(-1.0, low, high)]
        slope = np.max(
            np.stack(np.broadcast_arrays(*[np.abs(op.derivative(p)) for p in points])), axis=0
        )
        spread = np.where(e[0] > 0, slope * e[0], 0.0)
        return np.where(np.isnan(spread), np.inf, spread) + own
    return sum(e, np.zeros(())) + own


def _times(x: Array, e: Array) -> Array:
    return np.where(e > 0, np.abs(x) * e, 0.0)


def _jump(op: Op, x: list[Array], e: list[Array], result: Array, u: float) -> Array:
    """Infinite where an operand's error could move the value across a jump, else zero."""
    if len(x) == 2 and op.result == "bool":
        margin = e[0] + e[1]
        near = (np.abs(np.asarray(x[0], dtype=np.float64) - x[1]) <= margin) & (margin > 0)
        return np.where(near, np.inf, 0.0)
    if len(x) == 2:  # floor division and modulo: the quotient itself may be rounded onto an integer
        quotient = np.asarray(x[0], np.float64) / np.where(x[1] == 0, 1, x[1])
        nearest = np.rint(quotient)
        close = (np.abs(quotient - nearest) <= 2 * u * np.abs(quotient)) & (quotient != nearest)
        own = 2 * u * np.maximum(np.abs(x[0]), np.abs(x[1])) if op.name == "mod" else 0.0
        return np.where((e[0] + e[1] > 0) | close, np.inf, own)
    moved = (op.evaluate(x[0] - e[0]) != result) | (op.evaluate(x[0] + e[0]) != result)
    return np.where(moved & (e[0] > 0), np.inf, 0.0)


def fold_error(
    combine: str, x: Array, total: Array, error: Array, axis: tuple[int, ...], u: float
) -> Array:
    """Error of a reduction in any order: n roundings of partial results no larger than the sum of magnitudes."""
    if combine == "add":
        return np.sum(error, axis=axis) + u * np.sum(
            np.abs(np.nan_to_num(x, posinf=0, neginf=0)) + error, axis=axis
        )
    if combine == "mul":
        relative = np.sum(error / np.maximum(np.abs(x), 1e-300), axis=axis) + u
        return np.abs(total) * relative * (1 + relative)
    if combine in ("max", "min"):
        return np.max(error, axis=axis, initial=0)
    return np.where(np.sum(error, axis=axis) > 0, np.inf, 0.0)
