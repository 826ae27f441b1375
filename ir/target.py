"""What a mapping is made for: memory levels, parallel resources, units and their rates, fixed costs.

The YAML form is read and printed by `tcc.ir.target_text`. One *user* of a level or unit is a core of a
CPU; of a GPU or an array it is the whole device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

KINDS = ("cpu", "gpu", "array")


@dataclass(frozen=True, slots=True)
class Level:
    """A memory level. 0 means: not limited, takes no time, or not known.

    `bandwidth_gbps` is what one user alone reads, `write_gbps` what it writes (0: as fast as it reads),
    `stream_gbps` what it writes past the caches (0: cannot), all in 10^9 bytes per second. `shared_gbps` is
    what all `shared_by` users of one instance read together (`shared_by` 0: every user of the machine;
    `shared_gbps` 0: they do not slow each other down).
    """

    name: str
    bytes: int = 0
    bandwidth_gbps: float = 0.0
    write_gbps: float = 0.0
    stream_gbps: float = 0.0
    shared_gbps: float = 0.0
    shared_by: int = 0
    latency_ns: float = 0.0
    line_bytes: int = 8
    read_pj: float = 0.0
    write_pj: float = 0.0

    def gbps(self, users: int = 1, kind: str = "read") -> float:
        """10^9 bytes per second that so many users move together; `kind` is read, write or stream.

        Infinite where the level takes no time. What all users write together grows as what they read does.
        """
        read = self.bandwidth_gbps
        if not read:
            return math.inf
        own = {"read": read, "write": self.write_gbps or read, "stream": self.stream_gbps}[kind]
        if not self.shared_gbps:
            return own * users
        instances = -(-users // self.shared_by) if self.shared_by else 1
        return own * min(users, instances * self.shared_gbps / read)


@dataclass(frozen=True, slots=True)
class Resource:
    """A parallel dimension: cores, vector lanes, grid blocks, rows or columns of processing elements."""

    name: str
    count: int = 0  # 0: as many as the machine has


@dataclass(frozen=True, slots=True)
class Cost:
    """What one scalar operator takes on a unit."""

    cycles: float = 1.0
    pj: float = 0.0


# what an operator is done with where a unit does not list it
_INSTEAD = {"mul": "mul_add", "add": "mul_add", "sub": "add", "neg": "sub", "min": "max"}


@dataclass(frozen=True, slots=True)
class Unit:
    """A compute unit: the parallel dimensions it spans, the level of its own registers, and its operators.

    `operators` gives cycles and energy of one evaluation; `rates` the evaluations per second, in 10^9, that
    the unit as a whole reaches, by dtype and operator.
    """

    name: str
    resources: tuple[str, ...]
    level: str = ""
    operators: Mapping[str, Cost] = field(default_factory=dict)
    rates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def cost(self, op: str) -> Cost | None:
        """The cost of an operator, or of the one that does its work; None when the unit cannot do it."""
        tried: str | None = op
        while tried is not None:
            if tried in self.operators:
                return self.operators[tried]
            tried = _INSTEAD.get(tried)
        if op == "mul_add" and {"mul", "add"} <= set(self.operators):
            mul, add = self.operators["mul"], self.operators["add"]
            return Cost(mul.cycles + add.cycles, mul.pj + add.pj)
        return None

    def rate(self, op: str, dtype: str) -> float:
        """10^9 evaluations per second that `rates` gives for an operator, or for the one that does its work; else 0."""
        known = self.rates.get(dtype, {})
        tried: str | None = op
        while tried is not None:
            if tried in known:
                return known[tried]
            tried = _INSTEAD.get(tried)
        return 0.0


@dataclass(frozen=True, slots=True)
class Tile:
    """A measured register tile, on one core: `rows` x `vectors` accumulators of `lanes` elements each, summed over
    `depth` steps, with its operands at `level`."""

    dtype: str
    rows: int
    vectors: int
    lanes: int
    depth: int
    level: str
    gflops: float


@dataclass(frozen=True, slots=True)
class Overheads:
    """Fixed costs in microseconds; 0: not known.

    `fork_us`: a parallel region over all cores. `call_us`: one call of a built program from Python.
    `launch_us`: one kernel of a GPU. `page_fault_us`: the first touch of a fresh page of 4 KiB.
    """

    fork_us: float = 0.0
    call_us: float = 0.0
    launch_us: float = 0.0
    page_fault_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a target was measured: the processor's model, how many processors the system has, which tcc."""

    processor: str
    cores: int
    version: str


@dataclass(frozen=True, slots=True)
class Target:
    """A machine. Levels run from the outermost (`memory`) inwards. `machine` says where it was measured, if it was.

    `runs` says how fast one user reads memory in runs of neighbouring bytes that lie far from one another: 10^9 bytes per
    second by the length of the runs in bytes.

    `tuned` are tiles that were measured to be the best for kernels, by what identifies these to the mapper; it is no part
    of a target's file.
    """

    name: str
    kind: str
    backend: str
    levels: tuple[Level, ...]
    resources: tuple[Resource, ...]
    parameters: Mapping[str, float] = field(default_factory=dict)
    units: tuple[Unit, ...] = ()
    tiles: tuple[Tile, ...] = ()
    overheads: Overheads = field(default_factory=Overheads)
    machine: Machine | None = None
    runs: Mapping[int, float] = field(default_factory=dict)
    tuned: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def level(self, name: str) -> Level:
        return next(level for level in self.levels if level.name == name)

    def resource(self, name: str) -> Resource:
        return next(r for r in self.resources if r.name == name)

    def parameter(self, name: str, default: float) -> float:
        return self.parameters.get(name, default)

    def run_gbps(self, length: float) -> float:
        """10^9 bytes per second that one user reads from memory in runs of so many bytes, by `runs`, in between by the
        logarithm of the length; past the longest, and where nothing is known, those of the level."""
        whole, known = self.levels[0].bandwidth_gbps or math.inf, sorted(self.runs.items())
        if not known or length > known[-1][0]:
            return whole
        for (a, low), (b, high) in pairwise(known):
            if a < length <= b:
                low += (high - low) * math.log(length / a) / math.log(b / a)
                return min(whole, low)
        return min(whole, known[0][1])

    def rate(self, op: str, dtype: str) -> float:
        """10^9 evaluations per second on the fastest unit (of a CPU: of one core); 0 when no unit says.

        A unit without a table of rates has its cycles, its elements and the parameter `clock_mhz`. A `mul_add` is
        one evaluation, and two FLOP.
        """
        return max((self._rate(u, op, dtype) for u in self.units), default=0.0)

    def _rate(self, u: Unit, op: str, dtype: str) -> float:
        if u.rates:
            return u.rate(op, dtype)
        cost = u.cost(op)
        if cost is None or not cost.cycles:
            return 0.0
        elements = math.prod(self.resource(r).count or 1 for r in u.resources)
        return elements * self.parameter("clock_mhz", 1000) / 1000 / cost.cycles
