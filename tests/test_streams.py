"""Joint reductions on CPUs: one kernel, one walk, scratch that does not grow; C and mapping mean what the cascade means."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from c_runs import built, lowered, run

from tcc import pipeline, targets
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.expr import Const, Expr, Size, Var, call, text
from tcc.ir.interpret import interpret_with_bounds
from tcc.ir.mapping import Alloc, Do, Kernel, Loop, walk_nodes
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping, print_mapping
from tcc.passes._polyhedra import nonempty, tile_conditions

CPU = targets.find("cpu")

FLAT = """
in Q: f32[E, P], K: f32[E, M], V: f32[F, M]
out AV: f32[F, P]
QK[m, p] = {score} {where}
GM[p]    = QK[m, p]                    :: max(m)
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p]    = SN[m, p]
A[m, p]  = SN[m, p] / SD[p]
AV[f, p] = A[m, p] * V[f, m]
"""
HEADS = """
ranks E=64, F=64
in Q: f32[H, P, E], K: f32[H, M, E], V: f32[H, M, F]
out AV: f32[H, P, F]
QK[h, p, m] = Q[h, p, e] * K[h, m, e] / sqrt(E) {where}
GM[h, p]    = QK[h, p, m]              :: max(m)
SN[h, p, m] = exp(QK[h, p, m] - GM[h, p])
SD[h, p]    = SN[h, p, m]
AV[h, p, f] = SN[h, p, m] / SD[h, p] * V[h, m, f]
"""
SCORE = "Q[e, p] * K[e, m] / sqrt(E)"
WHERE = {
    "full": "",
    "causal": "where m <= p",
    "window": "where m <= p, m > p - 50",
    "late": "where m < p - 3",
    "even": "where m % 2 == 0",
}
ROWS = {
    "log of a sum": "in X: f32[R, M]\nout L: f32[R]\nG[r] = X[r, m] :: max(m)\nS[r] = exp(X[r, m] - G[r])\n"
    "L[r] = G[r] + log(S[r])",
    "variance": "in X: f32[R, M]\nout V: f32[R]\nA[r] = X[r, m] / M\nB[r] = (X[r, m] - A[r]) ** 2\nV[r] = B[r] / M",
    "one query": "in Q: f32[R, E], K: f32[R, M, E], W: f32[R, M, F]\nout O: f32[R, F]\n"
    "S[r, m] = Q[r, e] * K[r, m, e]\nG[r] = S[r, m] :: max(m)\nX[r, m] = exp(S[r, m] - G[r])\n"
    "D[r] = X[r, m]\nO[r, f] = X[r, m] / D[r] * W[r, m, f]",
    "first place of the maximum": "in X: f32[R, M]\nout I: i64[R]\nI[r] = X[r, m] :: argmax(m)",
}


def agrees(
    program: str, rng: np.random.Generator, sizes: dict[str, int], change: Any = None
) -> None:
    """C and the mapping's interpreter give what the cascade's gives, on random inputs."""
    c = parse_cascade(program)
    shapes = {
        t.name: tuple(sizes.get(s.rank, 64) if isinstance(s, Size) else 64 for s in t.shape)
        for t in c.inputs
    }
    inputs = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    if change is not None:
        change(inputs)
    want = interpret_with_bounds(c, inputs)
    found = run(built(c), c, inputs)
    mapped, _ = interpret_mapping(lowered(c), inputs)
    for name, value in want.items():
        for got in (found[name], mapped[name]):
            near = np.abs(got - value.data) <= value.error
            assert np.all(near | (np.isnan(got) & np.isnan(value.data)) | (got == value.data)), name


@pytest.mark.parametrize("kind", WHERE)
@pytest.mark.parametrize("sizes", [(1, 1), (70, 300), (97, 193), (200, 60)])
def test_every_mask_at_sizes_that_are_no_multiples(
    kind: str, sizes: tuple[int, int], rng: np.random.Generator
) -> None:
    known = {"P": sizes[0], "M": sizes[1], "E": 8, "F": 20}
    agrees(FLAT.format(score=SCORE, where=WHERE[kind]), rng, known)


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_heads_that_are_stored_as_pytorch_stores_them(kind: str, rng: np.random.Generator) -> None:
    agrees(HEADS.format(where=WHERE[kind]), rng, {"H": 2, "P": 130, "M": 300})


@pytest.mark.parametrize(
    "score", ["30 * tanh(Q[e, p] / 30)", "exp(0 - abs(f32(m) - f32(p)) / 4)", "f32(m) - f32(p)"]
)
def test_scores_of_many_kinds(score: str, rng: np.random.Generator) -> None:
    body = score.replace("Q[e, p]", "S[m, p]")
    program = FLAT.format(score=f"S[m, p] + {body}", where="")
    program = program.replace("QK[m, p] =", f"S[m, p] = {SCORE}\nQK[m, p] =")
    agrees(program, rng, {"P": 70, "M": 300, "E": 8, "F": 20})


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("length", [1, 5, 9000])
def test_rows(name: str, length: int, rng: np.random.Generator) -> None:
    agrees(ROWS[name], rng, {"R": 3, "M": length, "E": 16, "F": 24})


def test_scores_of_minus_infinity_and_of_any_size(rng: np.random.Generator) -> None:
    def change(inputs: dict[str, Any]) -> None:
        inputs["Q"][:, 0] *= 1e4
        inputs["Q"][:, 1] *= 1e-30
        inputs["K"][:, 5:250] = -np.inf  # whole tiles of them, in rows that also have finite scores
        inputs["Q"][:, 2:] = np.abs(inputs["Q"][:, 2:])

    agrees(FLAT.format(score=SCORE, where=""), rng, {"P": 40, "M": 300, "E": 1, "F": 20}, change)


@pytest.mark.parametrize(
    "program", [FLAT.format(score=SCORE, where=""), HEADS.format(where="where m <= p")]
)
def test_attention_is_one_kernel_whose_scratch_does_not_grow(program: str) -> None:
    c = parse_cascade(program)
    m = lowered(c)
    kernels = [k for k in m.kernels if isinstance(k, Kernel)]
    assert len(kernels) == 1 and not m.memory
    walked = [
        n
        for n in walk_nodes(kernels[0].body)
        if isinstance(n, Loop) and n.var == "m" and n.step >= 48
    ]
    assert walked, "no loop over tiles of m"
    for n in walk_nodes(kernels[0].body):
        if isinstance(n, Alloc) and "m" in [text(d) for d in n.buffer.dims]:
            assert any(n in walk_nodes(w.body) for w in walked), n.buffer
    scratch = set()
    for length in (1000, 100_000):
        sizes = {"H": 2, "P": 64, "M": length, "E": 64, "F": 64}
        shapes = {
            t.name: tuple(sizes[s.rank] for s in t.shape if isinstance(s, Size))
            for t in (*c.inputs, *c.outputs)
        }
        strides = {
            n: tuple(int(np.prod(s[i + 1 :])) for i in range(len(s))) for n, s in shapes.items()
        }
        scratch.add(built(c).bind(shapes, strides, sizes).total)
    assert len(scratch) == 1 and scratch.pop() < 8 << 20


def test_a_tile_of_scores_is_written_twice_and_copied_never() -> None:
    """No copies: exponentials replace the scores they are made of, and add up where they are made."""
    m = lowered(parse_cascade(FLAT.format(score=SCORE, where="")))
    [kernel] = [k for k in m.kernels if isinstance(k, Kernel)]
    nodes = list(walk_nodes(kernel.body))
    along = [n for n in nodes if isinstance(n, Alloc) and "m" in map(text, n.buffer.dims)]
    assert len(along) == 1
    [tile] = [n.buffer.name for n in along]
    writes = [n for n in nodes if isinstance(n, Do) and n.einsum.target == tile]
    assert len(writes) == 2
    shared = [n for n in nodes if isinstance(n, Loop) and writes[1] in n.body]
    assert [n.update for n in shared[0].body if isinstance(n, Do)] == [False, True]


def test_causal_tiles_are_split_into_full_and_partial_ones() -> None:
    shown = print_mapping(lowered(parse_cascade(FLAT.format(score=SCORE, where="where m <= p"))))
    full, partial = [
        line.strip() for line in shown.splitlines() if line.strip().startswith("for m by 192 when")
    ]
    assert full == "for m by 192 when p.low + 1 >= m.high {"
    assert "m.low" in partial
    assert print_mapping(parse_mapping(shown)) == shown
    inside = shown[shown.index(full) : shown.index(partial)]
    assert "where" not in inside


# ---- what isl says, against enumeration

P, M = Size("P"), Size("M")
m, p = Var("m"), Var("p")
PREDICATES: dict[str, list[Expr]] = {
    "causal": [call("le", m, p)],
    "window": [call("le", m, p), call("gt", m, call("sub", p, Const(5)))],
    "shifted": [call("le", m, call("add", p, call("sub", M, P)))],
    "either": [call("or", call("lt", m, Const(3)), call("ge", m, call("add", p, Const(2))))],
    "stripes": [call("eq", call("mod", call("sub", p, m), Const(3)), Const(0))],
}


def holds(e: Expr, values: dict[str, int]) -> bool:
    """A predicate at a point, by Python."""
    shown = text(e)
    for name, value in sorted(values.items(), key=lambda item: -len(item[0])):
        shown = shown.replace(name, str(value))
    return bool(eval(shown.replace("true", "True").replace("false", "False")))


@pytest.mark.parametrize("name", PREDICATES)
def test_conditions_on_tiles_are_those_of_enumeration(name: str) -> None:
    found = tile_conditions(PREDICATES[name], {"p": P, "m": M})
    assert found is not None
    exact = name != "stripes"  # a modulus: the conditions may only err on the safe side
    for rows, keys in ((9, 12), (12, 7)):
        for a, b in itertools.product(range(0, rows, 4), range(0, keys, 3)):
            box = {"p.low": a, "p.high": min(a + 4, rows), "m.low": b, "m.high": min(b + 3, keys)}
            ends = {**box, "P": rows, "M": keys}
            points = [
                all(holds(e, {"m": j, "p": i, "P": rows, "M": keys}) for e in PREDICATES[name])
                for i in range(box["p.low"], box["p.high"])
                for j in range(box["m.low"], box["m.high"])
            ]
            full, part = (holds(e, ends) for e in found)
            assert not (full and part)
            assert full == all(points) if exact else not full or all(points)
            assert (
                part == (any(points) and not all(points))
                if exact
                else (full or part) or not any(points)
            )


@pytest.mark.parametrize("name", [n for n in PREDICATES if n != "stripes"])
def test_rows_without_any_point_are_those_of_enumeration(name: str) -> None:
    found = nonempty(PREDICATES[name], "m", M)
    assert found is not None
    for rows, keys in ((9, 12), (12, 7)):
        for i in range(rows):
            some = any(
                all(holds(e, {"m": j, "p": i, "P": rows, "M": keys}) for e in PREDICATES[name])
                for j in range(keys)
            )
            said = (
                found if isinstance(found, bool) else holds(found, {"p": i, "P": rows, "M": keys})
            )
            assert said == some


# ---- fusion by cost

NORM = """
in X: f32[T, D], W: f32[D, N], G: f32[D]
out Y: f32[T, N]
"""
FUSED = {
    "scaled by the root of squares": NORM
    + "S[t] = X[t, d] * X[t, d]\nR[t] = rsqrt(S[t] / D + 0.00001)\n"
    "XN[t, d] = X[t, d] * R[t] * G[d]\nY[t, n] = XN[t, d] * W[d, n]",
    "centred and scaled": NORM
    + "A[t] = X[t, d] / D\nC[t, d] = X[t, d] - A[t]\nB[t] = C[t, d] * C[t, d] / D\n"
    "XN[t, d] = C[t, d] * rsqrt(B[t] + 0.00001) * G[d]\nY[t, n] = XN[t, d] * W[d, n]",
    "scaled by the largest": "in X: f32[T, D], W: f32[D, N]\nout Y: f32[T, N]\nA[t] = abs(X[t, d]) :: max(d)\n"
    "XQ[t, d] = X[t, d] / A[t] * 127\nZ[t, n] = XQ[t, d] * W[d, n]\nY[t, n] = Z[t, n] * A[t] / 127",
    "three products": "in X: f32[T, D], W: f32[D, N], U: f32[D, N], G: f32[D, N]\n"
    "out Y: f32[T, N], Z: f32[T, N], O: f32[T, N]\nY[t, n] = X[t, d] * W[d, n]\nZ[t, n] = X[t, d] * U[d, n]\n"
    "O[t, n] = X[t, d] * G[d, n]",
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("fixed", [False, True])
def test_what_shares_its_rows_is_one_kernel(
    name: str, fixed: bool, rng: np.random.Generator
) -> None:
    sizes = {"T": 1000, "D": 64, "N": 300} if fixed else {"T": 70, "D": 40, "N": 90}
    ranks = f"ranks {', '.join(f'{r}={n}' for r, n in sizes.items())}\n" if fixed else ""
    program = ranks + FUSED[name].strip()
    c = parse_cascade(program)
    kernels = [k.name for k in lowered(c).kernels if isinstance(k, Kernel)]
    assert len([k for k in kernels if not k.startswith("pack_")]) == 1, kernels
    inputs = {t.name: rng.standard_normal([sizes[s.rank] for s in t.shape if isinstance(s, Size)]).astype(np.float32)
              for t in c.inputs}  # fmt: skip
    want, found = interpret_with_bounds(c, inputs), run(built(c), c, inputs)
    for n, value in want.items():
        assert np.all(np.abs(found[n] - value.data) <= value.error)


def test_gradients_of_scores_are_not_stored() -> None:
    program = """
    ranks E=64, F=64, P=512, M=512
    in Q: f32[E, P], K: f32[E, M], V: f32[F, M], GM: f32[P], SD: f32[P], dS: f32[F, P]
    out dQ: f32[E, P], dK: f32[E, M], dV: f32[F, M]
    QK[m, p] = Q[e, p] * K[e, m] / sqrt(E)
    SN[m, p] = exp(QK[m, p] - GM[p]) / SD[p]
    dA[m, p] = dS[f, p] * V[f, m]
    dX[m, p] = dA[m, p] * SN[m, p]
    dQ[e, p] = dX[m, p] * K[e, m]
    dK[e, m] = dX[m, p] * Q[e, p]
    dV[f, m] = dS[f, p] * SN[m, p]
    """
    c = parse_cascade(program)
    fused = pipeline.run(c, CPU).after("fuse")
    assert [j.var for j in fused.joints] == ["m", "p"]
    assert not [b for b in lowered(c).memory if len(b.dims) > 1]
    rng = np.random.default_rng(0)
    inputs = {t.name: (rng.random([512 if isinstance(s, Size) and s.rank in "PM" else 64 for s in t.shape]) + 0.1)
              .astype(np.float32) for t in c.inputs}  # fmt: skip
    inputs["GM"] += 30
    want, found = interpret_with_bounds(c, inputs), run(built(c), c, inputs)
    for n, value in want.items():
        assert np.all(np.abs(found[n] - value.data) <= value.error), n


def test_long_rows_add_up_in_double_precision(rng: np.random.Generator) -> None:
    c = parse_cascade(ROWS["variance"])
    x = (rng.standard_normal((64, 50_000)) + 3).astype(np.float32)
    found = run(built(c), c, {"X": x})["V"]
    exact = x.astype(np.float64).var(1)
    assert np.abs(found - exact).max() < 4e-7
