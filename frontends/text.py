"""Cascade text: the cascades of a `.tcc` file (or a TeAAL `.yaml`), or an error at its place."""

from __future__ import annotations

from pathlib import Path

from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascades
from tcc.ir.diagnostics import CompileError, Source, Span, did_you_mean


def load(path: str | Path) -> Cascade:
    """The one cascade of a file; T0102 when it holds none or several."""
    found = load_all(path)
    if len(found) != 1:
        names = ", ".join(f"`{c.name}`" for c in found) or "none"
        raise CompileError(
            "T0102",
            f"{path} holds {len(found)} cascades, not one: {names}",
            helps="split the file, or use `load_all`",
        )
    return found[0]


def load_all(path: str | Path) -> list[Cascade]:
    """Every cascade of a `.tcc` or `.yaml` file, verified."""
    text = read(path)
    if Path(path).suffix in (".yaml", ".yml"):
        from tcc.frontends.teaal import parse_teaal

        return [parse_teaal(text, str(path)).cascade]
    found = parse_cascades(text, str(path))
    if not any(c.definitions or c.inputs or c.outputs for c in found):
        raise CompileError(
            "T0102", f"{path} holds no cascade", helps="a cascade begins with `cascade NAME`"
        )
    return found


def read(path: str | Path) -> str:
    """The text of a file; T0132 when there is none that can be read."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        folder = Path(path).parent
        known = (
            [p.name for p in folder.iterdir() if p.suffix in (".tcc", ".yaml")]
            if folder.is_dir()
            else []
        )
        raise CompileError(
            "T0132",
            f"there is no file `{path}`",
            helps=did_you_mean(Path(path).name, sorted(known)) or "check the path",
        ) from None
    except IsADirectoryError:
        raise CompileError(
            "T0132", f"`{path}` is a folder, not a file", helps="name one file in it"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CompileError(
            "T0132",
            f"`{path}` can not be read: {reason.lower()}",
            helps="check the path and its permissions",
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        shown = data.decode("utf-8", errors="replace")
        column = len(data[: error.start].decode("utf-8", errors="replace").rsplit("\n", 1)[-1]) + 1
        raise CompileError(
            "T0132",
            f"`{path}` is not UTF-8 text: byte 0x{data[error.start]:02x}",
            Span(Source(str(path), shown), line, column, column + 1),
            helps="save the file as UTF-8",
        ) from None


__all__ = ["load", "load_all", "read"]
