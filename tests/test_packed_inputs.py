"""Inputs whose codes lie without gaps: their bytes, what C reads of them, attention over packed keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tcc
from tcc import dtypes
from tcc.cost_report import predicted
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype_scaled import random_stored
from tcc.ir.dtype_text import dtype
from tcc.ir.packed import packed_bytes, unpacked

torch = pytest.importorskip("torch")
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "nf4", "f4e2m1", "posit4_1"]
SCALED = [
    "u4[group k 32, scale f16, zero 8]", "i4[group k 32, scale f16]", "nf4[group k 32, scale f32]", "i1[scale f32]",
    "f4e2m1[group k 32, scale e8m0]", "u2[group k 16, scale f16, zero u2]", "u4[vector k 2, table f16]",
    "u4[vector n 2, table f16, residual 2]", "f4e2m1[group k 16, scale f8e4m3fn[scale f32]]",
]  # fmt: skip


def declared(name: str) -> Any:
    return parse_cascade(f"in X: {name}[M, N] packed\nout Z: f32\nZ = f32(X[m, n])").inputs[0]


@pytest.mark.parametrize("name", TYPES)
def test_bytes_hold_the_elements_of_a_row(name: str) -> None:
    t, kind = declared(name), dtype(name)
    assert str(t) == f"X: {name}[M, N] packed"
    rng = np.random.default_rng(0)
    low = -(2 ** (kind.bits - 1)) if kind.kind == "i" else 0
    x = rng.integers(low, low + 2**kind.bits, (3, 16)).astype(kind.numpy)
    stored = packed_bytes(t, x)
    assert stored.shape == (3, 2 * kind.bits) and stored.dtype == np.uint8
    np.testing.assert_array_equal(stored.ravel(), dtypes.pack(x, name))
    found = unpacked(t, stored)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, x)


PROGRAM = """
    in  X: {t}[M, N] packed, Y: f32[N]
    out A: f32[M, N], B: f32[M], C: f32[M, N], D: f64[M], F: f32[N]
    A[m, n] = f32(X[m, n]) * 2.0
    B[m]    = f32(X[m, n]) * Y[n]
    C[m, n] = f32(X[m, n + 1]) - f32(X[m, n - 3])
    D[m]    = f64(X[m, n]) * f64(X[M - 1 - m, n])
    F[n]    = f32(X[m, n])
