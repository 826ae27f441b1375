"""Element types: what values an element may have, independent of where it lies and whether it is stored.

    dtype ::= f16 f32 f64 · i8…i64 · u8…u64 · bool          native: NumPy and C have them
            | i1…i64 u1…u64                                 integers of any width
            | bf16 tf32 · fWeEmM…                           floats by exponent and mantissa        (Float)
            | eEm0 · pow2_N · positN_ES                     powers of two, posits                  (Float, Posit)
            | nf4 · codebook[v, …]                          a value per code                       (Table)
            | dtype[group k 128, scale dtype, …]            elements that share scales or tables   (Scaled)
            | dtype[coded k 256, lanes n 16, window 7]      exponents in a code of variable length    (Coded)
            | dtype.nearest · .zero · .stochasticN · .sat   how a value is rounded into it

`tcc.ir.dtype_text.dtype` reads and prints these spellings. Elements that are not native are *codes*: arithmetic decodes
them to `compute`, and what a definition stores into such a tensor is rounded once, at the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Float:
    """(-1)^s · 2^(e - bias) · (1 + f / 2^mantissa); an exponent field of 0 is 2^(1 - bias) · f / 2^mantissa.

    `specials` says what codes mean no finite number: `ieee` (the largest exponent is inf and NaN), `fn` (all ones is
    NaN), `fnuz` (what would be -0 is NaN) or `all` (none). Without `subnormal` an exponent of 0 is like any other.
    """

    exponent: int
    mantissa: int
    bias: int
    specials: str = "ieee"
    signed: bool = True
    subnormal: bool = True


@dataclass(frozen=True, slots=True)
class Posit:
    """(-1)^s · (2^2^exponent)^k · 2^e · (1 + f) with the regime k in unary; 10…0 is NaR, which decodes to NaN."""

    exponent: int


@dataclass(frozen=True, slots=True)
class Table:
    """Code c means `values[c]`."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Scaled:
    """Elements that share data: (value(code) - zero) · scale + offset, each of them one per group.

    `groups` names ranks with the coordinates that share one entry (None: all of the rank); other ranks have an entry
    per coordinate. Without any group, the whole tensor shares one. With `table`, a code is looked up in a table that
    comes with the tensor; with `vector` (k, n) it stands for n neighbours along rank k, a row of the table. With
    `residual` r, every code is r codes, whose rows, each from a table of its own, are added.
    """

    element: DType
    groups: tuple[tuple[str, int | None], ...] = ()
    scale: DType | None = None
    zero: DType | int | None = None
    offset: DType | None = None
    table: DType | None = None
    vector: tuple[str, int] | None = None
    residual: int = 1

    @property
    def ranks(self) -> tuple[str, ...]:
        """The variables of the ranks that it names, nested types included."""
        names = [k for k, _ in self.groups] + ([self.vector[0]] if self.vector else [])
        for part in (self.scale, self.zero, self.offset):
            if isinstance(part, DType) and isinstance(part.form, Scaled):
                names += part.form.ranks
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Coded:
    """Elements whose exponent fields are Huffman codes of up to `window` bits, by runs of neighbours along a rank.

    `run` and `lanes` are (rank, neighbours); lanes are runs that share a stream. `tcc.ir.dtype_coded` states the format.
    """

    element: DType
    run: tuple[str, int]
    lanes: tuple[str, int] | None = None
    window: int = 8

    @property
    def ranks(self) -> tuple[str, ...]:
        """The variables of the ranks that it names."""
        return tuple(k for k, _ in self.neighbours)

    @property
    def neighbours(self) -> tuple[tuple[str, int], ...]:
        """What divides which rank."""
        return (self.run, *((self.lanes,) if self.lanes else ()))


Form = Float | Posit | Table | Scaled | Coded


