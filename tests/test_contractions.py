"""Convolutions and products of few rows on CPUs: right at every kind of edge, for every choice of tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tcc
from tcc.backends.c.emit import emit
from tcc.passes._cpu_tiles import collisions, register_tile


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


GRIDS = [
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 2, "dilation": 2},
    {"padding": (2, 0), "stride": (1, 3)},
    {"padding": 1, "groups": 2},
    {"padding": 1, "groups": 4, "stride": 2},  # depth-wise
    {},
]


@pytest.mark.parametrize("target", ["cpu", "cpu-avx512"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_convolutions_of_every_kind_are_right(grid: dict[str, int], target: str) -> None:
    torch.manual_seed(0)
    outputs = 8 if grid.get("groups", 1) != 4 else 4
    layer = nn.Conv2d(4, outputs, 3, **grid).requires_grad_(False)
    for shape in [(2, 4, 19, 17), (1, 4, 7, 30)]:
        _close(layer, torch.randn(shape), target)


def test_convolutions_in_one_dimension_and_channels_last() -> None:
    torch.manual_seed(0)
    _close(nn.Conv1d(3, 5, 5, padding=2).requires_grad_(False), torch.randn(2, 3, 41))
    last = torch.channels_last
    x = torch.randn(1, 4, 9, 18).to(memory_format=last)
    for groups in (1, 4):
        layer = nn.Conv2d(4, 4, 3, padding=1, groups=groups).requires_grad_(False)
        _close(layer.to(memory_format=last), x)


@pytest.mark.parametrize("target", ["cpu", "cpu-avx512"])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 40])
def test_products_of_few_rows_are_right(rows: int, target: str) -> None:
    torch.manual_seed(0)
    for columns, depth in [(256, 70), (1040, 33), (37, 1024)]:
        a, b = torch.randn(rows, depth), torch.randn(depth, columns)
        for f in (lambda a, b: a @ b, lambda a, b: a @ b.T.contiguous().T + 1):
            found = tcc.compile(f, target=target)(a, b)
            torch.testing.assert_close(found, f(a, b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_the_second_operand_are_packed_by_the_task_that_uses_them(
    dtype: torch.dtype, dynamic: bool | None
) -> None:
    torch.manual_seed(0)
    cases = [
        (lambda a, b: a @ b, (130, 300), (300, 53)),
        (lambda a, b: a @ b.mT, (16, 515), (70, 515)),
        (lambda a, b: torch.tanh(a @ b + 1), (3, 7, 270), (3, 270, 300)),
        (lambda a, b: a @ b.mT, (2, 33, 1024), (2, 50, 1024)),  # rows that collide in a cache
    ]
    for f, left, right in cases:
        a, b = torch.randn(left, dtype=dtype), torch.randn(right, dtype=dtype)
        compiled = tcc.compile(f, dynamic=dynamic)
        found, exact = compiled(a, b), f(a.double(), b.double())
        assert float((found.double() - exact).abs().max()) <= 1e4 * torch.finfo(dtype).eps
        assert "@L2 layout" in compiled.records.graphs[0].programs[0].ir("mapping")


@pytest.mark.parametrize(
    "function",
    [nn.Linear(8, 8).requires_grad_(False), torch.matmul, nn.functional.linear, torch.mm],
    ids=["module", "builtin", "function", "operator"],
)
def test_torchs_own_functions_stay_compiled_after_the_first_call(function: Any) -> None:
    compiled = tcc.compile(function)
    x = (torch.randn(8, 8),) if isinstance(function, nn.Module) else tuple(torch.randn(2, 8, 8))
    compiled(*x)
    with torch.profiler.profile() as profile:
        found = compiled(*x)
    keys = [e.key for e in profile.key_averages()]
    assert not {"aten::linear", "aten::addmm", "aten::mm", "aten::matmul"} & set(keys)
    torch.testing.assert_close(found, function(*x))


def test_edges_are_filled_in_once_and_windows_are_not_copied() -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False).requires_grad_(False)
    compiled = tcc.compile(layer)
    compiled(torch.randn(1, 16, 28, 28))
    report = str(compiled.explain())
    assert "_padded[0," in report and "d28b on lane, d16" not in report


def test_register_tiles_fit_the_rows_and_the_registers() -> None:
    for registers in (16, 32):
        for rows in (1, 3, 7, 14, 16, 56, 128, 1000):
            r, v = register_tile(rows, [256], 8, registers, (6, 2))
            assert r * v + min(r * v, v if r > 1 else 1) + 1 <= registers
            assert r <= rows or rows > 3
    assert register_tile(None, [256], 8, 16, (6, 2)) == (6, 2)
    assert register_tile(56, [64], 8, 32, (14, 2)) == (14, 2)
    assert collisions(8, 4096) == 8 and collisions(8, 4096 + 64) == 1


@pytest.mark.parametrize("rows", [5, 16, 23, 130])
def test_long_vectors_and_short_ones_give_the_same_product(rows: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(300, 200).requires_grad_(False), torch.randn(rows, 300)
    _close(layer, x, "cpu-avx512")
    text = "in A: f32[M, K], B: f32[K, N]\nout Z: f32[M, N]\nZ[m, n] = A[m, k] * B[k, n]"
    mapping = tcc.parse(text).compile(target="cpu-avx512").result.mapping
    assert mapping is not None
    for size, vector in ((64, "f32x16"), (32, "f32x8")):
        source = emit(mapping, vector_bytes=size).source
        assert f"  {vector} c0_0 = {{0}}" in source and "__builtin_prefetch" in source


def test_tasks_have_many_rows_where_panels_were_packed_ahead() -> None:
    layer = nn.Linear(768, 768).requires_grad_(False)
    for rows, block in ((64, 64), (136, 72), (256, 128)):
        compiled = tcc.compile(layer, dynamic=False, target="cpu-avx512")
        compiled(torch.randn(rows, 768))
        assert f" by {block} on core" in str(compiled.explain())


def _close(layer: nn.Module, x: torch.Tensor, target: str = "cpu") -> None:
    wanted = layer(x)
    found = tcc.compile(layer, target=target)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.stride() == wanted.stride()


def test_a_product_of_one_row_adds_up_in_blocks(rng: np.random.Generator) -> None:
    text = "ranks M=1\nin A: f32[M, K], W: f32[N, K]\nout C: f32[M, N]\nC[m, n] = A[m, k] * W[n, k]"
    a, w = (rng.standard_normal((n, 5000)).astype(np.float32) for n in (1, 3))
    np.testing.assert_allclose(tcc.compile(text)(a, w), a @ w.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [7, 45])
def test_windows_with_a_stride_of_two_are_read_along_the_lanes(
    width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, k = torch.randn(2, 5, 9, width, dtype=dtype), torch.randn(5, 1, 3, 3, dtype=dtype)
    every = slice(0, width // 2 * 2, 2)

    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = torch.conv2d(x, k, stride=2, padding=1, groups=5)
        return (
            found,
            nn.functional.avg_pool2d(x, 2),
            x[..., every] * x[..., 1::2][..., : width // 2],
        )

    for memory in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=memory)
        for found, exact in zip(tcc.compile(f)(given), f(given), strict=True):
            torch.testing.assert_close(found, exact)


def test_convolutions_of_one_pixel_are_right_with_results_along_the_rows() -> None:
    torch.manual_seed(0)
    inner, outer = 96, 40
    layer = nn.Conv2d(inner, outer, 1).requires_grad_(False)
    x = torch.randn(2, inner, 32, 32)  # a stride of 4096 bytes between channels
    compiled = tcc.compile(lambda x: torch.relu(layer(x)) + 1)
    torch.testing.assert_close(compiled(x), torch.relu(layer(x)) + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_products_of_whole_tiles_add_up_in_their_result(
    rng: np.random.Generator, dtype: str
) -> None:
    """Where tiles leave edges, or more follows, they add up near the core."""
    head = f"in A: {dtype}[{{0}},{{2}}], B: {dtype}[{{2}},{{1}}]\nout C: {dtype}[{{0}},{{1}}]\n"
    plain, more = "C[m,n] = A[m,k] * B[k,n]", "S[m,n] = A[m,k] * B[k,n]\nC[m,n] = S[m,n] + 1"
    for (m, n, k), body, direct in (
        ((336, 320, 500), plain, True),
        ((336, 320, 700), plain, True),
        ((335, 320, 500), plain, False),
        ((336, 319, 50), plain, False),
        ((336, 320, 50), more, False),
    ):
        program = tcc.parse(head.format(m, n, k) + body).compile(target="cpu")
        assert ("buffer" not in str(program.ir("mapping"))) == direct
        a, b = (
            rng.standard_normal(s).astype(dtype.replace("f", "float")) for s in ((m, k), (k, n))
        )
        wanted = a.astype(np.float64) @ b + (body is more)
        np.testing.assert_allclose(program(a, b), wanted, rtol=1e-4, atol=1e-4)
