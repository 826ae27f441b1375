"""`calibrate` returns the machine it runs on as a target: every number is the best of several samples.

A probe does a known amount of work many times over. One round samples every probe once, so that a disturbance of a
second spoils one sample of some probes, and not all samples of one.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, product
from typing import Any

from tcc import machine, targets
from tcc.backends.c import measure
from tcc.backends.c.launch import Block, load
from tcc.backends.c.toolchain import Toolchain, build, find_toolchain
from tcc.ir.target import Level, Overheads, Resource, Target, Tile, Unit

ROUNDS = 10
SAMPLE_S = 6e-4  # the least that a sample takes
LIMIT_S = 12.0  # after so many seconds it ends, if every probe has one sample
_FORKS = 200  # parallel regions of one sample
_DISTURBED_S = 1e-4  # a parallel region that takes longer has waited for a core
_TRIES = 5  # samples per round where several threads have to run at once
_WINDOWS = 8  # parts of memory that are read in turn, so that each has left the caches when it is read again
_KIB, _MIB = 1 << 10, 1 << 20
_DEPTHS: dict[str, dict[str, tuple[int, ...]]] = {
    "f32": {"L1": (32, 128), "L2": (256, 512)},
    "f64": {"L1": (64,), "L2": (256,)},
}
# rows and columns of the mapper's blocks: register tiles that divide them waste nothing
_BLOCK = 48, 256
# by how much another register tile has to be faster than the generic one to replace it
_BETTER = 1.03
_RUNS = (64, 128, 512, 2048, 8192)  # bytes
_APART = 41 * 512  # bytes between runs: more than a page, and no power of two
_PAGES = 1024  # of one sample of page faults

# samples taken, samples in all, what has been found last
Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class Probe:
    """`run(n)` does `work` units of work n times; `best_s` is the least time that one time took.

    `clock` is that of the thread, which stands still while others have the core, unless several threads work.
    """

    name: str
    unit: str  # of `rate`, for people
    work: float
    run: Callable[[int], object]
    clock: Callable[[], float] = time.thread_time
    warm: Callable[[], object] | None = (
        None  # what is done before each sample, else one time of the work
    )
    repeats: int = 1
    best_s: float = float("inf")

    @property
    def rate(self) -> float:
        """10^9 units of work per second, to three digits."""
        return _rounded(self.work / self.best_s / 1e9)

    @property
    def best_us(self) -> float:
        return _rounded(self.best_s * 1e6)

    def sample(self, least_s: float) -> None:
        """Times one sample, of as many repeats as take `least_s` or longer."""
        for _ in range(1 if self.clock is time.thread_time else _TRIES):
            (self.warm or partial(self.run, 1))()
            taken = self._time()
            while taken < least_s / 2:
                wanted = 1.2 * self.repeats * least_s / max(taken, 1e-9)
                self.repeats = max(2 * self.repeats, min(100 * self.repeats, round(wanted)))
                taken = self._time()
            self.best_s = min(self.best_s, taken / self.repeats)

    def _time(self) -> float:
        start = self.clock()
        self.run(self.repeats)
        return self.clock() - start


class _Fork(Probe):
    """Parallel regions, each timed by itself: where others want the cores, few are undisturbed."""

    def sample(self, least_s: float) -> None:
        for _ in range(_TRIES):
            best: Any = self.run(_FORKS)
            self.best_s = min(self.best_s, best * 1e-9)
            if self.best_s < _DISTURBED_S:
                return


def calibrate(
    progress: Progress | None = None, rounds: int = ROUNDS, sample_s: float = SAMPLE_S
) -> Target:
    """Measures this machine, in five to fifteen seconds; T0323 when there is no C compiler.

    `progress` is called after every sample, and before the first with no samples in all.
    """
    start = time.perf_counter()
    if progress:
        progress(0, 0, "building")
    bench = _Bench(find_toolchain())
    for n in range(rounds):
        for at, probe in enumerate(bench.probes, 1):
            if n and time.perf_counter() - start > LIMIT_S:
                return bench.target()
            probe.sample(sample_s)
            if progress:
                found = f"{probe.rate:g} {probe.unit}" if probe.unit else f"{probe.best_us:g} us"
                progress(n * len(bench.probes) + at, rounds * len(bench.probes), f"{probe.name}: {found}")  # fmt: skip
    return bench.target()


class _Library:
    """Functions of one C text, taking integers and addresses."""

    def __init__(self, path: Any) -> None:
        self._library = load(path)

    def __call__(self, name: str, *arguments: int) -> Callable[[int], object]:
        """`name(repeats, *arguments)` as a function of the repeats."""
        function = self._library[name]
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_int64] * (1 + len(arguments))
        return lambda repeats: function(repeats, *arguments)


@dataclass(slots=True)
class _Speeds:
    """What is measured of one level."""

    name: str
    bytes: int
    shared_by: int
    line_bytes: int
    read: list[Probe] = field(default_factory=list)
    write: Probe | None = None
    stream: Probe | None = None
    shared: Probe | None = None
    latency: Probe | None = None

    def level(self, disturbed: bool) -> Level:
        """The level; where no two threads could run at once, what is shared follows the generic target."""
        best = max(p.rate for p in self.read)
        shared = max(best, self.shared.rate) if self.shared else 0.0
        if self.shared and disturbed:
            usual = targets.generic().level("memory")
            gain = usual.shared_gbps / usual.bandwidth_gbps
            shared = 0.0 if self.bytes else _rounded(best * gain)
        return Level(
            self.name, self.bytes, best,
            write_gbps=self.write.rate if self.write else 0.0,
            stream_gbps=self.stream.rate if self.stream else 0.0,
            shared_gbps=shared,
            shared_by=self.shared_by,
            latency_ns=_rounded(1e9 * self.latency.best_s / self.latency.work) if self.latency else 0.0,
            line_bytes=self.line_bytes,
        )  # fmt: skip


class _Bench:
    """All probes, what each of them tells, and the memory that they work on."""

    def __init__(self, toolchain: Toolchain) -> None:
        self.toolchain = toolchain
        self.probes: list[Probe] = []
        self.kept: list[Any] = []  # memory
        self.threads = machine.threads() if toolchain.openmp else 1
        sources = {"machine": measure.machine(toolchain)}
        for t in ("f32", "f64"):
            sources[f"tiles {t}"] = measure.tiles(toolchain, t)
            sources[f"functions {t}"] = measure.functions(self.toolchain, t, measure.FUNCTIONS)
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            built = pool.map(partial(build, toolchain=toolchain), sources.values())
            self.library = {name: _Library(path) for name, path in zip(sources, built)}
        self.basic = self.library["machine"]
        self.rates: dict[str, dict[str, list[Probe]]] = {"f32": {}, "f64": {}}
        self.tiles: list[tuple[Tile, Probe]] = []
        self.levels = self._levels()
        self.runs = self._runs()
        for t in self.rates:
            self._rates(t)
        for t in self.rates:
            self._tiles(t)
        self.call, self.page = self._call(), self._page_fault()
        # threads that wait for work disturb what is measured next: they come last
        self.fork: Probe | None = None
        self._shared()

    def add(
        self, name: str, unit: str, work: float, library: _Library, function: str, *arguments: int
    ) -> Probe:
        return self._probe(Probe(name, unit, work, library(function, *arguments)))

    def _probe(self, p: Probe) -> Probe:
        self.probes.append(p)
        return p

    def memory(self, size: int) -> int:
        """The address of so many bytes, of random numbers of f32 where they are few."""
        import numpy as np

        block = Block(size)
        self.kept.append(block)
        if size <= 16 * _MIB:
            numbers = np.random.default_rng(0).uniform(0.1, 2, size // 8)
            whole = np.repeat(numbers, 2).astype(np.float32).tobytes()
            ctypes.memmove(block.address, whole, len(whole))
        return block.address

    # ---- memory

    def _levels(self) -> list[_Speeds]:
        """Outermost first, `memory` to L1; sizes in use lie well inside a level and well outside the next."""
        caches, cores = self._caches(), machine.cores()
        largest = min(max(4 * caches[-1].bytes, 64 * _MIB), 512 * _MIB)
        self.buffer = self.memory(largest)
        self.basic("write_plain", self.buffer, largest)(1)  # every page is there
        found = [
            _Speeds("memory", 0, 0, caches[-1].line_bytes),
            *(
                _Speeds(f"L{c.level}", c.bytes, 0 if c.shared_by >= cores > 1 else c.shared_by, c.line_bytes)
                for c in reversed(caches)
            ),
        ]  # fmt: skip
        inner = 0
        self.used: dict[str, int] = {"memory": largest}
        for c in caches:
            size = c.bytes // 2 if c.level < 3 else max(2 * inner, min(c.bytes // 4, 8 * _MIB))
            self.used[f"L{c.level}"] = min(size, c.bytes * 3 // 4) // (4 * _KIB) * (4 * _KIB)
            inner = c.bytes
        for x, within in zip(found, [*found[1:], None]):
            self._speeds(x, within.bytes if within else 0)
        return found

    def _runs(self) -> dict[int, Probe]:
        """Memory in runs, by their lengths."""
        size = self.used["memory"] // _APART * _APART
        return {
            n: self.add(
                f"memory in runs of {n} bytes", "GB/s", size // _APART * (_APART // n * n),
                self.basic, "read_runs", self.buffer, size, n, _APART,
            )
            for n in _RUNS
        }  # fmt: skip

    def _caches(self) -> list[machine.Cache]:
        """Nearest first, each larger than the one before; the generic target's where the system does not tell."""
        generic, found = targets.generic(), list[machine.Cache]()
        told = machine.caches() or [
            machine.Cache(n, generic.level(f"L{n}").bytes, 0 if n == 3 else 1, 64)
            for n in (1, 2, 3)
        ]
        for c in told:
            if not found or c.bytes > found[-1].bytes:
                found.append(c)
        return found

    def _speeds(self, x: _Speeds, inner: int) -> None:
        size, at = self.used[x.name], self.buffer
        label = f"{x.name} read"
        x.read = [
            self.add(label, "GB/s", size, self.basic, f, at, size)
            for f in ("read_plain", "read_ahead")
        ]
        x.write = self.add(f"{x.name} write", "GB/s", size, self.basic, "write_plain", at, size)
        if x.name == "memory" and self.basic("can_stream")(0):
            x.stream = self.add("memory stream", "GB/s", size, self.basic, "write_stream", at, size)
        length = min(size, max(2 * inner, 16 * _KIB)) if x.bytes else min(size, 128 * _MIB)
        ring, position = self.memory(length), self.memory(64)
        ctypes.memset(position, 0, 64)
        self.basic("chain", ring)(length // 64)
        x.latency = self.add(f"{x.name} latency", "", 1024, self.basic, "chase", ring, position)
        if x.bytes:
            x.latency.warm = partial(self.basic("read_plain", ring, length), 2)

    def _shared(self) -> None:
        if self.threads < 2:
            return
        for x in self.levels:
            users = min(self.threads, x.shared_by or self.threads)
            if users < 2:
                continue
            parts, size = _WINDOWS, self.used["memory"] // _WINDOWS
            if x.bytes:
                inner = max((y.bytes for y in self.levels if 0 < y.bytes < x.bytes), default=0)
                parts = 1
                size = min(max(self.used[x.name], 2 * inner * users), x.bytes * 3 // 4)
            size = size // users // _KIB * users * _KIB
            windows = [
                self.basic("read_all", self.buffer + n * size, size, users) for n in range(parts)
            ]
            x.shared = self._probe(
                Probe(f"{x.name} read by {users} cores", "GB/s", size, _in_turn(windows),
                      clock=time.perf_counter)
            )  # fmt: skip
        self.fork = self._probe(_Fork("fork", "", 1, self.basic("fork_threads", self.threads)))

    # ---- arithmetic

    def _rates(self, t: str) -> None:
        table = self.rates[t]
        at, out = self.memory(4096), self.memory(4096)
        (ctypes.c_double if t == "f64" else ctypes.c_float).from_address(at).value = 1.0
        chains = measure.chains(self.toolchain)
        table["mul_add"] = [
            self.add(f"{t} mul_add x {w}", "Gop/s", chains * w, self.basic, f"peak_{t}x{w}", at, out)
            for w in measure.widths(self.toolchain, t)
        ]  # fmt: skip
        w = measure.lanes(t)
        table["max"] = [
            self.add(f"{t} max", "Gop/s", chains * w, self.basic, f"most_{t}x{w}", at, out)
        ]
        n, bytes_each = 1024, 8
        x, y = self.memory((n + 64) * bytes_each), self.memory((n + 64) * bytes_each)
        if t == "f64":
            whole = (ctypes.c_double * (n + 64)).from_address(x)
            whole[:] = [0.1 + 1.9 * i / (n + 64) for i in range(n + 64)]
        for op in measure.FUNCTIONS:
            library = self.library[f"functions {t}"]
            table[op] = [self.add(f"{t} {op}", "Gop/s", n, library, f"run_{op}", n, x, y)]
        if t == "f32":
            for bits in (4, 8):
                name = f"unpack_{bits}"
                table[name] = [self.add(name, "Gop/s", n * 32 // bits, self.basic, name, n, x, y)]

    def _tiles(self, t: str) -> None:
        size, lanes = 4 if t == "f32" else 8, measure.lanes(t)
        sizes = {x.name: x.bytes for x in self.levels}
        near, middle = sizes.get("L1", 0), sizes.get("L2", 0)
        a, out = self.memory(64 * _KIB), self.memory(64 * _KIB)
        b = self.memory(max(middle, 256 * _KIB))
        legal = measure.legal_tiles(self.toolchain, t)
        depths = [(level, depth) for level, found in _DEPTHS[t].items() for depth in found]
        for (level, depth), (rows, vectors) in product(depths, legal):
            panel = depth * vectors * lanes * size
            panels = middle // 2 // panel if level == "L2" else 1
            fits = middle > 0 if level == "L2" else panel + rows * depth * size <= 0.75 * near
            if not panels or not fits:
                continue
            name = f"{t} tile {rows} x {vectors} x {lanes}, depth {depth} in {level}"
            work = 2 * rows * vectors * lanes * depth
            p = self.add(name, "GFLOP/s", work, self.library[f"tiles {t}"],
                         f"tile_{rows}x{vectors}", a, b, out, depth, panels)  # fmt: skip
            self.tiles.append((Tile(t, rows, vectors, lanes, depth, level, 0.0), p))

    # ---- fixed costs

    def _call(self) -> Probe:
        """A call of a program that does nothing to speak of, from Python."""
        import numpy as np

        import tcc

        program = tcc.compile(
            "in A: f32[N]\nout Z: f32[N]\nZ[n] = 2 * A[n]", target=str(targets.generic_path())
        )
        small = np.ones(8, np.float32)
        program(small)

        def run(repeats: int) -> None:
            for _ in range(repeats):
                program(small)

        return self._probe(Probe("call", "", 1, run))

    def _page_fault(self) -> Probe:
        def run(repeats: int) -> None:
            for _ in range(repeats):
                with mmap.mmap(-1, _PAGES * 4096) as fresh:
                    if hasattr(mmap, "MADV_NOHUGEPAGE"):
                        fresh.madvise(mmap.MADV_NOHUGEPAGE)
                    hold = ctypes.c_char.from_buffer(fresh)
                    self.basic("touch", ctypes.addressof(hold))(_PAGES)
                    del hold

        return self._probe(Probe("page fault", "", _PAGES, run))

    # ---- the result

    def target(self) -> Target:
        rates = {
            t: {op: max(p.rate for p in probes) for op, probes in table.items()}
            for t, table in self.rates.items()
        }
        found = tuple(replace(x, gflops=p.rate) for x, p in self.tiles)
        for t, table in rates.items():  # no tile is faster than the peak
            best = max((x.gflops for x in found if x.dtype == t), default=0.0)
            table["mul_add"] = max(table["mul_add"], best / 2)
        lanes = measure.lanes("f32")
        per_vector = max(1, lanes * 32 // (self.toolchain.simd_bits or 128))
        rows, vectors = best_tile(found)
        registers = measure.registers(self.toolchain) // per_vector
        longer = max(lanes, (self.toolchain.simd_bits or 128) // 32)
        disturbed = self.fork is not None and self.fork.best_s > _DISTURBED_S
        return Target(
            name="cpu", kind="cpu", backend="c",
            levels=(
                *(x.level(disturbed) for x in self.levels),
                Level("reg", registers * longer * 4),
            ),
            resources=(Resource("core", machine.cores()), Resource("lane", lanes), Resource("unroll")),
            parameters={"tile_rows": float(rows), "tile_vectors": float(vectors),
                        "registers": float(registers), "register_lanes": float(longer)},
            units=(Unit("core", ("lane",), rates=rates),),
            tiles=found,
            overheads=Overheads(
                fork_us=self._fork_us(disturbed),
                call_us=self.call.best_us,
                page_fault_us=_rounded(self.page.best_s / self.page.work * 1e6),
            ),
            machine=machine.this_machine(),
            runs={n: p.rate for n, p in self.runs.items()},
        )  # fmt: skip

    def _fork_us(self, disturbed: bool) -> float:
        """0 where there is one thread."""
        if self.fork is None:
            return 0.0
        return targets.generic().overheads.fork_us if disturbed else self.fork.best_us


def _in_turn(calls: list[Callable[[int], object]]) -> Callable[[int], None]:
    """Repeats that go on with the call after the one that came last."""
    order = cycle(calls)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            next(order)(1)

    return run


def best_tile(found: tuple[Tile, ...]) -> tuple[int, int]:
    """Rows and vectors of the fastest tile of f32 that divides the mapper's blocks; the usual one if that is near."""
    generic = targets.unmeasured()
    usual = int(generic.parameter("tile_rows", 6)), int(generic.parameter("tile_vectors", 2))
    speeds: dict[tuple[int, int], list[float]] = {}
    for x in found:
        divides = _BLOCK[0] % x.rows == 0 and _BLOCK[1] % (x.vectors * x.lanes) == 0
        if x.dtype == "f32" and x.depth >= 128 and divides:
            speeds.setdefault((x.rows, x.vectors), []).append(x.gflops)
    mean = {key: sum(s) / len(s) for key, s in speeds.items()}
    if not mean:
        return usual
    best = max(sorted(mean), key=lambda key: mean[key])
    return best if mean[best] > _BETTER * mean.get(usual, 0.0) else usual


def _rounded(value: float) -> float:
    """Three digits: more would be noise."""
    return float(f"{value:.3g}")
