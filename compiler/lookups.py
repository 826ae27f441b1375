"""Indices into tables are checked as eager PyTorch checks them, before a graph runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tcc.frontends.pytorch import Captured
from tcc.ir.cascade import Einsum
from tcc.ir.expr import Size, Var
from tcc.ir.index import poly


def checked(
    run: Callable[..., list[Any]], captured: Captured, programs: list[Any]
) -> Callable[..., list[Any]]:
    """`run` behind eager's check of indices into tables: of those that are inputs, and of those that count up."""
    import torch

    c = captured.cascade
    at = {i.tensor: n for n, i in enumerate(captured.inputs) if i.tensor is not None}
    bound: dict[int, int] = {}  # argument -> rows of the smallest table that it points into
    lengths: list[
        tuple[int, int, int]
    ] = []  # argument, dimension, rows: as many indices as that dimension is long
    for name, size in captured.lookups:
        rows = poly(size).constant
        if rows is None:
            continue
        if name in at:
            bound[at[name]] = min(rows, bound.get(at[name], rows))
            continue
        counted = next(
            (
                d.body.name
                for d in c.defining(name)
                if isinstance(d, Einsum) and isinstance(d.body, Var)
            ),
            None,
        )
        for t in c.inputs if counted is not None else ():
            for n, extent in enumerate(t.shape):
                if (
                    t.name in at
                    and isinstance(extent, Size)
                    and c.same_size(extent, c.extent(counted or ""))
                ):
                    order = captured.orders.get(t.name)
                    lengths.append((at[t.name], order[n] if order else n, rows))

    def run_checked(*args: Any) -> list[Any]:
        for n, rows in bound.items():
            if args[n].numel():
                low, high = torch.aminmax(args[n])
                if low.item() < 0 or high.item() >= rows:
                    raise IndexError("index out of range in self")
        for n, d, rows in lengths:
            if args[n].shape[d] > rows:
                raise IndexError("index out of range in self")
        return run(*args)

    out = run_checked if bound or lengths else run
    out.programs = programs  # type: ignore[attr-defined]
    return out
