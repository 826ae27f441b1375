"""Coded tensors in NumPy: exponents as Huffman codes in streams of words, all other bits as they are; lossless.

    bf16[coded k 256, lanes n 16, window 7]

A **run** is 256 neighbours along rank K; 16 runs that are neighbours along rank N are its **lanes**: they share one
sequence of words. Symbols are the exponent fields of the elements. A code has at most `window` bits, its first bit the
lowest; so the next `window` bits of a lane are an index into one table that gives the symbol and the code's length.

    decode a run, every lane l side by side:   bits = held = 0
      for each step t of the run:
        if t % (16 // window) == 0: every lane with held < 16, in their order, takes the next word:
                                    bits += word << held; held += 16
        entry = table[bits % 2^window]; bits >>= entry // 4096; held -= entry // 4096
        the exponent of element t of lane l is entry % 4096

Parts: `codes`, the sign and mantissa of each element (sign highest), u8[…, K, 16] with N divided by 16, in the order in
which they are decoded; `words`: u16, all runs in that order, and as many zeros as there are lanes behind them; `start`:
u32[…, K / 256], the first word of each run; `table`: u16[2^window]. Source of the idea: DFloat11 (Zhang et al., 2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, DType
from tcc.ir.dtype_codes import float_form, same_bits

if TYPE_CHECKING:
    from tcc.ir.dtype_scaled import Encoded

Array = Any
Axes = tuple[str, ...]
WORD = 16  # bits
LENGTH = 4096  # an entry of the table is symbol + LENGTH * bits of its code
MOST = 12  # bits of a code at most
_AT_ONCE = 1 << 21  # elements that are encoded or decoded in one go
PARTS = ("words", "start", "table")  # beside the codes


def coded_form(t: DType) -> Coded:
    """The form of a coded type."""
    assert isinstance(t.form, Coded), t
    return t.form


def raw_bits(element: DType) -> int:
    """Bits of an element that stay as they are."""
    return element.bits - float_form(element).exponent


def raw_type(element: DType) -> np.dtype[Any]:
    """The NumPy type that holds them."""
    return np.dtype(f"uint{next(n for n in (8, 16, 32, 64) if raw_bits(element) <= n)}")


def code_type(element: DType) -> np.dtype[Any]:
    """The NumPy type of the element's own codes."""
    return np.dtype(f"uint{8 * element.itemsize}")


def code_lengths(counts: Array, most: int) -> Array:
    """The lengths, up to `most` bits, of the prefix code that makes symbols of these counts shortest in sum; 0 for symbols that
    do not occur, and for a symbol that is the only one. Source: Larmore and Hirschberg (1990), package-merge."""
    used = [int(s) for s in np.flatnonzero(counts)]
    if len(used) > 2**most:
        raise CompileError("T0148", f"{len(used)} exponents occur, and codes of {most} bits have room for {2**most}",
                           helps=f"choose a wider window, up to {MOST}")  # fmt: skip
    lengths = np.zeros(len(counts), np.int64)
    if len(used) < 2:
        return lengths
    single: list[tuple[int, tuple[int, ...]]] = sorted((int(counts[s]), (s,)) for s in used)
    merged = single
    for _ in range(most - 1):
        pairs = zip(merged[::2], merged[1::2])
        packages = [(a + b, x + y) for (a, x), (b, y) in pairs]
        merged = sorted(single + packages, key=lambda p: p[0])
    for _, symbols in merged[: 2 * len(used) - 2]:
        for s in symbols:
            lengths[s] += 1
    return lengths


def _canonical(lengths: Array, window: int) -> tuple[Array, Array]:
    """Codes by symbol, the first bit lowest, and the table: shorter codes first, symbols of one length in order."""
    table = np.zeros(2**window, np.uint16)
    codes = np.zeros(len(lengths), np.int64)
    used = np.flatnonzero(lengths)
    at = 0  # the next code as the highest of `window` bits
    for s in sorted(used, key=lambda s: (lengths[s], s)):
        n = int(lengths[s])
        codes[s] = int(f"{at >> (window - n):0{n}b}"[::-1], 2)
        table[codes[s] :: 2**n] = s + LENGTH * n
        at += 1 << (window - n)
    return codes, table


