"""Graphs of PyTorch as cascades: every family of operators agrees with eager, through the interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from tcc.dynamo import built, compile_graph  # noqa: E402
from tcc.frontends.pytorch import Captured, Unsupported, capture, decompositions  # noqa: E402
from tcc.ir.cascade_text import parse_cascade  # noqa: E402

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def trace(f: Callable[..., Any], *args: Any) -> Captured:
    """`f` as dynamo and AOTAutograd would hand it over, without dynamo."""
    from torch._functorch.aot_autograd import aot_export_joint_simple

    with torch.no_grad():
        gm = aot_export_joint_simple(
            lambda *a: tuple(flat(f(*a))), args, trace_joint=False, decompositions=TABLE
        )
    return capture(gm)


TABLE = decompositions()


def flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def same(found: Any, wanted: Any, tolerance: float = 2e-5) -> None:
    """Equal types, shapes and strides; values to `tolerance`, nan equal to nan."""
    for a, e in zip(flat(found), flat(wanted), strict=True):
        if not isinstance(e, torch.Tensor):
            assert a == e
            continue
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        loose = tolerance if e.dtype == torch.float32 else 1e-11
        torch.testing.assert_close(a, e, rtol=loose, atol=loose, equal_nan=True)


def check(f: Callable[..., Any], *args: Any, externs: int = 0) -> Captured:
    with torch.no_grad():
        wanted = f(*[a.clone() for a in args])
    captured = trace(f, *args)
    assert [e.function for e in captured.externs][externs:] == []
    parse_cascade(str(captured.cascade))
    same(compile_graph(captured)(*args), wanted)
    return captured


def r(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(*shape, dtype=dtype)


def special() -> Any:
    return torch.tensor(
        [-INF, -100.0, -2.5, -1.5, -0.0, 0.0, 0.5, 1.5, 30.0, INF, NAN], dtype=torch.float64
    )


def integers() -> Any:
    return torch.tensor([-7, -3, -1, 0, 1, 2, 5, 9])


SPECIAL = [
    torch.exp, torch.exp2, torch.expm1, torch.tanh, torch.sigmoid, torch.erf, torch.sin, torch.cos, torch.sqrt,
    torch.rsqrt, torch.abs, torch.neg, torch.reciprocal, torch.floor, torch.ceil, torch.round, torch.trunc, torch.sign,
    torch.square, torch.log, torch.log2, torch.log10, torch.log1p, torch.isnan, torch.isinf, torch.isfinite,
    F.relu, F.leaky_relu, F.elu, F.hardtanh, F.relu6, F.softplus, F.logsigmoid, F.selu, F.celu,
    lambda x: torch.clamp(x, -1, 1), lambda x: torch.clamp_min(x, 0.5), lambda x: x.clamp(max=2), lambda x: x**2,
    lambda x: x**0.5, lambda x: x**-1, lambda x: x > 0, lambda x: torch.where(x > 0, x, -1.0), lambda x: x.bool(),
    lambda x: x.masked_fill(x > 1, 7.0), lambda x: x.logical_not(), lambda x: x.float(), torch.isposinf,
    lambda x: torch.threshold(x, 0.1, 20), lambda x: torch.nan_to_num(x, 0.5),
]  # fmt: skip
SMOOTH = [
    F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.silu, F.mish, F.hardswish, F.hardsigmoid, F.softsign, torch.tan,
    torch.sinh, torch.cosh, F.softshrink, F.hardshrink, F.tanhshrink, lambda x: torch.lerp(x, x * 2, 0.3),
    lambda x: torch.addcmul(x, x, x, value=0.5), lambda x: torch.addcdiv(x, x, x + 9, value=2), F.glu,
]  # fmt: skip
PAIRS = [
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.remainder, torch.fmod,
    torch.floor_divide, torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.logical_and,
    torch.logical_or, torch.logical_xor, lambda x, y: torch.add(x, y, alpha=3), lambda x, y: torch.sub(x, y, alpha=2),
    lambda x, y: torch.rsub(x, y, alpha=2), lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    lambda x, y: torch.where(x > y, x, y), lambda x, y: x + 2.5, lambda x, y: 2 - y, lambda x, y: x * True,
    lambda x, y: x / 3, lambda x, y: x // 3, lambda x, y: x % 3, lambda x, y: (x + y).sum(), lambda x, y: x == 1.5,
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(SPECIAL)))
def test_functions_of_one_operand_agree_at_special_values(n: int) -> None:
    check(SPECIAL[n], special())


@pytest.mark.parametrize("n", range(len(SMOOTH)))
def test_functions_of_one_operand_agree(n: int) -> None:
    check(SMOOTH[n], r(3, 4) * 3)
    check(SMOOTH[n], r(3, 4, dtype=torch.float32))


@pytest.mark.parametrize("n", range(len(PAIRS)))
def test_functions_of_two_operands_promote_and_broadcast_as_eager(n: int) -> None:
    ints = integers()
    other = torch.tensor([[2], [-3], [7]])
    for x, y in [(ints, other), (r(3, 4), r(4)), (ints.int(), other), (ints, r(1, dtype=torch.float32) + 3),
                 (r(2, 1, dtype=torch.float32), r(3))]:  # fmt: skip
        check(PAIRS[n], x, y)


def test_bit_operators_and_casts_agree() -> None:
    a, b = integers(), torch.flip(integers(), (0,))
    check(lambda x, y: (x & y, x | y, x ^ y, ~x), a, b)
    check(lambda x, y: (x & y, x | y, x ^ y, ~x, x + y), a > 1, b > 1)
    check(
        lambda x: (x.to(torch.int32), x.to(torch.uint8), x.float(), x.bool(), x.double() / 3),
        a.abs(),
    )
    check(lambda x: (x.to(torch.int64), x.to(torch.int8)), r(5) * 9)


VIEWS = [
    lambda x: x.view(2, 12), lambda x: x.view(24), lambda x: x.view(3, 2, 2, 2), lambda x: x.reshape(4, 6),
    lambda x: x.view(6, 2, 2), lambda x: x.permute(2, 0, 1), lambda x: x.transpose(0, -1), lambda x: x.mT,
    lambda x: x[:, 1], lambda x: x[:, -1, 1:3], lambda x: x[..., ::2], lambda x: x[:, 1:, -2:], lambda x: x[None, :, None],
    lambda x: x.unsqueeze(-1).expand(2, 3, 4, 5), lambda x: x.permute(0, 2, 1).reshape(2, 12), lambda x: x.flip(0, 2),
    lambda x: torch.roll(x, 1, 2), lambda x: torch.roll(x, (1, -2), (0, 2)), lambda x: x.repeat(2, 1, 3, 1),
    lambda x: torch.cat([x, x * 2, x[:, :1]], 1), lambda x: torch.stack([x, x + 1], 1), lambda x: x.chunk(2, -1),
    lambda x: x.split([1, 2], 1), lambda x: x.split(3, 2), lambda x: x.unbind(1)[1], lambda x: F.pad(x, (1, 2, 0, 1)),
    lambda x: F.pad(x, (1, 2), value=-5.0), lambda x: x.squeeze(), lambda x: x.flatten(1), lambda x: x.tril(),
    lambda x: x.triu(1), lambda x: x.tril(-1), lambda x: torch.diagonal(x, 1, 1, 2), lambda x: x.unfold(2, 3, 1),
    lambda x: F.pad(x, (-1, 1)), lambda x: x.movedim(0, 2).contiguous(), lambda x: torch.einsum("abc,abd->bcd", x, x),
    lambda x: x.repeat_interleave(2, 1), lambda x: F.pixel_shuffle(x.view(1, 24, 1, 1), 2),
    lambda x: F.pad(x, (1, 2), mode="reflect"), lambda x: torch.narrow(x, 1, 1, 2), lambda x: x.swapaxes(0, 1).clone(),
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(VIEWS)))
def test_views_are_copies_by_index_arithmetic(n: int) -> None:
    check(lambda x: VIEWS[n](x + 1), r(2, 3, 4))


def test_writes_into_views_become_functional() -> None:
    def f(x: Any, y: Any) -> Any:
        z = x.clone()
        z[:, 1] = 0
        z[0, 1:3] += y
        z[..., ::2] = 7
        return z.mul_(2)

    check(f, r(2, 4, 5), r(5))


def test_gathers_read_indirectly() -> None:
    x, i = r(5, 4), torch.tensor([[0, 3], [4, 1], [2, 2]])
    check(lambda x, i: x[i], x, i)
    check(lambda x, i: x[:, i - 1], x, i.clamp(max=3))
    check(lambda x, i: x[i, i - 2], x, i.clamp(max=3))
    check(lambda x, i: F.embedding(i, x), x, i.int())
    check(lambda x, i: x.gather(1, i), x, i.clamp(max=3))
    check(lambda x, i: x.index_select(0, i[0]), x, i)
    check(lambda x, i: (x * 2)[i[0], :, None], x, i)


REDUCTIONS = [
    lambda x: x.sum(), lambda x: x.sum(1), lambda x: x.sum((0, 2), keepdim=True), lambda x: x.mean(), lambda x: x.mean(-1),
    lambda x: x.amax(1), lambda x: x.amin((0, 1)), lambda x: x.max(), lambda x: x.min(1).values, lambda x: x.prod(2),
    lambda x: x.var(1), lambda x: x.var((0, 2), correction=0), lambda x: x.std(), lambda x: (x > 0).any(1),
    lambda x: (x > 0).all(), lambda x: (x > 0).sum(0), lambda x: x.norm(), lambda x: torch.linalg.vector_norm(x, 1, 1),
    lambda x: torch.linalg.vector_norm(x, INF, (0, 1)), lambda x: torch.linalg.vector_norm(x, 3, 2, keepdim=True),
    lambda x: x.softmax(-1), lambda x: x.softmax(1), lambda x: x.log_softmax(0), lambda x: x.logsumexp((0, 1)),
    lambda x: x.cumsum(1), lambda x: x.cumprod(2), lambda x: torch.var_mean(x, 1), lambda x: x.int().sum(1),
    lambda x: F.normalize(x, dim=1), lambda x: torch.aminmax(x), lambda x: x.max(2, keepdim=True).values,
    lambda x: (x > 0).cumsum(1), lambda x: x.count_nonzero(1), lambda x: F.cosine_similarity(x, x + 1, -1),
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(REDUCTIONS)))
def test_reductions_agree(n: int) -> None:
    check(REDUCTIONS[n], r(2, 3, 4))


def test_reductions_agree_at_special_values() -> None:
    x = torch.tensor([[1.0, INF, 2.0], [-INF, -INF, -INF], [NAN, 1.0, 2.0]], dtype=torch.float64)
    for f in (torch.logsumexp, torch.softmax, torch.amax, torch.amin):
        check(lambda x, f=f: f(x, 1), x)
    check(lambda x: x.sum() + x.mean(), r(1))
    check(lambda x: (x.sum(1), x.prod(1), x.any(1), x.all(1)), r(2, 0))


def test_norms_agree() -> None:
    w, b = r(4), r(4)
    check(lambda x, w, b: F.layer_norm(x, (4,), w, b), r(2, 3, 4), w, b)
    check(lambda x: F.layer_norm(x, (3, 4)), r(2, 3, 4))
    check(lambda x, w: F.rms_norm(x, (4,), w), r(2, 3, 4, dtype=torch.float32), w.float())
    check(lambda x, w, b: F.group_norm(x, 2, w, b), r(2, 4, 3), w, b)
    check(lambda x, w, b: F.group_norm(x, 1, w, b), r(2, 4, 3, 2), w, b)
    check(lambda x, w, b: F.batch_norm(x, w, w.abs(), w, b), r(2, 4, 3), w, b)
    check(lambda x: torch.native_layer_norm(x, (4,), None, None, 1e-5), r(2, 3, 4))
    check(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), r(2, 4, 5), w, b)


def test_matrix_products_agree() -> None:
    a, b, v = r(3, 4), r(4, 5), r(4)
    check(lambda a, b: a @ b, a, b)
    check(lambda a, b: torch.bmm(a.expand(2, 3, 4), b.expand(2, 4, 5)), a, b)
    check(lambda a, v: (a @ v, v @ v, torch.outer(v, v)), a, v)
    check(lambda a, b: torch.addmm(b[0], a, b, beta=0.5, alpha=2), a, b)
    check(lambda a, b, c: torch.baddbmm(c, a[None], b[None], beta=2), a, b, r(1, 3, 5))
    check(
        lambda a, w, c: (F.linear(a, w, c), F.linear(a[0], w), F.linear(a[None, None], w, c)),
        a,
        r(6, 4),
        r(6),
    )
    check(lambda a, b: (a[None] @ b, b.t() @ a.t()), a, b)
    check(lambda a, b: torch.matmul(a.view(1, 3, 4), b.expand(2, 4, 5)), a, b)
    check(lambda a, v, m: torch.addmv(m, a, v), a, v, r(3))
    check(lambda a, b: a @ b, torch.arange(6).view(2, 3), torch.arange(6).view(3, 2))
    check(lambda a, b: torch.einsum("ij,jk,k->i", a, b, b[0]), a, b)


def test_attention_agrees_also_for_rows_without_keys() -> None:
    q, k, v = r(2, 3, 5, 4), r(2, 3, 7, 4), r(2, 3, 7, 6)
    sdpa = F.scaled_dot_product_attention
    check(sdpa, q, k, v)
    check(lambda q, k: sdpa(q, k, k, is_causal=True), q, k)
    check(lambda q, k: sdpa(q, k, k, scale=0.3), q, k)
    mask = r(2, 1, 5, 7) > 0
    mask[1, :, 2] = False
    check(lambda q, k, m: sdpa(q, k, k, m), q, k, mask)
    check(lambda q, k, m: sdpa(q, k, k, m), q, k, torch.where(mask, r(2, 1, 5, 7), -INF))
    check(lambda q, k: sdpa(q, k[:, :1], k[:, :1], enable_gqa=True), q, k)
    check(lambda q, k: sdpa(q[0, 0], k[0, 0], k[0, 0]), q, k)
    check(
        lambda q: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, q, q, is_causal=True
        ),
        q,
    )


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 8), (4, 3, 3), {}),
    ((2, 3, 8), (4, 3, 3), {"stride": 2, "padding": 2, "dilation": 2}),
    ((2, 4, 7, 6), (6, 2, 3, 2), {"groups": 2, "padding": (1, 0)}),
    ((1, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, "padding": 1, "stride": 2}),
    ((1, 4, 5, 5), (8, 4, 1, 1), {}),
    ((1, 2, 4, 5, 3), (3, 2, 2, 3, 1), {"padding": 1}),
    ((3, 9, 9), (4, 3, 4, 4), {"stride": 4}),
]
TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 5), (3, 4, 3), {}),
    ((2, 3, 5), (3, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    ((1, 4, 3, 4), (4, 3, 3, 2), {"stride": (2, 3), "groups": 2, "dilation": (2, 1)}),
]


@pytest.mark.parametrize("n", range(len(CONVOLUTIONS)))
def test_convolutions_agree(n: int) -> None:
    x, w, options = CONVOLUTIONS[n]
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(w) - 2]
    check(lambda x, w, b: conv(x, w, b, **options), r(*x), r(*w), r(w[0]))
    check(lambda x, w: conv(x, w, **options), r(*x), r(*w))


@pytest.mark.parametrize("n", range(len(TRANSPOSED)))
def test_transposed_convolutions_agree(n: int) -> None:
    x, w, options = TRANSPOSED[n]
    conv = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[len(w) - 2]
    check(lambda x, w: conv(x, w, **options), r(*x), r(*w))


POOLS = [
    lambda x: F.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    lambda x: F.avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), lambda x: F.avg_pool2d(x, 2, 2, 1, ceil_mode=True),
    lambda x: F.adaptive_avg_pool2d(x, (3, 2)), lambda x: F.adaptive_avg_pool2d(x, (2, None)),
    lambda x: F.max_pool1d(x[0], 2), lambda x: F.avg_pool1d(x[0], 3, 1, 1), lambda x: F.max_pool2d(x, 2, 1, 0, 2),
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(POOLS)))
def test_pools_agree(n: int) -> None:
    check(POOLS[n], r(2, 3, 7, 5))


def test_created_tensors_agree() -> None:
    check(
        lambda x: (
            torch.zeros(2),
            torch.ones_like(x),
            torch.full((2, 2), 3),
            x.new_full((2,), True),
        ),
        r(2),
    )
    check(
        lambda x: (
            torch.arange(5),
            torch.arange(1, 2, 0.25),
            torch.arange(7, 0, -2),
            x + torch.arange(2),
        ),
        r(2),
    )
    check(
        lambda x: (
            torch.eye(3),
            torch.tensor([1.5, 2.5]) + x,
            torch.linspace(0, 1, 5),
            x + torch.tensor(2),
        ),
        r(2),
    )
    check(lambda x: torch.where(torch.ones(3, 3).tril().bool(), x, -INF), r(3, 3))


def test_what_is_no_tensor_algebra_becomes_an_extern() -> None:
    def f(x: Any) -> Any:
        values, places = torch.sort(x * 2, dim=-1, descending=True)
        return values + 1, places, torch.topk(x, 2).values

    captured = check(f, r(3, 4), externs=2)
    assert [e.function for e in captured.externs] == ["aten.sort.default", "aten.topk.default"]


@pytest.mark.parametrize("f", [
    lambda x: x.argmax(1), lambda x: x.argmin(0, keepdim=True), lambda x: x.argmax(), lambda x: x.argmin(-1),
    lambda x: x.max(1), lambda x: x.min(0, keepdim=True), lambda x: x.max(2).indices, lambda x: x.min(1).indices + 1,
    lambda x: x.argmax(keepdim=True),
])  # fmt: skip
def test_places_of_extremes_are_the_first(f: Any) -> None:
    check(f, r(3, 4, 5))
    x = (r(6, 3, 4) * 2).round()  # ties
    check(f, x)
    x[2, 1, 1] = x[4, 1, 1] = x[3, 2, 0] = math.nan
    check(f, x)
    check(f, torch.full((2, 1, 3), -math.inf))


def test_what_lies_between_externs_is_compiled_alone() -> None:
    def f(x: Any) -> Any:
        first = torch.sort(x * 2, dim=-1).values
        second = torch.sort(x + first.flip(-1), dim=0).values
        return second.sum(0) + x.mean(), first, x.softmax(-1)

    captured, x = trace(f, r(3, 4)), r(3, 4)
    same(compile_graph(captured, built("numpy"))(x), f(x))


def test_what_can_not_be_taken_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="float16"):
        trace(lambda x: x.half() + 1, r(2))
    with pytest.raises(Unsupported, match="complex"):
        trace(lambda x: torch.fft.fft(x).real, r(2))
