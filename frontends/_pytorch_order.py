"""Tensors declared in the order in which their elements lie: a channels-last image has its channels last.

A tensor of PyTorch is any permutation of a row-major one, and tracing tells which. The mapping looks for contiguous
elements along last dimensions, so a tensor whose adjacent elements lie along another one is declared permuted, and so
are all accesses to it. Nothing but speed depends on it: a call with other strides gives the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tcc.ir.cascade import Cascade, Einsum, Extern, Tensor
from tcc.ir.expr import Access, Expr, transform, with_children

Order = tuple[int, ...]  # the dimensions of PyTorch's tensor, those farthest apart first


def memory_order(fake: Any) -> Order | None:
    """The dimensions of a traced tensor by falling strides; None where the last one is adjacent anyway, or elements
    are shared (an expanded dimension)."""
    shape, strides = [_hint(n) for n in fake.shape], [_hint(s) for s in fake.stride()]
    if None in shape or None in strides:
        return None
    moving = [n for n, size in enumerate(shape) if size != 1]
    if not moving or any(strides[n] == 0 for n in moving) or 0 in shape:
        return None
    falling = sorted(moving, key=lambda n: (-(strides[n] or 0), n))
    if falling[-1] == moving[-1] or strides[falling[-1]] != 1:
        return None
    left = iter(falling)
    return tuple(n if size == 1 else next(left) for n, size in enumerate(shape))


def _hint(n: Any) -> int | None:
    """A size as a number: of a symbolic one that of the example."""
    if isinstance(n, int):
        return n
    found = getattr(n.node, "hint", None)
    return int(found) if found is not None else None


def in_memory_order(c: Cascade, orders: Mapping[str, Order]) -> tuple[Cascade, dict[str, Order]]:
    """T[i0, i1, …]  -->  T[i_order[0], i_order[1], …], in declarations, definitions and reads; and which were changed.

    Tensors that a call to PyTorch takes or gives stay as PyTorch sees them.
    """
    foreign = {
        name
        for d in c.definitions
        if isinstance(d, Extern)
        for name in (*d.operands, *(t.name for t in d.targets))
    }
    kept = {name: o for name, o in orders.items() if name not in foreign}
    if not kept:
        return c, {}

    def turned(name: str, items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(items[n] for n in kept[name]) if name in kept else items

    def declared(t: Tensor) -> Tensor:
        return replace(t, shape=turned(t.name, t.shape)) if t.name in kept else t

    def rule(e: Expr) -> Expr:
        if isinstance(e, Access) and e.tensor in kept:
            return with_children(e, turned(e.tensor, e.indices))
        return e

    definitions = tuple(
        replace(
            d,
            indices=turned(d.target, tuple(transform(i, rule) for i in d.indices)),
            body=transform(d.body, rule),
            where=tuple(transform(p, rule) for p in d.where),
        )
        if isinstance(d, Einsum)
        else d
        for d in c.definitions
    )
    return replace(
        c,
        inputs=tuple(map(declared, c.inputs)),
        outputs=tuple(map(declared, c.outputs)),
        definitions=definitions,
        tensors={name: declared(t) for name, t in c.tensors.items()},
    ), kept


__all__ = ["Order", "in_memory_order", "memory_order"]
