"""Factors that stay the same: during a walk, which are multiplied once before it, and across lanes, which are multiplied
as one number."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.dtype import F32
from tcc.ir.expr import Access, Call, Const, Expr, Var, accesses, call, variables
from tcc.ir.infer import expression_dtype
from tcc.ir.mapping import Do, Node
from tcc.passes._algebra import factors, product
from tcc.passes._cpu_vectors import nearest_last

if TYPE_CHECKING:
    from tcc.passes._cpu_stream import StreamKernel


def before_walk(k: StreamKernel, during: list[Einsum]) -> tuple[list[Einsum], list[Einsum]]:
    """Products of several factors of a sum that the walk does not change are definitions of their own, ahead of it.

    QK[h, m] = Q[h, e] * (K[h, m, e] * S[h, e])   -->   QK_once[h, e] = Q[h, e] * S[h, e];  QK[h, m] = QK_once[h, e] * K[h, m, e]
    """
    made = {d.target for d in during}
    ahead: list[Einsum] = []
    rest: list[Einsum] = []
    for d in during:
        parts = factors(d.body) if d.reduced and k.walk in d.free and not d.where else []
        fixed = [f for f in parts if k.walk not in variables(f)]
        left = [f for f in parts if f not in fixed]
        value = product(fixed) if fixed else d.body
        sums = all(d.monoid(v) == "sum" for v in d.reduced)
        if len(fixed) < 2 or not left or not sums or _reads(value) & made or not _is_f32(k, d.body):
            rest.append(d)
            continue
        order = nearest_last(variables(value), d)
        if not set(order) & set(d.reduced) or not _is_f32(k, value):
            rest.append(d)
            continue
        name = k._temporary(f"{d.target}_once", value, order)
        at = tuple(Var(v) for v in order)
        ahead.append(Einsum(name, at, value))
        k._local(ahead[-1], k.outer())
        rest.append(replace(d, body=product([Access(name, at), *left])))
    return ahead, rest


def uniform_first(k: StreamKernel, n: Node) -> Node:
    """In a product along lanes, factors without the lane are one number: a[m] * (b[m, e] * c[m])  -->  (a[m] * c[m]) * b[m, e]."""
    if not isinstance(n, Do):
        return replace(n, body=tuple(uniform_first(k, x) for x in n.body))
    d, lanes = n.einsum, n.on("lane")
    if not (isinstance(d.body, Call) and len(lanes) == 1 and _is_f32(k, d.body)):
        return n
    parts = factors(d.body)
    same = [f for f in parts if lanes[0] not in variables(f)]
    moving = [f for f in parts if lanes[0] in variables(f)]
    if len([f for f in same if not isinstance(f, Const)]) < 2 or not moving:
        return n
    body = call("mul", product(same), product(moving))
    return replace(n, einsum=replace(d, body=body))


def _reads(e: Expr) -> set[str]:
    return {a.tensor for a in accesses(e)}


def _is_f32(k: StreamKernel, e: Expr) -> bool:
    return expression_dtype(k.c, e) == F32
