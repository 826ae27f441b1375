"""The dimensions whose passes are counted, the names of their ranks, and ranks that are split by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tcc.ir.cascade import Cascade, Einsum, Extern
from tcc.ir.expr import Access, Expr, Size, Var, text, walk
from tcc.ir.index import poly
from tcc.passes._count_alignment import dimension


def dimensions(c: Cascade) -> Iterator[tuple[str, int]]:
    """Inputs first, then results in order."""
    names = [t.name for t in c.inputs]
    for d in c.definitions:
        names += [t.name for t in d.targets] if isinstance(d, Extern) else [d.target]
    for name in dict.fromkeys(names):
        for n, size in enumerate(c.tensors[name].shape):
            if poly(size).constant != 1:
                yield name, n


def labels(c: Cascade) -> dict[tuple[str, int], str]:
    """The rank of each dimension: of its size, else of a variable that walks it, else a name for its size."""
    walked: dict[tuple[str, int], str] = {}
    for d in c.definitions:
        if isinstance(d, Einsum):
            for a in (Access(d.target, d.indices), *d.reads):
                for n, i in enumerate(a.indices):
                    if isinstance(i, Var):
                        walked.setdefault((a.tensor, n), i.name.upper())
    found = {}
    for name, t in c.tensors.items():
        for n, size in enumerate(t.shape):
            own = size.rank if isinstance(size, Size) else None
            found[name, n] = own or walked.get((name, n)) or _name(c, size)
    return found


def _name(c: Cascade, size: Expr) -> str:
    """M for M1·M0, the rank of a constant size, else the size."""
    parts = [re.fullmatch(r"(\w*[A-Za-z_])\d", n.rank) for n in walk(size) if isinstance(n, Size)]
    stems = {m[1] if m is not None else "" for m in parts}
    if len(parts) > 1 and len(poly(size).terms) == 1 and len(stems) == 1 and stems != {""}:
        return stems.pop()
    constant = poly(size).constant
    same = [r.name for r in c.ranks if r.size is not None and poly(r.size).constant == constant]
    return same[0] if same and constant is not None else text(size)


def splits(c: Cascade) -> dict[tuple[str, int], Expr]:
    """Dimensions M1, M0 that are the digits of one rank M, said by their names: M1 stands before M0, and M0 never alone.

    The coordinate of the dimension M1 is then #1·M0 + #2, and walks over M1 alone are no walks over the rank.
    """
    shapes = {
        name: [s.rank if isinstance(s, Size) else "" for s in t.shape]
        for name, t in c.tensors.items()
    }
    found: dict[tuple[str, int], Expr] = {}
    for name, ranks in shapes.items():
        for n, rank in enumerate(ranks):
            match = re.fullmatch(r"(\w*[A-Za-z_])([1-9])", rank)
            if match is None:
                continue
            digit = int(match[2])
            parts = [f"{match[1]}{d}" for d in range(digit, -1, -1)]
            if ranks[n : n + digit + 1] != parts or any(
                parts[-1] in other and parts[-2] not in other for other in shapes.values()
            ):
                continue
            at = poly(dimension(n))
            for k in range(1, digit + 1):
                at = at * poly(c.tensors[name].shape[n + k]) + poly(dimension(n + k))
            found[name, n] = at.expr()
    return found
