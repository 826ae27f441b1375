"""Codes without gaps in C: `codeW(p, at)` reads the W bits of the element at a position, `set_codeW` writes them.

A packed buffer is an array of 32-bit words; the element at position p lies in word p·W/32, from bit p·W%32 on; elements of
3, 5, 6 and 7 bits in strings of bytes, 256 of them side by side. Packed inputs are bytes that may start anywhere:
`bitsW(p, at)` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tcc.backends.c._codes import computed, is_coded, word
from tcc.backends.c._scalar import typed
from tcc.backends.c._scope import C_TYPES, Scope, integer_text
from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Expr
from tcc.ir.mapping import Do
from tcc.ir.packed import BYTE, SIDE, string

WORD = 32  # bits


def packed_functions(used: Iterable[str]) -> list[str]:
    """The C text of the functions in use."""
    return [_CODE[f] for f in sorted(used) if f in _CODE]


def _code(bits: int) -> tuple[str, str]:
    per, mask = WORD // bits, 2**bits - 1
    shift = f"at % {per} * {bits}"
    return (
        f"static inline uint32_t code{bits}(const uint32_t *p, int64_t at) {{ "
        f"return p[at / {per}] >> {shift} & {mask}; }}",
        f"""static inline void set_code{bits}(uint32_t *p, int64_t at, uint32_t c) {{
  uint32_t *w = p + at / {per};
  *w = (*w & ~({mask}u << {shift})) | (c & {mask}) << {shift};
}}""",
    )


def _strings(bits: int) -> tuple[str, str]:
    (size, per), mask, side = string(bits), 2**bits - 1, math.prod(SIDE)
    start = f"at / {side * per} * {side * size} + at / {per} % {side} + b / 8 * {side}"
    return (
        f"""static inline uint32_t code{bits}(const uint32_t *p, int64_t at) {{
  const int64_t b = at % {per} * {bits};
  const uint8_t *s = (const uint8_t *)p + {start};
  return (s[0] >> b % 8 | (b % 8 > {8 - bits} ? s[{side}] << (8 - b % 8) : 0)) & {mask};
}}""",
        f"""static inline void set_code{bits}(uint32_t *p, int64_t at, uint32_t c) {{
  const int64_t b = at % {per} * {bits};
  uint8_t *s = (uint8_t *)p + {start};
  const unsigned high = 8 - b % 8;
  s[0] = (uint8_t)((s[0] & ~({mask}u << b % 8)) | (c & {mask}) << b % 8);
  if (high < {bits}) s[{side}] = (uint8_t)((s[{side}] & ~({mask}u >> high)) | (c & {mask}) >> high);
}}""",
    )


def _bits(bits: int) -> str:
    per, mask = BYTE // bits, 2**bits - 1
    return (
        f"static inline uint32_t bits{bits}(const uint8_t *p, int64_t at) {{ "
        f"return p[at / {per}] >> at % {per} * {bits} & {mask}; }}"
    )


_CODE = {
    name: text
    for bits, pair in [
        *((n, _code(n)) for n in (1, 2, 4, 8, 16)),
        *((n, _strings(n)) for n in (3, 5, 6, 7)),
    ]
    for name, text in zip((f"code{bits}", f"set_code{bits}"), pair, strict=True)
} | {f"bits{bits}": _bits(bits) for bits in (1, 2, 4)}


def read_packed(s: Scope, tensor: str, at: str) -> str:
    """The value of the element at a position."""
    place = s.storage[tensor]
    assert place.code is not None
    function = "code" if place.strides is None else "bits"  # from words, from bytes
    code = f"{s.use(f'{function}{place.packed}')}({place.pointer}, {at})"
    t = place.code
    if t.kind == "b":
        return code
    if t.kind == "i":
        unused = WORD - t.bits
        code = f"((int32_t)({code} << {unused}) >> {unused})"
    if not is_coded(t):
        return f"(({C_TYPES[t.name]}){code})"
    return f"{s.use(f'get_{word(t)}')}({code})"


def emit_pack(s: Scope, leaf: Do) -> None:
    """A leaf that fills a packed buffer, element by element."""
    from tcc.backends.c._leaves import open_loop

    d = leaf.einsum
    place = s.storage[d.target]
    assert place.code is not None
    opened = [open_loop(s, v) for v in d.free if s.intervals[v].step != 1]
    at = integer_text(s, s.address(Access(d.target, d.indices)))
    function = s.use(f"set_code{place.packed}")
    s.lines.add(f"{function}({place.pointer}, {at}, {_coded(s, d.body, place.code)});")
    for v, old in reversed(opened):
        s.lines.close()
        s.intervals[v] = old


def _coded(s: Scope, e: Expr, t: DType) -> str:
    """The code of a value; the code itself where it is read from a tensor of the same type."""
    if isinstance(e, Access) and not s.unsafe(e):
        source = s.storage[e.tensor]
        if s.tensor(e.tensor).dtype == t and source.code == (t if is_coded(t) else None):
            return f"{source.pointer}[{integer_text(s, s.address(e))}]"
    value = typed(s, e, computed(t))
    return f"{s.use(f'put_{word(t)}')}({value})" if is_coded(t) else value
