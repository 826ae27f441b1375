"""Expressions over the current tile: which axes a value has, where it is loaded from, and what
guards the load.

Every variable of a kernel is *blocked* (a vector of `BLOCK` coordinates, one axis of tiles) or a
scalar (tiles of one coordinate). A value has the blocked variables it depends on as its axes; it
is spread over the axes of its statement by indexing with `None`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tcc.backends.triton._codes import decoded
from tcc.backends.triton._names import Lines, Names
from tcc.backends.triton._scalar import (
    ATOM,
    BIT_AND,
    COMPARISON,
    PRODUCT,
    SUM,
    UNARY,
    Code,
    apply,
    folded,
    literal,
    type_name,
)
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    call,
    text,
    transform,
    variables,
    walk,
)
from tcc.ir.index import poly, within
from tcc.ir.infer import expression_dtype
from tcc.ir.packed import per_byte

Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Register:
    """A tensor's tile in registers: the Python name that holds it, its axes, and the tiles it was
    made for.
    """

    name: str
    axes: Axes
    place: tuple[object, ...]
    following: str = ""  # of two steps of a recurrence the one being computed
    position: int = -1  # the dimension that tells the step

    def at(self, indices: tuple[Expr, ...], open_: list[str]) -> tuple[str, list[Expr]] | None:
        """The name that the indices mean, and the indices within the tile; None where they mean no
        step.
        """
        if self.position < 0:
            return self.name, list(indices)
        rest = [i for n, i in enumerate(indices) if n != self.position]
        index = indices[self.position]
        step = index.args[0] if isinstance(index, Call) and index.op == "mod" else index
        moving = variables(step)
        if not moving:
            return self.name, rest
        ahead = (poly(step) - poly(Var(moving[0]))).constant
        if ahead not in (0, 1) or moving[0] not in open_:
            return None
        return (self.following if ahead else self.name), rest


@dataclass
class Scope:
    """The body of an open loop: its variable, where its `for` line stands, and the names taken
    before it.
    """

    var: str
    line: int
    taken: set[str]


@dataclass
class Tile:
    """The state of emission inside one kernel."""

    signature: Cascade
    extents: dict[str, Expr]
    block: dict[str, int]  # 1: a scalar
    lines: Lines
    names: Names
    helpers: dict[str, str]
    coordinate: dict[str, str] = field(
        default_factory=dict
    )  # variable, or an end of its tile -> Python name of its coordinates
    place: dict[str, object] = field(
        default_factory=dict
    )  # variable -> the loop that is cutting it
    registers: dict[str, Register] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)
    strides: dict[tuple[str, int], str] = field(default_factory=dict)
    ranks: dict[str, str] = field(default_factory=dict)
    block_names: dict[str, str] = field(default_factory=dict)
    loaded: list[dict[tuple[str, Axes], str]] = field(default_factory=lambda: [{}])
    scopes: list[Scope] = field(default_factory=list)
    products: set[str] = field(default_factory=set)  # tensors that a `tl.dot` computes
    whole: set[str] = field(default_factory=set)  # variables whose current tile is complete
    masked: bool = False  # whether a `tl.dot` leaves out points that a mask excludes
    computed: bool = False  # whether an operand of a `tl.dot` is more than a loaded tile
    ignored: dict[str, frozenset[str]] = field(
        default_factory=dict
    )  # tensor -> predicates that all its readers repeat

    # ---- scopes: what a loop's body defines is gone after it

    def open(self, var: str) -> None:
        """Enters the body of the `for` statement that was just added."""
        self.loaded.append({})
        self.scopes.append(Scope(var, len(self.lines.text) - 1, set(self.names.taken)))
        self.lines.depth += 1

    def close(self) -> None:
        self.loaded.pop()
        keep = self.scopes.pop().taken
        keep |= {
            *self.pointers.values(),
            *self.strides.values(),
            *self.ranks.values(),
            *self.block_names.values(),
        }
        self.names.taken = keep
        self.lines.depth -= 1

    def define(self, wanted: str, call: str, arguments: list[str], level: int) -> str:
        """Adds `name = call(arguments)` to the scope of the given depth, before the loops inside
        it.
        """
        name = self.names.fresh(wanted)
        inner = self.scopes[level:]
        for scope in inner:
            scope.taken.add(name)
        at = inner[0].line if inner else len(self.lines.text)
        count = self.lines.insert(at, 1 + level, f"{name} = {call}", arguments)
        for scope in inner:
            scope.line += count
        return name

    # ---- sizes

    def unfold(self, e: Expr) -> Expr:
        """A size with the ranks of fixed size replaced by what they are."""

        def rule(n: Expr) -> Expr:
            rank = self.signature.rank(n.rank) if isinstance(n, Size) else None
            return transform(rank.size, rule) if rank is not None and rank.size is not None else n

        return transform(e, rule)

    def size(self, e: Expr) -> Code:
        """An integer expression over sizes."""
        value = poly(e := self.unfold(e)).constant
        return literal(value) if value is not None else self._integer(poly(e).expr(), ())

    def ragged(self, v: str) -> bool:
        """Whether the last tile of a variable may reach beyond its extent."""
        if self.block[v] == 1 or v in self.whole:
            return False
        extent = poly(self.unfold(self.extents[v])).constant
        return extent is None or extent % self.block[v] != 0

    # ---- axes

    def axes(self, e: Expr, order: Axes) -> Axes:
        """The axes of a value, in the given order."""
        used = set(variables(e))
        return tuple(v for v in order if v in used and self.block[v] > 1)

    def spread(self, code: str, axes: Axes, order: Axes) -> str:
        """A value with the given axes as one that broadcasts over `order`."""
        wanted = tuple(v for v in order if v in axes)
        if wanted != axes:
            code = (
                f"tl.permute({code}, {[axes.index(v) for v in wanted]})"
                if len(axes) > 2
                else f"tl.trans({code})"
            )
        if wanted == order or not wanted:
            return code
        return f"{code}[{', '.join(':' if v in wanted else 'None' for v in order)}]"

    def shape(self, order: Axes) -> str:
        return f"[{', '.join(self.block_name(v) for v in order)}]"

    def block_name(self, v: str) -> str:
        if v not in self.block_names:
            self.block_names[v] = self.names.fresh(f"BLOCK_{v.upper()}")
        return self.block_names[v]

    def inside(self, v: str, order: Axes) -> Code:
        """The predicate that a coordinate of `v` exists."""
        at = self.spread(self.coordinate[v], (v,), order)
        return Code(f"{at} < {self.size(self.extents[v]).within(COMPARISON + 1)}", COMPARISON)

    # ---- expressions

    def value(self, e: Expr, order: Axes) -> Code:
        """The value of an expression as Python text that broadcasts over `order`."""
        if (known := folded(self.unfold(e))) is not None:
            return literal(known)
        if isinstance(e, Const):
            return literal(e.value)
        if isinstance(e, Size):
            return self.size(e)
        if isinstance(e, Var):
            return Code(self.spread(self.coordinate[e.name], self.axes(e, order), order))
        if isinstance(e, Access):
            return self.access(e, order)
        if isinstance(e, Cast):
            inner = self.value(e.arg, order).text
            return Code(
                f"({inner} != 0)"
                if e.dtype.kind == "b"
                else f"tl.cast({inner}, {type_name(e.dtype)})"
            )
        assert isinstance(e, Call)
        axes = self.axes(e, order)
        if axes and axes != order:  # few elements first, then spread over the tile
            return Code(self.spread(self.value(e, axes).within(ATOM), axes, order))
        args = [self.value(a, order) for a in e.args]
        operands = [expression_dtype(self.signature, a) for a in e.args]
        operand = next((d for d in operands if d.is_float), operands[-1])
        return apply(e, args, expression_dtype(self.signature, e), operand, self.helpers)

    def narrow(self, e: Expr) -> bool:
        """Whether an integer of 64 bits is computed with fewer, as coordinates are."""
        wide = [
            expression_dtype(self.signature, n) for n in walk(e) if isinstance(n, Access | Cast)
        ]
        whole = expression_dtype(self.signature, e)
        return whole.is_integer and whole.bits == 64 and not any(d.bits == 64 for d in wide)

    def access(self, a: Access, order: Axes) -> Code:
        held = self.registers.get(a.tensor)
        if held is None:
            axes = self.axes(a, order)
            return Code(self.spread(self.load(a, axes), axes, order))
        name = self.register(held, a)
        if any(v not in order for v in held.axes):
            raise CompileError("T0362", f"`{text(a)}` has an axis that its reader lacks", a.span)
        return Code(self.spread(name, held.axes, order))

    def register(self, held: Register, a: Access) -> str:
        """The Python name of a register tile. It can not be cut further: its variables must be
        where it was made.
        """
        found = held.at(a.indices, [s.var for s in self.scopes])
        names = [i.name for i in found[1] if isinstance(i, Var)] if found else []
        if found is None or len(names) != len(found[1]):
            raise CompileError(
                "T0362",
                f"the register tile `{a.tensor}` is accessed as `{text(a)}`",
                a.span,
                helps="access a register tile with the variables of its dimensions",
            )
        if tuple(self.place.get(v) for v in names) != held.place:
            raise CompileError(
                "T0362",
                f"`{text(a)}` is one piece of a larger register tile",
                a.span,
                helps=f"allocate `{a.tensor}` inside the loops that cut its variables",
            )
        return found[0]

    def load(self, a: Access, axes: Axes) -> str:
        """The Python name of a loaded tile; a tile is loaded once, outside the loops that do not
        move it.
        """
        key = (text(a), axes)
        for scope in self.loaded:
            if key in scope:
                return scope[key]
        used = set(variables(a))
        level = max((n + 1 for n, scope in enumerate(self.scopes) if scope.var in used), default=0)
        t = self.signature.tensors[a.tensor]
        coded = not t.dtype.native or t.packed
        arguments = [self.address(a, axes)]
        mask = self.guard(a, axes)
        if mask is not None:
            other = 0 if coded else t.fill
            arguments += [f"mask={mask.text}", f"other={literal(other).text}"]
        indirect = any(isinstance(n, Access) for i in a.indices for n in walk(i))
        while level < len(self.scopes) and not self.scopes[level].var:
            level += 1  # what only some tiles need is loaded inside their `if`
        level = len(self.scopes) if indirect else level
        name = self.define(f"{a.tensor}{'_codes' * coded}", "tl.load", arguments, level)
        if coded:
            name = self.decode(a, name, axes, mask, level)
        self.loaded[level][key] = name
        return name

    def decode(self, a: Access, codes: str, axes: Axes, mask: Code | None, level: int) -> str:
        """The Python name of the values of loaded codes: of packed ones their bits of a byte; the fill where nothing was
        loaded.
        """
        t = self.signature.tensors[a.tensor]
        if t.packed:
            place = self._integer(call("mod", a.indices[-1], Const(per_byte(t))), axes)
            codes = f"{codes} >> ({place.within(PRODUCT)} * {t.bits})"
            if t.dtype.native:  # bool
                codes = f"({codes}) & {2**t.bits - 1}"
        value = (
            f"({codes}) != 0" if t.dtype.native else f"{decoded(t.dtype, self.helpers)}({codes})"
        )
        if mask is None:
            return self.define(a.tensor, "", [value], level)
        return self.define(a.tensor, "tl.where", [mask.text, value, literal(t.fill).text], level)

    def address(self, a: Access, axes: Axes) -> str:
        """The addresses of a tile."""
        if a.tensor not in self.pointers:
            self.pointers[a.tensor] = self.names.fresh(f"{a.tensor}_ptr")
        terms = [self.pointers[a.tensor]]
        packed = self.signature.tensors[a.tensor].packed
        for n, i in enumerate(a.indices):
            if packed and n == len(a.indices) - 1:
                i = call("floordiv", i, Const(per_byte(self.signature.tensors[a.tensor])))
            terms.append(f"{self._integer(i, axes).within(PRODUCT)} * {self.stride(a.tensor, n)}")
        return " + ".join(terms)

    def stride(self, tensor: str, n: int) -> str:
        key = (tensor, n)
        if key not in self.strides:
            shape = [text(s) for s in self.signature.tensors[tensor].shape]
            unique = shape.count(shape[n]) == 1 and shape[n].isidentifier()
            self.strides[key] = self.names.fresh(f"{tensor}_stride_{shape[n] if unique else n}")
        return self.strides[key]

    def guard(self, a: Access, axes: Axes) -> Code | None:
        """The predicate that an access is inside its tensor; None where that is certain."""
        terms: dict[str, Term] = {}
        extents = {v: self.unfold(e) for v, e in self.extents.items()}
        for i, size in zip(a.indices, self.signature.tensors[a.tensor].shape, strict=True):
            for v in variables(i):
                if self.ragged(v):
                    terms.setdefault(v, (self.inside(v, axes), False))
            if not within(i, self.unfold(size), extents):
                at, scalar = self._integer(i, axes), not self.axes(i, axes)
                low, high = literal(0), self.size(size)
                terms[f"0 <= {text(i)}"] = (compared(at, ">=", low), scalar)
                terms[f"{text(i)} < {text(size)}"] = (compared(at, "<", high), scalar)
        return conjunction(list(terms.values()))

    def mask(self, predicates: list[Expr], padded: list[str], order: Axes) -> Code | None:
        """The points that predicates and extents allow; named where it takes a predicate to tell."""
        terms = [(self.inside(v, order), False) for v in padded if self.ragged(v)]
        joined = conjunction(terms + [self.predicate(p, order) for p in predicates])
        if joined is None or not predicates:
            return joined
        key = (joined.text, order)
        for scope in self.loaded:
            if key in scope:
                return Code(scope[key])
        name = self.names.fresh("mask")
        self.lines.add(f"{name} = {joined.text}")
        self.loaded[-1][key] = name
        return Code(name)

    def predicate(self, p: Expr, order: Axes) -> Term:
        """A predicate as a term of a mask."""
        return self.value(p, order), not self.axes(p, order)

    def _integer(self, e: Expr, axes: Axes) -> Code:
        """An index or size; quotients of what is never negative need no care about signs."""
        if isinstance(e, Size):
            if e.rank not in self.ranks:
                self.ranks[e.rank] = self.names.fresh(e.rank)
            return Code(self.ranks[e.rank])
        if isinstance(e, Call) and e.op == "neg":
            return Code(f"-{self._integer(e.args[0], axes).within(UNARY)}", UNARY)
        if isinstance(e, Call) and e.op in ("add", "sub", "mul"):
            known = poly(e).constant
            if known is not None:
                return literal(known)
            level = PRODUCT if e.op == "mul" else SUM
            a, b = (self._integer(x, axes) for x in e.args)
            return Code(f"{a.within(level)} {e.spec.infix} {b.within(level + 1)}", level)
        if (
            isinstance(e, Call)
            and e.op in ("floordiv", "mod")
            and self._natural(e.args[0])
            and self._natural(e.args[1])
        ):
            a, b = (self._integer(x, axes) for x in e.args)
            return Code(f"{a.within(PRODUCT)} {e.spec.infix} {b.within(PRODUCT + 1)}", PRODUCT)
        return self.value(e, axes)

    def _natural(self, e: Expr) -> bool:
        """Whether an integer is certainly 0 or more."""
        from tcc.ir.index import bounds, nonnegative

        span = bounds(self.unfold(e), {v: self.unfold(x) for v, x in self.extents.items()})
        return span is not None and nonnegative(span[0])


Term = tuple[Code, bool]  # a predicate, and whether it is a scalar


def compared(a: Code, sign: str, b: Code) -> Code:
    return Code(f"{a.within(COMPARISON + 1)} {sign} {b.within(COMPARISON + 1)}", COMPARISON)


def conjunction(terms: list[Term]) -> Code | None:
    """All of the terms; None when there are none. Triton's interpreter widens the `&` of a scalar
    and a vector.
    """
    if len(terms) < 2:
        return terms[0][0] if terms else None
    joined = Code(" & ".join(t.within(BIT_AND + 1) for t, _ in terms), BIT_AND)
    mixed = len({scalar for _, scalar in terms}) > 1
    return compared(joined, "!=", literal(0)) if mixed else joined
