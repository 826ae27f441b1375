"""The commands that take a program: run, build, dump, explain, map, grad."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcc import files, options, pipeline, targets
from tcc.build import Observer, guarded
from tcc.cli import UsageError
from tcc.dump import Header, level_of, write
from tcc.ir.cascade import Cascade
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.mapping import Mapping
from tcc.ir.sizes import known_sizes

DEFAULT_SIZE = 64
MOST_POINTS = 1 << 26

# what can be emitted: the suffix of its file, and the backend that makes it ("": any)
EMITS = {
    "cascade": (".cascade.tcc", ""),
    "mapping": (".mapping.tcc", ""),
    "c": (".c", "c"),
    "asm": (".s", "c"),
    "triton": (".triton.py", "triton"),
    "ptx": (".ptx", "triton"),
    "spatial": (".spatial.txt", "spatial"),
}


def do_build(o: argparse.Namespace) -> int:
    """`tcc build`."""
    wanted = _emits(o.emit)
    several: list[tuple[str, str, str]] = []  # file name, what, text
    for unit in _units(o):
        one = _resumed(unit, o.from_pass)
        target = o.target or _target_for(wanted, one)
        result = _lower(one, target, o)
        own = {"c": "c", "triton": "triton", "spatial": "spatial"}.get(
            result.target.backend, "cascade"
        )
        kernel: Any = None
        for what in wanted or [own]:
            if kernel is None and what not in ("cascade", "mapping"):
                modelled = result.target.backend == "spatial"
                kernel = _emit(
                    result, _sized(one.program, o.size) if modelled else parse_sizes(o.size)
                )
            suffix = EMITS[what][0]
            with guarded(result):
                text = _text_of(what, result, kernel)
            several.append((f"{one.program.name}{suffix}", what, text))
    if o.output == "-":
        for n, (_, what, text) in enumerate(several):
            mark = "//" if what in ("c",) else "#"
            head = f"{mark} ---- {what}\n" if len(several) > 1 else ""
            sys.stdout.write(("\n" if n else "") + head + text)
        return 0
    folder = Path(o.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, _, text in several:
            (folder / name).write_text(text, encoding="utf-8")
            print(f"wrote {folder / name}", file=sys.stderr)
    except OSError as error:
        raise UsageError(
            f"cannot write to `{folder}`: {error.strerror or error}",
            "choose another folder with -o",
        ) from None
    return 0


def _text_of(what: str, result: pipeline.Result, kernel: Any) -> str:
    target = result.target
    if what in ("cascade", "mapping"):
        program = result.cascade if what == "cascade" else result.mapping
        if program is None:
            raise CompileError(
                "T0217",
                f"`{result.program.name}` has no {what} on the way to `{target.name}`",
                helps="choose another target, or start from the cascade",
            )
        at = max(n for n, s in enumerate(result.stages) if s.program is program)
        left = tuple(s.name for s in result.stages[at + 1 :])
        return write(program, Header(what, result.stages[at].name, left, target.name))
    needed = EMITS[what][1]
    if target.backend != needed:
        raise CompileError(
            "T0313",
            f"the target `{target.name}` gives no {what}",
            helps=f"choose another: `--target {targets.with_backend(needed)}`",
        )
    if what == "asm":
        assembly: str = kernel.assembly()
        return assembly
    if what == "ptx":
        from tcc.backends.triton import compile_ahead

        assert result.mapping is not None
        return "\n".join(str(k["ptx"]) for k in compile_ahead(result.mapping, target))
    text: str = str(kernel) if target.backend == "spatial" else kernel.source
    return text if text.endswith("\n") else text + "\n"


def do_dump(o: argparse.Namespace) -> int:
    """`tcc dump`."""
    if o.after not in ("all", "input", *pipeline.PASSES):
        raise pipeline.unknown_pass(o.after)
    shown = False
    for unit in _units(o):
        stages: list[tuple[pipeline.Stage, tuple[str, ...]]] = []

        def keep(stage: pipeline.Stage, left: tuple[str, ...], stages: list[Any] = stages) -> None:
            stages.append((stage, left))

        try:
            result = _lower(unit, o.target, o, observe=keep)
        except CompileError:
            _print_stages(stages, o.after, o.target or options.text("TCC_TARGET"))
            raise
        if o.after not in ("all", *(s.name for s, _ in stages)):
            ran = ", ".join(s.name for s, _ in stages)
            raise UsageError(
                f"the pass `{o.after}` does not run for the target `{result.target.name}`",
                f"run: {ran}",
            )
        if shown:
            print()
        shown = True
        _print_stages(stages, o.after, result.target.name)
    return 0


def _print_stages(
    stages: list[tuple[pipeline.Stage, tuple[str, ...]]], after: str, target: str
) -> None:
    for n, (stage, left) in enumerate(stages):
        if after not in ("all", stage.name):
            continue
        header = Header(level_of(stage.program), stage.name, left, target)
        if after == "all" and n and not stage.changed:
            print(f"{header}\n# (unchanged)\n")
        else:
            print(
                write(stage.program, header),
                end="\n" if after == "all" and n + 1 < len(stages) else "",
            )


def do_explain(o: argparse.Namespace) -> int:
    """`tcc explain`."""
    from tcc.explain import explain

    if o.code:
        return _explain_code(o.file)
    found = []
    for unit in _units(o):
        result = _lower(unit, o.target, o)
        sizes = _sized(unit.program, o.size) if o.size else {}
        found.append(explain(result, known_sizes(result.program.ranks, sizes)))
    if o.json:
        print(json.dumps([f.json() for f in found] if len(found) > 1 else found[0].json()))
    else:
        print("\n".join(map(str, found)), end="")
    return 0


def _explain_code(code: str) -> int:
    import tcc

    if not re.fullmatch(r"T\d{3,4}", code):
        raise UsageError(f"`{code}` is no code of an error", "codes look like T0114")
    package = Path(next(iter(tcc.__path__)))
    page = package / "docs" / "errors.md"
    page = page if page.exists() else package.parent / "docs" / "errors.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    sections = re.split(r"^## (?=T\d)", text, flags=re.MULTILINE)[1:]
    found = [s for s in sections if s.startswith(f"{code}:")]
    if not found:
        known = [s.split(":")[0] for s in sections]
        raise UsageError(
            f"there is no page about {code}",
            did_you_mean(code, known) or "the message itself says all that there is",
        )
    print(found[0].rstrip())
    return 0


def do_map(o: argparse.Namespace) -> int:
    """`tcc map`."""
    from tcc.cost_report import cost_json, cost_lines
    from tcc.ir.cost import cost

    texts: list[str] = []
    reports: list[object] = []
    for unit in _units(o):
        resumed = unit.header.target if unit.header else None
        result = _lower(unit, o.target or resumed or targets.with_backend("spatial"), o)
        sizes = _sized(unit.program, o.size)
        if result.target.backend == "spatial":
            report = _emit(result, sizes)
            texts.append(str(report).rstrip("\n"))
            reports.append(report.data())
            continue
        if result.mapping is None:
            raise UsageError(
                f"programs for `{result.target.name}` have no mapping",
                "choose a target with one, as in `--target cpu`",
            )
        found = cost(result.mapping, result.target, known_sizes(result.mapping.ranks, sizes))
        texts.append("\n".join(cost_lines(found)))
        reports.append(cost_json(found))
    if o.json:
        print(json.dumps(reports if len(reports) > 1 else reports[0]))
    else:
        print("\n\n".join(texts))
    return 0


def do_grad(o: argparse.Namespace) -> int:
    """`tcc grad`."""
    from tcc.gradient import cascade_of, gradient_of

    wrt, of, saved = (None if w is None else w.split(",") for w in (o.wrt, o.of, o.saved))
    for n, unit in enumerate(_units(o)):
        gradient = gradient_of(
            cascade_of(unit.program), wrt, of, forward=o.forward, saved=saved or ()
        )
        sys.stdout.write(("\n" if n else "") + str(gradient))
    return 0


def do_run(o: argparse.Namespace) -> int:
    """`tcc run`."""
    if o.threads is not None:
        if o.threads < 1:
            raise UsageError(f"--threads {o.threads}", "give at least one thread")
        os.environ["OMP_NUM_THREADS"] = str(o.threads)
    from tcc.run import run_program

    reports = []
    for unit in _units(o):
        result = _lower(unit, o.target, o)
        reports.append(
            run_program(
                unit.program,
                result,
                _sized(unit.program, o.size),
                o.seed,
                o.check,
                max(1, o.repeat),
            )
        )
    if o.json:
        found = [r.json() for r in reports]
        print(json.dumps(found if len(found) > 1 else found[0]))
    else:
        print("\n".join(map(str, reports)))
    return 0 if all(r.holds for r in reports) else 1


# ---- what the commands share


def _units(o: argparse.Namespace) -> list[files.Unit]:
    units = files.read_units(o.file)
    if o.cascade is not None or not units:
        return [files.choose(units, f"`{o.file}`", o.cascade)]
    return units


def _lower(
    unit: files.Unit,
    target: str | None,
    o: argparse.Namespace,
    observe: Observer | None = None,
) -> pipeline.Result:
    from tcc.build import lower

    chosen: dict[str, dict[str, Any]] = {}
    for word in o.pass_option:
        name, values = parse_pass_option(word)
        chosen.setdefault(name, {}).update(values)
    start, first = time.perf_counter(), True

    def each(stage: pipeline.Stage, left: tuple[str, ...]) -> None:
        nonlocal start, first
        now = time.perf_counter()
        if o.time and not first:
            print(f"{unit.program.name}: {stage.name} {now - start:.3f} s", file=sys.stderr)
        if observe is not None:
            observe(stage, left)
        start, first = time.perf_counter(), False

    return lower(
        unit.program,
        target,
        unit.header,
        passes=chosen,
        verify_each=o.verify_each or None,
        dump=o.dump_dir,
        observe=each,
    )


def _emit(result: pipeline.Result, sizes: dict[str, int]) -> Any:
    from tcc.build import emit

    return emit(result, sizes)


def _sized(program: Cascade | Mapping, words: list[str]) -> dict[str, int]:
    """A size for every rank that has none: those of the command line, else a default, with a note.

    The default is `DEFAULT_SIZE`, or the next smaller power of two at which no definition has more
    than `MOST_POINTS` points.
    """
    from tcc.ir.mapping import signature
    from tcc.samples import all_sizes, most_points

    face = program if isinstance(program, Cascade) else signature(program)
    given, default = parse_sizes(words), DEFAULT_SIZE
    sizes, guessed = all_sizes(face, given, default)
    while guessed and default > 2 and most_points(face, sizes) > MOST_POINTS:
        default //= 2
        sizes, guessed = all_sizes(face, given, default)
    if guessed:
        told = f"{', '.join(guessed)}: {default} each"
        if any(sizes[r] != default for r in guessed):  # whole groups of scaled types
            told = ", ".join(f"{r}: {sizes[r]}" for r in guessed)
        print(f"note: no size given for {told}", file=sys.stderr)
    return sizes


def _resumed(unit: files.Unit, after: str | None) -> files.Unit:
    """The unit under the header that `--from` means."""
    if after is None:
        return unit
    if after != "input" and after not in pipeline.PASSES:
        raise pipeline.unknown_pass(after)
    left = (
        pipeline.PASSES[pipeline.PASSES.index(after) + 1 :] if after != "input" else pipeline.PASSES
    )
    target = unit.header.target if unit.header else ""
    level = level_of(unit.program)
    if (level == "mapping") != (after == "map"):
        raise UsageError(
            f"`{unit.program.name}` is a {level}, which is not what `{after}` gives",
            "leave out --from: the first line of a dump says how far it is",
        )
    return files.Unit(unit.program, Header(level, after, left, target))


def _emits(words: str | None) -> list[str]:
    found = [w for w in (words or "").split(",") if w]
    for w in found:
        if w not in EMITS:
            raise UsageError(
                f"unknown product `{w}`",
                (*did_you_mean(w, list(EMITS)), f"known: {', '.join(EMITS)}"),
            )
    return found


def _target_for(wanted: list[str], unit: files.Unit) -> str | None:
    """The target that gives what is wanted, where none is named."""
    needed = [EMITS[w][1] for w in wanted if EMITS[w][1]]
    if not needed or not isinstance(unit.program, Cascade):
        return None
    name = unit.header.target if unit.header else ""
    default = targets.find(name or None)
    return default.name if default.backend == needed[0] else targets.with_backend(needed[0])


def parse_sizes(words: list[str]) -> dict[str, int]:
    """`["M=37,P=64", "E=8"]` as a dictionary; a usage error names the part that is wrong."""
    found: dict[str, int] = {}
    for part in _parts(words):
        name, equals, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.isidentifier() or not re.fullmatch(r"[+-]?\d{1,30}", value):
            raise UsageError(
                f"`{part}` is no size", "write a rank and an integer, as in `--size M=37,P=64`"
            )
        if name in found and found[name] != int(value):
            raise UsageError(
                f"rank `{name}` is given two sizes: {found[name]} and {value}", "keep one of them"
            )
        found[name] = int(value)
    return found


def _parts(words: list[str]) -> Iterator[str]:
    for word in words:
        yield from (part for part in word.split(",") if part.strip())


def parse_pass_option(word: str) -> tuple[str, dict[str, Any]]:
    """`fuse{ratio=2.0,max-members=4}` as a name and its options."""
    match = re.fullmatch(r"\s*([\w-]+)\s*\{(.*)\}\s*", word)
    if match is None:
        raise UsageError(f"`{word}` is no option of a pass", "write `-p 'fuse{ratio=2.0}'`")
    values: dict[str, Any] = {}
    for part in match[2].split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"`{part}` has no value", "write `-p 'fuse{ratio=2.0}'`")
        values[name.strip().replace("-", "_")] = _value(value.strip())
    return match[1], values


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
