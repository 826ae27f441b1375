"""The verifier of mappings: every name is known, every window is legal, no parallel loop carries a reduction."""

from __future__ import annotations

from tcc.ir.cascade import Cascade, Einsum, Extern
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.expr import Access, Expr, Size, Var, text, variables, walk
from tcc.ir.infer import expression_dtype
from tcc.ir.layout_storage import check_storage
from tcc.ir.mapping import (
    Alloc,
    Buffer,
    Do,
    Kernel,
    Loop,
    Mapping,
    Node,
    buffers,
    leaves,
    signature,
    walk_nodes,
)

WORD = 32  # bits


def verify(m: Mapping) -> Mapping:
    """`m` itself when it is well formed; raises T02xx at the first mistake."""
    face = signature(m)
    packed = {n: b for n, b in buffers(m).items() if b.packed}
    outside = {t.name for t in m.inputs}
    in_memory = {b.name for b in m.memory} | {t.name for t in m.outputs}
    for b in m.memory:
        check_storage(b.name, b.layout, b.dims, b.span)
    for k in m.kernels:
        if isinstance(k, Extern):
            outside |= {t.name for t in k.targets}
            continue
        _Kernel(m, k, face, packed, outside | in_memory).check()
    written = {d.einsum.target for k in m.kernels if isinstance(k, Kernel) for d in leaves(k.body)}
    written |= {t.name for k in m.kernels if isinstance(k, Extern) for t in k.targets}
    for t in m.outputs:
        if t.name not in written and t.name not in outside:
            raise CompileError("T0203", f"output `{t.name}` is never written", t.span,
                               helps="add a `do` that computes it")  # fmt: skip
    return m


