"""Inputs of codes in Triton: all code points decode as in the reference, packed or not, and products read scaled weights."""

from __future__ import annotations

import numpy as np
import pytest
from dtype_samples import SMALL, all_codes

import tcc
from tcc import dtypes
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype_codes import pack_rows
from tcc.targets import find

pytest.importorskip("triton")
pytest.importorskip("torch")
WIDER = ["bf16", "f12e5m6", "i12", "u31", "posit16_1", "f9e4m4", "f16e5m10fnuz"]
PACKABLE = [n for n in SMALL if dtypes.dtype(n).bits in (1, 2, 4)]


def test_every_code_decodes_in_triton(rng: np.random.Generator) -> None:
    """The fill is what lies outside, whatever code 0 means."""
    names = [n for n in [*SMALL, *WIDER] if n != "u8" and n != "i8"]
    ins = [f"A{n}: {name}[N] fill 3" for n, name in enumerate(names)]
    ins += [f"P{n}: {name}[N] fill 3 packed" for n, name in enumerate(PACKABLE)]
    outs = [f"Z{n}: f32[N]" for n in range(len(names))]
    outs += [f"Y{n}: f32[N]" for n in range(len(PACKABLE))]
    lines = [f"Z{n}[n] = f32(A{n}[n])" for n in range(len(names))]
    lines += [f"Y{n}[n] = f32(P{n}[n + 1])" for n in range(len(PACKABLE))]
    types = [dtypes.dtype(n) for n in (*names, *PACKABLE)]
    codes = []
    for t in types:
        every = (
            all_codes(t)
            if t.bits <= 12
            else rng.integers(0, 2 ** min(t.bits, 16), 520).astype(t.numpy)
        )
        codes.append(rng.permutation(np.resize(every, max(520, len(every))))[:520])
    packed = zip(codes[len(names) :], types[len(names) :], strict=True)
    given = codes[: len(names)] + [pack_rows(c, t) for c, t in packed]
    text = f"in {', '.join(ins)}\nout {', '.join(outs)}\n" + "\n".join(lines)
    got = tcc.compile(text, target="h100")(*given)
    for n, (t, c) in enumerate(zip(types, codes, strict=True)):
        want = np.asarray(t.load(c)).astype(np.float32)
        want = want if n < len(names) else np.append(want[1:], 3)
        np.testing.assert_array_equal(got[n], want, err_msg=t.name)


KINDS = ["u4[group k 32, scale f16, zero 8]", "nf4[group k 16, scale bf16]", "f4e2m1[group k 16, scale f8e4m3fn[scale f32]]",
         "u2[group k 32, scale e8m0, zero u2]"]  # fmt: skip


def test_products_decode_weights_where_they_are_loaded(rng: np.random.Generator) -> None:
    ins = ", ".join(f"W{n}: {t}[N, K]{' packed' * (n % 2 == 0)}" for n, t in enumerate(KINDS))
    outs = ", ".join(f"C{n}: f32[M, N]" for n in range(len(KINDS)))
    lines = [f"C{n}[m, n] = A[m, k] * W{n}[n, k]" for n in range(len(KINDS))]
    f = tcc.compile(f"in A: f32[M, K], {ins}\nout {outs}\n" + "\n".join(lines), target="h100")
    a = rng.standard_normal((21, 64)).astype(np.float32)
    weights = [dtypes.encode(rng.standard_normal((40, 64)), t, "n k") for t in KINDS]
    got = f(a, *(w.pack() if n % 2 == 0 else w for n, w in enumerate(weights)))
    for g, w in zip(got, weights, strict=True):
        np.testing.assert_allclose(g, a @ w.decode().T, rtol=1e-4, atol=1e-4)
    assert "tl.dot(" in f.source and "_get_u4(" in f.source


def test_products_of_codes_build_for_sm_90() -> None:
    from tcc.backends.triton import compile_ahead

    text = "in A: f32[M, K], W: u4[group k 32, scale f16, zero 8][N, K] packed, B: f8e4m3fn[M, K]\nout C: f32[M, N], D: f32[M]\n"
    result = tcc.compile(
        text + "C[m, n] = A[m, k] * W[n, k]\nD[m] = B[m, k] * A[m, k]", target="h100"
    ).result
    built = compile_ahead(result.mapping, find("h100"))
    assert built and all(k["spills"] == 0 for k in built)


@pytest.mark.parametrize("text, what", [
    ("in A: f32[N]\nout Z: bf16[N]\nZ[n] = A[n]", "no bf16 results"),
    ("in A: f32[N]\nout Z: f32[N]\nZ[n] = bf16(A[n])", "can not convert to bf16"),
    ("in A: f16e10m5[N]\nout Z: f64[N]\nZ[n] = A[n]", "no f16e10m5 inputs"),
])  # fmt: skip
def test_what_triton_does_not_store_is_refused(text: str, what: str) -> None:
    with pytest.raises(CompileError, match=what) as caught:
        tcc.compile(text, target="h100")
    assert caught.value.diagnostic.code == "T0367"
