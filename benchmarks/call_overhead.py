"""What a call costs when there is next to nothing to compute: relu(a + b) on 16 floats.

    python benchmarks/call_overhead.py [--floats N]

The kernel itself takes some tens of nanoseconds, so what is printed is the cost of calling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import Call, measure, table
from torch import Tensor

import tcc

TEXT = """\
cascade add_relu
ranks N
in  A: f32[N], B: f32[N]
out Z: f32[N]

Z[n] = max(A[n] + B[n], 0)
"""


def add_relu(a: Tensor, b: Tensor) -> Tensor:
    return torch.relu(a + b)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--floats", type=int, default=16, help="elements (default 16)")
    parser.add_argument("--eager", action="store_true", help="without tcc")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    a, b = torch.randn(2, options.floats)
    expected = add_relu(a, b).numpy()
    x, y = a.numpy(), b.numpy()
    calls: dict[str, Call] = {
        "torch eager": lambda: add_relu(a, b),
        "numpy": lambda: np.maximum(x + y, 0),
    }
    if not options.eager:
        calls |= tcc_calls(tcc.compile(TEXT), tcc.compile(add_relu), a, b)
    calls["empty python function"] = lambda: None
    for name, call in calls.items():
        result = call()
        if result is not None and not np.array_equal(np.asarray(result), expected):
            print(f"{name}: wrong result", file=sys.stderr)
            return 1
    with torch.no_grad():
        timings = measure(calls, threads=1, rounds=20, window_s=0.02)
    rows = [[n, f"{1e3 * t.ms:.2f}", f"{1e3 * t.wall_median_ms:.2f}"] for n, t in timings.items()]
    print(table([f"relu(a + b), {options.floats} floats", "us", "us (median)"], rows))
    return 0


def tcc_calls(
    program: Callable[..., Any], function: Callable[..., Any], a: Tensor, b: Tensor
) -> dict[str, Call]:
    x, y = a.numpy(), b.numpy()
    return {
        "tcc text, torch tensors": lambda: program(A=a, B=b),
        "tcc text, numpy arrays": lambda: program(A=x, B=y),
        "tcc function, torch tensors": lambda: function(a, b),
    }


if __name__ == "__main__":
    sys.exit(main())
