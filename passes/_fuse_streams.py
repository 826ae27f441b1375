"""Tensors that are much larger than all around them are not stored: every walk that reduces them computes its tiles.

S[m,p] = Σ_e …;  X[e,p] = Σ_m S[m,p] · …;  Y[e,m] = Σ_p S[m,p] · …
  -->  S, S_2 = S;  joint m: X;  joint p: Y, of S_2
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Field, Joint
from tcc.ir.expr import Access, Const, Expr, Var, accesses, transform, variables
from tcc.ir.ops import MONOIDS
from tcc.passes._algebra import (
    contraction,
    elements,
    factors,
    plain_variables,
    product,
    renamed,
)
from tcc.passes._dots import dot_of
from tcc.passes._empty_rows import defers

RATIO = 4  # how many times larger than its neighbours a tensor has to be


@dataclass
class _Walk:
    """Reductions along one dimension of large tensors, and the definitions of these in program order."""

    var: str
    fields: list[Einsum]
    sources: list[Einsum]


def streams(c: Cascade) -> Cascade:
    """The program with a joint reduction for every walk over large tensors, each with definitions of its own."""
    if c.groups:
        return c
    large = _large(c)
    walks: list[_Walk] = []
    for part in _parts(c, large):
        found = _walks(c, part)
        if found is not None:
            walks += found
    if not walks:
        return c
    definitions: list[Definition] = []
    new: dict[str, list[Definition]] = {}  # what stands in for a definition
    joints = list(c.joints)
    taken = set(c.tensors)
    seen: set[str] = set()
    for w in walks:
        names = {
            d.target: _fresh(d.target, taken) if d.target in seen else d.target for d in w.sources
        }
        seen |= {d.target for d in w.sources}
        for source in w.sources:
            new.setdefault(source.target, []).append(_reading(source, names))
        fields: list[Field] = []
        for whole in w.fields:
            state, rest = _scaled(c, whole, _fresh(f"{whole.target}_sum", taken))
            fields.append(Field(state.target))
            new.setdefault(whole.target, []).extend([_reading(state, names), rest])
        joints.append(Joint(w.var, tuple(fields)))
    for d in c.definitions:
        definitions += new.get(d.target, [d]) if isinstance(d, Einsum) else [d]
    from tcc.ir.infer import build

    return build(replace(c, definitions=tuple(definitions), joints=tuple(joints)))


def _large(c: Cascade) -> list[Einsum]:
    """Definitions of tensors that are never needed at once, and larger than what they are made of and made into."""
    outputs = {t.name for t in c.outputs} | {t for j in c.joints for t in j.tensors}
    outputs |= {a.tensor for s in c.stops for a in accesses(s.condition)}
    found: dict[str, Einsum] = {}
    for d in c.definitions:
        if (
            not isinstance(d, Einsum)
            or d.target in outputs
            or len(c.defining(d.target)) != 1
            or len(set(plain_variables(d))) != len(d.indices)
            or len(d.indices) < 2
            or dot_of(c, d) is not None  # stays next to what follows it, tile by tile
        ):
            continue
        size = elements(c, d.target)
        if all(a.tensor in found or size > RATIO * elements(c, a.tensor) for a in d.reads):
            found[d.target] = d
    while True:
        bad = {
            t for t in found
            for r in c.readers(t)
            if not isinstance(r, Einsum) or (r.target not in found and not _reduces(c, r, found))
        }  # fmt: skip
        for j in c.joints:  # what belongs to a walk already stays there
            bad |= {t for t in found if any(isinstance(r, Einsum) and r.target in j.tensors for r in c.readers(t))}  # fmt: skip
        bad |= {t for t, d in found.items() if any(r.target in bad for r in c.readers(t) if isinstance(r, Einsum))}  # fmt: skip
        bad |= {t for t, d in found.items() if any(a.tensor in bad for a in d.reads)}
        if not bad & set(found):
            return list(found.values())
        found = {t: d for t, d in found.items() if t not in bad}


def _reduces(c: Cascade, r: Einsum, large: dict[str, Einsum]) -> bool:
    """Whether a definition reduces the large tensors that it reads along one of their dimensions, to something small."""
    if len(r.reduced) != 1 or len(c.defining(r.target)) != 1:
        return False
    if len(r.free) != sum(isinstance(i, Var) for i in r.indices) or not all(
        isinstance(i, Var | Const) for i in r.indices
    ):
        return False
    read = [a for a in r.reads if a.tensor in large]
    plain = all(isinstance(i, Var) for a in read for i in a.indices)
    walked = all(any(i.name == r.reduced[0] for i in a.indices if isinstance(i, Var)) for a in read)
    small = all(elements(c, a.tensor) > RATIO * elements(c, r.target) for a in read)
    return plain and walked and small


def _parts(c: Cascade, large: list[Einsum]) -> list[list[Einsum]]:
    """The large definitions, those together that share a reader or read each other."""
    parts: list[list[Einsum]] = []
    for d in large:
        near = {a.tensor for a in d.reads} | {d.target}
        for r in c.readers(d.target):
            near |= {a.tensor for a in r.reads}
        joined = [p for p in parts if any(x.target in near for x in p)]
        parts = [p for p in parts if p not in joined] + [[*(x for p in joined for x in p), d]]
    order = {d.target: n for n, d in enumerate(large)}
    return [sorted(p, key=lambda d: order[d.target]) for p in parts]


def _walks(c: Cascade, part: list[Einsum]) -> list[_Walk] | None:
    """The walks that reduce a part; None where there is no product to save, or the variables cannot be aligned."""
    if not any(contraction(d) for d in part):
        return None
    made = {d.target: d for d in part}
    readers = [
        r for r in c.definitions
        if isinstance(r, Einsum) and r.target not in made and any(a.tensor in made for a in r.reads)
    ]  # fmt: skip
    aligned = _aligned(part, readers)
    if aligned is None:
        return None
    every = {d.target: d for d in aligned}
    walks: dict[str, list[Einsum]] = {}
    for r in readers:
        d = every[r.target]
        walks.setdefault(d.reduced[0], []).append(d)
    found = []
    for v, fields in walks.items():
        needed = {a.tensor for d in fields for a in d.reads if a.tensor in made}
        for d in reversed(part):
            if d.target in needed:
                needed |= {a.tensor for a in d.reads if a.tensor in made}
        sources = [every[d.target] for d in part if d.target in needed]
        if any(v not in d.free for d in sources):
            return None
        found.append(_Walk(v, fields, sources))
    return found


def _aligned(part: list[Einsum], readers: list[Einsum]) -> list[Einsum] | None:
    """The definitions with one name for each dimension that they share, taken from the first of them."""
    done: dict[str, Einsum] = {part[0].target: part[0]}
    left = [*part[1:], *readers]
    while left:
        for d in left:
            ties: dict[str, str] = {}
            linked = False
            pairs = [(a, done[a.tensor]) for a in d.reads if a.tensor in done]
            pairs += [
                (Access(d.target, d.indices), Einsum(d.target, a.indices, a))
                for x in done.values() for a in x.reads if a.tensor == d.target
            ]  # fmt: skip
            for a, x in pairs:
                linked = True
                for i, j in zip(a.indices, x.indices, strict=True):
                    if not isinstance(i, Var) or not isinstance(j, Var):
                        return None
                    if ties.setdefault(i.name, j.name) != j.name:
                        return None
            if linked:
                break
        else:
            return None
        left.remove(d)
        new = {k: v for k, v in ties.items() if k != v}
        others = set(variables(*d.indices, d.body, *d.where)) - set(ties)
        if others & set(ties.values()) or len(set(ties.values())) < len(ties):
            return None
        done[d.target] = renamed(d, new) if new else d
    return [done[d.target] for d in (*part, *readers)]


def _scaled(c: Cascade, d: Einsum, name: str) -> tuple[Einsum, Einsum]:
    """T = Σ a · b  -->  S = Σ a;  T = S · b, where b does not depend on what is reduced."""
    group = MONOIDS[d.monoid(d.reduced[0])].group
    parts = factors(d.body, group) if group is not None else [d.body]
    reduced = set(d.reduced)
    inner = [f for f in parts if reduced & set(variables(f))]
    scale = [f for f in parts if not reduced & set(variables(f))]
    if not inner or group is None or not defers(c, d, scale):
        inner, scale = [d.body], []
    at = tuple(Var(v) for v in d.free)
    kept = tuple(p for p in d.where if reduced & set(variables(p)))
    state = Einsum(name, at, product(inner, group or ""), d.reductions, kept, d.span)
    value = product([Access(name, at), *scale], group or "")
    left = tuple(p for p in d.where if not reduced & set(variables(p)))
    return state, Einsum(d.target, d.indices, value, (), left, d.span)


def _fresh(name: str, taken: set[str]) -> str:
    fresh, n = name, 1
    while fresh in taken:
        n += 1
        fresh = f"{name}_{n}"
    taken.add(fresh)
    return fresh


def _reading(d: Einsum, names: dict[str, str]) -> Einsum:
    """The definition with the names that its walk gives to large tensors."""

    def rule(n: Expr) -> Expr:
        new = names.get(n.tensor) if isinstance(n, Access) else None
        return replace(n, tensor=new) if isinstance(n, Access) and new is not None else n

    return replace(
        d, target=names.get(d.target, d.target), body=transform(d.body, rule),
        where=tuple(transform(p, rule) for p in d.where),
    )  # fmt: skip
