"""Targets: what files say and how they are refused, and how this machine becomes one."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tcc
from tcc import machine, targets
from tcc.backends.c import measure, toolchain
from tcc.backends.c.toolchain import find_toolchain
from tcc.calibrate import Probe, best_tile, calibrate
from tcc.cli import main
from tcc.ir.diagnostics import CompileError
from tcc.ir.target import Level, Machine, Target, Tile
from tcc.ir.target_text import parse_target, print_target

GENERIC = targets.generic()


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


# ---- files


@pytest.mark.parametrize("name", targets.names())
def test_a_target_that_comes_with_tcc_reads_back_as_it_prints(name: str) -> None:
    found = targets.find(name)
    assert found.name == name
    assert parse_target(print_target(found), name) == found
    assert run("target", "show", name, "--table")[0] == 0
    assert json.loads(run("target", "show", name, "--json")[1])["name"] == name


def test_known_processors_say_what_a_cost_needs() -> None:
    for name in ("cpu", "zen3", "zen4", "avx512-server", "neoverse-n1"):
        t = targets.find(name)
        assert t.rate("mul_add", "f32") > t.rate("mul_add", "f64") > t.rate("exp", "f64") > 0
        assert t.overheads.fork_us and t.overheads.page_fault_us and t.level("memory").shared_gbps
        assert all(x.bandwidth_gbps and x.latency_ns for x in t.levels if x.name != "reg")
    for name in ("a100", "h100", "h200", "mi300x"):
        t = targets.find(name)
        assert t.rate("mul_add", "f16") > 4 * t.rate("mul_add", "f32") > 0 and t.overheads.launch_us


HEAD = "kind: cpu\nlevels: [{name: memory}, {name: L1, bytes: 32768}]\n"
WRONG = [
    ("levels: [{name: memory}]", "needs `kind`", 1, 1),
    ("kind: cup\nlevels: []", "`kind` is `cup`", 1, 7),
    ("kind: gpu\nbackend: c\nlevels: [{name: memory}]", "`backend` is `c`", 2, 10),
    ("kind: cpu\nlevels: [{name: L1}]", "first level must be `memory`", 2, 9),
    ("kind: cpu\nlevels: []", "first level must be `memory`", 2, 9),
    ("kind: cpu\nlevels: [{nam: memory}]", "unknown entry `nam`", 2, 11),
    ("kind: cpu\nlevels:\n  - {name: memory}\n  - {bytes: 3}", "has no `name`", 4, 5),
    ("kind: cpu\nlevels: [{name: memory, bytes: -1}]", "`bytes` is -1", 2, 32),
    ("kind: cpu\nlevels: [{name: memory, bytes: 1.5}]", "`bytes` is 1.5", 2, 32),
    ("kind: cpu\nlevels: [{name: memory, bytes: yes}]", "is `true`, not a number", 2, 32),
    ("kind: cpu\nlevels: [{name: memory, bytes: .inf}]", "is `inf`, not a number", 2, 32),
    ("kind: cpu\nlevels: [{name: memory, bytes: 1e9}]", "is `1e9`, not a number", 2, 32),
    ("kind: cpu\nlevels: [{name: memory, bytes: 1, bytes: 2}]", "given twice", 2, 35),
    ("kind: cpu\nlevels: [{name: memory}, {name: memory}]", "listed twice", 2, 26),
    ("kind: cpu\nlevels: memory", "not a mapping", 2, 9),
    ("kind: cpu\nlevels: [{name: memory, bytes: 9}, {name: L1, bytes: 10}]",
     "`L1` has 10 bytes, more than `memory`", 2, 54),
    ("kind: cpu\nlevels: [{name: memory, bandwidth_gbps: 9, shared_gbps: 8}]", "one alone 9", 2, 57),
    ("kind: cpu\nlevels: [{name: memory, shared_by: 4}]\nparallel: [{name: core, count: 2}]",
     "shared by 4 cores, but there are 2", 2, 36),
    (HEAD + "units: [{name: core, rates: {f32: {expp: 1}}}]", "unknown entry `expp`", 3, 36),
    (HEAD + "units: [{name: core, rates: {f31: {exp: 1}}}]", "unknown entry `f31`", 3, 30),
    (HEAD + "units: [{name: core, rates: {f32: {exp: 0}}}]", "`exp` is 0", 3, 41),
    (HEAD + "units: [{name: core, operators: {exp: {log: 1}}}]", "no cost and no recipe", 3, 39),
    (HEAD + "units: [{name: core, resources: [cores]}]\nparallel: [{name: core}]",
     "spans `cores`", 3, 34),
    (HEAD + "tiles: [{dtype: f32, vectors: 1, lanes: 8, depth: 9, level: L1}]", "no `gflops`", 3, 9),
    (HEAD + "tiles: [{dtype: f32, vectors: 1, lanes: 8, depth: 9, level: L2, gflops: {1: 2}}]",
     "`level` is `L2`", 3, 61),
    (HEAD + "tiles: [{dtype: f32, vectors: 0, lanes: 8, depth: 9, level: L1, gflops: {1: 2}}]",
     "`vectors` is 0", 3, 31),
    (HEAD + "tiles: [{dtype: f32, vectors: 1, lanes: 8, depth: 9, level: L1, gflops: {x: 2}}]",
     "no number of rows", 3, 77),
    (HEAD + "runs: {x: 2}", "`x` is no number of bytes", 3, 11),
    (HEAD + "runs: {64: 0}", "`64` is 0", 3, 12),
    (HEAD + "overheads: {fork: 2}", "unknown entry `fork`", 3, 13),
    (HEAD + "machine: {processor: x, cores: 2}", "has no `version`", 3, 10),
    (HEAD + "parameters: {a: b}", "`a` is `b`, not a number", 3, 17),
    (HEAD + "paralel: []", "unknown entry `paralel`", 3, 1),
    ("kind: [", "is no YAML", 1, 8),
    ("- a", "not a mapping", 1, 1),
    ("a: &x [*x]", "contains itself", 1, 4),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted", "line", "column"), WRONG)
def test_a_wrong_entry_is_named_where_it_stands(
    text: str, wanted: str, line: int, column: int
) -> None:
    with pytest.raises(CompileError) as caught:
        parse_target(text, "t.yaml")
    found = caught.value.diagnostic
    assert found.code == "T0210" and wanted in found.message and found.helps
    assert found.span is not None and (found.span.line, found.span.column) == (line, column)


def test_a_misspelt_entry_gets_a_suggestion() -> None:
    with pytest.raises(CompileError) as caught:
        parse_target("kind: cpu\nlevels: [{name: memory, bandwith_gbps: 1}]", "t.yaml")
    assert "did you mean `bandwidth_gbps`?" in caught.value.diagnostic.helps
    with pytest.raises(CompileError) as caught:
        parse_target("kind: cpu\nlevels: [{name: memory, bytes: 1e9}]", "t.yaml")
    assert "write `1000000000`" in caught.value.diagnostic.helps[0]


def test_text_of_any_kind_reads_back() -> None:
    for title in ("yes", 'a "b" \\ c', "x: y", "#1", "1e5", " x ", "[a]", "ü", "AMD (R), 2"):
        t = dataclasses.replace(GENERIC, name=title)
        assert parse_target(print_target(t), "t").name == title


# ---- what a target answers


def test_speeds_of_a_level_grow_until_it_is_shared_out() -> None:
    memory = Level("memory", 0, 20, write_gbps=10, stream_gbps=15, shared_gbps=50)
    assert [memory.gbps(n) for n in (1, 2, 4)] == [20, 40, 50]
    assert memory.gbps(4, "write") == 25 and memory.gbps(4, "stream") == 37.5
    assert Level("L1", 1, 100, shared_by=1).gbps(8, "write") == 800
    halves = Level("L3", 1, 20, shared_gbps=50, shared_by=4)
    assert [halves.gbps(n) for n in (4, 5, 8)] == [50, 100, 100]
    assert Level("buffer").gbps() == float("inf")


def test_runs_of_memory_are_slower_the_shorter_they_are() -> None:
    runs = {64: 5.0, 256: 10.0, 1024: 12.0}
    t = dataclasses.replace(GENERIC, runs=runs)
    assert [t.run_gbps(n) for n in (8, 64, 128, 256, 1024, 1025)] == [5, 5, 7.5, 10, 12, 20]
    assert GENERIC.run_gbps(64) == 20  # not known
    assert parse_target(print_target(t), "t.yaml").runs == runs


def test_rates_come_from_either_table() -> None:
    assert GENERIC.rate("mul_add", "f32") == GENERIC.rate("sub", "f32") == 40
    assert GENERIC.rate("min", "f32") == GENERIC.rate("max", "f32") == 20
    assert GENERIC.rate("exp", "i8") == GENERIC.rate("gather", "f32") == 0
    array = targets.find("array-16x16")
    assert array.rate("mul_add", "f32") == 256 and array.rate("div", "f32") == 4
    assert targets.find("h100").rate("mul_add", "f32") == 33450


# ---- this machine


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the target of this machine, from one round of samples."""
    folder = tmp_path_factory.mktemp("targets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TCC_TARGET_DIR", str(folder))
        code, out, err = run("target", "calibrate", "--rounds", "1")
        assert code == 0 and "measured on" in out and "wrote" in err
        (file,) = folder.iterdir()
        yield file


