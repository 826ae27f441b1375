"""Builds, checks and times the Triton kernels on a CUDA machine, against torch: `python
benchmarks/gpu.py TABLE.md`.

One call does everything and writes a Markdown table. Every program goes through all passes, as a
user's does. Without CUDA it says so and exits with 3; with `--build` it needs no device: it builds
every case ahead of time for sm_90 and writes what the assembler says, and `--small` computes each
at a small size in Triton's interpreter and compares with torch. A case that fails is a row with
its error; the others still run.
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
"""
SOFTMAX = """cascade softmax
ranks {ranks}
in X: f32[R,C]
out Y: f32[R,C]
G[r]   = X[r,c] :: max(c)
E[r,c] = exp(X[r,c] - G[r])
S[r]   = E[r,c]
Y[r,c] = E[r,c] / S[r]
"""
LOG_SUM_EXP = """cascade log_sum_exp
in X: f32[R,C]
out L: f32[R]
G[r] = X[r,c] :: max(c)
S[r] = exp(X[r,c] - G[r])
L[r] = G[r] + log(S[r])
"""
ATTENTION = """cascade attention
ranks P, M, E=64, F=64
in Q: f32[H,P,E], K: f32[H,M,E], V: f32[H,M,F]
out AV: f32[H,P,F]
S[h,m,p]  = Q[h,p,e] * K[h,m,e] / sqrt(E)
QK[h,m,p] = {score} {where}
GM[h,p]   = QK[h,m,p] :: max(m)
SN[h,m,p] = exp(QK[h,m,p] - GM[h,p])
SD[h,p]   = SN[h,m,p]
A[h,m,p]  = SN[h,m,p] / SD[h,p]
AV[h,p,f] = A[h,m,p] * V[h,m,f]
"""
RECURRENCE = """cascade recurrence
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
"""
WINDOW = 256
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A program, the shapes of its inputs (`small` ones for the interpreter), what torch computes from them, and its
    work in floating-point operations; the passes that `without` names are left out.
    """

    name: str
    text: str
    shapes: tuple[Shape, ...]
    small: tuple[Shape, ...]
    torch: Callable[..., Any]
    gflop: float = 0.0
    tf32: bool = False
    without: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 else "f32"


def cases() -> list[Case]:
    """Matrix products with an epilogue, rows, attention."""
    found = [
        Case(f"softmax {r} x {c}, any size", SOFTMAX.format(ranks="R"), ((r, c),), ((5, 1100),), _softmax)
        for r, c in ((4096, 1024), (4096, 4099), (128, 32768))
    ]  # fmt: skip
    fixed = SOFTMAX.format(ranks="R, C=1024")
    found.append(Case("softmax 4096 x 1024, fixed", fixed, ((4096, 1024),), ((5, 1024),), _softmax))
    rows = ((4096, 4099),)
    found.append(Case("log-sum-exp 4096 x 4099", LOG_SUM_EXP, rows, ((5, 1100),), _log_sum_exp))
    for tf32 in (False, True):
        for m, n, k in ((1024, 1024, 1024), (4096, 4096, 4096), (1000, 777, 333)):
            shapes, small = (
                ((x, z), (z, y), (y,), (x, y)) for x, y, z in ((m, n, k), (70, 50, 40))
            )
            name = f"linear {m} x {n} x {k}"
            found.append(Case(name, LINEAR, shapes, small, _linear, 2 * m * n * k / 1e9, tf32))
        for p in (1024, 4096):
            found += _attention_cases(p, tf32)
    return found


def _attention_cases(p: int, tf32: bool) -> list[Case]:
    """Attention of 16 heads over p rows; in three walks, too, as it was before joint reductions."""
    full, small = (16, p, 64), (1, 100, 64)
    gflop = 4 * 16 * p * p * 64 / 1e9
    tiles, small_tiles = (16, p // 64, 64, 64), (1, 2, 64, 64)

    def case(name: str, score: str, where: str, torch: Callable[..., Any], part: float) -> Case:
        program = ATTENTION.format(score=score, where=where)
        return Case(f"{name} {p}", program, (full,) * 3, (small,) * 3, torch, gflop * part, tf32)

    plain, causal = "S[h,m,p]", "where m <= p"
    found = [
        case("attention", plain, "", _attention, 1),
        case("causal", plain, causal, _causal, 0.5),
        case(f"window {WINDOW}", plain, f"{causal}, m > p - {WINDOW}", _window, min(1, WINDOW / p)),
        case("soft cap", "30.0 * tanh(S[h,m,p] / 30.0)", causal, _soft_cap, 0.5),
    ]
    three = [replace(c, name=f"{c.name}, three walks", without=("derive",)) for c in found[:2]]
    by_hand = Case(
        f"attention {p}, as a recurrence", RECURRENCE, (full, tiles, tiles),
        ((1, 100, 64), small_tiles, small_tiles), _tiled, gflop, tf32,
    )  # fmt: skip
    return [*found, *three, by_hand]


# ---- the same in torch


def _linear(a: Any, b: Any, bias: Any, r: Any) -> Any:
    from torch.nn import functional

    return functional.gelu(a @ b + bias) + r


def _softmax(x: Any) -> Any:
    return x.softmax(-1)


def _log_sum_exp(x: Any) -> Any:
    return x.logsumexp(-1)


def _attention(q: Any, k: Any, v: Any) -> Any:
    from torch.nn import functional

    return functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]


def _causal(q: Any, k: Any, v: Any) -> Any:
    from torch.nn import functional

    return functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]


def _tiled(q: Any, k: Any, v: Any) -> Any:
    return _attention(q, k.flatten(1, 2), v.flatten(1, 2))


def _window(q: Any, k: Any, v: Any) -> Any:
    import torch
    from torch.nn import functional

    rows = torch.arange(q.shape[1], device=q.device)
    mask = (rows[None, :] <= rows[:, None]) & (rows[None, :] > rows[:, None] - WINDOW)
    return functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]


def _soft_cap(q: Any, k: Any, v: Any) -> Any:
    import torch

    scores = 30.0 * ((q @ k.transpose(1, 2)) / (8.0 * 30.0)).tanh()
    mask = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


# ---- what is done with a case


def mapped(case: Case) -> tuple[Any, Any]:
    """The mapping of a case, after all passes, and its target."""
    from tcc.ir.cascade_text import parse_cascade
    from tcc.ir.target_text import parse_target
    from tcc.pipeline import names_for, passes, run

    target = parse_target((ROOT / "backends/targets/h100.yaml").read_text(), "h100")
    target = replace(target, parameters={**target.parameters, "tf32": float(case.tf32)})
    steps = passes([name for name in names_for(target) if name not in case.without])
    return run(parse_cascade(case.text), target, steps).program, target


def measure(case: Case) -> list[str]:
    """One row of the table: the largest error of ours and of torch against float64, both times,
    and their ratio.
    """
    import torch
    import triton

    from tcc.backends.triton import _toolchain, build

    torch.backends.cuda.matmul.allow_tf32 = case.tf32
    program = build(*mapped(case))
    ours = getattr(_toolchain.load(program.source), program.launcher)
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [torch.randn(s, generator=generator, device="cuda") for s in case.shapes]
    exact = case.torch(*[x.double() for x in inputs])
    scale = exact.abs().max().item()
    mine, theirs = (
        (f(*inputs).double() - exact).abs().max().item() / scale for f in (ours, case.torch)
    )
    times = [
        triton.testing.do_bench(lambda f=f: f(*inputs), warmup=50, rep=200, return_mode="median")
        for f in (ours, case.torch)
    ]
    rate = f"{case.gflop / times[0]:.1f}" if case.gflop else ""
    return [
        case.name,
        case.precision,
        judged(mine, case),
        f"{theirs:.1e}",
        f"{times[0] * 1000:.1f}",
        f"{times[1] * 1000:.1f}",
        f"{times[1] / times[0]:.2f}",
        rate,
    ]


def judged(error: float, case: Case) -> str:
    """An error, marked where it is more than the arithmetic explains."""
    limit = 2e-2 if case.tf32 else 1e-4
    return f"{error:.1e}" + ("" if error <= limit else f" **wrong**: above {limit:g}")


def built(case: Case) -> list[str]:
    """One row of the table: what the assembler says of the kernels for sm_90."""
    from tcc.backends.triton import compile_ahead

    found = compile_ahead(*mapped(case))
    spills = sum(k["spills"] for k in found)
    units = sum(k["ptx"].count("wgmma.mma_async") + k["ptx"].count("mma.sync") for k in found)
    return [
        case.name,
        case.precision,
        str(len(found)),
        "/".join(str(k["warps"]) for k in found),
        "/".join(str(k["registers"]) for k in found),
        f"{spills}" + (" **spills**" if spills else ""),
        "/".join(str(k["shared_bytes"]) for k in found),
        str(units),
    ]


def small(case: Case) -> list[str]:
    """One row of the table: the largest error at a small size, in Triton's interpreter."""
    import torch

    from tcc.backends.triton import build

    program = build(*mapped(case))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=generator) for s in case.small]
    exact = case.torch(*[x.double() for x in inputs])
    names = [t.name for t in program.mapping.inputs]
    (out,) = program.run(dict(zip(names, inputs, strict=True))).values()
    error = (torch.as_tensor(out).double() - exact).abs().max().item() / exact.abs().max().item()
    return [case.name, case.precision, str(len(program.kernels)), judged(error, case)]


