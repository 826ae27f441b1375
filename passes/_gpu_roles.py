"""What the variables of a sum of products do: rows, columns and depth of a matrix product."""

from __future__ import annotations

from dataclasses import dataclass

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Call, Expr, variables


def factors(e: Expr) -> list[Expr]:
    """The factors of a product; a divisor counts as one."""
    if isinstance(e, Call) and e.op in ("mul", "div"):
        return factors(e.args[0]) + factors(e.args[1])
    return [e]


@dataclass(frozen=True, slots=True)
class Contraction:
    """Z[…, row, …, column] = Σ over depth of f(…, row, depth) · g(…, depth, column)."""

    row: str
    column: str
    depth: str


def contraction(d: Einsum) -> Contraction | None:
    """The roles of a definition's variables when it is a sum of products whose factors split into
    two sides.
    """
    if not d.reduced or any(d.monoid(v) != "sum" for v in d.reduced):
        return None
    parts = [frozenset(variables(f)) for f in factors(d.body)]
    free = d.free
    for depth in d.reduced:
        for i in range(len(free) - 2, -1, -1):
            for j in range(len(free) - 1, i, -1):
                row, column = free[i], free[j]
                if any(row in p and column in p for p in parts):
                    continue
                left = any(row in p and depth in p for p in parts)
                right = any(column in p and depth in p for p in parts)
                if left and right:
                    return Contraction(row, column, depth)
    return None
