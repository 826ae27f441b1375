"""What a caller passes: inputs by place and name, sizes, arrays and tensors of exactly the declared types."""

from __future__ import annotations

import sys
from collections.abc import Mapping as MappingABC
from typing import Any, NoReturn

import numpy as np

from tcc.ir.cascade import Cascade, Tensor
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.dtype import from_numpy
from tcc.ir.dtype_codes import integer_range
from tcc.stored import check_form, coded, is_scaled, numpy_dtype, stored_type, to_numpy, torch_dtype

Array = Any


def arrange(c: Cascade, args: tuple[Any, ...], kwargs: MappingABC[str, Any]) -> list[Any]:
    """The arguments in the order of the inputs; T0127 names what is missing, unknown or given
    twice."""
    names = [t.name for t in c.inputs]
    listed = "; ".join(str(t) for t in c.inputs) or "none"
    if len(args) > len(names):
        raise CompileError(
            "T0127",
            f"`{c.name}` takes {len(names)} inputs, but {len(args)} are given",
            helps=f"its inputs: {listed}",
        )
    given = dict(zip(names, args))
    for name, value in kwargs.items():
        if name in given:
            raise CompileError(
                "T0127", f"input `{name}` is given twice", helps="give it by place or by name"
            )
        if name not in names:
            ranks = [r.name for r in c.ranks]
            helps = did_you_mean(name, names) or (f"its inputs: {listed}",)
            if name in ranks:
                helps = (f'give the size of a rank as `sizes={{"{name}": …}}`',)
            raise CompileError("T0127", f"`{c.name}` has no input `{name}`", helps=helps)
        given[name] = value
    for t in c.inputs:
        if t.name not in given:
            raise CompileError("T0127", f"input `{t.name}` is missing", t.span, helps=f"pass `{t}`")
    return [given[name] for name in names]


def check_sizes(sizes: MappingABC[str, int] | None) -> None:
    """Sizes are integers by rank name; T0126 otherwise."""
    for name, value in (sizes or {}).items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise CompileError(
                "T0126",
                f"the size of rank `{name}` is `{value!r}`",
                helps="sizes are integers, 0 or more",
            )


def fixed(c: Cascade, given: MappingABC[str, int] | None, sizes: MappingABC[str, int]) -> None:
    """T0125 when a given size contradicts the one that a declaration or an input fixes."""
    for name, value in (given or {}).items():
        if sizes[name] != value:
            rank = c.rank(name)
            raise CompileError(
                "T0125",
                f"rank `{name}` has size {sizes[name]}, not {value}",
                rank.span if rank else None,
                helps="its size is fixed by its declaration",
            )


def plain(value: Any, t: Tensor, on_gpu: bool = False) -> Any:
    """`value` as an ndarray or a torch tensor on the CPU, of exactly the declared type; T0142 when
    it is neither."""
    if is_scaled(t):
        check_form(value, t)
        return value  # the interpreter says what is wrong with it
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _plain_tensor(torch, value, t, on_gpu)
    if isinstance(value, np.ma.MaskedArray):
        raise _refused(t, "a masked array", "pass its `.data`, and the mask as a tensor of its own")
    if isinstance(value, (np.ndarray, np.generic)):
        array = coded(np.asarray(value), t)
        if array.dtype != numpy_dtype(t):
            found = from_numpy(array.dtype)
            _wrong_type(
                t, str(found or array.dtype), f"`{t.name}.astype(np.{numpy_dtype(t).name})`"
            )
        if not array.dtype.isnative or not array.flags.aligned or array.dtype is not numpy_dtype(t):
            array = np.array(array, dtype=numpy_dtype(t), copy=True, order="C")
        return array.view(np.ndarray)
    if isinstance(value, (bool, int, float)) and not t.shape:
        return _scalar(value, t)
    if value is None or isinstance(value, (list, tuple, int, float, bool)):
        kind = "None" if value is None else f"a {type(value).__name__}"
        raise _refused(t, kind, f"pass an array: `np.asarray(…, dtype=np.{numpy_dtype(t).name})`")
    raise _refused(
        t,
        f"a {type(value).__module__}.{type(value).__name__}",
        "pass a NumPy array or a torch tensor on the CPU",
    )


