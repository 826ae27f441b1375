"""Products of single bits by counting, and of powers of two by shifting: expressions of the language."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tcc
from tcc import dtypes
from tcc.ir.diagnostics import CompileError

COUNTS = """
    in  X: {t}[M, N]
    out C: {t}[M, N], S: i64[M], D: i32
    C[m, n] = popcount(X[m, n])
    S[m]    = i64(popcount(X[m, n] ^ X[m, n + 1])) where n < N - 1
    D       = i32(popcount(X[m, n]))
"""


@pytest.mark.parametrize("t", ["i32", "i64", "u8", "i16", "u32", "u64"])
def test_popcount_counts_the_bits_of_its_type(t: str) -> None:
    rng, program = np.random.default_rng(0), COUNTS.format(t=t)
    kind = np.dtype({"i": "int", "u": "uint"}[t[0]] + t[1:])
    info = np.iinfo(kind)
    x = rng.integers(info.min, info.max, (3, 45), kind, endpoint=True)
    x[0, :3] = info.min, info.max, 0
    bits = np.unpackbits(x.view(np.uint8).reshape(3, 45, -1), axis=-1).sum(-1)
    both = np.unpackbits((x[:, :-1] ^ x[:, 1:]).view(np.uint8).reshape(3, 44, -1), axis=-1)
    for target in ("numpy", "cpu"):
        c, s, d = tcc.compile(program, target=target)(x)
        np.testing.assert_array_equal(c, bits)
        np.testing.assert_array_equal(s, both.sum((1, 2)))
        assert d == bits.sum()


BINARY = """
    ranks K = 32 * W
    in  A: i32[M, W], B: i32[N, W]
    out Y: i32[M, N]
    Y[m, n] = 32 - 2 * popcount(A[m, w] ^ B[n, w])
"""


def test_xor_and_popcount_are_a_product_of_signs() -> None:
    rng = np.random.default_rng(1)
    for m, n, k in ((1, 40, 96), (5, 17, 32)):
        a, b = rng.integers(0, 2, (m, k)), rng.integers(0, 2, (n, k))
        words: list[Any] = [dtypes.pack(x, "u1").view(np.int32).reshape(len(x), -1) for x in (a, b)]
        want = (2 * a - 1) @ (2 * b - 1).T
        for target in ("numpy", "cpu"):
            np.testing.assert_array_equal(tcc.compile(BINARY, target=target)(*words), want)


def test_powers_of_two_shift() -> None:
    """X · ±2^e by integers, and the same with weights whose type is a sign and a power of two."""
    rng = np.random.default_rng(2)
    x = rng.integers(-128, 128, (4, 48)).astype(np.int8)
    codes = dtypes.encode(rng.standard_normal((20, 48)) / 4, "pow2_4")
    value = dtypes.decode(codes, "pow2_4")
    exponent = np.where(value == 0, 0, 7 + np.log2(np.abs(value) + (value == 0))).astype(np.uint8)
    sign = np.sign(value).astype(np.int8)
    shifts = """
        in  X: i8[M, K], E: u8[N, K], S: i8[N, K]
        out Y: i32[M, N]
        Y[m, n] = i32(X[m, k]) * i32(S[n, k]) * 2 ** i32(E[n, k])"""
    types = """
        in  X: i8[M, K], W: pow2_4[N, K] constant
        out Y: f32[M, N]
        Y[m, n] = f32(X[m, k]) * W[n, k]"""
    want = x.astype(np.int64) @ (value * 128).astype(np.int64).T
    for target in ("numpy", "cpu"):
        y = tcc.compile(shifts, target=target)(x, exponent, sign)
        np.testing.assert_array_equal(y, want)
        y = tcc.compile(types, target=target)(x, codes)
        np.testing.assert_array_equal(np.asarray(y) * 128, want)


def test_popcount_refuses_floats() -> None:
    with pytest.raises(CompileError, match="`popcount` needs integers") as caught:
        tcc.compile("in X: f32[N]\nout Z: f32[N]\nZ[n] = popcount(X[n])")
    assert caught.value.diagnostic.code == "T0116"
