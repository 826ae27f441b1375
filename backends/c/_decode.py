"""How codes become values in registers: by a table in vector registers, by arithmetic on bits, or by a table in memory.

A vector of 32-bit words holds the code of each lane in its lowest bits; what lies above them may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcc.backends.c._codes import word
from tcc.backends.c._packed import WORD
from tcc.backends.c._scope import Scope
from tcc.ir.dtype import DType, Float
from tcc.ir.dtype_codes import shifts_to_f32, table
from tcc.ir.expr import Access, Call, Cast, Const, Expr, accesses, text
from tcc.ir.ops import OPS

REGISTER = 4  # bits of a code whose table fits in registers
EXACT = ("add", "sub", "mul", "neg", "div")  # NumPy computes them as C does


@dataclass
class Decoder:
    """What a leaf needs of one packed operand: names for the values that its expression is made of."""

    access: Access
    bits: int  # of a code in memory
    values: list[tuple[Expr, tuple[float, ...]]] = field(
        default_factory=list
    )  # functions of the code, by tables
    names: list[tuple[str, ...]] = field(default_factory=list)  # of their tables

    def together(self, lanes: int) -> int:
        """Codes that tables of 16 entries tell apart without a shift between them."""
        return REGISTER // self.bits if self.values and lanes == 16 and self.bits < REGISTER else 1

    def declare(self, s: Scope, lanes: int, together: int) -> None:
        """The tables, before the leaf's loops; one for each of the codes that are decoded together."""
        self.names = []
        for _, values in self.values:
            name = s.names.fresh(f"{self.access.tensor}_values")
            if len(values) > 2**REGISTER:
                self.names.append((name,))
                s.lines.add(static_table(name, values))
                continue
            names = [name, *(s.names.fresh(name) for _ in range(1, together))]
            self.names.append(tuple(names))
            ld = s.use(f"ld_f32x{lanes}")
            for part, name in enumerate(names):
                moved = [values[(i >> part * self.bits) % len(values)] for i in range(len(values))]
                s.lines.add(static_table(f"{name}_", moved))
                high = f", {name}h = {ld}({name}_ + 8)" * (lanes == 8 and self.bits == REGISTER)
                s.lines.add(f"const f32x{lanes} {name} = {ld}({name}_){high};")

    def lanes(self, s: Scope, lanes: int, words: str, memo: dict[str, str], part: int = 0) -> None:
        """Prints the values of the codes in `words`, and puts their names into `memo`, by the text of what they are;
        `part` is the number of the code, where several are decoded together."""
        for (e, values), names in zip(self.values, self.names, strict=True):
            t, name = f"f32x{lanes}", names[part]
            if len(values) > 2**REGISTER:
                shown = f"{s.use(f'gather_{t}')}({name}, {words} & {len(values) - 1})"
            elif lanes == 8 and self.bits == REGISTER:
                shown = f"{s.use('look16_f32x8')}({name}, {name}h, {words})"
            else:
                shown = f"{s.use(f'look_{t}')}({name}, {words})"
            memo[text(e)] = self._named(s, t, shown)
        if not self.values:
            code = s.storage[self.access.tensor].code
            assert code is not None
            t, shown = self._arithmetic(s, code, lanes, words)
            memo[text(self.access)] = self._named(s, t, shown)

    def _named(self, s: Scope, t: str, shown: str) -> str:
        name = s.names.fresh("v")
        s.lines.add(f"const {s.use(t)} {name} = {shown};")
        return name

    def _arithmetic(self, s: Scope, t: DType, lanes: int, words: str) -> tuple[str, str]:
        unused = WORD - t.bits
        if t.kind == "b":
            return f"i32x{lanes}", f"-({words} & 1)"
        if t.kind == "i":
            return f"i32x{lanes}", f"({words} << {unused}) >> {unused}"
        if t.kind == "u":
            return f"i32x{lanes}", f"{words} & {2**t.bits - 1}"
        if t.name == "bf16":
            return f"f32x{lanes}", f"(f32x{lanes})({words} << 16)"
        s.functions |= {f"f32x{lanes}", f"i32x{lanes}"}
        return f"f32x{lanes}", f"{s.use(f'{word(t)}_lanes{lanes}')}({words})"


def decoder(s: Scope, a: Access, body: Expr) -> Decoder | None:
    """The cheapest way to decode an operand of a leaf: None where only single elements can be."""
    place = s.storage[a.tensor]
    t = place.code
    assert t is not None
    found = Decoder(a, place.packed)
    if place.packed <= REGISTER:
        size = 2 ** max(3, place.packed) if s.vector_bytes == 32 else 2**REGISTER
        for e in functions(s, body, a):
            values = np.asarray(evaluate(s, e, t), np.float32)
            found.values.append((e, tuple(np.resize(values, size).tolist())))
        if found.values:
            return found
    if (
        t.kind == "b"
        or (t.is_integer and t.compute.bits <= 32)
        or t.name == "bf16"
        or shifts_to_f32(t)
    ):
        return found
    if t.is_float and t.compute.name == "f32" and t.bits <= 8:
        found.values.append((a, tuple(np.resize(table(t), 2**place.packed).tolist())))
        return found
    return None


def functions(s: Scope, e: Expr, a: Access) -> Iterator[Expr]:
    """The largest parts of an expression that are f32 and depend on one code alone; none where some read is in no such
    part."""
    found: dict[str, Expr] = {}

    def visit(n: Expr) -> bool:
        reads = {text(x) for x in accesses(n)}
        if text(a) not in reads:
            return True
        if reads == {text(a)} and s.dtype(n).name == "f32" and _pure(s, n):
            found[text(n)] = n
            return True
        if isinstance(n, Call):
            found_all = [visit(x) for x in n.args]  # every one, to find all parts
            return all(found_all)
        return isinstance(n, Cast) and visit(n.arg)

    return iter(found.values() if visit(e) else ())


