"""Changes of one layout: reshape, reduce, space, swizzle. Exact, or refused with a coordinate at which no digits do.

A(x) is the set of places of the element at coordinate x, as in `layout_algebra`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tcc.ir._layout_decide import decided, read_table
from tcc.ir._layout_digits import (
    Unaligned,
    build,
    carry_free,
    exact,
    fills,
    merge,
    modulus,
    reach_of,
    split,
    split_where,
    stride,
    upper_end,
    written_out,
)
from tcc.ir.amounts import Amount, at_most, evaluated, is_power_of_two, quotient, same, shown, times
from tcc.ir.diagnostics import CompileError
from tcc.ir.layout import COPIES, Digit, Layout, Part, row_major
from tcc.ir.layout_table import Table, table


def reshape(a: Layout, shape: tuple[Amount, ...]) -> Layout:
    """reshape(A, s)(y) = A(x) where x and y are the same element in row-major order."""
    old = a.known_shape()
    if not same(_product(old), _product(shape)):
        raise CompileError("T0272", f"{' x '.join(map(shown, old)) or '1'} elements do not have the shape "
                           f"({', '.join(map(shown, shape))})", helps="keep their number")  # fmt: skip

    def rule() -> Layout:
        if any(not fills(a, d) for d in range(1, a.rank)) or (old and not fills(a, 0)):
            raise Unaligned("a dimension is padded")
        return build(_unflattened(merge(_flattened(written_out(a), old)), shape), shape, a.offsets, a.bits)  # fmt: skip

    def meaning(a: Layout, wanted: Layout) -> Layout:
        t = table(a)
        sizes = [evaluated(n, {}) for n in wanted.known_shape()]
        places = t.places.reshape(*sizes, *t.places.shape[-2:])
        return read_table("reshape", Table(t.axes, places), a.bits)

    return decided("reshape", rule, meaning, a, row_major(len(shape)).on(shape))


def _product(shape: tuple[Amount, ...]) -> Amount:
    total: Amount = 1
    for n in shape:
        total = times(total, n)
    return total


def _flattened(digits: list[Digit], shape: tuple[Amount, ...]) -> list[Digit]:
    """Digits over the one dimension that holds all coordinates in row-major order."""
    inner: list[Amount] = [_product(shape[d + 1 :]) for d in range(len(shape))]

    def flat(p: Part) -> Part:
        size = shape[p.dimension]
        if quotient(size, times(p.divisor, p.modulus or 1)) is None:
            raise Unaligned(f"`{p.text()}` does not repeat with the extent {shown(size)}")
        return Part(0, times(p.divisor, inner[p.dimension]), p.modulus)

    out = []
    for d in digits:
        if d.dimension == COPIES:
            out.append(d)
        else:
            xor = tuple(flat(p) for p in d.xor)
            out.append(replace(d, dimension=0, divisor=times(d.divisor, inner[d.dimension]), xor=xor))  # fmt: skip
    return out


def _unflattened(digits: list[Digit], shape: tuple[Amount, ...]) -> list[Digit]:
    """Digits of one dimension, as digits over the dimensions of a shape."""
    ends = [_product(shape[d:]) for d in range(len(shape))]
    moving = [d for d in digits if d.dimension != COPIES]
    for end in ends[1:]:
        if end != 1:
            moving = split_where(moving, end)

    def home(divisor: Amount, end: Amount) -> int:
        for d in range(len(shape) - 1, -1, -1):
            inner = _product(shape[d + 1 :])
            whole = d == 0 or quotient(ends[d], end) is not None  # repeats with the extent
            if whole and quotient(divisor, inner) is not None and at_most(end, ends[d]):
                return d
        raise Unaligned(f"a part of {shown(end)} does not lie in one dimension")

    out = [d for d in digits if d.dimension == COPIES]
    for x in moving:
        d = home(x.divisor, upper_end(x))
        parts = []
        for p in x.xor:
            e = home(p.divisor, times(p.divisor, p.modulus or 1))
            parts.append(Part(e, exact(p.divisor, _product(shape[e + 1 :]), ""), p.modulus))
        divisor = exact(x.divisor, _product(shape[d + 1 :]), "")
        out.append(replace(x, dimension=d, divisor=divisor, xor=tuple(parts)))
    return out


def reduce(a: Layout, dimensions: tuple[int, ...], copies: bool = True) -> Layout:
    """reduce(A, D)(x) = the union of A(x, y) over all y of the dimensions D: what a reduction over them touches, and
    where its result lies if all get it. Without `copies` only y = 0: where one keeps it."""
    kept = [d for d in range(a.rank) if d not in dimensions]
    for d in dimensions:
        if d not in range(a.rank):
            raise CompileError("T0272", f"there is no dimension {d} to reduce",
                               helps=f"dimensions are 0 to {a.rank - 1}")  # fmt: skip
    to = {d: n for n, d in enumerate(kept)}
    shape = tuple(a.known_shape()[d] for d in kept)
    bits = a.bits and a.rank - 1 in kept

    def rule() -> Layout:
        out: list[Digit] = []
        for x in written_out(a):
            gone = x.dimension in dimensions
            if gone and copies and not fills(a, x.dimension):
                raise Unaligned(f"dimension {x.dimension} is padded")
            if not gone and copies and any(p.dimension in dimensions for p in x.xor):
                raise Unaligned(f"`{x}` is swizzled by what is reduced")
            parts = tuple(replace(p, dimension=to[p.dimension]) for p in x.xor if p.dimension in to)
            if not gone:
                moved = x.dimension if x.dimension == COPIES else to[x.dimension]
                out.append(replace(x, dimension=moved, xor=parts))
            elif copies and stride(x) != 0:  # a swizzle permutes the copies
                out.append(replace(x, dimension=COPIES, divisor=1, xor=()))
            elif parts and not copies:
                raise Unaligned(f"`{x}` is swizzled")
        return build(out, shape, a.offsets, bits)

    def meaning(a: Layout) -> Layout:
        t = table(a)
        moved = np.moveaxis(t.places, dimensions, range(len(dimensions)))
        if not copies:
            return read_table("reduce", Table(t.axes, moved[(0,) * len(dimensions)]), bits)
        moved = np.moveaxis(t.places, dimensions, range(len(kept), a.rank))
        places = moved.reshape(*moved.shape[: len(kept)], -1, len(t.axes))
        return read_table("reduce", Table(t.axes, places), bits)

    return decided("reduce", rule, meaning, a)


def space(a: Layout, axis: str, every: int, by: int) -> Layout:
    """space(A, axis, n, k)(x): place p of A moves to p + p // n · k. Rows of n places get k unused ones behind them."""

    def rule() -> Layout:
        out, low = [], []
        for d in written_out(a):
            parts: tuple[Digit, ...] = (d,)
            inside = quotient(every, stride(d)) if stride(d) != 0 else None
            if d.axis == axis and inside not in (None, 1) and not at_most(modulus(d), inside or 1):
                parts = split(d, inside or 1)
            for x in parts:
                if x.axis != axis or stride(x) == 0:
                    out.append(x)
                elif quotient(stride(x), every) is not None:
                    out.append(replace(x, stride=times(exact(stride(x), every, ""), every + by)))
                else:
                    out.append(x)
                    low.append(x)
        if a.offset(axis) != 0 or not at_most(reach_of(low), every):
            raise Unaligned(f"rows of {every} places are no digit")
        return build(out, a.shape, a.offsets, a.bits)

    def meaning(a: Layout) -> Layout:
        t = table(a)
        places = t.places.copy()
        if axis in t.axes:
            places[..., t.axes.index(axis)] += places[..., t.axes.index(axis)] // every * by
        return read_table("space", Table(t.axes, places), a.bits)

    if every < 1 or by < 0:
        raise CompileError("T0272", f"rows of {every} places cannot get {by} more",
                           helps="rows have 1 place or more, and get 0 or more")  # fmt: skip
    return decided("space", rule, meaning, a)


