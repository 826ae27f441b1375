"""The meaning of cascades: a NumPy interpreter, slow and plain, with rigorous error bounds.

Floats are computed in float64 and rounded to the declared type only at the outputs, integers exactly in their own type.
Tensors of types that NumPy lacks are decoded when they are read, and rounded into their type where they are written.
With `bounds=True` every value carries a bound on how far an evaluation in the declared float type may lie from it,
whatever the order of its reductions and whether or not products are fused: the bound that backends are tested against.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Recurrence, Tensor, nested, steps
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, children, variables, walk
from tcc.ir.index import evaluate_size
from tcc.ir.infer import expression_dtype, reduced_dtype
from tcc.ir.ops import MONOIDS, identity_of
from tcc.ir.sizes import resolution_order, size_value, solve_sizes, why_this_size
from tcc.ir.storage import as_stored, filled, load, loading_error, positions, settle

Array = Any
CHUNK = 1 << 21  # points of an iteration space that are evaluated at once
ExternCall = Callable[[Extern, dict[str, Array], dict[str, int]], list[Array]]


@dataclass
class Value:
    """Data of a tensor or expression: `data`, where it exists (None: everywhere), and its error bound."""

    data: Array
    present: Array | None = None
    error: Array | None = None


def interpret(
    c: Cascade,
    inputs: Mapping[str, Array],
    sizes: Mapping[str, int] | None = None,
    *,
    extern: ExternCall | None = None,
) -> dict[str, Array]:
    """The outputs of `c`, by name. `inputs` are arrays of the declared shapes, `sizes` ranks that no input gives.
    Inputs and outputs of types that NumPy lacks are stored elements: codes, or an `Encoded` (see `DType.load`).
    """
    with np.errstate(all="ignore"):
        found = _Interpreter(c, bind(c, inputs, sizes), extern, False).run(inputs)
    return {name: value.data for name, value in found.items()}


def interpret_with_bounds(
    c: Cascade,
    inputs: Mapping[str, Array],
    sizes: Mapping[str, int] | None = None,
    extern: ExternCall | None = None,
) -> dict[str, Value]:
    """The outputs of `c` with a bound on the error of any evaluation in the declared types; codes are decoded."""
    with np.errstate(all="ignore"):
        found = _Interpreter(c, bind(c, inputs, sizes), extern, True).run(inputs)
    for t in c.outputs:
        if not t.dtype.native:
            found[t.name].data = t.dtype.load(found[t.name].data, t.axes)
    return found


def bind(
    c: Cascade, inputs: Mapping[str, Array], sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The size of every rank, from the shapes of the inputs and from `sizes`; T0125, T0126 on contradictions."""
    out: dict[str, int] = {}
    for name, value in (sizes or {}).items():
        rank = c.rank(name)
        if rank is None:
            raise CompileError("T0126", f"`{c.name}` has no rank `{name}`",
                               helps=f"its ranks: {', '.join(r.name for r in c.ranks)}")  # fmt: skip
        if value < 0:
            raise CompileError(
                "T0110", f"rank `{name}` has the negative size {value}", helps="sizes are 0 or more"
            )
        if rank.size is None:
            out[name] = int(value)
    for t in c.inputs:
        if t.name not in inputs:
            raise CompileError("T0127", f"input `{t.name}` is missing", t.span, helps=f"pass `{t}`")
        shape = np.shape(inputs[t.name])
        if len(shape) != len(t.shape):
            raise CompileError("T0125", f"`{t.name}` has {len(shape)} dimensions, but is declared as `{t}`", t.span,
                               helps="pass one dimension per rank")  # fmt: skip
        for s, n in zip(t.shape, shape, strict=True):
            if isinstance(s, Size) and s.rank not in out and (c.rank(s.rank) or s).size is None:  # type: ignore[union-attr]
                out[s.rank] = n
    solve_sizes(c, {name: np.shape(value) for name, value in inputs.items()}, out)
    for r in resolution_order({r.name: r for r in c.ranks}):
        if r.size is not None and all(n.rank in out for n in walk(r.size) if isinstance(n, Size)):
            out[r.name] = size_value(r.size, out, r)
    _check(c, inputs, out)
    return out


