"""Tiles on a CPU: what a kernel may choose, and the register tile, by rows and vectors of columns, of a product."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

from tcc.ir.target import Target

CHAINS = 10  # sums in flight that hide the latency of a fused multiply-add in two pipelines

MOST_ROWS = 8  # of a tile that nobody measured: each has an address of its own, for which there are few registers
MOST_VECTORS = 4  # of one of several rows: a panel of as many columns, as deep as a block, just fits the smallest cache

LINE = 64  # bytes of a cache line
SETS, WAYS = 64, 8  # of the smallest cache

ORDERS = tuple(permutations(("columns", "depth", "rows")))  # of loops over register tiles


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a kernel on a CPU is cut into; the names are those of the target's parameters.

    `tile_rows` x `tile_vectors` is the register tile of a product: the usual one, or, where it is `fixed`, the only one.
    Tasks of products have about `block_rows` x `block_columns` results, of which `block_depth` terms are added at once. A
    walk has tasks of `stream_rows` and tiles of `stream_tile`, of `stream_row` where one row at a time is walked. `way` is
    how a product reads its second operand: the n-th of `_cpu_place.Columns`, where that is possible; 0: the usual one.
    `order` is that of the loops over a task's register tiles and the blocks of their sums: an index of `ORDERS`.
    """

    tile_rows: int = 6
    tile_vectors: int = 2
    block_rows: int = 48
    block_columns: int = 256
    block_depth: int = 256
    stream_rows: int = 96
    stream_tile: int = 192
    stream_row: int = 2048
    way: int = 0
    order: int = 0
    fixed: bool = False

    @property
    def register(self) -> tuple[int, int]:
        return self.tile_rows, self.tile_vectors


def usual_tiles(target: Target) -> Tiles:
    """The tiles that the parameters of a target ask for."""
    names = [f.name for f in fields(Tiles) if f.name != "fixed"]
    given: dict[str, Any] = {n: int(target.parameters[n]) for n in names if n in target.parameters}
    return Tiles(**given)


def stored_tiles(numbers: Sequence[int]) -> Tiles:
    """The tiles whose fields, in order, are these numbers; ValueError where they are none."""
    *sizes, way, order, fixed = numbers
    legal = len(numbers) == len(fields(Tiles)) and min(sizes) > 0 and way >= 0 and fixed in (0, 1)
    if not legal or order not in range(len(ORDERS)):
        raise ValueError(f"{list(numbers)} are no tiles")
    names = [f.name for f in fields(Tiles)]
    given: dict[str, Any] = dict(zip(names, map(int, numbers), strict=True))
    return Tiles(**{**given, "fixed": bool(fixed)})


def order_of(index: int, kinds: Collection[str]) -> tuple[str, ...]:
    """The loops of some kinds, outermost first."""
    return tuple(kind for kind in ORDERS[index] if kind in kinds)


def distinct_orders(kinds: Collection[str]) -> list[int]:
    """The orders that differ if there are only loops of some kinds, the usual one first."""
    found: dict[tuple[str, ...], int] = {}
    for index in range(len(ORDERS)):
        found.setdefault(order_of(index, kinds), index)
    return list(found.values())


def register_tile(
    rows: int | None,
    columns: Sequence[int | None],
    lanes: int,
    registers: int,
    usual: tuple[int, int],
    whole: bool = False,
    speeds: Mapping[tuple[int, int], float] | None = None,
    joined: int = 1,
) -> tuple[int, int]:
    """(rows, vectors) of the tile that keeps the arithmetic busiest; `usual` where extents are unknown or it is as good.

    A tile is legal when its sums, one row of vectors and one broadcast value fit in the registers. What counts is the
    part of a tile's work that is wanted at these extents, the number of independent sums, and loads per product. Of
    several products that share their rows, `columns` lists the extents. `whole`: only tiles that divide the columns.
    `speeds`: what was measured, if anything was; it then takes the place of sums and loads, and no other tiles are legal.
    `joined`: how many vectors of `lanes` a register holds.
    """
    if rows is None or not columns or None in columns:
        return usual
    known = [n for n in columns if n is not None]

    def score(tile: tuple[int, int]) -> float:
        part = busy(rows, known, lanes, tile)
        if speeds:
            part = used(rows, known, lanes, tile) * speeds[tile] / max(speeds.values())
        return part * (1.02 if tile == usual else 1.0)

    tiles = [
        (r, v)
        for r in range(1, registers)
        for v in range(1, registers)
        if ((r, v) in speeds if speeds else r <= MOST_ROWS and (v <= MOST_VECTORS or rows <= r < 3))
        and legal(r, v, registers, joined)
    ]
    if whole:
        usual, *tiles = [(r, v) for r, v in tiles if not any(n % (v * lanes) for n in known)]
    return max([usual, *tiles], key=lambda t: (round(score(t), 3), t[0] * t[1], -t[0] - t[1]))


def legal(rows: int, vectors: int, registers: int, joined: int = 1) -> bool:
    """Whether the sums of a tile, one row of vectors and one broadcast value fit in registers of `joined` vectors."""

    def fits(v: int) -> bool:
        return rows * v + (v if rows > 1 else 1) + 1 <= registers

    return fits(vectors) or (vectors % joined == 0 and fits(vectors // joined))


def busy(rows: int, columns: Sequence[int], lanes: int, tile: tuple[int, int]) -> float:
    """About which part of its peak the arithmetic reaches with such tiles."""
    r, v = tile
    part = used(rows, columns, lanes, tile)
    return part * min(1.0, r * v / CHAINS) * min(1.0, 1 / loads(r, v))


def used(rows: int, columns: Sequence[int], lanes: int, tile: tuple[int, int]) -> float:
    """The part of the work of such tiles that is wanted."""
    r, v = tile
    return wanted(rows, r) * min(wanted(n, v * lanes) for n in columns)


def measured(target: Target, lanes: int, usual: tuple[int, int]) -> dict[tuple[int, int], float]:
    """GFLOP/s of the register tiles of f32 that were measured, at the depth that suits them; nothing if the usual is not
    among them."""
    found: dict[tuple[int, int], float] = {}
    for x in target.tiles:
        if x.dtype == "f32" and x.lanes == lanes:
            found[x.rows, x.vectors] = max(found.get((x.rows, x.vectors), 0.0), x.gflops)
    return found if usual in found else {}


def loads(rows: int, vectors: int) -> float:
    """Broadcasts and loads per multiply-add of vectors."""
    return (rows + vectors) / (rows * vectors)


def wanted(extent: int, tile: int) -> float:
    """The part of whole tiles that lies inside an extent."""
    return extent / (-(-extent // tile) * tile)


def collisions(rows: int, stride: int) -> int:
    """How many of `rows` lines that lie `stride` bytes apart share one set of the smallest cache, at most."""
    sets = [row * stride // LINE % SETS for row in range(rows)]
    return max(map(sets.count, sets))
