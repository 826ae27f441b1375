"""The reference of coded element types: the exact value of every code, and the code of every value.

A type's *ladder* is its finite values in order with the points at which rounding turns from one to the next. Everything
up to 16 bits is rounded by it, wider floats by their formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, DType, Float, Posit, Scaled, Table
from tcc.ir.random_bits import random_bits

Array = Any


def float_form(t: DType) -> Float:
    """The form of a float; that of f16, f32 and f64 is IEEE's."""
    if isinstance(t.form, Float):
        return t.form
    exponent, mantissa = {16: (5, 10), 32: (8, 23), 64: (11, 52)}[t.bits]
    return Float(exponent, mantissa, 2 ** (exponent - 1) - 1)


def decode(stored: Array, t: DType) -> Array:
    """The values of codes: float64, exactly; integers stay what they are. T0148 for what no code or value of `t` is."""
    array = np.asarray(stored)
    if array.dtype != t.numpy and array.dtype.kind not in "iub":
        array = same_bits(array, t)
    elif t.is_float and t.form is not None and array.dtype.kind == "i":
        _refuse(array < 0, array, t)
    if t.is_integer:
        low, high = integer_range(t)
        if array.dtype.kind not in "iub":
            raise _no_codes(array, t)
        if t.bits < 64:
            _refuse((array < low) | (array > high), array, t)
        return array.astype(t.working)
    if t.form is None:
        return array.astype(np.float64)
    _refuse(array >= np.uint64(2**t.bits) if t.bits < 64 else np.zeros(1, bool), array, t)
    if t.bits <= 16:
        return table(t)[array.astype(np.int64)]
    return _values(t, array.astype(np.int64))


def encode(values: Array, t: DType, positions: Array | None = None) -> Array:
    """The codes (for integers: the values) of the numbers of `t` that `values` are rounded to, by the type's rounding.

    Stochastic rounding draws from `positions`, by default the row-major ones: equal seed and position, equal draw.
    """
    x = np.asarray(values)
    draw = None
    if t.rounding == "stochastic":
        at = np.arange(x.size).reshape(x.shape) if positions is None else positions
        draw = random_bits(t.seed, at) * 2.0**-32
    with np.errstate(all="ignore"):
        if t.is_integer:
            return _encode_integer(x, t, draw)
        x = x.astype(np.float64)
        return _encode_by_ladder(x, t, draw) if t.bits <= 16 else _encode_wide(x, t, draw)


def integer_range(t: DType) -> tuple[int, int]:
    """The least and the largest value of an integer type."""
    half = 2 ** (t.bits - 1)
    return (-half, half - 1) if t.kind == "i" else (0, 2 * half - 1)


def largest(t: DType) -> float:
    """The largest finite value."""
    if t.is_integer:
        return float(integer_range(t)[1])
    if t.bits <= 16 and (t.form is not None or t.bits == 16):
        return float(ladder(t).values[-1])
    return float(_top(float_form(t)))


def binade(x: float) -> int:
    """⌊log2 x⌋, exactly."""
    return int(np.frexp(x)[1]) - 1


@lru_cache(maxsize=256)
def fits_f32(t: DType) -> bool:
    """Whether f32 holds every value exactly."""
    if isinstance(t.form, Coded):
        return fits_f32(t.form.element)
    if isinstance(t.form, Scaled):
        parts = (t.form.scale, t.form.zero, t.form.offset, t.form.table, t.form.element)
        return all(p.compute.bits <= 32 for p in parts if isinstance(p, DType))
    if t.bits <= 16:
        found = table(t)
        with np.errstate(over="ignore"):
            return bool(np.all((found.astype(np.float32) == found) | np.isnan(found)))
    form = float_form(t)
    return form.exponent <= 8 and form.mantissa <= 23


# ---- values of codes


@lru_cache(maxsize=64)
def table(t: DType) -> Array:
    """The value of every code: float64[2^bits], for floats up to 16 bits."""
    made = _values(t, np.arange(2**t.bits))
    made.flags.writeable = False
    return made


def _values(t: DType, codes: Array) -> Array:
    if isinstance(t.form, Table):
        padded = np.full(2**t.bits, np.nan)
        padded[: len(t.form.values)] = t.form.values
        return padded[codes]
    if isinstance(t.form, Posit):
        return _posit(codes, t.bits, t.form.exponent)
    return _float(codes, t.bits, float_form(t))


