"""Long walks of few rows are cut into parts, which run side by side and are merged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tcc.ir.cascade import Cascade, Einsum, Field, Joint, steps
from tcc.ir.expr import Const, Expr, Var
from tcc.ir.index import poly
from tcc.ir.ops import MONOIDS
from tcc.ir.target import Target
from tcc.passes._algebra import contraction, contractions, size_estimate
from tcc.passes._fuse_joints import exclusive, walks
from tcc.passes._split_walk import divided, streamed

RESOURCES = {"cpu": "core"}  # what the parts of a walk are spread over, by the kind of target
CORES = 8  # where a target does not say how many there are
SHARE = 2  # tasks per core, so that all cores end at about the same time
START = 1 << 15  # points of work that take as long as starting all cores, about 20 us
LONG = 4 * START  # less work than this is not worth more cores
UNIT = 64  # the length of a part is a multiple of this
BLOCK = 96  # rows of products that one task computes anyway
TILE = (6, 16)  # rows and columns of the least task of a product


@dataclass(frozen=True)
class Cut:
    """A walk, of which every part has `length` coordinates, because it has only so many `tasks` for so many `cores`."""

    joint: Joint
    members: tuple[Einsum, ...]
    length: int
    tasks: int
    cores: int


def split(c: Cascade, target: Target) -> Cascade:
    """Where a reduction has fewer independent rows than there are cores, and a long walk, parts of the walk are reduced
    side by side, and their values merged as the joint says: each is corrected towards the references of all.

    T[i] = e(m) :: ⊕(m)  -->  T_part[s,i] = e(s·L + w) :: ⊕(w) where s·L + w < M;  T[i] = g(T_part[s,i], …) :: ⊕(s)

    Nothing is cut where the number of rows is not known. The length L of a part is a number, so that M may be any.
    """
    for cut in cuts(c, target):
        c = divided(c, cut.joint, cut.members, cut.length)
    return c


def cuts(c: Cascade, target: Target) -> list[Cut]:
    """The walks of a program that `split` cuts on a target, and why."""
    name = RESOURCES.get(target.kind)
    found = next((r for r in target.resources if r.name == name), None)
    if c.groups or found is None:
        return []
    cores = found.count or CORES
    made: list[Cut] = []
    inside: set[str] = set()
    for j, members in walks(c):
        inside |= {d.target for d in members}
        cut = _cut(c, j, members, cores)
        made += [] if cut is None else [cut]
    for d in steps(c):
        if not isinstance(d, Einsum) or d.target in inside or not _plain(c, d):
            continue
        var = max(d.reduced, key=lambda v: size_estimate(c, c.extent(v)))
        j = Joint(var, (Field(d.target),))
        members = exclusive(c, [d], var) if streamed([d]) else [d]
        if inside.isdisjoint(x.target for x in members):
            inside |= {x.target for x in members}
            cut = _cut(c, j, members, cores)
            made += [] if cut is None else [cut]
    return made


def _plain(c: Cascade, d: Einsum) -> bool:
    """Whether a definition is all of its tensor, and a reduction of one kind."""
    kinds = {d.monoid(v) for v in d.reduced}
    return (
        len(kinds) == 1
        and kinds <= set(MONOIDS)
        and len(c.defining(d.target)) == 1
        and all(isinstance(i, Var | Const) for i in d.indices)
        and len(set(d.free)) == sum(isinstance(i, Var) for i in d.indices)
    )


def _cut(c: Cascade, j: Joint, members: list[Einsum], cores: int) -> Cut | None:
    """How a walk is cut; None where it is not."""
    fields = [d for d in members if d.target in j.tensors]
    rows = set.intersection(*(set(d.free) for d in fields))
    tasks = _tasks(c, members, j.var, rows)
    if tasks is None or tasks >= cores or not _aligned(members, j):
        return None
    each = sum(
        math.prod(size_estimate(c, c.extent(v)) for v in (*d.free, *d.reduced) if v != j.var)
        for d in members if j.var in (*d.free, *d.reduced)
    )  # fmt: skip
    extent = _known(c, c.extent(j.var))
    if extent is None and not streamed(members):
        return None  # what is not streamed visits a whole part, however short the walk is
    least = START // 4
    if extent is not None:
        if extent * each < LONG:
            return None
        wanted = -(-extent * tasks // (SHARE * cores))
    else:
        wanted, least = 1, START
    length = max(wanted, -(-least * tasks // each))
    length = -(-length // UNIT) * UNIT
    if extent is not None and 2 * length > extent + length // 2:
        return None
    return Cut(j, tuple(members), length, tasks, cores)


def _tasks(c: Cascade, members: list[Einsum], var: str, rows: set[str]) -> int | None:
    """How many tasks the rows give; None where that is not known."""
    sizes = {v: _known(c, c.extent(v)) for v in sorted(rows)}
    if any(n is None for n in sizes.values()):
        return None
    products = [d for d in members if var in (*d.free, *d.reduced) and contraction(d)]
    known = {v: n or 0 for v, n in sizes.items()}
    if products == members:  # a product alone is computed in tiles of rows and columns
        s = next(contractions(members[0]))
        tile = {s.rows[-1]: TILE[0], s.columns[-1]: TILE[1]}
        return math.prod(-(-n // tile.get(v, 1)) for v, n in known.items())
    longest = max(known, key=lambda v: known[v], default="") if products else ""
    return math.prod(-(-n // BLOCK) if v == longest else n for v, n in known.items())


def _known(c: Cascade, size: Expr) -> int | None:
    return poly(c.resolved(size)).constant


def _aligned(members: list[Einsum], j: Joint) -> bool:
    """Whether all that is computed along the walk is indexed by its variable alone, and read at the same coordinate."""
    along: dict[str, int] = {}
    for d in members:
        if not all(isinstance(i, Var | Const) for i in d.indices):
            return False
        if j.var in d.free:
            at = [n for n, i in enumerate(d.indices) if isinstance(i, Var) and i.name == j.var]
            if len(at) != 1:
                return False
            along[d.target] = at[0]
    for d in members:
        for a in d.reads:
            i = a.indices[along[a.tensor]] if a.tensor in along else None
            if i is not None and not (isinstance(i, Var) and i.name == j.var):
                return False
    return True
