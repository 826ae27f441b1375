"""Scaled tensors at a call: the program over their parts, and the parts of the arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tcc.coded import argument, stand_in
from tcc.ir.cascade import Cascade, Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, DType, Scaled
from tcc.ir.dtype_coded import encode_codes
from tcc.ir.dtype_scaled import Encoded, group_sizes, inner_type, part_shapes
from tcc.ir.scaled_parts import checked, parts_of, split
from tcc.ir.target import Target
from tcc.passes._scaled_outputs import is_value
from tcc.stored import check_form, is_scaled, to_numpy

Split = Callable[[list[Any]], list[Any]]
Join = Callable[[list[Any]], list[Any]]


def taken_apart(c: Cascade, target: Target) -> tuple[Cascade, Split, Join | None]:
    """The program as `unscale` leaves it, and what turns its arguments into those of that program; in C, coded inputs are
    arguments of their own.

    T0302 for scaled tensors that stay: outputs of some types, and what functions of PyTorch read.
    """
    from tcc.passes.unscale import unscale

    plain = unscale(c, target)
    ours = (
        {t.name for t in plain.inputs if isinstance(t.dtype.form, Coded)}
        if target.backend == "c"
        else set()
    )
    for t in (*plain.inputs, *plain.outputs):
        if is_scaled(t) and (t.name not in ours or t in plain.outputs):
            raise CompileError("T0302", f"the {target.backend} backend has no {t.dtype} tensors yet: `{t.name}`", t.span,
                               helps="pass codes and scales as tensors of their own, or use the numpy target")  # fmt: skip
    stand = tuple(stand_in(t) if t.name in ours else t for t in plain.inputs)
    plain = replace(plain, inputs=stand, tensors={**plain.tensors, **{t.name: t for t in stand}})
    parts = [
        parts_of(t.dtype, t.axes, t.shape) if isinstance(t.dtype.form, Scaled) else None
        for t in c.inputs
    ]
    # weights are the same in most calls
    last: list[tuple[Any, list[Any]]] = [(None, [])] * len(parts)

    def apart(values: list[Any]) -> list[Any]:
        found: list[Any] = []
        for n, (v, t, mine) in enumerate(zip(values, c.inputs, parts, strict=True)):
            if mine is None and t.name not in ours:
                found.append(v)
                continue
            known, arrays = last[n]
            if known is not v:
                check_form(v, t)
                arrays = [argument(checked(v, t), t)] if mine is None else split(v, t, mine)
                last[n] = v, arrays
            found += arrays
        return found

    return plain, apart, _joined(c, plain)


def _joined(c: Cascade, plain: Cascade) -> Join | None:
    """What makes the outputs of a program of those of its parts; None where they are the same."""
    kept = {t.name for t in plain.outputs}
    if all(t.name in kept for t in c.outputs):
        return None

    ours = {t.name for t in c.outputs}

    def join(found: list[Any]) -> list[Any]:
        known = zip(plain.outputs, found, strict=True)
        values = iter([v for t, v in known if t.name in ours or not is_value(t)])
        return [next(values) if t.name in kept else encoded_output(t, values) for t in c.outputs]

    return join


def encoded_output(t: Tensor, values: Iterator[Any]) -> Encoded:
    """A scaled output of its parts, which come next; a coded one of its elements."""
    if isinstance(t.dtype.form, Coded):
        return _coded(t, next(values))
    found = {p.path: next(values) for p in parts_of(t.dtype, t.axes, t.shape)}

    def whole(of: DType, path: tuple[str, ...], shape: tuple[int, ...]) -> Encoded:
        wanted = part_shapes(of, t.axes, shape)
        parts: dict[str, Any] = {}
        for name, (entries, kind) in wanted.items():
            if isinstance(kind.form, Scaled):
                inner = inner_type(kind, group_sizes(of, t.axes, shape), t.axes)
                parts[name] = whole(inner, (*path, name), entries)
            else:
                parts[name] = _cut(found[(*path, name)], entries)
        return Encoded(of, t.axes, _cut(found[(*path, "codes")], shape), parts)

    return whole(t.dtype, (), tuple(np.shape(found["codes",])))


def _cut(part: Any, shape: tuple[int, ...]) -> Any:
    """A part as a tensor of this shape has it: without groups, where there is no element."""
    return part[tuple(slice(n) for n in shape)] if 0 in shape else part


def _coded(t: Tensor, elements: Any) -> Encoded:
    """Elements as a caller gets them (NumPy's or torch's), coded; parts are of the same kind."""
    if isinstance(elements, np.ndarray):
        return encode_codes(elements, t.dtype, t.axes)
    import torch

    assert isinstance(t.dtype.form, Coded)
    plain = replace(t, dtype=t.dtype.form.element)
    found = encode_codes(to_numpy(elements, plain), t.dtype, t.axes)
    parts = {n: torch.from_numpy(p) for n, p in found.parts.items()}
    return Encoded(found.dtype, found.axes, torch.from_numpy(found.codes), parts)


def unscaled_inputs(before: Cascade, after: Cascade, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a program as its successor takes them: by parts, if `unscale` ran between the two."""
    there = {t.name for t in after.inputs}
    found = dict(inputs)
    names = iter(t.name for t in after.inputs)
    for t in before.inputs:
        if t.name in there:
            next(names)
            continue
        if not is_scaled(t):
            continue
        mine = parts_of(t.dtype, t.axes, t.shape)
        del found[t.name]
        found |= zip((next(names) for _ in mine), split(inputs[t.name], t, mine), strict=False)
    return found


def scaled_outputs(before: Cascade, after: Cascade, found: dict[str, Any]) -> dict[str, Any]:
    """The values of a program's outputs as its predecessor has them: scaled ones whole, if `unscale` ran between the two."""
    kept, join = {t.name for t in after.outputs}, _joined(before, after)
    if join is None:
        return found
    stored = [found[t.name] if t.name in before.tensors else t.dtype.store(found[t.name]) for t in after.outputs]  # fmt: skip
    values = zip(before.outputs, join(stored), strict=True)
    return {t.name: v if t.name in kept else v.decode() for t, v in values}
