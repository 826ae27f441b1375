"""Fold, share, inline and drop: the same outputs from fewer and plainer definitions."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern
from tcc.ir.dtype_codes import integer_range
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    accesses,
    call,
    text,
    transform,
    walk,
)
from tcc.ir.index import Extents, is_size, poly, simplify_index
from tcc.ir.infer import build, expression_dtype
from tcc.ir.ops import OPS
from tcc.ir.target import Target
from tcc.passes._algebra import neutral
from tcc.passes._inline import inline, replaced
from tcc.passes._prune import drop, drop_ranks, share
from tcc.passes._ranks import drop_unit_dimensions, drop_unit_variables, split_ranks


def simplify(c: Cascade, target: Target, *, recompute: float = 4.0) -> Cascade:
    """Definitions are folded, equal ones shared, cheap ones inlined, unused ones dropped, until nothing changes.

    `recompute` is the number of additions and reads up to which a value that is used more than once is computed again.
    """
    first = c
    settled: dict[int, Definition] = {}
    c = drop_unit_variables(c)
    for allowed in (-1.0, recompute):  # copies first: what they hide is then seen
        for _ in range(1000):
            before = c
            c = split_ranks(drop_unit_dimensions(drop(share(inline(_fold(c, settled), allowed)))))
            if c is before:
                break
    return first if c is first else drop_ranks(build(c))


# ---- fold


def _fold(c: Cascade, settled: dict[int, Definition]) -> Cascade:
    """Each definition folded; `settled` remembers those in which nothing is left to fold."""

    def fold(d: Definition) -> Definition:
        if isinstance(d, Extern) or id(d) in settled:
            return d
        new = fold_once(d)
        if new is d:
            settled[id(d)] = d
        return new

    def fold_once(d: Einsum) -> Einsum:
        extents = c.extents(d)

        def rule(n: Expr) -> Expr:
            if isinstance(n, Access):
                shape, states = c.tensors[n.tensor].shape, len(c.defining(n.tensor)) > 1
                new = tuple(i if states and isinstance(i, Var) else _index(c, i, size, extents)
                            for i, size in zip(n.indices, shape, strict=True))  # fmt: skip
                return (
                    n
                    if all(a is b for a, b in zip(new, n.indices, strict=True))
                    else Access(n.tensor, new, n.span)
                )
            return _fold_node(c, n)

        body = _kept(d.body, transform(d.body, rule))
        where = tuple(p for p in (transform(p, rule) for p in d.where) if not _is_true(p))
        if (
            body is d.body
            and len(where) == len(d.where)
            and all(a is b for a, b in zip(where, d.where, strict=True))
        ):
            return d
        if [v for v in d.reduced if v not in _variables(body, where)]:
            return d  # a variable would vanish, and with it the number of times that a value is combined
        return replace(d, body=body, where=where)

    return replaced(c, tuple(fold(d) for d in c.definitions))


def _index(c: Cascade, i: Expr, size: Expr, extents: Extents) -> Expr:
    """The index folded; a variable that walks another extent than the dimension's stays `v + 0`: it is meant."""
    if isinstance(i, Const) or accesses(i):
        return i
    new = i if isinstance(i, Var) else _kept(i, simplify_index(i, extents))
    if isinstance(new, Var) and not c.same_size(extents[new.name], size):
        return call("add", new, Const(0))
    return new


def _kept(old: Expr, new: Expr) -> Expr:
    return old if text(old) == text(new) else new


def _variables(body: Expr, where: tuple[Expr, ...]) -> set[str]:
    return {n.name for n in walk(body, *where) if isinstance(n, Var)}


def _is_true(e: Expr) -> bool:
    return isinstance(e, Const) and e.value is True


def _fold_node(c: Cascade, n: Expr) -> Expr:
    """x + 0 --> x;  x · 1 --> x;  op(constants) --> constant;  select(true, a, b) --> a;  t(x) --> x for x of type t;
    t(u(x)) --> t(x) where u is an integer type that holds all that a tensor of x's stores."""
    if isinstance(n, Cast):
        if not isinstance(n.arg, Const) and expression_dtype(c, n.arg) == n.dtype:
            return n.arg
        narrow = _narrower(c, n.arg)
        return n if narrow is n.arg else replace(n, arg=narrow)
    if not isinstance(n, Call):
        return n
    if n.op == "select" and isinstance(n.args[0], Const):
        return n.args[1] if n.args[0].value else n.args[2]
    if len(n.args) == 2 and OPS[n.op].identity is not None:
        a, b = n.args
        if neutral(b, n.op) and _keeps_type(c, a, n):
            return a
        if OPS[n.op].commutative and neutral(a, n.op) and _keeps_type(c, b, n):
            return b
    if (
        n.op in ("add", "sub", "mul")
        and is_size(n)
        and not any(isinstance(x, Size) for x in walk(n))
    ):
        value = poly(n).constant
        return n if value is None else Const(value)
    return n


def _narrower(c: Cascade, e: Expr) -> Expr:
    """What is read in u(x), where u holds all that x's tensor stores; any other expression as it is."""
    if not isinstance(e, Cast) or not isinstance(e.arg, Access) or not e.dtype.native:
        return e
    t = c.tensors[e.arg.tensor]
    if not (t.dtype.is_integer and e.dtype.is_integer):
        return e
    (low, high), (least, most) = integer_range(t.dtype), integer_range(e.dtype)
    return e.arg if least <= min(low, t.fill) and max(high, t.fill) <= most else e


def _keeps_type(c: Cascade, part: Expr, whole: Expr) -> bool:
    return expression_dtype(c, part) == expression_dtype(c, whole)
