"""`preamble(names, lanes)` is the C text that defines the named vector functions and all they need.

A function is named by what it does and the type it does it to: `exp_f32x8`, `ldn_f64x4`, and
`exp_f32` for one element. A bare name (`exp`) stands for the function on `f32` and `f64` vectors
of `lanes` 32-bit lanes and on scalars. Types are GNU vectors (`f32x4 f32x8 f32x16`, `f64x2 f64x4
f64x8`, the same for `i32`, `i64`), so `+ - * / & | ^ << < ==` are C's own operators; a comparison
gives a mask of the integer type (all ones: true), which `select` takes.

    ld st (p, v)          load, store, any alignment      ldn stn (.., n)   the first n lanes only
    nt (p, v)             store past the caches; p is a multiple of the vector's bytes
    bc (s)                broadcast                       iota ()           0, 1, 2 ...
    transpose (rows)      as many rows as lanes
    select (mask, a, b)   firstn (n): mask of the first n lanes     any all (mask) -> int
    min max               NaN in either operand is the result, as in NumPy and PyTorch
    round                 to nearest, ties to even; sign(NaN) = NaN
    over (x, d)           x / s for d = divisor_of (s), where s stays the same
    hsum hprod hmin hmax  across the lanes, as a tree     gather (p, index)
    lt le gt ge eq ne     masks, also for scalars (-1 or 0)
    ldb stb ldbn stbn     u8 booleans <-> masks, on i32 and i64 types
    cvt_TO_FROM (v)       same number of lanes; float to integer truncates
    cvtlo_f64x4_f32x8, cvthi_..., cvt2_f32x8_f64x4 (low, high)      twice the width, half the lanes

No <immintrin.h> and no -ffast-math. f64 functions call libm for each lane.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from string import Template
from typing import Final

from tcc.backends.c import _vector_text as text
from tcc.backends.c._division_text import DIVISION, DIVISOR_TYPE
from tcc.backends.c._popcount_text import POPCOUNT, SCALAR_POPCOUNT
from tcc.backends.c._stream_text import STREAM
from tcc.backends.c._transpose_text import SECOND, SHUFFLE, TRANSPOSE
from tcc.backends.c._wide_text import WIDE
from tcc.ir.diagnostics import CompileError, did_you_mean

# Largest error in units in the last place of f32 results; `tests/test_vector_math.py` measures it.
ULP: Final[dict[str, float]] = {
    "exp": 1.5,
    "exp2": 1.5,
    "log": 1.5,
    "log2": 2.0,
    "log1p": 2.0,
    "expm1": 2.0,
    "tanh": 2.0,
    "sigmoid": 3.0,  # three roundings, in a quotient just under a power of two
    "erf": 2.0,
    "sin": 2.0,
    "cos": 2.0,
    "sqrt": 0.5,
    "rsqrt": 1.5,
    "pow": 1.0,
}

_LIBM = ("exp", "exp2", "log", "log2", "log1p", "expm1", "tanh", "erf", "sin", "cos")
_BYTES = {"f32": 4, "f64": 8, "i32": 4, "i64": 8, "u8": 1}
_MASK = {"f32": "i32", "f64": "i64", "i32": "i32", "i64": "i64"}
_KINDS = ("i32", "i64", "f32", "f64")
_VECTOR_BYTES = (16, 32, 64)
# gcc 12 makes `__builtin_convertvector` of these two by halves.
_NATIVE_CONVERT = {
    "f64x4_f32x4": ("__AVX__", "__builtin_ia32_cvtps2pd256(v)"),
    "f32x4_f64x4": ("__AVX__", "__builtin_ia32_cvtpd2ps256(v)"),
    "f64x8_f32x8": ("__AVX512F__", "__builtin_ia32_cvtps2pd512_mask(v, (f64x8){0}, 255, 4)"),
    "f32x8_f64x8": ("__AVX512F__", "__builtin_ia32_cvtpd2ps512_mask(v, (f32x8){0}, 255, 4)"),
}
_WORD = re.compile(r"[A-Za-z_]\w*")


def preamble(names: Iterable[str], lanes32: int) -> str:
    """C text with the functions `names` and what they need, in one fixed order."""
    if lanes32 not in (4, 8, 16):
        raise CompileError(
            "T0325",
            f"vectors of {lanes32} 32-bit lanes are not known",
            helps="choose 4, 8 or 16 lanes",
        )
    library = _library()
    wanted: set[str] = set()
    pending = [full for name in names for full in _expand(name, lanes32, library)]
    while pending:
        name = pending.pop()
        if name in wanted:
            continue
        wanted.add(name)
        pending += [word for word in _WORD.findall(library[name]) if word in library]
    return (
        text.HEADER + SHUFFLE + "".join(library[name] + "\n" for name in library if name in wanted)
    )


def functions() -> tuple[str, ...]:
    """Every full name that `preamble` knows."""
    return tuple(_library())


def _expand(name: str, lanes32: int, library: dict[str, str]) -> list[str]:
    if name in library:
        return [name]
    kinds = [f"{kind}x{lanes32 * 4 // _BYTES[kind]}" for kind in _KINDS] + list(_KINDS)
    found = [f"{name}_{kind}" for kind in kinds if f"{name}_{kind}" in library]
    if found:
        return found
    raise CompileError(
        "T0325",
        f"there is no vector function `{name}`",
        helps=did_you_mean(name, list(library)) or "see the list in `backends/c/vector_math.py`",
    )


@cache
def _library() -> dict[str, str]:
    """Full name to C text; what a text uses stands before it."""
    return dict(_entries())


def _entries() -> Iterator[tuple[str, str]]:
    yield from _types()
    for kind in _KINDS:
        yield from _scalar(kind)
    for size in _VECTOR_BYTES:
        for kind in _KINDS:
            yield from _lane_access(kind, size)
    for size in _VECTOR_BYTES:
        yield from _conversions(size)
        for kind in _KINDS:
            yield from _arithmetic(kind, size)


def _types() -> Iterator[tuple[str, str]]:
    for kind in ("i32", "i64"):
        yield f"u{kind}", f"typedef u{'int32_t' if kind == 'i32' else 'int64_t'} u{kind};"
    for kind in ("u8", *_KINDS):
        for lanes in (2, 4, 8, 16):
            size = lanes * _BYTES[kind]
            if size > 64:
                continue
            values = {"E": kind, "T": f"{kind}x{lanes}", "B": size, "A": _BYTES[kind]}
            yield f"{kind}x{lanes}", Template(text.VECTOR_TYPE).substitute(values)
            yield f"{kind}x{lanes}_u", Template(text.UNALIGNED_TYPE).substitute(values)


def _values(kind: str, lanes: int) -> dict[str, object]:
    """What the `$` names of the templates stand for."""
    double, size = kind == "f64", _BYTES[kind] * lanes
    suffix = f"x{lanes}" if lanes > 1 else ""
    wide = _BYTES[kind] == 8
    return {
        "T": kind + suffix,
        "I": _MASK[kind] + suffix,
        "E": kind,
        "N": lanes,
        "B": size,
        "X": f"f32x{size // 4}",
        "J": f"i32x{size // 4}",
        "H": f"{kind}x{lanes // 2}",
        "D": f"f64x{lanes // 2}" if lanes > 1 else "f64",
        "L": "" if double else "f",  # libm's suffix
        "K": "pd" if wide else "ps",  # x86's suffix
        "P": "q" if wide else "d",
        "Q": "di" if wide else "si",
        "Z": "long long" if wide else "int",
        "M": "uint8_t" if lanes <= 8 else "uint16_t",  # x86's lane mask
        "V": f"{'f64' if wide else 'f32'}{suffix}",
        "C": "double" if wide else "float",
        "splat": ", ".join(["s"] * lanes),
        "roundoff": "0x1p-53" if double else "0x1p-24",
        "count": ", ".join(str(i) for i in range(lanes)),
        "second": ", ".join(str(i) for i in (*range(0, lanes, 2), *range(lanes + 1, 2 * lanes, 2))),
        "magnitude": "INT64_MAX" if wide else "INT32_MAX",
    }


def _define(templates: dict[str, str], values: dict[str, object]) -> Iterator[tuple[str, str]]:
    for name, template in templates.items():
        body = Template(template).substitute(values, name=name)
        yield f"{name}_{values['T']}", _own(body, int(str(values["B"])))


def _own(body: str, size: int) -> str:
    """Keeps the branches of `#if $B == ...` that concern this size; adds `static inline`."""
    lines: list[str] = []
    keep, open_if, depth = True, False, 0
    for line in body.split("\n"):
        test = re.match(r"#(if|elif) (?:(\d+) == (\d+) && )?(.*)", line)
        if test:
            depth = depth if test[1] == "elif" else 1
            keep = test[2] is None or test[2] == test[3]
            if keep:
                lines.append(f"#{'elif' if open_if else 'if'} {test[4]}")
                open_if = True
        elif line in ("#else", "#endif") and depth:
            keep = True
            if open_if:
                lines.append(line)
            if line == "#endif":
                open_if, depth = False, 0
        elif keep:
            lines.append(line)
    return "static inline " + "\n".join(lines)


def _scalar(kind: str) -> Iterator[tuple[str, str]]:
    values = _values(kind, 1)
    yield from _define(text.SCALAR, values)
    if kind in ("i32", "i64"):
        yield from _define(text.SCALAR_INT | text.INT | SCALAR_POPCOUNT | text.NUMBER, values)
        return
    yield from _define(text.SCALAR_FLOAT | text.FLOAT | text.NUMBER, values)
    yield from _define({"pow": text.LIBM_POW}, values)
    if kind == "f64":
        yield from _define(dict.fromkeys(_LIBM, text.LIBM), values)
        yield from _define({"sigmoid": text.SIGMOID_F64}, values)
        return
    for name in ("sin", "cos"):
        libm = f"static inline f32 {name}libm_f32(f32 x) {{ return {name}f(x); }}"
        yield f"{name}libm_f32", libm
    yield "quarterturn_f64", "static inline " + Template(text.QUARTER_TURNS).substitute(values)
    yield "quarter_f32", "static inline " + text.QUARTER_SCALAR
    yield from _define(text.FLOAT32, values)


def _lane_access(kind: str, size: int) -> Iterator[tuple[str, str]]:
    """Memory, masks and comparison: what needs nothing but the type and its mask."""
    values = _values(kind, size // _BYTES[kind])
    yield from _define(text.VECTOR | STREAM | SECOND, values)
    if (lanes := size // _BYTES[kind]) in TRANSPOSE:
        yield from _define({"transpose": TRANSPOSE[lanes]}, values)
    if kind in ("i32", "i64"):
        halves = size == 64
        yield from _define(text.VECTOR_INT, values)
        yield from _define({"any": text.ANY_BY_HALVES if halves else text.ANY}, values)


def _arithmetic(kind: str, size: int) -> Iterator[tuple[str, str]]:
    values = _values(kind, size // _BYTES[kind])
    if kind in ("i32", "i64"):
        yield from _define(text.INT | POPCOUNT | text.NUMBER, values)
    else:
        yield from _define(text.VECTOR_FLOAT | text.FLOAT | text.NUMBER, values)
        yield f"divisor_{values['T']}", Template(DIVISOR_TYPE).substitute(values)
        yield from _division(values)
        yield from _mathematics(kind, values)
    yield from _folds(kind, size, values)


def _mathematics(kind: str, values: dict[str, object]) -> Iterator[tuple[str, str]]:
    yield from _define({"pow": text.LANES2}, values)
    if kind == "f64":
        yield from _define(dict.fromkeys((*_LIBM, "sigmoid"), text.LANES), values)
        return
    for name, body in _define(dict.fromkeys(("sinlibm", "coslibm"), text.LANES), values):
        yield name, body.replace("static inline", "static __attribute__((noinline, cold, unused))")
    turns = Template(text.QUARTER_TURNS).substitute(values)
    yield f"quarterturn_{values['D']}", "static inline " + turns
    yield from _define({"quarter": text.QUARTER_VECTOR}, values)
    yield from _define(text.FLOAT32 | (WIDE if values["B"] == 64 else {}), values)


def _division(values: dict[str, object]) -> Iterator[tuple[str, str]]:
    for name, body in _define(DIVISION, values):
        yield name.replace("divisor_", "divisor_of_"), body


def _folds(kind: str, size: int, values: dict[str, object]) -> Iterator[tuple[str, str]]:
    for name in ("sum", "prod", "max", "min"):
        halves = _combine(name, f"{kind}x{size // _BYTES[kind] // 2}", "a", "b")
        template = text.FOLD_BY_HALVES if size > 16 else text.FOLD
        lanes = [f"v[{i}]" for i in range(size // _BYTES[kind])]
        while len(lanes) > 1:
            half = len(lanes) // 2
            pairs = zip(lanes[:half], lanes[half:], strict=True)
            lanes = [_combine(name, kind, a, b) for a, b in pairs]
        body = Template(template).substitute(values, name=name, half=halves, op01=lanes[0])
        yield f"h{name}_{values['T']}", "static inline " + body


def _combine(name: str, kind: str, a: str, b: str) -> str:
    if name in ("sum", "prod"):
        return f"({a} {'+' if name == 'sum' else '*'} {b})"
    return f"{name}_{kind}({a}, {b})"


def _conversions(size: int) -> Iterator[tuple[str, str]]:
    """`cvt_TO_FROM` between equal lane counts, and one vector to two of twice the width."""
    for kind in _KINDS:
        lanes = size // _BYTES[kind]
        values = _values(kind, lanes)
        for to in _KINDS:
            if to == kind or _BYTES[to] * lanes > 64 or (_BYTES[to] * lanes < 16):
                continue
            target = f"{to}x{lanes}"
            body = Template(text.CONVERT).substitute(values, to=target)
            pair = f"{target}_{values['T']}"
            if pair in _NATIVE_CONVERT:
                macro, native = _NATIVE_CONVERT[pair]
                head, plain = body.split("{", 1)[0], body[body.index("{") + 2 : -2]
                guard = f"#if defined({macro}) && !defined(__clang__)"
                body = f"{head}{{\n{guard}\n  return {native};\n#else\n  {plain}\n#endif\n}}"
            yield f"cvt_{pair}", "static inline " + body
    for narrow, wide in (("f32", "f64"), ("i32", "i64")):
        values = _values(narrow, size // 4)
        to = f"{wide}x{size // 8}"
        forms = {"cvtlo": text.CONVERT_LOW, "cvthi": text.CONVERT_HIGH, "cvt2": text.CONVERT_TWO}
        for name, template in forms.items():
            pair = f"{values['T']}_{to}" if name == "cvt2" else f"{to}_{values['T']}"
            half = f"{narrow}x{size // 8}"
            into, back = _convert(to, half), _convert(half, to)
            body = Template(template).substitute(
                values, to=to, half=into("a"), low=back("low"), high=back("high")
            )
            yield f"{name}_{pair}", "static inline " + body


def _convert(to: str, source: str) -> Callable[[str], str]:
    """How C text converts a value of type `source`; vectors of 8 bytes have no function of ours."""
    if f"{to}_{source}" in _NATIVE_CONVERT:
        return lambda value: f"cvt_{to}_{source}({value})"
    return lambda value: f"__builtin_convertvector({value}, {to})"
