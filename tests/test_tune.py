"""`tcc tune`: what was measured is kept, found again by the next compile and the next run, and never trusted blindly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tcc
from tcc import tune as tuning
from tcc import tuned
from tcc.backends.c import cache
from tcc.cli import main
from tcc.ir.cascade_text import parse_cascade
from tcc.targets import find

MEASURED = find("zen4")
SIZES = {"M": 60, "N": 100, "K": 90}
MATMUL = "in A: f32[M,K], B: f32[K,N]\nout C: f32[M,N]\nC[m,n] = A[m,k] * B[k,n]"
FIXED = "ranks M=60, N=100, K=90\n" + MATMUL


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCC_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next measurements will say, instead of a clock; nan is Ctrl-C."""
    queue: list[float] = []

    def times(*calls: Callable[[], None]) -> tuple[float, float]:
        for call in calls:
            call()
        ratio = queue.pop(0) if queue else 1.0
        if np.isnan(ratio):
            raise KeyboardInterrupt
        return 1.0, ratio

    monkeypatch.setattr(tuning, "_times", times)
    return queue


def tiles() -> str:
    """What the next compile chooses, in words; its result is right."""
    compiled = tcc.parse(FIXED).compile(target="zen4")
    a, b = np.random.default_rng(0).standard_normal((2, 60, 100)).astype(np.float32)
    np.testing.assert_allclose(compiled(a[:, :90], b[:1].repeat(90, 0)), a[:, :90] @ b[:1].repeat(90, 0), atol=1e-3)  # fmt: skip
    (found,) = (k.tiles for k in compiled.explain().kernels if k.tiles)
    return found


def run(best: int = 2, seconds: float = 1e9) -> tuning.Tuned:
    return tuning.tune(parse_cascade(MATMUL), MEASURED, SIZES, best, seconds)


def test_the_fastest_is_used_from_then_on(ratios: list[float]) -> None:
    assert "measured" not in tiles()
    ratios += [0.9, 0.7]
    report = run()
    assert (report.measured, report.changed, report.stopped) == (2, 1, "")
    (entry,) = tuned.load(MEASURED).values()
    rows, vectors = entry.best[:2]
    assert entry.ratios[entry.best] == 0.7
    assert tiles().startswith(f"register tiles of {rows} rows x {vectors} vectors")
    assert tiles().endswith("measured by `tcc tune`")


def test_the_usual_tiles_stay_without_a_margin(ratios: list[float]) -> None:
    ratios += [0.99, 1.2]
    assert run().changed == 0
    assert tiles().startswith("register tiles of 6 rows x 2 vectors")


def test_a_second_run_goes_on(ratios: list[float]) -> None:
    ratios += [0.9]
    assert run(best=1).measured == 1
    again = run(best=3)
    assert (again.known, again.measured) == (1, 2)
    assert run(best=3).measured == 0


def test_time_is_up(ratios: list[float]) -> None:
    report = run(seconds=0.0)
    assert (report.measured, report.stopped) == (0, "after 0 s") and not tuned.load(MEASURED)


def test_ctrl_c_keeps_the_best_so_far(ratios: list[float]) -> None:
    ratios += [0.8, float("nan")]
    report = run(best=4)
    assert (report.measured, report.changed, report.stopped) == (1, 1, "by Ctrl-C")
    assert tiles().endswith("measured by `tcc tune`")
    assert run(best=4).known == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[3]", '[{"kernel": "x"}]', '[{"kernel": "x", "usual": [0], "ratios": []}]']
)  # fmt: skip
def test_what_cannot_be_read_is_ignored(text: str) -> None:
    cache.put(tuned._key(MEASURED), ".tuned", text.encode())
    assert tuned.load(MEASURED) == {} and tuned.tuned(MEASURED) is MEASURED
    assert "measured" not in tiles()


def test_damaged_files_are_ignored(ratios: list[float]) -> None:
    ratios += [0.5]
    run(best=1)
    path = cache.get(tuned._key(MEASURED), ".tuned")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-3])
    assert tuned.load(MEASURED) == {}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "product.tcc"
    path.write_text(MATMUL)
    words = ["tune", str(path), "--target", "zen4", "--size", "M=60,N=100,K=90", "--best", "1"]
    for shown in (
        "0 of them known from before, 1 measured",
        "1 of them known from before, 0 measured",
    ):
        assert main(words) == 0
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--target", "avx512-server"], "has no measured register tiles"),
        (["--target", "h100"], "has no measured register tiles"),
        (["--target", "zen4", "--best", "0"], "at least one candidate"),
        (["--target", "zen4", "--seconds", "0"], "give it some time"),
    ],
)
def test_refusals(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "product.tcc"
    path.write_text(MATMUL)
    assert main(["tune", str(path), *words]) == 2
    assert reason in capsys.readouterr().err
