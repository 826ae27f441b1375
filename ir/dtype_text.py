"""The spelling of element types: one reader for programs and for Python; what a type prints, it reads back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from tcc.ir.diagnostics import CompileError, Span, did_you_mean
from tcc.ir.dtype import DTYPES, Coded, DType, Float, Posit, Scaled, Table
from tcc.ir.dtype_coded import MOST
from tcc.ir.dtype_codes import float_form

# a type with brackets or dots is one word of the grammar; brackets nest up to three deep
_INSIDE = r"(?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*"
_ROUNDING = r"(?:\.(?:nearest|zero|stochastic\d*|sat)\b)"
_CLAUSE = r"(?:group|scale|zero|offset|table|vector|residual|coded)\s+[\w-]"
TOKEN = (
    rf"codebook\[[^\[\]]*\]{_ROUNDING}*(?:\[\s*(?={_CLAUSE}){_INSIDE}\])?"
    rf"|[a-z]\w*{_ROUNDING}*\[\s*(?={_CLAUSE}){_INSIDE}\]|[a-z]\w*{_ROUNDING}+"
)
# 16 quantiles of the normal distribution, scaled to [-1, 1]. Source: QLoRA (Dettmers et al., 2023), appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
EXAMPLES = ("u3", "i5", "bf16", "tf32", "f8e4m3fn", "f8e5m2", "f6e3m2", "f4e2m1", "e8m0", "posit8_0",
            "pow2_4", "nf4", "codebook[-1, 0, 1]", "i4[group k 128, scale f16]")  # fmt: skip
_NAMES = ("bf16", "tf32", "nf4", "f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f6e3m2", "f6e2m3", "f4e2m1",
          "e8m0", "posit8_0", "posit16_1")  # fmt: skip


def dtype(spelling: str, span: Span | None = None) -> DType:
    """The type that a spelling names; T0121, T0146 or T0147 where there is none.

    >>> dtype("f6e3m2").compute.name, dtype(" i4 [scale f16,group k 128]").name
    ('f32', 'i4[group k 128, scale f16]')
    """
    if spelling in DTYPES:
        return DTYPES[spelling]
    try:
        return _dtype(spelling)
    except CompileError as error:
        if span is None:
            raise
        raise CompileError(
            error.diagnostic.code, error.diagnostic.message, span, helps=error.diagnostic.helps
        ) from None


def is_dtype(name: str) -> bool:
    """Whether a word of a program is meant as a type: it has the form of one, although its numbers may not fit."""
    return (
        name in DTYPES
        or re.fullmatch(TOKEN, name) is not None
        or any(re.fullmatch(pattern, name) for pattern, _ in _PATTERNS)
    )


@lru_cache(maxsize=256)
def _dtype(spelling: str) -> DType:
    return _Reader(spelling).read()


class _Reader:
    """A recursive-descent parser over words, numbers and marks."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = re.findall(r"[A-Za-z]\w*|[-+]?[\d.]+(?:[eE][-+]?\d+)?|\S", text)
        self.at = 0

    def read(self) -> DType:
        made = self.type()
        if self.at < len(self.tokens):
            raise self.wrong(f"unexpected `{self.tokens[self.at]}`")
        return made

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else ""

    def accept(self, token: str) -> bool:
        if self.peek() == token:
            self.at += 1
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self.wrong(f"expected `{token}`, not `{self.peek() or 'the end'}`")

    def wrong(self, what: str) -> CompileError:
        return CompileError("T0147", f"in the dtype `{self.text}`: {what}",
                            helps="as in `i4[group k 128, scale f16, zero u4]`; see `docs/language.md`")  # fmt: skip

    def type(self) -> DType:
        name = self.next()
        made = self.codebook() if name == "codebook" else simple(name)
        while self.accept("."):
            made = _rounded(made, self.next())
        if self.accept("["):
            return self.coded(made) if self.accept("coded") else self.scaled(made)
        return made

    def coded(self, element: DType) -> DType:
        """What stands behind `coded`."""
        run = (self.rank(), self.integer(1))
        lanes: tuple[str, int] | None = None
        window = max(8, _exponent_bits(element, self.wrong))
        while self.accept(","):
            word = self.next()
            if word == "lanes" and lanes is None:
                lanes = (self.rank(), self.integer(2))
            elif word == "window":
                window = self.integer(1)
            else:
                raise self.wrong(
                    f"unexpected `{word or 'the end'}`: it may have `lanes` and a `window`"
                )
        self.expect("]")
        if window > MOST:
            raise self.wrong(f"codes have at most {MOST} bits, not {window}")
        if lanes is not None and lanes[0] == run[0]:
            raise self.wrong(f"runs and lanes lie along the same rank `{run[0]}`")
        made = Coded(element, run, lanes, window)
        return DType(coded_name(made), "f", element.bits, made)

    def codebook(self) -> DType:
        self.expect("[")
        values = [self.number()]
        while self.accept(","):
            values.append(self.number())
        self.expect("]")
        if not 2 <= len(values) <= 2**16:
            raise CompileError("T0146", f"a codebook of {len(values)} value{'s' * (len(values) != 1)} codes nothing",
                               helps="list 2 to 65536 values")  # fmt: skip
        shown = ", ".join(f"{v:.17g}" if float(f"{v:g}") != v else f"{v:g}" for v in values)
        bits = (len(values) - 1).bit_length()
        return DType(f"codebook[{shown}]", "f", bits, Table(tuple(values)))

    def number(self) -> float:
        token = self.next()
        try:
            return float(token)
        except ValueError:
            raise self.wrong(f"`{token or 'the end'}` is no number") from None

    def integer(self, least: int) -> int:
        token = self.next()
        if not token.isdigit() or int(token) < least:
            raise self.wrong(f"`{token or 'the end'}` is no integer from {least}")
        return int(token)

    def rank(self) -> str:
        token = self.next()
        if not re.fullmatch(r"[A-Za-z_]\w*", token):
            raise self.wrong(f"`{token or 'the end'}` is no rank")
        return token.lower()

    def scaled(self, element: DType) -> DType:
        groups: list[tuple[str, int | None]] = []
        made = Scaled(element)
        seen: set[str] = set()
        while True:
            word = self.next()
            if word in seen and word != "group":
                raise self.wrong(f"`{word}` is given twice")
            seen.add(word)
            if word == "group":
                rank = self.rank()
                if rank in dict(groups):
                    raise self.wrong(f"rank `{rank}` is grouped twice")
                groups.append((rank, self.integer(1) if self.peek().isdigit() else None))
            elif word == "vector":
                made = replace(made, vector=(self.rank(), self.integer(2)))
            elif word == "residual":
                made = replace(made, residual=self.integer(2))
            elif word == "zero" and re.fullmatch(r"[-+]?\d+", self.peek()):
                made = replace(made, zero=int(self.next()))
            elif word == "scale":
                made = replace(made, scale=self.type())
            elif word == "zero":
                made = replace(made, zero=self.type())
            elif word == "offset":
                made = replace(made, offset=self.type())
            elif word == "table":
                made = replace(made, table=self.type())
            else:
                known = ["group", "scale", "zero", "offset", "table", "vector", "residual", "coded"]
                raise CompileError("T0147", f"in the dtype `{self.text}`: unknown clause `{word}`",
                                   helps=did_you_mean(word, known) or f"one of {', '.join(known)}")  # fmt: skip
            if not self.accept(","):
                break
        self.expect("]")
        made = replace(made, groups=tuple(groups))
        _check_scaled(made, self.wrong)
        return DType(scaled_name(made), "f", element.bits, made)


