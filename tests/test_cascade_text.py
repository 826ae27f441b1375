"""Printing and parsing cascades are inverse, and random programs are what they claim to be."""

from __future__ import annotations

import random

import numpy as np
import pytest
from random_programs import FEATURES, POINTS, generate

from tcc.ir.cascade import Einsum
from tcc.ir.cascade_text import parse_cascade, parse_cascades
from tcc.ir.expr import MAX_DEPTH, Call, depth, walk
from tcc.ir.ops import INDEX_REDUCTIONS, MONOIDS, OPS


@pytest.mark.parametrize("block", range(8))
def test_parsing_what_was_printed_prints_the_same(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        cascade = generate(seed).cascade
        again = parse_cascade(str(cascade))
        assert str(again) == str(cascade)
        assert [str(t) for t in again.tensors.values()] == [
            str(t) for t in cascade.tensors.values()
        ]


def test_the_same_seed_gives_the_same_program_and_inputs() -> None:
    for seed in range(20):
        a, b = generate(seed), generate(seed)
        assert str(a.cascade) == str(b.cascade)
        assert all(np.array_equal(a.inputs[name], b.inputs[name]) for name in a.inputs)


def test_random_programs_use_every_operator_monoid_and_feature() -> None:
    operators: set[str] = set()
    monoids: set[str] = set()
    features: set[str] = set()
    for seed in range(500):
        program = generate(seed)
        features |= program.features
        for d in program.cascade.definitions:
            assert isinstance(d, Einsum)
            monoids |= {d.monoid(v) for v in d.reduced}
            operators |= {e.op for e in walk(d.body, *d.where, *d.indices) if isinstance(e, Call)}
    assert operators == set(OPS)
    assert monoids == {*MONOIDS, *INDEX_REDUCTIONS}
    assert features == set(FEATURES)


def test_random_programs_leave_out_what_they_are_asked_to() -> None:
    without = random.Random(0).sample(FEATURES, 6)
    for seed in range(60):
        assert not generate(seed, without).features & set(without)


def test_random_programs_stay_small() -> None:
    for seed in range(60):
        program = generate(seed)
        for d in program.cascade.definitions:
            assert isinstance(d, Einsum)
            box = np.prod([program.sizes[v.upper()] for v in [*d.free, *d.reduced]])
            assert box <= POINTS


PRINTED = [
    "Z[i] = A[i] - (B[i] - A[i])",
    "Z[i] = (A[i] + B[i]) * -A[i]",
    "Z[i] = A[i] ** B[i] ** 2",
    "Z[i] = (A[i] ** B[i]) ** 2",
    "Z[i] = -A[i] ** 2",
    "Z[i] = (-A[i]) ** 2",
    "Z[i] = select(not (A[i] < B[i] and i != 3), 1.0, -inf)",
    "Z[i] = (A[i] ?? B[i]) ?? 0.5",
    "Z[i] = max(A[i], f32(i % 3)) where i + 1 < I, A[i] > 1e-07",
    "Z[i] = A[i] / (B[i] / A[i]) // 2.0",
    "Z[i] = C[i, j] + A[j] :: max(j)",
    "Z[i] = C[i, j] * C[j, k] * B[k] :: max(j), min(k)",
    "Z[i] = C[i, j] * C[j, k] * B[k] :: sum(j), min(k)",
    "Z[i] = C[i, j] * C[j, k] * B[k] :: max(j)",
    "Z[i] = C[i, j] + A[j] :: argmin(j)",
    "Z[i] = A[(I - 1) - i] + A[i // 2 + (i - 3) % 5]",
]


@pytest.mark.parametrize("line", PRINTED)
def test_a_definition_keeps_its_meaning_in_text(line: str) -> None:
    head = "ranks I, J=I, K=I\nin A: f32[I], B: f32[I], C: f32[I, I]\nout Z: f32[I]\n"
    first = parse_cascade(head + line)
    assert str(parse_cascade(str(first))) == str(first)
    plain = line.replace("(A[i] ?? B[i]) ??", "A[i] ?? B[i] ??").replace("(I - 1) - i", "I - 1 - i")
    assert str(first.definitions[0]) == plain


def test_a_joint_keeps_its_corrections_in_text() -> None:
    text = """cascade walk
ranks I, J
in  A: f32[I, J], B: f32[J]
out Z: f32[J]

T[j] = A[i, j] :: max(i)
S[j] = exp(A[i, j] * B[j] - T[j] * B[j])
by[j] = A[i, j]
Z[j] = S[j] + by[j]
joint i: T, S by S * exp((T - T') * B[j]), by
"""
    c = parse_cascade(text)
    assert [f.tensor for f in c.joints[0].fields] == ["T", "S", "by"]
    assert str(c) == text.replace(", B: f32", "\nin  B: f32")
    assert str(parse_cascade(str(c))) == str(c)


def test_reductions_nest_in_the_order_in_which_they_are_written() -> None:
    head = "in C: f32[I, J]\nout Z: f32\n"
    outer_max = parse_cascade(head + "Z = C[i, j] :: max(j)").definitions[0]
    assert isinstance(outer_max, Einsum) and outer_max.reduced == ["j", "i"]
    outer_sum = parse_cascade(head + "Z = C[i, j] :: sum(i), max(j)").definitions[0]
    assert isinstance(outer_sum, Einsum) and outer_sum.reduced == ["i", "j"]
    assert str(outer_sum) == "Z = C[i, j] :: sum(i), max(j)"
    head = "in C: f32[I, J]\nout Z: i64\n"
    rows = parse_cascade(head + "T = C[i, j] > 0.5 :: sum(i), any(j)\nZ = T")
    assert str(rows.tensors["T"].dtype) == "i64"  # how many rows have one


def test_statements_continue_over_lines_and_comments_are_skipped() -> None:
    text = """
    # a comment
    cascade wide  # its name
    ranks I,
          J
    """
    with pytest.raises(Exception, match="unexpected"):  # a comma does not continue a line
        parse_cascade(text)
    program = """cascade wide
in A: f32[I, J]   # two ranks
out Z: f32[I]
Z[i] = A[i, j] * (2.0
       + 1.0)     # inside brackets
     + A[i, j]
     # in between
     :: max(j)
     where j < 3
"""
    assert (
        str(parse_cascade(program).definitions[0])
        == "Z[i] = A[i, j] * (2.0 + 1.0) + A[i, j] :: max(j) where j < 3"
    )


def test_a_file_may_hold_several_cascades() -> None:
    text = (
        "cascade a\nin X: f32\nout Y: f32\nY = X\n\ncascade b\nin X: i32\nout Y: i32\nY = X + 1\n"
    )
    assert [c.name for c in parse_cascades(text)] == ["a", "b"]


def test_depth_counts_nested_operators() -> None:
    text = "in A: f32\nout Z: f32\nZ = " + " + ".join(["A"] * MAX_DEPTH)
    d = parse_cascade(text).definitions[0]
    assert isinstance(d, Einsum) and depth(d.body) == MAX_DEPTH - 1
