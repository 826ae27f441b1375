"""How mappings read coded tensors: by copies of boxes that are whole runs, with all their lanes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tcc.ir.cascade import Einsum, Tensor
from tcc.ir.dtype import Coded
from tcc.ir.expr import Access, Var
from tcc.ir.mapping import Alloc, Do, Kernel, Loop, Node

Tensors = Mapping[str, Tensor]


def is_coded_tensor(tensors: Tensors, name: str) -> bool:
    """Whether a tensor has a coded type."""
    return name in tensors and isinstance(tensors[name].dtype.form, Coded)


def copied(d: Einsum, tensors: Tensors) -> Access | None:
    """What a definition copies, if it is T[…] = W[…] with W coded and the same plain variables on both sides."""
    w = d.body
    if not isinstance(w, Access) or not is_coded_tensor(tensors, w.tensor) or d.where or d.reduced:
        return None
    source = [i.name for i in w.indices if isinstance(i, Var)]
    target = [i.name for i in d.indices if isinstance(i, Var)]
    plain = len(source) == len(w.indices) and len(target) == len(d.indices)
    once = len(set(source)) == len(source) and sorted(source) == sorted(target)
    return w if plain and once else None


def neighbours(w: Access, t: Tensor) -> dict[str, int]:
    """By variable of the read, of how many neighbours its tiles are multiples: a run, the lanes."""
    assert isinstance(t.dtype.form, Coded)
    at = dict(zip(t.axes, w.indices, strict=True))
    return {i.name: n for k, n in t.dtype.form.neighbours if isinstance(i := at[k], Var)}


def undecodable(k: Kernel, tensors: Tensors) -> Do | None:
    """The first leaf of a kernel that reads a coded tensor otherwise than by a copy of whole runs; None if there is none."""
    for leaf, loops in _leaves(k.body, ()):
        if not any(is_coded_tensor(tensors, a.tensor) for a in leaf.einsum.reads):
            continue
        w = copied(leaf.einsum, tensors)
        if w is None or leaf.bind or leaf.update:
            return leaf
        sizes = neighbours(w, tensors[w.tensor])
        if any(loop.step % sizes.get(loop.var, 1) for loop in loops):
            return leaf
    return None


def _leaves(
    nodes: tuple[Node, ...], loops: tuple[Loop, ...]
) -> Iterator[tuple[Do, tuple[Loop, ...]]]:
    for n in nodes:
        if isinstance(n, Do):
            yield n, loops
        elif isinstance(n, Alloc):
            yield from _leaves(n.body, loops)
        else:
            yield from _leaves((*n.body, *n.hold), (*loops, n))
