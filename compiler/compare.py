"""Whether two programs of either level mean the same, asked of their interpreters on random small
inputs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping as MappingABC
from typing import Any

import numpy as np

from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.interpret import ExternCall, interpret_with_bounds
from tcc.ir.mapping import Mapping, signature
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.scaled_parts import rank_groups
from tcc.samples import agreement, all_sizes, numbers, random_inputs
from tcc.scaled import scaled_outputs, unscaled_inputs

_ROUNDS = ((3, 5, 2, 7, 4), (1,), (9, 6, 17))  # sizes that the ranks take in turn

Results = tuple[dict[str, Any], dict[str, Any]]  # values and error bounds, by output


def same_meaning(
    before: Cascade | Mapping, after: Cascade | Mapping, extern: ExternCall | None = None
) -> str:
    """Empty, or one sentence on the first input at which the programs differ by more than rounding
    can; of joints that are new, also on one that does not walk as its definitions say."""
    face = before if isinstance(before, Cascade) else signature(before)
    ranks = [r.name for r in face.ranks if r.size is None]
    groups = rank_groups((*face.inputs, *face.outputs))
    for n, turns in enumerate(_ROUNDS[: 3 if ranks else 1]):
        sizes = {r: n * groups.get(r, 1) for r, n in zip(ranks, itertools.cycle(turns))}
        try:
            all_sizes(face, sizes, 1)
            inputs = random_inputs(face, sizes, np.random.default_rng(n))
        except CompileError:
            continue  # the program, or a group of its types, does not allow these sizes
        try:
            want, bounds = _interpreted(before, inputs, sizes, extern)
        except CompileError as error:
            if error.diagnostic.code != "T0147":
                raise
            continue  # nor does a group of an output
        if isinstance(before, Cascade) and isinstance(after, Cascade):
            inputs = unscaled_inputs(before, after, inputs)
        got, more = _interpreted(after, inputs, sizes, extern)
        if isinstance(before, Cascade) and isinstance(after, Cascade):
            got = scaled_outputs(before, after, got)
        for name, value in want.items():
            bound = sum(b[name] for b in (bounds, more) if name in b)
            if (
                not bounds and not more
            ):  # two mappings: nothing knows a bound, float64 differs by little
                bound = 1e-5 * np.abs(np.nan_to_num(value)) + 1e-6
            found = agreement(got[name], value, bound)
            if not found.holds:
                given = ", ".join(f"{r}={s}" for r, s in sizes.items())
                at = f"[{', '.join(map(str, found.first_outside))}]" if found.first_outside else ""
                return (
                    f"`{name}{at}` is {_at(got[name], found.first_outside)}, before it was "
                    f"{_at(value, found.first_outside)} (sizes {given or 'as declared'}, seed {n})"
                )
    return _walks(before, after, extern)


def _walks(before: Cascade | Mapping, after: Cascade | Mapping, extern: ExternCall | None) -> str:
    if not isinstance(after, Cascade) or not after.joints:
        return ""
    from tcc.ir.joint import check_body

    known = {str(j) for j in before.joints} if isinstance(before, Cascade) else set()
    for joint in after.joints:
        if str(joint) not in known:
            try:
                check_body(after, joint, extern)
            except CompileError as error:
                return error.diagnostic.message
    return ""


def _interpreted(
    program: Cascade | Mapping,
    inputs: MappingABC[str, Any],
    sizes: MappingABC[str, int],
    extern: ExternCall | None,
) -> Results:
    known = {r.name for r in program.ranks if r.size is None}
    sizes = {name: size for name, size in sizes.items() if name in known}
    if isinstance(program, Mapping):
        found = interpret_mapping(program, inputs, sizes, extern=extern)[0]
        return {t.name: numbers(t, found[t.name]) for t in program.outputs}, {}
    values = interpret_with_bounds(program, inputs, sizes, extern)
    return {n: v.data for n, v in values.items()}, {n: v.error for n, v in values.items()}


def _at(value: Any, index: tuple[int, ...] | None) -> Any:
    return value[index] if index is not None and np.ndim(value) else value