# ---- the order of elements


def _split(t: DType, axes: Axes) -> tuple[int, int | None]:
    """The axes of the runs and of the lanes."""
    form = coded_form(t)
    return axes.index(form.run[0]), None if form.lanes is None else axes.index(form.lanes[0])


def _in_order(array: Array, t: DType, axes: Axes) -> Array:
    """[…] --> [other dimensions …, K, lanes]."""
    form, (run, lane) = coded_form(t), _split(t, axes)
    order = [n for n in range(len(axes)) if n != run]
    shape = [array.shape[n] for n in order]
    array = array.transpose(*order, run)
    if lane is None or form.lanes is None:
        return array[..., None]
    at = order.index(lane)
    width = form.lanes[1]
    split = array.reshape(*shape[:at], shape[at] // width, width, *shape[at + 1 :], array.shape[-1])
    return np.moveaxis(split, at + 1, -1)


def _back(ordered: Array, t: DType, axes: Axes) -> Array:
    """The inverse of `_in_order`."""
    form, (run, lane) = coded_form(t), _split(t, axes)
    order = [n for n in range(len(axes)) if n != run]
    if lane is None or form.lanes is None:
        whole = ordered[..., 0]
    else:
        at = order.index(lane)
        whole = np.moveaxis(ordered, -1, at + 1)
        shape = list(whole.shape)
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
        whole = whole.reshape(shape)
    return np.ascontiguousarray(np.moveaxis(whole, -1, run))


def coded_shape(codes: Array, t: DType, axes: Axes) -> tuple[int, ...]:
    """The shape of the tensor whose sign and mantissa bits are `codes`."""
    run, lane = _split(t, axes)
    *others, length, lanes = np.shape(codes)
    shape = iter(others)
    found = [length if n == run else next(shape) for n in range(len(axes))]
    if lane is not None:
        found[lane] *= lanes
    return tuple(found)


# ---- checks


def check_parts(e: Encoded) -> None:
    """T0148 for parts of wrong types and shapes, a table that is no prefix code, and starts outside of the words.

    What it lets pass can be decoded without touching memory outside; that the words are those of the elements shows when
    they are decoded.
    """
    t, form = e.dtype, coded_form(e.dtype)
    lanes = form.lanes[1] if form.lanes else 1
    shape = np.shape(e.codes)
    raw = raw_type(form.element)
    if len(shape) != len(e.axes) + 1 or shape[-1] != lanes:
        wanted = f"{len(e.axes)} dimensions and one of {lanes} lanes"
        raise CompileError("T0148", f"`codes` has the shape {list(shape)}, but {t} has {wanted}",
                           helps="`tcc.dtypes.encode` makes all parts")  # fmt: skip
    if shape[-2] % form.run[1]:
        raise CompileError("T0147", f"runs of {form.run[1]} do not divide the {shape[-2]} elements along "
                           f"`{form.run[0]}`", helps="choose a divisor, or pad the tensor")  # fmt: skip
    expected: dict[str, tuple[tuple[int, ...] | None, str]] = {
        "words": (None, "uint16"),
        "start": ((*shape[:-2], shape[-2] // form.run[1]), "uint32"),
        "table": ((2**form.window,), "uint16"),
    }
    if set(e.parts) != set(expected):
        raise CompileError("T0148", f"{t} needs `words`, `start` and `table`, and gets "
                           f"{', '.join(f'`{n}`' for n in e.parts) or 'none'}", helps="pass every part")  # fmt: skip
    expected["codes"] = (shape, raw.name)
    for name, (exact, kind) in expected.items():
        part = np.asarray(e.codes if name == "codes" else e.parts[name])
        if (
            part.dtype.name != kind
            or (exact is not None and part.shape != exact)
            or (exact is None and part.ndim != 1)
        ):
            shown = "one dimension" if exact is None else f"the shape {list(exact)}"
            raise CompileError("T0148", f"`{name}` is {part.dtype} of shape {list(part.shape)}, not {kind} of {shown}",
                               helps="`tcc.dtypes.encode` makes all parts")  # fmt: skip
    codes, top = np.asarray(e.codes), 2 ** raw_bits(form.element)
    if codes.size and int(codes.max()) >= top:
        raise CompileError("T0148", f"`codes` has the value {codes.max()}, but a sign and a mantissa are less than {top}",
                           helps="`tcc.dtypes.encode` makes all parts")  # fmt: skip
    _check_table(np.asarray(e.parts["table"]), form)
    start, size = np.asarray(e.parts["start"]).ravel(), len(e.parts["words"]) - lanes
    bad = np.flatnonzero((start > max(size, 0)) | (np.diff(start.astype(np.int64), prepend=0) < 0))
    if size < 0 or len(bad):
        fact = (
            f"run {bad[0]} starts at word {start[bad[0]]} of {size}"
            if len(bad)
            else "`words` lacks the zeros at its end"
        )
        raise CompileError("T0148", f"the stream is damaged: {fact}", helps="encode the tensor again")  # fmt: skip


def _check_table(table: Array, form: Coded) -> None:
    """Every window starts with exactly one code: an entry of n bits stands at all windows that end on the same n bits."""
    symbol, length = table % LENGTH, (table // LENGTH).astype(np.int64)
    first = np.arange(len(table)) & ((1 << length) - 1)
    fits = (symbol < 2 ** float_form(form.element).exponent) & (length <= form.window)
    same = np.bincount(first[fits], minlength=len(table))[first] == (
        2**form.window >> np.minimum(length, 16)
    )
    bad = np.flatnonzero(~fits | (table[first] != table) | ~same)
    if len(bad):
        raise CompileError("T0148", f"`table` is no prefix code: no code is known for the bits {bad[0]:0{form.window}b}",
                           helps="encode the tensor again")  # fmt: skip


# ---- there and back


def encode_codes(codes: Array, t: DType, axes: Axes) -> Encoded:
    """A coded tensor of an element type's own codes (native floats as they are): every bit of them is kept."""
    from tcc.ir.dtype_scaled import Encoded, check_groups

    form = coded_form(t)
    element = float_form(form.element)
    bits = np.asarray(codes)
    kind = code_type(form.element)
    if bits.dtype != kind:
        bits = (
            bits.view(kind) if bits.dtype == form.element.numpy else same_bits(bits, form.element)
        )
    check_groups(t, axes, bits.shape)
    ordered = _in_order(bits, t, axes)
    field = 2**element.exponent - 1
    low = kind.type(2**element.mantissa - 1)
    sign = ordered >> kind.type(element.mantissa + element.exponent)
    raw = (sign << kind.type(element.mantissa) | (ordered & low)).astype(raw_type(form.element))
    symbols = (ordered >> kind.type(element.mantissa)).astype(np.int64) & field
    counts = np.bincount(symbols.ravel(), minlength=field + 1)
    lengths = code_lengths(counts, form.window)
    words, table = _canonical(lengths, form.window)
    if not lengths.any():  # one symbol, whose code has no bits
        table[:] = int(np.argmax(counts))
    lanes, run = ordered.shape[-1], form.run[1]
    blocks = symbols.reshape(-1, run, lanes)
    found, sizes = [], []
    step = max(1, _AT_ONCE // (run * lanes))
    for at in range(0, len(blocks), step):
        made, count = _words(blocks[at : at + step], lengths, words, form)
        found.append(made)
        sizes.append(count)
    stream = np.concatenate([*found, np.zeros(lanes, np.uint16)]).astype(np.uint16)
    size = np.concatenate([np.zeros(1, np.int64), *sizes])
    ends = np.cumsum(size)
    if ends[-1] >= 2**32:
        raise CompileError("T0148", f"{t} has room for 2^32 words, not for {ends[-1]}", helps="split the tensor")  # fmt: skip
    start = ends[:-1].astype(np.uint32).reshape(*ordered.shape[:-2], ordered.shape[-2] // run)
    parts = {"words": stream, "start": start, "table": table}
    return Encoded(t, axes, np.ascontiguousarray(raw), parts)


def _words(symbols: Array, lengths: Array, codes: Array, form: Coded) -> tuple[Array, Array]:
    """The words of some runs [run, step, lane] in the order in which lanes take them, and how many each run has."""
    count, steps, lanes = symbols.shape
    small = np.int32 if steps * MOST < 2**31 else np.int64
    length = lengths.astype(small)[symbols]
    before = (
        np.cumsum(length, axis=1, dtype=small) - length
    )  # bits of a lane that earlier steps used
    every = WORD // form.window
    # after it could take words at step t, a lane has taken enough for 16 bits: ceil(used / 16) + 1
    taken = np.repeat(-(-before[:, ::every] // WORD) + 1, every, axis=1)[:, :steps]
    most = int(taken.max(initial=0)) + 1
    lane = np.arange(count)[:, None, None] * lanes + np.arange(lanes)
    at = lane * most + before // WORD
    value = codes.astype(np.int32)[symbols] << before % WORD
    flat = np.bincount(at.ravel(), (value & 0xFFFF).ravel(), count * lanes * most + 1)
    flat += np.bincount(at.ravel() + 1, (value >> WORD).ravel(), count * lanes * most + 1)
    takes = np.diff(taken, axis=1, prepend=small(0)) > 0
    return flat.astype(np.uint16)[(lane * most + taken - 1)[takes]], takes.sum((1, 2))


def decode_codes(e: Encoded) -> Array:
    """The element type's own codes of a coded tensor, unsigned; T0148 where the stream is damaged."""
    t, form = e.dtype, coded_form(e.dtype)
    element = float_form(form.element)
    raw = np.asarray(e.codes)
    run, lanes = form.run[1], raw.shape[-1]
    words, table = (np.asarray(e.parts[n]).astype(np.int64) for n in ("words", "table"))
    start = np.asarray(e.parts["start"]).astype(np.int64).ravel()
    ends = np.append(start[1:], len(words) - lanes)
    symbols = np.empty((len(start), run, lanes), code_type(form.element))
    step = max(1, _AT_ONCE // (run * lanes))
    for at in range(0, len(start), step):
        part = slice(at, at + step)
        symbols[part], stopped = _symbols(words, table, start[part], run, lanes, form)
        bad = np.flatnonzero(stopped != ends[part])
        if len(bad):
            first = at + int(bad[0])
            raise CompileError("T0148", f"the stream is damaged: run {first} ends at word {stopped[bad[0]]}, not {ends[first]}",
                               helps="encode the tensor again")  # fmt: skip
    kind = code_type(form.element).type
    high = raw.astype(kind) >> kind(element.mantissa) << kind(element.mantissa + element.exponent)
    low = raw.astype(kind) & kind(2**element.mantissa - 1)
    return _back(high | symbols.reshape(raw.shape) << kind(element.mantissa) | low, t, e.axes)


def _symbols(
    words: Array, table: Array, start: Array, steps: int, lanes: int, form: Coded
) -> tuple[Array, Array]:
    """The symbols [run, step, lane] of the runs that start at these words, and the words at which they stop."""
    found = np.empty((len(start), steps, lanes), np.int64)
    bits, held = np.zeros((2, len(start), lanes), np.int64)
    at = start.copy()
    for t in range(steps):
        if t % (WORD // form.window) == 0:
            takes = held < WORD
            which = at[:, None] + np.cumsum(takes, axis=1) - 1
            word = words[np.minimum(which, len(words) - 1)]
            bits += np.where(takes, word << held, 0)
            held += np.where(takes, WORD, 0)
            at += takes.sum(1)
        entry = table[bits & (2**form.window - 1)]
        bits >>= entry // LENGTH
        held -= entry // LENGTH
        found[:, t] = entry % LENGTH
    return found, at


def encode_coded(values: Array, t: DType, axes: Axes) -> Encoded:
    """Values rounded into the element type, then coded."""
    return encode_codes(coded_form(t).element.store(np.asarray(values, np.float64)), t, axes)


def decode_coded(e: Encoded) -> Array:
    """The values: float64."""
    element = coded_form(e.dtype).element
    codes = decode_codes(e)
    return element.load(codes.view(element.numpy) if element.native else codes).astype(np.float64)
