"""Questions about affine predicates, answered by isl: which tiles hold points, which are full, which rows are empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tcc.ir.expr import Call, Const, Expr, Size, Var, call, text

_RELATIONS = {"eq": "=", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGIC = {"and": "and", "or": "or"}
_SUMS = {"add": "+", "sub": "-"}


def tile_conditions(
    predicates: Sequence[Expr], tiles: Mapping[str, Expr]
) -> tuple[Expr, Expr] | None:
    """Conditions on the ends of a box of intervals, `v.low` and `v.high`: (every point satisfies the predicates;
    some point may, and not every point does).

    `tiles` gives the variables with their extents, none of whose intervals is empty. None when a predicate is not
    affine in variables and sizes. Where isl would need an existential (a modulus), the second condition is too
    generous and the first too strict, never the other way round.
    """
    parts = [_isl_text(p) for p in predicates]
    if any(p is None for p in parts):
        return None
    names = _Names(tiles, predicates)
    box = [f"lo_{v} <= v_{v} < hi_{v}" for v in tiles]
    context = [f"0 <= lo_{v} < hi_{v} <= {size}" for v, size in names.extents.items()]
    if None in names.extents.values():
        return None
    shown = " and ".join(f"({p})" for p in parts) or "true"
    found = _conditions(names.parameters, names.variables, tuple(box), tuple(context), shown)
    return found[0], found[1]


def nonempty(predicates: Sequence[Expr], var: str, extent: Expr) -> Expr | bool | None:
    """Whether some coordinate of `var` satisfies the predicates, as a predicate over the other variables.

    True when it is certain for every non-empty extent of every variable, None when a predicate is not affine.
    """
    parts = [_isl_text(p) for p in predicates]
    size = _isl_text(extent)
    if any(p is None for p in parts) or size is None:
        return None
    names = _Names({}, [*predicates, extent])
    shown = " and ".join([f"0 <= v_{var} < {size}", *(f"({p})" for p in parts)])
    others = [n for n in names.variables if n != f"v_{var}"]
    context = [f"{n} >= 0" for n in others] + [f"{n} >= 1" for n in names.parameters]
    return _nonempty((*names.parameters, *others), f"v_{var}", shown, tuple(context))


class _Names:
    """The isl names of what occurs: `v_` variables, `s_` sizes, `lo_` and `hi_` ends of intervals."""

    def __init__(self, tiles: Mapping[str, Expr], predicates: Sequence[Expr]) -> None:
        from tcc.ir.expr import walk

        found = {n.name: None for e in predicates for n in walk(e) if isinstance(n, Var)}
        sizes = {n.rank: None for e in (*predicates, *tiles.values()) for n in walk(e) if isinstance(n, Size)}  # fmt: skip
        self.extents = {v: _isl_text(e) for v, e in tiles.items()}
        self.variables = tuple(dict.fromkeys([f"v_{v}" for v in (*tiles, *found)]))
        ends = [f"{end}_{v}" for v in tiles for end in ("lo", "hi")]
        self.parameters = (*(f"s_{r}" for r in sizes), *ends)


def _isl_text(e: Expr) -> str | None:
    """An affine expression or a predicate over some in isl's notation; None for anything else."""
    if isinstance(e, Const):
        if isinstance(e.value, bool):
            return "true" if e.value else "false"
        return str(int(e.value)) if float(e.value).is_integer() else None
    if isinstance(e, Var):
        return f"v_{e.name}"
    if isinstance(e, Size):
        return f"s_{e.rank}"
    if not isinstance(e, Call):
        return None
    parts = [_isl_text(a) for a in e.args]
    if any(p is None for p in parts):
        return None
    if e.op in _RELATIONS or e.op in _LOGIC or e.op in _SUMS:
        symbol = {**_RELATIONS, **_LOGIC, **_SUMS}[e.op]
        return f"({parts[0]} {symbol} {parts[1]})"
    if e.op == "not":
        return f"(not {parts[0]})"
    if e.op == "neg":
        return f"(-{parts[0]})"
    number = [isinstance(a, Const) for a in e.args]
    if e.op == "mul" and any(number):
        return f"({parts[number.index(True)]} * {parts[1 - number.index(True)]})"
    if e.op in ("floordiv", "mod") and number[1] and e.args[1].value > 0:  # type: ignore[union-attr]
        inner = f"floor({parts[0]} / {parts[1]})"
        return inner if e.op == "floordiv" else f"({parts[0]} - {parts[1]} * {inner})"
    return None


