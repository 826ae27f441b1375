"""The meaning of joint reductions, executed: the tuple of fields as one reduction, in float64, plain and slow.

    run_joint(c, joint, inputs, sizes=None, form=Stream(tile)) -> {field: array}
    interpret_joints(c, inputs, sizes=None, form=Stream(tile)) -> {output: array}
    check_body(c, joint)                                          T0138 when walking does not give the definitions

    form ::= Stream(tile)          one state, tile after tile
           | Tree(tile)            a state per tile, combined in pairs
           | Split(parts, tile)    consecutive parts, each streamed, then combined

A *state* holds a value per field. The empty state holds the identities: it is what a walk over no coordinate gives. To
*absorb* a tile: field by field, the value is corrected towards the new values of the fields before it, then combined
with the field's definition over the tile, evaluated with those new values. To *combine* two states: field by field,
both values are corrected towards the combined values before it, then combined. A correction whose references are the
same on both sides is skipped. A reference of `max` or `min` that is still at its identity counts as 0 inside
definitions, except where it is compared: exp(-inf - 0) is 0, where exp(-inf - -inf) would be no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tcc.ir.cascade import Cascade, Einsum, Field, Joint, Recurrence, Step, steps, targets
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype_scaled import random_stored
from tcc.ir.expr import Access, Call, Expr, Size, transform, walk
from tcc.ir.index import evaluate_size, poly
from tcc.ir.interpret import ExternCall, Value, _Interpreter, bind, interpret
from tcc.ir.joint_laws import combined, references
from tcc.ir.joint_verify import walk_of, with_primes
from tcc.ir.ops import MONOIDS, OPS, identity_of
from tcc.ir.storage import load

Array = Any
State = dict[str, Value]


@dataclass(frozen=True)
class Stream:
    """One state that absorbs tile after tile."""

    tile: int


@dataclass(frozen=True)
class Tree:
    """Each tile is absorbed by an empty state; neighbouring states are combined in pairs."""

    tile: int


@dataclass(frozen=True)
class Split:
    """Consecutive parts of nearly equal length are streamed, and their states combined in order."""

    parts: int
    tile: int


Form = Stream | Tree | Split


def run_joint(
    c: Cascade, joint: Joint, inputs: Mapping[str, Array], sizes: Mapping[str, int] | None = None,
    form: Form = Stream(16), *, extern: ExternCall | None = None,
) -> dict[str, Array]:  # fmt: skip
    """The values of a joint's fields, by name, computed in a form; everything that they read is computed naively."""
    with np.errstate(all="ignore"):
        walker = _Walker(c, bind(c, inputs, sizes), extern, form, inputs)
        walker.joint(joint)
        return {t: walker.values[t].data for t in joint.tensors}


def interpret_joints(
    c: Cascade, inputs: Mapping[str, Array], sizes: Mapping[str, int] | None = None,
    form: Form = Stream(16), *, extern: ExternCall | None = None,
) -> dict[str, Array]:  # fmt: skip
    """The outputs of `c`, by name, with every joint computed in a form, and everything else naively."""
    with np.errstate(all="ignore"):
        return _Walker(c, bind(c, inputs, sizes), extern, form, inputs).outputs()


