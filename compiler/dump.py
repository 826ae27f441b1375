"""A dump is a program's text under one line that says how far it is, so that it can be edited and
resumed.

# tcc: level=cascade after=simplify next=restrict,fuse,map target=cpu
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError, Source, Span, did_you_mean
from tcc.ir.mapping import Mapping

_FIELDS = ("level", "after", "next", "target")


@dataclass(frozen=True, slots=True)
class Header:
    """Level of the program, the last pass that ran (`input`: none), the passes still to run, and
    the target."""

    level: str
    after: str
    next: tuple[str, ...]
    target: str

    def __str__(self) -> str:
        left = ",".join(self.next) or "-"
        return f"# tcc: level={self.level} after={self.after} next={left} target={self.target}"


def level_of(program: Cascade | Mapping) -> str:
    """The name of the program's level."""
    return "cascade" if isinstance(program, Cascade) else "mapping"


def write(program: Cascade | Mapping, header: Header) -> str:
    """The text that `read_header` and the level's parser read back."""
    return f"{header}\n{program}"


def read_header(source: Source) -> Header | None:
    """The header in the first line, or None when there is none; T0214 when it is damaged."""
    first = source.line(1)
    if not first.startswith("# tcc:"):
        return None
    found: dict[str, str] = {}
    for match in re.finditer(r"(\w+)=(\S+)", first):
        if match[1] not in _FIELDS:
            span = Span(source, 1, match.start() + 1, match.end() + 1)
            raise CompileError(
                "T0214",
                f"unknown entry `{match[1]}` in the header of a dump",
                span,
                helps=did_you_mean(match[1], list(_FIELDS)) or f"known: {', '.join(_FIELDS)}",
            )
        found[match[1]] = match[2]
    if found.get("level") not in ("cascade", "mapping"):
        raise CompileError(
            "T0214",
            "the header of this dump names no level",
            Span(source, 1, 1, len(first) + 1),
            helps="write `# tcc: level=cascade after=… next=… target=…`, or delete the line",
        )
    after = tuple(p for p in found.get("next", "-").split(",") if p and p != "-")
    return Header(found["level"], found.get("after", "input"), after, found.get("target", ""))


def level_in(source: Source) -> str:
    """The level of a text: its header's, else `mapping` when the first word says so."""
    header = read_header(source)
    if header is not None:
        return header.level
    for line in source.text.split("\n"):
        words = line.split("#")[0].split()
        if words:
            return "mapping" if words[0] == "mapping" else "cascade"
    return "cascade"
