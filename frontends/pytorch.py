"""PyTorch graphs as cascades: `capture` lowers a functional aten graph, operator by operator, whole and naive.

A view is a copy by index arithmetic, a softmax four definitions, an attention seven: nothing is fused here, the passes
do that. What is no tensor algebra becomes an `Extern` call back to PyTorch. Graphs that tcc does not take at
all (another device, half precision, shapes that depend on data) raise `Unsupported` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tcc.frontends._pytorch_builder import Builder, Lowering, NotLowered, Value
from tcc.frontends._pytorch_decode import coded_input, packed_input, part_type, role_in_expand
from tcc.frontends._pytorch_decompositions import own_decompositions
from tcc.frontends._pytorch_extern import extern_call, run_extern
from tcc.frontends._pytorch_order import Order, in_memory_order, memory_order
from tcc.frontends._pytorch_sizes import Unsupported
from tcc.ir.cascade import Cascade, Extern, Tensor
from tcc.ir.diagnostics import Span
from tcc.ir.dtype import DType
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var
from tcc.ir.index import same
from tcc.ir.infer import build


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """What a graph input is: a tensor of the cascade, the rank that an integer gives, or neither (both None)."""

    tensor: str | None = None
    rank: str | None = None
    parts: tuple[int, ...] = ()  # of a coded tensor: the graph inputs that are its other parts


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What a graph output is: a tensor of the cascade, input number `passed`, a size, or the Python value `value`.

    `shape`, `strides` and `offset` (in elements) are size expressions. PyTorch expects the first two; it looks at
    the offset into the storage where it makes the output again as a view of an input.
    """

    tensor: str | None = None
    passed: int | None = None
    size: Expr | None = None
    value: Any = None
    dtype: DType | None = None
    shape: tuple[Expr, ...] = ()
    strides: tuple[Expr, ...] = ()
    offset: Expr = field(default=Const(0))


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """A graph as a cascade, with the meaning of its inputs and outputs and the constants that it holds."""

    cascade: Cascade
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    lookups: tuple[
        tuple[str, Expr], ...
    ] = ()  # index tensors that eager checks, with the rows of their tables
    orders: Mapping[str, Order] = field(
        default_factory=dict
    )  # tensors whose dimensions are permuted

    @property
    def externs(self) -> list[Extern]:
        """The calls that stay with PyTorch."""
        return [d for d in self.cascade.definitions if isinstance(d, Extern)]


class CaptureError(Unsupported):
    """`Unsupported`, with the place of the operator that can not be taken."""

    def __init__(self, reason: str, span: Span | None, operator: str) -> None:
        super().__init__(reason)
        self.span, self.operator = span, operator


def lowerings() -> dict[str, Lowering]:
    """Every operator that has a lowering of its own, by name without overload."""
    from tcc.frontends import (
        _pytorch_contractions,
        _pytorch_creation,
        _pytorch_decode,
        _pytorch_pointwise,
        _pytorch_pooling,
        _pytorch_reductions,
        _pytorch_views,
    )  # fmt: skip

    modules = (_pytorch_pointwise, _pytorch_views, _pytorch_creation, _pytorch_reductions, _pytorch_contractions,
               _pytorch_pooling, _pytorch_decode)  # fmt: skip
    return {name: f for m in modules for name, f in m.LOWERINGS.items()}


@lru_cache(maxsize=1)
def decompositions() -> dict[Any, Any]:
    """PyTorch's own decompositions for every operator that has no lowering here, random ones excepted. (Composite ones
    need none: the dispatcher takes them apart.)"""
    import torch
    from torch._decomp import _core_aten_decompositions_post_autograd, get_decompositions

    keep = set(lowerings()) | {
        "aten.native_dropout", "aten.bernoulli", "aten.rrelu_with_noise", "aten.embedding_dense_backward",
        "aten._scaled_dot_product_flash_attention_for_cpu_backward", "aten.native_batch_norm", "aten.dropout",
    }  # fmt: skip
    aten = torch.ops.aten
    more = [aten._native_batch_norm_legit, aten._native_batch_norm_legit_functional]
    table = {
        **_core_aten_decompositions_post_autograd(),
        **get_decompositions(more),
        **own_decompositions(),
    }
    return {op: f for op, f in table.items() if ".".join(str(op).split(".")[:2]) not in keep}


def capture(gm: Any, name: str = "graph", names: Mapping[int, str] | None = None) -> Captured:
    """A functional aten-level `fx.GraphModule` with fake values in `meta["val"]` as a verified cascade.

    `names` gives readable names to inputs by position. Raises `Unsupported` for graphs that tcc does not take.
    """
    return _Capture(gm, name, names or {}).run()


