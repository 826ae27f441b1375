"""Integers of at most 16 bits in vector loops: widened to 32 bits where they are loaded, cut where they are stored."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tcc.backends.c._codes import is_coded, stored_type
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import DTYPES
from tcc.ir.expr import Access, Cast, Expr
from tcc.ir.packed import BYTE

if TYPE_CHECKING:
    from tcc.backends.c._scope import Scope

WORD = 32  # bits
_STORED = {"int8_t": "i8", "uint8_t": "u8", "int16_t": "i16", "uint16_t": "u16"}


def narrow(s: Scope, tensor: str) -> str | None:
    """What a tensor of such integers is stored as (`i8 u8 i16 u16`), where an element is its stored value; of packed
    inputs, `i4` and the like."""
    place = s.storage[tensor]
    t = place.code or place.dtype
    if not t.is_integer or t.bits > 16 or (place.packed and place.layout is not None):
        return None
    return f"{t.kind}{place.packed}" if place.packed else _STORED.get(place.element)


def widened(s: Scope, e: Expr) -> bool:
    """Whether an expression converts a narrow element to 32 bits, or is one that is read so."""
    if isinstance(e, Cast) and e.dtype.name in ("i32", "f32"):
        e = e.arg
    return isinstance(e, Access) and narrow(s, e.tensor) is not None


def cut(s: Scope, d: Einsum) -> Expr | None:
    """What a definition stores in a narrow tensor, before it is cut to its bits; None where that is anything else."""
    t = s.storage[d.target].code or s.storage[d.target].dtype
    plain = not is_coded(t)  # others keep fewer bits than their bytes have
    if narrow(s, d.target) is None or d.reduced or not plain:
        return None
    if isinstance(d.body, Cast) and d.body.dtype == t:
        inner = d.body.arg
        return inner if s.dtype(inner) in (DTYPES["f32"], DTYPES["i32"]) else None
    if isinstance(d.body, Access) and s.storage[d.body.tensor].element == stored_type(t):
        return d.body
    return None


def narrow_functions(used: set[str]) -> list[str]:
    """The C text of the loads and stores in use: `ld_i8_i32x8`, `ldn_…`, `st_…`, `stn_…`."""
    found = {m.groups() for f in used if (m := re.fullmatch(r"(?:ldn?|stn?)_([iu]8|[iu]16)_i32x(\d+)", f))}  # fmt: skip
    out = _packed_functions(used)
    for t, lanes in sorted(found):
        c = {v: k for k, v in _STORED.items()}[t]
        mine = {f for f in used if f.endswith(f"_{t}_i32x{lanes}")}
        widen = _WIDEN.get(lanes, "").replace("$whole", _LOW if t[1:] == "8" else "v")
        widen = widen.replace("$c", "char" if t[1:] == "8" else "short").replace("$l", "b" if t[1:] == "8" else "w")  # fmt: skip
        widen = widen.replace("$o", "s" if t[0] == "i" else "z")
        text = _TEXT.replace("$widen", widen).replace("$t", t).replace("$C", c).replace("$N", lanes)
        text = text.replace("$B", str(int(lanes) * int(t[1:]) // 8)).replace("$E", str(int(t[1:]) // 8))  # fmt: skip
        blocks = text.split("\n\n")
        names = [f"{n}_{t}_i32x{lanes}" for n in ("ld", "ldn", "st", "stn")]
        out.append("\n".join([blocks[0], *(b for n, b in zip(names, blocks[1:]) if n in mine)]))
    return out


_TEXT = """typedef $C $tx$N __attribute__((vector_size($B)));
static inline i32x$N wide_$tx$N($tx$N v) {
$widen  return __builtin_convertvector(v, i32x$N);
}

static inline i32x$N ld_$t_i32x$N(const void *p) {
  $tx$N v;
  memcpy(&v, p, $B);
  return wide_$tx$N(v);
}

static inline i32x$N ldn_$t_i32x$N(const void *p, int64_t n) {
  $tx$N v = {0};
  memcpy(&v, p, (size_t)(n < $N ? n : $N) * $E);
  return wide_$tx$N(v);
}

static inline void st_$t_i32x$N(void *p, i32x$N v) {
  const $tx$N c = __builtin_convertvector(v, $tx$N);
  memcpy(p, &c, $B);
}

