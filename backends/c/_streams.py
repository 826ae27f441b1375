"""Rows that come from memory and go there: stores past the caches, and the next row fetched ahead."""

from __future__ import annotations

from collections.abc import Sequence

from tcc.backends.c._scope import LINE, Interval, Scope, integer_text, plus
from tcc.backends.c._vector import Vector
from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Call, Const, Expr, Var, call, variables, walk
from tcc.ir.index import poly
from tcc.ir.ops import OPS

STREAM_BYTES = 1 << 24  # a larger output does not stay in the caches until somebody reads it
NEAR_ROW = 1 << 16  # points of a row; what is fetched from a longer one is gone when it is needed


def streaming(s: Scope, d: Einsum, e: Vector) -> bool:
    """Whether a definition's stores may go past the caches: a whole result, written once, lane by lane, unread."""
    if d.target not in s.written or id(d) in s.updates or d.reduced:
        return False
    t = s.storage[d.target].dtype
    step = e.step(Access(d.target, d.indices))
    if t.kind != "f" or s.coded(d) or step is None or step.constant != 1:
        return False
    size = poly(_size(s, d.target)).constant
    return size is None or size * t.itemsize > STREAM_BYTES


def _size(s: Scope, tensor: str) -> Expr:
    total: Expr = Const(1)
    for extent in s.tensor(tensor).shape:
        total = call("mul", total, s.signature.resolved(extent))
    return total


def stream_test(s: Scope, d: Einsum, e: Vector) -> str:
    """C text: the output is larger than the caches, and its row starts at a whole vector."""
    size = _size(s, d.target)
    place = e.place(Access(d.target, d.indices))
    aligned = f"(uintptr_t)({place}) % {s.vector_bytes} == 0"
    if poly(size).constant is not None:
        return aligned
    least = STREAM_BYTES // s.storage[d.target].dtype.itemsize
    return f"{integer_text(s, size)} > {least} && {aligned}"


def computes(definitions: Sequence[Einsum]) -> bool:
    """Whether a walk evaluates a function such as exp: then arithmetic is what it waits for, else memory."""
    return any(
        isinstance(n, Call) and (OPS[n.op].derivative is not None or n.op == "pow")
        for d in definitions
        for n in walk(d.body)
    )


def next_rows(s: Scope, ahead: Sequence[Access], e: Vector) -> list[str]:
    """C addresses, at the loop's counter, of what `ahead` reads in the next row."""
    if s.row is None:
        return []
    old = s.intervals[s.row]
    s.intervals[s.row] = Interval(plus(old.low, Const(1)), old.high, 1, False)
    found = []
    for a in ahead:
        step = e.step(a)
        if step is not None and step.constant == 1 and not s.unsafe(a):
            found.append(e.place(a))
    s.intervals[s.row] = old
    return list(dict.fromkeys(found))


def fetch(s: Scope, places: Sequence[str], length: str, size: int) -> None:
    """Prefetches `size` bytes at each place into the second level: the first holds the row at hand."""
    if not places:
        return
    s.lines.open(f"if ({length} <= {NEAR_ROW}) {{")
    for place in places:
        for at in range(0, size, LINE):
            s.lines.add(f"__builtin_prefetch((const char *)({place}) + {at}, 0, 2);")
    s.lines.close()


def read_by_row(s: Scope, definitions: Sequence[Einsum], lane: str) -> list[Access]:
    """What a walk reads in place from inputs, a row of its own for each point of the scope's row variable."""
    found = []
    for d in definitions:
        for a in d.reads:
            plain = any(isinstance(i, Var) and i.name == s.row for i in a.indices)
            inside = a.tensor in s.storage and s.storage[a.tensor].strides is not None
            if plain and inside and lane in variables(a) and a.tensor not in s.written:
                found.append(a)
    return found
