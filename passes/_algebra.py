"""Questions that passes ask about definitions: how often a value is used, how a product splits, what a loop carries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
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
    accesses,
    call,
    children,
    substitute,
    transform,
    variables,
)
from tcc.ir.index import evaluate_size, poly
from tcc.ir.ops import MONOIDS, OPS

TYPICAL = 512  # what an unknown size counts as in estimates


@dataclass(frozen=True)
class Contraction:
    """target = scale · Σ rows_factor · columns_factor where mask, and `column` occurs only in the second factor.

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
    mask: tuple[Expr, ...]  # those that say which terms there are: none of both a row and a column


def contraction(
    d: Definition, row: str | None = None, column: str | None = None
) -> Contraction | None:
    """How a definition splits into a sum of products of two factors, or None when it does not.

    There may be several splits: the columns are the last target variables that allow one with `row` among the rows and
    `column` among the columns.
    """
    return next(
        (s for s in contractions(d)
         if (row is None or row in s.rows) and (column is None or column in s.columns)),
        None,
    )  # fmt: skip


def contractions(d: Definition, monoids: Collection[str] = ("sum",)) -> Iterator[Contraction]:
    """Every split, those with late target variables as columns first.

    With other `monoids` a product is what their `group` makes: max and min take sums as products.
    """
    if not isinstance(d, Einsum) or not d.reduced or len(kinds := {*map(d.monoid, d.reduced)}) > 1:
        return
    m = MONOIDS.get(kinds.pop())
    if m is None or m.name not in monoids or m.group is None:
        return
    reduced = tuple(d.reduced)
    parts = factors(d.body, m.group)
    inner = [f for f in parts if set(variables(f)) & set(reduced)]
    scale = [f for f in parts if not set(variables(f)) & set(reduced)]
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
        if any(
            set(variables(p)) & set(rows) and set(variables(p)) & set(columns) for p in conditions
        ):
            continue
        yield Contraction(
            product(scale, m.group) if scale else None,
            product(first, m.group), product(second, m.group), rows, columns,
            tuple(v for v in free if v in row_vars and v in column_vars), reduced,
            tuple(p for p in d.where if not set(variables(p)) & set(reduced)), tuple(conditions),
        )  # fmt: skip


def factors(e: Expr, op: str = "mul") -> list[Expr]:
    """Factors of a product by `op`; a quotient contributes the inverses of its second operand's factors."""
    out: list[Expr] = []
    stack = [(e, False)]
    while stack:
        n, inverse = stack.pop()
        if isinstance(n, Call) and n.op == op:
            stack += [(n.args[1], inverse), (n.args[0], inverse)]
        elif isinstance(n, Call) and n.op == OPS[op].inverse:
            stack += [(n.args[1], not inverse), (n.args[0], inverse)]
        elif isinstance(n, Call) and n.op == "neg" and op == "mul":
            out.append(Const(-1))
            stack.append((n.args[0], inverse))
        elif not inverse:
            out.append(n)
        else:
            out.append(call("div", Const(1.0), n) if op == "mul" else call("neg", n))
    return out


def product(factors: list[Expr], op: str = "mul") -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = call(op, out, f)
    return out


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


def own_variables(c: Cascade, d: Einsum) -> list[str]:
    """Variables of which every combination has an element of the target of its own: those that stand alone, and the
    digits of an index such as `a·N + b`, with b below N."""
    found = plain_variables(d)
    for i in d.indices:
        if not isinstance(i, Var | Const):
            found += [v for v in _digits(c, i) if v not in found]
    return found


def fills(c: Cascade, d: Einsum) -> bool:
    """Whether a definition writes every element of its target."""
    free = d.free
    sizes = c.tensors[d.target].shape
    for i, size in zip(d.indices, sizes, strict=True):
        if isinstance(i, Var):
            full = c.same_size(c.extent(i.name), size)
        elif isinstance(i, Const):
            full = i.value == 0 and poly(c.resolved(size)).constant == 1
        else:
            count = poly(Const(1))
            for v in (names := _digits(c, i)):
                count = count * poly(c.resolved(c.extent(v)))
            full = bool(names) and count.same(poly(c.resolved(size)))
        if not full:
            return False
    return len(free) == sum(len(variables(i)) for i in d.indices)


