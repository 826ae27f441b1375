"""Definitions made ready for an array: plain contractions, recurrences that keep two steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Recurrence, Tensor, steps, targets
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Call, Const, Expr, Var, accesses, call, text, transform, variables
from tcc.ir.index import poly, same
from tcc.ir.infer import expression_dtype
from tcc.passes._algebra import contraction, fresh


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """target = Σ first · second: `row` occurs in `first` alone, `column` in `second` alone."""

    first: Access
    second: Access
    row: str
    column: str
    reduced: str


@dataclass(slots=True, eq=False)
class Prepared:
    """Definitions in executable order; `made` types every tensor that they write."""

    definitions: list[Einsum]
    made: dict[str, Tensor]
    products: dict[int, Product] = field(default_factory=dict)  # by identity of the definition
    iterative: str | None = None
    states: set[str] = field(default_factory=set)  # tensors that the iterative variable carries


def prepare(c: Cascade, members: list[Einsum], taken: set[str]) -> Prepared:
    """The same values from definitions that an array can run; `taken` collects the names in use."""
    out = Prepared([], {})
    definitions = _rolling(c, [_plain(d) for d in members], out)
    for d in definitions:
        _split(c, d, out, taken)
    return out


def _plain(d: Einsum) -> Einsum:
    """`v + 0`, a variable that is meant to walk another extent, becomes `v`: windows know it."""

    def index(i: Expr) -> Expr:
        names = variables(i)
        return (
            Var(names[0])
            if len(names) == 1 and not isinstance(i, Var) and same(i, Var(names[0]))
            else i
        )

    def rule(n: Expr) -> Expr:
        if not isinstance(n, Access):
            return n
        if accesses(*n.indices):
            raise CompileError(
                "T0244",
                f"`{text(n)}` has an index that is read from a tensor",
                n.span or d.span,
                helps="an array mapping needs affine indices",
            )
        return Access(n.tensor, tuple(index(i) for i in n.indices), n.span)

    return replace(
        d,
        indices=tuple(index(i) for i in d.indices),
        body=transform(d.body, rule),
        where=tuple(transform(p, rule) for p in d.where),
    )


def _split(c: Cascade, d: Einsum, out: Prepared, taken: set[str]) -> None:
    """s · Σ f(x) g(y)  -->  X = f(x);  Y = g(y);  A = Σ X · Y;  s · A."""
    typed = replace(c, tensors={**c.tensors, **out.made})
    out.made.setdefault(d.target, c.tensors[d.target])
    found = contraction(replace(d, where=()))
    if found is None:
        out.definitions.append(d)
        return
    sides = [(found.row_factor, found.rows[-1]), (found.column_factor, found.columns[-1])]
    order = [text(a) for a in accesses(d.body)]
    sides.sort(
        key=lambda side: min(order.index(text(a)) for a in accesses(side[0]))
    )  # as they are written
    factors: list[Access] = []
    for f, _ in sides:
        if not isinstance(f, Access):
            names = variables(f)
            a = Access(fresh(f"{d.target}_in", taken), tuple(Var(v) for v in names))
            shape = tuple(c.extent(v) for v in names)
            out.made[a.tensor] = Tensor(a.tensor, expression_dtype(typed, f), shape)
            out.definitions.append(Einsum(a.tensor, a.indices, f, span=d.span))
            typed = replace(typed, tensors={**typed.tensors, a.tensor: out.made[a.tensor]})
            f = a
        factors.append(f)
    first, second = factors
    body = call("mul", first, second)
    plain = all(isinstance(i, Var) for i in d.indices) and len(d.free) == len(d.indices)
    reduced = next(
        (v for v in found.reduced if v in variables(first) and v in variables(second)),
        found.reduced[0],
    )
    product = Product(first, second, sides[0][1], sides[1][1], reduced)
    if found.scale is None and plain:
        whole = replace(d, body=body)
        out.definitions.append(whole)
        out.products[id(whole)] = product
        return
    acc = Access(fresh(f"{d.target}_acc", taken), tuple(Var(v) for v in d.free))
    out.made[acc.tensor] = Tensor(
        acc.tensor, c.tensors[d.target].dtype, tuple(c.extent(v) for v in d.free)
    )
    part = Einsum(acc.tensor, acc.indices, body, d.reductions, d.where, d.span)
    free = set(d.free)
    scaled: Expr = acc
    if found.scale is not None:
        s = found.scale
        inverse = (
            isinstance(s, Call)
            and s.op == "div"
            and isinstance(s.args[0], Const)
            and s.args[0].value == 1
        )
        scaled = (
            call("div", acc, s.args[1]) if inverse and isinstance(s, Call) else call("mul", acc, s)
        )
    held = tuple(p for p in d.where if set(variables(p)) <= free)
    out.definitions += [part, Einsum(d.target, d.indices, scaled, (), held, d.span)]
    out.products[id(part)] = product


# ---- recurrences


def _rolling(c: Cascade, members: list[Einsum], out: Prepared) -> list[Einsum]:
    """S[t+1] = g(S[t])  -->  S[(t+1) % 2] = g(S[t % 2]), for t in order: two steps are stored."""
    inside = {d.target for d in members}
    found = [
        s
        for s in steps(c)
        if isinstance(s, Recurrence) and any(d.target in inside for d in s.steps)
    ]
    if not found:
        return members
    names = sorted({r.var for r in found})
    if len(names) > 1:
        raise _unsupported(
            members[0],
            f"a kernel with two iterative variables, `{names[0]}` and `{names[1]}`",
            "make each recurrence a kernel of its own",
        )
    if any(r.stop is not None for r in found):
        raise _unsupported(
            found[0].steps[0],
            "a recurrence with a stopping condition",
            "run a fixed number of steps",
        )
    var = out.iterative = names[0]
    for state, axis in _states(found, var).items():
        outside = [
            d
            for d in c.definitions
            if d.target not in inside and any(a.tensor == state for a in d.reads)
        ]
        if outside or any(t.name == state for t in c.outputs):
            raise _unsupported(
                c.defining(state)[0],
                f"every step of `{state}`, which is read outside its kernel",
                "read the last step only, in the same kernel",
            )
        members = _two_steps(c, members, state, axis, var, out)
        out.states.add(state)
    return members


def _states(found: Iterable[Recurrence], var: str) -> dict[str, int]:
    states = {}
    for r in found:
        for d in r.steps:
            for axis, i in enumerate(d.indices):
                if var in variables(i) and not isinstance(i, Var):
                    if (poly(i) - poly(Var(var))).constant != 1:
                        raise _unsupported(
                            d, f"the step `{text(i)}`", f"write the state at `{var}+1`"
                        )
                    states[d.target] = axis
    return states


def _two_steps(
    c: Cascade, members: list[Einsum], state: str, axis: int, var: str, out: Prepared
) -> list[Einsum]:
    t = c.tensors[state]
    shape = tuple(Const(2) if n == axis else s for n, s in enumerate(t.shape))
    out.made[state] = replace(t, shape=shape)

    def rolled(indices: tuple[Expr, ...], d: Einsum, written: bool) -> tuple[Expr, ...]:
        i = indices[axis]
        step = (poly(i) - poly(Var(var))).constant if var in variables(i) else None
        known = same(i, Const(0)) if written else step == 0 or same(i, c.extent(var))
        if not (known or step == 1):
            raise _unsupported(
                d,
                f"`{state}` at step `{text(i)}`",
                f"write the steps 0 and `{var}+1`, read `{var}`, `{var}+1` and the last",
            )
        i = i if same(i, Const(0)) else call("mod", i, Const(2))
        return (*indices[:axis], i, *indices[axis + 1 :])

    def rename(d: Einsum) -> Einsum:
        def rule(n: Expr) -> Expr:
            if isinstance(n, Access) and n.tensor == state:
                return Access(state, rolled(n.indices, d, False), n.span)
            return n

        indices = rolled(d.indices, d, True) if d.target == state else d.indices
        where = tuple(transform(p, rule) for p in d.where)
        return replace(d, indices=indices, body=transform(d.body, rule), where=where)

    return [rename(d) for d in members]


def _unsupported(d: Definition, what: str, advice: str) -> CompileError:
    return CompileError(
        "T0241", f"`{targets(d)[0]}`: an array mapping cannot hold {what}", d.span, helps=advice
    )
