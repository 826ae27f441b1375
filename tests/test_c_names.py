"""The C backend: any name may be used; constants, sharing, determinism, and calls from many
threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from c_runs import built, run
from random_programs import assert_matches
from test_c_backend import SCAN, SHAPED

import tcc
from tcc.ir.cascade_text import parse_cascade
from tcc.samples import random_inputs

# ---- names

KEYWORDS = """auto break case char const continue default double else enum extern float goto if
    inline int long register restrict return short signed sizeof static struct switch typedef union
    unsigned void volatile while asm typeof""".split()
TAKEN = """main task tiles tiles2 scratch local n p c at grain used total rest stopped x y i j tcc_main
    errno NULL INFINITY NAN omp_get_thread_num memcpy abs fabs exp2 expf sqrtf y0 j1 index time f32
    f32x8 i64x4 u8 ld_f32x8 bc_f32x8 select_f32x8 max_f32 hsum_f32x8 PIN unix linux _x __y A_s0 X_s1
    k0_Y k0_Y_scratch uint8_t int64_t ptrdiff_t size_t M_n m_n Y_row Y2 local2 n2""".split()
DECLARED = re.compile(
    r"\b(?:u?int\d+_t|ptrdiff_t|double|float|char|int|void|[fiu]\d+(?:x\d+)?)\s+"
    r"(?:\*|const\b|restrict\b|\s)*(\w+)"
)


@pytest.mark.parametrize("name", [*KEYWORDS, *TAKEN])
def test_any_name_may_be_a_tensor(name: str, rng: np.random.Generator) -> None:
    """As an input, as an intermediate result and as an output; also next to a rank of that name."""
    texts = [
        f"in {name}: f32[M, K], B: f32[K, N]\nout Z: f32[M, N]\n"
        f"Q[m, n] = {name}[m, k] * B[k, n]\nZ[m, n] = exp(Q[m, n])",
        f"in A: f32[M, K], B: f32[K, N]\nout Z: f32[M, N]\n"
        f"{name}[m, n] = A[m, k] * B[k, n]\nS[m] = {name}[m, n] :: max(n)\n"
        f"Z[m, n] = {name}[m, n] - S[m]",
        f"in X: f32[M, K]\nout {name}: f32[M]\n{name}[m] = X[m, k]",
    ]
    for text in texts:
        try:
            c = parse_cascade(text)
        except tcc.CompileError as error:
            assert error.diagnostic.code.startswith("T01"), error  # a word of the language itself
            continue
        program = built(c)
        inputs = random_inputs(c, {"M": 5, "K": 6, "N": 19}, rng)
        assert_matches(c, run(program, c, inputs), inputs)
        code = re.sub(r"/\*.*?\*/", "", program.source, flags=re.S)
        declared = set(DECLARED.findall(code)) - {"const", "restrict"}
        assert not declared & set(KEYWORDS)
        if name in KEYWORDS:
            assert not re.search(rf"\b{name}\b\s*(\[|\+ )", code)


@pytest.mark.parametrize(
    "name", ["int", "do", "n", "p", "local", "scratch", "task", "a", "exp", "used"]
)
def test_any_name_may_be_a_rank(name: str, rng: np.random.Generator) -> None:
    """Also when a tensor has the name of that rank."""
    rank = name.upper()
    c = parse_cascade(
        f"in {rank}: f32[{rank}, Q], R: f32[Q, W]\nout T: f32[{rank}, W], Z: f32[{rank}]\n"
        f"T[{name}, w] = {rank}[{name}, q] * R[q, w]\n"
        f"Z[{name}] = T[{name}, w] * f32({name})"
    )
    sizes = {r.name: 7 for r in c.ranks}
    inputs = random_inputs(c, sizes, rng)
    assert_matches(c, run(built(c), c, inputs, sizes), inputs, sizes)


# ---- constants, sharing, determinism, concurrency

CONSTANT = """
in X: f32[M, K], W: f32[K, N] constant, V: f32[N, P] constant
out Y: f32[M, P]
H[m, n] = X[m, k] * W[k, n]
G[m, n] = max(H[m, n], 0)
Y[m, p] = G[m, n] * V[n, p]
"""


def test_constant_inputs_are_prepared_again_when_their_content_changes(
    rng: np.random.Generator,
) -> None:
    c = parse_cascade(CONSTANT)
    program = built(c)
    assert program.source.count("static void pack_") == 1 or "prepare" in str(program.mapping)
    sizes = {"M": 9, "K": 33, "N": 40, "P": 20}
    first, second = random_inputs(c, sizes, rng), random_inputs(c, sizes, rng)
    assert_matches(c, run(program, c, first, content="first"), first)
    assert_matches(c, run(program, c, second, content="second"), second)
    # the content is said to be that of `second`: the packed weights are used, not read again
    stale = {**first, "W": first["W"], "V": first["V"]}
    want = {**first, "W": second["W"], "V": second["V"]}
    assert_matches(c, run(program, c, stale, content="second"), want)
    assert_matches(c, run(program, c, first, content="first", times=2), first)


def test_numpy_constants_may_be_changed_in_place(rng: np.random.Generator) -> None:
    c, program = parse_cascade(CONSTANT), tcc.compile(CONSTANT)
    inputs = random_inputs(c, {"M": 9, "K": 33, "N": 40, "P": 20}, rng)
    for _ in range(3):
        assert_matches(c, {"Y": program(**inputs)}, inputs)
        inputs["W"] *= -0.5


@pytest.mark.parametrize("text", [CONSTANT, SHAPED["matmul with bias, residual and norm"], SCAN])
def test_python_threads_may_call_one_program_at_once(text: str) -> None:
    c, program = parse_cascade(text), tcc.compile(text)
    sizes = {r.name: 70 for r in c.ranks}
    cases = [random_inputs(c, sizes, np.random.default_rng(n)) for n in range(4)]
    wanted = [program(**inputs) for inputs in cases]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(60):
            got = program(**cases[n])
            pairs = (
                zip(got, wanted[n], strict=True) if isinstance(got, tuple) else [(got, wanted[n])]
            )
            if not all(np.array_equal(a, b) for a, b in pairs):
                wrong.append(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(cases))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_kernels_that_differ_in_names_alone_are_one_function() -> None:
    layers = 6
    lines = [
        "in X0: f32[M, K=512]",
        *(f"in W{n}: f32[512, 512], b{n}: f32[512]" for n in range(layers)),
    ]
    head = f"ranks M, K=512, N=512\nin X0: f32[M, K], {', '.join(lines[1:]).replace('in ', '')}\n"
    body = [f"out X{layers}: f32[M, N]"]
    for n in range(layers):
        body.append(f"H{n}[m, n] = X{n}[m, k] * W{n}[k, n]")
        body.append(f"X{n + 1}[m, n] = exp(H{n}[m, n] + b{n}[n])")
    source = tcc.compile(
        head.replace("512, 512", "K, N").replace("f32[512]", "f32[N]") + "\n".join(body)
    ).source
    functions = re.findall(r"^static void (\w+)\(", source, re.M)
    assert len(functions) <= 3, functions  # products, the first and the last perhaps apart
    main = source[source.index("void tcc_main") :]
    assert sum(main.count(f"  {f}(") for f in functions) == layers


def test_the_same_program_gives_the_same_c() -> None:
    text = SHAPED["causal attention of heads"]
    first = tcc.compile(text).source
    assert tcc.compile(text).source == first
    code = f"import tcc, sys; sys.stdout.write(tcc.compile({text!r}).source)"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, **_environment()},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == first


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
