"""How much time a product saves when it joins a kernel, by the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tcc.ir.cascade import Cascade, Einsum, targets
from tcc.ir.expr import accesses
from tcc.ir.target import Target
from tcc.passes._algebra import Contraction
from tcc.passes._fuse_cost import LAUNCH
from tcc.passes._search import sizes_known


def modelled_gain(
    c: Cascade, target: Target, members: Sequence[Einsum], d: Einsum, split: Contraction
) -> float | None:
    """Seconds that one core saves if d joins the kernel of `members`, each with the tiles that suit it best.

    None where sizes or tiles are not known, and for products with constants: these are packed ahead in both cases, so that
    an estimate does, and takes no time. What a call packs depends on the kernel that reads it.
    """
    constant = {t.name for t in c.inputs if t.constant}
    ahead = all(a.tensor in constant for a in accesses(split.column_factor))
    if ahead or target.kind != "cpu" or not target.tiles or not sizes_known(c, [*members, d]):
        return None
    apart = _seconds(c, target, [members, [d]])
    return apart + LAUNCH - _seconds(c, target, [[*members, d]])


def _seconds(c: Cascade, target: Target, kernels: Sequence[Sequence[Einsum]]) -> float:
    """Of one core for kernels of these definitions, in this order."""
    from tcc.ir.cost import cost
    from tcc.passes._map_cpu import Mapper

    members = [d for kernel in kernels for d in kernel]
    made = dict.fromkeys(d.target for d in members)
    given = {t.name: t for t in c.inputs}
    reads = dict.fromkeys(a.tensor for d in members for a in d.reads if a.tensor not in made)
    others = [d for d in c.definitions if not made.keys() & targets(d)]
    left = {a.tensor for d in others for a in d.reads}
    left |= {t.name for t in c.outputs}
    alone = replace(
        c,
        name="kernels",
        inputs=tuple(given.get(t, c.tensors[t]) for t in reads),
        outputs=tuple(c.tensors[t] for t in made if t in left),
        definitions=tuple(members),
        groups=tuple((f"k{n}", tuple(d.target for d in k)) for n, k in enumerate(kernels)),
        joints=(),
        stops=(),
    )
    return cost(Mapper(alone, target).run(), target, full=False).seconds
