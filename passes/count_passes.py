"""passes(rank) = the fewest times that its elements are walked when all that can share a walk does.

A definition that walks a rank needs another pass when an operand depends on a reduction over the whole rank: that
reduction has to end first. Summaries of tiles, T[m1] of a rank that is split into m1 and m0, are no walk over the rank.
The fields of a joint, and what is streamed between them, share one walk. This counts, and changes nothing
(the taxonomy of Nayak et al., FuseMax, 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tcc.ir.cascade import Cascade, Definition, Einsum
from tcc.ir.expr import Expr, Var, variables
from tcc.ir.index import Poly, poly
from tcc.passes._count_alignment import digits, dimension
from tcc.passes._count_ranks import dimensions, labels, splits
from tcc.passes._count_walks import Counter, Program, Walk


@dataclass(frozen=True, slots=True, eq=False)
class Barrier:
    """`until` can walk the rank only after `of` has reduced all of it; `through` are the tensors in between.

    `step`: the variable of a recurrence each of whose steps waits for the step before.
    """

    rank: str
    of: Definition
    until: Definition
    through: tuple[str, ...] = ()
    step: str = ""

    @property
    def why(self) -> str:
        names = [f"`{t}`" for t in self.through]
        path = ", ".join(names if len(names) < 5 else (*names[:2], "…", names[-1]))
        through = f", through {path}," if path else ""
        each = f", at each step of `{self.step}`" if self.step else ""
        return f"`{self.until.target}` needs all of `{self.of.target}`{through} before it can walk {self.rank} again{each}"


@dataclass(frozen=True, slots=True, eq=False)
class Count:
    """The passes over one dimension of a tensor, and what forces each but the first.

    `per_step` names the iterative rank each of whose steps takes that many passes.
    """

    tensor: str
    dimension: int
    rank: str
    passes: int
    barriers: tuple[Barrier, ...]
    per_step: str = ""


def count_passes(c: Cascade) -> tuple[Count, ...]:
    """The passes over each dimension of each input, and of each result that has a rank of its own."""
    program, names, split = Program(c), labels(c), splits(c)
    covered: dict[tuple[str, int], bool] = {}  # what other counts were about: element by element?
    digit: set[str] = set()  # ranks that are digits of others
    found = []
    for tensor, n in dimensions(c):
        rank = names[tensor, n]
        summary = (tensor, n) in covered and rank in digit
        if summary or covered.get((tensor, n), False):
            continue
        if (tensor, n) in split:
            digit.add(rank)
        running = any(
            program.recurrent.get(id(d)) in variables(d.indices[n])
            for d in c.defining(tensor)
            if isinstance(d, Einsum)
        )
        at = split.get((tensor, n), dimension(n))
        counter = Counter(program, tensor, at, running)
        if counter.walks:
            found.append(_count(tensor, n, rank, counter))
        _cover(c, counter, covered, split)
    return tuple(found)


def by_rank(counts: tuple[Count, ...]) -> dict[str, Count]:
    """For each rank the first dimension with the most passes."""
    found: dict[str, Count] = {}
    for count in counts:
        if count.rank not in found or count.passes > found[count.rank].passes:
            found[count.rank] = count
    return found


def _count(name: str, n: int, rank: str, counter: Counter) -> Count:
    last = max(counter.walks.values(), key=lambda w: w.number)  # the first of the last pass
    barriers, step = list(_chain(rank, last)), ""
    if counter.repeated is not None:
        step, again = counter.repeated
        barriers += list(_chain(rank, again, step))[-1:]
    return Count(name, n, rank, last.number, tuple(barriers), step.upper())


def _chain(rank: str, last: Walk, step: str = "") -> Iterator[Barrier]:
    """What each pass waits for, in order."""
    found: list[Barrier] = []
    at: Walk | None = last
    while at is not None:
        if at.wait is None:
            at = at.before
            continue
        through = at.wait.path[1:]
        found.append(Barrier(rank, at.wait.end.definition, at.definition, through, step))
        at = at.wait.end
    yield from reversed(found)


def _cover(
    c: Cascade,
    counter: Counter,
    covered: dict[tuple[str, int], bool],
    split: dict[tuple[str, int], Expr],
) -> None:
    """Notes dimensions that this count was about too, and those that are digits of a rank that is split on the way."""
    for (tensor, _), state in counter.state.items():
        extents = {f"#{n}": size for n, size in enumerate(c.tensors[tensor].shape)}
        for along in state.along:
            names = variables(along.at)
            if len(names) == 1:
                key = tensor, int(names[0][1:])
                covered[key] = covered.get(key, False) or along.whole
                continue
            p = poly(along.at)
            order = digits(c, p, extents) or []
            for k, atom in enumerate(order[:-1]):
                if isinstance(p.atoms[atom], Var):  # this digit and those behind it
                    terms = {key: x for key, x in p.terms.items() if set(key) & set(order[k:])}
                    split.setdefault((tensor, int(atom[1:])), Poly(terms, p.atoms).expr())