"""


@pytest.mark.parametrize("name", ["u1", "i2", "u4", "nf4"])
def test_c_reads_packed_inputs_as_the_interpreter_does(name: str) -> None:
    text, t, kind = PROGRAM.format(t=name), declared(name), dtype(name)
    compiled, truth = tcc.compile(text), tcc.compile(text, target="numpy")
    rng = np.random.default_rng(1)
    for m, n in ((1, 8), (5, 40), (9, 104)):
        low = -(2 ** (kind.bits - 1)) if kind.kind == "i" else 0
        x = rng.integers(low, low + 2**kind.bits, (m, n)).astype(kind.numpy)
        y = rng.standard_normal(n).astype(np.float32)
        stored = packed_bytes(t, x)
        wide = np.zeros((m, stored.shape[1] + 3), np.uint8)
        wide[:, 1:-2] = stored  # rows that start at odd bytes
        value = np.asarray(kind.load(x)).astype(np.float64)
        for given in (stored, wide[:, 1:-2], torch.from_numpy(stored)):
            got = [np.asarray(g) for g in compiled(given, y)]
            want = [np.asarray(g) for g in truth(given, y)]
            for g, w in zip(got, want, strict=True):
                np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(got[0], (2 * value).astype(np.float32))
    apart = np.asfortranarray(stored)  # rows with gaps between their bytes
    np.testing.assert_allclose(compiled(apart, y)[1], value @ y, rtol=1e-4, atol=1e-4)


def test_matrix_products_read_packed_operands() -> None:
    f = tcc.compile("""
        in  A: f32[M, K], W: u4[N, K] packed, V: i4[K, N] packed
        out Y: f32[M, N], Z: f32[M, N]
        Y[m, n] = A[m, k] * (f32(W[n, k]) - 8.0)
        Z[m, n] = A[m, k] * f32(V[k, n])""")
    rng = np.random.default_rng(2)
    for m in (1, 33):
        a = rng.standard_normal((m, 96)).astype(np.float32)
        w, v = rng.integers(0, 16, (70, 96)), rng.integers(-8, 8, (96, 70))
        y, z = f(a, dtypes.pack(w, "u4").reshape(70, 48), dtypes.pack(v, "i4").reshape(96, 35))
        np.testing.assert_allclose(y, a.astype(np.float64) @ (w - 8.0).T, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(z, a.astype(np.float64) @ v, rtol=1e-4, atol=1e-4)


ATTENTION = """
    ranks H=8, M={m}, E=64
    in  Q: f32[H, {p}E], K: {t}[H, M, E] packed, KS: f32[H, E], V: {t}[H, M, E] packed, VS: f32[H, M]
    out Z: f32[H, {p}E]
    QK[h, {i}m] = Q[h, {i}e] * ((f32(K[h, m, e]) - {zero}) * KS[h, e]) / 8.0
    GM[h{j}]    = QK[h, {i}m] :: max(m)
    SN[h, {i}m] = exp(QK[h, {i}m] - GM[h{j}])
    SD[h{j}]    = SN[h, {i}m]
    Z[h, {i}e]  = SN[h, {i}m] / SD[h{j}] * ((f32(V[h, m, e]) - {zero}) * VS[h, m])