class _Walker(_Interpreter):
    """Evaluates what is asked for, and before it what that reads; a field is asked for with its whole joint."""

    def __init__(
        self, c: Cascade, sizes: dict[str, int], extern: ExternCall | None, form: Form,
        inputs: Mapping[str, Array],
    ) -> None:  # fmt: skip
        super().__init__(c, sizes, extern, False)
        self.form = form
        self.makers: dict[str, list[Step]] = {}  # the start of a recurrence and its steps are two
        for step in steps(c):
            for d in step.steps if isinstance(step, Recurrence) else (step,):
                for name in targets(d):
                    if step not in self.makers.setdefault(name, []):
                        self.makers[name].append(step)
        self.joints = {t: j for j in c.joints for t in j.tensors}
        self.done: set[str] = set()
        self.tile: dict[str, tuple[int, int]] = {}  # the variable of a walk, while it lasts
        for t in c.inputs:
            self.values[t.name] = Value(load(t, inputs[t.name]))

    def outputs(self) -> dict[str, Array]:
        out = {}
        for t in self.c.outputs:
            self.need(t.name)
            v = self.values[t.name]
            fill = np.asarray(t.fill, v.data.dtype)
            data = v.data if v.present is None else np.where(v.present, v.data, fill)
            out[t.name] = t.dtype.store(data, t.axes)
        return out

    def need(self, tensor: str) -> None:
        """Computes a tensor if it is not there yet."""
        if tensor not in self.makers or tensor in self.done:
            return
        if tensor in self.joints:
            self.joint(self.joints[tensor])
            return
        todo: list[Step] = []
        made = {tensor}
        stack = [tensor]
        while stack:  # with a tensor of a recurrence, all tensors of that recurrence
            for step in self.makers[stack.pop()]:
                if step not in todo:
                    todo.append(step)
                    members = step.steps if isinstance(step, Recurrence) else (step,)
                    new = {name for d in members for name in targets(d)} - made
                    made |= new
                    stack += sorted(new)
        todo.sort(key=lambda step: isinstance(step, Recurrence))
        for step in todo:
            members = step.steps if isinstance(step, Recurrence) else (step,)
            reads = [a.tensor for d in members for a in d.reads]
            if isinstance(step, Recurrence) and step.stop is not None:
                reads += [a.tensor for a in walk(step.stop.condition) if isinstance(a, Access)]
            for name in dict.fromkeys(reads):
                if name not in made:
                    self.need(name)
        for step in todo:
            self.step(step)
        self.done |= made

    def interval(self, var: str, extent: Expr) -> tuple[int, int]:
        return self.tile.get(var) or super().interval(var, extent)

    # ---- joints

    def joint(self, joint: Joint) -> None:
        """Computes the fields of a joint."""
        made = _Reduction(self, joint)
        for name in made.before:
            self.need(name)
        kept = self.c
        self.c = made.typed
        state = made.run(self.form, evaluate_size(kept.extent(joint.var), self.sizes))
        self.c = kept
        for name in made.scratch:
            self.values.pop(name, None)
        for name, value in state.items():
            self.values[name] = value
        self.done |= set(state)


