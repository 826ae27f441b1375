"""Which definitions make one kernel: producers and consumers that share their outer loops."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tcc.ir.cascade import (
    Cascade,
    Definition,
    Einsum,
    Extern,
    Joint,
    Recurrence,
    steps,
    targets,
)
from tcc.ir.expr import accesses
from tcc.ir.target import Target
from tcc.passes._algebra import Contraction, contraction, row_variables, side_by_side, tile_variable
from tcc.passes._dots import dot_group, products_late
from tcc.passes._fuse_cost import LAUNCH, TASKS, Estimate
from tcc.passes._fuse_joints import renamed_joint, together
from tcc.passes._fuse_model import modelled_gain
from tcc.passes._fuse_names import Names, from_product, ties
from tcc.passes._fuse_streams import streams
from tcc.passes._gpu_check import one_kernel


def fuse(c: Cascade, target: Target, *, max_members: int = 16) -> Cascade:
    """Partitions the definitions into kernels; in one kernel, variables of one name are one loop.

    What a joint reduction walks is one kernel. Any other definition joins, of the kernel of its latest producer and
    those that read what it reads, the one in which it saves most time, if the two still share outer loops, over which
    every slice is independent. Saved are launches, and stores and loads of what stays near a core; what is computed
    again for each block of columns, and operands that are streamed more often, count against it.
    """
    if c.groups:
        return c
    c = c if target.kind == "array" else streams(c)
    return _Fusion(products_late(c) if target.kind == "cpu" else c, target, max_members).run()


@dataclass
class _Group:
    members: list[Definition]
    closed: bool
    walk: str | None = None  # the variable of a joint reduction
    dot: bool = False  # an integer product, and what follows it tile by tile

    @property
    def einsums(self) -> list[Einsum]:
        return [d for d in self.members if isinstance(d, Einsum)]


class _Fusion:
    def __init__(self, c: Cascade, target: Target, max_members: int) -> None:
        self.c, self.max_members = c, max_members
        self.target, self.kind = target, target.kind
        self.groups: list[_Group] = []
        self.where: dict[str, int] = {}  # tensor -> index of the group that makes it
        self.names = Names(c)
        self.estimate = Estimate(c, target, self.names)

    def run(self) -> Cascade:
        units, order = together(self.c)
        self.c = replace(self.c, definitions=tuple(order))
        unit_of = {id(d): n for n, (_, members) in enumerate(units) for d in members}
        joints: list[Joint] = []
        for step in steps(self.c):
            at = unit_of.get(id(step))
            if at is not None:
                if step is units[at][1][0]:
                    joints.append(self._walk(*units[at]))
            elif isinstance(step, Recurrence | Extern):
                self._open(
                    list(step.steps) if isinstance(step, Recurrence) else [step], closed=True
                )
            else:
                self._place(step)
        names: list[tuple[str, tuple[str, ...]]] = []
        definitions: list[Definition] = []
        for n, g in enumerate(self.groups):
            definitions += g.members
            made = tuple(dict.fromkeys(t for d in g.members for t in targets(d)))
            names.append((f"k{n}_{made[-1]}", made))
        ranks = tuple(self.names.ranks.values())
        fused = replace(self.c, ranks=ranks, groups=tuple(names), joints=tuple(joints))
        return fused.with_definitions(tuple(definitions))

    def _open(self, members: list[Definition], closed: bool = False) -> None:
        self.groups.append(_Group(members, closed))
        self.where |= {t: len(self.groups) - 1 for d in members for t in targets(d)}

    def _walk(self, j: Joint, unit: list[Einsum]) -> Joint:
        """The kernel of a joint reduction; element-wise definitions over its rows may still join."""
        members: list[Einsum] = []
        for d in unit:
            members.append(self.names.unify(members, d))
        j = renamed_joint(j, [d for d in members if d.target in j.tensors])
        self._open([*members])
        self.groups[-1].walk = j.var
        return j

    def _place(self, d: Einsum) -> None:
        """Into the kernel that gains most from it, of its latest producer and of those that read what it reads."""
        best: tuple[float, int, Einsum] | None = None
        if self.kind == "cpu" and self._next_to_product(d):
            return
        if len(self.c.defining(d.target)) == 1:
            producers = [self.where[a.tensor] for a in d.reads if a.tensor in self.where]
            last = max(producers, default=-1)
            reads = {a.tensor for a in d.reads}
            for at in range(max(last, 0), len(self.groups)):
                group = self.groups[at]
                if at != last and not reads & {a.tensor for x in group.einsums for a in x.reads}:
                    continue
                found = self._join(group, d, at == last)
                if found is not None and (best is None or found[0] > best[0]):
                    best = (found[0], at, found[1])
        if best is None:
            self._open([d], closed=len(self.c.defining(d.target)) > 1)
        else:
            self._add(best[2], best[1])

    def _add(self, d: Einsum, at: int) -> None:
        self.groups[at].members.append(d)
        self.where[d.target] = at

    def _next_to_product(self, d: Einsum) -> bool:
        """Places an integer product in a kernel of its own, and what can follow one next to it."""
        last = max((self.where[a.tensor] for a in d.reads if a.tensor in self.where), default=-1)
        if last >= 0 and self.groups[last].dot:
            joined = self.names.unify(self.groups[last].einsums, d)
            if dot_group(self.names.program(), [*self.groups[last].einsums, joined]) is not None:
                self._add(joined, last)
                return True
        if dot_group(self.names.program(), [d]) is None:
            return False
        self._open([d])
        self.groups[-1].dot = True
        return True

    def _join(self, group: _Group, d: Einsum, produced: bool) -> tuple[float, Einsum] | None:
        """The seconds that are saved when d joins a kernel, and d in the kernel's names; None where it cannot."""
        if group.closed or group.dot or len(group.members) >= self.max_members:
            return None
        if any(len(self.c.defining(x.target)) > 1 for x in group.einsums):
            return None
        members = group.einsums
        d = self.names.unify(members, d, {} if produced else ties(members, d))
        if self.kind == "gpu" and not one_kernel([*members, d]):
            return None
        c = self.names.program()
        before, rows = row_variables(members, c), row_variables([*members, d], c)
        if not rows or self.estimate.tasks(rows) < min(TASKS, self.estimate.tasks(before)):
            return None
        if len(rows) < len(before) and not (produced and self.estimate.fits([*members, d], rows)):
            return None
        mine = contraction(d)
        if group.walk is not None:
            stays = group.walk not in (*d.free, *d.reduced) and mine is None and produced
            return (self.estimate.gain(members, d), d) if stays and rows == before else None
        splits = [x for x in members if contraction(x) is not None]
        if mine is None and (produced or not splits):
            if splits and tile_variable([*members, d]) is None:
                return None
            return max(self.estimate.gain(members, d), 0.0), d
        tile = tile_variable([*members, d])
        own = contraction(d, tile) if tile is not None else None
        if own is None:
            return None
        others = [s for x in splits if (s := contraction(x, tile)) is not None]
        return self._product(members, d, own, others)

    def _product(
        self, members: list[Einsum], d: Einsum, own: Contraction, others: list[Contraction]
    ) -> tuple[float, Einsum] | None:
        """A product joins what makes its first operand, a product of which that operand is made, or one that reads the
        same first operand."""
        made = {x.target: x for x in members}
        inside = [a.tensor for a in accesses(own.row_factor) if a.tensor in made]
        if any(a.tensor in made for a in accesses(own.column_factor)):
            return None
        chained = any(from_product(made, t) for t in inside)
        if chained and all(s.batch for s in (*others, own)):
            rows = row_variables([*members, d], self.names.program())
            return (LAUNCH, d) if self.estimate.fits([*members, d], rows) else None
        if not chained and (inside or others):
            d = self.names.beside(d, own, others)
            if side_by_side([*members, d]) is None:
                return None
        gain = modelled_gain(self.names.program(), self.target, members, d, own)
        if gain is None:
            gain = self.estimate.gain(members, d, own, others if chained else ())
        return (gain, d) if gain > 0 else None
