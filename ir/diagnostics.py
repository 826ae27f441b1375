"""Errors that point at the user's source: a place, a fact, and what to do about it.

A `CompileError` carries one `Diagnostic`: a code (`T0` language and frontends, `T1` shapes and dtypes,
`T2` passes and mappings, `T3` backends and toolchains, `T9` internal), one sentence of fact, the smallest
span that is wrong, further labelled places, and help lines. Rendering follows rustc.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Source:
    """A named text that spans point into."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """The text of 1-based line `number`, without its end; empty when there is no such line."""
        lines = self.text.split("\n")
        return lines[number - 1].rstrip("\r") if 1 <= number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """Columns `column` to `end_column` (1-based, end exclusive, in characters) of one line."""

    source: Source
    line: int
    column: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Label:
    """A further place that explains a diagnostic."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake: code, fact, place, further places, advice."""

    code: str
    message: str
    span: Span | None = None
    labels: tuple[Label, ...] = ()
    helps: tuple[str, ...] = ()
    note: str = field(default="")  # what stands under the caret

    def render(self, color: bool = False) -> str:
        """The human form, several lines, no newline at the end."""
        paint = _Paint(color)
        lines = [paint.red(f"error[{self.code}]") + paint.bold(f": {self.message}")]
        places = [(self.span, self.note, "^")] if self.span else []
        places += [(label.span, label.text, "-") for label in self.labels]
        width = max((len(str(span.line)) for span, _, _ in places), default=1)
        if self.span:
            lines.append(f"{' ' * width}{paint.blue('-->')} {self.span}")
            lines.append(paint.blue(f"{' ' * width} |"))
        main = self.span.source if self.span else None
        for span, text, mark in sorted(places, key=lambda place: (place[0].line, place[2])):
            if span.source != main:
                lines.append(f"{' ' * width}{paint.blue(':::')} {span}")
            code, column, end = _window(span)
            lines.append(paint.blue(f"{span.line:>{width}} |") + f" {code}")
            carets = mark * max(1, min(end, len(code) + 1) - column)
            tail = f" {text}" if text else ""
            under = f"{' ' * (column - 1)}{carets}{tail}"
            marked = paint.red(under) if mark == "^" else paint.blue(under)
            lines.append(paint.blue(f"{' ' * width} |") + f" {marked}")
        lines += [f"{' ' * width} {paint.blue('=')} help: {text}" for text in self.helps]
        return "\n".join(lines)

    def short(self) -> str:
        """One line: `place: error[code]: message`."""
        place = f"{self.span}: " if self.span else ""
        return f"{place}error[{self.code}]: {self.message}"

    def json(self) -> str:
        """One JSON object on one line."""
        place = None
        if self.span:
            place = {
                "file": self.span.source.name,
                "line": self.span.line,
                "column": self.span.column,
                "end_column": self.span.end_column,
            }
        return json.dumps(
            {"code": self.code, "message": self.message, "span": place, "help": list(self.helps)}
        )


def _window(span: Span, widest: int = 160) -> tuple[str, int, int]:
    """The line of a span, cut to what surrounds it when it is very long; the columns in what is left."""
    code = span.source.line(span.line).replace("\t", " ")
    if len(code) <= widest:
        return code, span.column, span.end_column
    start = max(0, min(span.column - 60, len(code) - widest))
    before, after = "…" * (start > 0), "…" * (start + widest < len(code))
    shift = start - len(before)
    return (
        f"{before}{code[start : start + widest]}{after}",
        span.column - shift,
        span.end_column - shift,
    )


class CompileError(Exception):
    """Something that the user can cause and mend. `str(error)` is the rendered diagnostic."""

    def __init__(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        *,
        labels: tuple[Label, ...] = (),
        helps: tuple[str, ...] | str = (),
        note: str = "",
    ) -> None:
        helps = (helps,) if isinstance(helps, str) else helps
        self.diagnostic = Diagnostic(code, message, span, labels, helps, note)
        super().__init__(self.diagnostic.render())

    def __reduce__(self) -> tuple[object, ...]:
        d = self.diagnostic
        return (_rebuild, (d,))


def _rebuild(d: Diagnostic) -> CompileError:
    return CompileError(d.code, d.message, d.span, labels=d.labels, helps=d.helps, note=d.note)


def did_you_mean(name: str, known: list[str]) -> tuple[str, ...]:
    """A help line naming the closest of `known`, or nothing when none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return (f"did you mean `{close[0]}`?",) if close else ()


class _Paint:
    def __init__(self, on: bool) -> None:
        self.on = on

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on else text

    def red(self, text: str) -> str:
        return self._wrap("1;31", text)

    def blue(self, text: str) -> str:
        return self._wrap("1;34", text)

    def bold(self, text: str) -> str:
        return self._wrap("1", text)
