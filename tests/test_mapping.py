"""The mapping level: its text is read back, its interpreter means what the cascade means and counts
accesses, its verifier refuses what cannot run, and C computes hand-edited mappings too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_programs import assert_matches, generate

from tcc import pipeline, targets
from tcc.backends import c as backend
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import bind, interpret
from tcc.ir.mapping import Kernel, Mapping, leaves, signature, walk_nodes
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.mapping_text import parse_mapping
from tcc.samples import random_inputs

CPU = targets.find("cpu")


def lowered(seed: int) -> tuple[Any, Mapping]:
    p = generate(seed, points=3000)
    mapping = pipeline.run(p.cascade, CPU).mapping
    assert mapping is not None
    return p, mapping


def through_c(m: Mapping, inputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a mapping, computed by generated C."""
    face = signature(m)
    sizes = bind(face, inputs)
    arrays = dict(inputs)
    for t in m.outputs:
        arrays[t.name] = np.empty([evaluate_size(s, sizes) for s in t.shape], t.dtype.numpy)
    strides = {n: tuple(s // a.itemsize for s in a.strides) for n, a in arrays.items()}
    call = backend.build(m, CPU).bind({n: a.shape for n, a in arrays.items()}, strides, sizes)
    call([a.ctypes.data for a in arrays.values()])
    return {t.name: arrays[t.name] for t in m.outputs}


# ---- text


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_both_levels_are_read_back_from_their_text(first: int) -> None:
    for seed in range(first, first + 50):
        p, mapping = lowered(seed)
        assert str(parse_cascade(str(p.cascade))) == str(p.cascade)
        again = parse_mapping(str(mapping))
        assert str(again) == str(mapping)
        assert [k.name for k in again.kernels] == [k.name for k in mapping.kernels]
        nodes = [
            [type(n).__name__ for n in walk_nodes(k.body)]
            for m in (mapping, again)
            for k in m.kernels
            if isinstance(k, Kernel)
        ]
        assert nodes[: len(nodes) // 2] == nodes[len(nodes) // 2 :]


# ---- meaning


@pytest.mark.parametrize("first", range(0, 150, 25))
def test_a_mapping_means_what_its_cascade_means(first: int) -> None:
    for seed in range(first, first + 25):
        p, mapping = lowered(seed)
        free = {r.name: p.sizes[r.name] for r in mapping.ranks if r.size is None}
        got = interpret_mapping(mapping, p.inputs, free)[0]
        assert_matches(p.cascade, got, p.inputs, p.sizes)


# ---- counters

COUNTED = """
mapping product for cpu
ranks M, N, K
in A: f32[M, K], B: f32[K, N]
out C: f32[M, N]

kernel product over m: M, n: N, k: K {
  for m by 2 {
    for k by 4 {
      do C[m, n] = A[m, k] * B[k, n]
    }
  }
}
"""


def test_accesses_are_counted_per_leaf_once_per_element(rng: np.random.Generator) -> None:
    m, n, k = 5, 3, 8
    mapping = parse_mapping(COUNTED)
    inputs = random_inputs(signature(mapping), {"M": m, "N": n, "K": k}, rng)
    got, counts = interpret_mapping(mapping, inputs)
    np.testing.assert_allclose(got["C"], inputs["A"] @ inputs["B"], rtol=1e-5)
    row_tiles, depth_tiles = 3, 2  # ceil(5 / 2), 8 / 4
    assert counts.launches == 1
    assert counts.points == {"C": m * n * k}
    assert counts.reads["memory", "A"] == m * k  # every element in one tile of each loop
    assert counts.reads["memory", "B"] == row_tiles * k * n  # again for every tile of rows
    assert counts.writes["memory", "C"] == depth_tiles * m * n
    assert counts.reads["memory", "C"] == (depth_tiles - 1) * m * n  # combined with what is there


def test_a_buffer_is_counted_at_its_own_level(rng: np.random.Generator) -> None:
    mapping = parse_mapping("""
        mapping staged for cpu
        ranks M, K
        in A: f32[M, K]
        out S: f32[M], T: f32[M]
        kernel staged over m: M, k: K {
          for m by 1 {
            buffer Row: f32[m, K] @L1 {
              do Row[m, k] = A[m, k] * 2.0
              do S[m] = Row[m, k]
              do T[m] = Row[m, k] :: max(k)
            }
          }
        }
        """)
    inputs = {"A": rng.standard_normal((4, 6)).astype(np.float32)}
    got, counts = interpret_mapping(mapping, inputs)
    np.testing.assert_allclose(got["S"], 2 * inputs["A"].sum(1), rtol=1e-5)
    assert counts.reads == {("memory", "A"): 24, ("L1", "Row"): 48}
    assert counts.writes == {("L1", "Row"): 24, ("memory", "S"): 4, ("memory", "T"): 4}


# ---- the verifier

HEAD = "mapping bad for cpu\nranks M, N\nin A: f32[M, N]\nout S: f32[M]\n"
WRONG = {
    # code: (kernels, the text at the place)
    "T0201": ("memory T: f32[M, N] @memory layout [0, 1/4]\n", None),
    "T0202": ("kernel k over m: M, n: N {\nfor m by 0 {\ndo S[m] = A[m, n]\n}\n}", "0"),
    "T0203": ("kernel k over m: M {\nbuffer B: f32[m] @L1 {\ndo B[m] = 1.0\n}\n}", "S"),
    "T0204": ("kernel k over m: M, n: N {\nbuffer A: f32[m] @L1 {\ndo S[m] = A[m]\n}\n}", "A"),
    "T0205": ("kernel k over m: M {\ndo S[m] = A[m, n]\n}", "S[m] = A[m, n]"),
    "T0206": ("kernel k over m: M, n: N {\ndo S[m] = B[m, n]\n}", "B[m, n]"),
    "T0207": (
        "kernel k over m: M, n: N {\nfor n by 4 on core {\ndo S[m] = A[m, n]\n}\n}",
        "S[m] = A[m, n]",
    ),
    "T0113": ("kernel k over m: M {\ndo S[m] = A[m]\n}", "A[m]"),
    "T0105": ("kernel k over m: M, n: Q {\ndo S[m] = A[m, n]\n}", "Q"),
    "T0121": ("memory T: f99[M] @memory\n", "f99"),
}


@pytest.mark.parametrize("code", WRONG)
def test_what_cannot_run_is_refused_at_its_place(code: str) -> None:
    kernels, place = WRONG[code]
    with pytest.raises(CompileError) as error:
        parse_mapping(HEAD + kernels + "\n", "bad.tcc")
    found = error.value.diagnostic
    assert found.code == code, found.render()
    if place is not None:
        assert found.span is not None, found.render()
        line = found.span.source.line(found.span.line)
        assert line[found.span.column - 1 :].startswith(place), found.render()


def test_a_parallel_loop_may_reduce_into_a_buffer_of_its_own() -> None:
    parse_mapping(
        HEAD + "kernel k over m: M, n: N {\nfor m by 1 on core {\nfor n by 4 {\n"
        "do S[m] = A[m, n] with n on lane\n}\n}\n}\n"
    )


def test_an_access_outside_of_a_window_is_refused_when_it_runs() -> None:
    mapping = parse_mapping(
        HEAD + "kernel k over m: M, n: N {\nfor m by 1 {\nbuffer R: f32[m] @L1 {\n"
        "do R[m] = A[m, n]\ndo S[m] = R[m - 1]\n}\n}\n}\n"
    )
    with pytest.raises(CompileError) as error:
        interpret_mapping(mapping, {"A": np.ones((3, 2), np.float32)})
    assert error.value.diagnostic.code == "T0208"


# ---- mappings by hand

MATMUL = "in A: f32[M, K], B: f32[K, N]\nout C: f32[M, N]\nC[m, n] = A[m, k] * B[k, n]"


@pytest.mark.parametrize(
    "old, new",
    [
        ("for m by 132 on core", "for m by 30 on core"),
        ("for m by 132 on core", "for m by 6"),
        ("for n by 256 on core", "for n by 32 on core"),
        ("for k by 240", "for k by 7"),
        ("for k by 240", "for k by 1"),
    ],
)
def test_other_tile_sizes_give_the_same_result(
    old: str, new: str, rng: np.random.Generator
) -> None:
    c = parse_cascade(MATMUL)
    text = str(pipeline.run(c, targets.generic()).mapping)
    assert old in text, text
    edited = parse_mapping(text.replace(old, new))
    for size in ((5, 9, 3), (61, 70, 129)):
        inputs = random_inputs(c, dict(zip("MKN", size, strict=True)), rng)
        assert_matches(c, through_c(edited, inputs), inputs)


ORDERS = [("m", "k", "n"), ("k", "m", "n"), ("n", "m", "k"), ("k", "n", "m"), ("m", "n", "k")]


@pytest.mark.parametrize("order", ORDERS, ids="".join)
@pytest.mark.parametrize("lane", ["", " with n on lane"])
def test_every_loop_order_gives_the_same_result(
    order: tuple[str, ...], lane: str, rng: np.random.Generator
) -> None:
    steps = {"m": 3, "k": 4, "n": 16}
    lines = ["mapping by_hand for cpu", "ranks M, K, N", "in A: f32[M, K], B: f32[K, N]"]
    lines += ["out C: f32[M, N]", "kernel k over m: M, k: K, n: N {"]
    lines += [f"for {v} by {steps[v]} {{" for v in order]
    lines += [f"do C[m, n] = A[m, k] * B[k, n]{lane}", *"}}}", "}"]
    mapping = parse_mapping("\n".join(lines) + "\n")
    inputs = random_inputs(signature(mapping), {"M": 10, "K": 9, "N": 37}, rng)
    c = parse_cascade(MATMUL)
    assert_matches(c, through_c(mapping, inputs), inputs)
    assert_matches(c, interpret_mapping(mapping, inputs)[0], inputs)
    assert len(leaves(mapping.kernels[0].body)) == 1  # type: ignore[union-attr]
    assert interpret(c, inputs)["C"].shape == (10, 37)


def test_a_buffer_over_an_unknown_variable_is_refused_and_an_empty_loop_is_nothing() -> None:
    text = """mapping scale for cpu
ranks M
in  X: f32[M]
out Y: f32[M]

kernel k over m: M {
  for m by 8 {
  }
  buffer T: f32[WHO] @L1 {
    do T[m] = X[m] with m on lane
    do Y[m] = T[m] * 2.0 with m on lane
  }
}
"""
    with pytest.raises(CompileError) as error:
        parse_mapping(text.replace("WHO", "mm"))
    assert error.value.diagnostic.code == "T0205"
    assert "did you mean `m`" in str(error.value)
    program = backend.build(parse_mapping(text.replace("WHO", "m")), CPU)
    x, y = np.arange(5, dtype=np.float32), np.empty(5, np.float32)
    program.bind({"X": (5,), "Y": (5,)}, {"X": (1,), "Y": (1,)}, {"M": 5})(
        [x.ctypes.data, y.ctypes.data]
    )
    assert (y == 2 * x).all()
