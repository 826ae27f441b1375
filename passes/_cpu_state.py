"""The state of a joint reduction on a CPU: its start, its corrections, and sums that are kept in double precision."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcc.ir.cascade import Einsum, Field, Joint
from tcc.ir.dtype import F32, F64, DType
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Var, accesses, call, transform, variables
from tcc.ir.layout import Layout
from tcc.ir.mapping import Node
from tcc.ir.ops import MONOIDS, identity_of
from tcc.passes._cpu_group import GroupKernel

if TYPE_CHECKING:
    from tcc.passes._map_cpu import Mapper


class StateKernel(GroupKernel):
    """What a tile of rows keeps during a walk. Beside field T there are T_old, before the tile that is being added;
    T_ref, T or 0 while T is infinite; and where T is one number per row, T_wide, in which tiles add up exactly enough."""

    def __init__(self, m: Mapper, name: str, members: list[Einsum], joint: Joint) -> None:
        super().__init__(m, name, members)
        self.joint, self.walk = joint, joint.var
        self.fields = {f.tensor: f for f in joint.fields}
        self.aliases: dict[str, str] = {}

    def _layout(self, d: Einsum) -> Layout | None:
        raise NotImplementedError

    def _rows_first(self, members: list[Einsum]) -> list[Node]:
        raise NotImplementedError

    def _start(self, d: Einsum) -> list[Einsum]:
        """The identities of a field's monoid."""
        t = self.c.tensors[d.target].dtype
        value = Const(identity_of(MONOIDS[d.monoid(self.walk)], t.numpy).item())
        made = [Einsum(d.target, d.indices, value)]
        if self._is_wide(d):
            made.append(Einsum(self._beside(d, "wide", F64).tensor, d.indices, value))
        return made

    def _is_wide(self, d: Einsum) -> bool:
        """Whether a field is a sum of one number per row: many tiles add up in it one after another."""
        return (
            self.tile is None
            and d.target in self.fields
            and self.c.tensors[d.target].dtype == F32
            and d.monoid(self.walk) == "sum"
            and set(d.free) <= set(self.rows)
        )

    def _wide_sum(self, d: Einsum) -> tuple[Einsum, Einsum, list[Einsum]]:
        """part = 0;  part += …;  T_wide = T_wide + part, T = T_wide."""
        at = d.indices
        part, wide = self._beside(d, "part"), self._beside(d, "wide", F64)
        total = call("add", wide, Cast(F64, part))
        return (
            Einsum(part.tensor, at, Const(0.0)),
            replace(d, target=part.tensor),
            [Einsum(wide.tensor, at, total), Einsum(d.target, at, Cast(F32, wide))],
        )

    def _alias(self, tensor: str, role: str) -> str:
        """The name of a buffer that goes with a field."""
        return self.aliases.setdefault(f"{tensor} {role}", self.m.fresh(f"{tensor}_{role}"))

    def _beside(self, like: Einsum, role: str, dtype: DType | None = None) -> Access:
        """A buffer with the shape of a field."""
        name = self._alias(like.target, role)
        if name not in self.locals:
            t = self.c.tensors[like.target]
            t = replace(t, name=name, dtype=dtype or t.dtype)
            self.m.types[name] = t
            self.c = self.m.c = replace(self.c, tensors={**self.c.tensors, name: t})
            self._local(replace(like, target=name), self.outer(), self._layout(like))
        return Access(name, like.indices)

    def _field(self, name: str) -> Einsum:
        return next(d for d in self.members if d.target == name)

    def _corrected(self, f: Field, d: Einsum) -> list[Node]:
        """T_old = T for corrections to come; T = its correction, where a reference has moved."""
        nodes: list[Node] = []
        later = [
            n for x in self.joint.fields if x.correction is not None and x.tensor != f.tensor
            for n in accesses(x.correction) if n.tensor in (f.tensor, f"{f.tensor}'")
        ]  # fmt: skip
        if later:
            kept = self._beside(d, "old")
            nodes += self._rows_first([Einsum(kept.tensor, d.indices, Access(d.target, d.indices))])
        if f.correction is None:
            return nodes
        target = self._beside(d, "wide", F64).tensor if self._is_wide(d) else f.tensor
        own = Access(target, d.indices)
        order = [x.tensor for x in self.joint.fields]
        moved: dict[str, None] = {}

        def rule(n: Expr) -> Expr:
            if not isinstance(n, Access):
                return n
            name = n.tensor.removesuffix("'")
            if name not in self.fields:
                return n
            at = self._field(name).indices
            if n.tensor.endswith("'"):
                moved[name] = None
                return Access(name, at)
            if name == f.tensor:
                return own
            earlier = order.index(name) < order.index(f.tensor)
            return Access(self._alias(name, "old") if earlier else name, at)

        value = transform(f.correction, rule)
        value, shifts = self._hoisted(value, d, target)
        same: Expr | None = None
        for name in moved:
            at = self._field(name).indices
            term = call("eq", Access(self._alias(name, "old"), at), Access(name, at))
            same = term if same is None else call("and", same, term)
        if same is not None:
            value = call("select", same, own, value)
        nodes += self._rows_first([*shifts, Einsum(target, d.indices, value)])
        return nodes

    def _hoisted(self, e: Expr, d: Einsum, target: str) -> tuple[Expr, list[Einsum]]:
        """Costly parts of a correction that vary over fewer variables than the field are computed once per row."""
        made: list[Einsum] = []
        free = set(d.free)

        def visit(n: Expr) -> Expr:
            if not isinstance(n, Call):
                return n
            names = variables(n)
            if n.spec.derivative is not None and set(names) < free and not _mentions(n, target):
                name = self.m.fresh(f"{d.target}_shift")
                at = tuple(Var(v) for v in names)
                like = Einsum(name, at, n)
                t = replace(
                    self.c.tensors[d.target],
                    name=name,
                    shape=tuple(self.c.extent(v) for v in names),
                )
                self.m.types[name] = t
                self.c = self.m.c = replace(self.c, tensors={**self.c.tensors, name: t})
                self._local(like, self.outer(), self._layout(like))
                made.append(like)
                return Access(name, at)
            return replace(n, args=tuple(visit(a) for a in n.args))

        return visit(e), made

    def _references(self, plan: list[Einsum]) -> tuple[list[Einsum], dict[str, str]]:
        """Reads of fields whose identity is infinite read a reference that is 0 until there is a finite one."""
        infinite = {
            d.target: self._alias(d.target, "ref") for d in plan
            if d.target in self.fields and abs(float(MONOIDS[d.monoid(self.walk)].identity)) == float("inf")
            and self.c.tensors[d.target].dtype.is_float
            and any(a.tensor == d.target for x in plan if x is not d for a in x.reads)
        }  # fmt: skip

        def visit(n: Expr) -> Expr:
            if isinstance(n, Access) and n.tensor in infinite:
                return replace(n, tensor=infinite[n.tensor])
            if (
                isinstance(n, Call) and n.spec.result != "bool"
            ):  # comparisons see the identity itself
                return replace(n, args=tuple(visit(a) for a in n.args))
            return replace(n, arg=visit(n.arg)) if isinstance(n, Cast) else n

        return [replace(d, body=visit(d.body)) for d in plan], infinite

    def _reference(self, d: Einsum, names: dict[str, str]) -> list[Node]:
        if d.target not in names:
            return []
        own = Access(d.target, d.indices)
        identity = Const(float(MONOIDS[d.monoid(self.walk)].identity))
        kept = self._beside(d, "ref")
        value = call("select", call("eq", own, identity), Const(0.0), own)
        return self._rows_first([Einsum(kept.tensor, d.indices, value)])


def _mentions(e: Expr, tensor: str) -> bool:
    return any(a.tensor == tensor for a in accesses(e))
