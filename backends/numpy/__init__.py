"""The numpy backend: the interpreters, called like any other backend's code."""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from typing import Any

from tcc.ir.cascade import Cascade
from tcc.ir.mapping import Mapping
from tcc.ir.target import Target


class Interpreted:
    """A program that its interpreter runs; the source is the program's own text."""

    def __init__(self, program: Cascade | Mapping) -> None:
        self.program = program

    @property
    def source(self) -> str:
        return str(self.program)

    def run(
        self, inputs: MappingABC[str, Any], sizes: MappingABC[str, int] | None = None
    ) -> dict[str, Any]:
        """The outputs by name, as NumPy arrays."""
        if isinstance(self.program, Cascade):
            from tcc.ir.interpret import interpret

            return interpret(self.program, inputs, sizes)
        from tcc.ir.mapping_interpret import interpret_mapping

        return interpret_mapping(self.program, inputs, sizes)[0]


def build(program: Cascade | Mapping, target: Target) -> Interpreted:
    """The interpreter of `program`'s level, over it."""
    return Interpreted(program)
