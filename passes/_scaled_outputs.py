"""Scaled outputs become their parts: what each group holds gives its scale, zero and offset, and these the codes.

All of it is computed in f64, in the order of `tcc.ir.dtype_scaled.encode_scaled`, so that equal values get equal codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tcc.ir.cascade import Cascade, Einsum, Extern, Rank, Reduction, Tensor
from tcc.ir.dtype import F64, DType, Scaled, Table
from tcc.ir.dtype_codes import binade, integer_range
from tcc.ir.dtype_scaled import element_range, reach, scaled_form
from tcc.ir.dtype_text import dtype
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    call,
    substitute,
    transform,
    variables,
)
from tcc.ir.index import bounds, poly
from tcc.ir.scaled_parts import Names, divided, parts_of
from tcc.passes._algebra import fresh

INF = Const(float("inf"))
Path = tuple[str, ...]


def stored_by_parts(c: Cascade, t: Tensor) -> bool:
    """Whether an output of a scaled type has parts that definitions can write: no table, and indices that leave no holes."""
    form = t.dtype.form
    if not isinstance(form, Scaled) or form.table is not None or not written(c, t):
        return False
    mine = [d for d in c.definitions if isinstance(d, Einsum) and d.target == t.name]
    return all(_whole(c, t, d, len(mine) == 1) for d in mine)


def _whole(c: Cascade, t: Tensor, d: Einsum, alone: bool) -> bool:
    """Whether a definition's indices run through neighbours, one variable each; `alone`, through whole dimensions."""
    seen: list[str] = []
    for i, size in zip(d.indices, t.shape, strict=True):
        names = variables(i)
        seen += names
        if len(names) > 1 or any(poly(i).coefficient(v) is None for v in names):
            return False
        if any(abs(factor.constant or 0) != 1 for v in names if (factor := poly(i).coefficient(v))):
            return False
        span = bounds(c.resolved(i), {v: c.resolved(c.extent(v)) for v in names})
        last = poly(c.resolved(size)) - poly(Const(1))
        if alone and (span is None or span[0].constant != 0 or not span[1].same(last)):
            return False
    return len(set(seen)) == len(seen)


def written(c: Cascade, t: Tensor) -> bool:
    """Whether definitions write an output, and no extern writes or reads it."""
    outside = (d for d in c.definitions if isinstance(d, Extern))
    foreign = {n for d in outside for n in (*d.operands, *(x.name for x in d.targets))}
    return t.name not in foreign and t.name not in {x.name for x in c.inputs}


@dataclass(frozen=True, slots=True)
class _Axis:
    """One dimension: a coordinate of the whole, its group, and the coordinate by group and place in it."""

    whole: Expr
    group: Expr
    entry: Expr
    inside: Expr
    reduced: str | None
    groups: Expr  # how many there are
    length: int | None  # coordinates per group; None: all


@dataclass(frozen=True, slots=True)
class _Dim:
    """A dimension of a level: its coordinate, its size, the variable of its rank in the declaration."""

    at: Expr
    size: Expr
    axis: str


