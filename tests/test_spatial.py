"""Arrays: mappings compute what their cascades say; closed forms count what an execution does."""

from __future__ import annotations

import json
from collections.abc import Mapping as MappingABC

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import assert_matches, generate

from tcc.backends.spatial import build
from tcc.backends.spatial.report import Report
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import interpret
from tcc.ir.mapping import Mapping
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping
from tcc.ir.ops import OPS
from tcc.ir.target import Target
from tcc.ir.target_text import parse_target
from tcc.ir.work import point_operations
from tcc.passes._map_array import DATAFLOWS, map_array
from tcc.passes.fuse import fuse
from tcc.passes.restrict import restrict
from tcc.passes.simplify import simplify
from tcc.targets import find

MATMUL = """
in A: f32[M,K], B: f32[K,N]
out Z: f32[M,N]
Z[m,n] = A[m,k] * B[k,n]
"""
ATTENTION = """
ranks E=6, F=21
in Q: f32[E,P], K: f32[E,M], V: f32[F,M]
out AV: f32[F,P]
QK[m,p] = Q[e,p] * K[e,m] / sqrt(E) WHERE
GM[p]   = QK[m,p]                    :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p]   = SN[m,p]
A[m,p]  = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
kernel attention: QK, GM, SN, SD, A, AV
"""
ONE_PASS = """
ranks E=6, F=21, M0=9
in Q: f32[E,P], BK: f32[E,M1,M0], BV: f32[F,M1,M0]
out AV: f32[F,P]
RM[0,p] = -inf
RD[0,p] = 0.0
RNV[0,f,p] = 0.0
BQK[m1,m0,p]  = Q[e,p] * BK[e,m1,m0]
LM[m1,p]      = BQK[m1,m0,p] :: max(m0)
RM[m1+1,p]    = max(RM[m1,p], LM[m1,p])
SLN[m1,m0,p]  = exp(BQK[m1,m0,p] - RM[m1+1,p])
SLD[m1,p]     = SLN[m1,m0,p]
SLNV[m1,f,p]  = SLN[m1,m0,p] * BV[f,m1,m0]
PRM[m1,p]     = exp(RM[m1,p] - RM[m1+1,p])
RD[m1+1,p]    = SLD[m1,p] + RD[m1,p] * PRM[m1,p]
RNV[m1+1,f,p] = SLNV[m1,f,p] + RNV[m1,f,p] * PRM[m1,p]
AV[f,p]       = RNV[M1,f,p] / RD[M1,p]
"""
PROGRAMS = {
    "matmul": MATMUL,
    "matmul with epilogue": """
        in A: f32[M,K], B: f32[K,N], b: f32[N]
        out Y: f32[M,N]
        Z[m,n] = A[m,k] * B[k,n]
        Y[m,n] = max(Z[m,n] + b[n], 0)
        kernel layer: Z, Y
        """,
    "attention": ATTENTION.replace("WHERE", ""),
    "causal attention": ATTENTION.replace("WHERE", "where m <= p"),
    "attention in one pass": ONE_PASS,
    "batches": """
        in A: f32[H,M,K], B: f32[H,K,N]
        out Z: f32[H,M,N]
        Z[h,m,n] = A[h,m,k] * B[h,k,n]
        """,
    "two layers": """
        in X: f32[P,K], U: f32[K,H], b: f32[H], W: f32[H,N]
        out Y: f32[P,N]
        A[p,h] = X[p,k] * U[k,h]
        Y[p,n] = max(A[p,h] + b[h], 0) * W[h,n]
        """,
    "rows": """
        in X: f32[P,M], G: f32[M]
        out Y: f32[P,M]
        S[p] = X[p,m] / M
        C[p,m] = X[p,m] - S[p]
        V[p] = C[p,m] * C[p,m]
        Y[p,m] = C[p,m] * rsqrt(V[p] / M + 0.00001) * G[m]
        """,
    "matrix and vector": "in A: f32[M,K], x: f32[K]\nout y: f32[M]\ny[m] = A[m,k] * x[k]",
    "one sum": "in A: f32[M,K]\nout s: f32\ns = A[m,k]",
    "outside": "in A: f32[M]\nout B: f32[M]\nB[m] = A[m-1] * 2.0",
    "neighbours": "in A: f32[M]\nout B: f32[M]\nB[m] = A[m-1] + A[m] * A[m+2]",
    "gram": "ranks N=M\nin A: f32[M,K]\nout G: f32[M,N]\nG[m,n] = A[m,k] * A[n,k]",
}
SIZES = {"M": 37, "N": 21, "K": 19, "P": 23, "H": 5, "M1": 4}


