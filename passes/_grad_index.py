"""The points of a definition that read a given element: an access A[a(v)] = A[j] solved for v."""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from dataclasses import dataclass, field

from tcc.ir.cascade import Cascade, Einsum, Rank
from tcc.ir.expr import Access, Const, Expr, Size, Var, call, substitute, variables
from tcc.ir.index import Poly, bounds, divide, evaluate_size, nonnegative, poly, same
from tcc.passes._algebra import TYPICAL

_RESERVED = {"inf", "nan", "pi", "true", "false", "in", "out", "where", "when", "stop", "fill"}


@dataclass
class Names:
    """Names that are taken, and the ranks of a program that grows."""

    ranks: dict[str, Rank]
    tensors: set[str]

    def tensor(self, name: str) -> str:
        """A name for a new tensor."""
        out, n = name, 1
        while out in self.tensors or out in self.ranks:
            n += 1
            out = f"{name}{n}"
        self.tensors.add(out)
        return out

    def extent(self, v: str) -> Expr:
        rank = self.ranks[v.upper()]
        return rank.size if rank.size is not None else Size(rank.name)

    def resolved(self, size: Expr) -> Poly:
        p = poly(size)
        for _ in range(len(self.ranks)):
            known = [
                a
                for a in p.atoms
                if any(a in k for k in p.terms) and a in self.ranks and self.ranks[a].size
            ]
            if not known:
                break
            values = {a: poly(self.ranks[a].size or Const(0)) for a in known}
            total = Poly({})
            for key, factor in p.terms.items():
                term = Poly({(): factor})
                for a in key:
                    term = term * values.get(a, Poly({(a,): 1}, p.atoms))
                total = total + term
            p = total
        return p

    def same(self, a: Expr, b: Expr) -> bool:
        return same(a, b) or self.resolved(a).same(self.resolved(b))

    def variable(self, size: Expr, used: Iterable[str], name: str) -> str:
        """A variable with that extent beside those used: of a rank that there is, else of a new one called `name`."""
        taken = set(used)
        for r in self.ranks.values():
            v = r.name.lower()
            if (
                v in taken
                or v.upper() != r.name
                or v in self.tensors
                or v in _RESERVED
                or keyword.iskeyword(v)
            ):
                continue
            if self.same(self.extent(v), size):
                return v
        out, n = name.lower(), 1
        while (
            out in taken
            or out.upper() in self.ranks
            or {out, out.upper()} & self.tensors
            or out in _RESERVED
        ):
            n += 1
            out = f"{name.lower()}_{n}"
        self.ranks[out.upper()] = Rank(out.upper(), size)
        return out


@dataclass
class Inverse:
    """`names` are the coordinates j of the element, `values` what v is there, `conditions` when such a point exists."""

    names: list[str]
    values: dict[str, Expr] = field(default_factory=dict)
    conditions: list[Expr] = field(default_factory=list)


def inverse(
    a: Access, d: Einsum, c: Cascade, names: Names, given: dict[str, Expr] | None = None,
    fixed: dict[int, str] | None = None,
) -> Inverse:  # fmt: skip
    """A[a(v)] --> A[j]: variables that are not in `values` keep running, under their own names.

    A[i, k] keeps i and k;  A[i + r]: i = j - r where 0 <= j - r < I;  A[2·i]: i = j // 2 where j % 2 == 0;
    A[i·8 + l]: i = j // 8, l = j % 8;  A[T[i]]: where T[i] == j. `given` are values that are known before,
    `fixed` dimensions whose coordinate is one of their variables.
    """
    shape = c.tensors[a.tensor].shape
    mine = list(dict.fromkeys([*d.free, *d.reduced]))
    fixed = fixed or {}
    out = Inverse([fixed.get(n, "") for n in range(len(shape))], dict(given or {}))
    kept: set[str] = set()
    for n, i in enumerate(a.indices):
        if (
            n not in fixed
            and isinstance(i, Var)
            and i.name in mine
            and i.name not in kept
            and i.name not in out.values
        ):
            if names.same(names.extent(i.name), shape[n]):
                out.names[n] = i.name
                kept.add(i.name)
    for n, size in enumerate(shape):
        if not out.names[n]:
            used = [*mine, *out.names, *(v for e in out.values.values() for v in variables(e))]
            out.names[n] = names.variable(size, used, f"{a.tensor}_{n}")
    solver = _Solver(d, names, out, [v for v in mine if v not in kept and v not in out.values])
    left = [
        n
        for n, i in enumerate(a.indices)
        if n not in fixed and not (isinstance(i, Var) and out.names[n] == i.name)
    ]
    left.sort(key=lambda n: not isinstance(a.indices[n], Var))  # plain ones first
    for n in left:
        solver.solve(a.indices[n], Var(out.names[n]), shape[n])
    return out


