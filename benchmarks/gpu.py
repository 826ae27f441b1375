"""Builds, checks and times the Triton kernels on a CUDA machine, against torch: `python
benchmarks/gpu.py TABLE.md`.

One call does everything and writes a Markdown table. Without CUDA it says so and exits with 3. A
case that fails is a row with its error; the others still run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINEAR = """cascade linear
in A: f32[M,K], B: f32[K,N], Bias: f32[N], R: f32[M,N]
out Y: f32[M,N]
C[m,n] = A[m,k] * B[k,n]
D[m,n] = C[m,n] + Bias[n]
Y[m,n] = D[m,n] * 0.5 * (1 + erf(D[m,n] * 0.7071067811865476)) + R[m,n]
kernel linear: C, D, Y
"""
SOFTMAX = """cascade softmax
ranks {ranks}
in X: f32[R,C]
out Y: f32[R,C]
G[r]   = X[r,c] :: max(c)
E[r,c] = exp(X[r,c] - G[r])
S[r]   = E[r,c]
Y[r,c] = E[r,c] / S[r]
kernel softmax: G, E, S, Y
"""
ATTENTION = """cascade attention
ranks P, M, E=64, F=64
in Q: f32[H,P,E], K: f32[H,M,E], V: f32[H,M,F]
out AV: f32[H,P,F]
QK[h,m,p] = Q[h,p,e] * K[h,m,e] / sqrt(E) {where}
GM[h,p]   = QK[h,m,p] :: max(m) {where}
SN[h,m,p] = exp(QK[h,m,p] - GM[h,p]) {where}
SD[h,p]   = SN[h,m,p] {where}
A[h,m,p]  = SN[h,m,p] / SD[h,p] {where}
AV[h,p,f] = A[h,m,p] * V[h,m,f] {where}
kernel attention: QK, GM, SN, SD, A, AV
"""
ONE_PASS = """cascade one_pass
ranks P, M1, M0=64, E=64, F=64
in Q: f32[H,P,E], BK: f32[H,M1,M0,E], BV: f32[H,M1,M0,F]
out AV: f32[H,P,F]
BQK[h,m1,m0,p]  = Q[h,p,e] * BK[h,m1,m0,e] / sqrt(E)
LM[h,m1,p]      = BQK[h,m1,m0,p] :: max(m0)
RM[0,h,p]       = -inf
RM[m1+1,h,p]    = max(RM[m1,h,p], LM[h,m1,p])
SLN[h,m1,m0,p]  = exp(BQK[h,m1,m0,p] - RM[m1+1,h,p])
SLD[h,m1,p]     = SLN[h,m1,m0,p]
SLNV[h,m1,p,f]  = SLN[h,m1,m0,p] * BV[h,m1,m0,f]
PRM[h,m1,p]     = exp(RM[m1,h,p] - RM[m1+1,h,p])
RD[0,h,p]       = 0.0
RD[m1+1,h,p]    = SLD[h,m1,p] + RD[m1,h,p] * PRM[h,m1,p]
RNV[0,h,p,f]    = 0.0
RNV[m1+1,h,p,f] = SLNV[h,m1,p,f] + RNV[m1,h,p,f] * PRM[h,m1,p]
AV[h,p,f]       = RNV[M1,h,p,f] / RD[M1,h,p]
kernel one_pass: BQK, LM, RM, SLN, SLD, SLNV, PRM, RD, RNV, AV
"""


@dataclass(frozen=True)
class Case:
    """A program, the shapes of its inputs, what torch computes from them, and its work in
    floating-point operations.
    """

    name: str
    text: str
    shapes: tuple[tuple[int, ...], ...]
    torch: Callable[..., Any]
    gflop: float = 0.0
    tf32: bool = False


def cases() -> list[Case]:
    """Matrix products with an epilogue, softmax rows, attention."""
    from torch.nn import functional

    def linear(a: Any, b: Any, bias: Any, r: Any) -> Any:
        return functional.gelu(a @ b + bias) + r

    def softmax(x: Any) -> Any:
        return x.softmax(-1)

    def attention(q: Any, k: Any, v: Any) -> Any:
        return functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]

    def causal(q: Any, k: Any, v: Any) -> Any:
        return functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]

    def tiled(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k.flatten(1, 2), v.flatten(1, 2))

    found = []
    for tf32 in (False, True):
        for n in (1024, 4096):
            shapes = ((n, n), (n, n), (n,), (n, n))
            found.append(Case(f"linear {n}", LINEAR, shapes, linear, 2 * n**3 / 1e9, tf32))
        found.append(
            Case(
                "linear 1000 x 777 x 333",
                LINEAR,
                ((1000, 333), (333, 777), (777,), (1000, 777)),
                linear,
                2 * 1000 * 777 * 333 / 1e9,
                tf32,
            )
        )
    for rows, columns in ((4096, 1024), (4096, 4099), (128, 32768)):
        found.append(
            Case(
                f"softmax {rows} x {columns}, any size",
                SOFTMAX.format(ranks="R"),
                ((rows, columns),),
                softmax,
            )
        )
    found.append(
        Case(
            "softmax 4096 x 1024, fixed",
            SOFTMAX.format(ranks="R, C=1024"),
            ((4096, 1024),),
            softmax,
        )
    )
    for tf32 in (False, True):
        for p in (1024, 4096):
            shape = (16, p, 64)
            gflop = 4 * 16 * p * p * 64 / 1e9
            found.append(
                Case(
                    f"attention {p}",
                    ATTENTION.format(where=""),
                    (shape,) * 3,
                    attention,
                    gflop,
                    tf32,
                )
            )
            found.append(
                Case(
                    f"causal {p}",
                    ATTENTION.format(where="where m <= p"),
                    (shape,) * 3,
                    causal,
                    gflop / 2,
                    tf32,
                )
            )
            tiles = (16, p // 64, 64, 64)
            found.append(
                Case(
                    f"attention in one pass {p}",
                    ONE_PASS,
                    (shape, tiles, tiles),
                    tiled,
                    gflop,
                    tf32,
                )
            )
    return found


def measure(case: Case) -> list[str]:
    """One row of the table: the largest error of ours and of torch against float64, both times,
    and their ratio.
    """
    import torch
    import triton

    from tcc.backends.triton import _toolchain, build
    from tcc.ir.cascade_text import parse_cascade
    from tcc.ir.target import parse_target
    from tcc.passes._map_gpu import map_gpu

    torch.backends.cuda.matmul.allow_tf32 = case.tf32
    target = parse_target((ROOT / "backends/targets/h100.yaml").read_text(), "h100")
    target = replace(target, parameters={**target.parameters, "tf32": float(case.tf32)})
    program = build(map_gpu(parse_cascade(case.text), target), target)
    ours = getattr(_toolchain.load(program.source), program.launcher)
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [torch.randn(s, generator=generator, device="cuda") for s in case.shapes]
    exact = case.torch(*[x.double() for x in inputs])
    scale = exact.abs().max().item()
    mine, theirs = (
        (f(*inputs).double() - exact).abs().max().item() / scale for f in (ours, case.torch)
    )
    limit = 2e-2 if case.tf32 else 1e-4
    wrong = "" if mine <= limit else f" **wrong**: above {limit:g}"
    times = [
        triton.testing.do_bench(lambda f=f: f(*inputs), warmup=50, rep=200, return_mode="median")
        for f in (ours, case.torch)
    ]
    rate = f"{case.gflop / times[0]:.1f}" if case.gflop else ""
    return [
        case.name,
        "tf32" if case.tf32 else "f32",
        f"{mine:.1e}{wrong}",
        f"{theirs:.1e}",
        f"{times[0] * 1000:.1f}",
        f"{times[1] * 1000:.1f}",
        f"{times[1] / times[0]:.2f}",
        rate,
    ]


def main() -> int:
    """0 when every case is right, 1 when one is not, 3 without a device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="where the Markdown table goes")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    options = parser.parse_args()
    try:
        import torch
        import triton
    except ImportError as error:
        print(f"{error.name} is not installed; nothing was measured", file=sys.stderr)
        return 3
    if not torch.cuda.is_available():
        print("this machine has no CUDA device; nothing was measured", file=sys.stderr)
        return 3
    head = ["case", "type", "error", "torch's error", "us", "torch's us", "torch / ours", "TFLOP/s"]
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}. "
        "Errors are the largest difference from float64 over the largest value; times are medians.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    failed = False
    for case in cases():
        if options.only not in case.name:
            continue
        try:
            row = measure(case)
        except Exception as error:
            row = [
                case.name,
                "tf32" if case.tf32 else "f32",
                f"**failed**: {str(error).splitlines()[0][:120]}",
                *[""] * 5,
            ]
        failed |= "**" in row[2]
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
        options.table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
