"""Terms of a walk that a condition on coordinates makes neutral do not exist, so that loops can skip them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Joint
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    accesses,
    call,
    text,
    transform,
    variables,
    walk,
)
from tcc.ir.infer import build
from tcc.ir.ops import MONOIDS
from tcc.passes._derive_interval import Bounds, bounds_of_call

_FINITE: Bounds = (-1e300, 1e300)  # what is read is taken to be finite


def excluded(c: Cascade, joints: tuple[Joint, ...]) -> Cascade:
    """Where a choice by coordinates turns every term of a joint reduction into its identity, the terms get a predicate.

    M = select(n <= m, X[m, n], -inf) :: max(n);  S = exp(select(n <= m, X[m, n], -inf) - M)
      -->  M = X[m, n] :: max(n) where n <= m;  S = exp(X[m, n] - M) where n <= m

    What is read is taken to be finite there, and the largest of nothing to be 0, as joints have it: 0 times an infinite
    value does not become NaN.
    """
    for joint in joints:
        tried: set[str] = set()
        while True:
            found = next((p for p in _choices(c, joint) if text(p) not in tried), None)
            if found is None:
                break
            tried.add(text(found))
            for kept in (True, False):
                c = _without(c, joint, found, kept) or c
    return c


def _choices(c: Cascade, joint: Joint) -> list[Expr]:
    """The conditions on coordinates alone by which something over the joint's variable is chosen."""
    out = []
    for d in c.definitions:
        if isinstance(d, Einsum) and joint.var in (*d.free, *d.reduced):
            for e in walk(d.body):
                if isinstance(e, Call) and e.op == "select" and joint.var in variables(e.args[0]):
                    if not accesses(e.args[0]):
                        out.append(e.args[0])
    return out


def _without(c: Cascade, joint: Joint, condition: Expr, kept: bool) -> Cascade | None:
    """The program without the terms for which a condition is not `kept`; None where some of them count."""
    key, names = text(condition), set(variables(condition))
    known: dict[str, Bounds] = {}
    made: dict[str, Einsum] = {}
    fields = set(joint.tensors)
    for d in c.definitions:
        if not isinstance(d, Einsum) or len(c.defining(d.target)) > 1:
            continue
        if joint.var not in (*d.free, *d.reduced) or not names <= {*d.free, *d.reduced}:
            if d.target in fields:
                return None
            continue
        value = _value(d.body, key, not kept, known, c)
        if d.target in fields:
            if list(d.reduced) != [joint.var] or value != _point(
                MONOIDS[d.monoid(joint.var)].identity
            ):
                return None
        elif d.reduced or value[0] != value[1]:
            continue
        else:
            known[d.target] = value
        p = condition if kept else call("not", condition)
        body = transform(d.body, lambda e: _chosen(e, key, kept))
        made[d.target] = replace(d, body=body, where=(*d.where, p))
    if not fields <= set(made):
        return None
    _keep_what_others_read(c, made, fields)
    definitions: list[Definition] = [
        made.get(d.target, d) if isinstance(d, Einsum) else d for d in c.definitions
    ]
    return build(replace(c, definitions=tuple(definitions)))


def _keep_what_others_read(c: Cascade, made: dict[str, Einsum], fields: set[str]) -> None:
    """Definitions stay as they are if anything reads them that still has all its terms."""
    outputs = {t.name for t in c.outputs}
    while True:
        readers = [d for d in c.definitions if not (isinstance(d, Einsum) and d.target in made)]
        needed = outputs | {a.tensor for d in readers for a in d.reads}
        gone = [t for t in made if t in needed and t not in fields]
        if not gone:
            return
        for t in gone:
            del made[t]


def _chosen(e: Expr, key: str, kept: bool) -> Expr:
    if isinstance(e, Call) and e.op == "select" and text(e.args[0]) == key:
        return e.args[1 if kept else 2]
    return e


def _point(value: float) -> Bounds:
    return float(value), float(value)


def _value(e: Expr, key: str, holds: bool, known: Mapping[str, Bounds], c: Cascade) -> Bounds:
    """Bounds on a value where a condition holds, or does not."""
    if isinstance(e, Const):
        return _FINITE if math.isnan(e.value) else _point(e.value)
    if isinstance(e, Cast):
        found = _value(e.arg, key, holds, known, c)
        return found if e.dtype.is_float else _FINITE
    if isinstance(e, Access):
        d = next((d for d in c.defining(e.tensor) if isinstance(d, Einsum)), None)
        same = d is not None and text(Access(e.tensor, d.indices)) == text(e)
        return known.get(e.tensor, _FINITE) if same else _FINITE
    if not isinstance(e, Call):
        return _FINITE
    chosen = _chosen(e, key, holds)
    if chosen is not e:
        return _value(chosen, key, holds, known, c)
    return bounds_of_call(e, [_value(a, key, holds, known, c) for a in e.args])
