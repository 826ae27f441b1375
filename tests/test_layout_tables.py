"""Layouts that others have published come out of the algebra: fragments, packings, and scales, compared with tables
that are computed here from their descriptions; and other layout algebras agree where they are defined."""

from __future__ import annotations

import numpy as np
import pytest
from random_layouts import random_layout

from tcc.ir import layout_algebra as algebra
from tcc.ir import layout_change as change
from tcc.ir.diagnostics import CompileError
from tcc.ir.layout import Layout
from tcc.ir.layout_convert import convert
from tcc.ir.layout_table import table
from tcc.ir.layout_text import parse_layout

A_FRAGMENT = "(16, 16) lane[0%8, 1/2%4] reg[1/8, 0/8, 1%2]"
B_FRAGMENT = "(16, 8) lane[1, 0/2%4] reg[0/8, 0%2]"
C_FRAGMENT = "(16, 8) lane[0%8, 1/2] reg[0/8, 1%2]"


def holders(text: str) -> dict[tuple[int, int], tuple[int, ...]]:
    """(lane, register) -> the coordinate there."""
    t = table(parse_layout(text), axes=("lane", "reg"))
    return {
        (int(p[0]), int(p[1])): tuple(int(i) for i in at)
        for at in np.ndindex(t.shape)
        for p in t.places[at]
    }


def test_fragments_of_mma_m16n8k16_are_those_of_the_ptx_manual() -> None:
    a, b, c = (holders(x) for x in (A_FRAGMENT, B_FRAGMENT, C_FRAGMENT))
    assert len(a) == 256 and len(b) == len(c) == 128
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            assert a[lane, i] == (row, thread * 2 + (i & 1) + (8 if i >= 4 else 0))
        for i in range(4):
            assert b[lane, i] == (thread * 2 + (i & 1) + (8 if i >= 2 else 0), group)
            assert c[lane, i] == (group + (8 if i >= 2 else 0), thread * 2 + (i & 1))


def test_the_result_of_one_product_is_the_operand_of_the_next_without_moves() -> None:
    """Two neighbouring C fragments are an A fragment: what attention kernels rely on."""
    two = algebra.product(parse_layout("(1, 2) reg[1]"), parse_layout(C_FRAGMENT))
    assert convert(two, parse_layout(A_FRAGMENT)).kind == "free"


def test_weights_of_marlin_are_a_layout_of_a_16_x_64_tile() -> None:
    """Thread i of a warp reads eight 4-bit weights per block of 16 columns at once: those that it feeds to two B
    fragments, in the nibble order 0 2 4 6 1 3 5 7 in which pairs of 16-bit values unpack."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    expected = np.empty((16, 64), np.int64)
    for lane in range(32):
        for block in range(4):
            for nibble, element in enumerate(order):
                half, i = divmod(element, 4)
                row = 2 * (lane % 4) + i % 2 + 8 * (i // 2)
                column = 16 * block + 8 * half + lane // 4
                expected[row, column] = (lane * 4 + block) * 8 + nibble
    found = parse_layout("(16, 64) [1%8, 0/2%4, 1/16, 0%2, 1/8%2, 0/8]")
    np.testing.assert_array_equal(table(found).places[..., 0, 0], expected)
    # made from smaller ones, as its author might have: nibbles in a word, words of a thread, threads of a warp
    word = parse_layout("(2, 1, 2, 1, 2) [2, 4, 0]")  # (k high, k thread, k low, n low, n high)
    made = algebra.product(parse_layout("(1, 4, 1, 8, 1) [3, 1]"), algebra.product(
        parse_layout("(1, 1, 1, 1, 4) [4]"), word))  # fmt: skip
    made = algebra.permute(made, (0, 1, 2, 4, 3))  # k, then n: block and half, column of eight
    assert algebra.agree(change.reshape(made, (16, 64)), found)


def test_blocks_of_gguf_q4_0_are_a_layout_of_bits(rng: np.random.Generator) -> None:
    """32 weights: a 16-bit scale, then 16 bytes of which byte j holds weight j below and weight j + 16 above."""
    weights = rng.integers(0, 16, 96)
    file = np.zeros(3 * 18, np.uint8)
    for block in range(3):
        for j in range(16):
            low, high = weights[32 * block + j], weights[32 * block + j + 16]
            file[18 * block + 2 + j] = low | high << 4
    bits = np.unpackbits(file, bitorder="little")
    found = parse_layout("(96, 4) [0/32*144, 0%16*8, 0/16%2*4, b]+16")
    assert found.bits
    read = bits[table(found).places[..., 0, 0]]
    np.testing.assert_array_equal(read, weights[:, None] >> np.arange(4) & 1)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7])
def test_packed_elements_and_bit_planes_are_layouts_of_bits(
    width: int, rng: np.random.Generator
) -> None:
    values = rng.integers(0, 1 << width, (4, 16))
    packed = algebra.with_bits(parse_layout("(4, 16) [0, 1]"), width)
    stream = np.zeros(64 * width, np.uint8)
    for n, v in enumerate(values.ravel()):
        for bit in range(width):
            stream[n * width + bit] = v >> bit & 1  # byte (n·width)//8: values may straddle
    np.testing.assert_array_equal(
        stream[table(packed).places[..., 0, 0]], values[..., None] >> np.arange(width) & 1
    )
    planes = parse_layout(f"(4, 16, {width}) [b, 0, 1]")
    assert algebra.agree(algebra.permute(planes, (2, 0, 1)),
                         parse_layout(f"({width}, 4, 16) [0, 1, 2]"))  # fmt: skip
    # 16-bit words of the stream, read as elements: a reshape
    words = change.reshape(packed, (64 * width // 16, 16))
    assert algebra.agree(words, algebra.with_bits(parse_layout(f"({4 * width}) [0]"), 16))


@pytest.mark.parametrize("rows, columns", [(128, 4), (256, 12)])
def test_scales_of_nvfp4_lie_in_tiles_of_128_x_4(rows: int, columns: int) -> None:
    expected = np.empty((rows, columns), np.int64)
    for r in range(rows):
        for c in range(columns):
            tile = (r // 128) * (columns // 4) + c // 4
            expected[r, c] = tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4
    found = parse_layout("(M, K) [0/128, 1/4, 0%32, 0/32%4, 1%4]").bind({"M": rows, "K": columns})
    np.testing.assert_array_equal(table(found).places[..., 0, 0], expected)


# ---- other algebras


def triton_layout(a: Layout) -> object:
    """The same map in Triton's linear layouts: from coordinates to places."""
    linear = pytest.importorskip("triton._C.libtriton").linear_layout.LinearLayout
    t = table(a)
    bases = []
    for d, n in enumerate(t.shape):
        at = [tuple((1 << k) if e == d else 0 for e in range(a.rank)) for k in range(n.bit_length() - 1)]  # fmt: skip
        bases.append((f"dim{d}", [t.places[x][0].tolist() for x in at]))
    sizes = [a.span(x) for x in t.axes]
    return linear.from_bases(bases, list(t.axes), sizes, False)


