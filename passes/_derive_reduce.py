"""One reduction in the walk of what it depends on: what leaves it, what corrects it, and the proof by numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from tcc.ir.cascade import Einsum, Field, Reduction
from tcc.ir.expr import Access, Cast, Const, Expr, Var, accesses, call, text, variables
from tcc.ir.ops import MONOIDS
from tcc.passes._derive_correction import (
    NotFound,
    Parts,
    apart,
    choice,
    monotone,
    primed,
    replaced,
)
from tcc.passes._derive_field import key_of
from tcc.passes._derive_interval import interval, overflows
from tcc.passes._derive_numeric import confirms, equal_values
from tcc.passes._derive_rebase import Polynomial
from tcc.passes._derive_scope import Leaf, Scope, joined
from tcc.passes._polyhedra import nonempty


@dataclass(eq=False)
class Made:
    """What one reduction becomes: components, the last of which is its own, and its value behind the walk."""

    fields: list[Field] = field(default_factory=list)
    deferred: Expr | None = None
    correction: Expr | None = None


class Reducing(Polynomial):
    """A reduction that is to join a walk."""

    def made(self) -> Made:
        """The reduction as components of the walk; NotFound says what forbids it."""
        d, scope, group = self.d, self.scope, self.monoid.group
        blocked = next((b for e in (d.body, *d.where) if (b := scope.blocked(e)) is not None), None)
        if blocked is not None:
            raise NotFound("is not known before the walk has ended", blocked)
        choices = [choice(p, scope) for p in d.where if scope.kind(p) == "mixed"]
        late = [p for p in d.where if scope.kind(p) == "reference"]
        gone: list[Leaf] = []
        body = d.body
        if scope.refers(body):
            if group is None:
                raise NotFound(
                    f"is combined with `{self.monoid.combine}`, over which nothing distributes",
                    body,
                )
            if not self.type.is_float and self.monoid.result != "bool" and not self.exact(body):
                raise NotFound("is an integer, which no correction reaches exactly", body)
            leaves = scope.split(body, group)
            gone = [x for x in leaves if x.kind == "reference"]
            rest = [x for x in leaves if x.kind != "reference"]
            kept = self.needed(gone, rest) if gone and group == "mul" else []
            gone = [x for x in gone if x not in kept]
            if gone:
                body = joined([*rest, *kept], group)
        else:
            kept = []
        outer: Expr | None = None  # the value behind the walk, when it is not a product
        monoid = self.monoid.name
        parts = Parts(choices=choices)
        if scope.refers(body):
            if group == "mul":
                parts = self.parts(body, kept)
                parts.choices += choices
            elif group == "add":
                found = monotone(body, scope)
                if found is None:
                    raise NotFound("does not split, nor is it monotone in what varies", body)
                outer, body = scope.expanded(body), found[0]
                if found[1] < 0:
                    monoid = next(m.name for m in MONOIDS.values()
                                  if m.group == group and m.identity == -self.monoid.identity)  # fmt: skip
            else:
                raise NotFound("does not split", body)
        return self.assembled(body, monoid, gone, late, parts, outer)

    def exact(self, body: Expr) -> bool:
        """Whether an integer body is only chosen by references, never computed from them."""
        try:
            parts = apart(body, self.scope)
        except NotFound:
            return False
        return parts.ratio is None and not parts.polynomial

    def needed(self, gone: list[Leaf], rest: list[Leaf]) -> list[Leaf]:
        """The factors without which the sum may overflow although its terms do not."""
        scope = self.scope
        if not self.type.is_float:
            return []  # integers wrap, and are right again after the multiplication
        if not overflows(joined(rest, "mul"), scope, self.type):
            return []
        if any(overflows(x.expr, scope, self.type, 1.0) for x in rest):
            return []  # so it may as it is written
        kept = []
        for x in gone:
            low, high = interval(x.expr, scope)
            if (low > 0 or high < 0) and not math.isinf(low) and not math.isinf(high):
                kept.append(x)
        if not kept:
            raise NotFound(
                f"may overflow without `{text(joined(gone, 'mul'))}`", joined(rest, "mul")
            )
        return kept

    # ---- sums

    def parts(self, body: Expr, kept: list[Leaf]) -> Parts:
        """A sum's body taken apart; factors that stay have the ratio of their new value to the old one."""
        scope = self.scope
        stay = {x.key for x in kept}
        if not kept:
            return apart(body, scope)
        plain = [x for x in scope.split(body, "mul") if x.key not in stay]
        parts = apart(joined(plain, "mul"), scope)
        for x in kept:
            new, old = primed(x.expr, scope, True), primed(x.expr, scope, False)
            ratio = call("div", old, new) if x.inverse else call("div", new, old)
            parts.ratio = ratio if parts.ratio is None else call("mul", parts.ratio, ratio)
            parts.others.append(Leaf(x.expr, "constant", x.inverse))
        return parts

    # ---- new definitions

    def assembled(
        self, body: Expr, monoid: str, gone: list[Leaf], late: list[Expr], parts: Parts,
        outer: Expr | None,
    ) -> Made:  # fmt: skip
        """The new definitions: the reduction itself, and its value behind the walk where factors were left out."""
        d = self.d
        where = tuple(p for p in d.where if all(p is not q for q in late))
        corrections: list[tuple[str, Expr | None]] = []
        apart_ = bool(gone or late or outer is not None)
        name = self.name
        final: Expr | None = None
        if parts.polynomial:
            made = self.rebased(parts, where, apart_)
            name, body, corrections, final = made.name, made.body, made.corrections, made.final
            apart_ = apart_ or final is not None
        else:
            if apart_:
                name = self.program.fresh(f"{self.name}_{monoid}")
            own = Access(name, ())
            moved = self.correction(own, parts)
            if moved is not None and self.monoid.name == "sum":
                moved = self.safe(own, moved)
            corrections = [(name, moved)]
        if apart_:
            body = self.typed(body)
        run = Einsum(name, d.indices, body, (Reduction(self.var, monoid),), where, d.span)
        same = [f for f in self.before if apart_ and key_of(self.program.defs[f]) == key_of(run)]
        if same and len(corrections) == 1 and corrections[0][1] is None:
            name, corrections = same[0], []
        else:
            self.program.put(run, self.type)
        deferred: Expr | None = None
        if apart_:
            deferred = self.finish(name, body, gone, late, final, outer, where)
        self.confirm(corrections, late)
        fields = [*self.made_fields, *(Field(n, e) for n, e in corrections)]
        return Made(fields, deferred, corrections[-1][1] if corrections else None)

    def finish(
        self, name: str, body: Expr, gone: list[Leaf], late: list[Expr], final: Expr | None,
        outer: Expr | None, where: tuple[Expr, ...],
    ) -> Expr:  # fmt: skip
        """The definition of the tensor behind the walk: identity where nothing was reduced."""
        d, group = self.d, self.monoid.group
        value: Expr = final if final is not None else Access(name, d.indices)
        if outer is not None:
            value = replaced(outer, body if not isinstance(body, Cast) else body.arg, value)
        if gone:
            assert group is not None
            value = joined([Leaf(value, "reference"), *gone], group)
        value = self.guarded(value, where)
        held = tuple(p for p in d.where if self.var not in variables(p))
        self.program.put(
            Einsum(self.name, d.indices, self.typed(value), (), held, d.span), self.type
        )
        return value

    def guarded(self, value: Expr, where: tuple[Expr, ...]) -> Expr:
        """`value`, or the identity in rows that have no coordinate at all."""
        inside = [p for p in where if self.var in variables(p)]
        if not inside:
            return value
        found: Expr | bool | None = None
        if not accesses(*inside):
            found = nonempty(inside, self.var, self.program.c.extent(self.var))
        if found is True:
            return value
        if found is None or found is False:
            # with the rows of the other components, so that the walk keeps them
            rows = [set(self.program.defs[f].free) for f in self.before]
            shared = set.intersection(*rows) if rows else set()
            at = tuple(Var(v) for v in self.d.free if v in {*variables(*inside), *shared})
            one = Einsum("", at, Const(True), (Reduction(self.var, "any"),), tuple(inside), self.d.span)  # fmt: skip
            found = Access(self.shared(one, f"{self.name}_any"), at)
        if isinstance(self.monoid.identity, bool):
            return (
                call("or", call("not", found), value)
                if self.monoid.identity
                else call("and", found, value)
            )
        return call("select", found, value, self.identity())

    # ---- proof by numbers

    def confirm(self, corrections: list[tuple[str, Expr | None]], late: list[Expr]) -> None:
        """Every correction, and the value behind the walk, tried at random points."""
        made = [*(f.tensor for f in self.made_fields), *(n for n, _ in corrections)]
        scope = Scope(self.program, self.var, [*self.before, *made])
        fields = [*self.before, *(f.tensor for f in self.made_fields)]
        for name, correction in corrections:
            if not confirms(scope, fields, name, correction):
                raise NotFound("is corrected wrongly at random points", self.d.body)
            fields.append(name)
        new = self.program.defs[self.name]
        if new is self.old:
            return
        old = replace(self.old, where=tuple(p for p in self.old.where if p not in late))
        value = Access(self.name, self.d.indices) if new.reduced else new.body
        if not equal_values(scope, fields, old, value):
            raise NotFound("is not what is left of it at random points", self.d.body)