def array(rows: int, columns: int, buffer: int = 1 << 20, operators: str = "") -> Target:
    """An array without bandwidth limits whose row does everything."""
    every = operators or "mul_add max div exp sqrt rsqrt select"
    costs = ", ".join(f"{op}: {{cycles: 1, pj: 1}}" for op in every.split())
    return parse_target(
        f"""
name: small
kind: array
levels:
  - {{name: memory, read_pj: 100, write_pj: 100}}
  - {{name: buffer, bytes: {buffer}, read_pj: 10, write_pj: 10}}
  - {{name: pe, bytes: 64, read_pj: 1, write_pj: 1}}
  - {{name: lane, bytes: 64}}
parallel:
  - {{name: pe_x, count: {rows}}}
  - {{name: pe_y, count: {columns}}}
  - {{name: pe1, count: {columns}}}
units:
  - name: array
    resources: [pe_x, pe_y]
    level: pe
    operators: {{mul_add: {{cycles: 1, pj: 1}}}}
  - {{name: row, resources: [pe1], level: lane, operators: {{{costs}}}}}
""",
        "small.yaml",
    )


def lowered(program: str, target: Target, fused: bool = False) -> Cascade:
    c = simplify(restrict(parse_cascade(program), target), target)
    return fuse(c, target) if fused else c


def random_inputs(c: Cascade, sizes: MappingABC[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    known = {r.name: sizes[r.name] for r in c.ranks if r.size is None}
    known |= {r.name: evaluate_size(r.size, known) for r in c.ranks if r.size is not None}
    return {
        t.name: rng.standard_normal([evaluate_size(s, known) for s in t.shape]).astype("float32")
        for t in c.inputs
    }


def check(c: Cascade, m: Mapping, target: Target, sizes: MappingABC[str, int]) -> Report:
    """Asserts that the mapping computes the cascade, reads back, and is counted exactly."""
    inputs = random_inputs(c, sizes)
    wanted = interpret(c, inputs)
    got, counts = interpret_mapping(parse_mapping(str(m)), inputs)
    assert str(parse_mapping(str(m))) == str(m)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)
    report = build(m, target, {r.name: sizes[r.name] for r in m.ranks if r.size is None})
    assert report.reads == counts.reads
    assert report.writes == counts.writes
    assert report.points == counts.points
    return report


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_mapping_computes_its_cascade_and_is_counted_exactly(name: str, dataflow: str) -> None:
    target = find("array-16x16")
    c = parse_cascade(PROGRAMS[name])
    for fused in (False, True):
        m = map_array(lowered(PROGRAMS[name], target, fused), target, dataflow)
        check(c, m, target, SIZES)


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(PROGRAMS)), dataflow=st.sampled_from(DATAFLOWS),
    rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data(),
)  # fmt: skip
def test_counts_are_exact_at_any_size_and_on_any_array(
    name: str, dataflow: str, rows: int, columns: int, data: st.DataObject
) -> None:
    sizes = {r: data.draw(st.integers(1, 20), label=r) for r in SIZES}
    target = array(rows, columns)
    m = map_array(lowered(PROGRAMS[name], target), target, dataflow)
    check(parse_cascade(PROGRAMS[name]), m, target, sizes)


