"""What an expression in a chain depends on, and how it splits by the group operator of a reduction.

For a reduction `T = ⊕ over v of e`, with ⊗ the operator that distributes over ⊕, `e` is split into *leaves*
l₁ ⊗ l₂ ⊗ …. A leaf is of the kind

    data       it varies along v and depends on no reference
    constant   neither
    reference  it depends on references alone: it may leave the reduction
    mixed      both

where a *reference* is an earlier component of the same walk, read directly or through element-wise definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tcc.ir.cascade import Cascade, Einsum, Tensor, targets
from tcc.ir.dtype import DType
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    accesses,
    call,
    substitute,
    text,
    transform,
    variables,
)
from tcc.ir.ops import MONOIDS, OPS
from tcc.passes._algebra import is_elementwise


@dataclass(frozen=True, eq=False)
class Leaf:
    """One operand of a product (or sum); `inverse` says that it divides (or is subtracted)."""

    expr: Expr
    kind: str
    inverse: bool = False

    @property
    def key(self) -> tuple[str, bool]:
        return text(self.expr), self.inverse


class Program:
    """The definitions of a program while it is rewritten: those with one writer by name, and what reads each tensor."""

    def __init__(self, c: Cascade, defs: dict[str, Einsum]) -> None:
        self.c, self.defs = c, dict(defs)
        self.tensors = dict(c.tensors)
        self.reads: dict[str, frozenset[str]] = {}
        for d in c.definitions:
            for name in targets(d):
                self.reads[name] = self.reads.get(name, frozenset()) | {a.tensor for a in d.reads}
        self.added: list[str] = []
        self._readers: dict[str, list[str]] | None = None

    def put(self, d: Einsum, t: DType) -> None:
        """Sets the definition of a tensor, which is of type `t` if it is new."""
        if d.target not in self.reads:
            self.added.append(d.target)
            shape = tuple(self.c.extent(v) for v in d.free)
            self.tensors[d.target] = Tensor(d.target, t, shape, 0, d.span)
        self.defs[d.target] = d
        self.reads[d.target] = frozenset(a.tensor for a in d.reads)
        self._readers = None

    def copy(self) -> Program:
        new = Program.__new__(Program)
        new.c, new.defs, new.tensors = self.c, dict(self.defs), dict(self.tensors)
        new.reads, new.added, new._readers = dict(self.reads), list(self.added), self._readers
        return new

    @property
    def readers(self) -> dict[str, list[str]]:
        """The tensors that are computed from each."""
        if self._readers is None:
            self._readers = {}
            for name, reads in self.reads.items():
                for r in reads:
                    self._readers.setdefault(r, []).append(name)
        return self._readers

    @property
    def cascade(self) -> Cascade:
        """The program so far, not verified."""
        old = tuple(
            self.defs.get(d.target, d) if isinstance(d, Einsum) else d for d in self.c.definitions
        )
        new = tuple(self.defs[n] for n in self.added)
        return replace(self.c, definitions=(*old, *new), tensors=self.tensors)

    def fresh(self, name: str) -> str:
        out, n = name, 1
        while out in self.reads or out in self.tensors:
            n += 1
            out = f"{name}{n}"
        return out


class Scope:
    """A program, the variable of a walk, and the components of the walk so far."""

    def __init__(self, program: Program, var: str, references: Iterable[str]) -> None:
        self.c, self.defs, self.var = program.c, program.defs, var
        self.program = program
        self.references = tuple(references)
        self.after = set(self.references)  # what depends on a reference, however indirectly
        stack = list(self.references)
        while stack:
            for name in program.readers.get(stack.pop(), ()):
                if name not in self.after:
                    self.after.add(name)
                    stack.append(name)

    # ---- dependence

    def refers(self, *e: Expr) -> bool:
        return any(a.tensor in self.after for a in accesses(*e))

    def varies(self, *e: Expr) -> bool:
        return self.var in variables(*e)

    def kind(self, *e: Expr) -> str:
        if self.refers(*e):
            return "mixed" if self.varies(*e) else "reference"
        return "data" if self.varies(*e) else "constant"

    def inner(self, a: Access) -> Expr | None:
        """The value of an element-wise definition that depends on references, where it is read."""
        d = self.defs.get(a.tensor)
        if a.tensor in self.references or a.tensor not in self.after or d is None or not is_elementwise(d):  # fmt: skip
            return None
        return substitute(d.body, dict(zip(d.free, a.indices, strict=True)))

    def expanded(self, e: Expr) -> Expr:
        """`e` with all definitions between it and the references in place."""

        def rule(n: Expr) -> Expr:
            value = self.inner(n) if isinstance(n, Access) else None
            return n if value is None else transform(value, rule)

        return transform(e, rule)

    def expanded_to(self, e: Expr, last: Expr) -> Expr:
        """`e` with the definitions in place through which it depends on `last`, but for that one."""
        key = text(last)

        def rule(n: Expr) -> Expr:
            if not isinstance(n, Access) or text(n) == key:
                return n
            value = self.inner(n)
            return n if value is None else transform(value, rule)

        return transform(e, rule)

    def blocked(self, e: Expr) -> Access | None:
        """A read through which no partial value passes: of a reference at other coordinates, or of what reduces one."""
        for a in accesses(self.expanded(e)):
            if a.tensor in self.references:
                if [text(i) for i in a.indices] != [text(i) for i in self.defs[a.tensor].indices]:
                    return a
            elif a.tensor in self.after:
                return a
        return None

    def used(self, *e: Expr) -> list[str]:
        """The references that an expression depends on."""
        names = {a.tensor for x in e for a in accesses(self.expanded(x))}
        return [r for r in self.references if r in names]

    def extremes(self, e: Expr) -> bool:
        """Whether an expression depends on largest and smallest values alone."""
        return all(abs(_identity(self.monoid(r))) == float("inf") for r in self.used(e))

    def monoid(self, field: str) -> str:
        d = self.defs[field]
        return d.monoid(d.reduced[0])

    # ---- splitting

    def split(self, e: Expr, group: str) -> list[Leaf]:
        """The leaves of `e`: references apart, everything that need not be taken apart whole."""
        kind = self.kind(e)
        if kind == "mixed":
            found = self._mixed(e, group)
            if any(leaf.kind == "reference" for leaf in found):
                return found
        return [Leaf(e, kind)]

    def _mixed(self, e: Expr, group: str) -> list[Leaf]:
        whole = [Leaf(e, "mixed")]
        if isinstance(e, Access):
            value = self.inner(e)
            return whole if value is None else self.split(value, group)
        if isinstance(e, Cast):
            if not e.dtype.is_float:
                return whole
            return [Leaf(Cast(e.dtype, x.expr), x.kind, x.inverse) for x in self.split(e.arg, group)]  # fmt: skip
        if not isinstance(e, Call):
            return whole
        op = e.spec
        if op.name == group:
            return [*self.split(e.args[0], group), *self.split(e.args[1], group)]
        if op.name == OPS[group].inverse:
            return [*self.split(e.args[0], group), *inverted(self.split(e.args[1], group))]
        if op.name == "neg":
            if group == "add":
                return inverted(self.split(e.args[0], group))
            return [Leaf(Const(-1), "constant"), *self.split(e.args[0], group)]
        if op.carries is not None and op.carries[1] == group:
            return self._carried(op.carries[0], e.args[0], lambda x: call(op.name, x), group)
        if op.name == "pow" and group == "mul":
            base, exponent = e.args
            if self.kind(exponent) == "constant":
                return self._carried("mul", base, lambda x: call("pow", x, exponent), group)
            if isinstance(base, Const) and base.value > 0:
                return self._carried("add", exponent, lambda x: call("pow", base, x), group)
        if op.name == "select":
            return self._selected(e, group)
        return self._common(e, group)

    def _carried(self, inside: str, arg: Expr, f: Callable[[Expr], Expr], group: str) -> list[Leaf]:
        """f(a ∘ b) = f(a) ⊗ f(b): the references inside leave f, but for those that bound an exponential."""
        leaves = self.split(arg, inside)
        if inside == "add" and group == "mul":
            leaves = [x for leaf in leaves for x in self._opened(leaf, inside)]
            gone = [x for x in leaves if x.kind == "reference" and not self.extremes(x.expr)]
        else:
            gone = [x for x in leaves if x.kind == "reference"]
        if not gone:
            return [Leaf(f(arg), "mixed")]
        rest = [x for x in leaves if x not in gone]
        inner = joined(rest, inside)
        return [
            Leaf(f(inner), self.kind(inner)),
            *(Leaf(_undone(f(x.expr)), x.kind, x.inverse) for x in gone),
        ]

    def _opened(self, leaf: Leaf, group: str) -> list[Leaf]:
        """A sum of references of different kinds as its terms."""
        e = leaf.expr
        if leaf.kind != "reference" or self.extremes(e):
            return [leaf]
        value = self.inner(e) if isinstance(e, Access) else None
        if value is not None:
            parts = self._opened(Leaf(value, "reference"), group)
            if len(parts) == 1:
                return [leaf]
        elif isinstance(e, Call) and e.op in (group, OPS[group].inverse):
            parts = self._opened(Leaf(e.args[0], self.kind(e.args[0])), group)
            second = self._opened(Leaf(e.args[1], self.kind(e.args[1])), group)
            parts = [*parts, *(second if e.op == group else inverted(second))]
        else:
            return [leaf]
        return inverted(parts) if leaf.inverse else parts

    def _selected(self, e: Call, group: str) -> list[Leaf]:
        condition, a, b = e.args
        whole = [Leaf(e, "mixed")]
        if self.kind(condition) in ("mixed", "reference"):
            return whole
        first = self.split(a, group)
        if is_zero(b, group):
            gone = [x for x in first if x.kind == "reference"]
            rest = joined([x for x in first if x not in gone], group)
            return [Leaf(call("select", condition, rest, b), self.kind(condition, rest)), *gone]
        gone, one, two = _shared(first, self.split(b, group))
        if not gone:
            return whole
        rest = call("select", condition, joined(one, group), joined(two, group))
        return [Leaf(rest, self.kind(rest)), *gone]

    def _common(self, e: Call, group: str) -> list[Leaf]:
        """(a ⊗ r) ⊕ (b ⊗ r) = (a ⊕ b) ⊗ r, for the operators over which ⊗ distributes."""
        over = [m.combine for m in MONOIDS.values() if m.group == group]
        inverse = {OPS[o].inverse for o in over}
        if len(e.args) == 2 and (e.op in over or e.op in inverse):
            gone, one, two = _shared(self.split(e.args[0], group), self.split(e.args[1], group))
            if gone:
                rest = call(e.op, joined(one, group), joined(two, group))
                return [Leaf(rest, self.kind(rest)), *gone]
        if group == "add" and e.op in ("mul", "div"):  # a sum times a constant
            a, b = e.args
            if e.op == "mul" and self.kind(a) == "constant":
                a, b = b, a
            if self.kind(b) == "constant":
                return [Leaf(call(e.op, x.expr, b), x.kind, x.inverse) for x in self.split(a, group)]  # fmt: skip
        return [Leaf(e, "mixed")]


def _identity(monoid: str) -> float:
    return float(MONOIDS[monoid].identity)


def _undone(e: Expr) -> Expr:
    """f(g(x)) as x, for g that carries back what f carries and undoes it."""
    if isinstance(e, Call) and len(e.args) == 1 and isinstance(e.args[0], Call):
        f, g = e.spec, e.args[0].spec
        if f.carries and g.carries and f.carries == g.carries[::-1] and len(e.args[0].args) == 1:
            if abs(float(f.evaluate(g.evaluate(2.7))) - 2.7) < 1e-12:
                return e.args[0].args[0]
    return e


def is_zero(e: Expr, group: str) -> bool:
    """Whether a constant is what ⊗ leaves as it is: the identity of the monoid over which ⊗ distributes."""
    if not isinstance(e, Const) or isinstance(e.value, bool):
        return False
    return any(e.value == m.identity for m in MONOIDS.values() if m.group == group)


def inverted(leaves: list[Leaf]) -> list[Leaf]:
    return [Leaf(x.expr, x.kind, not x.inverse) for x in leaves]


def joined(leaves: list[Leaf], group: str) -> Expr:
    """The product (or sum) of leaves, in their order, without what changes nothing."""
    spec = OPS[group]
    assert spec.identity is not None and (spec.inverse or not any(x.inverse for x in leaves))
    kept = [x for x in leaves if not (isinstance(x.expr, Const) and x.expr.value == spec.identity)]
    signs = [x for x in kept if group == "mul" and isinstance(x.expr, Const) and x.expr.value == -1]
    kept = [x for x in kept if x not in signs]
    out: Expr | None = None
    for leaf in sorted(kept, key=lambda x: x.inverse):
        if out is not None:
            out = call(spec.inverse or "" if leaf.inverse else spec.name, out, leaf.expr)
        elif leaf.inverse:
            out = call("neg", leaf.expr) if group == "add" else call("div", Const(1.0), leaf.expr)
        else:
            out = leaf.expr
    if out is None:
        truth = isinstance(spec.identity, bool)
        out = Const(spec.identity if truth else float(spec.identity))
    return negated(out) if len(signs) % 2 else out


def negated(e: Expr) -> Expr:
    if isinstance(e, Const):
        return Const(-e.value)
    if isinstance(e, Call) and e.op == "neg":
        return e.args[0]
    return call("neg", e)


def _shared(a: list[Leaf], b: list[Leaf]) -> tuple[list[Leaf], list[Leaf], list[Leaf]]:
    """The references that both products have, and what is left of each."""
    keys = [x.key for x in b if x.kind == "reference"]
    gone = []
    one = []
    for x in a:
        if x.kind == "reference" and x.key in keys:
            keys.remove(x.key)
            gone.append(x)
        else:
            one.append(x)
    left = [x.key for x in gone]
    two = []
    for x in b:
        if x.kind == "reference" and x.key in left:
            left.remove(x.key)
        else:
            two.append(x)
    return gone, one, two
