"""The cascade level: what to compute, as a list of definitions over named ranks, without order or storage.

    cascade    ::= "cascade" name, ranks, inputs, outputs, definitions
    definition ::= T[i, …] = e :: monoid(v, …), …  where p, …
                 | extern T: dtype[size, …] = function '…'
               | stop v when p
               | joint v: T by e, …
               | kernel name: T, …

A definition holds for every point of the box of its variables at which its predicates hold and every tensor that it
reads exists. Variables that are absent from the target are reduced, with `sum` unless said otherwise. A predicate that
mentions no reduced variable decides where the target *exists*; the others only restrict the reduction, and an empty
reduction gives the identity. An output holds its fill where it does not exist. Reductions nest in the order in which
they are written, the first outermost: `Z = A[i, j] :: max(i)` is the largest row sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from tcc.ir.diagnostics import Span
from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Const, Expr, Size, Var, accesses, call, text, transform, variables
from tcc.ir.index import same
from tcc.ir.ops import INDEX_REDUCTIONS


@dataclass(frozen=True, slots=True, eq=False)
class Rank:
    """A named extent: a size expression over other ranks, or None when it is given by the inputs."""

    name: str
    size: Expr | None = None
    span: Span | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor's type: element type, one size expression per dimension, and its value outside its bounds.

    A `packed` input comes as bytes, in which the codes of its last dimension lie without gaps, the first lowest."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    fill: float = 0
    span: Span | None = field(default=None, repr=False)
    constant: bool = (
        False  # an input whose content rarely changes: what is derived from it is kept between runs
    )
    packed: bool = field(default=False, kw_only=True)

    @property
    def bits(self) -> int:
        """Of one element in memory."""
        return self.dtype.packed_bits if self.packed else 8 * self.dtype.itemsize

    @property
    def axes(self) -> tuple[str, ...]:
        """The variable of each dimension's rank; empty names for other sizes."""
        return tuple(s.rank.lower() if isinstance(s, Size) else "" for s in self.shape)

    def __str__(self) -> str:
        constant = " packed" * self.packed + " constant" * self.constant
        shape = f"[{', '.join(text(s) for s in self.shape)}]" if self.shape else ""
        fill = f" fill {text(Const(self.fill))}" if self.fill else ""
        return f"{self.name}: {self.dtype}{shape}{fill}{constant}"


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """The monoid that combines the values along one variable."""

    var: str
    monoid: str
    span: Span | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Einsum:
    """`target[indices] = body :: reductions where …`, for all points of the box of its variables."""

    target: str
    indices: tuple[Expr, ...]
    body: Expr
    reductions: tuple[Reduction, ...] = ()
    where: tuple[Expr, ...] = ()
    span: Span | None = field(default=None, repr=False)
    _free: list[str] = field(init=False, repr=False)  # what passes ask for again and again
    _reduced: list[str] = field(init=False, repr=False)
    _reads: list[Access] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        free = variables(*self.indices)
        names = [v for v in variables(self.body, *self.where) if v not in free]
        listed = [r.var for r in self.reductions if r.var in names]
        object.__setattr__(self, "_free", free)
        object.__setattr__(self, "_reduced", list(dict.fromkeys([*listed, *names])))
        object.__setattr__(self, "_reads", accesses(self.body, *self.where, *self.indices))

    @property
    def free(self) -> list[str]:
        """Variables of the target, in order of appearance."""
        return list(self._free)

    @property
    def reduced(self) -> list[str]:
        """Reduced variables, the outermost first: those listed after `::`, then the summed ones by appearance."""
        return list(self._reduced)

    @property
    def reads(self) -> list[Access]:
        """Every access in body, predicates and target indices."""
        return list(self._reads)

    def monoid(self, var: str) -> str:
        """The name of the monoid that reduces `var`."""
        return next((r.monoid for r in self.reductions if r.var == var), "sum")

    def __str__(self) -> str:
        head = text(Access(self.target, self.indices))
        line = f"{head} = {text(self.body)}"
        groups = [(m, list(vs)) for m, vs in groupby(self.reduced, self.monoid)]
        if groups and groups[-1][0] == "sum":
            named = {*self.free, *(v for _, vs in groups[:-1] for v in vs)}
            implied = [v for v in variables(self.body, *self.where) if v not in named]
            if groups[-1][1] == implied:  # innermost sums in order of appearance need not be said
                groups.pop()
        if groups:
            line += " :: " + ", ".join(f"{m}({', '.join(vs)})" for m, vs in groups)
        if self.where:
            line += " where " + ", ".join(text(p) for p in self.where)
        return line