def _check(c: Cascade, inputs: Mapping[str, Array], sizes: dict[str, int]) -> None:
    for r in c.ranks:
        if r.name not in sizes:
            raise CompileError("T0126", f"the size of rank `{r.name}` is not known", r.span,
                               helps=f"no input has it: give it, as in `--size {r.name}=64`")  # fmt: skip
        if sizes[r.name] < 0:
            raise CompileError("T0110", f"rank `{r.name}` has the negative size {sizes[r.name]}", r.span,
                               helps="sizes are 0 or more")  # fmt: skip
        if (given := r.size) is not None and evaluate_size(given, sizes) != sizes[r.name]:
            raise CompileError("T0125", f"rank `{r.name}` has size {sizes[r.name]}, not {evaluate_size(given, sizes)}",
                               r.span, helps="its size is fixed by its declaration")  # fmt: skip
    for t in c.inputs:
        for i, (s, n) in enumerate(zip(t.shape, np.shape(inputs[t.name]), strict=True)):
            if (wanted := evaluate_size(s, sizes)) != n:
                raise CompileError("T0125", f"dimension {i} of `{t.name}` is {n}, but its rank has size {wanted}",
                                   t.span, helps=why_this_size(c, s))  # fmt: skip
    for t in c.tensors.values():
        count = t.dtype.itemsize
        for s in t.shape:
            count *= evaluate_size(s, sizes)
        if count >= 2**63:
            raise CompileError("T0111", f"`{t.name}` would need {count} bytes, more than 2^63 - 1", t.span,
                               helps="choose smaller sizes")  # fmt: skip


