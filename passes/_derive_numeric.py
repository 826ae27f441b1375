"""Corrections are tried on numbers before they are believed: sums over a few random elements, in float64.

A part A of the elements and all of them, A ∪ B, are walked. What a component of A becomes by its correction has to be
what its definition gives over A with the references of A ∪ B.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tcc.ir.cascade import Einsum
from tcc.ir.expr import Access, Cast, Const, Expr, Size, Var, text, variables
from tcc.ir.ops import MONOIDS, identity_of
from tcc.passes._derive_scope import Scope

Array = Any
TRIALS, ALL = 12, 6  # random rows, elements of a row
TOLERANCE = 1e-8


class Trial:
    """Random values for all that a chain reads; an element of data for each trial and each coordinate."""

    def __init__(
        self, scope: Scope, seed: int, kind: str = "normal", extent: float = float(ALL)
    ) -> None:
        self.scope, self.kind = scope, kind
        self.random = np.random.default_rng(seed)
        self.atoms: dict[str, Array] = {}
        own = scope.c.extent(scope.var)
        self.own = own.value if isinstance(own, Const) else math.nan
        self.extent = (
            extent  # what every size counts as, and a literal that is the extent of the walk
        )
        self.state: dict[str, Array] = {}  # values of the components so far
        self.new: dict[str, Array] = {}
        self.count = ALL

    def value(self, e: Expr) -> Array:
        """An expression over (trials, elements); components in corrections have the values of `state` and `new`."""
        if isinstance(e, Const):
            return np.asarray(self.extent if e.value == self.own and self.own > 1 else e.value)
        if isinstance(e, Size):
            return np.asarray(self.extent)
        if isinstance(e, Var):
            if e.name == self.scope.var:
                return np.arange(self.count, dtype=np.float64)[None, :]
            if e.name not in self.atoms:
                self.atoms[e.name] = self.random.integers(0, ALL, (TRIALS, 1)).astype(np.float64)
            return self.atoms[e.name]
        if isinstance(e, Access):
            return self.access(e)
        if isinstance(e, Cast):
            return self.value(e.arg)
        compared = e.spec.result == "bool"
        args = [
            np.asarray(
                self.access(a, True) if compared and isinstance(a, Access) else self.value(a)
            )
            for a in e.args
        ]
        if e.spec.result == "int":
            args = [a.astype(np.int64) for a in args]
        if e.spec.result == "float" or e.op in ("pow", "sub", "neg", "add", "mul"):
            args = [a.astype(np.float64) for a in args]
        return np.asarray(e.spec.evaluate(*args))

    def access(self, e: Access, compared: bool = False) -> Array:
        if not e.indices and e.tensor.endswith("'"):
            return self.new[e.tensor[:-1]][:, None]
        if e.tensor in self.state:
            made = self.state[e.tensor][:, None]
            if e.indices and not compared and np.isinf(self.identity(e.tensor)):
                made = np.where(made == self.identity(e.tensor), 0.0, made)  # as walks count it
            return made
        inner = self.scope.inner(e)
        if inner is not None:
            return self.value(inner)
        varies = self.scope.var in variables(e)
        t = self.scope.program.tensors.get(e.tensor)
        full = self.atom(text(e), varies, t is not None and t.dtype.kind == "b")
        return full[:, : self.count] if varies else full

    def identity(self, field: str) -> float:
        d = self.scope.defs[field]
        return float(MONOIDS[d.monoid(self.scope.var)].identity) if d.reduced else 0.0

    def atom(self, key: str, varies: bool, truth: bool) -> Array:
        if key not in self.atoms:
            shape = (TRIALS, ALL if varies else 1)
            if truth:
                made: Array = self.random.random(shape) < 0.7
            elif self.kind == "constant":
                made = np.ones(shape)
            elif self.kind == "normal":
                made = self.random.standard_normal(shape) * 1.5
            else:
                made = self.random.uniform(0.2, 1.7, shape)
            self.atoms[key] = made
        return self.atoms[key]

    def reduce(self, d: Einsum, count: int, body: Expr | None = None) -> Array:
        """A reduction over the first `count` elements, with the components in `state`."""
        self.count = count
        shape = (TRIALS, count)
        data = np.broadcast_to(np.asarray(self.value(d.body if body is None else body)), shape)
        monoid = MONOIDS[d.monoid(self.scope.var)]
        if data.dtype == bool and monoid.name in ("sum", "prod"):
            data = data.astype(np.float64)
        mask = np.ones(shape, bool)
        for p in d.where:
            mask = mask & np.broadcast_to(np.asarray(self.value(p)), shape).astype(bool)
        if monoid.result != "bool":
            data = data.astype(np.float64)
        data = np.where(mask, data, identity_of(monoid, data.dtype))
        return np.asarray(monoid.fold(data, axis=(1,)))


def agree(got: Array, want: Array) -> tuple[bool, bool]:
    """Whether two results are equal up to rounding, and whether that says anything."""
    x, y = np.asarray(got, np.float64), np.asarray(want, np.float64)
    known = np.isfinite(y)
    if not known.any():
        return True, False
    scale = 1 + np.abs(y)
    with np.errstate(all="ignore"):
        good = np.abs(x - y) <= TOLERANCE * scale * 10
    return bool(np.all(good | ~known)), True


def walk(trial: Trial, fields: list[str], count: int) -> dict[str, Array]:
    """The components after a walk over the first `count` elements."""
    trial.state = {}
    for name in fields:
        trial.state[name] = trial.reduce(trial.scope.defs[name], count)
    return trial.state


KINDS = ("normal", "positive", "normal", "positive")


def confirms(scope: Scope, fields: list[str], name: str, correction: Expr | None) -> bool:
    """Whether a correction turns the value of a part into what it is under the references of all."""
    spoken = False
    for seed, kind in enumerate(KINDS):
        with np.errstate(all="ignore"):
            t = Trial(scope, seed, kind)
            part = dict(walk(t, [*fields, name], ALL // 2))
            whole = dict(walk(t, [*fields, name], ALL))
            t.state, t.new = part, whole
            got = part[name]
            if correction is not None:
                got = np.broadcast_to(t.value(correction), (TRIALS, 1))[:, 0]
                still = np.ones(TRIALS, bool)
                for f in fields:
                    still &= part[f] == whole[f]
                got = np.where(still, part[name], got)
            t.state = {f: whole[f] for f in fields}
            good, said = agree(got, t.reduce(scope.defs[name], ALL // 2))
        if not good:
            return False
        spoken |= said
    return spoken


def equal_values(scope: Scope, fields: list[str], a: Einsum, b: Expr) -> bool:
    """Whether a reduction equals an expression over the components."""
    spoken = False
    for seed, kind in enumerate(KINDS):
        with np.errstate(all="ignore"):
            t = Trial(scope, seed, kind)
            walk(t, fields, ALL)
            want = t.reduce(a, ALL)
            t.count = ALL
            good, said = agree(np.broadcast_to(t.value(b), (TRIALS, 1))[:, 0], want)
        if not good:
            return False
        spoken |= said
    return spoken


def vanishes(scope: Scope, fields: list[str], d: Einsum) -> bool:
    """Whether a sum is always 0."""
    for seed, kind in enumerate(KINDS):
        with np.errstate(all="ignore"):
            t = Trial(scope, seed, kind)
            walk(t, fields, ALL)
            total = t.reduce(d, ALL)
            t.count = ALL
            sizes = np.abs(np.broadcast_to(t.value(d.body), (TRIALS, ALL))).sum(axis=1)
            if not np.all(np.abs(total) <= TOLERANCE * sizes) or not sizes.any():
                return False
    return True
