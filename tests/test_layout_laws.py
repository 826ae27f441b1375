"""Every operation on layouts does what its law says, on 10,000 random layouts and for sizes that are not known.

Each law is computed here with NumPy, from tables that list the places of all elements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from random_layouts import random_layout

from tcc.ir import layout_algebra as algebra
from tcc.ir import layout_change as change
from tcc.ir.amounts import Amount, times
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Call, Const, Expr, Size
from tcc.ir.index import evaluate_size
from tcc.ir.layout import COPIES, Layout
from tcc.ir.layout_table import Table, difference, read_back, sizes_of, table
from tcc.ir.layout_text import parse_layout

ROUNDS = 700  # of each of the 15 tests that follow


def same(expected: Table, found: Layout) -> bool:
    """Whether the layout has that table; axes that only one of them has are 0 in the other."""
    axes = tuple(dict.fromkeys((*expected.axes, *found.axes)))
    places = np.zeros((*expected.places.shape[:-1], len(axes)), np.int64)
    places[..., : len(expected.axes)] = expected.places
    return difference(Table(axes, places), table(found, axes=axes)) is None


def both(a: Layout, b: Layout) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Axes of two layouts, their places, and the spans of the second."""
    axes = tuple(dict.fromkeys((*a.axes, *b.axes)))
    spans = np.array([b.span(x) for x in axes], np.int64)
    return axes, table(a, axes=axes).places, table(b, axes=axes).places, spans


def check(rng: np.random.Generator, law: Callable[[Layout], tuple[Table, Layout]], least: float) -> None:  # fmt: skip
    """The law holds wherever the operation is not refused, which a share `least` must not be."""
    done = 0
    for _ in range(ROUNDS):
        a = random_layout(rng)
        try:
            expected, found = law(a)
        except CompileError as error:
            assert error.diagnostic.code == "T0271", (str(a), error)
            assert error.diagnostic.helps
            continue
        assert same(expected, found), (str(a), str(found))
        done += 1
    assert done >= least * ROUNDS


