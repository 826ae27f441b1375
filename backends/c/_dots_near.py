"""Sums over groups of scaled integer products, of one row: what a group adds up never leaves the registers.

    for g { buffer D { D[n] = Σ_j rows · columns;  Y[n] += f(D[n], g) } }      n: 64 columns on lanes

Four vectors of 16 hold the sums D of a panel, four more those over groups. Text for this stands in front of the usual
one, which writes D and adds to Y in memory; that one is for shorter vectors and for the last columns, where these are no
whole panel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tcc.backends.c._dots import products
from tcc.backends.c._dots_text import PANEL, VECTORS
from tcc.backends.c._leaves import combine, open_loop, scattered
from tcc.backends.c._scope import Interval, Scope, plus, span_text
from tcc.backends.c._vector import Hoisted, Vector, vector_class
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import F32
from tcc.ir.expr import Access, Const, Expr, Var, text, transform, walk
from tcc.ir.mapping import Alloc, Do, Loop, Node

LANES = PANEL // VECTORS  # of a vector of sums
MOST = 3  # sums over groups that stay in registers


@dataclass(frozen=True)
class _Near:
    groups: list[str]  # variables of the loops, from the outside
    product: Do
    after: list[Einsum]  # sums over groups

    @property
    def lane(self) -> str:
        return self.product.on("lane")[0]

    @property
    def target(self) -> Access:
        return Access(self.product.einsum.target, self.product.einsum.indices)


def emit_near(s: Scope, n: Loop, usual: Callable[[], None]) -> bool:
    """Prints a loop that adds up groups, its usual text included; False, and nothing is printed, for any other."""
    found = _found(n) if s.vector_bytes == 4 * LANES else None
    if found is None or not all(s.intervals[v].whole for v in found.groups):
        return False
    lines, depth, functions = len(s.lines.out), s.lines.depth, set(s.functions)
    s.lines.add(f"#if DOT_LANES == {LANES}")
    s.lines.open(f"if ({span_text(s, s.intervals[found.lane])} == {PANEL}) {{")
    old = dict(s.intervals)
    fits = _emit(s, found)
    s.intervals.clear()
    s.intervals.update(old)
    if not fits:
        del s.lines.out[lines:]
        s.lines.depth = depth
        s.functions.intersection_update(functions)
        return False
    s.lines.close("} else")
    s.lines.add("#endif")
    s.lines.open("{")
    usual()
    s.lines.close()
    return True


def _found(n: Loop) -> _Near | None:
    """The parts of a loop of that form."""
    groups: list[str] = []
    inner: tuple[Node, ...] = (n,)
    while len(inner) == 1 and isinstance(x := inner[0], Loop):
        if x.step != 1 or not _plain(x):
            return None
        groups.append(x.var)
        inner = x.body
    if len(inner) != 1 or not isinstance(x := inner[0], Alloc):
        return None
    product, loops = x.body[0], [loop for loop in x.body if isinstance(loop, Loop)]
    if not isinstance(product, Do) or x.body[1:] != (*loops,) or not 0 < len(loops) <= MOST:
        return None
    if product.einsum.target != x.buffer.name or product.update or len(product.on("lane")) != 1:
        return None
    after: list[Einsum] = []
    for loop in loops:
        leaf = loop.body[0]
        if len(loop.body) > 1 or not isinstance(leaf, Do) or not _plain(loop) or leaf.update:
            return None
        if [loop.var] != leaf.on("lane") or leaf.on("lane") != product.on("lane"):
            return None
        after.append(leaf.einsum)
    return _Near(groups, product, after)


def _plain(loop: Loop) -> bool:
    return loop.on is None and loop.when is None and loop.until is None


def _emit(s: Scope, x: _Near) -> bool:
    """Prints the sums of a whole panel; False where something is no plain arithmetic over lanes side by side."""
    if not all(_adds(s, d, x) for d in x.after):
        return False
    chunk, low = s.names.fresh(x.lane), s.intervals[x.lane].low
    s.lines.add(f"const int64_t {chunk} = 0;")
    sums = [[s.names.fresh(d.target) for _ in range(VECTORS)] for d in x.after]
    for names in sums:
        zeros = ", ".join(f"{name} = {{0}}" for name in names)
        s.lines.add(f"{s.use(f'f32x{LANES}')} {zeros};")
    for v in x.groups:
        open_loop(s, v)
    found = products(s, x.product)
    if found is None or found.row is not None:
        return False
    near = [s.names.fresh(x.target.tensor) for _ in range(VECTORS)]
    s.functions |= {f"dots:1:{found.bits}", f"i32x{LANES}"}
    s.lines.add(f"i32x{LANES} {', '.join(near)};")
    where = ", ".join(f"&{name}" for name in near)
    s.lines.add(f"dots_u{found.bits}({found.rows}, {found.columns}, {found.length}, {where});")
    s.counters[chunk] = Const(PANEL)
    s.intervals[x.lane] = Interval(plus(low, Var(chunk)), s.intervals[x.lane].high, None, False)
    if scattered(s, [_without(d, x.target.tensor) for d in x.after], "f32", x.lane, chunk):
        return False
    hoisted = Hoisted(len(s.lines.out), s.lines.depth, long=False)
    uses: dict[str, int] = {}
    for d in x.after:
        for inner in walk(d.body):
            uses[text(inner)] = uses.get(text(inner), 0) + 1
    for n in range(VECTORS):
        memo = {text(x.target): near[n]}
        for d, names in zip(x.after, sums, strict=True):
            e = Vector(s, "f32", x.lane, chunk, n * LANES, None, memo, hoisted, uses)
            added = combine(s, "sum", names[n], e.value(d.body, F32), F32, e.type(F32))
            s.lines.add(f"{names[n]} = {added};")
    for _ in x.groups:
        s.lines.close()
    for d, names in zip(x.after, sums, strict=True):
        for n, name in enumerate(names):
            Vector(s, "f32", x.lane, chunk, n * LANES, None).store(
                Access(d.target, d.indices), name, True
            )
    return True


def _adds(s: Scope, d: Einsum, x: _Near) -> bool:
    """Whether a definition adds up floats over all groups, made of the product as it is stored."""
    if set(d.reduced) != set(x.groups) or d.where or any(d.monoid(v) != "sum" for v in d.reduced):
        return False
    if any(text(a) != text(x.target) for a in d.reads if a.tensor == x.target.tensor):
        return False
    if {a.tensor for a in d.reads} & {other.target for other in x.after}:
        return False
    if any(v != x.lane and s.intervals[v].step != 1 for v in d.free):
        return False
    if s.storage[d.target].dtype != F32 or s.storage[d.target].code is not None:
        return False
    others = _without(d, x.target.tensor)
    return not s.coded(others) and vector_class(s, [others], x.lane) == "f32"


def _without(d: Einsum, product: str) -> Einsum:
    """A definition with a number for the product."""

    def rule(e: Expr) -> Expr:
        return Const(0) if isinstance(e, Access) and e.tensor == product else e

    return replace(d, body=transform(d.body, rule))
