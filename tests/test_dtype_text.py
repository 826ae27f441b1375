"""The spelling of element types: what is printed is read back, what is wrong is refused where it stands."""

from __future__ import annotations

import numpy as np
import pytest
from dtype_samples import CODED

from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DTYPES
from tcc.ir.dtype_text import dtype
from tcc.ir.interpret import interpret


@pytest.mark.parametrize("name", [
    *DTYPES, *CODED, "u3", "i5", "i1", "u63", "tf32", "f8e4m3fn.sat", "u4.nearest.sat", "f32.stochastic7", "i8.sat",
    "i4[group k 128, scale f16, zero u4]", "u4[group k 32, scale f16, zero 8]", "nf4[group n, scale f32]",
    "f4e2m1[group k 16, scale f8e4m3fn[scale f32]]", "u8[vector k 8, table f16, residual 2]",
    "u4[group k 32, scale u6[group k 256, scale f16], offset f16]", "codebook[-1, 0, 0.1]",
])  # fmt: skip
def test_what_a_type_prints_it_reads_back(name: str) -> None:
    t = dtype(name)
    assert dtype(str(t)) == t and dtype(str(t)).name == t.name
    assert dtype(f" {str(t).replace('[', ' [ ').replace(',', ' ,')} ") == t


def test_native_types_keep_their_identity() -> None:
    assert dtype("f32") is DTYPES["f32"]
    assert dtype("f16e5m10") is DTYPES["f16"]
    assert dtype("i16") is DTYPES["i16"]
    assert dtype("f16e8m7") == dtype("bf16")
    assert all(t.native and t.compute is t for t in DTYPES.values())


def test_values_fit_the_type_that_computes() -> None:
    computes = {
        "i4": "i32", "u31": "i32", "u32": "u32", "i33": "i64", "bf16": "f32", "tf32": "f32", "posit16_1": "f32",
        "f16e10m5": "f64", "f12e9m2": "f64", "e8m0": "f32", "e10m0": "f64", "i8.sat": "i8", "nf4": "f32",
        "i4[scale f64]": "f64", "codebook[0.1, 1]": "f64", "f16.zero": "f16",
    }  # fmt: skip
    assert {name: dtype(name).compute.name for name in computes} == computes


@pytest.mark.parametrize("name, code, message", [
    ("float", "T0121", "unknown dtype `float`"),
    ("i0", "T0146", "an integer has 1 to 64 bits, not 0"),
    ("u65", "T0146", "an integer has 1 to 64 bits, not 65"),
    ("f8e5m3", "T0146", "are 9 bits, not 8"),
    ("f8e0m7", "T0146", "an exponent has 1 to 10 bits"),
    ("f16e11m4", "T0146", "an exponent has 1 to 10 bits"),
    ("f17e8m8", "T0146", "3 to 16 bits, not 17"),
    ("f2e1m0", "T0146", "3 to 16 bits, not 2"),
    ("f8e7m0", "T0146", "inf and NaN need a mantissa"),
    ("f8e4m3b2000", "T0146", "with a bias of 2000"),
    ("posit40_2", "T0146", "3 to 16 bits, not 40"),
    ("posit16_7", "T0146", "more than f64 holds"),
    ("e1m0", "T0146", "2 to 10 bits"),
    ("pow2_12", "T0146", "2 to 11 bits"),
    ("u4.up", "T0146", "no rounding `up`"),
    ("u4.zero.nearest", "T0146", "a rounding already"),
    ("bool.sat", "T0146", "no rounding `sat`"),
    ("codebook[1]", "T0146", "1 value codes nothing"),
    ("codebook[a, b]", "T0147", "`a` is no number"),
    ("i4[group k 0, scale f16]", "T0147", "`0` is no integer from 1"),
    ("i4[group k 4]", "T0147", "neither a scale"),
    ("i4[scael f16]", "T0147", "unknown clause `scael`"),
    ("i4[scale f16, scale f32]", "T0147", "given twice"),
    ("i4[group k 2, group k 4, scale f16]", "T0147", "grouped twice"),
    ("i4[vector k 8, scale f16]", "T0147", "need a `table`"),
    ("i4[table f16]", "T0147", "indexed by u1 to u16"),
    ("i4[scale f16", "T0147", "expected `]`, not `the end`"),
    ("i4[group k 32, scale f8e4m3fn[group k 48, scale f32]]", "T0147", "do not fill groups of 48"),
    ("i4[scale f16][scale f16]", "T0147", "unexpected `[`"),
])  # fmt: skip
def test_a_wrong_type_is_refused(name: str, code: str, message: str) -> None:
    with pytest.raises(CompileError, match=message.replace("[", r"\[")) as caught:
        dtype(name)
    assert caught.value.diagnostic.code == code
    assert caught.value.diagnostic.helps


