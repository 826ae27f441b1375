"""`tcc target list|show|calibrate`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tcc import targets
from tcc.cli import UsageError
from tcc.ir.diagnostics import CompileError
from tcc.ir.target import Target
from tcc.ir.target_text import print_target


def do_target(o: argparse.Namespace) -> int:
    """`tcc target`."""
    if o.what == "list":
        return _list(o)
    if o.what == "calibrate":
        return _calibrate(o)
    if o.name is None:
        raise UsageError("`tcc target show` needs a name", f"known: {', '.join(targets.names())}")
    found = targets.find(o.name)  # an unknown or broken one is an error
    if o.json:
        print(json.dumps(asdict(found)))
    elif o.table:
        print("\n".join(table(found)))
    else:
        print(targets.source_path(o.name).read_text(encoding="utf-8"), end="")
    return 0


def in_words(name: str) -> str:
    """One line about a target that comes with tcc."""
    try:
        found = targets.find(name)
    except CompileError as error:
        return f"broken: {error.diagnostic.message}"
    words = f"{found.kind}, backend {found.backend}"
    return f"{words}, {targets.state()}" if name == targets.MEASURED else words


def _list(o: argparse.Namespace) -> int:
    rows = {name: in_words(name) for name in targets.names()}
    if o.json:
        print(json.dumps(rows))
        return 0
    width = max(map(len, rows), default=0)
    for name, words in rows.items():
        print(f"{name:<{width}}  {words}")
    return 0


def _calibrate(o: argparse.Namespace) -> int:
    from tcc.calibrate import ROUNDS, calibrate

    if o.name is not None:
        raise UsageError(f"`{o.name}` is one word too many", "to choose the file, use -o FILE")
    if o.rounds is not None and o.rounds < 1:
        raise UsageError(f"--rounds {o.rounds}", "give at least one round")
    path = None if o.output == "-" else Path(o.output) if o.output else targets.calibrated_path()
    if path is not None:
        _writable(path)  # before the measuring, not after it
    with _Bar() as bar:
        found = calibrate(bar.update, o.rounds or ROUNDS)
    text = f"# Measured by `tcc target calibrate`.\n{print_target(found)}"
    if path is None:
        print(json.dumps(asdict(found)) if o.json else text.rstrip("\n"))
    else:
        _write(path, text)
        if o.json:
            print(json.dumps(asdict(found)))
        else:
            print("\n".join(table(found)))
        meant = "" if o.output else ": programs for `cpu` use it from now on"
        print(f"wrote {path}{meant}", file=sys.stderr)
    _note_load()
    return 0


def _writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write to `{path}`", "choose another file with -o")


def _write(path: Path, text: str) -> None:
    from tcc.backends.c.cache import replace

    try:
        replace(path, text.encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write to `{path}`: {error.strerror or error}", "choose another file with -o"
    )


def _note_load() -> None:
    processors = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > processors + 0.5:
        print(
            f"note: the machine is busy (load {load:.1f} on {processors} processors): what all cores"
            " reach together may be too low; calibrate again when it is idle",
            file=sys.stderr,
        )


class _Bar:
    """A progress bar on stderr, if that is a terminal."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("calibrating"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[found]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, found="")
        self._bar.start()
        return self

    def update(self, taken: int, total: int, found: str) -> None:
        self._bar.update(self._task, completed=taken, total=total or None, found=found)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


# ---- a target as tables


def table(t: Target) -> Iterator[str]:
    """The lines of a report: levels, rates, register tiles, overheads, parameters."""
    yield f"{t.name}: {t.kind}, backend {t.backend}"
    if m := t.machine:
        yield f"measured on {m.processor}, {m.cores} processors, by tcc {m.version}"
    if t.resources:
        yield "parallel: " + ", ".join(f"{r.name} {r.count or '(all)'}" for r in t.resources)
    rows = [
        (x.name, _size(x.bytes), *(_figure(v) for v in (
            x.bandwidth_gbps, x.write_gbps, x.stream_gbps, x.shared_gbps, x.latency_ns)))
        for x in t.levels
    ]  # fmt: skip
    yield from _grid(
        "levels", ("", "size", "read GB/s", "write", "stream", "all cores", "latency ns"), rows
    )
    if t.runs:
        lengths = [f"runs of {n} bytes" for n in t.runs]
        yield from _grid(
            "memory, read GB/s", ("", *lengths), [("", *map(_figure, t.runs.values()))]
        )
    for u in t.units:
        ops = list(dict.fromkeys(op for rates in u.rates.values() for op in rates))
        rates = [(op, *(_figure(r.get(op, 0)) for r in u.rates.values())) for op in ops]
        yield from _grid(f"unit {u.name}, 10^9 evaluations per second", ("", *u.rates), rates)
        costs = [(op, _figure(c.cycles), _figure(c.pj)) for op, c in u.operators.items()]
        yield from _grid(f"unit {u.name}", ("", "cycles", "pJ"), costs)
    groups = dict.fromkeys((x.dtype, x.lanes, x.depth, x.level) for x in t.tiles)
    for key in groups:
        found = {
            (x.rows, x.vectors): x.gflops
            for x in t.tiles
            if (x.dtype, x.lanes, x.depth, x.level) == key
        }
        across = sorted({v for _, v in found})
        lines = [
            (str(r), *(_figure(found.get((r, v), 0)) for v in across))
            for r in sorted({r for r, _ in found})
        ]
        dtype, lanes, depth, level = key
        yield from _grid(
            f"tiles of {dtype} x {lanes}, depth {depth} in {level}, GFLOP/s", ("rows", *(f"{v} vectors" for v in across)), lines
        )  # fmt: skip
    fixed = [(k, _figure(v)) for k, v in asdict(t.overheads).items() if v]
    yield from _grid("overheads", ("", ""), fixed)
    yield from _grid("parameters", ("", ""), [(k, f"{v:g}") for k, v in t.parameters.items()])


def _grid(title: str, head: tuple[str, ...], rows: list[Any]) -> Iterator[str]:
    if not rows:
        return
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    yield f"\n{title}"
    for row in (head, *rows):
        if any(row):
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
            yield ("  " + "  ".join(cells)).rstrip()


def _figure(value: float) -> str:
    return f"{value:.4g}" if 0 < value < 1e4 else f"{value:.0f}" if value else "-"


def _size(count: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << shift and count % (1 << max(0, shift - 10)) == 0:
            return f"{count / (1 << shift):g} {unit}"
    return f"{count} B" if count else "-"
