"""The mapping level: how a cascade is computed, as kernels of loops over tiles, buffers at memory levels, and leaves.

    mapping ::= "mapping", ranks, inputs, outputs, memory buffers, kernels
    kernel  ::= variables, node …
    node    ::= for v by step on resource { node … }      cut the interval of v into tiles
              | buffer T[…] @level { node … }             storage for a window of T while the body runs
              | do T[…] = e :: … where …  with v on …     a tile-level Einsum over the current intervals
              | update T[…] = e :: … where …  with v on … the same, combined into what T holds already

Every variable of a kernel has a *current interval*, at first its whole extent. A loop cuts it into consecutive tiles and
runs its body once per tile; loops over the same variable nest. A `do` evaluates its Einsum over the current intervals:
it *sets* the target where all reduced intervals start at 0 and *combines* into it elsewhere; where a predicate over free
variables fails it writes the fill. A CPU schedule, a GPU grid and a dataflow on an array differ only in the names of
levels and resources, which come from the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field, replace

from tcc.ir.cascade import Cascade, Einsum, Extern, Rank, Tensor
from tcc.ir.diagnostics import CompileError, Span, did_you_mean
from tcc.ir.dtype import DType
from tcc.ir.expr import Expr, Var, text
from tcc.ir.layout import Layout, row_major
from tcc.ir.packed import in_strings


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Storage for a tensor at a memory level. A dimension is a size, or a variable: then the buffer holds only the window
    of that variable's interval at the place of allocation. Indices into it stay those of the whole tensor.

    A buffer holds decoded values, each with bytes of its own. A `packed` one holds codes without gaps: the element at
    position p of its layout has the bits p·W … p·W + W - 1, the lowest first, where W is the `packed_bits` of its type.
    Where it is `in_strings`, W is the bits of its type, and 256 strings lie side by side: their first bytes, their second …
    """

    name: str
    dtype: DType
    dims: tuple[Expr, ...]
    level: str
    layout: Layout
    fill: float = 0
    constant: bool = False  # filled by `prepare` kernels, kept between runs while the inputs they read are unchanged
    span: Span | None = field(default=None, repr=False)
    packed: bool = field(default=False, kw_only=True)

    @property
    def bits(self) -> int:
        """Of one element in memory."""
        if not self.packed:
            return 8 * self.dtype.itemsize
        return self.dtype.bits if in_strings(self.dtype, self.layout) else self.dtype.packed_bits

    def __str__(self) -> str:
        dims = f"[{', '.join(text(d) for d in self.dims)}]"
        layout = "" if self.layout == row_major(len(self.dims)) else f" layout {self.layout}"
        packed, constant = " packed" * self.packed, " constant" * self.constant
        return f"{self.name}: {self.dtype}{dims} @{self.level}{packed}{layout}{constant}"


@dataclass(frozen=True, slots=True, eq=False)
class Do:
    """A tile-level Einsum. `bind` puts variables of its tile on resources of the executing unit: `lane`, `unroll`, PE rows.

    It sets its target where all reduced intervals start at 0 and combines into it elsewhere; with `update` it always
    combines, so that tiles may be skipped or come in any order.
    """

    einsum: Einsum
    bind: tuple[tuple[str, str], ...] = ()
    update: bool = field(default=False, kw_only=True)
    span: Span | None = field(default=None, repr=False)

    def on(self, resource: str) -> list[str]:
        """The variables that are bound to a resource."""
        return [v for v, r in self.bind if r == resource]


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """Cuts the interval of `var` into tiles of `step` coordinates (the last may be smaller) and runs `body` on each.

    `on` names the parallel resource that the tiles are spread over; None is sequential, in order. Of nested loops on the
    same resource the tiles are spread together. Once `until` holds after a step, `hold` runs instead of the body.
    Tiles at which `when` does not hold are left out: it is a condition on the ends of intervals, `Var("v.low")` and
    `Var("v.high")`, of this variable's tile and of those around it.
    """

    var: str
    step: int
    body: tuple[Node, ...]
    on: str | None = None
    until: Expr | None = None
    hold: tuple[Do, ...] = ()
    when: Expr | None = None
    span: Span | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Alloc:
    """Storage that lives while `body` runs; its content is undefined at the start."""

    buffer: Buffer
    body: tuple[Node, ...]
    span: Span | None = field(default=None, repr=False)


Node = Loop | Alloc | Do


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """One launch: variables with their extents, and the tree that walks them. `prepare` kernels fill constant buffers.

    `note` says in words how the tiles were chosen, for reports; the text has none.
    """

    name: str
    variables: tuple[tuple[str, Expr], ...]
    body: tuple[Node, ...]
    prepare: bool = False
    span: Span | None = field(default=None, repr=False)
    note: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Mapping:
    """A program for a target: its interface, its buffers in the outermost memory, and its kernels in order."""

    name: str
    target: str
    ranks: tuple[Rank, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    memory: tuple[Buffer, ...]
    kernels: tuple[Kernel | Extern, ...]

    def __str__(self) -> str:
        from tcc.ir.mapping_text import print_mapping

        return print_mapping(self)

    def with_kernels(self, kernels: tuple[Kernel | Extern, ...]) -> Mapping:
        return replace(self, kernels=kernels)


def walk_nodes(nodes: tuple[Node, ...]) -> Iterator[Node]:
    """Every node of a tree, parents first, in order."""
    for n in nodes:
        yield n
        if isinstance(n, Loop | Alloc):
            yield from walk_nodes(n.body)
        if isinstance(n, Loop):
            yield from n.hold


def leaves(nodes: tuple[Node, ...]) -> list[Do]:
    """Every `do` of a tree, in order."""
    return [n for n in walk_nodes(nodes) if isinstance(n, Do)]


def buffers(m: Mapping) -> dict[str, Buffer]:
    """Every buffer of a mapping by name: memory buffers, then those inside kernels."""
    found = {b.name: b for b in m.memory}
    for k in m.kernels:
        if isinstance(k, Kernel):
            found |= {n.buffer.name: n.buffer for n in walk_nodes(k.body) if isinstance(n, Alloc)}
    return found


def tensors(m: Mapping) -> dict[str, Tensor]:
    """The type of every tensor: inputs, outputs and buffers (whose window dimensions count with their whole extent)."""
    found = {t.name: t for t in (*m.inputs, *m.outputs)}
    for b in m.memory:
        found[b.name] = Tensor(b.name, b.dtype, b.dims, b.fill, b.span)
    for k in m.kernels:
        if isinstance(k, Extern):
            found |= {t.name: found.get(t.name, t) for t in k.targets}
            continue
        extents = dict(k.variables)
        for n in walk_nodes(k.body):
            if isinstance(n, Alloc):
                b = n.buffer
                unknown = next(
                    (d.name for d in b.dims if isinstance(d, Var) and d.name not in extents), None
                )
                if unknown is not None:
                    raise CompileError(
                        "T0205", f"`{unknown}` is no variable of kernel `{k.name}`", b.span or n.span,
                        helps=did_you_mean(unknown, list(extents)) or f"declare it: `over {unknown}: …`",
                    )  # fmt: skip
                shape = tuple(extents[d.name] if isinstance(d, Var) else d for d in b.dims)
                found[b.name] = Tensor(b.name, b.dtype, shape, b.fill, b.span)
    return found


def signature(m: Mapping, more: MappingABC[str, Tensor] | None = None) -> Cascade:
    """The mapping's ranks and tensors as a cascade without definitions, for typing and evaluating expressions."""
    return Cascade(m.name, m.ranks, m.inputs, m.outputs, (), tensors={**tensors(m), **(more or {})})
