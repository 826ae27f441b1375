"""`torch.compile(f, backend="tcc")`: graphs from dynamo and AOTAutograd, captured as cascades and compiled.

Where nothing is mutated, nothing is aliased and no gradient is asked for, dynamo calls the compiled graph
directly; everything else keeps AOTAutograd's wrappers. A graph that tcc does not take runs eagerly, and the
reason is kept: `Records` lists every graph, every call that stays with PyTorch, and every fallback.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tcc.call import inverted
from tcc.frames import framed
from tcc.frontends.pytorch import (
    Captured,
    CaptureError,
    capture,
    decompositions,
    run_extern,
)
from tcc.graph_arguments import arguments, reader, result_of, row_major
from tcc.ir.cascade import Extern
from tcc.ir.diagnostics import CompileError, Span
from tcc.ir.dtype_scaled import Encoded
from tcc.lookups import checked

Tensor = Any  # torch.Tensor
Execute = Callable[[dict[str, Tensor], dict[str, int]], dict[str, Tensor]]
Factory = Callable[[Captured], Execute]


@dataclass(slots=True)
class Graph:
    """One graph that dynamo found: captured and compiled, or left to PyTorch for `reason`."""

    name: str
    kind: str  # inference, forward or backward
    captured: Captured | None = None
    reason: str = ""
    span: Span | None = None
    error: Exception | None = None
    programs: list[Any] = field(
        default_factory=list
    )  # `CompiledProgram`s, where it was built for a target

    @property
    def externs(self) -> list[Extern]:
        return self.captured.externs if self.captured else []


@dataclass(slots=True)
class Records:
    """What became of one compiled function: its graphs, in the order in which they were met."""

    name: str = "graph"
    graphs: list[Graph] = field(default_factory=list)

    def explain(self) -> str:
        """The graphs, the calls that stay with PyTorch and the fallbacks, each with its source line."""
        lines: list[str] = []
        for g in self.graphs:
            if g.captured is None:
                lines.append(f"{g.name} ({g.kind}): runs eagerly: {g.reason}{_at(g.span)}")
                continue
            c = g.captured.cascade
            lines.append(
                f"{g.name} ({g.kind}): {len(c.definitions)} definitions, {len(g.externs)} calls to PyTorch"
            )
            lines += [f"  {e.function}{_at(e.span)}" for e in g.externs]
        return "\n".join(lines) if lines else "nothing is compiled yet: call it once"

    def ir(self) -> str:
        """The cascades of all graphs as text."""
        return "\n".join(str(g.captured.cascade) for g in self.graphs if g.captured)


def _at(span: Span | None) -> str:
    return (
        f"  at {span.source.name}:{span.line}: {span.source.line(span.line).strip()}"
        if span
        else ""
    )


# ---- running a captured graph


def interpreter(captured: Captured) -> Execute:
    """The graph executed by the interpreter of cascades."""
    import torch

    from tcc.ir.interpret import interpret

    c, orders = captured.cascade, captured.orders

    def extern(e: Extern, arrays: dict[str, Any], sizes: dict[str, int]) -> list[Any]:
        # the interpreter computes floats in float64; PyTorch gets the declared types
        tensors = {
            n: torch.from_numpy(a.astype(c.tensors[n].dtype.numpy)) for n, a in arrays.items()
        }
        return [r.numpy() for r in run_extern(e, tensors, sizes)]

    def execute(tensors: dict[str, Tensor], sizes: dict[str, int]) -> dict[str, Tensor]:
        import numpy as np

        arrays = {
            name: t.detach().numpy() if isinstance(t, torch.Tensor) else t
            for name, t in tensors.items()
        }
        arrays |= {n: arrays[n].transpose(o) for n, o in orders.items() if n in arrays}
        found = interpret(c, arrays, sizes, extern=extern)
        made = {name: torch.from_numpy(np.array(a, order="C")) for name, a in found.items()}
        return made | {n: made[n].permute(inverted(o)) for n, o in orders.items() if n in made}

    return execute


def built(target: str | None = None, **options: Any) -> Factory:
    """A factory that compiles graphs for a target, in programs between their calls to PyTorch."""

    def factory(captured: Captured) -> Execute:
        import torch

        from tcc.frontends._pytorch_segments import segments
        from tcc.program import Program
        from tcc.stored import as_tensor

        steps: list[tuple[Any, list[str], list[str], list[str]]] = []
        for part in segments(captured.cascade):
            if isinstance(part, Extern):
                steps.append((part, list(part.operands), [t.name for t in part.targets], []))
                continue
            ins, outs = [t.name for t in part.inputs], [t.name for t in part.outputs]
            free = [r.name for r in part.ranks if r.size is None]
            program = Program(part).compile(target, **options)
            program._call.permute(captured.orders)
            steps.append((program, ins, outs, free))
        wanted = [t.name for t in captured.cascade.outputs]
        types = captured.cascade.tensors
        grad_enabled = torch.is_grad_enabled

        def execute(tensors: dict[str, Tensor], sizes: dict[str, int]) -> dict[str, Tensor]:
            values = dict(tensors)
            if grad_enabled():
                values = {n: t if isinstance(t, Encoded) else t.detach() for n, t in values.items()}
            for step, ins, outs, free in steps:
                if isinstance(step, Extern):
                    found = run_extern(step, values, sizes)
                else:
                    given = {name: sizes[name] for name in free} if free else None
                    result = step._call.run([values[name] for name in ins], given)
                    found = list(result) if len(outs) > 1 else [result]
                    if not ins:  # without tensors, results are arrays
                        found = [as_tensor(torch, v, types[n].dtype) for n, v in zip(outs, found)]
                values.update(zip(outs, found))
            return {name: values[name] for name in wanted}

        programs = [step for step, *_ in steps if not isinstance(step, Extern)]
        execute.programs = programs  # type: ignore[attr-defined]
        if len(steps) == 1 and programs and steps[0][1]:
            execute.whole = steps[0]  # type: ignore[attr-defined]
        return execute

    return factory


def compile_graph(
    captured: Captured, factory: Factory = interpreter, offsets: bool = False
) -> Callable[..., list[Any]]:
    """A function of the graph's inputs that gives the list of its outputs, as PyTorch expects them.

    `offsets`: also with the offsets into their storage, for AOTAutograd to make views of inputs from.
    """
    execute = factory(captured)
    programs: list[Any] = getattr(execute, "programs", [])
    tensors, ranks, shapes = arguments(captured)
    given_by = reader(captured)
    constants = dict(captured.constants)
    simple = [
        o.tensor
        for o in captured.outputs
        if o.tensor is not None and row_major(o, captured.orders, offsets)
    ]
    direct = len(simple) == len(captured.outputs)

    def run_whole(*args: Any) -> list[Any]:
        """The graph as one program: its inputs are the arguments, its outputs the results."""
        if grad_enabled():
            return run(*args)
        given = {rank: args[n] if d < 0 else args[n].shape[d] for rank, n, d in free} or None
        found = call([args[n] for n in order], given)
        return [found] if len(simple) == 1 else [found[n] for n in results]

    def run(*args: Any) -> list[Any]:
        values, sizes = given_by(args)
        if constants:
            values.update(constants)
        found = execute(values, sizes)
        if direct:
            return [found[name] for name in simple]
        return [result_of(o, found, args, sizes, offsets) for o in captured.outputs]

    whole = getattr(execute, "whole", None)
    at = dict(tensors)
    if any(i.parts for i in captured.inputs):
        whole = None
    if whole is None or not direct or not simple or not set(whole[1]) <= set(at):
        return checked(run, captured, programs)
    import torch

    program, ins, outs, needed = whole
    call, grad_enabled = program._call.run, torch.is_grad_enabled
    order = [at[name] for name in ins]
    results = [outs.index(name) for name in simple]
    where = {rank: (n, -1) for rank, n in ranks} | {rank: (n, d) for rank, n, d in shapes}
    free = [(rank, *where[rank]) for rank in needed]
    return checked(run_whole, captured, programs)


# ---- the backend of torch.compile


class Backend:
    """Compiles graphs for one function and keeps their records. `strict` raises where others fall back."""

    def __init__(
        self, factory: Factory | None = None, strict: bool = False, name: str = "graph"
    ) -> None:
        self.factory, self.strict, self.name = factory or built(), strict, name
        self.records = Records(name)
        self._table: dict[Any, Any] | None = None

    def __call__(self, gm: Any, example_inputs: list[Any], **_: Any) -> Callable[..., Any]:
        import torch
        from torch._dynamo.backends.common import aot_autograd

        names = {
            n: _readable(p.name)
            for n, p in enumerate(p for p in gm.graph.nodes if p.op == "placeholder")
        }
        if torch.is_grad_enabled() and any(getattr(e, "requires_grad", 0) for e in example_inputs):
            from tcc.backward import with_gradient

            own = with_gradient(self, gm, example_inputs, names)
            if own is not None:
                return own
        direct: list[tuple[int, Callable[..., Any]]] = []

        def compiler(kind: str) -> Callable[[Any, list[Any]], Callable[..., Any]]:
            def compile_inner(inner: Any, examples: list[Any]) -> Callable[..., Any]:
                readable = names if kind != "backward" else {}
                run = self._graph(inner, kind, readable)
                if kind == "inference":
                    direct.append((len(examples), run))
                return _boxed(run)

            return compile_inner

        wrapped: Callable[..., Any] = aot_autograd(
            fw_compiler=compiler("forward"), bw_compiler=compiler("backward"),
            inference_compiler=compiler("inference"), decompositions=self.table(),
        )(gm, example_inputs)  # fmt: skip
        context = torch._guards.TracingContext.try_get()
        if len(direct) == 1 and direct[0][0] == len(example_inputs) and plain(context):
            return direct[0][1]
        return wrapped

    def table(self) -> dict[Any, Any]:
        """What PyTorch takes apart itself."""
        if self._table is None:
            self._table = decompositions()
        return self._table

    def _graph(self, gm: Any, kind: str, names: dict[int, str]) -> Callable[..., Any]:
        import torch

        record = Graph(f"{self.name}_{len(self.records.graphs)}", kind)
        self.records.graphs.append(record)
        try:
            captured = with_constants(capture(gm, record.name, names))
            aliases = not plain(torch._guards.TracingContext.try_get())
            run = compile_graph(captured, self.factory, aliases)
        except Exception as error:
            if self.strict:
                raise
            record.error, record.reason = error, _reason(error)
            record.span = error.span if isinstance(error, CaptureError) else None
            eager: Callable[..., Any] = gm.forward
            return eager
        record.captured, record.programs = captured, run.programs  # type: ignore[attr-defined]
        return run


def with_constants(captured: Captured) -> Captured:
    """Parameters and buffers of modules are constant inputs: what is packed from them is kept between calls."""
    import torch

    meta = getattr(torch._guards.TracingContext.try_get(), "fw_metadata", None)
    static = set(getattr(meta, "static_input_indices", None) or ())
    names = {i.tensor for n, i in enumerate(captured.inputs) if n in static}
    c = captured.cascade
    if not names:
        return captured
    names -= {t.name for t in c.inputs if t.dtype.in_parts}  # what they become is not kept
    inputs = tuple(replace(t, constant=t.name in names) for t in c.inputs)
    tensors = {**c.tensors, **{t.name: t for t in inputs}}
    return replace(captured, cascade=replace(c, inputs=inputs, tensors=tensors))


def _reason(error: Exception) -> str:
    if isinstance(error, CaptureError):
        return f"`{error.operator}`: {error}"
    if isinstance(error, CompileError):
        return error.diagnostic.message
    return f"{type(error).__name__}: {error}"


def plain(context: Any) -> bool:
    """Whether AOTAutograd's analysis found neither mutation, aliasing, subclasses nor effects."""
    meta = getattr(context, "fw_metadata", None)
    if (
        meta is None
        or meta.num_mutated_inp_runtime_indices
        or meta.num_intermediate_bases
        or meta.tokens
    ):
        return False
    if any(i.mutates_data or i.mutates_metadata for i in meta.input_info):
        return False
    return all(o.output_type.name == "non_alias" for o in meta.output_info)