HEADS = {
    "measure": ["case", "type", "error", "torch's error", "us", "torch's us", "torch / ours", "TFLOP/s"],
    "build": ["case", "type", "kernels", "warps", "registers", "spilled bytes", "shared bytes", "matrix instructions"],
    "small": ["case", "type", "kernels", "error"],
}  # fmt: skip


def title(mode: str) -> str:
    """What the table shows."""
    import torch
    import triton

    versions = f"torch {torch.__version__}, Triton {triton.__version__}"
    if mode == "build":
        return f"Built ahead of time for sm_90, {versions}."
    if mode == "small":
        return f"Small sizes in Triton's interpreter, {versions}."
    return (
        f"{torch.cuda.get_device_name()}, {versions}. Errors are the largest difference from "
        "float64 over the largest value; times are medians."
    )


def main() -> int:
    """0 when every case is right, 1 when one is not, 3 without a device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="where the Markdown table goes")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--build", action="store_true", help="build for sm_90; needs no device")
    parser.add_argument("--small", action="store_true", help="check in Triton's interpreter")
    options = parser.parse_args()
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        print(f"{error.name} is not installed; nothing was measured", file=sys.stderr)
        return 3
    mode = "build" if options.build else "small" if options.small else "measure"
    if mode == "measure" and not torch.cuda.is_available():
        print("this machine has no CUDA device; nothing was measured", file=sys.stderr)
        return 3
    row_of = {"measure": measure, "build": built, "small": small}[mode]
    head = HEADS[mode]
    lines = [title(mode), "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    failed = False
    for case in cases():
        if options.only not in case.name:
            continue
        try:
            row = row_of(case)
        except Exception as error:
            shown = f"**failed**: {str(error).splitlines()[0][:120]}"
            row = [case.name, case.precision, shown, *[""] * (len(head) - 3)]
        failed |= any("**" in cell for cell in row)
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
        options.table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
