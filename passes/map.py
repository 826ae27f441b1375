"""How the program runs on the target: loops, tiles, buffers and parallel resources."""

from __future__ import annotations

from tcc.ir.cascade import Cascade
from tcc.ir.mapping import Mapping
from tcc.ir.target import Target


def map(c: Cascade, target: Target) -> Mapping:
    """The mapping of a cascade onto a target of its kind: `cpu`, `gpu` or `array`."""
    if target.kind == "cpu":
        from tcc.passes._map_cpu import map_cpu

        return map_cpu(c, target)
    if target.kind == "gpu":
        from tcc.passes._map_gpu import map_gpu

        return map_gpu(c, target)
    from tcc.passes._map_array import map_array

    return map_array(c, target)
