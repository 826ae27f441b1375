"""The text of layouts: a grammar that mappings share, and a parser (see tcc.ir.layout for the meaning)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tcc.ir.amounts import Amount, amount
from tcc.ir.diagnostics import CompileError, Source, Span
from tcc.ir.expr import Const, Expr
from tcc.ir.expr_text import ExprBuilder, Names, parse_tree
from tcc.ir.index import is_size
from tcc.ir.layout import COPIES, Digit, Layout, Part

LAYOUT_GRAMMAR = r"""
groups: places+
places: [NAME] "[" [digit ("," digit)*] "]" ["+" amount]
digit: part ["*" amount] | part ("^" part)+ -> swizzled | "(" part ("^" part)+ ")" "*" amount -> strided
part: dimension ["/" amount] ["%" amount]
dimension: NUMBER | NAME
?amount: NUMBER -> number | NAME -> name | "(" expr ")"
"""
_STANDALONE = LAYOUT_GRAMMAR + r"""
layout: _NL* ["(" [expr ("," expr)*] ")"] groups _NL*
"""  # fmt: skip


def parse_layout(program: str, name: str = "<layout>") -> Layout:
    """The layout of a text such as `(16, 16) lane[0%8, 1/2%4] reg[1/8, 0/8, 1%2]`; T0100 where it does not follow the
    grammar, T0201 and T0270 where it means nothing."""
    source = Source(name, program)
    tree = parse_tree(_STANDALONE, "layout", source)
    builder = LayoutBuilder(ExprBuilder(source, Names(set(), set())))
    *extents, groups = [c for c in tree.children if c is not None]
    bracketed = program.lstrip().startswith("(")
    return builder.layout(groups, tuple(map(builder.amount, extents)) if bracketed else None)


class LayoutBuilder:
    """Turns syntax trees into layouts, with places in errors."""

    def __init__(self, expr: ExprBuilder) -> None:
        self.expr = expr

    def layout(self, groups: Any, shape: tuple[Amount, ...] | None = None) -> Layout:
        """The layout of a `groups` tree."""
        digits: list[Digit] = []
        offsets: list[tuple[str, Amount]] = []
        for g in groups.children:
            axis, *inside, offset = g.children
            named = str(axis) if axis is not None else "addr"
            digits += [self._digit(d, named) for d in inside if d is not None]
            if offset is not None:
                offsets.append((named, self.amount(offset)))
        bits = any(p.dimension == _BITS for d in digits for p in (d.part, *d.xor))
        numbers = [p.dimension for d in digits for p in (d.part, *d.xor) if p.dimension != _BITS]
        last = max(numbers, default=-1) + 1
        if shape is not None and bits:
            last = len(shape) - 1
        digits = [_renamed(d, last) for d in digits]
        try:
            return Layout(tuple(digits), shape, tuple(offsets), bits)
        except CompileError as error:
            d = error.diagnostic
            raise CompileError(d.code, d.message, self._span(groups), helps=d.helps) from None

    def _span(self, node: Any) -> Span:
        return self.expr.span(node)

    def amount(self, node: Any) -> Amount:
        """An integer or a size expression."""
        e: Expr = self.expr.build(node)
        if not is_size(e) or (isinstance(e, Const) and not isinstance(e.value, int)):
            raise CompileError("T0112", "this is no size", self._span(node),
                               helps="write an integer, a rank such as `M`, or `(M * 4)`")  # fmt: skip
        return amount(e)

    def _digit(self, node: Any, axis: str) -> Digit:
        parts = [self._part(c) for c in node.children if getattr(c, "data", "") == "part"]
        stride = node.children[-1]
        if node.data == "swizzled" or stride is None:
            found = None
        else:
            found = self.amount(stride)
        first, *rest = parts
        return Digit(first.dimension, first.divisor, first.modulus, found, axis, tuple(rest))

    def _part(self, node: Any) -> Part:
        dimension, divisor, modulus = node.children
        word = str(dimension.children[0])
        if word == "_":
            number = COPIES
        elif word == "b":
            number = _BITS
        elif word.isdigit() and len(word) < 4:
            number = int(word)
        else:
            raise CompileError("T0270", f"`{word}` is no dimension", self._span(node),
                               helps="dimensions are numbers; `b` is the bits of elements, `_` copies")  # fmt: skip
        by = 1 if divisor is None else self.amount(divisor)
        return Part(number, by, None if modulus is None else self.amount(modulus))


_BITS = 10_000  # stands for the last dimension until all are known


def _renamed(d: Digit, last: int) -> Digit:
    def name(n: int) -> int:
        return last if n == _BITS else n

    xor = tuple(replace(p, dimension=name(p.dimension)) for p in d.xor)
    return replace(d, dimension=name(d.dimension), xor=xor)
