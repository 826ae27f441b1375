"""Programs in files and texts: which level and kind they are, and which one is meant."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tcc.dump import Header, level_in, read_header
from tcc.frontends.text import read
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError, Source, did_you_mean
from tcc.ir.mapping import Mapping

SUFFIXES = (".tcc", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Unit:
    """One program of a text, and the header of the dump that it came from."""

    program: Cascade | Mapping
    header: Header | None


def read_units(path: str | os.PathLike[str]) -> list[Unit]:
    """The programs of a file, in order."""
    suffix = Path(path).suffix
    source = Source(str(path), read(Path(path)))
    if suffix in (".yaml", ".yml"):
        from tcc.frontends.teaal import parse_teaal

        return [Unit(parse_teaal(source.text, source.name).cascade, None)]
    if suffix == ".py":
        raise CompileError(
            "T0144",
            f"`{path}` is Python, not a cascade",
            helps="import it and decorate its function with `@tcc.compile`",
        )
    return units_of(source)


def units_of(source: Source) -> list[Unit]:
    """The programs of a text, in order."""
    header = read_header(source)
    if level_in(source) == "mapping":
        from tcc.ir.mapping_text import parse_mapping

        return [Unit(parse_mapping(source.text, source.name), header)]
    from tcc.ir.cascade_text import parse_cascades

    found = parse_cascades(source.text, source.name)
    if not any(c.definitions or c.inputs or c.outputs for c in found):
        raise CompileError(
            "T0102",
            f"{source.name} holds no cascade",
            helps="write at least one definition, as in `Z[m] = A[m,k] * B[k]`",
        )
    return [Unit(c, header) for c in found]


def choose(units: list[Unit], name: str, wanted: str | None) -> Unit:
    """The unit of that name, or the only one; T0102 when it is not clear which."""
    names = [u.program.name for u in units]
    if wanted is None:
        if len(units) == 1:
            return units[0]
        raise CompileError(
            "T0102",
            f"{name} holds {len(units)} cascades, not one",
            helps=f"name the one that is meant: {', '.join(names)}"
            if names
            else "write at least one definition",
        )
    for u in units:
        if u.program.name == wanted:
            return u
    raise CompileError(
        "T0102",
        f"{name} holds no cascade `{wanted}`",
        helps=did_you_mean(wanted, names) or f"it holds: {', '.join(names)}",
    )
