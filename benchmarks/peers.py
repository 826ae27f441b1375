"""Who competes: each peer turns a case's function into a callable on the same inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import Function
from harness import Call
from torch import Tensor


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

    compiled: Callable[..., Any] = tcc.compile(function)
    return compiled


PEERS: dict[str, Callable[[Function], Callable[..., Any]]] = {
    "eager": eager,
    "inductor": inductor,
    "tcc": tcc,
}


def build(peer: str, function: Function, inputs: tuple[Tensor, ...]) -> Built | str:
    """Compiles and runs once; a peer that cannot do the case gives the first line of its error."""
    start = time.perf_counter()
    try:
        compiled = PEERS[peer](function)
        result = compiled(*inputs)
    except Exception as error:  # any failure of a peer is a result of the benchmark
        if "TCC_BENCHMARK_RAISE" in os.environ:
            raise
        lines = str(error).strip().split("\n")
        return f"{type(error).__name__}: {lines[0][:160]}"
    return Built(lambda: compiled(*inputs), result, time.perf_counter() - start)
