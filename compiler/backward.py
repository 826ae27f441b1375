"""PyTorch graphs with gradients as two programs: the graph, and its gradient as tcc derives it.

Taken are graphs that are one cascade of operators whose derivatives are the same here and in PyTorch, ties and all;
the others go through AOTAutograd. Saved for the gradient are inputs, outputs and small results of reductions: what is
larger than every input and output, as scores are, is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tcc.dynamo import Backend, Execute, Graph, plain, with_constants
from tcc.frontends.pytorch import Captured, Output, Unsupported, capture
from tcc.gradient import gradient_of, with_outputs
from tcc.graph_arguments import reader, result_of
from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.diagnostics import CompileError
from tcc.ir.infer import build
from tcc.passes._algebra import elements
from tcc.passes._grad_expr import depends

# no lookups (their adjoints would visit every row for every index), no operators with a choice of their own at kinks
TAKEN = frozenset(
    """
    _fused_rms_norm _log_softmax _reshape_alias _safe_softmax _scaled_dot_product_flash_attention_for_cpu _softmax
    _unsafe_view abs add addmm amax amin arange baddbmm bmm cat clone constant_pad_nd contiguous cos div empty eq erf
    exp exp2 expand expm1 full full_like ge gelu gt le linear log log1p log2 logical_and logical_not logical_or
    logsumexp lt masked_fill matmul mean mm mul mv native_layer_norm ne neg new_zeros ones ones_like permute reciprocal
    reshape rms_norm rsqrt rsub scalar_tensor scaled_dot_product_attention select sigmoid silu sin slice softplus split
    sqrt square squeeze sub sum t tanh transpose tril triu unbind unsqueeze var_mean view where zeros zeros_like
    """.split()
)


@dataclass
class Plan:
    """The two programs of a graph, and what their inputs and outputs are."""

    captured: Captured
    factory: Callable[[Captured], Execute]
    wrt: tuple[int, ...]  # arguments that get gradients
    smooth: tuple[int, ...]  # outputs that get cotangents
    saved: tuple[str, ...]
    forward: Execute
    gradient: Cascade
    record: Graph
    read: Callable[[Sequence[Any]], tuple[dict[str, Any], dict[str, int]]]
    backward: Execute | None = None

    def as_captured(self) -> Captured:
        """The gradient, whose cotangents and gradients lie as the outputs and inputs that they belong to."""
        of, g = self.captured, self.gradient
        orders = dict(of.orders)
        belongs = {
            t.name: of.outputs[k].tensor
            for k, t in zip(self.smooth, g.inputs[-len(self.smooth) :], strict=True)
        }
        belongs |= {t.name: of.inputs[n].tensor for n, t in zip(self.wrt, g.outputs, strict=True)}
        for name, original in belongs.items():
            if original is not None and original in of.orders:
                orders[name] = of.orders[original]
        return replace(of, cascade=g, orders=orders)

    def pulled_back(
        self, tensors: Sequence[Any], cotangents: Sequence[Any], sizes: dict[str, int]
    ) -> dict[str, Any]:
        """The gradients by name; the program is compiled when the first are asked for."""
        if self.backward is None:
            self.backward = self.factory(self.as_captured())
            self.record.programs = getattr(self.backward, "programs", [])
        values = [*tensors, *(cotangents[k] for k in self.smooth)]
        names = (t.name for t in self.gradient.inputs)
        return self.backward(dict(zip(names, values, strict=True)), sizes)


def with_gradient(
    backend: Backend, gm: Any, examples: list[Any], names: dict[int, str]
) -> Callable[..., list[Any]] | None:
    """The graph as a function with a gradient, or None where AOTAutograd has to do it."""
    import torch
    from torch._dynamo.backends.common import aot_autograd

    if not all(_differentiable_as_it_is(n) for n in gm.graph.nodes):
        return None
    found: list[tuple[Any, int]] = []

    def take(inner: Any, inputs: list[Any]) -> Any:
        found.append((inner, len(inputs)))
        return inner.forward

    try:
        with torch.no_grad():
            aot_autograd(fw_compiler=take, inference_compiler=take, decompositions=backend.table())(
                gm, examples
            )
            if len(found) != 1 or found[0][1] != len(examples):
                return None
            inner = found[0][0]
            if not all(_taken(n) for n in inner.graph.nodes) or not plain(
                torch._guards.TracingContext.try_get()
            ):
                return None
            name = f"{backend.name}_{len(backend.records.graphs)}"
            captured = with_constants(capture(inner, name, names))
        plan = _plan(
            backend, captured, [bool(getattr(e, "requires_grad", False)) for e in examples]
        )
    except Unsupported:
        return None
    except CompileError as error:
        if backend.strict and error.diagnostic.code.startswith("T09"):
            raise  # a bug is not a reason to look elsewhere
        return None
    return None if plan is None else _runner(plan)


def _plan(backend: Backend, captured: Captured, wanted: list[bool]) -> Plan | None:
    c, outputs = captured.cascade, captured.outputs
    names = [o.tensor for o in outputs if o.tensor is not None]
    if captured.externs or len(set(names)) != len(outputs) or captured.constants:
        return None
    wrt = [n for n, (i, w) in enumerate(zip(captured.inputs, wanted)) if w and i.tensor is not None]
    after = {t for n in wrt if (t := captured.inputs[n].tensor) is not None}
    for d in c.definitions:
        if isinstance(d, Einsum) and c.tensors[d.target].dtype.is_float and depends(d.body, after):
            after.add(d.target)
    smooth = [k for k, o in enumerate(outputs) if o.tensor in after]
    of = [names[k] for k in smooth]
    by = [t for n in wrt if (t := captured.inputs[n].tensor) is not None]
    if not of or not by:
        return None
    gradient, saved, used = _gradient(c, by, of)
    wrt = [wrt[k] for k in used]
    forward = replace(captured, cascade=with_outputs(c, saved))
    execute = backend.factory(forward)
    graphs = backend.records.graphs
    graphs.append(Graph(c.name, "forward", forward, programs=getattr(execute, "programs", [])))
    record = Graph(f"{backend.name}_{len(graphs)}", "backward", replace(captured, cascade=gradient))
    graphs.append(record)
    return Plan(
        captured,
        backend.factory,
        tuple(wrt),
        tuple(smooth),
        saved,
        execute,
        gradient,
        record,
        reader(captured),
    )


def _gradient(
    c: Cascade, by: list[str], of: list[str]
) -> tuple[Cascade, tuple[str, ...], list[int]]:
    """The gradient of a graph, what it reads of the graph's results, and which of `by` any output depends on."""
    cheap = _cheap(c)
    g = gradient_of(c, by, of, saved=cheap)
    read = {a.tensor for d in g.definitions for a in d.reads}
    saved = tuple(t for t in cheap if t in read)
    used = [k for k, t in enumerate(g.outputs) if any(d.reads for d in g.defining(t.name))]
    outputs = tuple(g.outputs[k] for k in used)
    gone = {*cheap, *(t.name for t in g.outputs)} - {*saved, *(t.name for t in outputs)}
    inputs = tuple(t for t in g.inputs if t.name not in gone)
    kept = tuple(d for d in g.definitions if d.target not in gone)
    return build(replace(g, inputs=inputs, outputs=outputs, definitions=kept)), saved, used


