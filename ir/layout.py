"""Where the elements of a tensor lie: a digit layout along the address axis.

A layout lists *digits* from slowest to fastest. Digit `d` is a whole dimension, `d/n` its coordinate divided by n,
`d%n` the remainder: `[1/16, 0, 1%16]` stores a matrix in panels of 16 columns. A dimension that is split by n is padded
to a multiple of n. This is the one-axis case of the named-axis digit layouts of docs/design.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Const, Expr, call
from tcc.ir.index import poly


@dataclass(frozen=True, slots=True)
class Digit:
    """(coordinate of `dimension` // `divisor`) % `modulus`; no modulus means all that is left."""

    dimension: int
    divisor: int = 1
    modulus: int | None = None

    def __str__(self) -> str:
        shown = str(self.dimension)
        if self.divisor != 1:
            shown += f"/{self.divisor}"
        return shown if self.modulus is None else f"{shown}%{self.modulus}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Digits from slowest to fastest; every coordinate is determined by its digits (checked)."""

    digits: tuple[Digit, ...]

    def __post_init__(self) -> None:
        by_dimension: dict[int, list[Digit]] = {}
        for d in self.digits:
            by_dimension.setdefault(d.dimension, []).append(d)
        for dimension, digits in by_dimension.items():
            covered = 1
            for d in sorted(digits, key=lambda d: d.divisor):
                if d.divisor != covered:
                    raise CompileError("T0201", f"layout {self}: dimension {dimension} is not covered exactly once",
                                       helps="split a dimension as `d/n` and `d%n`")  # fmt: skip
                covered = d.divisor * d.modulus if d.modulus else 0
            if covered:
                raise CompileError("T0201", f"layout {self}: dimension {dimension} is cut off at {covered}",
                                   helps=f"add the digit `{dimension}/{covered}`")  # fmt: skip

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.digits))}]"

    def padding(self, dimension: int) -> int:
        """The multiple that a dimension is padded to."""
        return max(d.divisor for d in self.digits if d.dimension == dimension)

    def extents(self, shape: tuple[Expr, ...]) -> list[Expr]:
        """The extent of each digit for a tensor of the given shape."""
        out: list[Expr] = []
        for d in self.digits:
            if d.modulus is not None:
                out.append(Const(d.modulus))
            elif d.divisor == 1:
                out.append(shape[d.dimension])
            else:
                value = poly(shape[d.dimension]).constant
                rounded = call(
                    "floordiv",
                    call("add", shape[d.dimension], Const(d.divisor - 1)),
                    Const(d.divisor),
                )
                out.append(rounded if value is None else Const(-(-value // d.divisor)))
        return out

    def address(self, indices: tuple[Expr, ...], shape: tuple[Expr, ...]) -> Expr:
        """The element offset of a coordinate, as an index expression."""
        extents = self.extents(shape)
        offset: Expr = Const(0)
        stride: Expr = Const(1)
        for d, extent in zip(reversed(self.digits), reversed(extents), strict=True):
            i = indices[d.dimension]
            if d.divisor != 1:
                i = call("floordiv", i, Const(d.divisor))
            if d.modulus is not None:
                i = call("mod", i, Const(d.modulus))
            offset = call("add", call("mul", i, stride), offset)
            stride = call("mul", stride, extent)
        return offset

    def elements(self, shape: tuple[Expr, ...]) -> Expr:
        """How many elements the storage holds, padding included."""
        total: Expr = Const(1)
        for extent in self.extents(shape):
            total = call("mul", total, extent)
        return total


def row_major(rank: int) -> Layout:
    """Dimensions in order, the last one contiguous."""
    return Layout(tuple(Digit(d) for d in range(rank)))
