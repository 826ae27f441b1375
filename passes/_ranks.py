"""Ranks that a reshape has flattened are split again, and ranks of one coordinate go."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Rank, Reduction
from tcc.ir.expr import (
    Access,
    Call,
    Const,
    Expr,
    Size,
    Var,
    accesses,
    call,
    substitute,
    transform,
    variables,
    walk,
)
from tcc.ir.index import divide, poly, same, simplify_index, within


def split_ranks(c: Cascade) -> Cascade:
    """v // N and v % N vanish: v --> a·N + b, and a tensor with dimension v gets the dimensions a, b instead.

    Y[v] = X[v // N, v % N];  Z[i,j] = f(Y[i·N + j])  -->  Y[a,b] = X[a,b];  Z[i,j] = f(Y[i,j])
    """
    fixed = {t.name for t in (*c.inputs, *c.outputs)} | {
        o for d in c.definitions if isinstance(d, Extern) for o in d.operands
    }
    pending = list(range(len(c.definitions)))
    while pending:
        n = pending.pop(0)
        d = c.definitions[n]
        found = _split_at(c, d, fixed) if isinstance(d, Einsum) else None
        if found is None:
            continue
        c, changed = _split(c, n, *found)
        pending += sorted(changed - set(pending))
    return c


def _split_at(c: Cascade, d: Einsum, fixed: set[str]) -> tuple[str, Expr, Expr, int | None] | None:
    """A variable that can be split: its name, N, the extent over N, and the target's dimension that it walks."""
    if len(c.defining(d.target)) > 1:
        return None
    for v, by in _divided(d):
        count = divide(poly(c.extent(v)), poly(by))
        if count is None:
            continue
        if v not in d.free:
            return v, by, count.expr(), None
        places = [i for i, e in enumerate(d.indices) if v in variables(e)]
        if len(places) != 1 or not isinstance(d.indices[places[0]], Var):
            continue
        if d.target not in fixed:
            return v, by, count.expr(), places[0]
        if d.reduced:  # the result stays where it is, at a·N + b
            return v, by, count.expr(), None
    return None


def _split(
    c: Cascade, n: int, v: str, by: Expr, count: Expr, place: int | None
) -> tuple[Cascade, set[int]]:
    """The cascade with definition n split, and the positions of the definitions that this changed."""
    d = c.definitions[n]
    assert isinstance(d, Einsum)
    ranks, a, b = two_ranks(c, d, v, count, by)
    definitions: list[Definition] = list(c.definitions)
    definitions[n] = _split_variable(d, v, a, b, by, place is not None)
    new = replace(c, ranks=ranks, definitions=tuple(definitions))
    if place is not None:
        new = _reranked(new, d.target, place, by, count)
    changed = {
        i for i, (x, y) in enumerate(zip(c.definitions, new.definitions, strict=True)) if x is not y
    }
    folded = tuple(_folded(new, x) if i in changed else x for i, x in enumerate(new.definitions))
    return replace(new, definitions=folded), changed


def _divided(d: Einsum) -> list[tuple[str, Expr]]:
    """Variables that occur divided by a size, with that size."""
    out: list[tuple[str, Expr]] = []
    for e in walk(d.body, *d.where):
        if isinstance(e, Call) and e.op in ("floordiv", "mod") and isinstance(e.args[0], Var):
            if not accesses(e.args[1]) and not variables(e.args[1]):
                out.append((e.args[0].name, e.args[1]))
    return out


def two_ranks(
    c: Cascade, d: Einsum, v: str, count: Expr, by: Expr
) -> tuple[tuple[Rank, ...], str, str]:
    """Variables for quotient and remainder: of ranks of these sizes where the definition does not use them yet."""
    ranks = list(c.ranks)
    used = set(variables(*d.indices, d.body, *d.where))

    def choose(size: Expr, suffix: str) -> str:
        for r in ranks:
            name = r.name.lower()
            if name in used or name.upper() != r.name:
                continue
            if same(r.size if r.size is not None else Size(r.name), size):
                used.add(name)
                return name
        name, n = f"{v}_{suffix}", 1
        while name in used or any(r.name == name.upper() for r in ranks):
            n += 1
            name = f"{v}_{suffix}{n}"
        ranks.append(Rank(name.upper(), size))
        used.add(name)
        return name

    a, b = choose(count, "o"), choose(by, "i")
    return tuple(ranks), a, b


def _split_variable(d: Einsum, v: str, a: str, b: str, by: Expr, free: bool) -> Einsum:
    value = {v: call("add", call("mul", Var(a), by), Var(b))}
    indices: list[Expr] = []
    for i in d.indices:
        if free and isinstance(i, Var) and i.name == v:
            indices += [Var(a), Var(b)]
        else:
            indices.append(substitute(i, value))
    reductions: list[Reduction] = []
    for r in d.reductions:
        reductions += [Reduction(a, r.monoid), Reduction(b, r.monoid)] if r.var == v else [r]
    return Einsum(d.target, tuple(indices), substitute(d.body, value), tuple(reductions),
                  tuple(substitute(p, value) for p in d.where), d.span)  # fmt: skip


def _reranked(c: Cascade, name: str, place: int, by: Expr, count: Expr) -> Cascade:
    """Every read of dimension `place` at i becomes a read at i // N, i % N."""

    def rule(n: Expr) -> Expr:
        if isinstance(n, Access) and n.tensor == name:
            i = n.indices[place]
            pair = (call("floordiv", i, by), call("mod", i, by))
            return Access(n.tensor, (*n.indices[:place], *pair, *n.indices[place + 1 :]), n.span)
        return n

    out = tuple(
        _mapped(d, rule) if isinstance(d, Einsum) and any(a.tensor == name for a in d.reads) else d
        for d in c.definitions
    )
    stops = tuple(replace(s, condition=transform(s.condition, rule)) for s in c.stops)
    t = c.tensors[name]
    shape = (*t.shape[:place], count, by, *t.shape[place + 1 :])
    return replace(
        c, definitions=out, stops=stops, tensors={**c.tensors, name: replace(t, shape=shape)}
    )


def _mapped(d: Einsum, rule: object) -> Einsum:
    body = transform(d.body, rule)  # type: ignore[arg-type]
    where = tuple(transform(p, rule) for p in d.where)  # type: ignore[arg-type]
    if body is d.body and all(a is b for a, b in zip(where, d.where, strict=True)):
        return d
    return replace(d, body=body, where=where)


def _folded(c: Cascade, d: Definition) -> Definition:
    """Indices simplified again."""
    if isinstance(d, Extern):
        return d
    extents = c.extents(d)

    def rule(n: Expr) -> Expr:
        if not isinstance(n, Access):
            return n
        new = tuple(
            simplify_index(i, extents) if _divides(i) and not accesses(i) else i for i in n.indices
        )
        return (
            n
            if all(a is b for a, b in zip(new, n.indices, strict=True))
            else Access(n.tensor, new, n.span)
        )

    return _mapped(d, rule)


def _divides(e: Expr) -> bool:
    return any(isinstance(n, Call) and n.op in ("floordiv", "mod") for n in walk(e))


def drop_unit_variables(c: Cascade) -> Cascade:
    """T[u] = f(u) over a rank of one coordinate becomes T[0] = f(0)."""
    out: list[Definition] = []
    for d in c.definitions:
        if isinstance(d, Einsum) and len(c.defining(d.target)) == 1:
            extents = c.extents(d)
            units: dict[str, Expr] = {
                i.name: Const(0)
                for i in d.indices
                if isinstance(i, Var) and poly(c.resolved(extents[i.name])).constant == 1
            }
            if units:
                d = replace(
                    d, indices=tuple(substitute(i, units) for i in d.indices),
                    body=substitute(d.body, units),
                    where=tuple(substitute(p, units) for p in d.where),
                )  # fmt: skip
        out.append(d)
    same_ones = all(a is b for a, b in zip(out, c.definitions, strict=True))
    return c if same_ones else replace(c, definitions=tuple(out))


def drop_unit_dimensions(c: Cascade) -> Cascade:
    """T[i,0] of a tensor with one coordinate there becomes T[i]."""
    fixed = {t.name for t in (*c.inputs, *c.outputs)} | {
        o for d in c.definitions if isinstance(d, Extern) for o in d.operands
    }
    fixed |= {t.name for d in c.definitions if isinstance(d, Extern) for t in d.targets}
    gone: dict[str, list[int]] = {}
    for name, t in c.tensors.items():
        if name in fixed:
            continue
        units = [n for n, s in enumerate(t.shape) if poly(s).constant == 1]
        writers = [d for d in c.defining(name) if isinstance(d, Einsum)]
        units = [n for n in units if all(isinstance(d.indices[n], Const) for d in writers)]
        if units:
            gone[name] = units
    for d in c.definitions:
        if not isinstance(d, Einsum):
            continue
        extents = c.extents(d)
        for a in d.reads:
            shape = c.tensors[a.tensor].shape
            gone[a.tensor] = [
                n for n in gone.get(a.tensor, []) if within(a.indices[n], shape[n], extents)
            ]
    gone = {name: units for name, units in gone.items() if units}
    if not gone:
        return c

    def short(name: str, indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
        return tuple(i for n, i in enumerate(indices) if n not in gone.get(name, []))

    def rule(n: Expr) -> Expr:
        return (
            Access(n.tensor, short(n.tensor, n.indices), n.span)
            if isinstance(n, Access) and n.tensor in gone
            else n
        )

    out: list[Definition] = []
    for d in c.definitions:
        if isinstance(d, Einsum):
            d = _mapped(d, rule)
            if d.target in gone:
                d = replace(d, indices=short(d.target, d.indices))
        out.append(d)
    tensors = {
        n: replace(t, shape=short(n, t.shape)) if n in gone else t for n, t in c.tensors.items()
    }
    stops = tuple(replace(s, condition=transform(s.condition, rule)) for s in c.stops)
    return replace(c, definitions=tuple(out), stops=stops, tensors=tensors)
