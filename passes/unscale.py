"""Scaled inputs become their parts: codes, scales and whatever else groups share are tensors like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Rank, Tensor
from tcc.ir.dtype import Coded, Scaled
from tcc.ir.expr import Access, Const, Expr, Size, Var, call, transform
from tcc.ir.index import within
from tcc.ir.scaled_parts import Names, divided, parts_of, rank_groups, value_at
from tcc.ir.target import Target
from tcc.passes._scaled_outputs import encoded, stored_by_parts, written


def unscale(c: Cascade, target: Target) -> Cascade:
    """A read of a scaled tensor becomes arithmetic on its parts, which the program gets as inputs instead.

    in W: u4[group k 128, scale f16, zero 8][N, K]   -->   in W_codes: u4[N, K], W_scale: f16[N, K_GROUPS]
    W[n, k]   -->   (f32(W_codes[n, k]) - 8) * f32(W_scale[n, k // 128])

    A rank K of unknown size that has groups is K_GROUPS * 128 from then on. A read that may lie outside is
    `select(inside, …, fill)`. Inputs that externs read stay as they are. Scaled outputs become their parts, too, as
    `_scaled_outputs` says, and coded ones their elements.
    """
    kept = {o for d in c.definitions if isinstance(d, Extern) for o in d.operands}
    scaled = [t for t in c.inputs if isinstance(t.dtype.form, Scaled) and t.name not in kept]
    stored = [t for t in c.outputs if stored_by_parts(c, t)]
    bits = [t for t in c.outputs if isinstance(t.dtype.form, Coded) and written(c, t)]
    if not scaled and not stored and not bits:
        return c
    c = replace(c, ranks=_grouped(c, [*scaled, *stored]))

    def over(size: Expr, n: int) -> Expr:
        return divided(c.resolved(size), n)

    taken = set(c.tensors)
    names: dict[str, Names] = {}
    inputs: dict[str, list[Tensor]] = {}
    for t in c.inputs:
        if t not in scaled:
            inputs[t.name] = [t]
            continue
        mine = names[t.name] = {}
        made = inputs[t.name] = []
        for p in parts_of(t.dtype, t.axes, t.shape, over):
            mine[p.path] = _fresh(f"{t.name}_{p.name}", taken)
            packed = t.packed and p.path == ("codes",)
            made.append(Tensor(mine[p.path], p.dtype, p.shape, 0, t.span, t.constant, packed=packed))  # fmt: skip
    outputs = [x for t in c.outputs for x in (inputs[t.name] if t.name in names else [t])]
    taken |= {r.name for r in c.ranks}
    c = replace(
        c, inputs=tuple(t for mine in inputs.values() for t in mine), outputs=tuple(outputs)
    )
    held = dict(c.tensors)
    for t in stored:
        c, found = encoded(c, t, taken)
        if isinstance(found, str):
            c = replace(c, definitions=tuple(_renamed(d, t.name, found) for d in c.definitions),
                        stops=tuple(replace(s, condition=transform(s.condition, _naming(t.name, found))) for s in c.stops))  # fmt: skip
        else:
            names[t.name] = found
    for t in bits:
        c = _uncoded(c, t, taken)
    read = (_read(c, held, d, names) if isinstance(d, Einsum) else d for d in c.definitions)
    from tcc.ir.infer import build

    return build(replace(c, definitions=tuple(read)))


def _uncoded(c: Cascade, t: Tensor, taken: set[str]) -> Cascade:
    """The program with the elements of a coded output, which the caller gets coded."""
    assert isinstance(t.dtype.form, Coded)
    plain = replace(t, name=_fresh(f"{t.name}_elements", taken), dtype=t.dtype.form.element)
    named = (_renamed(d, t.name, plain.name) for d in c.definitions)
    made = (
        replace(d, target=plain.name) if isinstance(d, Einsum) and d.target == t.name else d
        for d in named
    )
    outputs = tuple(plain if o is t else o for o in c.outputs)
    return replace(c, outputs=outputs, definitions=tuple(made))


def _naming(old: str, new: str) -> Callable[[Expr], Expr]:
    return lambda n: replace(n, tensor=new) if isinstance(n, Access) and n.tensor == old else n


def _renamed(d: Definition, old: str, new: str) -> Definition:
    if not isinstance(d, Einsum):
        return d
    rule = _naming(old, new)
    where = tuple(transform(p, rule) for p in d.where)
    return replace(d, body=transform(d.body, rule), where=where)


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


def _read(c: Cascade, tensors: dict[str, Tensor], d: Einsum, names: dict[str, Names]) -> Einsum:
    """The definition with every read of a scaled tensor as arithmetic on its parts."""
    if not any(a.tensor in names for a in d.reads):
        return d
    extents = c.extents(d)

    def rule(n: Expr) -> Expr:
        if not (isinstance(n, Access) and n.tensor in names):
            return n
        t = tensors[n.tensor]
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
