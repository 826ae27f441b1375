"""How long the leaves of a kernel take on a CPU.

A register tile takes its steps at the measured rate of its shape. A vector loop takes, for each vector, the sum of its
operators at their measured rates, or its loads and stores if that is more; other loops take every point
by itself. What comes from further out takes its bytes at the speed of the level it comes from. The
slower of the two is the time of the leaf; leaves run one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field

from tcc.ir.cascade import Tensor
from tcc.ir.cost.cache import Moved, Runs, bodies, moved
from tcc.ir.cost.reuse import affine, extremes
from tcc.ir.cost.tiles import Guard, Site, Tiles, count, cut_all, total
from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Call, Cast, Var, variables
from tcc.ir.index import evaluate_size
from tcc.ir.mapping import Buffer, Do, Loop
from tcc.ir.ops import OPS
from tcc.ir.target import Level, Target

VECTOR_BYTES = 4  # `lane` counts elements of f32
PRODUCTS = 4  # of bytes, in the time of one multiply-add of f32
PARALLEL_POINTS = 1 << 15  # below this the C backend does not fork


@dataclass(slots=True, eq=False)
class LeafTime:
    """All runs of one leaf on one core. `bytes` are what comes from, and goes to, each level."""

    target: str
    kind: str  # tile, vector, point
    runs: int
    compute_s: float = 0.0
    data_s: float = 0.0
    read: dict[str, float] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return max(self.compute_s, self.data_s)

    @property
    def bytes(self) -> dict[str, float]:
        names = dict.fromkeys((*self.read, *self.written))
        return {n: self.read.get(n, 0) + self.written.get(n, 0) for n in names}


def leaf_times(
    found: Sequence[Site],
    target: Target,
    tensors: MappingABC[str, Tensor],
    stored: MappingABC[str, Buffer],
    sizes: MappingABC[str, int],
    cores: int,
) -> list[LeafTime]:
    """The times of the leaves of one kernel, in order, where `cores` share the levels."""
    out = [_compute(s, target, tensors, stored, sizes) for s in found]
    density = []
    for s in found:
        every = 1
        for v in s.steps:
            every *= count(s.tiles[v])
        density.append(s.runs() / every if s.guard is not None and every else 1.0)
    levels = [x for x in target.levels if x.name == "memory" or (x.bytes and x.name != "reg")]
    root = bodies(found, tensors, stored, sizes, density, levels[0].line_bytes)
    room = target.parameter("cache_share", 0.5)
    rooms = [_capacity(level, cores) * room for level in levels[1:]]
    inward = [
        moved(root, size, len(found), *([] if n else [_waits(target, cores)]))
        for n, size in enumerate(rooms)
    ]
    for n, leaf in enumerate(out):
        outside = Moved()
        for at, level in enumerate(levels[:-1]):
            into = inward[at][n]
            read, written = into.read - outside.read, into.written - outside.written
            leaf.data_s += into.waits
            outside = Moved(max(into.read, outside.read), max(into.written, outside.written))
            if read > 0:
                leaf.read[level.name] = read
                leaf.data_s += read / (level.gbps(cores) / cores * 1e9)
            if written > 0:
                leaf.written[level.name] = written
                leaf.data_s += written / (level.gbps(cores, "write") / cores * 1e9)
    return out


def _waits(target: Target, cores: int) -> Callable[[Runs], float]:
    """Seconds that one core waits for runs of lines from memory: prefetchers see long runs only, and follow a few at a
    time; and for those that it writes, as it reads them first."""
    memory = target.levels[0]
    share = memory.gbps(cores) / cores
    late = target.parameter("late_lines", 2) * memory.line_bytes
    most = target.parameter("streams", 32)

    def waits(r: Runs) -> float:
        if r.writes or not target.runs:
            return r.count * late / share * 1e-9
        if r.beside <= most:
            rate = r.beside * target.run_gbps(r.length)
        else:
            rate = target.run_gbps(r.piece)
        return r.amount * (1 / min(share, rate) - 1 / share) * 1e-9

    return waits


def _capacity(level: Level, cores: int) -> float:
    """What one of so many cores has of a level."""
    sharing = min(cores, level.shared_by or cores)
    return level.bytes / max(1, sharing)


def _compute(
    s: Site,
    target: Target,
    tensors: MappingABC[str, Tensor],
    stored: MappingABC[str, Buffer],
    sizes: MappingABC[str, int],
) -> LeafTime:
    do, e = s.do, s.do.einsum
    t = tensors[e.target].dtype
    lanes = do.on("lane")
    if tile := _register_tile(s, tensors):
        return _tile(s, target, t, *tile)
    if _multiplies_bytes(s, tensors):
        rate = PRODUCTS * (target.rate("mul_add", "f32") or 48)
        return LeafTime(e.target, "tile", s.runs(), s.swept(s.facts.names) / rate * 1e-9)
    lane = lanes[0] if lanes else None
    if lane is None or not t.is_float or t.itemsize not in (4, 8):
        return _points(s, target, t)
    return _vector(s, target, t, lane, tensors, stored, sizes)


# ---- register tiles


def _register_tile(s: Site, tensors: MappingABC[str, Tensor]) -> tuple[int, int] | None:
    """Rows and columns of a leaf that the C backend prints as one micro-kernel."""
    do, e = s.do, s.do.einsum
    lanes, rows = do.on("lane"), do.on("unroll")
    if not lanes or not rows or not s.facts.reduced or e.where:
        return None
    body = e.body
    if not isinstance(body, Call) or body.op != "mul":
        return None
    if not all(isinstance(a, Access) for a in body.args) or len(s.steps.get(rows[0], ())) == 0:
        return None
    if lanes[0] not in s.steps:
        return None
    return s.steps[rows[0]][-1], s.steps[lanes[0]][-1]


def _multiplies_bytes(s: Site, tensors: MappingABC[str, Tensor]) -> bool:
    """Whether a leaf adds up products of integers of at most 8 bits, as the C backend does four at a time."""
    do, e = s.do, s.do.einsum
    if not do.on("lane") or not s.facts.reduced or e.where or not isinstance(e.body, Call):
        return False
    a, b = (*e.body.args, *e.body.args)[:2]
    parts = [x.arg if isinstance(x, Cast) else x for x in (a, b)]
    return e.body.op == "mul" and all(
        isinstance(a, Access) and tensors[a.tensor].dtype.is_integer
        and tensors[a.tensor].dtype.bits <= 8 for a in parts
    )  # fmt: skip


def _tile(s: Site, target: Target, t: DType, rows: int, columns: int) -> LeafTime:
    e = s.do.einsum
    runs = s.runs()
    steps = s.swept(s.facts.reduced)
    per_step, per_run = tile_seconds(target, t, rows, columns)
    return LeafTime(e.target, "tile", runs, steps * per_step + runs * per_run)


def tile_seconds(target: Target, t: DType, rows: int, columns: int) -> tuple[float, float]:
    """Seconds of one step of a register tile, and of one run besides its steps.

    Of measured tiles, the line through the times of all depths that fits their logarithms best.
    """
    width = max(1, target.resource("lane").count * VECTOR_BYTES // t.itemsize)
    vectors = -(-columns // width)
    ghz = target.parameter("clock_ghz", 3.0)
    ends = (
        target.parameter("tile_cycles", 8)
        + target.parameter("result_cycles", 0.75) * rows * vectors
    )
    run = ends / ghz * 1e-9
    known = [
        (x.depth, 2e-9 * rows * vectors * x.lanes * x.depth / x.gflops)
        for x in target.tiles
        if x.dtype == t.name and x.vectors == vectors and x.rows == rows and x.gflops
    ]
    if len(known) > 1:
        # least Σ (a/T + b·d/T - 1)²
        u = [(1 / s, d / s) for d, s in known]
        aa, ab, bb = sum(x * x for x, _ in u), sum(x * y for x, y in u), sum(y * y for _, y in u)
        a, b = sum(x for x, _ in u), sum(y for _, y in u)
        det = aa * bb - ab * ab
        once = min(max(0.0, (a * bb - b * ab) / det), 3 * run) if det else run
        return (b - once * ab) / bb, once
    if known:
        depth, seconds = known[0]
        return max(seconds - run, seconds / 2) / max(1, depth), run
    peak = (target.rate("mul_add", t.name) or ghz * 2 * width) * 1e9
    # two multiply-adds start per cycle and take four or five: fewer than ten leave the unit waiting
    busy = min(1.0, rows * vectors / 10)
    joined = max(1, int(target.parameter("register_lanes", 0)) // target.resource("lane").count)
    held = joined * target.parameter("registers", 16)
    spilled = 1.0 if rows * vectors + vectors + joined <= held else 2.0
    return rows * vectors * width / peak / busy * spilled, run


# ---- vector loops


def _loop_of(s: Site, lane: str) -> bool:
    """Whether the innermost loop is one vector loop, over its whole interval."""
    last = s.path[-1] if s.path else None
    return (
        isinstance(last, Loop)
        and last.var == lane
        and all(isinstance(x, Do) and x.on("lane") == [lane] for x in last.body)
        and all(
            v == lane or s.steps.get(v, (0,))[-1] == 1
            for x in last.body
            if isinstance(x, Do)
            for v in (*x.einsum.free, *x.einsum.reduced)
        )
    )


def _around(s: Site, lane: str) -> Site:
    """The runs of the vector loop that a leaf is in."""
    kept = s.steps[lane][:-1]
    steps = {v: (kept if v == lane else x) for v, x in s.steps.items() if v != lane or kept}
    tiles = {**s.tiles, lane: cut_all(s.extents[lane], kept)}
    guard = s.guard
    if guard is not None and lane in guard.inner and guard.inner[lane]:
        inner = {**guard.inner, lane: guard.inner[lane][:-1]}
        guard = Guard(guard.cells, inner, guard.mask, guard.whole)
    return Site(s.kernel, s.do, s.facts, s.path[:-1], s.extents, steps, tiles, guard)


def _vector(
    s: Site,
    target: Target,
    t: DType,
    lane: str,
    tensors: MappingABC[str, Tensor],
    stored: MappingABC[str, Buffer],
    sizes: MappingABC[str, int],
) -> LeafTime:
    e, free, reduced = s.do.einsum, s.facts.free, s.facts.reduced
    first = True
    if _loop_of(s, lane):
        last = s.path[-1]
        first = isinstance(last, Loop) and last.body[0] is s.do
        s = _around(s, lane)
    width = max(1, target.resource("lane").count * VECTOR_BYTES // t.itemsize)

    def vectors(tiles: Tiles) -> int:
        return sum(n * -(-length // width) for length, n in tiles.items())

    def tails(tiles: Tiles) -> int:
        return sum(n for length, n in tiles.items() if length % width)

    others = [v for v in s.facts.names if v != lane]
    every = {**dict.fromkeys(others, total), lane: vectors}
    inner = [v for v in others if v in reduced]
    kept = {**dict.fromkeys([v for v in others if v in free], total), lane: vectors}
    chunks = s.sum(every)
    loops = s.sum({v: total for v in others if v in free})
    ghz = target.parameter("clock_ghz", 3.0)
    work = sum(n * width / _rate(target, op, t, width) for op, n in s.facts.work.items())
    level = target.levels[-1] if target.levels[-1].name != "reg" else target.levels[-2]
    load = store = 0.0
    scattered = guarded = 0
    seen = set()
    for a in s.facts.reads:
        if lane not in variables(a) or a.tensor in seen:
            continue
        seen.add(a.tensor)
        if not _stays_inside(a, lane, s, tensors, sizes):
            guarded += 1  # lanes are checked and read one by one
        elif contiguous(a, lane, stored):
            load += width * tensors[a.tensor].bits / 8 / (level.gbps() * 1e9)
        else:
            scattered += 1
    if lane in free:
        target_access = Access(e.target, e.indices)
        if contiguous(target_access, lane, stored):
            store = width * t.itemsize / (level.gbps(1, "write") * 1e9)
            if reduced and not inner:  # every step combines into memory
                load += width * t.itemsize / (level.gbps() * 1e9)
        else:
            scattered += 1
    each = target.parameter("scatter_cycles", 0.6) * scattered
    each += target.parameter("guard_cycles", 1.5) * guarded
    slow = each * width / ghz * 1e-9
    per_chunk = max(work * 1e-9, load) + slow
    seconds = chunks * per_chunk + s.sum(kept) * store
    once = target.parameter("loop_cycles", 6) / ghz * 1e-9
    ends = s.sum({**dict.fromkeys([v for v in others if v in free], total), lane: tails})
    seconds += (loops * once if first else 0.0) + ends * 2 * once / 3
    if lane not in free:
        seconds += loops * once  # lanes are folded
    return LeafTime(e.target, "vector", s.runs(), seconds)


def _rate(target: Target, op: str, t: DType, width: int) -> float:
    """10^9 evaluations per second; what no unit lists takes as long as ten multiply-adds, comparisons as one."""
    known = target.rate(op, t.name)
    if known:
        return known
    plain = op not in OPS or OPS[op].result in ("bool", "int") or not OPS[op].ulp or op == "select"
    return (target.rate("mul_add", t.name) or 6.0 * width) / (1 if plain else 10)


def _stays_inside(
    a: Access,
    lane: str,
    s: Site,
    tensors: MappingABC[str, Tensor],
    sizes: MappingABC[str, int],
) -> bool:
    """Whether no index that moves along the lanes may leave the tensor."""
    for i, n in zip(a.indices, tensors[a.tensor].shape, strict=True):
        if isinstance(i, Var) or lane not in variables(i):
            continue
        form = affine(i, sizes)
        if form is None:
            return False
        low, high = extremes(form, s.extents)
        if low < 0 or high >= evaluate_size(n, sizes):
            return False
    return True


def contiguous(a: Access, lane: str, stored: MappingABC[str, Buffer]) -> bool:
    """Whether an access reads neighbours along a variable."""
    b = stored.get(a.tensor)
    if b is not None and b.packed:
        return True  # words of codes are laid out for the lanes that decode them
    layout = b.layout if b is not None else None
    if layout is not None and layout.digits:
        last = layout.digits[-1]
        if last.xor or last.stride not in (None, 1):
            return False
    fast = (
        layout.digits[-1].dimension if layout is not None and layout.digits else len(a.indices) - 1
    )
    return all((lane in variables(i)) == (d == fast) for d, i in enumerate(a.indices))


# ---- points


def _points(s: Site, target: Target, t: DType) -> LeafTime:
    e = s.do.einsum
    width = max(1, target.resource("lane").count * VECTOR_BYTES // t.itemsize)
    ghz = target.parameter("clock_ghz", 3.0)
    points = s.swept(s.facts.names)
    each = sum(n * width / _rate(target, op, t, width) for op, n in s.facts.work.items())
    once = target.parameter("point_cycles", 6) / ghz
    return LeafTime(e.target, "point", s.runs(), points * (each + once) * 1e-9)
