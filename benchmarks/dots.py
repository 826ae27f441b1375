"""Layers with quantised weights and 8-bit activations: `python benchmarks/dots.py [--rows 1,16,128] [--threads 1]`.

Y = X · Wᵀ with W 4096 x 4096 in codes of 1 to 8 bits, a scale and a zero point per 128 coordinates of K; X is rounded to
i8 by rows and groups inside the call. What is printed is how much faster a call is than `torch.mv` or `torch.mm` with f32
weights, and, where `onnxruntime` and `onnx` are installed, than its `MatMulNBits` in int8 mode on 4 bits, all in one
process taking turns; and how far the result is from float64's with unrounded activations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TYPES = ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "i8"]
GROUP = 128
COPIES = 3  # of the f32 matrix, which take turns, so that none stays in a cache
Call = Callable[[], Any]


def layer(name: str, rows: int, size: int) -> str:
    """The program of one type: activations are rounded by groups, the sums are scaled."""
    zero = "" if name[0] == "i" else f" - {2 ** (int(name[1:]) - 1)}"
    return f"""
        ranks M={rows}, N={size}, K={size}, G={size // GROUP}, J={GROUP}
        in  X: f32[M, K], C: {name}[N, K] constant, R: f32[N, G] constant
        out Y: f32[M, N]
        Big[m, g] = abs(X[m, {GROUP} * g + j]) :: max(j)
        S[m, g] = max(Big[m, g] / 127, 1e-30)
        Q[m, k] = i8(round(X[m, k] / S[m, k // {GROUP}]))
        Y[m, n] = f32(Q[m, k]) * S[m, k // {GROUP}] * ((f32(C[n, k]){zero}) * R[n, k // {GROUP}])"""


def onnxruntime_layer(codes: np.ndarray, scale: np.ndarray) -> Callable[[np.ndarray], Any] | None:
    """The same layer of 4 bits as ONNX Runtime's MatMulNBits with accuracy level 4; None where it is not installed."""
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper
    except ImportError:
        return None
    n, k = codes.shape
    blocks = codes.reshape(n, k // GROUP, GROUP).astype(np.uint8)
    packed = blocks[:, :, 0::2] | blocks[:, :, 1::2] << 4
    node = helper.make_node(
        "MatMulNBits", ["A", "B", "S"], ["Y"], domain="com.microsoft", K=k, N=n, bits=4,
        block_size=GROUP, accuracy_level=4,
    )  # fmt: skip
    given = helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", k])
    made = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", n])
    stored = [
        helper.make_tensor("B", TensorProto.UINT8, packed.shape, packed.tobytes(), raw=True),
        helper.make_tensor("S", TensorProto.FLOAT, [scale.size], scale.tobytes(), raw=True),
    ]
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "layer", [given], [made], stored)
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"A": x})[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--rows", default="1,16,128", help="of X, with commas")
    parser.add_argument("--types", default=",".join(TYPES), help="with commas")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch
    from harness import measure

    import tcc

    torch.set_num_threads(args.threads)
    rng, size = np.random.default_rng(0), args.size
    dense = cycle([torch.randn(size, size) for _ in range(COPIES)])
    scale = (rng.random((size, size // GROUP)).astype(np.float32) + 0.5) / 100
    names, rows = args.types.split(","), [int(m) for m in args.rows.split(",")]
    weights = {n: random_codes(n, size, rng) for n in names}
    nibbles = random_codes("u4", size, rng)
    other = onnxruntime_layer(nibbles, scale) if args.threads == 1 else None
    found: dict[str, list[str]] = {n: [] for n in names}
    worst = dict.fromkeys(names, 0.0)
    peers = []
    for m in rows:
        x = torch.randn(m, size)
        calls: dict[str, Call] = {
            "torch": lambda x=x: next(dense) @ x[0] if len(x) == 1 else x @ next(dense).T
        }
        if other is not None:
            calls["onnxruntime"] = lambda x=x: other(x.numpy())
        for n in names:
            f = tcc.compile(layer(n, m, size))
            given = (x, torch.from_numpy(weights[n]), torch.from_numpy(scale))
            want = reference(x.double().numpy(), weights[n], scale, n)
            error = np.abs(f(*given).numpy() - want).max() / np.abs(want).max()
            worst[n] = max(worst[n], float(error))
            calls[n] = lambda f=f, given=given: f(*given)
        times = measure(calls, threads=args.threads, rounds=args.rounds, budget_s=60.0)
        for n in names:
            ratios = [times[p].ms / times[n].ms for p in ("torch", "onnxruntime") if p in times]
            found[n].append(" · ".join(f"{r:.2f}" for r in ratios))
        peers = [p for p in ("torch", "onnxruntime") if p in times]
    heads = " | ".join(f"M = {m}" for m in rows)
    print(
        f"{size} x {size}, {args.threads} thread(s); times faster than {' in f32 · '.join(peers)}\n"
    )
    print(f"| weights | {heads} | largest error |\n|{'---|' * (2 + len(rows))}")
    for n in names:
        print(f"| {n} | {' | '.join(found[n])} | {worst[n]:.1e} |")
    return 0


def random_codes(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    bits = int(name[1:])
    low = -(2 ** (bits - 1)) if name[0] == "i" else 0
    return rng.integers(low, low + 2**bits, (size, size)).astype(f"{'u' * (low == 0)}int8")


def reference(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, name: str) -> np.ndarray:
    w = codes.astype(np.float64) - (0 if name[0] == "i" else 2 ** (int(name[1:]) - 1))
    return x @ (w * np.repeat(scale, GROUP, axis=1)).T


if __name__ == "__main__":
    raise SystemExit(main())
