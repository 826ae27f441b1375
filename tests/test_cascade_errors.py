"""Every mistake in a cascade gives its code, its place and advice; nothing gives a traceback."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_programs import generate

from tcc.ir.cascade_text import parse_cascade, parse_cascades
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DTYPES
from tcc.ir.interpret import bind, interpret
from tcc.ir.ops import MONOIDS, OPS

HEAD = "cascade bad\nin  A: f32[M, K], B: f32[K, N], J: i64[M], G: bool[M]\nout Z: f32[M, N]\n"

JOINT = """in X: f32[M, P]
out Y: f32[P]
Max[p] = X[m, p] :: max(m)
E[m, p] = exp(X[m, p] - Max[p])
Sum[p] = E[m, p]
Y[p] = log(Sum[p]) + Max[p]
"""
RECURRENCE = """in X: f32[M, T]
out Y: f32[T]
S[0] = 0.0
R[t] = X[m, t] * S[t]
S[t + 1] = S[t] + R[t]
Y[t] = S[t + 1]
joint m: R
"""


def failure(text: str) -> Any:
    with pytest.raises(CompileError) as caught:
        parse_cascade(text, "bad.tcc")
    return caught.value.diagnostic


# code, the text that is pointed at, and a part of the help; the program
BAD = [
    # syntax
    ("T0100", "]", "`,`, `]`".replace("`,`, `]`", "expected"), HEAD + "Z[m, n] = A[m, k B[k, n]]"),
    ("T0100", "@", "grammar", HEAD + "Z[m, n] = A[m, k] @ B[k, n]"),
    ("T0100", ")", "expected", HEAD + "Z[m, n] = A[m, k] * B[k, n])"),
    ("T0100", "ranks", "expected", HEAD + "ranks = 3"),
    ("T0100", "Z", "did you mean `out`?", "output Z: f32\nZ = 1.0"),
    # names
    ("T0103", "C[m, k]", "declare it: `in C: f32[…]`", HEAD + "Z[m, n] = C[m, k] * B[k, n]"),
    (
        "T0103",
        "Alfa[m, k]",
        "did you mean `Alpha`?",
        HEAD.replace("A:", "Alpha:") + "Z[m, n] = Alfa[m, k] * B[k, n]",
    ),
    ("T0101", "expp", "did you mean `exp`?", HEAD + "Z[m, n] = expp(A[m, k]) * B[k, n]"),
    ("T0101", "summ", "did you mean `sum`?", HEAD + "Z[m, n] = A[m, k] * B[k, n] :: summ(k)"),
    ("T0101", "int", "did you mean", HEAD + "Z[m, n] = int(A[m, k]) * B[k, n]"),
    ("T0123", "topk", "use one of", HEAD + "Z[m, n] = A[m, k] * B[k, n] :: topk(k)"),
    ("T0123", "n", "argmax(k)", HEAD + "Z[m, m] = A[m, k] * B[k, n] :: argmax(k, n)"),
    (
        "T0123",
        "Z[m] = A[m, k, n] :: argmax(n), argmin(k)",
        "definition of its own",
        "in A: f32[M, K, N]\nout Z: i64[M]\nZ[m] = A[m, k, n] :: argmax(n), argmin(k)",
    ),
    ("T0104", "A: i32", "another name", "in A: f32, A: i32\nout Z: f32\nZ = A"),
    ("T0104", "M=4", "another name", "ranks M=3, M=4\nout Z: i64\nZ = m * 1"),
    ("T0104", "Z: f64", "another name", "in A: f32\nout Z: f32, Z: f64\nZ = A"),
    (
        "T0106",
        "A[m, k] = 1.0 * m * k",
        "another name",
        HEAD + "Z[m, n] = B[m, n]\nA[m, k] = 1.0 * m * k",
    ),
    ("T0107", "Z: f32[M, N]", "did you mean `Zz`?", HEAD + "Zz[m, n] = A[m, k] * B[k, n]"),
    (
        "T0131",
        "Z[m, n] = 1.0 * m * n",
        "another name",
        HEAD + "Z[m, n] = A[m, k] * B[k, n]\nZ[m, n] = 1.0 * m * n",
    ),
    ("T0120", "m", "`M`", "ranks m=3\nout Z: i64\nZ = 1"),
    ("T0120", "m", "`M`", "in A: f32[m]\nout Z: f32\nZ = A[0]"),
    ("T0121", "f33", "did you mean `f32`?", "in A: f33\nout Z: f32\nZ = A"),
    ("T0122", "1 / 2", "write a number", "in A: f32[M] fill 1 / 2\nout Z: f32\nZ = A[m]"),
    # cycles
    (
        "T0108",
        "X[m] = Y[m] + 1.0",
        "iterative rank",
        "ranks M=3\nout X: f32[M]\nX[m] = Y[m] + 1.0\nY[m] = X[m] * 2.0",
    ),
    ("T0108", "X[m] = X[m] + 1.0", "iterative rank", "ranks M=3\nout X: f32[M]\nX[m] = X[m] + 1.0"),
    (
        "T0108",
        "S[t + 2]",
        "earlier step",
        "ranks T=3\nout S: f32[T + 1]\nS[0] = 0.0\nS[t + 1] = S[t + 2] * 0.5",
    ),
    ("T0108", "M=N + 1", "give `M` a number", "ranks N=M - 1, M=N + 1\nout X: i64[M]\nX[m] = m"),
    (
        "T0128",
        "stop t when B[0, 0] > 1.0",
        "state along `t`",
        HEAD + "Z[m, n] = A[m, k] * B[k, n]\nstop t when B[0, 0] > 1.0",
    ),
    # ranks, indices
    ("T0105", "Q", "declare it: `ranks Q=…`", HEAD + "Z[m, n] = A[m, k] * B[k, n] / Q"),
    ("T0109", "p", "give its rank a size", HEAD + "Z[m, n] = A[m, k + p] * B[k, n]"),
    ("T0113", "A[m]", "one index per rank", HEAD + "Z[m, n] = A[m] * B[k, n]"),
    ("T0113", "Z[m] = A[m, k]", "one index per rank", HEAD + "Z[m] = A[m, k]"),
    ("T0114", "m", "use the variable `k` there", HEAD + "Z[m, n] = A[m, k] * B[m, n]"),
    (
        "T0114",
        "m",
        "another variable",
        "ranks M=3\nin A: f32[M], B: f32[4]\nout Z: f32\nZ = A[m] * B[m]",
    ),
    ("T0115", "m", "output lacks", HEAD + "Z[m, n] = A[m, k] * B[k, n] :: max(m)"),
    ("T0115", "q", "output lacks", HEAD + "Z[m, n] = A[m, k] * B[k, n] :: max(q)"),
    ("T0118", "J[m]", "read indirectly", HEAD + "Z[J[m], n] = A[m, k] * B[k, n]"),
    ("T0119", "m / 2", "convert it: `i64(…)`", HEAD + "Z[m, n] = A[m / 2, k] * B[k, n]"),
    ("T0130", "m - 1", "shift where it is read", HEAD + "Z[m - 1, n] = A[m, k] * B[k, n]"),
    ("T0130", "m * 2", "larger `Z`", HEAD + "Z[m * 2, n] = A[m, k] * B[k, n]"),
    # sizes
    ("T0110", "M=-3", "0 or more", "ranks M=-3\nout Z: i64\nZ = m * 1"),
    ("T0110", "M=N - 5", "0 or more", "ranks N=2, M=N - 5\nout Z: i64\nZ = m * 1"),
    ("T0110", "A: f32[2 - 3]", "0 or more", "in A: f32[2 - 3]\nout Z: f32\nZ = A[0]"),
    (
        "T0111",
        "A: f32[M, N, K]",
        "smaller sizes",
        "ranks M=4000000, N=4000000, K=4000000\nin A: f32[M, N, K]\nout Z: f32\nZ = A[m, n, k]",
    ),
    ("T0111", "M=2 ** 63", "smaller size", "ranks M=2 ** 63\nout Z: i64\nZ = m * 1"),
    ("T0111", "2 ** 99999999", "exponent", "ranks M=2 ** 99999999\nout Z: i64\nZ = m * 1"),
    (
        "T0111",
        "99999999999999999999",
        "smaller number",
        "ranks M=99999999999999999999\nout Z: i64\nZ = m * 1",
    ),
    ("T0112", "8 // 0", "1 or more", "ranks M=8 // 0\nout Z: i64\nZ = m * 1"),
    ("T0112", "M=2.5", "integer expression", "ranks M=2.5\nout Z: i64\nZ = m * 1"),
    # dtypes
    (
        "T0116",
        "Z[m, n] = A[m, k] * B[k, n]",
        "declare `Z` as f32",
        HEAD.replace("Z: f32", "Z: i32") + "Z[m, n] = A[m, k] * B[k, n]",
    ),
    ("T0116", "A[m, k] & B[k, n]", "convert it", HEAD + "Z[m, n] = A[m, k] & B[k, n]"),
    (
        "T0116",
        "select(A[m, k], 1.0, B[k, n])",
        "x != 0",
        HEAD + "Z[m, n] = select(A[m, k], 1.0, B[k, n])",
    ),
    ("T0116", "not A[m, k]", "x != 0", HEAD + "Z[m, n] = B[k, n] where not A[m, k]"),
    ("T0117", "A[m, k]", "compare something", HEAD + "Z[m, n] = A[m, k] * B[k, n] where A[m, k]"),
    ("T0124", "exp(A[m, k], 2)", "commas", HEAD + "Z[m, n] = exp(A[m, k], 2) * B[k, n]"),
    # joints: the components
    ("T0135", "Sum", "before", JOINT + "joint m: Sum by Sum * exp(Max - Max'), Max"),
    ("T0135", "Max", "once", JOINT + "joint m: Max, Max"),
    ("T0135", "Max", "once", JOINT + "joint m: Max\njoint m: Max"),
    ("T0135", "joint q: Max", "all fields reduce", JOINT + "joint q: Max"),
    ("T0135", "Max", "definition of its own", JOINT + "joint p: Max"),
    ("T0135", "Summ", "did you mean `Sum`?", JOINT + "joint m: Max, Summ"),
    ("T0135", "X", "a definition reduces to", JOINT + "joint m: X"),
    ("T0135", "Y", "definition of its own", JOINT + "joint m: Y"),
    ("T0135", "All", "definition of its own", JOINT + "All = X[m, p] :: max(m, p)\njoint m: All"),
    (
        "T0135",
        "Two",
        "one definition",
        JOINT + "Two[0] = X[m, 0]\nTwo[1] = X[m, 1]\njoint m: Two",
    ),
    ("T0135", "Far", "define it as `Far[p]`", JOINT + "Far[p + 1] = X[m, p]\njoint m: Far"),
    (
        "T0135",
        "Late",
        "make it a field, too",
        JOINT + "S2[p] = E[m, p]\nD[m, p] = E[m, p] / S2[p]\nLate[p] = D[m, p]\n"
        "joint m: Max, Late by Late * exp(Max - Max')",
    ),
    (
        "T0135",
        "Turned",
        "same names",
        JOINT + "ranks U=P\nTurned[u] = exp(X[m, u] - Max[u])\n"
        "joint m: Max, Turned by Turned * exp(Max - Max')",
    ),
    (
        "T0135",
        "Shifted",
        "coordinate of the walk",
        JOINT + "Shifted[p] = E[m - 1, p]\njoint m: Max, Shifted by Shifted * exp(Max - Max')",
    ),
    (
        "T0135",
        "Few",
        "same names",
        JOINT + "Few = exp(X[m, 0] - Max[0])\njoint m: Max, Few by Few",
    ),
    ("T0135", "R", "outside of recurrences", RECURRENCE),
    # joints: the corrections
    ("T0136", "Sum", "say how its value follows", JOINT + "joint m: Max, Sum"),
    ("T0136", "Max'", "joined state", JOINT + "Z[p] = Max'"),
    ("T0136", "Max[p]", "write `Max`", JOINT + "joint m: Max, Sum by Sum * exp(Max[p] - Max')"),
    ("T0136", "Sum'", "comes earlier", JOINT + "joint m: Max, Sum by Sum' * exp(Max - Max')"),
    ("T0136", "X'", "earlier component", JOINT + "joint m: Max, Sum by Sum * exp(Max - X')"),
    ("T0136", "Max'", "comes earlier", JOINT + "joint m: Max by Max'"),
    ("T0136", "Sum * 1.0", "(`Max'`)", JOINT + "joint m: Max, Sum by Sum * 1.0"),
    ("T0136", "m", "`Sum[p]`", JOINT + "joint m: Max, Sum by Sum * exp(Max - Max') * m"),
    ("T0136", "Y[p]", "components", JOINT + "joint m: Max, Sum by Sum * exp(Max - Max') + Y[p]"),
    (
        "T0103",
        "Q[p]",
        "tensor of the program",
        JOINT + "joint m: Max, Sum by Sum * (Max - Max') * Q[p]",
    ),
    ("T0105", "Q", "use a rank", JOINT + "joint m: Max, Sum by Sum * (Max - Max') * Q"),
    ("T0113", "X[p]", "per rank", JOINT + "joint m: Max, Sum by Sum * (Max - Max') * X[p]"),
    (
        "T0116",
        "f64(Sum) * exp(Max - Max')",
        "convert: `f32(…)`",
        JOINT + "joint m: Max, Sum by f64(Sum) * exp(Max - Max')",
    ),
    (
        "T0137",
        "Sum * exp(Max' - Max)",
        "under the new references",
        JOINT + "joint m: Max, Sum by Sum * exp(Max' - Max)",
    ),
    (
        "T0137",
        "Sum * (Max - Max')",
        "under the new references",
        JOINT + "joint m: Max, Sum by Sum * (Max - Max')",
    ),
    (
        "T0137",
        "Sum + (Max - Max') ** 2",
        "under the new references",
        JOINT + "joint m: Max, Sum by Sum + (Max - Max') ** 2",
    ),
    ("T0124", "max()", "commas", HEAD + "Z[m, n] = max() * B[m, n]"),
]


@pytest.mark.parametrize(
    "code, shown, advice, text", BAD, ids=[f"{c}-{n}" for n, (c, *_) in enumerate(BAD)]
)
def test_a_mistake_has_a_code_a_place_and_advice(
    code: str, shown: str, advice: str, text: str
) -> None:
    d = failure(text)
    assert d.code == code
    assert d.span is not None
    marked = d.span.source.line(d.span.line)[d.span.column - 1 : d.span.end_column - 1]
    if code != "T0100":
        assert marked == shown
    assert any(advice in help_ for help_ in d.helps), d.helps
    assert d.message[0] in "`" or d.message[0].islower()
    assert not d.message.endswith(".")
    assert "^" in d.render()


@pytest.mark.parametrize(
    "text, line, column",
    [
        (HEAD + "Z[m, n] = A[m, k B[k, n]]", 4, 18),
        (HEAD + "Z[m, n] = A[m, k] @ B[k, n]", 4, 19),
        (HEAD + "Z[m, n] = A[m, k] * B[k, n])", 4, 28),
        (HEAD + "Z[m, n] =", 4, 10),
        (HEAD + "Z[m, n] = A[m, k] *\nY = 1.0", 4, 20),
        (HEAD + "Z[m, n] = (A[m, k]", 4, 19),
        ('in "; rm -rf": f32\nout Z: f32\nZ = 1.0', 1, 4),
        ("in A: f32[M]  # ä ö ü\nout Z: f32\nZ = A[m] $", 3, 10),
    ],
)
def test_a_syntax_error_is_pointed_at(text: str, line: int, column: int) -> None:
    d = failure(text)
    assert (d.code, d.span.line, d.span.column) == ("T0100", line, column)
    assert d.helps


@pytest.mark.parametrize(
    "name", ["int", "float", "for", "main", "lambda", "exp", "f32", "I", "__init__", "NULL"]
)
def test_words_of_other_languages_are_ordinary_tensor_names(name: str) -> None:
    text = f"in {name}: f32[M]\nout Z: f32\nZ = {name}[m]"
    assert interpret(parse_cascade(text), {name: np.ones(3, "f")})["Z"] == 3
    assert str(parse_cascade(str(parse_cascade(text)))) == str(parse_cascade(text))


# ---- the pages of errors and of the language

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "errors.md").read_text("utf-8"), flags=re.MULTILINE)[
    1:
]


def blocks(page: str) -> list[tuple[str, str]]:
    """The info string and the text of every fenced block."""
    return re.findall(r"^```([^\n]+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


ERRORS_OF_TEXTS = {f"T01{n:02}" for n in range(40)}


@pytest.mark.parametrize("section", SECTIONS, ids=[s[:5] for s in SECTIONS])
def test_the_examples_of_an_error_fail_and_are_corrected(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, found = section[:5], blocks(section)
    found = [(info, text) for info, text in found if info.split()[0] in ("tcc", "python")]
    infos = [info for info, _ in found]
    told = ([], ["python fails"])  # what depends on the machine or needs no second program
    assert infos in (["tcc fails", "tcc"], ["python fails", "python"]) or (
        infos in told and code not in ERRORS_OF_TEXTS
    )
    for info, text in found:
        run = parse_cascade if info.startswith("tcc") else (lambda t: exec(t, {}))
        if info.endswith("fails"):
            with pytest.raises(CompileError) as caught:
                run(text)
            assert caught.value.diagnostic.code == code
            assert caught.value.diagnostic.helps
        else:
            run(text)


def test_every_code_of_the_language_has_its_section() -> None:
    files = [
        p
        for p in (ROOT / "ir").glob("*.py")
        if not p.name.startswith(("mapping", "layout", "target"))
    ]
    files += [ROOT / "frontends" / f"{name}.py" for name in ("text", "teaal", "einsum")]
    raised = {c for p in files for c in re.findall(r'"(T\d{4})"', p.read_text("utf-8"))}
    described = [s[:5] for s in SECTIONS]
    assert sorted(set(described)) == described
    assert raised <= set(described), sorted(raised - set(described))


LANGUAGE = (ROOT / "docs" / "language.md").read_text("utf-8")


@pytest.mark.parametrize("text", [text for info, text in blocks(LANGUAGE) if info == "tcc"])
def test_the_programs_of_the_language_page_are_correct(text: str) -> None:
    parse_cascade(text)


def test_the_language_page_lists_every_operator_monoid_and_dtype() -> None:
    rows = "\n".join(line for line in LANGUAGE.splitlines() if line.startswith("|")).replace(
        "\\|", "|"
    )
    for op in OPS.values():
        shown = (
            f"`{op.infix}`"
            if op.result == "bool" and op.arity == 2 and op.precedence == 5
            else op.infix
        )
        wanted = (
            f"`{op.name}("
            if not op.infix
            else shown
            if op.arity == 1 or shown[0] == "`"
            else f" {shown} "
        )
        assert wanted in rows, f"`{op.name}` is missing"
    for function in re.findall(r"`(\w+)\(", rows):
        assert function in OPS or function in DTYPES, f"`{function}` is no function"
    for name in [*MONOIDS, *DTYPES]:
        assert f"`{name}`" in rows, f"`{name}` is missing"


# ---- mistakes in the inputs


@pytest.mark.parametrize(
    "inputs, sizes, code, message",
    [
        ({"A": (3, 4)}, {}, "T0127", "input `B` is missing"),
        (
            {"A": (3, 4), "B": (5, 6)},
            {},
            "T0125",
            "dimension 0 of `B` is 5, but its rank has size 4",
        ),
        ({"A": (3, 4), "B": (4,)}, {}, "T0125", "`B` has 1 dimensions"),
        ({"A": (3, 4), "B": (4, 6)}, {"M": 7}, "T0125", "dimension 0 of `A` is 3"),
        ({"A": (3, 4), "B": (4, 6)}, {"Q": 7}, "T0126", "has no rank `Q`"),
        ({"A": (3, 4), "B": (4, 6)}, {"M": -1}, "T0110", "negative size -1"),
    ],
)
def test_inputs_that_do_not_fit_are_reported(
    inputs: dict[str, tuple[int, ...]], sizes: dict[str, int], code: str, message: str
) -> None:
    c = parse_cascade(
        "in A: f32[M, K], B: f32[K, N]\nout Z: f32[M, N]\nZ[m, n] = A[m, k] * B[k, n]"
    )
    with pytest.raises(CompileError) as caught:
        bind(c, {name: np.zeros(shape, "f") for name, shape in inputs.items()}, sizes)
    assert caught.value.diagnostic.code == code
    assert message in caught.value.diagnostic.message
    assert caught.value.diagnostic.helps


def test_a_size_that_nothing_gives_is_asked_for() -> None:
    c = parse_cascade("ranks N\nin A: f32[M]\nout Z: f32[N]\nZ[n] = A[n + 0]")
    with pytest.raises(CompileError, match=r"--size N=64") as caught:
        bind(c, {"A": np.zeros(3, "f")})
    assert caught.value.diagnostic.code == "T0126"


def test_a_tensor_that_overflows_at_run_time_is_reported() -> None:
    c = parse_cascade("ranks M, N, K\nout Z: f64\nT[m, n, k] = 1.0 * m\nZ = f64(T[0, 0, 0])")
    with pytest.raises(CompileError, match=r"more than 2\^63 - 1"):
        bind(c, {}, {"M": 2**30, "N": 2**30, "K": 2**10})


# ---- long and deep programs


def test_two_thousand_definitions_are_no_problem() -> None:
    chain = "".join(f"T{n + 1}[m] = T{n}[m] + 1.0\n" for n in range(2000))
    text = f"in A: f32[M]\nout Z: f32[M]\nT0[m] = A[m]\n{chain}Z[m] = T2000[m]\n"
    c = parse_cascade(text)
    assert str(parse_cascade(str(c))) == str(c)
    assert interpret(c, {"A": np.zeros(2, "f")})["Z"].tolist() == [2000, 2000]


def test_parentheses_may_nest_deeply() -> None:
    c = parse_cascade(f"in A: f32[M]\nout Z: f32[M]\nZ[m] = {'(' * 500}A[m]{')' * 500}")
    assert str(c.definitions[0]) == "Z[m] = A[m]"


@pytest.mark.parametrize(
    "body",
    [
        " + ".join(["A[m]"] * 2000),
        "abs(" * 500 + "A[m]" + ")" * 500,
        "-" * 5000 + "A[m]",
        " ** ".join(["A[m]"] * 500),
        "A[" * 500 + "m" + "]" * 500,
        "not " * 900 + "true",
    ],
)
def test_an_expression_that_nests_too_deeply_is_reported(body: str) -> None:
    d = failure(f"in A: f32[M]\nout Z: f32[M]\nZ[m] = {body}")
    assert d.code == "T0129"
    assert d.span.line == 3
    assert len(d.render()) < 1000, "a very long line is cut"


def test_a_sum_of_a_hundred_terms_is_fine() -> None:
    c = parse_cascade(f"in A: f32[M]\nout Z: f32[M]\nZ[m] = {' + '.join(['A[m]'] * 100)}")
    assert interpret(c, {"A": np.ones(2, "f")})["Z"].tolist() == [100, 100]


# ---- fuzz


TOKENS = "= [ ] ( ) , : :: where + - * / // % ** ?? m i j k I J K 0 1 -1 1e9 f32 exp max in out"
TOKENS += " ranks stop when fill and not \n # .. !"


def mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(text))
        kind = rng.random() * 1.6 - 0.6
        if kind < -0.2:  # another name or digit
            places = [n for n, c in enumerate(text) if c in "ijkmIJKM0123456789"]
            at = rng.choice(places)
            text = (
                text[:at]
                + rng.choice(
                    "ijkm" if text[at].islower() else "IJKM" if text[at].isupper() else "01239"
                )
                + text[at + 1 :]
            )
        elif kind < 0:  # another operator
            places = [n for n, c in enumerate(text) if c in "+-*/%<>"]
            at = rng.choice(places or [0])
            text = text[:at] + rng.choice("+-*/%<>") + text[at + 1 :]
        elif kind < 0.3:
            text = text[:at] + text[at + rng.randint(1, 4) :]
        elif kind < 0.6:
            text = text[:at] + rng.choice(TOKENS.split(" ")) + text[at:]
        elif kind < 0.8:
            words = text.split(" ")
            a, b = rng.randrange(len(words)), rng.randrange(len(words))
            words[a], words[b] = words[b], words[a]
            text = " ".join(words)
        else:
            lines = text.split("\n")
            rng.shuffle(lines)
            text = "\n".join(lines)
        text = text or "\n"
    return text


@pytest.mark.parametrize("block", range(5))
def test_a_mutated_program_is_correct_or_gives_a_compile_error(block: int) -> None:
    rng = random.Random(block)
    outcomes, codes = {"ok": 0, "error": 0}, set()
    for case in range(200):
        program = generate(block * 200 + case, points=200)
        text = mutated(str(program.cascade), rng)
        try:
            c = parse_cascades(text)
            if len(c) == 1:
                again = parse_cascade(str(c[0]))
                assert str(again) == str(c[0])
                bind(c[0], program.inputs, program.sizes)
                interpret(c[0], program.inputs, program.sizes)
            outcomes["ok"] += 1
        except CompileError as error:
            outcomes["error"] += 1
            codes.add(error.diagnostic.code)
            error.diagnostic.render()
            error.diagnostic.json()
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{text}") from error
    assert min(outcomes.values()) > 10
    assert codes <= {s[:5] for s in SECTIONS}
