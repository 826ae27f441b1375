"""tcc, the tensor cascade compiler.

`tcc.compile(text | function | module)` gives something to call, `tcc.parse` and `tcc.load` a
program that is not compiled yet. Everything behind these names is imported when it is first used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tcc.ir.diagnostics import CompileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tcc import dtypes
    from tcc.gradient import Gradient
    from tcc.ir.dtype import DType
    from tcc.program import CompiledProgram, Program

    __version__: str

__all__ = [
    "CompileError",
    "CompiledProgram",
    "Program",
    "__version__",
    "compile",
    "dtype",
    "dtypes",
    "formats",
    "grad",
    "load",
    "parse",
    "quantize",
]  # fmt: skip


def compile(
    program: str | os.PathLike[str] | Callable[..., Any] | Any = None,
    *,
    target: str | None = None,
    **options: Any,
) -> Any:
    """`program` made fast for `target`: the text of a cascade, a path, a `Program`, or a PyTorch
    function or module.

    Without a program it is a decorator: `@tcc.compile(target="cpu")`. A text gives a
    `CompiledProgram`, which takes NumPy arrays and torch tensors by name or in the order of
    declaration; a function keeps its signature.

    >>> import numpy as np, tcc
    >>> square = tcc.compile("in A: f32[N]\\nout Z: f32\\nZ = A[n] * A[n]", target="numpy")
    >>> square(np.arange(4, dtype=np.float32)).item()
    14.0
    """
    from tcc.api import compile_any

    if program is None:
        return lambda function: compile_any(function, target, options)
    return compile_any(program, target, options)


def grad(
    program: str | os.PathLike[str] | Any,
    wrt: str | Sequence[str] | None = None,
    *,
    of: str | Sequence[str] | None = None,
    seeds: Mapping[str, str | float] | None = None,
    forward: bool = False,
    saved: str | Sequence[str] = (),
    target: str | None = None,
    **options: Any,
) -> Gradient:
    """The gradient of a cascade by its inputs `wrt` (default: all floats), compiled for `target`.

    It takes the inputs of the program, then a cotangent `d_Z` for every output Z in `of` (default:
    all floats; `seeds={"Z": 1.0}` fixes one), and returns `d_A` for every A in `wrt`; with
    `forward` the outputs come first. Tensors in `saved` are not computed again: they are inputs
    after those of the program, and `.forward` is the program that returns them, too.

    >>> import numpy as np, tcc
    >>> square = "in A: f32[N]\\nout Z: f32\\nZ = A[n] * A[n]"
    >>> tcc.grad(square, "A", seeds={"Z": 1.0}, target="numpy")(np.arange(4, dtype=np.float32))
    array([0., 2., 4., 6.], dtype=float32)
    """
    from tcc.gradient import grad as gradient

    return gradient(program, wrt, of, seeds, forward, saved, target, options)


def quantize(
    module: Any,
    weights: str | DType | Mapping[str, dtypes.Encoded] = "u4[group 128]",
    activations: str | None = None,
    *,
    layers: Callable[[str, Any], bool] | str | Sequence[str] | None = None,
    search: bool = True,
) -> Any:
    """`module` with the weights of its linear layers stored encoded; changed in place and returned.

    `weights` is a scaled type over `n` (output features) and `k` (input features), or `Encoded`
    weights by the names of layers. In a type, a group without a rank is along the input features;
    without a group every output feature is one; without `scale` it is f16; and unsigned integers
    without a zero point are symmetric around the middle (`u4`: `zero 8`). `activations`, as in
    `"i8[group 128]"`, rounds the inputs of the layers when they run, with a scale per group of
    every token: each value moves by at most 1/254 of the largest of its group. `layers` chooses:
    a function of name and layer, a regular expression, or names. Biases stay. `search` tries
    several scales for each group of few bits and keeps the one with the least squared error.

    Raises T0147 where a group does not divide the features, T0148 for weights that do not fit.
    """
    from tcc.quantized import quantize as quantized

    return quantized(module, weights, activations, layers, search)


def dtype(spelling: str) -> DType:
    """The element type of a spelling, as in `f8e4m3fn` or `i4[group k 128, scale f16]`; `tcc.dtypes` uses it.

    >>> import tcc
    >>> tcc.dtype("bf16").bits
    16
    """
    from tcc.ir.dtype_text import dtype as named

    return named(spelling)


def load(path: str | os.PathLike[str], *, cascade: str | None = None) -> Program:
    """The program in a file: a cascade (`.tcc`) or the einsums of a TeAAL specification (`.yaml`).

    `cascade` names the one that is meant when the file holds several.
    """
    from tcc.api import load_program

    return load_program(path, cascade)


def parse(text: str, *, name: str = "<string>", cascade: str | None = None) -> Program:
    """The program of a text; errors call the text `name`."""
    from tcc.api import parse_program

    return parse_program(text, name, cascade)


def __getattr__(name: str) -> Any:
    if name in ("Program", "CompiledProgram"):
        from tcc import program

        return getattr(program, name)
    if name in ("dtypes", "formats"):
        import importlib

        return importlib.import_module(f"tcc.{name}")
    if name == "__version__":
        from tcc.options import version

        return version()
    raise AttributeError(f"module 'tcc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