"""


def cache(bits: int, m: int, rng: Any) -> tuple[Any, ...]:
    """Keys with a scale per channel and values with one per token: packed, scales, and their values."""
    k, v = rng.integers(0, 2**bits, (2, 8, m, 64))
    ks, vs = rng.random((8, 64), np.float32) / 8, rng.random((8, m), np.float32)
    packed = [dtypes.pack(x, f"u{bits}").reshape(8, m, -1) for x in (k, v)]
    zero = 2 ** (bits - 1)
    return (*packed, ks, vs, (k - zero) * ks[:, None].astype(float), (v - zero) * vs[..., None])


def attended(q: Any, k: Any, v: Any) -> Any:
    """Attention in float64; q is [H, P, E]."""
    s = np.einsum("hpe,hme->hpm", q.astype(float), k) / 8
    w = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("hpm,hme->hpe", w / w.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("bits", [2, 4])
def test_attention_walks_packed_keys_once_and_moves_their_bytes(bits: int) -> None:
    m, rng = 4100, np.random.default_rng(bits)
    names = {"m": m, "t": f"u{bits}", "zero": float(2 ** (bits - 1))}
    one = tcc.compile(ATTENTION.format(p="", i="", j="", **names))
    kc, vc, ks, vs, k, v = cache(bits, m, rng)
    q = rng.standard_normal((8, 20, 64)).astype(np.float32)
    got = one(q[:, 0], kc, ks, vc, vs)
    np.testing.assert_allclose(got, attended(q[:, :1], k, v)[:, 0], rtol=2e-4, atol=1e-5)
    assert len(one.result.program.kernels) == 1
    found = predicted(one.result.program, one.result.target, {})
    assert found is not None
    counted = sum(x.nbytes for x in (q[:, 0], kc, ks, vc, vs, got))
    assert abs(max(found.kernels[0].moved.values()) / counted - 1) < 0.1
    many = tcc.compile(ATTENTION.format(p="P, ", i="p, ", j=", p", **names))
    np.testing.assert_allclose(many(q, kc, ks, vc, vs), attended(q, k, v), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    "t", [SCALED[0].replace("k ", "e "), SCALED[4].replace("k ", "e "), "nf4[group e, scale f32]"]
)
def test_attention_walks_scaled_caches_with_channels_on_the_lanes(t: str) -> None:
    """Also where a row has several scales, so that channels are two variables."""
    f = tcc.compile(f"""
        ranks H=4, M=1030, E=64
        in  Q: f32[H, E], K: {t}[H, M, E] packed, V: {t}[H, M, E] packed
        out Z: f32[H, E]
        QK[h, m] = Q[h, e] * K[h, m, e] / 8.0
        GM[h]    = QK[h, m] :: max(m)
        SN[h, m] = exp(QK[h, m] - GM[h])
        SD[h]    = SN[h, m]
        Z[h, e]  = SN[h, m] / SD[h] * V[h, m, e]""")
    rng = np.random.default_rng(6)
    q = rng.standard_normal((4, 64)).astype(np.float32)
    k, v = (dtypes.encode(rng.standard_normal((4, 1030, 64)), t, "h m e") for _ in range(2))
    want = attended(q[:, None], k.decode(), v.decode())[:, 0]
    np.testing.assert_allclose(f(q, k.pack(), v.pack()), want, rtol=1e-3, atol=1e-5)
    reads = [x for x in str(f.result.mapping).splitlines() if " = " in x and "K_codes[" in x]
    assert reads and all(" with e" in x for x in reads)


@pytest.mark.parametrize(
    "name, compiler",
    [("u1", ""), ("u2", ""), ("i4", ""), ("u4", ""), ("u4", "cc -mno-avx512vbmi"), ("u4", "cc -mno-avx512f")],
)  # fmt: skip
def test_whole_vectors_look_codes_up(
    name: str, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums along the lanes and across them; a branch that all lanes take, where reading the other would be outside."""
    if compiler:
        monkeypatch.setenv("TCC_CC", compiler)
    text = f"""
    ranks E = 64, M = P + T
    in K: {name}[P, E] packed, R: f32[T, E], X: f32[E], W: f32[P]
    out Y: f32[P], Z: f32[E], A: f32[M], B: f32[M, E]
    Y[p] = X[e] * ((f32(K[p, e]) - 3) * 0.5)
    Z[e] = W[p] * ((f32(K[p, e]) - 3) * 0.5)
    B[m, e] = select(m < P, f32(K[m + 0, e]) * X[e], R[m - P, e])
    A[m] = B[m, e]
    """
    rng = np.random.default_rng(3)
    t = tcc.dtype(name)
    low = -(2 ** (t.bits - 1)) if t.kind == "i" else 0
    k = rng.integers(low, low + 2**t.bits, (37, 64))
    codes = (k & (2**t.bits - 1)).astype(np.uint8).reshape(37, -1, 8 // t.bits)
    stored = np.bitwise_or.reduce(
        codes << np.arange(8 // t.bits, dtype=np.uint8) * t.bits, -1, dtype=np.uint8
    )
    r, x, w = (rng.standard_normal(n).astype(np.float32) for n in ((5, 64), 64, 37))
    y, z, a, b = tcc.compile(text)(stored, r, x, w)
    both = np.concatenate([k * x, r])
    np.testing.assert_allclose(y, ((k - 3) * 0.5) @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(z, w @ ((k - 3) * 0.5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(b, both, rtol=1e-6)
    np.testing.assert_allclose(a, both.sum(1), rtol=1e-4, atol=1e-4)


TAIL = """
    ranks H=8, M=P+T, E=64
    in  Q: f32[H, E], KC: u4[H, P, E] packed, KS: f32[H, E], KR: f32[H, T, E]
    in  VC: u4[H, P, E] packed, VS: f32[H, P], VR: f32[H, T, E]
    out Z: f32[H, E]
    K[h, m, e] = select(m < P, (f32(KC[h, m + 0, e]) - 8.0) * KS[h, e], KR[h, m - P, e])
    V[h, m, e] = select(m < P, (f32(VC[h, m + 0, e]) - 8.0) * VS[h, m + 0], VR[h, m - P, e])
    QK[h, m]   = Q[h, e] * K[h, m, e] / 8.0
    GM[h]      = QK[h, m] :: max(m)
    SN[h, m]   = exp(QK[h, m] - GM[h])
    SD[h]      = SN[h, m]
    Z[h, e]    = SN[h, m] / SD[h] * V[h, m, e]
"""


def test_recent_keys_stay_in_full_precision() -> None:
    """A packed prefix and a tail of f32, as text and as a function of PyTorch: one walk, nothing decoded in memory."""
    rng = np.random.default_rng(5)

    def attention(q: Any, kc: Any, ks: Any, kr: Any, vc: Any, vs: Any, vr: Any) -> Any:
        k = torch.cat([(torch.ops.tcc.unpack(kc, "u4").float() - 8) * ks[:, None], kr], 1)
        v = torch.cat([(torch.ops.tcc.unpack(vc, "u4").float() - 8) * vs[..., None], vr], 1)
        return torch.nn.functional.scaled_dot_product_attention(q[:, None], k, v)[:, 0]

    from tcc import quantized  # noqa: F401, the operator

    text, function = tcc.compile(TAIL), tcc.compile(attention)
    for p, t in ((300, 40), (64, 1)):
        kc, vc, ks, vs, k, v = cache(4, p, rng)
        q, kr, vr = (
            rng.standard_normal(s).astype(np.float32) for s in ((8, 64), (8, t, 64), (8, t, 64))
        )
        want = attended(q[:, None], np.concatenate([k, kr], 1), np.concatenate([v, vr], 1))[:, 0]
        given = (q, kc, ks, kr, vc, vs, vr)
        np.testing.assert_allclose(text(*given), want, rtol=2e-4, atol=1e-5)
        tensors = [torch.from_numpy(x) for x in given]
        np.testing.assert_allclose(function(*tensors), want, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(attention(*tensors), want, rtol=2e-4, atol=1e-5)
    told = str(function.explain())
    assert "left to PyTorch" not in told and "300, 64" not in told.split("memory\n")[-1]


def test_computed_bytes_are_unpacked_by_division() -> None:
    from tcc import quantized  # noqa: F401, the operator

    def f(x: Any) -> Any:
        return torch.ops.tcc.unpack(x ^ 255, "u2").float()

    x = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    torch.testing.assert_close(tcc.compile(f)(x), f(x))


@pytest.mark.parametrize("names", [SCALED[:5], SCALED[5:]], ids="-".join)
def test_scaled_tensors_come_as_packed_codes_and_scales(names: list[str]) -> None:
    rng = np.random.default_rng(3)
    ins = "".join(f", W{n}: {t}[N, K] packed{' constant' * (n % 2)}" for n, t in enumerate(names))
    outs = ", ".join(f"C{n}: f32[M, N]" for n in range(len(names)))
    text = f"in A: f32[M, K]{ins}\nout {outs}, D: f32[N, K]\nD[n, k] = W0[n, k]\n"
    text += "\n".join(f"C{n}[m, n] = A[m, k] * W{n}[n, k]" for n in range(len(names)))
    assert str(tcc.parse(text)).count(" packed") == len(names)
    whole = [random_stored(dtype(t), ("n", "k"), (48, 128), rng, 2) for t in names]
    given = [w.pack() for w in whole]
    for w, p in zip(whole, given, strict=True):
        assert (
            p.codes.dtype == np.uint8
            and p.codes.shape[-1] == w.codes.shape[-1] * dtype(w.dtype.name).bits // 8
        )
        assert p.shape == w.shape
        np.testing.assert_array_equal(p.unpack().codes, w.codes)
        np.testing.assert_array_equal(p.decode(), w.decode())
    compiled, truth = tcc.compile(text, verify_each=True), tcc.compile(text, target="numpy")
    for m in (1, 40):
        a = rng.standard_normal((m, 128)).astype(np.float32)
        got, want = compiled(a, *given), truth(a, *given)
        for g, w in zip(got[:-1], whole, strict=False):
            np.testing.assert_allclose(g, a @ w.decode().T, rtol=1e-4, atol=1e-4)
        for g, v in zip(got, want, strict=True):
            np.testing.assert_allclose(g, v, rtol=1e-4, atol=1e-4)


def test_packed_and_plain_tensors_are_told_apart() -> None:
    kind = "u4[group k 8, scale e8m0]"
    text = f"in W: {kind}[N, K]{{}}\nout Z: f32[N]\nZ[n] = W[n, k]"
    w = dtypes.encode(np.arange(64.0).reshape(4, 16), kind, "n k")
    for target in ("cpu", "numpy"):
        packed, plain = (tcc.compile(text.format(p), target=target) for p in (" packed", ""))
        np.testing.assert_allclose(packed(w.pack()), plain(w), rtol=1e-6)
        with pytest.raises(CompileError, match="is not packed") as caught:
            packed(w)
        assert caught.value.diagnostic.code == "T0148"
        with pytest.raises(CompileError, match="is packed"):
            plain(w.pack())
    codes, scale = torch.from_numpy(w.pack().codes), torch.from_numpy(w.parts["scale"])
    tensors = dtypes.Encoded(w.dtype, w.axes, codes, {"scale": scale}, packed=True)
    np.testing.assert_allclose(packed(w.pack()), packed(tensors))
    assert isinstance(tensors.unpack().codes, torch.Tensor)
    with pytest.raises(CompileError, match="no whole bytes"):
        dtypes.encode(np.ones((2, 3)), "u4[scale f16]", "n k").pack()
    with pytest.raises(CompileError, match="no whole bytes"):
        dtypes.encode(np.ones((2, 8)), "u3[scale f16]", "n k").pack()
    with pytest.raises(CompileError, match="no packed codes"):
        dtypes.Encoded(w.dtype, w.axes, w.codes.astype(np.int8), dict(w.parts), packed=True)


@pytest.mark.parametrize(
    ("declaration", "part"),
    [
        ("in X: u3[N] packed\nout Z: i32\nZ = X[n]", "type u3"),
        ("in X: bf16[coded n 4][N] packed\nout Z: f32\nZ = X[n]", "type bf16"),
        ("ranks N=6\nin X: i2[scale f16][N] packed\nout Z: f32\nZ = X[n]", "rows of 6"),
        (
            "ranks N=6\nin X: u4[vector n 2, table f16][N] packed\nout Z: f32\nZ = X[n]",
            "4 to a byte",
        ),
        ("in X: f32[N] packed\nout Z: f32\nZ = X[n]", "type f32"),
        ("in X: u4 packed\nout Z: i32\nZ = X", "no dimension"),
        ("ranks N=7\nin X: u4[N] packed\nout Z: i32\nZ = X[n]", "rows of 7"),
        ("in X: u4[N]\nout Z: u4[N] packed\nZ[n] = X[n]", "an output"),
    ],
)
def test_what_cannot_be_packed_is_refused(declaration: str, part: str) -> None:
    with pytest.raises(CompileError, match=part) as caught:
        tcc.compile(declaration)
    assert caught.value.diagnostic.code == "T0150"


def test_arguments_are_bytes() -> None:
    f = tcc.compile("in X: u4[M, N] packed, Y: f32[N]\nout Z: f32[M]\nZ[m] = f32(X[m, n]) * Y[n]")
    with pytest.raises(CompileError, match="is f32"):
        f(np.zeros((2, 4), np.float32), np.zeros(8, np.float32))
    with pytest.raises(CompileError, match="T0125"):
        f(np.zeros((2, 8), np.uint8), np.zeros(8, np.float32))