def swizzle(a: Layout, bits: int, base: int, shift: int, axis: str = "addr") -> Layout:
    """swizzle(A, n, b, s)(x): bits b … b+n-1 of the place are xored with the bits s above them (below, if s < 0)."""
    if bits < 0 or base < 0 or abs(shift) < bits or base + shift < 0:
        raise CompileError("T0272", f"{bits} bits from bit {base} cannot be swizzled by those {shift} above",
                           helps="the two ranges of bits must not overlap")  # fmt: skip

    def rule() -> Layout:
        digits = written_out(a)
        own = [d for d in digits if d.axis == axis and stride(d) != 0]
        if a.offset(axis) != 0:
            raise Unaligned("the axis has an offset")
        carry_free(own)
        if any(not is_power_of_two(stride(d)) for d in own):
            raise Unaligned("a stride is no power of two")
        parts: dict[int, tuple[Part, ...]] = {}
        for n in range(bits):
            source = _bit_of(own, 1 << (base + shift + n), a.known_shape())
            if source is not None:
                if source.dimension == COPIES:
                    raise Unaligned("a copy's number would swizzle")
                parts[1 << (base + n)] = (source.part, *source.xor)
                if _bit_of(own, 1 << (base + n), a.known_shape()) is None:
                    raise Unaligned("the axis has too few bits")
        return build([x for d in digits for x in _xored(d, parts, axis)], a.shape, a.offsets, a.bits)  # fmt: skip

    def meaning(a: Layout) -> Layout:
        t = table(a)
        places = t.places.copy()
        if axis in t.axes:
            p = places[..., t.axes.index(axis)]
            p ^= (p >> (base + shift) & ((1 << bits) - 1)) << base
        return read_table("swizzle", Table(t.axes, places), a.bits)

    return decided("swizzle", rule, meaning, a)


