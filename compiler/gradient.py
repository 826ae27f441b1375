"""Behind `tcc.grad` and `tcc grad`: the gradient of a program, as a program."""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tcc import pipeline
from tcc.api import as_program
from tcc.build import build, machine
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.program import CompiledProgram
from tcc.stored import is_scaled

BEFORE = (
    "restrict",
    "simplify",
    "derive",
)  # what a program goes through before it is differentiated


class Gradient(CompiledProgram):
    """A compiled gradient; `forward` is the program that gives the tensors in `saved` to it."""

    def __init__(
        self, cascade: Cascade, source: Cascade, target: Any, options: MappingABC[str, Any]
    ) -> None:
        super().__init__(cascade, None, *build(cascade, target, **options))
        self._source, self._target, self._options = source, target, dict(options)
        self._forward: CompiledProgram | None = None

    @property
    def forward(self) -> CompiledProgram:
        """The program itself with `saved` as further outputs, compiled when it is first asked for."""
        if self._forward is None:
            made = build(self._source, self._target, **self._options)
            self._forward = CompiledProgram(self._source, None, *made)
        return self._forward


def grad(
    program: Any,
    wrt: str | Sequence[str] | None,
    of: str | Sequence[str] | None,
    seeds: MappingABC[str, str | float] | None,
    forward: bool,
    saved: str | Sequence[str],
    target: str | None,
    options: MappingABC[str, Any],
) -> Gradient:
    """What `tcc.grad` returns."""
    c = cascade_of(program)
    source = with_outputs(c, _names(saved) or ())
    return Gradient(gradient_of(c, wrt, of, seeds, forward, saved, target), source, target, options)


def gradient_of(
    c: Cascade,
    wrt: str | Sequence[str] | None = None,
    of: str | Sequence[str] | None = None,
    seeds: MappingABC[str, str | float] | None = None,
    forward: bool = False,
    saved: str | Sequence[str] = (),
    target: str | None = None,
) -> Cascade:
    """The gradient of `c`, after the passes that make its definitions explicit and few."""
    from tcc.passes.differentiate import differentiate

    wanted, chosen, kept = _names(wrt), _names(of), _names(saved) or ()
    if wanted is None:
        wanted = tuple(t.name for t in c.inputs if t.dtype.is_float and not is_scaled(t))
    if chosen is None:
        chosen = tuple(t.name for t in c.outputs if t.dtype.is_float)
    names = tuple(n for n in BEFORE if n in pipeline.PASSES)
    steps = pipeline.passes(names)
    prepared = pipeline.run(with_outputs(c, kept), machine(c, target), steps).cascade
    assert prepared is not None
    return differentiate(prepared, wanted, chosen, seeds, forward=forward, saved=kept)


def with_outputs(c: Cascade, names: Sequence[str]) -> Cascade:
    """The same program that also returns these tensors."""
    known = [t for t in c.tensors if c.defining(t)]
    for name in names:
        if name not in known:
            raise CompileError("T0261", f"`{c.name}` defines no `{name}`",
                               helps=did_you_mean(name, known) or f"it defines: {', '.join(known)}")  # fmt: skip
    have = {t.name for t in c.outputs}
    more = tuple(replace(c.tensors[n], span=None) for n in names if n not in have)
    return replace(c, outputs=(*c.outputs, *more)) if more else c


def cascade_of(program: Any) -> Cascade:
    """The cascade behind what `tcc.compile` takes: a text, a path, a cascade, a program."""
    node = as_program(program).node
    if isinstance(node, Cascade):
        return node
    raise CompileError("T0260", f"`{node.name}` is a mapping, and has no gradient",
                       helps="take the gradient of the cascade that it was made from")  # fmt: skip


def _names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return (given,) if isinstance(given, str) else None if given is None else tuple(given)
