"""The pipeline proves each pass, dumps what can be resumed, and leaves a reproducer when a pass
fails."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tcc
from tcc import compare, pipeline, samples, targets
from tcc.build import lower
from tcc.dump import Header, read_header, write
from tcc.files import units_of
from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import Source
from tcc.ir.expr import Access, Const, call
from tcc.ir.mapping import Mapping
from tcc.ir.mapping_text import parse_mapping
from tcc.ir.target import Target
from tcc.pipeline import Check, Pass

SOFTMAX = """\
cascade rows
ranks M, N
in  X: f32[M,N]
out Y: f32[M,N]

G[m]   = X[m,n] :: max(n)
E[m,n] = exp(X[m,n] - G[m])
S[m]   = E[m,n]
Y[m,n] = E[m,n] / S[m] where n <= m
"""
NUMPY = targets.find("numpy")


def changed(c: Cascade, edit: Any) -> Cascade:
    """The program with its last definition edited."""
    *rest, last = c.definitions
    return c.with_definitions((*rest, edit(last)))


def same(c: Cascade, target: Target) -> Cascade:
    return c


def renamed(c: Cascade, target: Target) -> Cascade:
    """Equal in meaning, not in identity."""
    return changed(c, lambda d: replace(d, body=call("mul", d.body, Const(1))))


def wrong(c: Cascade, target: Target) -> Cascade:
    return changed(c, lambda d: replace(d, body=call("mul", d.body, Const(1.01))))


def invalid(c: Cascade, target: Target) -> Cascade:
    *rest, last = c.definitions
    assert isinstance(last, Einsum)
    return replace(c, definitions=(*rest, replace(last, body=Access("Nowhere", last.indices))))


def broken(c: Cascade, target: Target) -> Cascade:
    raise ZeroDivisionError("oops")


def ran(*functions: Any, interpreters: bool = False, text: str = SOFTMAX) -> pipeline.Result:
    steps = [Pass(f.__name__, f) for f in functions]
    return pipeline.run(parse_cascade(text), NUMPY, steps, check=Check(interpreters))


def failure(*functions: Any, interpreters: bool = False) -> tuple[str, str, Path]:
    """Code, text and reproducer of the error."""
    with pytest.raises(tcc.CompileError) as caught:
        ran(*functions, interpreters=interpreters)
    text = str(caught.value)
    path = re.search(r"`python -m tcc build.* (\S+)`", text)
    assert path is not None, text
    return caught.value.diagnostic.code, text, Path(path[1])


@pytest.fixture(autouse=True)
def bug_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCC_BUG_DIR", str(tmp_path / "bugs"))
    return tmp_path / "bugs"


# ---- the law of a run


def test_a_pass_that_returns_its_input_is_unchanged() -> None:
    stages = ran(same, renamed, same).stages
    assert [(s.name, s.changed) for s in stages] == [
        ("input", True),
        ("same", False),
        ("renamed", True),
        ("same", False),
    ]
    assert stages[1].program is stages[0].program


def test_an_invalid_result_names_the_pass_and_keeps_the_program_before_it() -> None:
    code, text, path = failure(renamed, invalid, same)
    assert code == "T0903" and "pass `invalid`" in text and "Nowhere" in text
    kept = path.read_text()
    header = read_header(Source("kept", kept))
    assert header == Header("cascade", "renamed", ("invalid", "same"), "numpy")
    assert parse_cascade(kept).definitions


def test_a_pass_that_breaks_down_is_an_internal_error_with_its_cause() -> None:
    code, text, path = failure(broken)
    assert code == "T0902" and "`broken`" in text and "ZeroDivisionError: oops" in text
    assert path.is_file()


def test_the_interpreters_find_the_pass_that_changed_the_meaning() -> None:
    code, text, _ = failure(renamed, wrong, same, interpreters=True)
    assert code == "T0904" and "`wrong` changed the meaning" in text and "`Y[" in text
    assert "cascade rows" in text, "the program before the pass is shown"
    assert ran(renamed, wrong, same).stages[-1].name == "same", "only the interpreters see it"


def test_a_reproducer_that_cannot_be_kept_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCC_BUG_DIR", "/dev/null/bugs")
    with pytest.raises(tcc.CompileError, match="oops"):
        ran(broken)


def test_an_error_of_the_user_passes_through() -> None:
    def refuses(c: Cascade, target: Target) -> Cascade:
        raise tcc.CompileError("T0299", "this program is too long", helps="shorten it")

    with pytest.raises(tcc.CompileError) as caught:
        ran(refuses)
    assert caught.value.diagnostic.code == "T0299"


@pytest.mark.parametrize("target", ["numpy", "cpu"])
def test_every_pass_keeps_the_meaning(target: str) -> None:
    result = lower(parse_cascade(SOFTMAX), target, verify_each=True)
    assert [s.name for s in result.stages[1:]] == list(pipeline.names_for(result.target))
    assert isinstance(result.program, Mapping if target == "cpu" else Cascade)


# ---- dumps


def test_a_dump_resumes_where_it_was_taken(tmp_path: Path) -> None:
    whole = lower(parse_cascade(SOFTMAX), "cpu", dump=str(tmp_path))
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == [
        f"rows.{n:02}-{name}.tcc" for n, name in enumerate(["input", *pipeline.PASSES])
    ]
    for n, file in enumerate(files):
        program = tcc.load(file)
        again = lower(program.node, None, program._header)
        assert [s.name for s in again.stages[1:]] == list(pipeline.PASSES[n:])
        assert str(again.program) == str(whole.program)


def test_the_header_of_a_dump_reads_back() -> None:
    program = parse_cascade(SOFTMAX)
    for header in (Header("cascade", "fuse", ("map",), "cpu"), Header("cascade", "map", (), "x")):
        text = write(program, header)
        assert read_header(Source("x", text)) == header
        (unit,) = units_of(Source("x", text))
        assert unit.header == header and str(unit.program) == str(program)
    assert read_header(Source("x", str(program))) is None


@pytest.mark.parametrize(
    "line", ["# tcc: after=fuse", "# tcc: level=kernel", "# tcc: leve=cascade"]
)
def test_a_damaged_header_is_an_error_at_its_place(line: str) -> None:
    with pytest.raises(tcc.CompileError) as caught:
        units_of(Source("x.tcc", f"{line}\n{SOFTMAX}"))
    assert caught.value.diagnostic.code == "T0214" and caught.value.diagnostic.span is not None


# ---- what agreement means


def test_agreement_counts_what_lies_beyond_the_bound() -> None:
    want = np.array([1.0, 2.0, np.nan, np.inf], np.float32)
    bound = np.full(4, 0.1)
    assert samples.agreement(want, want, bound).holds
    off = samples.agreement(want + np.float32([0, 0.2, 0, 0]), want, bound)
    assert off.outside == 1 and off.first_outside == (1,)
    assert off.max_abs_error == pytest.approx(0.2, rel=1e-6)
    assert off.max_rel_error == pytest.approx(0.1, rel=1e-6)
    for got in ([1, 2, 3, np.inf], [1, np.nan, np.nan, np.inf], [1, 2, np.nan, -np.inf]):
        assert not samples.agreement(np.float32(got), want, bound).holds
    assert samples.agreement(want * 5, want, np.full(4, np.inf)).holds
    assert not samples.agreement(np.int64([1, 2]), np.int64([1, 3]), None).holds
    assert not samples.agreement(want[:3], want, bound).holds


def test_random_inputs_have_the_declared_types_and_index_inside() -> None:
    c = parse_cascade(
        "ranks N, M, V=5\nin I: i32[N], A: f16[V,M], B: bool[N], C: u8[N]\nout Z: f16[N,M]\n"
        "Z[n,m] = select(B[n] and C[n] > 0, A[I[n],m], 0)"
    )
    sizes, guessed = samples.all_sizes(c, {"N": 1000}, 3)
    assert sizes == {"N": 1000, "M": 3} and guessed == ["M"]
    inputs = samples.random_inputs(c, sizes, np.random.default_rng(0))
    assert {n: (a.dtype.name, a.shape) for n, a in inputs.items()} == {
        "I": ("int32", (1000,)), "A": ("float16", (5, 3)), "B": ("bool", (1000,)),
        "C": ("uint8", (1000,)),
    }  # fmt: skip
    assert inputs["I"].min() == 0 and inputs["I"].max() == 4
    again = samples.random_inputs(c, sizes, np.random.default_rng(0))
    assert all(np.array_equal(inputs[n], again[n]) for n in inputs)


def test_sizes_are_checked_before_anything_is_allocated() -> None:
    c = parse_cascade(SOFTMAX)
    for given, code in (
        ({"M": 2**40, "N": 2**40}, "T0111"),
        ({"M": -1}, "T0110"),
        ({"Q": 1}, "T0126"),
    ):
        with pytest.raises(tcc.CompileError) as caught:
            samples.all_sizes(c, given, 4)
        assert caught.value.diagnostic.code == code


def test_two_mappings_are_compared_too() -> None:
    mapping = lower(parse_cascade(SOFTMAX), "cpu").mapping
    assert mapping is not None
    assert compare.same_meaning(mapping, mapping) == ""
    text = str(mapping).replace("exp(", "exp2(", 1)
    assert "before it was" in compare.same_meaning(mapping, parse_mapping(text))


def test_every_target_that_comes_with_tcc_can_be_read() -> None:
    assert {"cpu", "numpy"} <= set(targets.names())
    for name in targets.names():
        assert targets.find(name).name == name


def test_the_command_of_a_reproducer_has_the_options_of_the_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tcc.passes.fuse

    def fuse(c: Cascade, target: Target, *, ratio: float = 4.0, max_members: int = 16) -> Cascade:
        return invalid(c, target)

    monkeypatch.setattr(tcc.passes.fuse, "fuse", fuse)
    with pytest.raises(tcc.CompileError, match=r"-p 'fuse\{max-members=2\}' --target numpy "):
        tcc.compile(SOFTMAX, target="numpy", passes={"fuse": {"max_members": 2}})


def test_a_backend_that_breaks_down_leaves_a_reproducer(monkeypatch: pytest.MonkeyPatch) -> None:
    import tcc.backends.c as backend

    def refuse(*_: Any, **__: Any) -> Any:
        raise IndexError("list index out of range")

    monkeypatch.setattr(backend.CProgram, "bind", refuse)
    monkeypatch.setattr(backend, "emit", refuse)
    program = tcc.compile(SOFTMAX, target="cpu")
    for broken_call in (lambda: program.source, lambda: program(np.ones((2, 2), np.float32))):
        with pytest.raises(tcc.CompileError, match=r"T0905.*IndexError") as caught:
            broken_call()
        path = re.search(r"`python -m tcc build.* (\S+)`", str(caught.value))
        assert path is not None
        assert tcc.load(path[1]).ir("mapping") == program.ir("mapping")
