"""What goes into a captured graph and comes out: tensors and sizes by name, results with the strides that eager gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from tcc.frontends._pytorch_order import Order
from tcc.frontends._pytorch_sizes import is_one, product
from tcc.frontends.pytorch import Captured, Output
from tcc.ir.cascade import Tensor as Declared
from tcc.ir.dtype import Coded
from tcc.ir.dtype_coded import PARTS
from tcc.ir.dtype_scaled import Encoded
from tcc.ir.expr import Const, Size
from tcc.ir.index import evaluate_size, same

Tensor = Any  # torch.Tensor


def arguments(
    captured: Captured,
) -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[tuple[str, int, int]]]:
    """Which arguments are tensors, which are ranks, and which dimensions of arguments give the other ranks."""
    tensors = [(i.tensor, n) for n, i in enumerate(captured.inputs) if i.tensor is not None]
    free = {r.name for r in captured.cascade.ranks if r.size is None}
    ranks = [(i.rank, n) for n, i in enumerate(captured.inputs) if i.rank in free and i.rank]
    given = {rank for rank, _ in ranks}
    shapes: list[tuple[str, int, int]] = []
    types = {t.name: t for t in captured.cascade.inputs}
    for name, n in tensors:
        shape = types[name].shape
        order = captured.orders.get(name, range(len(shape)))
        for d, size in zip(order, shape, strict=True):
            if isinstance(size, Size) and size.rank in free and size.rank not in given:
                given.add(size.rank)
                shapes.append((size.rank, n, d))
    return tensors, ranks, shapes


def _gathered(t: Declared, places: tuple[int, ...]) -> Callable[[Sequence[Any]], Encoded]:
    """A function of a graph's arguments that gives a coded tensor: checked where its parts have changed."""
    assert isinstance(t.dtype.form, Coded)
    last: list[tuple[Any, Any]] = [((), None)]

    def gather(args: Sequence[Any]) -> Encoded:
        mine = [args[n] for n in places]
        key = [(p.data_ptr(), p.shape, None if p.is_inference() else p._version) for p in mine]
        known, whole = last[0]
        if key != known or None in [version for *_, version in key]:
            codes, *parts = (p.detach().numpy() for p in mine)
            whole = Encoded(t.dtype, t.axes, codes, dict(zip(PARTS, parts, strict=True)))
            last[0] = key, whole
        return cast(Encoded, whole)

    return gather


def reader(
    captured: Captured,
) -> Callable[[Sequence[Any]], tuple[dict[str, Tensor], dict[str, int]]]:
    """A function of a graph's arguments that gives its tensors and the sizes of its ranks."""
    tensors, ranks, shapes = arguments(captured)
    types = {t.name: t for t in captured.cascade.inputs}
    coded = {
        i.tensor: _gathered(types[i.tensor], (n, *i.parts))
        for n, i in enumerate(captured.inputs)
        if i.tensor is not None and i.parts
    }

    def read(args: Sequence[Any]) -> tuple[dict[str, Tensor], dict[str, int]]:
        sizes = {rank: args[n] for rank, n in ranks}
        for rank, n, d in shapes:
            sizes[rank] = args[n].shape[d]
        values = {name: args[n] for name, n in tensors}
        for name, gathered in coded.items():
            values[name] = gathered(args)
        return values, sizes

    return read


def row_major(o: Output, orders: Mapping[str, Order], offsets: bool) -> bool:
    """Whether the wanted strides are those of a program's result, which is contiguous in the order of its declaration
    and starts at the start of its storage, for all sizes."""
    if offsets and not same(o.offset, Const(0)):
        return False
    order = orders.get(o.tensor or "", range(len(o.shape)))
    shape, strides = [o.shape[n] for n in order], [o.strides[n] for n in order]
    expected = [product(shape[n + 1 :]) for n in range(len(shape))]
    return all(is_one(n) or same(s, e) for n, s, e in zip(shape, strides, expected))


def result_of(o: Output, found: dict[str, Tensor], args: Sequence[Any], sizes: dict[str, int],
              offsets: bool) -> Any:  # fmt: skip
    """What PyTorch expects as an output, from the tensors that a program gives."""
    if o.passed is not None:
        return args[o.passed]
    if o.size is not None:
        return evaluate_size(o.size, sizes)
    if o.tensor is None:
        return o.value
    offset = evaluate_size(o.offset, sizes) if offsets else 0
    return restrided(found[o.tensor], [evaluate_size(s, sizes) for s in o.strides], offset)


def restrided(t: Tensor, strides: Sequence[int], offset: int = 0) -> Tensor:
    """`t`, copied when its strides differ from the wanted ones in a dimension of two elements or more."""
    import torch

    shape = t.shape
    if not offset and (
        t.numel() == 0 or all(n == 1 or s == w for n, s, w in zip(shape, t.stride(), strides))
    ):
        return t
    kept = [1 if w == 0 else n for n, w in zip(shape, strides)]
    last = sum((n - 1) * s for n, s in zip(kept, strides)) if t.numel() else 0
    out = torch.empty(offset + last + 1, dtype=t.dtype).as_strided(kept, strides, offset)
    return out.copy_(t[tuple(slice(0, n) for n in kept)]).expand(shape)
