"""Everything that depends on Triton's version: ahead-of-time builds, what they report, and whether
a device is there.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from tcc.backends.triton._codes import stored_type
from tcc.backends.triton._kernel import KernelText
from tcc.ir.cascade import Tensor
from tcc.ir.diagnostics import CompileError
from tcc.ir.mapping import Buffer, Mapping, tensors

_POINTER = {"f64": "fp64", "f32": "fp32", "f16": "fp16", "bool": "i1"}


def require() -> Any:
    """The module `triton`; T0364 when it is not installed."""
    try:
        import triton
    except ImportError:
        raise CompileError(
            "T0364", "Triton is not installed", helps="`pip install triton torch`"
        ) from None
    return triton


def has_device() -> bool:
    """Whether a CUDA device can be used from this process."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def load(source: str) -> ModuleType:
    """The generated module; Triton reads the text of its functions from a file, which lives as
    long as the process.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    folder = Path(tempfile.mkdtemp(prefix="tcc-triton-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"kernels_{digest}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"tcc_triton_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def compile_kernel(m: Mapping, k: KernelText, source: str, capability: int) -> dict[str, Any]:
    """PTX, cubin and resources of one kernel for `sm_<capability>`, without a device.

    Sizes and strides count as multiples of 16, last strides as 1, as for contiguous tensors of
    round shapes.
    """
    triton = require()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise CompileError(
            "T0364",
            "Triton's interpreter is on, so nothing can be built ahead of time",
            helps="unset `TRITON_INTERPRET`",
        )
    types = {name: _kind(t) for name, t in tensors(m).items()}
    ranks = {name: len(t.shape) for name, t in tensors(m).items()}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], int] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for i, p in enumerate(k.parameters):
        contiguous = p.kind == "stride" and p.dimension == ranks[p.of] - 1
        if p.kind == "block" or contiguous:
            signature[p.name], constants[(i,)] = "constexpr", p.value if p.kind == "block" else 1
            continue
        name = types[p.of] if p.kind == "pointer" else ""
        signature[p.name] = f"*{_POINTER.get(name, name)}" if name else "i32"
        attributes[(i,)] = [["tt.divisibility", 16]]
    function = getattr(load(source), k.name)
    built = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": k.warps, "num_stages": k.stages, "enable_fp_fusion": True},
    )
    out = {
        "name": k.name,
        "ptx": built.asm["ptx"],
        "cubin": built.asm["cubin"],
        "ttgir": built.asm["ttgir"],
        "shared_bytes": int(built.metadata.shared),
        "warps": k.warps,
    }
    return out | _resources(out["ptx"], capability)


def _kind(t: Tensor | Buffer) -> str:
    """The name of a tensor's stored type: that of an integer, where it holds codes."""
    if isinstance(t, Tensor) and (t.packed or not t.dtype.native):
        return stored_type(t).replace("int", "")
    return t.dtype.name


def _resources(ptx: str, capability: int) -> dict[str, int]:
    """Registers of a thread and bytes it spills, as the assembler reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    assembler = get_ptxas(capability).path
    with tempfile.TemporaryDirectory(prefix="tcc-ptx-") as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        arch = f"sm_{capability}{'a' if capability >= 90 else ''}"
        done = subprocess.run(
            [str(assembler), "-v", f"--gpu-name={arch}", str(path), "-o", f"{path}.cubin"],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise CompileError(
            "T0365",
            f"the assembler refused the kernel: {done.stderr.strip()[:400]}",
            helps="this is a bug in tcc or Triton",
        )
    return {
        "registers": sum(map(int, re.findall(r"Used (\d+) registers", done.stderr))),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr))),
        "stack_bytes": sum(map(int, re.findall(r"(\d+) bytes stack frame", done.stderr))),
    }
