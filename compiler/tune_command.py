"""`tcc tune`: tiles by measurement, with a bar that shows the best so far."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from tcc import targets
from tcc.cli import UsageError
from tcc.commands import _sized, _units
from tcc.ir.cascade import Cascade

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def do_tune(o: argparse.Namespace) -> int:
    """`tcc tune`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tcc.tune import tune

    if o.best < 1:
        raise UsageError(f"--best {o.best}", "measure at least one candidate")
    if not o.seconds > 0:
        raise UsageError(f"--seconds {o.seconds:g}", "give it some time")
    target = targets.find(o.target)
    if target.backend != "c" or not target.tiles:
        raise UsageError(
            f"`{target.name}` has no measured register tiles to choose from",
            "run `tcc target calibrate` first, or give its file with --target",
        )
    stopped = False
    for unit in _units(o):
        if not isinstance(unit.program, Cascade):
            raise UsageError(
                f"`{unit.program.name}` is a mapping: its tiles are chosen", "tune the cascade"
            )
        sizes = _sized(unit.program, o.size)
        console = Console(stderr=True)
        with Progress(
            TextColumn("tuning"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[best]}"),
            console=console, transient=True, disable=not console.is_terminal,
        ) as bar:  # fmt: skip
            update = partial(_shown, bar, bar.add_task("", total=None, best=""))
            report = tune(unit.program, target, sizes, o.best, o.seconds, update)
        print(report)
        if report.stopped == "by Ctrl-C":
            stopped = True
            break
    if stopped:
        print("what was measured is kept", file=sys.stderr)
    return 130 if stopped else 0


def _shown(bar: Progress, task: TaskID, done: int, total: int, best: str) -> None:
    bar.update(task, completed=done, total=total, best=best)
