"""Codes without gaps: packed inputs, of 1, 2 or 4 bits in the bytes of a row, and strings of other widths in buffers."""

from __future__ import annotations

from math import gcd
from typing import Any

from tcc.ir.cascade import Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, DType, Scaled
from tcc.ir.dtype_codes import pack_rows, unpack_rows
from tcc.ir.layout import Layout

Array = Any
BYTE = 8  # bits
SIDE = (64, 4)  # strings that lie side by side, by two digits


def string(bits: int) -> tuple[int, int]:
    """Bytes and elements of the shortest string of elements that is whole bytes: (5, 8) for 5 bits, (1, 2) for 4."""
    return bits // gcd(bits, BYTE), BYTE // gcd(bits, BYTE)


def in_strings(t: DType, layout: Layout) -> bool:
    """Whether a packed buffer of unsigned integers of 3, 5, 6 or 7 bits has digits […, i%64, j%4, j/4%P], with P elements to
    a string: then they lie in strings."""
    if t.kind != "u" or t.bits >= BYTE or t.bits == t.packed_bits or len(layout.digits) < 3:
        return False
    a, b, c = layout.digits[-3:]
    return (a.divisor, a.modulus, b.divisor, b.modulus, c.divisor, c.modulus) == (
        1, SIDE[0], 1, SIDE[1], SIDE[1], string(t.bits)[1],
    ) and b.dimension == c.dimension != a.dimension  # fmt: skip


def per_byte(t: Tensor) -> int:
    """How many elements share a byte: 1 where a tensor is not packed."""
    return BYTE // t.bits if t.packed else 1


def check_packed(t: Tensor, last: int | None, out: bool) -> None:
    """T0150 for tensors that cannot be packed: outputs, numbers, other widths, and rows that are no whole bytes."""
    if not t.packed:
        return
    per = BYTE // t.dtype.packed_bits if t.dtype.packed_bits < BYTE else 0
    form = t.dtype.form
    vector = form.vector if isinstance(form, Scaled) else None
    codes = vector[1] if vector and t.axes and vector[0] == t.axes[-1] else 1  # elements to a code
    if out:
        wrong, advice = "is an output", "only inputs are packed"
    elif not t.shape:
        wrong, advice = "has no dimension", "leave out `packed`"
    elif isinstance(form, Coded) or not per or t.dtype.bits != t.dtype.packed_bits:
        wrong = f"has elements of type {t.dtype}"
        advice = "elements of 1, 2 and 4 bits can be packed"
    elif last is not None and last % (per * codes):
        wrong = f"has rows of {last} elements, {per * codes} to a byte"
        advice = "make the last dimension a whole number of bytes"
    else:
        return
    raise CompileError("T0150", f"`{t.name}` is packed, but {wrong}", t.span, helps=advice)


def elements_shape(t: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor whose bytes have a shape; an `Encoded` has that of its elements."""
    whole = not t.packed or t.dtype.in_parts or not shape
    return shape if whole else (*shape[:-1], shape[-1] * per_byte(t))


def packed_bytes(t: Tensor, elements: Array) -> Array:
    """[…, N] elements as […, N·W/8] bytes: element i has the bits i·W … i·W + W - 1 of its row, the lowest first."""
    return pack_rows(elements, t.dtype)


def unpacked(t: Tensor, stored: Array) -> Array:
    """The elements in rows of bytes, as the interpreter takes them: values of integers, codes of other types."""
    return unpack_rows(stored, t.dtype)