class _Capture:
    def __init__(self, gm: Any, name: str, names: Mapping[int, str]) -> None:
        self.gm, self.names = gm, names
        self.b = Builder(name)
        self.table = lowerings()
        self.values: dict[Any, Value] = {}
        self.inputs: list[Input] = []
        self.declared: list[Tensor] = []
        self.constants: dict[str, Any] = {}
        self.orders: dict[str, Order] = {}

    def run(self) -> Captured:
        outputs: tuple[Output, ...] = ()
        for node in self.gm.graph.nodes:
            self.b.node, self.b.node_name = node, _shorter(node.name)
            self.b.span = self.b.place(node) or self.b.span
            try:
                if node.op == "placeholder":
                    self.values[node] = self.placeholder(node)
                elif node.op == "get_attr":
                    self.values[node] = self.attribute(node)
                elif node.op == "call_function":
                    self.values[node] = self.call(node)
                elif node.op == "output":
                    outputs = self.results(node)
                else:
                    raise Unsupported(f"`{node.op}` nodes are not functional")
            except CaptureError:
                raise
            except Unsupported as reason:
                raise CaptureError(str(reason), self.b.span, str(node.target)) from None
        written = [o.tensor for o in outputs if o.tensor is not None]
        declared = tuple(self.b.tensors[t] for t in dict.fromkeys(written))
        cascade = build(
            Cascade(self.b.name, tuple(self.b.ranks.values()), tuple(self.declared), declared,
                    tuple(self.b.definitions))
        )  # fmt: skip
        self.check_sizes(cascade)
        cascade, orders = in_memory_order(cascade, self.orders)
        return Captured(
            cascade, tuple(self.inputs), outputs, self.constants, tuple(self.b.lookups), orders
        )

    def check_sizes(self, c: Cascade) -> None:
        """Every symbol must be an input, or the extent of some input's dimension."""
        given = {i.rank for i in self.inputs} | {
            s.rank for t in c.inputs for s in t.shape if isinstance(s, Size)
        }
        for r in c.ranks:
            if r.size is None and r.name not in given:
                raise Unsupported(f"no input gives the size `{r.name.lower()}`")

    # ---- inputs

    def placeholder(self, node: Any) -> Value:
        val, position = node.meta.get("val"), len(self.inputs)
        if val is None:
            self.inputs.append(Input())
            return None
        if isinstance(val, (bool, int, float)):
            self.inputs.append(Input())
            return val
        if not hasattr(val, "shape"):
            if not hasattr(val, "node"):
                raise Unsupported(f"an input is a `{type(val).__name__}`")
            e = self.b.size(val)
            self.inputs.append(Input(rank=e.rank if isinstance(e, Size) else None))
            return e
        role = role_in_expand(node)
        if role is not None:
            return self.coded(position, node, *role)
        t = self.b.spec(self.b.fresh(self.names.get(position, node.name)), val, part_type(node))
        t = packed_input(node, t)
        self.inputs.append(Input(tensor=t.name))
        if not t.packed:
            self.lies(t, val)
        return self.declare(t)

    def coded(self, position: int, node: Any, call: Any, place: int) -> Value:
        """The codes of a coded tensor stand for all of it; its other parts are no tensors of the cascade."""
        if place:
            self.inputs.append(Input())
            return None
        t = coded_input(self.b, self.b.fresh(self.names.get(position, node.name)), call)
        given = [n for n in self.gm.graph.nodes if n.op == "placeholder"]
        self.inputs.append(Input(tensor=t.name, parts=tuple(given.index(n) for n in call.args[1])))
        return self.declare(t)

    def lies(self, t: Tensor, fake: Any) -> None:
        """Keeps the order in which a tensor lies in eager PyTorch."""
        order = memory_order(fake)
        if order is not None:
            self.orders[t.name] = order

    def attribute(self, node: Any) -> Value:
        """A tensor that the graph holds becomes an input with a known value."""
        import torch

        value: Any = self.gm
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            raise Unsupported(f"`{node.target}` holds a `{type(value).__name__}`")
        t = self.declare(self.b.spec(self.b.fresh(node.name), value, part_type(node)))
        self.constants[t.name] = value.detach()
        return t

    def declare(self, t: Tensor) -> Tensor:
        self.declared.append(t)
        self.b.tensors[t.name] = t
        return t

    # ---- operators

    def call(self, node: Any) -> Value:
        if (
            getattr(node.target, "__name__", "") == "getitem"
            and node.target.__module__ == "_operator"
        ):
            return self.values[node.args[0]][node.args[1]]
        val = node.meta.get("val")
        if val is None and not node.users and _only_checks(node):
            return None
        if isinstance(val, (bool, int, float)):
            return val
        if val is not None and not isinstance(val, (list, tuple)) and not hasattr(val, "shape"):
            return self.b.size(val)
        if not hasattr(node.target, "overloadpacket"):
            raise Unsupported(f"`{node.target}` is no operator of PyTorch's tensor library")
        args = [self.value(a) for a in node.args]
        kwargs = {k: self.value(v) for k, v in node.kwargs.items()}
        function = str(node.target)
        packet = ".".join(function.split(".")[:2])
        lower = self.table.get(packet)
        if lower is not None:
            before = (
                len(self.b.definitions),
                dict(self.b.tensors),
                set(self.b.names),
                dict(self.b.ranks),
            )
            try:
                found = lower(self.b, *args, **_without_placement(kwargs))
                self.made(len(before[1]), found, val)
                return found
            except NotLowered:
                self.undo(*before)
        return extern_call(self.b, function, args, kwargs)

    def made(self, count: int, found: Value, val: Any) -> None:
        """The result of an operator lies as eager's does, and so do sums of its shape on the way to it."""
        if not isinstance(found, Tensor) or not hasattr(val, "shape"):
            return
        for t in list(self.b.tensors.values())[count:]:
            if len(t.shape) == len(found.shape) and all(map(same, t.shape, found.shape)):
                self.lies(t, val)

    def undo(
        self, count: int, tensors: dict[str, Tensor], names: set[str], ranks: dict[str, Any]
    ) -> None:
        """Takes back the definitions of an operator that was given up half-way."""
        del self.b.definitions[count:]
        for name in [n for n in self.b.tensors if n not in tensors]:
            del self.b.tensors[name]
        self.b.names = names
        self.b.ranks = ranks

    def value(self, a: Any) -> Value:
        if hasattr(a, "op") and hasattr(a, "users"):
            return self.values[a]
        if isinstance(a, (list, tuple)):
            return [self.value(v) for v in a]
        if type(a).__name__ in ("SymInt", "SymFloat"):
            return self.b.size(a)
        return a

    # ---- outputs

    def results(self, node: Any) -> tuple[Output, ...]:
        listed = node.args[0] if isinstance(node.args[0], (list, tuple)) else [node.args[0]]
        places = {
            n: k for k, n in enumerate(n for n in self.gm.graph.nodes if n.op == "placeholder")
        }
        taken = {i.tensor: None for i in self.inputs if i.tensor} | dict.fromkeys(self.constants)
        returned: dict[str, Any] = dict(taken)
        out: list[Output] = []
        for n in listed:
            value = self.value(n)
            if not hasattr(n, "op") or not isinstance(value, Tensor):
                out.append(
                    Output(size=value) if isinstance(value, _EXPRESSIONS) else Output(value=value)
                )
                continue
            val = n.meta["val"]
            shape = tuple(self.b.size(s) for s in val.shape)
            strides = tuple(self.b.size(s) for s in val.stride())
            if n in places:
                out.append(
                    Output(passed=places[n], shape=shape, strides=strides, dtype=value.dtype)
                )
                continue
            if value.name in returned and returned[value.name] is not n:
                value = self.copy(
                    n, value
                )  # an alias of an input or of another output: its own storage
            returned[value.name] = n
            offset = self.b.size(val.storage_offset())
            out.append(Output(value.name, None, None, None, value.dtype, shape, strides, offset))
        return tuple(out)

    def copy(self, node: Any, t: Tensor) -> Tensor:
        self.b.node, self.b.node_name = node, f"{node.name}_copy"
        self.b.span = self.b.place(node)
        copy = self.b.out() if not isinstance(node.meta["val"], (list, tuple)) else t
        self.lies(copy, node.meta["val"])
        index = self.b.scope().index(copy.shape)
        return self.b.define(copy, index, self.b.read(t, index))


