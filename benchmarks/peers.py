"""Who competes: each peer turns a case's function into a callable on the same inputs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import Function
from harness import Call
from torch import Tensor, nn


@dataclass(frozen=True)
class Built:
    """A peer that has run once: its callable, its first result, and what it took to get there."""

    call: Call
    result: Any
    seconds: float


def eager(function: Function) -> Callable[..., Any]:
    return function


def inductor(function: Function) -> Callable[..., Any]:
    """`torch.compile` as it is, free to specialise on the shapes."""
    torch._dynamo.reset()
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
    return compiled


def tcc(function: Function) -> Callable[..., Any]:
    import tcc

    torch._dynamo.reset()  # else a function that was seen with other shapes is compiled for all shapes
    compiled: Callable[..., Any] = tcc.compile(function)
    return compiled


def onnxruntime(function: Function, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """ONNX Runtime on the exported graph; needs the packages `onnxruntime` and `onnxscript`."""
    import onnxruntime as ort

    class Module(nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return function(*arguments)

    module = function if isinstance(function, nn.Module) else Module()
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(module, inputs, path, dynamo=True, verbose=False)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*arguments: Tensor) -> Any:
        return session.run(None, {n: x.numpy() for n, x in zip(names, arguments, strict=True)})[0]

    return run


PEERS: dict[str, Callable[[Function], Callable[..., Any]]] = {
    "eager": eager,
    "inductor": inductor,
    "tcc": tcc,
}
EXPORTERS = {"onnxruntime": onnxruntime}  # peers that have to see the inputs


def build(peer: str, function: Function, inputs: tuple[Tensor, ...]) -> Built | str:
    """Compiles and runs once; a peer that cannot do the case gives the first line of its error."""
    start = time.perf_counter()
    try:
        exporter = EXPORTERS.get(peer)
        compiled = exporter(function, inputs) if exporter else PEERS[peer](function)
        result = compiled(*inputs)
    except Exception as error:  # any failure of a peer is a result of the benchmark
        if "TCC_BENCHMARK_RAISE" in os.environ:
            raise
        lines = str(error).strip().split("\n")
        return f"{type(error).__name__}: {lines[0][:160]}"
    return Built(lambda: compiled(*inputs), result, time.perf_counter() - start)
