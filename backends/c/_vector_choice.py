"""Values of a vector loop that are chosen: one of two by a branch, one of sixteen by a code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tcc.backends.c._codes import is_coded
from tcc.backends.c._scalar import scalar
from tcc.backends.c._scope import Scope, Storage
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import F32, I32, DType
from tcc.ir.expr import Access, Call, Cast, Expr, accesses, text, variables, walk

if TYPE_CHECKING:
    from tcc.backends.c._vector import Vector

CODES = 16  # of a table that is a vector


def branches(v: Vector, e: Call) -> bool:
    """Whether all lanes choose alike between values of which some are read."""
    condition, *arms = e.args
    return v.lane not in variables(condition) and any(
        v.lane in variables(a) for arm in arms for a in accesses(arm)
    )


def branch(v: Vector, e: Call, t: DType) -> str:
    """The name of what is chosen: nothing else is read and computed."""
    lines, name = v.s.lines, v.s.names.fresh("v")
    lines.add(f"{v.type(t)} {name};")
    v.s.use(v.type(t))
    lines.open(f"if ({scalar(v.s, e.args[0])}) {{")
    for n, arm in enumerate(e.args[1:]):
        known = dict(v.memo)
        lines.add(f"{name} = {v.value(arm, t)};")
        v.memo.clear()
        v.memo.update(known)
        lines.close("}" if n else "} else {")
        lines.depth += 1 - n
    return name


def looked_up(v: Vector, e: Expr) -> str | None:
    """A function of one packed integer of at most 4 bits, by a table in a register; None for anything else."""
    if v.lanes != CODES or isinstance(e, Access):
        return None
    reads = {text(a): a for a in accesses(e)}
    if len(reads) != 1 or not unpacks(v.s.storage[next(iter(reads.values())).tensor]):
        return None
    from tcc.backends.c._decode import evaluate, functions

    (a,) = reads.values()
    code = v.s.storage[a.tensor].code
    if code is None or [text(x) for x in functions(v.s, e, a)] != [text(e)]:
        return None
    values = np.resize(np.asarray(evaluate(v.s, e, code), np.float32), CODES).tolist()
    vector = v.type(F32)
    shown = f"({vector}){{{', '.join(f'{x!r}f' for x in values)}}}"
    if v.hoisted is not None:
        key = f"table {text(a)} {shown}"
        shown = v.hoisted.add(v.s, key, f"{a.tensor}_values", f"const {vector} ", shown)
    v.s.functions |= {vector, v.type(I32)}
    return f"{v.s.use(f'look_{vector}')}({shown}, {v.value(a, I32)})"


def unpacks(place: Storage) -> bool:
    """Whether elements are integers of at most 4 bits in the bytes of rows."""
    whole = place.code is not None and place.code.is_integer
    return whole and place.strides is not None and 0 < place.packed <= 4


def unpacked(s: Scope, d: Einsum) -> bool:
    """Whether a definition decodes such elements, and nothing else."""
    places = [s.storage[a.tensor] for a in d.reads]
    casts = [n.dtype for n in walk(d.body, *d.where) if isinstance(n, Cast)]
    other = any(p.code is not None and not unpacks(p) for p in places) or any(map(is_coded, casts))
    return any(map(unpacks, places)) and not other and s.storage[d.target].code is None
