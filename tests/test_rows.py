"""Rows that come from memory and go there: column reductions, stores past the caches, peak memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import c_runs
import numpy as np
import pytest
import torch

import tcc
from tcc.backends.c import _streams
from tcc.backends.c.emit import emit
from tcc.backends.c.launch import ask_for_huge_pages
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.interpret import interpret
from tcc.passes import _cpu_result

SOFTMAX = """cascade softmax
in X: f32[R,C]
out Y: f32[R,C]
G[r]   = X[r,c] :: max(c)
E[r,c] = exp(X[r,c] - G[r])
S[r]   = E[r,c]
Y[r,c] = E[r,c] / S[r]
"""
COLUMNS = {
    "sum": "Y[c] = X[r,c]",
    "largest": "Y[c] = X[r,c] :: max(r)",
    "mean": "S[c] = X[r,c]\nY[c] = S[c] / R",
    "squares of what is left": "S[c] = X[r,c]\nY[c] = (X[r,c] - S[c] / R) * (X[r,c] - S[c] / R)",
    "some rows": "Y[c] = X[r,c] where r % 3 == 1",
}


def column_program(body: str) -> Any:
    return parse_cascade(f"cascade columns\nin X: f32[R,C]\nout Y: f32[C]\n{body}\n")


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 70), (67, 1100), (300, 33)])
def test_columns_are_reduced_as_the_interpreter_does(name: str, shape: tuple[int, int]) -> None:
    c = column_program(COLUMNS[name])
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = c_runs.run(c_runs.built(c), c, {"X": x})["Y"]
    np.testing.assert_allclose(found, interpret(c, {"X": x})["Y"], rtol=2e-6, atol=2e-5)


def test_several_strided_ranks_are_reduced_over_the_last() -> None:
    text = "cascade columns\nin X: f32[A,B,C,D]\nout Y: f32[B,D]\nY[b,d] = X[a,b,c,d]\n"
    c = parse_cascade(text)
    x = np.random.default_rng(0).standard_normal((3, 4, 70, 37)).astype(np.float32)
    found = c_runs.run(c_runs.built(c), c, {"X": x})["Y"]
    np.testing.assert_allclose(found, x.astype(np.float64).sum((0, 2)), rtol=2e-6, atol=2e-5)


def test_column_reductions_put_columns_on_lanes() -> None:
    shown = str(c_runs.lowered(column_program(COLUMNS["sum"])))
    assert "with c on lane" in shown and "with r on lane" not in shown


def test_long_column_sums_round_little() -> None:
    """As little as PyTorch, which adds in a tree: chains are short, and blocks add up in f64."""
    c = column_program(COLUMNS["sum"])
    x = np.random.default_rng(0).standard_normal((20000, 40)).astype(np.float32)
    exact = x.astype(np.float64).sum(0)
    found = c_runs.run(c_runs.built(c), c, {"X": x})["Y"]
    assert np.abs(found - exact).max() <= 2.5e-7 * np.abs(exact).max()


@pytest.mark.parametrize("vector_bytes", [32, 64])
@pytest.mark.parametrize("shape", [(5, 64), (3, 200), (4, 1), (2, 1031)])
def test_large_outputs_are_stored_past_the_caches(
    monkeypatch: pytest.MonkeyPatch, vector_bytes: int, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(_streams, "STREAM_BYTES", 64)
    monkeypatch.setattr("tcc.backends.c._vector_bytes", lambda: vector_bytes)
    c = parse_cascade(SOFTMAX)
    program = c_runs.built(c)
    assert f"exp_f32x{vector_bytes // 4}(" in program.source
    assert "nt_f32x8" in program.source and "fence_streams();" in program.source
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = c_runs.run(program, c, {"X": x})["Y"]
    np.testing.assert_allclose(found, interpret(c, {"X": x})["Y"], rtol=1e-6)


def test_what_a_kernel_reads_again_or_what_is_small_goes_through_the_caches() -> None:
    small = SOFTMAX.replace("in X", "ranks R=64, C=64\nin X")
    assert "nt_f32" not in emit(c_runs.lowered(parse_cascade(small))).source
    text = "cascade twice\nin X: f32[R,C]\nout Y: f32[R,C], S: f32[R]\nY[r,c] = exp(X[r,c])\nS[r] = Y[r,c]\n"
    assert "nt_f32" not in emit(c_runs.lowered(parse_cascade(text))).source


IN_RESULT = {
    "SOFTMAX": (SOFTMAX, 2),
    "a chain": (
        "cascade chain\nin X: f32[R,C]\nout Y: f32[R,C]\nA[r,c] = exp(X[r,c])\nS[r] = A[r,c]\n"
        "B[r,c] = sigmoid(A[r,c] - S[r])\nT[r] = B[r,c]\nY[r,c] = B[r,c] * T[r]\n", 2,
    ),
    "shifted": (
        "cascade shifted\nin X: f32[R,C]\nout Y: f32[R,C]\nE[r,c] = exp(X[r,c])\n"
        "S[r] = E[r,c]\nY[r,c] = E[r,c - 1] / S[r]\n", 1,
    ),
    "another fill": (
        "cascade fills\nin X: f32[R,C]\nout Y: f32[R,C] fill 3\nE[r,c] = exp(X[r,c]) where c > r\n"
        "S[r] = E[r,c]\nY[r,c] = E[r,c] / S[r] where c > r\n", 1,
    ),
    "read later": (
        "cascade later\nin X: f32[R,C]\nout Y: f32[R,C], Z: f32[R,C]\nE[r,c] = exp(X[r,c])\n"
        "S[r] = E[r,c]\nY[r,c] = E[r,c] / S[r]\nZ[r,c] = E[r,c] + Y[r,c]\n", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_RESULT)
def test_rows_of_small_results_are_computed_in_them(name: str) -> None:
    program, count = IN_RESULT[name]
    shown = program.replace("in X", "ranks R=5, C=70\nin X", 1)
    c = parse_cascade(shown)
    mapping = str(c_runs.lowered(c))
    assert mapping.count("do Y[r, c] =") == count
    x = np.random.default_rng(0).standard_normal((5, 70)).astype(np.float32)
    found = c_runs.run(c_runs.built(c), c, {"X": x})
    for key, value in interpret(c, {"X": x}).items():
        np.testing.assert_allclose(found[key], value, rtol=2e-6, atol=1e-7)


def test_rows_of_large_results_have_a_place_of_their_own() -> None:
    assert _cpu_result.KEPT == _streams.STREAM_BYTES  # one of both, never neither
    for sizes in ("", "ranks R=5000, C=1000\n"):
        c = parse_cascade(SOFTMAX.replace("in X", f"{sizes}in X"))
        assert str(c_runs.lowered(c)).count("do Y[r, c] =") == 1


def test_the_next_row_is_fetched_while_this_one_is_computed() -> None:
    source = emit(c_runs.lowered(parse_cascade(SOFTMAX))).source
    assert source.count("__builtin_prefetch") == 2  # one walk of two cache lines per step


def test_asking_for_huge_pages_changes_no_memory() -> None:
    for size in (1, 1 << 20, (4 << 20) + 12345, 9 << 20):
        x = np.arange(size, dtype=np.uint8)
        ask_for_huge_pages(x.ctypes.data, x.nbytes)
        assert (x == np.arange(size, dtype=np.uint8)).all()


PEAK = """
import torch, torch.nn.functional as F, tcc

