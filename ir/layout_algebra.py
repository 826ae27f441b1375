"""Layouts made from layouts: each operation is exact, or refused with a coordinate at which no digits do.

In the laws A(x) is the set of places of the element at coordinate x, and span(A) the number of places per axis. Where
digits line up, results are derived digit by digit and hold for all sizes. Elsewhere the table of a finite layout is
formed and digits are read back from it, so that a result is found wherever there is one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tcc.ir._layout_decide import coordinate, decided, read_table, refused
from tcc.ir._layout_decide import normal as normal
from tcc.ir._layout_digits import (
    Unaligned,
    build,
    carry_free,
    exact,
    fills,
    modulus,
    reach_of,
    split,
    split_where,
    stride,
    upper_end,
    written_out,
)
from tcc.ir.amounts import (
    Amount,
    at_most,
    ceildiv,
    evaluated,
    plus,
    quotient,
    same,
    shown,
    times,
)
from tcc.ir.diagnostics import CompileError
from tcc.ir.layout import COPIES, Digit, Layout, Part
from tcc.ir.layout_table import Places, Table, difference, is_listable, sizes_of, table

ONCE = "an inverse needs every place to hold one element: choose other strides, or pad"
Offsets = tuple[tuple[str, Amount], ...]


def agree(a: Layout, b: Layout) -> bool:
    """Whether A(x) = B(x) for all x: by normal forms, by tables where sizes are known, elsewhere by isl; what cannot be
    proved does not count as equal."""
    sa, sb = a.known_shape(), b.known_shape()
    if len(sa) != len(sb) or not all(map(same, sa, sb)):
        return False
    if normal(a) == normal(b):
        return True
    if not is_listable(a, b):
        return _proved(a, b)
    axes = tuple(dict.fromkeys((*a.axes, *b.axes)))
    return difference(table(a, axes=axes), table(b, axes=axes)) is None


def _proved(a: Layout, b: Layout) -> bool:
    from tcc.ir.layout_isl import same_places

    try:
        return same_places(a, b) is None
    except CompileError:
        return False


# ---- operations that line up always


def permute(a: Layout, order: tuple[int, ...]) -> Layout:
    """permute(A, o)(x) = A(y) with y[o[i]] = x[i]: dimension i of the result is dimension o[i] of A."""
    if sorted(order) != list(range(a.rank)):
        raise CompileError("T0272", f"{list(order)} is no order of {a.rank} dimensions",
                           helps="name each dimension once")  # fmt: skip
    to = {d: i for i, d in enumerate(order)}
    digits = tuple(
        replace(d, dimension=to.get(d.dimension, COPIES), xor=tuple(replace(p, dimension=to[p.dimension]) for p in d.xor))
        for d in a.digits
    )  # fmt: skip
    shape = None if a.shape is None else tuple(a.shape[d] for d in order)
    return Layout(digits, shape, a.offsets, a.bits and order[-1] == a.rank - 1)


def concatenate(a: Layout, b: Layout) -> Layout:
    """concatenate(A, B)(x, y) = A(x) · span(B) + B(y): the dimensions of A, then those of B."""
    moved = [_shifted(d, a.rank) for d in written_out(b)]
    return build(
        _scaled(written_out(a), b) + moved,
        a.known_shape() + b.known_shape(),
        _stacked(a, b),
        b.bits,
    )


def pad(a: Layout, dimension: int, multiple: int) -> Layout:
    """pad(A, d, n) has the digits of A as they are on the shape whose extent d is rounded up to a multiple of n."""
    shape = list(a.known_shape())
    shape[dimension] = times(ceildiv(shape[dimension], multiple), multiple)
    wide = a.on(tuple(shape))
    closed = [replace(d, modulus=e, stride=s)
              for d, e, s in zip(wide.digits, wide.extents(), wide.strides())]  # fmt: skip
    return replace(a, digits=tuple(closed))


def with_bits(a: Layout, width: int) -> Layout:
    """with_bits(A, w)(x, b) = A(x) · w + b along `addr`: addresses count bits, the bits of an element are its last
    dimension."""
    return replace(concatenate(a, Layout((Digit(0),), (width,))), bits=True)


def _shifted(d: Digit, by: int) -> Digit:
    if d.dimension == COPIES:
        return d
    xor = tuple(replace(p, dimension=p.dimension + by) for p in d.xor)
    return replace(d, dimension=d.dimension + by, xor=xor)


def _scaled(digits: list[Digit], inner: Layout) -> list[Digit]:
    return [replace(d, stride=times(stride(d), inner.span(d.axis))) for d in digits]


def _stacked(a: Layout, b: Layout) -> Offsets:
    axes = dict.fromkeys((*a.axes, *b.axes))
    return tuple((x, plus(times(a.offset(x), b.span(x)), b.offset(x))) for x in axes)


# ---- operations that a table decides where digits do not line up


def _same_rank(name: str, a: Layout, b: Layout) -> None:
    if a.rank != b.rank:
        raise CompileError("T0272", f"{name}: one layout has {a.rank} dimensions, the other {b.rank}",
                           helps="give both the same number, some of extent 1")  # fmt: skip


def product(a: Layout, b: Layout) -> Layout:
    """product(A, B)(x · shape(B) + y) = A(x) · span(B) + B(y): each element of A becomes a tile B."""
    _same_rank("product", a, b)
    sa, sb = a.known_shape(), b.known_shape()
    shape = tuple(map(times, sa, sb))

    def rule() -> Layout:
        for d in range(a.rank):
            if sa[d] != 1 and not (fills(b, d) and _parts_fill(b, d)):
                raise Unaligned(f"dimension {d} of the tile is padded")
        outer = [_moved(x, sb) for x in _scaled(written_out(a), b)]
        return build(outer + written_out(b), shape, _stacked(a, b), b.bits)

    def meaning(a: Layout, b: Layout) -> Layout:
        axes = tuple(dict.fromkeys((*a.axes, *b.axes)))
        ta, tb = table(a, axes=axes).places, table(b, axes=axes).places
        spans = np.array([evaluated(b.span(x), {}) for x in axes], np.int64)
        n = a.rank
        outer = ta.reshape([k for s in ta.shape[:n] for k in (s, 1)] + [ta.shape[n], 1, len(axes)])
        inner = tb.reshape([k for s in tb.shape[:n] for k in (1, s)] + [1, tb.shape[n], len(axes)])
        both = outer * spans + inner
        sizes = [x * y for x, y in zip(ta.shape[: n + 1], tb.shape[: n + 1])]
        return read_table("product", Table(axes, both.reshape([*sizes, len(axes)])), b.bits)

    return decided("product", rule, meaning, a, b)


def _moved(d: Digit, inner: tuple[Amount, ...]) -> Digit:
    """A digit over coordinates that count tiles, as one over those that count elements."""
    if d.dimension == COPIES:
        return d
    xor = tuple(replace(p, divisor=times(p.divisor, inner[p.dimension])) for p in d.xor)
    return replace(d, divisor=times(d.divisor, inner[d.dimension]), xor=xor)


def _parts_fill(b: Layout, dimension: int) -> bool:
    """Whether swizzles read a dimension only in parts that repeat with its extent."""
    size = b.known_shape()[dimension]
    ends = [times(p.divisor, p.modulus or 1) for d in b.digits for p in d.xor if p.dimension == dimension]  # fmt: skip
    return all(quotient(size, end) is not None for end in ends)


def right_divide(c: Layout, b: Layout) -> Layout:
    """right_divide(C, B) is the A with product(A, B) = C, wherever there is one."""
    return _divided("right division", c, b, True)


def left_divide(c: Layout, a: Layout) -> Layout:
    """left_divide(C, A) is the B with product(A, B) = C, wherever there is one."""
    return _divided("left division", c, a, False)


def _divided(name: str, c: Layout, known: Layout, right: bool) -> Layout:
    _same_rank(name, c, known)
    sc, sk = c.known_shape(), known.known_shape()
    for d, (n, k) in enumerate(zip(sc, sk)):
        if quotient(n, k) is None and not (n == 0 and k == 0):
            raise refused(name, f"extent {shown(n)} of dimension {d} is no multiple of {shown(k)}")
    shape = tuple(1 if n == 0 and k == 0 else quotient(n, k) or 0 for n, k in zip(sc, sk))
    axes = tuple(dict.fromkeys((*c.axes, *known.axes)))
    spans: dict[str, Amount] = {}
    for axis in axes:
        whole, part = c.span(axis), known.span(axis)
        inner = part if right else quotient(whole, part)
        if inner is None or inner == 0:
            raise refused(name, f"{shown(whole)} places on `{axis}` are no multiple of {shown(part)}")  # fmt: skip
        spans[axis] = inner
    tile = sk if right else shape

    def verified(found: Layout, c: Layout, known: Layout) -> Layout:
        whole = product(found, known) if right else product(known, found)
        if not agree(whole, c):
            if sizes_of(whole, c):
                raise Unaligned("the quotient does not multiply back")
            used = tuple(dict.fromkeys((*whole.axes, *c.axes)))
            tw, tc = table(whole, axes=used), table(c, axes=used)
            at = difference(tw, tc)
            assert at is not None
            raise refused(name, f"the element at {coordinate(at)} lies at {tc.at(at)}, in any product at {tw.at(at)}")  # fmt: skip
        return found

    def rule() -> Layout:
        outer, inner, starts = _cut(c, tile, spans)
        digits = outer if right else inner
        offsets = tuple((x, starts[x][0 if right else 1]) for x in axes)
        return verified(build(digits, shape, offsets, c.bits and not right), c, known)

    def meaning(c: Layout, known: Layout) -> Layout:
        places, part = table(c, axes=axes).places, table(known, axes=axes).shape
        spans = np.array([evaluated(known.span(x), {}) for x in axes], np.int64)
        if right:
            found = places[tuple(slice(None, None, max(1, n)) for n in part)] // spans
        else:
            spans = np.array([evaluated(c.span(x), {}) for x in axes], np.int64) // spans
            sizes = [n // max(1, k) for n, k in zip(places.shape, part)]
            found = places[tuple(map(slice, sizes))] % spans
        return verified(read_table(name, Table(axes, found), c.bits and not right), c, known)

    return decided(name, rule, meaning, c, known)


def _cut(
    c: Layout, tile: tuple[Amount, ...], spans: dict[str, Amount]
) -> tuple[list[Digit], list[Digit], dict[str, tuple[Amount, Amount]]]:
    """The digits above and below a tile, and the offsets per axis."""
    pieces: list[Digit] = []
    for d in {x.dimension: None for x in written_out(c)}:
        own = [x for x in written_out(c) if x.dimension == d]
        whole = d == COPIES or same(c.known_shape()[d], tile[d])
        pieces += own if whole else split_where(own, tile[d])
    outer: list[Digit] = []
    inner: list[Digit] = []
    for x in pieces:
        span = spans[x.axis]
        if x.dimension == COPIES:
            above, parts = False, list(_at_span(x, span))
        else:
            whole = same(c.known_shape()[x.dimension], tile[x.dimension])
            above, parts = not whole and quotient(x.divisor, tile[x.dimension]) is not None, [x]
        for part in parts:
            share = quotient(stride(part), span)
            if above or (x.dimension == COPIES and share is not None):
                outer.append(
                    _outer(part, tile, exact(stride(part), span, f"`{x}` is inside a tile"))
                )
            else:
                inner.append(part)
    starts: dict[str, tuple[Amount, Amount]] = {}
    for axis, span in spans.items():
        start = c.offset(axis)
        if start == 0:
            starts[axis] = (0, 0)
        elif isinstance(start, int) and isinstance(span, int):
            starts[axis] = divmod(start, span)
        else:
            raise Unaligned("offsets are not known")
        below = [x for x in inner if x.axis == axis]
        if not at_most(plus(reach_of(below), starts[axis][1]), span):
            raise Unaligned("a tile is wider than its span")
    for x in inner:
        if any(
            not at_most(times(p.divisor, p.modulus or 1), tile[p.dimension])
            and not same(c.known_shape()[p.dimension], tile[p.dimension])
            for p in x.xor
        ):
            raise Unaligned(f"`{x}` depends on other tiles")
    return outer, inner, starts


def _at_span(x: Digit, span: Amount) -> tuple[Digit, ...]:
    inside = quotient(span, stride(x)) if stride(x) != 0 else None
    if inside is None or inside == 1 or at_most(modulus(x), inside):
        return (x,)
    return split(x, inside)


def _outer(x: Digit, tile: tuple[Amount, ...], by: Amount) -> Digit:
    if x.dimension == COPIES:
        return replace(x, stride=by)
    parts = tuple(
        replace(p, divisor=exact(p.divisor, tile[p.dimension], f"`{x}` depends on places in tiles"))
        for p in x.xor
    )
    return Digit(x.dimension, exact(x.divisor, tile[x.dimension], ""), x.modulus, by, x.axis, parts)


def compose(a: Layout, b: Layout, axes: tuple[str, ...] | None = None) -> Layout:
    """compose(A, B)(x) = A(B(x)): the places of B are coordinates of A, its dimension i being axis `axes[i]` of B."""
    named = (b.axes or ("addr",)) if axes is None else axes
    if a.rank != len(named):
        raise CompileError("T0272", f"composition: {a.rank} dimensions, but {len(named)} axes",
                           helps="name an axis of the inner layout for each dimension of the outer")  # fmt: skip
    sa = a.known_shape()

    def rule() -> Layout:
        own = {x: [y for y in written_out(a) if y.dimension == n] for n, x in enumerate(named)}
        out = [y for y in written_out(a) if y.dimension == COPIES]
        if any(y.xor for y in a.digits):
            raise Unaligned("the outer layout is swizzled")
        for n, axis in enumerate(named):
            if b.offset(axis) != 0 or not at_most(b.span(axis), sa[n]):
                raise Unaligned("the inner layout may leave the outer")
            still = [x for x in written_out(b) if x.axis == axis and stride(x) == 0]
            moving = [x for x in written_out(b) if x.axis == axis and stride(x) != 0]
            carry_free(moving)
            where = a.axes[0] if a.axes else "addr"
            out += [replace(x, axis=where, stride=0) for x in still]
            for x in moving:
                out += _through(x, own[axis], where)
        return build(out, b.shape, a.offsets, b.bits)

    def meaning(a: Layout, b: Layout) -> Layout:
        ta, tb = table(a), table(b, axes=named)
        limits = np.array(ta.shape, np.int64)
        outside = (tb.places >= limits).any((-1, -2))
        if outside.any():
            at = tuple(int(i) for i in np.unravel_index(int(outside.argmax()), tb.shape))
            raise refused("composition", f"the element at {coordinate(at)} goes to {tb.at(at)}, outside the outer layout")  # fmt: skip
        found = ta.places[tuple(np.moveaxis(tb.places, -1, 0))]
        shape = (*tb.shape, -1, len(ta.axes))
        return read_table("composition", Table(ta.axes, found.reshape(shape)), b.bits)

    return decided("composition", rule, meaning, a, b)


def _through(x: Digit, digits: list[Digit], nowhere: str) -> list[Digit]:
    """What becomes of a digit that indexes a dimension with the given digits."""
    last = max(digits, key=lambda d: sum(quotient(d.divisor, o.divisor) is not None for o in digits), default=None)  # fmt: skip
    if last is None:
        return [replace(x, axis=nowhere, stride=0)]
    out: list[Digit] = []
    while True:
        for d in digits:
            q = quotient(stride(x), d.divisor)
            room = modulus(d) if q is None else quotient(modulus(d), q)
            if q is None or (room is None and d is not last) or (room == 1 and d is not last):
                continue
            if d is last or (room is not None and at_most(modulus(x), room)):
                return [*out, replace(x, axis=d.axis, stride=times(stride(d), q))]
            if room is not None and quotient(modulus(x), room) is not None:
                x, low = split(x, room)
                out.append(replace(low, axis=d.axis, stride=times(stride(d), q)))
                break
        else:
            raise Unaligned(f"`{x}` does not line up with the outer layout")


def inverse(
    a: Layout, over: tuple[str, ...] | None = None, names: tuple[str, ...] | None = None
) -> Layout:
    """inverse(A)(place) = x where A(x) holds the place: its dimensions are the axes of A in order (or `over`), its axes
    `dim0`, `dim1`, … (or `names`) are A's dimensions. Refused with a place that holds no element, or two."""
    names = tuple(f"dim{d}" for d in range(a.rank)) if names is None else names
    used = a.axes if over is None else over
    if set(a.axes) - set(used):
        raise CompileError("T0272", f"inverse: elements have places on `{a.axes[0]}`, too",
                           helps=f"name all axes: {', '.join(a.axes)}")  # fmt: skip
    shape = tuple(a.span(x) for x in used)

    def rule() -> Layout:
        if a.offsets or not all(fills(a, d) for d in range(a.rank)):
            raise Unaligned("not all places are used")
        digits = written_out(a)
        for axis in used:
            end: Amount = 1
            for d in carry_free([x for x in digits if x.axis == axis]):
                if not same(stride(d), end):
                    raise Unaligned("not all places are used")
                end = times(stride(d), modulus(d))
        return build([_turned(d, digits, used, names) for d in digits], shape)

    def meaning(a: Layout) -> Layout:
        t = table(a, axes=used)
        limits = tuple(evaluated(a.span(x), {}) for x in used)
        flat = t.places.reshape(-1, len(used))
        element = np.arange(len(flat)) // max(1, t.places.shape[-2])
        at = np.zeros(len(flat), np.int64)
        for n, limit in enumerate(limits):
            at = at * limit + flat[:, n]
        holds = np.full(int(np.prod(limits)), -1)
        holds[at] = element
        for wrong in np.flatnonzero(holds[at] != element)[:1]:
            one, two = (coordinate(tuple(int(i) for i in np.unravel_index(int(n), t.shape)))
                        for n in (element[wrong], holds[at[wrong]]))  # fmt: skip
            raise refused("inverse", f"the elements at {one} and {two} both lie at {_named(used, flat[wrong])}", ONCE)  # fmt: skip
        if (holds < 0).any():
            place = np.argwhere(holds.reshape(limits) < 0)[0]
            raise refused("inverse", f"no element lies at {_named(used, place)}", ONCE)
        back = np.stack(np.unravel_index(holds, (*t.shape, 1)), -1)[:, : max(1, len(t.shape))]
        return read_table("inverse", Table(names or ("dim0",), back.reshape(*limits, 1, -1)))

    return decided("inverse", rule, meaning, a)


def _turned(d: Digit, digits: list[Digit], used: tuple[str, ...], names: tuple[str, ...]) -> Digit:
    """The digit of the inverse: places of `d` to its part of the coordinate."""
    at = used.index(d.axis)
    if d.dimension == COPIES:
        return Digit(at, stride(d), d.modulus, 0, names[0] if names else "dim0")
    parts = []
    for p in d.xor:
        home = next((x for x in digits if x.dimension == p.dimension and not x.xor
                     and quotient(p.divisor, x.divisor) is not None
                     and at_most(times(p.divisor, p.modulus or 1), upper_end(x))), None)  # fmt: skip
        if home is None:
            raise Unaligned("a swizzle reads a swizzled digit")
        inside = quotient(p.divisor, home.divisor)
        assert inside is not None
        parts.append(Part(used.index(home.axis), times(stride(home), inside), p.modulus))
    return Digit(at, stride(d), d.modulus, d.divisor, names[d.dimension], tuple(parts))


def _named(axes: tuple[str, ...], place: Places) -> str:
    return " ".join(f"{a} {int(p)}" for a, p in zip(axes, place)) or "one place"
