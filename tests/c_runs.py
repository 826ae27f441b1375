"""Running generated C in tests: between guards, with a given number of threads."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from tcc import pipeline, targets
from tcc.backends import c as backend
from tcc.ir.cascade import Cascade
from tcc.ir.index import evaluate_size
from tcc.ir.interpret import bind

GUARD = 64  # elements on both sides of every array that C gets


def lowered(c: Cascade) -> Any:
    """The mapping of a cascade for CPUs."""
    return pipeline.run(c, targets.find("cpu")).mapping


def built(c: Cascade) -> backend.CProgram:
    return backend.build(lowered(c), targets.find("cpu"))


def run(
    program: backend.CProgram,
    c: Cascade,
    inputs: Mapping[str, Any],
    sizes: Mapping[str, int] | None = None,
    outputs: Mapping[str, Any] | None = None,
    times: int = 1,
    content: object = 0,
) -> dict[str, Any]:
    """The outputs that C writes; every array lies between guards that must stay as they are."""
    known = bind(c, inputs, sizes)
    arrays = {t.name: np.asarray(inputs[t.name]) for t in c.inputs}
    fenced = []
    for t in c.outputs:
        shape = tuple(evaluate_size(s, known) for s in t.shape)
        if outputs and t.name in outputs:
            arrays[t.name] = outputs[t.name]
            continue
        whole = np.full(int(np.prod(shape)) + 2 * GUARD, 77, t.dtype.numpy)
        arrays[t.name] = whole[GUARD : whole.size - GUARD].reshape(shape)
        fenced.append((t.name, whole))
    strides = {n: tuple(s // a.itemsize for s in a.strides) for n, a in arrays.items()}
    call = program.bind({n: a.shape for n, a in arrays.items()}, strides, known)
    for _ in range(times):
        call([a.ctypes.data for a in arrays.values()], content)
    for name, whole in fenced:
        assert (whole[:GUARD] == whole.dtype.type(77)).all(), f"C wrote before `{name}`"
        assert (whole[-GUARD:] == whole.dtype.type(77)).all(), f"C wrote behind `{name}`"
    return {t.name: arrays[t.name] for t in c.outputs}


def fenced(array: Any) -> Any:
    """A copy of an input between values that spoil every result they take part in."""
    if array.dtype.kind == "f":
        spoiled = np.nan
    else:
        spoiled = True if array.dtype.kind == "b" else np.iinfo(array.dtype).max // 3
    whole = np.full(array.size + 2 * GUARD, spoiled, array.dtype)
    inner = whole[GUARD : whole.size - GUARD].reshape(array.shape)
    inner[...] = array
    return inner


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Parallel regions have `count` threads."""
    try:
        openmp = ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("the OpenMP runtime is not libgomp")
    before = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(count)
    try:
        yield
    finally:
        openmp.omp_set_num_threads(before)
