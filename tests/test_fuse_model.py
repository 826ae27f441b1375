"""Products whose second operand is packed on each call join a kernel where the cost model says that it saves time."""

from __future__ import annotations

import numpy as np
import pytest

from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.cost import cost
from tcc.ir.interpret import interpret
from tcc.ir.mapping import Mapping
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.target import Target
from tcc.passes import fuse
from tcc.pipeline import names_for, passes, run
from tcc.samples import random_inputs
from tcc.targets import find

MEASURED = find("zen4")  # the one of the known CPUs whose register tiles are measured
BESIDE = """
ranks M={}, N={}, K={}
in X: f32[M,K], W: f32[K,N], V: f32[K,N]
out Y: f32[M,N]
A[m,n] = X[m,k] * W[k,n]
B[m,n] = X[m,k] * V[k,n]
Y[m,n] = A[m,n] * B[m,n] / (1 + exp(-A[m,n]))
"""
CHAIN = """
ranks M={}, N={}, K={}
in X: f32[M,K], W: f32[K,N]
out Y: f32[M,N]
G[m,k] = X[m,k] * (1.0 + erf(X[m,k] * 0.7))
S[m] = G[m,k]
P[m,k] = G[m,k] / S[m]
Y[m,n] = P[m,k] * W[k,n]
"""


def mapped(text: str, target: Target = MEASURED) -> Mapping:
    found = run(parse_cascade(text), target, passes(names_for(target))).mapping
    assert found is not None
    return found


@pytest.mark.parametrize("text", [BESIDE, CHAIN])
@pytest.mark.parametrize("m", [32, 200])
@pytest.mark.parametrize("n", [64, 3072])
def test_the_choice_is_no_slower_by_the_model_than_that_of_the_estimate(
    text: str, m: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = mapped(text.format(m, n, 512))
    monkeypatch.setattr(fuse, "modelled_gain", lambda *_: None)
    estimated = mapped(text.format(m, n, 512))
    assert cost(chosen, MEASURED).seconds <= 1.01 * cost(estimated, MEASURED).seconds


def test_it_decides_where_the_two_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way the result is right."""
    text = BESIDE.format(40, 48, 32)
    c = parse_cascade(text)
    arrays = random_inputs(c, {}, np.random.default_rng(0))
    wanted = interpret(c, arrays)["Y"]
    kernels = []
    for gain in (1e-3, -1e-3):
        monkeypatch.setattr(fuse, "modelled_gain", lambda *_, gain=gain: gain)
        m = mapped(text)
        kernels.append(sum("pack" not in k.name for k in m.kernels))
        np.testing.assert_allclose(interpret_mapping(m, arrays)[0]["Y"], wanted, rtol=1e-4)
    assert kernels[0] < kernels[1]


def test_constants_and_open_sizes_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    model = fuse.modelled_gain
    monkeypatch.setattr(fuse, "modelled_gain", lambda *a: asked.append(model(*a)) or asked[-1])
    text = CHAIN.format(64, 64, 64)
    for program in (text.replace("[K,N]", "[K,N] constant"), BESIDE.split("\n", 2)[2]):
        steps = passes([n for n in names_for(MEASURED) if n != "map"])
        assert isinstance(run(parse_cascade(program), MEASURED, steps).program, Cascade)
    assert asked[0] is None and not any(asked) and len(asked) > 1
    mapped(text)
    assert asked[-1] is not None