class _Reduction:
    """One joint, as a reduction over the tuple of its fields."""

    def __init__(self, runner: _Walker, joint: Joint) -> None:
        c = runner.c
        self.runner, self.joint = runner, joint
        walk_ = walk_of(c, joint)
        self.fields, self.between = walk_.fields, walk_.between
        self.shapes = {
            t: tuple(evaluate_size(s, runner.sizes) for s in c.tensors[t].shape)
            for t in joint.tensors
        }
        made = {*joint.tensors, *(d.target for ds in self.between.values() for d in ds)}
        every = [*self.fields.values(), *(d for ds in self.between.values() for d in ds)]
        reads = [a.tensor for d in every for a in d.reads]
        for f in joint.fields:
            if f.correction is not None:
                reads += [a.tensor for a in walk(f.correction) if isinstance(a, Access)]
        self.before = [
            n for n in dict.fromkeys(reads) if n not in made and n.removesuffix("'") not in made
        ]
        typed = with_primes(c, joint)
        zeroed = {_zeroed(t): replace(c.tensors[t], name=_zeroed(t)) for t in joint.tensors}
        self.typed = replace(typed, tensors={**typed.tensors, **zeroed})
        self.scratch = [*made, *zeroed, *(f"{t}'" for t in joint.tensors)]

    def monoid(self, tensor: str) -> str:
        return self.fields[tensor].monoid(self.joint.var)

    # ---- forms

    def run(self, form: Form, extent: int) -> State:
        if isinstance(form, Stream):
            return self.streamed(0, extent, form.tile)
        if isinstance(form, Tree):
            states = [self.absorb(self.empty(), *t) for t in _tiles(0, extent, form.tile)]
            while len(states) > 1:
                pairs = [self.combine(*states[i : i + 2]) for i in range(0, len(states) - 1, 2)]
                states = pairs + states[2 * len(pairs) :]
            return states[0] if states else self.empty()
        each = -(-extent // form.parts)
        state = self.empty()
        for low, high in _tiles(0, extent, max(1, each)):
            state = self.combine(state, self.streamed(low, high, form.tile))
        return state

    def streamed(self, low: int, high: int, tile: int) -> State:
        state = self.empty()
        for at in _tiles(low, high, tile):
            state = self.absorb(state, *at)
        return state

    # ---- states

    def empty(self) -> State:
        """The identities, where the fields exist: what the definitions give over no coordinates."""
        out: State = {}
        for f in self.joint.fields:
            out[f.tensor] = self.partial(f, (0, 0), out)
        return out

    def absorb(self, state: State, low: int, high: int) -> State:
        """A state with one more tile: new references first."""
        new: State = {}
        for f in self.joint.fields:
            old = self.corrected(f, state, new)
            new[f.tensor] = self.merged(f, old, self.partial(f, (low, high), new))
        return new

    def combine(self, a: State, b: State) -> State:
        return combined(self.joint, a, b, self.corrected, self.merged)

    def merged(self, f: Field, a: Value, b: Value) -> Value:
        """a ⊕ b of one component; both exist at the same coordinates."""
        data = OPS[MONOIDS[self.monoid(f.tensor)].combine].evaluate(a.data, b.data)
        data = np.asarray(data).astype(a.data.dtype)
        if b.present is not None:
            data = np.where(b.present, data, b.data)  # what does not exist holds its fill
        return Value(data, b.present)

    def partial(self, f: Field, tile: tuple[int, int], new: State) -> Value:
        """The definition of a field over a tile, with the values that the fields before it have in `new`."""
        runner = self.runner
        for t, v in new.items():
            runner.values[t] = v
            runner.values[_zeroed(t)] = Value(self.counted(t, v.data), v.present)
        runner.tile = {self.joint.var: tile}
        for d in (*self.between[f.tensor], self.fields[f.tensor]):
            runner.values.pop(d.target, None)
            runner.einsum(_references_zeroed(d, set(new)))
        runner.tile = {}
        return runner.values.pop(f.tensor)

    def counted(self, tensor: str, data: Array) -> Array:
        """The value of a reference inside definitions: 0 where nothing was larger, or smaller, than everything."""
        m = MONOIDS[self.monoid(tensor)]
        if not np.isinf(m.identity):
            return data
        return np.where(data == identity_of(m, data.dtype), np.zeros((), data.dtype), data)

    def corrected(self, f: Field, state: State, new: State) -> Value:
        """A component of a state, as it would be with the references of `new`."""
        value = state[f.tensor]
        if f.correction is None:
            return value
        runner, own = self.runner, self.fields[f.tensor]
        for t, v in state.items():
            runner.values[t] = v
        for t, v in new.items():
            runner.values[f"{t}'"] = v
        still = Access(f.tensor, own.indices)
        body = transform(f.correction, self.placed)
        runner.values[_zeroed(f.tensor)] = made = Value(
            value.data.copy(), np.zeros(value.data.shape, bool)
        )
        same: Expr | None = None
        for t in references(f):
            here = self.fields[t].indices
            one = Call("eq", (Access(t, here), Access(f"{t}'", here)))
            same = one if same is None else Call("and", (same, one))
        assert same is not None
        body = Call("select", (same, still, body))
        runner.einsum(Einsum(_zeroed(f.tensor), own.indices, body))
        return Value(made.data, value.present)

    def placed(self, e: Expr) -> Expr:
        """Components in a correction are read at their own coordinates."""
        name = e.tensor.removesuffix("'") if isinstance(e, Access) else ""
        if isinstance(e, Access) and name in self.fields:
            return Access(e.tensor, self.fields[name].indices)
        return e


def _zeroed(tensor: str) -> str:
    """The name of a field's values with 0 in place of identities."""
    return f"{tensor}°"


def _references_zeroed(d: Einsum, fields: set[str]) -> Einsum:
    """A definition that reads fields with 0 in place of identities, except where they are compared."""

    def rule(e: Expr) -> Expr:
        if isinstance(e, Access) and e.tensor in fields and id(e) not in compared:
            return Access(_zeroed(e.tensor), e.indices)
        return e

    every = list(walk(d.body, *d.where))
    compared = {
        id(a)
        for n in every
        if isinstance(n, Call) and n.spec.result == "bool"
        for a in n.args
        if isinstance(a, Access)
    }
    where = tuple(transform(p, rule) for p in d.where)
    return Einsum(d.target, d.indices, transform(d.body, rule), d.reductions, where, d.span)


def _tiles(low: int, high: int, tile: int) -> Iterator[tuple[int, int]]:
    for at in range(low, high, tile):
        yield at, min(at + tile, high)


# ---- bodies

_STEPS = 256  # of a walk; longer ones are tried in coarser steps
_ROUNDS = ((5, 7, 2, 3, 4), (1,), (4, 6, 9))  # sizes that the ranks take in turn


def check_body(c: Cascade, joint: Joint, extern: ExternCall | None = None) -> None:
    """T0138 when walking a joint on random small inputs does not give what its definitions give.

    Programs whose sizes can not be chosen freely, or that call functions when `extern` is missing, are not tried.
    """
    step = max(1, (poly(c.resolved(c.extent(joint.var))).constant or 0) // _STEPS)
    forms: tuple[Form, ...] = (Stream(step), Stream(3 * step), Tree(2 * step), Split(2, 3 * step))
    face = replace(c, outputs=tuple(c.tensors[t] for t in joint.tensors))
    ranks = [r.name for r in c.ranks if r.size is None]
    for n, numbers in enumerate(_ROUNDS[: 3 if ranks else 1]):
        sizes = {r: numbers[i % len(numbers)] for i, r in enumerate(ranks)}
        try:
            inputs = _random_inputs(c, sizes, np.random.default_rng(n))
            want = interpret(_wide(face), inputs, sizes, extern=extern)
            found = {
                form: run_joint(c, joint, inputs, sizes, form, extern=extern) for form in forms
            }
        except CompileError as error:
            if error.diagnostic.code in ("T0110", "T0111", "T0125", "T0126", "T0301"):
                continue
            raise
        for form, got in found.items():
            for f in joint.fields:
                _compare(f, joint, form, got[f.tensor], want[f.tensor], sizes)


def _compare(
    f: Field, joint: Joint, form: Form, got: Array, want: Array, sizes: dict[str, int]
) -> None:
    x, y = np.asarray(got, float), np.asarray(want, float)
    with np.errstate(all="ignore"):
        size = 1 + np.max(np.abs(y), initial=0, where=np.isfinite(y))
        bad = ~((np.abs(x - y) <= 1e-9 * size) | (x == y) | ~np.isfinite(y))
    if not bad.any():
        return
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"[{', '.join(map(str, at))}]" if at else ""
    given = ", ".join(f"{r} = {n}" for r, n in sizes.items()) or "sizes as declared"
    raise CompileError(
        "T0138", f"walking `{joint.var}` as {form} gives `{f.tensor}{where}` = {x[at]:.6g}, its definition {y[at]:.6g} "
        f"({given})", (f.correction.span if f.correction is not None else None) or f.span or joint.span,
        helps="the correction is not what the definition needs when its references change",
    )  # fmt: skip


def _wide(c: Cascade) -> Cascade:
    """The same program with float outputs in f64, so that nothing is rounded."""
    from tcc.ir.dtype import F64

    outputs = tuple(replace(t, dtype=F64) if t.dtype.is_float else t for t in c.outputs)
    return replace(c, outputs=outputs)


def _random_inputs(
    c: Cascade, sizes: dict[str, int], random: np.random.Generator
) -> dict[str, Array]:
    """Small numbers; integers that are indices of the smallest rank."""
    known = dict(sizes)
    for r in c.ranks:
        if r.size is not None and all(n.rank in known for n in walk(r.size) if isinstance(n, Size)):
            known[r.name] = evaluate_size(r.size, known)
    out: dict[str, Array] = {}
    for t in c.inputs:
        try:
            shape = tuple(evaluate_size(s, known) for s in t.shape)
        except KeyError:
            raise CompileError("T0126", f"the shape of `{t.name}` is not known", t.span) from None
        if t.dtype.is_float and t.dtype.native:
            out[t.name] = random.standard_normal(shape)
        else:
            out[t.name] = random_stored(t.dtype, t.axes, shape, random, 2)
    return out
