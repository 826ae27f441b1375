"""Where the elements of a tensor lie along one rank of another tensor, followed through indices, views and reductions.

A *coordinate* is an integer expression over the dimensions `#0`, `#1`, … of a tensor: `#0 * M0 + #1` for a rank that is
split in two, `#0 // N` for one that is flattened with another. Names of variables mean nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, permutations

from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.expr import (
    Access,
    Call,
    Const,
    Expr,
    Size,
    Var,
    accesses,
    call,
    substitute,
    variables,
    walk,
)
from tcc.ir.index import Poly, divide, poly, simplify_index

Extents = Mapping[str, Expr]
MOST_DIGITS = 5  # of a rank that is split


def dimension(n: int) -> Var:
    """The coordinate along dimension `n` of a tensor."""
    return Var(f"#{n}")


def read(coordinate: Expr, a: Access, extents: Extents) -> Expr:
    """The coordinate of the element that `a` reads, over the variables of the reading definition."""
    values = {f"#{n}": e for n, e in enumerate(a.indices)}
    if isinstance(coordinate, Var):
        return values[coordinate.name]
    at = substitute(coordinate, values)
    divides = any(isinstance(n, Call) and n.op in ("floordiv", "mod") for n in walk(at))
    return simplify_index(at, extents) if divides and not accesses(at) else at


def backwards(at: Expr) -> bool:
    """Whether the coordinate falls while its variables rise."""
    return any(v < 0 and key for key, v in poly(at).terms.items())


def kept(c: Cascade, d: Einsum, at: Expr, extents: Extents) -> tuple[Expr, bool] | None:
    """What is left of a coordinate after the reductions of `d`, and whether it still tells every element from its
    neighbours; None when nothing is left, so that each result needs the rank from end to end.

    Of the digits of a split rank (m1·M0 + m0) those in front of the first reduced one are left: T[m1] summarises a
    tile, T[m0] needs all tiles. Of a window (p + r) the kept variable walks on.
    """
    free, names = set(d.free), variables(at)
    gone = [v for v in names if v not in free]
    if not gone:
        return at, True
    if len(gone) == len(names):
        return None
    p = poly(at)
    order = digits(c, p, extents)
    if order is None:
        left = substitute(at, {v: Const(0) for v in gone})
        staying = [_fixed(extents[v]) for v in names if v in free]
        going = [_fixed(extents[v]) for v in gone]
        if all(staying) and all(going) and max(staying) < max(going):
            return None  # a few results, each of the whole rank: the gradient of a filter
        return left, True
    rest = Poly({})
    for atom in order:
        if not set(variables(p.atoms[atom])) <= free:
            break
        rest = rest + Poly({k: v for k, v in p.terms.items() if atom in k}, p.atoms)
    return (rest.expr(), False) if rest.terms else None


def _fixed(size: Expr) -> int:
    """A size that is known, or 0."""
    return poly(size).constant or 0


def digits(c: Cascade, p: Poly, extents: Extents) -> list[str] | None:
    """The atoms of a mixed-radix number, the most significant first; None when it is no such number."""
    moving = [a for a, e in p.atoms.items() if not isinstance(e, Size)]
    moving = [a for a in moving if any(a in key for key in p.terms)]
    factors = {a: p.coefficient(a) for a in moving}
    if not 1 <= len(moving) <= MOST_DIGITS or any(
        f is None or any(b in key for b in moving for key in f.terms) for f in factors.values()
    ):
        return None
    sizes = {a: _extent(p.atoms[a], extents) for a in moving}

    def follows(big: str, small: str) -> bool:
        a, b, size = factors[big], factors[small], sizes[small]
        return (
            a is not None
            and b is not None
            and size is not None
            and c.same_size(a.expr(), (b * poly(size)).expr())
        )

    for order in permutations(moving):
        if all(follows(a, b) for a, b in pairwise(order)):
            return list(order)
    return None


def _extent(atom: Expr, extents: Extents) -> Expr | None:
    """How many values a digit has."""
    if isinstance(atom, Var):
        return extents.get(atom.name)
    if isinstance(atom, Call) and atom.op == "mod":
        return atom.args[1]
    if isinstance(atom, Call) and atom.op == "floordiv" and isinstance(atom.args[0], Var):
        size = extents.get(atom.args[0].name)
        count = divide(poly(size), poly(atom.args[1])) if size is not None else None
        return count.expr() if count is not None else None
    return None


def written(c: Cascade, d: Einsum, at: Expr, extents: Extents) -> Expr:
    """A coordinate over the variables of `d` as one over the dimensions of its target."""
    names = variables(at)
    for n, i in enumerate(d.indices):  # the whole coordinate is one index
        if names and variables(i) and not variables((poly(at) - poly(i)).expr()):
            return (poly(dimension(n)) + poly(at) - poly(i)).expr()
    values: dict[str, Expr] = {}
    for v in names:
        found = next((x for n, i in enumerate(d.indices) if (x := _solved(c, v, i, n, extents))), None)  # fmt: skip
        values[v] = found or dimension(
            next(n for n, i in enumerate(d.indices) if v in variables(i))
        )
    return substitute(at, values)


def _solved(c: Cascade, v: str, index: Expr, n: int, extents: Extents) -> Expr | None:
    """The variable `v` as an expression over dimension `n`, which `index` gives."""
    if isinstance(index, Var):
        return dimension(n) if index.name == v else None
    p = poly(index)
    factor = p.coefficient(v) if v in variables(index) else None
    if factor is None or not factor.terms:
        return None
    rest = p - Poly({k: x for k, x in p.terms.items() if v in k}, p.atoms)
    if not variables(rest.expr()):
        if factor.constant in (1, -1):
            return (poly(dimension(n)) - rest).scaled(factor.constant).expr()
        return call("floordiv", (poly(dimension(n)) - rest).expr(), factor.expr())
    order = digits(c, p, extents)
    if order is None or v not in order:
        return None
    quotient: Expr = call("floordiv", dimension(n), factor.expr())
    if factor.constant == 1:
        quotient = dimension(n)
    return quotient if order[0] == v else call("mod", quotient, extents[v])
