"""Kernels that differ only in the names of their tensors share one C function."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Einsum, Tensor
from tcc.ir.expr import Access, Expr, accesses, text, transform
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Node, leaves, walk_nodes
from tcc.ir.mapping_text import print_nodes


def touched(k: Kernel) -> list[str]:
    """The tensors of a kernel, its own buffers included, in order of appearance."""
    names: list[str] = []
    for n in walk_nodes(k.body):
        if isinstance(n, Do):
            names += [n.einsum.target, *(a.tensor for a in n.einsum.reads)]
        elif isinstance(n, Loop) and n.until is not None:
            names += [a.tensor for a in accesses(n.until)]
    return list(dict.fromkeys(names))


def canonical_key(k: Kernel, describe: dict[str, str], constants: dict[str, Tensor]) -> str:
    """A text that is equal for two kernels exactly when they differ in tensor names alone.

    `describe` says of every outer tensor how it is stored; `constants` gives the types of all.
    """
    names = {name: f"T{n}" for n, name in enumerate(touched(k))}
    lines = [f"{v}: {text(e)}" for v, e in k.variables]
    for name, short in names.items():
        t = constants[name]
        shape = ", ".join(text(s) for s in t.shape)
        lines.append(f"{short}: {t.dtype}[{shape}] fill {t.fill!r} {describe.get(name, 'local')}")
    written = sorted(names[leaf.einsum.target] for leaf in leaves(k.body))
    return "\n".join([*lines, *written, *print_nodes(tuple(_renamed(n, names) for n in k.body), 0)])


def _renamed(n: Node, names: dict[str, str]) -> Node:
    if isinstance(n, Do):
        return replace(n, einsum=_einsum(n.einsum, names))
    body = tuple(_renamed(x, names) for x in n.body)
    if isinstance(n, Alloc):
        b: Buffer = replace(n.buffer, name=names.get(n.buffer.name, n.buffer.name))
        return replace(n, buffer=b, body=body)
    hold = tuple(replace(h, einsum=_einsum(h.einsum, names)) for h in n.hold)
    return replace(
        n, body=body, hold=hold, until=None if n.until is None else _expr(n.until, names)
    )


def _einsum(d: Einsum, names: dict[str, str]) -> Einsum:
    return Einsum(
        names[d.target], tuple(_expr(i, names) for i in d.indices), _expr(d.body, names), d.reductions,
        tuple(_expr(p, names) for p in d.where),
    )  # fmt: skip


def _expr(e: Expr, names: dict[str, str]) -> Expr:
    return transform(
        e, lambda n: Access(names[n.tensor], n.indices) if isinstance(n, Access) else n
    )


def comment(k: Kernel) -> list[str]:
    """The definitions that a kernel implements, one per line."""
    return [
        str(leaf.einsum).replace("*/", "* /").replace("/*", "/ *") for leaf in leaves(k.body)
    ] or ["nothing"]
