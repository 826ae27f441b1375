"""Element types: every code decodes to its exact value and back, and values round as the oracles and exact arithmetic say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import tcc
from tcc import dtypes, targets
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DTYPES, DType, Float, Posit, Scaled, Table
from tcc.ir.dtype_codes import float_form, integer_range, ladder
from tcc.ir.dtype_text import NF4, dtype
from tcc.ir.interpret import interpret
from tcc.ir.random_bits import philox
from tcc.passes.derive import derivation
from tcc.passes.restrict import restrict

ROOT = Path(__file__).resolve().parent.parent
ML_DTYPES = {
    "bf16": "bfloat16", "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e4m3fnuz": "float8_e4m3fnuz",
    "f8e5m2fnuz": "float8_e5m2fnuz", "f8e4m3b11fnuz": "float8_e4m3b11fnuz", "f8e4m3": "float8_e4m3",
    "f8e3m4": "float8_e3m4", "f6e3m2": "float6_e3m2fn", "f6e2m3": "float6_e2m3fn", "f4e2m1": "float4_e2m1fn",
    "e8m0": "float8_e8m0fnu",
}  # fmt: skip
FLOATS = sorted(
    {f"f{w}e{e}m{w - 1 - e}" for w in range(3, 9) for e in range(1 + (w > 7), min(w - (w > 7), 11))}
    | {f"f{w}e{e}m{w - 1 - e}" for w in range(9, 17) for e in (2, 5, w - 6)}
    | {"f5e3m1fn", "f5e2m2fnuz", "f6e3m2ieee", "f8e4m3all", "f7e3m3b9", "f16e10m5", "f4e3m0", "f12e5m6fn"}
)  # fmt: skip
CODED = [*FLOATS, *ML_DTYPES, "pow2_4", "pow2_8", "e5m0", "nf4", "codebook[2, -1, 0, 0.5, 7]", "posit4_1",
         "posit8_0", "posit16_1", "posit5_2", "posit3_0", "f16.nearest"]  # fmt: skip


def all_codes(t: DType) -> np.ndarray:
    codes = np.arange(2**t.bits).astype(f"u{t.numpy.itemsize}")
    return codes.view(t.numpy)


def samples(t: DType, rng: np.random.Generator) -> np.ndarray:
    """Values of every size, all values of the type, and the neighbours of all points where rounding turns."""
    rungs = ladder(t)
    turns = rungs.turn[:: max(1, len(rungs.turn) // 500)]
    near = [turns, np.nextafter(turns, np.inf), np.nextafter(turns, -np.inf)]
    low = rungs.values[rungs.values > 0][0]
    spread = np.exp(rng.uniform(np.log(low / 8), np.log(rungs.values[-1] * 8), 500))
    x = np.concatenate([*near, spread, rungs.values[:: max(1, len(rungs.values) // 200)], [0.0]])
    return np.concatenate([x, -x])


# ---- spelling


@pytest.mark.parametrize("name", [
    *DTYPES, *CODED, "u3", "i5", "i1", "u63", "tf32", "f8e4m3fn.sat", "u4.nearest.sat", "f32.stochastic7", "i8.sat",
    "i4[group k 128, scale f16, zero u4]", "u4[group k 32, scale f16, zero 8]", "nf4[group n, scale f32]",
    "f4e2m1[group k 16, scale f8e4m3fn[scale f32]]", "u8[vector k 8, table f16, residual 2]",
    "u4[group k 32, scale u6[group k 256, scale f16], offset f16]", "codebook[-1, 0, 0.1]",
])  # fmt: skip
def test_what_a_type_prints_it_reads_back(name: str) -> None:
    t = dtype(name)
    assert dtype(str(t)) == t and dtype(str(t)).name == t.name
    assert dtype(f" {str(t).replace('[', ' [ ').replace(',', ' ,')} ") == t


def test_native_types_keep_their_identity() -> None:
    assert dtype("f32") is DTYPES["f32"]
    assert dtype("f16e5m10") is DTYPES["f16"]
    assert dtype("i16") is DTYPES["i16"]
    assert dtype("f16e8m7") == dtype("bf16")
    assert all(t.native and t.compute is t for t in DTYPES.values())


def test_values_fit_the_type_that_computes() -> None:
    computes = {
        "i4": "i32", "u31": "i32", "u32": "u32", "i33": "i64", "bf16": "f32", "tf32": "f32", "posit16_1": "f32",
        "f16e10m5": "f64", "f12e9m2": "f64", "e8m0": "f32", "e10m0": "f64", "i8.sat": "i8", "nf4": "f32",
        "i4[scale f64]": "f64", "codebook[0.1, 1]": "f64", "f16.zero": "f16",
    }  # fmt: skip
    assert {name: dtype(name).compute.name for name in computes} == computes


@pytest.mark.parametrize("name, code, message", [
    ("float", "T0121", "unknown dtype `float`"),
    ("i0", "T0146", "an integer has 1 to 64 bits, not 0"),
    ("u65", "T0146", "an integer has 1 to 64 bits, not 65"),
    ("f8e5m3", "T0146", "are 9 bits, not 8"),
    ("f8e0m7", "T0146", "an exponent has 1 to 10 bits"),
    ("f16e11m4", "T0146", "an exponent has 1 to 10 bits"),
    ("f17e8m8", "T0146", "3 to 16 bits, not 17"),
    ("f2e1m0", "T0146", "3 to 16 bits, not 2"),
    ("f8e7m0", "T0146", "inf and NaN need a mantissa"),
    ("f8e4m3b2000", "T0146", "with a bias of 2000"),
    ("posit40_2", "T0146", "3 to 16 bits, not 40"),
    ("posit16_7", "T0146", "more than f64 holds"),
    ("e1m0", "T0146", "2 to 10 bits"),
    ("pow2_12", "T0146", "2 to 11 bits"),
    ("u4.up", "T0146", "no rounding `up`"),
    ("u4.zero.nearest", "T0146", "a rounding already"),
    ("bool.sat", "T0146", "no rounding `sat`"),
    ("codebook[1]", "T0146", "1 value codes nothing"),
    ("codebook[a, b]", "T0147", "`a` is no number"),
    ("i4[group k 0, scale f16]", "T0147", "`0` is no integer from 1"),
    ("i4[group k 4]", "T0147", "neither a scale"),
    ("i4[scael f16]", "T0147", "unknown clause `scael`"),
    ("i4[scale f16, scale f32]", "T0147", "given twice"),
    ("i4[group k 2, group k 4, scale f16]", "T0147", "grouped twice"),
    ("i4[vector k 8, scale f16]", "T0147", "need a `table`"),
    ("i4[table f16]", "T0147", "indexed by u1 to u16"),
    ("i4[scale f16", "T0147", "expected `]`, not `the end`"),
    ("i4[group k 32, scale f8e4m3fn[group k 48, scale f32]]", "T0147", "do not fill groups of 48"),
    ("i4[scale f16][scale f16]", "T0147", "unexpected `[`"),
])  # fmt: skip
def test_a_wrong_type_is_refused(name: str, code: str, message: str) -> None:
    with pytest.raises(CompileError, match=message.replace("[", r"\[")) as caught:
        dtype(name)
    assert caught.value.diagnostic.code == code
    assert caught.value.diagnostic.helps


# ---- all codes


@pytest.mark.parametrize("name", CODED)
def test_every_code_decodes_and_encodes_back(name: str) -> None:
    t = dtype(name)
    codes = all_codes(t)
    values = dtypes.decode(codes, t)
    back = dtypes.encode(values, t)
    exact = ~np.isnan(values)
    if not isinstance(t.form, Float | Posit) and t.form is not None:  # equal values have one code
        np.testing.assert_array_equal(dtypes.decode(back, t)[exact], values[exact])
    else:
        np.testing.assert_array_equal(back.view(codes.dtype)[exact], codes[exact])
    if t.form is None or not isinstance(t.form, Float) or t.form.specials != "all":
        nan = dtypes.decode(back, t)[~exact]
        assert np.isnan(nan).all() or t.name.startswith("codebook")


def exact_value(code: int, t: DType) -> Fraction | None:
    """The definition of a float, in rationals; None for inf and NaN."""
    form = float_form(t)
    low, field = code % 2**form.mantissa, (code >> form.mantissa) % 2**form.exponent
    top = field == 2**form.exponent - 1
    if form.specials == "ieee" and top:
        return None
    if form.specials == "fn" and top and low == 2**form.mantissa - 1:
        return None
    if form.specials == "fnuz" and code == 2 ** (t.bits - 1):
        return None
    if field == 0 and form.subnormal:
        size = Fraction(low, 2**form.mantissa) * Fraction(2) ** (1 - form.bias)
    else:
        size = (1 + Fraction(low, 2**form.mantissa)) * Fraction(2) ** (field - form.bias)
    return -size if form.signed and code >> (t.bits - 1) else size


@pytest.mark.parametrize("name", [n for n in FLOATS if dtype(n).bits <= 9] + ["e5m0", "pow2_6"])
def test_floats_have_the_values_of_their_definition(name: str) -> None:
    t = dtype(name)
    found = dtypes.decode(all_codes(t), t)
    for code, value in enumerate(found):
        want = exact_value(code, t)
        assert (not np.isfinite(value)) if want is None else Fraction(float(value)) == want


@pytest.mark.parametrize("name", ["posit4_1", "posit8_0", "posit6_2", "posit10_1"])
def test_posits_have_the_values_of_their_definition(name: str) -> None:
    t = dtype(name)
    assert isinstance(t.form, Posit)
    for code, value in enumerate(dtypes.decode(all_codes(t), t)):
        if code in (0, 2 ** (t.bits - 1)):
            assert value == 0 if code == 0 else np.isnan(value)
            continue
        negative = code >> (t.bits - 1)
        digits = format((2**t.bits - code if negative else code), f"0{t.bits}b")[1:]
        run = len(digits) - len(digits.lstrip(digits[0]))
        regime = run - 1 if digits[0] == "1" else -run
        rest = digits[run + 1 :] + "0" * t.bits
        power = int(rest[: t.form.exponent] or "0", 2)
        fraction = Fraction(int(rest[t.form.exponent :], 2), 2 ** len(rest[t.form.exponent :]))
        want = Fraction(2) ** (regime * 2**t.form.exponent + power) * (1 + fraction)
        assert Fraction(float(value)) == (-want if negative else want)


# ---- rounding


@pytest.mark.parametrize("name", [n for n in CODED if "posit" not in n and dtype(n).bits < 13])
def test_nearest_is_nearest_and_ties_go_to_even(name: str, rng: np.random.Generator) -> None:
    t = dtype(name)
    rungs = ladder(t)
    every = [*rungs.values, *([] if np.isinf(rungs.beyond) else [rungs.beyond])]
    x = samples(t, rng)
    x = x[rng.permutation(len(x))[:100]]
    x = np.abs(x) if not isinstance(t.form, Table) else x
    for value, code in zip(x, dtypes.encode(x, t), strict=True):
        v = Fraction(float(value))
        if v == 0 and not rungs.signed and isinstance(t.form, Float):
            continue
        at = int(np.searchsorted(every, value))  # only neighbours can be nearest
        apart = {i: abs(v - Fraction(float(every[i]))) for i in range(max(0, at - 2), min(len(every), at + 2))}  # fmt: skip
        best = [i for i, a in apart.items() if a == min(apart.values())]
        choice = best[0] if len(best) == 1 or not rungs.odd[best[0]] else best[1]
        got = float(dtypes.decode(np.asarray(code), t))
        if choice == len(rungs.values):
            assert not np.isfinite(got)
        else:
            assert got == every[choice], (value, got)


@pytest.mark.parametrize("name", [*CODED, "f32", "tf32", "f64"])
def test_zero_rounds_towards_zero_and_stochastic_to_a_neighbour(
    name: str, rng: np.random.Generator
) -> None:
    t = dtype(name.removesuffix(".nearest"))
    x = samples(t, rng) if t.bits <= 16 else rng.standard_normal(500) * 10.0 ** rng.integers(-40, 38, 500)  # fmt: skip
    if t.name.startswith("e"):
        x = np.abs(x)[x != 0]
    top = dtypes.decode(dtypes.encode([1e300, -1e300], f"{t}.sat"), f"{t}.sat")
    x = x[(x <= top[0]) & (x >= top[1])]
    least = 0.0 if not t.name.startswith("e") else ladder(t).values[0]
    low = dtypes.decode(dtypes.encode(x, f"{t}.zero"), f"{t}.zero").astype(float)
    inner = np.abs(x) >= least
    assert (np.abs(low) <= np.abs(x))[inner].all() or t.name.startswith(("nf4", "codebook"))
    any_one = dtypes.decode(dtypes.encode(x, f"{t}.stochastic5"), f"{t}.stochastic5").astype(float)
    with np.errstate(over="ignore"):
        held = np.isin(x, low)  # what the type holds, stays
    np.testing.assert_array_equal(any_one[held], x[held])
    assert dtypes.encode(low, f"{t}.stochastic5").tobytes() == dtypes.encode(low, f"{t}.zero").tobytes()  # fmt: skip


def test_stochastic_rounding_has_the_right_mean_and_depends_on_seed_and_position() -> None:
    x = np.full(200_000, 1.1)
    low, high = 1.0, 1.125  # neighbours in f8e4m3fn
    found = dtypes.decode(dtypes.encode(x, "f8e4m3fn.stochastic3"), "f8e4m3fn")
    assert set(found) == {low, high}
    share = (found == high).mean()
    assert abs(share - 0.8) < 5 * (0.16 / x.size) ** 0.5
    again = dtypes.encode(x[:100], "f8e4m3fn.stochastic3")
    np.testing.assert_array_equal(dtypes.decode(again, "f8e4m3fn"), found[:100])
    late = dtypes.encode(x[:50], "f8e4m3fn.stochastic3", positions=np.arange(50, 100))
    np.testing.assert_array_equal(late, again[50:])
    assert (dtypes.encode(x[:100], "f8e4m3fn.stochastic4") != again).any()
    integers = dtypes.encode(np.full(100_000, -2.25), "i4.stochastic1")
    assert abs((integers == -3).mean() - 0.25) < 0.01 and set(integers) == {-3, -2}


def test_random_bits_are_those_of_philox() -> None:
    """The known answers of Random123's test suite."""
    zero = philox((0, 0, 0, 0), (0, 0))
    assert [int(v) for v in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    pi = philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
    assert [int(v) for v in pi] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_overflow_is_inf_or_nan_and_saturates_on_demand() -> None:
    big = np.array([1e30, -1e30, np.inf, -np.inf])

    def of(name: str) -> list[float]:
        return dtypes.decode(dtypes.encode(big, name), name).tolist()

    assert of("f8e5m2") == [np.inf, -np.inf, np.inf, -np.inf]
    assert np.isnan(of("f8e4m3fn")).all() and np.isnan(of("f8e4m3fnuz")).all()
    assert of("f8e5m2.sat") == [57344.0, -57344.0] * 2
    assert of("f8e4m3fn.sat") == [448.0, -448.0] * 2
    assert of("f6e3m2") == [28.0, -28.0] * 2
    assert of("f8e5m2.zero") == [57344.0, -57344.0, np.inf, -np.inf]
    assert of("nf4") == [1.0, -1.0] * 2
    assert of("posit8_0")[:2] == [64.0, -64.0]
    assert dtypes.encode([1e9, -1e9, 0.4, -0.6, 15.5], "u4.nearest.sat").tolist() == [
        15,
        0,
        0,
        0,
        15,
    ]
    assert dtypes.encode([7.9, 8.1, -8.9, -9.1], "i4").tolist() == [7, -8, -8, 7]
    assert dtypes.encode([7.5, 6.5, -8.5], "i4.nearest").tolist() == [-8, 6, -8]
    assert dtypes.encode([np.nan, 2e19, -2e19], "i64.sat").tolist() == [0, 2**63 - 1, -(2**63)]
    assert dtypes.encode([np.nan, 2e19, -1.0], "u64.sat").tolist() == [0, 2**64 - 1, 0]


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 7, 8, 12, 31, 33, 63, 64])
@pytest.mark.parametrize("kind", ["i", "u"])
def test_integers_wrap_and_saturate(kind: str, bits: int, rng: np.random.Generator) -> None:
    t, s = dtype(f"{kind}{bits}"), dtype(f"{kind}{bits}.sat")
    low, high = integer_range(t)
    x = rng.integers(-(2**63), 2**63 - 1, 50, np.int64, endpoint=True)
    x = np.concatenate([x >> rng.integers(0, 63, 50), x, [0, -1, 1]])
    half = 2 ** (bits - 1)
    wrapped = [(int(v) - low) % (2 * half) + low for v in x]
    assert [int(v) for v in dtypes.encode(x, t)] == wrapped
    assert [int(v) for v in dtypes.encode(x, s)] == [min(max(int(v), low), high) for v in x]
    held = dtypes.encode(x, t)
    np.testing.assert_array_equal(dtypes.decode(held, t), held)
    np.testing.assert_array_equal(dtypes.unpack(dtypes.pack(held, t), t, held.shape), held)


