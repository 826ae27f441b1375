"""How well `cost(mapping, target)` predicts and ranks: predicted against measured times of alternative mappings.

    python benchmarks/cost.py                               # all families, on the target `cpu`
    python benchmarks/cost.py matmul --target machine.yaml --markdown out.md

Each family is one program that is mapped in several ways, by parameters of the target and options of
passes; each mapping is built once and measured at every shape, taking turns. Printed per shape: the rank
correlation (Kendall's tau) of predicted and measured times, how much slower the mapping that the model
prefers is than the fastest (regret), and the mean error of the predictions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

Parameters = dict[str, float]
PRODUCT = {
    "tile_rows": (2, 4, 6, 8),
    "tile_vectors": (1, 2, 3),
    "block_rows": (24, 48, 96),
    "block_columns": (96, 240, 480),
    "block_depth": (64, 256, 512),
    "way": (0, 1, 3, 4),
}
STREAM = {
    "tile_rows": (4, 6),
    "tile_vectors": (1, 2),
    "stream_rows": (16, 48, 96, 192),
    "stream_tile": (24, 96, 192, 480),
}
ROWS = {"derive": (0, 1), "fuse": (0, 1), "stream_row": (128, 512, 2048)}


@dataclass(frozen=True)
class Family:
    """A program, the shapes it is measured at, and what its mappings differ in."""

    name: str
    text: str
    ranks: str
    shapes: tuple[tuple[int, ...], ...]
    space: dict[str, tuple[int, ...]]


FAMILIES = (
    Family("matmul", "in A: f32[M,K], B: f32[K,N]\nout C: f32[M,N]\nC[m,n] = A[m,k] * B[k,n]", "MNK",
           ((512, 512, 512), (64, 1024, 1024), (1024, 256, 768), (300, 500, 700), (16, 768, 3072)), PRODUCT),
    Family("linear gelu", """
in X: f32[M,K], W: f32[K,N], b: f32[N]
out Y: f32[M,N]
H[m,n] = X[m,k] * W[k,n]
P[m,n] = H[m,n] + b[n]
Y[m,n] = 0.5 * P[m,n] * (1.0 + erf(P[m,n] * 0.7071067811865476))
""", "MNK", ((128, 768, 256), (64, 1536, 768), (512, 512, 64), (200, 700, 300), (32, 3072, 768)), PRODUCT),
    Family("attention", """
in Q: f32[H,P,E], K: f32[H,M,E], V: f32[H,M,F]
out AV: f32[H,P,F]
QK[h,p,m] = Q[h,p,e] * K[h,m,e] / sqrt(E)
GM[h,p] = QK[h,p,m] :: max(m)
SN[h,p,m] = exp(QK[h,p,m] - GM[h,p])
SD[h,p] = SN[h,p,m]
A[h,p,m] = SN[h,p,m] / SD[h,p]
AV[h,p,f] = A[h,p,m] * V[h,m,f]
""", "HPMEF", ((4, 256, 256, 64, 64), (2, 512, 512, 64, 64), (1, 1024, 1024, 64, 64),
               (6, 200, 300, 32, 32), (1, 384, 1536, 128, 128)), STREAM),
    Family("causal attention", """
in Q: f32[H,P,E], K: f32[H,M,E], V: f32[H,M,F]
out AV: f32[H,P,F]
QK[h,p,m] = Q[h,p,e] * K[h,m,e] / sqrt(E) where m <= p
GM[h,p] = QK[h,p,m] :: max(m)
SN[h,p,m] = exp(QK[h,p,m] - GM[h,p])
SD[h,p] = SN[h,p,m]
A[h,p,m] = SN[h,p,m] / SD[h,p]
AV[h,p,f] = A[h,p,m] * V[h,m,f]
""", "HPMEF", ((4, 256, 256, 64, 64), (2, 512, 512, 64, 64), (1, 1024, 1024, 64, 64),
               (6, 300, 300, 32, 32), (1, 768, 768, 128, 128)), STREAM),
    Family("softmax", """
in X: f32[M,N]
out Y: f32[M,N]
T[m] = X[m,n] :: max(n)
E[m,n] = exp(X[m,n] - T[m])
S[m] = E[m,n]
Y[m,n] = E[m,n] / S[m]
""", "MN", ((4096, 256), (1024, 1024), (256, 4096), (64, 30000), (999, 777)), ROWS),
    Family("layer norm", """
in X: f32[M,N], G: f32[N], B: f32[N]
out Y: f32[M,N]
A[m] = X[m,n] / N
V[m] = (X[m,n] - A[m]) * (X[m,n] - A[m]) / N
R[m] = rsqrt(V[m] + 1e-05)
Y[m,n] = (X[m,n] - A[m]) * R[m] * G[n] + B[n]
""", "MN", ((4096, 256), (1024, 768), (256, 4096), (64, 30000), (999, 777)), ROWS),
    Family("convolution", """
ranks R=3, S=3
in X: f32[C,H,W], F: f32[D,C,R,S]
out Y: f32[D,H,W]
Y[d,h,w] = X[c, h + r - 1, w + s - 1] * F[d,c,r,s]
""", "CDHW", ((16, 32, 56, 56), (64, 64, 28, 28), (32, 32, 40, 40), (3, 64, 64, 64), (128, 64, 14, 14)),
           PRODUCT),
    Family("log-sum-exp", """
