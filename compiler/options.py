"""The one table of tcc's environment variables, and the version."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tcc.ir.diagnostics import CompileError


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable: its value when it is not set, and what it does."""

    name: str
    default: str
    meaning: str

    @property
    def value(self) -> str:
        """The value in force."""
        return os.environ.get(self.name) or self.default

    @property
    def origin(self) -> str:
        """Where the value comes from."""
        return "environment" if os.environ.get(self.name) else "default"


VARIABLES = {
    v.name: v
    for v in (
        Variable("TCC_TARGET", "cpu", "the target when none is named"),
        Variable("TCC_CC", "", "the C compiler, with arguments; else `CC`, `cc`, `gcc`, `clang`"),
        Variable("TCC_CACHE_DIR", "", "where built code is kept; else the platform's cache folder"),
        Variable(
            "TCC_TARGET_DIR",
            "",
            "where measured targets are kept; else the platform's config folder",
        ),
        Variable("TCC_VERIFY_EACH", "0", "1: run the interpreters before and after every pass"),
        Variable("TCC_DUMP_DIR", "", "a folder that gets the program after every pass"),
        Variable(
            "TCC_BUG_DIR", "", "where reproducers of internal errors go; else a temporary folder"
        ),
        Variable("TCC_DEBUG", "0", "1: show Python tracebacks of internal errors"),
    )
}


def text(name: str) -> str:
    """The value of a variable of the table."""
    return VARIABLES[name].value


def flag(name: str) -> bool:
    """Whether a variable is 1; anything but 0 and 1 is an error."""
    value = text(name)
    if value not in ("0", "1"):
        raise CompileError("T0143", f"`{name}` is `{value}`", helps="set it to 0 or 1")
    return value == "1"


def unknown() -> list[str]:
    """Names of set `TCC_*` variables that mean nothing to tcc."""
    return sorted(n for n in os.environ if n.startswith("TCC_") and n not in VARIABLES)


def version() -> str:
    """The version of the installed distribution."""
    from importlib import metadata

    try:
        return metadata.version("tcc-tensor")
    except metadata.PackageNotFoundError:
        return "0+unknown"
