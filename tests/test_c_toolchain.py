"""Finding the C compiler, building through the cache, and launching what was built."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tcc.backends.c import cache
from tcc.backends.c.launch import Arena, Launcher, load, sizes_array
from tcc.backends.c.toolchain import Toolchain, assembly, build, find_toolchain
from tcc.ir.diagnostics import CompileError

SEVEN = """
#include <stdint.h>
void seven(void *const *p, const int64_t *s) { *(int64_t *)p[0] = 7 * s[0]; }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("TCC_CACHE_DIR", str(path))
    cache._stand_in.cache_clear()
    yield path
    cache._stand_in.cache_clear()


def run_seven(path: Path) -> int:
    out = ctypes.c_int64()
    Launcher(load(path), "seven", 1, 1)([ctypes.addressof(out)], sizes_array([6]))
    return out.value


def shows_help(error: pytest.ExceptionInfo[CompileError], *parts: str) -> bool:
    text = str(error.value)
    return "error[T03" in text and "help: " in text and all(part in text for part in parts)


def test_a_source_is_built_once_and_then_taken_from_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolchain = find_toolchain()
    path = build(SEVEN, toolchain)
    assert run_seven(path) == 42
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("compiler started"))
    assert find_toolchain() == toolchain
    assert build(SEVEN, toolchain) == path
    assert not list(folder.glob(".tmp-*"))


def test_the_key_holds_source_flags_version_processor_and_own_code(folder: Path) -> None:
    import dataclasses

    toolchain = find_toolchain()
    others = [
        dataclasses.replace(toolchain, version="other"),
        dataclasses.replace(toolchain, processor="other"),
        dataclasses.replace(toolchain, target_flags=("-mother",)),
    ]
    keys = {t.key(SEVEN) for t in (toolchain, *others)} | {toolchain.key(SEVEN + " ")}
    assert len(keys) == 5
    assert "-ffast-math" not in toolchain.flags


def test_the_cache_is_private(folder: Path) -> None:
    cache.put(cache.digest("a"), ".txt", b"text")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777, 0o702])
def test_a_cache_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CompileError) as error:
        find_toolchain()
    assert shows_help(error, "can be written by others", "TCC_CACHE_DIR")


def test_a_cache_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(CompileError) as error:
        cache.directory()
    assert shows_help(error, "belongs to user")


def test_a_cache_that_is_a_file_falls_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_text("")
    assert run_seven(build(SEVEN, find_toolchain())) == 42
    assert capsys.readouterr().err.count("warning: ") == 1


