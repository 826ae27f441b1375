"""One reduction that is to be computed in a walk: what its new definitions, components and corrections share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tcc.ir.cascade import Einsum, Field
from tcc.ir.dtype import BOOL
from tcc.ir.expr import (
    Access,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    accesses,
    call,
    text,
    transform,
    variables,
    walk,
)
from tcc.ir.infer import expression_dtype
from tcc.ir.ops import MONOIDS
from tcc.passes._derive_correction import Parts, choice
from tcc.passes._derive_numeric import TRIALS, Trial
from tcc.passes._derive_scope import Program, Scope


class Reduced:
    """A reduction `name` of a program, and the components `before` it in the walk."""

    def __init__(
        self, program: Program, var: str, before: list[str], name: str, old: Einsum | None = None
    ) -> None:
        self.program, self.var, self.before, self.name = program, var, before, name
        self.made_fields: list[Field] = []  # components that it needs besides itself
        self.d = program.defs[name]
        self.old = old or self.d  # the definition as it was before it was rewritten
        self.monoid = MONOIDS[self.d.monoid(var)]
        self.type = program.tensors[name].dtype
        self.scope = Scope(program, var, before)

    def rescoped(self) -> Scope:
        """The scope with the components that were added."""
        return Scope(self.program, self.var, [*self.before, *(f.tensor for f in self.made_fields)])

    def typed(self, e: Expr) -> Expr:
        """An expression of the reduction's own type."""
        literal = not any(isinstance(n, Access | Var | Size | Cast) for n in walk(e))
        if self.type.is_float and (
            literal or expression_dtype(self.program.cascade, e) != self.type
        ):
            return Cast(self.type, e)
        return e

    def correction(self, value: Expr, parts: Parts) -> Expr | None:
        """The value after its ratio and its choices."""
        out = value if parts.ratio is None else call("mul", value, parts.ratio)
        for stays in {text(p): p for p in parts.choices}.values():
            out = call("select", stays, out, self.identity())
        return None if out is value else out

    def identity(self) -> Expr:
        value = self.monoid.identity
        if isinstance(value, bool) or not math.isinf(value) or self.type.is_float:
            return Const(value)
        info = np.iinfo(self.type.numpy)
        return Const(int(info.max if value > 0 else info.min))

    def shared(self, d: Einsum, name: str) -> str:
        """The component with that definition: an existing one of this walk, else a new one."""
        key = key_of(d)
        for f in [*self.before, *(f.tensor for f in self.made_fields)]:
            if key_of(self.program.defs[f]) == key:
                return f
        made = replace(d, target=self.program.fresh(name))
        truth = MONOIDS[d.monoid(self.var)].result == "bool"
        self.program.put(made, BOOL if truth else self.type)
        stays = [choice(p, self.scope) for p in d.where if self.scope.kind(p) == "mixed"]
        own: Expr | None = None
        for p in stays:
            identity = Const(MONOIDS[d.monoid(self.var)].identity)
            own = call("select", p, Access(made.target, ()) if own is None else own, identity)
        self.made_fields.append(Field(made.target, own))
        return made.target

    def safe(self, own: Expr, value: Expr) -> Expr:
        """A correction that leaves the empty state alone, whatever its references are there."""
        names = [r for r in self.scope.references if r in {a.tensor for a in accesses(value)}]
        identity = {r: float(MONOIDS[self.scope.monoid(r)].identity) for r in names}
        if self.at(value, identity) == 0.0:
            return value
        for f in names:
            if not math.isfinite(self.at(value, {f: identity[f]})):
                value = call("select", call("eq", Access(f, ()), Const(identity[f])), own, value)
        return value

    def at(self, value: Expr, known: dict[str, float]) -> float:
        """The correction of a sum of nothing, with these references and some numbers for the others."""
        with np.errstate(all="ignore"):
            t = Trial(self.scope, 0, "positive")
            read = {a.tensor.removesuffix("'") for a in accesses(value) if not a.indices}
            own = read - set(self.scope.references)
            t.state = {r: np.full(TRIALS, known.get(r, 1.25)) for r in self.scope.references}
            t.state |= {r: np.zeros(TRIALS) for r in own}
            t.new = {r: np.full(TRIALS, 2.5) for r in self.scope.references}
            return float(np.max(np.abs(np.broadcast_to(t.value(value), (TRIALS, 1)))))


def key_of(d: Einsum) -> str:
    """A definition as text, but for the tensor that it defines."""

    def rule(e: Expr) -> Expr:
        literal = isinstance(e, Cast) and isinstance(e.arg, Const) and e.dtype.is_float
        return Const(float(e.arg.value)) if literal else e  # type: ignore[union-attr]

    return str(replace(d, target="_", body=transform(d.body, rule)))


def restricted(where: tuple[Expr, ...], var: str) -> bool:
    """Whether predicates restrict which coordinates of `var` exist."""
    return any(var in variables(p) for p in where)
