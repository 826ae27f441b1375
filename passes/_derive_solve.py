"""One chain as few walks: every component gets a correction, or waits for the next walk.

T = ⊕ e ⊗ r   -->   T_sum = ⊕ e;  T = T_sum ⊗ r          for factors r that depend on references alone
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tcc.ir.cascade import Einsum, Field, Joint, Reduction
from tcc.ir.diagnostics import CompileError, Span
from tcc.ir.expr import Access, Cast, Expr, call, text, variables, walk
from tcc.ir.joint_laws import check_laws
from tcc.passes._algebra import is_elementwise
from tcc.passes._derive_chain import Chain
from tcc.passes._derive_correction import NotFound
from tcc.passes._derive_reduce import Made, Reducing
from tcc.passes._derive_scope import Program, Scope
from tcc.passes._derive_search import rewritten, two_sums


@dataclass(frozen=True)
class Barrier:
    """Why one component needs the final value of another: `rank` of tensor `source` is walked again for `target`."""

    rank: str
    source: str
    target: str
    why: str
    span: Span | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Component:
    """What became of one reduction: the walk that computes it, its correction, and what is deferred behind it."""

    tensor: str
    monoid: str
    walk: int
    correction: str | None = None
    deferred: str | None = None
    span: Span | None = field(default=None, repr=False)


@dataclass(eq=False)
class Solution:
    """A chain's new definitions, and the components of each walk in order."""

    program: Program
    var: str
    walks: list[list[Field]]
    components: list[Component]
    barriers: list[Barrier]


def solve(program: Program, chain: Chain) -> Solution:
    """The walks of a chain, as few as the algebra finds."""
    return _Solver(program, chain).run()


class _Solver:
    def __init__(self, program: Program, chain: Chain) -> None:
        self.program, self.chain, self.var = program.copy(), chain, chain.var
        self.walks: list[list[Field]] = [[]]
        self.components: list[Component] = []
        self.barriers: list[Barrier] = []

    def run(self) -> Solution:
        for name in self.chain.fields:
            self.place(name)
        return Solution(self.program, self.var, self.walks, self.components, self.barriers)

    def place(self, name: str) -> None:
        """The first walk in which a reduction can be computed."""
        at, source = self.latest(name)
        known_d = self.program.defs[name]
        made: Made | None = None
        if source is not None:
            known = self.program.copy()
            try:
                if not self.common(name, at):
                    raise NotFound("")
                made = self.reduced(name, at)
                self.lawful([*self.walks[at], *made.fields], name)
            except NotFound as refused:
                self.program = known
                at += 1
                if refused.why:
                    why = f"`{text(refused.part)}` {refused.why}" if refused.part is not None else refused.why  # fmt: skip
                    self.barriers.append(Barrier(self.var.upper(), source, name, why, self.program.defs[name].span))  # fmt: skip
        if at == len(self.walks):
            self.walks.append([])
        made = made or Made([Field(name)])
        self.walks[at] += made.fields
        self.components.append(
            Component(
                made.fields[-1].tensor if made.fields else name, known_d.monoid(self.var), at,
                None if made.correction is None else text(made.correction),
                None if made.deferred is None else text(made.deferred), known_d.span,
            )
        )  # fmt: skip

    def scope(self, at: int) -> Scope:
        return Scope(self.program, self.var, [f.tensor for f in self.walks[at]])

    def reducing(self, name: str, at: int, old: Einsum | None = None) -> Reducing:
        before = [f.tensor for f in self.walks[at]]
        return Reducing(self.program, self.var, before, name, old)

    def lawful(self, fields: list[Field], name: str) -> None:
        """NotFound when the components do not combine associatively."""
        made = tuple(self.program.defs[f.tensor] for f in fields)
        c = replace(self.program.c, definitions=made, tensors=self.program.tensors, joints=())
        try:
            check_laws(c, Joint(self.var, tuple(fields)))
        except CompileError as error:
            raise NotFound(f"combines in no order: {error.diagnostic.message}") from None

    def not_rounded(self, name: str, at: int) -> None:
        """NotFound when a value so far would be rounded into a narrow type: its rounding says nothing of the last one's."""
        scope = self.scope(at)
        for n in walk(scope.expanded(self.program.defs[name].body)):
            if isinstance(n, Cast) and not n.dtype.native and scope.refers(n.arg):
                raise NotFound("rounds a value that is not yet the last one", n)

    def reduced(self, name: str, at: int) -> Made:
        """A reduction in a walk: as it is, rewritten by a search, or as the sum of two."""
        known = self.program.copy()
        self.not_rounded(name, at)
        try:
            return self.reducing(name, at).made()
        except NotFound as refused:
            reason = refused
        d, t = known.defs[name], known.tensors[name].dtype
        scope = Scope(known, self.var, [f.tensor for f in self.walks[at]])
        for other in rewritten(d, scope):
            self.program = known.copy()
            self.program.put(replace(d, body=other), t)
            try:
                return self.reducing(name, at, d).made()
            except NotFound:
                continue
        self.program = known.copy()
        try:
            halves = two_sums(d, scope)
            return self.halves(d, at, halves) if halves else _refuse(reason)
        except NotFound:
            raise reason from None

    def halves(self, d: Einsum, at: int, halves: tuple[Expr, Expr]) -> Made:
        """Σ a + b = Σ a + Σ b."""
        made, t = Made(), self.program.tensors[d.target].dtype
        names: list[str] = []
        kept = list(self.walks[at])
        for body in halves:
            name = self.program.fresh(f"{d.target}_{len(names) + 1}")
            names.append(name)
            sums = (Reduction(self.var, "sum"),)
            self.program.put(replace(d, target=name, body=body, reductions=sums), t)
            half = Made([Field(name)])
            try:
                if self.scope(at).refers(body, *d.where):
                    half = self.reduced(name, at)
            except NotFound:
                self.walks[at] = kept
                raise
            made.fields += half.fields
            made.correction = half.correction or made.correction
            self.walks[at] = [*kept, *made.fields]
        self.walks[at] = kept
        held = tuple(p for p in d.where if self.var not in variables(p))
        a, b = (Access(n, d.indices) for n in names)
        self.program.put(Einsum(d.target, d.indices, call("add", a, b), (), held, d.span), t)
        made.deferred = call("add", a, b)
        return made

    def latest(self, name: str) -> tuple[int, str | None]:
        """The last walk whose components a definition depends on, and one of these components."""
        for at in reversed(range(len(self.walks))):
            if not self.walks[at]:
                continue
            scope = self.scope(at)
            d = self.program.defs[name]
            if scope.refers(d.body, *d.where):
                used = scope.used(d.body, *d.where)
                return at, (used[0] if used else scope.references[0])
        return 0, None

    def common(self, name: str, at: int) -> bool:
        """Whether a reduction reads what the components of a walk read, along the variable of the walk."""
        mine = self.sources(name)
        scope = self.scope(at)
        d = self.program.defs[name]
        return any(mine & self.sources(f) for f in scope.used(d.body, *d.where)) or not mine

    def sources(self, name: str) -> set[str]:
        """The tensors that are read along the variable, through element-wise definitions."""
        d = self.program.defs[name]
        out: set[str] = set()
        stack = [a for a in d.reads if self.var in variables(a)]
        while stack:
            a = stack.pop()
            if a.tensor in out:
                continue
            inner = self.program.defs.get(a.tensor)
            if inner is not None and is_elementwise(inner):
                stack += [b for b in inner.reads if variables(b)]
            out.add(a.tensor)
        return out


def _refuse(reason: NotFound) -> Made:
    raise reason
