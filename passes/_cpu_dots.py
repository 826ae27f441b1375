"""Integer products of 8 bits or fewer on a CPU: both operands side by side along what is reduced, four at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Cascade, Definition, Einsum, Reduction
from tcc.ir.dtype import DTYPES, I32, DType
from tcc.ir.dtype_text import dtype as parse_dtype
from tcc.ir.expr import Access, Cast, Const, Expr, Var, call, text, transform, variables
from tcc.ir.index import poly
from tcc.ir.infer import expression_dtype
from tcc.ir.layout import Digit, Layout, row_major
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node
from tcc.ir.packed import string
from tcc.passes._algebra import plain_variables
from tcc.passes._cpu_group import GroupKernel
from tcc.passes._cpu_vectors import strided
from tcc.passes._dots import Dot, DotGroup, constant, dot_group, dot_of

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper

ROWS = 8  # of a register tile
PANEL = 64  # columns that lie side by side
DEPTH = 1024  # products that are added up before the next tile of rows
BLOCK = 48  # rows of a task
STEP = 4  # products that one instruction adds up
WHOLE = 8 * STEP  # the longest step of a kernel: of single bits


def dots_kernels(m: Mapper, name: str, members: list[Einsum]) -> bool:
    """The kernels of a group with one integer product and what follows it. What does not depend on the product becomes a
    kernel before it. False, and nothing is made, for other groups."""
    g = dot_group(m.c, members)
    if g is None or (g.inner and m.in_memory(g.dot.d.target)):
        return False
    if any(len(plain_variables(d)) < len(d.indices) and not m.in_memory(d.target) for d in g.after):
        return False
    _Dots(m, name, g).build()
    return True


class _Dots:
    def __init__(self, m: Mapper, name: str, g: DotGroup) -> None:
        self.m, self.name, self.dot = m, name, g.dot
        self.before, self.after = list(g.before), list(g.after)
        self.inner, self.rows = g.inner, g.rows
        self.locals: dict[str, Buffer] = {}

    def size(self, v: str) -> int | None:
        return poly(self.m.c.resolved(self.m.c.extent(v))).constant

    def build(self) -> None:
        m, dot = self.m, self.dot
        sums = self._row_sums()
        if self.before:
            for d in self.before:
                self._remember(d)
            m.making = {d.target for d in self.before}
            m.kernels.append(GroupKernel(m, m.fresh(f"{self.name}_rows"), self.before).build())
            m.making = {dot.d.target, *(d.target for d in self.after)}
        columns, rows = self._columns(), self._rows()
        target, at = dot.d.target, dot.d.indices
        if m.in_memory(target) or not self.after:
            target = self._tensor(f"{target}_sum", I32, dot.d.free)
            at = tuple(Var(v) for v in dot.d.free)
        sums_over = (Reduction(dot.deep, "sum"),)
        leaf = Einsum(target, at, call("mul", Cast(I32, rows), columns), sums_over, (), dot.d.span)
        value: Expr = Access(target, at)
        if sums is not None:
            value = call("sub", value, call("mul", sums, Const(dot.offset)))
        if dot.shift:
            value = call("add", value, call("mul", self._column_sums(), Const(dot.shift)))
        after = [self._reading(d, value) for d in self.after]
        if target != dot.d.target:
            after.insert(0, Einsum(dot.d.target, dot.d.indices, value, (), (), dot.d.span))
        m.kernels.append(self._kernel(leaf, after))

    # ---- operands

    def _tensor(self, name: str, t: DType, order: list[str]) -> str:
        """A new tensor over variables."""
        m = self.m
        name = m.fresh(name)
        some = next(iter(m.c.tensors.values()))
        shape = tuple(m.c.extent(v) for v in order)
        m.types[name] = replace(
            some, name=name, dtype=t, shape=shape, fill=0, constant=False, span=None
        )
        m.c = replace(m.c, tensors={**m.c.tensors, name: m.types[name]})
        return name

    def _in_memory(
        self, name: str, layout: Layout, keep: bool = False, packed: bool = False
    ) -> None:
        t = self.m.types[name]
        self.m.memory[name] = Buffer(
            name, t.dtype, t.shape, "memory", layout, t.fill, keep, packed=packed
        )

    def _remember(self, d: Einsum) -> None:
        """What is made before the product lies in memory; its rows as the product reads them."""
        if not self.m.in_memory(d.target):
            found = operand(self.m.c, self.dot)
            mine = found is not None and found.tensor == d.target
            layout = self._row_layout(found) if mine and found else row_major(len(d.indices))
            self._in_memory(d.target, layout)

    def _row_layout(self, a: Access) -> Layout:
        return row_layout(self.m.c, self.dot, a)

    def _columns(self) -> Expr:
        """The second operand, packed: 64 columns side by side, of each four values along the reduction; what else a byte
        or a string of bytes has room for follows at a distance of four."""
        dot, bits = self.dot, self._bits()
        e = dot.columns.value
        others = [v for v in variables(e) if v not in (dot.column, dot.deep)]
        order = [*others, dot.column, dot.deep]
        t = DTYPES["u8"] if bits == 8 else parse_dtype(f"u{bits}")
        name = self._tensor(f"{dot.d.target}_columns", t, order)
        keep = constant(self.m.c, e)
        self._in_memory(name, packed_layout(len(order), bits), keep, bits < 8)
        if dot.offset:
            e = call("add", e, Const(dot.offset))
        if bits == 8:
            e = Cast(t, e)
        access = Access(name, tuple(Var(v) for v in order))
        body: Node = Do(Einsum(name, access.indices, e))
        for v in reversed(others):
            body = Loop(v, 1, (body,))
        body = Loop(dot.column, PANEL, (body,), "core")
        self.m.kernels.append(
            Kernel(self.m.fresh(f"pack_{name}"), self.m.extents(order), (body,), keep)
        )
        return Cast(I32, access) if bits == 8 else access

    def _bits(self) -> int:
        """Of a value in memory: as many as it has; the next power of two where each value is used once, that is packed in
        every call, or is decoded more slowly than that is read."""
        dot, two = self.dot, 1 << (self.dot.bits - 1).bit_length()
        one = dot.row is None or self.size(dot.row) == 1
        return two if not constant(self.m.c, dot.columns.value) or (one and two <= 4) else dot.bits

    def _rows(self) -> Access:
        """The first operand in bytes, contiguous along the reduction: where it lies, or copied."""
        m, dot = self.m, self.dot
        e = dot.rows.value
        found = operand(m.c, dot)
        if found is not None and m.ready(found.tensor) and found.tensor in m.memory:
            if m.memory[found.tensor].layout == self._row_layout(found):
                return found
        others = [v for v in variables(e) if v != dot.deep]
        order = [*others, dot.deep]
        name = self._tensor(f"{dot.d.target}_rows", DTYPES["i8"], order)
        keep = constant(self.m.c, e)
        access = Access(name, tuple(Var(v) for v in order))
        self._in_memory(name, self._row_layout(access), keep)
        value = Cast(DTYPES["i8"], self._stored_rows())
        body: Node = Do(Einsum(name, access.indices, value), ((dot.deep, "lane"),))
        for v in reversed(others):
            body = Loop(v, 1, (body,), "core")
        m.kernels.append(Kernel(m.fresh(f"pack_{name}"), m.extents(order), (body,), keep))
        return access

    def _stored_rows(self) -> Expr:
        e, shift = self.dot.rows.value, self.dot.shift
        return call("sub", e, Const(shift)) if shift else e

    def _column_sums(self) -> Expr:
        """The sums of the second operand, where the first is stored with a shift."""
        m, dot = self.m, self.dot
        e = dot.columns.value
        order = [*(v for v in variables(e) if v not in (dot.column, dot.deep)), dot.column]
        name, keep = self._tensor(f"{dot.d.target}_column_sums", I32, order), constant(self.m.c, e)
        self._in_memory(name, _panels(len(order)), keep)
        access = Access(name, tuple(Var(v) for v in order))
        made = Einsum(name, access.indices, e, (Reduction(dot.deep, "sum"),), (), dot.d.span)
        nodes: tuple[Node, ...] = (Do(made, ((dot.deep, "lane"),)),)
        for v in (dot.column, *reversed(order[:-1])):
            nodes = (Loop(v, 1, nodes),)
        nodes = (Loop(dot.column, PANEL, nodes, "core"),)
        names = [*order, dot.deep]
        m.kernels.append(Kernel(m.fresh(f"sum_{name}"), m.extents(names), nodes, keep))
        return access

    def _row_sums(self) -> Expr | None:
        """The sums of the first operand, where the second is stored with an offset: what is there already, or new."""
        dot = self.dot
        if not dot.offset:
            return None
        e = self._stored_rows()
        for d in self.before:
            if text(d.body) == text(e) and d.reduced == [dot.deep] and not d.where:
                if d.monoid(dot.deep) == "sum" and len(plain_variables(d)) == len(d.indices):
                    return Access(d.target, d.indices)
        order = [v for v in variables(e) if v != dot.deep]
        name = self._tensor(f"{dot.d.target}_sums", I32, order)
        at = tuple(Var(v) for v in order)
        made = Einsum(name, at, e, (Reduction(dot.deep, "sum"),), (), dot.d.span)
        self.before.append(made)
        return Access(name, at)

    def _reading(self, d: Einsum, value: Expr) -> Einsum:
        """What follows the product, over its stored value; what it reads across the columns lies along them."""

        def rule(n: Expr) -> Expr:
            if not isinstance(n, Access):
                return n
            return value if n.tensor == self.dot.d.target else self._along(n)

        return replace(d, body=transform(d.body, rule))

    def _along(self, a: Access) -> Access:
        """The read in a copy that lies in panels, where it is strided along the columns."""
        m, column = self.m, self.dot.column
        names = [i.name for i in a.indices if isinstance(i, Var)]
        if len(set(names)) != len(a.indices) or column not in names or not m.ready(a.tensor):
            return a
        if not strided(a, column, m.memory.get(a.tensor)):
            return a
        order = [*(v for v in names if v != column), column]
        name = self._tensor(f"{a.tensor}_along", expression_dtype(m.c, a), order)
        keep = constant(self.m.c, a)
        self._in_memory(name, _panels(len(order)), keep)
        access = Access(name, tuple(Var(v) for v in order))
        nodes: tuple[Node, ...] = (Do(Einsum(name, access.indices, a), ((column, "lane"),)),)
        for v in reversed(order[:-1]):
            nodes = (Loop(v, 1, nodes),)
        nodes = (Loop(column, PANEL, nodes, "core"),)
        m.kernels.append(Kernel(m.fresh(f"pack_{name}"), m.extents(order), nodes, keep))
        return access

    # ---- the kernel

    def _kernel(self, leaf: Einsum, after: list[Einsum]) -> Kernel:
        """for n by 64, m by 48 { for g { D = …;  Y += f(D) };  … }"""
        m, dot = self.m, self.dot
        for d in (leaf, *after):
            if not m.in_memory(d.target):
                names = plain_variables(d)
                self.locals[d.target] = Buffer(
                    d.target, m.types[d.target].dtype, tuple(map(Var, names)), "L1", self._tile(names)
                )  # fmt: skip
        bind = ((dot.column, "lane"), *(((dot.row, "unroll"),) if dot.row else ()))
        parts: tuple[Node, ...] = (Do(leaf, bind),)
        if dot.row:
            parts = (Loop(dot.row, ROWS, parts),)
        if (self.size(dot.deep) or DEPTH + 1) > DEPTH:
            parts = (Loop(dot.deep, DEPTH, parts),)
        late = next((n for n, d in enumerate(after) if not d.reduced), len(after))
        near: tuple[Node, ...] = (*parts, *self._vectors(after[:late]))
        sums = self.locals.pop(leaf.target, None)
        if sums is not None and late:  # one group at a time
            near = (Alloc(sums, near),)
        elif sums is not None:
            self.locals[leaf.target] = sums
        for v in reversed(self.inner):
            near = (Loop(v, 1, near),)
        body: tuple[Node, ...] = (*near, *self._vectors(after[late:]))
        for b in reversed(list(self.locals.values())):
            body = (Alloc(b, body),)
        if dot.row:
            body = (Loop(dot.row, BLOCK, body, "core"),)
        body = (Loop(dot.column, PANEL, body, "core"),)
        for v in reversed(self.rows):
            if v not in (dot.row, dot.column):
                body = (Loop(v, 1, body, "core"),)
        names = [*self.rows, *leaf.free, *leaf.reduced, *(v for d in after for v in (*d.free, *d.reduced))]  # fmt: skip
        return Kernel(self.name, m.extents(names), body)

    def _tile(self, names: list[str]) -> Layout:
        """Rows and columns padded to the register tile; single points of everything else."""
        dot = self.dot
        others = [Digit(n) for n, v in enumerate(names) if v not in (dot.row, dot.column)]
        n = names.index(dot.column)
        inner = [Digit(n, PANEL), Digit(n, 1, PANEL)]
        if dot.row in names:
            r = names.index(dot.row or "")
            inner = [Digit(r, ROWS), Digit(r, 1, ROWS), *inner]
        return Layout((*others, *inner))

    def _vectors(self, members: list[Einsum]) -> list[Node]:
        """Row by row, the columns on lanes."""
        if not members:
            return []
        dot = self.dot
        nodes: tuple[Node, ...] = tuple(
            Loop(dot.column, PANEL, (Do(d, ((dot.column, "lane"),)),)) for d in members
        )
        return [Loop(dot.row, 1, nodes)] if dot.row else list(nodes)


def row_operands(m: Mapper, groups: Sequence[Sequence[Definition]]) -> None:
    """The first operands of integer products that lie in memory anyway, in the layout in which these read them."""
    seen: set[str] = set()
    for members in groups:
        for dot in (dot for d in members if (dot := dot_of(m.c, d)) is not None):
            a = operand(m.c, dot)
            if a is not None and a.tensor in m.memory and a.tensor not in seen:
                seen.add(a.tensor)
                m.memory[a.tensor] = replace(m.memory[a.tensor], layout=row_layout(m.c, dot, a))


def operand(c: Cascade, dot: Dot) -> Access | None:
    """The first operand where it is a tensor of bytes, read as a whole, the reduced variable last."""
    e = dot.rows.value
    a = e.arg if isinstance(e, Cast) else e
    if not isinstance(a, Access) or c.tensors[a.tensor].dtype != DTYPES["i8"]:
        return None
    names = [i.name for i in a.indices if isinstance(i, Var)]
    if len({*names}) != len(a.indices) or names[-1] != dot.deep:
        return None
    sizes = zip(names, c.tensors[a.tensor].shape, strict=True)
    return a if all(c.same_size(c.extent(v), n) for v, n in sizes) else None


def row_layout(c: Cascade, dot: Dot, a: Access) -> Layout:
    """Tiles of 8 rows that lie together, whole steps and no more than `DEPTH` of what is reduced:

    [m/8, …, j/DEPTH, m%8, j%DEPTH]: rows that lie a page apart would drive each other out of the smallest cache
    """
    names = [i.name for i in a.indices if isinstance(i, Var)]
    j, size = len(names) - 1, poly(c.resolved(c.extent(dot.deep))).constant
    unit = DEPTH if size is None or size > DEPTH else WHOLE
    outer, inner = [Digit(n) for n, v in enumerate(names[:-1]) if v != dot.row], list[Digit]()
    if dot.row is not None:
        m = names.index(dot.row)
        outer, inner = [Digit(m, ROWS), *outer], [Digit(m, 1, ROWS)]
    parts = [Digit(j, unit), *inner] if unit == DEPTH else [*inner, Digit(j, unit)]
    return Layout((*outer, *parts, Digit(j, 1, unit)))


def _panels(rank: int) -> Layout:
    """Panels of 64 along the last dimension."""
    n = rank - 1
    return Layout((Digit(n, PANEL), *map(Digit, range(n)), Digit(n, 1, PANEL)))


def packed_layout(rank: int, bits: int) -> Layout:
    """Panels of 64 columns (the dimension before the last) with whole steps of the last dimension in each:

    [n/64, …, j/(4p), n%64, j%4, j/4%p], for p values per byte, or per string of bytes
    """
    n, j, (_, p) = rank - 2, rank - 1, string(bits)
    inner = (Digit(j, 1, STEP),) if p == 1 else (Digit(j, 1, STEP), Digit(j, STEP, p))
    return Layout((Digit(n, PANEL), *map(Digit, range(n)), Digit(j, STEP * p), Digit(n, 1, PANEL), *inner))  # fmt: skip
