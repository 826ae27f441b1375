"""`build` returns a shared object of C text, made at most once per text and toolchain.

The compiler is `TCC_CC`, else `CC`, else `cc`, `gcc`, `clang`, else the one inside the `ziglang`
package. What it can do is asked once and kept on disk, so a warm process starts no compiler at
all.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcc.backends.c import cache
from tcc.ir.diagnostics import CompileError

# Never -ffast-math: a library linked with it turns on flush-to-zero for the whole Python process.
_FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
    "-Wno-psabi",
)
_NATIVE_FLAGS = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts
_FIRST_ERROR_LINES = 8
_PROBE = """\
#include <omp.h>
int tcc_probe(void) {
  int n = 0;
#pragma omp parallel reduction(+ : n)
  n += omp_get_num_threads();
  return n;
}
"""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A C compiler and what it makes for the processor it runs on.

    `simd_bits` is the width of the widest float vector register (0: none known); `openmp` says
    whether `-fopenmp` compiles and links.
    """

    command: tuple[str, ...]
    version: str
    processor: str
    target_flags: tuple[str, ...]
    simd: str  # "avx512", "avx2", "avx", "sse", "neon", "none"
    simd_bits: int
    fma: bool
    openmp: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """What every build is given."""
        return (*_FLAGS, *self.target_flags, *(("-fopenmp",) if self.openmp else ()))

    def key(self, source: str) -> str:
        """The content address of the shared object that this toolchain makes of `source`."""
        return cache.digest(
            "shared object", source, *self.command, *self.flags, self.version, self.processor,
            cache.own_source_hash(),
        )  # fmt: skip


def find_toolchain() -> Toolchain:
    """The C compiler of this machine, described. Raises T3 when there is none."""
    command = _find_command()
    processor = _processor()
    key = cache.digest("toolchain", *command, *_stamp(command), processor, cache.own_source_hash())
    known = cache.get(key, ".json")
    if known is not None:
        fields: dict[str, Any] = json.loads(known.read_text())
        fields["command"] = tuple(fields["command"])
        fields["target_flags"] = tuple(fields["target_flags"])
        return Toolchain(**fields)
    toolchain = _query(command, processor)
    cache.put(key, ".json", json.dumps(dataclasses.asdict(toolchain)).encode())
    return toolchain


def build(source: str, toolchain: Toolchain) -> Path:
    """The shared object of C text `source`, from the cache or freshly built.

    Raises T3 when the compiler refuses the source; the source is kept, and the error says where.
    """
    key = toolchain.key(source)
    return cache.get(key, ".so") or cache.put(key, ".so", _compile(source, key, toolchain))


def assembly(source: str, toolchain: Toolchain) -> str:
    """The assembly text of `source` under the flags of `build`; not cached."""
    key = toolchain.key(source)
    return _compile(source, key, toolchain, extra=("-S",)).decode()


def _compile(source: str, key: str, toolchain: Toolchain, extra: tuple[str, ...] = ()) -> bytes:
    with cache.workspace() as work:
        path, result = work / "kernel.c", work / "kernel.so"
        path.write_text(source)
        flags = [flag for flag in toolchain.flags if not (extra and flag == "-shared")]
        command = [*toolchain.command, *flags, *extra, path.name, "-o", result.name]
        if not extra:
            command.append("-lm")
        done = _run(command, work)
        if done.returncode == 0 and result.is_file():
            return result.read_bytes()
    kept = cache.put(key, ".c", source.encode())
    raise CompileError(
        "T0324",
        f"the C compiler `{toolchain.command[0]}` refused generated code"
        f" (exit code {done.returncode}):\n{_first_errors(done.stderr)}",
        helps=(
            f"the source is kept in `{kept}`; the command was `{shlex.join(command)}`",
            "this is a bug in tcc, or a compiler too old: set `TCC_CC` to another one (gcc 12 and"
            " clang 14 are known to work)",
        ),
    )


def _first_errors(text: str) -> str:
    lines = text.strip().splitlines()
    errors = [line for line in lines if "error" in line or "undefined reference" in line]
    return "\n".join(f"    {line}" for line in (errors or lines)[:_FIRST_ERROR_LINES])


