"""Several callables are timed in one process, taking turns in random order.

Neighbours of a shared machine disturb all callables of a round alike; a ratio of two callables from
the same run means more than either of their times.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call over all samples of one callable, by the wall and by the CPU clock."""

    threads: int
    samples: int
    calls_per_sample: int
    wall_best_ms: float
    wall_p10_ms: float
    wall_median_ms: float
    cpu_p10_ms: float

    @property
    def ms(self) -> float:
        """The time to compare: what the callable costs when nobody disturbs it.

        One thread: the lesser 10th percentile of both clocks, as CPU time leaves out preemption.
        More threads: the least wall time, as a parallel loop waits for whichever thread was
        preempted, and CPU time counts spinning.
        """
        return min(self.wall_p10_ms, self.cpu_p10_ms) if self.threads == 1 else self.wall_best_ms

    def to_json(self) -> dict[str, Any]:
        return {"ms": self.ms, **asdict(self)}


def measure(
    calls: Mapping[str, Call],
    *,
    threads: int,
    rounds: int = 9,
    window_s: float = 0.03,
    budget_s: float = 20.0,
    sample_s: float = 0.0005,
    seed: int = 0,
) -> dict[str, Timing]:
    """Times every callable for `window_s` in each of `rounds` rounds, in a new random order each.

    A sample is as many calls as last `sample_s`, so that reading the clocks does not count. Stops
    early, after three rounds or more, when `budget_s` is spent.
    """
    order, generator = list(calls), random.Random(seed)
    repeats, turns = {}, {}
    for name, call in calls.items():
        call()
        seconds = min(_seconds(call), _seconds(call))
        repeats[name] = max(1, math.ceil(sample_s / max(seconds, 1e-7)))
        turns[name] = max(1, int(window_s / max(seconds * repeats[name], 1e-7)))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    begun = time.perf_counter()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= 3 and time.perf_counter() - begun > budget_s:
                break
            generator.shuffle(order)
            for name in order:
                time.sleep(0.004)  # threads of the last pool stop spinning
                calls[name]()  # caches forget the last callable's data
                for _ in range(turns[name]):
                    samples[name].append(_sample(calls[name], repeats[name]))
    finally:
        if was_enabled:
            gc.enable()
    return {name: _timing(samples[name], repeats[name], threads) for name in calls}


def max_error(result: Any, exact: Any) -> float:
    """The largest absolute difference over the largest magnitude; infinite for another shape."""
    got, want = np.asarray(result, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    if got.shape != want.shape:
        return math.inf
    if not got.size:
        return 0.0
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-300))


def table(header: list[str], rows: list[list[str]], *, markdown: bool = False) -> str:
    """The first column is aligned to the left, all others to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def text(line: list[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells = [line[0].ljust(widths[0]), *padded[1:]]
        return f"| {' | '.join(cells)} |" if markdown else "  ".join(cells)

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [header, *([rule] if markdown else []), *rows]
    return "\n".join(text(line) for line in lines)


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _sample(call: Call, repeats: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 1e3 * wall / repeats, 1e3 * cpu / repeats


def _timing(samples: list[tuple[float, float]], repeats: int, threads: int) -> Timing:
    wall, cpu = np.array(samples).T
    return Timing(
        threads=threads,
        samples=len(samples),
        calls_per_sample=repeats,
        wall_best_ms=float(wall.min()),
        wall_p10_ms=float(np.quantile(wall, 0.1)),
        wall_median_ms=float(np.median(wall)),
        cpu_p10_ms=float(np.quantile(cpu, 0.1)),
    )
