"""Questions that passes ask about definitions: how often a value is used, how a product splits, what a loop carries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tcc.ir.cascade import Cascade, Definition, Einsum, Reduction
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    call,
    children,
    substitute,
    variables,
)
from tcc.ir.index import evaluate_size
from tcc.ir.ops import OPS

TYPICAL = 512  # what an unknown size counts as in estimates


@dataclass(frozen=True)
class Contraction:
    """target = scale · Σ rows_factor · columns_factor, where `column` occurs only in the second factor.

    `rows` are the free variables of the first factor alone, `columns` those of the second alone, `batch` of both.
    """

    scale: Expr | None
    row_factor: Expr
    column_factor: Expr
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    batch: tuple[str, ...]
    reduced: tuple[str, ...]
    where: tuple[Expr, ...]  # predicates over free variables alone


def contraction(d: Definition, row: str | None = None) -> Contraction | None:
    """How a definition splits into a sum of products of two factors, or None when it does not.

    There may be several splits: the columns are the last target variables that allow one with `row` among the rows.
    """
    return next((s for s in contractions(d) if row is None or row in s.rows), None)


def contractions(d: Definition) -> Iterator[Contraction]:
    """Every split, those with late target variables as columns first."""
    if not isinstance(d, Einsum) or not d.reduced or any(d.monoid(v) != "sum" for v in d.reduced):
        return
    reduced = tuple(d.reduced)
    factors = _factors(d.body)
    inner = [f for f in factors if set(variables(f)) & set(reduced)]
    scale = [f for f in factors if not set(variables(f)) & set(reduced)]
    free = [v for v in d.free if any(v in variables(f) for f in inner)]
    conditions = [p for p in d.where if set(variables(p)) & set(reduced)]
    for column in reversed(free):
        second = [f for f in inner if column in variables(f)]
        first = [f for f in inner if column not in variables(f)]
        if not first or not second:
            continue
        row_vars, column_vars = set(variables(*first)), set(variables(*second))
        if not (set(reduced) <= row_vars and set(reduced) <= column_vars):
            continue
        rows = tuple(v for v in free if v in row_vars and v not in column_vars)
        columns = tuple(v for v in free if v in column_vars and v not in row_vars)
        if not rows:
            continue
        mine = [p for p in conditions if not set(variables(p)) & set(columns)]
        theirs = [p for p in conditions if set(variables(p)) & set(columns)]
        if any(set(variables(p)) & set(rows) for p in theirs):
            continue
        yield Contraction(
            _product(scale) if scale else None,
            _guard(mine, _product(first)), _guard(theirs, _product(second)), rows, columns,
            tuple(v for v in free if v in row_vars and v in column_vars), reduced,
            tuple(p for p in d.where if not set(variables(p)) & set(reduced)),
        )  # fmt: skip


def _factors(e: Expr) -> list[Expr]:
    """Factors of a product; a quotient contributes the reciprocals of its denominator's factors."""
    out: list[Expr] = []
    stack = [(e, False)]
    while stack:
        n, inverse = stack.pop()
        if isinstance(n, Call) and n.op == "mul":
            stack += [(n.args[1], inverse), (n.args[0], inverse)]
        elif isinstance(n, Call) and n.op == "div":
            stack += [(n.args[1], not inverse), (n.args[0], inverse)]
        elif isinstance(n, Call) and n.op == "neg":
            out.append(Const(-1))
            stack.append((n.args[0], inverse))
        else:
            out.append(call("div", Const(1.0), n) if inverse else n)
    return out


def _product(factors: list[Expr]) -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = call("mul", out, f)
    return out


def _guard(predicates: list[Expr], value: Expr) -> Expr:
    for p in predicates:
        value = call("select", p, value, Const(0))
    return value


def is_copy(d: Definition) -> bool:
    """Whether a definition only moves or converts single elements, so that recomputing it costs nothing."""
    if not isinstance(d, Einsum) or d.reduced:
        return False
    body = d.body
    while isinstance(body, Cast):
        body = body.arg
    return isinstance(body, Access | Const | Var | Size)


def is_elementwise(d: Definition) -> bool:
    """Whether a definition maps points one to one: no reduction, every target index a variable of its own."""
    return (
        isinstance(d, Einsum)
        and not d.reduced
        and all(isinstance(i, Var) for i in d.indices)
        and len(set(d.free)) == len(d.indices)
    )


def operations(e: Expr) -> float:
    """The cost of evaluating an expression once, in additions; index arithmetic is free."""
    total = 0.0
    stack = [e]
    while stack:
        n = stack.pop()
        if isinstance(n, Access):
            continue
        if isinstance(n, Call):
            total += 8 if OPS[n.op].derivative is not None or n.op == "pow" else 1
        stack.extend(children(n))
    return total


def size_estimate(c: Cascade, size: Expr) -> int:
    """About how large a size is; unknown ranks count as typical ones."""
    sizes = {r.name: TYPICAL for r in c.ranks}
    for r in c.ranks:
        if r.size is not None:
            sizes[r.name] = max(1, evaluate_size(r.size, sizes))
    return max(1, evaluate_size(size, sizes))


def elements(c: Cascade, name: str) -> int:
    """About how many elements a tensor has."""
    total = 1
    for s in c.tensors[name].shape:
        total *= size_estimate(c, s)
    return total


def plain_variables(d: Einsum) -> list[str]:
    """The variables that index the target alone."""
    return [i.name for i in d.indices if isinstance(i, Var)]


def tile_variable(members: Iterable[Einsum]) -> str | None:
    """A shared outer variable that can be a row of every contraction of a group: the last such."""
    group = list(members)
    splits = [options for d in group if (options := list(contractions(d)))]
    rows = list(reversed(row_variables(group)))
    preferred = [v for v in rows if all(v in options[0].rows for options in splits)]
    possible = [v for v in rows if all(any(v in s.rows for s in options) for options in splits)]
    return next(iter([*preferred, *possible]), None)


def row_variables(members: Iterable[Einsum]) -> list[str]:
    """Variables that every member's target has alone and that every read inside the group keeps in place.

    Over these the group can be cut into independent slices: no slice reads what another computes.
    """
    group = list(members)
    made = {d.target: d for d in group}
    common = [v for v in plain_variables(group[0]) if all(v in plain_variables(d) for d in group)]
    while True:
        bad = {
            v
            for d in group
            for a in d.reads
            if a.tensor in made
            for v in common
            for i, own in zip(a.indices, made[a.tensor].indices, strict=True)
            if isinstance(own, Var) and own.name == v and not (isinstance(i, Var) and i.name == v)
        }
        if not bad:
            return common
        common = [v for v in common if v not in bad]


def renamed(d: Einsum, new: dict[str, str]) -> Einsum:
    """A definition with other names for its variables."""
    values: dict[str, Expr] = {k: Var(v) for k, v in new.items()}
    return Einsum(
        d.target, tuple(substitute(i, values) for i in d.indices), substitute(d.body, values),
        tuple(Reduction(new.get(r.var, r.var), r.monoid, r.span) for r in d.reductions),
        tuple(substitute(p, values) for p in d.where), d.span,
    )  # fmt: skip


def neutral(e: Expr, op: str) -> bool:
    """Whether a constant is the identity of an operator."""
    return isinstance(e, Const) and OPS[op].identity is not None and e.value == OPS[op].identity
