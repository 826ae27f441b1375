"""Random verified cascades with small inputs, and the comparison that every backend is tested by.

    generate(seed) -> Program               the same program for the same seed, on every machine
    programs(without=("stop",))             a hypothesis strategy of programs
    assert_matches(cascade, outputs, inputs, sizes)

Values stay in sane domains: an interval is kept for every expression, and operands are clipped or
scaled where a function needs it, so that float programs are continuous almost everywhere and
integers do not overflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from random_definitions import Program, Writer
from random_expressions import FEATURES

from tcc.ir.cascade import Cascade
from tcc.ir.interpret import interpret_with_bounds

__all__ = ["FEATURES", "POINTS", "Program", "assert_matches", "generate", "programs"]
POINTS = 30_000  # of one definition; with at most six definitions that is below 200,000 in all


def generate(seed: int, without: Iterable[str] = (), points: int = POINTS) -> Program:
    """The program of a seed, without some features; a definition has at most `points` points."""
    return Writer(seed, set(without), points).program()


def programs(without: Iterable[str] = (), points: int = POINTS) -> st.SearchStrategy[Program]:
    """Random programs; a failing example shows its seed and its text."""
    left_out = tuple(without)
    return st.integers(0, 2**32 - 1).map(lambda seed: generate(seed, left_out, points))


def assert_matches(
    cascade: Cascade,
    outputs: Mapping[str, Any],
    inputs: Mapping[str, Any],
    sizes: Mapping[str, int] | None = None,
) -> None:
    """`outputs` are the interpreter's: integers exactly, floats within twice the error bound."""
    for name, want in interpret_with_bounds(cascade, inputs, sizes).items():
        assert name in outputs, f"output `{name}` is missing\n{cascade}"
        got, exact = np.asarray(outputs[name]), np.asarray(want.data)
        assert got.dtype == exact.dtype, f"`{name}` is {got.dtype}, not {exact.dtype}\n{cascade}"
        assert got.shape == exact.shape, (
            f"`{name}` has shape {got.shape}, not {exact.shape}\n{cascade}"
        )
        bad = ~_close(got, exact, np.asarray(want.error))
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0]) if bad.ndim else ()
            bound = np.broadcast_to(want.error, exact.shape)[first]
            raise AssertionError(
                f"`{name}` differs at {int(bad.sum())} of {bad.size} points, first at {first}: "
                f"got {got[first]!r}, expected {exact[first]!r}, bound {bound:.3g}, "
                f"sizes {dict(sizes or {})}, "
                f"shapes { {k: np.shape(v) for k, v in inputs.items()} }\n{cascade}"
            )


def _close(got: Any, want: Any, error: Any) -> Any:
    """Where `got` is right; points whose bound is infinite are not judged."""
    unknown = np.isinf(error) | np.isnan(error) & np.isfinite(want)
    if got.dtype.kind != "f":
        return (got == want) | unknown
    tiny = float(np.finfo(got.dtype).tiny)
    with np.errstate(all="ignore"):
        near = (
            np.abs(got.astype(np.float64) - want.astype(np.float64))
            <= 2 * np.nan_to_num(error) + tiny
        )
    return near | (got == want) | (np.isnan(got) & np.isnan(want)) | unknown