@settings(max_examples=25)
@given(
    st.sampled_from(DATAFLOWS), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12),
    st.integers(1, 12), st.tuples(*[st.integers(1, 30)] * 3),
)  # fmt: skip
def test_cut_reductions_and_streams_are_counted_exactly(
    dataflow: str, rows: int, columns: int, tile_k: int, tile_s: int, mnk: tuple[int, int, int]
) -> None:
    c, target = parse_cascade(MATMUL), array(rows, columns)
    m = map_array(c, target, dataflow, tile_reduction=tile_k, tile_stream=tile_s)
    check(c, m, target, dict(zip("MNK", mnk, strict=True)))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DATAFLOWS), st.booleans(), st.integers(1, 8))
def test_any_program_is_mapped_right_or_refused(
    seed: int, dataflow: str, fused: bool, side: int
) -> None:
    program = generate(seed, points=300)
    target = array(side, side, operators=f"mul_add {' '.join(OPS)}")
    c = simplify(restrict(program.cascade, target), target)
    c = fuse(c, target) if fused else c
    try:
        m = map_array(c, target, dataflow)
    except CompileError as error:
        if error.diagnostic.code not in ("T0241", "T0243", "T0244"):
            raise
        return
    sizes = {name: n for name, n in program.sizes.items() if c.rank(name) is not None}
    got, counts = interpret_mapping(m, program.inputs, sizes)
    assert_matches(c, got, program.inputs, sizes)
    assert str(parse_mapping(str(m))) == str(m)
    try:
        report = build(m, target, sizes)
    except CompileError as error:
        if error.diagnostic.code != "T0340":
            raise
        return
    assert (report.reads, report.writes) == (counts.reads, counts.writes)
    assert report.points == counts.points


# ---- cycles


