"""Long walks of few rows run in parts: what the parts and their merge give is what the naive program gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from c_runs import run

from tcc import pipeline, targets
from tcc.backends.c import build
from tcc.explain import explain
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.expr import Const
from tcc.ir.interpret import interpret, interpret_with_bounds
from tcc.ir.joint import Stream, interpret_joints
from tcc.ir.mapping import Kernel, Loop
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.target import Target
from tcc.passes._split_walk import divided
from tcc.passes.split import cuts
from tcc.samples import random_inputs

CPU = targets.find("cpu")
Arrays = dict[str, Any]

ATTENTION = """
ranks H={heads}, E=8, F=5
in Q: {t}[H, E], K: {t}[H, M, E], V: {t}[H, M, F], B: {t}[H, M]
out O: {t}[H, F], L: {t}[H]
S[h, m] = Q[h, e] * K[h, m, e] + B[h, m] {where}
G[h] = S[h, m] :: max(m)
X[h, m] = exp(S[h, m] - G[h])
D[h] = X[h, m]
O[h, f] = X[h, m] / D[h] * V[h, m, f]
L[h] = G[h] + log(D[h])
"""
GROUPED = """
ranks G=2, R=3, E=8, F=5
in Q: {t}[G, R, E], K: {t}[G, M, E], V: {t}[G, M, F]
out O: {t}[G, R, F]
S[g, r, m] = Q[g, r, e] * K[g, m, e] {where}
T[g, r] = S[g, r, m] :: max(m)
X[g, r, m] = exp(S[g, r, m] - T[g, r])
D[g, r] = X[g, r, m]
O[g, r, f] = X[g, r, m] / D[g, r] * V[g, m, f]
"""
PROGRAMS = {
    "one query": ATTENTION.replace("{heads}", "1"),
    "three heads": ATTENTION.replace("{heads}", "3"),
    "grouped heads": GROUPED,
    "block of queries": """