def test_programs_print_and_read_their_types() -> None:
    text = """
        ranks K=8
        in  A: f8e4m3fn[M, K], W: i4[group k 4, scale f8e5m2[scale f32], zero u4][N, K], T: codebook[-1, 0, 1][N]
        out C: bf16[M, N], D: u4.nearest.sat[M], E: f4e2m1[group n 2, scale e8m0][M, N]
        C[m, n] = A[m, k] * W[n, k] + T[n]
        D[m] = u4.nearest.sat(A[m, k])
        E[m, n] = C[m, n] + f8e5m2(A[m, 0]) * codebook[0.5, 2](A[m, 1])"""
    c = parse_cascade(text)
    assert str(parse_cascade(str(c))) == str(c)
    assert "W: i4[group k 4, scale f8e5m2[scale f32], zero u4][N, K]" in str(c)
    assert [t.dtype.name for t in c.tensors.values()] == [t.dtype.name for t in (*c.inputs, *c.outputs)]  # fmt: skip


def test_words_of_types_stay_names_of_variables() -> None:
    c = parse_cascade("""
        ranks GROUP=3, SCALE=2
        in  X: f32[GROUP, SCALE], u3: f32[GROUP]
        out Z: f32[SCALE]
        Z[scale] = X[group, scale] * u3[group]""")
    got = interpret(c, {"X": np.ones((3, 2), "f"), "u3": np.ones(3, "f")})["Z"]
    assert got.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("text, code, place, message", [
    ("in A: i65[N]\nout Z: f32\nZ = A[n]", "T0146", (1, 7, 10), "1 to 64 bits, not 65"),
    ("in A: f8e9m9[N]\nout Z: f32\nZ = A[n]", "T0146", (1, 7, 13), "are 19 bits, not 8"),
    ("in A: i4[group m 2, scale f16][N]\nout Z: f32\nZ = A[n]", "T0147", (1, 4, 34), "names the rank `m`"),
    ("in A: i4[group n 2, scael f16][N]\nout Z: f32\nZ = A[n]", "T0147", (1, 7, 31), "unknown clause `scael`"),
    ("ranks N=5\nin A: i4[group n 2, scale f16][N]\nout Z: f32\nZ = A[n]", "T0147", (2, 4, 34), "do not divide the 5"),
    ("in A: u0[N]\nout Z: f32\nZ = A[n]", "T0146", (1, 7, 9), "1 to 64 bits, not 0"),
    ("in A: f16e11m4[N]\nout Z: f32\nZ = A[n]", "T0146", (1, 7, 15), "1 to 10 bits, not 11"),
    ("in A: f32[N]\nout Z: f32[N]\nZ[n] = u70(A[n])", "T0146", (3, 8, 17), "1 to 64 bits, not 70"),
    ("ranks N=6\nin A: u4[vector n 4, table f16][N]\nout Z: f32\nZ = A[n]", "T0147", (2, 4, 35), "do not divide the 6"),
    ("ranks N=8\nin A: f32[N]\nout Z: i4[group n 3, scale f16][N]\nZ[n] = A[n]", "T0147", (3, 5, 35), "do not divide the 8"),
    ("in A: f32[N]\nout Z: f32[N]\nZ[n] = i4[group n 2, scale f16](A[n])", "T0147", (3, 8, 38), "an expression can not be"),
    ("in A: f32[N]\nout Z: f32[N]\nZ[n] = bf16.stochastic3(A[n])", "T0147", (3, 8, 30), "an expression can not be"),
    ("in A: f64[N]\nout Z: bf16[N]\nZ[n] = A[n]", "T0116", (3, 1, 12), "`Z` is bf16, but its definition gives f64"),
    ("in A: f32[N]\nout Z: u3[N]\nZ[n] = A[n]", "T0116", (3, 1, 12), "`Z` is u3, but its definition gives f32"),
])  # fmt: skip
def test_wrong_types_in_programs_are_shown_where_they_stand(
    text: str, code: str, place: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(CompileError) as caught:
        parse_cascade(text)
    d = caught.value.diagnostic
    assert d.code == code and message in d.message and d.helps and d.span is not None
    assert (d.span.line, d.span.column, d.span.end_column) == place
