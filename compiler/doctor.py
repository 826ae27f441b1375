"""The commands that take no program: doctor, cache."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shlex
import sys
from typing import Any

from tcc import options, targets
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.target_command import in_words


def do_doctor(o: argparse.Namespace) -> int:
    """`tcc doctor`: exit code 3 when there is no working C compiler."""
    sections = report()
    if o.json:
        print(json.dumps(sections))
    else:
        for title, rows in sections.items():
            print(title)
            width = max(map(len, rows), default=0)
            for name, value in rows.items():
                print(f"  {name:<{width}}  {value}")
    return 0 if "error" not in sections["C compiler"] else 3


def report() -> dict[str, dict[str, str]]:
    """Sections of rows, in order."""
    return {
        "tcc": {
            "version": options.version(),
            "python": f"{platform.python_version()} at {sys.executable}",
            "machine": f"{platform.machine()}, {os.cpu_count()} processors",
            "system": f"{platform.system()} {platform.release()}",
        },
        "C compiler": _compiler(),
        "packages": {name: _package(name) for name in ("numpy", "torch", "triton")},
        "devices": {"gpu": _gpu()},
        "targets": {name: in_words(name) for name in targets.names()},
        "cache": _cache(),
        "variables": _variables(),
    }


def _compiler() -> dict[str, str]:
    from tcc.backends.c import toolchain

    try:
        found = toolchain.find_toolchain()
    except CompileError as error:
        return {"error": error.diagnostic.message, "help": "; ".join(error.diagnostic.helps)}
    return {
        "command": shlex.join(found.command),
        "version": found.version.split("\n")[0],
        "flags": " ".join(found.flags),
        "SIMD": f"{found.simd} ({found.simd_bits} bits{', fma' if found.fma else ''})",
        "OpenMP": "yes" if found.openmp else "no: kernels run on one thread",
    }


def _package(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return (
            "not installed"
            if importlib.util.find_spec(name) is None
            else "installed, version unknown"
        )


def _gpu() -> str:
    """What the driver tells; torch is not imported for it."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found (no `nvidia-smi`)"
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"`nvidia-smi` does not answer ({type(error).__name__})"
    return "; ".join(done.stdout.strip().splitlines()) or "none found"


def _cache() -> dict[str, str]:
    from tcc.backends.c import cache

    try:
        found = cache.info()
    except CompileError as error:
        return {"error": error.diagnostic.message}
    return {"folder": str(found.path), "entries": str(found.entries), "bytes": str(found.bytes)}


def _variables() -> dict[str, str]:
    rows = {}
    for v in options.VARIABLES.values():
        rows[v.name] = f"{v.value or '(not set)'}  [{v.origin}]  {v.meaning}"
    for name in options.unknown():
        close = did_you_mean(name, list(options.VARIABLES))
        advice = f": {close[0]}" if close else ""
        rows[name] = f"{os.environ[name]}  [environment]  means nothing to tcc{advice}"
    return rows


def do_cache(o: argparse.Namespace) -> int:
    """`tcc cache`."""
    from tcc.backends.c import cache

    if o.what == "clear":
        entries = cache.clear()
        print(f"{entries} entries deleted", file=sys.stderr)
        return 0
    found: Any = cache.info()
    print(f"folder   {found.path}\nentries  {found.entries}\nbytes    {found.bytes}")
    return 0
