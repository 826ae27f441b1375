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
    parser.add_argument("--keys", type=int, default=0, help="attention of one query over so many keys instead")  # fmt: skip
    args = parser.parse_args(argv)
    if args.keys:
        return attention(args.keys, args.threads, args.rounds)
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


ATTENTION = """
    ranks H=12, M={keys}, E=32, B=2
    in  Q: f32[H, B, E], K: {store}, KS: f32[H, B, E], V: {store}, VS: f32[H, M]
    out Z: f32[H, B, E]
    QK[h, m]   = ({first}) / 8.0
    GM[h]      = QK[h, m] :: max(m)
    SN[h, m]   = exp(QK[h, m] - GM[h])
    SD[h]      = SN[h, m]
    L[h, e]    = SN[h, m] / SD[h] * ({low})
    R[h, e]    = SN[h, m] / SD[h] * ({high})
    Z[h, b, e] = select(b == 0, L[h, e], R[h, e])
"""


def attention(keys: int, threads: int, rounds: int) -> int:
    """One query of 12 heads of 64 over keys with a scale per channel and values with one per token: f32 by torch and by
    tcc, codes of 8 bits, of 4 bits in bytes of their own, and two to a byte."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch
    from harness import measure

    import tcc

    def program(store: str, half: str) -> Any:
        k = [half.format(x="K", b=b, by="% 16" if not b else "// 16") for b in (0, 1)]
        v = [half.format(x="V", b=b, by="% 16" if not b else "// 16") for b in (0, 1)]
        first = " + ".join(f"Q[h, {b}, e] * (({k[b]}) * KS[h, {b}, e])" for b in (0, 1))
        low, high = (f"({x}) * VS[h, m]" for x in v)
        return tcc.compile(
            ATTENTION.format(keys=keys, store=store, first=first, low=low, high=high)
        )

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    q, ks, vs = torch.randn(12, 2, 32), torch.rand(12, 2, 32) / 8, torch.rand(12, keys)
    k, v = (torch.randint(0, 16, (12, keys, 2, 32), dtype=torch.uint8) for _ in "kv")
    pair = [x[:, :, 0] | x[:, :, 1] << 4 for x in (k, v)]
    kf, vf = (k.float() - 8) * ks[:, None], (v.float() - 8) * vs[..., None, None]
    ones = torch.ones_like(ks), torch.ones_like(vs)
    calls: dict[str, Any] = {}
    flat = [x.reshape(1, 12, -1, 64) for x in (q, kf, vf)]
    calls["torch f32"] = lambda: torch.nn.functional.scaled_dot_product_attention(*flat)
    for name, store, half, given in [
        ("tcc f32", "f32[H, M, B, E]", "{x}[h, m, {b}, e]", (q, kf, ones[0], vf, ones[1])),
        ("8 bits", "u8[H, M, B, E]", "f32({x}[h, m, {b}, e]) - 8.0", (q, k, ks, v, vs)),
        ("4 bits, a byte each", "u4[H, M, B, E]", "f32({x}[h, m, {b}, e]) - 8.0", (q, k, ks, v, vs)),
        ("4 bits, two a byte", "u8[H, M, E]", "f32(i32({x}[h, m, e]) {by}) - 8.0", (q, pair[0], ks, pair[1], vs)),
    ]:  # fmt: skip
        f = program(store, half)
        calls[name] = lambda f=f, given=given: f(*given)
        torch.testing.assert_close(f(*given).reshape(-1), calls["torch f32"]().reshape(-1))
    times = measure(calls, threads=threads, rounds=rounds, budget_s=60.0)
    for name, t in times.items():
        print(f"{name:20s} {t.ms:7.3f} ms   {times['tcc f32'].ms / t.ms:.2f} of tcc's f32")
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
