"""Adjoints of recurrences run backwards in time, as recurrences over the reversed steps."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Einsum, Recurrence, Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Cast, Const, Expr, Var, call, text, transform, variables
from tcc.ir.index import Poly, poly
from tcc.passes._grad_expr import ZERO, choose, plus, pull_back
from tcc.passes._grad_index import inside
from tcc.passes._grad_monoid import weighted
from tcc.passes._grad_sum import Ledger, Part


def reverse(ledger: Ledger, r: Recurrence, live: set[str]) -> dict[str, str]:
    """S[t + 1] = g(S[t], X[t])  -->  B[u + 1] = later[T - u] + B[u] · ∂g/∂S at t = T - u;  d_S[t] = B[T + 1 - t].

    Later reads of the states have been added to the ledger; what the steps read besides each other is added now. Returns
    the adjoint of each state.
    """
    return _Reverse(ledger, r, live).run()


class _Reverse:
    def __init__(self, ledger: Ledger, r: Recurrence, live: set[str]) -> None:
        self.ledger, self.r, self.live = ledger, r, live
        self.members = [d for d in r.steps if d.target in live]
        self.time: dict[str, int] = {}  # dimension of the steps
        self.ahead: dict[str, int] = {}  # k of T[t + k] = …
        for d in self.members:
            self._check(d)
            n = next(n for n, i in enumerate(d.indices) if r.var in variables(i))
            offset = (poly(d.indices[n]) - poly(Var(r.var))).constant
            assert offset is not None
            self.time[d.target], self.ahead[d.target] = n, offset
        names = ledger.names
        self.extent = poly(names.extent(r.var))
        self.steps = self.extent + Poly({(): max(self.ahead.values())})
        used = {v for d in r.steps for v in (*d.free, *d.reduced)}
        self.u = names.variable(self.steps.expr(), used, f"{r.var}_back")
        self.d = {t: names.tensor(f"d_{t}") for t in self.time}
        self.back = {t: names.tensor(f"d_{t}_back") for t in self.time}

    def _check(self, d: Einsum) -> None:
        if self.r.stop is not None:
            raise CompileError("T0260", f"the recurrence of `{d.target}` stops early, and has no gradient", d.span,
                               helps="remove the `stop`, and give the number of steps")  # fmt: skip
        if any(set(variables(p)) <= set(d.free) for p in d.where):
            raise CompileError("T0260", f"the recurrence of `{d.target}` exists only in part, and has no gradient", d.span,
                               helps="write `select(p, a, b)` instead of `where p`")  # fmt: skip

    def run(self) -> dict[str, str]:
        ledger = self.ledger
        later = {t: self._later(t) for t in self.time}
        for t in self.time:
            shape = ledger.c.tensors[t].shape
            ledger.tensors[self.d[t]] = replace(ledger.c.tensors[t], name=self.d[t])
            n = self.time[t]
            size = (self.steps + Poly({(): 1})).expr()
            back = (*shape[:n], size, *shape[n + 1 :])
            ledger.tensors[self.back[t]] = Tensor(self.back[t], ledger.c.tensors[t].dtype, back)
        parts: dict[str, list[Part]] = {t: [] for t in self.time}
        for d in reversed(self.members):
            seed = weighted(ledger, d, ledger.element(self.d[d.target], d.indices))
            value = None if d.reduced else Access(d.target, d.indices)
            for a, g in pull_back(d.body, seed, value, self.live, ledger.dtype):
                if a.tensor in self.time:
                    parts[a.tensor].append(self._step(d, a, g))
                else:
                    ledger.add(a.tensor, ledger.read(d, a, g))
        for t in self.time:
            self._recurrence(t, later[t], parts[t])
        return self.d

    def _later(self, t: str) -> str | None:
        """What reads after the recurrence contribute."""
        if not self.ledger.parts.get(t):
            return None
        return self.ledger.total(t, self.ledger.names.tensor(f"d_{t}_later"))

    def _step(self, d: Einsum, a: Access, g: Expr) -> Part:
        """What the read `a` in d contributes to the state of a, both at their steps of the reversed recurrence."""
        n = self.time[a.tensor]
        offset = (poly(a.indices[n]) - poly(Var(self.r.var))).constant
        assert offset is not None
        one = Poly({(): 1})
        at = self.extent + one.scaled(self.ahead[a.tensor] - 1 - offset) - poly(Var(self.u))
        made = self.ledger.read(d, a, self._turned(d, g), {self.r.var: at.expr()}, {n: self.u})
        where = [*made.where, *inside(at.expr(), self.extent.expr(), self.ledger.names)]
        free = [p for p in where if set(variables(p)) <= set(made.at)]
        body = transform(made.body, _plain_indices)
        for p in free:
            body = choose(p, body, ZERO)
        return Part(
            made.source, made.at, body, tuple(p for p in where if not any(p is q for q in free))
        )

    def _turned(self, d: Einsum, g: Expr) -> Expr:
        """d_T[t + k] read from the reversed adjoint: B[T - t]."""

        def rule(n: Expr) -> Expr:
            if isinstance(n, Access) and n.tensor == self.d[d.target]:
                k = self.time[d.target]
                at = (self.extent - poly(Var(self.r.var))).expr()
                return Access(self.back[d.target], (*n.indices[:k], at, *n.indices[k + 1 :]))
            return n

        return transform(g, rule)

    def _recurrence(self, t: str, later: str | None, parts: list[Part]) -> None:
        ledger, n, one = self.ledger, self.time[t], Poly({(): 1})
        dtype = ledger.c.tensors[t].dtype
        at = next((p.at for p in parts if p.reduces), parts[0].at if parts else None)
        if at is None:
            at = tuple(
                self.u if k == n else v
                for k, v in enumerate(ledger.coordinates(ledger.c.tensors[t], [self.u]))
            )

        def indices(time: Expr) -> tuple[Expr, ...]:
            return tuple(time if k == n else Var(v) for k, v in enumerate(at))

        body: Expr = ZERO
        if later is not None:
            end = self.extent + one.scaled(self.ahead[t] - 1) - poly(Var(self.u))
            body = Access(later, indices(end.expr()))
            if ledger.domain[later][1]:
                body = call("coalesce", body, ZERO)
        for part in parts:
            if part.reduces:
                name = ledger.names.tensor(f"d_{t}_{part.source}")
                ledger.define(Einsum(name, tuple(map(Var, part.at)), part.body, (), part.where))
                body = plus(body, Access(name, tuple(map(Var, at))))
            else:
                body = plus(body, part.renamed(at).body)
        if ledger.dtype(body) != dtype:
            body = Cast(dtype, body)
        turned = call("add", Var(self.u), Const(1))
        ledger.new.append(Einsum(self.back[t], indices(Const(0)), Cast(dtype, ZERO)))
        ledger.new.append(Einsum(self.back[t], indices(turned), body))
        whole = ledger.coordinates(ledger.c.tensors[t])
        time = (self.extent + one.scaled(self.ahead[t]) - poly(Var(whole[n]))).expr()
        from_back = tuple(time if k == n else Var(v) for k, v in enumerate(whole))
        ledger.define(Einsum(self.d[t], tuple(map(Var, whole)), Access(self.back[t], from_back)))


def _plain_indices(n: Expr) -> Expr:
    """Indices in normal form, so that steps are seen as u + k."""
    if not isinstance(n, Access):
        return n
    plain = [(i, poly(i).expr()) for i in n.indices]
    new = tuple(i if isinstance(p, Var) else p for i, p in plain)
    return (
        n
        if all(text(a) == text(b) for a, b in zip(new, n.indices))
        else Access(n.tensor, new, n.span)
    )
