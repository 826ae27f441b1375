"""`tcc.compile`, `tcc.parse`, `tcc.load`: what users call, with NumPy arrays and torch tensors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tcc
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.pipeline import PASSES

ADD = """\
cascade add_relu
ranks M, N
in  A: f32[M,N], B: f32[M,N]
out Z: f32[M,N]

Z[m,n] = max(A[m,n] + B[m,n], 0)
"""
TWO = """\
cascade two
in  A: f32[N]
out S: f32, D: f32[N]
S = A[n]
D[n] = 2 * A[n]
"""
TARGETS = ["numpy", "cpu"]


def pair(m: int = 3, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((m, n), np.float32), rng.standard_normal((m, n), np.float32)


def relu_of_sum(a: Any, b: Any) -> Any:
    return np.maximum(a + b, 0)


@pytest.fixture(scope="module", params=TARGETS)
def add(request: pytest.FixtureRequest) -> tcc.CompiledProgram:
    compiled: tcc.CompiledProgram = tcc.compile(ADD, target=request.param)
    return compiled


def code_of(call: Any) -> str:
    with pytest.raises(tcc.CompileError) as caught:
        call()
    d = caught.value.diagnostic
    assert d.helps, f"no help: {caught.value}"
    assert str(caught.value).startswith("error[T")
    return d.code


# ---- kinds of programs


def test_a_text_a_path_a_node_and_a_program_compile_to_the_same(tmp_path: Path) -> None:
    path = tmp_path / "add.tcc"
    path.write_text(ADD)
    a, b = pair()
    node = parse_cascade(ADD)
    assert isinstance(node, Cascade)
    for program in (ADD, path, str(path), node, tcc.parse(ADD), tcc.load(path)):
        np.testing.assert_array_equal(tcc.compile(program, target="numpy")(a, b), relu_of_sum(a, b))


def test_one_cascade_of_several_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "both.tcc"
    path.write_text(ADD + TWO)
    assert tcc.load(path, cascade="two").outputs == ("S", "D")
    with pytest.raises(tcc.CompileError, match="add_relu, two"):
        tcc.load(path)
    with pytest.raises(tcc.CompileError, match="did you mean `two`"):
        tcc.load(path, cascade="tow")


def test_what_is_no_program_is_named() -> None:
    assert code_of(lambda: tcc.compile(3)) == "T0145"
    assert code_of(lambda: tcc.load("nowhere.tcc")) == "T0132"
    assert code_of(lambda: tcc.load(__file__)) == "T0144"
    assert code_of(lambda: tcc.compile(ADD, target="cup")) == "T0213"
    assert code_of(lambda: tcc.compile(ADD, optoin=1)) == "T0218"
    assert code_of(lambda: tcc.compile(ADD, passes={"fuze": {}})) == "T0215"
    assert code_of(lambda: tcc.compile(ADD, passes={"fuse": {"ratoi": 1.0}})) == "T0216"
    assert code_of(lambda: tcc.compile(ADD, passes={"fuse": {"max_members": "1"}})) == "T0216"


def test_a_program_shows_its_text_at_each_level() -> None:
    program = tcc.parse(ADD)
    assert str(parse_cascade(program.ir())) == program.ir() == str(program)
    assert code_of(lambda: program.ir("mapping")) == "T0217"
    assert code_of(lambda: program.ir("casacde")) == "T0217"
    compiled = program.compile("cpu")
    assert "kernel" in compiled.ir("mapping") and compiled.ir("cascade").startswith("cascade")
    assert compiled.ir(after="input") == program.ir()
    assert code_of(lambda: compiled.ir(after="fuze")) == "T0215"
    assert "add_relu" in compiled.source
    assert compiled.target == "cpu"
    assert "add_relu" in repr(program)
    assert code_of(lambda: program.compile("numpy").ir("mapping")) == "T0217"


def test_the_target_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCC_TARGET", "numpy")
    assert tcc.compile(ADD).target == "numpy"
    monkeypatch.setenv("TCC_VERIFY_EACH", "yes")
    assert code_of(lambda: tcc.compile(ADD)) == "T0143"


def test_the_version_is_text_and_unknown_names_are_attribute_errors() -> None:
    assert tcc.__version__[0].isdigit()
    assert "Program" in dir(tcc)
    with pytest.raises(AttributeError):
        _ = tcc.compil  # type: ignore[attr-defined]


# ---- arrays in, arrays out


def test_arguments_go_by_place_or_by_name(add: tcc.CompiledProgram) -> None:
    a, b = pair()
    for got in (add(a, b), add(a, B=b), add(B=b, A=a)):
        np.testing.assert_array_equal(got, relu_of_sum(a, b))
    assert code_of(lambda: add(a)) == "T0127"
    assert code_of(lambda: add(a, b, a)) == "T0127"
    assert code_of(lambda: add(a, A=b)) == "T0127"
    assert code_of(lambda: add(a, b, C=b)) == "T0127"
    assert code_of(lambda: add(A=a, C=b)) == "T0127"
    assert code_of(lambda: add(a, b, M=3)) == "T0127"


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: x[:, ::-2],
        lambda x: x[1:, 1:4],
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: np.asfortranarray(x),
        lambda x: x[:1, :1],
        lambda x: x[:0],
        lambda x: x.astype(np.float64).astype(np.float32, order="F"),
    ],
)
def test_every_stride_is_taken_as_it_is(view: Any, add: tcc.CompiledProgram) -> None:
    a, b = pair()
    x, y = view(a), view(b)
    before = x.copy()
    got = add(x, y)
    np.testing.assert_array_equal(got, relu_of_sum(x, y))
    assert got.flags.c_contiguous and got.dtype == np.float32
    np.testing.assert_array_equal(x, before)


def test_strides_and_addresses_between_elements_are_copied(add: tcc.CompiledProgram) -> None:
    packed = np.zeros((3, 5), [("tag", "i1"), ("value", "f4")])
    packed["value"] = pair()[0]
    odd = np.frombuffer(b"x" + pair()[1].tobytes(), np.uint8)[1:].view(np.float32).reshape(3, 5)
    assert packed["value"].strides[1] == 5 and not odd.flags.aligned
    np.testing.assert_array_equal(add(packed["value"], odd), relu_of_sum(packed["value"], odd))


def test_read_only_arrays_and_shared_arrays_are_fine(add: tcc.CompiledProgram) -> None:
    a, _ = pair()
    a.flags.writeable = False
    np.testing.assert_array_equal(add(a, a), relu_of_sum(a, a))


def test_a_type_is_never_cast(add: tcc.CompiledProgram) -> None:
    a, b = pair()
    for wrong in (
        a.astype(np.float64),
        a.astype(">f4"),
        a.tolist(),
        None,
        1.0,
        "text",
        np.ma.masked_array(a),
        a > 0,
    ):
        assert code_of(lambda wrong=wrong: add(wrong, b)) == "T0142"


def test_shapes_are_checked(add: tcc.CompiledProgram) -> None:
    a, b = pair()
    assert code_of(lambda: add(a, b[:2])) == "T0125"
    assert code_of(lambda: add(a[0], b)) == "T0125"
    assert code_of(lambda: add(a, b, sizes={"M": 4})) == "T0125"
    assert code_of(lambda: add(a, b, sizes={"Q": 4})) == "T0126"
    assert code_of(lambda: add(a, b, sizes={"M": 3.0})) == "T0126"
    np.testing.assert_array_equal(add(a, b, sizes={"M": 3}), relu_of_sum(a, b))


@pytest.mark.parametrize("target", TARGETS)
def test_several_outputs_are_a_tuple_with_their_names(target: str) -> None:
    a = np.arange(4, dtype=np.float32)
    got = tcc.compile(TWO, target=target)(a)
    assert isinstance(got, tuple) and got._fields == ("S", "D")
    assert got.S.shape == () and got[0] == 6
    np.testing.assert_array_equal(got.D, 2 * a)


@pytest.mark.parametrize("target", TARGETS)
def test_a_rank_that_no_input_has_is_given_by_size(target: str) -> None:
    program = tcc.compile("ranks N\nout Z: i64[N]\nZ[n] = n * n", target=target)
    np.testing.assert_array_equal(program(sizes={"N": 4}), [0, 1, 4, 9])
    np.testing.assert_array_equal(program(sizes={"N": 3}), [0, 1, 4])
    assert program(sizes={"N": 0}).shape == (0,)
    assert code_of(lambda: program()) == "T0126"
    assert code_of(lambda: program(sizes={"N": -1})) == "T0110"
    assert code_of(lambda: program(sizes={"N": 2**61})) == "T0111"


@pytest.mark.parametrize("target", TARGETS)
def test_numbers_are_taken_for_tensors_without_ranks(target: str) -> None:
    program = tcc.compile("in A: f32[N], C: f32\nout Z: f32[N]\nZ[n] = A[n] * C", target=target)
    a = np.arange(3, dtype=np.float32)
    for c in (2, 2.0, np.float32(2), np.array(2, np.float32)):
        np.testing.assert_array_equal(program(a, c), 2 * a)
    assert code_of(lambda: program(a, np.float64(2))) == "T0142"
    assert code_of(lambda: program(a, True)) == "T0142"
    whole = tcc.compile("in C: i8\nout Z: i8\nZ = C", target="numpy")
    assert code_of(lambda: whole(1.5)) == "T0142"
    assert code_of(lambda: whole(300)) == "T0142"


@pytest.mark.parametrize("target", TARGETS)
def test_an_input_may_be_an_output(target: str) -> None:
    program = tcc.compile("in A: f32[N]\nout A: f32[N], Z: f32[N]\nZ[n] = A[n] + 1", target=target)
    a = np.arange(3, dtype=np.float32)
    got = program(a)
    np.testing.assert_array_equal(got.A, a)
    np.testing.assert_array_equal(got.Z, a + 1)
    assert not np.shares_memory(got.A, a)


def test_an_empty_rank_gives_empty_outputs_and_identities(add: tcc.CompiledProgram) -> None:
    a, b = pair(0, 5)
    assert add(a, b).shape == (0, 5)
    a, b = pair(3, 0)
    assert add(a, b).shape == (3, 0)
    empty = np.zeros(0, np.float32)
    assert tcc.compile(TWO, target=add.target)(empty).S == 0


def test_one_program_runs_in_many_threads(add: tcc.CompiledProgram) -> None:
    wrong: list[str] = []

    def work(n: int) -> None:
        a, b = pair(n, n)
        for _ in range(20):
            if not np.array_equal(add(a, b), relu_of_sum(a, b)):
                wrong.append(f"{n}")

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 7, 16, 33)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_interpret_returns_what_a_call_returns() -> None:
    a, b = pair()
    program = tcc.parse(ADD)
    np.testing.assert_array_equal(program.interpret(a, b), relu_of_sum(a, b))
    assert code_of(lambda: program.interpret(a.astype(np.float64), b)) == "T0142"
    mapping = tcc.parse(program.compile("cpu").ir("mapping"))
    np.testing.assert_array_equal(mapping.interpret(A=a, B=b), relu_of_sum(a, b))


def test_a_mapping_text_compiles_for_its_own_target_alone() -> None:
    a, b = pair()
    mapping = tcc.parse(ADD).compile("cpu").ir("mapping")
    compiled = tcc.compile(mapping)
    np.testing.assert_array_equal(compiled(a, b), relu_of_sum(a, b))
    assert code_of(lambda: tcc.compile(mapping, target="numpy")) == "T0219"
    assert code_of(lambda: compiled.ir("cascade")) == "T0217"


def test_the_explanation_is_text_and_json() -> None:
    report = tcc.compile(TWO, target="cpu").explain()
    lines = str(report).split("\n")
    assert lines[0].startswith("two for cpu: 2 definitions in")
    found = report.json()
    computed = [name for k in found["kernels"] for name in k["computes"]]
    assert found["program"] == "two" and {"S", "D"} <= set(computed)
    assert [p["name"] for p in found["ran"]] == list(PASSES)
    assert "kernels" in tcc.compile(TWO, target="numpy").explain().json()


# ---- torch


def test_torch_tensors_give_torch_tensors(add: tcc.CompiledProgram) -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.from_numpy(x) for x in pair())
    expected = torch.relu(a + b)
    for got in (add(a, b), add(a, b.numpy()), add(A=a.T.contiguous().T, B=b)):
        assert isinstance(got, torch.Tensor) and got.is_contiguous()
        assert torch.equal(got, expected)
    assert isinstance(add(a.numpy(), b.numpy()), np.ndarray)
    for view in (lambda x: x.T, lambda x: x[:, 1:4], lambda x: x[:1].expand(3, 5), lambda x: x[:0]):
        assert torch.equal(add(view(a), view(b)), torch.relu(view(a) + view(b)))


def test_torch_tensors_that_hide_something_are_refused_or_resolved(
    add: tcc.CompiledProgram,
) -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.from_numpy(x) for x in pair())
    needs = a.clone().requires_grad_()
    assert code_of(lambda: add(needs, b)) == "T0142"
    with torch.no_grad():
        assert torch.equal(add(needs, b), torch.relu(a + b))
        assert torch.equal(add(torch.nn.Parameter(a), b), torch.relu(a + b))
    assert code_of(lambda: add(a.double(), b)) == "T0142"
    assert code_of(lambda: add(a.bfloat16(), b)) == "T0142"
    assert code_of(lambda: add(a.to("meta"), b)) == "T0142"
    assert code_of(lambda: add(a.to_sparse(), b)) == "T0142"
    negated = torch.complex(a, a).conj().imag
    assert negated.is_neg()
    assert torch.equal(add(negated, b), torch.relu(-a + b))
    odd = torch.frombuffer(bytearray(61), dtype=torch.uint8)[1:].view(torch.uint8)
    odd = torch.from_numpy(np.asarray(odd).view(np.float32).reshape(3, 5))
    assert torch.equal(add(odd, b), torch.relu(odd + b))


def test_functions_and_modules_compile_and_keep_their_signature() -> None:
    torch = pytest.importorskip("torch")

    @tcc.compile(target="numpy")
    def scaled(x: Any, *, by: float = 2.0) -> Any:
        return torch.relu(x) * by

    x = torch.randn(3, 4)
    torch.testing.assert_close(scaled(x), torch.relu(x) * 2)
    torch.testing.assert_close(scaled(x, by=3.0), torch.relu(x) * 3)
    module = torch.nn.Linear(4, 2).requires_grad_(False)
    torch.testing.assert_close(tcc.compile(module, target="cpu")(x), module(x))


def test_constant_inputs_may_still_change() -> None:
    program = tcc.compile(
        "ranks M, K, N\nin A: f32[M,K], W: f32[K,N] constant\nout Z: f32[M,N]\n"
        "Z[m,n] = A[m,k] * W[k,n]",
        target="cpu",
    )
    rng = np.random.default_rng(1)
    a = rng.integers(-3, 3, (5, 7)).astype(np.float32)
    w = rng.integers(-3, 3, (7, 20)).astype(np.float32)
    np.testing.assert_array_equal(program(a, w), a @ w)
    w += 1
    np.testing.assert_array_equal(program(a, w), a @ w)
    before, writable = a @ w, w[:]
    w.flags.writeable = False  # from now on nobody is expected to write it
    np.testing.assert_array_equal(program(a, w), before)
    writable += 1
    np.testing.assert_array_equal(program(a, w), before)
    np.testing.assert_array_equal(program(a, writable), a @ w)
    torch = pytest.importorskip("torch")
    x, weights = torch.from_numpy(a), torch.from_numpy(w.copy())
    for _ in range(3):
        assert torch.equal(program(x, weights), x @ weights)
        weights += 1
        assert torch.equal(program(x, weights.detach()), x @ weights)
        weights = weights.clone()


def test_the_report_on_a_function_lists_kernels_calls_and_fallbacks() -> None:
    torch = pytest.importorskip("torch")
    from tcc.explain import explain_graphs

    def function(x: Any) -> Any:
        values, _ = torch.sort(torch.relu(x) * 2)
        return values + 1

    compiled = tcc.compile(function, target="numpy")
    compiled(torch.randn(3, 4))
    (graph,) = compiled.records.graphs
    found = explain_graphs("function", [graph])
    assert [e.function for e in found.externs] == ["aten.sort.default"]
    assert "torch.sort(torch.relu(x) * 2)" in found.externs[0].place
    assert len(found.kernels) == 2 and "left to PyTorch: 1 call" in str(found)
    graph.captured, graph.reason, graph.programs = None, "it is too long", []
    assert "runs eagerly: " in str(explain_graphs("function", [graph]))
    assert explain_graphs("function", [graph]).json()["eager"][0]["reason"] == "it is too long"


# ---- results in given memory


def test_results_are_written_into_given_memory() -> None:
    program = tcc.compile("in A: f32[N]\nout Y: f32[N], S: f32\nY[n] = A[n] * 2\nS = A[n]")
    a = np.arange(9, dtype=np.float32)
    y, s = np.empty_like(a), np.empty((), np.float32)
    got = program(a, out=(y, s))
    assert got[0] is y and got[1] is s
    np.testing.assert_array_equal(y, 2 * a)
    assert s == a.sum()
    y[:] = 0
    program(a, out={"S": s, "Y": y})
    np.testing.assert_array_equal(y, 2 * a)


@pytest.mark.parametrize(
    "bad, why",
    [
        (lambda a: a, "shares memory"),
        (lambda a: np.empty(8, np.float32), "the result"),
        (lambda a: np.empty(9), "the result"),
        (lambda a: np.empty(18, np.float32)[::2], "strides"),
        (lambda a: [np.empty_like(a)] * 2, "2 arrays"),
        (lambda a: {"Z": a}, "names"),
        (lambda a: "text", "`str`"),
    ],
)
def test_memory_that_does_not_fit_is_refused(bad: Any, why: str) -> None:
    program = tcc.compile("in A: f32[N]\nout Y: f32[N]\nY[n] = A[n] * 2")
    a = np.ones(9, np.float32)
    with pytest.raises(CompileError, match=why) as caught:
        program(a, out=bad(a))
    assert caught.value.diagnostic.code == "T0149"
    np.testing.assert_array_equal(a, 1)


def test_ranks_of_one_have_a_kernel_of_their_own() -> None:
    """What a rank of size 1 leaves out: a vector times a matrix is no matrix product. Once per set of such ranks."""
    f = tcc.compile(
        "in A: f32[M,K], B: f32[K,N]\nout C: f32[M,N]\nC[m,n] = A[m,k] * B[k,n]", target="cpu"
    )
    rng = np.random.default_rng(0)
    for m, n, kernels in ((3, 5, 0), (1, 5, 1), (1, 6, 1), (4, 7, 1), (1, 1, 2), (3, 1, 3)):
        a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, 40), (40, n)))
        np.testing.assert_allclose(f(a, b), a @ b, rtol=1e-5, atol=1e-5)
        assert len(f._narrow) == kernels


def test_large_constants_that_are_read_in_place_are_gathered_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A vector times a constant matrix streams it: its pages are made huge when it is first seen."""
    from tcc.backends.c import launch

    told: list[int] = []
    monkeypatch.setattr(
        launch, "ask_for_huge_pages", lambda at, size, now=False: told.append(size * now)
    )
    f = tcc.compile(
        "ranks M=1, N=1024, K=1100\nin A: f32[M,K], B: f32[N,K] constant\nout C: f32[M,N]\n"
        "C[m,n] = A[m,k] * B[n,k]",
        target="cpu",
    )
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((1, 1100), (1024, 1100)))
    b.setflags(write=False)
    for _ in range(3):
        np.testing.assert_allclose(f(a, b), a @ b.T, rtol=1e-4, atol=1e-4)
    assert told == [b.nbytes]
