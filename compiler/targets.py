"""Targets by name: the YAML files of `tcc/backends/targets`, or any file by its path."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from tcc import options
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.target import Target
from tcc.ir.target_text import parse_target


def names() -> list[str]:
    """The targets that come with tcc."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def find(name: str | Target | None = None) -> Target:
    """The target of that name or path; None is `TCC_TARGET`. T0213 when there is none."""
    if isinstance(name, Target):
        return name
    return _read(source_path(name or options.text("TCC_TARGET")))


def source_path(name: str) -> Path:
    """The file that describes the target."""
    if name in names():
        return _folder() / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        if Path(name).is_file():
            return Path(name)
        raise CompileError(
            "T0213", f"there is no target file `{name}`", helps="give a name from `tcc target list`"
        )
    raise CompileError(
        "T0213",
        f"unknown target `{name}`",
        helps=(*did_you_mean(name, names()), f"known: {', '.join(names())}"),
    )


def with_backend(backend: str) -> str | None:
    """The first target whose backend is that one."""
    return next((n for n in names() if find(n).backend == backend), None)


def _read(path: Path) -> Target:
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, _changed: int) -> Target:
    return parse_target(path.read_text(encoding="utf-8"), str(path))


def _folder() -> Path:
    import tcc.backends

    return Path(next(iter(tcc.backends.__path__))) / "targets"
