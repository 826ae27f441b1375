"""Scaled types in NumPy: what their parts mean, the quantiser, and parts that do not fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tcc import dtypes
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype_text import dtype


def test_a_scaled_tensor_means_code_minus_zero_times_scale_plus_offset(
    rng: np.random.Generator,
) -> None:
    codes = rng.integers(0, 16, (6, 8)).astype(np.uint8)
    scale = rng.standard_normal((3, 8 // 4)).astype(np.float16)
    zero = rng.integers(0, 16, (3, 2)).astype(np.uint8)
    w = dtypes.Encoded(dtype("u4[group n 2, group k 4, scale f16, zero u4]"), ("n", "k"), codes,
                       {"scale": scale, "zero": zero})  # fmt: skip
    for n in range(6):
        for k in range(8):
            want = (float(codes[n, k]) - float(zero[n // 2, k // 4])) * float(scale[n // 2, k // 4])
            assert w.decode()[n, k] == want


def test_two_levels_of_scales_multiply(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 64))
    for name, inner_shape in (("f4e2m1[group k 16, scale f8e4m3fn[scale f32]]", (1, 1)),
                              ("u4[group k 8, scale u8.nearest[group k, scale f16], zero u4]", (4, 1)),
                              ("i4[group k 8, scale f8e5m2[group k 32, scale f32]]", (4, 2))):  # fmt: skip
        w = dtypes.encode(x, name, "n k")
        scale = w.parts["scale"]
        assert scale.parts["scale"].shape == inner_shape
        assert np.abs(w.decode() - x).max() < 0.45, name
        again = dtypes.Encoded(w.dtype, w.axes, w.codes, w.parts)
        np.testing.assert_array_equal(again.decode(), w.decode())


@pytest.mark.parametrize("name, error", [
    ("i8[group k 32, scale f16]", 0.02), ("u4[group k 16, scale f16, zero u4]", 0.25), ("nf4[group k 16, scale f32]", 0.4),
    ("u4[group k 16, scale f16, offset f16]", 0.25), ("f8e4m3fn[scale f32]", 0.12), ("posit8_0[group n, scale f32]", 0.6),
    ("f6e2m3[group k 32, scale e8m0]", 0.3), ("u4[group k 32, scale f16, zero 8]", 0.4),
])  # fmt: skip
def test_the_quantiser_comes_near(name: str, error: float, rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 32))
    found = dtypes.encode(x, name, "n k").decode()
    assert np.abs(found - x).max() < error


def test_mx_scales_are_powers_of_two_of_the_largest() -> None:
    w = dtypes.encode([[0.1, 6.0, -24.0, 1.0], [0.0, 0.0, 0.0, 0.0]], "f4e2m1[group k 4, scale e8m0]", "n k")  # fmt: skip
    assert dtypes.decode(w.parts["scale"], "e8m0").tolist() == [[4.0], [1.0]]
    assert w.decode()[0].tolist() == [0.0, 6.0, -24.0, 0.0]


def test_tables_are_looked_up_by_vectors_and_added_by_levels(rng: np.random.Generator) -> None:
    table = rng.standard_normal((2, 8, 4))
    t = dtype("u3[vector k 4, table f32, residual 2]")
    codes = rng.integers(0, 8, (2, 5, 3)).astype(np.uint8)
    stored = table.astype(np.float32)
    w = dtypes.Encoded(t, ("n", "k"), codes, {"table": stored})
    want = np.zeros((5, 12))
    for r in range(2):
        for n in range(5):
            for k in range(12):
                want[n, k] += float(stored[r, codes[r, n, k // 4], k % 4])
    np.testing.assert_array_equal(w.decode(), want)
    made = dtypes.encode(w.decode(), t, "n k", table=stored)
    assert np.abs(made.decode() - want).mean() <= np.abs(want).mean()
    one = dtypes.encode(want, "u3[vector n 5, table f32]", "n k", table=want[:, :8].T)
    np.testing.assert_array_equal(one.decode()[:, :8], want[:, :8].astype(np.float32))
    scalar = dtypes.encode([[0.9, -2.0]], "u2[table bf16]", "n k", table=[0.0, 1.0, -2.0, 4.0])
    assert scalar.codes.tolist() == [[1, 2]] and scalar.decode().tolist() == [[1.0, -2.0]]


def test_parts_of_wrong_shapes_are_refused() -> None:
    t = dtype("i4[group k 4, scale f16]")
    codes = np.zeros((2, 8), np.int8)
    cases: list[tuple[Callable[[], object], str, str]] = [
        (lambda: dtypes.Encoded(t, ("n", "k"), codes), "T0148", "needs its `scale`"),
        (lambda: dtypes.Encoded(t, ("n", "k"), codes, {"scale": np.ones((2, 3), "f2")}), "T0148", "not \\[2, 2\\]"),
        (lambda: dtypes.Encoded(t, ("n", "k"), codes, {"scale": np.ones((2, 2), "f2"), "zero": 1}), "T0148", "no `zero`"),
        (lambda: dtypes.Encoded(t, ("n", "m"), codes), "T0147", "names the rank `k`"),
        (lambda: dtypes.encode(np.ones((2, 6)), t, "n k"), "T0147", "do not divide the 6"),
        (lambda: dtypes.encode(np.ones((2, 6)), t, "k"), "T0147", "need as many ranks"),
        (lambda: dtypes.encode(np.ones(4), "u2[table f16]", "k"), "T0148", "needs its table"),
        (lambda: dtypes.decode(np.uint8([3, 64]), "f6e3m2"), "T0148", "element \\[1\\] is 64"),
        (lambda: dtypes.decode(np.int8([-9]), "i4"), "T0148", "values from -8 to 7"),
        (lambda: dtypes.decode(np.ones(2), "f8e5m2"), "T0148", "no codes of f8e5m2"),
        (lambda: dtypes.decode(np.ones(2)), "T0148", "do not say what they mean"),
    ]  # fmt: skip
    for make, code, message in cases:
        with pytest.raises(CompileError, match=message) as caught:
            make()
        assert caught.value.diagnostic.code == code and caught.value.diagnostic.helps


def test_codes_pack_without_gaps() -> None:
    assert dtypes.pack(np.uint8([5, 2, 7, 1]), "u3").tolist() == [0b11010101, 0b00000011]
    assert dtypes.pack(np.int8([-1, 1]), "i4").tolist() == [0x1F]
    back = dtypes.unpack(np.uint8([0x1F]), "i4", (2,))
    assert back.tolist() == [-1, 1] and back.dtype == np.int8
