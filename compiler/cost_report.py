"""Predicted times, traffic and bounds of a mapping, as a short table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from typing import TYPE_CHECKING, Any

from tcc.ir.diagnostics import CompileError
from tcc.ir.mapping import Mapping
from tcc.ir.target import Target

if TYPE_CHECKING:
    from tcc.ir.cost import Cost, KernelCost


def predicted(
    m: Mapping, target: Target, sizes: MappingABC[str, int], cores: int = 1
) -> Cost | None:
    """The cost of a mapping; None where a rank has no size yet, or the model has no answer."""
    from tcc.ir.cost import cost

    try:
        return cost(m, target, sizes, cores=cores)
    except CompileError as error:
        if error.diagnostic.code in ("T0126", "T0342", "T0343"):
            return None
        raise


def cost_lines(c: Cost) -> list[str]:
    """The prediction for people: a line for the program, one for each kernel."""
    sizes = ", ".join(f"{k}={n}" for k, n in c.sizes.items())
    levels = list(dict.fromkeys(level for k in c.kernels for level in k.moved))
    lines = [
        f"predicted on {c.target}{f' with {sizes}' if sizes else ''}: {_time(c.seconds)} a call, "
        f"no mapping under {_time(c.lower_s)} ({c.lower_by})",
        f"  peak memory {_bytes(c.peak_bytes)}"
        + (f", prepared once in {_time(c.prepare_s)}" if c.prepare_s else "")
        + (f", energy {c.energy_pj / 1e6:.4g} uJ" if c.energy_pj else ""),
    ]
    head = ["kernel", "time", "at least", "bound", "tasks", *(f"{x} moves" for x in levels)]
    rows = [
        [
            k.name + (" (once)" if k.prepare else ""),
            _time(k.seconds),
            _time(k.lower_s),
            k.bound,
            str(k.tasks),
            *(_bytes(k.moved.get(x, 0)) for x in levels),
        ]
        for k in c.kernels
    ]
    widths = [max(len(r[n]) for r in [head, *rows]) for n in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    guessed = [
        f"{k.name}: {t}" for k in c.kernels for t, how in k.how.items() if how == "estimated"
    ]
    if guessed:
        lines.append(f"  accesses that depend on data, at most: {', '.join(guessed)}")
    return [*lines, *(f"  note: {n}" for n in c.notes)]


def cost_json(c: Cost) -> dict[str, Any]:
    """The prediction for programs; times in seconds, sizes in bytes, accesses in elements."""
    return {
        "target": c.target,
        "sizes": c.sizes,
        "seconds": c.seconds,
        "prepare_seconds": c.prepare_s,
        "lower_bound_seconds": c.lower_s,
        "lower_bound_by": c.lower_by,
        "bound": c.bound,
        "launches": c.launches,
        "peak_bytes": c.peak_bytes,
        "energy_pj": c.energy_pj,
        "kernels": [_kernel_json(k) for k in c.kernels],
        "notes": list(c.notes),
    }


def _kernel_json(k: KernelCost) -> dict[str, Any]:
    keys = sorted({*k.reads, *k.writes})
    return {
        "name": k.name,
        "prepare": k.prepare,
        "seconds": k.seconds,
        "lower_bound_seconds": k.lower_s,
        "lower_bound_by": k.lower_by,
        "bound": k.bound,
        "busy_seconds": k.busy,
        "tasks": k.tasks,
        "cores": k.cores,
        "flops": k.flops,
        "moved_bytes": k.moved,
        "scratch_bytes": k.scratch,
        "energy_pj": k.energy_pj,
        "accesses": [
            {
                "level": at,
                "tensor": name,
                "reads": k.reads.get((at, name), 0),
                "writes": k.writes.get((at, name), 0),
                "counted": k.how.get(name, "closed"),
            }
            for at, name in keys
        ],
    }


def _time(seconds: float) -> str:
    return _scaled(seconds, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)))


def _bytes(n: float) -> str:
    return _scaled(n, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)))


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """The value in the largest unit of which there is one, else in the smallest."""
    unit, scale = next((u for u in units if value >= u[1]), units[-1])
    return f"{value / scale:.3g} {unit}"
