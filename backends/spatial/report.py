"""What the array model found, for people (`str`) and for programs (`json`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tcc.ir.cost.array import LeafCost
from tcc.ir.expr import text
from tcc.ir.mapping import Alloc, Do, Kernel, Loop, Mapping, Node
from tcc.ir.target import Target

NOTES = (
    "leaves run one after another; neither transfers nor the units overlap",
    "a predicate does not save work: every tile counts as full",
    "an element is read once per run of a leaf; register traffic inside a run is not counted",
    "results leave the registers behind the next run",
)


@dataclass(frozen=True, slots=True)
class BufferUse:
    """A buffer at its largest: elements in all, and bytes (in registers: of one element's part)."""

    name: str
    level: str
    extents: tuple[int, ...]
    elements: int
    bytes_each: float


@dataclass(slots=True, eq=False)
class Report:
    """A mapping on an array: accesses, cycles, energy."""

    mapping: Mapping
    target: Target
    sizes: dict[str, int]
    word: dict[str, float]
    reads: dict[tuple[str, str], int] = field(default_factory=dict)
    writes: dict[tuple[str, str], int] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    buffers: dict[str, BufferUse] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    leaves: dict[int, LeafCost] = field(default_factory=dict)  # by identity of the `do`
    level_pj: dict[str, float] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The dataflow as text."""
        return str(self)

    @property
    def array_cycles(self) -> float:
        """Cycles of computing, preloading and draining, without transfers between levels."""
        return sum(c.cycles for c in self.leaves.values())

    @property
    def transfer_cycles(self) -> float:
        """Cycles in which data moves between levels that have a bandwidth."""
        return sum(c.transfer for c in self.leaves.values())

    @property
    def cycles(self) -> float:
        """All of it, one after another."""
        return self.array_cycles + self.transfer_cycles

    @property
    def seconds(self) -> float:
        return self.cycles / (self.target.parameter("clock_mhz", 1000) * 1e6)

    @property
    def energy_pj(self) -> float:
        return sum(self.level_pj.values()) + sum(c.energy_pj for c in self.leaves.values())

    def utilisation(self, unit: str) -> float:
        """The share of a unit's element-cycles, over all array cycles, that do useful work."""
        found = next(u for u in self.target.units if u.name == unit)
        elements = 1
        for r in found.resources:
            elements *= self.target.resource(r).count
        busy = sum(c.busy for c in self.leaves.values() if c.unit == unit)
        return busy / (elements * self.array_cycles) if self.array_cycles else 0.0

    # ---- for programs

    def data(self) -> dict[str, Any]:
        """Everything, as plain values."""
        keys = sorted({*self.reads, *self.writes}, key=self._order)
        return {
            "name": self.mapping.name,
            "target": self.target.name,
            "sizes": self.sizes,
            "accesses": [
                {
                    "level": at,
                    "tensor": name,
                    "reads": self.reads.get((at, name), 0),
                    "writes": self.writes.get((at, name), 0),
                }
                for at, name in keys
            ],
            "buffers": [
                {
                    "name": b.name,
                    "level": b.level,
                    "extents": list(b.extents),
                    "bytes": b.bytes_each,
                }
                for b in self.buffers.values()
            ],
            "peak_bytes": self.peak,
            "leaves": [
                {
                    "kernel": c.kernel,
                    "target": c.text,
                    "kind": c.kind,
                    "unit": c.unit,
                    "runs": c.runs,
                    "points": c.points,
                    "cycles": c.cycles,
                    "skew": c.skew,
                    "utilisation": c.utilisation,
                    "transfer_cycles": c.transfer,
                    "bound": c.bound,
                    "time": c.time,
                    "stationary": c.stationary,
                    "moves": c.moves,
                    "reduces": c.reduces,
                    "energy_pj": c.energy_pj,
                }
                for c in self.leaves.values()
            ],
            "array_cycles": self.array_cycles,
            "transfer_cycles": self.transfer_cycles,
            "cycles": self.cycles,
            "seconds": self.seconds,
            "utilisation": {u.name: self.utilisation(u.name) for u in self.target.units},
            "energy_pj": self.energy_pj,
            "energy_by_level_pj": self.level_pj,
            "notes": list(NOTES),
        }

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(self.data())

    def _order(self, key: tuple[str, str]) -> tuple[int, str]:
        return [x.name for x in self.target.levels].index(key[0]), key[1]

    # ---- for people

    def __str__(self) -> str:
        sizes = ", ".join(f"{k}={v}" for k, v in self.sizes.items())
        lines = [f"{self.mapping.name} on {self.target.name} with {sizes}", ""]
        for k in self.mapping.kernels:
            if isinstance(k, Kernel):
                over = ", ".join(f"{v}: {text(e)}" for v, e in k.variables)
                lines += [f"kernel {k.name} over {over}", *self._nodes(k.body, 1), ""]
        lines += [
            "accesses in elements",
            f"  {'level':<8} {'tensor':<16} {'reads':>16} {'writes':>16}",
        ]
        for at, name in sorted({*self.reads, *self.writes}, key=self._order):
            r, w = self.reads.get((at, name), 0), self.writes.get((at, name), 0)
            lines.append(f"  {at:<8} {name:<16} {r:>16,} {w:>16,}")
        lines += ["", "cycles"]
        for kind in ("compute", "preload", "drain", "transfer"):
            of_kind = [c for c in self.leaves.values() if c.kind == kind]
            cycles = self.transfer_cycles if kind == "transfer" else sum(c.cycles for c in of_kind)
            lines.append(f"  {kind:<10} {cycles:>20,.0f}")
        lines.append(f"  {'sum':<10} {self.cycles:>20,.0f}   {self.seconds:.6g} s")
        for u in self.target.units:
            lines.append(
                f"  {u.name} utilisation {self.utilisation(u.name):.2%} of the array's cycles"
            )
        for level, need in self.peak.items():
            room = self.target.level(level).bytes
            lines.append(
                f"  {level} holds {need:,.0f} bytes at most" + (f" of {room:,}" if room else "")
            )
        operators = sum(c.energy_pj for c in self.leaves.values())
        if self.energy_pj:
            parts = {"operators": operators, **self.level_pj}
            shown = ", ".join(f"{k} {v / 1e6:.6g}" for k, v in parts.items() if v)
            lines += ["", f"energy {self.energy_pj / 1e6:.6g} uJ: {shown}"]
        lines += ["", *(f"note: {n}" for n in NOTES)]
        return "\n".join(lines)

    def _nodes(self, nodes: tuple[Node, ...], depth: int) -> list[str]:
        pad, lines = "  " * depth, []
        for n in nodes:
            if isinstance(n, Loop):
                lines += [f"{pad}for {n.var} by {n.step}", *self._nodes(n.body, depth + 1)]
            elif isinstance(n, Alloc):
                b = self.buffers[n.buffer.name]
                shape = " x ".join(map(str, b.extents)) or "1"
                dims = ", ".join(text(d) for d in n.buffer.dims)
                lines.append(
                    f"{pad}{b.name}[{dims}] @{b.level}: {shape}, {b.bytes_each:,.0f} bytes"
                    f"{' each' if any(u.level == b.level for u in self.target.units) else ''}"
                )
                lines += self._nodes(n.body, depth)
            else:
                lines += [f"{pad}{n.einsum}", *(f"{pad}  {line}" for line in self._leaf(n))]
        return lines

    def _leaf(self, n: Do) -> list[str]:
        c = self.leaves[id(n)]
        if c.kind != "compute":
            rate = (
                f"{c.cycles:,.0f} cycles" if c.kind != "transfer" else f"{c.transfer:,.0f} cycles"
            )
            return [f"{c.kind}, {c.runs:,} runs, {rate}"]
        places = [f"{v} on {r}" for v, r in c.bound.items()]
        places += [f"{', '.join(c.time)} in time"] if c.time else []
        facts = [f"{', '.join(c.stationary)} stationary"] if c.stationary else []
        facts += [f"{', '.join(names)} along {r}" for r, names in c.moves.items()]
        facts += [f"sums along {r}" for r in c.reduces]
        lines = [f"{c.unit}: {', '.join([*places, *facts])}"]
        lines.append(
            f"{c.runs:,} runs, {c.cycles:,.0f} cycles of which {c.runs * c.skew:,} skew, "
            f"utilisation {c.utilisation:.1%}"
        )
        if c.transfer:
            lines.append(f"memory traffic of its own: {c.transfer:,.0f} cycles")
        return lines
