"""Scaled outputs become their parts: the largest magnitude of each group gives its scale, and the scale the codes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tcc.ir.cascade import Cascade, Einsum, Extern, Rank, Reduction, Tensor
from tcc.ir.dtype import DType, Float, Scaled
from tcc.ir.dtype_codes import integer_range, largest
from tcc.ir.dtype_scaled import scaled_form
from tcc.ir.dtype_text import dtype
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, call, transform
from tcc.ir.scaled_parts import divided, parts_of, value_at


def stored_by_parts(c: Cascade, t: Tensor) -> Einsum | None:
    """The definition of an output whose codes and scale can be computed; None for zero points and offsets that are
    tensors, tables, nested scales, scales without mantissa, and outputs that are read by externs or exist only partly."""
    form = t.dtype.form
    if not isinstance(form, Scaled) or form.table is not None or form.offset is not None:
        return None
    if isinstance(form.zero, DType) or form.scale is None or form.scale.in_parts:
        return None
    if isinstance(form.scale.form, Float) and form.scale.form.mantissa == 0:
        return None  # its rounding is another one
    rounding = (t.dtype.rounding, form.element.rounding, form.scale.rounding)
    mine = [d for d in c.definitions if isinstance(d, Einsum) and d.target == t.name]
    names = [i.name for d in mine for i in d.indices if isinstance(i, Var)]
    outside = [d for d in c.definitions if isinstance(d, Extern) and t.name in d.operands]
    if (
        len(mine) != 1
        or mine[0].where
        or outside
        or any(r not in ("", "nearest") for r in rounding)
    ):
        return None
    plain = (
        len(set(names)) == len(mine[0].indices) and all(t.axes) and len(set(t.axes)) == len(names)
    )
    return mine[0] if plain and t.name not in {x.name for x in c.inputs} else None


@dataclass
class _Axis:
    """One dimension: a coordinate of the whole, of a group, and of the whole by group and place in it."""

    whole: Expr
    group: Expr
    entry: Expr
    inside: Expr
    reduced: str | None


def encoded(c: Cascade, t: Tensor, d: Einsum, taken: set[str]) -> Cascade:
    """The program with the parts of one output in its place.

    Z[m, k] = e   -->   Z_value[m, k] = e
                        Z_most[m, g]  = abs(Z_value[m, 128 * g + j]) :: max(j)
                        Z_scale[m, g] = Z_most[m, g] / 127
                        Z_codes[m, k] = i8(max(min(round(Z_value[m, k] / Z_scale[m, k // 128]), 127), -128))
    """
    form, compute = scaled_form(t.dtype), t.dtype.compute
    value, most = (_fresh(f"{t.name}_{n}", taken) for n in ("value", "most"))
    names: dict[tuple[str, ...], str] = {}
    made: list[Tensor] = []
    for p in parts_of(t.dtype, t.axes, t.shape, lambda size, n: divided(c.resolved(size), n)):
        names[p.path] = _fresh(f"{t.name}_{p.name}", taken)
        made.append(Tensor(names[p.path], p.dtype, p.shape, 0, t.span))
    assert form.scale is not None
    ranks = list(c.ranks)
    axes = [_axis(c, ranks, size, axis, form, taken) for size, axis in zip(t.shape, t.axes)]
    entries = tuple(a.entry for a in axes)
    group = tuple(a.group for a in axes)
    reached = Cast(compute, Access(value, tuple(a.inside for a in axes)))
    over = tuple(Reduction(a.reduced, "max") for a in axes if a.reduced)
    step: Expr = call("div", Access(most, entries), Const(_reach(form)))
    if form.scale.compute != compute:
        step = Cast(form.scale.compute, step)
    scale: Expr = Cast(compute, Access(names["scale",], group))
    usable = call("and", call("gt", scale, Const(0.0)), call("lt", scale, Const(float("inf"))))
    whole = tuple(a.whole for a in axes)
    code = call(
        "div", Cast(compute, Access(value, whole)), call("select", usable, scale, Const(1.0))
    )
    if isinstance(form.zero, int) and form.zero:
        code = call("add", code, Const(float(form.zero)))
    parts = {"codes": _code(form.element, code), "scale": step}
    new = [
        replace(d, target=value),
        Einsum(most, entries, call("abs", reached), over, (), d.span),
        Einsum(names["scale",], entries, parts["scale"], (), (), d.span),
        Einsum(names["codes",], whole, parts["codes"], (), (), d.span),
    ]

    def rule(n: Expr) -> Expr:
        if isinstance(n, Access) and n.tensor == t.name:
            return value_at(t.dtype, t.axes, names, n.indices)
        return n

    rest = [
        replace(x, body=transform(x.body, rule), where=tuple(transform(p, rule) for p in x.where))
        if isinstance(x, Einsum) and x is not d else x
        for x in c.definitions
    ]  # fmt: skip
    at = rest.index(d)
    outputs = [x for o in c.outputs for x in (made if o is t else [o])]
    return replace(c, ranks=tuple(ranks), outputs=tuple(outputs),
                   definitions=(*rest[:at], *new, *rest[at + 1 :]))  # fmt: skip


def _axis(
    c: Cascade, ranks: list[Rank], size: Expr, axis: str, form: Scaled, taken: set[str]
) -> _Axis:
    groups, own = dict(form.groups), Var(axis)
    n = groups.get(axis, 1) if groups else None
    if n == 1:
        return _Axis(own, own, own, own, None)
    if n is None:
        return _Axis(own, Const(0), Const(0), own, axis)
    assert isinstance(size, Size)
    known = next((r.size for r in ranks if r.name == size.rank), None)
    first, by = known.args if isinstance(known, Call) and known.op == "mul" else (None, None)
    if isinstance(first, Size) and isinstance(by, Const) and by.value == n:
        g = first.rank
    else:
        g = _fresh(f"{size.rank}_GROUPS", taken)
        ranks.append(Rank(g, divided(c.resolved(size), n)))
    j = _fresh(f"{size.rank}_IN", taken)
    ranks.append(Rank(j, Const(n)))
    entry, place = Var(g.lower()), Var(j.lower())
    inside = call("add", call("mul", entry, Const(n)), place)
    return _Axis(own, call("floordiv", own, Const(n)), entry, inside, j.lower())


def _reach(form: Scaled) -> float:
    """The magnitude that codes reach in both directions."""
    if not form.element.is_integer:
        return float(largest(form.element))
    low, high = integer_range(form.element)
    zero = form.zero if isinstance(form.zero, int) else 0
    return float(min(high - zero, zero - low if low < zero else high - zero))


def _code(element: DType, value: Expr) -> Expr:
    """The nearest code: integers are rounded and kept in range, others saturate."""
    if element.is_integer:
        low, high = integer_range(element)
        value = call(
            "max", call("min", call("round", value), Const(float(high))), Const(float(low))
        )
        return Cast(element, value)
    return Cast(dtype(f"{element.name.removesuffix('.sat')}.sat"), value)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
