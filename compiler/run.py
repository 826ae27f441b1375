"""A program run once on random inputs: how long it takes, and how far it lies from the
interpreter."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcc import samples
from tcc.build import emit
from tcc.call import Caller
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import bind
from tcc.ir.mapping import Mapping, signature
from tcc.pipeline import Result
from tcc.stored import passed


@dataclass(frozen=True, slots=True)
class Report:
    """What `tcc run` tells."""

    program: str
    target: str
    sizes: dict[str, int]
    seed: int
    seconds: float
    outputs: dict[str, str]  # name -> type and shape, with a digest of the values
    found: samples.Agreement | None

    @property
    def holds(self) -> bool:
        return self.found is None or self.found.holds

    def json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "program": self.program,
            "target": self.target,
            "sizes": self.sizes,
            "seed": self.seed,
            "seconds": self.seconds,
            "outputs": self.outputs,
        }
        if self.found is not None:
            out |= {
                "max_abs_error": _finite(self.found.max_abs_error),
                "max_rel_error": _finite(self.found.max_rel_error),
                "outside_bound": self.found.outside,
                "ok": self.holds,
            }
        return out

    def __str__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.sizes.items())
        lines = [
            f"{self.program} on {self.target}: {_time(self.seconds)}"
            + (f"  ({sizes})" if sizes else "")
        ]
        lines += [f"  {name}: {text}" for name, text in self.outputs.items()]
        if self.found is not None:
            verdict = (
                "ok" if self.holds else f"WRONG: {self.found.outside} elements beyond the bound"
            )
            lines.append(
                f"  check: {verdict}, largest error {self.found.max_abs_error:.2e} absolute, "
                f"{self.found.max_rel_error:.2e} relative"
            )
        return "\n".join(lines)


def run_program(
    program: Cascade | Mapping,
    result: Result,
    sizes: dict[str, int],
    seed: int,
    check: bool,
    repeat: int,
) -> Report:
    """Runs it on the inputs of `seed`, with a size for every rank that has none of its own."""
    face = program if isinstance(program, Cascade) else signature(program)
    _check_memory(face, sizes, interpreted=check or result.target.backend == "numpy")
    inputs = samples.random_inputs(face, sizes, np.random.default_rng(seed))
    call = Caller(face, emit(result, sizes), result)
    outputs = face.outputs
    given = {t.name: passed(t, inputs[t.name]) for t in face.inputs}

    def once() -> list[Any]:
        got = call((), dict(given), sizes)
        return [got] if len(outputs) == 1 else list(got)

    got = once()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    found = _checked(program, face, inputs, sizes, got) if check else None
    shown = {
        t.name: _shown(t.dtype.name, samples.numbers(t, a))
        for t, a in zip(outputs, got, strict=True)
    }
    return Report(face.name, result.target.name, sizes, seed, min(seconds), shown, found)


def _check_memory(c: Cascade, sizes: MappingABC[str, int], interpreted: bool) -> None:
    """T0308 when the tensors alone need more memory than the machine has; the interpreter holds
    every one in 8 bytes."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    known = bind(
        c, {t.name: samples.Shaped(samples.shape_of(c, t, sizes)) for t in c.inputs}, sizes
    )
    tensors = list(c.tensors.values()) if interpreted else [*c.inputs, *c.outputs]
    needed = 0
    for t in tensors:
        elements = 1
        for s in t.shape:
            elements *= evaluate_size(s, known)
        needed += elements * (8 if interpreted else t.dtype.itemsize)
    if needed > machine:
        raise CompileError(
            "T0308",
            f"the tensors of `{c.name}` need {needed >> 20} MiB, this machine has {machine >> 20}",
            helps="choose smaller sizes",
        )


def _checked(
    program: Cascade | Mapping,
    face: Cascade,
    inputs: dict[str, Any],
    sizes: dict[str, int],
    got: list[Any],
) -> samples.Agreement:
    """Against the interpreter of the program's own level; a mapping knows no bound, and gets 1e-4
    relative."""
    if isinstance(program, Mapping):
        from tcc.ir.mapping_interpret import interpret_mapping

        found = interpret_mapping(program, inputs, sizes)[0]
        want = {t.name: samples.numbers(t, found[t.name]) for t in program.outputs}
        bounds = {
            n: 1e-4 * np.abs(np.nan_to_num(np.asarray(v, np.float64))) + 1e-5
            for n, v in want.items()
        }
    else:
        from tcc.ir.interpret import interpret_with_bounds

        values = interpret_with_bounds(program, inputs, sizes)
        want = {n: v.data for n, v in values.items()}
        bounds = samples.bounds_of(values)
    return samples.worst(
        samples.agreement(samples.numbers(t, g), want[t.name], bounds[t.name])
        for t, g in zip(face.outputs, got, strict=True)
    )


def _shown(dtype: str, array: Any) -> str:
    text = f"{dtype}{list(array.shape)}"
    if array.size == 0:
        return f"{text}, empty"
    if array.dtype.kind == "b":
        return f"{text}, {int(array.sum())} true"
    values = array.astype(np.float64)
    with np.errstate(all="ignore"):
        return (
            f"{text}, from {np.min(values):.6g} to {np.max(values):.6g}, sum {np.sum(values):.6g}"
        )


def _finite(value: float) -> float | str:
    """JSON has no infinities."""
    return value if np.isfinite(value) else str(value)


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