@dataclass
class Stored:
    """What takes the place of a scaled output: its parts, and what defines them from the tensor `value`."""

    c: Cascade
    t: Tensor
    value: str
    taken: set[str]
    names: Names = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
    made: list[Einsum] = field(default_factory=list)
    dims: list[_Dim] = field(default_factory=list)

    def parts(self) -> None:
        """Z[m, k] = e   -->   Z_value[m, k] = e
                            Z_most[m, g]  = abs(Z_value[m, 128 * g + j]) :: max(j)
                            Z_scale[m, g] = f16(Z_most[m, g] / 127)
                            Z_codes[m, k] = i8(max(min(round(Z_value[m, k] / Z_scale[m, k // 128]), 127), -128))

        Ranges instead of magnitudes where groups have stored zeros or offsets; scales of scales likewise, level by level.
        A group's values that are not finite count as 0; a scale that is 0 or not finite, as 1.
        """
        t, c = self.t, self.c
        for p in parts_of(t.dtype, t.axes, t.shape, lambda size, n: divided(c.resolved(size), n)):
            self.names[p.path] = self.fresh(f"{t.name}_{p.name}")
            kind = p.dtype
            if kind.rounding == "stochastic" and p.path[-1] != "scale" and p.path[-1] != "offset":
                kind = dtype(f"{kind}.sat")
            self.outputs.append(Tensor(self.names[p.path], kind, p.shape, 0, t.span))
        dims = self.dims
        for size, axis in zip(t.shape, t.axes, strict=True):
            known = axis and not any(axis == d.axis for d in dims)
            own = axis if known else self.rank(f"{t.name}_{len(dims)}", size)
            dims.append(_Dim(Var(own), c.resolved(size), axis))
        self.level(self.value, t.dtype.compute, dims, t.dtype, ())

    def level(self, source: str, kind: DType, dims: list[_Dim], of: DType, path: Path) -> Expr:
        """Defines the parts of one scaled tensor over `dims`; the value that it then has there, in f64."""
        form = scaled_form(of)
        axes = [self.axis(d, form) for d in dims]
        whole, group, entry = (
            tuple(getattr(a, n) for a in axes) for n in ("whole", "group", "entry")
        )
        grouped = {a.entry.name: a.group for a in axes if isinstance(a.entry, Var)}

        def at_group(e: Expr) -> Expr:
            return substitute(e, grouped)

        reached = Cast(kind, Access(source, tuple(a.inside for a in axes)))
        finite = call("select", call("lt", call("abs", reached), INF), reached, Const(0.0))
        over = tuple(a.reduced for a in axes if a.reduced)
        least, most = element_range(form)
        low: Expr = Const(0.0)
        if isinstance(form.zero, DType) or form.offset is not None:
            low = self.extreme((*path, "least"), entry, finite, over, "min")
            high = self.extreme((*path, "most"), entry, finite, over, "max")
            low, high = call("min", low, Const(0.0)), call("max", high, Const(0.0))
            size: Expr = call("max", high, call("neg", low))
            wanted: Expr = call("div", call("sub", high, low), Const(most - least))
        else:
            size = self.extreme((*path, "most"), entry, call("abs", finite), over, "max")
            wanted = call("div", size, Const(reach(least, most)))
        scale: Expr = Const(1.0)
        safe: Expr = Const(1.0)
        if form.scale is not None:
            scale = self.scale(form.scale, size, wanted, most, axes, dims, (*path, "scale"))
            usable = call("and", call("ne", scale, Const(0.0)), call("lt", call("abs", scale), INF))
            safe = self.define(self.name((*path, "safe")), entry,
                               call("select", usable, scale, Const(1.0)))  # fmt: skip
        value: Expr = Cast(F64, Cast(kind, Access(source, whole)))
        if form.offset is not None:
            offset = call("sub", low, call("mul", Const(least), scale))
            self.define(self.names[(*path, "offset")], entry, _stored(form.offset, offset))
            value = call("sub", value, self.part((*path, "offset"), group))
        value = call("div", value, at_group(safe))
        if isinstance(form.zero, DType):
            zero = call("sub", Const(least), call("div", low, safe))
            self.define(self.names[(*path, "zero")], entry, _nearest(form.zero, zero))
            value = call("add", value, self.part((*path, "zero"), group))
        elif form.zero:
            value = call("add", value, Const(float(form.zero)))
        self.define(self.names[(*path, "codes")], whole, _nearest(form.element, value))
        back = self.part((*path, "codes"), whole)
        if isinstance(form.zero, DType):
            back = call("sub", back, self.part((*path, "zero"), group))
        elif form.zero:
            back = call("sub", back, Const(float(form.zero)))
        back = call("mul", back, at_group(scale))
        return (
            back if form.offset is None else call("add", back, self.part((*path, "offset"), group))
        )

    def scale(self, t: DType, size: Expr, wanted: Expr, most: float, axes: list[_Axis],
              dims: list[_Dim], path: Path) -> Expr:  # fmt: skip
        """Defines the scale of each group; its value in f64."""
        entry = tuple(a.entry for a in axes)
        if isinstance(t.form, Scaled):
            source = self.name((*path, "value"))
            self.define(source, entry, wanted)
            inner = [_Dim(a.entry, a.groups, d.axis) for a, d in zip(axes, dims, strict=True)]
            length = {d.axis: a.length for a, d in zip(axes, dims, strict=True)}
            groups = tuple((k, n // (length[k] or 1) if n else None) for k, n in t.form.groups)
            counted = replace(t, form=replace(t.form, groups=groups))  # in scales
            return self.level(source, F64, inner, counted, path)
        if t.name == "e8m0":
            power = call("mul", size, Const(2.0 ** -binade(most)))
            held = call("select", call("gt", size, Const(0.0)), power, Const(1.0))
            wanted = Cast(dtype("e8m0.zero"), held)
        self.define(self.names[path], entry, _stored(t, wanted))
        return self.part(path, entry)

    # ---- pieces

    def part(self, path: Path, at: tuple[Expr, ...]) -> Expr:
        return Cast(F64, Access(self.names[path], at))

    def define(self, name: str, at: tuple[Expr, ...], e: Expr, over: tuple[Reduction, ...] = ()) -> Expr:  # fmt: skip
        self.made.append(Einsum(name, at, e, over, (), self.t.span))
        return Access(name, at)

    def extreme(self, path: Path, at: tuple[Expr, ...], e: Expr, over: tuple[str, ...], monoid: str) -> Expr:  # fmt: skip
        """The largest or smallest value of a group, in f64."""
        found = self.define(self.name(path), at, e, tuple(Reduction(v, monoid) for v in over))
        return Cast(F64, found)

    def name(self, path: Path) -> str:
        return self.fresh("_".join((self.t.name, *path)))

    def axis(self, d: _Dim, form: Scaled) -> _Axis:
        groups = dict(form.groups)
        n = groups.get(d.axis, 1) if groups else None
        if not isinstance(d.at, Var) or n == 1:  # an entry of its own
            return _Axis(d.at, d.at, d.at, d.at, None, d.size, 1)
        if n is None:
            return _Axis(d.at, Const(0), Const(0), d.at, d.at.name, Const(1), None)
        count = divided(d.size, n)
        g = self.known(d, n) or self.rank(f"{d.at.name}_groups", count)
        j = self.rank(f"{d.at.name}_in", Const(n))
        inside = call("add", call("mul", Var(g), Const(n)), Var(j))
        return _Axis(d.at, call("floordiv", d.at, Const(n)), Var(g), inside, j, count, n)

    def known(self, d: _Dim, n: int) -> str | None:
        """The variable of a rank that counts the groups already, as that of K = K_GROUPS * 128 does."""
        rank = self.c.rank(d.at.name.upper()) if isinstance(d.at, Var) else None
        size = rank.size if rank is not None else None
        if isinstance(size, Call) and size.op == "mul" and isinstance(size.args[0], Size):
            by = size.args[1]
            if isinstance(by, Const) and by.value == n:
                return size.args[0].rank.lower()
        return None

    def rank(self, name: str, size: Expr) -> str:
        name = self.fresh(name.upper())
        self.ranks.append(Rank(name, size))
        return name.lower()

    def fresh(self, name: str) -> str:
        return fresh(name, self.taken)


def _stored(t: DType, value: Expr) -> Expr:
    """A value rounded into a type; by a random number only where it is stored."""
    return value if t.rounding == "stochastic" else Cast(t, value)


def _nearest(t: DType, value: Expr) -> Expr:
    """The nearest code, if the type has no other rounding: integers are kept in range, others saturate."""
    if t.rounding == "stochastic":
        return value
    if t.is_integer and t.rounding in ("", "nearest") and t.bits <= 32:
        low, high = (Const(float(n)) for n in integer_range(t))
        return Cast(t, call("max", call("min", call("round", value), high), low))
    if isinstance(t.form, Table) or t.saturate:
        return Cast(t, value)
    return Cast(dtype(f"{t}.sat" if t.rounding or not t.is_integer else f"{t}.nearest.sat"), value)


def encoded(c: Cascade, t: Tensor, taken: set[str]) -> tuple[Cascade, Names | str]:
    """The program with the parts of one output in its place, and what reads of it become: values of the parts with these
    names, or, where it has several definitions, reads of the tensor with this name.

    Where it may not exist everywhere, `Z_value` is an output behind the parts, which holds the fill elsewhere, and who
    reads the parts takes over where it exists.
    """
    value = fresh(f"{t.name}_value", taken)
    mine = [d for d in c.definitions if isinstance(d, Einsum) and d.target == t.name]
    s = Stored(c, t, value, taken)
    everywhere = len(mine) == 1 and _everywhere(c, t, mine[0])
    if not everywhere:
        s.value = fresh(f"{t.name}_filled", taken)
    s.parts()
    at = tuple(d.at for d in s.dims)
    if not everywhere:
        held = call("coalesce", Access(value, at), Const(float(t.fill)))
        s.made.insert(0, Einsum(s.value, at, held, (), (), t.span))
        s.outputs.append(replace(t, name=value, dtype=t.dtype.compute))
    made = list(c.definitions)
    last = max(n for n, d in enumerate(made) if d in mine)
    made[last + 1 : last + 1] = s.made
    made = [replace(d, target=value) if d in mine else d for d in made]
    if not everywhere and len(mine) == 1:

        def rule(n: Expr) -> Expr:
            if not (isinstance(n, Access) and n.tensor == t.name):
                return n
            return call("take", n, Access(value, n.indices), Const(0))

        made = [_rewritten(d, rule) for d in made]
    outputs = tuple(x for o in c.outputs for x in (s.outputs if o is t else [o]))
    c = replace(c, ranks=(*c.ranks, *s.ranks), outputs=outputs, definitions=tuple(made))
    return c, s.names if len(mine) == 1 else value


def _everywhere(c: Cascade, t: Tensor, d: Einsum) -> bool:
    """Whether a definition certainly defines every element."""
    names = [i.name for i in d.indices if isinstance(i, Var)]
    if len(set(names)) < len(d.indices):
        return False
    if any(not c.same_size(c.extent(v), size) for v, size in zip(names, t.shape, strict=True)):
        return False
    known = {x.name for x in c.inputs}
    return all(len(c.defining(n)) <= 1 for n in c.tensors if n not in known) and not any(
        x.where for x in c.definitions if isinstance(x, Einsum)
    )


def _rewritten(d: Einsum | Extern, rule: Callable[[Expr], Expr]) -> Einsum | Extern:
    if isinstance(d, Extern):
        return d
    where = tuple(transform(p, rule) for p in d.where)
    return replace(d, body=transform(d.body, rule), where=where)


def is_value(t: Tensor) -> bool:
    """Whether an output behind the parts of a scaled one is what they were made from."""
    return t.name.rstrip("_").endswith("_value") and t.dtype.native
