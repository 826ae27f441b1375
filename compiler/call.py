"""Calls: arrays in, arrays out, without copies. The first call with new shapes binds a plan, later
ones only look it up.

NumPy arrays and CPU torch tensors go to the kernel as pointers, whatever their strides. A copy is
made in three cases that pointers to elements cannot say: strides that are no multiple of the
element size, misaligned data, and torch's lazily negated tensors. Nothing is ever cast.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingABC
from typing import Any

import numpy as np

from tcc.arguments import arrange, check_range, check_sizes, fixed, plain
from tcc.backends.c.launch import ask_for_huge_pages
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import bind
from tcc.ir.packed import elements_shape
from tcc.pipeline import Result
from tcc.results import arranged, checked
from tcc.samples import Shaped
from tcc.stored import is_scaled, numpy_dtype, stored_type, to_numpy, to_torch, torch_dtype

Array = Any
Order = tuple[int, ...]  # a permutation of dimensions
_MOST_PLANS = 256  # each may hold scratch memory
_LARGE = 1 << 22  # bytes of a result from which on its pages are asked to be huge
_DATA_OFFSET = (
    object.__basicsize__
)  # of the data pointer in NumPy's array object, the first field of its own


def _address_checked(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _address_read(array: Array, _at: Any = ctypes.c_size_t.from_address) -> int:
    address: int = _at(id(array) + _DATA_OFFSET).value
    return address


def _choose_address() -> Callable[[Array], int]:
    """Reads the pointer out of the array object, three times as fast, where the layout is the known
    one."""
    if sys.implementation.name != "cpython":
        return _address_checked
    probe = np.zeros((3, 2))[1:, ::-1]
    return _address_read if _address_read(probe) == _address_checked(probe) else _address_checked


address_of = _choose_address()


class Plan:
    """What is known about calls with given shapes and strides: the output shapes, and how to
    run."""

    __slots__ = ("call", "copies", "large", "outputs", "sizes", "torch")

    def __init__(
        self,
        sizes: dict[str, int],
        call: Callable[..., None] | None = None,
        outputs: Sequence[tuple[tuple[int, ...], tuple[int, ...], Any]] = (),
        torch: Any = None,
        copies: Sequence[int] = (),
    ) -> None:
        self.sizes, self.call, self.copies = sizes, call, copies
        self.outputs = outputs  # shape, strides in elements, dtype of the framework
        self.large = any(math.prod(shape) >= _LARGE // 8 for shape, _, _ in outputs)
        self.torch = torch  # the module when the outputs are tensors, else None


class Caller:
    """Runs a built program on arrays: `caller(args, kwargs, sizes)`."""

    def __init__(
        self,
        cascade: Cascade,
        kernel: Any,
        result: Result | None = None,
        choose: Callable[[MappingABC[str, int]], Any] | None = None,
    ) -> None:
        target = result.target if result else None
        self._cascade, self._kernel, self._result = cascade, kernel, result
        self._choose = choose or (lambda sizes: kernel)  # the kernel for some sizes
        self._target = target.name if target else "numpy"
        self._on_gpu = target is not None and target.kind == "gpu"
        self._names = [t.name for t in cascade.inputs]
        self._count = len(self._names)
        # per input: its NumPy type, its torch type once torch is there, the bits that an address of
        # aligned element has not
        self._inputs: list[tuple[Any, Any, int]] = [
            (numpy_dtype(t), None, numpy_dtype(t).itemsize - 1) for t in cascade.inputs
        ]
        self._torch: Any = None  # the module, once a caller may pass its tensors
        self._tensor: Any = Caller  # its tensor classes; until then a class that no argument has
        self._parameter: Any = Caller
        self._plans: dict[Any, Plan] = {}
        self._scaled = any(is_scaled(t) for t in (*cascade.inputs, *cascade.outputs))
        self._apart: tuple[Caller, Any, Any] | None = None  # over the parts of scaled inputs
        if self._scaled and target is not None and target.backend != "numpy":
            from tcc.scaled import taken_apart

            whole, split, join = taken_apart(cascade, target)
            self._apart = Caller(whole, kernel, result, choose), split, join
        self._constants = [n for n, t in enumerate(cascade.inputs) if t.constant]
        self._seen: dict[int, Any] = {}  # constant inputs by address
        self._pack = _result_type(cascade)
        self._in: list[Order | None] = [None] * self._count
        self._out: list[Order | None] = [None] * len(cascade.outputs)
        self._permuted = False

    def permute(self, orders: MappingABC[str, Order]) -> None:
        """From now on callers hold tensor `name` with dimensions of their own order: its dimension n is their dimension
        `orders[name][n]`. It costs calls nothing."""
        self._in = [orders.get(t.name) for t in self._cascade.inputs]
        self._out = [orders.get(t.name) for t in self._cascade.outputs]
        self._permuted = any(o is not None for o in self._out)
        if self._apart is not None:
            self._apart[0].permute(orders)

    def _turned(self, values: list[Any]) -> list[Any]:
        """Views of a caller's arrays with the declared order of dimensions."""
        return [
            v if o is None else v.transpose(o) if isinstance(v, np.ndarray) else v.permute(o)
            for v, o in zip(values, self._in, strict=True)
        ]

    def _turned_back(self, outs: list[Any]) -> list[Any]:
        """Views of results with the caller's order of dimensions."""
        found = []
        for v, o in zip(outs, self._out, strict=True):
            inverse = inverted(o) if o is not None else None
            found.append(v if inverse is None else v.transpose(inverse) if isinstance(v, np.ndarray)
                         else v.permute(inverse))  # fmt: skip
        return found

    def __call__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sizes: MappingABC[str, int] | None,
        out: Any = None,
    ) -> Any:
        if out is not None and "out" in self._names:
            kwargs, out = {**kwargs, "out": out}, None
        if not args and len(kwargs) == self._count:
            try:
                values = [kwargs[name] for name in self._names]
            except KeyError:
                values = arrange(self._cascade, args, kwargs)
        elif not kwargs and len(args) == self._count:
            values = list(args)
        else:
            values = arrange(self._cascade, args, kwargs)
        return self.run(values, sizes, out)

    def run(
        self, values: list[Any], sizes: MappingABC[str, int] | None = None, out: Any = None
    ) -> Any:
        """The outputs for `values` in the order of the inputs, written into `out` if that is given."""
        if self._apart is not None:
            caller, split, join = self._apart
            found = caller.run(split(values), sizes, out)
            if join is None:
                return found
            outs = join(list(found) if len(caller._out) > 1 else [found])
            return outs[0] if len(outs) == 1 else self._pack(*outs)
        if out is not None and (self._on_gpu or self._scaled):
            raise CompileError("T0149", f"`out` is not there yet for the target `{self._target}`",
                               helps="leave it out, and copy the result")  # fmt: skip
        if self._on_gpu:
            return self._run_on_gpu(values, sizes)
        if self._scaled:
            values = [plain(v, t) for v, t in zip(values, self._cascade.inputs, strict=True)]
            return self._interpreted(Plan(self._bound(self._turned(values), sizes)), values, None)
        pointers: list[int] = []
        key: list[Any] = []
        if sizes:
            key.append(tuple(sorted(sizes.items())))
        if not self._look(values, key, pointers):
            values = self._plain(values)
            pointers.clear()
            del key[1 if sizes else 0 :]
            looked = self._look(values, key, pointers)
            assert looked
        known = tuple(key)
        plan = self._plans.get(known)
        if plan is None:
            plan = self._bind(values, sizes)
            if len(self._plans) >= _MOST_PLANS:
                self._plans = {}  # a new one: other threads may be reading the old
            self._plans[known] = plan
        if plan.copies:
            for i in plan.copies:
                v = values[i]
                values[i] = np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v.contiguous()
            return self.run(values, sizes, out)
        return self._run(plan, values, pointers, out)

    def _look(self, values: list[Any], key: list[Any], pointers: list[int]) -> bool:
        """Fills the plan's key and the pointers; False when some value needs a closer look."""
        for v, (dtype, torch_type, mask) in zip(values, self._inputs):
            kind = type(v)
            if kind is np.ndarray:
                if v.dtype is not dtype:
                    return False
                pointer = address_of(v)
                key += (v.shape, v.strides)
            elif kind is self._tensor or kind is self._parameter:
                if v.dtype is not torch_type or not v.is_cpu or v.is_neg():
                    return False
                if v.requires_grad and self._torch.is_grad_enabled():
                    return False
                try:
                    pointer = v.data_ptr()
                    key += (v.shape, v.stride(), None)  # None: its strides count elements
                except RuntimeError:  # sparse, nested, or a tensor of some transformation
                    return False
            else:
                return False
            if pointer & mask:
                return False
            pointers.append(pointer)
        return True

    def _run(self, plan: Plan, values: list[Any], pointers: list[int], into: Any = None) -> Any:
        torch = plan.torch
        if plan.call is None:
            if into is not None:
                raise CompileError("T0149", "`out` is not there yet for programs that are interpreted",
                                   helps="leave it out, and copy the result")  # fmt: skip
            return self._interpreted(plan, values, torch)
        outs: list[Any] = []
        if into is not None:
            outs = arranged(self._cascade, into)
            pointers += checked(self._cascade, outs, plan.outputs, values)
        try:
            for shape, strides, dtype in () if outs else plan.outputs:
                if torch is not None:
                    out = torch.empty_strided(shape, strides, dtype=dtype)
                    pointers.append(out.data_ptr())
                    if plan.large and out.nbytes >= _LARGE:
                        ask_for_huge_pages(out.data_ptr(), out.nbytes)
                else:
                    apart = None if not self._permuted else [n * dtype.itemsize for n in strides]
                    out = np.ndarray(shape, dtype, strides=apart)
                    pointers.append(address_of(out))
                outs.append(out)
        except (MemoryError, RuntimeError):
            raise _no_memory(self._cascade, plan.sizes) from None
        if self._constants:
            plan.call(pointers, self._content(values, pointers))
        else:
            plan.call(pointers)
        return outs[0] if len(outs) == 1 else self._pack(*outs)

    def _content(self, values: list[Any], pointers: list[int]) -> object:
        """A key that changes when the content of a constant input may have: tensors tell by their
        version, and arrays that nobody may write stay what they are. What was seen is kept alive, so
        that its address stays its own."""
        key = []
        for n in self._constants:
            v = values[n]
            array = isinstance(v, np.ndarray)
            if not _read_only(v) if array else v.is_inference():
                return object()
            if pointers[n] not in self._seen:
                if len(self._seen) >= _MOST_PLANS:
                    return object()
                self._seen[pointers[n]] = v
            key.append((pointers[n], 0 if array else v._version))
        return tuple(key)

    def _interpreted(self, plan: Plan, values: list[Any], torch: Any) -> Any:
        arrays = dict(
            zip(
                self._names,
                (to_numpy(v, t) for v, t in zip(self._turned(values), self._cascade.inputs)),
            )
        )
        given = self._free(plan.sizes)
        if 0 in plan.sizes.values() or not hasattr(self._kernel, "run"):
            found = _interpret(self._cascade, arrays, given)
        else:
            found = self._kernel.run(arrays, given)
        outs = [found[t.name] for t in self._cascade.outputs]
        if torch is not None:
            outs = [to_torch(torch, o, t) for o, t in zip(outs, self._cascade.outputs)]
        outs = self._turned_back(outs)
        return outs[0] if len(outs) == 1 else self._pack(*outs)

    def _run_on_gpu(self, values: list[Any], sizes: MappingABC[str, int] | None) -> Any:
        """The backend moves what is not on the device; tensors in give tensors out, where the first
        of them lies."""
        c = self._cascade
        values = [plain(v, t, on_gpu=True) for v, t in zip(values, c.inputs, strict=True)]
        values = self._turned(values)
        tensor = next((v for v in values if not isinstance(v, np.ndarray)), None)
        known = self._bound(values, sizes)
        if 0 in known.values():
            arrays = {
                n: v if isinstance(v, np.ndarray) else v.detach().cpu().numpy()
                for n, v in zip(self._names, values)
            }
            found = _interpret(c, arrays, self._free(known))
        else:
            found = self._kernel.run(dict(zip(self._names, values)), self._free(known))
        torch = sys.modules.get("torch")
        outs = [found[t.name] for t in c.outputs]
        if tensor is not None and torch is not None:
            outs = [torch.as_tensor(o).to(tensor.device) for o in outs]
        else:
            outs = [o if isinstance(o, np.ndarray) else o.cpu().numpy() for o in outs]
        outs = self._turned_back(outs)
        return outs[0] if len(outs) == 1 else self._pack(*outs)

    def _free(self, sizes: MappingABC[str, int]) -> dict[str, int]:
        """The sizes of the ranks that have none of their own."""
        return {r.name: sizes[r.name] for r in self._cascade.ranks if r.size is None}

    def _bound(self, values: list[Any], given: MappingABC[str, int] | None) -> dict[str, int]:
        """The size of every rank; the errors of `bind`, and T0125 for a given size that contradicts
        it."""
        c = self._cascade
        check_sizes(given)
        shapes = (elements_shape(t, tuple(v.shape)) for t, v in zip(c.inputs, values))
        sizes = bind(c, dict(zip(self._names, map(Shaped, shapes))), given)
        fixed(c, given, sizes)
        return sizes

    # ---- the first call with new shapes

    def _plain(self, values: list[Any]) -> list[Any]:
        """The values as arrays and tensors of the exact classes and types, or the error that says
        what is wrong."""
        if self._torch is None and "torch" in sys.modules:
            torch = sys.modules["torch"]
            types = [torch_dtype(torch, stored_type(t)) for t in self._cascade.inputs]
            self._inputs = [
                (n, kind, mask) for (n, _, mask), kind in zip(self._inputs, types, strict=True)
            ]
            self._torch, self._tensor, self._parameter = torch, torch.Tensor, torch.nn.Parameter
        return [plain(v, t) for v, t in zip(values, self._cascade.inputs, strict=True)]

    def _bind(self, values: list[Any], given: MappingABC[str, int] | None) -> Plan:
        c = self._cascade
        values = self._turned(values)
        sizes = self._bound(values, given)
        torch = self._torch if any(not isinstance(v, np.ndarray) for v in values) else None
        copies, strides = [], {}
        for i, (v, t) in enumerate(zip(values, c.inputs, strict=True)):
            check_range(v, t)
            size = numpy_dtype(t).itemsize
            steps = list(v.strides) if isinstance(v, np.ndarray) else [s * size for s in v.stride()]
            steps = [s if n > 1 else size for s, n in zip(steps, v.shape)]
            if any(s % size for s in steps) or (t.packed and steps[-1] != size):
                copies.append(i)
            strides[t.name] = tuple(s // size for s in steps)
        runs = hasattr(self._kernel, "bind")
        if not runs and not hasattr(self._kernel, "run"):
            raise CompileError(
                "T0310",
                f"programs for the target `{self._target}` cannot be called here",
                helps="read `.source`, or compile for `cpu`",
            )
        if copies:
            return Plan(sizes, copies=copies)
        passed = {t.name for t in c.inputs} & {t.name for t in c.outputs}
        if not runs or passed or 0 in sizes.values():
            return Plan(sizes, torch=torch)
        every = {
            t.name: elements_shape(t, tuple(v.shape)) for t, v in zip(c.inputs, values, strict=True)
        }
        outputs = []
        for t, order in zip(c.outputs, self._out, strict=True):
            every[t.name] = tuple(evaluate_size(s, sizes) for s in t.shape)
            strides[t.name] = contiguous(every[t.name])
            dtype = t.dtype.numpy if torch is None else torch_dtype(torch, t.dtype)
            seen = inverted(order) if order is not None else range(len(t.shape))
            shape, apart = every[t.name], strides[t.name]
            outputs.append((tuple(shape[n] for n in seen), tuple(apart[n] for n in seen), dtype))
        return Plan(sizes, self._bound_kernel(every, strides, sizes), outputs, torch)

    def _bound_kernel(
        self, shapes: Any, strides: Any, sizes: dict[str, int]
    ) -> Callable[..., None]:
        from tcc.build import guarded

        with guarded(self._result) if self._result else contextlib.nullcontext():
            call: Callable[..., None] = self._choose(sizes).bind(shapes, strides, sizes)
        return call


def _read_only(array: Any) -> bool:
    """Whether an array, and what it is a view of, may not be written."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None


def _interpret(c: Cascade, arrays: dict[str, Array], sizes: dict[str, int]) -> dict[str, Array]:
    from tcc.ir.interpret import interpret

    return interpret(c, arrays, sizes)


def _no_memory(c: Cascade, sizes: MappingABC[str, int]) -> CompileError:
    given = ", ".join(f"{name}={size}" for name, size in sizes.items())
    return CompileError(
        "T0307", f"no memory for the outputs of `{c.name}` ({given})", helps="choose smaller sizes"
    )


def inverted(order: Order) -> Order:
    """The permutation that undoes `order`."""
    return tuple(order.index(n) for n in range(len(order)))


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a row-major array, in elements."""
    out, step = [], 1
    for n in reversed(shape):
        out.append(step)
        step *= max(1, n)
    return tuple(reversed(out))


def _result_type(c: Cascade) -> Any:
    from collections import namedtuple

    return namedtuple("Outputs", [t.name for t in c.outputs], rename=True)