def _cheap(c: Cascade) -> tuple[str, ...]:
    """Outputs, and results of reductions that are no larger than the largest input or output."""
    results = {t.name for t in c.outputs}
    most = max(elements(c, t.name) for t in (*c.inputs, *c.outputs))

    def reduced(t: str) -> bool:
        return any(isinstance(d, Einsum) and d.reduced for d in c.defining(t))

    return tuple(
        t
        for t in c.tensors
        if c.defining(t) and (t in results or (reduced(t) and elements(c, t) <= most))
    )


def _runner(plan: Plan) -> Callable[..., list[Any]]:
    function = _function()

    def run(*args: Any) -> list[Any]:
        return list(function.apply(plan, *args))

    return run


@lru_cache(maxsize=1)
def _function() -> Any:
    import torch
    from torch.autograd.function import once_differentiable

    class Differentiated(torch.autograd.Function):  # type: ignore[misc]
        """A graph and its gradient, for autograd."""

        @staticmethod
        def forward(ctx: Any, plan: Plan, *args: Any) -> tuple[Any, ...]:
            values, sizes = plan.read(args)
            found = plan.forward(values, sizes)
            out = tuple(_result(o, found, args, sizes) for o in plan.captured.outputs)
            ctx.mark_non_differentiable(*(t for k, t in enumerate(out) if k not in plan.smooth))
            kept = [values[t.name] for t in plan.captured.cascade.inputs]
            ctx.save_for_backward(*kept, *(found[t] for t in plan.saved))
            ctx.plan, ctx.sizes, ctx.count = plan, sizes, len(args)
            return out

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
            found = ctx.plan.pulled_back(ctx.saved_tensors, cotangents, ctx.sizes)
            out: list[Any] = [None] * ctx.count
            for n, t in zip(ctx.plan.wrt, ctx.plan.gradient.outputs, strict=True):
                out[n] = found[t.name]
            return (None, *out)

    return Differentiated


def _result(o: Output, found: dict[str, Any], args: Sequence[Any], sizes: dict[str, int]) -> Any:
    return result_of(o, found, args, sizes, False)


# ---- which graphs are taken


def _differentiable_as_it_is(n: Any) -> bool:
    """Whether a node of dynamo's graph says nothing about gradients itself."""
    import torch

    if n.op == "call_method":
        return n.target not in (
            "detach",
            "detach_",
            "requires_grad_",
            "register_hook",
            "retain_grad",
        )
    if n.op != "call_function":
        return n.op in ("placeholder", "output", "get_attr")
    if isinstance(n.target, torch._ops.HigherOrderOperator):
        return False
    return "grad" not in getattr(n.target, "__name__", "grad") and n.target is not torch.detach


def _taken(n: Any) -> bool:
    if n.op != "call_function":
        return n.op in ("placeholder", "output")
    if getattr(n.target, "__module__", "") == "_operator":
        return True  # parts of results, and arithmetic of sizes
    names = str(n.target).split(".")
    if names[0] == "prims":
        return names[1] in ("convert_element_type", "iota")
    if names[0] != "aten":
        return False
    return names[1] in TAKEN or names[1:] == ["pow", "Tensor_Scalar"] or names[1].startswith("sym_")
