"""What the operating system tells of the machine: processor, cores, caches."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tcc import options
from tcc.ir.target import Machine

_SYSTEM = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Cache:
    """A data cache: `level` 1 is next to the core; `shared_by` cores share one of `bytes`."""

    level: int
    bytes: int
    shared_by: int
    line_bytes: int


@cache
def this_machine() -> Machine:
    """The machine that this process runs on, as targets name it."""
    return Machine(processor(), os.cpu_count() or 1, options.version())


@cache
def processor() -> str:
    """The processor's model, with family and model number where the name alone may stand for several."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, colon, value = line.partition(":")
                if not colon and found:
                    break  # the first processor speaks for all
                found[key.strip()] = value.strip()
    except OSError:
        found = {}
    name = found.get("model name") or _brand() or platform.processor() or platform.machine()
    numbers = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    if "CPU part" in found:
        numbers = [f"{key} {found.get(key, '')}" for key in ("CPU implementer", "CPU part")]
    return re.sub(r"\s+", " ", ", ".join([name or "unknown", *numbers]))


def threads() -> int:
    """How many cores of their own the threads of this process can have."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return _count(usable)


def cores() -> int:
    """How many cores the machine has; hardware threads of one core count once."""
    return _count(None)


def caches() -> tuple[Cache, ...]:
    """The data caches of the first core, nearest first; empty when the system does not tell."""
    found = []
    each = len(_processors(_SYSTEM / "cpu0" / "topology" / "thread_siblings_list")) or 1
    for folder in sorted((_SYSTEM / "cpu0" / "cache").glob("index*")):
        kind, size, line = (_text(folder / x) for x in ("type", "size", "coherency_line_size"))
        level = _text(folder / "level")
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind not in ("Data", "Unified") or not match or not level.isdecimal():
            continue
        amount = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
        sharing = len(_processors(folder / "shared_cpu_list")) or each
        line_bytes = int(line) if line.isdecimal() else 64
        found.append(Cache(int(level), amount, max(1, sharing // each), line_bytes))
    return tuple(sorted(found, key=lambda c: c.level)) or _apple_caches()


def _count(usable: set[int] | None) -> int:
    seen = set()
    for folder in _SYSTEM.glob("cpu[0-9]*"):
        if usable is None or int(folder.name[3:]) in usable:
            together = _processors(folder / "topology" / "thread_siblings_list")
            if together:
                seen.add(min(together))
    return len(seen) or (len(usable) if usable else os.cpu_count() or 1)


def _processors(path: Path) -> set[int]:
    """The numbers of a list like `0-3,8`."""
    found: set[int] = set()
    for part in _text(path).split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _apple_caches() -> tuple[Cache, ...]:
    line = _sysctl("hw.cachelinesize")
    found = []
    for level, name in ((1, "hw.perflevel0.l1dcachesize"), (2, "hw.perflevel0.l2cachesize")):
        size = _sysctl(name) or _sysctl(name.replace("perflevel0.", ""))
        sharing = _sysctl("hw.perflevel0.cpusperl2") if level == 2 else "1"
        if size.isdecimal() and int(size):
            users = int(sharing) if sharing.isdecimal() else 1
            found.append(
                Cache(level, int(size), max(1, users), int(line) if line.isdecimal() else 128)
            )
    return tuple(found)


def _brand() -> str:
    return _sysctl("machdep.cpu.brand_string")


def _sysctl(name: str) -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        done = subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
