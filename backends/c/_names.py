"""C identifiers for names of the program: recognisable, unique, and never a word of the language or of this backend."""

from __future__ import annotations

import re
from collections.abc import Iterable

_RESERVED = {
    "auto",
    "break",
    "case",
    "char",
    "const",
    "continue",
    "default",
    "do",
    "double",
    "else",
    "enum",
    "extern",
    "float",
    "for",
    "goto",
    "if",
    "inline",
    "int",
    "long",
    "register",
    "restrict",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "switch",
    "typedef",
    "union",
    "unsigned",
    "void",
    "volatile",
    "while",
    "asm",
    "typeof",
    "main",
    "exp",
    "log",
    "sin",
    "cos",
    "tan",
    "pow",
    "sqrt",
    "floor",
    "ceil",
    "round",
    "trunc",
    "abs",
    "min",
    "max",
    "y0",
    "y1",
    "yn",
    "j0",
    "j1",
    "jn",
    "gamma",
    "signal",
    "time",
    "index",
    "f32",
    "f64",
    "i32",
    "i64",
    "u8",
    "i8",
    "i16",
    "u16",
    "u32",
    "u64",
    "linux",
    "grain",
    "few",
    "enough",
    "used",
    "total",
    "stopped",
    "errno",
    "assert",
    "memcpy",
    "memset",
    "memmove",
    "memcmp",
    "strlen",
    "INFINITY",
    "NAN",
    "HUGE_VAL",
    "fabs",
    "fma",
    "exp2",
    "expm1",
    "log2",
    "log10",
    "log1p",
    "cbrt",
    "hypot",
    "erf",
    "erfc",
    "tanh",
    "sinh",
    "cosh",
    "asin",
    "acos",
    "atan",
    "atan2",
    "fmod",
    "remainder",
    "fmin",
    "fmax",
    "nearbyint",
    "rint",
    "lrint",
    "tgamma",
    "lgamma",
    "isnan",
    "isinf",
    "isfinite",
    "signbit",
    "nan",
    "div",
    "ldexp",
    "frexp",
    "modf",
    "logb",
    "ilogb",
    "scalbn",
    "copysign",
    "bool",
    "_Bool",
    "unix",
    "NULL",
    "EOF",
    "PIN",
    "odd_float",
    "task",
    "tasks",
    "local",
    "scratch",
    "arena",
    "n",
    "p",
}


class Names:
    """Hands out identifiers; the same object never gives one out twice."""

    def __init__(self) -> None:
        self._taken = set(_RESERVED)
        self._known: dict[tuple[str, str], str] = {}

    def reserve(self, words: Iterable[str]) -> None:
        """Words that are never given out."""
        self._taken |= set(words)

    def of(self, kind: str, name: str) -> str:
        """The identifier of a tensor, rank or kernel: always the same for the same name."""
        key = (kind, name)
        if key not in self._known:
            self._known[key] = self.fresh(name)
        return self._known[key]

    def fresh(self, wish: str) -> str:
        """An unused identifier close to `wish`."""
        base = re.sub(r"\W", "_", wish, flags=re.ASCII)
        if not base or not base[0].isalpha():
            base = f"t_{base.strip('_')}"
        if re.match(r"[fiu]\d+x\d+|(omp|tcc|get|put|wide|narrow|rnd)_", base):
            base = f"t_{base}"  # no suffix makes these the program's own
        out, n = base, 1
        while out in self._taken or re.search(
            r"_[fiu](8|16|32|64)(x\d+)?(_u)?$|_t$|_scratch$", out
        ):
            n += 1
            out = f"{base}{'_' if base[-1].isdigit() else ''}{n}"
        self._taken.add(out)
        return out
