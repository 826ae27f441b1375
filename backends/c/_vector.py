"""C expressions for `lanes` consecutive points of one variable, as explicit vector values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tcc.backends.c._code_lanes import lanes_of_codes, load_codes
from tcc.backends.c._codes import HALVES, is_coded
from tcc.backends.c._narrow import cut, narrow, widened
from tcc.backends.c._scalar import common_type, inside, literal, scalar, typed
from tcc.backends.c._scope import Interval, Scope, integer_text, plus
from tcc.backends.c._vector_choice import branch, branches, looked_up
from tcc.ir.cascade import Einsum
from tcc.ir.dtype import DTYPES, DType
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Var,
    accesses,
    call,
    text,
    variables,
    walk,
)
from tcc.ir.index import Poly, poly

_SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "bit_and": "&",
    "bit_or": "|",
    "bit_xor": "^",
    "and": "&",
    "or": "|",
}
# the classes of element types that one vector loop may mix: value type, its mask and integer type, lanes of a register
# tile's vector (those of a vector loop are the scope's `vector_bytes`)
CLASSES = {"f32": ("i32", 8), "f64": ("i64", 4)}


def vector_class(s: Scope, definitions: list[Einsum], lane: str) -> str | None:
    """`f32` or `f64` when every value along `lane` is of that class, its integers or bool; else None."""
    seen: set[str] = set()
    for d in definitions:
        stored = cut(s, d)
        seen.add("i32" if stored is not None else s.storage[d.target].dtype.name)
        code = s.storage[d.target].code
        if code is not None and code.name not in HALVES:
            seen.add("other")  # rounded one by one
        for e in (d.body if stored is None else stored, *d.where):
            _collect(s, e, lane, seen)
    for name, (integer, _) in CLASSES.items():
        if seen <= {name, integer, "bool", "index"}:
            return name
    return None


def _collect(s: Scope, e: Expr, lane: str, seen: set[str]) -> None:
    """Element types of all sub-expressions that move along the lane."""
    if lane not in variables(e):
        return
    if isinstance(e, Var):
        seen.add("index")
        return
    if widened(s, e):
        seen.add(s.dtype(e).name if isinstance(e, Cast) else "i32")
        return
    t = s.dtype(e)
    if isinstance(e, Call) and t.name == "i64" and not accesses(e):
        calls = {
            n.op if isinstance(n, Call) else "cast" for n in walk(e) if isinstance(n, Call | Cast)
        }
        plain = calls <= {"add", "sub", "mul", "neg", "max", "min"}
        seen.add("index" if plain else "other")
        return
    if isinstance(e, Cast) and is_coded(e.dtype) and e.dtype.name not in HALVES:
        seen.add("other")
    seen.add(t.name if t.name in ("f32", "f64", "i32", "i64", "bool") else "other")
    if isinstance(e, Access):
        return
    if isinstance(e, Call) and t.is_integer and e.op in ("floordiv", "mod", "pow"):
        seen.add("other" if _shift(e) is None else t.name)
    for child in e.args if isinstance(e, Call) else (e.arg,) if isinstance(e, Cast) else ():
        _collect(s, child, lane, seen)


def _shift(e: Call) -> int | None:
    """n where an integer is divided by 2^n: rounding down, quotient and remainder are a shift and a mask."""
    by = e.args[-1].value if isinstance(e.args[-1], Const) else None
    if e.op not in ("floordiv", "mod") or type(by) is not int or by < 1 or by & (by - 1):
        return None
    return by.bit_length() - 1


@dataclass
class Hoisted:
    """Lines before a vector loop: broadcast values and row pointers that do not change in it."""

    at: int  # where in the text they stand
    depth: int
    inner: set[str] = field(default_factory=set)  # variables of loops inside the vector loop
    counters: set[str] = field(default_factory=set)  # C counters of those loops
    long: bool = True  # whether the loop runs often enough for what takes a while to compute
    names: dict[str, str] = field(default_factory=dict)

    def add(self, s: Scope, key: str, wish: str, declaration: str, value: str) -> str:
        """The name of a value that is computed once; `declaration` is its C type."""
        if key not in self.names:
            name = s.names.fresh(wish)
            s.lines.out.insert(self.at, "  " * self.depth + f"{declaration}{name} = {value};")
            self.at += 1
            self.names[key] = name
        return self.names[key]


@dataclass
class Vector:
    """Prints expressions at lanes `offset … offset + lanes - 1` of a chunk; equal sub-expressions are computed once."""

    s: Scope
    kind: str  # the class: f32 or f64
    lane: str  # the variable
    counter: str  # its C counter: the chunk starts at low + counter
    offset: int
    count: str | None  # in a tail: how many lanes are left
    memo: dict[str, str] = field(default_factory=dict)
    hoisted: Hoisted | None = None
    uses: dict[str, int] = field(default_factory=dict)  # of each sub-expression in the loop
    streamed: frozenset[str] = frozenset()  # targets that are stored past the caches

    @property
    def lanes(self) -> int:
        return self.s.vector_bytes // self.float.itemsize

    @property
    def integer(self) -> DType:
        return DTYPES[CLASSES[self.kind][0]]

    @property
    def float(self) -> DType:
        return DTYPES[self.kind]

    def type(self, t: DType) -> str:
        """The vector type of an element type: masks for bool, the class's integer for indices."""
        if t.name == self.kind:
            return f"{self.kind}x{self.lanes}"
        return f"{self.integer.name}x{self.lanes}"

    def fn(self, name: str, t: DType) -> str:
        return self.s.use(f"{name}_{self.type(t)}")

    # ---- values

    def value(self, e: Expr, want: DType) -> str:
        """A C variable or expression that holds the lanes of `e` as `want`."""
        if self.lane not in variables(e):
            return self._splat(e, want)
        have = self.s.dtype(e)
        return self.convert(self._shared(e), have, want)

    def mask(self, e: Expr) -> str:
        return self.value(e, DTYPES["bool"])

    def convert(self, value: str, have: DType, want: DType) -> str:
        a, b = self._element(have), self._element(want)
        if have.kind == "b" and want.kind != "b":
            one = self.fn("bc", want) + f"({literal(1, self._class(want))})"
            zero = self.fn("bc", want) + "(0)"
            return f"{self.fn('select', want)}({value}, {one}, {zero})"
        if want.kind == "b" and have.kind != "b":
            return f"({value} != 0)"
        if a == b:
            return value
        return f"{self.s.use(f'cvt_{self.type(want)}_{self.type(have)}')}({value})"

    def _class(self, t: DType) -> DType:
        return self.float if t.is_float else self.integer

    def _element(self, t: DType) -> str:
        return "bool" if t.kind == "b" else self._class(t).name

    def _splat(self, e: Expr, want: DType) -> str:
        """The same value in every lane, computed before the loop where that is possible."""
        t = self.integer if want.kind == "b" else self._class(want)
        shown = f"-({scalar(self.s, e)})" if want.kind == "b" else typed(self.s, e, t)
        value = f"{self.fn('bc', t)}({shown})"
        if isinstance(e, Const):
            return value
        key = f"splat {want.kind} {text(e)}"
        if self.hoisted is not None and not set(variables(e)) & self.hoisted.inner:
            return self.hoisted.add(self.s, key, "same", f"const {self.type(want)} ", value)
        return value

    def named(self, t: DType, shown: str) -> str:
        name = self.s.names.fresh("v")
        self.s.lines.add(f"{self.type(t)} {name} = {shown};")
        self.s.use(self.type(t))
        return name

    def _shared(self, e: Expr) -> str:
        if isinstance(e, Var):
            return self._index(e)
        key = text(e)
        if key in self.memo:
            return self.memo[key]
        shown = looked_up(self, e) or self._print(e)
        if self.uses.get(key, 0) == 1 and len(shown) < 160:
            return (
                f"({shown})"
                if (" " in shown and not shown.endswith(")")) or " ? " in shown or _loose(shown)
                else shown
            )
        self.memo[key] = self.named(self.s.dtype(e), shown)
        return self.memo[key]

    def _index(self, e: Var) -> str:
        """Coordinates of the lanes."""
        start = integer_text(self.s, self._start())
        iota = f"{self.fn('iota', self.integer)}()"
        return f"({self.fn('bc', self.integer)}({self._narrow(start)}) + {iota})"

    def _narrow(self, shown: str) -> str:
        return f"(int32_t)({shown})" if self.integer.name == "i32" else shown

    def _start(self) -> Expr:
        low = self.s.intervals[self.lane].low
        return plus(low, Const(self.offset)) if self.offset else low

    def _print(self, e: Expr) -> str:
        if isinstance(e, Access):
            return self._load(e)
        if isinstance(e, Cast) and is_coded(e.dtype):
            return f"{self._half(f'rnd_{e.dtype.name}')}({self.value(e.arg, self.float)})"
        if isinstance(e, Cast):
            return self.value(e.arg, e.dtype)
        assert isinstance(e, Call), text(e)
        return self._call(e)

    def _call(self, e: Call) -> str:
        t = self.s.dtype(e)
        if e.op in ("select", "take"):
            if e.op == "select" and branches(self, e):
                return branch(self, e, t)
            if e.op == "select":
                chosen, a, b = self.mask(e.args[0]), e.args[1], e.args[2]
            else:
                chosen, a, b = f"({self.value(e.args[2], self.integer)} == 0)", e.args[0], e.args[1]
            return f"{self.fn('select', t)}({chosen}, {self.value(a, t)}, {self.value(b, t)})"
        if e.op in ("and", "or"):
            return f"({self.mask(e.args[0])} {_SYMBOLS[e.op]} {self.mask(e.args[1])})"
        if e.op == "not":
            return f"(~{self.mask(e.args[0])})"
        if e.spec.result == "bool":
            common = self._class(common_type(self.s, e))
            left, right = self.value(e.args[0], common), self.value(e.args[1], common)
            return f"{self.fn(e.op, common)}({left}, {right})"
        if e.op == "div" and (divisor := self._divisor(e, t)) is not None:
            return f"{self.fn('over', t)}({self.value(e.args[0], t)}, {divisor})"
        args = [self.value(a, t) for a in e.args]
        if t.is_integer and (n := _shift(e)) is not None:
            return f"{args[0]} >> {n}" if e.op == "floordiv" else f"{args[0]} & {2**n - 1}"
        if e.op in _SYMBOLS:
            return f"{args[0]} {_SYMBOLS[e.op]} {args[1]}"
        if e.op == "neg":
            return f"(-({args[0]}))" if args[0].startswith("-") else f"(-{args[0]})"
        if e.op == "div":
            return f"{args[0]} / {args[1]}"
        if e.op == "floordiv":
            return f"{self.fn('floor', t)}({args[0]} / {args[1]})"
        if e.op == "mod":
            return f"{args[0]} - {self.fn('floor', t)}({args[0]} / {args[1]}) * {args[1]}"
        if t.is_integer and e.op in ("floor", "ceil", "round", "trunc"):
            return args[0]
        return f"{self.fn(e.op, t)}({', '.join(args)})"

    def _divisor(self, e: Call, t: DType) -> str | None:
        """The name of a divisor that stays the same in a long loop, with its inverse; None for any other, and for 2^n."""
        x, by = e.args
        loop = self.hoisted
        if loop is None or not loop.long or not t.is_float or set(variables(by)) & loop.inner:
            return None
        if self.lane in variables(by) or self.lane not in variables(x):
            return None
        if isinstance(by, Const) and abs(math.frexp(by.value)[0]) == 0.5:
            return None
        shown = typed(self.s, by, self._class(t))
        declaration = f"const divisor_{self.type(t)} "
        value = f"{self.fn('divisor_of', t)}({shown})"
        return loop.add(self.s, f"divisor {text(by)}", "divisor", declaration, value)

    def chosen(self, d: Einsum, value: str, t: DType) -> str:
        """The value where the target exists; elsewhere its fill, or what it holds where it is only updated."""
        outer = [p for p in d.where if not set(variables(p)) & set(d.reduced)]
        if not outer:
            return value
        if id(d) in self.s.updates:
            other = self.value(Access(d.target, d.indices), t)
        else:
            fill = literal(self.s.tensor(d.target).fill, self._class(t))
            other = f"{self.fn('bc', self._loaded(t))}({fill})"
        held = " & ".join(self.mask(p) for p in outer)
        return f"{self.fn('select', t)}({held}, {value}, {other})"

    # ---- memory

    def _load(self, a: Access) -> str:
        s = self.s
        t = s.dtype(a)
        step = self.step(a)
        moving = [(i, n) for i, n in s.unsafe(a) if self.lane in variables(i)]
        indirect = any(self.lane in variables(x) for i in a.indices for x in accesses(i))
        code = s.storage[a.tensor].code
        one_by_one = code is not None and code.name not in HALVES and not narrow(s, a.tensor)
        one_by_one = one_by_one and not lanes_of_codes(s, a.tensor, self.lanes)
        near = step is not None and (
            step.constant == 1 or (step.constant == 2 and code is None and t.is_float)
        )
        if not near or indirect or one_by_one:
            return self._gather(a, t)
        if moving:
            return self._window(a, t, moving)
        loaded = self._loaded_from(a, t)
        guards = s.unsafe(a)
        if not guards:
            return loaded
        fill = (
            f"{self.fn('bc', self._loaded(t))}({literal(s.tensor(a.tensor).fill, self._class(t))})"
        )
        return f"{inside(s, guards)} ? {loaded} : {fill}"

    def _loaded_from(self, a: Access, t: DType) -> str:
        """Lanes that are one or two elements apart, all of them inside."""
        step = self.step(a)
        if self.s.storage[a.tensor].packed:
            where = self._in_bytes(a)
            if self.count is None:
                return f"{self._memory('ld', a.tensor, t)}({where})"
            return f"{self._memory('ldn', a.tensor, t)}({where}, {self.count})"
        two = "2" if step is not None and step.constant == 2 else ""
        if self.count is None:
            return f"{self._memory('ld' + two, a.tensor, t)}({self.place(a)})"
        return f"{self._memory('ld' + two + 'n', a.tensor, t)}({self.place(a)}, {self.count})"

    def _in_bytes(self, a: Access) -> str:
        """`place` for packed elements: the byte at which a row starts, and the element from there."""
        s, stored = self.s, self.s.storage[a.tensor]
        rest, per = poly(s.address(a)).without(self.counter), 8 // stored.packed
        pointer, first = stored.pointer, ""
        if all(factor % per == 0 for factor in rest.terms.values()):
            rest = Poly({key: n // per for key, n in rest.terms.items()}, rest.atoms)
            base = integer_text(s, rest.expr())
            pointer = f"{pointer} + {base}" if base != "0" else pointer
        else:
            first = f"{integer_text(s, rest.expr())} + "
        return f"{pointer}, {first}{self.counter}{f' + {self.offset}' if self.offset else ''}"

    def place(self, a: Access) -> str:
        """Where the lanes of an access start that are one or two elements apart: a row pointer made before the loop, plus the
        counter."""
        s = self.s
        step = self.step(a)
        two = step is not None and step.constant == 2
        rest = poly(s.address(a)).without(self.counter)
        base = integer_text(s, rest.expr())
        pointer = s.storage[a.tensor].pointer
        used = {atom for key in rest.terms for atom in key}
        if (
            base != "0"
            and self.hoisted is not None
            and not used & self.hoisted.counters
            and not rest.mentions(self.hoisted.counters)
        ):
            element = s.storage[a.tensor].element
            pointer = self.hoisted.add(s, f"row {pointer} {base}", f"{pointer}_row", f"{element} *const ",
                                       f"({element} *){pointer} + {base}")  # fmt: skip
            base = "0"
        offset = f" + {self.offset * (1 + two)}" if self.offset else ""
        start = "" if base == "0" else f" + {base}"
        return f"{pointer}{start} + {'2 * ' * two}{self.counter}{offset}"

    def _memory(self, name: str, tensor: str, t: DType) -> str:
        """The function `ld`, `ldn`, `st` or `stn` for what is stored."""
        code = self.s.storage[tensor].code
        if stored := narrow(self.s, tensor):
            return self.fn(f"{name}_{stored}", self.integer)
        if code is not None:
            loads = load_codes(self.s, tensor, name, self.lanes)
            return loads or self._half(f"{name}_{code.name}")
        if t.kind == "b":
            name = f"{name[:2]}b{name[2:]}"
        elif name == "st" and tensor in self.streamed:
            name = "nt"
        return self.fn(name, self._loaded(t))

    def _half(self, name: str) -> str:
        """A function of `_codes`, which is written with these types."""
        self.s.functions |= {"f32x8", "i32x8"}
        return self.s.use(f"{name}_f32x8")

    def _loaded(self, t: DType) -> DType:
        return self.float if t.is_float else self.integer

    def step(self, a: Access) -> Poly | None:
        """How far apart neighbouring lanes lie, in elements; None when that is not the same everywhere."""
        p = poly(self.s.address(a))
        c = p.coefficient(self.counter)
        if (
            c is None
            or p.without(self.counter).mentions([self.counter])
            or c.mentions([self.counter])
        ):
            return None
        return c

    def _window(self, a: Access, t: DType, moving: list[tuple[Expr, Expr]]) -> str:
        """Contiguous lanes of which some may lie outside: one load where the first and the last lie inside, else a masked
        one."""
        s = self.s
        at = [poly(i).coefficient(self.lane) for i, _ in moving]
        if len(moving) > 1 or at[0] is None or at[0].constant != 1 or t.kind == "b":
            return self._gather(a, t)
        if self._loaded(t) != t or s.storage[a.tensor].code is not None:
            return self._gather(a, t)
        others = [g for g in s.unsafe(a) if not any(g[0] is i for i, _ in moving)]
        old = s.intervals[self.lane]
        ends = []
        for n in (0, self.lanes - 1):
            s.intervals[self.lane] = Interval(plus(old.low, Const(self.offset + n)), old.high, 1)
            ends.append((inside(s, moving), integer_text(s, s.located(moving[0][0]))))
        s.intervals[self.lane] = old
        start, size = ends[0][1], integer_text(s, moving[0][1])
        last = f"{size} - ({start})"
        if self.count is not None:
            last = f"{last} < {self.count} ? {last} : {self.count}"
        fill = literal(s.tensor(a.tensor).fill, self._class(t))
        shown = f"{self.fn('ldw', t)}({self.place(a)}, -({start}), {last}, {fill})"
        if self.count is None:
            within = f"{ends[0][0]} && {ends[1][0]}"
            shown = f"{within} ? {self._loaded_from(a, t)} : {shown}"
        if others:
            return f"!({inside(s, others)}) ? {self.fn('bc', t)}({fill}) : {shown}"
        return shown

    def _gather(self, a: Access, t: DType) -> str:
        """Lane by lane; lanes beyond the tail read the last valid point."""
        s = self.s
        old = s.intervals[self.lane]
        values = []
        for n in range(self.lanes):
            at: Expr = plus(old.low, Const(self.offset + n))
            if self.count is not None and n:
                at = call(
                    "add",
                    plus(old.low, Const(self.offset)),
                    Var(f"({n} < {self.count} ? {n} : 0)"),
                )
            s.intervals[self.lane] = Interval(at, old.high, 1)
            shown = scalar(s, a)
            values.append(f"-({shown})" if t.kind == "b" else shown)
        s.intervals[self.lane] = old
        self.s.use(self.type(t))
        return f"(({self.type(t)}){{{', '.join(values)}}})"

    def store(self, a: Access, value: str, full: bool) -> None:
        """`full`: every lane may be written although the tail is shorter (the storage is padded)."""
        s = self.s
        t = s.storage[a.tensor].dtype
        step = self.step(a)
        pointer = s.storage[a.tensor].pointer
        if step is not None and step.constant == 1:
            at = self.place(a)
            if self.count is None or full:
                s.lines.add(f"{self._memory('st', a.tensor, t)}({at}, {value});")
            else:
                s.lines.add(f"{self._memory('stn', a.tensor, t)}({at}, {value}, {self.count});")
            return
        name = self.named(t, value)
        old = s.intervals[self.lane]
        for n in range(self.lanes):
            s.intervals[self.lane] = Interval(plus(old.low, Const(self.offset + n)), old.high, 1)
            at = integer_text(s, s.address(a))
            shown = f"{name}[{n}] != 0" if t.kind == "b" else f"{name}[{n}]"
            guard = f"if ({n} < {self.count}) " if self.count is not None else ""
            s.lines.add(f"{guard}{pointer}[{at}] = {s.put(a, shown)};")
        s.intervals[self.lane] = old


def _loose(shown: str) -> bool:
    """Whether an infix operator stands outside all parentheses."""
    depth = 0
    for c in shown:
        depth += (c == "(") - (c == ")")
        if depth == 0 and c == " ":
            return True
    return False