def _check_scaled(form: Scaled, wrong: Callable[[str], CompileError]) -> None:
    element = form.element
    if element.in_parts or element.kind == "b":
        raise wrong(f"elements can not be {element}")
    if (form.vector or form.residual > 1) and form.table is None:
        raise wrong("`vector` and `residual` need a `table`")
    if form.table is not None and (element.kind != "u" or element.bits > 16):
        raise wrong(f"a table is indexed by u1 to u16, not by {element}")
    for what, part in (("table", form.table), ("offset", form.offset), ("zero", form.zero)):
        if isinstance(part, DType) and (part.kind == "b" or part.in_parts):
            raise wrong(f"`{what}` can not be {part}")
    if form.scale is not None and (form.scale.kind == "b" or isinstance(form.scale.form, Coded)):
        raise wrong(f"`scale` can not be {form.scale}")
    if form.scale is form.table is form.offset is form.zero is None:
        raise wrong("it has neither a scale nor an offset, zero or table")
    inner = form.scale.form if form.scale is not None else None
    if isinstance(inner, Scaled):
        if inner.table is not None:
            raise wrong("scales come from no table of their own")
        sizes = dict(form.groups)
        for k, n in inner.groups:
            if n is not None and (sizes.get(k, 1) is None or n % (sizes.get(k) or 1)):
                raise wrong(f"scales of {sizes.get(k)} along `{k}` do not fill groups of {n}")


