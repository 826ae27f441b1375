"""What `where` excludes does not exist: NaN and infinity there reach no result, of C, of mappings, or of their tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from c_runs import built, lowered, run

import tcc
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import bind, interpret, interpret_with_bounds
from tcc.ir.mapping_interpret import interpret_mapping

ATTENTION = """
ranks E=8, F=32
in Q: f32[H, P, E], K: f32[H, M, E], V: f32[H, M, F], {masks}
out AV: f32[H, P, F]
QK[h, p, m] = Q[h, p, e] * K[h, m, e] / sqrt(E) where {where}
GM[h, p]    = QK[h, p, m]              :: max(m)
SN[h, p, m] = exp(QK[h, p, m] - GM[h, p])
SD[h, p]    = SN[h, p, m]
AV[h, p, f] = SN[h, p, m] / SD[h, p] * V[h, m, f]
"""
COLUMNS = """
in Q: f32[E, P], K: f32[E, M], V: f32[F, M], {masks}
out AV: f32[F, P]
QK[m, p] = Q[e, p] * K[e, m] where {where}
GM[p]    = QK[m, p]                    :: max(m)
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p]    = SN[m, p]
AV[f, p] = SN[m, p] / SD[p] * V[f, m]
"""
PRODUCT = """
in A: {t}[M, K], B: {t}[K, N], X: {t}[N], {masks}
out C: {t}[M, N]
C[m, n] = A[m, k] * B[k, n] * X[n] :: sum(k) where {where}
"""
ATTENTION_MASKS = {
    "causal": ("", "m <= p"),
    "window": ("", "m <= p, m > p - 50"),
    "late": ("", "m <= p + (M - P)"),
    "stripes": ("", "(p - m) % 3 == 0"),
    "padding": ("Keep: bool[M]", "Keep[m]"),
    "lengths": ("Len: i32[H]", "m < Len[h]"),
    "a mask of pairs": ("Keep: bool[P, M]", "Keep[p, m]"),
    "pairs and causal": ("Keep: bool[H, M, P]", "Keep[h, m, p], m <= p"),
}
COLUMN_MASKS = {k: v for k, v in ATTENTION_MASKS.items() if "H" not in v[0]}
PRODUCT_MASKS = {
    "lower triangle": ("", "k <= m"),
    "upper triangle": ("", "k >= n"),
    "band": ("", "k <= m + 20, m <= k + 20"),
    "a step": ("Keep: bool[K]", "Keep[k]"),
    "rows": ("Keep: bool[M, K]", "Keep[m, k]"),
    "columns": ("Keep: bool[N, K]", "Keep[n, k], k > 3"),
    "ragged": ("Len: i32[M]", "k < Len[m]"),
    "everything": ("Keep: bool[M, N, K]", "Keep[m, n, k]"),
    "rows and columns": ("Keep: bool[K, N]", "Keep[k, n], k <= m"),
}
NASTY = (np.nan, np.inf, -np.inf)


def arrays(c: Cascade, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for t in c.inputs:
        shape = tuple(evaluate_size(s, sizes) for s in t.shape)
        if t.dtype.kind == "b":
            out[t.name] = rng.random(shape) < 0.7
        elif t.dtype.kind == "i":
            out[t.name] = rng.integers(0, max(sizes.values()), shape).astype(t.dtype.numpy)
        else:
            out[t.name] = rng.standard_normal(shape).astype(t.dtype.numpy)
    return out


def poisoned(array: Any, axis: int, rng: np.random.Generator) -> Any:
    """Slices of an array that hold NaN or infinity, some whole and some at single points."""
    out = array.copy()
    slices = np.moveaxis(out, axis, 0)
    last = len(slices) - 1
    for n in {int(last * (1 - rng.random() ** 2)) for _ in range(1 + last // 8)}:
        where = rng.random(slices[n].shape) < rng.choice([0.1, 1.0])
        slices[n][where] = rng.choice(NASTY)
    return out


def agrees(program: str, sizes: dict[str, int], spoil: dict[str, int], rng: Any) -> None:
    """`spoil`: an input, and the axis of which some slices are spoiled, late ones most."""
    c = parse_cascade(program.replace(", \n", "\n"))
    program_, mapping = built(c), lowered(c)
    inputs = arrays(c, sizes | {r.name: 32 if r.name == "F" else 8 for r in c.ranks if r.size}, rng)
    known = bind(c, inputs)
    assert known == {**known, **sizes}
    bounds = {name: v.error for name, v in interpret_with_bounds(c, inputs).items()}
    for name, axis in [*spoil.items(), ("", 0)]:
        mine = dict(inputs)
        if name:
            mine[name] = poisoned(inputs[name], axis, rng)
        with np.errstate(all="ignore"):
            want = interpret(c, mine)
            results = [run(program_, c, mine)]
            if max(sizes.values()) < 64:  # slow
                results.append(interpret_mapping(mapping, mine)[0])
            for out, value in want.items():
                for got in (r[out] for r in results):
                    near = np.abs(got - value) <= 2 * np.nan_to_num(bounds[out])
                    right = near | (got == value) | (np.isnan(got) & np.isnan(value))
                    assert right.all(), f"{name} {np.argwhere(~right)[:3].tolist()}\n{c}"


@pytest.mark.parametrize("kind", ATTENTION_MASKS)
def test_excluded_keys_and_values_reach_no_query(kind: str, rng: np.random.Generator) -> None:
    masks, where = ATTENTION_MASKS[kind]
    for p, m in ((130, 300), (20, 45)):
        known = {"H": 2, "P": p, "M": m}
        agrees(ATTENTION.format(masks=masks, where=where), known, {"V": 1, "K": 1}, rng)


@pytest.mark.parametrize("kind", COLUMN_MASKS)
def test_nor_where_queries_lie_along_the_lanes(kind: str, rng: np.random.Generator) -> None:
    masks, where = COLUMN_MASKS[kind]
    for p, m in ((70, 250), (20, 45)):
        known = {"P": p, "M": m, "E": 8, "F": 20}
        agrees(COLUMNS.format(masks=masks, where=where), known, {"V": 1, "K": 1}, rng)


@pytest.mark.parametrize("kind", PRODUCT_MASKS)
def test_excluded_terms_of_a_product_reach_no_sum(kind: str, rng: np.random.Generator) -> None:
    masks, where = PRODUCT_MASKS[kind]
    program = PRODUCT.format(t="f64" if kind == "band" else "f32", masks=masks, where=where)
    for m, k, n in ((50, 300, 40), (3, 5, 17)):
        agrees(program, {"M": m, "K": k, "N": n}, {"A": 1, "B": 0}, rng)


def test_padding_may_hold_anything(rng: np.random.Generator) -> None:
    masks, where = ATTENTION_MASKS["padding"]
    c = parse_cascade(ATTENTION.format(masks=masks, where=where))
    inputs = arrays(c, {"H": 2, "P": 40, "M": 200, "E": 8, "F": 32}, rng)
    want = run(built(c), c, inputs)["AV"]
    for name in ("K", "V"):
        inputs[name][:, ~inputs["Keep"]] = rng.choice(NASTY)
    assert np.array_equal(run(built(c), c, inputs)["AV"], want)


@pytest.mark.parametrize("where", ["k < m", "Keep[m, k]", "Keep[k, m], n < 9"])
def test_a_row_without_a_term_is_0_whatever_would_scale_it(where: str, rng: Any) -> None:
    masks = f", Keep: bool[{'K, M' if 'k, m' in where else 'M, K'}]" if "Keep" in where else ""
    c = parse_cascade(
        f"in A: f32[M, K], B: f32[K, N], S: f32[M]{masks}\nout C: f32[M, N]\n"
        f"C[m, n] = A[m, k] * B[k, n] / S[m] :: sum(k) where {where}"
    )
    inputs = arrays(c, {"M": 20, "K": 30, "N": 17}, rng)
    inputs["S"][0] = 0
    if "Keep" in inputs:
        inputs["Keep"][:2], inputs["Keep"][:, :2] = False, False
    want = interpret(c, inputs)["C"]
    assert (want[0] == 0).all()
    for got in (run(built(c), c, inputs), interpret_mapping(lowered(c), inputs)[0]):
        np.testing.assert_allclose(got["C"], want, rtol=1e-4, atol=1e-4)


def test_a_walk_of_no_length_gives_what_its_definitions_give() -> None:
    program = tcc.compile(COLUMNS.format(masks="X: f32[P]", where="m <= p"))
    none, some = np.zeros((4, 0), np.float32), np.ones((4, 5), np.float32)
    got = program(Q=some, K=none, V=none, X=some[0])
    assert got.shape == (4, 5) and (got == 0).all()
