"""Prints a mapping as Triton source, one kernel per launch with a launcher, and runs or builds it.

On a machine with CUDA `run` launches the kernels; elsewhere Triton's interpreter runs them in a
child process.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from tcc.backends.triton._codes import readable, stored_type
from tcc.backends.triton._interpret import Job, interpret_all
from tcc.backends.triton._kernel import KernelText, emit_kernel
from tcc.backends.triton._launcher import CHECK, emit_launcher
from tcc.backends.triton._names import Names, mangled
from tcc.ir.cascade import Extern, Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Cast, walk
from tcc.ir.interpret import bind
from tcc.ir.mapping import Kernel, Mapping, leaves, signature
from tcc.ir.packed import elements_shape
from tcc.ir.target import Target

PRECISIONS = ("ieee", "tf32", "tf32x3")


@dataclass
class Program:
    """A mapping in Triton: `source` is a Python module whose function `launcher` takes the inputs
    in order.
    """

    mapping: Mapping
    source: str
    launcher: str
    kernels: tuple[KernelText, ...]
    _module: list[ModuleType] = field(default_factory=list, repr=False)

    def run(
        self, inputs: MappingABC[str, Any], sizes: MappingABC[str, int] | None = None
    ) -> dict[str, Any]:
        """The outputs by name, as torch tensors on the device where there is one, else as NumPy
        arrays.

        `inputs` are torch tensors or arrays; without CUDA Triton's interpreter computes, slowly.
        """
        from tcc.backends.triton import _toolchain

        given = self._sizes(inputs, sizes)
        _toolchain.require()
        names = [t.name for t in self.mapping.outputs]
        if not _toolchain.has_device():
            job = Job(self.source, self.launcher, self._arrays(inputs), given)
            return dict(zip(names, interpret_all([job])[0], strict=True))
        import torch

        if not self._module:
            self._module.append(_toolchain.load(self.source))
        tensors = [_codes_of(torch, inputs[t.name], t).cuda() for t in self.mapping.inputs]
        out = getattr(self._module[0], self.launcher)(*tensors, **given)
        return dict(zip(names, out if isinstance(out, tuple) else (out,), strict=True))

    def job(self, inputs: MappingABC[str, Any], sizes: MappingABC[str, int] | None = None) -> Job:
        """The same call for `interpret_all`, which runs many in one process."""
        return Job(self.source, self.launcher, self._arrays(inputs), self._sizes(inputs, sizes))

    def _arrays(self, inputs: MappingABC[str, Any]) -> list[Any]:
        """The inputs as NumPy arrays of the declared types."""
        found = []
        for t in self.mapping.inputs:
            value = inputs[t.name]
            if hasattr(value, "detach"):
                import torch

                value = _codes_of(torch, value, t).cpu().numpy()
            found.append(np.asarray(value).astype(stored_type(t), copy=False))
        return found

    def _sizes(
        self, inputs: MappingABC[str, Any], sizes: MappingABC[str, int] | None
    ) -> dict[str, int]:
        """The sizes that the launcher takes: those that no input has. Checks shapes (T0125 to
        T0127).
        """
        shaped = dict(inputs)
        for t in self.mapping.inputs:
            if t.packed:  # bytes, of which each holds several elements
                shape = elements_shape(t, tuple(inputs[t.name].shape))
                shaped[t.name] = np.broadcast_to(np.zeros((), np.uint8), shape)
        bound = bind(signature(self.mapping), shaped, sizes)
        from tcc.ir.expr import Size

        seen = {s.rank for t in self.mapping.inputs for s in t.shape if isinstance(s, Size)}
        return {
            r.name: bound[r.name]
            for r in self.mapping.ranks
            if r.size is None and r.name not in seen
        }


def build(mapping: Mapping, target: Target, *, precision: str = "") -> Program:
    """`mapping` in Triton. `precision` is how `tl.dot` multiplies f32: `ieee` exactly, `tf32` with
    operands of 10 bits.

    Unless given it is `tf32` where the target's parameter of that name is 1, else `ieee`.
    """
    precision = precision or ("tf32" if target.parameter("tf32", 0) else "ieee")
    if precision not in PRECISIONS:
        raise CompileError(
            "T0367", f"unknown precision `{precision}`", helps=f"one of {', '.join(PRECISIONS)}"
        )
    read = {t.name for t in mapping.inputs} - {t.name for t in mapping.outputs}
    for t in signature(mapping).tensors.values():
        if not (readable(t.dtype) if t.name in read else t.dtype.native):
            raise CompileError(
                "T0367",
                f"the Triton backend has no {t.dtype} {'inputs' if t.name in read else 'results'} yet: `{t.name}`",
                t.span,
                helps="decode it before, or compile for the cpu target",
            )
    _check_conversions(mapping)
    module = Names({"_check"})
    helpers: dict[str, str] = {}
    kernels: list[KernelText] = []
    launcher = module.fresh(mapping.name)
    for k in mapping.kernels:
        if isinstance(k, Extern):
            raise CompileError(
                "T0367",
                f"the Triton backend can not call `{k.function}`",
                k.span,
                helps="compile this program for the cpu target",
            )
        name = module.fresh(f"{k.name}_kernel")
        kernels.append(emit_kernel(mapping, k, target, name, helpers, precision))
    wrapper = emit_launcher(mapping, kernels, launcher, module)
    parts = [
        "import torch\nimport triton\nimport triton.language as tl",
        *helpers.values(),
        *(k.source for k in kernels),
        CHECK,
        wrapper,
    ]
    return Program(mapping, "\n\n\n".join(parts) + "\n", launcher, tuple(kernels))


def _check_conversions(m: Mapping) -> None:
    """T0367 for a conversion into a type that is only stored."""
    for k in m.kernels:
        for leaf in leaves(k.body) if isinstance(k, Kernel) else ():
            for e in walk(leaf.einsum.body, *leaf.einsum.where, *leaf.einsum.indices):
                if isinstance(e, Cast) and not e.dtype.native:
                    raise CompileError(
                        "T0367",
                        f"the Triton backend can not convert to {e.dtype} yet",
                        e.span or leaf.einsum.span,
                        helps="convert to a native type, or compile for the cpu target",
                    )


def _codes_of(torch: Any, value: Any, t: Tensor) -> Any:
    """A tensor as the launcher takes it: torch's own floats of few bits as their codes."""
    found = torch.as_tensor(value).detach()
    wanted = getattr(torch, stored_type(t))
    same_size = found.dtype != wanted and found.dtype.itemsize == wanted.itemsize
    return found.view(wanted) if same_size and not t.dtype.native else found


def emit(mapping: Mapping, target: Target, *, precision: str = "") -> str:
    """The Python module of a mapping: a kernel per launch, and a launcher of the program's name."""
    return build(mapping, target, precision=precision).source


def compile_ahead(
    mapping: Mapping, target: Target, capability: int | None = None, *, precision: str = ""
) -> list[dict[str, Any]]:
    """Of each kernel `ptx`, `cubin`, `registers`, `spills` and `shared_bytes` for
    `sm_<capability>`, by default the target's; needs no device.
    """
    from tcc.backends.triton._toolchain import compile_kernel

    capability = capability or int(target.parameter("capability", 90))
    program = build(mapping, target, precision=precision)
    return [compile_kernel(mapping, k, program.source, capability) for k in program.kernels]


__all__ = ["Program", "build", "compile_ahead", "emit", "interpret_all", "mangled"]
