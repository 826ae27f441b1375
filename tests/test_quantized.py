"""`tcc.quantize`: weights stay encoded, values are those of the encoding, compiled or not."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import tcc
from tcc import dtypes
from tcc.ir.diagnostics import CompileError

torch = pytest.importorskip("torch")
nn = torch.nn


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 16, bias=False)).eval()


@pytest.mark.parametrize("spelling, full", [
    ("u4[group 128]", "u4[group k 128, scale f16, zero 8]"), ("i8", "i8[group k, scale f16]"),
    ("nf4[group 64]", "nf4[group k 64, scale f16]"), ("u3[group, zero u3]", "u3[group k, zero u3, scale f16]"),
    ("u4[group 32, scale u8[group, scale f16], zero u4]", "u4[group k 32, scale u8[group k, scale f16], zero u4]"),
    ("codebook[-1, 0, 1][group n 4]", "codebook[-1, 0, 1][group n 4, scale f16]"),
    ("u4[group 8, offset f16]", "u4[group k 8, scale f16, offset f16]"), ("u8[vector 8, table f16]", "u8[vector k 8, table f16]"),
])  # fmt: skip
def test_what_a_type_leaves_out(spelling: str, full: str) -> None:
    from tcc.quantized import weight_type

    assert weight_type(spelling) == tcc.dtype(full)


@pytest.mark.parametrize("weights, activations", [
    ("u4[group 16]", None), ("i8[scale bf16]", "i8"), ("u4[group 8, scale u8[group 32, scale f16], zero u4]", None),
    ("f4e2m1[group 16, scale f8e4m3fn[scale f32]]", "i8[group 16]"),
])  # fmt: skip
def test_compiled_and_eager_agree(weights: str, activations: str | None) -> None:
    plain = model()
    layers = tcc.quantize(copy.deepcopy(plain), weights, activations)
    assert type(layers[0]).__name__ == "QuantizedLinear" and layers[0].bias is not None
    exact = copy.deepcopy(plain).double()
    x = torch.randn(5, 64)
    with torch.no_grad():
        for mine, theirs in ((layers[0], exact[0]), (layers[2], exact[2])):
            theirs.weight.copy_(mine.weight)
        compiled = tcc.compile(layers, fullgraph=True, strict=True)
        torch.testing.assert_close(compiled(x), layers(x), rtol=1e-5, atol=1e-6)
        if activations is None:
            torch.testing.assert_close(layers(x).double(), exact(x.double()), rtol=1e-4, atol=1e-6)
    stored = compiled.ir()
    element = str(layers[0].weight_type).split("[")[0]
    assert f": {element}[32, 64] constant" in stored and "extern" not in stored
    program = compiled.records.graphs[0].programs[0]
    assert "decode" not in program.ir(after="simplify")  # decoded where the product reads it
    state = layers.state_dict()
    fresh = tcc.quantize(model(), weights, activations)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.double().float()(x), layers(x))
    bits = tcc.dtype(element).bits
    assert state[next(n for n in state if n.endswith("codes"))].numel() == 32 * 64 * bits // 8


def test_inputs_are_rounded_within_their_bound() -> None:
    from tcc.quantized import activation_type, rounded

    x = torch.randn(7, 3, 48) * torch.tensor(10.0) ** torch.randint(-3, 3, (7, 1, 1))
    x[0, 0] = 0
    for spelling, length in (("i8[group 16]", 16), ("i4", 48)):
        t = activation_type(spelling)
        got = rounded(x, t)
        groups = x.unflatten(-1, (-1, length)).abs().amax(-1, keepdim=True)
        most = 127 if spelling.startswith("i8") else 7
        apart = (got - x).abs().unflatten(-1, (-1, length))
        assert bool((apart <= groups / most / 2 * 1.0001).all()) and not got[0, 0].any()


def test_gradients_pass_through_encoded_weights() -> None:
    layer = tcc.quantize(nn.Linear(32, 8), "u4[group 16]")
    compiled = tcc.compile(layer, strict=True)
    x = torch.randn(3, 32, requires_grad=True)
    compiled(x).square().sum().backward()
    wanted = x.detach().clone().requires_grad_()
    layer(wanted).square().sum().backward()
    torch.testing.assert_close(x.grad, wanted.grad, rtol=1e-4, atol=1e-5)


def test_layers_are_chosen_and_existing_weights_kept() -> None:
    chosen = tcc.quantize(model(), "i8", layers="^0$")
    assert [type(m).__name__ for m in chosen] == ["QuantizedLinear", "GELU", "Linear"]
    chosen = tcc.quantize(model(), "i8", layers=lambda name, layer: layer.bias is None)
    assert [type(m).__name__ for m in chosen] == ["Linear", "GELU", "QuantizedLinear"]
    weight = dtypes.encode(np.random.default_rng(0).standard_normal((16, 32)), "u2[group k 4, scale f16, zero 2]", "n k")  # fmt: skip
    chosen = tcc.quantize(model(), {"2": weight})
    np.testing.assert_array_equal(chosen[2].weight.numpy(), weight.decode())
    assert chosen[2].bytes_stored == 16 * 32 // 4 + 16 * 8 * 2


@pytest.mark.parametrize("weights, activations, code, message", [
    ("u4[group 48]", None, "T0147", "layer `0`: groups of 48 do not divide the 64"),
    ("u4[group 16]", "i8[group 48]", "T0147", "layer `0`: groups of 48 do not divide the 64"),
    ("u4[group m 16]", None, "T0147", "names the rank `m`"), ("u65", None, "T0146", "1 to 64 bits, not 65"),
    ("u8[vector 8, table f16]", None, "T0148", "needs its table"), ("i8", "u8", "T0147", "activations can not be u8"),
    ({"1": None}, None, "T0148", "no linear layer `1`"),
    ({"0": dtypes.encode(np.ones((4, 4)), "i8[scale f16]", "n k")}, None, "T0148", "shape [4, 4], not [32, 64]"),
])  # fmt: skip
def test_errors(weights: Any, activations: str | None, code: str, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        tcc.quantize(model(), weights, activations)
    assert caught.value.diagnostic.code == code
    assert message in caught.value.diagnostic.message


SEARCHED = [
    "u4[group 16]",
    "i3[group 32]",
    "nf4",
    "u4[group 16, zero u4]",
    "f4e2m1[group 32, scale e8m0]",
]


@pytest.mark.parametrize("spelling", SEARCHED)
def test_searched_scales_are_no_worse_in_any_group(spelling: str, rng: np.random.Generator) -> None:
    from tcc.ir.dtype_scaled import encode_scaled, group_sizes
    from tcc.quantized import weight_type
    from tcc.scales import encode_closely

    t, x = weight_type(spelling), rng.standard_normal((6, 64))
    plain, close = encode_scaled(x, t, ("n", "k")), encode_closely(x, t, ("n", "k"))
    length = group_sizes(t, ("n", "k"), x.shape)[1]
    errors = [((e.decode() - x) ** 2).reshape(6, -1, length).sum(-1) for e in (plain, close)]
    assert (errors[1] <= errors[0] * (1 + 1e-12)).all()
    if spelling in ("u4[group 16]", "i3[group 32]"):
        assert errors[1].sum() < 0.95 * errors[0].sum()


def test_operands_of_decode_are_checked() -> None:

    codes, scale = torch.zeros(4, 8, dtype=torch.uint8), torch.ones(4, 2, dtype=torch.float16)
    decode, kind = torch.ops.tcc.decode, "u4[group k 4, scale f16, zero 8]"
    assert torch.equal(decode(codes, [scale], kind, "n k"), torch.full((4, 8), -8.0))
    for parts, spelled, message in (
        ([scale[:, :1]], kind, r"not f16 \[4, 2\]"), ([scale.float()], kind, "`scale` is torch.float32"),
        ([], kind, "2 parts, not 1"), ([scale], kind.replace("4,", "3,"), "groups of 3 do not divide"),
    ):  # fmt: skip
        with pytest.raises(CompileError, match=message):
            decode(codes, parts, spelled, "n k")


@pytest.mark.parametrize(
    "spelling", ["u4[group 128", "u4 group 128]", "u4[group 128, scale f16[scale f32]"]
)
def test_brackets_have_to_match(spelling: str) -> None:
    with pytest.raises(CompileError, match="brackets"):
        tcc.quantize(torch.nn.Linear(256, 64), spelling)
