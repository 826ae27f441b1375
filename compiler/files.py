"""Programs in files and texts: what kind they are, and every way in which reading them goes wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tcc.dump import Header, level_in, read_header
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
    source = read_source(path)
    suffix = Path(path).suffix
    if suffix in (".yaml", ".yml"):
        return [Unit(c, None) for c in _teaal(source)]
    if suffix == ".py":
        raise CompileError("T0131", f"`{path}` is Python, not a cascade",
                           helps="import it and decorate its function with `@tcc.compile`")  # fmt: skip
    return units_of(source)


def units_of(source: Source) -> list[Unit]:
    """The programs of a text, in order."""
    header = read_header(source)
    if level_in(source) == "mapping":
        from tcc.ir.mapping_text import parse_mapping

        return [Unit(parse_mapping(source.text, source.name), header)]
    from tcc.ir.cascade_text import parse_cascades

    return [Unit(c, header) for c in parse_cascades(source.text, source.name)]


def choose(units: list[Unit], name: str, wanted: str | None) -> Unit:
    """The unit of that name, or the only one; T0102 when it is not clear which."""
    names = [u.program.name for u in units]
    if wanted is None:
        if len(units) == 1:
            return units[0]
        raise CompileError(
            "T0102", f"{name} holds {len(units)} cascades, not one",
            helps=f"name the one that is meant: {', '.join(names)}" if names else "write at least one definition",
        )  # fmt: skip
    for u in units:
        if u.program.name == wanted:
            return u
    raise CompileError("T0102", f"{name} holds no cascade `{wanted}`",
                       helps=did_you_mean(wanted, names) or f"it holds: {', '.join(names)}")  # fmt: skip


def read_source(path: str | os.PathLike[str]) -> Source:
    """The text of a file; T0132 when there is none to read."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CompileError("T0132", f"there is no file `{path}`", helps=_nearby(path) or "check the path") from None
    except IsADirectoryError:
        raise CompileError("T0132", f"`{path}` is a folder", helps="name a file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CompileError("T0132", f"`{path}` cannot be read: {reason}", helps="check the path") from None
    try:
        return Source(str(path), data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CompileError("T0133", f"`{path}` is no text: byte {error.start} is not UTF-8",
                           helps="name a cascade (.tcc) or a TeAAL specification (.yaml)") from None  # fmt: skip


def _nearby(path: Path) -> tuple[str, ...]:
    try:
        around = sorted(p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES)
    except OSError:
        return ()
    return did_you_mean(path.name, around)


def _teaal(source: Source) -> list[Cascade]:
    from tcc.frontends import teaal

    found = teaal.parse(source.text, source.name)
    return list(found) if isinstance(found, (list, tuple)) else [found]
