"""Internal errors leave a file: the program before the failing step, under a header that resumes
there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping as MappingABC
from pathlib import Path
from typing import Any

from tcc import options as environment
from tcc.dump import Header, level_of, write
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.mapping import Mapping
from tcc.ir.target import Target

_SHOWN_LINES = 40


def internal_error(
    code: str,
    message: str,
    before: Cascade | Mapping,
    after: str,
    left: tuple[str, ...],
    target: Target,
    options: MappingABC[str, MappingABC[str, Any]] | None = None,
) -> CompileError:
    """The error that names a file with `before`, and the one command that repeats the failure."""
    text = write(before, Header(level_of(before), after, left, target.name))
    flags = " --verify-each" if code == "T0904" else ""
    for name, values in (options or {}).items():
        shown = ",".join(f"{key.replace('_', '-')}={value}" for key, value in values.items())
        flags += f" -p '{name}{{{shown}}}'"
    lines = text.rstrip().split("\n")
    shown = "\n".join(f"    {line}" for line in lines[:_SHOWN_LINES])
    more = f"\n    … {len(lines) - _SHOWN_LINES} more lines" if len(lines) > _SHOWN_LINES else ""
    path = _keep(text, before.name)
    helps: tuple[str, ...] = ("this is a bug in tcc: please report it with that file",)
    if path is not None:
        helps = (
            f"to repeat it: `python -m tcc build{flags} --target {target.name} {path}`",
            *helps,
        )
    return CompileError(code, f"{message}\n  the program before it:\n{shown}{more}", helps=helps)


def _keep(text: str, name: str) -> Path | None:
    try:
        folder = environment.text("TCC_BUG_DIR")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="tcc-bug-", dir=folder or None)) / f"{name}.tcc"
        path.write_text(text, encoding="utf-8")
    except OSError:
        return None
    return path
