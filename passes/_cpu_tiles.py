"""The register tile of a product on a CPU: how many rows and how many vectors of columns are added up at once."""

from __future__ import annotations

from collections.abc import Sequence

CHAINS = 10  # sums in flight that hide the latency of a fused multiply-add in two pipelines

LINE = 64  # bytes of a cache line
SETS, WAYS = 64, 8  # of the smallest cache


def register_tile(
    rows: int | None,
    columns: Sequence[int | None],
    lanes: int,
    registers: int,
    usual: tuple[int, int],
) -> tuple[int, int]:
    """(rows, vectors) of the tile that keeps the arithmetic busiest; `usual` where extents are unknown or it is as good.

    A tile is legal when its sums, one row of vectors and one broadcast value fit in the registers. What counts is the
    part of a tile's work that is wanted at these extents, the number of independent sums, and loads per product. Of
    several products that share their rows, `columns` lists the extents.
    """
    if rows is None or not columns or None in columns:
        return usual
    known = [n for n in columns if n is not None]

    def score(tile: tuple[int, int]) -> float:
        return busy(rows, known, lanes, tile) * (1.02 if tile == usual else 1.0)

    tiles = [
        (r, v)
        for r in range(1, registers)
        for v in range(1, registers)
        if r * v + (v if r > 1 else 1) + 1 <= registers
    ]
    return max([usual, *tiles], key=lambda t: (round(score(t), 3), t[0] * t[1], -t[0] - t[1]))


def busy(rows: int, columns: Sequence[int], lanes: int, tile: tuple[int, int]) -> float:
    """About which part of its peak the arithmetic reaches with such tiles."""
    r, v = tile
    wanted = _wanted(rows, r) * min(_wanted(n, v * lanes) for n in columns)
    return wanted * min(1.0, r * v / CHAINS) * min(1.0, r * v / (r + v))


def _wanted(extent: int, tile: int) -> float:
    """The part of whole tiles that lies inside an extent."""
    return extent / (-(-extent // tile) * tile)


def collisions(rows: int, stride: int) -> int:
    """How many of `rows` lines that lie `stride` bytes apart share one set of the smallest cache, at most."""
    sets = [row * stride // LINE % SETS for row in range(rows)]
    return max(map(sets.count, sets))
