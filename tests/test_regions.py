"""Terms that a condition on coordinates makes neutral do not exist: walks skip them, results stay those of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tcc
from tcc import pipeline
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.expr import text
from tcc.ir.interpret import interpret
from tcc.targets import find

torch = pytest.importorskip("torch")
Tensor = Any

WALK = """
in  A: f64[P, M], V: f64[M, F]
out O: f64[P, F]
{scores}
Max[p]  = S[p, m] :: max(m)
X[p, m] = exp(S[p, m] - Max[p])
Sum[p]  = X[p, m]
O[p, f] = X[p, m] / Sum[p] * V[m, f]
"""


def derived(scores: str) -> Any:
    c = parse_cascade(WALK.format(scores=scores))
    names = ["restrict", "simplify", "derive"]
    return c, pipeline.run(c, find("cpu"), pipeline.passes(names)).program


@pytest.mark.parametrize(
    "scores, predicate",
    [
        ("S[p, m] = select(m <= p, A[p, m], -inf)", "m <= p"),
        ("S[p, m] = select(m > p, -inf, 2 * A[p, m])", "not m > p"),
        ("S[p, m] = select(p - m < 0 or p - m >= 3, -inf, A[p, m])", "not (p - m < 0 or p - m >= 3)"),
        ("S[p, m] = select(m < 4, select(m <= p, A[p, m], -inf), -inf)", "m <= p"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 5, 12])
def test_choices_of_the_identity_become_predicates(scores: str, predicate: str, size: int) -> None:
    c, found = derived(scores)
    assert len(found.joints) == 1
    for d in found.definitions:
        if set(d.reduced) == {"m"}:
            assert predicate in [text(p) for p in d.where], d
    rng = np.random.default_rng(size)
    inputs = {"A": rng.standard_normal((size, size)), "V": rng.standard_normal((size, 3))}
    np.testing.assert_allclose(
        interpret(found, inputs)["O"], interpret(c, inputs)["O"], rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(
    "scores",
    [
        "S[p, m] = select(m <= p, A[p, m], -1e9)",  # may count, where all else is as small
        "S[p, m] = select(A[p, m] > 0, A[p, m], -inf)",  # no condition on coordinates
        "S[p, m] = select(m <= p, A[p, m], inf)",
    ],
)
def test_other_choices_stay(scores: str) -> None:
    _, found = derived(scores)
    assert not any(d.where for d in found.definitions)


def places(length: int) -> Tensor:
    at = torch.arange(length)
    return at[:, None] - at


FORMS: dict[str, Callable[..., Tensor]] = {
    "filled": lambda q, k, v, kept: torch.softmax((q @ k.mT).masked_fill(~kept, -torch.inf), -1) @ v,
    "chosen": lambda q, k, v, kept: torch.softmax(torch.where(kept, q @ k.mT, -torch.inf), -1) @ v,
    "mask": lambda q, k, v, kept: torch.nn.functional.scaled_dot_product_attention(q, k, v, kept),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first, count", [(0, 1000), (0, 7), (5, 1000)])
def test_windows_of_pytorch_are_skipped(form: str, first: int, count: int) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before = places(300)
        return FORMS[form](q, k, v, (before >= first) & (before < count))

    torch._dynamo.reset()  # which counts compilations of one line of code
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 300, 16)
    compiled = tcc.compile(f, dynamic=False)
    # the first rows see nothing: NaN or 0, as in PyTorch
    torch.testing.assert_close(compiled(q, k, v), f(q, k, v), equal_nan=True, rtol=1e-4, atol=1e-5)
    assert " when " in compiled.records.graphs[0].programs[0].ir("mapping")