def _exponent_bits(t: DType, wrong: Callable[[str], CompileError]) -> int:
    if t.kind != "f" or not (t.native or isinstance(t.form, Float)) or t.rounding == "stochastic":
        raise wrong(f"{t} has no exponents that could be coded")
    form = float_form(t)
    if t.bits == form.exponent:
        raise wrong(f"{t} has nothing but an exponent")
    return form.exponent


def coded_name(form: Coded) -> str:
    """The spelling of a coded type."""
    lanes = f", lanes {form.lanes[0]} {form.lanes[1]}" if form.lanes else ""
    usual = max(8, float_form(form.element).exponent)
    window = f", window {form.window}" if form.window != usual else ""
    return f"{form.element}[coded {form.run[0]} {form.run[1]}{lanes}{window}]"


def scaled_name(form: Scaled) -> str:
    """The spelling of a scaled type."""
    parts = [f"vector {form.vector[0]} {form.vector[1]}"] if form.vector else []
    parts += [f"table {form.table}"] if form.table is not None else []
    parts += [f"residual {form.residual}"] if form.residual > 1 else []
    parts += [f"group {k}" + (f" {n}" if n is not None else "") for k, n in form.groups]
    for word, part in (("scale", form.scale), ("zero", form.zero), ("offset", form.offset)):
        parts += [f"{word} {part}"] if part is not None else []
    return f"{form.element}[{', '.join(parts)}]"


def _rounded(t: DType, word: str) -> DType:
    found = re.fullmatch(r"(nearest|zero|sat|stochastic)(\d*)", word)
    if found is None or (found[2] and found[1] != "stochastic") or t.kind == "b":
        raise CompileError("T0146", f"`{t}` has no rounding `{word}`",
                           helps="one of `.nearest`, `.zero`, `.stochastic7` (with a seed), and `.sat`")  # fmt: skip
    if found[1] == "sat":
        made = replace(t, saturate=True)
    else:
        if t.rounding:
            raise CompileError("T0146", f"`{t}` has a rounding already", helps="give it one")
        seed = int(found[2] or 0)
        if seed >= 2**64:
            raise CompileError(
                "T0146", f"the seed {seed} needs more than 64 bits", helps="choose a smaller one"
            )
        made = replace(t, rounding=found[1], seed=seed)
    base = t.name
    for suffix in (".sat", f".{t.rounding}", f".stochastic{t.seed}"):
        base = base.removesuffix(suffix)
    rounding = f".stochastic{made.seed}" if made.rounding == "stochastic" else f".{made.rounding}"
    return replace(made, name=base + rounding * bool(made.rounding) + ".sat" * made.saturate)


# ---- simple types


def simple(name: str) -> DType:
    """A type without brackets; T0121 for what has no such form, T0146 for numbers that do not fit."""
    if name in DTYPES:
        return DTYPES[name]
    for pattern, make in _PATTERNS:
        found = re.fullmatch(pattern, name)
        if found:
            return make(name, found)
    listed = f"known: {', '.join(DTYPES)}, and such as {', '.join(EXAMPLES)}"
    close = did_you_mean(name, [*DTYPES, *_NAMES])
    raise CompileError("T0121", f"unknown dtype `{name}`", helps=(*close, listed))


def _integer(name: str, m: re.Match[str]) -> DType:
    bits = int(m[2])
    if not 1 <= bits <= 64:
        raise _unfit(name, f"an integer has 1 to 64 bits, not {bits}")
    return DTYPES.get(f"{m[1]}{bits}") or DType(f"{m[1]}{bits}", m[1], bits)


