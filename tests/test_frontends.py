"""Files, TeAAL YAML and einsum strings become the cascades that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcc.frontends.einsum import einsum
from tcc.frontends.teaal import parse_teaal
from tcc.frontends.text import load, load_all
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.interpret import interpret

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FILES = sorted(p.name for p in EXAMPLES.iterdir() if p.suffix in (".tcc", ".yaml"))


def failure(call: Any) -> Any:
    with pytest.raises(CompileError) as caught:
        call()
    assert caught.value.diagnostic.helps
    return caught.value.diagnostic


@pytest.mark.parametrize("name", FILES)
def test_an_example_loads_and_prints_as_it_reads(name: str) -> None:
    cascade = load(EXAMPLES / name)
    assert cascade.name == name.rsplit(".", 1)[0]
    assert str(parse_cascade(str(cascade))) == str(cascade)
    assert (EXAMPLES / name).read_text().startswith("# "), "an example opens with its lesson"


# ---- files


@pytest.mark.parametrize(
    "data, message, place",
    [
        (None, "there is no file", None),
        (b"cascade a\nin A\xff: f32\n", "is not UTF-8 text: byte 0xff", (2, 5)),
        (b"", "holds no cascade", None),
        (b"# nothing\n", "holds no cascade", None),
    ],
)
def test_a_file_that_can_not_be_read_is_reported(
    data: bytes | None, message: str, place: tuple[int, int] | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tcc"
    if data is not None:
        path.write_bytes(data)
    d = failure(lambda: load(path))
    assert message in d.message
    assert (d.span and (d.span.line, d.span.column)) == place


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "matmul.tcc").write_text("in A: f32\nout Z: f32\nZ = A\n")
    assert failure(lambda: load(tmp_path / "matmull.tcc")).helps == ("did you mean `matmul.tcc`?",)
    assert "is a folder" in failure(lambda: load(tmp_path)).message


def test_a_file_of_several_cascades_needs_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "two.tcc"
    path.write_text(
        "cascade a\nin X: f32\nout Y: f32\nY = X\ncascade b\nin X: f32\nout Y: f32\nY = X\n"
    )
    assert [c.name for c in load_all(path)] == ["a", "b"]
    assert failure(lambda: load(path)).code == "T0102"


def test_byte_order_marks_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tcc"
    path.write_bytes(
        "\ufeffcascade a\r\nin X: f32[I]  # c\r\nout Y: f32\r\nY = X[i]\r\n  + 1.0\r\n".encode()
    )
    assert str(load(path).definitions[0]) == "Y = X[i] + 1.0"


# ---- TeAAL

GAMMA = """einsum:
  declaration:
    A: [K, M]
    B: [K, N]
    T: [K, M, N]
    Z: [M, N]
  expressions:
    - T[k, m, n] = take(A[k, m], B[k, n], 1)
    - Z[m, n] = T[k, m, n] * A[k, m]
mapping:
  rank-order: {A: [M, K]}
