"""Random layouts, small enough to list every place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tcc.ir.layout import COPIES, Digit, Layout, Part

AXES = ("addr", "lane", "reg")


def random_layout(
    rng: np.random.Generator, rank: int | None = None, axes: tuple[str, ...] = AXES, *,
    plain: bool = False, most: int = 128,
) -> Layout:  # fmt: skip
    """A layout of one to three dimensions. Unless `plain`, dimensions may be padded, digits swizzled, strides wide, and
    there may be copies and an offset."""
    while True:
        found = _layout(rng, rank, axes, plain)
        if np.prod(found.known_shape()) <= most:
            return found


def _layout(
    rng: np.random.Generator, rank: int | None, axes: tuple[str, ...], plain: bool
) -> Layout:
    chance = rng.random(8)
    digits, shape = [], []
    for d in range(int(rng.integers(1, 4)) if rank is None else rank):
        covered = 1
        for _ in range(int(rng.integers(1, 4))):
            m = int(rng.choice([2, 4]) if chance[0] < 0.5 else rng.integers(1, 5))
            digits.append(Digit(d, covered, m, None, axes[int(rng.integers(len(axes)))]))
            covered *= m
        padded = not plain and rng.random() < 0.15 and covered > 2
        shape.append(covered - padded)
    if not plain and chance[1] < 0.2:
        digits.append(Digit(COPIES, 1, 2, None, axes[int(rng.integers(len(axes)))]))
    digits = [digits[i] for i in rng.permutation(len(digits))]
    if not plain and chance[2] < 0.3:
        _swizzle(rng, digits)
    found = Layout(tuple(digits), tuple(shape))
    if not plain and chance[3] < 0.2:
        n, wide = int(rng.integers(len(digits))), int(rng.integers(0, 3))
        stride = found.strides()[n]
        assert isinstance(stride, int)
        changed = replace(found.digits[n], stride=stride + wide)
        found = replace(found, digits=(*found.digits[:n], changed, *found.digits[n + 1 :]))
    if not plain and chance[4] < 0.1:
        found = replace(found, offsets=((axes[0], int(rng.integers(1, 5))),))
    return found


def _swizzle(rng: np.random.Generator, digits: list[Digit]) -> None:
    """Xors one digit with another, where two have powers of two of values."""
    known = [n for n, d in enumerate(digits) if d.modulus in (2, 4) and d.dimension != COPIES]
    if len(known) < 2:
        return
    n, m = (int(i) for i in rng.permutation(known)[:2])
    source, target = digits[m], digits[n]
    assert isinstance(source.modulus, int) and isinstance(target.modulus, int)
    if source.modulus <= target.modulus:
        part = Part(source.dimension, source.divisor, source.modulus)
        digits[n] = replace(target, xor=(part,))
