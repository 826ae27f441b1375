"""One walk cut into parts: the definitions of a part, and of the merge.

SD[p] = exp(QK[m,p] - GM[p]);  joint m: GM, SD by SD * exp(GM - GM')
  -->  GM_part[s,p] = QK_part[s,w,p] :: max(w);  SD_part[s,p] = exp(QK_part[s,w,p] - GM_zero[s,p]);  joint w: …
       GM[p] = GM_part[s,p] :: max(s)
       SD_shift[s,p] = select(GM_part[s,p] == GM[p], 1, exp(GM_part[s,p] - GM[p]));  SD[p] = SD_part[s,p] * SD_shift[s,p]

A reference that saw nothing is the identity of its monoid; where that is infinite it counts as 0 in the definitions of
a part, as it does in every walk: `GM_zero`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from tcc.ir.cascade import Cascade, Definition, Einsum, Field, Joint, Rank, Reduction
from tcc.ir.expr import (
    Access,
    Call,
    Const,
    Expr,
    Var,
    accesses,
    call,
    children,
    substitute,
    text,
    transform,
    variables,
    with_children,
)
from tcc.ir.index import poly
from tcc.ir.infer import build
from tcc.ir.joint_laws import references
from tcc.ir.ops import MONOIDS, OPS
from tcc.passes._algebra import contraction, factors, product
from tcc.passes._fuse_joints import gathered
from tcc.passes._prune import drop_ranks


def divided(c: Cascade, joint: Joint, members: Sequence[Einsum], length: int) -> Cascade:
    """The program with a walk in parts of `length` coordinates; `members` are all definitions of the walk."""
    return _Division(c, joint, members, length).run()


def streamed(members: Sequence[Einsum]) -> bool:
    """Whether a walk is streamed as a joint; a product alone, or a sum over several variables, is mapped as itself."""
    d = members[0]
    plain = (
        len(d.reduced) == 1 and not contraction(d) and all(isinstance(i, Var) for i in d.indices)
    )
    return len(members) > 1 or plain


class _Division:
    def __init__(self, c: Cascade, joint: Joint, members: Sequence[Einsum], length: int) -> None:
        self.c, self.joint = c, joint
        own = [d for d in c.definitions if isinstance(d, Einsum) and any(d is m for m in members)]
        self.order = gathered(c, [own]) or list(c.definitions)
        self.members = [d for d in self.order if isinstance(d, Einsum) and any(d is m for m in own)]
        self.var, extent = joint.var, c.extent(joint.var)
        known = poly(c.resolved(extent)).constant
        # one more than are full: no coordinate at all is an empty part
        count: Expr = call("add", call("floordiv", extent, Const(length)), Const(1))
        if known is not None:
            count = Const(max(1, -(-known // length)))
        self.ranks = list(c.ranks)
        self.part = self._rank(f"{self.var}_part", count)
        self.inner = self._rank(f"{self.var}_in", Const(length))
        self.at = call("add", call("mul", Var(self.part), Const(length)), Var(self.inner))
        whole = known is not None and known % length == 0
        self.inside = None if whole else call("lt", self.at, extent)
        self.fields = {d.target: d for d in self.members if d.target in joint.tensors}
        self.taken = set(c.tensors)
        self.parts = {d.target: self._fresh(f"{d.target}_part") for d in self.members}
        self.places = {d.target: self._place(d) for d in self.members}
        self.zeros = {
            t: self._fresh(f"{t}_zero") for t, d in self.fields.items()
            if self._infinite(d) and any(a.tensor == t for x in self.members for a in x.reads)
        }  # fmt: skip
        self.shifts: dict[str, Access] = {}

    def run(self) -> Cascade:
        new: list[Definition] = []
        for d in self.members:
            new.append(self._clone(d))
            if d.target in self.zeros:
                new.append(self._zero(d))
        for f in self.joint.fields:
            new += self._merged(f)
        outside = {a.tensor for d in self.order if d not in self.members for a in d.reads}
        outside |= {t.name for t in self.c.outputs}
        outside |= {a.tensor for s in self.c.stops for a in accesses(s.condition)}
        late = [d for d in self.members if self.var not in (*d.free, *d.reduced)]
        for d in reversed(late):
            if d.target in outside:
                outside |= {a.tensor for a in d.reads}
        new += [d for d in late if d.target in outside]
        first = next(n for n, d in enumerate(self.order) if d is self.members[0])
        left = [d for d in self.order if not any(d is m for m in self.members)]
        definitions = (*left[:first], *new, *left[first:])
        joints = tuple(j for j in self.c.joints if not self.fields.keys() & set(j.tensors))
        if streamed(self.members):
            joints = (*joints, self._joint())
        return drop_ranks(
            build(
                replace(
                    self.c,
                    ranks=tuple(self.ranks),
                    definitions=definitions,
                    joints=joints,
                    tensors={},
                )
            )
        )

    # ---- names

    def _rank(self, var: str, size: Expr) -> str:
        """A variable of its own whose rank has that size."""
        name, n = var, 1
        while any(r.name == name.upper() for r in self.ranks):
            n += 1
            name = f"{var}{n}"
        self.ranks.append(Rank(name.upper(), size))
        return name

    def _fresh(self, name: str) -> str:
        out, n = name, 1
        while out in self.taken:
            n += 1
            out = f"{name}{n}"
        self.taken.add(out)
        return out

    def _place(self, d: Einsum) -> int:
        """Where a part's number stands among the indices: rows behind it share what a part reads."""
        along = [
            set(variables(a)) for x in self.members for a in x.reads
            if a.tensor not in self.parts and self.var in variables(a)
        ]  # fmt: skip
        own = set.intersection(*along) if along else set()
        rows = set.intersection(*(set(x.free) for x in self.fields.values()))
        for n, i in enumerate(d.indices):
            if not isinstance(i, Var) or i.name not in rows or i.name not in own:
                return n
        return len(d.indices)

    # ---- a part

    def _clone(self, d: Einsum) -> Einsum:
        """A definition of the walk for one part."""
        at = list(self._indices(d.target, d.indices))
        where = [self._within(p) for p in d.where]
        if self.inside is not None and self.var in (*d.free, *d.reduced):
            where.append(self.inside)
        reductions = tuple(
            replace(r, var=self.inner if r.var == self.var else r.var) for r in d.reductions
        )
        if self.var in d.reduced and not any(r.var == self.inner for r in reductions):
            reductions = (*reductions, Reduction(self.inner, d.monoid(self.var)))
        return replace(
            d, target=self.parts[d.target], indices=tuple(at), body=self._within(d.body),
            reductions=reductions, where=tuple(where),
        )  # fmt: skip

    def _indices(self, tensor: str, indices: Sequence[Expr]) -> tuple[Expr, ...]:
        """Indices with the number of the part, and the coordinate inside it."""
        at = [Var(self.inner) if isinstance(i, Var) and i.name == self.var else i for i in indices]
        n = self.places[tensor]
        return (*at[:n], Var(self.part), *at[n:])

    def _within(self, e: Expr) -> Expr:
        """An expression of the walk as a part computes it."""

        def visit(n: Expr, compared: bool) -> Expr:
            if isinstance(n, Access) and n.tensor in self.parts:
                zero = None if compared else self.zeros.get(n.tensor)
                own = tuple(visit(i, False) for i in n.indices)
                return Access(zero or self.parts[n.tensor], self._indices(n.tensor, own), n.span)
            below = isinstance(n, Call) and n.spec.result == "bool"
            return with_children(n, tuple(visit(x, below) for x in children(n)))

        return substitute(visit(e, False), {self.var: self.at})

    def _infinite(self, d: Einsum) -> bool:
        identity = float(MONOIDS[d.monoid(self.var)].identity)
        return abs(identity) == float("inf") and self.c.tensors[d.target].dtype.is_float

    def _zero(self, d: Einsum) -> Einsum:
        """T_zero = select(T_part is the identity, 0, T_part)."""
        at = self._indices(d.target, d.indices)
        own = Access(self.parts[d.target], at)
        identity = Const(float(MONOIDS[d.monoid(self.var)].identity))
        value = call("select", call("eq", own, identity), Const(0.0), own)
        return Einsum(self.zeros[d.target], at, value, (), self._always(d), d.span)

    def _always(self, d: Einsum) -> tuple[Expr, ...]:
        """The predicates that say which rows exist."""
        return tuple(p for p in d.where if not set(variables(p)) & set(d.reduced))

    def _joint(self) -> Joint:
        def rule(n: Expr) -> Expr:
            name = n.tensor.removesuffix("'") if isinstance(n, Access) else ""
            if isinstance(n, Access) and name in self.fields:
                return Access(self.parts[name] + n.tensor[len(name) :], n.indices, n.span)
            return n

        fields = tuple(
            Field(
                self.parts[f.tensor],
                None if f.correction is None else transform(f.correction, rule),
            )
            for f in self.joint.fields
        )
        return Joint(self.inner, fields)

    # ---- the merge

    def _merged(self, f: Field) -> list[Einsum]:
        """T = ⊕ over the parts of T_part, corrected towards the references of all."""
        d = self.fields[f.tensor]
        monoid = d.monoid(self.var)
        own: Expr = Access(self.parts[f.tensor], self._indices(f.tensor, d.indices))
        made: list[Einsum] = []
        if f.correction is not None:
            own, made = self._corrected(f, d, own)
        over = (Reduction(self.part, monoid),)
        return [*made, Einsum(d.target, d.indices, own, over, self._always(d), d.span)]

    def _corrected(self, f: Field, d: Einsum, own: Expr) -> tuple[Expr, list[Einsum]]:
        """A part's value, corrected; where the correction is a factor, that is computed once per row and part."""
        assert f.correction is not None
        same = reduce(
            lambda a, b: call("and", a, b),
            (call("eq", self._component(t), self._component(f"{t}'")) for t in references(f)),
        )
        group = MONOIDS[d.monoid(self.var)].group
        unit = OPS[group].identity if group is not None else None
        parts = factors(f.correction, group) if group is not None else []
        rest = [p for p in parts if text(p) != f.tensor]
        alone = len(rest) == len(parts) - 1 and all(
            a.tensor != f.tensor for p in rest for a in accesses(p)
        )
        if unit is None or not rest or not alone or not self.c.tensors[d.target].dtype.is_float:
            return call("select", same, own, transform(f.correction, self._placed)), []
        assert group is not None
        factor = transform(product(rest, group), self._placed)
        value = call("select", same, Const(float(unit)), factor)
        made: list[Einsum] = []
        if text(value) not in self.shifts:
            free = set(variables(value))
            at = tuple(i for i in self._indices(f.tensor, d.indices) if set(variables(i)) & free)
            name = self._fresh(f"{f.tensor}_shift")
            where = tuple(
                {text(p): p for t in references(f) for p in self._always(self.fields[t])}.values()
            )
            made.append(Einsum(name, at, value, (), where, d.span))
            self.shifts[text(value)] = Access(name, at)
        return call(group, own, self.shifts[text(value)]), made

    def _component(self, name: str) -> Access:
        """A component of the state of a part, or, with a prime, of all parts together."""
        d = self.fields[name.removesuffix("'")]
        if name.endswith("'"):
            return Access(d.target, d.indices)
        return Access(self.parts[d.target], self._indices(d.target, d.indices))

    def _placed(self, n: Expr) -> Expr:
        if isinstance(n, Access) and n.tensor.removesuffix("'") in self.fields:
            return self._component(n.tensor)
        return n
