"""`docs/errors.md` and the source name the same codes, in order, and `tcc explain --code` finds each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tcc.cli import main

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("compiler", "ir", "passes", "backends", "frontends")
SECTIONS = re.findall(
    r"^## (T\d{4}): (\S.*)$", (ROOT / "docs" / "errors.md").read_text("utf-8"), flags=re.MULTILINE
)
DESCRIBED = [code for code, _ in SECTIONS]


def used() -> dict[str, list[str]]:
    """Every code in the source, with the files that name it."""
    found: dict[str, list[str]] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for code in re.findall(r'"(T\d{4})"', path.read_text("utf-8")):
                found.setdefault(code, []).append(path.relative_to(ROOT).as_posix())
    return found


def test_every_code_of_the_source_has_its_section() -> None:
    missing = {code: files for code, files in used().items() if code not in DESCRIBED}
    assert not missing


def test_every_section_is_about_a_code_of_the_source() -> None:
    assert [code for code in DESCRIBED if code not in used()] == []


def test_sections_are_in_order_and_unique() -> None:
    assert sorted(set(DESCRIBED)) == DESCRIBED


def test_codes_belong_to_a_group() -> None:
    assert {code[:3] for code in used()} <= {"T01", "T02", "T03", "T09"}


@pytest.mark.parametrize("code, title", [SECTIONS[0], SECTIONS[-1]])
def test_explain_prints_a_section(
    code: str, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--code", code]) == 0
    assert capsys.readouterr().out.startswith(f"{code}: {title}\n")
