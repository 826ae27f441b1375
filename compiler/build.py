"""Program and target in, built code out: the pipeline, then the target's backend, found by its
name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pickle
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as MappingABC
from pathlib import Path
from typing import Any

from tcc import options, pipeline, targets
from tcc.backends.c import cache
from tcc.dump import Header, level_of, write
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.interpret import ExternCall
from tcc.ir.mapping import Mapping
from tcc.ir.target import Target
from tcc.tuned import tuned

Observer = Callable[[pipeline.Stage, tuple[str, ...]], None]


def build(
    program: Cascade | Mapping,
    target: str | Target | None = None,
    header: Header | None = None,
    **given: Any,
) -> tuple[pipeline.Result, Any]:
    """The program after every pass, and what the target's backend made of it.

    `given` are the options of `Program.compile`; a `header` says which passes a resumed program
    still has to go through.
    """
    result = lower(program, target, header, **given)
    return result, emit(result)


def lower(
    program: Cascade | Mapping,
    target: str | Target | None = None,
    header: Header | None = None,
    *,
    verify_each: bool | None = None,
    passes: pipeline.PassOptions | None = None,
    dump: str | None = None,
    observe: Observer | None = None,
    extern: ExternCall | None = None,
    **unknown: Any,
) -> pipeline.Result:
    """The program after every pass that it has not seen yet."""
    known = ["target", "verify_each", "passes", "dump"]
    for name in unknown:
        raise CompileError(
            "T0218",
            f"unknown option `{name}`",
            helps=did_you_mean(name, known) or f"known: {', '.join(known)}",
        )
    chosen = tuned(machine(program, target, header))
    names = _remaining(program, chosen, header)
    if verify_each is None:
        verify_each = options.flag("TCC_VERIFY_EACH")
    folder = dump or options.text("TCC_DUMP_DIR")
    observers = [o for o in (observe, _writer(folder, chosen) if folder else None) if o is not None]

    def each(stage: pipeline.Stage, left: tuple[str, ...]) -> None:
        for o in observers:
            o(stage, left)

    steps = pipeline.passes(names, passes)
    after = header.after if header else "input"

    def run() -> pipeline.Result:
        return pipeline.run(
            program,
            chosen,
            steps,
            after=after,
            check=pipeline.Check(verify_each, extern),
            observe=each if observers else None,
        )

    if verify_each or observers:
        return run()
    return cache.recall(_key(program, chosen, after, steps), run)


def _key(
    program: Cascade | Mapping, target: Target, after: str, steps: Sequence[pipeline.Pass]
) -> str:
    """All that the result of the passes depends on, places in the source included: reports show them."""
    told = [(s.name, sorted(s.options.items())) for s in steps]
    given = pickle.dumps((program, after, told, target))
    return cache.digest("lowered", cache.own_source_hash(), given)


def emit(result: pipeline.Result, sizes: MappingABC[str, int] | None = None) -> Any:
    """What the backend of the result's target makes of the last stage; T0905 when the backend
    breaks down.

    A backend whose `build` takes `sizes` gets them: models of hardware need numbers.
    """
    module = backend(result.target)
    takes_sizes = "sizes" in inspect.signature(module.build).parameters
    more = {"sizes": dict(sizes or {})} if takes_sizes else {}
    with guarded(result):
        return module.build(result.program, result.target, **more)


@contextlib.contextmanager
def guarded(result: pipeline.Result) -> Iterator[None]:
    """What breaks down in a backend becomes T0905, with a file that repeats it."""
    try:
        yield
    except CompileError:
        raise
    except Exception as error:
        from tcc.reproducer import internal_error

        name = result.target.backend
        raise internal_error(
            "T0905",
            f"the backend `{name}` broke down: {type(error).__name__}: {error}",
            result.program,
            result.stages[-1].name,
            (),
            result.target,
        ) from error


def backend(target: Target) -> Any:
    """The module of the target's backend; T0311 when there is none."""
    name = f"tcc.backends.{target.backend}"
    known = [p.name for p in sorted(_folder().iterdir()) if (p / "__init__.py").is_file()]
    module = importlib.import_module(name) if target.backend in known else None
    if module is None or not hasattr(module, "build"):
        raise CompileError(
            "T0311",
            f"the target `{target.name}` wants the backend `{target.backend}`, which is not there",
            helps=(*did_you_mean(target.backend, known), f"known: {', '.join(known)}"),
        )
    return module


def _folder() -> Path:
    import tcc.backends

    return Path(next(iter(tcc.backends.__path__)))


def machine(
    program: Cascade | Mapping, target: str | Target | None, header: Header | None = None
) -> Target:
    """The target that a program is compiled for: the given one, the dump's or mapping's own, or the
    default."""
    made_for = header.target if header and header.target else None
    if isinstance(program, Mapping):
        made_for = program.target
    found = targets.find(target or made_for)
    if isinstance(program, Mapping) and found.name != program.target:
        raise CompileError(
            "T0219",
            f"the mapping `{program.name}` is made for `{program.target}`, not for `{found.name}`",
            helps="start from the cascade, or choose its own target",
        )
    return found


def _remaining(
    program: Cascade | Mapping, target: Target, header: Header | None
) -> tuple[str, ...]:
    if isinstance(program, Mapping):
        return header.next if header else ()
    if header is None:
        return pipeline.names_for(target)
    return tuple(
        n for n in header.next if n in pipeline.names_for(target) or n not in pipeline.PASSES
    )


def _writer(folder: str, target: Target) -> Observer:
    numbers = iter(range(100))

    def write_stage(stage: pipeline.Stage, left: tuple[str, ...]) -> None:
        header = Header(level_of(stage.program), stage.name, left, target.name)
        path = Path(folder) / f"{stage.program.name}.{next(numbers):02}-{stage.name}.tcc"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write(stage.program, header), encoding="utf-8")
        except OSError as error:
            raise CompileError(
                "T0312",
                f"cannot write the dump `{path}` ({error.strerror or error})",
                helps="choose a folder that you may write to",
            ) from None

    return write_stage