def _boxed(run: Callable[..., Any]) -> Callable[..., Any]:
    def call(args: list[Any]) -> Any:
        values = tuple(args)
        args.clear()
        return run(*values)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _readable(name: str) -> str:
    """`l_self_modules_mlp_parameters_weight_` --> `mlp_weight`."""
    name = re.sub(r"^[lg]_", "", name.lower().strip("_"))
    name = re.sub(r"^(self|fn|args|kwargs|mod|orig_mod)_(?=\D)", "", name)
    return re.sub(r"(^|_)(modules|parameters|buffers|orig_mod)_(?=\w)", r"\1", name).strip("_")


def backend(gm: Any, example_inputs: list[Any], **options: Any) -> Callable[..., Any]:
    """The entry point of `torch.compile(f, backend="tcc", options={"target": …, "strict": …})`."""
    given = dict(options.get("options") or {})
    strict = bool(given.pop("strict", False))
    return Backend(built(given.pop("target", None), **given), strict)(gm, example_inputs)


class Compiled:
    """A function or module whose graphs run through tcc; everything but calling it is the original's."""

    def __init__(self, original: Any, run: Callable[..., Any], records: Records) -> None:
        self.original, self.records = original, records
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)

    def explain(self) -> Any:
        """What became of it: kernels with what was fused, calls left to PyTorch, eager fallbacks with their reasons."""
        from tcc.explain import explain_graphs

        return explain_graphs(self.records.name, self.records.graphs)

    def ir(self, level: str = "cascade") -> str:
        """The IR of its graphs as text."""
        if level != "cascade":
            raise CompileError(
                "T0217", f"`{self.records.name}` has no {level} yet", helps="levels: cascade"
            )
        return self.records.ir()


