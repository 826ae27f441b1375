"""The benchmark cases: each is one PyTorch function (or module) with its inputs, defined once.

`CASES[name].make()` gives the function and a tuple of input tensors; peers compile that function.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from _minilm_model import VOCABULARY, MiniLM, find_weights

Function = Callable[..., Tensor]
Made = tuple[Function, tuple[Tensor, ...]]
Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # batch, head, query, key: seen?


@dataclass(frozen=True)
class Case:
    """A named computation; `make()` builds the same function and the same inputs every time.

    `streams` says that it only has to read its inputs and write its result: then the time to copy
    (or to read) that many bytes is a limit.
    """

    name: str
    make: Callable[[], Made]
    streams: bool = False
    sees: Sees | None = None


CASES: dict[str, Case] = {}


def case(
    name: str, *, streams: bool = False, sees: Sees | None = None, **arguments: Any
) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Files the decorated maker, called with `arguments`, under `name`."""

    def file(maker: Callable[..., Made]) -> Callable[..., Made]:
        def make() -> Made:
            torch.manual_seed(0)
            return maker(**arguments)

        CASES[name] = Case(name, make, streams, sees)
        return maker

    return file


def exact(function: Function, inputs: tuple[Tensor, ...]) -> Tensor:
    """The result in float64: the same function on doubled inputs (and weights)."""
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function).double()
    return function(*(x.double() if x.is_floating_point() else x for x in inputs))


@case("matmul 1x4096x4096", m=1, n=4096, k=4096)
@case("matmul 16x4096x4096", m=16, n=4096, k=4096)
@case("matmul 128x4096x4096", m=128, n=4096, k=4096)
@case("matmul 16x768x768", m=16, n=768, k=768)
@case("matmul 2048x2048x2048", m=2048, n=2048, k=2048)
@case("matmul 1024x1024x1024", m=1024, n=1024, k=1024)
@case("matmul 512x512x512", m=512, n=512, k=512)
def matmul(m: int, n: int, k: int) -> Made:
    return torch.matmul, (torch.randn(m, k), torch.randn(k, n))


def everything(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return torch.ones_like(query, dtype=torch.bool)


def before(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query >= key) & (query - key < 256)


@case("attention explicit 12x512x64")
def attention_explicit() -> Made:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-2, -1) * 0.125, dim=-1) @ v

    return attention, tuple(torch.randn(3, 1, 12, 512, 64))


@case("attention 12x1024x64", length=1024, sees=everything)
@case("attention 12x4096x64", length=4096, sees=everything)
@case("attention 12x1024x64 causal", length=1024, causal=True, sees=before)
@case("attention 12x4096x64 causal", length=4096, causal=True, sees=before)
def attention_sdpa(length: int, causal: bool = False) -> Made:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return attention, tuple(torch.randn(3, 1, 12, length, 64))


@case("attention 12x1024x64 window 256", length=1024, sees=window)
@case("attention 12x4096x64 window 256", length=4096, sees=window)
def attention_window(length: int) -> Made:
    """Each query sees itself and the keys before it, 256 in all."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        at = torch.arange(length)
        distance = at[:, None] - at
        seen = (distance >= 0) & (distance < 256)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    return attention, tuple(torch.randn(3, 1, 12, length, 64))


@case("attention decode 12x1x4096x64", sees=everything)
def attention_decode() -> Made:
    """One new query on a cache of 4096 keys."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    return attention, (torch.randn(1, 12, 1, 64), *torch.randn(2, 1, 12, 4096, 64))


@case("softmax rows 4096x1024")
def softmax_rows() -> Made:
    def softmax(x: Tensor) -> Tensor:
        return torch.softmax(x, dim=-1)

    return softmax, (torch.randn(4096, 1024),)


@case("layer norm 4096x768")
def layer_norm() -> Made:
    norm = nn.LayerNorm(768)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.requires_grad_(False), (torch.randn(4096, 768),)


