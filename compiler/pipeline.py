"""The way of a program through the passes: a list, verified after each pass, dumped and resumed by
the pass's name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.interpret import ExternCall
from tcc.ir.mapping import Mapping
from tcc.ir.target import Target

PASSES = (
    "unscale",  # cascade -> cascade: scaled inputs become codes, scales and arithmetic
    "restrict",  # cascade -> cascade: which points exist becomes explicit
    "simplify",  # cascade -> cascade: fold, share, inline, drop
    "regroup",  # cascade -> cascade: sums of products of whole numbers, as integers, by groups
    "derive",  # cascade -> cascade: reductions that depend on each other become one walk
    "split",  # cascade -> cascade: long walks of few rows in parts that run side by side
    "fuse",  # cascade -> cascade: which definitions make one kernel
    "map",  # cascade -> mapping: loops, tiles, buffers, parallel resources
)

Node = Cascade | Mapping
PassOptions = MappingABC[str, MappingABC[str, Any]]


@dataclass(frozen=True, slots=True)
class Pass:
    """A named step: `run(program, target)` gives the new program, or the same object when nothing
    changed."""

    name: str
    run: Callable[[Any, Target], Any]
    options: MappingABC[str, Any] = field(default_factory=dict)  # `run` has them already


@dataclass(frozen=True, slots=True)
class Stage:
    """The program after a pass (`input`: before the first), and whether that pass changed it."""

    name: str
    program: Node
    changed: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What the passes made of a program, stage by stage; the last stage is what a backend gets."""

    target: Target
    stages: tuple[Stage, ...]

    @property
    def program(self) -> Node:
        return self.stages[-1].program

    @property
    def cascade(self) -> Cascade | None:
        """The last cascade, or None when a mapping was resumed."""
        return next(
            (s.program for s in reversed(self.stages) if isinstance(s.program, Cascade)), None
        )

    @property
    def mapping(self) -> Mapping | None:
        program = self.program
        return program if isinstance(program, Mapping) else None

    def after(self, name: str) -> Node:
        """The program after that pass; T0215 when it did not run."""
        for s in self.stages:
            if s.name == name:
                return s.program
        known = [s.name for s in self.stages]
        raise CompileError(
            "T0215",
            f"no pass `{name}` ran",
            helps=did_you_mean(name, known) or f"ran: {', '.join(known)}",
        )


@dataclass(frozen=True, slots=True)
class Check:
    """How much a run proves about itself: the verifier always, the interpreters when `interpreters`
    is set."""

    interpreters: bool = False
    extern: ExternCall | None = field(default=None)


def names_for(target: Target) -> tuple[str, ...]:
    """The passes that a program for `target` goes through; the interpreters need no mapping, and
    read scaled tensors themselves."""
    return PASSES[1:-1] if target.backend == "numpy" else PASSES


def passes(names: Sequence[str], options: PassOptions | None = None) -> list[Pass]:
    """The passes of those names, with their options; each lies in `tcc/passes/NAME.py`."""
    options = dict(options or {})
    for name in options:
        if name not in PASSES:
            raise unknown_pass(name)
    found = []
    for name in names:
        if name not in PASSES:
            raise unknown_pass(name)
        try:
            function = getattr(importlib.import_module(f"tcc.passes.{name}"), name)
        except ModuleNotFoundError as error:
            if error.name != f"tcc.passes.{name}":
                raise
            raise CompileError(
                "T0901",
                f"the pass `{name}` is missing from this installation of tcc",
                helps="install tcc again",
            ) from None
        given = _checked(name, function, options.get(name, {}))
        found.append(Pass(name, partial(function, **given), given))
    return found


def unknown_pass(name: str) -> CompileError:
    """The error for a name that is no pass."""
    return CompileError(
        "T0215",
        f"unknown pass `{name}`",
        helps=(*did_you_mean(name, list(PASSES)), f"known: {', '.join(PASSES)}"),
    )


def _checked(
    name: str, function: Callable[..., Any], given: MappingABC[str, Any]
) -> dict[str, Any]:
    known = {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    for key, value in given.items():
        if key not in known:
            raise CompileError(
                "T0216",
                f"the pass `{name}` has no option `{key}`",
                helps=did_you_mean(key, list(known))
                or (f"known: {', '.join(known)}" if known else "it has no options"),
            )
        default = known[key]
        wanted = (int, float) if isinstance(default, float) else type(default)
        if default is not None and (
            not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise CompileError(
                "T0216",
                f"the option `{key}` of `{name}` is `{value}`",
                helps=f"give a value like `{default}`",
            )
    return dict(given)


def run(
    program: Node,
    target: Target,
    steps: Sequence[Pass] | None = None,
    *,
    after: str = "input",
    check: Check = Check(),
    observe: Callable[[Stage, tuple[str, ...]], None] | None = None,
) -> Result:
    """Every pass in turn. `observe` sees each stage and the names of the passes still to run.

    Raises what a pass raises; T0902 when a pass breaks down, T0903 when its result is no valid
    program, T0904 when the interpreters tell its result from its input. These name a file that
    repeats the failure.
    """
    todo = list(passes(names_for(target)) if steps is None else steps)
    stages = [Stage(after, program, True)]

    def left(done: int) -> tuple[str, ...]:
        return tuple(p.name for p in todo[done:])

    if observe is not None:
        observe(stages[0], left(0))
    for n, step in enumerate(todo):
        before = stages[-1].program
        failed = partial(_failed, todo[n:], before, stages[-1].name, target)
        try:
            new = step.run(before, target)
        except CompileError:
            raise
        except Exception as error:
            raise failed(
                "T0902", f"the pass `{step.name}` broke down: {type(error).__name__}: {error}"
            ) from error
        changed = new is not before
        if changed:
            verified(new, failed)
            if check.interpreters:
                from tcc.compare import same_meaning

                problem = same_meaning(before, new, check.extern)
                if problem:
                    raise failed(
                        "T0904",
                        f"the pass `{step.name}` changed the meaning of the program: {problem}",
                    )
        stages.append(Stage(step.name, new, changed))
        if observe is not None:
            observe(stages[-1], left(n + 1))
    return Result(target, tuple(stages))


def verified(program: Node, failed: Callable[[str, str], CompileError]) -> None:
    """Runs the level's verifier; what it finds is our own bug."""
    try:
        if isinstance(program, Cascade):
            from tcc.ir.infer import build

            build(program)
        else:
            from tcc.ir.mapping_verify import verify

            verify(program)
    except CompileError as error:
        message = f"the result is no valid program: {error.diagnostic.message}"
        raise failed("T0903", message) from error
    except Exception as error:
        raise failed(
            "T0903", f"the verifier broke down: {type(error).__name__}: {error}"
        ) from error


def _failed(
    left: Sequence[Pass], before: Node, after: str, target: Target, code: str, message: str
) -> CompileError:
    from tcc.reproducer import internal_error

    if code == "T0903":
        message = f"pass `{left[0].name}`: {message}"
    names = tuple(p.name for p in left)
    options = {p.name: p.options for p in left if p.options}
    return internal_error(code, message, before, after, names, target, options)