def scale_sim(dataflow: str, m: int, n: int, k: int, r: int, c: int) -> int:
    """SCALE-Sim's closed form of a matmul's cycles, as published: it is one too small."""
    if dataflow == "output":
        return -(-m // r) * -(-n // c) * (k + r + c - 2) - 1
    if dataflow == "weight":
        return -(-k // r) * -(-n // c) * (r + m + r + c - 2) - 1
    return -(-k // r) * -(-m // c) * (r + n + r + c - 2) - 1


@settings(max_examples=60)
@given(
    st.sampled_from(DATAFLOWS), st.tuples(*[st.integers(1, 700)] * 3),
    st.tuples(*[st.integers(1, 64)] * 2),
)  # fmt: skip
def test_cycles_of_a_matmul_are_those_of_scale_sim_and_the_one_it_forgets(
    dataflow: str, mnk: tuple[int, int, int], shape: tuple[int, int]
) -> None:
    target = array(*shape, buffer=1 << 30)
    report = build(
        map_array(parse_cascade(MATMUL), target, dataflow),
        target,
        dict(zip("MNK", mnk, strict=True)),
    )
    assert report.array_cycles - 1 == scale_sim(dataflow, *mnk, *shape)
    assert report.array_cycles == report.cycles  # no level has a bandwidth
    busy = mnk[0] * mnk[1] * mnk[2]
    assert report.utilisation("array") == pytest.approx(
        busy / (shape[0] * shape[1] * report.array_cycles)
    )


def test_what_stays_and_what_moves_is_read_off_the_mapping() -> None:
    target = array(8, 4)
    leaves = {}
    for dataflow in DATAFLOWS:
        report = build(
            map_array(parse_cascade(MATMUL), target, dataflow), target, {"M": 9, "N": 9, "K": 9}
        )
        leaves[dataflow] = next(x for x in report.leaves.values() if x.kind == "compute")
    assert leaves["output"].stationary == ["Z_pe"]
    assert leaves["output"].moves == {"pe_x": ["B_buffer"], "pe_y": ["A_buffer"]}
    assert leaves["weight"].stationary == ["B_pe"]
    assert leaves["weight"].moves == {"pe_y": ["A_buffer"]} and leaves["weight"].reduces == ["pe_x"]
    assert leaves["input"].stationary == ["A_pe"]
    assert {x.skew for x in leaves.values()} == {7 + 3}


def test_an_operator_costs_what_its_recipe_says() -> None:
    fusemax, flat = find("fusemax"), find("flat")
    pe, row = fusemax.units
    assert (exp := pe.cost("exp")) is not None and exp.cycles == 7
    assert exp.pj == pytest.approx(6 * 17.16 + 8.34)
    assert pe.cost("div") is None and row.cost("div") is not None
    assert flat.units[0].cost("exp") is None and flat.units[0].cost("max") is None
    assert (unit := flat.units[1].cost("exp")) is not None and (unit.cycles, unit.pj) == (2, 94.6)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("A[m,k] * B[k,m]", {"mul_add": 1}),
        ("A[m,k]", {"add": 1}),
        ("exp(A[m,k] - B[k,m])", {"add": 1, "exp": 1, "sub": 1}),
        ("A[m,k] / sqrt(K)", {"add": 1, "mul": 1}),
        ("A[m,k] + B[k,m] * A[m,k]", {"add": 1, "mul_add": 1}),
    ],
)
def test_the_work_of_a_point_fuses_products_into_sums(body: str, wanted: dict[str, int]) -> None:
    c = parse_cascade(f"in A: f32[M,K], B: f32[K,M]\nout y: f32[M]\ny[m] = {body}")
    assert point_operations(c.definitions[0]) == wanted  # type: ignore[arg-type]


def test_operators_go_to_the_unit_that_has_them() -> None:
    units = {}
    for name in ("fusemax", "flat"):
        target = find(name)
        m = map_array(parse_cascade(PROGRAMS["attention"]), target)
        report = build(m, target, {"P": 300, "M": 700})
        units[name] = {x.text.split("[")[0]: x.unit for x in report.leaves.values()}
    assert units["fusemax"]["SN"] == "array" and units["fusemax"]["A"] == "row"
    assert units["flat"]["SN"] == "row" and units["flat"]["GM"] == "row"
    assert units["flat"]["QK_acc"] == "array"


def test_energy_is_accesses_and_operators_times_their_costs() -> None:
    target = array(4, 4)
    report = build(map_array(parse_cascade(MATMUL), target), target, {"M": 8, "N": 8, "K": 8})
    words = {"memory": 100, "buffer": 10, "pe": 1, "lane": 0}
    accesses = sum(
        n * 4 / 8 * words[at]
        for table in (report.reads, report.writes)
        for (at, _), n in table.items()
    )
    assert report.energy_pj == pytest.approx(accesses + 8**3)


# ---- reports


def test_a_report_prints_the_dataflow_and_reads_as_json() -> None:
    target = find("array-16x16")
    report = build(map_array(parse_cascade(MATMUL), target), target, {"M": 37, "N": 21, "K": 19})
    shown = str(report)
    for part in (
        "for m by 16", "Z_pe[m, n] @pe: 16 x 16, 4 bytes each", "m on pe_x, n on pe_y, k in time",
        "Z_pe stationary, B_buffer along pe_x, A_buffer along pe_y", "note: leaves run one after",
    ):  # fmt: skip
        assert part in shown, part
    data = json.loads(report.json())
    assert data["array_cycles"] == 6 * (19 + 30)
    memory = {a["tensor"]: a["reads"] for a in data["accesses"] if a["level"] == "memory"}
    assert memory == {"A": 37 * 19, "B": 3 * 19 * 21, "Z": 0}


# ---- errors


def code(
    program: str, target: Target, sizes: dict[str, int] | None = None, **options: object
) -> str:
    with pytest.raises(CompileError) as caught:
        build(map_array(lowered(program, target), target, **options), target, sizes)  # type: ignore[arg-type]
    d = caught.value.diagnostic
    assert d.helps, d.message
    return f"{d.code} {d.message}"


def test_what_does_not_fit_is_an_error_that_names_it() -> None:
    a, sizes = array(4, 4), {"M": 8, "N": 8, "K": 8}
    assert code(MATMUL, a, sizes, dataflow="row") == "T0240 unknown dataflow `row`"
    assert code(MATMUL, find("cpu")).startswith("T0240 target `cpu` is no array")
    assert code(MATMUL, a, {"M": 8}).startswith("T0126 the size of rank")
    assert code(MATMUL, a, {**sizes, "Q": 8}).startswith("T0126")
    assert code(MATMUL, a, {**sizes, "K": 0}).startswith("T0110")
    small = array(4, 4, buffer=100)
    assert "level `buffer` of `small` holds 100 bytes, but" in code(MATMUL, small, sizes)
    build(map_array(lowered(MATMUL, small), small, tile_reduction=2), small, sizes)
    poor = array(4, 4, operators="mul_add")
    assert "`SN`: no unit of `small` can do `exp`" in code(
        PROGRAMS["attention"].replace(":: max(m)", ""), poor
    )
    gather = "in A: f32[N,K], i: i32[M]\nout B: f32[M,K]\nB[m,k] = A[i[m],k] * 2.0"
    assert code(gather, a).startswith("T0244 `A[i[m], k]` has an index that is read from a tensor")
    kept = "in A: f32[T]\nout S: f32[T+1]\nS[0] = 0.0\nS[t+1] = S[t] + A[t]"
    assert "every step of `S`" in code(kept, a)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("n on pe_y", "n on lanes", "`lanes` is no parallel dimension"),
        ("n on pe_y", "n on pe1", "no unit of `small` spans pe_x, pe1"),
        ("for n by 4", "for n by 5", "`n` has tiles of 5, but `pe_y` has 4 elements"),
        ("@pe", "@L1", "buffer `Z_pe` lies at `L1`"),
        ("Z[m, n] = Z_pe[m, n] with m on pe_x, n on pe_y",
         "Z[m, n] = Z_pe[m, n] with n on pe_x, m on pe_y", "in other elements than"),
        ("A_buffer[m, k] * B_buffer[k, n]", "exp(A_buffer[m, k] * B_buffer[k, n])", "needs `exp`"),
    ],
)  # fmt: skip
def test_an_edited_mapping_is_checked_against_the_target(old: str, new: str, wanted: str) -> None:
    target = array(4, 4)
    shown = str(map_array(parse_cascade(MATMUL), target))
    assert old in shown
    with pytest.raises(CompileError) as caught:
        build(parse_mapping(shown.replace(old, new)), target, {"M": 9, "N": 9, "K": 9})
    assert wanted in caught.value.diagnostic.message


@pytest.mark.parametrize(
    ("unit", "wanted"),
    [
        ("{name: x, resources: [pe_z]}", "unit `x` spans `pe_z`"),
        ("{name: x, level: reg}", "unit `x` has the unknown level `reg`"),
        ("{name: x, operators: {exp: {log: 2}}}", "operator `exp` is"),
        ("{name: x, oprators: {}}", "unknown entry `oprators` in `units`"),
        ("{resources: []}", "an entry of `units` has no `name`"),
    ],
)
def test_a_wrong_unit_is_named(unit: str, wanted: str) -> None:
    text = f"kind: array\nlevels: [{{name: memory}}]\nparallel: [{{name: pe_x}}]\nunits: [{unit}]"
    with pytest.raises(CompileError) as caught:
        parse_target(text, "t.yaml")
    assert caught.value.diagnostic.code == "T0210"
    assert wanted in caught.value.diagnostic.message
