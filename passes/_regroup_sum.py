"""One sum of products of whole numbers, regrouped: which variables are added up as integers, and what stays outside."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import product as combinations

from tcc.ir.cascade import Cascade, Definition, Einsum, Reduction, Tensor
from tcc.ir.dtype import DTYPES, I32, DType
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Var,
    accesses,
    call,
    substitute,
    transform,
    variables,
)
from tcc.ir.index import poly, simplify_index, within
from tcc.ir.infer import expression_dtype
from tcc.ir.ops import MONOIDS, OPS
from tcc.passes._algebra import factors, plain_variables, product
from tcc.passes._ranks import two_ranks
from tcc.passes._whole import Whole, whole

SUM = MONOIDS["sum"]
MOST = 2**31 - 1  # the largest integer sum
BYTE = 255
LONG, SHORT = 2**16, 32  # terms of a sum that is cut because it might not fit: at most, at least
USUAL = (
    128  # the same, where nobody knows how many there are: the last piece is computed as a whole
)


def regrouped(c: Cascade, d: Definition) -> tuple[Cascade, list[Definition]] | None:
    """The program with the ranks and tensors, and the definitions, that take the place of `d`; None where `d` stays."""
    if not isinstance(d, Einsum) or not d.reduced or len(c.defining(d.target)) != 1:
        return None
    if any(d.monoid(v) != "sum" for v in d.reduced) or set(variables(*d.where)) & set(d.reduced):
        return None
    t = c.tensors[d.target].dtype
    if t.name not in ("f32", "f64") or any(d.target in j.tensors for j in c.joints):
        return None
    plan = _Plan(c, d, t)
    return plan.result() if plan.possible() else None


@dataclass
class _Plan:
    c: Cascade
    d: Einsum
    t: DType
    made: list[Definition] = field(default_factory=list)

    def possible(self) -> bool:
        """Whether there are two factors of whole numbers, and variables that nothing else depends on but by groups."""
        reduced = set(self.d.reduced)
        parts = _opened(self.c, self.d.body, reduced)
        self.wholes: list[Whole] = []
        self.others: list[Expr] = []
        for p in parts:
            w = whole(self.c, p) if set(variables(p)) & reduced else None
            if w is None:
                self.others.append(p)
            else:
                self.wholes.append(w)
        if len(self.wholes) < 2 or any(w.largest > BYTE for w in self.wholes):
            return False
        groups = {v: self._group(v) for v in self.d.reduced}
        self.inner = [v for v, g in groups.items() if g != 1]
        self.groups = {v: g for v, g in groups.items() if g > 1}
        crossed = [set(variables(w.value)) & set(self.d.free) for w in self.wholes]
        if not self.inner or len(self.groups) > 1:
            return False
        return any(a - b for a in crossed for b in crossed)

    def _group(self, v: str) -> int:
        """The length of the groups of a reduced variable: 0 for all of it, 1 where every coordinate is one."""
        sizes: list[int] = []
        for e, exact in [
            *((e, False) for e in self.others),
            *((w.value, True) for w in self.wholes),
        ]:
            found = _quotients(e, v)
            if None in found and not exact:
                return 1
            sizes += [n for n in found if n is not None]
        return math.gcd(*sizes) if sizes else 0

    def result(self) -> tuple[Cascade, list[Definition]] | None:
        wholes = [replace(w, value=self._stored(w.value)) for w in self.wholes]
        bound = math.prod(_spread(self.c, w.value) for w in wholes)
        for v in self.inner:
            n = self.groups.get(v) or poly(self.c.resolved(self.c.extent(v))).constant
            if (n is None or n * bound > MOST) and v not in self.groups and len(self.inner) == 1:
                most = 2 ** int(math.log2(max(1, MOST // bound)))
                n = self.groups[v] = min(USUAL if n is None else LONG, most)
                if n < SHORT:
                    return None
            bound *= n or MOST
        if bound > MOST:
            return None
        cut = {v: self._cut(v, n) for v, n in self.groups.items()}
        outer = [
            cut[v][0] if v in cut else v for v in self.d.reduced if v in cut or v not in self.inner
        ]
        inner = [cut[v][1] if v in cut else v for v in self.inner]
        values = [self._within(w.value, cut) for w in wholes]
        total = self._sum(values, inner, outer, cut)
        scales = [self._within(e, cut) for e in self.others]
        body = product([Cast(self.t, total), *scales])
        kept = tuple(Reduction(v, "sum") for v in outer)
        self.made.append(
            Einsum(self.d.target, self.d.indices, body, kept, self.d.where, self.d.span)
        )
        return self.c, self.made

    # ---- groups

    def _cut(self, v: str, n: int) -> tuple[str, str, int]:
        """The variables of the group and inside it, and the length: v = n · group + inside."""
        extent = poly(self.c.resolved(self.c.extent(v)))
        known = extent.constant
        count: Expr = call("floordiv", call("add", self.c.extent(v), Const(n - 1)), Const(n))
        if known is not None:
            count = Const(-(-known // n))
        ranks, a, b = two_ranks(self.c, self.d, v, count, Const(n))
        self.c = replace(self.c, ranks=ranks)
        return a, b, n

    def _within(self, e: Expr, cut: dict[str, tuple[str, str, int]]) -> Expr:
        """An expression in the variables of groups."""

        def rule(x: Expr) -> Expr:
            if isinstance(x, Call) and x.spec.name == "floordiv" and isinstance(x.args[0], Var):
                found = cut.get(x.args[0].name)
                by = x.args[1]
                if found is not None and isinstance(by, Const):
                    times = int(by.value) // found[2]
                    return (
                        Var(found[0])
                        if times == 1
                        else call("floordiv", Var(found[0]), Const(times))
                    )
            return x

        split: dict[str, Expr] = {
            v: call("add", call("mul", Var(a), Const(n)), Var(b)) for v, (a, b, n) in cut.items()
        }
        return substitute(transform(e, rule), split)

    # ---- the integer sums

    def _stored(self, e: Expr) -> Expr:
        """The integers of a factor as reads: what is computed is stored, once per element."""
        if isinstance(e, Call) and e.spec.affine:
            return Call(e.op, tuple(self._stored(a) for a in e.args), e.span)
        inner = e.arg if isinstance(e, Cast) else e
        if isinstance(inner, Access | Const):
            return e
        if isinstance(inner, Cast) and inner.dtype.native and isinstance(inner.arg, Access):
            return e
        w = whole(self.c, e)
        assert w is not None
        order = variables(e)
        t = _least(w)
        value = inner if expression_dtype(self.c, inner) == t else Cast(t, inner)
        name = self._tensor("codes", order, t)
        at = tuple(Var(v) for v in order)
        self.made.append(Einsum(name, at, value, (), (), self.d.span))
        return Access(name, at) if t == I32 else Cast(I32, Access(name, at))

    def _tensor(self, suffix: str, order: list[str], t: DType) -> str:
        name, n = f"{self.d.target}_{suffix}", 1
        while name in self.c.tensors:
            n += 1
            name = f"{self.d.target}_{suffix}{n}"
        made = Tensor(name, t, tuple(self.c.extent(v) for v in order))
        self.c = replace(self.c, tensors={**self.c.tensors, name: made})
        return name

    def _sum(self, values: list[Expr], inner: list[str], outer: list[str],
             cut: dict[str, tuple[str, str, int]]) -> Expr:  # fmt: skip
        """Σ Π (aᵢ + bᵢ), with bᵢ the same within a group, as sums over subsets of the aᵢ times the other bᵢ."""
        parted = [_parted(e, set(inner)) for e in values]
        total: Expr | None = None
        for chosen in combinations(*([n for n in (0, 1) if p[n] is not None] for p in parted)):
            moving = [p[0] for p, n in zip(parted, chosen) if n == 0 and p[0] is not None]
            fixed = [p[1] for p, n in zip(parted, chosen) if n == 1 and p[1] is not None]
            term = self._inner(moving, inner, outer, cut) if moving else self._count(inner, cut)
            term = product([term, *fixed])
            total = term if total is None else call(SUM.combine, total, term)
        assert total is not None
        return total

    def _inner(self, moving: list[Expr], inner: list[str], outer: list[str],
               cut: dict[str, tuple[str, str, int]]) -> Expr:  # fmt: skip
        body = product(moving)
        order = [v for v in (*self.d.free, *outer) if v in variables(body)]
        name = self._tensor("dot" if len(moving) > 1 else "sum", order, I32)
        at = tuple(Var(v) for v in order)
        where = tuple(p for v in cut if (p := self._inside(moving, v, cut[v])) is not None)
        self.made.append(Einsum(name, at, body, tuple(Reduction(v, "sum") for v in inner), where, self.d.span))  # fmt: skip
        return Access(name, at)

    def _inside(self, moving: list[Expr], v: str, cut: tuple[str, str, int]) -> Expr | None:
        """The condition that a coordinate of the last group exists; None where all do, or a factor reads 0 elsewhere."""
        a, b, n = cut
        extent = self.c.extent(v)
        at = call("add", call("mul", Var(a), Const(n)), Var(b))
        if _divides(self.c, extent, n):
            return None
        for e in moving:
            while isinstance(e, Cast):
                e = e.arg
            if isinstance(e, Access) and self.c.tensors[e.tensor].fill == 0:
                for i, size in zip(e.indices, self.c.tensors[e.tensor].shape, strict=True):
                    if poly(i).same(poly(at)) and self.c.same_size(size, extent):
                        return None
        return call("lt", at, extent)

    def _count(self, inner: list[str], cut: dict[str, tuple[str, str, int]]) -> Expr:
        """How many terms a group has."""
        of = {b: (v, a, n) for v, (a, b, n) in cut.items()}
        parts: list[Expr] = []
        for x in inner:
            if x not in of:
                parts.append(self.c.extent(x))
                continue
            v, a, n = of[x]
            extent = self.c.extent(v)
            rest = call("sub", extent, call("mul", Var(a), Const(n)))
            parts.append(Const(n) if _divides(self.c, extent, n) else call("min", rest, Const(n)))
        return Cast(I32, product(parts))


def _least(w: Whole) -> DType:
    """The smallest type that holds a whole number."""
    for name, low, high in (("i8", -128, 127), ("u8", 0, 255)):
        if low <= w.low and w.high <= high:
            return DTYPES[name]
    return I32


def _divides(c: Cascade, extent: Expr, n: int) -> bool:
    known = poly(c.resolved(extent)).constant
    return known is not None and known % n == 0


def _opened(c: Cascade, e: Expr, reduced: set[str]) -> list[Expr]:
    """Factors, those that are made of whole numbers times something else taken apart."""
    out: list[Expr] = []
    for p in factors(e):
        made = _definition(c, p) if set(variables(p)) & reduced else None
        inner = _opened(c, made, reduced) if made is not None else []
        if any(not isinstance(x, Const) and whole(c, x) is not None for x in inner):
            out += inner
        else:
            out.append(p)
    return out


def _definition(c: Cascade, e: Expr) -> Expr | None:
    """What an element of a float tensor that is defined element by element is computed from."""
    if not isinstance(e, Access) or not c.tensors[e.tensor].dtype.is_float:
        return None
    made = c.defining(e.tensor)
    d = made[0] if len(made) == 1 else None
    if not isinstance(d, Einsum) or d.reduced or d.where:
        return None
    names = plain_variables(d)
    extents = {v: c.extent(v) for v in variables(e)}
    shape = c.tensors[e.tensor].shape
    if len(set(names)) != len(d.indices) or accesses(*e.indices):
        return None
    if not all(within(i, n, extents) for i, n in zip(e.indices, shape, strict=True)):
        return None
    body = substitute(d.body, dict(zip(names, e.indices, strict=True)))

    def plain(x: Expr) -> Expr:
        if not isinstance(x, Access) or accesses(*x.indices):
            return x
        return Access(x.tensor, tuple(simplify_index(i, extents) for i in x.indices), x.span)

    return transform(body, plain)


def _quotients(e: Expr, v: str) -> list[int | None]:
    """By what a variable is divided at each place where it occurs; None where it is not divided by a number."""
    found: list[int | None] = []
    stack = [e]
    while stack:
        x = stack.pop()
        if isinstance(x, Call) and x.spec.name == "floordiv" and isinstance(x.args[0], Var):
            by = x.args[1]
            if x.args[0].name == v:
                known = isinstance(by, Const) and isinstance(by.value, int) and by.value > 1
                found.append(int(by.value) if known and isinstance(by, Const) else None)
                continue
        if isinstance(x, Var) and x.name == v:
            found.append(None)
        if isinstance(x, Call):
            stack += x.args
        elif isinstance(x, Access):
            stack += x.indices
        elif isinstance(x, Cast):
            stack.append(x.arg)
    return found


def _parted(e: Expr, inner: set[str]) -> tuple[Expr | None, Expr | None]:
    """An integer as the sum of what moves within a group and what does not."""
    if not inner & set(variables(e)):
        return None, e
    inverse = OPS[SUM.combine].inverse
    if isinstance(e, Call) and e.op in (SUM.combine, inverse):
        a, b = (_parted(x, inner) for x in e.args)
        back = e.op == inverse
        return _joined(a[0], b[0], back), _joined(a[1], b[1], back)
    return e, None


def _spread(c: Cascade, e: Expr) -> int:
    """The largest magnitude of an integer, whichever of its summands are added up apart."""
    if isinstance(e, Call) and e.op in (SUM.combine, OPS[SUM.combine].inverse):
        return sum(_spread(c, x) for x in e.args)
    found = whole(c, e)
    return MOST if found is None else found.largest


def _joined(a: Expr | None, b: Expr | None, back: bool) -> Expr | None:
    if b is None:
        return a
    if a is None:
        return (Const(-b.value) if isinstance(b, Const) else call("neg", b)) if back else b
    return call(str(OPS[SUM.combine].inverse) if back else SUM.combine, a, b)
