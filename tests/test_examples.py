"""Every example program, compiled for the CPU, computes what the interpreter says it means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from c_runs import threads

import tcc
from tcc.build import lower
from tcc.cli import main
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError
from tcc.run import run_program
from tcc.samples import all_sizes, most_points

EXAMPLES = sorted(
    p
    for p in (Path(__file__).resolve().parent.parent / "examples").iterdir()
    if p.suffix in (".tcc", ".yaml")
)
SIZES = (1, 2, 3, 7, 37, 64, 127, 128, 129)
POINTS = 200_000  # of one definition
ROUNDS = 9


def cascade_of(path: Path) -> Cascade:
    node = tcc.load(path).node
    assert isinstance(node, Cascade)
    return node


def size_rounds(c: Cascade) -> list[dict[str, int]]:
    """Sizes for all free ranks: each occurs for each rank, in mixed combinations with few enough
    points that the interpreter takes no time."""
    ranks = [r.name for r in c.ranks if r.size is None]
    if not ranks:
        return [{}]
    rng = np.random.default_rng(len(c.name))
    orders = {r: rng.permutation(SIZES) for r in ranks}
    found = []
    for n in range(ROUNDS):
        sizes = {r: int(orders[r][n]) for r in ranks}
        while most_points(c, sizes) > POINTS:
            largest = max(ranks, key=lambda r: sizes[r])
            sizes[largest] = max(s for s in SIZES if s < sizes[largest])
        found.append(sizes)
    return found


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 20


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_runs_as_it_is_meant(path: Path) -> None:
    c = cascade_of(path)
    result = lower(c, "cpu")
    ran = 0
    for seed, sizes in enumerate(size_rounds(c)):
        try:
            all_sizes(c, sizes, 1)
        except CompileError:
            continue  # these sizes contradict each other
        for count in (1, 2):
            with threads(count):
                report = run_program(c, result, sizes, seed, check=True, repeat=1)
            assert report.holds, f"{count} threads, seed {seed}\n{report}"
            ran += 1
    assert ran >= 2


@pytest.mark.parametrize(
    "words",
    [
        ("matmul.tcc", "--size", "M=37", "--size", "K=129", "--size", "N=65"),
        ("attention_causal.tcc", "--size", "P=65"),
        ("eyeriss.yaml",),
    ],
    ids=lambda words: words[0],
)
def test_the_command_line_checks_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = words
    code = main(["run", str(EXAMPLES[0].parent / name), "--check", "--target", "cpu", *options])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "check: ok" in out + err
