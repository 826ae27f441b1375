"""Behind `tcc.compile`, `tcc.load` and `tcc.parse`: which kind of program was given."""

from __future__ import annotations

import os
from collections.abc import Mapping as MappingABC
from typing import Any

from tcc import files
from tcc import options as environment
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError, Source
from tcc.ir.mapping import Mapping
from tcc.program import Program


def compile_any(program: Any, target: str | None, options: MappingABC[str, Any]) -> Any:
    """What `tcc.compile` returns."""
    if callable(program) and not isinstance(program, Program):
        from tcc.dynamo import compile_function

        return compile_function(program, target=target or environment.text("TCC_TARGET"), **options)
    return as_program(program).compile(target, **options)


def as_program(program: Any) -> Program:
    """The program of a text, a path or an IR node; itself when it is one."""
    if isinstance(program, Program):
        return program
    if isinstance(program, (Cascade, Mapping)):
        return Program(program)
    if isinstance(program, os.PathLike) or (isinstance(program, str) and _is_path(program)):
        return load_program(program, None)
    if isinstance(program, str):
        return parse_program(program, "<string>", None)
    raise CompileError(
        "T0145",
        f"a {type(program).__name__} is no program",
        helps="give the text of a cascade, a path, a function or an nn.Module",
    )


def load_program(path: str | os.PathLike[str], cascade: str | None) -> Program:
    """What `tcc.load` returns."""
    unit = files.choose(files.read_units(path), f"`{os.fspath(path)}`", cascade)
    return Program(unit.program, unit.header)


def parse_program(text: str, name: str, cascade: str | None) -> Program:
    """What `tcc.parse` returns."""
    unit = files.choose(files.units_of(Source(name, text)), name, cascade)
    return Program(unit.program, unit.header)


def _is_path(text: str) -> bool:
    return "\n" not in text and text.endswith(files.SUFFIXES)