def compile_function(
    fn: Any, *, target: str | None = None, dynamic: bool | None = None, fullgraph: bool = False,
    factory: Factory | None = None, strict: bool = False, **options: Any,
) -> Compiled:  # fmt: skip
    """`fn`, a function or `nn.Module`, compiled on its first call for each kind of arguments.

    `target` and `options` are those of `Program.compile`; a `factory` takes their place.
    """
    if factory is None:
        factory = built(target, **options)
    name = re.sub(r"\W+", "", getattr(fn, "__name__", type(fn).__name__).lower()) or "graph"
    chosen = Backend(factory, strict, name if name.isidentifier() else "graph")
    return Compiled(fn, _entered(framed(fn), chosen, dynamic, fullgraph), chosen.records)


def _entered(fn: Any, chosen: Backend, dynamic: bool | None, fullgraph: bool) -> Callable[..., Any]:
    """`fn` under dynamo. Where nothing unusual is going on, calls skip the bookkeeping of dynamo's own wrapper.

    Dynamo's wrapper takes 12 us per call, half of it to set options that matter only while compiling: here they are
    set when dynamo asks for a compilation.
    """
    import torch
    from torch._C._dynamo.eval_frame import set_eval_frame
    from torch._dynamo import config, eval_frame

    context = torch._dynamo.optimize(chosen, nopython=fullgraph, dynamic=dynamic)
    compile_frame = context.callback

    def callback(*args: Any, **kwargs: Any) -> Any:
        leave = [enter() for enter in context.enter_exit_hooks]
        try:
            with config.patch(record_runtime_overhead=False):
                return compile_frame(*args, **kwargs)
        finally:
            for undo in leave:
                undo()

    callback._torchdynamo_orig_backend = compile_frame  # type: ignore[attr-defined]
    context.callback = callback
    slow, graphs = context(fn), chosen.records.graphs
    inner = fn.__call__ if isinstance(fn, torch.nn.Module) else fn
    layers, undo_layers = torch._C._functorch.get_dynamic_layer_stack_depth, (
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth)  # fmt: skip
    modes, tracing = (
        torch._C._len_torch_dispatch_stack,
        torch.fx._symbolic_trace.is_fx_symbolic_tracing,
    )

    def run(*args: Any, **kwargs: Any) -> Any:
        if not graphs or modes() or eval_frame._stance.stance != "default" or tracing():
            return slow(*args, **kwargs)
        depth = layers()
        prior = set_eval_frame(callback)
        try:
            return inner(*args, **kwargs)
        except BaseException:
            set_eval_frame(None)
            undo_layers(depth)
            raise
        finally:
            set_eval_frame(prior)

    return run
