"""Products with weights of few bits against torch's in f32: `python benchmarks/lowbit.py [--rows 1,16,128] [--threads 1]`.

Y = X · Wᵀ with f32 activations, W 4096 x 4096 in each element type, times a f16 scale per 128 coordinates of K (and minus
8, where codes are integers). What is printed is how much faster a call is than `torch.mv` or `torch.mm` with f32 weights,
all in one process taking turns, the bytes that the weights take, and how far the result is from float64's.
"""

from __future__ import annotations

import argparse
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8"]
OTHERS = ["bool", "i4", "i8", "nf4", "f4e2m1", "posit4_1", "f6e3m2", "f8e4m3fn", "f8e5m2", "posit8_0", "bf16"]  # fmt: skip
GROUP = 128
COPIES = 3  # of the f32 matrix, which take turns, so that none stays in a cache


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
    dense = cycle([torch.randn(size, size) for _ in range(COPIES)])
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
            w = next(dense)
            return torch.mv(w, row, out=line) if rows == 1 else torch.mm(x, w.T, out=out)

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
    ranks H=12, M={keys}, E=64
    in  Q: f32[H, E], K: {store}, KS: f32[H, E], V: {store}, VS: f32[H, M]
    out Z: f32[H, E]
    QK[h, m] = Q[h, e] * ({k} * KS[h, e]) / 8.0
    GM[h]    = QK[h, m] :: max(m)
    SN[h, m] = exp(QK[h, m] - GM[h])
    SD[h]    = SN[h, m]
    Z[h, e]  = SN[h, m] / SD[h] * ({v} * VS[h, m])
"""
TAIL = """
    ranks H=12, P={old}, T={recent}, M=P+T, E=64
    in  Q: f32[H, E], KC: u4[H, P, E] packed, KS: f32[H, E], KR: f32[H, T, E]
    in  VC: u4[H, P, E] packed, VS: f32[H, P], VR: f32[H, T, E]
    out Z: f32[H, E]
    K[h, m, e] = select(m < P, (f32(KC[h, m + 0, e]) - 8.0) * KS[h, e], KR[h, m - P, e])
    V[h, m, e] = select(m < P, (f32(VC[h, m + 0, e]) - 8.0) * VS[h, m + 0], VR[h, m - P, e])
    QK[h, m]   = Q[h, e] * K[h, m, e] / 8.0
    GM[h]      = QK[h, m] :: max(m)
    SN[h, m]   = exp(QK[h, m] - GM[h])
    SD[h]      = SN[h, m]
    Z[h, e]    = SN[h, m] / SD[h] * V[h, m, e]
"""
RECENT = 128  # keys that are kept in f32


def attention(keys: int, threads: int, rounds: int) -> int:
    """One query of 12 heads of 64 over keys with a scale per channel and values with one per token: f32 by torch and by
    tcc, codes of 8 bits, of 4 and 2 bits packed, and of 4 bits with the last keys in f32. `predicted` are the bytes that
    move by the cost model over those that the arrays have."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch
    from harness import measure

    import tcc
    from tcc.cost_report import predicted

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    q = torch.randn(12, 64)
    calls: dict[str, Any] = {}
    moved: dict[str, float] = {}

    def add(name: str, text: str, *given: Any, want: Any) -> None:
        f = tcc.compile(text)
        torch.testing.assert_close(f(*given), want, rtol=1e-4, atol=1e-5)
        calls[name] = lambda: f(*given)
        found = predicted(f.result.program, f.result.target, {}, threads)
        assert found is not None
        levels = {level for k in found.kernels for level in k.moved} - {"L1", "L2", "reg"}
        most = max(sum(k.moved.get(level, 0) for k in found.kernels) for level in levels)
        moved[name] = most / sum(x.nbytes for x in (*given, want))

    for bits in (8, 4, 2):
        middle = 2 ** (bits - 1)
        ks, vs = torch.rand(12, 64) / middle, torch.rand(12, keys) / middle
        k, v = (torch.randint(0, 2 * middle, (12, keys, 64), dtype=torch.uint8) for _ in "kv")
        kf, vf = (k.float() - middle) * ks[:, None], (v.float() - middle) * vs[..., None]
        flat = [x.reshape(1, 12, -1, 64) for x in (q, kf, vf)]
        want = torch.nn.functional.scaled_dot_product_attention(*flat).reshape(12, 64)
        if bits == 8:
            calls["torch f32"] = lambda flat=flat: torch.nn.functional.scaled_dot_product_attention(*flat)  # fmt: skip
            plain = ATTENTION.format(keys=keys, store="f32[H, M, E]", k="K[h, m, e]", v="V[h, m, e]")  # fmt: skip
            plain = plain.replace(" * KS[h, e]", "").replace(" * VS[h, m]", "")
            plain = plain.replace("KS: f32[H, E], ", "").replace(", VS: f32[H, M]", "")
            add("tcc f32", plain, q, kf, vf, want=want)
        store = f"u{bits}[H, M, E]" + " packed" * (bits < 8)
        code = f"(f32({{}}[h, m, e]) - {middle}.0)"
        text = ATTENTION.format(keys=keys, store=store, k=code.format("K"), v=code.format("V"))
        if bits == 4:
            add("4 bits, a byte each", text.replace(" packed", ""), q, k, ks, v, vs, want=want)
        per = 8 // bits
        if per > 1:
            shifts = torch.arange(per, dtype=torch.uint8) * bits
            k, v = (x.unflatten(-1, (-1, per)).bitwise_left_shift(shifts).sum(-1, dtype=torch.uint8) for x in (k, v))  # fmt: skip
        add(f"{bits} bits" + ", packed" * (bits < 8), text, q, k, ks, v, vs, want=want)
        if bits == 4:
            old = keys - RECENT
            given = [k[:, :old], ks, kf[:, old:].clone(), v[:, :old], vs[:, :old], vf[:, old:].clone()]  # fmt: skip
            add(f"4 bits, last {RECENT} f32", TAIL.format(old=old, recent=RECENT), q, *given, want=want)  # fmt: skip
    times = measure(calls, threads=threads, rounds=rounds, budget_s=60.0)
    print("| keys and values | ms | of tcc's f32 | predicted |\n|---|---|---|---|")
    for name, t in times.items():
        told = f"{moved[name]:.3f}" if name in moved else ""
        print(f"| {name} | {t.ms:.3f} | {times['tcc f32'].ms / t.ms:.2f} | {told} |")
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
