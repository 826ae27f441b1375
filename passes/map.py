"""How the program runs on the target: loops, tiles, buffers and parallel resources."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Extern
from tcc.ir.expr import Call, Expr, transform
from tcc.ir.mapping import Mapping
from tcc.ir.target import Target


def map(c: Cascade, target: Target, *, search: bool = True) -> Mapping:
    """The mapping of a cascade onto a target of its kind: `cpu`, `gpu` or `array`; without `search`, CPUs use their usual
    tiles."""
    c = _without_coalesce(c)
    if target.kind == "cpu":
        from tcc.passes._map_cpu import map_cpu

        return map_cpu(c, target, search)
    if target.kind == "gpu":
        from tcc.passes._map_gpu import map_gpu

        return map_gpu(c, target)
    from tcc.passes._map_array import map_array

    return map_array(c, target)


def _without_coalesce(c: Cascade) -> Cascade:
    """a ?? b --> a: below this level existence is explicit, and every `??` stands under its condition."""

    def rule(n: Expr) -> Expr:
        return n.args[0] if isinstance(n, Call) and n.op == "coalesce" else n

    def plain(d: Definition) -> Definition:
        if isinstance(d, Extern):
            return d
        body, where = transform(d.body, rule), tuple(transform(p, rule) for p in d.where)
        same = body is d.body and all(a is b for a, b in zip(where, d.where, strict=True))
        return d if same else replace(d, body=body, where=where)

    return c.with_definitions(tuple(plain(d) for d in c.definitions))