def _run(command: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    """Runs the compiler in `work`, with its own temporary files there too."""
    environment = {**os.environ, "TMPDIR": str(work), "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        raise CompileError(
            "T0323",
            f"the C compiler `{command[0]}` cannot be started ({error.strerror or error})",
            helps="set `TCC_CC` to a working gcc or clang",
        ) from None


def _find_command() -> tuple[str, ...]:
    for variable in ("TCC_CC", "CC"):
        words = shlex.split(os.environ.get(variable, ""))
        if not words:
            continue
        path = shutil.which(words[0])
        if path is None:
            raise CompileError(
                "T0323",
                f"the C compiler `{words[0]}`, named by `{variable}`, is not there",
                helps=f"set `{variable}` to a gcc or clang, or unset it to let tcc look for one",
            )
        return (os.path.abspath(path), *words[1:])
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return (os.path.abspath(path),)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    raise CompileError(
        "T0323",
        "there is no C compiler: looked for `cc`, `gcc`, `clang` and the Python package `ziglang`",
        helps=(
            "install one (`apt install gcc`, `dnf install gcc`, `xcode-select --install`), or run"
            " `pip install ziglang`",
            "set `TCC_CC` to a compiler that is not on `PATH`",
        ),
    )


def _stamp(command: tuple[str, ...]) -> tuple[str, ...]:
    """What changes when the compiler is exchanged: the resolved file, its time and its size."""
    path = os.path.realpath(command[0])
    if command[1:3] == ("-m", "ziglang"):
        found = importlib.util.find_spec("ziglang")
        path = (found.origin if found else None) or path
    status = os.stat(path)
    return (path, str(status.st_mtime_ns), str(status.st_size))


def _processor() -> str:
    """What `-march=native` depends on: a cache may be shared by machines of different kinds."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    lines: list[str] = []
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip() and lines:
                    break  # the first processor speaks for all
                if line.split(":")[0].strip() in wanted:
                    lines.append(line.strip())
    except OSError:
        lines.append(platform.processor())
    return cache.digest(platform.system(), platform.machine(), *lines)


def _query(command: tuple[str, ...], processor: str) -> Toolchain:
    with cache.workspace() as work:
        version = _run([*command, "--version"], work)
        if version.returncode != 0:
            raise CompileError(
                "T0323",
                f"the C compiler `{shlex.join(command)}` does not work:"
                f" `--version` ends with exit code {version.returncode}",
                helps="set `TCC_CC` to a working gcc or clang",
            )
        (work / "empty.c").write_text("")
        (work / "probe.c").write_text(_PROBE)
        flags, macros = _macros(command, work)
        simd, bits = _simd(macros)
        probe = [*command, *_FLAGS, *flags, "-fopenmp", "probe.c", "-o", "probe.so"]
        openmp = _run(probe, work).returncode == 0
    fma = "__FMA__" in macros or simd in ("avx512", "neon")
    text = version.stdout.strip()
    return Toolchain(command, text, processor, flags, simd, bits, fma, openmp)


def _macros(command: tuple[str, ...], work: Path) -> tuple[tuple[str, ...], frozenset[str]]:
    for flags in _NATIVE_FLAGS:
        done = _run([*command, *flags, "-dM", "-E", "empty.c"], work)
        if done.returncode == 0 and "#define" in done.stdout:
            words = (line.split() for line in done.stdout.splitlines())
            return flags, frozenset(word[1] for word in words if len(word) > 1)
    raise CompileError(
        "T0323",
        f"the C compiler `{shlex.join(command)}` cannot preprocess an empty file:\n"
        f"{_first_errors(done.stderr)}",
        helps="set `TCC_CC` to a working gcc or clang",
    )


def _simd(macros: frozenset[str]) -> tuple[str, int]:
    if "__AVX512F__" in macros and "__AVX512VL__" in macros:
        return "avx512", 512
    if "__AVX2__" in macros:
        return "avx2", 256
    if "__AVX__" in macros:
        return "avx", 256
    if "__SSE2__" in macros:
        return "sse", 128
    if "__ARM_NEON" in macros:
        return "neon", 128
    return "none", 0
