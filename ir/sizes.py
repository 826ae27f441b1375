"""Sizes of ranks: each is given, or an expression over others with a value from 0 to 2^63 - 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from tcc.ir.cascade import Cascade, Rank
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Call, Const, Expr, Size, text, walk
from tcc.ir.index import evaluate_size

MAX_ELEMENTS = 2**63 - 1


def check_sizes(ranks: Mapping[str, Rank]) -> None:
    """Raises T0108 on a cycle among sizes, T0110 on a negative one, T0111 on a too large one."""
    known: dict[str, int] = {}
    for rank in resolution_order(ranks):
        if rank.size is None or any(
            isinstance(n, Size) and n.rank not in known for n in walk(rank.size)
        ):
            continue
        value = size_value(rank.size, known, rank)
        if value < 0:
            raise CompileError(
                "T0110",
                f"rank `{rank.name}` has the negative size {value}",
                rank.span,
                helps="sizes are 0 or more",
            )
        if value > MAX_ELEMENTS:
            raise CompileError(
                "T0111",
                f"rank `{rank.name}` has {value} coordinates, more than 2^63 - 1",
                rank.span,
                helps="choose a smaller size",
            )
        known[rank.name] = value


def size_value(size: Expr, sizes: Mapping[str, int], rank: Rank) -> int:
    """The value of a rank's size; T0112 where the arithmetic has none, T0111 where it explodes."""
    for n in walk(size):
        if not isinstance(n, Call):
            continue
        if n.op in ("floordiv", "mod", "div") and evaluate_size(n.args[1], sizes) == 0:
            raise CompileError(
                "T0112",
                f"the size `{text(n)}` divides by zero",
                n.span or rank.span,
                helps="divide by a size of 1 or more",
            )
        if n.op == "pow" and not 0 <= evaluate_size(n.args[1], sizes) <= 64:
            raise CompileError(
                "T0111",
                f"the size `{text(n)}` is not an integer below 2^63",
                n.span or rank.span,
                helps="choose an exponent between 0 and 62",
            )
    return evaluate_size(size, sizes)


def solve_sizes(c: Cascade, shapes: Mapping[str, tuple[int, ...]], sizes: dict[str, int]) -> None:
    """Adds ranks that an input's shape determines: `2*P + R - 2 = n` gives P once R is known."""
    open_ = {r.name for r in c.ranks if r.size is None}
    pairs = ((c.resolved(s), n) for t in c.inputs for s, n in zip(t.shape, shapes.get(t.name, ())))
    _solve(list(pairs), open_, sizes)


def known_sizes(ranks: Iterable[Rank], given: Mapping[str, int]) -> dict[str, int]:
    """The given sizes of ranks that are there, with those that they determine: K = 128*G and K give G."""
    ranks = list(ranks)
    sizes = {r.name: given[r.name] for r in ranks if r.name in given}
    open_ = {r.name for r in ranks if r.size is None}
    _solve(
        [(r.size, sizes[r.name]) for r in ranks if r.size is not None and r.name in sizes],
        open_,
        sizes,
    )
    return sizes


def _solve(pairs: Sequence[tuple[Expr, int]], open_: set[str], sizes: dict[str, int]) -> None:
    moved = True
    while moved:
        moved = False
        for size, extent in pairs:
            unknown = list(
                dict.fromkeys(
                    n.rank for n in walk(size) if isinstance(n, Size) and n.rank not in sizes
                )
            )
            if len(unknown) != 1 or unknown[0] not in open_:
                continue
            at = [evaluate_size(size, {**sizes, unknown[0]: k}) for k in range(1, 5)]
            slope = at[1] - at[0]
            if slope > 0 and all(b - a == slope for a, b in pairwise(at)):
                # where it does not divide, the check of the shapes reports the mismatch
                sizes[unknown[0]] = 1 + (extent - at[0]) // slope
                moved = True


def resolution_order(ranks: Mapping[str, Rank]) -> list[Rank]:
    """The ranks, each after those that its size mentions; T0108 when they depend on each other."""
    done: dict[str, Rank] = {}
    open_: list[str] = []
    for name in ranks:
        stack = [name]
        while stack:
            at = stack[-1]
            rank = ranks.get(at)
            if at in done or rank is None:
                stack.pop()
                continue
            needs = [
                n.rank
                for n in walk(rank.size or Const(0))
                if isinstance(n, Size) and n.rank not in done
            ]
            needs = [n for n in needs if n in ranks]
            if not needs:
                done[at] = rank
                stack.pop()
                continue
            open_ = [*stack]
            if any(n in open_ for n in needs):
                raise CompileError(
                    "T0108",
                    f"the size of rank `{at}` depends on itself",
                    rank.span,
                    helps=f"give `{at}` a number, or leave its size open: `ranks {at}`",
                )
            stack.extend(needs)
    return list(done.values())


def why_this_size(c: Cascade, e: Expr) -> str:
    """Advice for a dimension that has another size: the definition of its rank, such as a number of groups, if it has one."""
    r = c.rank(e.rank) if isinstance(e, Size) else None
    if r is None or r.size is None or isinstance(r.size, Const):
        return "the same rank has the same size everywhere"
    return f"rank `{r.name}` has the size `{text(r.size)}`"
