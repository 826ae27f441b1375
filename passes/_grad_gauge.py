"""References that a result does not depend on: shifting one changes its readers, but no output.

The maximum that a chain of exponentials is measured against is such a reference. Its derivative is followed forwards
through the scalar formulas of the definitions; where it vanishes before any output, the whole adjoint is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tcc.ir.cascade import Cascade, Definition, Einsum, Recurrence, Step
from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Expr, Var, substitute
from tcc.ir.index import poly
from tcc.ir.ops import MONOIDS
from tcc.passes._grad_expr import ONE, depends, pull_back
from tcc.passes._grad_formula import Formula, Formulas, simple


def invariant(
    c: Cascade,
    steps: Sequence[Step],
    live: set[str],
    outputs: set[str],
    dtype: Callable[[Expr], DType],
    tried: set[str],
) -> str | None:
    """A live tensor made by a reduction that does not add, which the outputs do not depend on: the last not yet tried."""
    for d in reversed(steps):
        if isinstance(d, Einsum) and d.target in live - outputs - tried and d.reduced:
            tried.add(d.target)
            if MONOIDS[d.monoid(d.reduced[0])].combine != "add" and _plain(c, d):
                if _Shift(c, live, outputs, dtype).vanishes(d, steps):
                    return d.target
    return None


def _plain(c: Cascade, d: Einsum) -> bool:
    """Whether d is a tensor's only definition, and names its elements by variables where there are several."""
    names = [i.name for i in d.indices if isinstance(i, Var)]
    units = [
        poly(n).constant == 1
        for i, n in zip(d.indices, c.tensors[d.target].shape)
        if not isinstance(i, Var)
    ]
    return len(c.defining(d.target)) == 1 and len(names) == len(set(names)) and all(units)


@dataclass
class _Shift:
    """How tensors change when every element of a reference moves by a little, each by its own amount."""

    c: Cascade
    live: set[str]
    outputs: set[str]
    dtype: Callable[[Expr], DType]
    change: dict[str, tuple[tuple[Expr, ...], Formula]] = field(
        default_factory=dict
    )  # T[indices] changes by
    formulas: Formulas = field(default_factory=Formulas)

    def vanishes(self, reference: Einsum, steps: Sequence[Step]) -> bool:
        moved = Access(f"{reference.target}'", reference.indices)
        self.change[reference.target] = (reference.indices, self.formulas.symbol(moved))
        for d in steps:
            if d is reference:
                continue
            if not isinstance(d, Einsum):
                members: Sequence[Definition] = d.steps if isinstance(d, Recurrence) else (d,)
                names = {a.tensor for m in members for a in m.reads}
                if names & set(self.change):
                    return False
            elif d.target in self.live and depends(d.body, set(self.change)):
                new = self._changed(d)
                if new is None or (
                    new != 0 and (d.target in self.outputs or not _plain(self.c, d))
                ):
                    return False
                if new != 0:
                    self.change[d.target] = (d.indices, new)
        return True

    def _changed(self, d: Einsum) -> Formula | None:
        """The change of d's target, or None where it does not follow from its value alone."""
        import sympy

        value = Access(d.target, d.indices)
        total: Formula = sympy.Integer(0)
        readable = None if d.reduced else value
        for a, g in pull_back(d.body, ONE, readable, set(self.change), self.dtype):
            total += self.formulas.of(g) * self._at(a)
        if not d.reduced:
            body = self.formulas.of(d.body)
            total = simple(total.subs(self.formulas.symbol(value), body))
            ratio = simple(
                total / body
            )  # the shorter of the two says more: e^x changes by a multiple of itself
            multiple = len(ratio.free_symbols) < len(total.free_symbols)
            return ratio * self.formulas.symbol(value) if multiple else total
        combine = MONOIDS[d.monoid(d.reduced[0])].combine
        if combine == "add":
            total = simple(total / self.formulas.of(d.body))
        elif combine in ("max", "min"):
            total = simple(total)
        else:
            return None
        if self.formulas.variables(total) & set(d.reduced):
            return None
        return total * self.formulas.symbol(value) if combine == "add" else total

    def _at(self, a: Access) -> Formula:
        """The change of the element that `a` reads."""
        own, change = self.change[a.tensor]
        values = {v.name: i for v, i in zip(own, a.indices, strict=True) if isinstance(v, Var)}
        moved = {
            s: self.formulas.symbol(substitute(self.formulas.meaning[s], values))
            for s in change.free_symbols
        }
        return change.subs(moved, simultaneous=True)