static inline void stn_$t_i32x$N(void *p, i32x$N v, int64_t n) {
  const $tx$N c = __builtin_convertvector(v, $tx$N);
  memcpy(p, &c, (size_t)(n < $N ? n : $N) * $E);
}"""

# gcc 12 widens element by element
_WIDEN = {
    "8": """#if defined(__AVX2__) && !defined(__clang__)
  typedef $c wide_bytes __attribute__((vector_size(16)));
  return (i32x8)__builtin_ia32_pmov$ox$ld256((wide_bytes)$whole);
#endif
""",
    "16": """#if defined(__AVX512F__) && !defined(__clang__)
  typedef $c wide_bytes __attribute__((vector_size($B)));
  return (i32x16)__builtin_ia32_pmov$ox$ld512_mask((wide_bytes)v, (i32x16){0}, -1);
#endif
""",
}
_LOW = "(long long __attribute__((vector_size(16)))){(long long)v, 0}"  # 8 bytes, in a register


def _packed_functions(used: set[str]) -> list[str]:
    """The loads in use of lanes that lie in bytes without gaps: `ld_u4_i32x8(p, at)`, `ldn_…(p, at, n)`."""
    out = []
    names = (re.fullmatch(r"(ldn?)_([iu])([124])_i32x(\d+)", f) for f in sorted(used))
    for whole, kind, *numbers in (m.groups() for m in names if m):
        bits, lanes = map(int, numbers)
        vector, per = f"i32x{lanes}", BYTE // bits
        words = ", ".join(f"w >> {n * bits // WORD * WORD}" for n in range(lanes))
        fields = {
            "$name": f"{whole}_{kind}{bits}_{vector}", "$v": vector, "$bits": str(bits), "$last": str(per - 1),
            "$log": str(per.bit_length() - 1),
            "$mask": str(2**bits - 1), "$bytes": str(lanes // per), "$lanes": str(lanes),
            "$sign": f" << {WORD - bits} >> {WORD - bits}" if kind == "i" else "",
            "$counted": ", int64_t n" if whole == "ldn" else "", "$count": "n" if whole == "ldn" else str(lanes),
            "$words": f"({vector})(w - (words){{0}})" if lanes * bits <= WORD else f"({vector}){{{words}}}",
            "$size": str(4 * lanes),
            "$shifts": ", ".join(str(n * bits % WORD) for n in range(lanes)),
            "$n": str(max(8, lanes * bits)),
            "$places": ", ".join(f"{n * bits + 8 * byte}" for n in range(lanes) for byte in range(4)),
        }  # fmt: skip
        text = _PACKED if whole == "ld" else _PACKED.replace(_QUICK, "")
        if lanes * bits == 2 * WORD and lanes * 4 == 64:  # bits of 64, to 64 bytes
            text = text.replace(_SHIFT, _SPREAD)
        for field, value in fields.items():
            text = text.replace(field, value)
        out.append(text)
    return out


_SHIFT = """    v = $words >> ($v){$shifts} & $mask;
"""
_SPREAD = (
    """#if defined(__AVX512VBMI__) && __has_builtin(__builtin_ia32_vpmultishiftqb512_mask)
    typedef char bytes __attribute__((vector_size(64)));
    typedef uint64_t all __attribute__((vector_size(64)));
    v = ($v)__builtin_ia32_vpmultishiftqb512_mask((bytes){$places}, (bytes)(w - (all){0}), (bytes){0}, -1) & $mask;
#else
"""
    + _SHIFT
    + """#endif
"""
)
_QUICK = (
    """  if ((at & $last) == 0) {
    typedef uint$n_t words __attribute__((vector_size($size)));
    uint$n_t w = 0;
    memcpy(&w, p + (at >> $log), $bytes);
"""
    + _SHIFT
    + """    return v$sign;
  }
"""
)
_PACKED = (
    """static inline $v $name(const uint8_t *p, int64_t at$counted) {
  $v v = {0};
"""
    + _QUICK
    + """  for (int l = 0; l < $lanes; l++)
    if (l < $count) v[l] = p[(at + l) >> $log] >> (at + l & $last) * $bits & $mask;
  return v$sign;
}"""
)
