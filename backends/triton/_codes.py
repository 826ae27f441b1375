"""Codes in Triton: a function `_get_T` per element type turns loaded codes into values, by shifts, selects and products.

Integers of any width, floats whose exponent fits that of f32, powers of two, posits, and tables of up to 16 values are read
so; what is stored has to be native.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from tcc.ir.cascade import Tensor
from tcc.ir.dtype import DType, Float, Posit, Table
from tcc.ir.dtype_codes import shifts_to_f32, table

TABLE = 16  # values of a table, which are chosen by selects


def stored_type(t: Tensor) -> str:
    """The name of NumPy's and torch's type of what is stored: bytes, codes or values."""
    return "uint8" if t.packed else t.dtype.numpy.name


def readable(t: DType) -> bool:
    """Whether values of a type are computed from its codes."""
    if t.native or t.is_integer:
        return not t.in_parts
    if t.compute.name != "f32" or t.in_parts or t.bits > 16:
        return False
    if isinstance(t.form, Table):
        return len(t.form.values) <= TABLE
    if isinstance(t.form, Posit):
        return int((t.bits - 2) * 2**t.form.exponent) <= 126
    return shifts_to_f32(t) or _exponent_only(t) or _starts_f32(t)


def _exponent_only(t: DType) -> bool:
    f = t.form
    return isinstance(f, Float) and not f.mantissa and not f.signed and f.specials == "fn" and not f.subnormal  # fmt: skip


def _starts_f32(t: DType) -> bool:
    f = t.form
    return isinstance(f, Float) and (f.exponent, f.bias, f.specials, f.signed) == (8, 127, "ieee", True)  # fmt: skip


def decoded(t: DType, helpers: dict[str, str]) -> str:
    """The name of the function that decodes; `helpers` gets its text. It takes codes in integers of any width."""
    word = t.name if re.fullmatch(r"\w+", t.name) else f"codes_{zlib.crc32(t.name.encode()):08x}"
    name = f"_get_{word}"
    lines = "\n".join(f"    {line}" for line in _body(t))
    helpers[name] = f'@triton.jit\ndef {name}(c):\n    """Values of {t.name}."""\n{lines}'
    return name


def _body(t: DType) -> list[str]:
    if t.is_integer:
        kind = f"tl.{t.compute.numpy.name}"
        lines = [f"v = c.to({kind}) & {2**t.bits - 1}" if t.bits < 64 else f"v = c.to({kind})"]
        if t.kind == "i" and t.bits < t.compute.bits:
            lines = [f"v = c.to({kind}) << {t.compute.bits - t.bits}", f"v = v >> {t.compute.bits - t.bits}"]  # fmt: skip
        return [*lines, "return v"]
    lines = [f"c = c.to(tl.int32) & {2**t.bits - 1}"]
    if isinstance(t.form, Table):
        return [*lines, f"return {_chosen(np.resize(table(t), 2**t.bits).tolist(), t.bits)}"]
    if isinstance(t.form, Posit):
        return lines + _posit(t.bits, t.form.exponent)
    form = t.form if isinstance(t.form, Float) else Float(5, 10, 15)
    if _exponent_only(t):
        return [
            *lines,
            f"v = ((c + {127 - form.bias}) << 23).to(tl.float32, bitcast=True)",
            *([f"v = tl.where(c == 0, {2.0**-127!r}, v)"] if form.bias >= 127 else []),
            f'return tl.where(c == {2**t.bits - 1}, float("nan"), v)',
        ]
    if _starts_f32(t):
        return [*lines, f"return (c << {32 - t.bits}).to(tl.float32, bitcast=True)"]
    size = 2 ** (t.bits - 1) - 1
    top = (2**form.exponent - 1) << form.mantissa
    lines += [
        f"a = c & {size}",
        f"v = (a << {23 - form.mantissa}).to(tl.float32, bitcast=True) * {2.0 ** (127 - form.bias)!r}",
    ]
    if form.specials == "ieee":
        lines += [
            f'v = tl.where(a == {top}, float("inf"), v)',
            f'v = tl.where(a > {top}, float("nan"), v)',
        ]
    elif form.specials == "fn":
        lines.append(f'v = tl.where(a == {size}, float("nan"), v)')
    elif form.specials == "fnuz":
        lines.append(f'v = tl.where(c == {size + 1}, float("nan"), v)')
    return [*lines, f"return tl.where(c > {size}, -v, v)"]


def _chosen(values: list[float], bits: int) -> str:
    """The value of a code by its bits, the highest first."""
    if len(values) == 1:
        v = float(np.float32(values[0]))
        return 'float("nan")' if np.isnan(v) else repr(v)
    half = len(values) // 2
    low, high = _chosen(values[:half], bits - 1), _chosen(values[half:], bits - 1)
    return f"tl.where((c & {half}) == 0, {low}, {high})"


def _posit(n: int, es: int) -> list[str]:
    """The regime is counted bit by bit; scale and fraction then lie where f32 has them."""
    lines = [
        f"body = tl.where(c >= {2 ** (n - 1)}, -c, c) & {2 ** (n - 1) - 1}",
        f"first = (body >> {n - 2}) & 1",
        "going = first * 0 + 1",
        "run = first * 0",
    ]
    for at in range(n - 2, -1, -1):
        lines += [f"going = going * (1 - (((body >> {at}) & 1) ^ first))", "run = run + going"]
    return [
        *lines,
        f"left = tl.maximum({n - 2} - run, 0)",
        f"wide = (body & ((1 << left) - 1)) << ({n + es} - left)",
        f"power = tl.where(first == 1, run - 1, -run) * {2**es} + (wide >> {n})",
        f"v = (((power + 127) << 23) | ((wide & {2**n - 1}) << {23 - n})).to(tl.float32, bitcast=True)",
        f"v = tl.where(c > {2 ** (n - 1)}, -v, v)",
        f'return tl.where(c == 0, 0.0, tl.where(c == {2 ** (n - 1)}, float("nan"), v))',
    ]