_EXPRESSIONS = (Const, Var, Size, Access, Call, Cast)
_PLACEMENT = (
    "device",
    "layout",
    "pin_memory",
    "memory_format",
    "non_blocking",
    "requires_grad",
    "dtype",
)


def _without_placement(kwargs: dict[str, Value]) -> dict[str, Value]:
    """Keyword arguments without those that the traced result's type already tells."""
    return {k: v for k, v in kwargs.items() if k not in _PLACEMENT}


def _shorter(name: str) -> str:
    """An operator's name without PyTorch's words for its variants."""
    for long, short in _SHORTER:
        name = name.replace(long, short)
    return name


_SHORTER = (
    ("scaled_dot_product_flash_attention_for_cpu", "attention"),
    ("native_batch_norm_legit_no_training", "batch_norm"),
    ("native_layer_norm", "layer_norm"), ("native_group_norm", "group_norm"), ("fused_rms_norm", "rms_norm"),
    ("linalg_vector_norm", "norm"), ("convert_element_type", "cast"), ("_to_copy", "cast"), ("_unsafe_view", "view"),
    ("constant_pad_nd", "pad"), ("_with_indices", ""), ("_log_softmax", "log_softmax"), ("_softmax", "softmax"),
)  # fmt: skip


def _only_checks(node: Any) -> bool:
    return any(word in str(node.target) for word in ("_assert", "sym_constrain_range"))


__all__ = ["CaptureError", "Captured", "Input", "Output", "Unsupported", "capture", "decompositions",
           "run_extern"]  # fmt: skip