@dataclass(frozen=True, slots=True, eq=False)
class Extern:
    """A call to a function that is no tensor algebra, with known result types.

    `arguments` is a JSON array; `"%X"` in it stands for tensor X and `"$e"` for the size expression e.
    """

    targets: tuple[Tensor, ...]
    function: str
    arguments: str
    operands: tuple[str, ...]
    span: Span | None = field(default=None, repr=False)

    @property
    def target(self) -> str:
        return self.targets[0].name

    @property
    def reads(self) -> list[Access]:
        return [Access(name, ()) for name in self.operands]

    def __str__(self) -> str:
        return f"extern {', '.join(map(str, self.targets))} = {self.function} '{self.arguments}'"


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """`stop v when p`: once p holds after step v of a recurrence, later steps keep the state unchanged."""

    var: str
    condition: Expr
    span: Span | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"stop {self.var} when {text(self.condition)}"


Definition = Einsum | Extern


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One component of a joint reduction's state, and how a partial value follows when the components before it move.

    `correction` is what the value becomes: an expression over the values of the partial state (`Access("T", ())`) and
    those of the state that it joins (`Access("T'", ())`, of earlier components alone). None: it depends on no other.
    """

    tensor: str
    correction: Expr | None = None
    span: Span | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.correction is None:
            return self.tensor
        return f"{self.tensor} by {text(self.correction)}"


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Reductions over one variable as a single reduction over the tuple of their values: one walk computes them all.

    The definitions of the fields stay what they mean; the corrections say how the tuple combines:
    a ⊕ b = (…, correction_i(a) ⊕_i correction_i(b), …), each towards the components that are already combined.
    """

    var: str
    fields: tuple[Field, ...]
    span: Span | None = field(default=None, repr=False)

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(f.tensor for f in self.fields)

    def __str__(self) -> str:
        return f"joint {self.var}: {', '.join(map(str, self.fields))}"


