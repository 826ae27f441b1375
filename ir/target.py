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
class Cost:
    """What one scalar operator takes on a unit."""

    cycles: float = 1.0
    pj: float = 0.0


# what an operator is done with where a unit does not list it
_INSTEAD = {"mul": "mul_add", "add": "mul_add", "sub": "add", "neg": "sub", "min": "max"}


@dataclass(frozen=True, slots=True)
class Unit:
    """A compute unit: the parallel dimensions it spans, the level of its own registers, and its operators."""

    name: str
    resources: tuple[str, ...]
    level: str = ""
    operators: Mapping[str, Cost] = field(default_factory=dict)

    def cost(self, op: str) -> Cost | None:
        """The cost of an operator, or of the one that does its work; None when the unit cannot do it."""
        tried: str | None = op
        while tried is not None:
            if tried in self.operators:
                return self.operators[tried]
            tried = _INSTEAD.get(tried)
        if op == "mul_add" and {"mul", "add"} <= set(self.operators):
            mul, add = self.operators["mul"], self.operators["add"]
            return Cost(mul.cycles + add.cycles, mul.pj + add.pj)
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """A machine. Levels run from the outermost (`memory`) inwards."""

    name: str
    kind: str
    backend: str
    levels: tuple[Level, ...]
    resources: tuple[Resource, ...]
    parameters: Mapping[str, float] = field(default_factory=dict)
    units: tuple[Unit, ...] = ()

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
        raise _wrong(
            source, "a target is a mapping of `name`, `kind`, `backend`, `levels`, `parallel`", ""
        )
    known = ("name", "kind", "backend", "levels", "parallel", "units", "parameters")
    for key in data:
        if key not in known:
            raise _wrong(
                source, f"unknown entry `{key}`", str(key), *did_you_mean(str(key), list(known))
            )
    if data.get("kind") not in KINDS:
        raise _wrong(
            source, f"`kind` is `{data.get('kind')}`", "kind", f"one of {', '.join(KINDS)}"
        )
    levels = tuple(_entry(source, Level, item, "levels") for item in data.get("levels") or [])
    resources = tuple(
        _entry(source, Resource, item, "parallel") for item in data.get("parallel") or []
    )
    if not levels or levels[0].name != "memory":
        raise _wrong(
            source,
            "the first level must be `memory`",
            "levels",
            "list the levels from the outermost inwards",
        )
    parameters = data.get("parameters") or {}
    for key, value in parameters.items():
        if not isinstance(value, int | float):
            raise _wrong(source, f"parameter `{key}` is no number", str(key), "give a number")
    return Target(str(data.get("name", name)), str(data["kind"]), str(data.get("backend", "")), levels, resources,
                  {str(k): float(v) for k, v in parameters.items()},
                  _units(source, data.get("units") or [], levels, resources))  # fmt: skip


def _units(
    source: Source, items: Any, levels: tuple[Level, ...], resources: tuple[Resource, ...]
) -> tuple[Unit, ...]:
    """The compute units; each operator is `{cycles: …, pj: …}`, or a recipe of operators of the same unit."""
    units: list[Unit] = []
    for item in items if isinstance(items, list) else [items]:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise _wrong(
                source, "an entry of `units` has no `name`", "units", "write `- {name: array, …}`"
            )
        for key in item:
            if key not in (fields := ["name", "resources", "level", "operators"]):
                raise _wrong(
                    source,
                    f"unknown entry `{key}` in `units`",
                    str(key),
                    *did_you_mean(str(key), fields),
                )
        spans = tuple(str(r) for r in item.get("resources") or ())
        for r in spans:
            if r not in (names := [x.name for x in resources]):
                raise _wrong(source, f"unit `{item['name']}` spans `{r}`, which `parallel` does not list", r,
                             *did_you_mean(r, names))  # fmt: skip
        level = str(item.get("level") or "")
        if level and level not in (names := [x.name for x in levels]):
            raise _wrong(source, f"unit `{item['name']}` has the unknown level `{level}`", level,
                         *did_you_mean(level, names))  # fmt: skip
        operators: dict[str, Cost] = {}
        table = item.get("operators") or {}
        for op, given in table.items() if isinstance(table, dict) else ():
            operators[str(op)] = _cost(source, str(op), given, operators)
        units.append(Unit(item["name"], spans, level, operators))
    return tuple(units)


def _cost(source: Source, op: str, given: Any, known: Mapping[str, Cost]) -> Cost:
    numbers = isinstance(given, dict) and all(
        isinstance(v, int | float) and v >= 0 for v in given.values()
    )
    if numbers and set(given) <= {"cycles", "pj"}:
        return Cost(float(given.get("cycles", 1)), float(given.get("pj", 0)))
    if numbers and set(given) <= set(known):
        parts = [(n, known[part]) for part, n in given.items()]
        return Cost(sum(n * c.cycles for n, c in parts), sum(n * c.pj for n, c in parts))
    raise _wrong(source, f"operator `{op}` is `{given}`", op,
                 "write `{cycles: 1, pj: 0.5}`, or a recipe of operators listed above, as `{mul_add: 6, add: 1}`")  # fmt: skip


def _entry(source: Source, kind: type[Any], item: object, section: str) -> Any:
    if not isinstance(item, dict) or "name" not in item:
        raise _wrong(
            source, f"an entry of `{section}` has no `name`", section, "write `- {name: L1, …}`"
        )
    fields = list(kind.__dataclass_fields__)
    for key, value in item.items():
        if key not in fields:
            raise _wrong(
                source,
                f"unknown entry `{key}` in `{section}`",
                str(key),
                *did_you_mean(str(key), fields),
            )
        if key != "name" and (not isinstance(value, int | float) or value < 0):
            raise _wrong(
                source,
                f"`{key}` of `{item['name']}` is `{value}`",
                str(key),
                "give a number, 0 or more",
            )
    return kind(**item)


def _wrong(source: Source, message: str, needle: str, *helps: str) -> CompileError:
    for number, line in enumerate(source.text.split("\n"), 1):
        if needle and needle in line:
            at = line.index(needle) + 1
            return CompileError("T0210", message, Span(source, number, at, at + len(needle)),
                                helps=helps or ("see docs/targets.md",))  # fmt: skip
    return CompileError(
        "T0210", f"{source.name}: {message}", helps=helps or ("see docs/targets.md",)
    )
