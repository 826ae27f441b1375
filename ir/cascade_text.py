"""The text of the cascade level: printer and parser of one language.

    cascade attention                 # comments run to the end of the line
    ranks P, M, E=64
    in  Q: f32[E,P], K: f32[E,M]
    out S: f32[M,P]
    S[m,p] = Q[e,p] * K[e,m] / sqrt(E)  where m <= p

A line that starts with `::`, `where` or an operator, and everything inside brackets, continues the line before.
"""

from __future__ import annotations

from typing import Any

from tcc.ir.cascade import (
    Cascade,
    Definition,
    Einsum,
    Extern,
    Field,
    Joint,
    Rank,
    Reduction,
    Stop,
    Tensor,
)
from tcc.ir.diagnostics import CompileError, Source, Span, did_you_mean
from tcc.ir.dtype_text import dtype
from tcc.ir.expr import Const, Expr, Size, text, walk
from tcc.ir.expr_text import ExprBuilder, Names, children_named, parse_tree
from tcc.ir.infer import build
from tcc.ir.ops import INDEX_REDUCTIONS, MONOIDS, PLANNED_MONOIDS

GRAMMAR = r"""
program: _NL* (unit | block+)
unit: statement*
block: header statement*
header: "cascade" NAME _NL+
?statement: (ranks | inputs | outputs | definition | extern | stop | joint | group) _NL+
ranks: "ranks" rank ("," rank)*
rank: NAME ["=" expr]
inputs: "in" tensor ("," tensor)*
outputs: "out" tensor ("," tensor)*
tensor: NAME ":" (NAME | DTYPE) ["[" [expr ("," expr)*] "]"] [FILL expr] [PACKED] [CONSTANT]
CONSTANT.1: /constant(?=\s|,)/
PACKED.1: /packed(?=\s|,)/
FILL: /fill(?=\s)/
definition: NAME ["[" [expr ("," expr)*] "]"] "=" expr ["::" reduction ("," reduction)*] ["where" predicate ("," predicate)*]
reduction: NAME "(" NAME ("," NAME)* ")"
predicate: expr [(IN expr ".." expr)]
IN: /in(?=\s)/
extern: "extern" tensor ("," tensor)* "=" QUALIFIED STRING
stop: "stop" NAME "when" expr
joint: "joint" NAME ":" field ("," field)*
field: NAME ["by" expr]
group: "kernel" NAME ":" NAME ("," NAME)*
QUALIFIED: /[A-Za-z_]\w*(\.\w+)+/
STRING: /'[^'\n]*'/
"""


def print_cascade(c: Cascade) -> str:
    """The program as text that `parse_cascades` reads back."""
    lines = [f"cascade {c.name}"]
    ranks = [f"{r.name}={text(r.size)}" if r.size is not None else r.name for r in c.ranks]
    if ranks:
        lines.append(f"ranks {', '.join(ranks)}")
    lines += [f"in  {t}" for t in c.inputs] + [f"out {t}" for t in c.outputs]
    lines += [""] + [str(d) for d in c.definitions] + [str(s) for s in c.stops]
    lines += [str(j) for j in c.joints]
    lines += [f"kernel {name}: {', '.join(members)}" for name, members in c.groups]
    return "\n".join(lines) + "\n"


def parse_cascade(program: str, name: str = "<string>") -> Cascade:
    """The one cascade of a text; raises `CompileError` at the place of the first mistake."""
    found = parse_cascades(program, name)
    if len(found) != 1:
        raise CompileError("T0102", f"{name} holds {len(found)} cascades, not one",
                           helps="name the cascade that is meant, or split the file")  # fmt: skip
    return found[0]


def parse_cascades(program: str, name: str = "<string>") -> list[Cascade]:
    """Every cascade of a text, verified."""
    source = Source(name, program)
    tree = parse_tree(GRAMMAR, "program", source)
    return [_cascade(source, block) for block in tree.children]


