"""Targets as YAML: `print_target` is read back by `parse_target` as the same target.

Every entry is checked where it stands: T0210 carries its line and column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from tcc.ir._target_nodes import Node, read
from tcc.ir.diagnostics import Source, did_you_mean
from tcc.ir.dtype import DTYPES
from tcc.ir.ops import OPS
from tcc.ir.target import (
    KINDS,
    Cost,
    Level,
    Machine,
    Overheads,
    Resource,
    Target,
    Tile,
    Unit,
)

# what can run a kind of machine; the first unless the target says otherwise
BACKENDS = {"cpu": ("c", "numpy"), "gpu": ("triton",), "array": ("spatial",)}
SECTIONS = (
    "name", "kind", "backend", "machine", "levels", "parallel", "units", "tiles", "runs", "overheads", "parameters",
)  # fmt: skip
# types that only units of accelerators compute in
_UNIT_DTYPES = (*DTYPES, "bf16", "tf32", "f8")
# operators of units beyond those of the language: a product that is added, and codes of so many bits made floats
_UNIT_OPERATORS = (*OPS, "mul_add", "unpack_4", "unpack_8")


def parse_target(text: str, name: str) -> Target:
    """The target that a YAML text describes; T0210 names the entry that is wrong."""
    top = read(Source(name, text))
    entries = top.entries(SECTIONS, "a target")
    for needed in ("kind", "levels"):
        if needed not in entries:
            raise top.wrong(f"a target needs `{needed}`", "see docs/targets.md")
    kind = entries["kind"].one_of(KINDS)
    runs = BACKENDS[kind]
    backend = entries["backend"].one_of(runs) if "backend" in entries else runs[0]
    levels = tuple(_record(Level, n, "levels") for n in entries["levels"].items())
    if not levels or levels[0].name != "memory":
        raise entries["levels"].wrong(
            "the first level must be `memory`", "list the levels from the outermost inwards"
        )
    _distinct(entries["levels"], levels)
    parallel = entries.get("parallel")
    resources = tuple(
        _record(Resource, n, "parallel") for n in (parallel.items() if parallel else ())
    )
    if parallel:
        _distinct(parallel, resources)
    units = tuple(_units(entries.get("units"), levels, resources))
    tiles = tuple(_tiles(entries.get("tiles"), levels))
    _check_levels(entries["levels"], levels, resources, units, kind)
    overheads = _record(Overheads, entries["overheads"]) if "overheads" in entries else Overheads()
    machine = _record(Machine, entries["machine"]) if "machine" in entries else None
    parameters = {
        key: value.number()
        for key, value in (
            entries["parameters"].entries().items() if "parameters" in entries else ()
        )
    }
    title = entries["name"].text() if "name" in entries else name
    measured = dict(_runs(entries["runs"])) if "runs" in entries else {}
    return Target(
        title,
        kind,
        backend,
        levels,
        resources,
        parameters,
        units,
        tiles,
        overheads,
        machine,
        measured,
    )


def _runs(node: Node) -> Iterator[tuple[int, float]]:
    """`{bytes: GB/s, …}`."""
    for length, n in node.entries().items():
        if not length.isdecimal() or int(length) < 1:
            raise n.wrong(
                f"`{length}` is no number of bytes",
                "write `runs: {64: 5, 512: 11}`: GB/s by the length of a run in bytes",
            )
        yield int(length), n.number(positive=True)


def _record(kind: type[Any], node: Node, section: str = "") -> Any:
    """A dataclass of texts, integers and numbers, field by field."""
    known = {f.name: f for f in fields(kind)}
    what = f"`{section}`" if section else f"`{kind.__name__.lower()}`"
    entries = node.entries(tuple(known), what)
    for f in known.values():
        if f.default is MISSING and f.name not in entries:
            example = "- {name: L1, …}" if f.name == "name" else f"{f.name}: …"
            raise node.wrong(f"an entry of {what} has no `{f.name}`", f"write `{example}`")
    read = {
        key: n.text() if known[key].type == "str" else
        n.integer() if known[key].type == "int" else n.number()
        for key, n in entries.items()
    }  # fmt: skip
    return kind(**read)


def _distinct(node: Node, found: tuple[Any, ...]) -> None:
    for item, x, before in zip(node.items(), found, range(len(found))):
        if x.name in {y.name for y in found[:before]}:
            raise item.wrong(f"`{x.name}` is listed twice", "keep one of them")


def _check_levels(
    node: Node, levels: tuple[Level, ...], resources: tuple[Resource, ...], units: tuple[Unit, ...], kind: str
) -> None:  # fmt: skip
    """Sizes shrink inwards, shares are no smaller than parts. Registers are compared with nothing: a GPU has more
    of them than of what encloses them."""
    own = {u.level for u in units} | {"reg"}
    cores = next((r.count for r in resources if r.name == "core"), 0)
    outer: Level | None = None
    for item, x in zip(node.items(), levels):
        entries = item.entries()
        if outer and x.name not in own and x.bytes > outer.bytes > 0:
            raise entries["bytes"].wrong(
                f"`{x.name}` has {x.bytes} bytes, more than `{outer.name}`, which encloses it, with {outer.bytes}",
                "list the levels from the outermost inwards, the largest first",
            )
        if 0 < x.shared_gbps < x.bandwidth_gbps:
            raise entries["shared_gbps"].wrong(
                f"all users of `{x.name}` together reach {x.shared_gbps:g} GB/s, one alone {x.bandwidth_gbps:g}",
                "`bandwidth_gbps` is what one user reaches, `shared_gbps` what all reach together",
            )
        if kind == "cpu" and 0 < cores < x.shared_by:
            raise entries["shared_by"].wrong(
                f"`{x.name}` is shared by {x.shared_by} cores, but there are {cores}",
                "0 means all of them",
            )
        if x.bytes and x.name not in own:
            outer = x


def _units(
    node: Node | None, levels: tuple[Level, ...], resources: tuple[Resource, ...]
) -> Iterator[Unit]:
    """The compute units; an operator is `{cycles: …, pj: …}`, or a recipe of operators of the same unit."""
    seen: set[str] = set()
    for item in node.items() if node else ():
        entries = item.entries(("name", "resources", "level", "operators", "rates"), "`units`")
        if "name" not in entries:
            raise item.wrong("an entry of `units` has no `name`", "write `- {name: array, …}`")
        name = entries["name"].text()
        if name in seen:
            raise item.wrong(f"`{name}` is listed twice", "keep one of them")
        seen.add(name)
        spans = []
        for n in entries["resources"].items() if "resources" in entries else ():
            spans.append(n.text())
            if spans[-1] not in (names := [x.name for x in resources]):
                raise n.wrong(f"unit `{name}` spans `{spans[-1]}`, which `parallel` does not list",
                              *did_you_mean(spans[-1], names))  # fmt: skip
        level = entries["level"].text() if "level" in entries else ""
        if level and level not in (names := [x.name for x in levels]):
            raise entries["level"].wrong(
                f"unit `{name}` has the unknown level `{level}`", *did_you_mean(level, names)
            )
        operators: dict[str, Cost] = {}
        if "operators" in entries:
            for op, n in entries["operators"].entries(_UNIT_OPERATORS, "`operators`").items():
                operators[op] = _cost(op, n, operators)
        rates = {}
        if "rates" in entries:
            for dtype, n in entries["rates"].entries(_UNIT_DTYPES, "`rates`").items():
                table = n.entries(_UNIT_OPERATORS, f"`rates` of {dtype}")
                rates[dtype] = {op: value.number(positive=True) for op, value in table.items()}
        yield Unit(name, tuple(spans), level, operators, rates)


def _cost(op: str, node: Node, known: Mapping[str, Cost]) -> Cost:
    entries = node.entries()
    if set(entries) <= {"cycles", "pj"}:
        given = {key: n.number() for key, n in entries.items()}
        return Cost(given.get("cycles", 1.0), given.get("pj", 0.0))
    if set(entries) <= set(known):
        parts = [(n.number(), known[part]) for part, n in entries.items()]
        return Cost(sum(n * c.cycles for n, c in parts), sum(n * c.pj for n, c in parts))
    raise node.wrong(
        f"operator `{op}` is no cost and no recipe: {', '.join(f'`{x}`' for x in entries)} given",
        "write `{cycles: 1, pj: 0.5}`, or a recipe of operators listed above, as `{mul_add: 6, add: 1}`",
    )


def _tiles(node: Node | None, levels: tuple[Level, ...]) -> Iterator[Tile]:
    """The register tiles: `- {dtype, vectors, lanes, depth, level, gflops: {rows: GFLOP/s, …}}`."""
    names = [x.name for x in levels]
    known = ("dtype", "vectors", "lanes", "depth", "level", "gflops")
    seen: set[tuple[str, int, int, int, int, str]] = set()
    for item in node.items() if node else ():
        entries = item.entries(known, "`tiles`")
        for needed in known:
            if needed not in entries:
                raise item.wrong(f"an entry of `tiles` has no `{needed}`",
                                 "write `- {dtype: f32, vectors: 2, lanes: 8, depth: 256, level: L1, gflops: {6: 90}}`")  # fmt: skip
        dtype = entries["dtype"].one_of(_UNIT_DTYPES)
        level = entries["level"].one_of(tuple(names))
        vectors, lanes, depth = (
            entries[x].integer(positive=True) for x in ("vectors", "lanes", "depth")
        )
        for rows, n in entries["gflops"].entries().items():
            if not rows.isdecimal() or int(rows) < 1:
                raise n.wrong(
                    f"`{rows}` is no number of rows", "write `gflops: {4: 80, 6: 90}`: GFLOP/s by the tile's rows"
                )  # fmt: skip
            key = (dtype, int(rows), vectors, lanes, depth, level)
            if key in seen:
                raise n.wrong(
                    f"the tile of {rows} rows x {vectors} vectors is listed twice", "keep one of them"
                )  # fmt: skip
            seen.add(key)
            yield Tile(dtype, int(rows), vectors, lanes, depth, level, n.number(positive=True))


# ---- printing


def print_target(t: Target) -> str:
    """The YAML text of a target; entries with their default value are left out."""
    lines = [f"name: {_text(t.name)}", f"kind: {t.kind}", f"backend: {t.backend}"]
    if t.machine:
        lines += ["machine:", *(f"  {k}: {v}" for k, v in _given(t.machine))]
    lines += ["levels:", *(f"  - {_flow(_given(x))}" for x in t.levels)]
    if t.resources:
        lines += ["parallel:", *(f"  - {_flow(_given(x))}" for x in t.resources)]
    if t.units:
        lines.append("units:")
    for u in t.units:
        lines.append(f"  - name: {_text(u.name)}")
        if u.resources:
            lines.append(f"    resources: [{', '.join(map(_text, u.resources))}]")
        lines += [f"    level: {_text(u.level)}"] if u.level else []
        lines += ["    operators:"] if u.operators else []
        lines += [f"      {op}: {_flow(_given(c))}" for op, c in u.operators.items()]
        lines += ["    rates:"] if u.rates else []
        for dtype, table in u.rates.items():
            lines.append(f"      {dtype}:")
            lines += [f"        {op}: {_number(rate)}" for op, rate in table.items()]
    groups: dict[tuple[str, int, int, int, str], list[Tile]] = {}
    for x in t.tiles:
        groups.setdefault((x.dtype, x.vectors, x.lanes, x.depth, x.level), []).append(x)
    lines += ["tiles:"] if groups else []
    for (dtype, vectors, lanes, depth, level), found in groups.items():
        rows = _flow((str(x.rows), _number(x.gflops)) for x in found)
        lines.append(
            f"  - {{dtype: {dtype}, vectors: {vectors}, lanes: {lanes}, depth: {depth}, level: {_text(level)}, gflops: {rows}}}"
        )
    if t.runs:
        lines.append(f"runs: {_flow((str(n), _number(rate)) for n, rate in t.runs.items())}")
    if fixed := list(_given(t.overheads)):
        lines += ["overheads:", *(f"  {k}: {v}" for k, v in fixed)]
    if t.parameters:
        lines += ["parameters:", *(f"  {_text(k)}: {_number(v)}" for k, v in t.parameters.items())]
    return "\n".join(lines) + "\n"


def _given(x: Any) -> Iterator[tuple[str, str]]:
    """The fields of a record that differ from their defaults, in order."""
    for f in fields(x):
        value = getattr(x, f.name)
        if f.default is MISSING or value != f.default:
            yield f.name, _text(value) if isinstance(value, str) else _number(value)


def _flow(pairs: Any) -> str:
    return "{" + ", ".join(f"{k}: {v}" for k, v in pairs) + "}"


def _number(value: float) -> str:
    if value == int(value):
        return str(int(value))
    text = repr(float(value))
    return text if "e" not in text else f"{value:.20f}".rstrip("0")


def _text(value: str) -> str:
    """A YAML scalar that is read back as this very text."""
    plain = value.replace("-", "_").replace(" ", "_").isidentifier() and value.strip() == value
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    if plain and value.lower() not in words:
        return value
    escaped = "".join(
        c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value
    )
    return f'"{escaped}"'
