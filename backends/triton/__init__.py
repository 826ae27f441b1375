"""Prints a mapping as Triton source, one kernel per launch with a launcher, and runs or builds it.

On a machine with CUDA `run` launches the kernels; elsewhere Triton's interpreter runs them in a
child process.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from tcc.backends.triton._interpret import Job, interpret_all
from tcc.backends.triton._kernel import KernelText, emit_kernel
from tcc.backends.triton._launcher import CHECK, emit_launcher
from tcc.backends.triton._names import Names, mangled
from tcc.ir.cascade import Extern
from tcc.ir.diagnostics import CompileError
from tcc.ir.interpret import bind
from tcc.ir.mapping import Mapping, signature
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
        tensors = [torch.as_tensor(inputs[t.name]).cuda() for t in self.mapping.inputs]
        out = getattr(self._module[0], self.launcher)(*tensors, **given)
        return dict(zip(names, out if isinstance(out, tuple) else (out,), strict=True))

    def job(self, inputs: MappingABC[str, Any], sizes: MappingABC[str, int] | None = None) -> Job:
        """The same call for `interpret_all`, which runs many in one process."""
        return Job(self.source, self.launcher, self._arrays(inputs), self._sizes(inputs, sizes))

    def _arrays(self, inputs: MappingABC[str, Any]) -> list[Any]:
        """The inputs as NumPy arrays of the declared types."""
        import numpy as np

        found = []
        for t in self.mapping.inputs:
            value = inputs[t.name]
            value = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
            found.append(value.astype(t.dtype.numpy, copy=False))
        return found

    def _sizes(
        self, inputs: MappingABC[str, Any], sizes: MappingABC[str, int] | None
    ) -> dict[str, int]:
        """The sizes that the launcher takes: those that no input has. Checks shapes (T0125 to
        T0127).
        """
        bound = bind(signature(self.mapping), inputs, sizes)
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