def _pure(s: Scope, e: Expr) -> bool:
    """Whether an expression consists of reads, numbers and operators that NumPy computes as C does."""
    if isinstance(e, Cast):
        return e.dtype.name in ("f32", "i32") and s.dtype(e.arg).name != "f64" and _pure(s, e.arg)
    if isinstance(e, Call):
        kind = s.dtype(e)
        allowed = e.op in EXACT and (kind.name == "f32" or (kind.name == "i32" and e.op != "div"))
        return allowed and all(_pure(s, x) for x in e.args)
    return isinstance(e, Access | Const)


def evaluate(s: Scope, e: Expr, t: DType) -> Any:
    """The values of an expression in one read, for all codes of its type: every operation rounded as C does."""
    if isinstance(e, Const):
        return e.value
    if isinstance(e, Access):
        return all_values(t)
    with np.errstate(all="ignore"):
        if isinstance(e, Cast):
            value = np.asarray(evaluate(s, e.arg, t))
            whole = e.dtype.is_integer and value.dtype.kind == "f"
            return (np.trunc(np.nan_to_num(value)) if whole else value).astype(e.dtype.numpy)
        assert isinstance(e, Call)
        kind = s.dtype(e).numpy
        args = [np.asarray(evaluate(s, x, t)).astype(kind) for x in e.args]
        return np.asarray(OPS[e.op].evaluate(*args)).astype(kind)


def all_values(t: DType) -> Any:
    """The value of every code of a type, as it is computed with."""
    codes = np.arange(2**t.bits)
    if t.kind == "b":
        return codes != 0
    if t.is_integer:
        signed = t.kind == "i"
        return (codes - (codes >= 2 ** (t.bits - 1)) * signed * 2**t.bits).astype(t.compute.numpy)
    return np.asarray(table(t)).astype(np.float32)


def static_table(name: str, values: Sequence[float]) -> str:
    """The C text of a table of floats."""
    return f"static const float {name}[{len(values)}] = {{{', '.join(map(_number, values))}}};"


def _number(v: float) -> str:
    if np.isnan(v):
        return "NAN"
    if np.isinf(v):
        return "INFINITY" if v > 0 else "-INFINITY"
    shown = str(np.float32(v))
    return shown if shown.endswith(".0") and len(shown) < 6 else f"{shown}f"


def decode_functions(used: Iterable[str], types: Iterable[DType]) -> list[str]:
    """The C text of the functions in use; `types` are those that may be decoded by arithmetic."""
    names = {word(t): t for t in types}
    out = [_LOOK[f] for f in sorted(used) if f in _LOOK]
    for f in sorted(used):
        m = re.fullmatch(r"(\w+)_lanes(\d+)", f)
        if m and m[1] in names:
            out.append(_by_arithmetic(names[m[1]], int(m[2])))
    return out


def _by_arithmetic(t: DType, lanes: int) -> str:
    form = t.form if isinstance(t.form, Float) else Float(5, 10, 15)
    size = 2 ** (t.bits - 1) - 1  # all bits but the sign
    top = (2**form.exponent - 1) << form.mantissa  # the largest exponent
    odd = {
        "ieee": f"(c > {top - 1}) & 0x7f800000",
        "fn": f"(c == {size}) & 0x7fc00000",
        "fnuz": "((c == 0) & (sign != 0)) & 0x7fc00000",
    }.get(form.specials)
    special = f"\n  v |= {odd};" if odd else ""
    return f"""static inline f32x{lanes} {word(t)}_lanes{lanes}(i32x{lanes} c) {{
  const i32x{lanes} sign = (c << {WORD - t.bits}) & INT32_MIN;
  c &= {size};
  i32x{lanes} v = (i32x{lanes})((f32x{lanes})(c << {23 - form.mantissa}) * 0x1p{127 - form.bias}f);  /* subnormals as well */{special}
  return (f32x{lanes})(v | sign);
}}"""


_LOOK = {
    "look_f32x16": """static inline f32x16 look_f32x16(f32x16 t, i32x16 c) {  /* t[c % 16] */
#if defined(__AVX512F__) && __has_builtin(__builtin_ia32_permvarsf512)
  return __builtin_ia32_permvarsf512(t, c);
#elif defined(__AVX512F__)
  return __builtin_ia32_permvarsf512_mask(t, c, t, (uint16_t)-1);
#else
  f32x16 v;
  for (int i = 0; i < 16; i++) v[i] = t[c[i] & 15];
  return v;
#endif
}""",
    "look_f32x8": """static inline f32x8 look_f32x8(f32x8 t, i32x8 c) {  /* t[c % 8] */
#if defined(__AVX2__)
  return __builtin_ia32_permvarsf256(t, c);
#else
  f32x8 v;
  for (int i = 0; i < 8; i++) v[i] = t[c[i] & 7];
  return v;
#endif
}""",
    "look16_f32x8": """static inline f32x8 look16_f32x8(f32x8 low, f32x8 high, i32x8 c) {  /* [low, high][c % 16] */
#if defined(__AVX2__)
  const f32x8 a = __builtin_ia32_permvarsf256(low, c), b = __builtin_ia32_permvarsf256(high, c);
  return __builtin_ia32_blendvps256(a, b, (f32x8)(c << 28));
#else
  f32x8 v;
  for (int i = 0; i < 8; i++) v[i] = (c[i] & 8 ? high : low)[c[i] & 7];
  return v;
#endif
}""",
}