class _Kernel:
    def __init__(
        self, m: Mapping, k: Kernel, face: Cascade, packed: dict[str, Buffer], visible: set[str]
    ) -> None:
        self.m, self.k, self.visible = m, k, set(visible)
        self.signature, self.packed = face, packed
        self.known = set(face.tensors)
        self.extents = dict(k.variables)

    def check(self) -> None:
        names = [v for v, _ in self.k.variables]
        ranks = {r.name for r in self.m.ranks}
        for v, e in self.k.variables:
            if names.count(v) > 1:
                raise CompileError("T0204", f"variable `{v}` is declared twice", self.k.span,
                                   helps="declare it once")  # fmt: skip
            for n in walk(e):
                if isinstance(n, Size) and n.rank not in ranks:
                    raise CompileError("T0105", f"rank `{n.rank}` is not declared", n.span or self.k.span,
                                       helps=did_you_mean(n.rank, sorted(ranks)))  # fmt: skip
        for child in self.k.body:
            self.node(child, ())

    def node(self, n: Node, loops: tuple[Loop, ...]) -> None:
        if isinstance(n, Do):
            self.leaf(n, loops)
        elif isinstance(n, Alloc):
            if n.buffer.name in self.visible:
                raise CompileError("T0204", f"buffer `{n.buffer.name}` hides another tensor", n.span,
                                   helps="give it another name")  # fmt: skip
            for d in n.buffer.dims:
                if isinstance(d, Var):
                    self.variable(d.name, n)
            check_storage(n.buffer.name, n.buffer.layout, n.buffer.dims, n.span)
            self.visible.add(n.buffer.name)
            for child in n.body:
                self.node(child, loops)
            self.visible.discard(n.buffer.name)
        else:
            self.variable(n.var, n)
            if n.when is not None:
                self.condition(n, loops)
            for child in (*n.body, *n.hold):
                self.node(child, (*loops, n))

    def variable(self, name: str, n: Node) -> None:
        if name not in self.extents:
            raise CompileError("T0205", f"`{name}` is no variable of kernel `{self.k.name}`", n.span,
                               helps=did_you_mean(name, list(self.extents)) or f"declare it: `over {name}: …`")  # fmt: skip

    def condition(self, n: Loop, loops: tuple[Loop, ...]) -> None:
        """`when` is a predicate over sizes and the ends of intervals, and stands in no parallel loop's place."""
        assert n.when is not None
        if n.on is not None:
            raise CompileError("T0209", f"the tiles of `{n.var}` run on `{n.on}`, so that none can be left out", n.span,
                               helps="put the condition on a loop that runs in order")  # fmt: skip
        for x in walk(n.when):
            if isinstance(x, Access) or (
                isinstance(x, Var) and not x.name.endswith((".low", ".high"))
            ):
                raise CompileError("T0209", f"`when {text(n.when)}` mentions `{text(x)}`", x.span or n.span,
                                   helps="it may mention sizes and ends of tiles: `v.low`, `v.high`")  # fmt: skip
            if isinstance(x, Var):
                self.variable(x.name.rpartition(".")[0], n)
        if expression_dtype(self.signature, n.when).kind != "b":
            raise CompileError("T0117", f"`when {text(n.when)}` is no predicate", n.when.span or n.span,
                               helps="compare it with something")  # fmt: skip

    def leaf(self, n: Do, loops: tuple[Loop, ...]) -> None:
        e = n.einsum
        for a in (*e.reads, _target(e)):
            if a.tensor not in self.visible:
                where = "not allocated here" if a.tensor in self.known else "unknown"
                raise CompileError("T0206", f"tensor `{a.tensor}` is {where}", a.span or n.span,
                                   helps=did_you_mean(a.tensor, sorted(self.visible))
                                   or "allocate it around this `do`")  # fmt: skip
            shape = self.signature.tensors[a.tensor].shape
            if len(shape) != len(a.indices):
                raise CompileError("T0113", f"`{a.tensor}` has {len(shape)} ranks, but {len(a.indices)} indices are "
                                   "given", a.span or n.span, helps="give one index per rank")  # fmt: skip
        for v in variables(e.body, *e.where, *e.indices):
            self.variable(v, n)
        for v, _ in n.bind:
            self.variable(v, n)
        if n.update and not e.reduced:
            raise CompileError("T0212", f"`update {e.target}` reduces nothing", n.span,
                               helps="write `do`: without a reduction there is nothing to combine")  # fmt: skip
        used = set(variables(e.body, *e.where))
        reduced = set(e.reduced)
        local = self._allocated_inside(e.target, loops)
        for depth, loop in enumerate(loops):
            if loop.on is None:
                continue
            if loop.var in reduced and not local(depth):
                raise CompileError("T0207", f"`{e.target}` is reduced along `{loop.var}`, whose tiles run in parallel "
                                   f"on `{loop.on}`", n.span,
                                   helps="run that loop in order, or reduce in two steps")  # fmt: skip
            if loop.var not in used | set(variables(*e.indices)) and not local(depth):
                raise CompileError("T0207", f"every tile of `{loop.var}` on `{loop.on}` writes the same `{e.target}`",
                                   n.span, helps=f"move the `do` out of the loop over `{loop.var}`")  # fmt: skip
        self.words(e, loops)
        for p in e.where:
            if expression_dtype(self.signature, p).kind != "b":
                raise CompileError("T0117", f"`where {text(p)}` is no predicate", p.span or n.span,
                                   helps="compare it with something")  # fmt: skip

    def words(self, e: Einsum, loops: tuple[Loop, ...]) -> None:
        """No two tiles that run in parallel write codes into the same word of a packed buffer."""
        b = self.packed.get(e.target)
        if b is None:
            return
        places = WORD // b.bits
        for digit in reversed(b.layout.digits):
            if places <= 1:
                return
            here = e.indices[digit.dimension]
            size = digit.modulus if isinstance(digit.modulus, int) else None
            for loop in loops:
                if loop.on is None or loop.var not in variables(here):
                    continue
                whole = digit.divisor * (size or 0) if isinstance(digit.divisor, int) else 0
                if not (isinstance(here, Var) and whole and loop.step % whole == 0):
                    raise CompileError("T0207", f"tiles of `{loop.var}` on `{loop.on}` write codes into the same word of "
                                       f"`{e.target}`", e.span,
                                       helps=f"cut `{loop.var}` at multiples of the {places} codes of a word")  # fmt: skip
            places = places // size if size else 0

    def _allocated_inside(self, target: str, loops: tuple[Loop, ...]):  # type: ignore[no-untyped-def]
        """Whether the target's buffer lives inside the loop of the given depth, so that each tile has its own."""

        def inside(depth: int) -> bool:
            return any(
                isinstance(x, Alloc) and x.buffer.name == target
                for x in walk_nodes(loops[depth].body)
            )

        return inside


def _target(e: Einsum):  # type: ignore[no-untyped-def]
    from tcc.ir.expr import Access

    return Access(e.target, e.indices, e.span)


def extent_of(k: Kernel, var: str) -> Expr:
    """The extent of a kernel's variable."""
    return dict(k.variables)[var]