@pytest.fixture
def here(measured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the measured file in a folder of its own, where tcc looks for it."""
    monkeypatch.setenv("TCC_TARGET_DIR", str(tmp_path))
    copy = tmp_path / measured.name
    copy.write_text(measured.read_text())
    return copy


def test_a_calibrated_target_is_plausible(here: Path) -> None:
    t = parse_target(here.read_text(), "t")
    assert t.machine == machine.this_machine()
    assert 2 * t.rate("mul_add", "f32") >= 1 and t.rate("mul_add", "f64") > 0
    assert all(0 < t.rate(op, "f32") < 1e4 for op in (*measure.FUNCTIONS, "unpack_4", "unpack_8"))
    caches = [x for x in t.levels if x.name != "reg"]
    assert caches[0].name == "memory" and caches[-1].name == "L1"
    assert all(x.bandwidth_gbps > 0.1 and x.write_gbps > 0.1 and x.latency_ns > 0 for x in caches)
    legal = set(measure.legal_tiles(find_toolchain(), "f32"))
    assert {(x.rows, x.vectors) for x in t.tiles if x.dtype == "f32"} == legal and (6, 2) in legal
    assert all(0 < x.gflops <= 2 * t.rate("mul_add", x.dtype) for x in t.tiles)
    assert t.overheads.call_us > 0 and t.overheads.page_fault_us > 0
    assert t.resource("core").count >= 1 and t.resource("lane").count == measure.lanes("f32")


def test_the_calibrated_target_is_used_and_said(here: Path) -> None:
    assert targets.find("cpu") == targets.calibrated() != targets.unmeasured()
    assert targets.source_path("cpu") == here
    assert f"measured on this machine: {here}" in run("target", "list")[1]
    assert "measured on this machine" in json.loads(run("doctor", "--json")[1])["targets"]["cpu"]
    assert "machine:" in run("target", "show", "cpu")[1]
    matmul = tcc.compile("in A: f32[M,K], B: f32[K,N]\nout Z: f32[M,N]\nZ[m,n] = A[m,k] * B[k,n]")
    a, b = (np.random.default_rng(0).standard_normal(s) for s in ((51, 300), (300, 37)))
    found = matmul(a.astype(np.float32), b.astype(np.float32))
    np.testing.assert_allclose(found, a @ b, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("processor", "another one", "from another machine"), ("cores", 999, "from another machine"),
     ("version", "0.0.1", "from tcc 0.0.1")],
)  # fmt: skip
def test_a_target_of_another_machine_or_tcc_does_not_count(
    field: str, value: Any, reason: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t = parse_target(here.read_text(), "t")
    assert t.machine is not None
    other = dataclasses.replace(t, machine=dataclasses.replace(t.machine, **{field: value}))
    here.write_text(print_target(other))
    assert targets.find("cpu") == targets.unmeasured() and capsys.readouterr().err == ""
    assert reason in run("target", "list")[1]


def test_the_file_is_named_by_processor_and_cores(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda: Machine("x", 3, "1"))
    assert targets.calibrated_path() != here and targets.find("cpu") == targets.unmeasured()


@pytest.mark.parametrize(
    "text", ["", "kind: [", "kind: cpu\nlevels: [{name: memory}]\n", "\x00", "name: cpu\nkind: cp"]
)
def test_a_broken_file_is_passed_over_with_one_warning(
    text: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here.write_text(text)
    assert targets.find("cpu") == targets.find() == targets.unmeasured()
    err = capsys.readouterr().err
    assert err.count("warning") == 1 and str(here) in err and "calibrate" in err
    assert "broken" in run("target", "list")[1]


def test_bytes_that_are_no_text_are_broken_too(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here.write_bytes(b"\xff\xfe\xff")
    assert targets.find("cpu") == targets.unmeasured()
    assert "broken" in capsys.readouterr().err


def test_ctrl_c_leaves_what_was_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = here.read_bytes()

    def interrupted(*_: object) -> Target:
        raise KeyboardInterrupt

    monkeypatch.setattr("tcc.calibrate.calibrate", interrupted)
    assert run("target", "calibrate")[0] == 130
    assert run("target", "calibrate", "-o", str(here.parent / "new.yaml"))[0] == 130
    assert list(here.parent.iterdir()) == [here] and here.read_bytes() == before


def test_calibrate_writes_where_it_is_told(
    tmp_path: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = parse_target(measured.read_text(), "t")
    monkeypatch.setattr("tcc.calibrate.calibrate", lambda *_: t)
    file = tmp_path / "deep" / "mine.yaml"
    assert run("target", "calibrate", "-o", str(file))[0] == 0
    assert parse_target(file.read_text(), "t") == t == targets.find(str(file))
    code, out, _ = run("target", "calibrate", "-o", "-")
    assert code == 0 and parse_target(out, "t") == t
    assert run("target", "calibrate", "-o", str(tmp_path))[0] == 2
    (tmp_path / "plain").write_text("")
    assert run("target", "calibrate", "-o", str(tmp_path / "plain" / "x.yaml"))[0] == 2
    assert run("target", "calibrate", "cpu")[0] == run("target", "calibrate", "--rounds", "0")[0]
    assert run("target", "calibrate", "cpu")[0] == 2


def test_calibrate_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TCC_CC", "no-such-compiler")
    monkeypatch.setenv("TCC_TARGET_DIR", str(tmp_path))
    code, _, err = run("target", "calibrate")
    assert code == 3 and "T0323" in err and not list(tmp_path.iterdir())
    with pytest.raises(CompileError):
        calibrate(rounds=1)


# ---- parts


def test_the_best_of_all_samples_counts() -> None:
    now, each = 0.0, iter([9.0, 5, 9, 2, 9, 3, 9, 4, 9, 8])  # seconds: warming, and the sample

    def work(repeats: int) -> None:
        nonlocal now
        now += next(each) * repeats

    p = Probe("x", "Gop/s", 4e9, work, clock=lambda: now)
    p.sample(1)
    assert p.best_s == 2 and p.rate == 2 and p.repeats == 1


def test_short_work_is_repeated_until_it_can_be_timed() -> None:
    now, done = 0.0, 0

    def work(repeats: int) -> None:
        nonlocal now, done
        now += 1e-6 * repeats
        done += repeats

    p = Probe("x", "Gop/s", 1e3, work, clock=lambda: now)
    p.sample(1e-3)
    assert p.repeats >= 500 and p.best_s == pytest.approx(1e-6) and p.rate == 1


def test_another_tile_has_to_be_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "unmeasured", targets.generic)

    def table(speed: float) -> tuple[Tile, ...]:
        shapes = {(6, 2): 100.0, (8, 2): speed, (7, 2): 300.0, (4, 3): 300.0}
        return tuple(Tile("f32", r, v, 8, 128, "L1", g) for (r, v), g in shapes.items())

    assert best_tile(table(102)) == (6, 2) and best_tile(table(110)) == (8, 2)
    assert best_tile(()) == (6, 2)


@pytest.mark.parametrize(
    ("simd", "bits", "most"), [("avx2", 256, 16), ("avx512", 512, 32), ("neon", 128, 32), ("sse", 128, 16)]
)  # fmt: skip
def test_legal_tiles_fit_the_registers(simd: str, bits: int, most: int) -> None:
    other = dataclasses.replace(find_toolchain(), simd=simd, simd_bits=bits)
    found = measure.legal_tiles(other, "f32")

    def registers(vectors: int) -> int:  # where all are full
        return -(-vectors * 256 // bits)

    assert found and all(registers(r * v) + registers(v) + registers(1) <= most for r, v in found)
    assert (6, 2) in found or bits < 256
    assert ((8, 4) in found) == (bits > 256)


def test_a_machine_with_long_registers_has_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_toolchain()
    for simd, tile in (("avx512", (8.0, 4.0)), ("avx2", (6.0, 2.0)), ("neon", (6.0, 2.0))):
        other = dataclasses.replace(found, simd=simd)
        monkeypatch.setattr(toolchain, "find_toolchain", lambda other=other: other)
        targets.unmeasured.cache_clear()
        t = targets.unmeasured()
        assert (t.parameter("tile_rows", 0), t.parameter("tile_vectors", 0)) == tile
        assert t.rate("exp", "f32") == GENERIC.rate("exp", "f32")
    targets.unmeasured.cache_clear()


def test_caches_are_read_as_the_system_tells_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    for n in range(8):  # four cores of two threads each
        write(f"cpu{n}/topology/thread_siblings_list", f"{n % 4},{n % 4 + 4}")
    rows = [("Data", "1", "48K", "0,4"), ("Instruction", "1", "32K", "0,4"), ("Unified", "2", "2M", "0,4"),
            ("Unified", "3", "30720K", "0-7")]  # fmt: skip
    for n, (kind, level, size, shared) in enumerate(rows):
        for name, value in (
            ("type", kind),
            ("level", level),
            ("size", size),
            ("shared_cpu_list", shared),
        ):
            write(f"cpu0/cache/index{n}/{name}", value)
    monkeypatch.setattr(machine, "_SYSTEM", tmp_path)
    assert machine.cores() == 4
    assert [(c.level, c.bytes, c.shared_by) for c in machine.caches()] == [
        (1, 48 << 10, 1), (2, 2 << 20, 1), (3, 30 << 20, 4)]  # fmt: skip
