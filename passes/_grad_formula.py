"""Scalar expressions as sympy's rational functions, and back; what is no arithmetic is a symbol of its text."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Call, Cast, Const, Expr, text, variables
from tcc.passes._grad_expr import ONE, negated, over, plus, pull_back, times

Formula = Any  # a sympy expression


class Formulas:
    """Translates between expressions and formulas; `meaning` is what each symbol stands for."""

    def __init__(self) -> None:
        self.meaning: dict[Formula, Expr] = {}

    def symbol(self, e: Expr) -> Formula:
        import sympy

        s = sympy.Symbol(text(e))
        self.meaning[s] = e
        return s

    def of(self, e: Expr) -> Formula:
        """The formula of an expression; conversions between floats do not count."""
        import sympy

        if isinstance(e, Cast) and e.dtype.is_float:
            return self.of(e.arg)
        if isinstance(e, Const) and not isinstance(e.value, bool) and e.value in (-2, -1, 0, 1, 2):
            return sympy.Integer(int(e.value))
        if isinstance(e, Call) and e.op == "select":
            p, a, b = self.symbol(e.args[0]), self.of(e.args[1]), self.of(e.args[2])
            return p * a + (1 - p) * b
        if isinstance(e, Call) and e.op in _ARITHMETIC:
            return _ARITHMETIC[e.op](*(self.of(a) for a in e.args))
        return self.symbol(e)

    def expr(self, f: Formula) -> Expr | None:
        """The expression of a formula; None for more than sums of products of powers."""
        numerator, denominator = f.as_numer_denom()
        over_, under = self._sum(numerator), self._sum(denominator)
        return None if over_ is None or under is None else over(over_, under)

    def _sum(self, f: Formula) -> Expr | None:
        total: Expr = Const(0.0)
        for term in f.as_ordered_terms():
            factor, powers = term.as_coeff_mul()
            if not factor.is_Integer:
                return None
            product: Expr = Const(float(abs(factor)))
            for power in powers:
                base, n = power.as_base_exp()
                if not n.is_Integer or n < 0 or base not in self.meaning:
                    return None
                for _ in range(int(n)):
                    product = times(product, self.meaning[base])
            total = plus(total, negated(product) if factor < 0 else product)
        return total

    def variables(self, f: Formula) -> set[str]:
        """The rank variables that a formula depends on."""
        return {v for s in f.free_symbols for v in variables(self.meaning[s])}


def simple(f: Formula) -> Formula:
    """Numerator and denominator without common factors."""
    import sympy

    return sympy.cancel(sympy.together(f))


def logarithmic(
    body: Expr, a: Access, reduced: set[str], dtype: Callable[[Expr], DType]
) -> Expr | None:
    """ρ with ∂body/∂a = ρ · body, where ρ has no reduced variable and is finite where body is: Σ body changes by ρ · Σ body."""
    import sympy

    found = [g for b, g in pull_back(body, ONE, None, {a.tensor}, dtype) if text(b) == text(a)]
    if not found:
        return None
    formulas = Formulas()
    whole = formulas.of(body)
    ratio = simple(formulas.of(found[0]) / whole)
    if formulas.variables(ratio) & reduced:
        return None
    _, more = sympy.fraction(
        simple(sympy.fraction(sympy.together(whole))[1] / sympy.fraction(ratio)[1])
    )
    if more.free_symbols or any(isinstance(formulas.meaning[s], Call) for s in ratio.free_symbols):
        return None
    return formulas.expr(ratio)


_ARITHMETIC: dict[str, Callable[..., Formula]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "neg": operator.neg,
}  # fmt: skip
