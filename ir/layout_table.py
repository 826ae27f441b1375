"""What a layout means: the table of all places of all elements, and digits read back from such a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tcc.ir.amounts import evaluated, polynomial
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Size
from tcc.ir.layout import COPIES, Digit, Layout, Part

LIMIT = 2**22  # places in a table
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """`places[coordinate …, copy, n]`: the place along axis `axes[n]` of a copy of the element at a coordinate."""

    axes: tuple[str, ...]
    places: Places

    @property
    def shape(self) -> tuple[int, ...]:
        return self.places.shape[:-2]

    def at(self, coordinate: tuple[int, ...]) -> str:
        """The places of one element, in words."""
        found = []
        for copy in np.unique(self.places[coordinate], axis=0):
            found.append(" ".join(f"{a} {p}" for a, p in zip(self.axes, copy)) or "one place")
        return " and ".join(found)


class Unreadable(Exception):
    """No digits give the table: the first coordinate that refuses, and why."""

    def __init__(self, coordinate: tuple[int, ...], reason: str) -> None:
        super().__init__(reason)
        self.coordinate, self.reason = coordinate, reason


def sizes_of(*layouts: Layout) -> tuple[str, ...]:
    """The ranks that layouts mention, sorted."""
    found: set[str] = set()
    for layout in layouts:
        amounts = [a for d in layout.digits for a in (d.divisor, d.modulus, d.stride)]
        amounts += [a for d in layout.digits for p in d.xor for a in (p.divisor, p.modulus)]
        for a in (*amounts, *(layout.shape or ()), *(n for _, n in layout.offsets)):
            if a is not None and not isinstance(a, int):
                atoms = polynomial(a).atoms.values()
                found |= {e.rank for e in _nodes(atoms) if isinstance(e, Size)}
    return tuple(sorted(found))


def _nodes(roots: object) -> list[object]:
    from tcc.ir.expr import walk

    return list(walk(*roots))  # type: ignore[misc]


def is_listable(*layouts: Layout) -> bool:
    """Whether all sizes are known, and there are not too many places for tables."""
    if sizes_of(*layouts):
        return False
    for a in layouts:
        copies = [e for d, e in zip(a.digits, a.extents()) if d.dimension == COPIES]
        numbers = [evaluated(n, {}) for n in (*a.known_shape(), *copies)]
        if math.prod(numbers) > LIMIT:
            return False
    return True


def table(
    layout: Layout, sizes: Mapping[str, int] | None = None, axes: tuple[str, ...] | None = None
) -> Table:
    """The places of all elements of a layout with a shape; T0126 names a size that is missing."""
    missing = [s for s in sizes_of(layout) if s not in (sizes or {})]
    if missing:
        raise CompileError("T0126", f"the size of rank `{missing[0]}` is not known",
                           helps=f"give it, as in `--size {missing[0]}=64`")  # fmt: skip
    if missing or sizes:
        layout = layout.bind(sizes or {})
    strides, extents = layout.strides(), layout.extents()
    shape = tuple(evaluated(n, {}) for n in layout.shape or ())
    copies = [n for n, d in enumerate(layout.digits) if d.dimension == COPIES]
    counts = [evaluated(extents[n], {}) for n in copies]
    total, dims = math.prod(counts), len(shape)
    if math.prod(shape) * total > LIMIT:
        raise CompileError("T0272", f"{' x '.join(map(str, shape))} places are too many to list",
                           helps="choose smaller sizes")  # fmt: skip
    used = layout.axes if axes is None else axes
    _check_spans([evaluated(layout.span(axis), {}) for axis in used])
    places = np.empty((*shape, total, len(used)), np.int64)
    each = np.arange(total)
    copied: dict[int, Places] = {}
    for n, count in zip(reversed(copies), reversed(counts)):
        copied[n], each = each % count, each // count
    along = [np.arange(n).reshape([-1 if d == k else 1 for k in range(dims + 1)])
             for d, n in enumerate(shape)]  # fmt: skip
    for column, axis in enumerate(used):
        place: Places = np.array(evaluated(layout.offset(axis), {}))
        for n, d in enumerate(layout.digits):
            if d.axis != axis:
                continue
            value = copied[n] if n in copied else _value(d.part, along)
            for p in d.xor:
                value = value ^ _value(p, along)
            place = place + value * evaluated(strides[n], {})
        places[..., column] = place
    return Table(tuple(used), places)


def _check_spans(spans: list[int]) -> None:
    """Places, and numbers made of places along all axes, have to fit into 64 bits."""
    if math.prod(spans) > 1 << 62:
        raise CompileError("T0272", "the places are too far apart to list",
                           helps="choose smaller strides")  # fmt: skip


def _value(p: Part, along: list[Places]) -> Places:
    value = along[p.dimension]
    if p.divisor != 1:
        value = value // evaluated(p.divisor, {})
    return value if p.modulus is None else value % evaluated(p.modulus, {})


def keys(places: Places) -> Places:
    """One number per place, sorted per element, so that sets of copies can be compared; doubled copies count once."""
    if not places.size:
        return np.zeros(places.shape[:-1], np.int64)
    spans = places.reshape(-1, places.shape[-1]).max(0) + 1
    return _sorted(places, spans)


def _sorted(places: Places, spans: Places) -> Places:
    _check_spans([int(n) for n in spans])
    key: Places = np.zeros(places.shape[:-1], np.int64)
    for n, span in enumerate(spans):
        key = key * span + places[..., n]
    if key.shape[-1] == 1:
        return key
    key = np.sort(key, axis=-1)
    again = np.concatenate([np.zeros_like(key[..., :1], bool), key[..., 1:] == key[..., :-1]], -1)
    return np.sort(np.where(again, key[..., :1], key), axis=-1)


def difference(a: Table, b: Table) -> tuple[int, ...] | None:
    """The first coordinate whose elements lie at different places, or None; the axes have to be the same."""
    assert a.axes == b.axes and a.shape == b.shape
    if not a.places.size or not b.places.size:
        return None
    width = a.places.shape[-1]
    both = [t.places.reshape(-1, width).max(0) for t in (a, b)]
    spans = np.maximum(*both) + 1 if width else np.zeros(0, np.int64)
    ka, kb = _sorted(a.places, spans), _sorted(b.places, spans)
    most = max(ka.shape[-1], kb.shape[-1])
    ka, kb = (np.sort(_filled(k, most), axis=-1) if most > 1 else k for k in (ka, kb))
    wrong = (ka != kb).any(-1)
    if not wrong.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), a.shape))


def _filled(key: Places, most: int) -> Places:
    rest = most - key.shape[-1]
    return np.concatenate([key, np.repeat(key[..., :1], rest, -1)], -1) if rest else key


# ---- digits from a table


def read_back(t: Table, bits: bool = False) -> Layout:
    """A layout with this table, found wherever there is one without swizzles, or one that is linear over bits;
    raises `Unreadable` elsewhere."""
    if not t.places.size:
        return Layout(tuple(Digit(d) for d in range(len(t.shape))), t.shape, (), bits)
    origin = (0,) * len(t.shape)
    rows = np.unique(t.places[origin], axis=0)
    start = rows[0]
    try:
        digits = [Digit(COPIES, 1, m, s, t.axes[a]) for _, m, a, s in _runs(rows - start, None, t)]
        for d, n in enumerate(t.shape):
            along = t.places[tuple(slice(None) if k == d else 0 for k in range(len(t.shape)))]
            lowest = along[np.arange(n), _least(along)] - start
            digits += [Digit(d, p, m, s, t.axes[a]) for p, m, a, s in _runs(lowest, d, t)]
        offsets = tuple((a, int(n)) for a, n in zip(t.axes, start) if n)
        found = Layout(tuple(_slowest_first(digits)), t.shape, offsets, bits)
        wrong = difference(t, table(found, axes=t.axes))
        if wrong is None:
            return found
        reason = f"its digits would put it at {table(found, axes=t.axes).at(wrong)}"
        problem = Unreadable(wrong, reason)
    except Unreadable as error:
        problem = error
    linear = _linear(t)
    if linear is None:
        raise problem
    return replace(linear, bits=bits)


def _slowest_first(digits: list[Digit]) -> list[Digit]:
    return sorted(digits, key=lambda d: -(d.stride if isinstance(d.stride, int) else 0))


def _least(along: Places) -> NDArray[np.int64]:
    """For each coordinate the copy that comes first."""
    span = along.max((0, 1)) + 1
    key = np.zeros(along.shape[:-1], np.int64)
    for n in range(along.shape[-1]):
        key = key * span[n] + along[..., n]
    return np.asarray(key.argmin(-1))


def _runs(at: Places, dimension: int | None, t: Table) -> list[tuple[int, int, int, int]]:
    """(divisor, modulus, axis, stride) of the digits of a sequence of places that starts at 0."""
    out: list[tuple[int, int, int, int]] = []
    n, p = len(at), 1
    while p < n:
        step = at[p]
        moved = np.flatnonzero(step)
        if len(moved) > 1 or (len(moved) and step[moved[0]] < 0):
            how = "moves along two axes at once" if len(moved) > 1 else "runs backwards"
            raise Unreadable(_coordinate(dimension, p, t), f"its place {how}")
        steps = at[::p]
        straight = (steps == np.arange(len(steps))[:, None] * step).all(-1)
        m = len(steps) if straight.all() else int(straight.argmin())
        out.append((p, m, int(moved[0]) if len(moved) else 0, int(step[moved[0]]) if len(moved) else 0))  # fmt: skip
        p *= m
    return out


def _coordinate(dimension: int | None, x: int, t: Table) -> tuple[int, ...]:
    return tuple(x if d == dimension else 0 for d in range(len(t.shape)))


def _linear(t: Table) -> Layout | None:
    """Digits of one bit each, for a table that is linear over bits: each output bit is an input bit xor others."""
    origin = (0,) * len(t.shape)
    powers = all(n & (n - 1) == 0 for n in t.shape)
    if not powers or t.places.shape[-2] != 1 or t.places[origin].any():
        return None
    inputs = [(d, k) for d, n in enumerate(t.shape) for k in range(n.bit_length() - 1)]
    images = [t.places[_coordinate(d, 1 << k, t)][0] for d, k in inputs]
    used = np.bitwise_or.reduce(t.places.reshape(-1, len(t.axes)), 0)
    outputs = [(a, k) for a, bits in enumerate(used) for k in range(63) if int(bits) >> k & 1]
    sets = [[o for o, (a, k) in enumerate(outputs) if image[a] >> k & 1] for image in images]
    own = _matching(sets, len(outputs))
    if len(own) != len(outputs):
        return None
    digits = []
    for n, (d, k) in enumerate(inputs):
        o = next((o for o, i in own.items() if i == n), None)
        if o is None:
            digits.append(Digit(d, 1 << k, 2, 0, t.axes[0] if t.axes else "addr"))
            continue
        axis, bit = outputs[o]
        others = tuple(
            Part(*_bit(inputs[i])) for i in range(len(inputs)) if i != n and o in sets[i]
        )
        digits.append(Digit(d, 1 << k, 2, 1 << bit, t.axes[axis], others))
    found = Layout(tuple(_slowest_first(digits)), t.shape)
    return found if difference(t, table(found, axes=t.axes)) is None else None


def _bit(at: tuple[int, int]) -> tuple[int, int, int]:
    return at[0], 1 << at[1], 2


def _matching(sets: list[list[int]], outputs: int) -> dict[int, int]:
    """An input for each output that it reaches, by augmenting paths; outputs that few inputs reach come first."""
    reached = [sum(o in s for s in sets) for o in range(outputs)]
    own: dict[int, int] = {}

    def place(n: int, tried: set[int]) -> bool:
        for o in sorted(sets[n], key=lambda o: reached[o]):
            if o in tried:
                continue
            tried.add(o)
            if o not in own or place(own[o], tried):
                own[o] = n
                return True
        return False

    for n in range(len(sets)):
        place(n, set())
    return own
