"""What users hold: a `Program`, which can be read, interpreted and compiled, and a
`CompiledProgram`, which can be called."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as MappingABC
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Const
from tcc.ir.mapping import Mapping, signature

if TYPE_CHECKING:
    from tcc.dump import Header
    from tcc.explain import Explanation
    from tcc.pipeline import Result

_LEVELS = ("cascade", "mapping")


class Program:
    """A program that is not compiled: its text, its meaning, and the way to something fast."""

    def __init__(self, program: Cascade | Mapping, header: Header | None = None) -> None:
        self._program, self._header = program, header
        self._face = program if isinstance(program, Cascade) else signature(program)

    @property
    def name(self) -> str:
        return self._program.name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order in which they may be passed."""
        return tuple(t.name for t in self._face.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the order in which they are returned."""
        return tuple(t.name for t in self._face.outputs)

    @property
    def node(self) -> Cascade | Mapping:
        """The IR itself."""
        return self._program

    def ir(self, level: str = "cascade", *, after: str | None = None) -> str:
        """The program's text at a level. Only a compiled program has a mapping, or anything `after`
        a pass."""
        _check_level(level)
        if after is not None or level != (
            "cascade" if isinstance(self._program, Cascade) else "mapping"
        ):
            raise CompileError(
                "T0217", f"`{self.name}` has no {level} yet", helps="compile it first: `.compile()`"
            )
        return str(self._program)

    def interpret(
        self, *args: Any, sizes: MappingABC[str, int] | None = None, **inputs: Any
    ) -> Any:
        """What the program means: the interpreter's result, slow and right, in the form that a call
        returns."""
        from tcc.backends.numpy import Interpreted
        from tcc.call import Caller

        return Caller(self._face, Interpreted(self._program))(args, inputs, sizes)

    def compile(self, target: str | None = None, **options: Any) -> CompiledProgram:
        """The program made fast for a target (see `tcc target list`; the default is `TCC_TARGET`,
        else `cpu`).

        Options: `verify_each=True` runs the interpreters around every pass, `passes={"fuse":
        {"max_members": 4}}` sets options of passes, `dump="folder"` keeps the program after every pass.
        """
        from tcc.build import build

        def built(program: Cascade | Mapping) -> tuple[Result, Any]:
            return build(program, target, self._header, **options)

        return CompiledProgram(self._program, self._header, *built(self._program), built)

    def explain(self) -> Explanation:
        """What the compiler does with the program for the default target."""
        return self.compile().explain()

    def __str__(self) -> str:
        return str(self._program)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}({', '.join(map(str, self._face.inputs))})>"


class CompiledProgram(Program):
    """A program that can be called, with NumPy arrays or torch tensors, by name or in the order of
    declaration.

    One output is returned as an array, several as a tuple in the order of declaration (its fields
    have the names of the outputs). Any torch tensor in gives torch tensors out. `sizes={"N": 8}`
    gives ranks that no input has. `out=` takes the arrays to write: one, a tuple in the order of the
    outputs, or a mapping by name; fresh memory costs more than many a kernel.
    """

    def __init__(
        self,
        program: Cascade | Mapping,
        header: Header | None,
        result: Result,
        kernel: Any,
        built: Callable[[Cascade], tuple[Result, Any]] | None = None,
    ) -> None:
        super().__init__(program, header)
        self._result, self._kernel = result, kernel
        self._built = built if isinstance(program, Cascade) else None
        self._narrow: dict[frozenset[str], Any] = {}
        from tcc.call import Caller

        self._call = Caller(self._face, kernel, result, self._for_ones)

    def _for_ones(self, sizes: MappingABC[str, int]) -> Any:
        """The kernel for a call with these sizes: ranks of size 1 that the program leaves open are not there in a kernel
        of its own, as a vector times a matrix runs otherwise than a matrix."""
        if self._built is None or not isinstance(self._program, Cascade):
            return self._kernel
        open_ = {r.name for r in self._program.ranks if r.size is None}
        ones = frozenset(name for name in open_ if sizes.get(name) == 1)
        if not ones:
            return self._kernel
        if ones not in self._narrow:
            ranks = tuple(
                replace(r, size=Const(1)) if r.name in ones else r for r in self._program.ranks
            )
            self._narrow[ones] = self._built(replace(self._program, ranks=ranks))[1]
        return self._narrow[ones]

    def __call__(
        self,
        *args: Any,
        sizes: MappingABC[str, int] | None = None,
        out: Any = None,
        **inputs: Any,
    ) -> Any:
        return self._call(args, inputs, sizes, out)

    @property
    def target(self) -> str:
        """The name of the target that the program is compiled for."""
        return self._result.target.name

    @property
    def source(self) -> str:
        """The generated source text."""
        from tcc.build import guarded

        with guarded(self._result):
            source: str = self._kernel.source
        return source

    @property
    def result(self) -> Result:
        """The program after every pass."""
        return self._result

    @property
    def kernel(self) -> Any:
        """What the backend made."""
        return self._kernel

    def ir(self, level: str = "cascade", *, after: str | None = None) -> str:
        """The text at a level: the last cascade that the mapping was made from, or the mapping; or
        `after` a pass."""
        _check_level(level)
        if after is not None:
            return str(self._result.after(after))
        found = self._result.cascade if level == "cascade" else self._result.mapping
        if found is None:
            raise CompileError(
                "T0217",
                f"`{self.name}` has no {level}: it was compiled for `{self.target}` from its "
                f"{'mapping' if level == 'cascade' else 'cascade'} alone",
                helps="compile the cascade for another target",
            )
        return str(found)

    def explain(self) -> Explanation:
        """Which kernels there are, what each computes, how, and where its data lies."""
        from tcc.explain import explain

        return explain(self._result)


def _check_level(level: str) -> None:
    if level not in _LEVELS:
        from tcc.ir.diagnostics import did_you_mean

        raise CompileError(
            "T0217",
            f"there is no level `{level}`",
            helps=did_you_mean(level, list(_LEVELS)) or f"one of {', '.join(_LEVELS)}",
        )
