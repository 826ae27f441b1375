"""Tile sizes of a kernel's variables on a grid of blocks: contractions first, else rows of memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.expr import Access, Expr, Size, Var, transform
from tcc.ir.index import poly
from tcc.ir.ops import MONOIDS
from tcc.ir.target import Target
from tcc.passes._algebra import Contraction, contractions


def power_of_two(n: int) -> int:
    """The least power of two that is n or more."""
    return 1 << max(0, n - 1).bit_length()


def constant_extent(c: Cascade, extent: Expr) -> int | None:
    """An extent where it is a known number, derived ranks unfolded."""

    def unfold(n: Expr) -> Expr:
        size = rank.size if isinstance(n, Size) and (rank := c.rank(n.rank)) else None
        return transform(size, unfold) if size is not None else n

    return poly(transform(extent, unfold)).constant


@dataclass(frozen=True)
class Space:
    """What the sizes of tiles depend on: a kernel's definitions, its variables, and which of them are spread over the
    grid, step one by one (`steps`), or index a state that a whole walk keeps in registers (`kept`)."""

    c: Cascade
    target: Target
    members: tuple[Einsum, ...]
    extents: Mapping[str, Expr]
    grid: tuple[str, ...]
    steps: frozenset[str]
    kept: frozenset[str]
    stored: frozenset[str]  # tensors that leave the kernel

    def tiles(self) -> dict[str, int]:
        """Coordinates per tile of every variable on the grid and of every walked one; whole variables are absent."""
        found = [(d, s) for d in self.members if (s := next(contractions(d, MONOIDS), None))]
        exact = [s for d, s in found if self.is_product(d)]
        if exact:
            return self._contraction_tiles(exact, len(exact) > 1)
        if found:
            return self._general_tiles([s for _, s in found])
        return self._row_tiles()

    def is_product(self, d: Einsum) -> bool:
        """Whether the sum of products is one of floats, for which there is a matrix unit."""
        dtype = self.c.tensors[d.target].dtype
        return dtype.is_float and dtype.bits <= 32 and d.monoid(d.reduced[0]) == "sum"

    def constant(self, v: str) -> int | None:
        return constant_extent(self.c, self.extents[v])

    def parameter(self, name: str, default: int) -> int:
        return int(self.target.parameter(name, default))

    def _contraction_tiles(self, found: Iterable[Contraction], chain: bool) -> dict[str, int]:
        """Rows, columns and depth by parameters; other grid and reduced variables one coordinate at a time."""
        rows = {s.rows[-1] for s in found}
        columns = {s.columns[-1] for s in found}
        depths = {s.reduced[-1] for s in found}
        sides = {v: "tile_rows" if v in rows else "tile_columns" for v in [*rows, *columns]}
        shared = set.intersection(*(set(d.free) for d in self.members))
        spread = self.kept - shared  # columns of a state, in blocks of their own
        exact_chain = chain and not self.target.parameter("tf32", 0)
        tile: dict[str, int] = {}
        for v in self.extents:
            size = self.constant(v)
            wanted = self.parameter(sides.get(v, "tile_depth"), 32)
            if (v not in sides and v not in depths) or v in self.steps:
                wanted = 1
            if v in self.grid and v in sides and exact_chain and v not in spread:
                wanted = self.parameter("chain_rows", 32)  # exact products use many more registers
            limit = self.parameter("whole_extent", 128)
            limit = self.parameter("state_extent", 256) if v in self.kept else limit
            if v in self.grid:
                least = 16 if wanted > 1 else 1
                tile[v] = wanted if size is None else min(wanted, power_of_two(max(size, least)))
            elif size is None or size > limit or wanted == 1:
                tile[v] = wanted
        return tile

    def _general_tiles(self, found: Iterable[Contraction]) -> dict[str, int]:
        """A product without a matrix unit: rows x columns x depth in registers, the depth as far as they reach."""
        tile: dict[str, int] = {}
        sides = {v for s in found for v in (s.rows[-1], s.columns[-1])}
        depths = {s.reduced[-1] for s in found}
        side = self.parameter("general_side", 32)
        depth = max(1, self.parameter("general_elements", 8192) // (side * side))
        for v in self.extents:
            size = self.constant(v)
            wanted = side if v in sides else depth if v in depths else 1
            wanted = 1 if v in self.steps else wanted
            if size is not None:
                wanted = min(wanted, power_of_two(size))
            if v in self.grid or size is None or size > wanted:
                tile[v] = wanted
        return tile

    def _row_tiles(self) -> dict[str, int]:
        """The variable along which memory is contiguous gets the most elements; what is left goes to the next ones."""
        inner = [v for v in self.extents if v not in self.grid]
        local = {d.target for d in self.members} - self.stored
        weight = dict.fromkeys(
            self.extents, 0
        )  # how many tensors lie along a variable, the large ones most
        for d in self.members:
            for a in (*d.reads, Access(d.target, d.indices)):
                if a.indices and isinstance(i := a.indices[-1], Var) and a.tensor not in local:
                    weight[i.name] += len(a.indices) ** 2
        names = list(self.extents)
        order = sorted(names, key=lambda v: (-weight[v], v in self.grid, -names.index(v)))
        budget = self.parameter("block_elements", 4096) // (1 if inner else 4)
        row, walk = (self.parameter(p, 1024) for p in ("row_elements", "walk_elements"))
        tile: dict[str, int] = {}
        for n, v in enumerate(order):
            size = self.constant(v)
            if v in self.steps:
                tile[v] = 1
            elif v in self.grid:
                most = budget if not inner else 128 if n == 0 else 16
                tile[v] = min(budget, most, power_of_two(size) if size is not None else budget)
                budget //= tile[v]
            elif size is not None and (size <= row if n == 0 else power_of_two(size) <= budget):
                budget = max(1, budget // power_of_two(size))
            else:
                tile[v] = min(budget, walk if n == 0 else 32)
                budget //= tile[v]
        return tile
