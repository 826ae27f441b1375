"""Integer products: sums of whole numbers regrouped, and their kernels, equal the interpreter exactly."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_runs import built, run
from random_programs import assert_matches

from tcc import pipeline, targets
from tcc.backends import c as backend
from tcc.backends.c import toolchain
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.dtype_codes import integer_range
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import bind, interpret
from tcc.ir.mapping import signature
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping

CPU = targets.find("cpu")
COLUMNS = ("u1", "u2", "u3", "u4", "u8", "i4", "i6", "i8")
KNOWN = ("u3", "i5", "u6", "i7")  # constant columns, which are stored with their own widths

# One row of a quantised layer, as somebody writes it: activations are rounded by groups, weights have a scale and a zero
# per group.
LAYER = """
ranks {ranks}
in X: f32[M, K], W: {weight}[N, K], R: f16[N, G], Z: u4[N, G], Bias: f32[N]
out Y: f32[M, N]
Big[m, g] = abs(X[m, {length} * g + j]) :: max(j)
S[m, g] = max(Big[m, g] / 127, 1e-20)
Q[m, k] = i8(round(X[m, k] / S[m, k // {length}]))
P[m, n] = f32(Q[m, k]) * S[m, k // {length}] * ((f32(W[n, k]) - {zero}) * R[n, k // {length}])
Y[m, n] = max(P[m, n] + Bias[n], 0)
"""


def inputs(c: Cascade, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Random values of all that the types hold, the extremes among them."""
    out: dict[str, Any] = {}
    for t in c.inputs:
        shape = tuple(evaluate_size(c.resolved(s), sizes) for s in t.shape)
        if t.dtype.is_float:
            out[t.name] = rng.standard_normal(shape).astype(t.dtype.numpy)
            continue
        low, high = integer_range(t.dtype)
        values = rng.integers(low, high + 1, shape)
        values[rng.random(shape) < 0.3] = low if rng.random() < 0.5 else high
        out[t.name] = values.astype(t.dtype.numpy)
    return out


def both(c: Cascade, sizes: dict[str, int], rng: np.random.Generator, shown: bool = False) -> str:
    """Compares mapping and C with the interpreter; the C text, or that of the mapping."""
    given = inputs(c, sizes, rng)
    program = built(c)
    assert_matches(c, interpret_mapping(program.mapping, given, sizes)[0], given, sizes)
    assert_matches(c, run(program, c, given, sizes), given, sizes)
    return str(program.mapping) if shown else program.source


def processor(name: str, monkeypatch: pytest.MonkeyPatch, simd: str = "") -> bool:
    """Compiles for another processor from now on, perhaps with text for other vectors; whether it is another one."""
    needed, flags = PROCESSORS[name]
    found = toolchain.find_toolchain()
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if flags and ("x86" not in "".join(found.target_flags) + info and "sse2" not in info):
        pytest.skip("not an x86 processor")
    if needed not in info:
        pytest.skip(f"this processor has no {needed}")
    if flags:
        simd = simd or ("avx2" if needed else "sse")
        other = replace(found, target_flags=flags, simd=simd)
        monkeypatch.setattr(toolchain, "find_toolchain", lambda: other)
    return bool(flags)


# ---- all widths, all processors


def pairs(row: str, columns: tuple[str, ...] = COLUMNS) -> Cascade:
    lines = [f"in A: {row}[M, K]", *(f"in B_{t}: {t}[N, K]" for t in columns)]
    lines += [f"in D_{t}: {t}[N, K] constant" for t in KNOWN]
    lines += [
        f"out {name}: i32[M, N]"
        for name in (*(f"C_{t}" for t in columns), *(f"E_{t}" for t in KNOWN))
    ]
    lines += [f"C_{t}[m, n] = i32(A[m, k]) * i32(B_{t}[n, k])" for t in columns]
    lines += [f"E_{t}[m, n] = i32(A[m, k]) * i32(D_{t}[n, k])" for t in KNOWN]
    return parse_cascade("\n".join(lines))


PROCESSORS = {
    "this one": ("", ()),
    "AVX-VNNI": ("avx512_vnni", ("-march=x86-64-v3", "-mavx512f", "-mavx512vl", "-mavx512vnni")),
    "AVX2": ("avx2", ("-march=x86-64-v3",)),
    "any": ("", ("-march=x86-64",)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_products_of_all_widths_are_exact(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = processor(name, monkeypatch)
    c = pairs("i8", ("u1", "u2", "i4", "i8") if other else COLUMNS)
    source = both(c, {"M": 13, "N": 67, "K": 37}, rng)
    assert set(re.findall(r"void dots8x64_u(\d)\(", source)) == set("12345678")
    program = built(c)
    for sizes in ({"M": 1, "N": 64, "K": 1100}, {"M": 3, "N": 1, "K": 1}):
        given = inputs(c, sizes, rng)
        assert_matches(c, run(program, c, given, sizes), given, sizes)


@pytest.mark.parametrize("row", ["i3", "u8"])
def test_first_operands_of_other_widths_are_exact(row: str, rng: np.random.Generator) -> None:
    both(pairs(row), {"M": 9, "N": 70, "K": 21}, rng)


def test_one_row_reads_weights_of_5_to_7_bits_as_strings(rng: np.random.Generator) -> None:
    names = ("u3", "u5", "i6", "u7")
    lines = ["in A: i8[K]", *(f"in B_{t}: {t}[N, K] constant" for t in names)]
    lines += [f"out C_{t}: i32[N]" for t in names]
    lines += [f"C_{t}[n] = i32(A[k]) * i32(B_{t}[n, k])" for t in names]
    c = parse_cascade("\n".join(lines))
    source = both(c, {"N": 67, "K": 300}, rng)
    assert set(re.findall(r"void dots1x64_(u\d)\(", source)) == {"u4", "u5", "u6", "u7"}
    held = {b.name: b.bits for b in built(c).mapping.memory}
    assert held["C_u5_columns"] == 5 and held["C_u7_columns"] == 7


def test_strings_are_read_and_filled_element_by_element_elsewhere(rng: np.random.Generator) -> None:
    """A mapping by hand: whatever touches such a buffer finds the same elements."""
    text = """
    mapping strings for cpu
    ranks N = 70, K = 45
    in B: u{bits}[N, K]
    out C: i32[K, N]
    memory S: u{bits}[N, K] @memory packed layout [0/64, 1/{step}, 0%64, 1%4, 1/4%{run}]
    kernel fill over n: N, k: K {{
      for n by 64 {{
        for k by {step} {{
          do S[n, k] = B[n, k]
        }}
      }}
    }}
    kernel read over n: N, k: K {{
      do C[k, n] = i32(S[n, k])
    }}
    """
    for bits, run_ in ((3, 8), (5, 8), (6, 4), (7, 8)):
        m = parse_mapping(text.format(bits=bits, step=4 * run_, run=run_))
        b = rng.integers(0, 2**bits, (70, 45)).astype(np.uint8)
        out = run(backend.build(m, CPU), signature(m), {"B": b})["C"]
        assert (out == b.T).all() and m.memory[0].bits == bits


@pytest.mark.parametrize("name", PROCESSORS)
def test_sums_over_groups_stay_in_registers(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text for vectors of 64 bytes, whatever the processor makes of it: two panels and a part of one, two sums that share
    a product, a product of strings, two variables of groups."""
    processor(name, monkeypatch, "avx512")
    c = parse_cascade("""
    ranks G = 3, H = 2, J = 20
    in A: i8[G, J], B: i6[N, G, J] constant, S: f32[G], R: f32[N, G], P: f32[N]
    in E: i8[G, H, J], F: u2[N, G, H, J] constant, T: f16[G, H]
    out Y: f32[N], Z: f32[N], X: f32[N]
    D[n, g] = i32(A[g, j]) * B[n, g, j]
    Y[n] = D[n, g] * S[g] * R[n, g]
    Z_sum[n] = f32(D[n, g] + 3) * R[n, g]
    Z[n] = max(Z_sum[n] + P[n], 0)
    K[n, g, h] = i32(E[g, h, j]) * F[n, g, h, j]
    X[n] = K[n, g, h] * T[g, h]
    """)
    source = both(c, {"N": 150}, rng)
    if toolchain.find_toolchain().simd == "avx512":
        assert source.count("#if DOT_LANES == 16\n") == 2
        assert {"dots_u2", "dots_u6"} <= set(re.findall(r"\bdots_u\d", source))


@pytest.mark.parametrize("rank", ["M = 1", "M = 1, K = 300", ""])
def test_one_row_is_an_integer_product_where_weights_are_constant(
    rank: str, rng: np.random.Generator
) -> None:
    """Columns that every call has to pack are not worth it for a row."""
    lines = [f"ranks {rank}"] * bool(rank) + [
        "in A: i8[M, K], R: f32[N], B: u4[N, K] constant, E: u4[N, K]"
    ]
    lines += ["out C: i32[M, N], Y: f32[M, N], D: i32[M, N]", "C[m, n] = i32(A[m, k]) * B[n, k]"]
    lines += ["Y[m, n] = C[m, n] * R[n]", "D[m, n] = i32(A[m, k]) * E[n, k]"]
    mapped = both(parse_cascade("\n".join(lines)), {"M": 1, "N": 70, "K": 300}, rng, shown=True)
    assert "C_columns: u4" in mapped and ("D_columns" in mapped) == (not rank)


def test_vectors_and_batches(rng: np.random.Generator) -> None:
    c = parse_cascade(
        "in A: i8[K], B: i4[N, K] constant, D: i8[L, M, K], E: u8[L, N, K]\nout C: i32[N], F: i32[L, M, N]\n"
        "C[n] = i32(A[k]) * B[n, k]\nF[l, m, n] = i32(D[l, m, k]) * i32(E[l, n, k])"
    )
    assert "dots1x64_u4" in both(c, {"K": 45, "N": 66, "L": 2, "M": 5}, rng)


def test_what_follows_a_product_runs_next_to_it(rng: np.random.Generator) -> None:
    """Two sums over groups and what is made of them, in one kernel, also where a line says so."""
    text = """
    ranks G = (K + 7) // 8, J = 8
    in A: i8[M, K], B: u4[N, K], S: f32[M, G], R: f32[N, G], Bias: f32[N]
    out Y: f32[M, N], Z: f32[M, N]
    Q[m, g, j] = A[m, 8 * g + j]
    D[m, n, g] = i32(Q[m, g, j]) * B[n, 8 * g + j]
    Y[m, n] = D[m, n, g] * S[m, g] * R[n, g]
    E[m, n] = Y[m, n] + Bias[n]
    T[m, n] = D[m, n, g] * R[n, g]
    Z[m, n] = E[m, n] * T[m, n]
    """
    sizes = {"M": 3, "N": 70, "K": 30}
    assert both(parse_cascade(text), sizes, rng, shown=True).count("over m: M, n: N, g") == 1
    whole = parse_cascade(text + "kernel all: Q, D, Y, E, T, Z\n")
    assert both(whole, sizes, rng, shown=True).count("over m: M, n: N, g") == 1


def test_constant_weights_are_packed_ahead(rng: np.random.Generator) -> None:
    c = parse_cascade(
        "in A: i8[M, K], B: i4[N, K] constant\nout C: i32[M, N]\nC[m, n] = i32(A[m, k]) * B[n, k]"
    )
    program = built(c)
    assert "prepare kernel pack_C_columns" in str(program.mapping)
    assert "C_columns: u4[N, K] @memory packed layout [0/64, 1/8, 0%64, 1%4, 1/4%2] constant" in str(program.mapping)  # fmt: skip
    sizes = {"M": 3, "N": 70, "K": 30}
    given = inputs(c, sizes, rng)
    assert_matches(c, run(program, c, given, sizes, times=2), given, sizes)


def test_constant_operands_are_the_columns_wherever_they_stand(rng: np.random.Generator) -> None:
    c = parse_cascade(
        "in W: u4[N, K] constant, A: i8[M, K]\nout C: i32[N, M]\nC[n, m] = W[n, k] * i32(A[m, k])"
    )
    assert "C_columns: u4[N, K]" in both(c, {"M": 2, "N": 70, "K": 30}, rng, shown=True)


def test_bits_and_powers_of_two_are_right(rng: np.random.Generator) -> None:
    """Products by `^` of single bits, and weights that are shifts."""
    c = parse_cascade(
        "in A: u1[M, K], B: u1[N, K], X: i8[M, K], P: i4[N, K]\nout C: i32[M, N], Y: f32[M, N]\n"
        "C[m, n] = A[m, k] ^ B[n, k]\nY[m, n] = f32(X[m, k]) * exp2(P[n, k])"
    )
    both(c, {"M": 3, "N": 20, "K": 37}, rng)


# ---- the algebra


def regrouped(text: str) -> str:
    return str(pipeline.run(parse_cascade(text), CPU).after("regroup"))


def definitions(text: str) -> list[str]:
    return [
        line
        for line in regrouped(text).splitlines()
        if " = " in line and not line.startswith("ranks")
    ]


def test_what_a_group_has_in_common_leaves_its_sum() -> None:
    assert definitions(
        """
        ranks G = (K + 127) // 128
        in Q: i8[M, K], S: f32[M, G], W: u4[N, K], R: f32[N, G]
        out Y: f32[M, N]
        Y[m, n] = f32(Q[m, k]) * S[m, k // 128] * ((f32(W[n, k]) - 8) * R[n, k // 128])
        """
    ) == [
        "Y_dot[m, n, g] = i32(Q[m, g * 128 + k_i]) * W[n, g * 128 + k_i]",
        "Y_sum[m, g] = i32(Q[m, g * 128 + k_i])",
        "Y[m, n] = f32(Y_dot[m, n, g] + Y_sum[m, g] * (-8)) * S[m, g] * R[n, g]",
    ]


def test_sums_of_a_shared_operand_are_computed_once() -> None:
    made = definitions(
        """
        in Q: i8[M, K], V: u4[N, K], W: u4[N, K], S: f32[M]
        out Y: f32[M, N], Z: f32[M, N]
        Y[m, n] = f32(Q[m, k]) * S[m] * (f32(V[n, k]) - 8)
        Z[m, n] = f32(Q[m, k]) * S[m] * (f32(W[n, k]) - 7)
        """
    )
    assert sum("_sum[m" in line.split(" = ")[0] for line in made) == 1


KEPT = {
    "f32 activations": ("A: f32[M, K], B: u4[N, K]", "A[m, k] * B[n, k] * S[m, k // 32]"),
    "an inexact zero": ("A: i8[M, K], B: u4[N, K]", "f32(A[m, k]) * (B[n, k] - S[m, k // 32])"),
    "wide integers": ("A: i16[M, K], B: u4[N, K]", "f32(A[m, k]) * B[n, k] * S[m, k // 32]"),
    "sums that may overflow": (
        "A: i8[M, K], B: u8[N, K]", "f32(A[m, k]) * f32(B[n, k]) * S[m, k // 131072]"),
    "a scale per element": (
        "A: i8[M, K], B: u8[N, K], T: f32[K]", "f32(A[m, k]) * f32(B[n, k]) * T[k] * S[m, k // 32]"),
    "groups of two variables": (
        "A: i8[M, K, L], B: u8[N, K, L], T: f32[G]",
        "f32(A[m, k, l]) * f32(B[n, k, l]) * S[m, k // 32] * T[l // 32]"),
    "a kernel chosen by hand": (
        "A: i8[M, K], B: u8[N, K]", "f32(A[m, k]) * f32(B[n, k]) * S[m, k // 32]\nkernel one: Y"),
    "a mask": ("A: i8[M, K], B: u8[N, K]", "f32(A[m, k]) * f32(B[n, k]) * S[m, k // 32] where k <= m"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_other_sums_stay(name: str) -> None:
    given, body = KEPT[name]
    text = f"in {given}, S: f32[M, G]\nranks G\nout Y: f32[M, N]\nY[m, n] = {body}"
    result = pipeline.run(parse_cascade(text), CPU)
    assert result.after("regroup") is result.after("simplify")


def test_scores_stay_in_their_walk() -> None:
    text = """
    ranks M = 4096, E = 64, P = 64, F = 64
    in Q: i8[P, E], K: i8[M, E], V: f32[M, F]
    out O: f32[P, F]
    S[p, m] = f32(Q[p, e]) * f32(K[m, e]) * 0.001
    G[p] = S[p, m] :: max(m)
    X[p, m] = exp(S[p, m] - G[p])
    D[p] = X[p, m]
    O[p, f] = X[p, m] / D[p] * V[m, f]
    """
    result = pipeline.run(parse_cascade(text), CPU)
    assert result.after("regroup") is result.after("simplify")


def layers(rng: np.random.Generator) -> tuple[str, dict[str, int]]:
    """A random layer, and sizes."""
    length = int(rng.choice([4, 8, 12, 32]))
    n, k, m = int(rng.integers(1, 90)), int(rng.integers(1, 100)), int(rng.integers(1, 12))
    weight = str(rng.choice(["u2", "u3", "u4", "i4", "i8", "u8"]))
    zero = str(rng.choice(["8", "0", f"Z[n, k // {length}]"]))
    known = {
        "": f"G = (K + {length - 1}) // {length}, J = {length}",
        "K": f"K = {k}, G = {-(-k // length)}, J = {length}",
        "M": f"M = 1, G = (K + {length - 1}) // {length}, J = {length}",
    }[str(rng.choice(["", "K", "M"]))]
    m = 1 if known.startswith("M") else m
    return LAYER.format(ranks=known, weight=weight, length=length, zero=zero), {
        "M": m,
        "N": n,
        "K": k,
    }


@pytest.mark.parametrize("seed", range(16))
def test_random_layers_mean_what_they_did(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text, sizes = layers(rng)
    c = parse_cascade(text)
    given = inputs(c, sizes, rng)
    given["R"] = (rng.random(given["R"].shape) * 0.1).astype(np.float16)
    result = pipeline.run(c, CPU)
    assert "_dot" in str(result.after("regroup"))
    known = bind(c, given, sizes)
    want = interpret(c, given, known)["Y"]
    got = interpret(result.after("regroup"), given, known)["Y"]
    np.testing.assert_allclose(
        got, want, rtol=1e-5, atol=1e-6 * max(1, np.abs(want).max(initial=0))
    )
    mapped = interpret_mapping(result.mapping, given, known)[0]["Y"]
    np.testing.assert_allclose(
        mapped, got, rtol=1e-5, atol=1e-6 * max(1, np.abs(want).max(initial=0))
    )


@pytest.mark.parametrize("seed", [0, 5])
def test_layers_in_c(seed: int) -> None:
    """Rounded by groups in C: two neighbours of a tie may differ by one step of the activations."""
    rng = np.random.default_rng(seed)
    text, sizes = layers(rng)
    c = parse_cascade(text)
    given = inputs(c, sizes, rng)
    given["R"] = (rng.random(given["R"].shape) * 0.1).astype(np.float16)
    program = built(c)
    assert "dots" in program.source
    want = interpret(c, given, bind(c, given, sizes))["Y"]
    got = run(program, c, given, sizes)["Y"]
    np.testing.assert_allclose(
        got, want, rtol=1e-4, atol=1e-4 * max(1, np.abs(want).max(initial=0))
    )
