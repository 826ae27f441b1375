"""What the C generator knows at one place: intervals of variables, storage of tensors, functions in use."""

from __future__ import annotations

from dataclasses import dataclass, field

from tcc.backends.c._codes import computed, is_coded, stored_type, word
from tcc.backends.c._names import Names
from tcc.ir.cascade import Cascade, Einsum, Tensor
from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, call, transform, variables, walk
from tcc.ir.index import bounds, nonnegative, simplify_index, within
from tcc.ir.infer import expression_dtype
from tcc.ir.layout import Layout
from tcc.ir.mapping import Buffer

C_TYPES = {
    "f32": "float", "f64": "double", "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t",
    "u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t", "bool": "uint8_t",
}  # fmt: skip

LINE = 64  # bytes; every buffer starts on a cache line


@dataclass
class Interval:
    """The tile of a variable: from `low`, up to the C variable `high`; `step` is its static size, 1 makes it a point."""

    low: Expr
    high: str
    step: int | None
    whole: bool = True  # starts at 0 whatever the loops do


@dataclass
class Storage:
    """Where a tensor lies: a C pointer, and either strides (C text per dimension) or a layout over a window."""

    pointer: str
    dtype: DType
    strides: tuple[Expr, ...] | None = None
    layout: Layout | None = None
    shape: tuple[Expr, ...] = ()  # capacities of the window
    base: tuple[Expr, ...] = ()  # first coordinate of the window per dimension
    code: DType | None = None  # what is stored, where that is not `dtype`
    packed: int = 0  # bits of an element, where elements lie without gaps

    @property
    def element(self) -> str:
        """The C type of a stored element; of words or bytes, where elements are packed."""
        if self.packed:
            return "uint32_t" if self.strides is None else "uint8_t"
        return stored_type(self.code or self.dtype)


def storage_of(b: Buffer, pointer: str, shape: tuple[Expr, ...], base: tuple[Expr, ...]) -> Storage:
    """Where a buffer's window lies: decoded values, or codes without gaps."""
    code, bits = (b.dtype, b.bits) if b.packed else (None, 0)
    return Storage(pointer, computed(b.dtype), None, b.layout, shape, base, code, bits)


class Lines:
    """C text under construction."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.depth = 0

    def add(self, line: str) -> None:
        self.out.append("  " * self.depth + line if line else "")

    def open(self, line: str) -> None:
        self.add(line)
        self.depth += 1

    def close(self, line: str = "}") -> None:
        self.depth -= 1
        self.add(line)


@dataclass
class Scope:
    """Everything shared while one kernel is printed."""

    signature: Cascade
    names: Names
    lines: Lines
    functions: set[str] = field(default_factory=set)
    vector_bytes: int = 32  # of the vectors of a vector loop
    written: frozenset[str] = (
        frozenset()
    )  # outer tensors that the kernel writes once and never reads
    streams: bool = False  # whether some store goes past the caches
    trusted: bool = False  # all reads are known to lie inside here
    row: str | None = None  # the variable of the innermost loop over points
    intervals: dict[str, Interval] = field(default_factory=dict)
    storage: dict[str, Storage] = field(default_factory=dict)
    updates: set[int] = field(
        default_factory=set
    )  # Einsums that combine into their targets at every visit
    counters: dict[str, Expr] = field(
        default_factory=dict
    )  # C loop counters with their extents, where known
    extents: dict[str, Expr] = field(
        default_factory=dict
    )  # whole extents of the kernel's variables
    _dtypes: dict[int, tuple[Expr, DType]] = field(default_factory=dict)

    def dtype(self, e: Expr) -> DType:
        """The type in which C computes an expression."""
        if id(e) not in self._dtypes:
            self._dtypes[id(e)] = (e, computed(expression_dtype(self.signature, e)))
        return self._dtypes[id(e)][1]

    def tensor(self, name: str) -> Tensor:
        return self.signature.tensors[name]

    def use(self, function: str) -> str:
        self.functions.add(function)
        return function

    def coded(self, d: Einsum) -> bool:
        """Whether a definition touches elements that are stored otherwise than C computes with them."""
        types = [n.dtype for n in walk(d.body, *d.where) if isinstance(n, Cast)]
        codes = [self.storage[x].code for x in (d.target, *(a.tensor for a in d.reads))]
        return any(map(is_coded, types)) or any(c is not None for c in codes)

    def get(self, tensor: str, element: str) -> str:
        """The value of a stored element."""
        code = self.storage[tensor].code
        return element if code is None else f"{self.use(f'get_{word(code)}')}({element})"

    def put(self, a: Access, value: str) -> str:
        """What is stored for a value."""
        code = self.storage[a.tensor].code
        if code is None:
            return value
        if code.rounding != "stochastic":
            return f"{self.use(f'put_{word(code)}')}({value})"
        at: Expr = Const(0)  # the row-major position, which draws the random number
        for i, size in zip(a.indices, self.tensor(a.tensor).shape, strict=True):
            at = call("add", call("mul", at, size), i)
        place = integer_text(self, simplify_index(self.located(at), self.counters))
        put = self.use(f"put_{word(code)}{'_float' * code.is_integer}")
        return f"{put}({value}, {place})"

    def located(self, e: Expr) -> Expr:
        """An index with variables replaced by their values: lower bounds of their tiles plus counters."""
        return transform(
            e,
            lambda n: (
                self.intervals[n.name].low if isinstance(n, Var) and n.name in self.intervals else n
            ),
        )

    def address(self, a: Access) -> Expr:
        """The element offset of an access from its tensor's pointer."""
        s = self.storage[a.tensor]
        at = [simplify_index(self.located(i), self.counters) for i in a.indices]
        if s.strides is not None:
            offset: Expr = Const(0)
            for i, stride in zip(at, s.strides, strict=True):
                offset = call("add", offset, call("mul", i, stride))
            return simplify_index(offset, self.counters)
        assert s.layout is not None
        relative = tuple(
            simplify_index(call("sub", i, b), self.counters)
            for i, b in zip(at, s.base, strict=True)
        )
        return simplify_index(s.layout.address(relative, s.shape), self.counters)

    def unsafe(self, a: Access) -> list[tuple[Expr, Expr]]:
        """The (index, size) pairs of an access that may lie outside the tensor."""
        if self.trusted:
            return []
        shape = self.tensor(a.tensor).shape
        out = []
        for i, s in zip(a.indices, shape, strict=True):
            inside = isinstance(i, Var) and self.signature.same_size(
                self.extents.get(i.name, Const(-1)), s
            )
            if not inside and not within(i, s, self.extents) and not self._within(i, s):
                out.append((i, s))
        return out

    def _within(self, i: Expr, size: Expr) -> bool:
        """`within`, for ranks whose sizes are known."""
        known = {v: self.signature.resolved(self.extents[v]) for v in variables(i) if v in self.extents}  # fmt: skip
        return within(i, self.signature.resolved(size), known)