format: {}
"""


def test_gamma_multiplies_matrices(rng: np.random.Generator) -> None:
    program = parse_teaal(GAMMA, "gamma.yaml")
    assert program.unused == ("mapping", "format")
    a, b = rng.normal(size=(4, 3)).astype("f"), rng.normal(size=(4, 5)).astype("f")
    np.testing.assert_allclose(
        interpret(program.cascade, {"A": a, "B": b})["Z"], a.T @ b, rtol=1e-5, atol=1e-6
    )


FUSEMAX = [
    "BQK[m1,m0,p] = Q[e,p]*BK[e,m1,m0]",
    "LM[m1,p] = BQK[m1,m0,p] :: max(m0)",
    "RM[m1+1,p] = max(RM[m1,p], LM[m1,p])",
    "SLN[m1,m0,p] = exp(BQK[m1,m0,p]-RM[m1+1,p])",
    "SLD[m1,p] = SLN[m1,m0,p]",
    "SLNV[m1,f,p] = SLN[m1,m0,p]*BV[f,m1,m0]",
    "PRM[m1,p] = exp(RM[m1,p]-RM[m1+1,p])",
    "RD[m1+1,p] = SLD[m1,p] + RD[m1,p]*PRM[m1,p]",
    "RNV[m1+1,f,p] = SLNV[m1,f,p] + RNV[m1,f,p]*PRM[m1,p]",
    "AV[f,p] = RNV[M1,f,p]/RD[M1,p]",
]
PUBLISHED = [
    (
        {"A": "K, M", "B": "K, N", "T": "K, M, N", "Z": "M, N"},
        ["T[k,m,n] = A[k,m]*B[k,n]", "Z[m,n] = T[k,m,n]"],
    ),
    (
        {"A": "I, J, K", "B": "J, F", "C": "K, F", "T": "I, J, F", "Y": "I, F"},
        ["T[i,j,f] = A[i,j,k]*C[k,f]", "Y[i,f] = T[i,j,f]*B[j,f]"],
    ),
    (
        {"I": "N, C, H, W", "F": "M, C, R, S", "O": "N, M, E, F"},
        ["O[n,m,e,f] = I[n,c,e+r,f+s]*F[m,c,r,s]"],
    ),
    (
        {"G": "D, S", "A0": "S", "P0": "D", "SO": "D, S", "R": "D", "P1": "D"},
        ["SO[d, s] = take(G[d, s], A0[s], 0)", "R[d] = SO[d, s] * A0[s]", "P1[d] = R[d] + P0[d]"],
    ),
    ({"I": "W", "F": "S", "O": "Q"}, ["O[q] = I[2*q + s] * F[s]"]),
    ({"A": "K", "B": "K", "Z": ""}, ["Z = A[k] * B[k]"]),
    ({"Q": "E, P", "BK": "E, M1, M0", "BV": "F, M1, M0", "AV": "F, P"}, FUSEMAX),
    (
        {"Q": "E, P", "K": "E, M", "V": "F, M", "AV": "F, P"},
        [
            "QK[m,p]  = Q[e,p]*K[e,m]",
            "GM[p]    = QK[m,p] :: max(m)",
            "SN[m,p]  = exp(QK[m,p]-GM[p])",
            "SD[p]    = SN[m,p]",
            "A[m,p]   = SN[m,p]/SD[p]",
            "AV[f,p]  = A[m,p]*V[f,m]",
        ],
    ),
]


@pytest.mark.parametrize("declaration, expressions", PUBLISHED)
def test_published_cascades_parse_unchanged(
    declaration: dict[str, str], expressions: list[str]
) -> None:
    lines = [f"    {name}: [{ranks}]" for name, ranks in declaration.items()]
    text = "\n".join(
        [
            "einsum:",
            "  declaration:",
            *lines,
            "  expressions:",
            *(f"    - {e}" for e in expressions),
        ]
    )
    cascade = parse_teaal(text).cascade
    assert str(parse_cascade(str(cascade))) == str(cascade)
    assert len(cascade.definitions) == len(expressions)


def test_the_extents_of_a_convolution_follow_from_its_input(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    i, f = rng.normal(size=(2, 3, 7, 6)).astype("f"), rng.normal(size=(4, 3, 3, 2)).astype("f")
    want = torch.nn.functional.conv2d(torch.tensor(i), torch.tensor(f)).numpy()
    got = interpret(load(EXAMPLES / "eyeriss.yaml"), {"I": i, "F": f})["O"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_an_intermediate_of_the_list_outputs_is_returned() -> None:
    text = GAMMA.replace("mapping:", "  outputs: [T]\nmapping:")
    assert [t.name for t in parse_teaal(text).cascade.outputs] == ["Z", "T"]


@pytest.mark.parametrize(
    "old, new, code, place",
    [
        ("T[k, m, n] * A[k, m]", "T[k, m, n] *", "T0100", (9, 29)),
        ("T[k, m, n] * A[k, m]", "T[k, m, n] * C[k, m]", "T0103", (9, 30)),
        ("T[k, m, n] * A[k, m]", "T[k, m, n] * A[k]", "T0113", (9, 30)),
        ("- Z[m, n] = T[k, m, n] * A[k, m]", "- Z = 3.5\n    - x: 3", "T0134", (8, 5)),
        ("- Z[m, n] = T[k, m, n] * A[k, m]", "- 'Z[m, n] = U[m]'", "T0103", (9, 18)),
        ("B[k, n], 1)", "B[k, n], 1))", "T0100", (8, 45)),
        ("take", "tale", "T0101", (8, 20)),
        ("A: [K, M]", "A: [K, m]", "T0120", (3, 12)),
        ("A: [K, M]", "A: K", "T0134", (3, 8)),
        ("Z: [M, N]", "Z: [M]", "T0113", (9, 7)),
        ("  expressions:", "  expression:", "T0134", (7, 3)),
        ("einsum:", "einsums:", "T0134", (1, 1)),
    ],
)
def test_errors_point_into_the_yaml(old: str, new: str, code: str, place: tuple[int, int]) -> None:
    assert old in GAMMA
    d = failure(lambda: parse_teaal(GAMMA.replace(old, new, 1), "gamma.yaml"))
    assert (d.code, d.span.source.name) == (code, "gamma.yaml")
    assert (d.span.line, d.span.column) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{",
        "a: b: c",
        "- 1",
        "einsum:",
        "[" * 3000,
        "einsum: {declaration: {}, expressions: {}}",
        "einsum: &a {declaration: *a, expressions: *a}",
        "\x00",
        "!!python/object:os.system x",
    ],
)
def test_what_is_no_teaal_gives_an_error(text: str) -> None:
    assert failure(lambda: parse_teaal(text)).span


# ---- einsum strings


@pytest.mark.parametrize(
    "text, shapes",
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("ij,jk", [(3, 4), (4, 2)]),
        ("ba,", [(3, 4), ()]),
        ("ii", [(4, 4)]),
        ("ii->i", [(4, 4)]),
        ("ij->ji", [(2, 3)]),
        ("i,i->", [(5,), (5,)]),
        ("zab,b", [(2, 3, 4), (4,)]),
        ("...ij,...jk->...ik", [(2, 3, 4, 5), (3, 5, 2)]),
        ("i...->...", [(3, 2, 4)]),
        ("aB,Bc->ac", [(2, 3), (3, 4)]),
        ("ij, jk , kl -> il", [(2, 3), (3, 4), (4, 2)]),
        ("...i", [(2, 3)]),
    ],
)
def test_einsum_strings_mean_what_numpy_means(
    text: str, shapes: list[tuple[int, ...]], rng: np.random.Generator
) -> None:
    cascade = einsum(text, "f64", ranks=[len(s) for s in shapes])
    arrays = [rng.normal(size=s) for s in shapes]
    got = interpret(cascade, {t.name: a for t, a in zip(cascade.inputs, arrays)})
    np.testing.assert_allclose(got[cascade.outputs[0].name], np.einsum(text, *arrays), atol=1e-12)
    assert str(parse_cascade(str(cascade))) == str(cascade)


@pytest.mark.parametrize(
    "text, code, column",
    [
        ("ij,jk->iz", "T0133", 9),
        ("i1->i", "T0133", 2),
        ("ij->ii", "T0133", 6),
        ("...i->i", "T0133", 1),
        ("i->j->k", "T0133", 5),
    ],
)
def test_a_wrong_einsum_string_is_pointed_at(text: str, code: str, column: int) -> None:
    d = failure(lambda: einsum(text))
    assert (d.code, d.span.column) == (code, column)


def test_operands_may_be_named() -> None:
    assert (
        str(einsum("ij,jk->ik", "f32", ["X", "W", "Y"]).definitions[0])
        == "Y[i, k] = X[i, j] * W[j, k]"
    )
    assert failure(lambda: einsum("ij,jk->ik", "f32", ["X", "X", "Y"])).code == "T0133"
    assert failure(lambda: einsum("ij->i", "f33")).code == "T0121"
