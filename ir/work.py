"""The work of a definition: how many scalar operators one point of its iteration space costs."""

from __future__ import annotations

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Var, walk
from tcc.ir.ops import MONOIDS


def point_operations(e: Einsum) -> dict[str, int]:
    """Operators per point: those of the body that depend on it, and the combine of a reduction.

    A product that is added or summed is one `mul_add`; division by what is the same at every point
    is a `mul`; casts, index arithmetic and predicates are free.
    """
    counts: dict[str, int] = {}
    combine = None
    if e.reduced:
        combine = MONOIDS[e.monoid(e.reduced[0])].combine
    stack: list[tuple[Expr, str | None]] = [(e.body, combine)]
    while stack:
        n, into = stack.pop()
        while isinstance(n, Cast):
            n = n.arg
        product = isinstance(n, Call) and n.op == "mul" and all(_varies(a) for a in n.args)
        if into is not None:
            fused = into == "add" and product
            _add(counts, "mul_add" if fused else into)
            if fused and isinstance(n, Call):
                stack += [(a, None) for a in n.args]
                continue
        if not isinstance(n, Call) or not _varies(n):
            continue
        if n.op in ("add", "sub"):
            a, b = n.args
            first, second = (b, a) if _is_product(b) else (a, b)
            stack.append((second, None))
            stack.append((first, "add" if n.op == "add" or _is_product(first) else "sub"))
            continue
        if n.op == "pow" and isinstance(n.args[1], Const) and n.args[1].value in (2, 3, 4):
            for _ in range(int(n.args[1].value) - 1):
                _add(counts, "mul")
            stack.append((n.args[0], None))
            continue
        divides = n.op == "div" and not _varies(n.args[1])
        _add(counts, "mul" if divides else n.op)
        stack += [(a, None) for a in n.args]
    return counts


def is_move(e: Einsum) -> bool:
    """Whether a definition only copies elements, converting them at most."""
    body = e.body
    while isinstance(body, Cast):
        body = body.arg
    return isinstance(body, Access) and not e.reduced and not e.where


def _add(counts: dict[str, int], op: str) -> None:
    counts[op] = counts.get(op, 0) + 1


def _varies(e: Expr) -> bool:
    """Whether the value depends on the point: it reads a tensor or a rank variable."""
    return any(isinstance(n, Access | Var) for n in walk(e))


def _is_product(e: Expr) -> bool:
    while isinstance(e, Cast):
        e = e.arg
    return isinstance(e, Call) and e.op == "mul" and all(_varies(a) for a in e.args)
