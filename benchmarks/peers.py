"""Who competes: each peer turns a case's function into a callable on the same inputs."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import Case, Function, everything
from harness import Call
from torch import Tensor, nn


@dataclass(frozen=True)
class Built:
    """A peer that has run once: its callable, its first result, and what it took to get there."""

    call: Call
    result: Any
    seconds: float


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

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = as_module(function).eval()
            torch.onnx.export(module, inputs, path, dynamo=True, verbose=False)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*arguments: Tensor) -> Any:
        return session.run(None, {n: x.numpy() for n, x in zip(names, arguments, strict=True)})[0]

    return run


def openvino(function: Function, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """OpenVINO on the traced module, in float32; needs the package `openvino`."""
    import openvino as ov

    model = ov.convert_model(
        as_module(function), example_input=inputs, input=[tuple(x.shape) for x in inputs]
    )
    options = {
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.compile_model(model, "CPU", options).create_infer_request()

    def run(*arguments: Tensor) -> Any:
        return request.infer([x.numpy() for x in arguments], share_inputs=True, share_outputs=True)[
            0
        ]

    return run


def flex(case: Case, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """FlexAttention as Inductor compiles it, which is told what each query sees."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows, keys = inputs[0].shape[-2], inputs[1].shape[-2]
    mask = None
    if case.sees is not everything:
        mask = create_block_mask(case.sees, None, None, rows, keys, device="cpu")
    torch._dynamo.reset()
    compiled: Callable[..., Any] = torch.compile(
        lambda q, k, v: flex_attention(q, k, v, block_mask=mask), dynamic=False
    )
    return compiled


def as_module(function: Function) -> nn.Module:
    class Module(nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return function(*arguments)

    return function if isinstance(function, nn.Module) else Module()


def applies(peer: str, case: Case) -> bool:
    return peer != "flex" or case.sees is not None


Maker = Callable[[Case, Function, tuple[Tensor, ...]], Callable[..., Any]]
PEERS: dict[str, Maker] = {
    "eager": lambda _, function, __: function,
    "inductor": lambda _, function, __: inductor(function),
    "onnxruntime": lambda _, function, inputs: onnxruntime(function, inputs),
    "openvino": lambda _, function, inputs: openvino(function, inputs),
    "flex": lambda case, _, inputs: flex(case, inputs),
    "tcc": lambda _, function, __: tcc(function),
}


def build(peer: str, case: Case, function: Function, inputs: tuple[Tensor, ...]) -> Built | str:
    """Compiles and runs once; a peer that cannot do the case gives the first line of its error."""
    start = time.perf_counter()
    try:
        compiled = PEERS[peer](case, function, inputs)
        result = compiled(*inputs)
    except Exception as error:  # any failure of a peer is a result of the benchmark
        if "TCC_BENCHMARK_RAISE" in os.environ:
            raise
        lines = str(error).strip().split("\n")
        return f"{type(error).__name__}: {lines[0][:160]}"
    return Built(lambda: compiled(*inputs), result, time.perf_counter() - start)
