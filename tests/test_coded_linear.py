"""Linear layers with entropy-coded weights: same bits, fewer bytes, decoded next to the product."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import tcc
from tcc.ir.diagnostics import CompileError

torch = pytest.importorskip("torch")
KIND = "bf16[coded k 64, lanes n 16, window 7]"


def model() -> tuple[Any, Any]:
    """A small network, and the same with weights rounded to bf16."""
    torch.manual_seed(0)
    layers = (torch.nn.Linear(128, 64), torch.nn.GELU(), torch.nn.Linear(64, 32, bias=False))
    found = torch.nn.Sequential(*layers).eval()
    rounded = copy.deepcopy(found)
    for layer in (rounded[0], rounded[2]):
        layer.weight.data = layer.weight.data.bfloat16().float()
    return found, rounded


def test_a_coded_model_computes_what_its_rounded_weights_do() -> None:
    coded, rounded = model()
    tcc.quantize(coded, KIND)
    assert torch.equal(coded[0].weight, rounded[0].weight)
    assert coded[0].bytes_stored < 0.8 * 2 * 128 * 64
    fast = tcc.compile(coded)
    with torch.no_grad():
        for rows in (3, 1):
            x = torch.randn(rows, 128)
            torch.testing.assert_close(coded(x), rounded(x))
            for _ in range(2):
                torch.testing.assert_close(fast(x), rounded(x))
    told = str(fast.explain())
    assert "left to PyTorch" not in told and "runs eagerly" not in told


def test_other_weights_are_noticed() -> None:
    coded, rounded = model()
    other, _ = model()
    other[0].weight.data *= 1.7
    rounded[0].weight.data = other[0].weight.data.bfloat16().float()
    tcc.quantize(coded, KIND)
    tcc.quantize(other, KIND)
    fast, x = tcc.compile(coded), torch.randn(2, 128)
    with torch.no_grad():
        fast(x)
        coded.load_state_dict(other.state_dict())
        torch.testing.assert_close(fast(x), rounded(x))
        torch.testing.assert_close(tcc.compile(copy.deepcopy(coded))(x), rounded(x))


def test_what_cannot_be_coded_is_refused() -> None:
    layer = torch.nn.Linear(100, 32)
    with pytest.raises(CompileError, match="of 64 do not divide the 100"):
        tcc.quantize(layer, KIND)
    with pytest.raises(CompileError, match="multiplied in f32"):
        tcc.quantize(torch.nn.Linear(128, 32), KIND, activations="i8")
