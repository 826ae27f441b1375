"""Other forms of a sum's body, when its own does not split: by distributing, and by computer algebra.

The rank-1 test decides whether a search is worth it: f(x, r) · f(x₀, r₀) = f(x, r₀) · f(x₀, r) at random points, where it
takes a millisecond to fail. Computer algebra is asked once per body, and given up after a while.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Call, Cast, Const, Expr, call, text, transform, walk
from tcc.ir.ops import OPS
from tcc.passes._derive_interval import interval
from tcc.passes._derive_scope import Scope

SECONDS = 1.2  # for computer algebra, per body
POINTS = 8
MOST = 60  # nodes of a body that is given to computer algebra


def two_sums(d: Einsum, scope: Scope) -> tuple[Expr, Expr] | None:
    """The two bodies of Σ c·(a + b) = Σ c·a + Σ c·b, where exactly one of a and b depends on no reference."""
    if scope.monoid(d.target) != "sum" if d.target in scope.defs else True:
        return None
    leaves = scope.split(d.body, "mul")
    flat = [x for leaf in leaves for x in _factors(leaf.expr, leaf.inverse, scope)]
    sums = [n for n, (e, inverse) in enumerate(flat) if not inverse and _plus(e, scope)]
    if len(sums) != 1:
        return None
    n = sums[0]
    e = flat[n][0]
    assert isinstance(e, Call)
    halves = []
    for m, side in enumerate(e.args):
        out: Expr | None = None
        for k, (f, inverse) in enumerate(flat):
            f = side if k == n else f
            if out is None:
                out = call("div", Const(1.0), f) if inverse else f
            else:
                out = call("div" if inverse else "mul", out, f)
        assert out is not None
        halves.append(call("neg", out) if m == 1 and e.op == "sub" else out)
    return halves[0], halves[1]


def _factors(e: Expr, inverse: bool, scope: Scope) -> list[tuple[Expr, bool]]:
    if isinstance(e, Access):
        value = scope.inner(e)
        if value is not None and scope.varies(value):
            return _factors(value, inverse, scope)
    if isinstance(e, Call) and e.op == "mul":
        return [*_factors(e.args[0], inverse, scope), *_factors(e.args[1], inverse, scope)]
    if isinstance(e, Call) and e.op == OPS["mul"].inverse:
        return [*_factors(e.args[0], inverse, scope), *_factors(e.args[1], not inverse, scope)]
    return [(e, inverse)]


def _plus(e: Expr, scope: Scope) -> bool:
    if not (isinstance(e, Call) and e.op in ("add", "sub")):
        return False
    kinds = [scope.kind(a) for a in e.args]
    return "mixed" in kinds and bool({"data", "constant"} & set(kinds))


# ---- computer algebra


def rewritten(d: Einsum, scope: Scope) -> Iterator[Expr]:
    """Products that equal the body of a sum, in which what varies and what refers are apart."""
    if d.monoid(scope.var) != "sum" or not scope.refers(d.body):
        return
    atoms: dict[str, Expr] = {}
    body = _atomic(scope.expanded(d.body), scope, atoms)
    nodes = list(walk(body))
    if any(isinstance(n, Access) and n.tensor not in atoms for n in nodes):
        return
    if len(nodes) > MOST or not _rank_one(body, atoms):
        return
    found = _separated(_Problem(text(body), body, tuple(_positive(atoms, scope))))
    if found is not None:
        yield transform(found, lambda n: atoms.get(n.tensor, n) if isinstance(n, Access) else n)


def _atomic(e: Expr, scope: Scope, atoms: dict[str, Expr]) -> Expr:
    """The expression with what depends on references alone, or on none, as atoms `r0`, `x0`."""
    kind = scope.kind(e)
    if kind != "mixed":
        if isinstance(e, Const):
            return e
        for name, value in atoms.items():
            if text(value) == text(e):
                return Access(name, ())
        name = f"{'r' if kind == 'reference' else 'x'}{len(atoms)}"
        atoms[name] = e
        return Access(name, ())
    if isinstance(e, Call):
        return Call(e.op, tuple(_atomic(a, scope, atoms) for a in e.args))
    if isinstance(e, Cast):
        return _atomic(e.arg, scope, atoms)
    return e


def _positive(atoms: dict[str, Expr], scope: Scope) -> Iterator[str]:
    for name, e in atoms.items():
        if interval(e, scope)[0] >= 0:
            yield name


def _rank_one(body: Expr, atoms: dict[str, Expr]) -> bool:
    """f(x, r) · f(x₀, r₀) = f(x, r₀) · f(x₀, r) at random points."""
    random = np.random.default_rng(0)
    points = [{n: random.uniform(0.2, 1.7, POINTS) for n in atoms} for _ in range(2)]

    def at(x: int, r: int) -> Any:
        made = _evaluate(body, {n: points[r if n[0] == "r" else x][n] for n in atoms})
        return np.asarray(made).astype(np.float64)

    with np.errstate(all="ignore"):
        a, b = at(0, 0) * at(1, 1), at(0, 1) * at(1, 0)
        return bool(np.all(np.abs(a - b) <= 1e-9 * (np.abs(a) + np.abs(b) + 1e-30)))


def _evaluate(e: Expr, values: dict[str, Any]) -> Any:
    if isinstance(e, Const):
        return np.asarray(e.value)
    if isinstance(e, Access):
        return values[e.tensor]
    assert isinstance(e, Call)
    args = [np.asarray(_evaluate(a, values)) for a in e.args]
    return e.spec.evaluate(*[a.astype(np.float64) if a.dtype.kind != "b" else a for a in args])


class _Problem:
    """A body over atoms; equal when its text is."""

    def __init__(self, key: str, body: Expr, positive: tuple[str, ...]) -> None:
        self.key, self.body, self.positive = (key, positive), body, positive

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Problem) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=256)
def _separated(problem: _Problem) -> Expr | None:
    """G(x) · H(r) by computer algebra, or None."""
    import sympy  # noqa: F401  # which alone may take longer than a body is given

    return _within(SECONDS, lambda: _separate(problem))


def _separate(problem: _Problem) -> Expr | None:
    import sympy as sp

    names = sorted({n.tensor for n in walk(problem.body) if isinstance(n, Access)})
    symbols = {
        n: sp.Symbol(n, positive=True) if n in problem.positive else sp.Symbol(n, real=True)
        for n in names
    }
    f = _to_sympy(problem.body, symbols, sp)
    if f is None:
        return None
    for form in (
        sp.factor,
        lambda e: sp.factor(sp.expand(e)),
        lambda e: sp.powsimp(sp.simplify(e)),
    ):
        made = sp.expand_power_base(sp.expand_power_exp(form(f)))
        g, h = sp.Integer(1), sp.Integer(1)
        for part in sp.Mul.make_args(made):
            kinds = {str(s)[0] for s in part.free_symbols}
            if kinds == {"r"}:
                h *= part
            elif "r" in kinds:
                break
            else:
                g *= part
        else:
            left, right = _from_sympy(g, sp), _from_sympy(h, sp)
            if left is not None and right is not None:
                return call("mul", left, right)
    return None


def _to_sympy(e: Expr, symbols: dict[str, Any], sp: Any) -> Any:
    if isinstance(e, Const):
        return sp.nsimplify(e.value) if isinstance(e.value, int | float) else None
    if isinstance(e, Access):
        return symbols[e.tensor]
    if not isinstance(e, Call):
        return None
    args = [_to_sympy(a, symbols, sp) for a in e.args]
    if any(a is None for a in args):
        return None
    if e.spec.infix and e.spec.result in ("same", "float"):
        symbol = e.spec.infix
        table: dict[tuple[str, int], Callable[..., Any]] = {
            ("+", 2): lambda a, b: a + b, ("-", 2): lambda a, b: a - b, ("*", 2): lambda a, b: a * b,
            ("/", 2): lambda a, b: a / b, ("**", 2): lambda a, b: a**b, ("-", 1): lambda a: -a,
        }  # fmt: skip
        rule = table.get((symbol, len(args)))
        return None if rule is None else rule(*args)
    if e.spec.power is not None:
        return args[0] ** sp.nsimplify(e.spec.power)
    rule = getattr(sp, e.op, None) or getattr(sp, e.op.capitalize(), None)
    return None if rule is None or e.spec.arity != 1 or not e.spec.derivative else rule(args[0])


def _from_sympy(e: Any, sp: Any) -> Expr | None:
    if e.is_Symbol:
        return Access(str(e), ())
    if e.is_Integer:
        return Const(int(e))
    if e.is_Number:
        return Const(float(e))
    args = [_from_sympy(a, sp) for a in e.args]
    if any(a is None for a in args):
        return None
    known = [a for a in args if a is not None]
    if e.is_Add or e.is_Mul:
        out = known[0]
        for a in known[1:]:
            out = call("add" if e.is_Add else "mul", out, a)
        return out
    if e.is_Pow:
        return call("pow", known[0], known[1])
    name = type(e).__name__.lower()
    return call(name, *known) if name in OPS and OPS[name].arity == len(known) else None


def _within(seconds: float, f: Callable[[], Expr | None]) -> Expr | None:
    """f(), or None when it takes longer or breaks down."""
    box: list[Expr | None] = []

    def run() -> None:
        try:
            box.append(f())
        except Exception:  # computer algebra fails in many ways, and none of them is ours
            box.append(None)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        ident = ctypes.c_ulong(worker.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(TimeoutError))
        return None
    return box[0] if box else None
