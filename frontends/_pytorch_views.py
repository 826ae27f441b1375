"""Views and copies of PyTorch as index arithmetic: `Y[i…] = X[f(i…)]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcc.frontends._pytorch_builder import (
    Builder,
    Index,
    Lowering,
    NotLowered,
    Value,
    convert,
    number,
)
from tcc.frontends._pytorch_sizes import is_one, minus, plus, product, times
from tcc.ir.cascade import Tensor
from tcc.ir.dtype import I64
from tcc.ir.expr import Access, Const, Expr, call
from tcc.ir.index import Extents, nonnegative, poly, same, simplify_index


def same_shape(a: Sequence[Expr], b: Sequence[Expr]) -> bool:
    """Whether two shapes are equal for all values of their symbols."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))


def reshaped_index(
    index: Index, target: Sequence[Expr], source: Sequence[Expr], extents: Extents
) -> Index:
    """Coordinates in `source` of the point `index` of `target`, both row-major.

    Dimensions are grouped into the shortest runs with equal products, so that `//` and `%` only appear within a run.
    """
    to = [n for n, s in enumerate(target) if not is_one(s)]
    of = [n for n, s in enumerate(source) if not is_one(s)]
    out: Index = [Const(0)] * len(source)
    while to or of:
        a, c = _run([target[n] for n in to], [source[n] for n in of])
        linear: Expr = Const(0)
        for n in to[:a]:
            linear = plus(times(linear, target[n]), index[n])
        for k, n in enumerate(of[:c]):
            inner = product(source[m] for m in of[k + 1 : c])
            at = linear if k == c - 1 else call("floordiv", linear, inner)
            at = call("mod", at, source[n]) if k else at
            out[n] = simplify_index(at, extents)
        to, of = to[a:], of[c:]
    return out


def _run(target: list[Expr], source: list[Expr]) -> tuple[int, int]:
    """Lengths of the shortest leading runs of both shapes with the same product."""
    for total in range(2, len(target) + len(source) + 1):
        for a in range(max(1, total - len(source)), min(len(target), total - 1) + 1):
            if same(product(target[:a]), product(source[: total - a])):
                return a, total - a
    return len(target), len(source)


