"""Building a cascade from traced operators: fresh names, ranks by size, reads with broadcasting and conversion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tcc.frontends._pytorch_sizes import Unsupported, is_one, size_expression, symbols
from tcc.ir.cascade import Cascade, Definition, Einsum, Rank, Reduction, Tensor
from tcc.ir.diagnostics import Source, Span
from tcc.ir.dtype import BOOL, DTYPES, F32, I64, DType
from tcc.ir.expr import (
    Access,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    call,
    text,
    transform,
    variables,
    with_children,
)
from tcc.ir.index import same
from tcc.ir.infer import expression_dtype
from tcc.ir.ops import INDEX_REDUCTIONS, MONOIDS, OPS

Value = Any  # Tensor, size expression, Python number, None, or a list of these
Lowering = Callable[..., Value]
Index = list[Expr]

_WORDS = {
    "cascade", "ranks", "in", "out", "stop", "when", "where", "extern", "fill", "and", "or", "not", "inf", "nan",
    "pi", "true", "false", *OPS, *DTYPES,
}  # fmt: skip


class NotLowered(Exception):
    """This use of an operator has no Einsum: it becomes an `Extern`."""


class Scope:
    """The variables of one definition: each of a rank named after its extent."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.extents: dict[str, Expr] = {}
        self._uses: dict[str, int] = {}

    def var(self, size: Expr) -> Expr:
        """A fresh variable over `size` coordinates; the constant 0 when there is only one."""
        if is_one(size):
            return Const(0)
        base = self.builder.rank_name(size)
        n = self._uses[base] = self._uses.get(base, -1) + 1
        name = base + ("" if n == 0 else chr(ord("A") + n) if n < 26 else f"Z{n}")
        self.builder.declare_rank(name, size, base)
        self.extents[name.lower()] = size
        return Var(name.lower())

    def index(self, shape: Iterable[Expr]) -> Index:
        """One fresh variable per dimension."""
        return [self.var(s) for s in shape]


