"""Codes in C: they decode, and values round to them, exactly as in the reference."""

from __future__ import annotations

import dtype_samples
import numpy as np
import pytest
from c_runs import built, run
from dtype_samples import SMALL

import tcc
from tcc import dtypes
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.dtype import DType
from tcc.ir.dtype_codes import integer_range, ladder, pack_rows
from tcc.ir.interpret import interpret, interpret_with_bounds
from tcc.samples import agreement, random_inputs

FLOATS = [
    "bf16", "f16", "f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz.sat", "f8e4m3fn.sat", "f6e3m2", "f6e2m3", "f4e2m1",
    "f3e1m1", "f7e3m3ieee", "e8m0", "e5m0", "pow2_4", "posit4_1", "posit8_0", "posit10_1", "nf4", "codebook[3, -1, 0.5]",
    "bf16.sat", "f16.nearest", "f16.sat", "posit16_1", "posit13_2", "f12e5m6", "f14e4m9fnuz", "f11e6m4fn.sat", "pow2_11",
    "f16e10m5", "f13e3m9all", "tf32",  # too wide for tables
    "bf16.zero", "f8e4m3fn.zero", "e8m0.zero", "nf4.zero", "posit8_0.zero", "posit14_1.zero", "f8e5m2.zero.sat", "tf32.zero",
    "f6e3m2.zero", "f8e4m3fnuz.zero", "f32.zero", "pow2_5.zero", "codebook[3, -1, 0.5].zero",
]  # fmt: skip
NARROW = [n for n in SMALL if n not in FLOATS]
PACKABLE = [n for n in SMALL if dtypes.dtype(n).bits in (1, 2, 4)]
INTEGERS = ["i1", "u1", "u2", "i3", "u4", "i5", "u7", "i12", "u31", "i48", "u63", "i8.sat", "u4.sat", "u64", "i64.sat"]  # fmt: skip


def all_codes(t: DType, rng: np.random.Generator) -> np.ndarray:
    if t.is_integer and t.bits > 12:
        low, high = integer_range(t)
        return rng.integers(low, min(high, 2**62), 100).astype(t.numpy)
    if t.bits > 16:  # tf32: the codes of f32 that end in 13 zeros; of f32, some
        return (
            np.arange(0, 2**19, 7, np.uint32)
            if t.name.startswith("tf32")
            else rng.standard_normal(99).astype("f4")
        )
    return dtype_samples.all_codes(t)


def computed(name: str) -> str:
    found = dtypes.dtype(name).compute.name
    return "f32" if found == "f16" else found


def same(a: np.ndarray, b: np.ndarray, t: DType) -> np.ndarray:
    nan = np.isnan(dtypes.decode(b, t)) if t.is_float else np.zeros(b.shape, bool)
    return (a == b) | (nan & np.isnan(dtypes.decode(a, t)) if t.is_float else False)


def groups(names: list[str], size: int) -> list[list[str]]:
    """Several types share a program: most of the time goes into building it."""
    return [names[n : n + size] for n in range(0, len(names), size)]


@pytest.mark.parametrize(
    "names", groups([*FLOATS, *INTEGERS], 8) + groups(NARROW, 20), ids="-".join
)
def test_every_code_decodes_and_is_stored_again(names: list[str], rng: np.random.Generator) -> None:
    lines = ["", "", ""]
    for n, name in enumerate(names):
        lines[0] += f"in  A{n}: {name}[N{n}]\n"
        lines[1] += f"out Z{n}: {computed(name)}[N{n}], B{n}: {name}[N{n}]\n"
        lines[2] += f"Z{n}[n{n}] = A{n}[n{n}]\nB{n}[n{n}] = A{n}[n{n}]\n"
    c = parse_cascade("".join(lines))
    inputs = {f"A{n}": all_codes(dtypes.dtype(name), rng) for n, name in enumerate(names)}
    got, want = run(built(c), c, inputs), interpret(c, inputs)
    for n, name in enumerate(names):
        np.testing.assert_array_equal(got[f"Z{n}"], want[f"Z{n}"], err_msg=name)
        assert same(got[f"B{n}"], want[f"B{n}"], dtypes.dtype(name)).all(), name


