"""The laws of a joint reduction that its corrections alone decide, tried on numbers when it is built.

    neutral       correction(a) = a          towards a state with the same references
    identity      empty ⊕ a = a = a ⊕ empty
    associative   (a ⊕ b) ⊕ c = a ⊕ (b ⊕ c)

That a correction also does what the definitions of the fields need is for `tcc.ir.joint.check_body`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from tcc.ir.cascade import Cascade, Einsum, Field, Joint
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Cast, Const, Expr, Size, Var, accesses, text
from tcc.ir.ops import MONOIDS, OPS, identity_of

Array = Any
State = dict[str, Array]
TRIALS = 16
SIZE = 5  # what a rank counts as


def references(f: Field) -> tuple[str, ...]:
    """The components that a correction follows: those that it mentions with a prime."""
    if f.correction is None:
        return ()
    names = [a.tensor for a in accesses(f.correction) if a.tensor.endswith("'")]
    return tuple(dict.fromkeys(n[:-1] for n in names))


def combined(
    joint: Joint, a: Any, b: Any, corrected: Callable[[Field, Any, Any], Any],
    merged: Callable[[Field, Any, Any], Any],
) -> dict[str, Any]:  # fmt: skip
    """a ⊕ b: component by component, both sides corrected towards the components that are combined already."""
    out: dict[str, Any] = {}
    for f in joint.fields:
        out[f.tensor] = merged(f, corrected(f, a, out), corrected(f, b, out))
    return out


def check_laws(c: Cascade, joint: Joint) -> None:
    """T0137 with the law and the numbers when the corrections of a joint break one."""
    if all(f.correction is None for f in joint.fields):
        return
    types = tuple(c.tensors[t].dtype for t in joint.tensors)
    monoids = tuple(_monoid(c, joint, t) for t in joint.tensors)
    key = f"{joint} | {', '.join(f'{m} {t}' for m, t in zip(monoids, types, strict=True))}"
    broken = _broken(_Case(key, joint, monoids, types))
    if broken is None:
        return
    n, message = broken
    f = joint.fields[n]
    span = f.correction.span if f.correction is not None else None
    raise CompileError("T0137", message, span or f.span or joint.span,
                       helps="a correction turns a partial value into what it would be under the new references")  # fmt: skip


def _monoid(c: Cascade, joint: Joint, tensor: str) -> str:
    d = c.defining(tensor)[0]
    assert isinstance(d, Einsum)
    return d.monoid(joint.var)


@dataclass(frozen=True)
class _Case:
    """A joint with what its laws depend on; two are equal when their texts are."""

    key: str
    joint: Joint = field(compare=False)
    monoids: tuple[str, ...] = field(compare=False)
    types: tuple[DType, ...] = field(compare=False)


@lru_cache(maxsize=256)
def _broken(case: _Case) -> tuple[int, str] | None:
    """The field whose correction breaks a law, and the sentence that says how; None when all laws hold."""
    with np.errstate(all="ignore"):
        return _Laws(case).broken()


class _Laws:
    """States are drawn from 1 … 9: partial values of every monoid, and none at which a quotient has a pole."""

    def __init__(self, case: _Case) -> None:
        self.joint = case.joint
        self.monoids = dict(zip(case.joint.tensors, case.monoids, strict=True))
        self.types = {
            t: _array_type(d) for t, d in zip(case.joint.tensors, case.types, strict=True)
        }
        self.random = np.random.default_rng(0)
        self.others: dict[str, Array] = {}  # other tensors and variables, the same for all states

    def state(self) -> State:
        return {
            t: self.random.integers(1, 10, TRIALS).astype(d)
            if d != np.bool_
            else self.random.integers(0, 2, TRIALS).astype(d)
            for t, d in self.types.items()
        }

    def broken(self) -> tuple[int, str] | None:
        empty = {
            t: np.full(TRIALS, identity_of(MONOIDS[m], self.types[t]))
            for t, m in self.monoids.items()
        }
        for _ in range(2):
            a, b, c = self.state(), self.state(), self.state()
            for f in self.joint.fields:
                if f.correction is not None:
                    still = {f.tensor: self.value(f.correction, a, a)}
                    found = self.differ("neutral: towards unchanged references", still, a, a)
                    if found:
                        return found
            left, right = self.combine(empty, a), self.combine(a, empty)
            found = (
                self.differ("the identity law: after joining an empty state,", left, a, a)
                or self.differ("the identity law: joined by an empty state,", right, a, a)
                or self.differ(
                    "associativity: (a ⊕ b) ⊕ c against a ⊕ (b ⊕ c):",
                    self.combine(self.combine(a, b), c),
                    self.combine(a, self.combine(b, c)),
                    a,
                )
            )
            if found:
                return found
        return None

    def differ(self, law: str, got: State, want: State, a: State) -> tuple[int, str] | None:
        for n, f in enumerate(self.joint.fields):
            if f.tensor not in got:
                continue
            x, y = np.asarray(got[f.tensor], float), np.asarray(want[f.tensor], float)
            size = (
                1
                + np.abs(np.nan_to_num(x, posinf=0, neginf=0))
                + np.abs(np.nan_to_num(y, posinf=0, neginf=0))
            )
            bad = ~((np.abs(x - y) <= 1e-9 * size) | (x == y) | (np.isnan(x) & np.isnan(y)))
            if bad.any():
                k = int(np.argmax(bad))
                at = ", ".join(f"{t} = {a[t][k]:g}" for t in self.joint.tensors)
                word = "is not" if law.startswith("neutral") else "breaks"
                return n, f"`{f}` {word} {law} `{f.tensor}` is {x[k]:.6g}, not {y[k]:.6g} (a: {at})"
        return None

    def combine(self, a: State, b: State) -> State:
        return combined(self.joint, a, b, self.corrected, self.merged)

    def merged(self, f: Field, x: Array, y: Array) -> Array:
        made = OPS[MONOIDS[self.monoids[f.tensor]].combine].evaluate(x, y)
        return np.asarray(made).astype(self.types[f.tensor])

    def corrected(self, f: Field, state: State, new: State) -> Array:
        if f.correction is None:
            return state[f.tensor]
        still = np.ones(TRIALS, bool)
        for t in references(f):
            still &= state[t] == new[t]
        made = np.asarray(self.value(f.correction, state, new)).astype(self.types[f.tensor])
        return np.where(still, state[f.tensor], made)

    def value(self, e: Expr, state: State, new: State) -> Array:
        """A correction on scalars; literals and other tensors are whatever they are, the same each time."""
        if isinstance(e, Const):
            return np.asarray(e.value)
        if isinstance(e, Size):
            return np.asarray(SIZE)
        if isinstance(e, Var):
            return np.asarray(1)
        if isinstance(e, Access):
            if e.tensor.endswith("'"):
                return new[e.tensor[:-1]]
            if e.tensor in state:
                return state[e.tensor]
            return self.others.setdefault(text(e), self.random.integers(1, 5, TRIALS) / 2)
        if isinstance(e, Cast):
            return np.asarray(self.value(e.arg, state, new)).astype(_array_type(e.dtype))
        args = [np.asarray(self.value(a, state, new)) for a in e.args]
        if e.spec.result == "float" or (e.op == "pow" and any(a.dtype.kind == "f" for a in args)):
            args = [a.astype(np.float64) for a in args]
        return np.asarray(e.spec.evaluate(*args))


def _array_type(t: DType) -> Any:
    return np.dtype(np.float64) if t.is_float else np.dtype(t.numpy)