class Builder:
    """The definitions so far, and the operator that is being lowered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ranks: dict[str, Rank] = {}
        self.tensors: dict[str, Tensor] = {}
        self.definitions: list[Definition] = []
        self.lookups: list[
            tuple[str, Expr]
        ] = []  # index tensors that eager checks, with the rows of their tables
        self.names: set[str] = set()
        self.node: Any = None
        self.node_name = ""
        self.span: Span | None = None
        self._derived: dict[str, str] = {}
        self._sources: dict[str, Source] = {}
        self._typing = Cascade(name, (), (), (), (), tensors=self.tensors)

    # ---- names and ranks

    def fresh(self, wanted: str) -> str:
        """A tensor name like `wanted` that is free, and no word of the language."""
        name = re.sub(r"\W+", "_", wanted).strip("_") or "t"
        name = name[0].lower() + name[1:]
        if name in _WORDS or re.fullmatch(r"[dsrz]\d+[a-z]*\d*", name) or not name[0].isalpha():
            name = f"t_{name}"
        unique, n = name, 2
        while unique in self.names:
            unique, n = f"{name}_{n}", n + 1
        self.names.add(unique)
        return unique

    def rank_name(self, size: Expr) -> str:
        """The name of the first rank of this size: `D384`, `S0`, or `R0` for a derived size."""
        if isinstance(size, Const):
            return f"D{size.value}"
        if isinstance(size, Size):
            return size.rank
        return self._derived.setdefault(text(size), f"R{len(self._derived)}")

    def declare_rank(self, name: str, size: Expr, base: str) -> None:
        if name not in self.ranks:
            symbol = isinstance(size, Size) and name == base
            self.ranks[name] = Rank(name, None if symbol else size)

    def scope(self) -> Scope:
        return Scope(self)

    # ---- types of traced values

    def dtype(self, dtype: Any) -> DType:
        """The tcc type of a torch dtype; raises `Unsupported` where the backends have none."""
        name = str(dtype).removeprefix("torch.")
        if name not in _TYPES:
            raise Unsupported(f"dtype {name} is not supported yet")
        return _TYPES[name]

    def spec(self, name: str, fake: Any, dtype: DType | None = None) -> Tensor:
        """A tensor's type from its fake value (and `dtype`, if that says more); checks that it lies on the CPU, dense."""
        import torch

        if fake.device.type != "cpu":
            raise Unsupported(f"tensors on `{fake.device}` are not supported")
        if fake.layout != torch.strided:
            raise Unsupported(f"layout {fake.layout} is not supported")
        shape = tuple(self.size(n) for n in fake.shape)
        return Tensor(name, dtype or self.dtype(fake.dtype), shape, 0, self.span)

    def equate(self, one: Expr, other: Expr) -> None:
        """Two sizes that an operator needs to be equal, are: the rank of the second is defined as the first."""
        if isinstance(one, Size) and isinstance(other, Size) and one.rank != other.rank:
            known = self.ranks[other.rank]
            if known.size is None and self.ranks[one.rank].size is None:
                self.ranks[other.rank] = replace(known, size=one)

    def size(self, n: Any) -> Expr:
        """A size as an expression; its symbols become ranks."""
        for s in symbols(n):
            if s.startswith("s"):
                self.ranks.setdefault(s.upper(), Rank(s.upper()))
        return size_expression(n)

    # ---- the operator being lowered

    def out(self, k: int = 0) -> Tensor:
        """The type of the operator's result number k, under a fresh name."""
        val = self.node.meta["val"]
        many = isinstance(val, (list, tuple))
        name = self.fresh(self.node_name if not many or k == 0 else f"{self.node_name}_{k}")
        return self.spec(name, val[k] if many else val)

    def out_shape(self, k: int = 0) -> tuple[Expr, ...]:
        """The shape of result number k."""
        val = self.node.meta["val"]
        return tuple(
            self.size(n) for n in (val[k] if isinstance(val, (list, tuple)) else val).shape
        )

    def out_dtype(self, k: int = 0) -> DType:
        """The element type of result number k."""
        val = self.node.meta["val"]
        return self.dtype((val[k] if isinstance(val, (list, tuple)) else val).dtype)

    def used(self, k: int) -> bool:
        """Whether result number k of the operator is read."""
        return any(u.args[1] == k and u.users for u in self.node.users if len(u.args) == 2)

    def temp(self, suffix: str, dtype: DType, shape: Sequence[Expr]) -> Tensor:
        """The type of an intermediate result, named after the operator and `suffix`."""
        return Tensor(self.fresh(f"{self.node_name}_{suffix}"), dtype, tuple(shape), 0, self.span)

    def define(
        self, t: Tensor, indices: Sequence[Expr], body: Expr, monoid: str = "sum",
        where: Sequence[Expr] = (), reduced: Mapping[str, str] | None = None,
    ) -> Tensor:  # fmt: skip
        """Adds `t[indices] = body :: monoid(…) where …`, converted to the type of `t`."""
        free = set(variables(*indices))
        inner = [v for v in variables(body, *where) if v not in free]
        kinds = {v: (reduced or {}).get(v, monoid) for v in inner}
        changing = any(m in INDEX_REDUCTIONS or MONOIDS[m].result == "bool" for m in kinds.values())
        dtype = expression_dtype(self._typing, body)
        if dtype != t.dtype and not changing:
            body = convert(body, t.dtype, dtype)
        body = transform(body, self._partly)
        self.tensors[t.name] = t
        self.definitions.append(
            Einsum(t.name, tuple(indices), body,
                   tuple(Reduction(v, m) for v, m in kinds.items() if m != "sum"), tuple(where), self.span)
        )  # fmt: skip
        return t

    def _partly(self, e: Expr) -> Expr:
        """`T[v]` becomes `T[v + 0]` where v does not walk the whole dimension, or walks beyond it: it is meant."""
        if not isinstance(e, Access):
            return e
        shape = self.tensors[e.tensor].shape
        return with_children(e, tuple(
            call("add", i, Const(0)) if isinstance(i, Var) and not same(self.extent(i), s) else i
            for i, s in zip(e.indices, shape, strict=True)
        ))  # fmt: skip

    def extent(self, v: Var) -> Expr:
        """The number of coordinates of a variable."""
        size = self.ranks[v.name.upper()].size
        return size if size is not None else Size(v.name.upper())

    def read(self, x: Value, index: Sequence[Expr], dtype: DType | None = None) -> Expr:
        """`x` at the last coordinates of `index`, broadcast as PyTorch does, converted to `dtype`."""
        if isinstance(x, Tensor):
            at = tuple(index)[len(index) - len(x.shape) :]
            found = Access(
                x.name,
                tuple(Const(0) if is_one(s) else i for i, s in zip(at, x.shape, strict=True)),
            )
            return convert(found, dtype or x.dtype, x.dtype)
        if isinstance(x, (bool, int, float)):
            return number(x, dtype)
        if isinstance(x, Const):
            return number(x.value, dtype)
        kind = expression_dtype(self._typing, x)
        return convert(x, dtype or kind, kind)

    # ---- places

    def place(self, node: Any) -> Span | None:
        """The line of the user's program that an operator comes from."""
        found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
        mine = [f for f in found if not re.search(r"[/\\]torch[/\\]", f[0])] or found
        if not mine:
            return None
        file, line = mine[-1][0], int(mine[-1][1])
        source = self._source(file)
        shown = source.line(line)
        indent = len(shown) - len(shown.lstrip())
        return Span(source, line, indent + 1, max(indent + 2, len(shown.rstrip()) + 1))

    def _source(self, file: str) -> Source:
        import linecache

        if file not in self._sources:
            self._sources[file] = Source(file, "".join(linecache.getlines(file)))
        return self._sources[file]


_TYPES = {
    "float32": F32, "float64": DTYPES["f64"], "bool": BOOL, "int64": I64, "int32": DTYPES["i32"],
    "int16": DTYPES["i16"], "int8": DTYPES["i8"], "uint8": DTYPES["u8"],
}  # fmt: skip


def number(x: bool | int | float, dtype: DType | None) -> Const:
    """A Python number as a literal that takes the type `dtype`."""
    if dtype is None:
        return Const(x)
    if dtype.is_float:
        return Const(float(x))
    return Const(bool(x)) if dtype == BOOL else Const(int(x))


def convert(e: Expr, wanted: DType, given: DType) -> Expr:
    """`e` of type `given` as `wanted`; to bool by comparison with 0, as PyTorch does."""
    if wanted == given:
        return e
    return call("ne", e, Const(0)) if wanted == BOOL else Cast(wanted, e)
