"""Reductions over all that comes before a coordinate take linear time on CPUs; recurrences run their rows on all cores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from c_runs import built, lowered, run

import tcc
from tcc.ir.cascade import Cascade, Recurrence, steps
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.interpret import interpret
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.passes.derive import derive
from tcc.targets import find

CPU = find("cpu")
WAYS = ["m <= n", "m < n", "m >= n", "m > n", "n <= m", "n > m"]
KINDS = {
    "f32": ["sum", "prod", "max", "min"],
    "f64": ["sum"],
    "i64": ["sum", "max", "xor"],
    "bool": ["any", "all"],
}


def recurrences(c: Cascade) -> int:
    return sum(isinstance(s, Recurrence) for s in steps(c))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("last", ["r, n", "n, r"])
def test_running_reductions_are_those_of_the_interpreter(
    way: str, dtype: str, last: str, rng: np.random.Generator
) -> None:
    read = last.replace("n", "m")
    for kind in KINDS[dtype]:
        text = f"in X: {dtype}[{last.upper()}]\nout Y: {dtype}[{last.upper()}]\n"
        c = parse_cascade(f"{text}Y[{last}] = X[{read}] :: {kind}(m) where {way}")
        assert recurrences(derive(c, CPU)) == 1
        program = built(c)
        for n in (0, 1, 2, 65, 130):
            shape = (3, n) if last[0] == "r" else (n, 3)
            x = {"X": (1 + 0.05 * rng.standard_normal(shape)).astype(c.tensors["X"].dtype.numpy)}
            if dtype in ("i64", "bool"):
                x = {"X": rng.integers(0, 2, shape).astype(c.tensors["X"].dtype.numpy)}
            wanted = interpret(c, x)["Y"]
            found = [run(program, c, x)["Y"], interpret_mapping(lowered(c), x)[0]["Y"]]
            for y in found:
                np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "line",
    [
        "Y[n] = X[m] where m <= n + 1",
        "Y[n] = X[m] where 2 * m <= n",
        "Y[n] = X[m] * X[n] where m <= n",
        "Y[n] = X[m] where m == n",
        "Y[n] = X[m] where X[m] <= X[n]",
        "Y[n] = X[m] where m <= n and m > 3",
        "Y[n] = X[m]",
    ],
)
def test_other_reductions_stay(line: str) -> None:
    c = parse_cascade(f"in X: f32[N]\nout Y: f32[N]\n{line}")
    assert recurrences(derive(c, CPU)) == 0


def test_one_inside_a_recurrence_stays(rng: np.random.Generator) -> None:
    c = parse_cascade("""
    in X: f32[N]
    out Y: f32[N]
    ranks T=3
    S[0,n] = X[n]
    A[t,n] = S[t,m] where m <= n
    S[t+1,n] = 0.5 * A[t,n]
    Y[n] = S[3,n]
    """)
    assert recurrences(derive(c, CPU)) == 1
    x = {"X": rng.standard_normal(70).astype(np.float32)}
    np.testing.assert_allclose(run(built(c), c, x)["Y"], interpret(c, x)["Y"], rtol=1e-4, atol=1e-4)


def test_sums_of_narrow_integers_are_wide(rng: np.random.Generator) -> None:
    c = parse_cascade("in X: i32[N]\nout Y: i64[N]\nY[n] = X[m] where m <= n")
    x = rng.integers(0, 2**31, 100).astype(np.int32)
    np.testing.assert_array_equal(run(built(c), c, {"X": x})["Y"], x.cumsum(dtype=np.int64))


def test_short_ones_and_those_of_other_targets_stay() -> None:
    text = "ranks N={}\nin X: f32[N]\nout Y: f32[N]\nY[n] = X[m] where m <= n"
    assert recurrences(derive(parse_cascade(text.format(64)), CPU)) == 0
    long = parse_cascade(text.format(65))
    assert recurrences(derive(long, CPU)) == 1
    assert (
        recurrences(derive(long, find("h100")))
        == recurrences(derive(long, find("array-16x16")))
        == 0
    )


def test_sums_round_once_and_gradients_run_backwards() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5000)
    compiled = tcc.compile(lambda x: x.cumsum(1))
    exact = x.double().cumsum(1)
    assert (compiled(x).double() - exact).abs().max() <= (x.cumsum(1).double() - exact).abs().max()
    a, b = (x[:, :200].clone().requires_grad_() for _ in range(2))
    (tcc.compile(lambda x: (x.cumsum(1) ** 2).sum())(a)).backward()
    (b.cumsum(1) ** 2).sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)


ROWS = """
in A: f32[R,H], X: f32[R,T,H]
out Y: f32[R,T,H]
S[r,0,h] = 0.0
S[r,t+1,h] = A[r,h] * S[r,t,h] + X[r,t,h]
Y[r,t,h] = S[r,t+1,h]
"""
MIXED = """
in W: f32[H,H], X: f32[R,T,H]
out Y: f32[R,H]
S[r,0,h] = 0.0
P[r,t,h] = S[r,t,g] * W[g,h]
S[r,t+1,h] = tanh(P[r,t,h] + X[r,t,h])
Y[r,h] = S[r,T,h]
"""


@pytest.mark.parametrize(("text", "rows"), [(ROWS, {"r", "h"}), (MIXED, {"r"})])
def test_rows_of_a_recurrence_run_on_all_cores(
    text: str, rows: set[str], rng: np.random.Generator
) -> None:
    c = parse_cascade(text)
    sizes = {"R": 3, "T": 40, "H": 21}
    shapes = {"A": "RH", "X": "RTH", "W": "HH"}
    x = {
        t.name: (0.5 * rng.standard_normal([sizes[n] for n in shapes[t.name]])).astype(np.float32)
        for t in c.inputs
    }
    kernel = next(k for k in str(lowered(c)).split("kernel ") if "for t by 1" in k)
    assert {line.split()[1] for line in kernel.split("\n") if "on core" in line} == rows
    wanted = interpret(c, x)["Y"]
    np.testing.assert_allclose(run(built(c), c, x)["Y"], wanted, rtol=1e-4, atol=1e-5)