@dataclass(frozen=True, slots=True, eq=False)
class Cascade:
    """A verified program. Build one with `tcc.ir.infer.build`, which checks it and infers `tensors` and `ranks`."""

    name: str
    ranks: tuple[Rank, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    definitions: tuple[Definition, ...]
    stops: tuple[Stop, ...] = ()
    groups: tuple[
        tuple[str, tuple[str, ...]], ...
    ] = ()  # kernels, once `fuse` has chosen them: name, tensors
    joints: tuple[Joint, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    _by_name: dict[str, dict[str, list[Definition]] | dict[str, Rank]] = field(
        init=False, default_factory=dict, repr=False
    )

    def rank(self, name: str) -> Rank | None:
        ranks = self._by_name.get("ranks")
        if ranks is None:
            ranks = self._by_name["ranks"] = {r.name: r for r in reversed(self.ranks)}
        found = ranks.get(name)
        assert found is None or isinstance(found, Rank)
        return found

    def extents(self, e: Einsum) -> dict[str, Expr]:
        """The extent of each variable of a definition: the size of the rank of its name."""
        names = variables(*e.indices, e.body, *e.where)
        return {v: self.extent(v) for v in names}

    def extent(self, var: str) -> Expr:
        """The extent of variable `v`: its rank's size where that is fixed or another rank's, else the rank `V`."""
        rank = self.rank(var.upper())
        assert rank is not None, var
        return rank.size if rank.size is not None else Size(rank.name)

    def resolved(self, size: Expr) -> Expr:
        """A size with every rank that has a size of its own replaced by it."""

        def rule(n: Expr) -> Expr:
            rank = self.rank(n.rank) if isinstance(n, Size) else None
            return n if rank is None or rank.size is None else transform(rank.size, rule)

        return transform(size, rule)

    def same_size(self, a: Expr, b: Expr) -> bool:
        """Whether two sizes are certainly equal."""
        return same(a, b) or same(self.resolved(a), self.resolved(b))

    def defining(self, tensor: str) -> list[Definition]:
        """The definitions that write `tensor`."""
        writers = self._by_name.get("writers")
        if writers is None:
            made: dict[str, list[Definition]] = {}
            for d in self.definitions:
                for name in targets(d):
                    made.setdefault(name, []).append(d)
            writers = self._by_name["writers"] = made
        found = writers.get(tensor, [])
        assert isinstance(found, list)
        return found

    def readers(self, tensor: str) -> list[Definition]:
        """The definitions that read `tensor`."""
        return [d for d in self.definitions if any(a.tensor == tensor for a in d.reads)]

    def with_definitions(self, definitions: tuple[Definition, ...]) -> Cascade:
        """The same program over other definitions, verified again; itself when nothing changed."""
        if len(definitions) == len(self.definitions) and all(
            a is b for a, b in zip(definitions, self.definitions, strict=True)
        ):
            return self
        from tcc.ir.infer import build

        return build(replace(self, definitions=definitions))

    def __str__(self) -> str:
        from tcc.ir.cascade_text import print_cascade

        return print_cascade(self)


def targets(d: Definition) -> tuple[str, ...]:
    """The tensors that a definition writes."""
    return (d.target,) if isinstance(d, Einsum) else tuple(t.name for t in d.targets)


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """Definitions that depend on each other along variable `var`; executed for var = 0, 1, … in the given order."""

    var: str
    steps: tuple[Einsum, ...]
    stop: Stop | None


Step = Definition | Recurrence


def steps(c: Cascade) -> Iterator[Step]:
    """The definitions in an order in which each is computed before it is read; cycles along a rank become recurrences."""
    from tcc.ir.schedule import schedule

    yield from schedule(c)


def nested(d: Einsum, taken: set[str]) -> tuple[Einsum, ...] | None:
    """A definition with different monoids as two: the innermost reductions of one kind, then the others.

    T[i] = e :: max(m), sum(k)  -->  T_k[i,m] = e :: sum(k);  T[i] = T_k[i,m] :: max(m)

    And one that gives where an extreme is taken (the first, a NaN before all numbers) as ordinary reductions:

    T[i] = e :: argmax(m)  -->  T_of[i,m] = e;  T_max[i] = T_of[i,m] :: max(m)
                                T[i] = m :: min(m) where T_of[i,m] == T_max[i] or T_of[i,m] != T_of[i,m]
    """
    reduced = d.reduced
    kinds = [d.monoid(v) for v in reduced]
    if len(set(kinds)) < 2:
        return _extreme(d, reduced[0], taken) if kinds and kinds[0] in INDEX_REDUCTIONS else None
    cut = len(kinds)
    while cut and kinds[cut - 1] == kinds[-1]:
        cut -= 1
    outer, inner = reduced[:cut], reduced[cut:]
    name = _fresh(f"{d.target}_{'_'.join(inner)}", taken)
    at = tuple(Var(v) for v in (*d.free, *outer))
    free = set(d.free)
    first = Einsum(name, at, d.body, tuple(Reduction(v, kinds[-1]) for v in inner), d.where, d.span)
    second = Einsum(
        d.target, d.indices, Access(name, at),
        tuple(Reduction(v, k) for v, k in zip(outer, kinds, strict=False)),
        tuple(p for p in d.where if set(variables(p)) <= free), d.span,
    )  # fmt: skip
    return first, second


def _extreme(d: Einsum, var: str, taken: set[str]) -> tuple[Einsum, ...]:
    """The definitions of an argmax or argmin over one variable."""
    kind = INDEX_REDUCTIONS[d.monoid(var)]
    free = set(d.free)
    value, where, made = d.body, d.where, []
    if not isinstance(value, Access):  # computed once, so that it equals itself
        at = tuple(Var(v) for v in (*d.free, var))
        name = _fresh(f"{d.target}_of", taken)
        made = [Einsum(name, at, value, (), where, d.span)]
        value, where = Access(name, at), tuple(p for p in where if set(variables(p)) <= free)
    found = _fresh(f"{d.target}_{kind}", taken)
    at = tuple(Var(v) for v in d.free)
    made.append(Einsum(found, at, value, (Reduction(var, kind),), where, d.span))
    here = call("or", call("eq", value, Access(found, at)), call("ne", value, value))
    made.append(
        Einsum(d.target, d.indices, Var(var), (Reduction(var, "min"),), (*where, here), d.span)
    )
    return tuple(made)


def _fresh(name: str, taken: set[str]) -> str:
    out, n = name, 1
    while out in taken:
        n += 1
        out = f"{name}{n}"
    return out
