"""Element types that tests go through: all of up to eight bits, and values that tell whether they are rounded well."""

from __future__ import annotations

import numpy as np

from tcc.ir.dtype import DType
from tcc.ir.dtype_codes import integer_range, ladder

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
# every element type of one to eight bits, but for biases and most of the codebooks
SMALL = [
    *(f"{kind}{bits}" for kind in "iu" for bits in range(1, 9)),
    *(f"f{w}e{e}m{w - 1 - e}{'all' * (w == 8 and e in (1, 7))}" for w in range(3, 9) for e in range(1, w)),
    "f8e4m3fn", "f8e4m3fnuz", "f8e5m2fnuz", "f8e4m3b11fnuz", "f6e3m2fn", "f5e2m2fnuz", "f7e3m3ieee", "f6e3m2ieee",
    *(f"posit{n}_{es}" for n in range(3, 9) for es in range(4)), *(f"pow2_{n}" for n in range(2, 9)),
    *(f"e{n}m0" for n in range(2, 9)), "nf4", "codebook[2, -1, 0.5]", "codebook[0, 1]",
]  # fmt: skip


def all_codes(t: DType) -> np.ndarray:
    """The codes of a float; the values of an integer."""
    if t.is_integer:
        low, high = integer_range(t)
        return np.arange(low, high + 1).astype(t.numpy)
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