def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith(name)) * 1024

compiled = tcc.compile(attention)
torch.set_num_threads(2)
compiled(*torch.randn(3, 1, 16, 64, 64))
compiled(*torch.randn(3, 1, 16, 80, 64))  # any size from here on
q, k, v = torch.randn(3, 1, 16, {tokens}, 64)
try:
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what it is now
except OSError:
    pass  # then it is what it was before: a weaker test
before = status("VmHWM")
out = compiled(q, k, v)
print(status("VmHWM") - before - out.numel() * 4)
part = slice({tokens} - 8, None)
want = attention(q[:, :, part].double(), k.double(), v.double())
assert (out[:, :, part] - want).abs().max() < 1e-5
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_attention_needs_its_inputs_its_output_and_8_mib() -> None:
    command = [sys.executable, "-c", PEAK.format(tokens=2048)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) <= 8 << 20


@pytest.mark.parametrize("target", ["cpu", "cpu-avx512"])
@pytest.mark.parametrize("shape", [(300, 130), (7, 2049), (3, 40, 70)])
def test_what_follows_a_reduction_of_columns_runs_along_them(
    shape: tuple[int, ...], target: str
) -> None:
    """Lanes over the columns, of which a task has so many as what it hands on to itself stays near."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    dim = len(shape) - 2
    for f in (
        lambda x: torch.softmax(x, dim),
        lambda x: (x - x.mean(dim, keepdim=True)) / (x.std(dim, keepdim=True) + 1e-5),
        lambda x: x * x.amax(dim, keepdim=True),
    ):
        compiled = tcc.compile(f, target=target)
        torch.testing.assert_close(compiled(x), f(x), rtol=1e-4, atol=1e-5)
        report = str(compiled.explain())
        column = report.rpartition(" on lane]")[0].rpartition("[")[2]
        assert f"for {column} by 1 on core" not in report


@pytest.mark.parametrize("n", [4, 16, 24, 40])
def test_reshaped_reads_are_vector_loops_over_stretches(n: int) -> None:
    """Along which v / n stays the same and v % n counts on, if they are long enough, whatever is left at the end."""
    torch.manual_seed(0)
    x, y = torch.randn(3, n, 40), torch.randn(n, n)
    for f, given in (
        (lambda x: x.permute(1, 0, 2).reshape(n, 120) * 2, (x,)),
        (lambda x: x.transpose(1, 2).repeat_interleave(3, 2) + 1, (x,)),
        (lambda x, y: torch.kron(y, x[0]), (x, y)),
        (lambda x: x.reshape(-1)[5:100].view(5, 19).tanh(), (x,)),
    ):
        compiled = tcc.compile(f, target="cpu", dynamic=False)
        torch.testing.assert_close(compiled(*given), f(*given))
    compiled = tcc.compile(lambda x: x.repeat(1, 1, 3) * 2, target="cpu", dynamic=False)
    torch.testing.assert_close(compiled(y[None]), y.repeat(1, 1, 3) * 2)
    assert (f" by {n}\n" in str(compiled.explain())) == (n >= 16)
