"""Random verified cascades with small inputs, and the comparison that every backend is tested by.

    generate(seed) -> Program               the same program for the same seed, on every machine
    programs(without=("stop",))             a hypothesis strategy of programs
    assert_matches(cascade, outputs, inputs, sizes)

Values stay in sane domains: an interval is kept for every expression, and operands are clipped or
scaled where a function needs it, so that float programs are continuous almost everywhere and
integers do not overflow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.dtype import BOOL, DTYPES, F32, I64, DType, merge
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import interpret_with_bounds

SIZES = (1, 2, 3, 7, 8, 9, 16, 17, 37, 64, 127, 128, 129)
POINTS = 30_000  # of one definition; with at most six definitions that is below 200,000 in all
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


@dataclass(frozen=True)
class Program:
    """A verified cascade, inputs for it, its sizes, and the features that it uses."""

    seed: int
    cascade: Cascade
    inputs: dict[str, Any]
    sizes: dict[str, int]
    features: frozenset[str]

    def __repr__(self) -> str:
        return f"generate({self.seed})  # sizes {self.sizes}\n{self.cascade}"


def generate(seed: int, without: Iterable[str] = (), points: int = POINTS) -> Program:
    """The program of a seed, without some features; a definition has at most `points` points."""
    return _Writer(seed, set(without), points).program()


def programs(without: Iterable[str] = (), points: int = POINTS) -> st.SearchStrategy[Program]:
    """Random programs; a failing example shows its seed and its text."""
    left_out = tuple(without)
    return st.integers(0, 2**32 - 1).map(lambda seed: generate(seed, left_out, points))


def assert_matches(
    cascade: Cascade,
    outputs: Mapping[str, Any],
    inputs: Mapping[str, Any],
    sizes: Mapping[str, int] | None = None,
) -> None:
    """`outputs` are the interpreter's: integers exactly, floats within twice the error bound."""
    for name, want in interpret_with_bounds(cascade, inputs, sizes).items():
        assert name in outputs, f"output `{name}` is missing\n{cascade}"
        got, exact = np.asarray(outputs[name]), np.asarray(want.data)
        assert got.dtype == exact.dtype, f"`{name}` is {got.dtype}, not {exact.dtype}\n{cascade}"
        assert got.shape == exact.shape, (
            f"`{name}` has shape {got.shape}, not {exact.shape}\n{cascade}"
        )
        bad = ~_close(got, exact, np.asarray(want.error))
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0]) if bad.ndim else ()
            bound = np.broadcast_to(want.error, exact.shape)[first]
            raise AssertionError(
                f"`{name}` differs at {int(bad.sum())} of {bad.size} points, first at {first}: "
                f"got {got[first]!r}, expected {exact[first]!r}, bound {bound:.3g}, "
                f"sizes {dict(sizes or {})}, "
                f"shapes { {k: np.shape(v) for k, v in inputs.items()} }\n{cascade}"
            )


def _close(got: Any, want: Any, error: Any) -> Any:
    """Where `got` is right; points whose bound is infinite are not judged."""
    unknown = np.isinf(error) | np.isnan(error) & np.isfinite(want)
    if got.dtype.kind != "f":
        return (got == want) | unknown
    tiny = float(np.finfo(got.dtype).tiny)
    with np.errstate(all="ignore"):
        near = (
            np.abs(got.astype(np.float64) - want.astype(np.float64))
            <= 2 * np.nan_to_num(error) + tiny
        )
    return near | (got == want) | (np.isnan(got) & np.isnan(want)) | unknown


@dataclass
class _Tensor:
    """A tensor that may be read: its rank per dimension, and an interval that holds its values."""

    name: str
    dtype: DType
    ranks: tuple[str, ...]
    low: float
    high: float
    exact: bool = True  # its values are the same in every precision
    partial: bool = False  # it may be absent somewhere


@dataclass
class _Value:
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
class _Scope:
    """The variables that an expression may use, and which of them it must still use."""

    vars: list[str]
    pending: list[str] = field(default_factory=list)


