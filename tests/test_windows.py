"""Reductions over windows that leave their tensor: edges are filled in next to the core, or read under masks."""

from __future__ import annotations

import c_runs
import numpy as np
import pytest

from tcc.ir.cascade_text import parse_cascade
from tcc.ir.interpret import interpret

BODIES = {
    "depth-wise": "Y[c,y,x] = X[c,y + r - 1,x + s - 1] * W[c,r,s]",
    "largest": "Y[c,y,x] = X[c,y + r - 1,x + s - 1] * W[c,r,s] :: max(r,s)",
    "far": "Y[c,y,x] = X[c,y + 2*r - 2,x + 2*s - 2] * W[c,r,s]",
    "along rows": "Y[c,y,x] = X[c,y + r - 1,x] * W[c,r,s]",
}


def program(body: str, sizes: tuple[int, int, int], fill: str = "") -> str:
    c, y, x = sizes
    return (
        f"cascade windows\nranks C={c}, Y={y}, X={x}, R=3, S=3\nin X: f32[C,Y,X]{fill}, W: f32[C,R,S]\n"
        f"out Y: f32[C,Y,X]\n{body}\n"
    )


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("sizes", [(9, 7, 13), (8, 5, 56), (3, 6, 40), (16, 3, 64)])
@pytest.mark.parametrize("fill", ["", " fill 2"])
def test_windows_see_the_fill_beyond_the_edges(
    name: str, sizes: tuple[int, int, int], fill: str
) -> None:
    c = parse_cascade(program(BODIES[name], sizes, fill))
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(s).astype(np.float32) for s in (sizes, (sizes[0], 3, 3)))
    found = c_runs.run(c_runs.built(c), c, {"X": x, "W": w})["Y"]
    wanted = interpret(c, {"X": x, "W": w})["Y"]
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=5e-6)


def test_edges_are_filled_in_slice_by_slice() -> None:
    body = BODIES["depth-wise"]
    near = str(c_runs.lowered(parse_cascade(program(body, (64, 56, 56)))))
    assert "buffer X_padded: f32[c, 58, 58] @L1" in near and "pad_" not in near
    few = str(c_runs.lowered(parse_cascade(program(body, (2, 56, 56)))))
    assert "kernel pad_X_padded" in few
    large = str(c_runs.lowered(parse_cascade(program(body, (64, 560, 560)))))
    assert "kernel pad_X_padded" in large


@pytest.mark.parametrize("sizes", [(9, 7, 16), (12, 12, 64), (13, 11, 40), (20, 9, 70)])
@pytest.mark.parametrize("body", ["X[y + r - 1,x + s - 1,c]", "X[2*y + r - 1,x + s,c]"])
def test_neighbours_share_what_moves_along_the_lanes(
    body: str, sizes: tuple[int, int, int]
) -> None:
    y, x, channels = sizes
    text = (
        f"cascade windows\nranks Y={y}, X={x}, C={channels}, R=3, S=3\n"
        f"in X: f32[Y,X,C] fill 0.5, W: f32[C,R,S]\nout Y: f32[Y,X,C]\nY[y,x,c] = {body} * W[c,r,s]\n"
    )
    c = parse_cascade(text)
    assert ("y on unroll" in str(c_runs.lowered(c))) == (x * y >= 128)
    random = np.random.default_rng(0)
    given = {"X": random.standard_normal((y, x, channels)).astype(np.float32)}
    given["W"] = random.standard_normal((channels, 3, 3)).astype(np.float32)
    found = c_runs.run(c_runs.built(c), c, given)["Y"]
    np.testing.assert_allclose(found, interpret(c, given)["Y"], rtol=2e-6, atol=5e-6)