in X: f32[M,N]
out Y: f32[M]
T[m] = X[m,n] :: max(n)
S[m] = exp(X[m,n] - T[m])
Y[m] = log(S[m]) + T[m]
""", "MN", ((4096, 256), (1024, 1024), (256, 4096), (64, 30000), (999, 777)), ROWS),
)  # fmt: skip


def main() -> int:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    sys.path.insert(0, str(Path(__file__).parent))
    from harness import table

    from tcc.targets import find

    target = find(options.target)
    rows: list[dict[str, Any]] = []
    for family in FAMILIES:
        if options.families and not any(part in family.name for part in options.families):
            continue
        for row in measured(family, target, options):
            rows.append(row)
            print(
                f"{row['family']} {row['shape']}: tau {row['tau']:.2f}, regret "
                f"{row['regret']:.1%}, error {row['error']:.1%}, best {row['best_ms']:.3g} ms",
                file=sys.stderr,
                flush=True,
            )
    shown = report(rows)
    print(table(*shown))
    if options.markdown:
        Path(options.markdown).write_text(table(*shown, markdown=True) + "\n")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("families", nargs="*", help="parts of the names of families (default: all)")
    parser.add_argument("--target", default="cpu", help="a target's name or file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mappings", type=int, default=10, help="alternatives per family")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="other shapes: three quarters of each size, and five",
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the alternatives")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there, too")
    parser.add_argument("--json", metavar="FILE", help="write all times there")
    return parser.parse_args()


def alternatives(
    family: Family, target: Any, wanted: int, seed: int = 0
) -> Iterator[tuple[Parameters, Any]]:
    """Different mappings of a family, the default one first, then random points of its space."""
    from tcc.ir.cascade_text import parse_cascade
    from tcc.pipeline import names_for, passes, run

    points: list[Parameters] = [
        dict(zip(family.space, p, strict=True)) for p in itertools.product(*family.space.values())
    ]
    random.Random(seed).shuffle(points)
    seen: set[str] = set()
    for p in [{}, *points]:
        if len(seen) == wanted:
            return
        if p.get("tile_rows", 1) * p.get("tile_vectors", 1) > 24:
            continue
        own = replace(target, parameters={**target.parameters, **p})
        chosen = {"derive": {"always": True}} if p.get("derive") else {}
        names = [n for n in names_for(own) if n != "fuse" or p.get("fuse", 1)]
        mapping = run(parse_cascade(family.text), own, passes(names, chosen)).mapping
        if str(mapping) not in seen:
            seen.add(str(mapping))
            yield p, mapping


def measured(family: Family, target: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Per shape the predicted and the measured milliseconds of every mapping, and what they say."""
    from harness import measure

    from tcc.backends.c import build
    from tcc.ir.cost import cost

    made = [
        (p, m, build(m, target))
        for p, m in alternatives(family, target, options.mappings, options.seed)
    ]
    for shape in family.shapes:
        if options.held_out:
            shape = tuple(3 * n // 4 + 5 for n in shape)
        sizes = dict(zip(family.ranks, shape, strict=True))
        calls, predicted = {}, []
        for n, (p, m, program) in enumerate(made):
            calls[f"{n} {p}"] = prepared(m, program, sizes)
            predicted.append(1e3 * cost(m, target, sizes, cores=options.threads).seconds)
        times = measure(calls, threads=options.threads, rounds=options.rounds, window_s=0.01)
        ms = [times[name].ms for name in calls]
        first = min(range(len(ms)), key=lambda n: predicted[n])
        yield {
            "family": family.name,
            "shape": " x ".join(map(str, shape)),
            "mappings": list(calls),
            "predicted_ms": predicted,
            "measured_ms": ms,
            "tau": kendall(predicted, ms),
            "regret": ms[first] / min(ms) - 1,
            "error": float(np.mean([abs(p / t - 1) for p, t in zip(predicted, ms, strict=True)])),
            "best_ms": min(ms),
        }


def prepared(m: Any, program: Any, sizes: dict[str, int]) -> Any:
    """A call of the built program on random inputs, with outputs in place."""
    from tcc.ir.cost import bind_sizes
    from tcc.ir.index import evaluate_size

    known = bind_sizes(m, sizes)
    random_ = np.random.default_rng(0)
    arrays = {}
    for t in (*m.inputs, *m.outputs):
        shape = [evaluate_size(n, known) for n in t.shape]
        arrays[t.name] = random_.standard_normal(shape).astype(t.dtype.numpy)
    shapes = {name: a.shape for name, a in arrays.items()}
    strides = {n: tuple(s // a.itemsize for s in a.strides) for n, a in arrays.items()}
    call = program.bind(shapes, strides, sizes)
    pointers = [arrays[t.name].ctypes.data for t in program.tensors]
    return lambda kept=arrays: call(pointers)


def kendall(a: list[float], b: list[float]) -> float:
    """Kendall's tau: concordant less discordant pairs, over all pairs whose values differ."""
    pairs = [
        np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])
        for i, j in itertools.combinations(range(len(a)), 2)
    ]
    counted = [p for p in pairs if p]
    return float(sum(counted)) / len(counted) if counted else 1.0


def report(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A line per family, and one for all shapes of all."""
    header = ["family", "shapes", "mappings", "tau", "regret median", "regret p90", "error"]
    lines = []
    names = list(dict.fromkeys(r["family"] for r in rows))
    for name in [*names, "all"]:
        of = [r for r in rows if name in (r["family"], "all")]
        if not of:
            continue
        regrets = [r["regret"] for r in of]
        lines.append(
            [
                name,
                str(len(of)),
                str(sum(len(r["mappings"]) for r in of)),
                f"{np.mean([r['tau'] for r in of]):.2f}",
                f"{np.median(regrets):.1%}",
                f"{np.quantile(regrets, 0.9):.1%}",
                f"{np.mean([r['error'] for r in of]):.1%}",
            ]
        )
    return header, lines


if __name__ == "__main__":
    sys.exit(main())
