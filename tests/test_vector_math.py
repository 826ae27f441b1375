"""The generated vector functions against NumPy in double precision."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest

from tcc.backends.c import vector_math
from tcc.backends.c.toolchain import Toolchain, build, find_toolchain
from tcc.ir.diagnostics import CompileError

WIDTHS = ("f32", "f32x4", "f32x8", "f32x16")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.exp(-np.abs(x)), 1.0) / (1.0 + np.exp(-np.abs(x)))


REFERENCE = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
EXACT = {
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "sign": np.sign,
}


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain()


def lanes(kind: str) -> int:
    return int(kind.split("x")[1]) if "x" in kind else 1


def unary_source(names: list[str], kinds: tuple[str, ...]) -> str:
    text = vector_math.preamble([f"{f}_{k}" for f in (*names, "ld", "st") for k in kinds], 8)
    for kind in kinds:
        element = kind.split("x")[0]
        for name in names:
            text += (
                f"void run_{name}_{kind}(const {element} *x, {element} *y, i64 n) {{"
                f" for (i64 i = 0; i < n; i += {lanes(kind)})"
                f" st_{kind}(y + i, {name}_{kind}(ld_{kind}(x + i))); }}\n"
            )
    return text


def run(path: Path, function: str, *arrays: np.ndarray, result: np.ndarray) -> np.ndarray:
    call = getattr(ctypes.CDLL(str(path)), function)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, result)]
    call(*pointers, ctypes.c_int64(arrays[0].size))
    return result


def points(name: str) -> np.ndarray:
    """Every exponent densely, the interesting interval, and specials; a multiple of 16 of them."""
    random = np.random.default_rng(7)
    bits = random.integers(0, 2**32, 2**17, dtype=np.uint64).astype(np.uint32).view(np.float32)
    wide = {"sin": 1e4, "cos": 1e4, "erf": 5.0, "tanh": 10.0, "log1p": 3.0}.get(name, 110.0)
    near = random.uniform(-wide, wide, 2**18)
    unit = random.uniform(-2, 2, 2**17)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, 1.0]
    special += [-1.0, 88.72283, 88.72284, -87.33655, -103.97208, 0.625, 0.925, 128.0, -149.0, 2.5]
    multiples = np.arange(-6366, 6367) * (np.pi / 2)
    rest = [np.asarray(part).astype(np.float32) for part in (near, unit, special, multiples)]
    x = np.concatenate([bits, *rest])
    return np.concatenate([x, np.ones(-x.size % 16, np.float32)])


def ulps(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """|got - wanted| in units in the last place of float32; inf where an inf or NaN is wrong."""
    with np.errstate(all="ignore"):
        rounded = wanted.astype(np.float32)
        exponent = np.maximum(np.floor(np.log2(np.abs(wanted))), -126)  # subnormals share a ulp
        error = np.abs(got.astype(np.float64) - wanted) / np.exp2(exponent - 23)
        near_limit = np.isfinite(wanted) & (np.abs(wanted) > 3.402823e38)  # may round to inf
    special = ~np.isfinite(rounded) | ~np.isfinite(got)
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded)) | near_limit
    return np.where(special, np.where(same, 0.0, np.inf), error)


@pytest.mark.parametrize("flags", [(), ("-mno-avx512f", "-mno-fma"), ("-mno-avx", "-mno-sse4.1")])
def test_f32_errors_stay_within_the_stated_bounds(
    toolchain: Toolchain, flags: tuple[str, ...]
) -> None:
    import dataclasses
    import platform

    if flags and platform.machine() != "x86_64":
        pytest.skip("flags of x86")
    toolchain = dataclasses.replace(toolchain, target_flags=(*toolchain.target_flags, *flags))
    kinds = WIDTHS if not flags else ("f32", "f32x8")
    path = build(unary_source(list(REFERENCE), kinds), toolchain)
    worst = {}
    for name, reference in REFERENCE.items():
        x = points(name)
        with np.errstate(all="ignore"):
            wanted = reference(x.astype(np.float64))
        for kind in kinds:
            got = run(path, f"run_{name}_{kind}", x, result=np.empty_like(x))
            error = ulps(got, wanted)
            where = int(np.argmax(error))
            worst[f"{name}_{kind}"] = (float(error[where]), float(x[where]), float(got[where]))
    print(worst)
    over = {k: v for k, v in worst.items() if not v[0] <= vector_math.ULP[k.split("_")[0]]}
    assert not over


def test_roundings_and_signs_are_exact(toolchain: Toolchain) -> None:
    path = build(unary_source(list(EXACT), (*WIDTHS, "f64x4")), toolchain)
    for name, reference in EXACT.items():
        for kind in (*WIDTHS, "f64x4"):
            with np.errstate(all="ignore"):  # a signalling NaN warns when it is widened
                x = points(name).astype(np.float64 if "64" in kind else np.float32)
            got = run(path, f"run_{name}_{kind}", x, result=np.empty_like(x))
            with np.errstate(all="ignore"):
                wanted = reference(x)
            np.testing.assert_array_equal(got, wanted, err_msg=f"{name}_{kind}")


@pytest.mark.parametrize("name", ["exp", "log", "log1p", "expm1", "tanh", "sigmoid", "erf", "sin"])
def test_f64_is_libm_in_each_lane(toolchain: Toolchain, name: str) -> None:
    path = build(unary_source([name], ("f64", "f64x4", "f64x8")), toolchain)
    x = np.concatenate([np.random.default_rng(1).uniform(-30, 30, 1019), [0.0, -0.0, np.inf]])
    x = np.concatenate([x, [-np.inf, np.nan]])
    with np.errstate(all="ignore"):
        wanted = REFERENCE[name](x)
    for kind in ("f64", "f64x4", "f64x8"):
        got = run(path, f"run_{name}_{kind}", x, result=np.empty_like(x))
        np.testing.assert_allclose(got, wanted, rtol=1e-15, atol=0)


def test_odd_functions_keep_the_sign_of_zero(toolchain: Toolchain) -> None:
    names = ["sin", "tanh", "erf", "expm1", "log1p"]
    path = build(unary_source(names, ("f32x8",)), toolchain)
    x = np.full(16, -0.0, np.float32)
    for name in names:
        assert np.signbit(run(path, f"run_{name}_f32x8", x, result=np.empty_like(x))).all(), name


@pytest.mark.parametrize("kind", ["f32", "f32x4", "f32x8", "f32x16", "f64x2", "f64x4", "f64x8"])
def test_min_and_max_propagate_nan(toolchain: Toolchain, kind: str) -> None:
    text = vector_math.preamble([f"{f}_{kind}" for f in ("min", "max", "ld", "st", "pow")], 8)
    element = kind.split("x")[0]
    for name in ("min", "max", "pow"):
        text += (
            f"void run_{name}(const {element} *a, const {element} *b, {element} *c, i64 n) {{"
            f" for (i64 i = 0; i < n; i += {lanes(kind)})"
            f" st_{kind}(c + i, {name}_{kind}(ld_{kind}(a + i), ld_{kind}(b + i))); }}\n"
        )
    path = build(text, toolchain)
    values = np.array([1.0, -2.0, np.nan, np.inf, -np.inf, 0.0, 3.5, 1e-40], np.float64)
    dtype = np.float32 if element == "f32" else np.float64
    a, b = (v.ravel().astype(dtype) for v in np.meshgrid(values, values))
    for name, reference in (("min", np.minimum), ("max", np.maximum)):
        got = run(path, f"run_{name}", a, b, result=np.empty_like(a))
        np.testing.assert_array_equal(got, reference(a, b))
    got = run(path, "run_pow", a, b, result=np.empty_like(a))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(got, np.power(a, b), rtol=1e-6)
        x = np.random.default_rng(5).uniform(0.01, 20, 4096).astype(dtype)
        wanted = np.power(x.astype(np.float64), x[::-1].astype(np.float64))
    got = run(path, "run_pow", x, x[::-1].copy(), result=np.empty_like(x))
    if element == "f32":
        assert ulps(got, wanted).max() <= vector_math.ULP["pow"]


@pytest.mark.parametrize("element", ["f32", "f64", "i32", "i64"])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_memory_lanes_and_folds(toolchain: Toolchain, element: str, size: int) -> None:
    dtype = np.dtype({"f": "float", "i": "int"}[element[0]] + element[1:])
    n = size // dtype.itemsize
    t = f"{element}x{n}"
    names = ["ldn", "stn", "ld", "st", "bc", "iota", "select", "gather", "hsum", "hprod", "hmin"]
    names += ["hmax", "lt", "firstn"]
    text = vector_math.preamble([f"{name}_{t}" for name in names], 8)
    mask = "i" + element[1:]
    text += f"""
