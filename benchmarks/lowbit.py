"""Products with weights of few bits against torch's in f32: `python benchmarks/lowbit.py [--rows 1,16,128] [--threads 1]`.

Y = X · Wᵀ with f32 activations, W 4096 x 4096 in each element type, times a f16 scale per 128 coordinates of K (and minus
8, where codes are integers). What is printed is how much faster a call is than `torch.mv` or `torch.mm` with f32 weights,
all in one process taking turns, the bytes that the weights take, and how far the result is from float64's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8"]
OTHERS = ["bool", "i4", "i8", "nf4", "f4e2m1", "posit4_1", "f6e3m2", "f8e4m3fn", "f8e5m2", "posit8_0", "bf16"]  # fmt: skip
GROUP = 128


def product(name: str, rows: int, size: int) -> str:
    """The program of one type."""
    zero = " - 8.0" if name[0] in "iu" and name[1:].isdigit() else ""
    return f"""
        ranks M={rows}, N={size}, K={size}, G={size // GROUP}
        in  X: f32[M, K], C: {name}[N, K] constant, S: f16[N, G] constant
        out Y: f32[M, N]
        Y[m, n] = X[m, k] * ((f32(C[n, k]){zero}) * S[n, k // {GROUP}])"""


def codes(t: Any, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Random elements, none of them NaN, inf or very large."""
    if t.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if t.is_integer:
        low = -(2 ** (t.bits - 1)) if t.kind == "i" else 0
        return rng.integers(low, low + 2**t.bits, shape).astype(t.numpy)
    every = np.arange(2**t.bits).astype(f"uint{8 * t.numpy.itemsize}")
    values = np.abs(np.asarray(t.load(every.view(t.numpy))))
    fine = every[np.isfinite(values) & (values < 100)]
    return fine[rng.integers(0, fine.size, shape)].view(t.numpy)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--rows", default="1,16,128", help="of X, with commas")
    parser.add_argument("--types", default=",".join(WIDTHS + OTHERS), help="with commas")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch
    from harness import measure

    import tcc
    from tcc import dtypes
    from tcc.stored import torch_dtype

    torch.set_num_threads(args.threads)
    rng, size = np.random.default_rng(0), args.size
    dense = torch.randn(size, size)
    scale = torch.from_numpy((rng.random((size, size // GROUP)) + 0.5).astype(np.float16))
    names = args.types.split(",")
    weights = {n: codes(dtypes.dtype(n), (size, size), rng) for n in names}
    print(f"{size} x {size}, {args.threads} thread(s); times faster than torch in f32\n")
    print("| type | bytes of weights | " + " | ".join(f"M = {m}" for m in args.rows.split(",")) + " | largest error |")  # fmt: skip
    print("|" + "---|" * (3 + len(args.rows.split(","))))
    found: dict[str, list[str]] = {n: [] for n in names}
    worst: dict[str, float] = dict.fromkeys(names, 0.0)
    for rows in map(int, args.rows.split(",")):
        x = torch.randn(rows, size)
        out = torch.empty(rows, size)
        row, line = x[0].clone(), torch.empty(size)

        def peer(rows: int = rows, x: Any = x, out: Any = out, row: Any = row, line: Any = line) -> Any:  # fmt: skip
            return torch.mv(dense, row, out=line) if rows == 1 else torch.mm(x, dense.T, out=out)

        calls: dict[str, Any] = {"torch": peer}
        for n in names:
            f = tcc.compile(product(n, rows, size))
            stored = torch.from_numpy(weights[n]).view(torch_dtype(torch, dtypes.dtype(n)))
            given = (x, stored, scale)
            want = _reference(x.double().numpy(), weights[n], scale.double().numpy(), dtypes.dtype(n))  # fmt: skip
            error = np.abs(f(*given).numpy() - want).max() / np.abs(want).max()
            worst[n] = max(worst[n], float(error))
            calls[n] = lambda f=f, given=given: f(*given)
        times = measure(calls, threads=args.threads, rounds=args.rounds, budget_s=90.0)
        for n in names:
            found[n].append(f"{times['torch'].ms / times[n].ms:.2f}")
    for n in names:
        bits = _stored_bits(dtypes.dtype(n))
        shown = " | ".join([f"{size * size * bits // 8:,}", *found[n], f"{worst[n]:.1e}"])
        print(f"| {n} | {shown} |")
    return 0


def _stored_bits(t: Any) -> int:
    from tcc.passes._cpu_packed import planes, stored

    return sum(bits for bits, _ in planes(stored(t)))


def _reference(x: np.ndarray, stored: np.ndarray, scale: np.ndarray, t: Any) -> np.ndarray:
    w = np.asarray(t.load(stored)).astype(np.float64)
    if t.is_integer:
        w -= 8
    w *= np.repeat(scale, GROUP, axis=1)
    return x @ w.T


if __name__ == "__main__":
    raise SystemExit(main())
