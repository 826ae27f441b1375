"""Adjoints of tensors as definitions: what each read contributes, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tcc.ir.cascade import Cascade, Einsum, Tensor
from tcc.ir.dtype import DType
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    accesses,
    call,
    substitute,
    text,
    variables,
    walk,
)
from tcc.ir.infer import expression_dtype, reduced_dtype
from tcc.passes._algebra import contraction, factors, operations, product
from tcc.passes._grad_expr import ZERO, negated, plus
from tcc.passes._grad_index import Names, inverse


@dataclass(frozen=True)
class Part:
    """What one read adds to the adjoint of a tensor: Σ body over the points where the conditions hold."""

    source: str
    at: tuple[str, ...]
    body: Expr
    where: tuple[Expr, ...] = ()

    @property
    def reduces(self) -> bool:
        return bool(set(variables(self.body, *self.where)) - set(self.at))

    def renamed(self, at: tuple[str, ...]) -> Part:
        new: dict[str, Expr] = {a: Var(b) for a, b in zip(self.at, at, strict=True)}
        where = tuple(substitute(p, new) for p in self.where)
        return Part(self.source, at, substitute(self.body, new), where)


class Ledger:
    """The program that grows, and the parts of every adjoint that is not summed yet."""

    def __init__(self, c: Cascade) -> None:
        self.c = c
        self.names = Names({r.name: r for r in c.ranks}, set(c.tensors))
        self.tensors: dict[str, Tensor] = dict(c.tensors)
        self.new: list[Einsum] = []
        self.parts: dict[str, list[Part]] = {}
        # where adjoints exist: the variables of their dimensions, conditions; what is absent counts as 0
        self.domain: dict[str, tuple[tuple[str, ...], tuple[Expr, ...]]] = {}

    def dtype(self, e: Expr) -> DType:
        return expression_dtype(replace(self.c, tensors=self.tensors), e)

    def define(self, d: Einsum) -> str:
        """Adds a definition, and what is known about its target."""
        names = {v: self.names.extent(v) for v in variables(*d.indices)}
        shape = tuple(names[i.name] if isinstance(i, Var) else self._size(i) for i in d.indices)
        dtype = reduced_dtype(d, self.dtype(d.body))
        self.tensors[d.target] = Tensor(d.target, dtype, shape)
        self.names.tensors.add(d.target)
        self.new.append(d)
        return d.target

    def _size(self, i: Expr) -> Expr:
        from tcc.ir.index import Poly, bounds

        known = bounds(i, {v: self.names.extent(v) for v in variables(i)})
        assert known is not None
        return (known[1] + Poly({(): 1})).expr()

    def element(self, tensor: str, indices: tuple[Expr, ...]) -> Access:
        """An access; a variable that walks another extent than its dimension's is written so: `v + 0`."""
        shape = self.tensors[tensor].shape
        return Access(tensor, tuple(
            call("add", i, Const(0)) if isinstance(i, Var) and not self.names.same(self.names.extent(i.name), s) else i
            for i, s in zip(indices, shape, strict=True)
        ))  # fmt: skip

    # ---- parts

    def read(
        self, d: Einsum, a: Access, value: Expr, given: dict[str, Expr] | None = None,
        fixed: dict[int, str] | None = None,
    ) -> Part:  # fmt: skip
        """d reads `a`, and `value` is the derivative of the outputs by that read, at each point of d."""
        found = inverse(a, d, self.c, self.names, given, fixed)
        body = substitute(value, found.values)
        where = [substitute(p, found.values) for p in d.where] + found.conditions
        at = tuple(found.names)
        for v in dict.fromkeys([*d.free, *d.reduced]):
            if v not in found.values and v not in at and v not in variables(body, *where):
                body = call("mul", body, Size(v.upper()))
        if set(variables(body, *where)) - set(at):
            while isinstance(body, Call) and body.op == "select" and _is_zero(body.args[2]):
                where.append(body.args[0])
                body = body.args[1]
        unique = {text(p): p for p in where}
        return Part(d.target, at, body, tuple(unique.values()))

    def shared(self, d: Einsum, found: list[tuple[Access, Expr]]) -> list[tuple[Access, Expr]]:
        """A computed value that several reads need, but for its sign, gets a tensor: it is computed once.

        Not the terms of a reduction: the tensor would be larger than d's target.
        """
        if d.reduced:
            return found
        bare = [g.args[0] if isinstance(g, Call) and g.op == "neg" else g for _, g in found]
        keys = [text(g) for g in bare]
        made: dict[str, Expr] = {}
        for key, g in zip(keys, bare, strict=True):
            if keys.count(key) > 1 and key not in made and operations(g) > 1:
                at = tuple(Var(v) for v in d.free if v in variables(g, *d.where))
                name = self.names.tensor(f"d_{d.target}_terms")
                self.domain[name] = (tuple(v.name for v in at), d.where)
                made[key] = Access(self.define(Einsum(name, at, g, (), d.where)), at)
        return [
            (a, g if key not in made else made[key] if g is b else negated(made[key]))
            for (a, g), b, key in zip(found, bare, keys, strict=True)
        ]

    def add(self, tensor: str, part: Part) -> None:
        self.parts.setdefault(tensor, []).append(part)

    def total(self, tensor: str, name: str) -> str:
        """Sums the parts of an adjoint in a definition of `name`; returns the tensor that holds the sum."""
        t = self.c.tensors[tensor]
        parts = self.parts.pop(tensor, [])
        if not parts:
            at = self.coordinates(t)
            return self.define(Einsum(name, tuple(map(Var, at)), Cast(t.dtype, ZERO)))
        at = next((p.at for p in parts if p.reduces), parts[0].at)
        if len(parts) == 1:
            part = parts[0]
            if part.reduces and self._typed(part, t).body is not part.body:
                name_of_part = self._separate(part, tensor)
                part = Part(part.source, at, Access(name_of_part, tuple(map(Var, at))))
            return self._define(name, self._typed(part, t))
        wheres = [self._existence(p.renamed(at) if not p.reduces else p) for p in parts]
        alike = len({tuple(sorted(text(p) for p in w)) for w in wheres}) == 1 and not any(
            p.at != at for p in parts if p.reduces
        )
        body: Expr | None = None
        for part, where in zip(parts, wheres, strict=True):
            if part.reduces or (where and not alike):
                made = self._separate(part, tensor)
                value: Expr = Access(made, tuple(map(Var, at)))
                if where and not alike:
                    value = call("coalesce", value, ZERO)
            else:
                value = part.renamed(at).body
            body = value if body is None else plus(body, value)
        assert body is not None
        return self._define(name, self._typed(Part("", at, body, wheres[0] if alike else ()), t))

    def _separate(self, part: Part, tensor: str) -> str:
        return self._define(self.names.tensor(f"d_{tensor}_{part.source}"), part)

    def _define(self, name: str, part: Part) -> str:
        part = self._nested(part)
        self.domain[name] = (part.at, self._existence(part))
        return self.define(Einsum(name, tuple(map(Var, part.at)), part.body, (), part.where))

    def _nested(self, part: Part) -> Part:
        """A sum of three factors as two sums of two: Σ_rs A[i,r] · B[r,s] · C[i,s] --> Σ_s C[i,s] · (Σ_r A[i,r] · B[r,s])."""
        at = tuple(map(Var, part.at))
        d = Einsum("", at, part.body, (), part.where)
        if len(d.reduced) < 2 or contraction(d) is not None:
            return part
        every = factors(part.body)
        for r in d.reduced:
            inner = [f for f in every if r in variables(f)]
            outer = [f for f in every if r not in variables(f)]
            where = [p for p in part.where if r in variables(p)]
            left = [v for v in dict.fromkeys(variables(*inner, *where)) if v != r]
            if not outer or not set(variables(*outer)) & set(d.reduced) or not inner:
                continue
            first = Einsum("", tuple(map(Var, left)), product(inner), (), tuple(where))
            if contraction(first) is None and {*left, r} == {*d.free, *d.reduced}:
                continue
            name = self.names.tensor(f"d_{part.source}_over_{r}")
            first = replace(first, target=name)
            self.define(first)
            body = product([*outer, Access(name, first.indices)])
            rest = tuple(p for p in part.where if r not in variables(p))
            return self._nested(replace(part, body=body, where=rest))
        return part

    def _existence(self, part: Part) -> tuple[Expr, ...]:
        """The conditions, over the element's coordinates alone, under which a part is there; else it is 0."""
        found = {text(p): p for p in part.where}
        replaced = {
            id(a)
            for n in walk(part.body)
            if isinstance(n, Call) and n.op == "coalesce"
            for a in accesses(n.args[0])
        }
        for a in accesses(part.body, *part.where):
            if id(a) in replaced:
                continue
            names, conditions = self.domain.get(a.tensor, ((), ()))
            values = dict(zip(names, a.indices, strict=False))
            for p in conditions:
                q = substitute(p, values)
                found.setdefault(text(q), q)
        return tuple(p for p in found.values() if set(variables(p)) <= set(part.at))

    def _typed(self, part: Part, t: Tensor) -> Part:
        same_type = self.dtype(part.body) == t.dtype
        return part if same_type else replace(part, body=Cast(t.dtype, part.body))

    def coordinates(self, t: Tensor, used: Sequence[str] = ()) -> tuple[str, ...]:
        """Variables for the dimensions of a tensor."""
        at: list[str] = []
        for n, size in enumerate(t.shape):
            at.append(self.names.variable(size, [*used, *at], f"{t.name}_{n}"))
        return tuple(at)


def _is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and not isinstance(e.value, bool) and e.value == 0