def _bit_of(digits: list[Digit], place: int, shape: tuple[Amount, ...]) -> Digit | None:
    """The bit of a coordinate that is the bit `place` of the axis, or None where that is always 0."""
    for d in digits:
        low = stride(d)
        assert isinstance(low, int)
        high = times(low, modulus(d))
        if low <= place and not at_most(high, place):
            if not isinstance(high, int) and len([x for x in digits if not isinstance(modulus(x), int)]) > 1:  # fmt: skip
                raise Unaligned("several extents are unknown")
            last = d.dimension == COPIES or at_most(shape[d.dimension], upper_end(d))
            if not last and quotient(modulus(d), 2 * place // low) is None:
                raise Unaligned(f"`{d}` is no number of bits")
            return _bit(d, place // low)
    return None


def _bit(d: Digit, at: int) -> Digit:
    parts = tuple(Part(p.dimension, times(p.divisor, at), 2) for p in d.xor
                  if isinstance(p.modulus, int) and p.modulus > at)  # fmt: skip
    return replace(d, divisor=times(d.divisor, at), modulus=2, stride=times(stride(d), at), xor=parts)  # fmt: skip


def _xored(d: Digit, parts: dict[int, tuple[Part, ...]], axis: str) -> list[Digit]:
    """A digit, with its bits that are swizzled as digits of their own."""
    low, end = stride(d), times(stride(d), modulus(d))
    assert isinstance(low, int) or d.axis != axis
    if d.axis != axis or low == 0:
        return [d]
    touched = sorted(p for p in parts if isinstance(low, int) and low <= p and not at_most(end, p))
    out: list[Digit] = []
    rest = d
    for place in touched:
        start = stride(rest)
        assert isinstance(start, int)
        if place > start:
            rest, below = split(rest, place // start)
            out.append(below)
        rest, bit = split(rest, 2) if modulus(rest) != 2 else (replace(rest, modulus=1), rest)
        if bit.dimension == COPIES:
            out.append(bit)  # both values are there, in whatever order
            continue
        out.append(replace(bit, xor=_cancelled((*bit.xor, *parts[place]))))
    if modulus(rest) != 1:
        out.append(rest)
    return out


def _cancelled(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Parts that occur an odd number of times: x ^ x = 0."""
    return tuple(p for n, p in enumerate(parts) if parts.count(p) % 2 and p not in parts[:n])