@pytest.mark.parametrize("vector_bytes", [32, 64])
@pytest.mark.parametrize(
    "names", [NARROW[:45], [*NARROW[45:], *FLOATS[2:14]]], ids=["some", "others"]
)
def test_every_code_is_decoded_in_lanes(
    names: list[str], vector_bytes: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All codes in an order by chance, in whole vectors and in a tail; packed ones also from the middle of a byte."""
    monkeypatch.setattr("tcc.backends.c._vector_bytes", lambda: vector_bytes)
    packed = [n for n in names if n in PACKABLE]
    ins = [f"A{n}: {name}[N]" for n, name in enumerate(names)]
    ins += [f"P{n}: {name}[N] packed" for n, name in enumerate(packed)]
    outs = [f"Z{n}: f32[N]" for n in range(len(names))]
    outs += [f"{z}{n}: f32[N]" for n in range(len(packed)) for z in "XY"]
    lines = [f"Z{n}[n] = f32(A{n}[n])" for n in range(len(names))]
    lines += [
        f"X{n}[n] = f32(P{n}[n])\nY{n}[n] = f32(P{n}[n + 1]) * 1.0" for n in range(len(packed))
    ]
    f = tcc.compile(f"in {', '.join(ins)}\nout {', '.join(outs)}\n" + "\n".join(lines))
    types = [dtypes.dtype(n) for n in (*names, *packed)]
    codes = [rng.permutation(np.resize(all_codes(t, rng), 520)) for t in types]
    given = codes[: len(names)] + [pack_rows(c, t) for c, t in zip(codes, types)][len(names) :]
    got = f(*given)
    want = [np.asarray(t.load(c)).astype(np.float32) for c, t in zip(codes, types)]
    for n, name in enumerate(names):
        np.testing.assert_array_equal(got[n], want[n], err_msg=name)
    for n, name in enumerate(packed):
        at, whole = len(names) + 2 * n, want[len(names) + n]
        np.testing.assert_array_equal(got[at], whole, err_msg=name)
        np.testing.assert_array_equal(got[at + 1], np.append(whole[1:], 0), err_msg=name)


def values(names: list[str], rng: np.random.Generator) -> np.ndarray:
    """float32 of all sizes, and the neighbours of the points where the types' rounding turns."""
    few = [rng.integers(0, 2**32, 3001, np.uint32).view(np.float32),
           np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 65519, 65520]),
           rng.standard_normal(500).astype(np.float32)]  # fmt: skip
    for name in names:
        if dtypes.dtype(name).bits > 16:
            continue
        rungs = ladder(dtypes.dtype(name))
        turns = rungs.values if "zero" in name else rungs.turn
        with np.errstate(over="ignore"):
            turns = turns[:: max(1, len(turns) // 1000)].astype(np.float32)
        few += [turns, *(np.nextafter(turns, np.float32(end)) for end in (0.0, np.inf))]
    x = np.concatenate(few)
    with np.errstate(invalid="ignore"):  # no signaling NaN
        return np.concatenate([x, -x]).astype(np.float64).astype(np.float32)


@pytest.mark.parametrize("names", groups([n for n in FLOATS if n != "f16"], 7), ids="-".join)
def test_values_round_to_the_nearest_code(names: list[str], rng: np.random.Generator) -> None:
    outs = ", ".join(f"B{n}: {name}[N]" for n, name in enumerate(names))
    lines = [f"B{n}[n] = {name * name.startswith('f16.')}(X[n])" for n, name in enumerate(names)]
    c = parse_cascade(f"in X: f32[N]\nout {outs}\n" + "\n".join(lines))
    x = values(names, rng)
    got, want = run(built(c), c, {"X": x}), interpret(c, {"X": x})
    for n, name in enumerate(names):
        held = same(got[f"B{n}"], want[f"B{n}"], dtypes.dtype(name))
        assert held.all(), (name, x[~held][:5])


@pytest.mark.parametrize("name", ["bf16", "f16", "f8e4m3fn"])
def test_doubles_and_integers_are_not_rounded_twice(name: str, rng: np.random.Generator) -> None:
    t, cast = dtypes.dtype(name), name if name == "f16" else ""
    c = parse_cascade(f"""
        in  X: f32[N], D: f64[N], I: i32[N]
        out B: {name}[N], R: f32[N], S: {name}[N], T: {name}[N]
        B[n] = {cast}(X[n])
        R[n] = f32({name}(X[n]))
        S[n] = {name}(D[n])
        T[n] = {cast}(I[n])""")
    x = values([name], rng)
    d = x.astype(np.float64) * (1 + 2.0**-40 * rng.integers(-1, 2, x.size))
    i = rng.integers(-(2**31), 2**31, x.size, np.int32) >> rng.integers(0, 31, x.size)
    inputs = {"X": x, "D": d, "I": i.astype(np.int32)}
    got, want = run(built(c), c, inputs), interpret(c, inputs)
    for out in ("B", "S", "T"):
        held = same(got[out], want[out], t)
        assert held.all(), (out, np.flatnonzero(~held)[:5])
    np.testing.assert_array_equal(got["R"], want["R"])


def test_integers_are_cut_or_saturate(rng: np.random.Generator) -> None:
    names = ["i4", "u3", "i4.sat", "u4.nearest.sat", "i5.nearest", "u1", "i20.sat"]
    outs = ", ".join(f"Z{n}: i64[N]" for n in range(2 * len(names)))
    lines = [f"Z{n}[n] = i64({name}(X[n]))" for n, name in enumerate(names)]
    lines += [f"Z{n + len(names)}[n] = i64({name}(I[n]))" for n, name in enumerate(names)]
    c = parse_cascade(f"in X: f32[N], I: i64[N]\nout {outs}\n" + "\n".join(lines))
    x = rng.standard_normal(300) * 10.0 ** rng.integers(-1, 7, 300)
    x = np.concatenate([x, [0.5, 1.5, -0.5, np.nan, np.inf, -np.inf]]).astype(np.float32)
    inputs = {"X": x, "I": rng.integers(-40, 40, x.size)}
    got, want = run(built(c), c, inputs), interpret(c, inputs)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("names", groups(["bf16", "f16", *SMALL], 16), ids="-".join)
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_matrix_products_in_every_type(
    names: list[str], second: bool, rng: np.random.Generator
) -> None:
    """The type is that of the first operand, or of the second."""
    names = names if second else names[::3]  # (the first one is read by longer programs)
    shape, product = ("K, N", "B[m, k] * f32(A{n}[k, n])") if second else ("M, K", "A{n}[m, k] * B[k, n]")  # fmt: skip
    ins = ", ".join(f"A{n}: {name}[{shape}]" for n, name in enumerate(names))
    outs = ", ".join(f"C{n}: f32[M, N]" for n in range(len(names)))
    lines = [f"C{n}[m, n] = {product.format(n=n)}" for n in range(len(names))]
    text = f"ranks M=3, K=33, N=18\nin B: f32[{'M, K' if second else 'K, N'}], {ins}\nout {outs}\n"
    c = parse_cascade(text + "\n".join(lines))
    inputs = random_inputs(c, {}, rng)
    got, want = run(built(c), c, inputs), interpret_with_bounds(c, inputs)
    for t in c.outputs:
        assert agreement(got[t.name], want[t.name].data, want[t.name].error).holds, t


def test_sums_are_rounded_once(rng: np.random.Generator) -> None:
    """300 additions of 1 to 256 would be lost in bf16."""
    c = parse_cascade(
        "in A: bf16[M, K]\nout Z: bf16[M], Y: f32[M]\nZ[m] = A[m, k]\nY[m] = Z[m] * 2.0"
    )
    codes = dtypes.encode(np.ones((3, 600)), "bf16")
    got = run(built(c), c, {"A": codes})
    assert dtypes.decode(got["Z"], "bf16").tolist() == [600.0] * 3
    assert got["Y"].tolist() == [1200.0] * 3


def test_attention_with_bf16_operands_agrees(rng: np.random.Generator) -> None:
    c = parse_cascade("""
        in  Q: bf16[P, E], K: bf16[M, E], V: bf16[M, F]
        out Z: bf16[P, F]
        QK[p, m] = Q[p, e] * K[m, e] / sqrt(E)
        GM[p]    = QK[p, m] :: max(m)
        SN[p, m] = exp(QK[p, m] - GM[p])
        SD[p]    = SN[p, m]
        Z[p, f]  = SN[p, m] / SD[p] * V[m, f]""")
    inputs = random_inputs(c, {"P": 9, "E": 16, "M": 40, "F": 16}, rng)
    want = interpret_with_bounds(c, inputs)["Z"]
    got = dtypes.decode(run(built(c), c, inputs)["Z"], "bf16")
    assert agreement(got, want.data, want.error).holds


def test_torch_tensors_keep_their_type(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    double = tcc.compile("in X: bf16[N], Y: f8e4m3fn[N]\nout Z: bf16[N]\nZ[n] = X[n] + Y[n]")
    x = torch.randn(37).to(torch.bfloat16)
    y = torch.randn(37).to(torch.float8_e4m3fn)
    got = double(x, y)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, (x.float() + y.float()).to(torch.bfloat16))
    reference = tcc.compile("in X: bf16[N], Y: f8e4m3fn[N]\nout Z: bf16[N]\nZ[n] = X[n] + Y[n]", target="numpy")  # fmt: skip
    assert torch.equal(reference(x, y), got)


@pytest.mark.parametrize("names", [
    ["f8e5m2.stochastic9", "bf16.stochastic1", "e8m0.stochastic2", "nf4.stochastic3", "posit8_0.stochastic4"],
    ["i4.stochastic5", "u7.stochastic6.sat", "f16.stochastic8", "posit16_1.stochastic7", "f8e4m3fn.stochastic18446744073709551615"],
], ids="-".join)  # fmt: skip
def test_stochastic_stores_draw_as_the_reference_does(
    names: list[str], rng: np.random.Generator
) -> None:
    outs = ", ".join(f"Z{n}: {name}[N, M]" for n, name in enumerate(names))
    lines = [f"Z{n}[n, m] = X[m, n]" for n in range(len(names))]
    c = parse_cascade(f"in X: f32[M, N]\nout {outs}\n" + "\n".join(lines))
    x = np.resize(values([], rng), (70, 50))
    got, want = run(built(c), c, {"X": x}), interpret(c, {"X": x})
    for n, name in enumerate(names):
        held = same(got[f"Z{n}"], want[f"Z{n}"], dtypes.dtype(name))
        assert held.all(), (name, x.T[~held][:5])


def test_64_bits_saturate(rng: np.random.Generator) -> None:
    c = parse_cascade("""
        in  X: f64[N], I: i64[N], U: u64[N]
        out A: u64[N], B: i64[N], C: u64[N], D: i64[N], E: i64[N]
        A[n] = u64.sat(X[n])
        B[n] = i64.sat(X[n])
        C[n] = u64.sat(U[n])
        D[n] = i64(u63.sat(X[n]))
        E[n] = i64(u5.sat(U[n]))""")
    x = np.array([0.5, -3.0, 1e19, 2e19, -2e19, 2.0**63, 2.0**62 * 1.5, np.nan, np.inf, -np.inf])
    u = rng.integers(0, 2**64, x.size, np.uint64)
    inputs = {"X": x, "I": u.astype(np.int64), "U": u}
    got, want = run(built(c), c, inputs), interpret(c, inputs)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