class _Interpreter:
    def __init__(
        self, c: Cascade, sizes: dict[str, int], extern: ExternCall | None, bounds: bool
    ) -> None:
        self.c, self.sizes, self.extern, self.bounds = c, sizes, extern, bounds
        self.values: dict[str, Value] = {}
        self.split: set[str] = set()  # tensors made for definitions with different monoids
        self.fixed: dict[str, int] = {}  # variables of recurrences being executed

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Value]:
        for t in self.c.inputs:
            data = load(t, inputs[t.name])
            self.values[t.name] = Value(data, None, loading_error(t, data) if self.bounds else None)
        exact: dict[str, Value] = {}  # of scaled outputs, which others read as they are stored
        for step in steps(self.c):
            self.step(step)
            settle(self.c, step, self.values, exact)
        out = {}
        for t in self.c.outputs:
            v = exact.get(t.name, self.values[t.name])
            data, error = filled(v, t), v.error
            rounded = t.dtype.store(data, t.axes)
            if error is not None and t.dtype.native:
                error = v.error + t.dtype.roundoff * np.abs(np.nan_to_num(data, posinf=0, neginf=0))
            out[t.name] = Value(rounded, v.present, error)
        return out

    def step(self, step: Definition | Recurrence) -> None:
        if isinstance(step, Extern):
            if self.extern is None:
                raise CompileError("T0301", f"`{step.function}` has no meaning without PyTorch", step.span,
                                   helps="run the program through PyTorch")  # fmt: skip
            arrays = {name: self.values[name].data for name in step.operands}
            for t, result in zip(step.targets, self.extern(step, arrays, self.sizes), strict=True):
                data = np.asarray(result)
                data = data.astype(np.float64) if t.dtype.is_float else data
                error = np.abs(data) * t.dtype.roundoff * 64 if self.bounds else None
                self.values[t.name] = Value(data, None, error)
        elif isinstance(step, Recurrence):
            self.recurrence(step)
        else:
            self.einsum(step)

    def recurrence(self, r: Recurrence) -> None:
        extent = evaluate_size(self.c.extent(r.var), self.sizes)
        doubt = False
        for t in range(extent):
            self.fixed[r.var] = t
            for d in r.steps:
                self.einsum(d)
            if r.stop is None:
                continue
            held = self.evaluate(r.stop.condition, [])
            doubt = doubt or (held.error is not None and bool(np.any(held.error > 0)))
            if bool(np.all(held.data)):
                for later in range(t + 1, extent):
                    for d in r.steps:
                        self._hold(d, r.var, later, t)
                break
        if doubt:  # rounding may have moved the step that stops
            for d in r.steps:
                self.values[d.target].error = np.full_like(self.values[d.target].error, np.inf)
        del self.fixed[r.var]

    def _hold(self, d: Einsum, var: str, later: int, t: int) -> None:
        value = self.values[d.target]
        where = [i for i, e in enumerate(d.indices) if var in variables(e)]
        for axis in where:
            shift = (
                self._index_at(d.indices[axis], var, later),
                self._index_at(d.indices[axis], var, t),
            )
            for part in (value.data, value.present, value.error):
                if part is not None:
                    np.moveaxis(part, axis, 0)[shift[0]] = np.moveaxis(part, axis, 0)[shift[1]]

    def _index_at(self, e: Expr, var: str, at: int) -> int:
        self.fixed[var] = at
        return int(self.evaluate(e, []).data)

    # ---- one definition

    def storage(self, t: Tensor) -> Value:
        if t.name not in self.values:
            shape = tuple(evaluate_size(s, self.sizes) for s in t.shape)
            self.values[t.name] = Value(
                np.full(shape, t.fill, t.dtype.working),
                np.zeros(shape, bool),
                np.zeros(shape) if self.bounds else None,
            )
        return self.values[t.name]

    def einsum(self, d: Einsum) -> None:
        parts = nested(d, set(self.c.tensors) - self.split)
        if parts is not None:
            for inner in parts[:-1]:
                dtype = reduced_dtype(inner, expression_dtype(self.c, inner.body))
                t = Tensor(inner.target, dtype, tuple(self.c.extent(v) for v in inner.free))
                self.split.add(inner.target)
                self.c = replace(self.c, tensors={**self.c.tensors, t.name: t})
                self.einsum(inner)
            self.einsum(parts[-1])
            return
        out = self.storage(self.c.tensors[d.target])
        free = [v for v in d.free if v not in self.fixed]
        reduced = [v for v in d.reduced if v not in self.fixed]
        spans = {v: self.interval(v, size) for v, size in self.c.extents(d).items()}
        points = math.prod(spans[v][1] - spans[v][0] for v in reduced)
        blocks: list[list[tuple[int, int]]] = []
        for n, v in enumerate(free):
            after = math.prod(spans[u][1] - spans[u][0] for u in free[n + 1 :]) * points
            low, high = spans[v]
            step = max(1, min(high - low, CHUNK // max(1, after)))
            blocks.append([(b, min(b + step, high)) for b in range(low, high, step)])
        for block in itertools.product(*blocks):
            self._block(d, out, dict(zip(free, block, strict=True)), reduced, spans)

    def interval(self, var: str, extent: Expr) -> tuple[int, int]:
        """The coordinates of a variable that definitions are evaluated at: all."""
        return 0, evaluate_size(extent, self.sizes)

    def _block(self, d: Einsum, out: Value, block: dict[str, tuple[int, int]], reduced: list[str],
               spans: dict[str, tuple[int, int]]) -> None:  # fmt: skip
        order = [*block, *reduced]
        self.grid = {}
        for n, v in enumerate(order):
            low, high = block.get(v) or spans.get(v, (0, 0))
            shape = [1] * len(order)
            shape[n] = high - low
            self.grid[v] = np.arange(low, high).reshape(shape)
        full = tuple(self.grid[v].size for v in order)
        value = self.evaluate(d.body, order)
        exists, mask = value.present, None
        doubt = np.zeros((), bool)  # where rounding may decide a predicate
        for p in d.where:
            held = self.evaluate(p, order)
            if held.error is not None:
                doubt = doubt | (held.error > 0)
            one = held.data if held.present is None else held.data & held.present
            exists = one if exists is None else exists & one
        # predicates over free variables alone decide existence; the others restrict the reduction
        if exists is not None:
            mask = np.broadcast_to(exists, full)
        if value.error is not None and np.any(doubt):
            value.error = np.where(doubt, np.inf, value.error)
        value = self._reduce(d, value, mask, reduced, order, full)
        present = True if mask is None else self._exists(d, len(block))
        target = (
            tuple(
                np.broadcast_arrays(
                    *[
                        np.asarray(self.evaluate(i, order).data).reshape(
                            np.shape(self.evaluate(i, order).data)[: len(block)] or ()
                        )
                        for i in d.indices
                    ]
                )
            )
            if d.indices
            else ()
        )
        outer = full[: len(block)]
        target = tuple(np.broadcast_to(t, outer) for t in target)
        assert out.present is not None
        chosen = np.broadcast_to(present, outer)
        stored = self.c.tensors[d.target].dtype
        if not stored.native:
            at = positions(target, out.data.shape)
            data, error = as_stored(value.data, value.error, stored, at)
            value = Value(data, value.present, error)
        _write(out.data, target, chosen, np.broadcast_to(value.data, outer))
        _write(out.present, target, chosen, chosen)
        if out.error is not None:
            roundoff = stored.roundoff if stored.native else 0.0
            error = value.error + roundoff * np.abs(np.nan_to_num(value.data, posinf=0, neginf=0))
            error = np.broadcast_to(error, outer)
            _write(out.error, target, chosen | np.isinf(error), error)

    def _exists(self, d: Einsum, free: int) -> Array:
        """Where the target exists: all conditions that mention free variables alone."""
        order = list(self.grid)
        names = set(order[:free]) | set(self.fixed)
        present: Array = np.asarray(True)
        for p in d.where:
            if set(variables(p)) <= names:
                held = self.evaluate(p, order)
                present = present & (
                    held.data if held.present is None else held.data & held.present
                )
        for condition in _conditions(d):
            if set(variables(condition)) <= names:
                held = self.evaluate(condition, order)
                present = present if held.present is None else present & held.present
        return np.asarray(present).reshape(np.shape(present)[:free])

    def _reduce(self, d: Einsum, v: Value, mask: Array | None, reduced: list[str], order: list[str],
                full: tuple[int, ...]) -> Value:  # fmt: skip
        free = len(order) - len(reduced)
        data = np.broadcast_to(v.data, full)
        error = np.broadcast_to(v.error, full) if v.error is not None else None
        dtype = expression_dtype(self.c, d.body)
        for n in reversed(range(len(reduced))):  # innermost first; equal neighbours commute
            m, axis = MONOIDS[d.monoid(reduced[n])], (free + n,)
            if data.dtype == bool and m.name in ("sum", "prod"):
                data = data.astype(np.int64)
            if m.result == "bool":
                data = data != 0 if data.dtype != bool else data
            if mask is not None:
                data = np.where(mask, data, identity_of_value(m.name, data.dtype))
                error = None if error is None else np.where(mask | np.isinf(error), error, 0)
            kept, count = data, data.shape[free + n]
            data = m.fold(kept, axis=axis) if count else np.full(
                kept.shape[:-1], identity_of_value(m.name, kept.dtype), kept.dtype)  # fmt: skip
            data = data.astype(kept.dtype)
            if error is not None:
                from tcc.ir.error_bounds import fold_error

                error = fold_error(
                    m.combine, kept, data, error, axis, dtype.roundoff * max(count, 1)
                )
            if mask is not None:
                mask = np.broadcast_to(self._exists(d, free + n), full[: free + n])
        return Value(data, None, error)

    # ---- expressions, over the grid of the current block

    def evaluate(self, e: Expr, order: list[str]) -> Value:
        zero = np.zeros(()) if self.bounds else None
        if isinstance(e, Const):
            return Value(np.asarray(e.value), None, zero)
        if isinstance(e, Size):
            return Value(np.asarray(self.sizes[e.rank]), None, zero)
        if isinstance(e, Var):
            return Value(
                np.asarray(self.fixed[e.name]) if e.name in self.fixed else self.grid[e.name],
                None,
                zero,
            )
        if isinstance(e, Access):
            return self._access(e, order)
        if isinstance(e, Cast):
            return self._cast(e, self.evaluate(e.arg, order))
        return self._call(e, [self.evaluate(a, order) for a in e.args])

    def _access(self, e: Access, order: list[str]) -> Value:
        t, tensor = self.values[e.tensor], self.c.tensors[e.tensor]
        if not e.indices:
            return t
        index = [self.evaluate(i, order) for i in e.indices]
        inside: Array = np.asarray(True)
        exists: Array | None = None  # an element at an absent coordinate is absent
        clipped = []
        for i, n in zip(index, t.data.shape, strict=True):
            at = np.asarray(i.data).astype(np.int64)
            inside = inside & (at >= 0) & (at < n)
            if i.present is not None:
                exists = i.present if exists is None else exists & i.present
            clipped.append(np.clip(at, 0, max(n - 1, 0)))
        if t.data.size == 0:
            shape = np.broadcast_shapes(*[np.shape(a) for a in clipped])
            return Value(
                np.full(shape, tensor.fill, t.data.dtype),
                exists,
                np.zeros(shape) if self.bounds else None,
            )
        place = tuple(np.broadcast_arrays(*clipped))
        data = t.data[place]
        if not np.all(inside):
            data = np.where(inside, data, np.asarray(tensor.fill, data.dtype))
        error = None if t.error is None else np.where(inside, t.error[place], 0)
        present = exists
        if t.present is not None:
            present = (
                t.present[place] | ~inside
                if exists is None
                else (t.present[place] | ~inside) & exists
            )
        if present is not None and present.all():
            present = None
        return Value(data, present, error)

    def _cast(self, e: Cast, v: Value) -> Value:
        data = np.asarray(v.data)
        error = v.error
        if not e.dtype.native:
            made, error = as_stored(v.data, v.error, e.dtype)
            return Value(made.astype(e.dtype.compute.working), v.present, error)
        if e.dtype.is_float:
            rounded = data.astype(e.dtype.numpy).astype(np.float64)
            if error is not None:
                error = error + e.dtype.roundoff * np.abs(
                    np.nan_to_num(rounded, posinf=0, neginf=0)
                )
            return Value(rounded, v.present, error)
        if data.dtype.kind == "f" and e.dtype.kind != "b":
            if error is not None:
                error = np.where((np.trunc(data - error) != np.trunc(data + error)), np.inf, 0.0)
            data = np.nan_to_num(np.trunc(data), posinf=2.0**62, neginf=-(2.0**62))
        return Value(data.astype(e.dtype.numpy), v.present, error)

    def _call(self, e: Call, args: list[Value]) -> Value:
        op = e.spec
        if op.name == "coalesce":
            return _coalesce(*args)
        present: Array | None = None
        for a in args:
            if a.present is not None:
                present = a.present if present is None else present & a.present
        data = [np.asarray(a.data) for a in args]
        dtype = expression_dtype(self.c, e)
        if dtype.is_float or (op.result == "bool" and any(d.dtype.kind == "f" for d in data)):
            keep = 1 if op.name == "select" else 0
            data = data[:keep] + [
                d if d.dtype.kind == "f" else d.astype(np.float64) for d in data[keep:]
            ]
        elif dtype.is_integer and op.name not in ("select", "take"):
            data = [d.astype(dtype.numpy) for d in data]
        result = np.asarray(op.evaluate(*data))
        result = result.astype(np.float64 if dtype.is_float else dtype.numpy)
        error = None
        if self.bounds:
            from tcc.ir.error_bounds import propagate

            errors = [_converted(a, dtype.roundoff) if dtype.is_float else a.error for a in args]
            error = propagate(op, data, errors, result, dtype.roundoff)
        return Value(result, present, error)


def _write(out: Array, target: tuple[Array, ...], chosen: Array, values: Array) -> None:
    """`out[target] = values` at the chosen points."""
    if target:
        out[tuple(t[chosen] for t in target)] = values[chosen]
    elif chosen.ndim == 0 and chosen:
        out[()] = values


def _conditions(d: Einsum) -> list[Expr]:
    """What has to exist for a definition to exist: every access, where those under a `??` count as one."""
    found: list[Expr] = []
    stack: list[Expr] = [d.body, *d.where]
    while stack:
        e = stack.pop()
        if isinstance(e, Access) or (isinstance(e, Call) and e.op == "coalesce"):
            found.append(e)
        else:
            stack.extend(children(e))
    return found


def _converted(v: Value, u: float) -> Array:
    """The error of an operand that may be an integer too large for the float type with roundoff `u`."""
    if np.asarray(v.data).dtype.kind not in "iu" or not u:
        return v.error
    size = np.abs(np.asarray(v.data, np.float64))
    return v.error + np.where(size * u > 0.5, size * u, 0.0)


def _coalesce(a: Value, b: Value) -> Value:
    if a.present is None:
        return a
    data = np.where(a.present, a.data, b.data)
    error = None if a.error is None else np.where(a.present, a.error, b.error)
    present = None if b.present is None else a.present | b.present
    return Value(data, present, error)


def identity_of_value(monoid: str, dtype: Any) -> Any:
    """The identity of a monoid in an interpreter's array type."""
    return identity_of(MONOIDS[monoid], dtype)
