"""YAML values that know where they stand, so that an error can point at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tcc.ir.diagnostics import CompileError, Source, Span, did_you_mean

_SEE = "see docs/targets.md"


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a YAML text. Each method returns it as one type, or raises T0210 at its place."""

    source: Source
    value: (
        Any  # str, int, float, bool, None, a list of nodes, or a dict of key -> (key's node, node)
    )
    line: int
    column: int
    end_column: int
    title: str  # how messages call it

    def wrong(self, message: str, *helps: str) -> CompileError:
        """T0210 at this value."""
        span = Span(self.source, self.line, self.column, self.end_column)
        return CompileError("T0210", message, span, helps=helps or (_SEE,))

    def entries(self, known: Sequence[str] = (), where: str = "") -> dict[str, Node]:
        """The entries of a mapping by key; with `known`, any other key is an error."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"{self.title} is {_kind(self.value)}, not a mapping", "write `{name: value, …}`")  # fmt: skip
        for key, (at, _) in self.value.items():
            if known and key not in known:
                raise at.wrong(f"unknown entry `{key}` in {where}", *(did_you_mean(key, list(known)) or (_SEE,)))  # fmt: skip
        return {key: node for key, (_, node) in self.value.items()}

    def items(self) -> list[Node]:
        """The items of a list; one mapping or word alone counts as a list of one; nothing as none."""
        if self.value is None:
            return []
        return self.value if isinstance(self.value, list) else [self]

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong(f"{self.title} is {_kind(self.value)}, not a name", "quote it if it is meant as a name")  # fmt: skip
        return self.value

    def one_of(self, known: Sequence[str]) -> str:
        if self.value not in known:
            raise self.wrong(f"{self.title} is `{_shown(self.value)}`",
                             *did_you_mean(str(self.value), list(known)), f"one of {', '.join(known)}")  # fmt: skip
        return str(self.value)

    def number(self, positive: bool = False) -> float:
        """A finite number, 0 or more; more than 0 if `positive`."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):  # fmt: skip
            advice = "give a number"
            if isinstance(value, str) and _reads_as_number(value):
                advice = f"YAML reads this as text: write `{_reads_as_number(value)}`"
            raise self.wrong(f"{self.title} is {_kind(value)}, not a number", advice)
        if value < 0 or (positive and not value):
            raise self.wrong(
                f"{self.title} is {value}", f"give a number, {'more than 0' if positive else '0 or more'}"
            )  # fmt: skip
        return float(value)

    def integer(self, positive: bool = False) -> int:
        value = self.number(positive)
        if value != int(value):
            raise self.wrong(f"{self.title} is {self.value}", "give a whole number")
        return int(value)


def read(source: Source) -> Node:
    """The value of a whole text; T0210 where it is no YAML."""
    import yaml

    try:
        loader: Any = yaml.SafeLoader(source.text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise CompileError("T0210", f"{source.name} is empty", helps=_SEE)
            return _node(source, loader, node, "a target", ())
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        span = Span(source, mark.line + 1, mark.column + 1, mark.column + 2) if mark else None
        problem = getattr(error, "problem", None) or error
        raise CompileError(
            "T0210", f"{source.name} is no YAML: {problem}", span, helps=_SEE
        ) from None


def _node(source: Source, loader: Any, node: Any, title: str, above: tuple[Any, ...]) -> Node:
    import yaml

    start, end = node.start_mark, node.end_mark
    first_line = source.line(start.line + 1)
    stop = end.column if end.line == start.line else len(first_line)
    place = (start.line + 1, start.column + 1, max(stop, start.column + 1) + 1)
    if any(node is x for x in above):
        raise CompileError("T0210", f"{title} contains itself", Span(source, *place), helps=_SEE)
    above = (*above, node)
    value: Any
    if isinstance(node, yaml.MappingNode):
        value = {}
        for k, v in node.value:
            if not isinstance(k, yaml.ScalarNode):
                raise CompileError(
                    "T0210", f"a key in {title} is no name", Span(source, *place), helps=_SEE
                )
            at = _node(source, loader, k, title, above)
            if k.value in value:
                raise at.wrong(f"`{k.value}` is given twice", "keep one of them")
            value[k.value] = (at, _node(source, loader, v, f"`{k.value}`", above))
        # an entry of a list is called by its name
    elif isinstance(node, yaml.SequenceNode):
        value = [_node(source, loader, x, f"an entry of {title}", above) for x in node.value]
    else:
        value = loader.construct_object(node)
        if not isinstance(value, str | int | float | type(None)):
            value = node.value  # a date, say: as it is written
    return Node(source, value, *place, title)


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return f"`{_shown(value)}`"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reads_as_number(text: str) -> str:
    """The number that a text like `1e9` means, as YAML wants it; empty when it is none."""
    try:
        value = float(text)
    except ValueError:
        return ""
    return "" if not math.isfinite(value) else str(int(value)) if value == int(value) else str(value)  # fmt: skip
