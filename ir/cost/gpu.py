"""How long a kernel takes on a GPU: the slowest of its products, its other operators, and what blocks move.

Blocks read and write through the shared cache what the interpreter counts at `memory`; from memory itself comes each
tensor once where that cache holds it, else as often as blocks ask. A last wave that does not fill the
device takes as long as a full one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping as MappingABC
from collections.abc import Sequence

from tcc.ir.cascade import Tensor
from tcc.ir.cost.tiles import Site
from tcc.ir.index import evaluate_size
from tcc.ir.mapping import Loop
from tcc.ir.target import Target


def blocks_of(found: Sequence[Site]) -> int:
    """How many blocks a kernel has."""
    if not found:
        return 1
    s, n = found[0], 1
    for v in dict.fromkeys(x.var for x in s.path if isinstance(x, Loop) and x.on is not None):
        step = next(
            x.step for x in s.path if isinstance(x, Loop) and x.var == v and x.on is not None
        )
        n *= max(1, -(-s.extents[v] // step))
    return n


def kernel_time(
    found: Sequence[Site],
    target: Target,
    tensors: MappingABC[str, Tensor],
    sizes: MappingABC[str, int],
    reads: MappingABC[tuple[str, str], int],
    writes: MappingABC[tuple[str, str], int],
    blocks: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Busy seconds and bytes moved, per unit and level."""
    busy: dict[str, float] = {}
    at_once = max(
        (target.resource(r.name).count for r in target.resources if r.name == "block"), default=0
    )
    wave = at_once * -(-blocks // at_once) / blocks if at_once else 1.0
    for s in found:
        e = s.do.einsum
        t = tensors[e.target].dtype
        points = s.swept(s.facts.names)
        for op, n in s.facts.work.items():
            product = op == "mul_add" and target.parameter("tf32", 0) and t.name == "f32"
            rate = (target.rate(op, "tf32") if product else 0.0) or target.rate(op, t.name)
            rate = rate or target.rate("mul_add", t.name) / 16  # by the special units
            if rate:
                busy["operators"] = busy.get("operators", 0.0) + points * n / (rate * 1e9) * wave
    asked = once = 0.0
    for table in (reads, writes):
        for (at, name), n in table.items():
            if at == "memory":
                size = tensors[name].dtype.itemsize
                whole = math.prod(evaluate_size(x, sizes) for x in tensors[name].shape)
                asked += n * size
                once += min(n, whole) * size
    memory, cache = target.levels[0], next((x for x in target.levels[1:] if x.name != "reg"), None)
    moved = {"memory": asked}
    if cache is not None and cache.bytes:
        held = min(1.0, cache.bytes / once) if once else 1.0
        moved = {"memory": once + (asked - once) * (1 - held), cache.name: asked}
        if cache.bandwidth_gbps:
            busy[cache.name] = asked / (cache.bandwidth_gbps * 1e9)
    if memory.bandwidth_gbps:
        busy["memory"] = moved["memory"] / (memory.bandwidth_gbps * 1e9)
    return busy, moved
