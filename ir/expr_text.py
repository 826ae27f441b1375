"""Parsing shared by the levels: tokens, places, the expression grammar and its tree builder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tcc.ir.diagnostics import CompileError, Source, Span, did_you_mean
from tcc.ir.dtype import DTYPES
from tcc.ir.dtype_text import TOKEN, dtype, is_dtype
from tcc.ir.expr import MAX_DEPTH, Access, Call, Cast, Const, Expr, Size, Var
from tcc.ir.ops import OPS

EXPR_GRAMMAR = r"""
?expr: coalesce
?coalesce: disjunction | coalesce "??" disjunction -> op_coalesce
?disjunction: conjunction | disjunction "or" conjunction -> op_or
?conjunction: negation | conjunction "and" negation -> op_and
?negation: comparison | "not" negation -> op_not
?comparison: bits_or
    | bits_or "==" bits_or -> op_eq
    | bits_or "!=" bits_or -> op_ne
    | bits_or "<" bits_or -> op_lt
    | bits_or "<=" bits_or -> op_le
    | bits_or ">" bits_or -> op_gt
    | bits_or ">=" bits_or -> op_ge
?bits_or: bits_xor | bits_or "|" bits_xor -> op_bit_or
?bits_xor: bits_and | bits_xor "^" bits_and -> op_bit_xor
?bits_and: sum | bits_and "&" sum -> op_bit_and
?sum: product
    | sum "+" product -> op_add
    | sum "-" product -> op_sub
?product: unary
    | product "*" unary -> op_mul
    | product "/" unary -> op_div
    | product "//" unary -> op_floordiv
    | product "%" unary -> op_mod
?unary: power | "-" unary -> op_neg
?power: atom | atom "**" unary -> op_pow
?atom: NUMBER -> number
    | NAME -> name
    | END -> end
    | PRIMED -> primed
    | NAME "[" [expr ("," expr)*] "]" -> access
    | NAME "(" [expr ("," expr)*] ")" -> apply
    | DTYPE "(" [expr ("," expr)*] ")" -> apply
    | "(" expr ")"