def test_index_expressions_give_the_places_of_the_table(rng: np.random.Generator) -> None:
    for _ in range(ROUNDS // 5):
        a = random_layout(rng, most=32)
        t = table(a)
        for at in np.ndindex(t.shape):
            where: tuple[Expr, ...] = tuple(Const(i) for i in at)
            place = [evaluate(a.index(axis, where)) for axis in t.axes]
            assert place in t.places[at].tolist()


def evaluate(e: Expr) -> int:
    if isinstance(e, Call) and e.op == "bit_xor":
        return evaluate(e.args[0]) ^ evaluate(e.args[1])
    if isinstance(e, Call):
        return evaluate_size(Call(e.op, tuple(Const(evaluate(a)) for a in e.args)), {})
    return evaluate_size(e, {})


def test_text_reads_back(rng: np.random.Generator) -> None:
    for _ in range(ROUNDS):
        a = random_layout(rng)
        again = parse_layout(str(a))
        assert again == a
        assert same(table(a), again)


def test_normal_forms_keep_all_places(rng: np.random.Generator) -> None:
    check(rng, lambda a: (table(a), algebra.normal(a)), 1)


def test_digits_are_found_in_every_table_of_digits(rng: np.random.Generator) -> None:
    for _ in range(ROUNDS):
        a = random_layout(rng)
        if not any(d.xor for d in a.digits):
            assert same(table(a), read_back(table(a))), str(a)


def test_permute(rng: np.random.Generator) -> None:
    def law(a: Layout) -> tuple[Table, Layout]:
        order = tuple(int(i) for i in rng.permutation(a.rank))
        t = table(a)
        moved = t.places.transpose(*order, a.rank, a.rank + 1)
        return Table(t.axes, moved), algebra.permute(a, order)

    check(rng, law, 1)


def test_reshape(rng: np.random.Generator) -> None:
    def law(a: Layout) -> tuple[Table, Layout]:
        t = table(a)
        n = int(np.prod(t.shape))
        k = int(rng.choice([k for k in range(1, n + 1) if n % k == 0]))
        return Table(t.axes, t.places.reshape(k, n // k, *t.places.shape[-2:])), change.reshape(a, (k, n // k))  # fmt: skip

    check(rng, law, 0.6)


def test_a_reshape_can_be_undone(rng: np.random.Generator) -> None:
    for _ in range(ROUNDS):
        a = random_layout(rng, plain=True)
        flat = change.reshape(a, (int(np.prod(a.known_shape())),))
        assert algebra.agree(change.reshape(flat, a.known_shape()), a)


def test_reduce(rng: np.random.Generator) -> None:
    def law(a: Layout) -> tuple[Table, Layout]:
        t = table(a)
        gone = tuple(d for d in range(a.rank) if rng.random() < 0.5)
        moved = np.moveaxis(t.places, gone, range(a.rank - len(gone), a.rank))
        kept = moved.shape[: a.rank - len(gone)]
        return Table(t.axes, moved.reshape(*kept, -1, len(t.axes))), change.reduce(a, gone)

    check(rng, law, 0.7)


def test_concatenate(rng: np.random.Generator) -> None:
    def law(a: Layout) -> tuple[Table, Layout]:
        b = random_layout(rng, 1, most=8)
        axes, ta, tb, spans = both(a, b)
        out = ta[..., None, :, None, :] * spans + tb[:, None, :, :]
        places = out.reshape(*ta.shape[:-2], tb.shape[0], -1, len(axes))
        return Table(axes, places), algebra.concatenate(a, b)

    check(rng, law, 1)


def test_product_and_both_divisions(rng: np.random.Generator) -> None:
    done = 0
    for _ in range(ROUNDS):
        a, b = random_layout(rng, 2, most=24), random_layout(rng, 2, most=24)
        axes, ta, tb, spans = both(a, b)
        whole = (ta[:, None, :, None, :, None, :] * spans) + tb[None, :, None, :, None, :, :]
        (m, n), (p, q) = ta.shape[:2], tb.shape[:2]
        expected = Table(axes, whole.reshape(m * p, n * q, -1, len(axes)))
        try:
            found = algebra.product(a, b)
        except CompileError as error:
            assert error.diagnostic.code == "T0271"
            continue
        done += 1
        assert same(expected, found), (str(a), str(b), str(found))
        assert algebra.agree(algebra.right_divide(found, b), a), (str(a), str(b))
        if all(found.span(x) == a.span(x) * b.span(x) for x in {*axes, *found.axes}):
            assert algebra.agree(algebra.left_divide(found, a), b), (str(a), str(b))
    assert done > 0.8 * ROUNDS


def test_a_division_multiplies_back_or_is_refused(rng: np.random.Generator) -> None:
    for _ in range(ROUNDS):
        c, b = random_layout(rng, 1, most=32), random_layout(rng, 1, plain=True, most=4)
        for divide, back in (
            (algebra.right_divide, lambda x, b: algebra.product(x, b)),
            (algebra.left_divide, lambda x, b: algebra.product(b, x)),
        ):
            try:
                found = divide(c, b)
            except CompileError as error:
                assert error.diagnostic.code == "T0271"
                continue
            assert algebra.agree(back(found, b), c)


def test_compose(rng: np.random.Generator) -> None:
    done = 0
    for _ in range(ROUNDS):
        a, b = random_layout(rng, 1), random_layout(rng, axes=("addr",), most=32)
        size = a.known_shape()[0]
        assert isinstance(size, int)
        ta, tb = table(a), table(b, axes=("addr",))
        try:
            found = algebra.compose(a, b, ("addr",))
        except CompileError as error:
            assert error.diagnostic.code == "T0271"
            continue
        done += 1
        assert tb.places.max() < size  # what leaves the outer layout is refused
        expected = ta.places[tb.places[..., 0]].reshape(*tb.shape, -1, len(ta.axes))
        assert same(Table(ta.axes, expected), found), (str(a), str(b), str(found))
    assert done > 0.2 * ROUNDS


def test_inverse(rng: np.random.Generator) -> None:
    done = 0
    for _ in range(ROUNDS):
        a = random_layout(rng)
        t = table(a)
        flat = t.places.reshape(-1, len(t.axes))
        element = np.arange(len(flat)) // t.places.shape[-2]
        pairs = np.unique(np.c_[element, flat], axis=0)
        filled = np.unique(flat, axis=0)
        once = len(filled) == len(pairs)
        full = len(filled) == np.prod([a.span(x) for x in t.axes])
        try:
            back = algebra.inverse(a)
        except CompileError as error:
            assert error.diagnostic.code == "T0271"
            assert not (once and full) or any(d.xor for d in a.digits), str(a)
            continue
        done += 1
        assert once and full
        names = tuple(f"dim{d}" for d in range(a.rank))
        coordinates = np.stack(np.indices(t.shape), -1)[..., None, :]
        assert same(Table(names, coordinates), algebra.compose(back, a, t.axes))
        if not any(d.dimension == COPIES for d in a.digits):
            assert algebra.agree(algebra.inverse(back, names, t.axes), a)
    assert done > 0.4 * ROUNDS


def test_space(rng: np.random.Generator) -> None:
    def law(a: Layout) -> tuple[Table, Layout]:
        every, by = int(rng.choice([1, 2, 3, 4, 8])), int(rng.integers(0, 3))
        t = table(a, axes=tuple(dict.fromkeys((*a.axes, "addr"))))
        t.places[..., t.axes.index("addr")] += t.places[..., t.axes.index("addr")] // every * by
        return t, change.space(a, "addr", every, by)

    check(rng, law, 0.7)


def test_swizzle(rng: np.random.Generator) -> None:
    def law(a: Layout) -> tuple[Table, Layout]:
        bits, base = int(rng.integers(1, 3)), int(rng.integers(0, 3))
        shift = bits + int(rng.integers(0, 2))
        t = table(a, axes=tuple(dict.fromkeys((*a.axes, "addr"))))
        p = t.places[..., t.axes.index("addr")]
        p ^= (p >> (base + shift) & ((1 << bits) - 1)) << base
        return t, change.swizzle(a, bits, base, shift)

    check(rng, law, 0.7)


def test_pad(rng: np.random.Generator) -> None:
    for _ in range(ROUNDS):
        a = random_layout(rng, plain=True)
        d, n = int(rng.integers(a.rank)), int(rng.integers(1, 5))
        if all(x.modulus is not None for x in a.digits if x.dimension == d):
            continue  # nothing says what lies beyond
        wide = list(a.known_shape())
        wide[d] = -(-int(str(wide[d])) // n) * n
        whole = table(a.on(tuple(wide)))
        cut = whole.places[tuple(slice(k) for k in a.known_shape())]
        assert same(Table(whole.axes, cut), algebra.pad(a, d, n))


def test_bits_are_the_last_dimension(rng: np.random.Generator) -> None:
    for _ in range(ROUNDS // 5):
        a = random_layout(rng)
        found = algebra.with_bits(a, 4)
        axes = tuple(dict.fromkeys((*a.axes, "addr")))
        scale = np.array([4 if x == "addr" else 1 for x in axes])
        addr = np.array([x == "addr" for x in axes])
        places = table(a, axes=axes).places[..., None, :, :] * scale + np.arange(4)[:, None, None] * addr  # fmt: skip
        assert same(Table(axes, places), found)
        assert found.bits and ("b" in str(found))


SYMBOLIC = [
    "(M, N) [0/6, 0%6, 1/16, 1%16]",
    "(M, 64) [0, 1/8, 1%8^0%8]",
    "(M * 4, N * 2) lane[0%4, 1%2] reg[0/4, 1/2]",
    "(M, N, 4) [1, 0, b]",
    "(M * 8, 16) warp[0/8] lane[0%8, 1/4] reg[1%4]",
    "(M, N) [0*(N + 3), 1] lane[_%4]",
]


@pytest.mark.parametrize("text", SYMBOLIC)
def test_what_is_derived_for_all_sizes_holds_for_each(text: str) -> None:
    a = parse_layout(text)
    tile = parse_layout(f"({', '.join(['2'] * a.rank)}) lane[{', '.join(map(str, range(a.rank)))}]")
    order = tuple(reversed(range(a.rank)))
    tried: dict[str, Callable[[Layout], Layout]] = {
        "normal": algebra.normal,
        "permute": lambda x: algebra.permute(x, order),
        "product": lambda x: algebra.product(x, tile),
        "concatenate": lambda x: algebra.concatenate(tile, x),
        "divide": lambda x: algebra.right_divide(algebra.product(x, tile), tile),
        "reduce": lambda x: change.reduce(x, (0,)),
        "flatten": lambda x: change.reshape(x, (_size(x),)),
        "inverse": algebra.inverse,
        "swizzle": lambda x: change.swizzle(x, 2, 0, 3),
        "space": lambda x: change.space(x, "addr", 4, 1),
    }
    held = 0
    for operation in tried.values():
        try:
            general = operation(a)
        except CompileError as error:
            assert error.diagnostic.code == "T0271"
            continue
        assert parse_layout(str(general)) == general
        for m, n in ((1, 1), (3, 2), (5, 16), (8, 7)):
            sizes = {"M": m, "N": n}
            bound = operation(a.bind(sizes))
            assert algebra.agree(general.bind(sizes), bound), (operation, sizes)
        held += 1
    assert held >= 5


def _size(a: Layout) -> Amount:
    return functools.reduce(times, a.known_shape(), 1)


def test_a_refusal_names_a_coordinate_and_sizes() -> None:
    with pytest.raises(CompileError, match=r"the element at \(0, 5\) belongs at addr 3, but"):
        change.reshape(parse_layout("(4, 5) [1/3, 0, 1%3]"), (2, 10))
    with pytest.raises(CompileError, match=r"the elements at .* both lie at addr 0"):
        algebra.inverse(parse_layout("(2, 2) [0*0, 1]"))
    with pytest.raises(CompileError, match="no element lies at addr 3"):
        algebra.inverse(parse_layout("(2, 3) [0*4, 1]"))
    with pytest.raises(CompileError, match=r"for N = \d"):
        change.reshape(parse_layout("(N, 6) [1/4, 0, 1%4]"), (times(Size("N"), 6),))
    with pytest.raises(CompileError, match="outside the outer layout"):
        algebra.compose(parse_layout("(4) [0]"), parse_layout("(2, 3) [0, 1]"))
    assert sizes_of(parse_layout("(M, N * K) [0, 1]")) == ("K", "M", "N")