def test_wide_floats_round_as_numpy_does(rng: np.random.Generator) -> None:
    x = rng.standard_normal(2000) * 10.0 ** rng.integers(-50, 50, 2000)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(dtypes.encode(x, "f32.nearest"), x.astype(np.float32))
        np.testing.assert_array_equal(dtypes.encode(x, "f16.nearest"), x.astype(np.float16))
        assert (np.abs(dtypes.encode(x, "f32.zero")) <= np.abs(x)).all()
    codes = np.arange(2**19, dtype=np.uint32)
    values = dtypes.decode(codes, "tf32")
    np.testing.assert_array_equal(values, (codes << np.uint32(13)).view(np.float32))
    number = ~np.isnan(values)
    np.testing.assert_array_equal(dtypes.encode(values, "tf32")[number], codes[number])


# ---- oracles


@pytest.mark.parametrize("name", ML_DTYPES)
def test_ml_dtypes_agrees(name: str, rng: np.random.Generator) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    t, other = dtype(name), np.dtype(getattr(ml_dtypes, ML_DTYPES[name]))
    codes = all_codes(t)
    with np.errstate(all="ignore"):
        want = codes.view(other).astype(np.float64)
        np.testing.assert_array_equal(dtypes.decode(codes, t), want)
        np.testing.assert_array_equal(dtypes.decode(codes.view(other), t), want)
        # float32, since ml_dtypes rounds float64 twice; for the same reason no subnormals of float32
        x = samples(t, rng).astype(np.float32)
        x = np.concatenate([x[np.abs(x) >= 2.0**-126], np.float32([np.inf, -np.inf, 3e38, -3e38])])
        got, wanted = dtypes.encode(x, t), x.astype(other)
        same = (got == wanted.view(t.numpy)) | np.isnan(wanted.astype(np.float64))
    assert same.all(), x[~same]


