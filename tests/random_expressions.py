"""Random expressions over random tensors, with an interval that holds their values, for `random_programs`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcc.ir.cascade_text import parse_cascade
from tcc.ir.dtype import BOOL, DTYPES, F32, I64, DType, merge
from tcc.ir.index import evaluate_size

PROFILES = {"f32": 10, "f64": 3, "mixed": 3, "i32": 3, "i64": 3, "u8": 2, "integers": 2}
WEAK = DType("integer literal", "i", 0)
FEATURES = (
    "where",
    "indirect",
    "coalesce",
    "recurrence",
    "stop",
    "affine",
    "floordiv",
    "mixed_reductions",
    "alias",
    "prod",
    "any_all",
    "select",
    "cast",
    "bitwise",
    "mod",
    "convolution",
    "fill",
    "argmax",
)


@dataclass
class Tensor:
    """A tensor that may be read: its rank per dimension, and an interval that holds its values."""

    name: str
    dtype: DType
    ranks: tuple[str, ...]
    low: float
    high: float
    exact: bool = True  # its values are the same in every precision
    partial: bool = False  # it may be absent somewhere


@dataclass
class Value:
    """An expression as text, its type, and an interval that holds its values."""

    text: str
    dtype: DType
    low: float
    high: float
    exact: bool = False

    @property
    def size(self) -> float:
        return max(abs(self.low), abs(self.high))


@dataclass
class Scope:
    """The variables that an expression may use, and which of them it must still use."""

    vars: list[str]
    pending: list[str] = field(default_factory=list)


class Expressions:
    """Choices by chance, the tensors made so far, and expressions that read them."""

    def __init__(self, seed: int, without: set[str], points: int) -> None:
        assert without <= set(FEATURES), without - set(FEATURES)
        self.seed, self.without, self.points = seed, without, points
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.used: set[str] = set()
        self.profile = self.random.choices([*PROFILES], [*PROFILES.values()])[0]
        self.float = self.profile in ("f32", "f64", "mixed")
        self.sizes: dict[str, int] = {}
        self.ranks: list[str] = []  # as declared
        self.tensors: list[Tensor] = []
        self.inputs: list[str] = []
        self.arrays: dict[str, tuple[str, DType, float, float]] = {}
        self.lines: list[str] = []
        self.stops: list[str] = []

    # ---- choices

    def one(self, *options: Any) -> Any:
        return self.random.choice(options)

    def maybe(self, chance: float, feature: str = "") -> bool:
        """True with a chance, if the feature may be used."""
        if feature in self.without or self.random.random() >= chance:
            return False
        if feature:
            self.used.add(feature)
        return True

    def pick(self, names: list[str], least: int, most: int) -> list[str]:
        """Some ranks in random order, whose box has few enough points."""
        chosen: list[str] = []
        for name in self.random.sample(names, min(len(names), self.random.randint(least, most))):
            if math.prod(self.sizes[r] for r in [*chosen, name]) <= self.points:
                chosen.append(name)
        return chosen

    def dtype(self) -> DType:
        if self.profile == "mixed":
            return DTYPES[self.one("f32", "f64")]
        return DTYPES[self.one("i32", "i64", "u8") if self.profile == "integers" else self.profile]

    def input(
        self, ranks: list[str], dtype: DType, low: float = -2, high: float = 2, shape: str = ""
    ) -> Tensor:
        """A new input tensor over ranks, or with the size expressions of `shape`."""
        if dtype.is_integer and (low, high) == (-2, 2):
            low, high = (0, 255) if dtype.kind == "u" else (-9, 9)
        name = f"X{len(self.arrays)}"
        dims = shape or ", ".join(ranks)
        fill = 0.0
        mark = ""
        if low < 0 and self.maybe(0.08, "fill"):
            fill, mark = (-1.0, " fill -1")
        self.inputs.append(f"in {name}: {dtype}[{dims}]{mark}")
        self.arrays[name] = (dims, dtype, low, high)
        made = Tensor(name, dtype, tuple(ranks), min(low, fill), max(high, fill))
        if not shape:
            self.tensors.append(made)
        return made

    def array(self, name: str) -> Any:
        dims, dtype, low, high = self.arrays[name]
        shape = []
        if dims:
            declared = parse_cascade(f"ranks {', '.join(self.ranks)}\nin Y: f32[{dims}]\n").inputs[
                0
            ]
            shape = [evaluate_size(s, self.sizes) for s in declared.shape]
        if dtype == BOOL:
            return self.numbers.random(shape) < 0.7
        if dtype.is_integer:
            return self.numbers.integers(int(low), int(high) + 1, shape).astype(dtype.numpy)
        return self.numbers.uniform(low, high, shape).astype(np.float32).astype(dtype.numpy)

    # ---- expressions

    def covering(self, scope: Scope, depth: int) -> Value:
        """A number that uses every pending variable of the scope."""
        value = self.number(scope, depth)
        scope.pending = [v for v in scope.vars if v not in words(value.text)]
        for v in list(scope.pending):
            other = self.walked(v, scope)
            value = self.add(value, other) if self.maybe(0.5) else self.multiply(value, other)
        return value

    def walked(self, v: str, scope: Scope) -> Value:
        """A number that depends on variable `v`: an access, or the coordinate itself."""
        found = [t for t in self.tensors if v.upper() in t.ranks and self.fits(t)]
        if found and self.maybe(0.9):
            value = self.read(self.one(*found), scope)
            if v in words(value.text):
                return value
        if v in scope.pending:
            scope.pending.remove(v)
        size = self.sizes[v.upper()]
        if self.float:
            return Value(f"{self.one('f32', 'f32', 'f64')}({v})", F32, 0, size - 1, True)
        return Value(v, I64, 0, size - 1, True)

    def fits(self, t: Tensor) -> bool:
        return t.dtype.kind != "b" and (self.float or not t.dtype.is_float) and t.dtype.bits > 0

    def access(self, scope: Scope) -> Value:
        found = [t for t in self.tensors if self.fits(t)]
        wanted = [t for t in found if any(r.lower() in scope.pending for r in t.ranks)]
        if not found:
            found = [self.input([], self.dtype())]
        return self.read(self.one(*(wanted or found)), scope)

    def read(self, t: Tensor, scope: Scope) -> Value:
        low, high = t.low, t.high
        indices = []
        for rank in t.ranks:
            v = rank.lower()
            if (v in scope.vars and self.maybe(0.8)) or (
                "affine" in self.without and v in scope.vars
            ):
                index = v
            else:
                index = self.index(rank, scope)
                low, high = min(low, 0, -1), max(high, 0)  # outside: the fill
            for used in [u for u in scope.pending if u in words(index)]:
                scope.pending.remove(used)
            indices.append(index)
        text = f"{t.name}[{', '.join(indices)}]" if indices else t.name
        if t.dtype.kind in "ub":
            low = max(low, 0)
        value = Value(text, t.dtype, low, high, t.exact)
        if t.partial and self.maybe(0.3, "coalesce"):
            default = self.constant(t.dtype)
            return Value(
                f"({text} ?? {default.text})",
                t.dtype,
                min(low, default.low),
                max(high, default.high),
            )
        return value

    def index(self, rank: str, scope: Scope) -> str:
        """An index into a dimension: shifted, strided, reversed, indirect, or constant."""
        n, v = self.sizes[rank], rank.lower()
        options = [str(self.random.randrange(n)), f"{rank} - 1"]
        if v in scope.vars and self.maybe(1, "affine"):
            options = [
                f"{v} + 1",
                f"{v} - 1",
                f"{rank} - 1 - {v}",
                f"2 * {v}",
                f"{v} + 2 - {n % 4}",
            ]
            if self.maybe(0.3, "floordiv"):
                options = [
                    f"{v} // 2",
                    f"{v} % 2",
                    f"{v} // 3 * 3 + {v} % 3",
                    f"({v} + {n // 2}) % {rank}",
                ]
        others = [u for u in scope.vars if u != v]
        if others and self.maybe(0.3, "affine"):
            u = self.one(*others)
            options += [f"{u} - 1", f"{u} * 2 + 1"] + (
                [f"{u} + {v}", f"{u} - {v}"] if v in scope.vars else []
            )
        if scope.vars and self.maybe(0.2, "indirect"):
            u = self.one(*scope.vars)
            low, high = self.one((0, n - 1), (0, n - 1), (-1, n))
            table = self.input(
                [u.upper()], DTYPES[self.one("i64", "i32")], low, high, shape=u.upper()
            )
            return f"{table.name}[{u}]"
        return self.one(*options)

    def constant(self, dtype: DType) -> Value:
        if dtype == BOOL:
            return Value(self.one("true", "false"), BOOL, 0, 1)
        if dtype.is_float:
            x = self.one(0.5, -1.0, 2.0, 0.25, 1.5, -0.75, 3.0)
            return Value(repr(x), DType("float literal", "f", 0), x, x, True)
        n = self.random.randint(0 if dtype.kind == "u" else -5, 9)
        return Value(str(n), WEAK, n, n, True)

    def number(self, scope: Scope, depth: int) -> Value:
        """A random float or integer expression of at most `depth` nested operators."""
        if depth == 0:
            return self.access(scope) if self.maybe(0.85) else self.constant(self.dtype())
        a = self.number(scope, depth - 1)
        kind = self.random.random()
        if kind < 0.15 and "select" not in self.without:
            self.used.add("select")
            b = self.number(scope, depth - 1)
            if self.maybe(0.3):
                chosen, which = (a, 0) if self.maybe(0.5) else (b, 1)
                return self.like(
                    f"take({a.text}, {b.text}, {which})", a, b, chosen.low, chosen.high
                )
            text = f"select({self.condition(scope)}, {a.text}, {b.text})"
            return self.like(text, a, b, min(a.low, b.low), max(a.high, b.high))
        if kind < 0.5:
            return self.unary(a)
        b = self.number(scope, self.random.randrange(depth))
        return self.binary(a, b)

    def like(self, text: str, a: Value, b: Value, low: float, high: float) -> Value:
        return Value(text, merge(a.dtype, b.dtype), low, high)

    def add(self, a: Value, b: Value) -> Value:
        a, b = self.tame(a), self.tame(b)
        return self.like(f"({a.text} + {b.text})", a, b, a.low + b.low, a.high + b.high)

    def multiply(self, a: Value, b: Value) -> Value:
        a, b = self.tame(a, 3e3), self.tame(b, 3e3)
        ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        made = self.like(f"({a.text} * {b.text})", a, b, min(ends), max(ends))
        return made

    def tame(self, a: Value, limit: float = 3e4) -> Value:
        return a if a.size <= limit or a.dtype == DTYPES["u8"] else self.fit(a, -limit, limit)

    def fit(self, a: Value, low: float, high: float) -> Value:
        """`a` brought into an interval: scaled where that is possible, else clipped."""
        if a.low >= low and a.high <= high:
            return a
        if (
            a.dtype.is_float
            and math.isfinite(a.size)
            and low <= -1
            and high >= 1
            and self.maybe(0.6)
        ):
            factor = float(math.ceil(a.size / min(-low, high)))
            return Value(f"({a.text} / {factor!r})", a.dtype, a.low / factor, a.high / factor)
        if a.dtype.is_float:
            text = f"min(max({a.text}, {float(low)!r}), {float(high)!r})"
        elif a.dtype.kind == "u":
            text, low = f"min({a.text}, {int(high)})", 0
        else:
            text = f"min(max({a.text}, {math.ceil(low)}), {math.floor(high)})"
        return Value(
            text, a.dtype, max(low, min(a.low, high)), min(high, max(a.high, low)), a.exact
        )

    def unary(self, a: Value) -> Value:
        return self.float_unary(a) if self.float else self.integer_unary(a)

    def float_unary(self, a: Value) -> Value:
        name = self.one(*_FLOAT_UNARY)
        if a.exact and self.maybe(0.15):
            name = "step"
        if name == "cast" and self.maybe(1, "cast"):
            to = DTYPES[self.one("f32", "f64")]
            return Value(f"{to}({a.text})", to, a.low, a.high)
        if name == "step" and a.exact and not math.isinf(a.size):
            name = self.one("floor", "ceil", "round", "trunc", "sign")
            wide = (math.floor(a.low), math.ceil(a.high)) if name != "sign" else (-1, 1)
            return Value(f"{name}({a.text})", a.dtype, *wide, exact=True)
        if name not in _DOMAIN:
            name = "tanh"
        low, high, positive, image = _DOMAIN[name]
        if positive:
            a = self.fit(a, -high, high)
            text = f"(abs({a.text}) + {low!r})"
            a = Value(text, a.dtype, low, a.size + low)
        else:
            a = self.fit(a, low, high)
        shown = {"square": f"{a.text} ** 2", "cube": f"{a.text} ** 3", "neg": f"-{a.text}"}.get(
            name
        )
        if shown:
            shown = f"({shown})" if a.text[0] != "-" else f"(-(({a.text})))"
        dtype = a.dtype if a.dtype.bits or name in ("neg", "abs") else F32
        if shown == f"(-(({a.text})))":
            name = "neg"
        ends = sorted(image(x) for x in (a.low, a.high, min(max(0.0, a.low), a.high)))
        if name in ("sin", "cos"):
            ends = [-1.0, 1.0]
        return Value(shown or f"{name}({a.text})", dtype, ends[0], ends[-1])

    def integer_unary(self, a: Value) -> Value:
        u8 = a.dtype.kind == "u"
        name = self.one("neg", "abs", "sign", "mod", "floordiv", "cast", "bitwise", "fit")
        if name == "neg" and not u8:
            a = self.tame(a)
            return Value(f"(-({a.text}))", a.dtype, -a.high, -a.low)
        if name == "abs":
            a = self.tame(a)
            return Value(f"abs({a.text})", a.dtype, 0, a.size)
        if name == "sign" and not u8:
            return Value(f"sign({a.text})", a.dtype, -1, 1)
        n = self.random.randint(1, 9)
        if name == "mod" and self.maybe(1, "mod"):
            return Value(f"({a.text} % {n})", a.dtype, 0, n - 1)
        if name == "floordiv" and self.maybe(1, "floordiv") and math.isfinite(a.size):
            return Value(f"({a.text} // {n})", a.dtype, min(a.low, -1), a.high)
        if name == "cast" and self.maybe(1, "cast"):
            to = DTYPES[self.one("i32", "i64")]
            a = self.tame(a)
            return Value(f"{to}({a.text})", to, a.low, a.high)
        if name == "bitwise" and self.maybe(1, "bitwise"):
            if a.dtype.bits and self.maybe(0.5):
                return Value(f"popcount({a.text})", a.dtype, 0, a.dtype.bits)
            return Value(f"({a.text} & {2 ** self.one(1, 3, 5) - 1})", a.dtype, 0, 31)
        return self.fit(a, -9, 9)

    def binary(self, a: Value, b: Value) -> Value:
        name = self.one("add", "add", "sub", "mul", "mul", "max", "min", "last")
        if name in ("max", "min"):
            pick = max if name == "max" else min
            return self.like(
                f"{name}({a.text}, {b.text})", a, b, pick(a.low, b.low), pick(a.high, b.high)
            )
        if name == "add":
            return self.add(a, b)
        if name == "mul":
            return self.multiply(a, b)
        a, b = self.tame(a), self.tame(b)
        if name == "sub":
            return self.like(f"({a.text} - {b.text})", a, b, a.low - b.high, a.high - b.low)
        if not self.float:
            sign = self.one("^", "|")
            if self.maybe(0.5, "bitwise"):
                bits = 2.0 ** math.ceil(math.log2(max(a.size, b.size, 1) + 1))
                return self.like(f"({a.text} {sign} {b.text})", a, b, -bits, bits)
            if self.maybe(0.3) and a.dtype.bits:
                return Value(
                    f"({self.fit(a, -9, 9).text} ** {self.one(2, 3)})", a.dtype, -729, 6561
                )
            return self.like(
                f"max({a.text}, {b.text})", a, b, max(a.low, b.low), max(a.high, b.high)
            )
        if a.exact and b.exact and self.maybe(0.3, "mod"):
            n = self.one(0.75, 2.0, 3.5)
            text = f"({a.text} {self.one('%', '//')} {n})"
            return self.like(text, a, b, min(-1, a.low * 2), max(n, a.high * 2))
        if self.maybe(0.2):
            b = self.fit(b, -2, 2)
            a = self.fit(a, -9, 9)
            return self.like(f"((abs({a.text}) + 0.5) ** {b.text})", a, b, 0, 100)
        return self.like(f"({a.text} / (abs({b.text}) + 0.5))", a, b, -2 * a.size, 2 * a.size)

    # ---- predicates

    def predicate(self, names: list[str]) -> str:
        """A `where` over some of the variables."""
        if not names or self.maybe(0.3):
            return self.condition(Scope(list(names)))
        return self.affine(names)

    def affine(self, names: list[str]) -> str:
        v, u = self.one(*names), self.one(*names)
        n = self.sizes[v.upper()]
        options = [
            f"{v} < {max(1, n // 2)}",
            f"{v} % 3 != 1",
            f"{v} >= {n // 4}",
            f"{v} + 1 < {v.upper()}",
            f"{v} != {n // 2}",
        ]
        if u != v:
            options = [f"{v} <= {u}", f"{u} < {v} + 3", f"{v} + {u} >= 2", f"{v} * 2 <= {u} + 5"]
        return self.one(*options)

    def condition(self, scope: Scope) -> str:
        """A random Boolean expression: of coordinates, a Boolean tensor, or exact numbers."""
        found = [t for t in self.tensors if t.dtype == BOOL]
        if not found and self.maybe(0.3):
            found = [self.input([v.upper() for v in scope.vars[:2]], BOOL, 0, 1)]
        if found and self.maybe(0.6):
            text = self.read(self.one(*found), scope).text
            return text if self.maybe(0.7) else f"(not {text})"
        exact = [t for t in self.tensors if t.exact and self.fits(t) and t.dtype != BOOL]
        if exact and self.maybe(0.5):
            value = self.read(self.one(*exact), scope)
            other = self.constant(value.dtype)
            return f"({value.text} {self.one('<', '<=', '>', '>=', '==', '!=')} {other.text})"
        if not scope.vars:
            return self.one("true", "2 > 1", "false")
        text = f"({self.affine(scope.vars)})"
        for v in [v for v in scope.pending if v in words(text)]:
            scope.pending.remove(v)
        return text


def words(text: str) -> set[str]:
    """The lower-case one-letter names of a text: its rank variables."""
    return {
        w
        for w in "".join(c if c.isalnum() or c == "_" else " " for c in text).split()
        if len(w) == 1
    }


# name: (low, high, operand made positive, image): the operand is brought into [low, high],
# or for positive ones to abs(x) + low
_DOMAIN: dict[str, tuple[float, float, bool, Any]] = {
    "exp": (-20.0, 4.0, False, math.exp),
    "exp2": (-20.0, 6.0, False, lambda x: 2.0**x),
    "expm1": (-20.0, 4.0, False, math.expm1),
    "tanh": (-1e6, 1e6, False, math.tanh),
    "sigmoid": (-80.0, 80.0, False, lambda x: 1 / (1 + math.exp(-x))),
    "erf": (-1e3, 1e3, False, math.erf),
    "sin": (-50.0, 50.0, False, math.sin),
    "cos": (-50.0, 50.0, False, math.cos),
    "abs": (-1e6, 1e6, False, abs),
    "neg": (-1e6, 1e6, False, lambda x: -x),
    "square": (-100.0, 100.0, False, lambda x: x * x),
    "cube": (-30.0, 30.0, False, lambda x: x**3),
    "log": (0.5, 1e6, True, math.log),
    "log2": (0.5, 1e6, True, math.log2),
    "log1p": (0.0, 1e6, True, math.log1p),
    "sqrt": (0.25, 1e6, True, math.sqrt),
    "rsqrt": (0.25, 1e6, True, lambda x: 1 / math.sqrt(x)),
}
_FLOAT_UNARY = [*_DOMAIN, "cast", "step", "step"]
