"""The command `tcc`: words to options, errors to exit codes. What each command does is in
`commands` and `doctor`.

Exit codes: 0 fine, 1 the program has errors, 2 usage, 3 a toolchain or device is missing, 70 a bug
in tcc, 130 Ctrl-C. The product goes to stdout; diagnostics, notes and progress to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tcc.ir.diagnostics import CompileError, did_you_mean

FORMATS = ("human", "short", "json")


class UsageError(CompileError):
    """The command line is wrong: exit code 2."""

    def __init__(self, message: str, helps: tuple[str, ...] | str = ()) -> None:
        super().__init__("T0140", message, helps=helps)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"`{self.prog} --help` lists what there is")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    report = _Report(words)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except CompileError as error:
        return report.show(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        return report.show(CompileError("T0308", "out of memory", helps="choose smaller sizes"))
    except RecursionError:
        return report.show(
            CompileError("T0100", "the program is nested too deep", helps="split its expressions")
        )
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        return report.broke_down(error, words)


def _run(words: list[str]) -> int:
    parser = _parser()
    commands = list(_COMMANDS)
    first = next((w for w in words if not w.startswith("-")), None)
    if (
        first is not None
        and first not in commands
        and words[0] not in ("--color", "--message-format")
    ):
        if not _is_path(first):
            raise UsageError(
                f"unknown command `{first}`",
                (*did_you_mean(first, commands), f"known: {', '.join(commands)}"),
            )
        words = ["build", *words]
    options = parser.parse_args(words)
    if options.run is None:
        parser.print_help()
        return 0
    command: Callable[[argparse.Namespace], int] = options.run
    return command(options)


def _is_path(word: str) -> bool:
    return os.sep in word or word.endswith((".tcc", ".yaml", ".yml", ".py")) or os.path.exists(word)


class _Report:
    """Shows errors on stderr, as the command line and the environment want them."""

    def __init__(self, words: Sequence[str]) -> None:
        self.format = _peek(words, "--message-format", FORMATS, "human")
        color = _peek(words, "--color", ("auto", "always", "never"), "auto")
        if color == "auto":
            self.color = (
                sys.stderr.isatty()
                and not os.environ.get("NO_COLOR")
                and os.environ.get("TERM") != "dumb"
            )
        else:
            self.color = color == "always"

    def show(self, error: CompileError) -> int:
        d = error.diagnostic
        if self.format == "json":
            print(d.json(), file=sys.stderr)
        else:
            print(d.short() if self.format == "short" else d.render(self.color), file=sys.stderr)
        code = exit_code(error)
        if code == 70:
            _show_traceback(error)
        return code

    def broke_down(self, error: Exception, words: Sequence[str]) -> int:
        """An error that should have been caught and explained: where it arose, and how to report
        it."""
        import shlex
        import traceback

        frames = traceback.extract_tb(error.__traceback__)
        place = f" in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
        bug = CompileError(
            "T0900",
            f"tcc broke down{place}: {type(error).__name__}: {error}",
            helps=(
                "this is a bug in tcc: please report it with the program",
                f"to repeat it: `TCC_DEBUG=1 python -m tcc {shlex.join(words)}`",
            ),
        )
        bug.__cause__ = error
        return self.show(bug)


def exit_code(error: CompileError) -> int:
    """What the command ends with when that error stops it."""
    if isinstance(error, UsageError) or error.diagnostic.code in _USAGE_CODES:
        return 2
    if error.diagnostic.code in _MISSING_CODES:
        return 3
    return 70 if error.diagnostic.code.startswith("T09") else 1


# cache, compiler, loader, a function of PyTorch, a backend
_MISSING_CODES = ("T0301", "T0311", "T0321", "T0322", "T0323", "T0324", "T0325", "T0326")
# unknown file, target, pass, option of a pass, value of a variable
_USAGE_CODES = ("T0143", "T0132", "T0213", "T0215", "T0216", "T0219")


def _show_traceback(error: CompileError) -> None:
    if os.environ.get("TCC_DEBUG") == "1" and error.__cause__ is not None:
        import traceback

        traceback.print_exception(error.__cause__)


def _peek(words: Sequence[str], name: str, known: tuple[str, ...], default: str) -> str:
    """The value of an option that must be known before the command line is understood."""
    for n, word in enumerate(words):
        if word.startswith(f"{name}="):
            value = word.partition("=")[2]
        elif word == name and n + 1 < len(words):
            value = words[n + 1]
        else:
            continue
        return value if value in known else default
    return default


# ---- the table of commands


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--message-format",
        choices=FORMATS,
        default=argparse.SUPPRESS,
        help="how errors are shown (default human)",
    )
    common.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default=argparse.SUPPRESS,
        help="colours in errors (default auto; NO_COLOR counts)",
    )
    parser = _Parser(
        prog="tcc",
        parents=[common],
        description="The tensor cascade compiler.",
        epilog="A file as first word means `tcc build`.",
    )
    parser.set_defaults(run=None)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and stop")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (summary, add, module) in _COMMANDS.items():
        one = commands.add_parser(name, help=summary, description=summary, parents=[common])
        add(one)
        one.set_defaults(run=_lazily(module, name))
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from tcc.options import version

        print(f"tcc {version()}")
        parser.exit()


def _lazily(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        import importlib

        command: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(module), f"do_{name}"
        )
        return command(options)

    return run


def _program(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", help="a cascade (.tcc), a dump, or a TeAAL specification (.yaml)")
    p.add_argument(
        "--cascade", metavar="NAME", help="the one that is meant, where the file holds several"
    )
    p.add_argument(
        "--target", metavar="NAME", help="a target or its YAML file (default: TCC_TARGET, else cpu)"
    )
    p.add_argument(
        "-p",
        "--pass-option",
        metavar="PASS{NAME=VALUE}",
        action="append",
        default=[],
        help="an option of a pass, as in `-p 'fuse{max_members=4}'`; may be repeated",
    )
    p.add_argument(
        "--verify-each",
        action="store_true",
        help="run the interpreters before and after every pass",
    )
    p.add_argument(
        "--dump-dir", metavar="DIR", help="a folder that gets the program after every pass"
    )
    p.add_argument("--time", action="store_true", help="the time of every pass, on stderr")


def _sizes(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--size",
        metavar="M=37,P=64",
        action="append",
        default=[],
        help="sizes of ranks; may be repeated",
    )


def _add_run(p: argparse.ArgumentParser) -> None:
    _program(p)
    _sizes(p)
    p.add_argument("--seed", type=int, default=0, help="of the random inputs (default 0)")
    p.add_argument(
        "--check",
        action="store_true",
        help="compare with the interpreter; exit code 1 beyond its bound",
    )
    p.add_argument("--json", action="store_true", help="the result as one JSON object")
    p.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of the kernels (default OMP_NUM_THREADS, else all)",
    )
    p.add_argument(
        "--repeat",
        type=int,
        default=5,
        metavar="N",
        help="timed calls; the fastest counts (default 5)",
    )


def _add_build(p: argparse.ArgumentParser) -> None:
    _program(p)
    _sizes(p)
    p.add_argument(
        "-o", "--output", default="-", metavar="DIR", help="a folder, or - for stdout (default)"
    )
    p.add_argument(
        "--emit",
        metavar="WHAT",
        help="cascade, mapping, c, asm, triton, ptx, spatial; several with commas "
        "(default: the source for the target)",
    )
    p.add_argument(
        "--from", dest="from_pass", metavar="PASS", help="FILE is the program after that pass"
    )


def _add_dump(p: argparse.ArgumentParser) -> None:
    _program(p)
    p.add_argument(
        "--after", default="all", metavar="PASS", help="a pass, `input`, or `all` (default)"
    )


def _add_explain(p: argparse.ArgumentParser) -> None:
    _program(p)
    _sizes(p)
    p.add_argument("--json", action="store_true", help="the report as one JSON object")
    p.add_argument(
        "--code",
        action="store_true",
        help="FILE is the code of an error, as in `tcc explain --code T0114`",
    )


def _add_map(p: argparse.ArgumentParser) -> None:
    _program(p)
    _sizes(p)
    p.add_argument("--json", action="store_true", help="the report as one JSON object")


def _add_tune(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", help="a cascade (.tcc) or a TeAAL specification (.yaml)")
    p.add_argument(
        "--cascade", metavar="NAME", help="the one that is meant, where the file holds several"
    )
    p.add_argument(
        "--target", metavar="NAME", help="a calibrated target or its YAML file (default: cpu)"
    )
    _sizes(p)
    p.add_argument(
        "--best", type=int, default=4, metavar="N", help="candidates per kernel (default 4)"
    )
    p.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="stop after that long (default 60)"
    )


def _add_grad(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", help="a cascade (.tcc) or a TeAAL specification (.yaml)")
    p.add_argument(
        "--cascade", metavar="NAME", help="the one that is meant, where the file holds several"
    )
    p.add_argument("--wrt", metavar="A,B", help="inputs (default: all floats)")
    p.add_argument("--of", metavar="Z", help="outputs (default: all floats)")
    p.add_argument("--saved", metavar="T,U", help="tensors that are inputs, not computed again")
    p.add_argument("--forward", action="store_true", help="return the program's outputs, too")


def _add_target(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "what",
        choices=("list", "show", "calibrate"),
        help="calibrate measures this machine, in about ten seconds; programs for `cpu` then use that",
    )
    p.add_argument("name", nargs="?", help="the target to show")
    p.add_argument("--table", action="store_true", help="show: tables in place of YAML")
    p.add_argument("--json", action="store_true", help="the result as one JSON object")
    p.add_argument(
        "-o", "--output", metavar="FILE", help="calibrate: the file to write, or - for stdout"
    )
    p.add_argument(
        "--rounds", type=int, metavar="N", help="calibrate: how often to repeat (default 10)"
    )


def _add_layout(p: argparse.ArgumentParser) -> None:
    p.add_argument("text", help="a layout with its shape: '(16, 8) lane[0%%8, 1/2] reg[0/8, 1%%2]'")
    p.add_argument("--to", metavar="LAYOUT", help="what it takes to convert it into another")
    p.add_argument("--normal", action="store_true", help="show its shortest form")
    p.add_argument("--inverse", action="store_true", help="show its inverse: places to elements")
    p.add_argument("--svg", metavar="FILE", help="also draw it into a file")
    p.add_argument("--json", action="store_true", help="the answer as one JSON object")
    _sizes(p)


def _add_cache(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", choices=("info", "clear"))


def _add_doctor(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="the report as one JSON object")


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], str]] = {
    "run": ("run a program on random inputs", _add_run, "tcc.commands"),
    "build": ("write what a program compiles to", _add_build, "tcc.commands"),
    "dump": ("print a program after a pass, or after all", _add_dump, "tcc.commands"),
    "explain": ("tell what was fused and how it runs", _add_explain, "tcc.commands"),
    "map": (
        "predict how a program runs: dataflow of an array, times and traffic elsewhere",
        _add_map,
        "tcc.commands",
    ),
    "tune": ("measure which tiles are fastest, and keep them", _add_tune, "tcc.tune_command"),
    "grad": ("print the gradient of a program as a program", _add_grad, "tcc.commands"),
    "layout": ("show where a layout puts elements", _add_layout, "tcc.layouts"),
    "target": ("list or show targets, or measure this machine", _add_target, "tcc.target_command"),
    "doctor": ("show compilers, devices, cache and settings", _add_doctor, "tcc.doctor"),
    "cache": ("show or clear the cache of built code", _add_cache, "tcc.doctor"),
}
