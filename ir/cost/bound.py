"""What no mapping of the same program can beat: every input read and every output written once, every multiply-add made.

A product of matrices moves at least 2·M·N·K/√S - 2·S elements into a level that holds S of them, in
any order (Hong and Kung; the constant of Smith et al.); Orojenesis draws this bound over S.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from collections.abc import Mapping as MappingABC

import numpy as np

from tcc.ir.cascade import Tensor
from tcc.ir.cost.tiles import Site, evaluate
from tcc.ir.expr import Access, Call, Expr, Var, accesses, text, variables
from tcc.ir.index import evaluate_size
from tcc.ir.target import Level, Target
from tcc.ir.work import is_move

POINTS = 1 << 18  # a predicate over more points than this is counted on a coarser grid


def lower_bound(
    kernels: Sequence[Sequence[Site]],
    outside: Collection[str],
    target: Target,
    tensors: MappingABC[str, Tensor],
    sizes: MappingABC[str, int],
    cores: int = 1,
) -> tuple[float, str]:
    """Seconds that the definitions of some kernels take at least, and why; `outside` names their inputs and results.

    A point that a predicate excludes costs nothing, and none is computed twice.
    """
    touched: set[str] = set()
    box: dict[tuple[str, str], float] = {}  # points of a definition; of its variants the fewest
    done: dict[tuple[str, str], float] = {}  # points that the mapping computes
    of: dict[tuple[str, str], Site] = {}
    for s in (s for found in kernels for s in found):
        e = s.do.einsum
        every = () if e.where or s.guard is not None else s.facts.reads
        read = {a.tensor for a in every if _whole(a, tensors, s.extents, sizes)}
        touched |= {e.target, *read} & set(outside)
        if is_move(e):
            continue
        key = e.target, text(e.body)
        points = float(math.prod(s.extents[v] for v in s.facts.names))
        points *= _share(e.where, s.extents, sizes) if e.where else 1.0
        box[key] = min(box.get(key, points), points)
        done[key] = done.get(key, 0) + s.swept(s.facts.names)
        of[key] = s
    traffic = sum(_bytes(tensors[name], sizes) for name in touched)
    holding = _holding(target, traffic)
    speed = max(holding.gbps(cores), holding.gbps(cores, "write"))
    found_ = [(traffic / (speed * 1e9), f"{holding.name}: every input and output once")]
    busy = 0.0
    for key, s in of.items():
        points = min(box[key], done[key])
        t = tensors[s.do.einsum.target].dtype
        for op, n in s.facts.work.items():
            rate = _peak(target, op, t.name)
            busy += points * n / (rate * 1e9) / cores if rate else 0.0
        found_ += _products(s, points, target, t.itemsize, cores)
    found_.append((busy, "operators at their peak rates"))
    return max(found_)


def _peak(target: Target, op: str, dtype: str) -> float:
    """10^9 evaluations per second at best: a register tile may beat what was measured as the peak."""
    tiles = [x.gflops / 2 for x in target.tiles if x.dtype == dtype] if op == "mul_add" else []
    return max([target.rate(op, dtype), *tiles])


def _whole(
    a: Access,
    tensors: MappingABC[str, Tensor],
    extents: MappingABC[str, int],
    sizes: MappingABC[str, int],
) -> bool:
    """Whether an access surely names every element: each index is a variable of its own that runs over its dimension."""
    if len(set(variables(*a.indices))) < len(a.indices):
        return False
    return all(
        isinstance(i, Var) and extents[i.name] >= evaluate_size(n, sizes)
        for i, n in zip(a.indices, tensors[a.tensor].shape, strict=True)
    )


def _bytes(t: Tensor, sizes: MappingABC[str, int]) -> int:
    return math.prod(evaluate_size(n, sizes) for n in t.shape) * t.bits // 8


def _holding(target: Target, size: float) -> Level:
    """The innermost shared level that all of it fits: where a warm program finds it."""
    for level in reversed(target.levels[1:]):
        if level.bytes >= size and level.name != "reg" and level.bandwidth_gbps:
            return level
    return target.levels[0]


def _share(
    where: tuple[Expr, ...], extents: MappingABC[str, int], sizes: MappingABC[str, int]
) -> float:
    """The share of the points at which predicates over variables hold; those that read tensors may hold anywhere."""
    known = [p for p in where if not accesses(p)]
    names = variables(*known)
    if not known or not names:
        return 1.0
    stride = 1
    while math.prod(-(-extents[v] // stride) for v in names) > POINTS:
        stride *= 2
    grid = {}
    for n, v in enumerate(names):
        view = [1] * len(names)
        view[n] = -1
        grid[v] = np.arange(stride // 2, extents[v], stride).reshape(view)
    held = np.ones([1] * len(names), bool)
    for p in known:
        held = held & np.asarray(evaluate(p, grid, sizes), bool)
    full = [len(x.ravel()) for x in grid.values()]
    return float(np.broadcast_to(held, full).mean()) if 0 not in full else 0.0


def _products(
    s: Site, points: float, target: Target, itemsize: int, cores: int
) -> list[tuple[float, str]]:
    """The bounds of a product of two matrices at each level."""
    e, reduced = s.do.einsum, set(s.facts.reduced)
    if not (isinstance(e.body, Call) and e.body.op == "mul" and reduced and not e.where):
        return []
    parts = [a for a in e.body.args if isinstance(a, Access)]
    if len(parts) != 2:
        return []
    if not all(isinstance(i, Var) for a in parts for i in a.indices) or not all(
        isinstance(i, Var) for i in e.indices
    ):
        return []
    a, b = (set(variables(*x.indices)) for x in parts)
    if not (a - b - reduced) or not (b - a - reduced):
        return []
    out = []
    for outer, level in zip(target.levels, target.levels[1:], strict=False):
        held = level.bytes / itemsize
        if held and level.name != "reg" and outer.bandwidth_gbps:
            elements = 2 * points / math.sqrt(held) - 2 * held
            seconds = max(0.0, elements) * itemsize / (outer.gbps(cores) * 1e9)
            out.append(
                (seconds, f"{outer.name}: products in a {level.name} of {level.bytes} bytes")
            )
    return out
