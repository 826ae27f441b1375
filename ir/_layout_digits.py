"""Machinery of the layout algebra: digits with all numbers written out, split, merged, and sorted."""

from __future__ import annotations

from dataclasses import replace
from functools import cmp_to_key

from tcc.ir.amounts import Amount, at_most, is_power_of_two, plus, polynomial, quotient, same, times
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Size
from tcc.ir.layout import AXES, COPIES, Digit, Layout, Part


class Unaligned(Exception):
    """The digits do not line up as the structural rule needs them; a table decides then."""


def exact(a: Amount, b: Amount, what: str) -> Amount:
    """a / b; raises `Unaligned` where that is not known to be an integer."""
    found = quotient(a, b)
    if found is None:
        raise Unaligned(what)
    return found


def written_out(layout: Layout) -> list[Digit]:
    """The digits with modulus and stride, those with one value left out."""
    strides, extents = layout.strides(), layout.extents()
    return [Digit(d.dimension, d.divisor, e, s, d.axis, d.xor)
            for d, e, s in zip(layout.digits, extents, strides) if e != 1]  # fmt: skip


def modulus(d: Digit) -> Amount:
    assert d.modulus is not None
    return d.modulus


def stride(d: Digit) -> Amount:
    assert d.stride is not None
    return d.stride


def upper_end(d: Digit) -> Amount:
    """The divisor of the digit that follows in the dimension."""
    return times(d.divisor, modulus(d))


def split(d: Digit, at: Amount) -> tuple[Digit, Digit]:
    """d = upper * at + lower: a digit as two, the slower one first."""
    rest = exact(modulus(d), at, f"`{d}` does not split at {at}")
    if d.xor and not (is_power_of_two(at) and is_power_of_two(modulus(d))):
        raise Unaligned(f"`{d}` does not split at {at}")
    low, high = [], []
    for p in d.xor:
        assert isinstance(p.modulus, int) and isinstance(at, int)
        low.append(Part(p.dimension, p.divisor, min(p.modulus, at)))
        if p.modulus > at:
            high.append(Part(p.dimension, times(p.divisor, at), p.modulus // at))
    copies = d.dimension == COPIES
    upper = Digit(d.dimension, 1 if copies else times(d.divisor, at), rest, times(stride(d), at),
                  d.axis, tuple(high))  # fmt: skip
    return upper, replace(d, modulus=at, xor=tuple(low))


def split_where(digits: list[Digit], at: Amount) -> list[Digit]:
    """Digits of one dimension, split so that one begins at the divisor `at`."""
    out: list[Digit] = []
    for d in digits:
        inside = quotient(at, d.divisor)
        if inside is None or inside == 1 or at_most(upper_end(d), at):
            if inside is None and not at_most(upper_end(d), at) and not at_most(at, d.divisor):
                raise Unaligned(f"`{d}` does not split at {at}")
            out.append(d)
        else:
            out += split(d, inside)
    return out


def fills(layout: Layout, dimension: int) -> bool:
    """Whether the digits of a dimension have exactly as many values as the dimension has coordinates."""
    assert layout.shape is not None
    total: Amount = 1
    for d, extent in zip(layout.digits, layout.extents()):
        if d.dimension == dimension:
            total = times(total, extent)
    return same(total, layout.shape[dimension])


def _rounded(a: Amount) -> bool:
    """Whether it is a number of tiles: the digits of a padded dimension stay as they are."""
    return not isinstance(a, int) and not all(isinstance(e, Size) for e in polynomial(a).atoms.values())  # fmt: skip


def _merged(low: Digit, high: Digit) -> Digit | None:
    """The digit that two neighbours make, if they do."""
    if low.dimension != high.dimension or low.axis != high.axis or _rounded(modulus(high)):
        return None
    if low.dimension != COPIES and not same(high.divisor, upper_end(low)):
        return None
    if not same(stride(high), times(stride(low), modulus(low))) or len(low.xor) != len(high.xor):
        return None
    parts = []
    for p, q in zip(low.xor, high.xor):
        follows = same(q.divisor, times(p.divisor, modulus(low)))
        if p.dimension != q.dimension or not same(p.modulus or 0, modulus(low)) or not follows:
            return None
        parts.append(Part(p.dimension, p.divisor, times(p.modulus or 1, q.modulus or 1)))
    return replace(low, modulus=times(modulus(low), modulus(high)), xor=tuple(parts))


def merge(digits: list[Digit]) -> list[Digit]:
    """The fewest digits: neighbours that continue each other are one."""
    todo = [replace(d, xor=tuple(sorted(d.xor, key=Part.text))) if d.xor else d for d in digits]
    done: list[Digit] = []
    while todo:
        d = todo.pop()
        for other in todo + done:
            found = _merged(d, other) or _merged(other, d)
            if found is not None:
                (todo if other in todo else done).remove(other)
                todo.append(found)
                break
        else:
            done.append(d)
    return done[::-1]


def build(digits: list[Digit], shape: tuple[Amount, ...] | None, offsets: tuple[tuple[str, Amount], ...] = (),
          bits: bool = False) -> Layout:  # fmt: skip
    """The layout of written-out digits in its shortest form: merged, sorted, implied strides left out."""

    def order(a: Digit, b: Digit) -> int:
        if a.axis != b.axis:
            known = {axis: n for n, axis in enumerate(AXES)}
            ka, kb = ((known.get(x.axis, len(AXES)), x.axis) for x in (a, b))
            return -1 if ka < kb else 1
        if same(stride(a), stride(b)):
            ta, tb = a.text(), b.text()
            return (ta > tb) - (ta < tb)
        return -1 if at_most(stride(b), stride(a)) else 1 if at_most(stride(a), stride(b)) else 0

    kept = merge([d for d in digits if d.modulus != 1])
    try:
        found = Layout(tuple(sorted(kept, key=cmp_to_key(order))), shape, offsets, bits)
    except CompileError as error:
        if not any(not isinstance(n, int) for n in shape or ()):
            raise
        raise Unaligned(f"it is not known that {error.diagnostic.message}") from None
    implied = found.implied()
    plain = tuple(
        replace(d, stride=None) if same(stride(d), implied[n]) else d
        for n, d in enumerate(found.digits)
    )
    return replace(found, digits=plain)


def carry_free(digits: list[Digit]) -> list[Digit]:
    """Digits from the fastest to the slowest, none of which reaches the next one's stride: their sum is a mixed radix
    number; raises `Unaligned` where that is not so."""
    rest, out, reach = list(digits), [], 1  # type: tuple[list[Digit], list[Digit], Amount]
    while rest:
        least = next((d for d in rest if all(at_most(stride(d), stride(x)) for x in rest)), None)
        if least is None or quotient(stride(least), reach) is None:
            raise Unaligned("digits of one axis overlap")
        rest.remove(least)
        out.append(least)
        reach = times(stride(least), modulus(least))
    return out


def reach_of(digits: list[Digit]) -> Amount:
    """1 + the largest sum of the digits."""
    total: Amount = 1
    for d in digits:
        total = plus(total, times(stride(d), plus(modulus(d), -1)))
    return total