class _Writer:
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
        self.tensors: list[_Tensor] = []
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

    # ---- the program

    def program(self) -> Program:
        for name in "IJKM"[: self.random.randint(1, 4)]:
            self.sizes[name] = self.one(*SIZES)
            self.ranks.append(name)
        if self.maybe(0.2, "alias"):
            self.sizes["N"] = self.sizes["I"]
            self.ranks.append("N=I")
        for _ in range(self.random.randint(1, 3)):
            self.input(self.pick([*self.sizes], 0, 3), self.dtype())
        for n in range(self.random.randint(1, 6)):
            self.definition(f"T{n}")
        head = [f"cascade random_{self.seed}", f"ranks {', '.join(self.ranks)}", *self.inputs]
        places = self.places()
        inferred = parse_cascade("\n".join(head + self.lines + places + self.stops)).tensors
        made = list(dict.fromkeys(line.split("[")[0].split(" ")[0] for line in self.lines))
        read = " ".join(line.split("=", 1)[1] for line in self.lines)
        outputs = []
        for name in made:
            if (
                (f"{name}[" not in read and name not in read.split())
                or self.maybe(0.2)
                or name == made[-1]
            ):
                t = inferred[name]
                floats = t.dtype.is_float or t.dtype.kind == "i"
                fill = self.one(" fill 3", " fill -1") if floats and self.maybe(0.1, "fill") else ""
                outputs.append(f"out {t}{fill}")
        outputs += [f"out {inferred[line.split('[')[0].split(' ')[0]]}" for line in places]
        cascade = parse_cascade(
            "\n".join(head + outputs + self.lines + places + self.stops), f"generate({self.seed})"
        )
        inputs = {name: self.array(name) for name in self.arrays}
        return Program(self.seed, cascade, inputs, dict(self.sizes), frozenset(self.used))

    def places(self) -> list[str]:
        """Perhaps where a tensor has its extreme. Draws of its own: the rest of the program is the same without."""
        random_ = random.Random(-1 - self.seed)
        found = [t for t in self.tensors if t.exact and t.ranks and t.dtype != BOOL]
        if "argmax" in self.without or not found or random_.random() > 0.15:
            return []
        self.used.add("argmax")
        t = random_.choice(found)
        names = [r.lower() for r in t.ranks]
        v = random_.choice(names)
        free = [n for n in names if n != v]
        where = random_.choice(["", "", f" where {v} % 3 != 1", f" where {v} > {names[0]}"])
        if "where" in self.without:
            where = ""
        head = f"A[{', '.join(free)}]" if free else "A"
        kind = random_.choice(["argmax", "argmin"])
        return [f"{head} = {t.name}[{', '.join(names)}] :: {kind}({v}){where}"]

    def input(
        self, ranks: list[str], dtype: DType, low: float = -2, high: float = 2, shape: str = ""
    ) -> _Tensor:
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
        made = _Tensor(name, dtype, tuple(ranks), min(low, fill), max(high, fill))
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

    # ---- definitions

    def definition(self, name: str) -> None:
        kinds = {self.map: 4, self.contract: 3, self.reduce: 3, self.decide: 1}
        if "convolution" not in self.without:
            kinds[self.convolve] = 1
        if "recurrence" not in self.without:
            kinds[self.recur] = 1
        self.random.choices([*kinds], [*kinds.values()])[0](name)

    def finish(
        self, name: str, free: list[str], body: _Value, monoid: dict[str, str], scope: _Scope
    ) -> None:
        """Writes the definition, with predicates, and records the interval of its target."""
        reduced = [v for v in scope.vars if v not in free]
        text, where, empty = body.text, "", self.partial_reads(body.text)
        if self.maybe(0.3, "where"):
            predicates = [self.predicate(scope.vars) for _ in range(self.one(1, 1, 2))]
            where, empty = f" where {', '.join(predicates)}", True
        low, high, dtype = body.low, body.high, body.dtype
        for v in reversed(reduced):
            low, high = _reduced(
                monoid.get(v, "sum"), low, high, self.sizes[v.upper()], dtype, empty
            )
        partial = bool(where) or self.partial_reads(text)
        if dtype.kind == "u" or dtype == BOOL:
            low, high = 0, 255 if dtype.kind == "u" else 1
        clause = ""
        if monoid:
            order = list(dict.fromkeys([*monoid, *reduced]))
            clause = " :: " + ", ".join(f"{monoid.get(v, 'sum')}({v})" for v in order)
        head = f"{name}[{', '.join(free)}]" if free else name
        self.lines.append(f"{head} = {text}{clause}{where}")
        outside = 0.0 if partial else low
        dtype = dtype if dtype.bits else I64
        made = _Tensor(
            name, dtype, tuple(v.upper() for v in free), min(low, outside), max(high, outside)
        )
        made.exact = dtype.kind != "f"
        made.partial = partial
        self.tensors.append(made)

    def partial_reads(self, text: str) -> bool:
        return any(t.partial and t.name in text for t in self.tensors)

    def map(self, name: str) -> None:
        free = [r.lower() for r in self.pick([*self.sizes], 0, 3)]
        scope = _Scope(free, list(free))
        self.finish(name, free, self.covering(scope, self.random.randint(1, 3)), {}, scope)

    def contract(self, name: str) -> None:
        box = [r.lower() for r in self.pick([*self.sizes], 1, 3)]
        cut = self.random.randint(0, len(box) - 1)
        scope = _Scope(box, list(box))
        product = self.access(scope)
        for _ in range(self.one(1, 1, 2)):
            other = self.access(scope)
            product = self.multiply(product, other)
        for v in list(scope.pending):
            product = self.multiply(product, self.walked(v, scope))
        self.finish(name, box[:cut], product, {}, scope)

    def reduce(self, name: str) -> None:
        box = [r.lower() for r in self.pick([*self.sizes], 1, 3)]
        cut = self.random.randint(0, len(box) - 1)
        scope = _Scope(box, list(box))
        body = self.covering(scope, self.random.randint(0, 2))
        reduced = box[cut:]
        monoids = ["sum", "max", "min"]
        if (
            self.float
            and math.prod(self.sizes[v.upper()] for v in reduced) <= 20
            and self.maybe(0.5, "prod")
        ):
            monoids, body = ["prod"], self.fit(body, -1.2, 1.2)
        if not self.float and "bitwise" not in self.without:
            monoids.append("xor")
        one = self.one(*monoids)
        chosen = dict.fromkeys(reduced, one)
        if len(reduced) > 1 and self.maybe(0.2, "mixed_reductions"):
            chosen = {v: self.one("sum", "max", "min") for v in reduced}
        if "xor" in chosen.values():
            self.used.add("bitwise")
        if not body.dtype.bits:
            chosen = dict.fromkeys(reduced, "sum")
        self.finish(name, box[:cut], body, chosen, scope)

    def decide(self, name: str) -> None:
        """A Boolean tensor, perhaps reduced with `any` or `all`."""
        box = [r.lower() for r in self.pick([*self.sizes], 1, 2)]
        scope = _Scope(box, list(box))
        text = f"({self.condition(scope)})"
        for v in list(scope.pending):
            text = f"({text} {self.one('and', 'or')} {v} % 3 {self.one('!=', '<')} 2)"
        reduced: dict[str, str] = {}
        if self.maybe(0.5, "any_all"):
            reduced = {v: self.one("any", "all") for v in box[-1:]}
        free = [v for v in box if v not in reduced]
        self.finish(name, free, _Value(text, BOOL, 0, 1), reduced, scope)

    def convolve(self, name: str) -> None:
        box = self.pick([*self.sizes], 2, 3)
        if len(box) < 2:
            return self.map(name)
        self.used.add("convolution")
        walked, window, *rest = box
        stride = self.one(1, 2, 3)
        size = self.one(f"{stride} * {walked} + {window} - {stride}", f"{walked}")
        data = self.input([], self.dtype(), shape=", ".join([size, *rest]))
        taps = self.input([window], self.dtype())
        w, r, *others = (v.lower() for v in box)
        x = ", ".join([f"{stride} * {w} + {r}{self.one('', '', ' - 1')}", *others])
        value = _Value(f"{data.name}[{x}]", data.dtype, min(data.low, 0), max(data.high, 0))
        weight = _Value(f"{taps.name}[{r}]", taps.dtype, taps.low, taps.high)
        scope = _Scope([v.lower() for v in box])
        self.finish(name, [w, *others], self.multiply(value, weight), {}, scope)

    def recur(self, name: str) -> None:
        """A state along one rank: a decaying sum, a running extreme, or a count that may stop."""
        box = [r.lower() for r in self.pick([*self.sizes], 1, 2)]
        self.used.add("recurrence")
        t, rest = box[0], box[1:]
        scope = _Scope(box, [])
        step = self.fit(
            self.walked(t, scope) if self.maybe(0.5) else self.covering(scope, 1), -9, 9
        )
        tail = "".join(f", {v}" for v in rest)
        old, new = f"{name}[{t}{tail}]", f"{name}[{t} + 1{tail}]"
        dtype = step.dtype if step.dtype.bits else I64
        start = "0.0" if dtype.is_float else f"{dtype}(0)"
        n = self.sizes[t.upper()] + 1
        extreme = self.one("max", "min")
        body, low, high = self.one(
            (f"{old} {'* 0.5 ' if dtype.is_float else ''}+ {step.text}", -9.0 * n, 9.0 * n),
            (f"{extreme}({old}, {step.text})", -9.0, 9.0),
        )
        if rest:
            self.lines.append(f"{name}[0{tail}] = {start} + {rest[0]} * 0")
            dtype = dtype if dtype.is_float else merge(dtype, I64)
        else:
            self.lines.append(f"{name}[0] = {start}")
        self.lines.append(f"{new} = {body}")
        if (
            not dtype.is_float
            and not rest
            and not self.partial_reads(body)
            and self.maybe(0.3, "stop")
        ):
            self.stops.append(f"stop {t} when {name}[{t} + 1] > {self.random.randint(0, 40)}")
        last = f"{name}_last"
        head = f"{last}[{', '.join(rest)}]" if rest else last
        self.lines.append(f"{head} = {name}[{t.upper()}{tail}]")
        made = _Tensor(last, dtype, tuple(v.upper() for v in rest), low, high, not dtype.is_float)
        if dtype.kind == "u":
            made.low, made.high = 0, 255
        made.partial = self.partial_reads(body)
        self.tensors.append(made)

    # ---- expressions

    def covering(self, scope: _Scope, depth: int) -> _Value:
        """A number that uses every pending variable of the scope."""
        value = self.number(scope, depth)
        scope.pending = [v for v in scope.vars if v not in _words(value.text)]
        for v in list(scope.pending):
            other = self.walked(v, scope)
            value = self.add(value, other) if self.maybe(0.5) else self.multiply(value, other)
        return value

    def walked(self, v: str, scope: _Scope) -> _Value:
        """A number that depends on variable `v`: an access, or the coordinate itself."""
        found = [t for t in self.tensors if v.upper() in t.ranks and self.fits(t)]
        if found and self.maybe(0.9):
            value = self.read(self.one(*found), scope)
            if v in _words(value.text):
                return value
        if v in scope.pending:
            scope.pending.remove(v)
        size = self.sizes[v.upper()]
        if self.float:
            return _Value(f"{self.one('f32', 'f32', 'f64')}({v})", F32, 0, size - 1, True)
        return _Value(v, I64, 0, size - 1, True)

    def fits(self, t: _Tensor) -> bool:
        return t.dtype.kind != "b" and (self.float or not t.dtype.is_float) and t.dtype.bits > 0

    def access(self, scope: _Scope) -> _Value:
        found = [t for t in self.tensors if self.fits(t)]
        wanted = [t for t in found if any(r.lower() in scope.pending for r in t.ranks)]
        if not found:
            found = [self.input([], self.dtype())]
        return self.read(self.one(*(wanted or found)), scope)

    def read(self, t: _Tensor, scope: _Scope) -> _Value:
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
            for used in [u for u in scope.pending if u in _words(index)]:
                scope.pending.remove(used)
            indices.append(index)
        text = f"{t.name}[{', '.join(indices)}]" if indices else t.name
        if t.dtype.kind in "ub":
            low = max(low, 0)
        value = _Value(text, t.dtype, low, high, t.exact)
        if t.partial and self.maybe(0.3, "coalesce"):
            default = self.constant(t.dtype)
            return _Value(
                f"({text} ?? {default.text})",
                t.dtype,
                min(low, default.low),
                max(high, default.high),
            )
        return value

    def index(self, rank: str, scope: _Scope) -> str:
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

    def constant(self, dtype: DType) -> _Value:
        if dtype == BOOL:
            return _Value(self.one("true", "false"), BOOL, 0, 1)
        if dtype.is_float:
            x = self.one(0.5, -1.0, 2.0, 0.25, 1.5, -0.75, 3.0)
            return _Value(repr(x), DType("float literal", "f", 0), x, x, True)
        n = self.random.randint(0 if dtype.kind == "u" else -5, 9)
        return _Value(str(n), WEAK, n, n, True)

    def number(self, scope: _Scope, depth: int) -> _Value:
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

    def like(self, text: str, a: _Value, b: _Value, low: float, high: float) -> _Value:
        return _Value(text, merge(a.dtype, b.dtype), low, high)

    def add(self, a: _Value, b: _Value) -> _Value:
        a, b = self.tame(a), self.tame(b)
        return self.like(f"({a.text} + {b.text})", a, b, a.low + b.low, a.high + b.high)

    def multiply(self, a: _Value, b: _Value) -> _Value:
        a, b = self.tame(a, 3e3), self.tame(b, 3e3)
        ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        made = self.like(f"({a.text} * {b.text})", a, b, min(ends), max(ends))
        return made

    def tame(self, a: _Value, limit: float = 3e4) -> _Value:
        return a if a.size <= limit or a.dtype == DTYPES["u8"] else self.fit(a, -limit, limit)

    def fit(self, a: _Value, low: float, high: float) -> _Value:
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
            return _Value(f"({a.text} / {factor!r})", a.dtype, a.low / factor, a.high / factor)
        if a.dtype.is_float:
            text = f"min(max({a.text}, {float(low)!r}), {float(high)!r})"
        elif a.dtype.kind == "u":
            text, low = f"min({a.text}, {int(high)})", 0
        else:
            text = f"min(max({a.text}, {math.ceil(low)}), {math.floor(high)})"
        return _Value(
            text, a.dtype, max(low, min(a.low, high)), min(high, max(a.high, low)), a.exact
        )

    def unary(self, a: _Value) -> _Value:
        return self.float_unary(a) if self.float else self.integer_unary(a)

    def float_unary(self, a: _Value) -> _Value:
        name = self.one(*_FLOAT_UNARY)
        if a.exact and self.maybe(0.15):
            name = "step"
        if name == "cast" and self.maybe(1, "cast"):
            to = DTYPES[self.one("f32", "f64")]
            return _Value(f"{to}({a.text})", to, a.low, a.high)
        if name == "step" and a.exact and not math.isinf(a.size):
            name = self.one("floor", "ceil", "round", "trunc", "sign")
            wide = (math.floor(a.low), math.ceil(a.high)) if name != "sign" else (-1, 1)
            return _Value(f"{name}({a.text})", a.dtype, *wide, exact=True)
        if name not in _DOMAIN:
            name = "tanh"
        low, high, positive, image = _DOMAIN[name]
        if positive:
            a = self.fit(a, -high, high)
            text = f"(abs({a.text}) + {low!r})"
            a = _Value(text, a.dtype, low, a.size + low)
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
        return _Value(shown or f"{name}({a.text})", dtype, ends[0], ends[-1])

    def integer_unary(self, a: _Value) -> _Value:
        u8 = a.dtype.kind == "u"
        name = self.one("neg", "abs", "sign", "mod", "floordiv", "cast", "bitwise", "fit")
        if name == "neg" and not u8:
            a = self.tame(a)
            return _Value(f"(-({a.text}))", a.dtype, -a.high, -a.low)
        if name == "abs":
            a = self.tame(a)
            return _Value(f"abs({a.text})", a.dtype, 0, a.size)
        if name == "sign" and not u8:
            return _Value(f"sign({a.text})", a.dtype, -1, 1)
        n = self.random.randint(1, 9)
        if name == "mod" and self.maybe(1, "mod"):
            return _Value(f"({a.text} % {n})", a.dtype, 0, n - 1)
        if name == "floordiv" and self.maybe(1, "floordiv") and math.isfinite(a.size):
            return _Value(f"({a.text} // {n})", a.dtype, min(a.low, -1), a.high)
        if name == "cast" and self.maybe(1, "cast"):
            to = DTYPES[self.one("i32", "i64")]
            a = self.tame(a)
            return _Value(f"{to}({a.text})", to, a.low, a.high)
        if name == "bitwise" and self.maybe(1, "bitwise"):
            if a.dtype.bits and self.maybe(0.5):
                return _Value(f"popcount({a.text})", a.dtype, 0, a.dtype.bits)
            return _Value(f"({a.text} & {2 ** self.one(1, 3, 5) - 1})", a.dtype, 0, 31)
        return self.fit(a, -9, 9)

    def binary(self, a: _Value, b: _Value) -> _Value:
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
                return _Value(
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
            return self.condition(_Scope(list(names)))
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

    def condition(self, scope: _Scope) -> str:
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
        for v in [v for v in scope.pending if v in _words(text)]:
            scope.pending.remove(v)
        return text


def _words(text: str) -> set[str]:
    """The lower-case one-letter names of a text: its rank variables."""
    return {
        w
        for w in "".join(c if c.isalnum() or c == "_" else " " for c in text).split()
        if len(w) == 1
    }


def _reduced(
    monoid: str, low: float, high: float, n: int, dtype: DType, empty: bool
) -> tuple[float, float]:
    """The interval of a reduction of at most `n` values; `empty` when it may have none."""
    if monoid == "sum":
        return min(low * n, 0), max(high * n, 0)
    if monoid == "prod":
        size = max(abs(low), abs(high), 1.0) ** n
        return -size, size
    if monoid == "xor":
        bits = 2.0 ** math.ceil(math.log2(max(abs(low), abs(high), 1) + 1))
        return -bits, bits
    if not empty or monoid in ("any", "all"):
        return low, high
    least, most = -math.inf, math.inf
    if dtype.is_integer and dtype.bits:
        info = np.iinfo(dtype.numpy)
        least, most = float(info.min), float(info.max)
    return (least, high) if monoid == "max" else (low, most)


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