NAME: /[A-Za-z_]\w*/
DTYPE.3: /@DTYPE@/
PRIMED.2: /[A-Za-z_]\w*'/
END.2: /[a-z_]\w*\.(low|high)\b/
NUMBER: /(\d+\.\d+|\.\d+|\d+\.(?!\.)|\d+)([eE][+-]?\d+)?/
COMMENT: /#[^\n]*/
_NL: /\r?\n/
// a line that starts with one of these continues the line before
CONTINUED.2: /(\r?\n[ \t]*(#[^\n]*(?=\n))?)+(?=::|where\b|and\b|or\b|[-+*\/])/
%ignore CONTINUED
%ignore /[ \t\f]+/
%ignore COMMENT
"""
_CONSTANTS: dict[str, float | bool] = {
    "inf": math.inf, "nan": math.nan, "pi": math.pi, "true": True, "false": False,
}  # fmt: skip


class _JoinLines:
    """Drops line ends inside brackets."""

    always_accept = ("_NL",)

    def process(self, stream: Iterator[Any]) -> Iterator[Any]:
        depth = 0
        for token in stream:
            if token.type == "_NL" and depth > 0:
                continue
            depth = max(0, depth + (str(token) in ("(", "[")) - (str(token) in (")", "]")))
            yield token


@lru_cache(maxsize=4)
def _lark(grammar: str, start: str) -> Any:
    import lark

    return lark.Lark(
        grammar + EXPR_GRAMMAR.replace("@DTYPE@", TOKEN), parser="lalr", start=start, propagate_positions=True,
        maybe_placeholders=True, postlex=_JoinLines(),
    )  # fmt: skip


def parse_tree(grammar: str, start: str, source: Source) -> Any:
    """The syntax tree of a text; raises T0100 at the first character or token that does not fit."""
    import lark

    try:
        tree = _lark(grammar, start).parse(source.text + "\n")
    except lark.exceptions.UnexpectedCharacters as error:
        at = error.pos_in_stream or 0
        char = source.text[at] if at < len(source.text) else "end"
        span = Span(source, error.line, error.column, error.column + 1)
        raise CompileError(
            "T0100",
            f"unexpected character `{char}`",
            span,
            helps="see the grammar in `docs/language.md`",
        ) from None
    except lark.exceptions.UnexpectedToken as error:
        raise _unexpected(source, error) from None
    except lark.exceptions.UnexpectedEOF:
        raise CompileError("T0100", "unexpected end of the text", _end(source),
                           helps="the last statement is not complete") from None  # fmt: skip
    _check_depth(tree, source)
    return tree


def _check_depth(tree: Any, source: Source) -> None:
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        if not hasattr(node, "data"):
            continue
        depth += node.data.startswith("op_") or node.data in ("apply", "access")
        if depth > MAX_DEPTH:
            m = node.meta
            end = m.end_column if m.end_line == m.line else m.column + 1
            raise CompileError(
                "T0129", f"an expression is nested more than {MAX_DEPTH} levels deep",
                Span(source, m.line, m.column, end), helps="give a part of it a name, in a definition of its own",
            )  # fmt: skip
        stack.extend((child, depth) for child in node.children)


def _end(source: Source) -> Span:
    lines = source.text.rstrip("\n").split("\n")
    return Span(source, len(lines), len(lines[-1]) + 1, len(lines[-1]) + 2)


def _unexpected(source: Source, error: Any) -> CompileError:
    token = error.token
    shown = {"_NL": "end of line", "$END": "end of the text"}.get(token.type, f"`{token}`")
    wanted = sorted(_readable(t) for t in (error.accepts or error.expected or set()))
    wanted = [w for w in wanted if w]
    helps: tuple[str, ...] = (f"expected {', '.join(wanted[:8])}",) if 0 < len(wanted) <= 8 else (
        "expected an operator, or the end of the statement",)  # fmt: skip
    if token.type in ("$END",):
        return CompileError("T0100", f"unexpected {shown}", _end(source), helps=helps)
    width = 1 if token.type == "_NL" else len(token)
    span = Span(source, token.line, token.column, token.column + width)
    if token.type == "NAME":
        known = [
            "ranks",
            "in",
            "out",
            "where",
            "cascade",
            "extern",
            "stop",
            "when",
            "joint",
            "kernel",
        ]
        first = source.line(token.line).split()[0]
        helps = (*(did_you_mean(first, known) or did_you_mean(str(token), known)), *helps)
    return CompileError("T0100", f"unexpected {shown}", span, helps=helps)


_TOKENS = {
    "NAME": "a name", "NUMBER": "a number", "_NL": "the end of the line", "LPAR": "`(`", "RPAR": "`)`",
    "LSQB": "`[`", "RSQB": "`]`", "COMMA": "`,`", "EQUAL": "`=`", "COLON": "`:`", "$END": "the end",
    "MINUS": "`-`", "NOT": "`not`", "WHERE": "`where`", "CIRCUMFLEX": "`^`", "PERCENT": "`%`",
    "SLASH": "`/`", "STAR": "`*`",
}  # fmt: skip


def _readable(token: str) -> str:
    return _TOKENS.get(token, f"`{token.lower()}`" if token.isalpha() and token.isupper() else "")


@dataclass(frozen=True)
class Names:
    """What bare names mean: tensors and ranks; every other name is a rank variable."""

    tensors: set[str]
    ranks: set[str]


class ExprBuilder:
    """Turns syntax trees into expressions, with places."""

    def __init__(self, source: Source, names: Names) -> None:
        self.source, self.names = source, names
        self.ends = False  # whether `v.low` and `v.high`, the ends of a tile, are known here
        self.primes = False  # whether `T'`, a component of the joined state, is known here

    def span(self, node: Any) -> Span:
        if hasattr(node, "meta"):
            m = node.meta
            end = m.end_column if m.end_line == m.line else len(self.source.line(m.line)) + 1
            return Span(self.source, m.line, m.column, end)
        return Span(self.source, node.line, node.column, node.column + len(node))

    def call(self, op: str, node: Any, *args: Expr) -> Expr:
        return Call(op, args, self.span(node))

    def build(self, node: Any) -> Expr:
        if node.data.startswith("op_"):
            return self._operator(node)
        span = self.span(node)
        head = str(node.children[0])
        if node.data == "number":
            return self._number(head, span)
        if node.data == "name":
            return self._name(head, span)
        if node.data == "end":
            if not self.ends:
                raise CompileError("T0100", f"`{head}` has a meaning only in `when` of a loop over tiles", span,
                                   helps="an end of a tile is known only in a mapping")  # fmt: skip
            return Var(head, span)
        if node.data == "primed":
            if not self.primes:
                raise CompileError("T0136", f"`{head}` has a meaning only in the corrections of a `joint`", span,
                                   helps="a prime marks the value that a component has in the joined state")  # fmt: skip
            return Access(head, (), span)
        args = [c for c in node.children[1:] if c is not None]
        if node.data == "access":
            return Access(head, tuple(self.build(a) for a in args), span)
        return self._apply(head, args, span, node)

    def _operator(self, node: Any) -> Expr:
        """Left-leaning chains are unwound, so that long sums do not exhaust the stack."""
        chain = []
        while hasattr(node, "data") and node.data.startswith("op_"):
            chain.append(node)
            node = node.children[0]
        value = self.build(node)
        for n in reversed(chain):
            op = n.data[3:]
            rest = [self.build(c) for c in n.children[1:]]
            if op == "neg" and isinstance(value, Const) and not isinstance(value.value, bool):
                value = Const(-value.value, self.span(n))
            else:
                value = Call(op, (value, *rest), self.span(n))
        return value

    def _number(self, shown: str, span: Span) -> Expr:
        if any(c in shown for c in ".eE"):
            return Const(float(shown), span)
        if int(shown) > 2**64:
            raise CompileError("T0111", f"the number {shown} does not fit in 64 bits", span,
                               helps="write a smaller number, or a float")  # fmt: skip
        return Const(int(shown), span)

    def _name(self, name: str, span: Span) -> Expr:
        if name in self.names.tensors:
            return Access(name, (), span)
        if name in self.names.ranks:
            return Size(name, span)
        if name in _CONSTANTS:
            return Const(_CONSTANTS[name], span)
        if name[0].isupper():
            return Size(name, span)
        return Var(name, span)

    def _apply(self, name: str, args: list[Any], span: Span, node: Any) -> Expr:
        values = tuple(self.build(a) for a in args)
        if is_dtype(name):
            self._count(name, 1, values, span)
            return Cast(dtype(name, span), values[0], span)
        if name in ("max", "min") and len(values) > 2:
            out = values[0]
            for v in values[1:]:
                out = Call(name, (out, v), span)
            return out
        if name not in OPS:
            known = [*OPS, *DTYPES]
            where = Span(self.source, span.line, span.column, span.column + len(name))
            raise CompileError("T0101", f"unknown function `{name}`", where,
                               helps=did_you_mean(name, known) or "see `docs/language.md` for the functions")  # fmt: skip
        self._count(name, OPS[name].arity, values, span)
        return Call(name, values, span)

    def _count(self, name: str, wanted: int, values: tuple[Expr, ...], span: Span) -> None:
        if len(values) != wanted:
            raise CompileError("T0124", f"`{name}` takes {wanted} operand{'s' * (wanted != 1)}, not {len(values)}",
                               span, helps="check the number of commas")  # fmt: skip


def children_named(tree: Any, kind: str) -> list[Any]:
    """The direct children of a syntax tree that are of one kind."""
    return [c for c in getattr(tree, "children", []) if getattr(c, "data", None) == kind]
