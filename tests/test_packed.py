"""Packed operands: codes without gaps, decoded in registers, give what the interpreters give, in every type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from c_runs import built, lowered, run

from tcc import dtypes
from tcc.explain import explain
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DType
from tcc.ir.dtype_codes import integer_range
from tcc.ir.interpret import interpret, interpret_with_bounds
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping
from tcc.samples import agreement, random_inputs

INTEGERS = ["u1", "i1", "u2", "i2", "u3", "i3", "u4", "i4", "u5", "i5", "u6", "i6", "u7", "i7", "u8", "i8", "bool"]  # fmt: skip
FLOATS = [
    "f3e1m1", "f4e2m1", "f6e3m2", "f6e2m3", "f7e3m3ieee", "f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f5e2m2",
    "nf4", "codebook[3, -1, 0.5]", "posit4_1", "posit6_1", "posit8_0", "posit8_2", "pow2_4", "pow2_8", "e5m0", "bf16",
    "f16", "codebook[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 1.001953125]",
]  # fmt: skip


def codes(t: DType, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Random elements with finite values of moderate size."""
    if t.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if t.is_integer:
        low, high = integer_range(t)
        return rng.integers(low, high + 1, shape).astype(t.numpy)
    every = np.arange(2**t.bits).astype(f"u{t.numpy.itemsize}").view(t.numpy)
    values = np.abs(np.asarray(t.load(every)))
    fine = every[np.isfinite(values) & (values < 1e6) & ((values > 1e-6) | (values == 0))]
    return fine[rng.integers(0, fine.size, shape)]


def weights(names: list[str], grouped: bool, constant: str = "constant") -> Cascade:
    """Y0 = X · C0 …, one product per type, each with a scale per group of 32 if `grouped`."""
    ins = ["X: f32[M, K]"] + [f"C{n}: {t}[N, K] {constant}" for n, t in enumerate(names)]
    ins += [f"S: f16[N, G] {constant}"] if grouped else []
    factor = "(f32(C{n}[n, k]) - 1.5) * S[n, k // 32]" if grouped else "f32(C{n}[n, k])"
    outs = ", ".join(f"Y{n}: f32[M, N]" for n in range(len(names)))
    lines = [f"Y{n}[m, n] = X[m, k] * ({factor.format(n=n)})" for n in range(len(names))]
    return parse_cascade("\n".join([f"in {', '.join(ins)}", f"out {outs}", *lines]))


def sized(c: Cascade, **sizes: int) -> Cascade:
    """The same program with fixed sizes, as PyTorch's programs have them."""
    head = "ranks " + ", ".join(f"{k}={v}" for k, v in sizes.items()) + "\n"
    body = [line for line in str(c).splitlines() if not line.startswith(("ranks", "cascade"))]
    return parse_cascade(head + "\n".join(body))


def agrees(c: Cascade, inputs: dict[str, Any]) -> None:
    got, want = run(built(c), c, inputs), interpret_with_bounds(c, inputs)
    for t in c.outputs:
        assert agreement(got[t.name], want[t.name].data, want[t.name].error).holds, (t, c)


def pairs(names: list[str], size: int) -> list[list[str]]:
    return [names[i : i + size] for i in range(0, len(names), size)]


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("names", pairs(INTEGERS + FLOATS, 8), ids=lambda n: n[0])
def test_products_in_every_type_agree(
    names: list[str], rows: int, rng: np.random.Generator
) -> None:
    """Columns that are no multiple of a panel, a depth that is no multiple of a word or a group."""
    for grouped, (n, k) in [(False, (70, 77)), (True, (130, 96))]:
        few = names[::3] if grouped else names[rows % 2 :: 1 if rows == 1 else 3]
        c = sized(weights(few, grouped), M=rows, N=n, K=k, **({"G": 3} if grouped else {}))
        if rows == 1:
            assert str(lowered(c)).count(" packed ") >= len(few)
        inputs = {"X": rng.standard_normal((rows, k)).astype(np.float32)}
        for t in c.inputs[1:]:
            shape = (n, 3) if t.name == "S" else (n, k)
            inputs[t.name] = codes(t.dtype, shape, rng)
        agrees(c, inputs)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", ["u3", "i4", "u8", "f8e4m3fn", "f8e5m2", "nf4", "posit8_0", "f16"])
