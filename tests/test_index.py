"""Index arithmetic never changes a value, and never claims what is not so."""

from __future__ import annotations

import itertools
import random

import pytest

from tcc.ir.expr import Const, Expr, Size, Var, call, substitute, text, transform
from tcc.ir.index import bounds, evaluate_size, poly, same, simplify_index, within

CHOICES = {"I": (1, 2, 5), "J": (1, 3, 4)}


def random_index(rng: random.Random, depth: int) -> Expr:
    if depth == 0:
        return rng.choice(
            [Var("i"), Var("j"), Const(rng.randint(0, 5)), Size("I"), Size("J"), Var("i"), Var("j")]
        )
    op = rng.choice(["add", "add", "sub", "mul", "floordiv", "mod", "neg"])
    a = random_index(rng, depth - 1)
    if op == "neg":
        return call("neg", a)
    if op in ("floordiv", "mod"):
        return call(op, a, rng.choice([Const(2), Const(3), Size("I"), Size("J"), Const(4)]))
    return call(op, a, random_index(rng, rng.randrange(depth)))


def value(e: Expr, sizes: dict[str, int], at: dict[str, int]) -> int:
    return evaluate_size(substitute(e, {v: Const(n) for v, n in at.items()}), sizes)


def fixed(e: Expr, sizes: dict[str, int]) -> Expr:
    return transform(e, lambda n: Const(sizes[n.rank]) if isinstance(n, Size) else n)


def points(sizes: dict[str, int]) -> list[dict[str, int]]:
    return [{"i": i, "j": j} for i in range(sizes["I"]) for j in range(sizes["J"])]


SIZES = [dict(zip(CHOICES, s)) for s in itertools.product(*CHOICES.values())]


@pytest.mark.parametrize("symbolic", [True, False])
@pytest.mark.parametrize("block", range(4))
def test_simplifying_an_index_keeps_its_value(block: int, symbolic: bool) -> None:
    rng = random.Random(block)
    for _ in range(150):
        e = random_index(rng, rng.randint(1, 4))
        for sizes in SIZES:
            given = e if symbolic else fixed(e, sizes)
            extents: dict[str, Expr] = {
                "i": Size("I") if symbolic else Const(sizes["I"]),
                "j": Size("J") if symbolic else Const(sizes["J"]),
            }
            short = simplify_index(given, extents)
            again = poly(given).expr()
            for at in points(sizes):
                want = value(given, sizes, at)
                assert value(short, sizes, at) == want, (
                    f"{text(given)} --> {text(short)} at {at}, {sizes}"
                )
                assert value(again, sizes, at) == want, (
                    f"{text(given)} --> {text(again)} at {at}, {sizes}"
                )


@pytest.mark.parametrize("block", range(4))
def test_bounds_hold_and_within_never_lies(block: int) -> None:
    rng = random.Random(100 + block)
    claimed = 0
    for _ in range(300):
        e = random_index(rng, rng.randint(1, 3))
        size = random_index(rng, 0)
        extents: dict[str, Expr] = {"i": Size("I"), "j": Size("J")}
        span = bounds(e, extents)
        inside = not isinstance(size, Var) and within(e, size, extents)
        claimed += inside
        for sizes in SIZES:
            for at in points(sizes):
                n = value(e, sizes, at)
                if span is not None:
                    assert (
                        value(span[0].expr(), sizes, at) <= n <= value(span[1].expr(), sizes, at)
                    ), text(e)
                if inside:
                    assert 0 <= n < value(size, sizes, at), (
                        f"{text(e)} in {text(size)} at {at}, {sizes}"
                    )
    assert claimed > 0


@pytest.mark.parametrize("block", range(2))
def test_equal_polynomials_have_equal_values(block: int) -> None:
    rng = random.Random(200 + block)
    for _ in range(300):
        a, b = random_index(rng, 2), random_index(rng, 2)
        if same(a, b):
            for sizes in SIZES:
                for at in points(sizes):
                    assert value(a, sizes, at) == value(b, sizes, at), f"{text(a)} and {text(b)}"


def test_splits_and_joins_of_views_vanish() -> None:
    h, d = Var("h"), Var("d")
    flat = call("add", call("mul", h, Const(32)), d)
    extents: dict[str, Expr] = {"h": Size("H"), "d": Const(32), "c": Size("C")}
    assert text(simplify_index(call("floordiv", flat, Const(32)), extents)) == "h"
    assert text(simplify_index(call("mod", flat, Const(32)), extents)) == "d"
    c = Var("c")
    split = call(
        "add", call("mul", call("floordiv", c, Const(32)), Const(32)), call("mod", c, Const(32))
    )
    assert text(simplify_index(split, extents)) == "c"
