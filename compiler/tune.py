"""Tuning: the best tiles by the model are measured on this machine, kernel by kernel, and what is fastest is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Mapping as MappingABC
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from tcc import pipeline
from tcc.ir.cascade import Cascade
from tcc.ir.expr import Const
from tcc.ir.infer import build as verified
from tcc.ir.mapping import Mapping
from tcc.ir.packed import elements_shape
from tcc.ir.target import Target
from tcc.passes.unscale import unscale
from tcc.samples import every_size, random_inputs, shape_of
from tcc.stored import passed
from tcc.tuned import Measured, load, save

_ROUNDS = 7
_WINDOW_S = 0.004  # of one sample

Progress = Callable[[int, int, str], None]  # done, all, best so far


@dataclass(slots=True)
class Tuned:
    """What a run of tuning did. `seconds` are those of one call, with the usual tiles and with the best ones."""

    program: str
    kernels: int
    candidates: int
    known: int  # from earlier runs
    measured: int
    changed: int
    stopped: str = ""  # why candidates are left
    seconds: tuple[float, float] = (0.0, 0.0)

    def __str__(self) -> str:
        before, after = (f"{1e3 * s:.4g} ms" for s in self.seconds)
        lines = [
            f"{self.program}: distinct kernels: {self.kernels}; candidates: {self.candidates}, "
            f"{self.known} of them known from before, {self.measured} measured now",
            f"kernels with other tiles than usual: {self.changed}; {after} a call, {before} with the usual ones",
        ]
        if self.stopped:
            lines.append(f"stopped {self.stopped}: the same command goes on from here")
        return "\n".join(lines)


def tune(
    c: Cascade,
    target: Target,
    sizes: MappingABC[str, int],
    best: int = 4,
    seconds: float = 60.0,
    progress: Progress = lambda *_: None,
) -> Tuned:
    """Measures the `best` candidates by the model of every distinct kernel of a program with these sizes, until `seconds`
    are over or Ctrl-C comes; every measurement is stored at once."""
    start = time.monotonic()
    known = every_size(c, dict(sizes))
    c = verified(replace(c, ranks=tuple(replace(r, size=Const(known[r.name])) for r in c.ranks)))
    c = unscale(c, target)
    elements = random_inputs(c, {}, np.random.default_rng(0))
    arrays = {t.name: passed(t, elements[t.name]) for t in c.inputs}
    arrays |= {t.name: np.empty(shape_of(c, t, {}), t.dtype.numpy) for t in c.outputs}
    names = [n for n in pipeline.names_for(target) if n != "map"]
    grouped = pipeline.run(c, target, pipeline.passes(names)).program
    assert isinstance(grouped, Cascade)
    usual, choices = _candidates(grouped, target)
    table = load(target)
    for key in choices:
        table.setdefault(key, Measured(usual))
    todo = [(k, t) for k, found in choices.items() for t in found[:best]]
    left = [(k, t) for k, t in todo if t not in table[k].ratios]
    report = Tuned(c.name, len(choices), len(todo), len(todo) - len(left), 0, 0)

    def tiles() -> dict[str, tuple[int, ...]]:
        return {k: m.best for k, m in table.items()}

    def call(chosen: dict[str, tuple[int, ...]]) -> Callable[[], None]:
        return _call(grouped, replace(target, tuned=chosen), arrays)

    gain = 1.0
    try:
        for key, candidate in left:
            if time.monotonic() - start > seconds:
                report.stopped = f"after {seconds:g} s"
                break
            progress(report.measured, len(left), f"best so far {gain:.3f} of the usual time")
            a, b = _times(call({**tiles(), key: usual}), call({**tiles(), key: candidate}))
            table[key].ratios[candidate] = round(b / a, 4)
            gain = min(gain, b / a)
            report.measured += 1
            save(target, table)
    except KeyboardInterrupt:
        report.stopped = "by Ctrl-C"
    report.changed = sum(table[k].best != usual for k in choices)
    report.seconds = _times(call(dict.fromkeys(choices, usual)), call(tiles()))
    return report


def _candidates(
    c: Cascade, target: Target
) -> tuple[tuple[int, ...], dict[str, list[tuple[int, ...]]]]:
    """The usual tiles, and for every distinct kernel the others, the best by the model first."""
    from tcc.passes._map_cpu import Mapper

    mapper = Mapper(c, replace(target, tuned={}))
    mapper.run()
    found = {k: x.ranked for k, x in mapper.search.known.items() if x.ranked}
    return astuple(mapper.search.usual), {k: [astuple(t) for t in r] for k, r in found.items()}


def _call(c: Cascade, target: Target, arrays: dict[str, Any]) -> Callable[[], None]:
    """A call of the program on the arrays, outputs in place."""
    from tcc.build import backend

    m = pipeline.run(c, target, pipeline.passes(["map"])).program
    assert isinstance(m, Mapping)
    program = backend(target).build(m, target)
    strides = {n: tuple(s // a.itemsize for s in a.strides) for n, a in arrays.items()}
    shapes = {n: elements_shape(c.tensors[n], a.shape) for n, a in arrays.items()}
    bound = program.bind(shapes, strides, {})
    pointers = [arrays[t.name].ctypes.data for t in program.tensors]
    return lambda: bound(pointers)


def _times(*calls: Callable[[], None]) -> tuple[float, float]:
    """The least seconds of two calls that take turns."""
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(max(1, int(_WINDOW_S / max(1e-7, time.perf_counter() - start))))
    least = [float("inf"), float("inf")]
    for _ in range(_ROUNDS):
        for n, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(repeats[n]):
                call()
            least[n] = min(least[n], (time.perf_counter() - start) / repeats[n])
    return least[0], least[1]