@lru_cache(maxsize=256)
def _conditions(
    parameters: tuple[str, ...], variables: tuple[str, ...], box: tuple[str, ...],
    context: tuple[str, ...], predicate: str,
) -> tuple[Expr, Expr]:  # fmt: skip
    import islpy as isl

    head = f"[{', '.join(parameters)}] -> {{ : "
    inside = " and ".join(box) or "true"
    over = ", ".join(variables)
    known = isl.Set(f"{head}{' and '.join(context) or 'true'} }}")

    def exists(condition: str) -> Any:
        return (
            isl.Set(f"{head}exists {over} : {inside} and {condition} }}").remove_divs().coalesce()
        )

    some = exists(predicate).intersect(known)
    every = known.subtract(exists(f"not ({predicate})")).coalesce()
    part = some.subtract(every).coalesce()
    return _expr(every.gist(known)), _expr(part.gist(known))


@lru_cache(maxsize=256)
def _nonempty(
    parameters: tuple[str, ...], var: str, condition: str, context: tuple[str, ...]
) -> Expr | bool | None:
    import islpy as isl

    head = f"[{', '.join(parameters)}] -> {{ : "
    known = isl.Set(f"{head}{' and '.join(context) or 'true'} }}")
    found = isl.Set(f"{head}exists {var} : {condition} }}").intersect(known).coalesce()
    if known.is_subset(found):
        return True
    found = found.gist(known)
    if any(b.dim(isl.dim_type.div) for b in found.get_basic_sets()):
        return None
    return _expr(found)


def _expr(s: Any) -> Expr:
    """A set without dimensions as a predicate over its parameters, in disjunctive form."""
    import islpy as isl

    terms: list[Expr] = []
    for b in s.get_basic_sets():
        term: Expr | None = None
        for k in b.get_constraints():
            part = _constraint(k, isl)
            term = part if term is None else call("and", term, part)
        if term is None:
            return Const(True)
        terms.append(term)
    if not terms:
        return Const(False)
    terms.sort(key=text)
    out = terms[0]
    for t in terms[1:]:
        out = call("or", out, t)
    return out


def _constraint(k: Any, isl: Any) -> Expr:
    """Σ c·v + d >= 0 (or == 0), written with the negative terms on the right."""
    left: list[Expr] = []
    right: list[Expr] = []
    space = k.get_space()
    for n in range(space.dim(isl.dim_type.param)):
        c = k.get_coefficient_val(isl.dim_type.param, n).to_python()
        if c:
            name = _named(space.get_dim_name(isl.dim_type.param, n))
            (left if c > 0 else right).append(
                name if abs(c) == 1 else call("mul", Const(abs(c)), name)
            )
    d = k.get_constant_val().to_python()
    relation = "eq" if k.is_equality() else "ge"
    if relation == "ge" and d == -1 and left:
        relation, d = "gt", 0
    if d:
        (left if d > 0 else right).append(Const(abs(d)))
    a, b = _sum(left), _sum(right)
    return call(relation, a, b) if left else call("le" if relation == "ge" else relation, b, a)


def _sum(terms: list[Expr]) -> Expr:
    out: Expr = terms[0] if terms else Const(0)
    for t in terms[1:]:
        out = call("add", out, t)
    return out


def _named(name: str) -> Expr:
    kind, _, rest = name.partition("_")
    if kind == "s":
        return Size(rest)
    return Var({"lo": f"{rest}.low", "hi": f"{rest}.high", "v": rest}[kind])