void part(const {element} *x, {element} *y, i64 n) {{ stn_{t}(y, ldn_{t}(x, n) + 1, n); }}
void zeros(const {element} *x, {element} *y, i64 n) {{ st_{t}(y, ldn_{t}(x, n / 2)); }}
void folds(const {element} *x, {element} *y, i64 n) {{
  {t} v = ld_{t}(x);
  y[0] = hsum_{t}(v); y[1] = hprod_{t}(v);
  y[2] = hmin_{t}(v); y[3] = hmax_{t}(v);
}}
void below(const {element} *x, {element} *y, i64 n) {{
  {t} v = ld_{t}(x);
  st_{t}(y, select_{t}(lt_{t}(v, bc_{t}(3)), v, iota_{t}()));
}}
void turn(const {element} *x, {element} *y, i64 n) {{
  {mask}x{n} index;
  for (int i = 0; i < {n}; i++) index[i] = {n} - 1 - i;
  st_{t}(y, gather_{t}(x, index));
}}
"""
    path = build(text, toolchain)
    # one element before it makes the addresses unaligned
    x = np.concatenate([[0], np.random.default_rng(3).permutation(n) + 1]).astype(dtype)[1:]
    for count in range(n + 1):
        y = np.full(n, -7, dtype)
        run(path, "part", x[:count], result=y)
        np.testing.assert_array_equal(y, [*(x[:count] + 1), *[-7] * (n - count)])
    zeros = run(path, "zeros", x, result=np.full(n, -7, dtype))
    np.testing.assert_array_equal(zeros, [*x[: n // 2], *[0] * (n - n // 2)])
    folds = run(path, "folds", x, result=np.empty(4, dtype))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(folds, [x.sum(), x.prod(dtype=dtype), x.min(), x.max()], 1e-6)
    below = run(path, "below", x, result=np.empty(n, dtype))
    np.testing.assert_array_equal(below, np.where(x < 3, x, np.arange(n)))
    turned = run(path, "turn", x, result=np.empty(n, dtype))
    np.testing.assert_array_equal(turned, x[::-1])


@pytest.mark.parametrize("t", ["f32x8", "f32x16", "f64x4", "i32x4", "i32x8"])
def test_lanes_beyond_an_edge_are_the_fill(toolchain: Toolchain, t: str) -> None:
    n, dtype = lanes(t), np.dtype({"f": "float", "i": "int"}[t[0]] + t[1:3])
    text = vector_math.preamble([f"ldw_{t}", f"st_{t}"], 8)
    for first in range(-2, n + 2):
        text += f"void from{first + 2}(const {t[:3]} *x, {t[:3]} *y, i64 n) {{\n"
        text += f"  st_{t}(y, ldw_{t}(x, {first}, n, -7));\n}}\n"
    path = build(text, toolchain)
    x = np.arange(1, n + 3).astype(dtype)
    for first in range(-2, n + 2):
        for last in range(n + 3):
            got = run(path, f"from{first + 2}", x[:last], result=np.empty(n, dtype))
            wanted = [x[i] if first <= i < last else -7 for i in range(n)]
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("t", ["f32x4", "f32x8", "f32x16", "f64x4", "f64x8"])
def test_a_divisor_that_stays_divides_as_any_other(toolchain: Toolchain, t: str) -> None:
    """To the last bit, but for what is so small that a hundred of its factors of 2 are gone."""
    element = t.split("x")[0]
    dtype = np.float32 if element == "f32" else np.float64
    text = vector_math.preamble([f"{name}_{t}" for name in ("divisor_of", "over", "ld", "st")], 8)
    text += f"""
