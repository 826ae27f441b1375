"""Codes of small floats as lanes of a vector: whole words are loaded and widened, and decoded in registers.

`ldof_u4_nf4_x16(p, at)` reads sixteen packed codes of four bits, `ldof_u8_f6e3m2_x8(p)` eight that have bytes of their own;
`ldnof_…` reads as many as are left. A table of up to 16 values is one permutation of registers, the exponent and mantissa of
a float are shifted to where f32 has them; of other types each lane reads its own code, which is faster than to take lanes apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from tcc.backends.c._codes import HALVES, word
from tcc.backends.c._decode import REGISTER, static_table
from tcc.backends.c._scope import Scope
from tcc.ir.dtype import DType
from tcc.ir.dtype_codes import shifts_to_f32, table

LANES = (8, 16)


def lanes_of_codes(s: Scope, tensor: str, lanes: int) -> str | None:
    """How the codes of a tensor are stored that vectors of lanes can decode (`u4` if packed, `u8`, `u16`); else None."""
    place = s.storage[tensor]
    t = place.code
    if t is None or not t.is_float or t.name in HALVES or place.layout is not None:
        return None
    if lanes not in LANES or t.compute.name != "f32" or not (_in_registers(t) or shifts_to_f32(t)):
        return None  # fmt: skip
    return f"u{place.packed}" if place.packed else f"u{8 * t.itemsize}"


def load_codes(s: Scope, tensor: str, name: str, lanes: int) -> str | None:
    """The function `ld` or `ldn` of such a tensor, with all that it calls; None for another."""
    stored, t = lanes_of_codes(s, tensor, lanes), s.storage[tensor].code
    if stored is None or t is None:
        return None
    vector = f"f32x{lanes}"
    s.functions |= {f"{name}_{stored}_i32x{lanes}", vector, f"i32x{lanes}"}
    if _in_registers(t):
        whole = lanes == 8 and t.bits == REGISTER
        s.functions |= {"look16_f32x8" if whole else f"look_{vector}", f"ld_{vector}"}
    else:
        s.functions.add(f"{word(t)}_lanes{lanes}")
    return s.use(f"{name}of_{stored}_{word(t)}_x{lanes}")


def _in_registers(t: DType) -> bool:
    return t.bits <= REGISTER


def code_lane_functions(used: Iterable[str], types: Iterable[DType]) -> list[str]:
    """The C text of the loads in use."""
    names = {word(t): t for t in types if t.is_float and t.form is not None and not t.in_parts}
    out = []
    for f in sorted(used):
        m = re.fullmatch(r"(ldn?)of_(u\d+)_(\w+)_x(\d+)", f)
        if m and m[3] in names:
            out.append(_load(f, m[1], m[2], names[m[3]], int(m[4])))
    return out


def _load(f: str, name: str, stored: str, t: DType, lanes: int) -> str:
    packed = int(stored[1:]) < 8
    takes = "const uint8_t *p, int64_t at" if packed else "const void *p"
    given = "p, at" if packed else "p"
    if name == "ldn":
        takes, given = f"{takes}, int64_t n", f"{given}, n"
    v = f"f32x{lanes}"
    if _in_registers(t):
        size = max(lanes, 2**REGISTER if t.bits == REGISTER else 8)
        values = np.resize(table(t), size)
        if lanes == 8 and t.bits == REGISTER:
            shown = f"look16_{v}(ld_{v}(values), ld_{v}(values + 8), c)"
        else:
            shown = f"look_{v}(ld_{v}(values), c)"
        declared = f"  {static_table('values', values.tolist())}\n"
    else:
        declared, shown = "", f"{word(t)}_lanes{lanes}(c)"
    return f"""static inline {v} {f}({takes}) {{
{declared}  const i32x{lanes} c = {name}_{stored}_i32x{lanes}({given});
  return {shown};
}}"""
