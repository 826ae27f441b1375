"""One name for one loop: variables of the definitions of a kernel that walk the same coordinates together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcc.ir.cascade import Cascade, Einsum, Rank
from tcc.ir.expr import Const, Expr, Size, Var, variables
from tcc.ir.index import same
from tcc.passes._algebra import Contraction, contraction, plain_variables, renamed


class Names:
    """The ranks of a program, and of the variables that fusion has renamed."""

    def __init__(self, c: Cascade) -> None:
        self.ranks = {r.name: r for r in c.ranks}
        self._program = c

    def program(self) -> Cascade:
        """The program with all ranks there are by now."""
        if len(self._program.ranks) < len(self.ranks):
            self._program = replace(self._program, ranks=tuple(self.ranks.values()))
        return self._program

    def extent(self, v: str) -> Expr:
        size = self.ranks[v.upper()].size
        return size if size is not None else Size(v.upper())

    def unify(
        self, members: list[Einsum], d: Einsum, ties: Mapping[str, str] | None = None
    ) -> Einsum:
        """d with its variables renamed to those of the producers that they walk, and as `ties` says."""
        made = {x.target: x for x in members}
        new: dict[str, str] = dict(ties or {})
        for a in d.reads:
            if a.tensor not in made:
                continue
            for i, own in zip(a.indices, made[a.tensor].indices, strict=True):
                if isinstance(i, Var) and isinstance(own, Var) and own.name not in new.values():
                    new.setdefault(i.name, own.name)
        mine = list(dict.fromkeys([*variables(*d.indices, d.body, *d.where)]))
        taken = set(new.values())
        used = {v for x in members for v in variables(*x.indices, x.body, *x.where)}
        for v in mine:
            if v not in new and (v in taken or (v in used and not _same_loop(d, v))):
                new[v] = self._fresh(v, used | taken | set(mine))
                taken.add(new[v])
        new = {k: v for k, v in new.items() if k != v}
        return renamed(d, new) if new else d

    def beside(self, d: Einsum, own: Contraction, others: list[Contraction]) -> Einsum:
        """d with the columns of the products that are there already."""
        mine = own.columns[-1]
        theirs = next((s.columns[-1] for s in others), mine)
        taken = {*d.free, *d.reduced}
        if theirs in taken or not self.program().same_size(self.extent(mine), self.extent(theirs)):
            return d
        return renamed(d, {mine: theirs})

    def _fresh(self, v: str, used: set[str]) -> str:
        size = self.extent(v)
        n = 1
        while f"{v}_{n}" in used or (
            f"{v}_{n}".upper() in self.ranks
            and not same(self.ranks[f"{v}_{n}".upper()].size or Const(1), size)
        ):
            n += 1
        name = f"{v}_{n}"
        self.ranks[name.upper()] = Rank(name.upper(), size)
        return name


def _same_loop(d: Einsum, v: str) -> bool:
    """A variable of the same name that no access ties may stay one loop when both walk outer dimensions with it."""
    return v in plain_variables(d) or v in d.reduced


def ties(members: list[Einsum], d: Einsum) -> dict[str, str]:
    """Variables of d that walk a tensor as those of a member do."""
    found: dict[str, str] = {}
    for a in d.reads:
        other = next((b for x in members for b in x.reads if b.tensor == a.tensor), None)
        for i, j in zip(a.indices, other.indices if other is not None else (), strict=False):
            if isinstance(i, Var) and isinstance(j, Var) and j.name not in found.values():
                found.setdefault(i.name, j.name)
    return found


def from_product(made: dict[str, Einsum], tensor: str) -> bool:
    """Whether a tensor of a kernel is made of a product of the same kernel."""
    d = made[tensor]
    return contraction(d) is not None or any(
        from_product(made, a.tensor) for a in d.reads if a.tensor in made and a.tensor != tensor
    )
