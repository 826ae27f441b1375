"""What several definitions compute around one read, so that it can be computed once per tile."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Call, Cast, Expr, accesses, text, walk


def shared_around(a: Access, readers: list[Einsum]) -> Expr:
    """The largest expression around an access that is in the body of every reader."""
    best: Expr = a
    common = set.intersection(*({text(e) for e in walk(d.body)} for d in readers))
    for e in walk(readers[0].body):
        inside = any(text(b) == text(a) for b in accesses(e))
        if inside and text(e) in common and len(text(e)) > len(text(best)):
            best = e
    return best


def reading(d: Einsum, shown: str, new: Access) -> Einsum:
    """A definition that reads `new` instead of the expression with the text `shown`."""

    def visit(e: Expr) -> Expr:
        if text(e) == shown:
            return new
        if isinstance(e, Call):
            return replace(e, args=tuple(visit(x) for x in e.args))
        return replace(e, arg=visit(e.arg)) if isinstance(e, Cast) else e

    return replace(d, body=visit(d.body), where=tuple(visit(p) for p in d.where))
