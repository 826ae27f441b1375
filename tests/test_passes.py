"""The passes: what each does, shown on small programs; no pass changes what a program means."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser
from random_programs import assert_matches, generate

import tcc
from tcc import pipeline, targets
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.interpret import interpret, interpret_with_bounds
from tcc.ir.mapping import Mapping

CPU = targets.find("cpu")
CASCADE_PASSES = ("restrict", "simplify", "fuse")


def check(output: str, expected: str, tmp_path: Path) -> None:
    """`output` matches the CHECK lines of `expected`."""
    directives = tmp_path / "checks"
    directives.write_text(expected, encoding="utf-8")
    options = Options(match_filename=str(directives))
    parser = Parser.from_opts(options)
    failed = Matcher(options, FInput("output", output), parser).run()
    assert not failed, f"{output}\ndoes not match\n{expected}"


def after(text: str, name: str) -> str:
    """The program after a pass of the pipeline for CPUs, as text."""
    return str(pipeline.run(parse_cascade(text), CPU).after(name))


# ---- what a pass does, as text: the program, then the lines that are expected

DOCUMENTED = {
    # A definition that reads a partial tensor is partial itself; afterwards every `where` says it.
    "restrict: predicates are handed on": (
        "restrict",
        """
        in X: f32[I, J]
        out Y: f32[I]
        A[i, j] = X[i, j] * 2  where j <= i
        B[i, j] = exp(A[i, j])
        Y[i]    = B[i, j]
        """,
        """
        CHECK: A[i, j] = X[i, j] * 2 where j <= i
        CHECK-NEXT: B[i, j] = exp(A[i, j]) where j <= i
        CHECK-NEXT: Y[i] = B[i, j] where j <= i
        """,
    ),
    # `a ?? b` asks whether `a` exists: a selection.
    "restrict: ?? becomes a selection": (
        "restrict",
        """
        in X: f32[I]
        out Y: f32[I]
        A[i] = X[i]  where i > 3
        Y[i] = A[i] ?? 7.0
        """,
        """
        CHECK: Y[i] = select(i > 3, A[i] ?? 7.0, 7.0)
        """,
    ),
    # Several monoids in one definition become several definitions, the innermost first.
    "restrict: one monoid per definition": (
        "restrict",
        """
        in X: f32[I, J]
        out Y: f32
        Y = X[i, j] :: max(i), sum(j)
        """,
        """
        CHECK: [[T:Y_j]][i] = X[i, j]
        CHECK: Y = [[T]][i] :: max(i)
        """,
    ),
    # Neutral elements vanish, cheap definitions are inlined, unused ones are dropped.
    "simplify: fold, inline, drop": (
        "simplify",
        """
        in X: f32[I]
        out Y: f32[I]
        A[i] = X[i] * 1.0
        B[i] = A[i] + 2.0
        C[i] = exp(A[i])
        Y[i] = B[i] * 3.0
        """,
        """
        CHECK-NOT: exp
        CHECK: Y[i] = (X[i] + 2.0) * 3.0
        CHECK-NOT: =
        """,
    ),
    # Equal definitions are computed once.
    "simplify: share": (
        "simplify",
        """
        in X: f32[I, J]
        out Y: f32[I], Z: f32[I]
        A[i] = exp(X[i, j])
        B[i] = exp(X[i, j])
        Y[i] = A[i] * 2
        Z[i] = B[i] * 3
        """,
        """
        CHECK-COUNT-1: exp(X[i, j])
        CHECK-NOT: exp(
        """,
    ),
    # Reductions over a row and what uses them are one kernel: the row is read from the cache.
    "fuse: a softmax is one kernel": (
        "fuse",
        """
        in X: f32[M, N]
        out Y: f32[M, N]
        Max[m]  = X[m, n]               :: max(n)
        E[m, n] = exp(X[m, n] - Max[m])
        Sum[m]  = E[m, n]
        Y[m, n] = E[m, n] / Sum[m]
        """,
        """
        CHECK: kernel k0_Y: Max, E, Sum, Y
        CHECK-NOT: kernel
        """,
    ),
    # A product is tiled for registers, lanes and caches; blocks of its second operand are packed in panels.
    "map: a matrix product": (
        "map",
        """
        in A: f32[M, K], B: f32[K, N]
        out C: f32[M, N]
        C[m, n] = A[m, k] * B[k, n]
        """,
        """
        CHECK: kernel k0_C over m: M, n: N, k: K {
        CHECK: for m by {{[0-9]+}} on core {
        CHECK: for n by {{[0-9]+}} on core {
        CHECK: for k by {{[0-9]+}} {
        CHECK: buffer [[PANELS:[A-Za-z_]+]]: f32[k, n] @L2 layout [1/[[N:[0-9]+]], 0, 1%[[N]]]
        CHECK: do [[PANELS]][k, n] = B[k, n] with n on lane
        CHECK: do {{.*}}[m, n] = A[m, k] * [[PANELS]][k, n] with n on lane, m on unroll
        """,
    ),
    # A row that is alone is cut into tasks.
    "map: one long row": (
        "map",
        """
        in X: f32[N]
        out Y: f32[N]
        Y[n] = exp(X[n])
        """,
        """
        CHECK: for n by {{[0-9]+}} on core {
        CHECK: for n by {{[0-9]+}} {
        CHECK: do Y[n] = exp(X[n]) with n on lane
        """,
    ),
    # A reduction of rows runs a row per core step and a vector of columns per instruction.
    "map: a reduction of rows": (
        "map",
        """
        in X: f32[M, N]
        out S: f32[M]
        S[m] = X[m, n] :: max(n)
        """,
        """
        CHECK: kernel k0_S over m: M, n: N {
        CHECK-NEXT: for m by 1 on core {
        CHECK-NEXT: for n by {{[0-9]+}} {
        CHECK-NEXT: do S[m] = X[m, n] :: max(n) with n on lane
        """,
    ),
    # A sum of f32 adds up in blocks, and the blocks in f64.
    "map: a sum of rows": (
        "map",
        """
        in X: f32[M, N]
        out S: f32[M]
        S[m] = X[m, n]
        """,
        """
        CHECK: kernel k0_S over m: M, n: N {
        CHECK: buffer S_wide: f64[m]
        CHECK: update S_part[m] = X[m, n] with n on lane
        CHECK: do S_wide[m] = S_wide[m] + f64(S_part[m])
        CHECK: do S[m] = f32(S_wide[m])
        """,
    ),
}


@pytest.mark.parametrize("title", DOCUMENTED)
def test_a_pass_does_what_its_example_shows(title: str, tmp_path: Path) -> None:
    name, text, expected = DOCUMENTED[title]
    check(after(text, name), expected, tmp_path)


# ---- laws


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_no_pass_changes_the_meaning_of_a_random_program(first: int) -> None:
    for seed in range(first, first + 25):
        p = generate(seed, points=3000)
        program = p.cascade
        for step in pipeline.passes(CASCADE_PASSES):
            program = step.run(program, CPU)
            free = {r.name: p.sizes[r.name] for r in program.ranks if r.size is None}
            assert_matches(p.cascade, interpret(program, p.inputs, free), p.inputs, p.sizes)


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_passes_are_deterministic(first: int) -> None:
    for seed in range(first, first + 25):
        one, two = (pipeline.run(generate(seed).cascade, CPU) for _ in range(2))
        for a, b in zip(one.stages, two.stages, strict=True):
            assert str(a.program) == str(b.program), a.name


@pytest.mark.parametrize("name", CASCADE_PASSES)
def test_a_pass_that_finds_nothing_to_do_returns_the_same_object(name: str) -> None:
    (step,) = pipeline.passes([name])
    for seed in range(60):
        once = step.run(pipeline.run(generate(seed).cascade, CPU).after(name), CPU)
        assert step.run(once, CPU) is once, f"seed {seed}\n{once}"


# ---- known fusions


def kernels(text: str) -> list[tuple[str, ...]]:
    c = parse_cascade(after(text, "fuse"))
    assert isinstance(c, Cascade)
    return [made for _, made in c.groups]


def test_attention_is_one_kernel() -> None:
    found = kernels("""
        ranks P=1024, M=1024, E=64, F=64
        in Q: f32[P, E], K: f32[M, E], V: f32[M, F]
        out AV: f32[P, F]
        QK[p, m] = Q[p, e] * K[m, e] / sqrt(E)
        GM[p]    = QK[p, m]                     :: max(m)
        SN[p, m] = exp(QK[p, m] - GM[p])
        SD[p]    = SN[p, m]
        AV[p, f] = SN[p, m] / SD[p] * V[m, f]
        """)
    assert len(found) == 1, found


def test_a_perceptron_is_two_kernels_with_its_gelu_behind_the_first_product() -> None:
    text = (Path(__file__).resolve().parent.parent / "examples" / "mlp_gelu.tcc").read_text()
    found = kernels(text)
    assert len(found) == 2, found
    mapping = pipeline.run(parse_cascade(text), CPU).mapping
    assert isinstance(mapping, Mapping)
    first = next(k for k in str(mapping).split("kernel ") if "tanh" in k)
    assert "X[m, k] *" in first


def test_a_product_with_bias_residual_and_norm_is_one_kernel() -> None:
    found = kernels("""
        ranks M=512, K=384, N=384
        in X: f32[M, K], W: f32[K, N], b: f32[N], R: f32[M, N], g: f32[N], h: f32[N]
        out Y: f32[M, N]
        A[m, n] = X[m, k] * W[k, n]
        B[m, n] = A[m, n] + b[n] + R[m, n]
        Mean[m] = B[m, n] / N
        D[m, n] = B[m, n] - Mean[m]
        V[m]    = D[m, n] * D[m, n] / N
        Y[m, n] = D[m, n] * rsqrt(V[m] + 1e-5) * g[n] + h[n]
        """)
    assert len(found) == 1, found


def test_a_chain_of_reshapes_disappears() -> None:
    """view(B·S, H·D → B, S, H, D), transpose(S, H), transpose back, view: nothing is left to copy."""
    simplified = after(
        """
        ranks B=2, S=8, H=4, D=16, R=16, C=64
        in X: f32[R, C]
        out Y: f32[R, C]
        A[b, s, h, d] = X[8 * b + s, 16 * h + d] * 2.0
        T[b, h, s, d] = A[b, s, h, d]
        U[b, s, h, d] = T[b, h, s, d] + 1.0
        Y[r, c]       = U[r // 8, r % 8, c // 16, c % 16]
        """,
        "simplify",
    )
    lines = [line for line in simplified.splitlines() if " = " in line]
    assert len(lines) == 1, simplified
    assert not re.search(r"//|%", lines[0]), simplified


def test_options_of_passes_are_their_keyword_arguments() -> None:
    text = "in X: f32[M, N]\nout Y: f32[M, N]\nS[m] = X[m, n]\nY[m, n] = X[m, n] / S[m]"
    alone = tcc.compile(text, passes={"fuse": {"max_members": 1}}).ir(after="fuse")
    assert alone.count("\nkernel ") == 2
    assert tcc.compile(text).ir(after="fuse").count("\nkernel ") == 1


@pytest.mark.parametrize("seed", [3039, 3040, 3054, 3071])
def test_what_fuse_puts_together_for_a_gpu_can_be_mapped(seed: int) -> None:
    pipeline.run(generate(seed, points=3000).cascade, targets.find("h100"))


@pytest.mark.parametrize("t", ["bool", "u8", "f32"])
def test_choices_that_rounding_decides_have_a_bound(t: str) -> None:
    c = parse_cascade(
        f"in X: f32[I], A: {t}[I], B: {t}[I]\nout Y: {t}[I]\nY[i] = select(exp(X[i]) < 1, A[i], B[i])"
    )
    kind = {"bool": bool, "u8": np.uint8, "f32": np.float32}[t]
    x = np.array([0, 0, 1], np.float32)
    found = interpret_with_bounds(
        c, {"X": x, "A": np.zeros(3, kind), "B": np.array([0, 1, 1], kind)}
    )
    assert (found["Y"].error[[0, 2]] < 1).all() and found["Y"].error[1] >= 1