def bare_names(statements: Any) -> tuple[set[str], set[str]]:
    """What bare names in expressions mean: the names of tensors, and those of ranks."""
    declared = {str(t.children[0]) for s in statements for t in children_named(s, "tensor")}
    defined = {str(s.children[0]) for s in statements if s.data == "definition"}
    ranks = {str(r.children[0]) for s in statements for r in children_named(s, "rank")}
    ranks |= {
        str(t)
        for s in statements
        for d in children_named(s, "tensor")
        for e in d.children[2:]
        if hasattr(e, "scan_values")
        for t in e.scan_values(lambda token: getattr(token, "type", "") == "NAME")
    }
    return declared | defined, ranks


def _cascade(source: Source, block: Any) -> Cascade:
    """One cascade, verified."""
    name, statements = "main", list(block.children)
    if block.data == "block":
        name = str(statements.pop(0).children[0])
    b = Block(source, *bare_names(statements))
    ranks: list[Rank] = []
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    definitions: list[Definition] = []
    stops: list[Stop] = []
    groups: list[tuple[str, tuple[str, ...]]] = []
    joints: list[Joint] = []
    for s in statements:
        if s.data == "ranks":
            ranks += [b.rank(r) for r in s.children]
        elif s.data == "inputs":
            inputs += [b.tensor(t) for t in s.children]
        elif s.data == "outputs":
            outputs += [b.tensor(t) for t in s.children]
        elif s.data == "definition":
            definitions.append(b.definition(s))
        elif s.data == "extern":
            definitions.append(b.extern(s))
        elif s.data == "joint":
            joints.append(b.joint(s))
        elif s.data == "group":
            groups.append((str(s.children[0]), tuple(str(n) for n in s.children[1:])))
        else:
            var, condition = s.children
            stops.append(Stop(str(var), b.expr.build(condition), b.span(s)))
    return build(
        Cascade(
            name,
            tuple(ranks),
            tuple(inputs),
            tuple(outputs),
            tuple(definitions),
            tuple(stops),
            tuple(groups),
            tuple(joints),
        )
    )