@case("linear 1x4096x4096", tokens=1)
@case("linear 16x4096x4096", tokens=16)
@case("linear 128x4096x4096", tokens=128)
def linear(tokens: int) -> Made:
    """A weight that is known ahead, and may be packed."""
    layer = nn.Linear(4096, 4096, bias=False)
    return layer.requires_grad_(False), (torch.randn(tokens, 4096),)


@case("conv 3x3 64x56x56")
@case("conv 3x3 64x56x56 stride 2", stride=2)
@case("conv 3x3 64x56x56 channels last", last=True)
@case("conv 3x3 64x56x56 depth-wise", groups=64)
@case("conv 3x3 64x56x56 depth-wise channels last", groups=64, last=True)
def convolution(groups: int = 1, stride: int = 1, last: bool = False) -> Made:
    layer = nn.Conv2d(64, 64, 3, padding=1, stride=stride, groups=groups, bias=False)
    layer, x = layer.requires_grad_(False), torch.randn(1, 64, 56, 56)
    if last:
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)
    return layer, (x,)


@case("mlp gelu 1x768x3072", tokens=1)
@case("mlp gelu 16x768x3072", tokens=16)
@case("mlp gelu 128x768x3072", tokens=128)
def mlp_gelu(tokens: int) -> Made:
    mlp = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
    return mlp.requires_grad_(False).eval(), (torch.randn(tokens, 768),)


@case("minilm 32x128", batch=32, tokens=128)
@case("minilm 1x16", batch=1, tokens=16)
def minilm(batch: int, tokens: int) -> Made:
    """The demo's encoder on random words; rows are from half to all of `tokens` long."""
    folder = find_weights()
    model = MiniLM.load(folder) if folder else MiniLM().requires_grad_(False).eval()
    ids = torch.randint(1000, VOCABULARY, (batch, tokens))
    lengths = torch.linspace(tokens, tokens // 2, batch).long()
    return model, (ids, (torch.arange(tokens) < lengths[:, None]).long())


class Block(nn.Module):
    """A block of GPT-2 (small), with the defaults of its configuration."""

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.movedim(-3, 0).transpose(-3, -2)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(seen.transpose(-3, -2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


@case("gpt2 block 64", tokens=64)
@case("gpt2 block 512", tokens=512)
def gpt2_block(tokens: int) -> Made:
    return Block().requires_grad_(False).eval(), (torch.randn(1, tokens, 768),)


# ---- rows of 4096 x 4096: what memory allows is the limit

SIDE = 4096


def square(count: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(count, SIDE, SIDE))


@case("rows softmax", streams=True)
def rows_softmax() -> Made:
    return lambda x: torch.softmax(x, dim=-1), square(1)


@case("rows layer norm", streams=True)
def rows_layer_norm() -> Made:
    return lambda x, w, b: F.layer_norm(x, (SIDE,), w, b), (*square(1), *torch.randn(2, SIDE))


@case("rows rms norm", streams=True)
def rows_rms_norm() -> Made:
    return lambda x, w: F.rms_norm(x, (SIDE,), w, 1e-5), (*square(1), torch.randn(SIDE))


@case("rows log-sum-exp", streams=True)
def rows_log_sum_exp() -> Made:
    return lambda x: torch.logsumexp(x, dim=-1), square(1)


@case("rows swiglu", streams=True)
def rows_swiglu() -> Made:
    return lambda a, b: F.silu(a) * b, square(2)


@case("rows bias gelu add", streams=True)
def rows_bias_gelu_add() -> Made:
    return lambda x, r, b: F.gelu(x + b) + r, (*square(2), torch.randn(SIDE))


@case("rows column sum", streams=True)
def rows_column_sum() -> Made:
    return lambda x: x.sum(dim=0), square(1)


@case("rows transpose add", streams=True)
def rows_transpose_add() -> Made:
    return lambda x, y: x.t() + y, square(2)
