"""Where the elements of a tensor lie: digit layouts over named axes.

    layout ::= ["(" extent, … ")"] group …
    group  ::= [axis] "[" digit, … "]" ["+" offset]        no axis: addr; from the slowest digit to the fastest
    digit  ::= part ["*" stride] | part "^" part … | "(" part "^" part … ")" "*" stride
    part   ::= dimension ["/" divisor] ["%" modulus]       dimension: 0, 1, …, `b` the bits, `_` copies

Part `d/n%m` is (coordinate of dimension d // n) % m. A place along an axis is the sum of the axis's digits, each times
its stride. A digit without a stride continues the faster ones: its stride is the number of places that they span. So
`[1/16, 0, 1%16]` stores a matrix in panels of 16 columns, and `lane[0%8, 1/2%4] reg[1/8, 0/8, 1%2]` spreads one over
lanes and registers. `1%8^0%8` is the digit `1%8` in another order in each row (a swizzle). `_%4` holds copies: the
element lies at all four places. Where the bits of elements are a dimension of their own, the last one, it is called
`b`, and addresses count bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tcc.ir.amounts import (
    Amount,
    amount,
    at_most,
    ceildiv,
    expression,
    is_power_of_two,
    minus,
    plus,
    same,
    shown,
    times,
)
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.expr import Const, Expr, Size, call, transform

AXES = ("addr", "bank", "plane", "vec", "reg", "lane", "warp", "block", "core", "pe_x", "pe_y",
        "dev", "time")  # fmt: skip
COPIES = -1  # the dimension of digits that hold copies


@dataclass(frozen=True, slots=True)
class Part:
    """(coordinate of `dimension` // `divisor`) % `modulus`; no modulus means all that is left."""

    dimension: int
    divisor: Amount = 1
    modulus: Amount | None = None

    def text(self, bits: int | None = None) -> str:
        """`1/16%4`; the dimension `bits` is written `b`."""
        name = "_" if self.dimension == COPIES else str(self.dimension)
        out = "b" if self.dimension == bits else name
        if self.divisor != 1:
            out += f"/{shown(self.divisor)}"
        return out if self.modulus is None else f"{out}%{shown(self.modulus)}"


@dataclass(frozen=True, slots=True)
class Digit:
    """(coordinate of `dimension` // `divisor`) % `modulus`, xor the parts in `xor`; times `stride` it is a summand of the
    place on `axis`. No modulus means all that is left, no stride that it continues the faster digits of the axis."""

    dimension: int
    divisor: Amount = 1
    modulus: Amount | None = None
    stride: Amount | None = None
    axis: str = "addr"
    xor: tuple[Part, ...] = ()

    @property
    def part(self) -> Part:
        return Part(self.dimension, self.divisor, self.modulus)

    def text(self, bits: int | None = None) -> str:
        """The digit without its axis."""
        out = "^".join(p.text(bits) for p in (self.part, *self.xor))
        if self.stride is None:
            return out
        return f"{f'({out})' if self.xor else out}*{shown(self.stride)}"

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Digits from slowest to fastest, axis by axis; every coordinate is determined by its digits (checked).

    Without a `shape` it fits tensors of any shape. `bits`: the last dimension is that of the elements' bits. Layouts are
    equal if their texts are; whether they put elements at the same places is `layout_algebra.agree`.
    """

    digits: tuple[Digit, ...]
    shape: tuple[Amount, ...] | None = None
    offsets: tuple[tuple[str, Amount], ...] = ()
    bits: bool = False

    def __post_init__(self) -> None:
        if self.shape is not None:
            outside = [d.dimension for d in self.digits if d.dimension >= len(self.shape)]
            if outside:
                extents = f"{len(self.shape)} extent{'s' * (len(self.shape) != 1)}"
                raise CompileError("T0270", f"a layout of {extents} has no dimension {outside[0]}",
                                   helps="dimensions count from 0")  # fmt: skip
            object.__setattr__(self, "shape", tuple(amount(n) for n in self.shape))
            object.__setattr__(self, "digits", tuple(self._opened(d) for d in self.digits))
        kept = tuple((a, n) for a, n in self.offsets if n != 0)
        object.__setattr__(self, "offsets", kept)
        self._check_axes()
        for dimension in range(self.rank):
            self._check_cover(dimension)
        for d in self.digits:
            if d.xor:
                self._check_xor(d)

    # ---- what may be written

    def _opened(self, d: Digit) -> Digit:
        """The slowest digit of a dimension without a modulus that says nothing new."""
        if d.dimension == COPIES or d.modulus is None:
            return d
        assert self.shape is not None
        others = [x for x in self.digits if x.dimension == d.dimension and x is not d]
        end, size = times(d.divisor, d.modulus), self.shape[d.dimension]
        last = all(x.modulus is not None and not same(x.divisor, end) for x in others)
        return replace(d, modulus=None) if last and same(ceildiv(size, d.divisor), d.modulus) else d

    def _wrong(self, fact: str, code: str = "T0270", helps: str = "") -> CompileError:
        return CompileError(code, f"layout {self}: {fact}", helps=helps or "see `docs/layouts.md`")

    def _check_axes(self) -> None:
        for axis in self.axes:
            if axis not in AXES and not re.fullmatch(r"dim\d+", axis):
                hint = did_you_mean(axis, list(AXES))
                raise CompileError("T0270", f"`{axis}` is no axis of layouts",
                                   helps=(*hint, f"known: {', '.join(AXES)}"))  # fmt: skip
        for d in self.digits:
            if d.dimension == COPIES and (d.modulus is None or d.divisor != 1 or d.xor):
                raise self._wrong("copies are a plain number", helps="write `_%4`")
            if isinstance(d.stride, int) and d.stride < 0:
                raise self._wrong(f"the stride {d.stride} is negative", helps="count upwards")
            if d.divisor == 0 or d.modulus == 0:
                raise self._wrong("a digit divides by zero", helps="divide by 1 or more")

    def _check_cover(self, dimension: int) -> None:
        """The digits of a dimension are a mixed radix system: from each to the next the divisor is what lies before."""
        rest = [d for d in self.digits if d.dimension == dimension]
        size = None if self.shape is None else self.shape[dimension]
        if not rest and (size == 1 or (size is None and self.bits and dimension == self.rank - 1)):
            return
        covered: Amount | None = 1
        while rest and covered is not None:
            here = [d for d in rest if same(d.divisor, covered)]
            here.sort(key=lambda d: d.modulus != 1)
            if not here:
                break
            rest.remove(here[0])
            covered = None if here[0].modulus is None else times(covered, here[0].modulus)
        if rest or (covered == 1 and size != 1):
            raise self._wrong(f"dimension {dimension} is not covered exactly once", "T0201",
                              "split a dimension as `d/n` and `d%n`")  # fmt: skip
        if covered is None or (size is not None and at_most(size, covered)):
            return
        raise self._wrong(f"dimension {dimension} is cut off at {shown(covered)}", "T0201",
                          f"add the digit `{dimension}/{shown(covered)}`")  # fmt: skip

    def _check_xor(self, d: Digit) -> None:
        extent = d.modulus if self.shape is None else self.extents()[self.digits.index(d)]
        if not is_power_of_two(extent or 0):
            raise self._wrong(f"`{d.part.text()}` does not have a power of two of values",
                              helps="give it one: `1%8^0%8`")  # fmt: skip
        assert isinstance(extent, int)
        for p in d.xor:
            known = range(self.rank if self.shape is None else len(self.shape))
            if p.dimension not in known:
                raise self._wrong(f"`{p.text()}` is no part of a dimension")
            if not isinstance(p.modulus, int) or p.modulus > extent or not is_power_of_two(p.modulus):  # fmt: skip
                raise self._wrong(f"`{p.text()}` is not known to stay below {extent}",
                                  helps=f"give it a modulus, a power of two: `%{extent}`")  # fmt: skip

    # ---- what it is

    def __str__(self) -> str:
        bits = self.rank - 1 if self.bits else None
        head = "" if self.shape is None else f"({', '.join(map(shown, self.shape))}) "
        offsets, groups = dict(self.offsets), []
        implied = self.implied() if self.shape is not None else {}
        for axis in self.axes or ("addr",):
            inside = []
            for n, d in enumerate(self.digits):
                if d.axis == axis:
                    plain = d.stride is not None and n in implied and same(d.stride, implied[n])
                    inside.append((replace(d, stride=None) if plain else d).text(bits))
            group = f"{'' if axis == 'addr' else axis}[{', '.join(inside)}]"
            groups.append(f"{group}+{shown(offsets[axis])}" if axis in offsets else group)
        return head + " ".join(groups)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def rank(self) -> int:
        """The number of dimensions, that of the bits included."""
        if self.shape is not None:
            return len(self.shape)
        return max((d.dimension for d in self.digits), default=-1) + 1

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that are used, in order of appearance."""
        named = [d.axis for d in self.digits] + [axis for axis, _ in self.offsets]
        return tuple(dict.fromkeys(named))

    def offset(self, axis: str) -> Amount:
        """Where the axis starts."""
        return dict(self.offsets).get(axis, 0)

    def on(self, shape: tuple[Amount, ...]) -> Layout:
        """The layout for tensors of that shape."""
        return replace(self, shape=shape)

    def bind(self, sizes: Mapping[str, int]) -> Layout:
        """The layout with sizes replaced by numbers."""

        def number(e: Expr) -> Expr:
            return Const(sizes[e.rank]) if isinstance(e, Size) and e.rank in sizes else e

        def bound(a: Amount) -> Amount:
            return a if isinstance(a, int) else amount(transform(a, number))

        def optional(a: Amount | None) -> Amount | None:
            return None if a is None else bound(a)

        def part(p: Part) -> Part:
            return Part(p.dimension, bound(p.divisor), optional(p.modulus))

        digits = tuple(
            Digit(d.dimension, bound(d.divisor), optional(d.modulus), optional(d.stride), d.axis,
                  tuple(part(p) for p in d.xor))
            for d in self.digits
        )  # fmt: skip
        shape = None if self.shape is None else tuple(bound(n) for n in self.shape)
        return Layout(digits, shape, tuple((a, bound(n)) for a, n in self.offsets), self.bits)

    def padding(self, dimension: int) -> int:
        """A number that the padded extent of a dimension is a multiple of."""
        known = [d.divisor for d in self.digits if d.dimension == dimension]
        return max((n for n in known if isinstance(n, int)), default=1)

    def extents(self, shape: tuple[Amount, ...] | None = None) -> list[Amount]:
        """The number of values of each digit, for a tensor of the given shape."""
        sizes = self.known_shape(shape)
        out: list[Amount] = []
        for d in self.digits:
            if d.modulus is not None:
                out.append(d.modulus)
            else:
                out.append(ceildiv(amount(sizes[d.dimension]), d.divisor))
        return out

    def known_shape(self, shape: tuple[Amount, ...] | None = None) -> tuple[Amount, ...]:
        """The shape: that which is given, or its own; T0272 where it has none."""
        found = self.shape if shape is None else shape
        if found is None:
            raise CompileError("T0272", f"layout {self} has no shape",
                               helps=f"write it in front: `(16, 16) {self}`")  # fmt: skip
        return found

    def strides(self, shape: tuple[Amount, ...] | None = None) -> list[Amount]:
        """The stride of each digit, for a tensor of the given shape."""
        implied, extents = self.implied(shape), self.extents(shape)
        assert len(implied) == len(extents)
        return [implied[n] if d.stride is None else d.stride for n, d in enumerate(self.digits)]

    def implied(self, shape: tuple[Amount, ...] | None = None) -> dict[int, Amount]:
        """For each digit the number of places that the faster ones of its axis span."""
        return self._spans(shape)[0]

    def _spans(self, shape: tuple[Amount, ...] | None) -> tuple[dict[int, Amount], dict[str, Amount]]:  # fmt: skip
        spans: dict[str, Amount] = {}
        implied: dict[int, Amount] = {}
        extents = self.extents(shape)
        for n in range(len(self.digits) - 1, -1, -1):
            d, extent = self.digits[n], extents[n]
            below = spans.get(d.axis, 1)
            implied[n] = below
            if d.stride is None:
                spans[d.axis] = times(below, extent)
            else:
                spans[d.axis] = plus(below, times(d.stride, minus(extent, 1)))
        return implied, spans

    def span(self, axis: str, shape: tuple[Amount, ...] | None = None) -> Amount:
        """The number of places from 0 to the last that may be used, padding and offset included."""
        found = self._spans(shape)[1].get(axis, 1)
        on_axis = [e for d, e in zip(self.digits, self.extents(shape)) if d.axis == axis]
        return 0 if 0 in on_axis else plus(found, self.offset(axis))

    def elements(self, shape: tuple[Amount, ...] | None = None) -> Expr:
        """How many elements (with `bits`: bits) the storage holds, padding included."""
        found = expression(self.span("addr", shape))
        if all(d.stride is None for d in self.digits) or isinstance(found, Const):
            return found
        return call("max", found, Const(0))  # strides of their own: an empty extent counts below 0

    def index(
        self, axis: str, indices: tuple[Expr, ...], shape: tuple[Amount, ...] | None = None
    ) -> Expr:
        """The place of a coordinate along an axis, the first copy's, as an index expression."""
        strides = self.strides(shape)
        place: Expr = expression(self.offset(axis))
        for d, stride in zip(reversed(self.digits), reversed(strides)):
            if d.axis != axis or d.dimension == COPIES:
                continue
            value = _value(d.part, indices)
            for p in d.xor:
                value = call("bit_xor", value, _value(p, indices))
            place = call("add", call("mul", value, expression(stride)), place)
        return place

    def address(self, indices: tuple[Expr, ...], shape: tuple[Amount, ...] | None = None) -> Expr:
        """The element offset of a coordinate, as an index expression."""
        return self.index("addr", indices, shape)


def _value(p: Part, indices: tuple[Expr, ...]) -> Expr:
    i = indices[p.dimension]
    if p.divisor != 1:
        i = call("floordiv", i, expression(p.divisor))
    return i if p.modulus is None else call("mod", i, expression(p.modulus))


def row_major(rank: int) -> Layout:
    """Dimensions in order, the last one contiguous."""
    return Layout(tuple(Digit(d) for d in range(rank)))
