"""Long sums of f32 on a CPU add up in blocks, and the blocks in f64, so that chains of roundings stay short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum
from tcc.ir.dtype import F32, F64, DType
from tcc.ir.expr import Access, Cast, Const, Var, call, variables
from tcc.ir.mapping import Do, Loop, Node, leaves
from tcc.passes._algebra import plain_variables

if TYPE_CHECKING:
    from tcc.passes._cpu_operands import Operands

BLOCK = 4096  # terms that are added up in the lanes of a vector loop


def partial(k: Operands, d: Einsum, role: str, dtype: DType, rows: list[str]) -> str:
    """The name of a buffer with the window of a definition's target."""
    name = k.m.fresh(f"{d.target}_{role}")
    k.m.types[name] = replace(k.c.tensors[d.target], name=name, dtype=dtype)
    k.c = k.m.c = replace(k.c, tensors={**k.c.tensors, name: k.m.types[name]})
    k._local(replace(d, target=name), rows)
    return name


def in_blocks(k: Operands, nodes: Sequence[Node], rows: list[str]) -> list[Node]:
    """The nodes with every vector loop of long sums, one number per row, as

    T_wide = 0;  for n by BLOCK { part = 0; for n by 32 { update part = … }; T_wide = T_wide + part };  T = T_wide
    """
    return [x for n in nodes for x in _node(k, n, rows)]


def _node(k: Operands, n: Node, rows: list[str]) -> list[Node]:
    sums = [leaf.einsum for leaf in leaves((n,)) if _long(k, leaf.einsum, rows)]
    outer: list[Loop] = []
    inner = n
    while isinstance(inner, Loop) and len(inner.body) == 1 and isinstance(inner.body[0], Loop):
        outer.append(inner)
        inner = inner.body[0]
    if not sums or not isinstance(inner, Loop) or not all(isinstance(x, Do) for x in inner.body):
        return [n]
    if any(x.var not in d.reduced for x in outer for d in sums):
        return [n]
    start: list[Node] = []
    zero: list[Node] = []
    after: list[Node] = []
    end: list[Node] = []
    named: dict[int, Einsum] = {}
    for d in sums:
        part, wide = partial(k, d, "part", F32, rows), partial(k, d, "wide", F64, rows)
        at = tuple(map(Var, plain_variables(d)))
        total = call("add", Access(wide, at), Cast(F64, Access(part, at)))
        start.append(Do(Einsum(wide, at, Const(0.0))))
        zero.append(Do(Einsum(part, at, Const(0.0))))
        after.append(Do(Einsum(wide, at, total)))
        end.append(Do(Einsum(d.target, d.indices, Cast(F32, Access(wide, at)))))
        named[id(d)] = replace(d, target=part, indices=at)
    body = tuple(
        replace(x, einsum=named[id(x.einsum)], update=True)
        if isinstance(x, Do) and id(x.einsum) in named
        else x
        for x in inner.body
    )
    block: Node = Loop(inner.var, BLOCK, (*zero, replace(inner, body=body), *after))
    for x in reversed(outer):
        block = replace(x, body=(block,))
    return [*start, block, *end]


def _long(k: Operands, d: Einsum, rows: list[str]) -> bool:
    """Whether a definition is a sum of many f32, one number per row, that exists in every row."""
    if not d.reduced or any(d.monoid(v) != "sum" for v in d.reduced):
        return False
    if k.m.types[d.target].dtype != F32 or set(d.free) - set(rows):
        return False
    if len(plain_variables(d)) != len(d.indices):
        return False
    if any(not set(variables(p)) & set(d.reduced) for p in d.where):
        return False
    sizes = [k.size(v) for v in d.reduced]
    return None in sizes or math.prod(n or 1 for n in sizes) > BLOCK