def _plain_tensor(torch: Any, value: Any, t: Tensor, on_gpu: bool) -> Any:
    wanted = torch_dtype(torch, stored_type(t))
    if value.layout is not torch.strided or value.is_nested:
        raise _refused(t, f"a tensor with layout {value.layout}", "pass `.to_dense()` of it")
    if value.device.type != "cpu" and not (on_gpu and value.device.type == "cuda"):
        raise _refused(t, f"on the device `{value.device}`", "pass `.cpu()` of it")
    of_codes = getattr(torch, stored_type(t).numpy.name, None)
    if value.dtype is not wanted and value.dtype is of_codes and not t.dtype.native:
        value = value.view(wanted)  # codes are as good as the type that torch has for their values
    if value.dtype is not wanted:
        shown = str(value.dtype).removeprefix("torch.")
        cast = str(wanted).removeprefix("torch.")
        known = from_numpy(np.dtype(shown)) if shown in np.sctypeDict else None
        _wrong_type(t, str(known or shown), f"`{t.name}.to(torch.{cast})`")
    if value.requires_grad and torch.is_grad_enabled():
        raise _refused(
            t,
            "a tensor that requires grad, and cascades have no gradients yet",
            f"pass `{t.name}.detach()`, or call inside `torch.no_grad()`",
        )
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise _refused(t, f"a {type(value).__name__}", "pass a plain torch tensor")
    value = value.detach().resolve_neg()
    try:
        pointer = value.data_ptr()
    except RuntimeError:
        raise _refused(
            t, "a tensor without storage", "call the program outside of `vmap` and the like"
        ) from None
    return value.clone() if pointer % numpy_dtype(t).itemsize else value


def check_range(value: Any, t: Tensor) -> None:
    """T0148 for codes, or integers of a width that NumPy lacks, that the declared type does not have. It looks at all elements."""
    if t.dtype.native or t.packed or t.dtype.in_parts or t.dtype.bits == 8 * t.dtype.itemsize:
        return
    if 0 in value.shape:
        return
    low, high = integer_range(t.dtype) if t.dtype.is_integer else (0, 2**t.dtype.bits - 1)
    codes = value if t.dtype.is_integer or isinstance(value, np.ndarray) else to_numpy(value, t)
    for found in (int(codes.min()), int(codes.max())):
        if not low <= found <= high:
            what = "values" if t.dtype.is_integer else "codes"
            raise CompileError("T0148", f"`{t.name}` has an element {found}, but {t.dtype} has {what} from {low} to {high}",
                               t.span, helps=f"encode values: `tcc.dtypes.encode(x, \"{t.dtype}\")`")  # fmt: skip


def _scalar(value: bool | int | float, t: Tensor) -> Array:
    """A Python number for a tensor without ranks, when its type holds every number of that kind."""
    kind = "b" if isinstance(value, bool) else "i" if isinstance(value, int) else "f"
    fits = {"b": "b", "i": "iuf", "f": "f"}[kind]
    if t.dtype.kind not in fits:
        _wrong_type(t, type(value).__name__, f"`{t.dtype.numpy.name}`")
    try:
        return np.array(value, t.dtype.numpy)
    except OverflowError:
        raise _refused(
            t, f"the number {value}, which {t.dtype} does not hold", "pass a smaller number"
        ) from None


def _wrong_type(t: Tensor, found: str, cast: str) -> NoReturn:
    raise CompileError(
        "T0142",
        f"`{t.name}` is {found}, but is declared as `{t}`",
        t.span,
        helps=f"cast it, as in {cast}, or declare it as {found}",
    )


def _refused(t: Tensor, what: str, advice: str) -> CompileError:
    return CompileError("T0142", f"`{t.name}` is {what}", t.span, helps=advice)