def test_every_code_is_decoded_exactly(name: str, rows: int) -> None:
    """A sum with one term that is not 0 is that term: each code at some place of a word."""
    t = dtypes.dtype(name)
    count = 2 ** min(t.bits, 11)
    every = np.arange(count)
    if t.is_integer:
        every = every - (every >= count // 2) * (t.kind == "i") * count
    elif t.bits > 11:
        every = every * 2 ** (t.bits - 11)
    stored = every.astype(t.numpy if t.is_integer else f"u{t.numpy.itemsize}").view(t.numpy)
    with np.errstate(invalid="ignore"):  # signaling NaN
        values = np.asarray(t.load(stored)).astype(np.float32)
    zero = stored[np.flatnonzero(values == 0)[0]]
    k = 40
    c = sized(weights([name], False), M=rows, N=count, K=k)
    table = np.full((count, k), zero)
    table[np.arange(count), np.arange(count) * 7 % k] = stored
    got = run(built(c), c, {"X": np.ones((rows, k), np.float32), "C0": table})["Y0"]
    np.testing.assert_array_equal(got, np.broadcast_to(values, (rows, count)))


@pytest.mark.parametrize("names", [["u4", "i5", "nf4"], ["f8e4m3fn", "u8", "bool"]], ids="-".join)
def test_sizes_may_be_unknown_and_weights_variable(
    names: list[str], rng: np.random.Generator
) -> None:
    for constant, grouped, (m, n, k) in [("constant", False, (4, 70, 50)), ("", False, (3, 30, 40)),
                                         ("constant", True, (2, 66, 70)), ("", True, (1, 20, 64))]:  # fmt: skip
        c = weights(names, grouped, constant)
        inputs = {"X": rng.standard_normal((m, k)).astype(np.float32)}
        for t in c.inputs[1:]:
            inputs[t.name] = codes(t.dtype, (n, -(-k // 32)) if t.name == "S" else (n, k), rng)
        agrees(c, inputs)


@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-avx2 -mno-fma -mno-avx"])
def test_other_processors_decode_the_same(
    flags: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    from tcc.backends.c.toolchain import find_toolchain

    compiler = find_toolchain().command[0]
    monkeypatch.setenv("TCC_CC", f"{compiler} {flags}")
    for rows, names in [(1, ["u4", "i3", "f6e3m2"]), (9, ["nf4", "posit6_1"])]:
        c = sized(weights(names, False), M=rows, N=70, K=40)
        inputs = {"X": rng.standard_normal((rows, 40)).astype(np.float32)}
        inputs |= {t.name: codes(t.dtype, (70, 40), rng) for t in c.inputs[1:]}
        agrees(c, inputs)


def test_what_follows_the_products_runs_in_their_kernel(rng: np.random.Generator) -> None:
    c = parse_cascade("""
        ranks M=2, N=100, K=64, G=2
        in  X: f32[M, K], C: u4[N, K] constant, S: f16[N, G] constant, B: f32[N] constant, D: i8[N, K] constant
        out Y: f32[M, N]
        P[m, n] = X[m, k] * ((f32(C[n, k]) - 8.0) * S[n, k // 32])
        Q[m, n] = X[m, k] * f32(D[n, k])
        Y[m, n] = max(P[m, n] + B[n], 0.0) * Q[m, n] / 2.0""")
    mapping = lowered(c)
    assert [k.name for k in mapping.kernels if not k.prepare] == ["k0_Y"], mapping
    inputs = {"X": rng.standard_normal((2, 64)).astype(np.float32), "B": rng.random(100).astype(np.float32)}  # fmt: skip
    for name, shape in [("C", (100, 64)), ("S", (100, 2)), ("D", (100, 64))]:
        inputs[name] = codes(next(t.dtype for t in c.inputs if t.name == name), shape, rng)
    agrees(c, inputs)


@pytest.mark.parametrize("text, sizes", [
    ("in X: f32[B, M, K], C: u4[B, N, K] constant\nout Y: f32[B, M, N]\nY[b, m, n] = X[b, m, k] * f32(C[b, n, k])", {}),
    ("in X: f32[B, K], C: i3[B, K, N] constant\nout Y: f32[B, N]\nY[b, n] = X[b, k] * f32(C[b, k, n])", {}),
    ("in X: f32[P, M, K], C: f4e2m1[N, K] constant\nout Y: f32[P, M, N]\nY[p, m, n] = X[p, m, k] * C[n, k]", {"P": 3}),
    ("in X: f32[M + 2, K], C: u4[N, K, R] constant\nout Y: f32[N, M]\nY[n, m] = X[m + r, k] * f32(C[n, k, r])", {"R": 3}),
    ("in X: f32[M, K], C: u2[N, K] constant\nout Y: f32[M, N]\nY[m, n] = exp(X[m, k]) * f32(C[n, k]) where k <= m", {}),
    ("in X: f32[M, K], C: u4[N, K] constant\nout Y: f32[M, N]\nY[m, n] = X[m, k] * f32(C[n, k]) * f32(C[0, k])", {}),
    ("in X: f32[M, K], C: u4[N, K] constant\nout Y: f64[M, N]\nY[m, n] = f64(X[m, k]) * f64(C[n, k])", {}),
    ("in X: f32[M, K], C: u1[N, K] constant\nout Y: f32[M, N]\nY[m, n] = X[m, k] - f32(C[n, k]) :: max(k)", {}),
    ("in X: i32[M, K], C: i4[N, K] constant\nout Y: i32[M, N]\nY[m, n] = X[m, k] * C[n, k]", {}),
], ids=lambda x: x.split(" = ")[-1] if isinstance(x, str) else "")  # fmt: skip
@pytest.mark.parametrize("rows", [1, 12])
def test_whatever_reads_few_bits_is_right(
    text: str, sizes: dict[str, int], rows: int, rng: np.random.Generator
) -> None:
    known = {"B": 2, "M": rows, "N": 37, "K": 45, **sizes}
    names = {r.name for r in parse_cascade(text).ranks}
    c = sized(parse_cascade(text), **{k: v for k, v in known.items() if k in names})
    agrees(c, random_inputs(c, {}, rng))


def test_attention_over_keys_and_values_of_four_bits(rng: np.random.Generator) -> None:
    """Two codes in a byte, keys with a scale per channel and values with one per token: one walk, decoded in it."""
    c = parse_cascade("""
        ranks H=2, M=70, E=9, B=2
        in  Q: f32[H, B, E], K: u8[H, M, E], KS: f32[H, B, E], V: u4[H, M, E], VS: f32[H, M]
        out Z: f32[H, E]
        QK[h, m] = Q[h, 0, e] * ((f32(i32(K[h, m, e]) % 16) - 8.0) * KS[h, 0, e])
                 + Q[h, 1, e] * ((f32(i32(K[h, m, e]) // 16) - 8.0) * KS[h, 1, e])
        GM[h]    = QK[h, m] :: max(m)
        SN[h, m] = exp(QK[h, m] - GM[h])
        SD[h]    = SN[h, m]
        Z[h, e]  = SN[h, m] / SD[h] * ((f32(V[h, m, e]) - 8.0) * VS[h, m])""")
    assert len(lowered(c).kernels) == 1
    inputs = random_inputs(c, {}, rng)
    inputs["K"] = rng.integers(0, 256, (2, 70, 9)).astype(np.uint8)
    agrees(c, inputs)


def test_lanes_are_divided_by_powers_of_two_rounding_down(rng: np.random.Generator) -> None:
    c = parse_cascade("""
        in  A: i32[N]
        out Y: i32[N], Z: f32[N]
        Y[n] = (A[n] // 16) % 8 + A[n] % 4 * 3
        Z[n] = f32(A[n] % 16 - 8) * f32(A[n] // 4096 + 1)""")
    inputs = {"A": rng.integers(-(2**31), 2**31, 100).astype(np.int32)}
    program = built(c)
    assert ">> 4" in program.source
    got, want = run(program, c, inputs), interpret(c, inputs)
    np.testing.assert_array_equal(got["Y"], want["Y"])
    np.testing.assert_allclose(got["Z"], want["Z"], rtol=1e-6)


# ---- the mapping


def test_a_packed_buffer_is_text_and_is_interpreted(rng: np.random.Generator) -> None:
    c = sized(weights(["i5", "u4"], True), M=1, N=70, K=64, G=2)
    mapping = lowered(c)
    assert "memory C1_packed: u4[N, K] @memory packed layout [0/64, 1/8, 0%64, 1%8] constant" in str(mapping)  # fmt: skip
    assert "C0_4_packed: i1[N, K] @memory packed layout [0/64, 1/32, 0%64, 1%32]" in str(mapping)
    again = parse_mapping(str(mapping))
    assert str(again) == str(mapping)
    inputs = {"X": rng.standard_normal((1, 64)).astype(np.float32)}
    for t in c.inputs[1:]:
        inputs[t.name] = codes(t.dtype, (70, 2) if t.name == "S" else (70, 64), rng)
    want, (got, _) = interpret(c, inputs), interpret_mapping(again, inputs)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)


def test_explain_says_how_many_bytes_are_prepared() -> None:
    from tcc import pipeline, targets

    c = sized(weights(["u4"], False), M=1, N=128, K=256)
    report = explain(pipeline.run(c, targets.find("cpu")))
    assert f"prepared ahead: 1 tensor (C0_packed), {128 * 256 // 2} bytes" in str(report)


def test_two_threads_never_share_a_word() -> None:
    text = """mapping p for cpu
ranks N, K
in  C: u4[N, K]
out Y: f32[N, K]
memory P: u4[N, K] @memory packed layout [0, 1]

kernel pack over n: N, k: K {{
  for {} on core {{
    do P[n, k] = C[n, k]
  }}
}}

kernel read over n: N, k: K {{
  do Y[n, k] = f32(P[n, k])
}}
"""
    parse_mapping(text.replace("[0, 1]", "[0, 1/8, 1%8]").format("n by 1"))
    for loop, layout in [("k by 4", "[0, 1]"), ("n by 1", "[1/8, 0, 1%8]".replace("0, 1%8", "1%8, 0"))]:  # fmt: skip
        with pytest.raises(CompileError) as caught:
            parse_mapping(text.replace("[0, 1]", layout).format(loop))
        assert caught.value.diagnostic.code == "T0207"
        assert "word" in caught.value.diagnostic.message
