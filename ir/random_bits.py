"""Random numbers by position: Philox4x32-10, the same function of seed and position on every machine and in any order."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def philox(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, ...]:
    """Four arrays of 32 random bits (in uint64) from four 32-bit counters and two 32-bit keys.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) & _LOW for c in counter)
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            b & _LOW,
            (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            a & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def random_bits(seed: int, positions: Array) -> Array:
    """32 random bits for each position (integers from 0), as float64 integers below 2^32."""
    at = np.asarray(positions, np.uint64)
    zero = np.zeros_like(at)
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    return philox((at & _LOW, at >> np.uint64(32), zero, zero), key)[0].astype(np.float64)