class _Solver:
    def __init__(self, d: Einsum, names: Names, out: Inverse, open_: list[str]) -> None:
        self.d, self.names, self.out, self.open = d, names, out, open_

    def solve(self, i: Expr, j: Expr, size: Expr) -> None:
        """Adds what i == j says: the value of a variable, or a condition."""
        p = poly(substitute(i, self.out.values))
        linear: dict[str, Poly] = {}
        for v in self.open:
            factor = p.coefficient(v)
            if p.mentions([v]) and factor is not None and not factor.mentions(self.open):
                if not p.without(v).mentions([v]):
                    linear[v] = factor
        rest = p
        for v in linear:
            rest = rest.without(v)
        if self._digits(linear, rest, j) or self._one(linear, p, j):
            return
        if p.constant == 0 and poly(size).constant == 1:
            return
        self.out.conditions.append(call("eq", p.expr(), j))

    def _digits(self, linear: dict[str, Poly], rest: Poly, j: Expr) -> bool:
        """Mixed radix: j = (a·B + b)·C + c with b < B, c < C --> c = j % C, b = j // C % B, a = j // C // B."""
        if not linear or rest.mentions(self.open):
            return False
        todo, plan = dict(linear), []
        unit = Poly({(): 1})
        while len(todo) > 1:
            last = next((v for v, f in todo.items() if f.same(unit)), None)
            if last is None:
                return False
            by = self.names.resolved(self.names.extent(last))
            parts = {
                v: divide(self.names.resolved(f.expr()), by) for v, f in todo.items() if v != last
            }
            if any(f is None for f in parts.values()):
                return False
            plan.append((last, by))
            todo = {v: f for v, f in parts.items() if f is not None}
        ((first, factor),) = todo.items()
        at: Expr = (poly(j) - rest).expr()
        for v, by in plan:
            self._set(v, call("mod", at, by.expr()), True)
            at = call("floordiv", at, by.expr())
        self._divided(first, factor, at)
        return True

    def _one(self, linear: dict[str, Poly], p: Poly, j: Expr) -> bool:
        """The variable that runs farthest, by the others; of the target first, and with factor 1 or -1."""
        if not linear:
            return False
        free = self.d.free
        best = min(
            linear,
            key=lambda v: (-self._reach(v), v not in free, linear[v].constant not in (1, -1)),
        )
        self._divided(best, linear[best], (poly(j) - p.without(best)).expr())
        return True

    def _reach(self, v: str) -> int:
        """About how many coordinates a variable has."""
        sizes = dict.fromkeys(self.names.ranks, TYPICAL)
        try:
            return evaluate_size(self.names.resolved(self.names.extent(v)).expr(), sizes)
        except ZeroDivisionError:
            return TYPICAL

    def _divided(self, v: str, factor: Poly, at: Expr) -> None:
        """factor · v == at."""
        if factor.constant is not None and factor.constant < 0:
            factor, at = factor.scaled(-1), poly(at).scaled(-1).expr()
        if factor.constant != 1:
            self.out.conditions.append(call("eq", call("mod", at, factor.expr()), Const(0)))
            at = call("floordiv", at, factor.expr())
        self._set(v, at, False)

    def _set(self, v: str, value: Expr, certain: bool) -> None:
        self.out.values = {k: substitute(e, {v: value}) for k, e in self.out.values.items()}
        self.out.conditions = [substitute(e, {v: value}) for e in self.out.conditions]
        self.open.remove(v)
        if isinstance(value, Var) and not self.names.same(
            self.names.extent(value.name), self.names.extent(v)
        ):
            value = call(
                "add", value, Const(0)
            )  # a variable that walks another extent is written so
        self.out.values[v] = value
        if not certain:
            self.out.conditions += inside(value, self.names.extent(v), self.names)


def inside(value: Expr, extent: Expr, names: Names) -> list[Expr]:
    """0 <= value < extent, without what is certain."""
    extents = {v: names.resolved(names.extent(v)).expr() for v in variables(value)}
    known = bounds(names.resolved(value).expr(), extents)
    out: list[Expr] = []
    if known is None or not nonnegative(known[0]):
        out.append(call("ge", value, Const(0)))
    if known is None or not nonnegative(names.resolved(extent) - Poly({(): 1}) - known[1]):
        out.append(call("lt", value, extent))
    return out
