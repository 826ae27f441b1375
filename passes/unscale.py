"""Scaled inputs become their parts: codes, scales and whatever else groups share are tensors like any other."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Einsum, Extern, Rank, Tensor
from tcc.ir.dtype import Scaled
from tcc.ir.expr import Access, Const, Expr, Size, Var, call, transform
from tcc.ir.index import within
from tcc.ir.scaled_parts import Names, divided, parts_of, rank_groups, value_at
from tcc.ir.target import Target
from tcc.passes._scaled_outputs import encoded, stored_by_parts


def unscale(c: Cascade, target: Target) -> Cascade:
    """A read of a scaled tensor becomes arithmetic on its parts, which the program gets as inputs instead.

    in W: u4[group k 128, scale f16, zero 8][N, K]   -->   in W_codes: u4[N, K], W_scale: f16[N, K_GROUPS]
    W[n, k]   -->   (f32(W_codes[n, k]) - 8) * f32(W_scale[n, k // 128])

    A rank K of unknown size that has groups is K_GROUPS * 128 from then on. A read that may lie outside is
    `select(inside, …, fill)`. Inputs that are outputs or that externs read stay as they are. Scaled outputs become their
    parts, too, where `_scaled_outputs` says how.
    """
    kept = {t.name for t in c.outputs}
    kept |= {o for d in c.definitions if isinstance(d, Extern) for o in d.operands}
    scaled = [t for t in c.inputs if isinstance(t.dtype.form, Scaled) and t.name not in kept]
    stored = [t for t in c.outputs if stored_by_parts(c, t) is not None]
    if not scaled and not stored:
        return c
    c = replace(c, ranks=_grouped(c, [*scaled, *stored]))

    def over(size: Expr, n: int) -> Expr:
        return divided(c.resolved(size), n)

    taken = set(c.tensors)
    names: dict[str, Names] = {}
    inputs: list[Tensor] = []
    for t in c.inputs:
        if t not in scaled:
            inputs.append(t)
            continue
        mine = names[t.name] = {}
        for p in parts_of(t.dtype, t.axes, t.shape, over):
            mine[p.path] = _fresh(f"{t.name}_{p.name}", taken)
            inputs.append(Tensor(mine[p.path], p.dtype, p.shape, 0, t.span, t.constant))
    made = tuple(_read(c, d, names) if isinstance(d, Einsum) else d for d in c.definitions)
    from tcc.ir.infer import build

    c = replace(c, inputs=tuple(inputs), definitions=made)
    taken |= {r.name for r in c.ranks}
    for t in stored:
        d = stored_by_parts(c, t)
        assert d is not None
        c = encoded(c, t, d, taken)
    return build(c)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _grouped(c: Cascade, scaled: list[Tensor]) -> tuple[Rank, ...]:
    """The ranks, those of unknown size with groups as multiples of the groups' lengths."""
    lengths = rank_groups(scaled)
    names = {r.name for r in c.ranks}
    found: list[Rank] = []
    for r in c.ranks:
        n = lengths.get(r.name)
        if n is None or r.size is not None:
            found.append(r)
            continue
        groups = _fresh(f"{r.name}_GROUPS", names)
        found.append(Rank(groups, None, r.span))
        found.append(replace(r, size=call("mul", Size(groups), Const(n))))
    return tuple(found)


def _read(c: Cascade, d: Einsum, names: dict[str, Names]) -> Einsum:
    """The definition with every read of a scaled tensor as arithmetic on its parts."""
    if not any(a.tensor in names for a in d.reads):
        return d
    extents = c.extents(d)

    def rule(n: Expr) -> Expr:
        if not (isinstance(n, Access) and n.tensor in names):
            return n
        t = c.tensors[n.tensor]
        value = value_at(t.dtype, t.axes, names[n.tensor], n.indices)
        held: Expr | None = None
        for i, size in zip(n.indices, t.shape, strict=True):
            if isinstance(i, Var) and c.same_size(extents[i.name], size):
                continue
            if not within(i, c.resolved(size), {v: c.resolved(e) for v, e in extents.items()}):
                p = call("and", call("ge", i, Const(0)), call("lt", i, size))
                held = p if held is None else call("and", held, p)
        return value if held is None else call("select", held, value, Const(float(t.fill)))

    return replace(
        d, body=transform(d.body, rule), where=tuple(transform(p, rule) for p in d.where)
    )
