"""About how much time a definition saves, or costs, when it joins a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tcc.ir.cascade import Cascade, Definition, Einsum
from tcc.ir.expr import accesses
from tcc.ir.target import Target
from tcc.passes._algebra import Contraction, elements, operations, size_estimate
from tcc.passes._fuse_names import Names

LAUNCH = 2e-6  # seconds to start a kernel on all cores
RATE = 25e9  # element-wise operations per second
GBPS = 20.0  # where a target does not say
TASKS = 8  # fewer independent tiles than this leave cores idle
ROWS = 24  # rows of a tile
COLUMNS = 256  # columns of a product that one task computes


class Estimate:
    """Sizes, traffic and work of the definitions of a program; unknown sizes count as typical ones."""

    def __init__(self, c: Cascade, target: Target, names: Names) -> None:
        self.c, self.names = c, names
        self.levels = [(x.bytes or math.inf, x.bandwidth_gbps or GBPS) for x in target.levels]
        inner = [x.bytes for x in target.levels[1:] if x.bytes]
        self.near = max(inner[1:], default=1 << 19) // 8  # elements that may wait next to a core
        self._readers: dict[str, list[Definition]] = {}
        for d in c.definitions:
            for name in {a.tensor for a in d.reads}:
                self._readers.setdefault(name, []).append(d)
        self.outputs = {t.name for t in c.outputs}

    def extent(self, v: str) -> int:
        return size_estimate(self.c, self.names.extent(v))

    def tasks(self, rows: Sequence[str]) -> float:
        """About how many independent tiles the shared loops give, of a few rows each."""
        sizes = [self.extent(v) for v in rows]
        return math.prod(sizes) / min(ROWS, max(sizes, default=1))

    def bytes(self, tensor: str) -> float:
        return elements(self.c, tensor) * self.c.tensors[tensor].bits / 8

    def traffic(self, size: float) -> float:
        """Seconds to move so many bytes between a core and the smallest memory that holds them with room to spare."""
        held = [gbps for capacity, gbps in self.levels if capacity >= 2 * size]
        return size / (held[-1] * 1e9)

    def fits(self, members: Sequence[Einsum], rows: Sequence[str]) -> bool:
        """Whether what the members hand on for one row fits in the cache next to a core."""
        read = {a.tensor for d in members for a in d.reads}
        per_row = math.prod(self.extent(v) for v in rows)
        return all(
            elements(self.c, d.target) // per_row <= self.near for d in members if d.target in read
        )

    def work(self, d: Einsum) -> float:
        """Seconds of element-wise work of a definition."""
        points = math.prod(self.extent(v) for v in (*d.free, *d.reduced))
        return points * (operations(d.body) + bool(d.reduced)) / RATE

    def readers(self, tensor: str) -> list[Definition]:
        return self._readers.get(tensor, [])

    def gain(
        self, members: Sequence[Einsum], d: Einsum, split: Contraction | None = None,
        chain: Sequence[Contraction] = (),
    ) -> float:  # fmt: skip
        """Seconds that are saved when d joins: a launch, stores and loads of what stays near, shared reads; less what
        is computed again in every block of columns, and less what second operands are streamed more often (of d and of
        the products in `chain`, of which its first operand is made)."""
        made = {x.target for x in members}
        inside = {x.target for x in members} | {d.target}
        mine = {a.tensor for a in (accesses(split.row_factor) if split else d.reads)}
        theirs = {a.tensor for x in members for a in x.reads}
        saved = LAUNCH
        for t in sorted(mine):
            size = self.bytes(t)
            if t in made:
                local = t not in self.outputs and all(r.target in inside for r in self.readers(t))
                saved += self.traffic(size) * (2 if local else 1)
            elif t in theirs:
                saved += self.traffic(size)
        if split is None:
            return saved
        rows = math.prod(self.extent(v) for v in split.rows)
        if chain:  # tiles of half as many rows: second operands are streamed twice as often
            again = math.ceil(rows / ROWS) - math.ceil(rows / (2 * ROWS))
            streamed = {a.tensor for x in (*chain, split) for a in accesses(x.column_factor)}
            return saved - sum(self.traffic(self.bytes(t)) for t in sorted(streamed)) * again
        if rows >= TASKS * 2 * ROWS:
            return saved
        blocks = math.ceil(math.prod(self.extent(v) for v in split.columns) / COLUMNS)
        depends = mine & made
        needed = [x for x in members if x.target in depends]
        for x in reversed(list(members)):
            if any(x.target in {a.tensor for a in y.reads} for y in needed) and x not in needed:
                needed.append(x)
        return saved - (blocks - 1) * sum(self.work(x) for x in needed)
