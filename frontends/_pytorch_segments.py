"""A cascade cut at its calls to PyTorch, so that what lies between can be compiled without them."""

from __future__ import annotations

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, targets
from tcc.ir.infer import build


def segments(c: Cascade) -> list[Cascade | Extern]:
    """Programs without externs, and externs, in an order in which they can be run one after another.

    A definition runs as early as the externs that it needs allow; externs keep their order, for they may draw random
    numbers. Each program takes the tensors that it needs of the others as inputs, and gives what others need as outputs.
    """
    level = {t.name: 0 for t in c.inputs}
    einsums: dict[int, list[Definition]] = {}
    externs: dict[int, list[Extern]] = {}
    last = 0
    for d in c.definitions:
        mine = max((level.get(a.tensor, 0) for a in d.reads), default=0)
        if isinstance(d, Einsum):
            mine = max(mine, level.get(d.target, 0))
            einsums.setdefault(mine, []).append(d)
        else:
            mine = last = max(mine, last)
            externs.setdefault(mine, []).append(d)
        for name in targets(d):
            level[name] = mine + isinstance(d, Extern)
    if not externs:
        return [c]
    out: list[Cascade | Extern] = []
    for k in sorted({*einsums, *externs}):
        if k in einsums:
            out.append(_program(c, f"{c.name}_{len(out)}", einsums[k]))
        out += externs.get(k, [])
    return out


def _program(c: Cascade, name: str, definitions: list[Definition]) -> Cascade:
    written = {n for d in definitions for n in targets(d)}
    mine = {id(d) for d in definitions}
    read = dict.fromkeys(a.tensor for d in definitions for a in d.reads if a.tensor not in written)
    wanted = {a.tensor for d in c.definitions if id(d) not in mine for a in d.reads} | {
        t.name for t in c.outputs
    }
    outputs = [n for n in dict.fromkeys(t for d in definitions for t in targets(d)) if n in wanted]
    kept = tuple(c.tensors[n] for n in read), tuple(c.tensors[n] for n in outputs)
    return build(Cascade(name, c.ranks, *kept, tuple(definitions), c.stops))


__all__ = ["segments"]