void quotients(const {element} *x, {element} *y, i64 n) {{
  const divisor_{t} d = divisor_of_{t}(x[0]);
  for (i64 i = 0; i < n; i += {lanes(t)}) st_{t}(y + i, over_{t}(ld_{t}(x + i), d));
}}
"""
    path = build(text, toolchain)
    random = np.random.default_rng(11)
    mantissas = random.uniform(-2, 2, 4096) * 2.0 ** random.integers(-20, 20, 4096)
    special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e30, -1e30, 3.0, 1e-45, 3e38, 1.0, 7.0]
    divisors = [*random.uniform(-4, 4, 40), 1.0, -2.0, 3.0, 1e30, 1e-39, 0.0, np.inf, np.nan, 5e37]
    for by in divisors:
        x = np.array([by, *special, *mantissas, *[1.0] * 3]).astype(dtype)[:4096]
        got = run(path, "quotients", x, result=np.empty_like(x))
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(got, x / x[0])


def test_booleans_and_conversions(toolchain: Toolchain) -> None:
    text = vector_math.preamble(
        ["ldb", "stb", "ldbn", "stbn", "ld", "st", "any", "all", "min", "max", "abs", "sign"]
        + ["cvt_i32x8_f32x8", "cvt_f32x8_i32x8", "cvtlo_f64x4_f32x8", "cvthi_f64x4_f32x8"]
        + ["cvt2_f32x8_f64x4", "cvtlo_i64x4_i32x8", "cvthi_i64x4_i32x8", "cvt2_i32x8_i64x4"],
        8,
    )
    text += """
