"""Which expression can be the reference of a re-based sum while the walk lasts: one that stays near its final value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Expr
from tcc.passes._derive_correction import NotFound
from tcc.passes._derive_numeric import ALL, TRIALS, Trial, walk
from tcc.passes._derive_scope import Scope

LONG = 1e6  # what an extent counts as, when a mean is told from a sum


@dataclass(frozen=True, eq=False)
class Running:
    """How a reference is used: as it is, or (`mean`: the sum it is linear in) as the mean of what was summed so far."""

    mean: Einsum | None = None


def running(rho: Expr, scope: Scope, degree: int) -> Running:
    """The running form of a reference; NotFound when the sum would cancel against it."""
    if scope.extremes(rho):
        return Running()
    growth = _growth(rho, scope)
    if growth == "none":
        return Running()
    if growth == "logarithm" and degree == 1:
        return Running()
    if growth == "linear":
        sums = [r for r in scope.used(rho) if scope.monoid(r) == "sum"]
        if len(sums) == 1 and scope.used(rho) == sums and _is_mean(rho, scope):
            return Running(scope.defs[sums[0]])
    raise NotFound("is far from its final value during the walk, so that re-based sums cancel", rho)


def _growth(rho: Expr, scope: Scope) -> str:
    """How a reference grows when all sums do: not at all, like them, like their logarithm, or otherwise."""
    values = []
    for factor in (1.0, 4.0, 16.0):
        t = Trial(scope, 1, "positive")
        random = np.random.default_rng(2)
        t.state = {}
        for r in scope.references:
            base = random.uniform(2.0, 5.0, TRIALS)
            t.state[r] = base * (factor if scope.monoid(r) == "sum" else 1.0)
        with np.errstate(all="ignore"):
            values.append(np.broadcast_to(t.value(rho), (TRIALS, 1))[:, 0])
    a, b, c = values
    if np.allclose(a, b, rtol=1e-9) and np.allclose(a, c, rtol=1e-9):
        return "none"
    if np.allclose(4 * a, b, rtol=1e-9) and np.allclose(16 * a, c, rtol=1e-9):
        return "linear"
    steps = b - a, c - b
    if np.allclose(steps[0], steps[0][0], rtol=1e-6) and np.allclose(steps[0], steps[1], rtol=1e-6):
        return "logarithm"
    return "other"


def _is_mean(rho: Expr, scope: Scope) -> bool:
    """Whether a reference is about as large as the values that it averages, however long the row is."""
    t = Trial(scope, 3, "constant", LONG)
    with np.errstate(all="ignore"):
        walk(t, list(scope.references), ALL)
        t.count = ALL
        value = np.abs(np.broadcast_to(t.value(rho), (TRIALS, 1))) * LONG / ALL
    return bool(np.all((value > 1e-3) & (value < 1e3)))
