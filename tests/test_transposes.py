"""Tensors that lie along another variable than the lanes are transposed in registers, and mean what they meant."""

from __future__ import annotations

import numpy as np
import pytest
from c_runs import built, lowered, run

import tcc
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.interpret import interpret_with_bounds
from tcc.ir.mapping import Kernel, leaves
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping

BOTH_WAYS = """
mapping both_ways for cpu
ranks M, N
in  X: {t}[N, M]
in  Y: {t}[M, N]
in  K: bool[N, M]
out Z: {t}[M, N]
out W: {t}[N, M]

kernel into over m: M, n: N {{
  for m by 64 {{
    do Z[m, n] = select(K[n, m], X[n, m] * 2, Y[m, n]) + {t}(m) with n on lane
  }}
}}
kernel out_of over m: M, n: N {{
  for n by 30 {{
    do W[n, m] = Z[m, n] + X[n, m] where m != 3 with n on lane
  }}
}}
"""
MASKED = """
ranks E=16, F=16
in Q: f32[H, P, E], K: f32[H, M, E], V: f32[H, M, F], B: {mask}
out AV: f32[H, P, F]
QK[h, p, m] = Q[h, p, e] * K[h, m, e] / 4
S[h, p, m]  = {score}
GM[h, p]    = S[h, p, m]              :: max(m)
SN[h, p, m] = exp(S[h, p, m] - GM[h, p])
SD[h, p]    = SN[h, p, m]
AV[h, p, f] = SN[h, p, m] / SD[h, p] * V[h, m, f]
"""
MASKS = {
    "added": ("f32[P, M]", "QK[h, p, m] + B[p, m]"),
    "chosen": ("bool[H, P, M]", "select(B[h, p, m], QK[h, p, m], -10000.0)"),
    "along the queries": ("f32[M, P]", "QK[h, p, m] * B[m, p]"),
    "shifted": ("f32[P, M]", "QK[h, p, m] + B[p, m - 1]"),
}


@pytest.mark.parametrize("t", ["f32", "f64"])
@pytest.mark.parametrize("sizes", [(1, 1), (8, 8), (7, 9), (100, 75), (65, 3), (3, 65)])
def test_leaves_that_read_and_write_across(
    t: str, sizes: tuple[int, int], rng: np.random.Generator
) -> None:
    m, n = sizes
    mapping = parse_mapping(BOTH_WAYS.format(t=t))
    x, y = (rng.standard_normal(s).astype(t.replace("f", "float")) for s in ((n, m), (m, n)))
    k = rng.random((n, m)) < 0.5
    got = tcc.compile(BOTH_WAYS.format(t=t))(x, y, k)
    want, _ = interpret_mapping(mapping, {"X": x, "Y": y, "K": k})
    for found, name in zip(got, ("Z", "W"), strict=True):
        np.testing.assert_allclose(found, want[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", MASKS)
def test_scores_with_a_tensor_of_masks(kind: str, rng: np.random.Generator) -> None:
    mask, score = MASKS[kind]
    c = parse_cascade(MASKED.format(mask=mask, score=score))
    for p, m in ((100, 203), (9, 30)):
        sizes = {"H": 2, "P": p, "M": m}
        inputs = {x: rng.standard_normal((2, sizes[r], 16)).astype("f") for x, r in zip("QKV", "PMM", strict=True)}  # fmt: skip
        shape = tuple(sizes[s.strip()] for s in mask[mask.index("[") + 1 : -1].split(","))
        inputs["B"] = rng.random(shape) < 0.5 if "bool" in mask else rng.random(shape).astype("f")
        results = [run(built(c), c, inputs)]
        if m < 64:
            results.append(interpret_mapping(lowered(c), inputs)[0])
        want = interpret_with_bounds(c, inputs)["AV"]
        for got in results:
            assert np.all(np.abs(got["AV"] - want.data) <= want.error)


def test_a_mask_is_read_once_per_tile() -> None:
    mapping = lowered(parse_cascade(MASKED.format(mask=MASKS["added"][0], score=MASKS["added"][1])))
    (kernel,) = (k for k in mapping.kernels if isinstance(k, Kernel))
    readers = [d for d in leaves(kernel.body) if any(a.tensor == "B" for a in d.einsum.reads)]
    assert len(readers) == 1, str(mapping)


@pytest.mark.parametrize("sizes", [(5, 9), (64, 64), (100, 203)])
def test_sums_with_a_transpose(sizes: tuple[int, int], rng: np.random.Generator) -> None:
    program = (
        "in A: f32[M, N], B: f32[N, M]\nout C: f32[M, N], D: f32[N, M]\nT[m, n] = B[n, m] * 2\n"
    )
    program += "C[m, n] = A[m, n] + T[m, n] * T[m, n]\nD[n, m] = exp(T[m, n]) - A[m, n]"
    a, b = (rng.standard_normal(s).astype("f") for s in (sizes, sizes[::-1]))
    c, d = tcc.compile(program)(a, b)
    np.testing.assert_allclose(c, a + 4 * b.T * b.T, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(d, np.exp(2 * b) - a.T, rtol=2e-6, atol=1e-6)
