"""What a mapping is made for: memory levels, parallel resources and units, read from a YAML description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tcc.ir.diagnostics import CompileError, Source, Span, did_you_mean

KINDS = ("cpu", "gpu", "array")


@dataclass(frozen=True, slots=True)
class Level:
    """A memory level. `bytes` is its capacity (0: not limited here); `bandwidth_gbps` and `energy_pj` per access line."""

    name: str
    bytes: int = 0
    bandwidth_gbps: float = 0.0
    line_bytes: int = 8
    read_pj: float = 0.0
    write_pj: float = 0.0


@dataclass(frozen=True, slots=True)
class Resource:
    """A parallel dimension: cores, vector lanes, grid blocks, rows or columns of processing elements."""

    name: str
    count: int = 0  # 0: as many as the machine has


@dataclass(frozen=True, slots=True)
class Target:
    """A machine. Levels run from the outermost (`memory`) inwards."""

    name: str
    kind: str
    backend: str
    levels: tuple[Level, ...]
    resources: tuple[Resource, ...]
    parameters: Mapping[str, float] = field(default_factory=dict)

    def level(self, name: str) -> Level:
        return next(level for level in self.levels if level.name == name)

    def resource(self, name: str) -> Resource:
        return next(r for r in self.resources if r.name == name)

    def parameter(self, name: str, default: float) -> float:
        return self.parameters.get(name, default)


def parse_target(text: str, name: str) -> Target:
    """The target that a YAML text describes; T0210 names the entry that is wrong."""
    import yaml

    source = Source(name, text)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        span = Span(source, mark.line + 1, mark.column + 1, mark.column + 2) if mark else None
        raise CompileError("T0210", f"{name} is no YAML: {getattr(error, 'problem', error)}", span,
                           helps="see docs/targets.md") from None  # fmt: skip
    if not isinstance(data, dict):
        raise _wrong(source, "a target is a mapping of `name`, `kind`, `backend`, `levels`, `parallel`", "")
    known = ("name", "kind", "backend", "levels", "parallel", "parameters")
    for key in data:
        if key not in known:
            raise _wrong(source, f"unknown entry `{key}`", str(key), *did_you_mean(str(key), list(known)))
    if data.get("kind") not in KINDS:
        raise _wrong(source, f"`kind` is `{data.get('kind')}`", "kind", f"one of {', '.join(KINDS)}")
    levels = tuple(_entry(source, Level, item, "levels") for item in data.get("levels") or [])
    resources = tuple(_entry(source, Resource, item, "parallel") for item in data.get("parallel") or [])
    if not levels or levels[0].name != "memory":
        raise _wrong(source, "the first level must be `memory`", "levels", "list the levels from the outermost inwards")
    parameters = data.get("parameters") or {}
    for key, value in parameters.items():
        if not isinstance(value, int | float):
            raise _wrong(source, f"parameter `{key}` is no number", str(key), "give a number")
    return Target(str(data.get("name", name)), str(data["kind"]), str(data.get("backend", "")), levels, resources,
                  {str(k): float(v) for k, v in parameters.items()})  # fmt: skip


def _entry(source: Source, kind: type[Any], item: object, section: str) -> Any:
    if not isinstance(item, dict) or "name" not in item:
        raise _wrong(source, f"an entry of `{section}` has no `name`", section, "write `- {name: L1, …}`")
    fields = list(kind.__dataclass_fields__)
    for key, value in item.items():
        if key not in fields:
            raise _wrong(source, f"unknown entry `{key}` in `{section}`", str(key), *did_you_mean(str(key), fields))
        if key != "name" and (not isinstance(value, int | float) or value < 0):
            raise _wrong(source, f"`{key}` of `{item['name']}` is `{value}`", str(key), "give a number, 0 or more")
    return kind(**item)


def _wrong(source: Source, message: str, needle: str, *helps: str) -> CompileError:
    for number, line in enumerate(source.text.split("\n"), 1):
        if needle and needle in line:
            at = line.index(needle) + 1
            return CompileError("T0210", message, Span(source, number, at, at + len(needle)),
                                helps=helps or ("see docs/targets.md",))  # fmt: skip
    return CompileError("T0210", f"{source.name}: {message}", helps=helps or ("see docs/targets.md",))
