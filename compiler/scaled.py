"""Scaled tensors at a call: the program over their parts, and the parts of the arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tcc.coded import argument, stand_in
from tcc.ir.cascade import Cascade, Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, Scaled
from tcc.ir.dtype_scaled import Encoded
from tcc.ir.scaled_parts import checked, parts_of, split
from tcc.ir.target import Target
from tcc.stored import is_scaled

Split = Callable[[list[Any]], list[Any]]
Join = Callable[[list[Any]], list[Any]]


def taken_apart(c: Cascade, target: Target) -> tuple[Cascade, Split, Join]:
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
                arrays = [argument(checked(v, t), t)] if mine is None else split(v, t, mine)
                last[n] = v, arrays
            found += arrays
        return found

    return plain, apart, _joined(c, plain)


def _joined(c: Cascade, plain: Cascade) -> Join:
    """What makes the outputs of a program of those of its parts."""
    kept = {t.name for t in plain.outputs}
    if all(t.name in kept for t in c.outputs):
        return lambda found: found

    def join(found: list[Any]) -> list[Any]:
        values = iter(found)
        return [next(values) if t.name in kept else encoded_output(t, values) for t in c.outputs]

    return join


def encoded_output(t: Tensor, values: Iterator[Any]) -> Encoded:
    """A scaled output of its parts, which come next."""
    parts = [p.path for p in parts_of(t.dtype, t.axes, t.shape)]
    found = dict(zip(parts, values, strict=False))
    return Encoded(t.dtype, t.axes, found["codes",], {"scale": found["scale",]})


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
    kept = {t.name for t in after.outputs}
    if all(t.name in kept for t in before.outputs):
        return found
    stored = [found[t.name] if t.name in before.tensors else t.dtype.store(found[t.name]) for t in after.outputs]  # fmt: skip
    values = zip(before.outputs, _joined(before, after)(stored), strict=True)
    return {t.name: v if t.name in kept else v.decode() for t, v in values}
