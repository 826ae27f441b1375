"""Recurrences as running state: a buffer that holds two steps, the last one and the one being
computed.

S[0, p] = a;  S[t+1, p] = g(S[t, p], …);  Z[p] = S[T, p]
-->  S[0, p] = a;  for t by 1 { S[(t+1) % 2, p] = g(S[t % 2, p], …) };  Z[p] = S[T % 2, p]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tcc.ir.cascade import Cascade, Einsum, Recurrence, steps
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Const, Expr, Var, call, text, transform, variables
from tcc.ir.index import poly, same


@dataclass(frozen=True, slots=True)
class State:
    """One tensor of a recurrence along `var`: where its step index stands, its first value, and
    its step.

    Its buffer is `name`; where the steps leave the kernel, `stores` copy them to the tensor in
    memory.
    """

    name: str
    tensor: str
    var: str
    position: int
    first: Einsum
    step: Einsum
    stores: tuple[Einsum, ...] = ()  # of the first value, and of a step


def _refused(d: Einsum, why: str) -> CompileError:
    return CompileError(
        "T0223",
        f"the recurrence of `{d.target}` has no mapping onto blocks: {why}",
        d.span,
        helps="keep only the last step: `Z[…] = S[T, …]`, or choose the cpu target",
    )


def find_states(
    c: Cascade, members: list[Einsum], stored: frozenset[str]
) -> tuple[list[State], list[Einsum]]:
    """The states of a kernel, and its other definitions, both rewritten to read the states'
    buffers.
    """
    own = {id(d) for d in members}
    found: dict[str, tuple[Einsum, str, int]] = {}
    for s in steps(c):
        if not isinstance(s, Recurrence) or not any(id(d) in own for d in s.steps):
            continue
        if s.stop is not None:
            raise _refused(s.steps[0], f"it stops when `{text(s.stop.condition)}`")
        for d in s.steps:
            at = [n for n, i in enumerate(d.indices) if s.var in variables(i)]
            names = [i.name for n, i in enumerate(d.indices) if isinstance(i, Var) and n not in at]
            if len(at) != 1 or len(names) + 1 != len(d.indices) or len(set(names)) != len(names):
                raise _refused(d, f"`{text(Access(d.target, d.indices))}` is no plain step")
            if id(d) not in own:
                raise _refused(d, "its definitions are in several kernels")
            found[d.target] = (d, s.var, at[0])
    if not found:
        return [], members
    if len({var for _, var, _ in found.values()}) > 1:
        raise _refused(
            next(iter(found.values()))[0], "the kernel has another along another variable"
        )
    buffer = {name: _fresh(c, name) if name in stored else name for name in found}
    rewrite = _Rewrite(c, found, buffer)
    states = []
    for name, (d, var, place) in found.items():
        firsts = [m for m in members if m.target == name and m is not d]
        if len(firsts) != 1 or not _is_zero(firsts[0].indices[place]):
            raise _refused(d, "it needs one definition of its first value, at step 0")
        if _without(firsts[0].indices, place) != _without(d.indices, place):
            raise _refused(d, "its first value is defined over other variables")
        first, step = rewrite(firsts[0]), rewrite(d, place)
        stores = (_copy(firsts[0], first), _copy(d, step)) if name in stored else ()
        states.append(State(buffer[name], name, var, place, first, step, stores))
    return states, [rewrite(m) for m in members if m.target not in found]


def _copy(d: Einsum, held: Einsum) -> Einsum:
    """A value of the state, as `held` left it, written to memory where `d` says."""
    return Einsum(d.target, d.indices, Access(held.target, held.indices), (), d.where, d.span)


def _fresh(c: Cascade, name: str) -> str:
    fresh = f"{name}_state"
    while fresh in c.tensors:
        fresh += "_"
    return fresh


def _without(indices: tuple[Expr, ...], at: int) -> list[str]:
    return [text(i) for n, i in enumerate(indices) if n != at]


def _folded(indices: tuple[Expr, ...], at: int) -> tuple[Expr, ...]:
    """The indices with the step taken modulo 2."""
    return (*indices[:at], call("mod", indices[at], Const(2)), *indices[at + 1 :])


def _is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and e.value == 0


@dataclass(frozen=True, slots=True)
class _Rewrite:
    c: Cascade
    found: Mapping[str, tuple[Einsum, str, int]]
    buffer: Mapping[str, str]

    def __call__(self, d: Einsum, at: int = -1) -> Einsum:
        """`d` with every step index folded; `at` is the place of the step in its own target."""

        def rule(n: Expr) -> Expr:
            return self.access(n, d) if isinstance(n, Access) and n.tensor in self.found else n

        where = tuple(transform(p, rule) for p in d.where)
        indices = d.indices if at < 0 else _folded(d.indices, at)
        target = self.buffer.get(d.target, d.target)
        return replace(d, target=target, indices=indices, body=transform(d.body, rule), where=where)

    def access(self, a: Access, reader: Einsum) -> Access:
        """A read of the last step, of this one, or, where no step is under way, of the one after
        all.
        """
        step, var, at = self.found[a.tensor]
        inside = var in variables(reader.body, *reader.where, *reader.indices)
        index = a.indices[at]
        ahead = (poly(index) - poly(Var(var))).constant if inside else None
        final = not inside and same(index, self.c.extent(var))
        if _without(a.indices, at) != _without(step.indices, at) or (
            ahead not in (0, 1) and not final
        ):
            raise _refused(step, f"`{reader.target}` reads `{text(a)}`")
        return replace(a, tensor=self.buffer[a.tensor], indices=_folded(a.indices, at))
