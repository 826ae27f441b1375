"""What the documentation shows is true: its Python runs, and so do the examples in docstrings.

The ```python blocks of one Markdown file run in order in one namespace, in the project's root; a
fence that says ```python no-run is only for reading.
"""

from __future__ import annotations

import doctest
import importlib
import linecache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"compiler": "tcc"} | {f: f"tcc.{f}" for f in ("ir", "passes", "backends", "frontends")}


def python_of(text: str) -> str:
    """The text with every line blank that is not in a runnable block: line numbers stay true."""
    kept, inside, runs = [], False, False
    for line in text.splitlines():
        fence = line.startswith("```")
        if fence and not inside:
            inside, runs = True, line[3:].split() == ["python"]
        elif fence:
            inside = False
        kept.append(line if inside and runs and not fence else "")
    return "\n".join(kept)


def _pages() -> list[str]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    with_code = [p for p in pages if p.exists() and python_of(p.read_text("utf-8")).strip()]
    return [p.relative_to(ROOT).as_posix() for p in with_code]


def _modules_with_doctests() -> list[str]:
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text("utf-8"):
                below = path.relative_to(ROOT / folder).with_suffix("").parts
                found.append(".".join((package, *(p for p in below if p != "__init__"))))
    return found


@pytest.mark.parametrize("page", _pages())
def test_the_python_of_a_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = str(ROOT / page)
    code = python_of((ROOT / page).read_text("utf-8"))
    # `inspect.getsource` finds the source of a function in a block here.
    entry = (len(code), None, code.splitlines(keepends=True), path)
    monkeypatch.setitem(linecache.cache, path, entry)
    exec(compile(code, path, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("module", _modules_with_doctests())
def test_the_doctests_of_a_module_hold(module: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0
