"""Passes over ranks: the counts of the literature, and where a rank is split, renamed, flattened or iterative."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tcc
from tcc.ir.cascade import Cascade
from tcc.pass_counts import Derived, passes_text, rank_reports
from tcc.passes.count_passes import by_rank, count_passes

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

ATTENTION = """
in  Q: f32[E, P], K: f32[E, M], V: f32[F, M]
out AV: f32[F, P]
QK[m, p] = Q[e, p] * K[e, m]
GM[p]    = QK[m, p] :: max(m)
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p]    = SN[m, p]
A[m, p]  = SN[m, p] / SD[p]
AV[f, p] = A[m, p] * V[f, m]
"""
JOINT = """
in  Q: f32[E, P], K: f32[E, M], V: f32[F, M]
out AV: f32[F, P]
QK[m, p]     = Q[e, p] * K[e, m]
GM[p]        = QK[m, p] :: max(m)
N[p]         = GM[p] * 2.0
SN[m, p]     = exp(QK[m, p] - GM[p])
SD[p]        = SN[m, p]
AV_sum[f, p] = SN[m, p] * V[f, m]
AV[f, p]     = AV_sum[f, p] / SD[p]
joint m: GM, SD by SD * exp(GM - GM'), AV_sum by AV_sum * exp(GM - GM')
"""
TILES = """
ranks M1, M0
in  Q: f32[E, P], K: f32[E, M1*M0], V: f32[F, M1*M0]
out AV: f32[F, P]
BQK[m1, m0, p] = Q[e, p] * K[e, m1*M0 + m0]
LM[m1, p]      = BQK[m1, m0, p] :: max(m0)
SLN[m1, m0, p] = exp(BQK[m1, m0, p] - LM[m1, p])
SLD[m1, p]     = SLN[m1, m0, p]
GM[p]          = LM[m1, p] :: max(m1)
PLM[m1, p]     = exp(LM[m1, p] - GM[p])
SD[p]          = SLD[m1, p] * PLM[m1, p]
A[m1, m0, p]   = SLN[m1, m0, p] * PLM[m1, p] / SD[p]
AV[f, p]       = A[m1, m0, p] * V[f, m1*M0 + m0]
"""


def cascade(text: str) -> Cascade:
    node = tcc.parse(text).node
    assert isinstance(node, Cascade)
    return node


def example(name: str) -> Cascade:
    node = tcc.load(EXAMPLES / f"{name}.tcc").node
    assert isinstance(node, Cascade)
    return node


def passes(c: Cascade | str) -> dict[str, int]:
    """Ranks that are walked more than once; an iterative rank stands behind the count of its steps."""
    c = cascade(c) if isinstance(c, str) else c
    return {r: k.passes for r, k in by_rank(count_passes(c)).items() if k.passes > 1}


def barriers(c: Cascade, rank: str) -> list[tuple[str, str, tuple[str, ...]]]:
    found = by_rank(count_passes(c))[rank].barriers
    return [(b.of.target, b.until.target, b.through) for b in found]


# ---- the table of the literature

TABLE = {
    "attention": {"M": 3},
    "attention_causal": {"M": 3},
    "attention_two_pass": {"M": 2},
    "attention_unstable": {"M": 2},
    "attention_unstable_deferred": {},
    "attention_local_max": {"M1": 2, "M0": 3},  # M0: inside of one tile
    "attention_one_pass": {"M0": 2},
    "layernorm": {"N": 3},
    "layernorm_two_pass": {"D": 2},
    "rmsnorm": {"N": 2},
    "rmsnorm_matmul": {},
    "product_twice": {"K": 2},
    "product_twice_deferred": {},
    "softmax": {"N": 3},
    "log_sum_exp": {"N": 2},
}


@pytest.mark.parametrize("name", TABLE)
def test_the_counts_of_the_literature(name: str) -> None:
    assert passes(example(name)) == TABLE[name]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.tcc")), ids=lambda p: p.stem)
def test_every_example_is_counted_and_each_pass_has_its_barrier(path: Path) -> None:
    for count in count_passes(example(path.stem)):
        steps = sum(bool(b.step) for b in count.barriers)
        assert len(count.barriers) - steps == count.passes - 1
        assert all(b.why for b in count.barriers)


def test_each_dimension_is_counted_by_itself() -> None:
    found = {(k.tensor, k.rank): k.passes for k in count_passes(cascade(ATTENTION))}
    assert found["K", "M"] == 3 and found["V", "M"] == 1 and found["Q", "P"] == 1


def test_the_chain_names_reduction_reader_and_what_lies_between() -> None:
    assert barriers(cascade(ATTENTION), "M") == [("GM", "SN", ()), ("SD", "A", ())]
    assert barriers(example("layernorm"), "N") == [
        ("Mean", "Centred", ()),
        ("Var", "Y", ("Scale",)),
    ]
    first = by_rank(count_passes(example("layernorm")))["N"].barriers[1]
    assert first.why == "`Y` needs all of `Var`, through `Scale`, before it can walk N again"
    assert first.until.span is not None and first.until.span.line == 10


# ---- split ranks


def test_summaries_of_tiles_are_no_pass_over_the_rank() -> None:
    assert passes(TILES) == {"M": 2, "M1": 2, "M0": 3}
    assert barriers(cascade(TILES), "M") == [("GM", "A", ("PLM",))]


def test_the_names_of_a_split_rank_do_not_matter_where_indices_say_it() -> None:
    other = TILES.replace("M1*M0", "T*L").replace("m1*M0", "t*L").replace("m1", "t")
    other = other.replace("m0", "l").replace("ranks M1, M0", "ranks T, L")
    assert passes(other) == {"T * L": 2, "T": 2, "L": 3}


def test_the_running_form_is_one_pass_over_the_whole_rank() -> None:
    running = str(example("attention_one_pass"))
    for name in ("BK", "BV"):
        rank = "EF"["KV".index(name[1])]
        running = running.replace(f"{name}: f32[{rank}, M1, M0]", f"{name}: f32[{rank}, M1*M0]")
        running = running.replace(f"{name}[{rank.lower()}, m1, m0]", f"{name}[{rank.lower()}, m1*M0 + m0]")  # fmt: skip
    assert passes("ranks M1, M0\n" + running.split("\n", 2)[2]) == {"M0": 2}


def test_ranks_that_only_look_like_a_split_are_not_one() -> None:
    """H1 and H0 of a weight are no digits of one rank: `X` has H0 without H1."""
    assert passes("""
        in X: f32[M, H0], W: f32[H1, H0]
        out Y: f32[M, H1]
        Z[m, h1] = X[m, h0] * W[h1, h0]
        Mean[m]  = Z[m, h1] / H1
        Y[m, h1] = Z[m, h1] - Mean[m]
    """) == {"H1": 2}


def test_what_needs_all_tiles_starts_a_pass() -> None:
    assert passes("""
        ranks M1, M0
        in X: f32[M1*M0]
        out Y: f32[M1, M0]
        B[m1, m0] = X[m1*M0 + m0]
        S[m0]     = B[m1, m0]
        Y[m1, m0] = B[m1, m0] - S[m0]
    """) == {"M": 2, "M1": 2}


# ---- views, windows, gathers


def test_views_rename_and_flatten_variables() -> None:
    assert passes("""
        ranks V=I*8, N=8, J=I, Z=I*8
        in X: f32[I, N]
        out Y: f32[J, N]
        Flat[v]  = X[v // 8, v % 8]
        Back[j, n] = Flat[8*j + n]
        Max[j]   = Back[j, n]            :: max(n)
        Flip[n, j] = Back[j, n] - Max[j]
        Copy[z]  = Flip[z % 8, z // 8]
        E[j, n]  = exp(Copy[8*j + n])
        Sum[j]   = E[j, n]
        Y[j, n]  = E[j, n] / Sum[j]
    """) == {"N": 3}


def test_writing_a_flattened_rank() -> None:
    assert passes("""
        ranks V=I*8, N=8
        in X: f32[I, N]
        out Y: f32[V]
        Flat[8*i + n] = X[i, n] * 2.0
        Max           = Flat[v] :: max(v)
        Y[v]          = Flat[v] - Max
    """) == {"I": 2, "N": 2}


def test_a_window_walks_on_and_a_gradient_of_a_filter_does_not() -> None:
    head = "ranks P, R=3\nin X: f32[P + 2], W: f32[R], G: f32[P]\n"
    conv = head + "out Y: f32[P]\nC[p] = X[p + r] * W[r] * G[p]\nM = C[p]\nY[p] = C[p] - M\n"
    assert passes(conv) == {"P + 2": 2, "P": 2}
    fixed = head.replace("P,", "P=64,") + "out Y: f32[P]\nD[r] = X[p + r] * G[p]\nY[p] = X[p + r] * D[r]\n"  # fmt: skip
    assert passes(fixed) == {"P + 2": 2}


def test_patches_are_a_rank_of_their_own() -> None:
    """Each value of `C` summarises a patch of `X`; the passes over these values are counted by themselves."""
    assert passes("""
        ranks P, R=4
        in X: f32[4*P], W: f32[R]
        out Y: f32[P]
        C[p] = X[4*p + r] * W[r]
        M    = C[p] :: max(p)
        S    = exp(C[p] - M)
        Y[p] = exp(C[p] - M) / S
    """) == {"P": 3}


def test_a_gather_follows_the_index_and_leaves_the_table() -> None:
    assert passes("""
        in Token: i64[B], Table: f32[V, D]
        out Y: f32[B, D]
        X[b, d] = Table[Token[b], d]
        Sum[d]  = X[b, d]
        Y[b, d] = X[b, d] - Sum[d]
    """) == {"B": 2}


def test_one_tensor_as_queries_and_keys() -> None:
    """Rows as queries are independent of the walk over the same rows as keys."""
    assert passes("""
        ranks T=S
        in X: f32[S, D]
        out Y: f32[S, D]
        QK[s, t] = X[s, d] * X[t, d]
        GM[s]    = QK[s, t] :: max(t)
        SN[s, t] = exp(QK[s, t] - GM[s])
        SD[s]    = SN[s, t]
        AV[s, d] = SN[s, t] * X[t, d]
        Y[s, d]  = AV[s, d] / SD[s]
    """) == {"S": 2, "D": 2}


def test_layers_add_up() -> None:
    assert passes("""
        in X: f32[D], W: f32[H, D], W2: f32[D, H]
        out Y: f32[D]
        A[h] = X[d] * W[h, d]
        B[d] = max(A[h], 0.0) * W2[d, h] + 0.0
        Y[d] = X[d] + B[d]
    """) == {"D": 2}


def test_different_tensors_that_meet_in_a_variable_are_read_once_each() -> None:
    text = "in X: f32[I], Y: f32[I]\nout Z: f32[I]\nS = X[i]\nZ[i] = Y[i] * S\n"
    assert passes(text) == {}
    assert passes(text.replace("Y[i] * S", "Y[i] * S + X[i]")) == {"I": 2}


# ---- iterative ranks


def test_a_scan_streams_and_its_last_value_does_not() -> None:
    scan = "in X: f32[I]\nout Y: f32[I]\nP[0] = 0.0\nP[i + 1] = P[i] + X[i]\n"
    assert passes(scan + "Y[i] = X[i] / P[i + 1]\n") == {}
    assert passes(scan + "Y[i] = X[i] / P[I]\n") == {"I": 2}
    assert passes(scan + "Y[i] = X[i] / P[I - i]\n") == {"I": 2}


def test_an_iterative_solver_walks_its_matrix_at_each_step() -> None:
    found = by_rank(count_passes(example("jacobi")))
    assert found["J"].per_step == "T" and found["J"].passes == 1 and found["T"].per_step == ""
    (again,) = found["J"].barriers
    assert again.step == "t" and again.why.endswith("again, at each step of `t`")


# ---- joints


def test_a_joint_is_one_pass() -> None:
    joined = cascade(JOINT)
    assert passes(joined) == {}
    assert passes(JOINT.split("joint")[0]) == {"M": 2}


def test_what_is_streamed_through_a_joint_is_walked_again_by_others() -> None:
    assert passes(JOINT.replace("AV: f32[F, P]", "AV: f32[F, P], SN: f32[M, P]")) == {"M": 2}
    after = JOINT.replace("AV[f, p]     = AV_sum[f, p] / SD[p]",
                          "A[m, p] = SN[m, p] / SD[p]\nAV[f, p] = A[m, p] * V[f, m] + AV_sum[f, p]")  # fmt: skip
    assert passes(after) == {"M": 2}


def test_the_report_puts_the_derived_program_beside_the_written_one() -> None:
    found = {r.rank: r for r in rank_reports(cascade(ATTENTION), Derived(cascade(JOINT)))}
    assert (found["M"].passes, found["M"].derived) == (3, 1)
    assert (found["E"].passes, found["E"].derived) == (1, 1)
    lines = "\n".join(passes_text(tuple(found.values())))
    assert lines.startswith("passes over M: 3, derived: 1\n   1  GM walks all of M ")
    assert lines.endswith("\none pass over E, P, F")


DERIVED = {
    "attention": {"M": 1},
    "attention_causal": {"M": 1},
    "attention_two_pass": {"M": 1},
    "attention_unstable": {"M": 1},
    "attention_unstable_deferred": {"M": 1},
    "attention_local_max": {"M1": 2},
    "attention_one_pass": {"M1": 1},
    "layernorm": {"N": 2},
    "layernorm_two_pass": {"D": 2},
    "rmsnorm": {"N": 2},
    "rmsnorm_matmul": {"D": 1},
    "product_twice": {"K": 1},
    "product_twice_deferred": {"K": 1},
    "softmax": {"N": 2},
    "log_sum_exp": {"N": 1},
}


@pytest.mark.parametrize("name", TABLE)
def test_the_counts_of_derived_programs(name: str) -> None:
    found = tcc.load(EXAMPLES / f"{name}.tcc").compile("numpy").explain().json()
    assert all(found["derived"][rank] <= most for rank, most in DERIVED[name].items())
    assert all(found["derived"].get(rank, 0) <= most for rank, most in found["passes"].items())


def test_a_barrier_that_stays_says_why() -> None:
    text = "in X: f32[N]\nout S: f32\nM = X[n] :: max(n)\nS = tanh(X[n] - M)\n"
    report = tcc.compile(text, target="numpy").explain()
    assert report.json()["passes"] == report.json()["derived"] == {"N": 2}
    (barrier,) = report.json()["barriers"]
    assert barrier["why"].startswith("`S` needs all of `M` before it can walk N again: `tanh(")
    assert "S waits even so: `tanh(X[n] - M)`" in str(report)


# ---- PyTorch


def test_a_pytorch_graph_is_aligned_through_its_tensors() -> None:
    torch = pytest.importorskip("torch")

    def attention(q: Any, k: Any, v: Any) -> Any:
        return torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1) @ v

    compiled = tcc.compile(attention, target="numpy")
    compiled(torch.randn(2, 4, 10, 16), *(torch.randn(2, 4, 12, 16) for _ in range(2)))
    found = compiled.explain().json()
    assert {r: n for r, n in found["passes"].items() if n > 1} == {"D12": 3}
    assert found["tensors"]["k"]["D12"] == 3 and found["tensors"]["v"]["D12"] == 1
    assert [b["rank"] for b in found["barriers"]] == ["D12", "D12"]
    assert "torch.softmax" in found["barriers"][0]["place"]


def test_a_call_needs_its_operands_from_end_to_end() -> None:
    call = "in X: f32[N]\nout Z: f32[N]\nextern S: f32[N] = aten.foo.default '[\"%X\"]'\n"
    assert passes(call + "Z[n] = X[n] + S[n]\n") == {"N": 2}
    assert passes(call + "M = S[n] :: max(n)\nZ[n] = S[n] - M\n") == {"N": 2}