class Block:
    """Builds the parts that the texts of both levels share."""

    def __init__(self, source: Source, tensors: set[str], ranks: set[str]) -> None:
        self.source = source
        self.expr = ExprBuilder(source, Names(tensors, ranks))
        self.size = ExprBuilder(source, Names(set(), ranks))  # in sizes, every name is a rank

    def span(self, node: Any) -> Span:
        return self.expr.span(node)

    def rank(self, node: Any) -> Rank:
        name, size = node.children
        if not name[0].isupper():
            raise CompileError("T0120", f"rank `{name}` starts with a lower-case letter", self.span(name),
                               helps=f"ranks are upper case, their variables lower case: `{str(name).upper()}`")  # fmt: skip
        return Rank(str(name), self.size.build(size) if size is not None else None, self.span(node))

    def tensor(self, node: Any) -> Tensor:
        name, spelling, *rest = node.children
        element = dtype(str(spelling), self.span(spelling))
        words = {getattr(e, "type", "") for e in rest} & {"CONSTANT", "PACKED"}
        rest = [e for e in rest if getattr(e, "type", "") not in words]
        fill = 0.0
        marks = [i for i, e in enumerate(rest) if getattr(e, "type", "") == "FILL"]
        if marks:
            value = _constant(self.expr.build(rest[marks[0] + 1]))
            if value is None:
                raise CompileError("T0122", "a fill value is a literal", self.span(rest[marks[0] + 1]),
                                   helps="write a number, `inf` or `-inf`")  # fmt: skip
            fill, rest = value, rest[: marks[0]]
        shape = tuple(self.size.build(e) for e in rest if e is not None)
        for n in walk(*shape):
            if isinstance(n, Size) and not n.rank[0].isupper():
                raise CompileError("T0120", f"rank `{n.rank}` starts with a lower-case letter", n.span,
                                   helps=f"ranks are upper case, their variables lower case: `{n.rank.upper()}`")  # fmt: skip
        constant, packed = "CONSTANT" in words, "PACKED" in words
        return Tensor(str(name), element, shape, fill, self.span(node), constant, packed=packed)

    def definition(self, node: Any) -> Einsum:
        parts = [p for p in node.children if p is not None]
        name = parts.pop(0)
        predicates = [p for p in parts if getattr(p, "data", "") == "predicate"]
        reductions = [p for p in parts if getattr(p, "data", "") == "reduction"]
        values = [p for p in parts if getattr(p, "data", "") not in ("predicate", "reduction")]
        *indices, body = [self.expr.build(v) for v in values]
        where = tuple(e for p in predicates for e in self._predicate(p))
        return Einsum(
            str(name), tuple(indices), body, tuple(r for n in reductions for r in self._reduction(n)),
            where, self.span(node),
        )  # fmt: skip

    def _predicate(self, node: Any) -> list[Expr]:
        value, mark, low, high = (node.children + [None] * 3)[:4]
        if mark is None:
            return [self.expr.build(value)]
        v = self.expr.build(value)
        return [
            self.expr.call("le", node, self.expr.build(low), v),
            self.expr.call("lt", node, v, self.expr.build(high)),
        ]

    def _reduction(self, node: Any) -> list[Reduction]:
        monoid, *names = node.children
        known = [*MONOIDS, *INDEX_REDUCTIONS]
        if str(monoid) in PLANNED_MONOIDS:
            raise CompileError("T0123", f"the reduction `{monoid}` is not supported yet", self.span(monoid),
                               helps=f"use one of {', '.join(known)}")  # fmt: skip
        if str(monoid) not in known:
            raise CompileError("T0101", f"unknown reduction `{monoid}`", self.span(monoid),
                               helps=did_you_mean(str(monoid), known) or f"known: {', '.join(known)}")  # fmt: skip
        if str(monoid) in INDEX_REDUCTIONS and len(names) > 1:
            raise CompileError("T0123", f"`{monoid}` over several variables is not supported yet", self.span(names[1]),
                               helps=f"it gives one coordinate: `{monoid}({names[0]})`")  # fmt: skip
        return [Reduction(str(v), str(monoid), self.span(v)) for v in names]

    def joint(self, node: Any) -> Joint:
        var, *fields = node.children
        self.expr.primes = True
        made = tuple(self._field(f) for f in fields)
        self.expr.primes = False
        return Joint(str(var), made, self.span(node))

    def _field(self, node: Any) -> Field:
        name, correction = node.children
        made = self.expr.build(correction) if correction is not None else None
        return Field(str(name), made, self.span(name))

    def extern(self, node: Any) -> Extern:
        *tensors, function, arguments = node.children
        return make_extern(tuple(self.tensor(t) for t in tensors), str(function), str(arguments)[1:-1],
                           self.span(node))  # fmt: skip


def make_extern(
    targets: tuple[Tensor, ...], function: str, arguments: str, span: Span | None = None
) -> Extern:
    """An extern definition whose operands are the `"%X"` strings of its JSON arguments."""
    import json

    operands: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, str) and value.startswith("%"):
            operands.append(value[1:])
        for item in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        ):
            collect(item)

    try:
        collect(json.loads(arguments))
    except json.JSONDecodeError as error:
        raise CompileError("T0100", f"the arguments of `{function}` are no JSON: {error.msg}", span,
                           helps='write a JSON array, with `"%X"` for tensor X') from None  # fmt: skip
    return Extern(targets, function, arguments, tuple(dict.fromkeys(operands)), span)


def _constant(e: Expr) -> float | None:
    if isinstance(e, Const):
        return float(e.value)
    from tcc.ir.expr import Call

    if isinstance(e, Call) and e.op == "neg" and isinstance(e.args[0], Const):
        return -float(e.args[0].value)
    return None
