"""The command line: what goes to stdout, what to stderr, exit codes, and never a Python
traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tcc
from tcc import commands, pipeline
from tcc.cli import main

ADD = """\
cascade add
ranks M, N
in  A: f32[M,N], B: f32[N]
out Z: f32[M,N]

T[m,n] = A[m,n] + B[n]
Z[m,n] = max(T[m,n], 0)
"""


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TCC_BUG_DIR", str(tmp_path / "bugs"))
    (tmp_path / "add.tcc").write_text(ADD)
    return "add.tcc"


class Shell:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = main(list(words))
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err, err
        return code, out, err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


# ---- run


@pytest.mark.parametrize("target", ["numpy", "cpu"])
def test_run_checks_against_the_interpreter(target: str, add: str, shell: Shell) -> None:
    code, out, err = shell("run", add, "--size", "M=3,N=5", "--check", "--json", "--target", target)
    found = json.loads(out)
    assert code == 0 and err == ""
    assert found["sizes"] == {"M": 3, "N": 5} and found["ok"]
    assert found["max_abs_error"] < 1e-6 and found["max_rel_error"] < 1e-5 and found["seconds"] > 0
    code, out, err = shell(
        "run", add, "--size", "M=3", "--size", "N=5", "--check", "--target", target
    )
    assert code == 0 and "check: ok" in out


def test_run_says_which_sizes_it_chose(add: str, shell: Shell) -> None:
    code, out, err = shell("run", add, "--size", "N=2", "--target", "numpy", "--json")
    assert code == 0 and err == "note: no size given for M: 64 each\n"
    assert json.loads(out)["sizes"] == {"M": 64, "N": 2}


def test_the_default_size_shrinks_where_a_definition_would_have_too_many_points(
    add: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "MOST_POINTS", 2000)
    Path("deep.tcc").write_text("in A: f32[I,J,K,L,M]\nout Z: f32\nZ = A[i,j,k,l,m]\n")
    code, _, err = shell("run", "deep.tcc", "--check")
    assert code == 0 and err == "note: no size given for I, J, K, L, M: 4 each\n"


def test_run_exits_with_1_beyond_the_bound(
    add: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tcc.backends.numpy as backend

    run = backend.Interpreted.run

    def off(self: backend.Interpreted, *arguments: object) -> object:
        return {name: a + 1 for name, a in run(self, *arguments).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(backend.Interpreted, "run", off)
    code, out, _ = shell("run", add, "--target", "numpy", "--size", "M=2,N=2", "--check")
    assert code == 1 and "WRONG: 4 elements" in out


def test_run_takes_several_cascades_and_chooses_one(add: str, shell: Shell) -> None:
    Path("two.tcc").write_text(ADD + ADD.replace("cascade add", "cascade other"))
    code, out, _ = shell("run", "two.tcc", "--target", "numpy", "--size", "M=2,N=2", "--json")
    assert code == 0 and [r["program"] for r in json.loads(out)] == ["add", "other"]
    words = ("run", "two.tcc", "--target", "numpy", "--size", "M=2,N=2", "--json")
    _, out, _ = shell(*words, "--cascade", "other")
    assert json.loads(out)["program"] == "other"


# ---- dump, build, explain


def test_what_dump_prints_after_a_pass_builds_to_the_same(add: str, shell: Shell) -> None:
    _, whole, _ = shell("build", add, "--emit", "mapping")
    for after in ("input", *pipeline.PASSES):
        code, text, _ = shell("dump", add, "--after", after)
        assert code == 0 and text.startswith("# tcc: level=")
        Path("resumed.tcc").write_text(text)
        assert shell("build", "resumed.tcc", "--emit", "mapping")[1] == whole
        Path("headless.tcc").write_text(text.split("\n", 1)[1])
        assert shell("build", "headless.tcc", "--from", after, "--emit", "mapping")[1] == whole


def test_dump_shows_each_pass_and_which_changed_nothing(add: str, shell: Shell) -> None:
    _, out, _ = shell("dump", add)
    heads = [line for line in out.split("\n") if line.startswith("# tcc:")]
    assert [h.split("after=")[1].split()[0] for h in heads] == ["input", *pipeline.PASSES]
    assert "# (unchanged)" in out


def test_a_path_as_first_word_builds(add: str, shell: Shell) -> None:
    code, out, err = shell(add)
    assert code == 0 and err == "" and "void " in out
    assert shell("build", add, "--emit", "c")[1] == out


def test_build_writes_files_and_says_so_on_stderr(add: str, shell: Shell) -> None:
    code, out, err = shell("build", add, "-o", "out", "--emit", "cascade,mapping,c,asm")
    assert code == 0 and out == ""
    names = sorted(p.name for p in Path("out").iterdir())
    assert names == ["add.c", "add.cascade.tcc", "add.mapping.tcc", "add.s"]
    assert err.count("wrote") == 4
    assert shell("build", "out/add.cascade.tcc", "--emit", "c")[1] == Path("out/add.c").read_text()
    code, _, err = shell("build", add, "-o", add)
    assert code == 2 and "cannot write" in err


def test_emit_chooses_the_target(add: str, shell: Shell) -> None:
    assert "@triton.jit" in shell("build", add, "--emit", "triton")[1]
    code, out, _ = shell("map", add, "--size", "M=8,N=8", "--json")
    assert code == 0 and json.loads(out)["sizes"] == {"M": 8, "N": 8}
    code, _, err = shell("build", add, "--emit", "c", "--target", "numpy")
    assert code == 1 and "--target cpu" in err
    code, out, _ = shell("map", add, "--size", "M=8,N=8", "--target", "cpu", "--json")
    assert code == 0 and json.loads(out)["kernels"][0]["accesses"]
    code, _, err = shell("map", add, "--target", "numpy")
    assert code == 2 and "have no mapping" in err


def test_explain_is_text_or_json(add: str, shell: Shell) -> None:
    code, out, _ = shell("explain", add)
    assert code == 0 and out.startswith("add for cpu: ")
    assert json.loads(shell("explain", add, "--json")[1])["program"] == "add"
    assert "predicted" not in out
    sized = shell("explain", add, "--size", "M=64,N=64")[1]
    assert "predicted on cpu with M=64, N=64: " in sized and "at least" in sized
    assert json.loads(shell("explain", add, "--size", "M=64,N=64", "--json")[1])["cost"]["seconds"]


def test_explain_counts_passes_and_says_what_forces_them(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.tcc").write_text(
        "in X: f32[M, N]\nout Y: f32[M, N]\n"
        "Max[m] = X[m, n] :: max(n)\nScale[m] = 1.0 / Max[m]\nY[m, n] = X[m, n] * Scale[m]\n"
    )
    code, out, _ = shell("explain", "rows.tcc", "--json")
    found = json.loads(out)
    assert code == 0 and [p["name"] for p in found["ran"]] == list(pipeline.PASSES)
    assert found["passes"] == {"M": 1, "N": 2} and found["tensors"] == {"X": {"M": 1, "N": 2}}
    (barrier,) = found["barriers"]
    assert (barrier["rank"], barrier["from"], barrier["to"]) == ("N", "Max", "Y")
    assert barrier["through"] == ["Scale"] and "`Max`, through `Scale`, " in barrier["why"]
    assert barrier["place"] == "rows.tcc:5: Y[m, n] = X[m, n] * Scale[m]"
    lines = shell("explain", "rows.tcc")[1].split("\n")
    assert any(line.startswith("ran: unscale") for line in lines)
    at = next(n for n, line in enumerate(lines) if line.startswith("passes over N: 2"))
    assert "Max walks all of N" in lines[at + 1] and "rows.tcc:3: Max[m] = " in lines[at + 1]
    assert (
        "2  Y needs all of Max (through Scale)" in lines[at + 2] and "rows.tcc:5" in lines[at + 2]
    )
    assert lines[at + 3] == "one pass over M"


def test_explain_of_a_mapping_counts_no_passes(add: str, shell: Shell) -> None:
    Path("mapped.tcc").write_text(shell("dump", add, "--after", "map")[1])
    assert json.loads(shell("explain", "mapped.tcc", "--json")[1])["passes"] == {}


def test_explain_code_prints_the_section_about_it(shell: Shell) -> None:
    code, out, _ = shell("explain", "--code", "T0107")
    assert code == 0 and out.startswith("T0107: ") and "## " not in out


def test_options_of_passes_reach_them(add: str, shell: Shell) -> None:
    code, _, _ = shell("explain", add, "-p", "fuse{max-members=1}", "-p", "simplify{}")
    assert code == 0
    for words in ("fuse", "fuse{max}", "fuse{maximum=2}", "fuzz{a=1}", "fuse{max-members=x}"):
        code, _, err = shell("explain", add, "-p", words)
        assert code == 2 and "help:" in err


def test_time_and_dumps_of_every_pass(add: str, shell: Shell) -> None:
    code, out, err = shell("explain", add, "--time", "--dump-dir", "dumps")
    assert code == 0 and out.startswith("add for cpu")
    timed = [line.split()[1] for line in err.strip().split("\n")]
    assert timed == list(pipeline.PASSES)
    assert len(list(Path("dumps").iterdir())) == 1 + len(timed)


def test_verify_each_runs_the_interpreters(add: str, shell: Shell) -> None:
    assert shell("build", add, "--verify-each", "--emit", "mapping")[0] == 0


# ---- target, doctor, cache, version


def test_the_commands_without_program(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = shell("target", "list")
    assert code == 0 and "numpy" in out and "cpu" in out
    assert "kind: cpu" in shell("target", "show", "cpu")[1]
    assert shell("target", "show")[0] == shell("target", "show", "cup")[0] == 2
    assert shell("--version")[1] == f"tcc {tcc.__version__}\n"
    assert "COMMAND" in shell()[1]
    monkeypatch.setenv("TCC_CACHE_DIR", str(tmp_path / "cache"))
    assert str(tmp_path) in shell("cache", "info")[1]
    assert "deleted" in shell("cache", "clear")[2]


def test_doctor_shows_every_variable_and_its_origin(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tcc.options import VARIABLES

    monkeypatch.setenv("TCC_TARGET", "numpy")
    monkeypatch.setenv("TCC_TARGTE", "x")
    code, out, _ = shell("doctor", "--json")
    rows = json.loads(out)["variables"]
    assert code == 0 and len(VARIABLES) <= 15
    assert rows["TCC_TARGET"].startswith("numpy  [environment]")
    assert "[default]" in rows["TCC_CC"]
    assert "did you mean `TCC_TARGET`" in rows["TCC_TARGTE"]
    assert "numpy" in shell("doctor")[1]


# ---- bad input


BAD = [
    (["biuld", "x"], 2, "did you mean `build`"),
    (["run"], 2, "required: file"),
    (["run", "nowhere.tcc"], 2, "there is no file"),
    (["run", "ad.tcc"], 2, "did you mean `add.tcc`"),
    (["run", "."], 2, "is a folder"),
    (["run", "bytes.tcc"], 2, "not UTF-8"),
    (["run", "script.py"], 1, "is Python"),
    (["run", "add.tcc", "--size", "M"], 2, "is no size"),
    (["run", "add.tcc", "--size", "M=x"], 2, "is no size"),
    (["run", "add.tcc", "--size", "M=1,M=2"], 2, "two sizes"),
    (["run", "add.tcc", "--size", "Q=1"], 1, "no rank `Q`"),
    (["run", "add.tcc", "--size", "M=-1"], 1, "negative size"),
    (["run", "add.tcc", "--size", f"M={10**18},N={10**18}"], 1, "2^63"),
    (["run", "add.tcc", "--size", f"M={10**9},N={10**6}"], 1, "choose smaller sizes"),
    (["run", "add.tcc", "--threads", "0"], 2, "at least one thread"),
    (["run", "add.tcc", "--target", "cup"], 2, "did you mean `cpu`"),
    (["run", "add.tcc", "--seed", "x"], 2, "invalid int value"),
    (["dump", "add.tcc", "--after", "fuze"], 2, "did you mean `fuse`"),
    (["dump", "add.tcc", "--after", "map", "--target", "numpy"], 2, "does not run"),
    (["build", "add.tcc", "--from", "simplfy"], 2, "did you mean `simplify`"),
    (["build", "add.tcc", "--from", "map"], 2, "is a cascade"),
    (["build", "add.tcc", "--emit", "cuda"], 2, "unknown product"),
    (["build", "add.tcc", "--cascade", "sub"], 1, "holds no cascade `sub`"),
    (["build", "wrong.tcc"], 1, "did you mean `A`"),
    (["build", "empty.tcc"], 1, "holds no cascade"),
    (["explain", "T0", "--code"], 2, "no code of an error"),
    (["explain", "--code", "T9876"], 2, "no page about"),
    (["--color", "blue", "doctor"], 2, "invalid choice"),
]


@pytest.mark.parametrize("words,code,text", BAD, ids=[" ".join(w)[:40] for w, _, _ in BAD])
def test_bad_input_has_an_exit_code_and_a_help_line(
    words: list[str], code: int, text: str, add: str, shell: Shell
) -> None:
    Path("bytes.tcc").write_bytes(b"\xff\xfe\x00cascade")
    Path("script.py").write_text("x = 1\n")
    Path("wrong.tcc").write_text(ADD.replace("= A[m,n]", "= AA[m,n]"))
    Path("empty.tcc").write_text("")
    got, out, err = shell(*words)
    assert (got, out) == (code, ""), err
    assert text in err and "help:" in err


def test_errors_come_as_lines_or_json_or_in_colour(
    add: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("wrong.tcc").write_text(ADD.replace("= A[m,n]", "= AA[m,n]"))
    _, _, err = shell("build", "wrong.tcc", "--message-format=short")
    assert err.startswith("wrong.tcc:6:10: error[T0103]: ") and err.count("\n") == 1
    _, _, err = shell("--message-format", "json", "build", "wrong.tcc")
    assert json.loads(err)["span"]["line"] == 6
    assert "\x1b[" in shell("build", "wrong.tcc", "--color=always")[2]
    assert "\x1b[" not in shell("build", "wrong.tcc")[2]


def test_what_breaks_down_inside_exits_with_70_and_can_be_repeated(
    add: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tcc.passes.fuse

    def broken(c: object, target: object) -> object:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(tcc.passes.fuse, "fuse", broken)
    code, _, err = shell("build", add)
    assert code == 70 and "ZeroDivisionError: oops" in err
    command = err.split("`python -m tcc ")[1].split("`")[0]
    again, _, err = shell(*command.split())
    assert again == 70 and "ZeroDivisionError: oops" in err
    monkeypatch.setattr(commands, "_units", broken)
    code, _, err = shell("build", add)
    assert code == 70 and "T0900" in err and "python -m tcc build add.tcc" in err


def test_a_missing_compiler_exits_with_3(
    add: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCC_CC", "/nonexistent")
    code, out, err = shell("run", add, "--size", "M=2,N=2")
    assert code == 3 and out == "" and "/nonexistent" in err and "help:" in err
    assert shell("doctor")[0] == 3


def test_ctrl_c_says_so_and_exits_with_130(
    add: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(commands, "_units", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        assert shell("run", add) == (130, "", "interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)


# ---- as a process


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tcc", *words]


def test_a_closed_pipe_is_quiet(add: str) -> None:
    Path("long.tcc").write_text(ADD.replace("cascade add", "cascade long") + "\n# x" * 50)
    process = subprocess.Popen(
        command("dump", "long.tcc"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_a_read_only_cache_only_warns(add: str, tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("in the way")
    environment = {**os.environ, "TCC_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        command("run", add, "--size", "M=2,N=2", "--check", "--threads", "1"),
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "check: ok" in done.stdout, done.stderr
    assert "cannot write to the cache folder" in done.stderr and "Traceback" not in done.stderr
