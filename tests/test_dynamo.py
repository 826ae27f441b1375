"""`torch.compile` with tcc: guards, symbolic sizes, gradients, aliasing and fallbacks behave as eager does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import tcc  # noqa: E402
from tcc import dynamo  # noqa: E402
from tcc.dynamo import Backend, Compiled, interpreter  # noqa: E402
from tcc.ir.cascade_text import parse_cascade  # noqa: E402

INF = math.inf


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def r(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(*shape, dtype=dtype)


def compile_function(f: Any, **options: Any) -> Compiled:
    return dynamo.compile_function(f, factory=interpreter, **options)


def flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def same(found: Any, wanted: Any, tolerance: float = 2e-5) -> None:
    """Equal types, shapes and strides; values to `tolerance`, nan equal to nan."""
    for a, e in zip(flat(found), flat(wanted), strict=True):
        if not isinstance(e, torch.Tensor):
            assert a == e
            continue
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        loose = tolerance if e.dtype == torch.float32 else 1e-11
        torch.testing.assert_close(a, e, rtol=loose, atol=loose, equal_nan=True)


@pytest.mark.parametrize("masked", [False, True])
def test_the_encoder_layer_that_pytorch_fuses_is_taken_apart(masked: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu").eval()
    mask = torch.tensor([[False, False, True], [False, False, False]]) if masked else None
    compiled = compile_function(lambda x: layer(x, src_key_padding_mask=mask), strict=True)
    x = r(2, 3, 8, dtype=torch.float32)
    with torch.no_grad():
        same(compiled(x), layer(x, src_key_padding_mask=mask))
    assert not compiled.records.graphs[0].externs


class Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any, mask: Any) -> Any:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = torch.where(mask[:, None, None, :] > 0, 0.0, -INF)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            y = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class Encoder(nn.Module):  # type: ignore[misc]
    def __init__(self, fused: bool, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, width), nn.Embedding(16, width)
        self.attention, self.norm1, self.norm2 = (
            Attention(width, heads, fused),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.norm1(x + self.attention(x, mask))
        x = self.norm2(x + self.mlp(x))
        weights = mask[..., None].to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


@pytest.mark.parametrize("fused", [False, True])
def test_an_encoder_agrees_at_lengths_never_seen(fused: bool) -> None:
    model = Encoder(fused).eval()
    compiled = compile_function(model, dynamic=True, strict=True, fullgraph=True)
    with torch.no_grad():
        for batch, length in [(2, 5), (3, 7), (4, 4)]:
            ids, mask = (
                torch.randint(0, 50, (batch, length)),
                torch.ones(batch, length, dtype=torch.int64),
            )
            mask[0, 3:] = 0
            same(compiled(ids, mask), model(ids, mask), 1e-6)
    assert len(compiled.records.graphs) == 1
    assert not compiled.records.graphs[0].externs
    parse_cascade(compiled.ir())


SYMBOLIC: list[Callable[..., Any]] = [
    lambda x: x.view(x.shape[0] * x.shape[1], -1).softmax(-1), lambda x: x.reshape(-1), lambda x: x.transpose(0, 1).flatten(1),
    lambda x: torch.cat([x, x[:, -1:]], 1).mean(1), lambda x: x[:, : x.shape[1] // 2], lambda x: x.chunk(2, 1)[1],
    lambda x: F.pad(x, (0, 0, 1, x.shape[0])), lambda x: x.new_zeros(x.shape[0] + 1, 3) + x.shape[1],
    lambda x: x * math.sqrt(x.shape[1]) / x.shape[0], lambda x: (x @ x.mT).tril() + torch.arange(x.shape[1]),
    lambda x: x.view(x.shape[0], x.shape[1], 2, 2).permute(2, 0, 1, 3).reshape(2 * x.shape[0], -1, 2),
    lambda x: F.conv1d(x, torch.ones(3, x.shape[1], 2).double()) if x.shape[1] == 4 else x.cumsum(1), lambda x: x.shape[0] + x.sum(),
    lambda x: F.avg_pool2d(x, 2) + F.max_pool2d(x, 2), lambda x: (x, x.shape[1], x.clone(), x.t_().shape[0] if x.dim() == 2 else 3),
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(SYMBOLIC)))
def test_symbolic_sizes_need_one_compilation(n: int) -> None:
    f = SYMBOLIC[n]
    compiled = compile_function(f, dynamic=True, strict=True)
    with torch.no_grad():
        for shape in [(6, 8, 4), (2, 10, 4), (5, 6, 4)]:
            x = r(*shape)
            same(compiled(x), f(x.clone()))
    assert len(compiled.records.graphs) <= 1


def test_grouped_heads_agree_whatever_their_number() -> None:
    def f(q: Any, k: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    compiled = compile_function(f, dynamic=True, strict=True)
    with torch.no_grad():
        for heads, groups, keys in [(12, 3, 40), (6, 2, 9), (8, 8, 70)]:
            q, k = r(1, heads, 1, 16), r(1, groups, keys, 16)
            same(compiled(q, k), f(q, k))


def test_one_query_over_many_keys_agrees_at_lengths_never_seen() -> None:
    def f(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v)

    compiled = tcc.compile(f, target="cpu")
    with torch.no_grad():
        for keys in (1500, 1501, 3, 5000):
            q, k, v = r(1, 2, 1, 16), r(1, 2, keys, 16), r(1, 2, keys, 16)
            same(compiled(q, k, v), f(q, k, v))
    assert "cut into parts" in str(compiled.explain())


def test_gradients_of_a_small_network_agree() -> None:
    def run(f: Any, model: Any, x: Any) -> list[Any]:
        model.zero_grad()
        x = x.clone().requires_grad_()
        loss = F.cross_entropy(f(x), torch.tensor([1, 0, 2]))
        loss.backward()
        return [loss.detach(), x.grad, *[p.grad for p in model.parameters()]]

    model = nn.Sequential(
        nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4), nn.Tanh()
    ).double()
    compiled = compile_function(model, strict=True)
    x = r(3, 5)
    same(run(compiled, model, x), run(model, model, x))
    assert [g.kind for g in compiled.records.graphs] == ["forward", "backward"]


def test_strides_mutation_and_aliasing_are_those_of_eager() -> None:
    def f(x: Any, y: Any) -> Any:
        y.add_(1)
        return x.t() * 2, x, x[0], y.mul(3).expand(2, 3)

    compiled = compile_function(f, strict=True)
    x, y, z = r(3, 4), r(3), r(3)
    z.copy_(y)
    found, wanted = compiled(x, y), f(x, z)
    same(found, wanted)
    assert [t.stride() for t in found] == [t.stride() for t in wanted]
    assert torch.equal(y, z) and found[1] is x and found[2].data_ptr() == x.data_ptr()


def test_a_dropout_in_training_draws_the_same_numbers() -> None:
    def f(x: Any) -> Any:
        return F.dropout(x, 0.5) * 2

    compiled, x = compile_function(f, strict=True), r(40)
    torch.manual_seed(3)
    found = compiled(x)
    torch.manual_seed(3)
    same(found, f(x))


def test_fallbacks_and_externs_are_listed_with_their_lines() -> None:
    def f(x: Any) -> Any:
        return torch.sort(x * 2).values

    def g(x: Any) -> Any:
        return x.half() + 1

    sort, half = compile_function(f), compile_function(g)
    x = r(4)
    same(sort(x), f(x))
    same(half(x), g(x))
    assert "aten.sort" in str(sort.explain()) and "test_dynamo.py" in str(sort.explain())
    print(half.explain())
    assert "eager" in str(half.explain()) and "float16" in str(half.explain())
    assert "test_dynamo.py" in str(half.explain())
    assert "cascade f_0" in sort.ir()


def test_the_backend_works_through_torch_compile() -> None:
    f = torch.compile(lambda x: torch.softmax(x, -1) @ x, backend=Backend(strict=True))
    x = r(4, 4)
    same(f(x), torch.softmax(x, -1) @ x)


@pytest.mark.parametrize("dynamic", [None, True])
def test_an_index_outside_a_table_raises_as_eager_does(dynamic: bool | None) -> None:
    class Tables(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = torch.nn.Embedding(10, 4), torch.nn.Embedding(6, 4)

        def forward(self, ids: Any) -> Any:
            return self.words(ids) + self.places(torch.arange(ids.shape[1]))

    model = Tables()
    with torch.no_grad():
        fast = compile_function(model, dynamic=dynamic, strict=True)
        good = torch.tensor([[1, 9, 0, 3]])
        torch.testing.assert_close(fast(good), model(good))
        for bad in ([[1, 10, 0, 3]], [[1, -1, 0, 3]], [[1, 2, 3, 4, 5, 6, 7]]):
            for f in (model, fast):
                with pytest.raises(IndexError, match="index out of range in self"):
                    f(torch.tensor(bad))


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_transformer_layer_and_a_pooled_convolution_run_on_the_cpu_target(
    dynamic: bool | None,
) -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    pooled = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ).eval()
    with torch.no_grad():
        for model, x in ((layer, torch.randn(2, 5, 16)), (pooled, torch.randn(2, 3, 8, 8))):
            fast = compile_function(model, target="cpu", dynamic=dynamic, strict=True)
            torch.testing.assert_close(fast(x), model(x))


def orders(compiled: Compiled) -> dict[str, tuple[int, ...]]:
    captured = compiled.records.graphs[0].captured
    assert captured is not None
    return dict(captured.orders)


PERMUTED: list[tuple[Callable[..., Any], Callable[[], list[Any]]]] = [
    (lambda a, b: torch.tanh(a @ b), lambda: [r(3, 5), r(7, 5).T]),
    (lambda a, b: (a @ b).transpose(1, 2), lambda: [r(2, 5, 3).mT, r(2, 5, 7)]),
    (lambda x: (x * 2 + 1, x.sum(1), x.softmax(1)), lambda: [r(2, 5, 3, 4).permute(0, 3, 1, 2)]),
    (lambda x: x[:, :, None].exp() + x.mT.cumsum(-1).mT.sum(), lambda: [r(4, 3).T]),
    (lambda x, y: torch.cat([x, y], 1).contiguous(memory_format=torch.channels_last),
     lambda: [r(1, 2, 3, 4).to(memory_format=torch.channels_last), r(1, 3, 3, 4)]),
]  # fmt: skip


@pytest.mark.parametrize("target", [None, "cpu"])
@pytest.mark.parametrize("f, inputs", PERMUTED)
def test_tensors_are_declared_in_the_order_in_which_they_lie(
    f: Callable[..., Any], inputs: Callable[[], list[Any]], target: str | None
) -> None:
    args = inputs()
    for dynamic in (None, True):
        torch._dynamo.reset()
        options = {"target": target} if target else {"factory": interpreter}
        compiled = dynamo.compile_function(f, dynamic=dynamic, strict=True, **options)
        found, wanted = flat(compiled(*args)), flat(f(*args))
        same(found, wanted)
        assert [t.stride() for t in found] == [t.stride() for t in wanted]
        assert orders(compiled)
        other = [a.clone(memory_format=torch.contiguous_format) for a in args]
        same(compiled(*other), f(*other))


@pytest.mark.parametrize("target", [None, "cpu"])
def test_gradients_of_permuted_tensors_are_those_of_eager(target: str | None) -> None:
    def f(x: Any, w: Any) -> Any:
        return (torch.sigmoid(x @ w) * 2).mT.exp()

    def gradients(g: Callable[..., Any]) -> list[Any]:
        args = [t.mT.requires_grad_() for t in (x, w)]
        out = g(*args)
        assert out.stride() == f(*args).stride()
        return [out, *torch.autograd.grad((out * out).sum(), args)]

    x, w = r(6, 4), r(5, 6)
    options = {"target": target} if target else {"factory": interpreter}
    compiled = dynamo.compile_function(f, **options)
    same(gradients(compiled), gradients(f))
    assert [g.kind for g in compiled.records.graphs] == ["forward", "backward"]
    assert orders(compiled)


def test_a_channels_last_network_trains_as_the_eager_one() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).to(memory_format=torch.channels_last)
    x = r(2, 3, 5, 6, dtype=torch.float32).to(memory_format=torch.channels_last)
    wanted = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    compiled = dynamo.compile_function(net, target="cpu")
    out = compiled(x)
    assert out.stride() == net(x).stride()
    same(torch.autograd.grad(out.square().sum(), list(net.parameters())), wanted, 1e-4)
    assert set(orders(compiled).values()) == {(0, 2, 3, 1)}


def test_parts_without_tensors_give_tensors() -> None:
    """Alone, before a call that stays with PyTorch, and in types that NumPy has not."""
    x = torch.randn(5, 7)
    for f, given in (
        (lambda: torch.arange(5) * 2.5, ()),
        (lambda: (torch.ones(3), torch.zeros(2, dtype=torch.int32)), ()),
        (lambda: torch.ones(3, dtype=torch.bfloat16) * 2, ()),
        (lambda x: torch.bucketize(x, torch.linspace(-1, 1, 5)), (x,)),
        (lambda x: torch.zeros(4, 7).index_add(0, torch.arange(5) % 4, x), (x,)),
    ):
        torch.testing.assert_close(tcc.compile(f)(*given), f(*given))