def plus(a: Expr, b: Expr) -> Expr:
    """a + b, where a zero is left out."""
    return b if isinstance(a, Const) and a.value == 0 else call("add", a, b)


def span_text(s: Scope, interval: Interval) -> str:
    """C text of the number of coordinates in an interval."""
    low = integer_text(s, interval.low)
    return (
        interval.high
        if low == "0"
        else f"{interval.high} - {low if low.isidentifier() else f'({low})'}"
    )


def integer_text(s: Scope, e: Expr) -> str:
    """C text of an index or size expression; operands of `/` and `%` are known to be non-negative."""
    if isinstance(e, Const):
        return str(int(e.value))
    if isinstance(e, Var):
        return e.name
    if isinstance(e, Size):
        return s.names.of("rank", e.rank)
    if isinstance(e, Call) and e.op in ("add", "sub", "mul"):
        symbol = {"add": "+", "sub": "-", "mul": "*"}[e.op]
        left, right = (integer_text(s, a) for a in e.args)
        if e.op == "mul":
            left, right = (_grouped(t, a) for t, a in zip((left, right), e.args, strict=True))
        elif e.op == "sub":
            right = _grouped(right, e.args[1])
        return f"{left} {symbol} {right}"
    if isinstance(e, Call) and e.op == "neg":
        inner = _grouped(integer_text(s, e.args[0]), e.args[0])
        return f"-({inner})" if inner.startswith("-") else f"-{inner}"
    if (
        isinstance(e, Call)
        and e.op in ("floordiv", "mod")
        and _counts(s, e.args[0])
        and _counts(s, e.args[1])
    ):
        left, right = (integer_text(s, a) for a in e.args)
        return f"({_simple(left)} {'/' if e.op == 'floordiv' else '%'} {_simple(right)})"
    from tcc.backends.c._scalar import scalar

    return scalar(s, e)


def _counts(s: Scope, e: Expr) -> bool:
    """Whether an index is certainly 0 or more, so that C's division is floor division."""
    span = bounds(e, {**s.extents, **s.counters})
    return span is not None and nonnegative(span[0])


def _simple(shown: str) -> str:
    return shown if shown.isidentifier() or shown.isdigit() else f"({shown})"


def _grouped(shown: str, e: Expr) -> str:
    return f"({shown})" if isinstance(e, Call) and e.op in ("add", "sub", "neg") else shown
