"""What no mapping of the same program can beat: every input read and every output written once, every multiply-add made.

A product of matrices moves at least 2·M·N·K/√S - 2·S elements into a level that holds S of them, in
any order (Hong and Kung; the constant of Smith et al.); Orojenesis draws this bound over S.
"""

from __future__ import annotations

import math
from collections.abc import Mapping as MappingABC

import numpy as np

from tcc.ir.cascade import Einsum, Tensor
from tcc.ir.cost.tiles import evaluate
from tcc.ir.expr import Access, Call, Expr, Var, accesses, text, variables
from tcc.ir.index import evaluate_size
from tcc.ir.mapping import Kernel, Mapping, leaves
from tcc.ir.target import Level, Target
from tcc.ir.work import is_move, point_operations

POINTS = 1 << 18  # a predicate over more points than this is counted on a coarser grid


def lower_bound(
    m: Mapping,
    target: Target,
    tensors: MappingABC[str, Tensor],
    sizes: MappingABC[str, int],
    cores: int = 1,
    kernel: Kernel | None = None,
) -> tuple[float, str]:
    """Seconds that a program takes at least, and why; of one kernel, where one is given.

    `prepare` kernels count only when asked for: their results are kept between calls.
    """
    kernels = [k for k in m.kernels if isinstance(k, Kernel) and (k is kernel or not k.prepare)]
    outside = {t.name for t in (*m.inputs, *m.outputs)}
    if kernel is not None:
        kernels = [kernel]
        outside |= {b.name for b in m.memory}
    touched: set[str] = set()
    work: dict[tuple[str, str], tuple[float, Einsum]] = {}
    for k in kernels:
        extents = {v: evaluate_size(e, sizes) for v, e in k.variables}
        for do in leaves(k.body):
            e = do.einsum
            touched |= {e.target, *(a.tensor for a in e.reads if _whole(a, tensors, extents, sizes))} & outside
            if not is_move(e) and (e.target, text(e.body)) not in work:
                share = _share(e.where, extents, sizes) if e.where else 1.0
                names = dict.fromkeys((*e.free, *e.reduced))
                work[e.target, text(e.body)] = (share * math.prod(extents[v] for v in names), e)
    traffic = sum(_bytes(tensors[name], sizes) for name in touched)
    holding = _holding(target, traffic)
    found = [(traffic / (holding.gbps(cores) * 1e9), f"{holding.name}: every input and output once")]
    busy = 0.0
    for points, e in work.values():
        t = tensors[e.target].dtype
        for op, n in point_operations(e).items():
            rate = target.rate(op, t.name)
            busy += points * n / (rate * 1e9) / cores if rate else 0.0
        found += _products(e, points, target, t.itemsize, cores)
    found.append((busy, "operators at their peak rates"))
    return max(found)


def _whole(
    a: Access,
    tensors: MappingABC[str, Tensor],
    extents: MappingABC[str, int],
    sizes: MappingABC[str, int],
) -> bool:
    """Whether an access surely names every element: each index is a variable that runs over its dimension."""
    return all(
        isinstance(i, Var) and extents[i.name] >= evaluate_size(n, sizes)
        for i, n in zip(a.indices, tensors[a.tensor].shape, strict=True)
    )


def _bytes(t: Tensor, sizes: MappingABC[str, int]) -> int:
    return math.prod(evaluate_size(n, sizes) for n in t.shape) * t.dtype.itemsize


def _holding(target: Target, size: float) -> Level:
    """The innermost shared level that all of it fits: where a warm program finds it."""
    for level in reversed(target.levels[1:]):
        if level.bytes >= size and level.name != "reg" and level.bandwidth_gbps:
            return level
    return target.levels[0]


def _share(where: tuple[Expr, ...], extents: MappingABC[str, int], sizes: MappingABC[str, int]) -> float:
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
    e: Einsum, points: float, target: Target, itemsize: int, cores: int
) -> list[tuple[float, str]]:
    """The bounds of a product of two matrices at each level."""
    if not (isinstance(e.body, Call) and e.body.op == "mul" and e.reduced and not e.where):
        return []
    parts = [a for a in e.body.args if isinstance(a, Access)]
    if len(parts) != 2:
        return []
    if not all(isinstance(i, Var) for a in parts for i in a.indices) or not all(
        isinstance(i, Var) for i in e.indices
    ):
        return []
    a, b = (set(variables(*x.indices)) for x in parts)
    if not (a - b - set(e.reduced)) or not (b - a - set(e.reduced)):
        return []
    out = []
    for outer, level in zip(target.levels, target.levels[1:], strict=False):
        held = level.bytes / itemsize
        if held and level.name != "reg" and outer.bandwidth_gbps:
            elements = 2 * points / math.sqrt(held) - 2 * held
            seconds = max(0.0, elements) * itemsize / (outer.gbps(cores) * 1e9)
            out.append((seconds, f"{outer.name}: products in a {level.name} of {level.bytes} bytes"))
    return out
