"""Reductions that one walk computes together: which fields, what a step does to each, and which tiles it visits.

    before:  T = identity
    a tile:  T_old = T;  T = correction(T);  update T = f(tile, fields so far)

A value that a field has so far counts as 0 where it is still the infinite identity of its monoid (no score was seen:
exp(-inf - 0) = 0), except where it is compared, and a correction is left out where nothing it follows has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from tcc.ir.cascade import Cascade, Einsum, Field
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
    text,
    transform,
    variables,
)
from tcc.ir.index import Poly, gap, poly
from tcc.ir.joint_laws import references
from tcc.ir.joint_verify import Walk
from tcc.ir.ops import MONOIDS, OPS, identity_of
from tcc.passes._algebra import factors, product
from tcc.passes._polyhedra import tile_conditions


@dataclass(frozen=True)
class Together:
    """Fields that one walk over `var` computes; `between` are tensors that it evaluates with the values so far."""

    var: str
    fields: tuple[tuple[Field, Einsum], ...]
    between: frozenset[str] = frozenset()

    @property
    def members(self) -> list[Einsum]:
        return [d for _, d in self.fields]

    def remembered(self, n: int) -> bool:
        """Whether a later correction needs the value that field n had before the tile."""
        name = self.fields[n][0].tensor
        later = [f.correction for f, _ in self.fields[n + 1 :] if f.correction is not None]
        return any(a.tensor.removesuffix("'") == name for e in later for a in accesses(e))


def held(walk: Walk, members: Mapping[str, Einsum], keeps: Callable[[Einsum], bool]) -> Together:
    """The fields of a joint whose state registers hold and that need no field which they do not."""
    kept: list[tuple[Field, Einsum]] = []
    names: set[str] = set()
    for f in walk.joint.fields:
        read = {a.tensor for d in (walk.fields[f.tensor], *_above(walk, f.tensor)) for a in d.reads}
        if f.correction is not None:
            read |= {a.tensor.removesuffix("'") for a in accesses(f.correction)}
        needed = read & set(walk.joint.tensors) - {f.tensor}
        if keeps(members[f.tensor]) and needed <= names:
            kept.append((f, members[f.tensor]))
            names.add(f.tensor)
    between = {d.target for f, _ in kept for d in walk.between[f.tensor]}
    return Together(walk.joint.var, tuple(kept), frozenset(between))


def _above(walk: Walk, tensor: str) -> list[Einsum]:
    """The definitions between fields that a field needs, those included that an earlier field needs, too."""
    known = {d.target: d for ds in walk.between.values() for d in ds}
    found: dict[str, Einsum] = {}
    pending = [a.tensor for a in walk.fields[tensor].reads]
    while pending:
        name = pending.pop()
        if name in known and name not in found:
            found[name] = known[name]
            pending += [a.tensor for a in known[name].reads]
    return list(found.values())


def identity(c: Cascade, d: Einsum) -> Const:
    """What an empty reduction gives, in the type of the target."""
    dtype = c.tensors[d.target].dtype.numpy
    return Const(identity_of(MONOIDS[d.monoid(d.reduced[0])], dtype).item())


def so_far(c: Cascade, d: Einsum, value: Access) -> Expr:
    """The value of field `d` as a definition of the walk sees it."""
    infinite = MONOIDS[d.monoid(d.reduced[0])].identity in (float("inf"), float("-inf"))
    if not infinite:
        return value
    zero = Const(0.0 if c.tensors[d.target].dtype.is_float else 0)
    return call("select", call("eq", value, identity(c, d)), zero, value)


def corrected(
    c: Cascade, w: Together, n: int, local: Callable[[str], str], old: Mapping[str, str]
) -> Expr | None:
    """What field n becomes before a tile joins it; None where it follows nothing.

    T · g(r, r')  -->  T · select(r == r', 1, g(r, r')), where the monoid's group operator makes the correction.
    """
    f, d = w.fields[n]
    if f.correction is None:
        return None
    at = {g.tensor: e.indices for g, e in w.fields}
    earlier = {g.tensor for g, _ in w.fields[:n]}

    def rule(e: Expr) -> Expr:
        if not isinstance(e, Access) or e.tensor.removesuffix("'") not in at:
            return e
        name = e.tensor.removesuffix("'")
        before = name == e.tensor and name in earlier
        return Access(old[name] if before else local(name), at[name])

    same: Expr | None = None
    for name in references(f):
        part = call("eq", Access(old[name], at[name]), Access(local(name), at[name]))
        same = part if same is None else call("and", same, part)
    group = MONOIDS[d.monoid(w.var)].group
    own = Access(local(f.tensor), d.indices)
    whole = transform(f.correction, rule)
    if same is None:
        return whole
    if group is not None and (unit := OPS[group].identity) is not None:
        parts = factors(f.correction, group)
        rest = [p for p in parts if text(p) != f.tensor]
        if len(rest) == len(parts) - 1 and not any(
            a.tensor == f.tensor for p in rest for a in accesses(p)
        ):
            factor = transform(product(rest, group), rule) if rest else Const(unit)
            one = Const(float(unit) if c.tensors[d.target].dtype.is_float else unit)
            return call(group, own, call("select", same, one, factor))
    return call("select", same, own, whole)


Part = tuple[
    Expr | None, frozenset[str]
]  # condition on a tile, the predicates that hold on all of it


def parts_of(
    predicates: Sequence[Expr], var: str, step: int, extents: Mapping[str, Expr], even: bool
) -> list[Part]:
    """The loops over `var` that together visit every tile in which the predicates allow a point.

    First the tiles on which every affine predicate holds and that are complete, then those that are left: only there
    a point has to be checked. `even` tells that every tile is complete.
    """
    affine = [p for p in predicates if _conditions([p], var, step, extents) is not None]
    inside = [] if even else [call("lt", Var(var), extents[var])]
    wanted = [*affine, *inside]
    found = _conditions(wanted, var, step, extents) if wanted else None
    if found is None:
        return [(None, frozenset())]
    full = _pruned(found[0])
    some = _some(affine, var, step, extents)
    certain = frozenset(map(text, affine))
    if isinstance(full, Const):
        return [(some, certain if full.value else frozenset())]
    if isinstance(full, Call) and full.op == "or":  # several ranges: one loop with masks is shorter
        return [(some, frozenset())]
    left = negated(full)
    return [(full, certain), (left if some is None else call("and", some, left), frozenset())]


def _some(affine: list[Expr], var: str, step: int, extents: Mapping[str, Expr]) -> Expr | None:
    """Whether a tile has a point at all; None where that is certain."""
    none = _conditions([negated(_all(affine))], var, step, extents) if affine else None
    if none is None:
        return None
    some = negated(_pruned(none[0]))
    return None if isinstance(some, Const) else some


def _conditions(
    predicates: Sequence[Expr], var: str, step: int, extents: Mapping[str, Expr]
) -> tuple[Expr, Expr] | None:
    """`tile_conditions` of tiles that are complete, the last one too, whose end may so be beyond the extent."""
    names = {v for p in predicates for v in variables(p)} | {var}
    beyond = {v: call("add", e, Const(step - 1)) if v == var else e for v, e in extents.items()}
    found = tile_conditions(predicates, {v: beyond[v] for v in sorted(names)})
    if found is None:
        return None
    end: dict[str, Expr] = {f"{var}.high": call("add", Var(f"{var}.low"), Const(step))}
    full, part = (_folded(substitute(e, end), var) for e in found)
    return full, part


_MIRRORED = {"le": "ge", "ge": "le", "lt": "gt", "gt": "lt", "eq": "eq", "ne": "ne"}


def _folded(e: Expr, var: str) -> Expr:
    """Comparisons with one constant, the tile on the left: M >= m.low + 64 + 1 --> m.low + 65 <= M."""

    def rule(n: Expr) -> Expr:
        if isinstance(n, Call) and n.op in _MIRRORED:
            gap = poly(n.args[0]) - poly(n.args[1])
            if gap.constant is not None:
                return Const(bool(OPS[n.op].evaluate(gap.constant, 0)))
            sides = [
                Poly({k: v * s for k, v in gap.terms.items() if v * s > 0}, gap.atoms).expr()
                for s in (1, -1)
            ]
            if f"{var}.low" in variables(sides[1]):
                return Call(_MIRRORED[n.op], (sides[1], sides[0]), n.span)
            return Call(n.op, (sides[0], sides[1]), n.span)
        if isinstance(n, Call) and n.op in ("and", "or"):
            known = [a for a in n.args if isinstance(a, Const)]
            if known:
                decided = bool(known[0].value) == (n.op == "or")
                return known[0] if decided else next(a for a in n.args if a is not known[0])
        return n

    return transform(e, rule)


def _pruned(e: Expr) -> Expr:
    """A disjunction of conjunctions without the terms that never hold and the comparisons that always do.

    Sizes and ends of tiles are 0 or more, and v.low < v.high.
    """
    terms: list[Expr] = []
    for term in _operands(e, "or"):
        atoms = [a for a in _operands(term, "and") if not _certain(gap(a))]
        gaps = [gap(a) for a in atoms]
        sums = [a + b for n, a in enumerate(gaps) for b in gaps[: n + 1] if a and b]
        if any(_certain(g.scaled(-1) - Poly({(): 1})) for g in sums):
            continue
        terms.append(_all(atoms) if atoms else Const(True))
    if not terms or any(isinstance(t, Const) and t.value for t in terms):
        return Const(bool(terms))
    return reduce(lambda a, b: call("or", a, b), terms)


def _operands(e: Expr, op: str) -> list[Expr]:
    if isinstance(e, Call) and e.op == op:
        return [x for a in e.args for x in _operands(a, op)]
    return [e]


def _certain(gap: Poly | None) -> bool:
    """Whether it is 0 or more for any sizes and tiles: v.high counts as v.low + 1 and something more."""
    if gap is None:
        return False
    longer = {
        a: call("add", call("add", Var(f"{x.name[:-5]}.low"), Const(1)), Var(f"{x.name[:-5]}.more"))
        for a, x in gap.atoms.items()
        if isinstance(x, Var) and x.name.endswith(".high")
    }  # fmt: skip
    shifted = poly(substitute(gap.expr(), longer))
    plain = all(isinstance(shifted.atoms[a], Var | Size) for k in shifted.terms for a in k)
    return plain and all(v >= 0 for v in shifted.terms.values())


_OPPOSITE = {"le": "gt", "gt": "le", "lt": "ge", "ge": "lt", "eq": "ne", "ne": "eq"}


def negated(e: Expr) -> Expr:
    """not e, moved inwards where that leaves comparisons and their conjunctions."""
    if isinstance(e, Const):
        return Const(not e.value)
    if isinstance(e, Call) and e.op in _OPPOSITE:
        return call(_OPPOSITE[e.op], *e.args)
    if isinstance(e, Call) and e.op == "not":
        return e.args[0]
    if isinstance(e, Call) and e.op == "or":
        return call("and", *map(negated, e.args))
    return call("not", e)


def _all(predicates: Sequence[Expr]) -> Expr:
    return reduce(lambda a, b: call("and", a, b), predicates)
