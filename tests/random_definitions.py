"""Random definitions, and the programs that they make, for `random_programs`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from random_expressions import Expressions, Scope, Tensor, Value

from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.dtype import BOOL, I64, DType, merge

SIZES = (1, 2, 3, 7, 8, 9, 16, 17, 37, 64, 127, 128, 129)


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


class Writer(Expressions):
    """A program of a few definitions: maps, products, reductions, windows, recurrences."""

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

    # ---- definitions

    def definition(self, name: str) -> None:
        kinds = {self.map: 4, self.contract: 3, self.reduce: 3, self.decide: 1}
        if "convolution" not in self.without:
            kinds[self.convolve] = 1
        if "recurrence" not in self.without:
            kinds[self.recur] = 1
        self.random.choices([*kinds], [*kinds.values()])[0](name)

    def finish(
        self, name: str, free: list[str], body: Value, monoid: dict[str, str], scope: Scope
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
        made = Tensor(
            name, dtype, tuple(v.upper() for v in free), min(low, outside), max(high, outside)
        )
        made.exact = dtype.kind != "f"
        made.partial = partial
        self.tensors.append(made)

    def partial_reads(self, text: str) -> bool:
        return any(t.partial and t.name in text for t in self.tensors)

    def map(self, name: str) -> None:
        free = [r.lower() for r in self.pick([*self.sizes], 0, 3)]
        scope = Scope(free, list(free))
        self.finish(name, free, self.covering(scope, self.random.randint(1, 3)), {}, scope)

    def contract(self, name: str) -> None:
        box = [r.lower() for r in self.pick([*self.sizes], 1, 3)]
        cut = self.random.randint(0, len(box) - 1)
        scope = Scope(box, list(box))
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
        scope = Scope(box, list(box))
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
        scope = Scope(box, list(box))
        text = f"({self.condition(scope)})"
        for v in list(scope.pending):
            text = f"({text} {self.one('and', 'or')} {v} % 3 {self.one('!=', '<')} 2)"
        reduced: dict[str, str] = {}
        if self.maybe(0.5, "any_all"):
            reduced = {v: self.one("any", "all") for v in box[-1:]}
        free = [v for v in box if v not in reduced]
        self.finish(name, free, Value(text, BOOL, 0, 1), reduced, scope)

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
        value = Value(f"{data.name}[{x}]", data.dtype, min(data.low, 0), max(data.high, 0))
        weight = Value(f"{taps.name}[{r}]", taps.dtype, taps.low, taps.high)
        scope = Scope([v.lower() for v in box])
        self.finish(name, [w, *others], self.multiply(value, weight), {}, scope)

    def recur(self, name: str) -> None:
        """A state along one rank: a decaying sum, a running extreme, or a count that may stop."""
        box = [r.lower() for r in self.pick([*self.sizes], 1, 2)]
        self.used.add("recurrence")
        t, rest = box[0], box[1:]
        scope = Scope(box, [])
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
        made = Tensor(last, dtype, tuple(v.upper() for v in rest), low, high, not dtype.is_float)
        if dtype.kind == "u":
            made.low, made.high = 0, 255
        made.partial = self.partial_reads(body)
        self.tensors.append(made)


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