def _float(codes: Array, bits: int, form: Float) -> Array:
    low = codes & (2**form.mantissa - 1)
    field = codes >> form.mantissa & (2**form.exponent - 1)
    tiny = (field == 0) & form.subnormal
    significand = np.where(tiny, low, low + 2**form.mantissa).astype(np.float64)
    power = np.where(tiny, 1, field) - form.bias - form.mantissa
    out = np.ldexp(significand, power.astype(np.int32))
    top = field == 2**form.exponent - 1
    if form.specials == "ieee":
        out = np.where(top, np.where(low == 0, np.inf, np.nan), out)
    if form.signed:
        out = np.where(codes >> (bits - 1) & 1, -out, out)
    return np.where(codes == _nan_code(form, bits, negative=True), np.nan, out) if (
        form.specials == "fnuz"
    ) else np.where(top & (low == 2**form.mantissa - 1), np.nan, out) if form.specials == "fn" else out  # fmt: skip


def _posit(codes: Array, bits: int, exponent: int) -> Array:
    """Source: Posit standard (2022), section 3, with `exponent` bits for 2."""
    whole = np.int64(2**bits - 1)
    negative = (codes >> (bits - 1) & 1).astype(bool)
    body = np.where(negative, -codes & whole, codes) & (whole >> 1)
    first = body >> (bits - 2) & 1
    run = np.zeros_like(body)
    going = np.ones(body.shape, bool)
    for at in range(bits - 2, -1, -1):
        going &= (body >> at & 1) == first
        run += going
    regime = np.where(first == 1, run - 1, -run)
    left = np.maximum(bits - 2 - run, 0)  # bits behind the regime and the bit that ends it
    rest = body & ((np.int64(1) << left) - 1)
    wide = rest << (bits + exponent - left)  # the same in `bits + exponent` bits, zeros behind
    scale = wide >> bits
    fraction = wide & (2**bits - 1)
    power = regime * 2**exponent + scale
    out = np.ldexp(1.0 + fraction / 2.0**bits, power.astype(np.int32))
    out = np.where(negative, -out, out)
    return np.where(codes == 0, 0.0, np.where(codes == 2 ** (bits - 1), np.nan, out))


def _nan_code(form: Float, bits: int, negative: bool = False) -> int:
    """The NaN that encoding gives; 0 where the type has none."""
    if form.specials == "ieee":
        return ((1 << form.exponent + 1) - 1) << (form.mantissa - 1)
    if form.specials == "fn":
        return (1 << form.exponent + form.mantissa) - 1
    return 2 ** (bits - 1) if form.specials == "fnuz" else 0


def _top(form: Float) -> float:
    """The largest finite value of a wide IEEE float."""
    power = 2**form.exponent - 2 - form.bias
    return float(np.ldexp(2.0 - 2.0**-form.mantissa, power))


# ---- codes of values


@dataclass(frozen=True, slots=True)
class Ladder:
    """Finite values, ascending, with their codes; `turn[i]` is where rounding to nearest goes from value i to i + 1.

    Signed types list magnitudes. `beyond` is one step past the largest value; inf where nothing lies beyond it. `odd`
    says from which values a tie goes up: those with an odd code, without mantissa all but 0 (1 · 2^e is odd, 2 is even).
    """

    values: Array
    codes: Array
    turn: Array
    beyond: float
    signed: bool
    odd: Array


@lru_cache(maxsize=64)
def ladder(t: DType) -> Ladder:
    """The ladder of a float of up to 16 bits."""
    found = table(replace(t, rounding="", seed=0, saturate=False))
    if isinstance(t.form, Table):
        count = len(t.form.values)
        codes = np.argsort(found[:count], kind="stable")
        values = found[codes]
        return Ladder(values, codes, (values[1:] + values[:-1]) / 2, np.inf, False, codes % 2 == 1)
    if isinstance(t.form, Posit):
        codes = np.arange(2 ** (t.bits - 1))
        longer = _posit(np.arange(2**t.bits), t.bits + 1, t.form.exponent)
        return Ladder(found[codes], codes, longer[1:-1:2], np.inf, True, codes % 2 == 1)
    form = float_form(t)
    codes = np.arange(2 ** (t.bits - form.signed))
    codes = codes[np.isfinite(found[codes])]
    values = found[codes]
    beyond = np.inf
    if form.specials != "all":
        step = 2.0 ** (np.floor(np.log2(values[-1])) - form.mantissa)
        beyond = float(values[-1] + step)
    turn = (np.append(values[1:], beyond) + values) / 2
    turn = turn if form.specials != "all" else turn[:-1]
    odd = codes & 1 if form.mantissa else values != 0
    return Ladder(values, codes, turn, beyond, form.signed, odd.astype(bool))


