"""Fewest passes: chains of reductions over one variable become joint reductions, by algebra on their bodies."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tcc.ir.cascade import Cascade, Joint, targets
from tcc.ir.expr import accesses
from tcc.ir.infer import build
from tcc.ir.target import Target
from tcc.passes._derive_chain import chains, gathered, settled, single, ungrouped, unplaced
from tcc.passes._derive_profit import worth
from tcc.passes._derive_region import excluded
from tcc.passes._derive_scope import Program
from tcc.passes._derive_solve import Barrier, Component, solve
from tcc.passes._prefix import running
from tcc.passes._prune import drop_ranks


@dataclass(frozen=True)
class Derived:
    """One chain: the rank that it walks, and what became of its reductions."""

    rank: str
    components: tuple[Component, ...]
    barriers: tuple[Barrier, ...]

    @property
    def walks(self) -> int:
        """How often the chain's reductions walk the rank."""
        return 1 + max(c.walk for c in self.components)


@dataclass(frozen=True, eq=False)
class Derivation:
    """All chains of a program, and the program with everything derived, worth it or not."""

    chains: tuple[Derived, ...]
    program: Cascade

    @property
    def barriers(self) -> tuple[Barrier, ...]:
        return tuple(b for c in self.chains for b in c.barriers)


def derive(c: Cascade, target: Target, *, always: bool = False) -> Cascade:
    """Reductions over one variable that depend on each other are computed in one walk, where that saves traffic.

    M = X[k] :: max(k);  S = exp(X[k] - M);  T = exp(X[k] - M) / S * V[k]
      -->  T_sum = exp(X[k] - M) * V[k];  T = T_sum / S;  joint k: M, S by S * exp(M - M'), T_sum by T_sum * exp(M - M')

    Where a joint does not pay, the program stays as it was. `always`: everything that can be derived is. On CPUs, reductions
    over all that comes before a coordinate become recurrences.
    """
    c = running(c) if target.kind == "cpu" else c
    return _derived(c, None if always else target)[0]


def derivation(c: Cascade) -> Derivation:
    """What can be derived, and what forbids more; `c` went through `restrict` and `simplify`."""
    program, found = _derived(c, None)
    return Derivation(tuple(found), program)


def _derived(c: Cascade, target: Target | None) -> tuple[Cascade, list[Derived]]:
    aligned, found = chains(ungrouped(gathered(unplaced(c))))
    program = Program(aligned, single(aligned))
    reports: list[Derived] = []
    joints: list[Joint] = []
    done: list[str] = []
    for chain in found:
        if target is not None and not worth(program, chain.var, list(chain.fields), target):
            continue
        made = solve(program, chain)
        reports.append(Derived(made.var.upper(), tuple(made.components), tuple(made.barriers)))
        new = [Joint(made.var, tuple(fields)) for fields in made.walks if len(fields) > 1]
        if not new and all(x.deferred is None for x in made.components):
            continue
        inside = [f.tensor for joint in new for f in joint.fields]
        if target is None or worth(made.program, made.var, inside, target):
            program = made.program
            joints += new
            done += chain.fields
    return (_applied(program, joints, done) if done else c), reports


def _applied(program: Program, new: list[Joint], fields: list[str]) -> Cascade:
    """The program with its new definitions and joints, without what they replace."""
    joints = (*program.c.joints, *new)
    c = settled(_needed(program.cascade, joints), fields)
    present = {d.target for d in c.definitions}
    joints = tuple(
        replace(j, fields=tuple(f for f in j.fields if f.tensor in present)) for j in joints
    )
    return excluded(build(drop_ranks(replace(c, joints=joints))), joints)


def _needed(c: Cascade, joints: tuple[Joint, ...]) -> Cascade:
    """The program without what no output needs, nor a correction of what one needs."""
    needed = {t.name for t in c.outputs} | {
        a.tensor for s in c.stops for a in accesses(s.condition)
    }
    fields = {f.tensor: f for j in joints for f in j.fields}
    stack = list(needed)
    while stack:
        name = stack.pop()
        reads = {a.tensor for d in c.defining(name) for a in d.reads}
        f = fields.get(name)
        if f is not None and f.correction is not None:
            reads |= {a.tensor.removesuffix("'") for a in accesses(f.correction)}
        for d in c.defining(name):
            reads |= set(targets(d))
        stack += sorted(reads - needed)
        needed |= reads
    kept = tuple(d for d in c.definitions if needed & set(targets(d)))
    return c if len(kept) == len(c.definitions) else replace(c, definitions=kept)