def _float(name: str, m: re.Match[str]) -> DType:
    bits, exponent, mantissa = (int(m[i]) for i in (1, 2, 3))
    bias = int(m[4]) if m[4] else 2 ** (exponent - 1) - (m[5] != "fnuz") if exponent else 0
    usual = "ieee" if bits >= 8 else "all"
    specials = m[5] or usual
    if not 3 <= bits <= 16:
        raise _unfit(
            name,
            f"such a float has 3 to 16 bits, not {bits}",
            "beside them there are f32, f64, tf32",
        )
    if 1 + exponent + mantissa != bits:
        raise _unfit(name, f"a sign, {exponent} bits of exponent and {mantissa} of mantissa are "
                     f"{1 + exponent + mantissa} bits, not {bits}")  # fmt: skip
    if not 1 <= exponent <= 10:
        raise _unfit(name, f"an exponent has 1 to 10 bits, not {exponent}")
    if specials == "ieee" and (mantissa == 0 or exponent == 1):
        raise _unfit(name, "inf and NaN need a mantissa, and a second bit of exponent",
                     f"`{name.removesuffix('ieee')}fn` or `{name.removesuffix('ieee')}all` has room")  # fmt: skip
    least, most = 1 - bias - mantissa, 2**exponent - 1 - bias
    if least < -1074 or most > 1022:
        raise _unfit(name, f"with a bias of {bias} its values reach from 2^{least} to 2^{most}",
                     "f64 has to hold every value: choose another bias")  # fmt: skip
    if (exponent, mantissa, specials) == (5, 10, "ieee") and bias == 15:
        return DTYPES["f16"]
    if (exponent, mantissa, specials) == (8, 7, "ieee") and bias == 127:
        return DType("bf16", "f", 16, Float(8, 7, 127))
    shown = f"f{bits}e{exponent}m{mantissa}"
    if bias != 2 ** (exponent - 1) - (specials != "fnuz"):
        shown += f"b{bias}"
    shown += specials if specials != usual else ""
    return DType(shown, "f", bits, Float(exponent, mantissa, bias, specials))


def _power(name: str, m: re.Match[str]) -> DType:
    bits = int(m[1])
    if not 2 <= bits <= 10:
        raise _unfit(name, f"an exponent has 2 to 10 bits, not {bits}")
    form = Float(bits, 0, 2 ** (bits - 1) - 1, "fn", signed=False, subnormal=False)
    return DType(name, "f", bits, form)


def _signed_power(name: str, m: re.Match[str]) -> DType:
    bits = int(m[1])
    if not 2 <= bits <= 11:
        raise _unfit(name, f"signed powers of two have 2 to 11 bits, not {bits}")
    return DType(name, "f", bits, Float(bits - 1, 0, 2 ** (bits - 1) - 1, "all"))


def _posit(name: str, m: re.Match[str]) -> DType:
    bits, exponent = int(m[1]), int(m[2])
    if not 3 <= bits <= 16:
        raise _unfit(name, f"a posit has 3 to 16 bits, not {bits}")
    if (bits - 1) * 2**exponent > 1022:
        raise _unfit(name, f"its largest value is 2^{(bits - 2) * 2**exponent}, more than f64 holds",
                     "choose a smaller exponent")  # fmt: skip
    return DType(name, "f", bits, Posit(exponent))


def _unfit(name: str, fact: str, advice: str = "") -> CompileError:
    return CompileError("T0146", f"there is no `{name}`: {fact}",
                        helps=advice or f"as in {', '.join(EXAMPLES[:6])}")  # fmt: skip


_PATTERNS: tuple[tuple[str, Callable[[str, re.Match[str]], DType]], ...] = (
    (r"([iu])(\d+)", _integer),
    (r"f(\d+)e(\d+)m(\d+)(?:b(\d+))?(ieee|fnuz|fn|all)?", _float),
    (r"e(\d+)m0", _power),
    (r"pow2_(\d+)", _signed_power),
    (r"posit(\d+)_(\d+)", _posit),
    (r"bf16", lambda name, m: DType("bf16", "f", 16, Float(8, 7, 127))),
    (r"tf32", lambda name, m: DType("tf32", "f", 19, Float(8, 10, 127))),
    (r"nf4", lambda name, m: DType("nf4", "f", 4, Table(NF4))),
)