def _encode_by_ladder(x: Array, t: DType, draw: Array | None) -> Array:
    rungs = ladder(t)
    nan = np.isnan(x)
    size = np.where(nan, 0.0, np.abs(x) if rungs.signed else x)
    last = len(rungs.values) - 1
    if t.rounding in ("", "nearest"):
        at = _nearest(size, rungs)
    else:
        at = _between(size, rungs, draw, x)
    over = at > last
    if t.rounding == "zero":
        over &= np.isinf(x)
    if isinstance(t.form, Posit) and t.rounding in ("", "nearest"):
        at = np.where((size > 0) & (at == 0), 1, at)
    code = rungs.codes[np.clip(at, 0, last)]
    negative = np.signbit(x) & ~nan
    if isinstance(t.form, Posit):
        code = np.where(negative, -code & (2**t.bits - 1), code)
        code = np.where(nan | np.isinf(x), 2 ** (t.bits - 1), code)
    elif not isinstance(t.form, Table):
        form = float_form(t)
        special = _nan_code(form, t.bits)
        if not t.saturate:
            code = np.where(over, 2**form.mantissa * (2**form.exponent - 1)
                            if form.specials == "ieee" else special, code)  # fmt: skip
        sign = negative & form.signed & ~((form.specials == "fnuz") & (code == 0))
        code = np.where(sign, code | 2 ** (t.bits - 1) * form.signed, code)
        lost = nan | (~np.asarray(form.signed) & ((x < 0) | ((x == 0) & ~form.subnormal)))
        code = np.where(lost, special, code)
    if t.form is None:
        return code.astype(np.uint16).view(np.float16)
    return code.astype(t.numpy)


def _nearest(size: Array, rungs: Ladder) -> Array:
    """The index of the nearest rung; in the middle between two, that of the even code."""
    at = np.searchsorted(rungs.turn, size, side="left")
    near = np.minimum(at, len(rungs.turn) - 1)
    tie = (rungs.turn[near] == size) & (at < len(rungs.turn))
    return at + (tie & rungs.odd[np.minimum(near, len(rungs.codes) - 1)])


def _between(size: Array, rungs: Ladder, draw: Array | None, x: Array) -> Array:
    """The rung towards zero; with `draw`, the next one instead with the probability that makes the mean right."""
    last = len(rungs.values) - 1
    low = np.searchsorted(rungs.values, size, side="right") - 1
    if draw is None:
        if rungs.signed:
            return low + (np.isinf(size) & np.isfinite(rungs.beyond))
        exact = rungs.values[np.clip(low, 0, last)] == size
        return np.where((size < 0) & ~exact, low + 1, low)
    floor = rungs.values[np.clip(low, 0, last)]
    steps = np.append(rungs.values[1:], rungs.beyond)
    above = steps[np.clip(low, 0, last)]
    share = np.where(low < 0, 1.0, (size - floor) / (above - floor))
    return low + (draw < share)


def _encode_wide(x: Array, t: DType, draw: Array | None) -> Array:
    """Floats of more than 16 bits, by formula: f32, f64 and tf32."""
    form = float_form(t)
    finite = np.isfinite(x)
    size = np.where(finite, np.abs(x), 0.0)
    power = np.maximum(np.frexp(size)[1] - 1, 1 - form.bias) - form.mantissa
    steps = np.ldexp(size, -power)
    whole = np.floor(steps)
    if draw is not None:
        whole = whole + (draw < steps - whole)
    elif t.rounding != "zero":
        whole = np.rint(steps)
    out = np.ldexp(whole, power)
    top = _top(form)
    over = out > top
    out = np.where(over, top if t.saturate or t.rounding == "zero" else np.inf, out)
    out = np.where(finite, out, top if t.saturate else np.inf)
    out = np.where(np.isnan(x), np.nan, np.copysign(out, x))
    if t.form is None:
        return out.astype(t.numpy)
    shift = 23 - form.mantissa
    return out.astype(np.float32).view(np.uint32) >> np.uint32(shift)


