"""Compiled PyTorch functions have the gradients of eager ones, by tcc's own rules where these are PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from tcc import dynamo  # noqa: E402
from tcc.dynamo import Compiled, interpreter  # noqa: E402
from tcc.passes._algebra import elements  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def r(*shape: int) -> Any:
    return torch.randn(*shape, dtype=torch.float64)


def own(compiled: Compiled) -> bool:
    """Whether the backward program is the gradient of the forward program."""
    kinds = [g.kind for g in compiled.records.graphs]
    assert kinds == ["forward", "backward"]
    return all(g.captured for g in compiled.records.graphs) and compiled.records.graphs[
        1
    ].captured.cascade.name.endswith("_grad")


def leaves(f: Any, args: tuple[Any, ...]) -> list[Any]:
    parameters = list(f.parameters()) if isinstance(f, nn.Module) else []
    return [p for p in (*args, *parameters) if p.requires_grad]


def compiled_as_eager(f: Any, *args: Any, factory: Any = interpreter, **options: Any) -> Compiled:
    """`f` compiled, its values and gradients compared with eager."""
    compiled = dynamo.compile_function(f, factory=factory, strict=True, **options)
    agrees(compiled, f, *args)
    return compiled


def agrees(compiled: Compiled, f: Any, *args: Any) -> None:
    args = tuple(a.requires_grad_() if a.is_floating_point() else a for a in args)
    want = f(*args)
    got = compiled(*args)
    want, got = (list(x) if isinstance(x, (tuple, list)) else [x] for x in (want, got))
    for a, e in zip(got, want, strict=True):
        torch.testing.assert_close(a, e)
        assert a.requires_grad == e.requires_grad
    wants = [e for e in want if e.requires_grad]
    gots = [a for a in got if a.requires_grad]
    cotangents = [torch.randn_like(e) for e in wants]
    by = leaves(f, args)
    expected = torch.autograd.grad(wants, by, cotangents, allow_unused=True)
    found = torch.autograd.grad(gots, by, cotangents, allow_unused=True)
    for a, e in zip(found, expected, strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)


def naive(q: Any, k: Any, v: Any) -> Any:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def sdpa(q: Any, k: Any, v: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v)


def causal(q: Any, k: Any, v: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("f", [naive, sdpa, causal])
def test_attention_saves_row_statistics_and_no_scores(f: Callable[..., Any]) -> None:
    compiled = compiled_as_eager(f, r(2, 3, 12, 4), r(2, 3, 12, 4), r(2, 3, 12, 4))
    assert own(compiled)
    c = compiled.records.graphs[0].captured.cascade
    assert len(c.outputs) > 1
    assert max(elements(c, t.name) for t in c.outputs) <= 2 * 3 * 12 * 4
    gradient = compiled.records.graphs[1].captured.cascade
    assert not [t for t in gradient.tensors if "ties" in t]


MODULES: dict[str, Callable[[], Any]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 6)),
    "gated": lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.SiLU(), nn.Linear(8, 6)),
    "norms": lambda: nn.Sequential(nn.RMSNorm(6), nn.Tanh(), nn.Softmax(-1), nn.LogSoftmax(-1)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_the_gradients_of_eager_ones(name: str) -> None:
    assert own(compiled_as_eager(MODULES[name]().double(), r(5, 6)))


def test_compiled_programs_have_the_gradients_of_eager_ones() -> None:
    module = MODULES["mlp"]().double()
    assert own(compiled_as_eager(module, r(5, 6), factory=dynamo.built("cpu")))


def test_symbolic_sizes_need_one_compilation() -> None:
    compiled = dynamo.compile_function(naive, factory=interpreter, strict=True, dynamic=True)
    for n, m in ((5, 7), (9, 4), (3, 6)):
        agrees(compiled, naive, r(2, n, 4), r(2, m, 4), r(2, m, 3))
    assert own(compiled)


def test_what_no_gradient_reaches_has_none() -> None:
    def f(x: Any, y: Any, mask: Any) -> Any:
        kept = torch.where(mask > 0, x, 0.0)
        return kept * 2.0, (y > 0).sum(), torch.ones_like(x) * 3.0

    assert own(compiled_as_eager(f, r(4, 5), r(4, 5), r(4, 5)))


ROWS = torch.tensor([2, 0, 2])
OTHERS: dict[str, Callable[[Any], Any]] = {
    "a detached value": lambda x: x * x.detach().exp(),
    "a kink of its own": lambda x: F.relu(x) + F.hardtanh(x),
    "a lookup": lambda x: x[ROWS] * 2.0,
    "a convolution": lambda x: F.conv1d(x[None], torch.ones(2, 4, 2).double()),
    "an extern": lambda x: torch.sort(x).values * x,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_graphs_go_through_aot_autograd(name: str) -> None:
    assert not own(compiled_as_eager(OTHERS[name], r(4, 5)))


def test_a_region_without_gradients_goes_through_aot_autograd() -> None:
    def f(x: Any) -> Any:
        with torch.no_grad():
            scale = x.exp()
        return x * scale

    assert not own(compiled_as_eager(f, r(4, 5)))


def test_training_steps_see_the_parameters_as_they_are() -> None:
    torch.manual_seed(1)
    module, x = MODULES["mlp"]().double(), r(5, 6)
    compiled = dynamo.compile_function(module, factory=dynamo.built("cpu"), strict=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        want = torch.autograd.grad((module(x) ** 2).sum(), list(module.parameters()))
        optimizer.zero_grad()
        (compiled(x) ** 2).sum().backward()
        for p, e in zip(module.parameters(), want, strict=True):
            torch.testing.assert_close(p.grad, e, rtol=1e-9, atol=1e-11)
        optimizer.step()
    assert own(compiled)
