"""`tcc layout` shows layouts; conversions have classes; buffers take every layout that stores each element once."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

from tcc.cli import main
from tcc.ir.diagnostics import CompileError
from tcc.ir.layout_convert import convert
from tcc.ir.layout_text import parse_layout
from tcc.ir.mapping_text import parse_mapping

FRAGMENT = "(16, 8) lane[0%8, 1/2] reg[0/8, 1%2]"


def test_a_layout_is_shown_with_its_digits_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layout", FRAGMENT]) == 0
    out = capsys.readouterr().out
    assert "lane: 32 places = i % 8 * 4 + j // 2" in out
    assert "128 elements, one place each; 128 of 128 places used" in out
    assert " 9  4.2  4.3  5.2  5.3  6.2  6.3  7.2  7.3" in out
    assert "\x1b[" not in out
    assert main(["layout", FRAGMENT, "--color", "always"]) == 0
    assert "\x1b[48;2;" in capsys.readouterr().out


def test_a_picture_is_an_svg_with_a_box_per_element(tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    assert main(["layout", "(2, 3, 4) lane[_%2, 1] [0, 2]", "--svg", str(path)]) == 0
    root = xml.etree.ElementTree.parse(path).getroot()
    boxes = [e for e in root.iter() if e.tag.endswith("rect") and e.get("rx")]
    assert len(boxes) == 24
    assert len({e.get("fill") for e in boxes}) > 4


def test_json_has_every_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layout", "(M, 3) [1, 0]", "--size", "M=2", "--to", "[0, 1]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["places"] == [[[[0]], [[2]], [[4]]], [[[1]], [[3]], [[5]]]]
    assert found["axes"][0]["index"] == "i + j * 2"
    assert found["conversion"] == {"kind": "memory", "moved": 4, "places": 6, "run": 1, "cost": 12}


def test_sizes_may_stay_open(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layout", "(M, 64) [0, 1/8, 1%8^0%8]"]) == 0
    out = capsys.readouterr().out
    assert "(M * 64) places = i * 64 + (j % 8 ^ i % 8) + j // 8 * 8" in out
    assert "--size M=64" in out


def test_an_inverse_is_a_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layout", "(M, 6) [1, 0]", "--inverse"]) == 0
    assert capsys.readouterr().out.startswith("((M * 6)) dim0[0%M] dim1[0/M]\n")


@pytest.mark.parametrize(
    "arguments, code, exit_code",
    [
        (["[0]"], "T0272", 1),
        (["(4) lan[0]"], "T0270", 1),
        (["(4) [0%2]"], "T0201", 1),
        (["(4) [0"], "T0100", 1),
        (["(4, 8) [0, 1%8^0%3]"], "T0270", 1),
        (["(4.5) [0]"], "T0112", 1),
        (["(5) [0/4, 0%4]", "--inverse"], "T0271", 1),
        (["(4) [0]", "--to", "(5) [0]"], "T0272", 1),
        (["(M) [0]", "--svg", "x.svg"], "T0140", 2),
        (["(4) [0]", "--svg", "/nowhere/x.svg"], "T0140", 2),
        (["(100000, 100000) [0, 1]"], "T0272", 1),
    ],
)
def test_a_wrong_layout_is_an_error(
    arguments: list[str], code: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layout", *arguments]) == exit_code
    assert f"error[{code}]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "one, other, shown",
    [
        (FRAGMENT, FRAGMENT, "free: 0 of 128 places move, cost 0"),
        ("(16, 8) lane[0%8, 1/2] reg[_%2, 0/8, 1%2]", FRAGMENT, "free: 0 of 128 places move, cost 0"),
        (FRAGMENT, "(16, 8) lane[0%8, 1/2] reg[1%2, 0/8]", "registers: 64 of 128 places move, cost 2"),
        (FRAGMENT, "(16, 8) lane[0/2, 1/2] reg[0%2, 1%2]", "shuffle: 112 of 128 places move, cost 4"),
        ("(8, 8) warp[0/4] lane[0%4] reg[1]", "(8, 8) warp[1/4] lane[1%4] reg[0]",
         "memory: 56 of 64 places move, cost 16"),
        ("(4, 8) [0, 1]", "(4, 8) [1/4, 0, 1%4]", "memory: 24 of 32 places move, runs of 4, cost 16"),
        ("(M, 8) [0, 1]", "(M, 8) [0, 1/4, 1%4]", "free"),
        ("(M, 8) lane[0] reg[1]", "(M, 8) lane[0] reg[1%2, 1/2]", "registers"),
        ("(M, 8) lane[0] reg[1]", "(M, 8) lane[1] reg[0]", "shuffle"),
        ("(M, 8) [0, 1]", "(M, 8) [1, 0]", "memory"),
    ],
)  # fmt: skip
def test_conversions_have_a_class_and_a_cost(one: str, other: str, shown: str) -> None:
    assert str(convert(parse_layout(one), parse_layout(other))) == shown


MATMUL = """
mapping matmul for cpu
ranks M, K, N
in  A: f32[M, K]
in  B: f32[K, N]
out C: f32[M, N]
memory P: f32[K, N] @memory layout LAYOUT

kernel pack over k: K, n: N {
  for k by 1 {
    do P[k, n] = B[k, n] with n on lane
  }
}

kernel product over m: M, n: N, k: K {
  for m by 6 {
    for n by 16 {
      buffer S: f32[m, n] @L1 layout LAYOUT {
        do S[m, n] = A[m, k] * P[k, n] with n on lane, m on unroll
        do C[m, n] = S[m, n] with n on lane
      }
    }
  }
}
"""


@pytest.mark.parametrize(
    "layout", ["[1/16, 0, 1%16^0%16]", "[0, 1*2]+3", "[1/4, 0/4, (1%4^0%4)*4, 0%4] "]
)
def test_code_for_swizzled_and_spaced_buffers_is_right(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = MATMUL.replace("LAYOUT", layout)
    mapping = parse_mapping(program)
    assert str(parse_mapping(str(mapping))) == str(mapping)
    path = tmp_path / "matmul.tcc"
    path.write_text(f"# tcc: level=mapping after=map next=- target=cpu{program}", "utf-8")
    assert main(["run", str(path), "--size", "M=13,N=21,K=10", "--check"]) == 0
    assert "check: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    "layout, code, problem",
    [
        ("[0, 1] lane[_%2]", "T0273", "puts elements on `lane`"),
        ("[0, _%2, 1]", "T0273", "keeps copies"),
        ("[0, b]", "T0273", "places single bits"),
        ("[0]", "T0273", "has 1 dimensions, not 2"),
        ("[0*8, 1]", "T0273", r"gives two elements one address: \(.*\) and \(.*\) for"),
        ("[0*(N * N), 1]", "T0274", "cannot be proved"),
        ("[0/4, 0%4^1%4, 1/4, 1%4^0%4]", "T0273", "gives two elements one address"),
    ],
)
def test_a_layout_that_stores_no_buffer_is_refused(layout: str, code: str, problem: str) -> None:
    with pytest.raises(CompileError, match=problem) as error:
        parse_mapping(MATMUL.replace("LAYOUT", layout, 1).replace("LAYOUT", "[0, 1]"))
    assert error.value.diagnostic.code == code
    assert error.value.diagnostic.span is not None
