"""Integer products of 8 bits or fewer, and which definitions can run next to one, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcc.ir.cascade import Cascade, Definition, Einsum, targets
from tcc.ir.dtype import I32
from tcc.ir.expr import Access, Const, Expr, accesses, text, variables
from tcc.ir.infer import expression_dtype
from tcc.passes._algebra import factors, plain_variables, row_variables
from tcc.passes._whole import Whole, whole


@dataclass(frozen=True)
class Dot:
    """`target[…] = Σ rows · columns` over one variable, both whole numbers of at most 8 bits.

    What is stored of the columns is the value plus `offset`, so that it is unsigned; of the rows the value minus `shift`,
    so that it fits a signed byte. (q - s)·(w + o) = q·w + o·(q - s) - s·w.
    """

    d: Einsum
    rows: Whole
    columns: Whole
    row: str | None
    column: str
    deep: str

    @property
    def offset(self) -> int:
        return max(0, -self.columns.low)

    @property
    def shift(self) -> int:
        return 128 if self.rows.high > 127 else 0

    @property
    def bits(self) -> int:
        """Bits of a stored column value."""
        return max(1, (self.columns.high + self.offset).bit_length())


def dot_of(c: Cascade, d: Definition) -> Dot | None:
    """The integer product that a definition is, or None; nor is one where columns would be packed for a single row."""
    if not isinstance(d, Einsum) or len(d.reduced) != 1 or d.where:
        return None
    (deep,) = d.reduced
    if d.monoid(deep) != "sum" or expression_dtype(c, d.body) != I32:
        return None
    parts = [whole(c, f) for f in factors(d.body)]
    known = [p for p in parts if p is not None]
    plain = plain_variables(d)
    fixed = sum(isinstance(i, Const) for i in d.indices)
    if len(known) != len(parts) or len(set(plain)) + fixed != len(d.indices):
        return None
    found = [dot for v in reversed(plain) if (dot := _split(d, known, plain, v)) is not None]
    ahead = [dot for dot in found if constant(c, dot.columns.value)]
    many = (
        dot for dot in found if dot.row is not None and not c.same_size(c.extent(dot.row), Const(1))
    )
    return next(iter([*ahead, *many]), None)


def _split(d: Einsum, parts: list[Whole], plain: list[str], column: str) -> Dot | None:
    """The product with these columns, if its operands fit in bytes."""
    second = [w for w in parts if column in variables(w.value)]
    first = [w for w in parts if column not in variables(w.value)]
    if len(first) != 1 or len(second) != 1:
        return None
    (rows,), (columns,), (deep,) = first, second, d.reduced
    if not all(deep in variables(w.value) and accesses(w.value) for w in (rows, columns)):
        return None
    if rows.low < (0 if rows.high > 127 else -128) or rows.high > 255:
        return None
    if columns.high - min(0, columns.low) > 255:
        return None
    mine = [v for v in plain if v in variables(rows.value)]
    row = next((v for v in reversed(mine) if v not in variables(columns.value)), None)
    return Dot(d, rows, columns, row, column, deep)


def constant(c: Cascade, e: Expr) -> bool:
    """Whether a value is known ahead: it is made of constant inputs alone."""
    ahead = {t.name for t in c.inputs if t.constant}
    read = accesses(e)
    return bool(read) and all(a.tensor in ahead for a in read)


@dataclass(frozen=True)
class DotGroup:
    """`before`;  D = Σ_j rows · columns;  `after`: [Y = Σ_g f(D, …)], then element by element.

    `inner` are the variables of the product that what follows adds up, `rows` those that all of it shares.
    """

    dot: Dot
    before: tuple[Einsum, ...]
    after: tuple[Einsum, ...]
    inner: tuple[str, ...]
    rows: tuple[str, ...]


def dot_group(c: Cascade, members: Sequence[Einsum]) -> DotGroup | None:
    """The parts of a group with one integer product; None where what follows the product cannot run next to it."""
    found = [dot for d in members if (dot := dot_of(c, d)) is not None]
    if len(found) != 1:
        return None
    (dot,) = found
    late = {dot.d.target}
    before: list[Einsum] = []
    after: list[Einsum] = []
    for d in members:
        if d is dot.d:
            continue
        if any(a.tensor in late for a in d.reads):
            late.add(d.target)
            after.append(d)
        else:
            before.append(d)
    inner = [v for v in dot.d.free if any(v in d.reduced for d in after)]
    rows = row_variables([*after, *([] if inner else [dot.d])])
    if dot.column not in rows or (dot.row is not None and dot.row not in rows):
        return None
    if not set(dot.d.free) <= {*rows, *inner}:
        return None
    if not all(_follows(c, d, dot, inner, rows) for d in after):
        return None
    if any(a.tensor in late - {dot.d.target} for d in after if d.reduced for a in d.reads):
        return None  # it would need a sum that is complete
    after.sort(key=lambda d: not d.reduced)
    return DotGroup(dot, tuple(before), tuple(after), tuple(inner), tuple(rows))


def _follows(c: Cascade, d: Einsum, dot: Dot, inner: list[str], rows: list[str]) -> bool:
    """Whether a definition runs over the tile of the product: it adds up the product's inner variables, or nothing."""
    direct = any(a.tensor == dot.d.target for a in d.reads)
    if set(d.reduced) != (set(inner) if direct else set()) or set(d.free) != set(rows):
        return False
    if any(d.monoid(v) != "sum" for v in d.reduced) or (d.reduced and d.where):
        return False
    own = text(Access(dot.d.target, dot.d.indices))
    if any(text(a) != own for a in d.reads if a.tensor == dot.d.target):
        return False
    names = plain_variables(d)
    return len(c.defining(d.target)) == 1 and dot.column in names


def products_late(c: Cascade) -> Cascade:
    """Integer products stand right before the first definition that reads them, behind all else that this one reads."""
    order = list(c.definitions)
    for d in c.definitions:
        if dot_of(c, d) is None:
            continue
        at = next(n for n, x in enumerate(order) if x is d)
        reader = next(
            (
                n
                for n, x in enumerate(order)
                if n > at and any(a.tensor in targets(d) for a in x.reads)
            ),
            at + 1,
        )
        order.insert(reader - 1, order.pop(at))
    return c.with_definitions(tuple(order))
