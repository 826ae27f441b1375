"""What isl proves of layouts agrees with enumeration on all small ones, and holds for sizes that are not known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from random_layouts import random_layout

from tcc.ir import layout_isl
from tcc.ir.diagnostics import CompileError
from tcc.ir.layout import Digit, Layout
from tcc.ir.layout_algebra import agree, normal
from tcc.ir.layout_isl import in_bounds, is_injective, same_places
from tcc.ir.layout_table import difference, table
from tcc.ir.layout_text import parse_layout


def small() -> Iterator[Layout]:
    """Every layout with up to three digits of two values: orders, dimensions, axes, strides 0 to 3 of the slowest."""
    for count in (1, 2, 3):
        for split in range(1, count + 1):
            numbers = [(0, 2**k) for k in range(split)] + [(1, 2**k) for k in range(count - split)]
            for order in itertools.permutations(numbers):
                for axes in itertools.product(("addr", "lane"), repeat=count):
                    for stride in (None, 0, 3) if count < 3 else (None, 3):
                        digits = [Digit(d, p, 2, None, x) for (d, p), x in zip(order, axes)]
                        first = digits[0]
                        digits[0] = Digit(first.dimension, first.divisor, 2, stride, first.axis)
                        shape = (2**split, 2 ** (count - split))
                        yield Layout(tuple(digits), shape)


def injective(a: Layout) -> bool:
    t = table(a)
    flat = t.places.reshape(-1, len(t.axes))
    element = np.arange(len(flat)) // t.places.shape[-2]
    pairs = np.unique(np.c_[element, flat], axis=0)
    return len(np.unique(pairs[:, 1:], axis=0)) == len(pairs)


def test_isl_agrees_with_enumeration_on_all_small_layouts() -> None:
    found = list(small())
    assert len(found) > 300
    before: Layout | None = None
    for a in found:
        proof = is_injective(a, listed=False)
        assert (proof is None) == injective(a), str(a)
        if proof is not None:
            one, two = proof.coordinates
            t = table(a)
            assert one != two and (t.places[one] == t.places[two]).all()
        assert in_bounds(a) is None
        if before is not None and before.shape == a.shape and before.axes == a.axes:
            ta, tb = table(a), table(before, axes=a.axes)
            assert (same_places(a, before, listed=False) is None) == (difference(ta, tb) is None)
        before = a


def test_isl_agrees_with_enumeration_on_random_layouts(rng: np.random.Generator) -> None:
    for _ in range(40):
        a = random_layout(rng, most=32)
        proof = is_injective(a, listed=False)
        assert (proof is None) == injective(a), str(a)
        assert same_places(a, normal(a)) is None


def test_proofs_hold_for_all_sizes() -> None:
    for text in (
        "(M, N) [1/16, 0, 1%16]",
        "(M, N) [0/6, 0%6, 1/16, 1%16]",
        "(M, 16) [0, 1/4, 1%4^0%4]",
        "(M, 2) [0, 1*3]",
        "(M, N) lane[0%8] [0/8*(N + 3), 1]",
    ):
        a = parse_layout(text)
        if "N + 3" in text:
            with pytest.raises(CompileError, match="cannot be proved") as error:
                is_injective(a)
            assert error.value.diagnostic.code == "T0274"
            continue
        assert is_injective(a) is None, text
        assert same_places(a, normal(a)) is None
    proof = is_injective(parse_layout("(M, 3) [0*2, 1]"))
    assert (
        proof is not None and str(proof) == "(0, 2) and (1, 0) for M = 2"
    )  # the first that is found


def test_a_claim_that_fails_has_a_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, swizzled = parse_layout("(M, 64) [0, 1]"), parse_layout("(M, 64) [0, 1/8, 1%8^0%8]")
    proof = same_places(plain, swizzled)
    assert proof is not None
    assert not agree(plain, swizzled)
    monkeypatch.setattr(layout_isl, "MOST_OPERATIONS", 20_000)
    with pytest.raises(CompileError, match="takes too long"):
        same_places(plain, swizzled, listed=False)
    sizes = dict(proof.sizes)
    (at,) = proof.coordinates
    here, there = (table(x.bind(sizes)).places[at] for x in (plain, swizzled))
    assert (here != there).any()


def test_a_swizzle_is_proved_its_own_inverse_for_all_sizes() -> None:
    twice = parse_layout("(M, 16) [0, 1/4, 1%4^0%4^0%4]")
    assert same_places(twice, parse_layout("(M, 16) [0, 1]")) is None
    assert agree(twice, parse_layout("(M, 16) [0, 1]"))