@pytest.mark.parametrize("name", ["bf16", "f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz"])
def test_torch_agrees(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from tcc.stored import torch_dtype

    t = dtype(name)
    wanted = torch_dtype(torch, t)
    codes = all_codes(t)
    bits = torch.uint16 if t.bits == 16 else torch.uint8
    want = torch.from_numpy(codes).view(wanted).to(torch.float64).numpy()
    np.testing.assert_array_equal(dtypes.decode(codes, t), want)
    with np.errstate(over="ignore"):
        x = samples(t, rng).astype(np.float32)
    x = x[np.abs(x) <= ladder(t).values[-1]]  # torch's overflow depends on its version
    got = torch.from_numpy(x).to(wanted).view(bits).numpy()
    np.testing.assert_array_equal(dtypes.encode(x, t), got)


@pytest.mark.parametrize("name", ["posit8_0", "posit16_1"])
def test_softposit_agrees(name: str, rng: np.random.Generator) -> None:
    softposit = pytest.importorskip("softposit", reason="softposit is not installed")
    t = dtype(name)
    made = softposit.posit8 if t.bits == 8 else softposit.posit16
    codes = np.delete(all_codes(t), 2 ** (t.bits - 1))[:: t.bits // 8]
    assert [float(made(bits=int(c))) for c in codes] == dtypes.decode(codes, t).tolist()
    x = samples(t, rng)
    assert dtypes.encode(x, t).tolist() == [made(float(v)).v.v for v in x]


def test_gguf_agrees(rng: np.random.Generator) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    kinds = gguf.GGMLQuantizationType
    x = rng.standard_normal((3, 64)).astype(np.float32)
    for kind, name in (("Q8_0", "i8[group k 32, scale f16]"), ("Q4_0", "u4[group k 32, scale f16, zero 8]"),
                       ("Q4_1", "u4[group k 32, scale f16, offset f16]"),
                       ("MXFP4", "f4e2m1[group k 32, scale e8m0]")):  # fmt: skip
        t = dtype(name)
        assert isinstance(t.form, Scaled)
        packed = gguf.quants.quantize(x, kinds[kind])
        blocks = packed.reshape(3, 2, -1)
        heads = {"Q4_1": 4, "MXFP4": 1}.get(kind, 2)
        head, body = blocks[..., :heads], blocks[..., heads:]
        if kind == "Q8_0":
            codes = body.view(np.int8)
        else:
            codes = np.concatenate([body & 15, body >> 4], axis=-1)
        assert t.form.scale is not None
        numbers = np.ascontiguousarray(head).view(t.form.scale.numpy)
        parts = {"scale": numbers[..., 0]}
        if t.form.offset is not None:
            parts["offset"] = numbers[..., 1]
        w = dtypes.Encoded(t, ("n", "k"), codes.reshape(3, 64), parts)
        want = gguf.quants.dequantize(packed, kinds[kind])
        np.testing.assert_array_equal(w.decode().astype(np.float32), want)


def test_nf4_is_that_of_bitsandbytes() -> None:
    """Quantiles of the normal distribution, as create_normal_map makes them."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    up = stats.norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    down = -stats.norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    want = np.sort(np.concatenate([up, [0.0], down]))
    np.testing.assert_allclose(NF4, want / want.max(), atol=1e-6)


# ---- scaled types


def test_a_scaled_tensor_means_code_minus_zero_times_scale_plus_offset(
    rng: np.random.Generator,
) -> None:
    codes = rng.integers(0, 16, (6, 8)).astype(np.uint8)
    scale = rng.standard_normal((3, 8 // 4)).astype(np.float16)
    zero = rng.integers(0, 16, (3, 2)).astype(np.uint8)
    w = dtypes.Encoded(dtype("u4[group n 2, group k 4, scale f16, zero u4]"), ("n", "k"), codes,
                       {"scale": scale, "zero": zero})  # fmt: skip
    for n in range(6):
        for k in range(8):
            want = (float(codes[n, k]) - float(zero[n // 2, k // 4])) * float(scale[n // 2, k // 4])
            assert w.decode()[n, k] == want


def test_two_levels_of_scales_multiply(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 64))
    for name, inner_shape in (("f4e2m1[group k 16, scale f8e4m3fn[scale f32]]", (1, 1)),
                              ("u4[group k 8, scale u8.nearest[group k, scale f16], zero u4]", (4, 1)),
                              ("i4[group k 8, scale f8e5m2[group k 32, scale f32]]", (4, 2))):  # fmt: skip
        w = dtypes.encode(x, name, "n k")
        scale = w.parts["scale"]
        assert scale.parts["scale"].shape == inner_shape
        assert np.abs(w.decode() - x).max() < 0.45, name
        again = dtypes.Encoded(w.dtype, w.axes, w.codes, w.parts)
        np.testing.assert_array_equal(again.decode(), w.decode())


@pytest.mark.parametrize("name, error", [
    ("i8[group k 32, scale f16]", 0.02), ("u4[group k 16, scale f16, zero u4]", 0.25), ("nf4[group k 16, scale f32]", 0.4),
    ("u4[group k 16, scale f16, offset f16]", 0.25), ("f8e4m3fn[scale f32]", 0.12), ("posit8_0[group n, scale f32]", 0.6),
    ("f6e2m3[group k 32, scale e8m0]", 0.3), ("u4[group k 32, scale f16, zero 8]", 0.4),
])  # fmt: skip
def test_the_quantiser_comes_near(name: str, error: float, rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 32))
    found = dtypes.encode(x, name, "n k").decode()
    assert np.abs(found - x).max() < error


def test_mx_scales_are_powers_of_two_of_the_largest() -> None:
    w = dtypes.encode([[0.1, 6.0, -24.0, 1.0], [0.0, 0.0, 0.0, 0.0]], "f4e2m1[group k 4, scale e8m0]", "n k")  # fmt: skip
    assert dtypes.decode(w.parts["scale"], "e8m0").tolist() == [[4.0], [1.0]]
    assert w.decode()[0].tolist() == [0.0, 6.0, -24.0, 0.0]


def test_tables_are_looked_up_by_vectors_and_added_by_levels(rng: np.random.Generator) -> None:
    table = rng.standard_normal((2, 8, 4))
    t = dtype("u3[vector k 4, table f32, residual 2]")
    codes = rng.integers(0, 8, (2, 5, 3)).astype(np.uint8)
    stored = table.astype(np.float32)
    w = dtypes.Encoded(t, ("n", "k"), codes, {"table": stored})
    want = np.zeros((5, 12))
    for r in range(2):
        for n in range(5):
            for k in range(12):
                want[n, k] += float(stored[r, codes[r, n, k // 4], k % 4])
    np.testing.assert_array_equal(w.decode(), want)
    made = dtypes.encode(w.decode(), t, "n k", table=stored)
    assert np.abs(made.decode() - want).mean() <= np.abs(want).mean()
    one = dtypes.encode(want, "u3[vector n 5, table f32]", "n k", table=want[:, :8].T)
    np.testing.assert_array_equal(one.decode()[:, :8], want[:, :8].astype(np.float32))
    scalar = dtypes.encode([[0.9, -2.0]], "u2[table bf16]", "n k", table=[0.0, 1.0, -2.0, 4.0])
    assert scalar.codes.tolist() == [[1, 2]] and scalar.decode().tolist() == [[1.0, -2.0]]


def test_parts_of_wrong_shapes_are_refused() -> None:
    t = dtype("i4[group k 4, scale f16]")
    codes = np.zeros((2, 8), np.int8)
    cases = [
        (lambda: dtypes.Encoded(t, ("n", "k"), codes), "T0148", "needs its `scale`"),
        (lambda: dtypes.Encoded(t, ("n", "k"), codes, {"scale": np.ones((2, 3), "f2")}), "T0148", "not \\[2, 2\\]"),
        (lambda: dtypes.Encoded(t, ("n", "k"), codes, {"scale": np.ones((2, 2), "f2"), "zero": 1}), "T0148", "no `zero`"),
        (lambda: dtypes.Encoded(t, ("n", "m"), codes), "T0147", "names the rank `k`"),
        (lambda: dtypes.encode(np.ones((2, 6)), t, "n k"), "T0147", "do not divide the 6"),
        (lambda: dtypes.encode(np.ones((2, 6)), t, "k"), "T0147", "need as many ranks"),
        (lambda: dtypes.encode(np.ones(4), "u2[table f16]", "k"), "T0148", "needs its table"),
        (lambda: dtypes.decode(np.uint8([3, 64]), "f6e3m2"), "T0148", "element \\[1\\] is 64"),
        (lambda: dtypes.decode(np.int8([-9]), "i4"), "T0148", "values from -8 to 7"),
        (lambda: dtypes.decode(np.ones(2), "f8e5m2"), "T0148", "no codes of f8e5m2"),
        (lambda: dtypes.decode(np.ones(2)), "T0148", "do not say what they mean"),
    ]  # fmt: skip
    for make, code, message in cases:
        with pytest.raises(CompileError, match=message) as caught:
            make()  # type: ignore[no-untyped-call]
        assert caught.value.diagnostic.code == code and caught.value.diagnostic.helps


def test_codes_pack_without_gaps() -> None:
    assert dtypes.pack(np.uint8([5, 2, 7, 1]), "u3").tolist() == [0b11010101, 0b00000011]
    assert dtypes.pack(np.int8([-1, 1]), "i4").tolist() == [0x1F]
    back = dtypes.unpack(np.uint8([0x1F]), "i4", (2,))
    assert back.tolist() == [-1, 1] and back.dtype == np.int8


# ---- in programs


def test_programs_print_and_read_their_types() -> None:
    text = """
        ranks K=8
        in  A: f8e4m3fn[M, K], W: i4[group k 4, scale f8e5m2[scale f32], zero u4][N, K], T: codebook[-1, 0, 1][N]
        out C: bf16[M, N], D: u4.nearest.sat[M], E: f4e2m1[group n 2, scale e8m0][M, N]
        C[m, n] = A[m, k] * W[n, k] + T[n]
        D[m] = u4.nearest.sat(A[m, k])
        E[m, n] = C[m, n] + f8e5m2(A[m, 0]) * codebook[0.5, 2](A[m, 1])"""
    c = parse_cascade(text)
    assert str(parse_cascade(str(c))) == str(c)
    assert "W: i4[group k 4, scale f8e5m2[scale f32], zero u4][N, K]" in str(c)
    assert [t.dtype.name for t in c.tensors.values()] == [t.dtype.name for t in (*c.inputs, *c.outputs)]  # fmt: skip


def test_words_of_types_stay_names_of_variables() -> None:
    c = parse_cascade("""
        ranks GROUP=3, SCALE=2
        in  X: f32[GROUP, SCALE], u3: f32[GROUP]
        out Z: f32[SCALE]
        Z[scale] = X[group, scale] * u3[group]""")
    got = interpret(c, {"X": np.ones((3, 2), "f"), "u3": np.ones(3, "f")})["Z"]
    assert got.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("text, code, place, message", [
    ("in A: i65[N]\nout Z: f32\nZ = A[n]", "T0146", (1, 7, 10), "1 to 64 bits, not 65"),
    ("in A: f8e9m9[N]\nout Z: f32\nZ = A[n]", "T0146", (1, 7, 13), "are 19 bits, not 8"),
    ("in A: i4[group m 2, scale f16][N]\nout Z: f32\nZ = A[n]", "T0147", (1, 4, 34), "names the rank `m`"),
    ("in A: i4[group n 2, scael f16][N]\nout Z: f32\nZ = A[n]", "T0147", (1, 7, 31), "unknown clause `scael`"),
    ("ranks N=5\nin A: i4[group n 2, scale f16][N]\nout Z: f32\nZ = A[n]", "T0147", (2, 4, 34), "do not divide the 5"),
    ("in A: f32[N]\nout Z: f32[N]\nZ[n] = i4[group n 2, scale f16](A[n])", "T0147", (3, 8, 38), "an expression can not be"),
    ("in A: f32[N]\nout Z: f32[N]\nZ[n] = bf16.stochastic3(A[n])", "T0147", (3, 8, 30), "an expression can not be"),
    ("in A: f64[N]\nout Z: bf16[N]\nZ[n] = A[n]", "T0116", (3, 1, 12), "`Z` is bf16, but its definition gives f64"),
    ("in A: f32[N]\nout Z: u3[N]\nZ[n] = A[n]", "T0116", (3, 1, 12), "`Z` is u3, but its definition gives f32"),
])  # fmt: skip
def test_wrong_types_in_programs_are_shown_where_they_stand(
    text: str, code: str, place: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(CompileError) as caught:
        parse_cascade(text)
    d = caught.value.diagnostic
    assert d.code == code and message in d.message and d.helps and d.span is not None
    assert (d.span.line, d.span.column, d.span.end_column) == place


def test_what_is_read_is_decoded_and_what_is_written_is_rounded_once(
    rng: np.random.Generator,
) -> None:
    c = parse_cascade("""
        in  A: f8e4m3fn[M, K], W: i4[group k 4, scale f16, zero u4][N, K]
        out C: bf16[M, N], D: f32[M, N]
        C[m, n] = A[m, k] * W[n, k]
        D[m, n] = C[m, n] * 2.0""")
    a = dtypes.encode(rng.standard_normal((3, 8)), "f8e4m3fn")
    w = dtypes.encode(rng.standard_normal((5, 8)), "i4[group k 4, scale f16, zero u4]", "n k")
    exact = dtypes.decode(a, "f8e4m3fn") @ w.decode().T
    got = interpret(c, {"A": a, "W": w})
    np.testing.assert_array_equal(got["C"], dtypes.encode(exact, "bf16"))
    np.testing.assert_array_equal(got["D"], 2 * dtypes.decode(got["C"], "bf16"))


def test_stores_draw_their_random_numbers_by_position(rng: np.random.Generator) -> None:
    c = parse_cascade("in X: f32[M, N]\nout Z: f8e5m2.stochastic9[N, M]\nZ[n, m] = X[m, n] * 3.0")
    x = rng.standard_normal((4, 6)).astype(np.float32)
    want = dtypes.encode(x.T.astype(np.float64) * 3, "f8e5m2.stochastic9")
    np.testing.assert_array_equal(interpret(c, {"X": x})["Z"], want)


def test_reductions_into_narrow_types_are_explicit_after_restrict() -> None:
    c = parse_cascade(
        "in A: bf16[M, K]\nout Z: bf16[M], Y: u3[M]\nZ[m] = A[m, k]\nY[m] = i32(A[m, 0])"
    )
    made = restrict(c, targets.find("cpu"))
    assert [str(d) for d in made.definitions] == [
        "Z_exact[m] = A[m, k]", "Z[m] = bf16(Z_exact[m])", "Y[m] = u3(i32(A[m, 0]))",
    ]  # fmt: skip
    assert made.tensors["Z_exact"].dtype.name == "f32"
    assert restrict(made, targets.find("cpu")) is made


def test_a_rounded_reference_is_a_barrier_for_one_walk() -> None:
    c = parse_cascade("""
        in  X: f32[M, P]
        out Z: f32[P], G: bf16[P]
        G[p] = X[m, p] :: max(m)
        Z[p] = exp(X[m, p] - G[p])""")
    report = derivation(restrict(c, targets.find("cpu")))
    assert [b.why for b in report.barriers if "rounds" in b.why] or not report.program.joints


def test_calls_take_encoded_tensors_and_arrays_of_ml_dtypes(rng: np.random.Generator) -> None:
    text = "in A: bf16[M, K], W: i4[group k 4, scale f16][N, K]\nout C: f32[M, N]\nC[m, n] = A[m, k] * W[n, k]"
    program = tcc.compile(text, target="numpy")
    a = dtypes.encode(rng.standard_normal((3, 8)), "bf16")
    w = dtypes.encode(rng.standard_normal((5, 8)), "i4[group k 4, scale f16]", "n k")
    got = program(a, w)
    np.testing.assert_allclose(got, dtypes.decode(a, "bf16") @ w.decode().T, rtol=1e-6)
    with pytest.raises(CompileError, match="is no tensor of i4"):
        program(a, np.ones((5, 8)))
    with pytest.raises(CompileError, match="`A`: float32 numbers are no codes of bf16"):
        program(np.ones((3, 8), np.float32), w)
    np.testing.assert_allclose(tcc.compile(text, target="cpu")(a, w), got, rtol=1e-5, atol=1e-5)
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    np.testing.assert_array_equal(program(a.view(ml_dtypes.bfloat16), w), got)