def reshape(b: Builder, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """The elements in row-major order under another shape."""
    if same_shape(x.shape, b.out_shape()):
        return x
    out, s = b.out(), b.scope()
    index = s.index(out.shape)
    return b.define(
        out, index, Access(x.name, tuple(reshaped_index(index, out.shape, x.shape, s.extents)))
    )


def copied(b: Builder, out: Tensor, x: Tensor, index: Index, at: Sequence[Expr]) -> Tensor:
    """`out[index] = x[at]`."""
    return b.define(out, index, _read(x, at))


def _read(x: Tensor, at: Sequence[Expr]) -> Expr:
    return Access(
        x.name,
        tuple(Const(0) if is_one(s) and isinstance(i, Const) else i for i, s in zip(at, x.shape)),
    )


def _permute(b: Builder, x: Tensor, dims: Sequence[int]) -> Tensor:
    out = b.out()
    index = b.scope().index(out.shape)
    at: Index = [Const(0)] * len(index)
    for i, d in zip(index, dims):
        at[d] = i
    return copied(b, out, x, index, at)


def _transpose(b: Builder, x: Tensor, p: int, q: int) -> Tensor:
    dims = list(range(len(x.shape)))
    dims[p], dims[q] = dims[q], dims[p]
    return _permute(b, x, dims) if x.shape else x


def _t(b: Builder, x: Tensor) -> Tensor:
    return _transpose(b, x, 0, 1) if len(x.shape) == 2 else x


def _expr(v: Value) -> Expr:
    return Const(v) if isinstance(v, int) else v


def start_of(start: Value, size: Expr) -> Expr:
    """A slice's first coordinate: negative ones count from the end, and none lies before 0."""
    if start is None:
        return Const(0)
    if not isinstance(start, int):
        if not nonnegative(poly(start)):
            raise NotLowered
        return _expr(start)
    if start >= 0:
        return Const(start)
    first = plus(size, start)
    if isinstance(first, Const):
        return Const(max(0, int(first.value)))
    return first if nonnegative(poly(first)) else call("max", first, Const(0))


def _slice(
    b: Builder, x: Tensor, dim: int = 0, start: Value = None, end: Value = None, step: int = 1
) -> Tensor:
    if same_shape(x.shape, b.out_shape()):
        return x
    out, s = b.out(), b.scope()
    index = s.index(out.shape)
    at = list(index)
    at[dim] = plus(times(index[dim], step), start_of(start, x.shape[dim]))
    return copied(b, out, x, index, at)


def _select(b: Builder, x: Tensor, dim: int, index: Value) -> Tensor:
    out = b.out()
    dim %= len(x.shape)
    i = b.scope().index(out.shape)
    at = plus(x.shape[dim], index) if isinstance(index, int) and index < 0 else _expr(index)
    return copied(b, out, x, i, [*i[:dim], at, *i[dim:]])


def _split(b: Builder, x: Tensor, sizes: Any, dim: int = 0) -> list[Value]:
    results: list[Value] = []
    offset: Expr = Const(0)
    for k in range(len(b.node.meta["val"])):
        length = b.out_shape(k)[dim]
        if b.used(k):
            out = b.out(k)
            index = b.scope().index(out.shape)
            at = list(index)
            at[dim] = plus(index[dim], offset)
            results.append(copied(b, out, x, index, at))
        else:
            results.append(None)
        offset = plus(offset, length)
    return results


def _unbind(b: Builder, x: Tensor, dim: int = 0) -> list[Value]:
    dim %= len(x.shape)
    results: list[Value] = []
    for k in range(len(b.node.meta["val"])):
        if not b.used(k):
            results.append(None)
            continue
        out = b.out(k)
        index = b.scope().index(out.shape)
        results.append(copied(b, out, x, index, [*index[:dim], Const(k), *index[dim:]]))
    return results


def _cat(b: Builder, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    out = b.out()
    parts = [
        t for t in tensors if len(t.shape) == len(out.shape)
    ]  # PyTorch skips empty 1-d tensors
    dim %= len(out.shape)
    index = b.scope().index(out.shape)
    starts: list[Expr] = [Const(0)]
    for t in parts:
        starts.append(plus(starts[-1], t.shape[dim]))

    def part(t: Tensor, start: Expr) -> Expr:
        at = list(index)
        at[dim] = minus(index[dim], start)
        return convert(_read(t, at), out.dtype, t.dtype)

    body = part(parts[-1], starts[-2])
    for t, start, end in reversed(list(zip(parts[:-1], starts, starts[1:]))):
        body = call("select", call("lt", index[dim], end), part(t, start), body)
    return b.define(out, index, body)


def _stack(b: Builder, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    out = b.out()
    dim %= len(out.shape)
    index = b.scope().index(out.shape)
    at = [*index[:dim], *index[dim + 1 :]]
    parts = [convert(_read(t, at), out.dtype, t.dtype) for t in tensors]
    body = parts[-1]
    for k in reversed(range(len(parts) - 1)):
        body = call("select", call("eq", index[dim], Const(k)), parts[k], body)
    return b.define(out, index, body)


def _flip(b: Builder, x: Tensor, dims: Sequence[int]) -> Tensor:
    out = b.out()
    index = b.scope().index(out.shape)
    at = list(index)
    for d in dims:
        at[d] = minus(minus(x.shape[d], 1), index[d])
    return copied(b, out, x, index, at)


def _roll(b: Builder, x: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    if not dims:
        raise NotLowered
    out = b.out()
    index = b.scope().index(out.shape)
    at = list(index)
    for shift, d in zip(*[[v] if isinstance(v, int) else v for v in (shifts, dims)]):
        at[d] = call("mod", minus(at[d], _expr(shift)), x.shape[d])
    return copied(b, out, x, index, at)


def _repeat(b: Builder, x: Tensor, repeats: Any) -> Tensor:
    out = b.out()
    index = b.scope().index(out.shape)
    last = index[len(index) - len(x.shape) :]
    sizes = out.shape[len(index) - len(x.shape) :]
    at: Index = [
        Const(0) if is_one(s) else i if same(s, n) else call("mod", i, s)
        for i, s, n in zip(last, x.shape, sizes)
    ]
    return copied(b, out, x, index, at)


def _pad(b: Builder, x: Tensor, pad: Sequence[Value], value: Value = 0) -> Tensor:
    """`x` shifted by the left padding; outside it stands `value`."""
    out = b.out()
    index = b.scope().index(out.shape)
    at, inside = list(index), []
    for k in range(len(pad) // 2):
        d, left = len(index) - 1 - k, _expr(pad[2 * k])
        at[d] = minus(index[d], left)
        if value:
            inside += [call("ge", at[d], Const(0)), call("lt", at[d], x.shape[d])]
    body: Expr = Access(x.name, tuple(at))
    if inside:
        held: Expr = inside[0]
        for p in inside[1:]:
            held = call("and", held, p)
        body = call("select", held, body, number(value, out.dtype))
    return b.define(out, index, body)


def _index_select(b: Builder, x: Tensor, dim: int, which: Tensor) -> Tensor:
    out = b.out()
    index = b.scope().index(out.shape)
    at = list(index)
    if at:
        at[dim] = Access(which.name, (index[dim],) if which.shape else ())
    return copied(b, out, x, index, at)


def _gather(b: Builder, x: Tensor, dim: int, which: Tensor, sparse_grad: bool = False) -> Tensor:
    out = b.out()
    index = b.scope().index(out.shape)
    at = list(index)
    if at:
        at[dim] = Access(which.name, tuple(index))
    return copied(b, out, x, index, at)


def _embedding(b: Builder, table: Tensor, which: Tensor, *_: Any) -> Tensor:
    out = b.out()
    index = b.scope().index(out.shape)
    b.lookups.append((which.name, table.shape[0]))
    return copied(b, out, table, index, [Access(which.name, tuple(index[:-1])), index[-1]])


def _index(b: Builder, x: Tensor, which: Sequence[Tensor | None]) -> Tensor:
    """NumPy's advanced indexing; negative coordinates count from the end."""
    given = [n for n, t in enumerate(which) if t is not None]
    if any(not t.dtype.is_integer for t in which if t is not None):
        raise NotLowered
    out = b.out()
    index = b.scope().index(out.shape)
    rank = max(len(t.shape) for t in which if t is not None)
    together = given == list(range(given[0], given[-1] + 1))
    first = given[0] if together else 0
    chosen = index[first : first + rank]
    rest = iter([*index[:first], *index[first + rank :]])
    at: Index = []
    for n, size in enumerate(x.shape):
        t = which[n] if n < len(which) else None
        if t is None:
            at.append(next(rest))
            continue
        i = b.read(t, chosen)
        i = i if t.dtype == I64 else convert(i, I64, t.dtype)
        at.append(call("select", call("lt", i, Const(0)), plus(i, size), i))
    return copied(b, out, x, index, at)


def _diagonal(b: Builder, x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    out = b.out()
    p, q = dim1 % len(x.shape), dim2 % len(x.shape)
    index = b.scope().index(out.shape)
    rest = iter(index[:-1])
    at: Index = []
    for n in range(len(x.shape)):
        shift = max(0, -offset) if n == p else max(0, offset)
        at.append(plus(index[-1], shift) if n in (p, q) else next(rest))
    return copied(b, out, x, index, at)


def _unfold(b: Builder, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    out = b.out()
    dim %= len(x.shape)
    index = b.scope().index(out.shape)
    at = list(index[:-1])
    at[dim] = plus(times(index[dim], step), index[-1])
    return copied(b, out, x, index, at)


def _slice_scatter(b: Builder, x: Tensor, src: Tensor, dim: int = 0, start: Value = None, end: Value = None,
                   step: int = 1) -> Tensor:  # fmt: skip
    """`x`, with the coordinates start, start + step, … taken from `src`."""
    out = b.out()
    dim %= len(out.shape)
    index = b.scope().index(out.shape)
    first = start_of(start, x.shape[dim])
    at, here = list(index), minus(index[dim], first)
    at[dim] = here if step == 1 else call("floordiv", here, Const(step))
    held = [call("ge", here, Const(0)), call("lt", at[dim], src.shape[dim])]
    if step != 1:
        held.append(call("eq", call("mod", here, Const(step)), Const(0)))
    p: Expr = held[0]
    for q in held[1:]:
        p = call("and", p, q)
    new = convert(_read(src, at), out.dtype, src.dtype)
    return b.define(out, index, call("select", p, new, b.read(x, index)))


def _select_scatter(b: Builder, x: Tensor, src: Tensor, dim: int, which: Value) -> Tensor:
    out = b.out()
    dim %= len(out.shape)
    index = b.scope().index(out.shape)
    at = plus(x.shape[dim], which) if isinstance(which, int) and which < 0 else _expr(which)
    new = convert(_read(src, [*index[:dim], *index[dim + 1 :]]), out.dtype, src.dtype)
    return b.define(out, index, call("select", call("eq", index[dim], at), new, b.read(x, index)))


def _as_strided(b: Builder, x: Tensor, size: Any, stride: Any, offset: Any = None) -> Tensor:
    """Only where it is a reshape: the strides of a contiguous tensor, from its beginning."""
    expected: list[Expr] = []
    shape = b.out_shape()
    for n in range(len(shape)):
        expected.append(product(shape[n + 1 :]))
    dense = all(is_one(n) or same(_expr(s), e) for n, s, e in zip(shape, stride, expected))
    if offset or not dense or not same(product(shape), product(x.shape)):
        raise NotLowered
    return reshape(b, x)


LOWERINGS: dict[str, Lowering] = {
    **{f"aten.{name}": reshape for name in (
        "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "_reshape_alias",
        "view_copy")},
    "aten.permute": _permute,
    "aten.transpose": _transpose,
    "aten.t": _t,
    "aten.slice": _slice,
    "aten.select": _select,
    "aten.split": _split,
    "aten.split_with_sizes": _split,
    "aten.unsafe_split": _split,
    "aten.chunk": _split,
    "aten.unbind": _unbind,
    "aten.cat": _cat,
    "aten.stack": _stack,
    "aten.flip": _flip,
    "aten.roll": _roll,
    "aten.repeat": _repeat,
    "aten.constant_pad_nd": _pad,
    "aten.index_select": _index_select,
    "aten.gather": _gather,
    "aten.embedding": _embedding,
    "aten.index": _index,
    "aten._unsafe_index": _index,
    "aten.diagonal": _diagonal,
    "aten.unfold": _unfold,
    "aten.slice_scatter": _slice_scatter,
    "aten.select_scatter": _select_scatter,
    "aten.as_strided": _as_strided,
}  # fmt: skip

__all__ = ["LOWERINGS", "copied", "reshape", "reshaped_index", "same_shape", "start_of"]