void not8(const u8 *x, u8 *y, i64 n) {
  stb_i32x8(y, ~ldb_i32x8(x));
  stb_i64x4(y + 8, ~ldb_i64x4(x + 8));
}
void not3(const u8 *x, u8 *y, i64 n) { stbn_i32x8(y, ~ldbn_i32x8(x, 3), 3); }
void quantifiers(const u8 *x, i32 *y, i64 n) {
  y[0] = any_i32x8(ldb_i32x8(x)); y[1] = all_i32x8(ldb_i32x8(x)); y[2] = any_i64x4(ldb_i64x4(x));
}
void wide(const f32 *x, f32 *y, i64 n) {
  f32x8 v = ld_f32x8(x);
  st_f32x8(y, cvt2_f32x8_f64x4(cvtlo_f64x4_f32x8(v) * 2, cvthi_f64x4_f32x8(v) * 2));
}
void whole(const f32 *x, f32 *y, i64 n) {
  st_f32x8(y, cvt_f32x8_i32x8(cvt_i32x8_f32x8(ld_f32x8(x))));
}
void ints(const i32 *x, i32 *y, i64 n) {
  i32x8 v = ld_i32x8(x);
  st_i32x8(y, cvt2_i32x8_i64x4(-cvtlo_i64x4_i32x8(v), -cvthi_i64x4_i32x8(v)));
  st_i32x8(y + 8, max_i32x8(v, bc_i32x8(-2)));
  st_i32x8(y + 16, abs_i32x8(v));
  st_i32x8(y + 24, sign_i32x8(v));
}
"""
    path = build(text, toolchain)
    flags = np.array([0, 1, 2, 255, 0, 0, 1, 0, 0, 9, 0, 0], np.uint8)
    got = run(path, "not8", flags, result=np.empty(12, np.uint8))
    np.testing.assert_array_equal(got, flags == 0)
    got = run(path, "not3", flags, result=np.full(4, 7, np.uint8))
    np.testing.assert_array_equal(got, [1, 0, 0, 7])
    got = run(path, "quantifiers", flags, result=np.empty(3, np.int32))
    np.testing.assert_array_equal(got, [1, 0, 1])
    x = np.array([1.5, -2.5, 3, 4, -5.25, 6, 7, 8.75], np.float32)
    np.testing.assert_array_equal(run(path, "wide", x, result=np.empty_like(x)), x * 2)
    np.testing.assert_array_equal(run(path, "whole", x, result=np.empty_like(x)), np.trunc(x))
    i = np.array([-3, -2, -1, 0, 1, 2, 3, 2**31 - 1], np.int32)
    got = run(path, "ints", i, result=np.empty(32, np.int32)).reshape(4, 8)
    np.testing.assert_array_equal(got, [-i, np.maximum(i, -2), np.abs(i), np.sign(i)])


def test_the_preamble_is_deterministic_and_holds_only_what_is_used() -> None:
    text = vector_math.preamble(["tanh_f32x8", "ld_f32x8"], 8)
    assert text == vector_math.preamble(["ld_f32x8", "tanh_f32x8"], 8)
    assert "exp_f32x8" in text and "sin" not in text and "f32x16" not in text


def test_every_function_compiles_in_one_source(toolchain: Toolchain) -> None:
    build(vector_math.preamble(vector_math.functions(), 16), toolchain)


def test_an_unknown_function_is_refused_with_advice() -> None:
    with pytest.raises(CompileError, match=r"no vector function `expp_f32x8`(?s:.*)help: .*`exp"):
        vector_math.preamble(["expp_f32x8"], 8)
    with pytest.raises(CompileError, match=r"32-bit lanes(?s:.*)help: "):
        vector_math.preamble(["exp"], 5)
