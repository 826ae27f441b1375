"""Which definitions make one kernel: producers and consumers that share their outer loops."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tcc.ir.cascade import (
    Cascade,
    Definition,
    Einsum,
    Extern,
    Rank,
    Recurrence,
    steps,
    targets,
)
from tcc.ir.expr import Const, Expr, Size, Var, accesses, variables
from tcc.ir.index import same
from tcc.ir.target import Target
from tcc.passes._algebra import (
    Contraction,
    contraction,
    elements,
    plain_variables,
    renamed,
    row_variables,
    size_estimate,
    tile_variable,
)

TASKS = 8  # fewer independent tiles than this leave cores idle
ROWS = 24  # rows of a tile


def fuse(c: Cascade, target: Target, *, ratio: float = 4.0, max_members: int = 16) -> Cascade:
    """Partitions the definitions into kernels; in one kernel, variables of one name are one loop.

    A definition joins the kernel of its latest producer when the two still share outer loops, over which every slice
    is independent. A contraction joins another when both belong to the same batch, so that no operand is shared between
    slices, or when the tensor between them is more than `ratio` times larger than each other operand: then keeping its
    tiles near beats streaming it.
    """
    if c.groups:
        return c
    inner = [level.bytes for level in target.levels[1:] if level.bytes]
    return _Fusion(c, ratio, max_members, (max(inner[1:], default=1 << 19) // 8)).run()


@dataclass
class _Group:
    members: list[Definition]
    closed: bool

    @property
    def einsums(self) -> list[Einsum]:
        return [d for d in self.members if isinstance(d, Einsum)]


class _Fusion:
    def __init__(self, c: Cascade, ratio: float, max_members: int, near: int) -> None:
        self.near = near
        self.c, self.ratio, self.max_members = c, ratio, max_members
        self.groups: list[_Group] = []
        self.where: dict[str, int] = {}  # tensor -> index of the group that makes it
        self.ranks = {r.name: r for r in c.ranks}

    def run(self) -> Cascade:
        for step in steps(self.c):
            if isinstance(step, Recurrence | Extern):
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
        fused = replace(self.c, ranks=tuple(self.ranks.values()), groups=tuple(names))
        return fused.with_definitions(tuple(definitions))

    def _open(self, members: list[Definition], closed: bool = False) -> None:
        self.groups.append(_Group(members, closed))
        for d in members:
            for t in targets(d):
                self.where[t] = len(self.groups) - 1

    def _place(self, d: Einsum) -> None:
        made = [self.where[a.tensor] for a in d.reads if a.tensor in self.where]
        alone = len(self.c.defining(d.target)) > 1
        if made and not alone:
            at = max(made)
            joined = self._join(self.groups[at], d)
            if joined is not None:
                self.groups[at].members.append(joined)
                self.where[d.target] = at
                return
        self._open([d], closed=alone)

    def _join(self, group: _Group, d: Einsum) -> Einsum | None:
        if group.closed or len(group.members) >= self.max_members:
            return None
        if any(len(self.c.defining(x.target)) > 1 for x in group.einsums):
            return None
        d = self._unify(group.einsums, d)
        before = row_variables(group.einsums)
        rows = row_variables([*group.einsums, d])
        if not rows or self._tasks(rows) < min(TASKS, self._tasks(before)):
            return None
        if len(rows) < len(before) and not self._near([*group.einsums, d], rows):
            return None
        made = {x.target: x for x in group.einsums}
        splits = [x for x in group.einsums if contraction(x) is not None]
        mine = contraction(d)
        if mine is None and not splits:
            return d
        tile = tile_variable([*group.einsums, d])
        if tile is None:
            return None
        if mine is not None:
            own = contraction(d, tile)
            others = [s for x in splits if (s := contraction(x, tile)) is not None]
            if own is None or not self._worth(own, d, others, made):
                return None
        return d

    def _tasks(self, rows: list[str]) -> float:
        """About how many independent tiles the shared loops give, of a few rows each."""
        sizes = [size_estimate(self.c, self._extent(v)) for v in rows]
        return math.prod(sizes) / min(ROWS, max(sizes, default=1))

    def _near(self, members: list[Einsum], rows: list[str]) -> bool:
        """Whether what the members hand on for one row fits in the cache next to a core."""
        read = {a.tensor for d in members for a in d.reads}
        per_row = 1
        for v in rows:
            per_row *= size_estimate(self.c, self._extent(v))
        return all(
            elements(self.c, d.target) // per_row <= self.near for d in members if d.target in read
        )

    def _extent(self, v: str) -> Expr:
        size = self.ranks[v.upper()].size
        return size if size is not None else Size(v.upper())

    def _worth(
        self, mine: Contraction, d: Einsum, split: list[Contraction], made: dict[str, Einsum]
    ) -> bool:
        inside = [a.tensor for a in accesses(mine.row_factor) if a.tensor in made]
        if not inside or any(a.tensor in made for a in accesses(mine.column_factor)):
            return False
        if split and all(s.batch for s in (*split, mine)):
            return self._near([*made.values(), d], row_variables([*made.values(), d]))
        between = max(elements(self.c, t) for t in inside)
        others = [a.tensor for s in (*split, mine) for a in accesses(s.column_factor)] + [d.target]
        return bool(split) and all(between > self.ratio * elements(self.c, t) for t in others)

    # ---- one name for one loop

    def _unify(self, members: list[Einsum], d: Einsum) -> Einsum:
        """d with its variables renamed to those of the producers that they walk."""
        made = {x.target: x for x in members}
        new: dict[str, str] = {}
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
            if v not in new and (v in taken or (v in used and not self._same_loop(members, d, v))):
                new[v] = self._fresh(v, used | taken | set(mine))
                taken.add(new[v])
        new = {k: v for k, v in new.items() if k != v}
        return renamed(d, new) if new else d

    def _same_loop(self, members: list[Einsum], d: Einsum, v: str) -> bool:
        """A variable of the same name that no access ties may stay one loop when both walk outer dimensions with it."""
        return v in plain_variables(d) or v in d.reduced

    def _fresh(self, v: str, used: set[str]) -> str:
        size = self._extent(v)
        n = 1
        while f"{v}_{n}" in used or (
            f"{v}_{n}".upper() in self.ranks
            and not same(self.ranks[f"{v}_{n}".upper()].size or _ONE, size)
        ):
            n += 1
        name = f"{v}_{n}"
        self.ranks[name.upper()] = Rank(name.upper(), size)
        return name


_ONE = Const(1)
