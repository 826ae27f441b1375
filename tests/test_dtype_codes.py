"""Codes: each has its exact value, values round to the nearest one, towards zero or by chance, as exact arithmetic says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from dtype_samples import CODED, FLOATS, SMALL, all_codes, samples

from tcc import dtypes
from tcc.ir.dtype import DType, Float, Posit, Table
from tcc.ir.dtype_codes import float_form, integer_range, ladder
from tcc.ir.dtype_text import dtype
from tcc.ir.random_bits import philox

FORMED = sorted(
    {n for n in (*FLOATS, *SMALL) if isinstance(dtype(n).form, Float) and dtype(n).bits <= 9}
)


@pytest.mark.parametrize("name", sorted({*CODED, *SMALL}))
def test_every_code_decodes_and_encodes_back(name: str) -> None:
    t = dtype(name)
    codes = all_codes(t)
    values = dtypes.decode(codes, t)
    back = dtypes.encode(values, t)
    exact = ~np.isnan(values)
    if t.is_integer:
        np.testing.assert_array_equal(values, codes)
        np.testing.assert_array_equal(back, codes)
        return
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


@pytest.mark.parametrize("name", FORMED)
def test_floats_have_the_values_of_their_definition(name: str) -> None:
    t = dtype(name)
    found = dtypes.decode(all_codes(t), t)
    for code, value in enumerate(found):
        want = exact_value(code, t)
        assert (not np.isfinite(value)) if want is None else Fraction(float(value)) == want


@pytest.mark.parametrize(
    "name", [n for n in SMALL if "posit" in n] + ["posit10_1", "posit16_1", "posit3_8"]
)
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
        rest = digits[run + 1 :] + "0" * (t.bits + t.form.exponent)
        power = int(rest[: t.form.exponent] or "0", 2)
        fraction = Fraction(int(rest[t.form.exponent :], 2), 2 ** len(rest[t.form.exponent :]))
        want = Fraction(2) ** (regime * 2**t.form.exponent + power) * (1 + fraction)
        assert Fraction(float(value)) == (-want if negative else want)


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            n
            for n in (*CODED, *SMALL)
            if "posit" not in n and n[0] not in "iu" and dtype(n).bits < 13
        }
    ),
)
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