def power_of_two(rng: np.random.Generator, rank: int) -> Layout:
    """A random layout of powers of two, maybe swizzled, without copies and padding."""
    while True:
        a = random_layout(rng, rank)
        sizes = [*a.known_shape(), *(a.span(x) for x in a.axes)]
        t = table(a)
        whole = all(isinstance(n, int) and n & (n - 1) == 0 for n in sizes)
        if whole and t.places.shape[-2] == 1 and a.axes and not t.places[(0,) * rank].any():
            try:
                algebra.inverse(a)
            except CompileError:
                continue
            return a


def test_linear_layouts_of_triton_agree(rng: np.random.Generator) -> None:
    for _ in range(60):
        a, b = power_of_two(rng, 2), power_of_two(rng, 2)
        t, la, lb = table(a), triton_layout(a), triton_layout(b)
        for at in np.ndindex(t.shape):
            found = la.apply({f"dim{d}": int(i) for d, i in enumerate(at)})  # type: ignore[attr-defined]
            assert [found[x] for x in t.axes] == t.places[at][0].tolist()
        assert la.invert() == triton_layout_of_inverse(a)  # type: ignore[attr-defined]
        if set(a.axes) == set(b.axes):
            whole = lb * la  # type: ignore[operator]
            mine = table(algebra.product(a, b), axes=t.axes)
            for at in np.ndindex(mine.shape):
                found = whole.apply({f"dim{d}": int(i) for d, i in enumerate(at)})
                assert [found[x] for x in t.axes] == mine.places[at][0].tolist()


def triton_layout_of_inverse(a: Layout) -> object:
    linear = pytest.importorskip("triton._C.libtriton").linear_layout.LinearLayout
    t = table(algebra.inverse(a))
    bases = []
    for d, n in enumerate(t.shape):
        at = [tuple((1 << k) if e == d else 0 for e in range(len(t.shape))) for k in range(n.bit_length() - 1)]  # fmt: skip
        values = [dict(zip(t.axes, t.places[x][0].tolist())) for x in at]
        bases.append((a.axes[d], [[v.get(f"dim{e}", 0) for e in range(a.rank)] for v in values]))
    return linear.from_bases(bases, [f"dim{d}" for d in range(a.rank)], list(a.known_shape()), False)  # fmt: skip


def test_layouts_of_cute_agree_where_they_divide(rng: np.random.Generator) -> None:
    """Composition and products of `pycute` inside its conditions: each inner digit divides what it meets."""
    pycute = pytest.importorskip("pycute", reason="pip install --no-deps nvidia-cutlass")
    tried = 0
    for _ in range(400):
        a = random_layout(rng, 1, ("addr",), plain=True)
        b = random_layout(rng, 1, ("addr",), plain=True)
        ca, cb = (cute_layout(pycute, x) for x in (a, b))
        whole = pycute.logical_product(ca, cb)
        mine = table(algebra.product(b, a)).places.ravel()
        assert [whole(i) for i in range(len(mine))] == mine.tolist()
        try:
            found = algebra.compose(a, b)
        except CompileError:
            continue
        tried += 1
        values = table(found, axes=("addr",)).places.ravel()
        assert [ca(cb(i)) for i in range(len(values))] == values.tolist()
    assert tried > 30


def cute_layout(pycute: object, a: Layout) -> object:
    digits = sorted(zip(a.digits, a.extents(), a.strides()), key=lambda x: str(x[0].divisor).zfill(6))  # fmt: skip
    return pycute.Layout(tuple(e for _, e, _ in digits), tuple(s for _, _, s in digits))  # type: ignore[attr-defined]
