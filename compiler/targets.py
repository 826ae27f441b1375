"""Targets by name: the YAML files of `tcc/backends/targets`, or any file by its path.

`cpu` is the one that `tcc target calibrate` measured on this machine with this version of tcc; where there is none, it is
the safe generic one, with the register tiles that suit the vectors of this machine's C compiler.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from tcc import options
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.target import Target
from tcc.ir.target_text import parse_target

MEASURED = "cpu"  # the name that stands for this machine
_DEFAULTS = {"c": MEASURED, "triton": "h100"}  # where several targets have a backend


def names() -> list[str]:
    """The targets that come with tcc."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def find(name: str | Target | None = None) -> Target:
    """The target of that name or path; None is `TCC_TARGET`. T0213 when there is none."""
    if isinstance(name, Target):
        return name
    name = name or options.text("TCC_TARGET")
    if name == MEASURED:
        return calibrated() or unmeasured()
    return _read(source_path(name))


def source_path(name: str) -> Path:
    """The file that describes the target."""
    if name == MEASURED and calibrated():
        return calibrated_path()
    if name in names():
        return _folder() / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        if Path(name).is_file():
            return Path(name)
        raise CompileError(
            "T0213", f"there is no target file `{name}`", helps="give a name from `tcc target list`"
        )
    raise CompileError(
        "T0213",
        f"unknown target `{name}`",
        helps=(*did_you_mean(name, names()), f"known: {', '.join(names())}"),
    )


def with_backend(backend: str) -> str | None:
    """The target that is meant where only a backend is known."""
    if backend in _DEFAULTS:
        return _DEFAULTS[backend]
    return next((n for n in names() if find(n).backend == backend), None)


def generic() -> Target:
    """The CPU target that holds for machines that nobody has measured."""
    return _read(generic_path())


@cache
def unmeasured() -> Target:
    """The generic target, which holds for a machine that nobody has measured, with register tiles for its vectors."""
    from tcc.backends.c.toolchain import find_toolchain

    found = generic()
    try:
        if find_toolchain().simd != "avx512":
            return found
    except CompileError:  # without a compiler the mapping can still be read
        return found
    wide = find("cpu-avx512")
    levels = (*(x for x in found.levels if x.name != "reg"), wide.level("reg"))
    return replace(found, levels=levels, parameters={**found.parameters, **wide.parameters})


def generic_path() -> Path:
    """The file of the generic target."""
    return _folder() / f"{MEASURED}.yaml"


def calibrated_path() -> Path:
    """Where the target of this processor, with this many cores, is or would be kept."""
    from tcc.machine import this_machine

    found = this_machine()
    key = hashlib.sha256(f"{found.processor}\0{found.cores}".encode()).hexdigest()
    return _calibrated_folder() / f"{MEASURED}-{key[:12]}.yaml"


def calibrated() -> Target | None:
    """The target measured on this machine with this tcc; a file that is broken counts as none, after one warning."""
    path = calibrated_path()
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return None
    found, reason = _checked(path, changed)
    if reason.startswith("broken"):
        _warn(path, changed, reason)
    return found


def state() -> str:
    """What `cpu` stands for here, in words."""
    path = calibrated_path()
    if not path.exists():
        return "generic: `tcc target calibrate` measures this machine"
    found, reason = _checked(path, path.stat().st_mtime_ns)
    if found is not None:
        return f"measured on this machine: {path}"
    return f"generic, since {path} is {reason}: run `tcc target calibrate` again"


@cache
def _checked(path: Path, changed: int) -> tuple[Target | None, str]:
    """The target of a calibrated file, or why it does not count."""
    from tcc.machine import this_machine

    try:
        found = _parsed(path, changed)
    except CompileError as error:
        return None, f"broken ({error.diagnostic.message})"
    except (OSError, UnicodeDecodeError) as error:
        return None, f"broken ({error})"
    here = this_machine()
    if found.machine is None or found.kind != "cpu" or found.backend != "c":
        return None, "broken (it is no measured CPU)"
    if not {"core", "lane", "unroll"} <= {r.name for r in found.resources}:
        return None, "broken (its `parallel` lacks core, lane or unroll)"
    if (found.machine.processor, found.machine.cores) != (here.processor, here.cores):
        return (
            None,
            f"from another machine ({found.machine.processor}, {found.machine.cores} processors)",
        )
    if found.machine.version != here.version:
        return None, f"from tcc {found.machine.version}"
    return found, ""


@cache
def _warn(path: Path, _changed: int, reason: str) -> None:
    print(
        f"warning: {path} is {reason}: the generic target is used; run `tcc target calibrate`"
        " again, or delete the file",
        file=sys.stderr,
    )


def _calibrated_folder() -> Path:
    chosen = options.text("TCC_TARGET_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_config_dir("tcc"))


def _read(path: Path) -> Target:
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, _changed: int) -> Target:
    return parse_target(path.read_text(encoding="utf-8"), str(path))


def _folder() -> Path:
    import tcc.backends

    return Path(next(iter(tcc.backends.__path__))) / "targets"
