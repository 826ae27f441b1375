"""Layouts: every coordinate has an address of its own inside the storage; what cannot be is
refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Const, Expr, Size
from tcc.ir.index import evaluate_size
from tcc.ir.layout import Digit, Layout, row_major


def addresses(layout: Layout, shape: tuple[int, ...]) -> np.ndarray:
    """The address of every coordinate."""
    sizes = tuple(Const(n) for n in shape)
    found = np.empty(shape, np.int64)
    for at in itertools.product(*map(range, shape)):
        found[at] = evaluate_size(layout.address(tuple(Const(i) for i in at), sizes), {})
    return found


def elements(layout: Layout, shape: tuple[int, ...]) -> int:
    return evaluate_size(layout.elements(tuple(Const(n) for n in shape)), {})


def enumerated(layout: Layout, shape: tuple[int, ...]) -> np.ndarray:
    """The same addresses from NumPy: pad, split every dimension into its digits, transpose, number
    in order."""
    radices: list[int] = []  # extents of the split array's axes, dimension by dimension
    axis_of: dict[tuple[int, int], int] = {}  # (dimension, divisor) -> axis
    padded = []
    for d, n in enumerate(shape):
        digits = sorted((x for x in layout.digits if x.dimension == d), key=lambda x: -x.divisor)
        outer = -(-n // digits[0].divisor)
        extents = [outer, *(x.modulus or 0 for x in digits[1:])]
        for x, extent in zip(digits, extents, strict=True):
            axis_of[d, x.divisor] = len(radices)
            radices.append(extent)
        padded.append(int(np.prod(extents)))
    order = [axis_of[x.dimension, x.divisor] for x in layout.digits]
    numbers = np.arange(int(np.prod(radices))).reshape([radices[a] for a in order])
    back = numbers.transpose(np.argsort(order)).reshape(padded)
    return back[tuple(slice(n) for n in shape)]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...]]:
    """A layout of one to three dimensions, each split into one to three digits, in any order."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    digits = []
    for d in range(len(shape)):
        radices = draw(st.lists(st.integers(1, 4), max_size=2))
        divisor = 1
        for r in radices:
            if r == 1:
                continue  # `d/n%1` would be a second digit of the same divisor
            digits.append(Digit(d, divisor, r))
            divisor *= r
        digits.append(Digit(d, divisor))
    return Layout(tuple(draw(st.permutations(digits)))), shape


@given(layouts())
def test_address_is_the_place_in_the_padded_split_and_transposed_array(
    case: tuple[Layout, tuple[int, ...]],
) -> None:
    layout, shape = case
    np.testing.assert_array_equal(addresses(layout, shape), enumerated(layout, shape))


@given(layouts())
def test_coordinates_have_different_addresses_inside_the_storage(
    case: tuple[Layout, tuple[int, ...]],
) -> None:
    layout, shape = case
    found = addresses(layout, shape).ravel()
    assert len(set(found.tolist())) == found.size
    assert found.min() >= 0
    assert found.max() < elements(layout, shape)


@given(layouts())
def test_storage_is_the_shape_padded_to_multiples(case: tuple[Layout, tuple[int, ...]]) -> None:
    layout, shape = case
    padding = [layout.padding(d) for d in range(len(shape))]
    padded = [-(-n // p) * p for n, p in zip(shape, padding, strict=True)]
    assert elements(layout, shape) == int(np.prod(padded))


@given(layouts())
def test_a_symbolic_shape_gives_the_same_addresses(case: tuple[Layout, tuple[int, ...]]) -> None:
    layout, shape = case
    ranks: tuple[Expr, ...] = tuple(Size(f"N{d}") for d in range(len(shape)))
    sizes = {f"N{d}": n for d, n in enumerate(shape)}
    at = tuple(n - 1 for n in shape)
    address = layout.address(tuple(Const(i) for i in at), ranks)
    assert evaluate_size(address, sizes) == addresses(layout, shape)[at]
    assert evaluate_size(layout.elements(ranks), sizes) == elements(layout, shape)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (3, 1, 4), (2, 2, 2, 3)])
def test_row_major_is_the_order_of_numpy(shape: tuple[int, ...]) -> None:
    layout = row_major(len(shape))
    np.testing.assert_array_equal(
        addresses(layout, shape), np.arange(int(np.prod(shape))).reshape(shape)
    )
    assert elements(layout, shape) == int(np.prod(shape))


def test_a_panel_layout_stores_sixteen_columns_together() -> None:
    panels = Layout((Digit(1, 16), Digit(0), Digit(1, 1, 16)))
    assert str(panels) == "[1/16, 0, 1%16]"
    assert panels.padding(0) == 1
    assert panels.padding(1) == 16
    assert elements(panels, (3, 20)) == 2 * 3 * 16  # two panels, the second one padded
    found = addresses(panels, (3, 20))
    assert found[1, 0] == 16  # the next row of the first panel
    assert found[0, 16] == 3 * 16  # the first row of the next


def test_an_empty_dimension_needs_no_storage() -> None:
    panels = Layout((Digit(1, 16), Digit(0), Digit(1, 1, 16)))
    assert elements(panels, (3, 0)) == 0
    assert elements(row_major(2), (0, 5)) == 0


@pytest.mark.parametrize(
    "digits, problem",
    [
        ((Digit(0, 4),), "dimension 0 is not covered exactly once"),
        ((Digit(0), Digit(0)), "dimension 0 is not covered exactly once"),
        ((Digit(0, 8), Digit(0, 1, 4)), "dimension 0 is not covered exactly once"),
        ((Digit(0, 2), Digit(0, 1, 4)), "dimension 0 is not covered exactly once"),
        ((Digit(0, 1, 4),), "dimension 0 is cut off at 4"),
        ((Digit(0), Digit(1, 2, 8), Digit(1, 1, 2)), "dimension 1 is cut off at 16"),
    ],
)
def test_a_layout_that_covers_a_dimension_never_or_twice_is_refused(
    digits: tuple[Digit, ...], problem: str
) -> None:
    with pytest.raises(CompileError, match=problem) as error:
        Layout(digits)
    assert error.value.diagnostic.code == "T0201"
    assert error.value.diagnostic.helps