@dataclass(frozen=True, slots=True)
class DType:
    """A scalar type: `kind` is `f` (real numbers), `i`, `u` (two's complement, unsigned) or `b` (bool).

    `form` is what codes mean where that is neither an integer nor IEEE. `rounding` is `nearest` (ties to even), `zero`
    or `stochastic`; "" is that of the kind: nearest for floats, toward zero for integers. What is too large saturates,
    or becomes what the type has for it: inf, NaN, for integers the value modulo 2^bits.
    """

    name: str
    kind: str
    bits: int
    form: Form | None = None
    rounding: str = ""
    seed: int = 0
    saturate: bool = False

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def native(self) -> bool:
        """Whether NumPy has the type, with the same arithmetic."""
        return self.name in _NUMPY

    @property
    def compute(self) -> DType:
        """The type that elements are decoded to: itself if native, else i32, i64, f32 or f64, exactly."""
        if self.native or self.bits == 0:
            return self
        if self.form is None and (plain := DTYPES.get(f"{self.kind}{self.bits}")) is not None:
            return plain
        if self.is_integer:
            return I32 if self.bits <= (32 if self.kind == "i" else 31) else I64
        from tcc.ir.dtype_codes import fits_f32

        return F32 if fits_f32(self) else F64

    @property
    def in_parts(self) -> bool:
        """Whether a tensor of the type is an `Encoded`: several arrays, which its elements share."""
        return isinstance(self.form, Scaled | Coded)

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory, where each has bytes of its own."""
        return self.numpy.itemsize if self.bits else 1

    @property
    def packed_bits(self) -> int:
        """Bits of one element where elements lie without gaps: the least power of two that holds a code."""
        return 1 << max(0, self.bits - 1).bit_length()

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy type of stored elements: the values of integers, the codes of coded types (unsigned)."""
        if self.native:
            return _numpy(_NUMPY[self.name])
        size = next(n for n in (8, 16, 32, 64) if self.bits <= n)
        if self.form is None:
            kind = {"f": "float", "i": "int", "u": "uint"}[self.kind]
            return _numpy(f"{kind}{size}")
        if isinstance(self.form, Coded):
            from tcc.ir.dtype_coded import raw_type

            return raw_type(self.form.element)
        return self.form.element.numpy if isinstance(self.form, Scaled) else _numpy(f"uint{size}")

    @property
    def working(self) -> np.dtype[Any]:
        """The NumPy type in which interpreters hold decoded values: float64, or that of `compute`."""
        return _numpy("float64") if self.is_float else self.compute.numpy

    @property
    def roundoff(self) -> float:
        """Unit roundoff: half the distance from 1 to the next value; 0 for exact types."""
        if not self.is_float:
            return 0.0
        if isinstance(self.form, Float):
            return 2.0 ** -(self.form.mantissa + 1)
        return {64: 2.0**-53, 32: 2.0**-24, 16: 2.0**-11}[self.bits] if self.form is None else 0.5

    def load(self, stored: Any, axes: tuple[str, ...] = ()) -> Any:
        """The values of stored elements as an array of type `working`. T0148 for a code or value that it lacks.

        A scaled or coded type needs the variables of the dimensions' ranks, and an `Encoded`.
        """
        if self.native:
            return np.asarray(stored).astype(self.working)
        from tcc.ir.dtype_codes import decode
        from tcc.ir.dtype_scaled import decode_scaled

        if self.in_parts:
            return decode_scaled(stored, self, axes)
        return decode(stored, self)

    def store(self, values: Any, axes: tuple[str, ...] = (), positions: Any = None) -> Any:
        """Values rounded into the type, as stored elements: an array of type `numpy`, or an `Encoded` if scaled or coded."""
        if self.native:
            return np.asarray(values).astype(self.numpy)
        from tcc.ir.dtype_codes import encode
        from tcc.ir.dtype_scaled import encode_scaled

        if self.in_parts:
            return encode_scaled(values, self, axes)
        return encode(values, self, positions)

    def __str__(self) -> str:
        return self.name


_NUMPY = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bool": "bool",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8",
    "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8",
}  # fmt: skip


def _numpy(name: str) -> np.dtype[Any]:
    return np.dtype(name)


DTYPES: dict[str, DType] = {
    name: DType(name, name[0], 1 if name == "bool" else int(name[1:])) for name in _NUMPY
}
F64, F32, I64, I32, BOOL = (DTYPES[name] for name in ("f64", "f32", "i64", "i32", "bool"))


def from_numpy(dtype: np.dtype[Any]) -> DType | None:
    """The tcc type of a NumPy type, or None when there is none."""
    names = {np.dtype(value): key for key, value in _NUMPY.items()}
    return DTYPES.get(names.get(np.dtype(dtype), ""))


def promote(a: DType, b: DType) -> DType:
    """The least type that both operands convert to: floats beat integers, wider beats narrower.

    Both are native, or types of literals: arithmetic sees other types decoded.

    >>> promote(DTYPES["i64"], DTYPES["f32"]).name
    'f32'
    """
    order = "buif"
    if a.kind != b.kind:
        hi, lo = (a, b) if order.index(a.kind) > order.index(b.kind) else (b, a)
        if hi.kind == "i" and lo.kind == "u" and lo.bits >= hi.bits:
            return DTYPES[f"i{min(64, lo.bits * 2)}"]
        return hi
    return a if a.bits >= b.bits else b


def merge(a: DType, b: DType) -> DType:
    """`promote`, where literals adapt to the other operand."""
    if a.bits == 0 or b.bits == 0:
        weak, other = (a, b) if a.bits == 0 else (b, a)
        if other.bits == 0:
            return weak if weak.kind == "f" else other
        if weak.kind == "f":
            return other if other.is_float else F32
        return other if other.kind != "b" else I64
    return promote(a, b)
