"""Coded tensors: lossless, refused where damaged, and decoded by C next to the products that use them."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest

import tcc
from tcc import dtypes
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype_coded import code_lengths, coded_form
from tcc.ir.interpret import interpret
from tcc.ir.mapping import Kernel
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping

FAST = "bf16[coded k 32, lanes n 16, window 7]"
TYPES = [
    FAST, "bf16[coded k 64]", "bf16[coded n 8, lanes k 16]", "f16[coded k 16, lanes n 8, window 12]",
    "f32[coded k 32, lanes n 16]", "f8e5m2[coded k 32, lanes n 2]", "f32[coded n 16, lanes k 4, window 3]",
    "f14e8m5[coded k 9, lanes n 16, window 5]", "f64[coded k 1]",
]  # fmt: skip


def random_tensor(
    t: str, rng: np.random.Generator, shape: tuple[int, ...] = (48, 576)
) -> dtypes.Encoded:
    """Normal numbers; few different ones where codes are short."""
    x = rng.standard_normal(shape)
    if tcc.dtype(t).form.window < 6:
        x = np.sign(x) * (1 + np.abs(x) % 1) * 2.0 ** rng.integers(-3, 3, shape)
    return dtypes.encode(x, t, "n k")


# ---- the types and the format


@pytest.mark.parametrize("t", TYPES)
def test_types_print_what_they_read_and_values_come_back(t: str, rng: np.random.Generator) -> None:
    kind = tcc.dtype(t)
    assert str(kind) == t and tcc.dtype(t.replace(" ", "  ").replace(",", " ,")) == kind
    element = coded_form(kind).element
    x = random_tensor(t, rng).decode()
    w = dtypes.encode(x, t, "n k")
    np.testing.assert_array_equal(w.decode(), element.load(element.store(x)))
    assert (
        w.shape == (48, 576)
        and dtypes.compress(dtypes.expand(w), t, "n k").codes.tolist() == w.codes.tolist()
    )


@pytest.mark.parametrize(
    "t", ["bf16[coded k 256, lanes n 16]", "bf16[coded k 8, window 12]", "f16[coded n 4]"]
)
def test_every_code_comes_back_bit_for_bit(t: str) -> None:
    every = np.arange(2**16, dtype=np.uint16).reshape(
        256, 256
    )  # payloads of NaN, subnormals, all exponents
    np.testing.assert_array_equal(dtypes.expand(dtypes.compress(every, t, "n k")), every)
    if t.startswith("f16"):
        np.testing.assert_array_equal(
            dtypes.expand(dtypes.compress(every.view(np.float16), t, "n k")), every
        )


def test_normal_weights_take_eleven_bits(rng: np.random.Generator) -> None:
    x = rng.standard_normal((256, 1024)) * 0.02
    for t, most in (
        ("bf16[coded k 256, lanes n 16, window 7]", 10.9),
        ("bf16[coded k 256, lanes n 16]", 10.8),
    ):
        w = dtypes.encode(x, t, "n k")
        bits = 8 * (w.codes.nbytes + sum(p.nbytes for p in w.parts.values())) / x.size
        assert bits < most


def test_one_symbol_needs_no_bits_but_those_that_lanes_take_ahead() -> None:
    w = dtypes.encode(np.full((16, 64), 1.5), "bf16[coded k 64, lanes n 16]", "n k")
    assert len(w.parts["words"]) == 32 and (w.decode() == 1.5).all()
    empty = dtypes.encode(np.zeros((0, 64)), "bf16[coded k 64, lanes n 16]", "n k")
    assert empty.decode().shape == (0, 64)


def test_the_format_is_what_its_text_says(rng: np.random.Generator) -> None:
    w = random_tensor("bf16[coded k 16, lanes n 4, window 5]", rng, (8, 32))
    words, start, table = (w.parts[n].tolist() for n in ("words", "start", "table"))
    assert w.codes.shape == (2, 32, 4)
    found = np.zeros((8, 32), np.uint16)
    for n in range(2):
        for r in range(2):
            at, bits, held = start[n][r], [0] * 4, [0] * 4
            for t in range(16):
                for lane in range(4):
                    if t % 3 == 0 and held[lane] < 16:
                        bits[lane] += words[at] << held[lane]
                        held[lane] += 16
                        at += 1
                for lane in range(4):
                    entry = table[bits[lane] % 32]
                    bits[lane] >>= entry // 4096
                    held[lane] -= entry // 4096
                    raw = int(w.codes[n, 16 * r + t, lane])
                    code = (raw >> 7) << 15 | (entry % 4096) << 7 | raw & 127
                    found[4 * n + lane, 16 * r + t] = code
    np.testing.assert_array_equal(found, dtypes.expand(w))


def test_code_lengths_are_optimal(rng: np.random.Generator) -> None:
    for _ in range(20):
        counts = rng.integers(0, 1 + 2 ** rng.integers(1, 12), rng.integers(2, 40))
        heap = [int(c) for c in counts if c]
        cost = 0  # of a Huffman code without limit
        heapq.heapify(heap)
        while len(heap) > 1:
            pair = heapq.heappop(heap) + heapq.heappop(heap)
            cost += pair
            heapq.heappush(heap, pair)
        lengths = code_lengths(counts, 24)
        assert int((lengths * counts).sum()) == cost
        short = code_lengths(counts, 6)
        assert short.max() <= 6 and (2.0 ** -short[short > 0]).sum() in (0.0, 1.0)
    skewed = code_lengths(2 ** np.arange(10), 5)
    assert skewed.max() == 5 and (2.0**-skewed).sum() == 1


# ---- what is refused


@pytest.mark.parametrize(
    ("t", "message"),
    [
        ("i8[coded k 8]", "i8 has no exponents"), ("posit8_0[coded k 8]", "no exponents"),
        ("e8m0[coded k 8]", "nothing but an exponent"), ("bf16[coded k 8, window 13]", "at most 12 bits"),
        ("bf16[coded k 8, lanes k 2]", "same rank"), ("bf16[coded k]", "no integer"),
        ("bf16[coded k 8, scale f16]", "unexpected `scale`"), ("bf16[coded k 8][coded k 8]", "unexpected"),
        ("bf16[coded k 8, lanes n 2, lanes n 2]", "unexpected `lanes`"),
    ],
)  # fmt: skip
def test_types_that_do_not_fit(t: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        tcc.dtype(t)


def test_tensors_and_parts_that_do_not_fit(rng: np.random.Generator) -> None:
    with pytest.raises(
        CompileError, match="runs or lanes of 32 do not divide the 40 elements along `k`"
    ):
        dtypes.encode(np.zeros((16, 40)), FAST, "n k")
    with pytest.raises(CompileError, match="lacks"):
        dtypes.encode(np.zeros((16, 32)), FAST, "m k")
    with pytest.raises(
        CompileError, match="256 exponents occur, and codes of 7 bits have room for 128"
    ):
        dtypes.compress(np.arange(2**16, dtype=np.uint16).reshape(256, 256), FAST, "n k")
    with pytest.raises(CompileError, match="is not coded"):
        dtypes.compress(np.zeros((2, 2), np.uint16), "bf16", "n k")
    w = random_tensor(FAST, rng, (32, 96))
    start, table, words = (w.parts[n] for n in ("start", "table", "words"))
    holes = np.where(table == table[5], 0, table).astype(np.uint16)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"start": start[:1]}, "`start` is uint32 of shape"), ({"words": words.astype(np.uint32)}, "`words` is uint32"),
        ({"start": start + np.uint32(len(words))}, "starts at word"), ({"start": start[::-1].copy()}, "starts at word"),
        ({"table": holes}, "no code is known for the bits"), ({"table": table[:64]}, "`table` is uint16 of shape"),
        ({"table": np.full(128, 255 + 4096 * 8, np.uint16)}, "no prefix code"), ({"words": words[:3]}, "damaged"),
    ]  # fmt: skip
    for parts, message in wrong:
        with pytest.raises(CompileError, match=message):
            dtypes.Encoded(w.dtype, w.axes, w.codes, {**w.parts, **parts})
    with pytest.raises(CompileError, match="`codes` has the shape"):
        dtypes.Encoded(w.dtype, w.axes, w.codes[..., :8], w.parts)
    with pytest.raises(CompileError, match="needs `words`, `start` and `table`"):
        dtypes.Encoded(w.dtype, w.axes, w.codes, {})
    damaged = words.copy()
    damaged[20:400] ^= 0x5555
    broken = dtypes.Encoded(w.dtype, w.axes, w.codes, {**w.parts, "words": damaged})
    with pytest.raises(CompileError, match="the stream is damaged: run"):
        broken.decode()
    assert (
        np.isfinite(
            tcc.compile(f"in W: {FAST}[N, K]\nout Z: f32[N]\nZ[n] = W[n, k] * 0")(broken)
        ).sum()
        >= 0
    )


# ---- programs

PROGRAM = """
in  A: {c}[M, K], B: {c}[M, N], X: {c}[K], W: {t}[N, K]
out V: {c}[N], P: {c}[M, N], Q: {c}[M, K], D: {c}[N, K], E: {c}[K, N], F: {c}[N, K], R: {c}[M, N], H: {h}[N, K]
V[n]    = X[k] * W[n, k]
P[m, n] = A[m, k] * W[n, k]
Q[m, k] = B[m, n] * W[n, k]
D[n, k] = W[n, k]
E[k, n] = W[n, k]
F[n, k] = exp(W[n, k]) + W[n, k - 1]
R[m, n] = (A[m, k] + 1) * W[n, k]
H[n, k] = W[n, k]
"""


@pytest.mark.parametrize("t", TYPES)
def test_c_decodes_every_bit_and_products_agree(t: str, rng: np.random.Generator) -> None:
    c = "f64" if t.startswith("f64") else "f32"
    text = PROGRAM.format(t=t, c=c, h="f64" if c == "f64" else "bf16")
    w = random_tensor(t, rng)
    given = [rng.standard_normal(s).astype(tcc.dtype(c).numpy) for s in ((5, 576), (5, 48), (576,))]
    program = tcc.compile(text)
    want, got = tcc.parse(text).interpret(*given, w), program(*given, w)
    for name, x, y in zip(want._fields, want, got, strict=True):
        if name in "DEH":
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4)
    again = tcc.compile(program.ir("mapping"))
    np.testing.assert_array_equal(again(*given, w).E, got.E)


def test_special_values_of_every_bit_pattern_in_c() -> None:
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    for t in ("bf16[coded k 32, lanes n 16]", "bf16[coded n 16, lanes k 16, window 12]"):
        w = dtypes.compress(every, t, "n k")
        got = tcc.compile(f"in W: {t}[N, K]\nout D: f32[N, K]\nD[n, k] = W[n, k]")(w)
        np.testing.assert_array_equal(got.view(np.uint32) >> 16, every)
        np.testing.assert_array_equal(got.view(np.uint32) & 0xFFFF, 0)


def test_compilers_without_wide_vectors(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCC_CC", "cc -mno-avx512f")
    w = random_tensor(FAST, rng)
    got = tcc.compile(f"in W: {FAST}[N, K]\nout D: f32[N, K]\nD[n, k] = W[n, k] + 0")(w)
    np.testing.assert_array_equal(got, w.decode())


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("window", [5, 7, 8])
def test_one_row_is_decoded_in_registers(
    window: int, wide: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs abreast, then those that are left; sums that go on from block to block; a batch."""
    if not wide:
        monkeypatch.setenv("TCC_CC", "cc -mno-avx512f")
    t = f"bf16[coded k 32, lanes n 16, window {window}]"
    program = tcc.compile(f"""
        in X: f32[K], Z: f32[B, K], W: {t}[N, K], V: {t}[B, N, K]
        out Y: f32[N], U: f32[B, N]
        Y[n] = X[k] * W[n, k]
        U[b, n] = V[b, n, k] * Z[b, k]
        """)
    assert program.source.count("else times4_bf16") == 2
    w, v = random_tensor(t, rng, (144, 576)), random_tensor(t, rng, (288, 576)).decode()
    x, z = (rng.standard_normal(s).astype(np.float32) for s in (576, (2, 576)))
    y, u = program(x, z, w, dtypes.encode(v.reshape(2, 144, 576), t, "b n k"))
    np.testing.assert_allclose(y, w.decode() @ x, rtol=1e-4, atol=1e-4)
    want = np.einsum("bnk,bk->bn", v.reshape(2, 144, 576), z)
    np.testing.assert_allclose(u, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("m", [1, 16, None])
def test_products_decode_next_to_the_core_and_keep_nothing(
    m: int | None, rng: np.random.Generator
) -> None:
    size = f"ranks M={m}\n" if m else ""
    text = (
        f"{size}in A: f32[M, K], W: {FAST}[N, K]\nout C: f32[M, N]\nC[m, n] = A[m, k] * W[n, k]\n"
    )
    program = tcc.compile(text, verify_each=True)
    mapping = program.result.mapping
    assert mapping is not None and not mapping.memory and len(mapping.kernels) == 1
    assert str(parse_mapping(str(mapping))) == str(mapping)
    w = random_tensor(FAST, rng, (80, 320))
    a = rng.standard_normal((m or 7, 320)).astype(np.float32)
    want = interpret(program.result.cascade or tcc.parse(text).node, {"A": a, "W": w})["C"]
    np.testing.assert_allclose(program(a, w), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        interpret_mapping(mapping, {"A": a, "W": w})[0]["C"], want, rtol=1e-5, atol=1e-5
    )
    into = np.empty_like(want, np.float32)
    assert program(a, w, out=into) is into


def test_recurrences_batches_and_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    text = f"""
        in  W: {FAST}[N, K], B: {FAST}[B, N, K], A: f32[B, M, K]
        out S: f32[T + 1, N, K], C: f32[B, M, N]
        S[0, n, k] = 1
        S[t + 1, n, k] = S[t, n, k] * W[n, k]
        C[b, m, n] = A[b, m, k] * B[b, n, k]"""
    x = dtypes.encode(rng.standard_normal((2, 32, 32)) / 4, FAST, "b n k")
    w = dtypes.encode(rng.standard_normal((32, 32)) / 4, FAST, "n k")
    a = torch.randn(2, 3, 32)
    got = tcc.compile(text)(w, x, a, sizes={"T": 4})
    want = tcc.parse(text).interpret(w, x, a, sizes={"T": 4})
    for g, v in zip(got, want, strict=True):
        assert isinstance(g, torch.Tensor)
        np.testing.assert_allclose(g, v, rtol=1e-4, atol=1e-4)


def test_backends_that_do_not_decode_say_so(rng: np.random.Generator) -> None:
    mapping = f"mapping m for cpu\nranks N, K\nin W: {FAST}[N, K]\nout Z: f32[N]\n"
    mapping += "kernel a over n: N, k: K {\n  do Z[n] = W[n, k]\n}\n"
    w = random_tensor(FAST, rng, (16, 32))
    with pytest.raises(CompileError, match="does not decode whole runs"):
        tcc.compile(mapping)(w)
    part = (
        mapping.replace("Z: f32[N]", "Z: f32[N, K]")
        .replace("  do Z[n]", "  for k by 16 {\n  do Z[n, k]")
        .replace("}", "  }\n}")
    )
    with pytest.raises(CompileError, match="does not decode whole runs"):
        tcc.compile(part)(w)
    assert all(
        isinstance(k, Kernel)
        for k in tcc.compile(part.replace("by 16", "by 64")).result.mapping.kernels
    )  # type: ignore[union-attr]