@pytest.mark.parametrize("name", ["truncated", "garbage", "removed"])
def test_a_damaged_object_is_built_again(folder: Path, name: str) -> None:
    toolchain = find_toolchain()
    path = build(SEVEN, toolchain)
    data = path.read_bytes()
    path.unlink()  # not written in place: it may be mapped
    if name == "truncated":
        path.write_bytes(data[: len(data) // 2])
    if name == "garbage":
        path.write_bytes(bytes(len(data)))
    assert run_seven(build(SEVEN, toolchain)) == 42


@pytest.mark.parametrize("text", [b"", b"x", b"9 ab nowhere", b"\xff\xfe", b"12 ab ../../x"])
def test_a_damaged_reference_is_a_miss(folder: Path, text: bytes) -> None:
    key = cache.digest("entry")
    path = cache.put(key, ".txt", b"text")
    assert cache.get(key, ".txt") == path
    (folder / f"{key}.txt.ref").write_bytes(text)
    assert cache.get(key, ".txt") is None


@pytest.mark.parametrize("call", ["mkstemp", "replace", "mkdir"])
def test_an_unwritable_cache_falls_back_with_one_warning(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: str,
) -> None:
    import tempfile

    owner: object = {"replace": os, "mkdir": Path}.get(call, tempfile)
    real = getattr(owner, call)

    def refuse(*args: object, **options: object) -> object:
        if str(folder) in f"{args} {options}":
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(owner, call, refuse)
    toolchain = find_toolchain()
    path = build(SEVEN, toolchain)
    assert run_seven(path) == 42
    assert build(SEVEN, toolchain) == path
    assert not path.is_relative_to(folder)
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1 and "No space left" in err
    assert not list(folder.glob(".tmp-*"))


def test_no_folder_at_all_is_an_error_with_advice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def refuse(*args: object, **options: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(CompileError) as error:
        cache.put(cache.digest("a"), ".txt", b"text")
    assert shows_help(error, "TMPDIR")
    with pytest.raises(CompileError) as error, cache.workspace():
        pytest.fail("there is no folder")
    assert shows_help(error, "TMPDIR")


def test_a_workspace_is_gone_after_ctrl_c_and_a_full_disk(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), cache.workspace() as work:  # noqa: PT012
        (work / "half").write_text("half")
        raise KeyboardInterrupt
    assert not work.exists()
    with pytest.raises(CompileError) as error, cache.workspace() as work:
        raise OSError(28, "No space left on device")
    assert shows_help(error, "No space left") and not work.exists()


def test_many_processes_build_the_same_source_at_once(folder: Path) -> None:
    code = (
        "from tcc.backends.c.toolchain import build, find_toolchain\n"
        "import ctypes, sys\n"
        "lib = ctypes.CDLL(str(build(sys.argv[1], find_toolchain())))\n"
        "assert lib.seven\n"
    )
    command = [sys.executable, "-c", code, SEVEN]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0 and err == b"", err
    assert run_seven(build(SEVEN, find_toolchain())) == 42
    assert not list(folder.glob(".tmp-*"))


def test_what_a_killed_process_left_harms_nobody_and_is_swept(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    old, young = folder / ".tmp-old", folder / ".tmp-young"
    old.mkdir()
    (old / "kernel.c").write_text("half")
    young.write_text("half")
    os.utime(old, (1, 1))
    assert run_seven(build(SEVEN, find_toolchain())) == 42
    assert not old.exists() and young.exists()


def test_get_put_info_and_clear(folder: Path) -> None:
    a, b = cache.digest("a"), cache.digest("b")
    assert a != b and cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.get(a, ".txt") is None
    cache.put(a, ".txt", b"first")
    path = cache.put(a, ".txt", b"second")
    assert path.read_bytes() == b"second" and cache.get(a, ".txt") == path
    cache.put(b, ".json", b"{}")
    (folder / "precious.txt").write_text("not ours")
    assert cache.info().path == folder and cache.info().entries == 2 and cache.info().bytes > 10
    assert cache.clear() == 2
    assert cache.info().entries == 0 and cache.info().bytes == 0
    assert (folder / "precious.txt").exists()


def test_a_refused_source_names_the_first_errors_and_the_kept_source(folder: Path) -> None:
    with pytest.raises(CompileError) as error:
        build("int f(void) { return missing; }\n", find_toolchain())
    assert shows_help(error, "missing", "kernel.c:1:", "TCC_CC")
    (kept,) = folder.glob("*.c")
    assert str(kept) in str(error.value) and "missing" in kept.read_text()
    assert not list(folder.glob(".tmp-*"))


def test_a_named_compiler_that_is_missing_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TCC_CC", raising=False)
    for variable in ("CC", "TCC_CC"):
        monkeypatch.setenv(variable, "no-such-compiler -m64")
        with pytest.raises(CompileError) as error:
            find_toolchain()
        assert shows_help(error, "no-such-compiler", f"`{variable}`")


def test_no_compiler_at_all_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TCC_CC", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ziglang" else real(name, *a)
    )
    with pytest.raises(CompileError) as error:
        find_toolchain()
    assert shows_help(error, "no C compiler", "pip install ziglang")


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 3\n", "not a program"])
def test_a_compiler_that_does_not_work_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    fake = tmp_path / "fakecc"
    fake.write_text(script)
    fake.chmod(0o755)
    monkeypatch.setenv("TCC_CC", str(fake))
    with pytest.raises(CompileError) as error:
        find_toolchain()
    assert shows_help(error, "fakecc", "TCC_CC")


def test_a_compiler_without_openmp_is_used_without_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fakecc"
    fake.write_text('#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec cc "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("TCC_CC", str(fake))
    toolchain = find_toolchain()
    assert not toolchain.openmp and "-fopenmp" not in toolchain.flags
    assert run_seven(build(SEVEN, toolchain)) == 42


def test_assembly_is_text(folder: Path) -> None:
    assert "seven" in assembly(SEVEN, find_toolchain())


def test_a_file_that_is_no_object_and_a_missing_function_are_errors(
    folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"not an object")
    with pytest.raises(CompileError) as error:
        load(bad)
    assert shows_help(error, "bad.so")
    with pytest.raises(CompileError) as error:
        Launcher(load(build(SEVEN, find_toolchain())), "eight", 1, 1)
    assert shows_help(error, "eight")


@pytest.mark.parametrize("torch_first", [True, False])
def test_torch_and_built_code_share_one_thread_pool(folder: Path, torch_first: bool) -> None:
    pytest.importorskip("torch")
    toolchain: Toolchain = find_toolchain()
    if not toolchain.openmp or "clang" in toolchain.version:
        pytest.skip("a gcc with OpenMP is needed")
    source = (
        "#include <stdint.h>\n#include <omp.h>\n"
        "void team(void *const *p, const int64_t *s) { *(int64_t *)p[0] = omp_get_max_threads(); }"
    )
    code = f"""
import ctypes, sys
if {torch_first}: import torch
from tcc.backends.c import launch, toolchain
library = launch.load(toolchain.build(sys.argv[1], toolchain.find_toolchain()))
import torch
team = launch.Launcher(library, "team", 1, 0)
out = ctypes.c_int64()
for n in (1, 3, 2):
    torch.set_num_threads(n)
    team([ctypes.addressof(out)], launch.sizes_array([]))
    assert out.value == n, (out.value, n)
"""
    subprocess.run([sys.executable, "-c", code, source], check=True, timeout=120)


def test_arena_blocks_are_aligned_kept_and_one_per_thread() -> None:
    arena = Arena()
    small, large = arena.take(100), arena.take(3 << 20)
    assert small.address % 64 == 0 and small.size >= 100
    assert large.address % (2 << 20) == 0 and large.size >= 3 << 20
    ctypes.memset(large.address, 1, large.size)
    arena.give(large)
    assert arena.take(1 << 20) is large
    arena.give(small)
    grown = arena.take(5000)
    assert grown is not small and grown.size >= 5000

    taken: list[int] = []

    def worker() -> None:
        block = arena.take(1000)
        taken.append(block.address)
        barrier.wait(timeout=30)
        arena.give(block)

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 4


def test_an_impossible_block_is_an_error_with_advice() -> None:
    with pytest.raises(CompileError) as error:
        Arena().take(1 << 62)
    assert shows_help(error, "scratch")