def _digits(c: Cascade, e: Expr) -> list[str]:
    """The variables of a mixed-radix index, the slowest first; none where it is something else."""
    if accesses(e):
        return []
    rest, names, radix = poly(e), variables(e), poly(Const(1))
    found: list[str] = []
    while names:
        for v in names:
            k = rest.coefficient(v)
            if k is not None and poly(c.resolved(k.expr())).same(radix):
                break
        else:
            return []
        names = [n for n in names if n != v]
        rest = rest.without(v)
        radix = radix * poly(c.resolved(c.extent(v)))
        found.insert(0, v)
    return found if rest.constant == 0 else []


def tile_variable(members: Iterable[Einsum]) -> str | None:
    """A shared outer variable that can be a row of every contraction of a group: the last such."""
    group = list(members)
    splits = [options for d in group if (options := list(contractions(d)))]
    rows = list(reversed(row_variables(group)))
    preferred = [v for v in rows if all(v in options[0].rows for options in splits)]
    possible = [v for v in rows if all(any(v in s.rows for s in options) for options in splits)]
    return next(iter([*preferred, *possible]), None)


def side_by_side(members: Iterable[Einsum], tile: str | None = None) -> str | None:
    """The column that all products of a group share, when none of them needs another: it can then be cut for all.

    What reads a product has to have that column, too, and may not reduce it.
    """
    group = list(members)
    tile = tile or tile_variable(group)
    splits = {d.target: s for d in group if tile and (s := contraction(d, tile)) is not None}
    columns = {s.columns[-1] for s in splits.values()}
    if len(columns) != 1:
        return None
    (column,) = columns
    late: set[str] = set()
    for d in group:
        needs = any(a.tensor in late for a in d.reads)
        if d.target in splits and needs:
            return None
        if needs or d.target in splits:
            late.add(d.target)
            if column not in plain_variables(d):
                return None
        elif column in (*d.free, *d.reduced):
            return None
    for d in group:
        for a in d.reads:
            if a.tensor in late and not any(
                isinstance(i, Var) and i.name == column for i in a.indices
            ):
                return None
    return column


def row_variables(members: Iterable[Einsum], c: Cascade | None = None) -> list[str]:
    """Variables that every member's target has alone and that every read inside the group keeps in place.

    Over these the group can be cut into independent slices: no slice reads what another computes. With the program,
    variables that are digits of an index count as well.
    """
    group = list(members)
    made = {d.target: d for d in group}
    own_of = [plain_variables(d) if c is None else own_variables(c, d) for d in group]
    common = [v for v in own_of[0] if all(v in own for own in own_of)]
    while True:
        bad = {
            v
            for d in group
            for a in d.reads
            if a.tensor in made
            for v in common
            for i, own in zip(a.indices, made[a.tensor].indices, strict=True)
            if v in variables(own)
            and not (isinstance(own, Var) and isinstance(i, Var) and i.name == v)
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


def renamed_tensor(d: Einsum, old: str, new: str) -> Einsum:
    """The definition with another tensor where it reads or writes one."""

    def rule(n: Expr) -> Expr:
        return Access(new, n.indices, n.span) if isinstance(n, Access) and n.tensor == old else n

    return Einsum(new if d.target == old else d.target, tuple(transform(i, rule) for i in d.indices),
                  transform(d.body, rule), d.reductions, tuple(transform(p, rule) for p in d.where), d.span)  # fmt: skip


def fresh(base: str, taken: set[str]) -> str:
    """A name that is not in use yet; from now on it is."""
    name, n = base, 1
    while name in taken:
        n += 1
        name = f"{base}{n}"
    taken.add(name)
    return name