def _encode_integer(x: Array, t: DType, draw: Array | None) -> Array:
    low, high = integer_range(t)
    if x.dtype.kind == "f":
        x = np.where(np.isnan(x), 0.0, x)
        if draw is not None:
            x = np.floor(x) + (draw < x - np.floor(x))
        else:
            x = np.rint(x) if t.rounding == "nearest" else np.trunc(x)
        if t.saturate:
            inside = np.where((x > low) & (x < high), x, 0.0)
            whole = inside.astype(np.uint64 if low == 0 else np.int64)
            ends = np.where(x >= high, np.array(high, whole.dtype), np.array(low, whole.dtype))
            return np.where((x > low) & (x < high), whole, ends).astype(t.numpy)
        x = np.clip(x, -(2.0**62), 2.0**62).astype(np.int64)
    elif t.saturate:
        if x.dtype == np.uint64 or (x.dtype.kind == "u" and low == 0):
            return np.minimum(x, np.uint64(high)).astype(t.numpy)
        x = x.astype(np.int64)
        return np.clip(x, low, min(high, 2**63 - 1)).astype(t.numpy)
    if t.bits == 64:
        return x.astype(t.numpy)
    x = x.astype(np.int64)
    unused = 64 - t.bits
    return (x << unused >> unused if low else x & np.int64(high)).astype(t.numpy)


# ---- errors


def _refuse(wrong: Array, array: Array, t: DType) -> None:
    if np.any(wrong):
        at = tuple(int(i) for i in np.argwhere(np.broadcast_to(wrong, array.shape))[0])
        what = "value" if t.is_integer else "code"
        low, high = integer_range(t) if t.is_integer else (0, 2**t.bits - 1)
        raise CompileError("T0148", f"element {list(at)} is {array[at]}, but {t} has {what}s from {low} to {high}",
                           helps=f"encode values: `tcc.dtypes.encode(x, \"{t}\")`")  # fmt: skip


def same_bits(array: Array, t: DType) -> Array:
    """Codes of an array whose own NumPy type has the same values, as those of `ml_dtypes` have; else T0148."""
    if array.dtype.isbuiltin == 1 or array.dtype.itemsize != t.numpy.itemsize:
        raise _no_codes(array, t)
    if t.is_integer:
        return array.astype(t.numpy)
    codes = array.view(t.numpy)
    every = np.arange(2**t.bits, dtype=t.numpy) if t.bits <= 16 else codes.ravel()
    with np.errstate(all="ignore"):
        theirs = every.view(array.dtype).astype(np.float64)
    if not np.array_equal(theirs, _values(t, every.astype(np.int64)), equal_nan=True):
        raise _no_codes(array, t)
    return codes


def _no_codes(array: Array, t: DType) -> CompileError:
    return CompileError("T0148", f"{array.dtype} numbers are no codes of {t}",
                        helps=f"encode them: `tcc.dtypes.encode(x, \"{t}\")`, or pass {t.numpy} codes")  # fmt: skip


def shifts_to_f32(t: DType) -> bool:
    """Whether values of a float type are found by moving exponent and mantissa to where f32 has them, and a product that
    puts the bias right."""
    if t.name in ("f16", "bf16"):
        return True
    f = t.form
    return (
        isinstance(f, Float) and f.signed and f.subnormal and f.exponent <= 7 and 0 <= f.bias <= 127
    )


@lru_cache(maxsize=64)
def fits_bf16(t: DType) -> bool:
    """Whether bf16 has all values of a coded type."""
    values = table(t).astype(np.float32)
    rest = values.view(np.uint32) & 0xFFFF
    return bool(np.all((rest == 0) | np.isnan(values)))


# ---- without gaps


def pack_rows(codes: Array, t: DType) -> Array:
    """[…, N] codes of 1, 2 or 4 bits as […, N·bits/8] bytes, the first in the lowest bits."""
    per = 8 // t.bits
    found = np.asarray(codes).astype(np.uint8) & ((1 << t.bits) - 1)
    shifts = np.arange(per, dtype=np.uint8) * t.bits
    whole = found.reshape((*found.shape[:-1], found.shape[-1] // per, per))
    return np.bitwise_or.reduce(whole << shifts, axis=-1, dtype=np.uint8)


def unpack_rows(stored: Array, t: DType) -> Array:
    """The codes in rows of bytes: values of integers, codes of other types."""
    shifts = np.arange(8 // t.bits, dtype=np.uint8) * t.bits
    codes = np.asarray(stored)[..., None] >> shifts & ((1 << t.bits) - 1)
    codes = codes.reshape((*codes.shape[:-2], codes.shape[-2] * codes.shape[-1]))
    if t.kind == "i":
        low = 1 << (t.bits - 1)
        return ((codes ^ low).astype(np.int8) - np.int8(low)).astype(t.numpy)
    return codes.astype(t.numpy)
