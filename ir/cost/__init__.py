"""What a mapping costs on a target: one function for CPUs, GPUs and arrays.

    cost(mapping, target, sizes, cores=1) -> Cost

`tiles` sums over the runs of leaves, `reuse` counts accesses exactly, `cache` says what moves between caches; `cpu`,
`gpu` and `array` turn both into time; `bound` is what no mapping can beat.
"""

from __future__ import annotations

from tcc.ir.cost.model import Cost, KernelCost, bind_sizes, cost

__all__ = ["Cost", "KernelCost", "bind_sizes", "cost"]