ranks P=19, E=8, F=5
in Q: {t}[E, P], K: {t}[E, M], V: {t}[F, M]
out O: {t}[F, P]
S[m, p] = Q[e, p] * K[e, m] {where}
G[p] = S[m, p] :: max(m)
X[m, p] = exp(S[m, p] - G[p])
D[p] = X[m, p]
O[f, p] = X[m, p] / D[p] * V[f, m]
""",
    "log of a sum": "in A: {t}[M]\nout L: {t}\nG = A[m] :: max(m) {where}\nS = exp(A[m] - G) {where}\nL = G + log(S)",
    "variance": "in A: {t}[M]\nout V: {t}\nN = A[m] / M\nD = (A[m] - N) ** 2\nV = D / M",
    "normalised": "in A: {t}[M]\nout Y: {t}[M]\nG = A[m] :: max(m)\nS = exp(A[m] - G)\nY[m] = exp(A[m] - G) / S",
    "normalised, stored": "in A: {t}[M]\nout Y: {t}[M]\nG = A[m] :: max(m)\nX[m] = exp(A[m] - G)\nS = X[m]\n"
    "Y[m] = X[m] / S",
    "any": "in A: {t}[M]\nout S: bool\nS = A[m] > 1.5 :: any(m) {where}",
    "bits": "in A: i64[M], B: i64[M]\nout S: i64, T: i64\nS = A[m] * 7 :: xor(m) {where}\nT = B[m] - A[m] :: min(m)",
    "first place": "ranks R=2\nin A: {t}[R, M]\nout I: i64[R]\nI[r] = A[r, m] :: argmax(m) {where}",
    "payload": "in A: {t}[M], B: {t}[M]\nout P: {t}\nG = A[m] :: max(m)\nP = B[m] :: sum(m) where A[m] == G",
    "sum": "in A: {t}[M]\nout S: {t}\nS = A[m] {where}",
    "sum of all": "in A: {t}[M, N]\nout S: {t}\nS = A[m, n] * 2 {where}",
    "largest": "in A: {t}[M]\nout S: {t}\nS = A[m] :: max(m) {where}",
    "product": "in A: {t}[M]\nout S: {t}\nS = 1 + A[m] / 100 :: prod(m)",
    "columns of squares": "ranks I=4, J=3\nin A: {t}[M, I], B: {t}[M, J]\nout C: {t}[I, J]\nC[i, j] = A[m, i] * B[m, j]",
    "a norm": "in A: {t}[M], B: {t}[M]\nout S: {t}, Y: {t}[M]\nC[m] = A[m] * B[m] + B[m] * B[m]\n"
    "D = C[m]\nS = sqrt(abs(D))\nY[m] = C[m] / S",
}  # fmt: skip
WHERES = {"all": "", "some": "where m % 3 != 1", "late": "where m >= 11"}


def program(name: str, t: str = "f64", where: str = "all") -> Cascade:
    text = PROGRAMS[name].replace("{t}", t).replace("{where}", WHERES[where])
    return parse_cascade(f"cascade it\n{text}")


def before(c: Cascade, target: Target = CPU) -> Cascade:
    """The program as `split` gets it."""
    names = pipeline.PASSES[: pipeline.PASSES.index("split")]
    found = pipeline.run(c, target, pipeline.passes(names)).program
    assert isinstance(found, Cascade)
    return found


def in_parts(c: Cascade, length: int) -> Cascade:
    """The program with every walk that would be cut in parts of that length."""
    found = cuts(c, CPU) or cuts(_fixed(c), CPU)
    assert found
    for cut in found:
        c = divided(c, cut.joint, cut.members, length)
    return c


def _fixed(c: Cascade) -> Cascade:
    """The program with as many coordinates as pay in any case."""
    return replace(
        c, ranks=tuple(replace(r, size=Const(1 << 20)) if r.name in "MN" else r for r in c.ranks)
    )


def values(c: Cascade, m: int, seed: int, n: int = 6, *, lost: bool = False) -> Arrays:
    r = np.random.default_rng(seed)
    extents = {"M": m, "N": n}
    made: Arrays = {}
    for t in c.inputs:
        shape = tuple(_size(c, s, extents) for s in t.shape)
        made[t.name] = r.standard_normal(shape).astype(t.dtype.numpy)
        if t.name == "B" and lost and shape[1:] == (m,):
            made["B"][:, : m // 2] = -np.inf  # parts in which there is nothing
            made["B"][:, r.random(m) < 0.2] = -np.inf
            made["B"][-1] = -np.inf
            made["B"][:, -1] = 0.5  # one key is left
    return made


def _size(c: Cascade, s: Any, extents: dict[str, int]) -> int:
    from tcc.ir.index import evaluate_size

    return int(evaluate_size(c.resolved(s), extents))


@pytest.mark.parametrize("where", WHERES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_parts_and_their_merge_are_the_naive_program(name: str, where: str) -> None:
    if where != "all" and "{where}" not in PROGRAMS[name]:
        pytest.skip("no predicate")
    naive = program(name, where=where)
    c = before(naive)
    for length, m in ((1, 13), (7, 47), (16, 48), (64, 12), (64, 1), (64, 0)):
        if not m and "/ D[" in PROGRAMS[name]:
            continue  # 0 / 0 without any key
        made = in_parts(c, length)
        inputs = values(naive, m, length)
        want = interpret(naive, inputs)
        for got in (interpret(made, inputs), interpret_joints(made, inputs, form=Stream(5))):
            for t, value in want.items():
                np.testing.assert_allclose(
                    got[t], value, rtol=1e-12, atol=1e-12, err_msg=f"{t} {m}"
                )


@pytest.mark.parametrize("length", [3, 8])
def test_parts_without_any_finite_score_count_nothing(length: int) -> None:
    naive = program("three heads")
    inputs = values(naive, 29, 1, lost=True)
    want = interpret(naive, inputs)
    made = in_parts(before(naive), length)
    for got in (interpret(made, inputs), interpret_joints(made, inputs, form=Stream(2))):
        for t, value in want.items():
            np.testing.assert_allclose(got[t], value, rtol=1e-12, atol=1e-12)


def test_huge_and_tiny_scores_are_merged_without_overflow() -> None:
    naive = program("three heads")
    for scale in (1e-30, 1e5):
        inputs = values(naive, 31, 2)
        inputs["B"] = inputs["B"] * scale
        want = interpret(naive, inputs)
        got = interpret(in_parts(before(naive), 4), inputs)
        for t, value in want.items():
            np.testing.assert_allclose(got[t], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_mapping_and_the_code_in_c_agree(name: str) -> None:
    naive = program(name, "f32", "some")
    made = in_parts(before(naive), 16)
    mapping = pipeline.run(made, CPU, pipeline.passes(("fuse", "map"))).mapping
    assert mapping is not None
    compiled = built_from(mapping)
    for m in (0, 1, 16, 75)[PROGRAMS[name].count("/ D[") :]:  # 0 / 0 without any key
        inputs = values(naive, m, m, lost=m > 1)
        want = interpret_with_bounds(naive, inputs)
        found = run(compiled, naive, inputs)
        mapped, _ = interpret_mapping(mapping, inputs)
        for t, value in want.items():
            for got in (found[t], mapped[t]):
                with np.errstate(invalid="ignore"):
                    near = np.abs(got * 1.0 - value.data * 1.0) <= value.error
                assert np.all(
                    near | (np.isnan(got) & np.isnan(value.data)) | (got == value.data)
                ), t


def built_from(mapping: Any) -> Any:
    from tcc.backends import c as backend

    return backend.build(mapping, CPU)


QUERY = """
ranks H={heads}, E=64, F=64, M={keys}
in Q: f32[H, E], K: f32[H, M, E], V: f32[H, M, F]
out O: f32[H, F]
S[h, m] = Q[h, e] * K[h, m, e] / sqrt(E)
G[h] = S[h, m] :: max(m)
X[h, m] = exp(S[h, m] - G[h])
D[h] = X[h, m]
O[h, f] = X[h, m] / D[h] * V[h, m, f]
"""


def query(heads: int | str, keys: int | str) -> Cascade:
    text = QUERY.replace("{heads}", str(heads)).replace("{keys}", str(keys))
    for r in "HM":
        text = text.replace(f" {r}=None,", "").replace(f", {r}=None", "")
    return parse_cascade(f"cascade it\n{text}")


def with_cores(n: int) -> Target:
    return replace(
        CPU,
        resources=tuple(
            replace(r, count=n if r.name == "core" else r.count) for r in CPU.resources
        ),
    )


def parts(c: Cascade, target: Target = CPU) -> list[int]:
    return [x.length for x in cuts(before(c, target), target)]


def test_one_query_over_many_keys_is_cut_and_many_rows_are_not() -> None:
    assert parts(query(1, 4096)) == [256]
    assert parts(query(2, 4096)) == [512]
    assert parts(query(8, 4096)) == []
    assert parts(query(64, 4096)) == []
    assert parts(query(1, 60)) == [], "a short walk"
    assert parts(query(2, "None")) != [], "any number of keys"
    assert parts(query("None", 4096)) == [], "an unknown number of rows"


def test_cores_of_the_target_decide() -> None:
    assert parts(query(8, 4096), with_cores(16)) == [1024]
    assert parts(query(1, 4096), with_cores(1)) == []
    assert parts(query(2, 4096), with_cores(2)) == []
    for name in ("fusemax", "h100", "numpy"):
        other = targets.find(name)
        assert cuts(before(query(1, 4096), other), other) == []


def test_a_part_is_a_task_of_one_kernel_and_nothing_is_packed() -> None:
    found = pipeline.run(query(1, 4096), CPU).mapping
    assert found is not None
    kernels = [k for k in found.kernels if isinstance(k, Kernel)]
    assert not any(k.name.startswith("pack") for k in kernels)
    outer = kernels[0].body[0]
    while not isinstance(outer, Loop):
        outer = outer.body[0]  # type: ignore[union-attr]
    assert outer.on == "core" and outer.var.endswith("_part")
    assert max(_elements(b.dims) for b in found.memory) <= 16 * 64, "no scores in memory"


def _elements(dims: Any) -> int:
    return int(np.prod([d.value for d in dims]))


def test_kernels_by_hand_stay() -> None:
    c = parse_cascade(
        "cascade it\nranks M=1000000\nin A: f32[M]\nout S: f32\nS = A[m]\nkernel k: S"
    )
    assert cuts(c, CPU) == []


def test_explain_says_what_is_cut_and_why() -> None:
    found = explain(pipeline.run(query(1, 4096), CPU))
    (one,) = found.json()["split"]
    assert one["length"] == 256 and one["computes"][:2] == ["G", "D"] and "1 row" in one["why"]
    assert "is cut into parts of 256" in str(found)
    assert explain(pipeline.run(query(64, 4096), CPU)).json()["split"] == []


def test_products_and_sums_are_cut_only_where_their_tiles_are_few() -> None:
    def lengths(i: int, j: int) -> list[int]:
        text = f"ranks I={i}, J={j}, M=100000\nin A: f32[M, I], B: f32[M, J]\nout C: f32[I, J]\nC[i, j] = A[m, i] * B[m, j]"
        return parts(parse_cascade(f"cascade it\n{text}"))

    assert lengths(4, 3) and not lengths(64, 64)


def test_two_walks_of_which_one_needs_the_other_run_in_their_order(
    rng: np.random.Generator,
) -> None:
    """T3 shares its walk with what T4 sums up, and reads T1, which has a walk of its own."""
    c = parse_cascade(
        "in X: i32[I], Z: i32[I]\nout T0: i32[I], T1: i32, T3: i32, T4: i32\n"
        "T0[i] = -2 * X[i]\nT1 = X[i] * T0[i]\nT3 = select(X[i] <= 3, Z[i], T1) :: min(i)\n"
        "T4 = T0[i - 1] * min(max(T3, -3000), 3000)\n"
    )
    inputs = random_inputs(c, {"I": 9}, rng)
    m = pipeline.run(c, CPU).mapping
    assert m is not None
    wanted = interpret(c, inputs)
    for found in (interpret_mapping(m, inputs)[0], run(build(m, CPU), c, inputs)):
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)
