"""What runs in the walk of a joint reduction: its fields, and all that exists only on the way to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Joint, Recurrence, steps, targets


def walks(c: Cascade) -> list[tuple[Joint, list[Einsum]]]:
    """Each joint with the definitions of its kernel, in program order; joints that have none are left out.

    These are the fields, every definition over the joint's variable that only they need (so that no tensor of the
    length of the walk leaves the kernel), and what lies between them.
    """
    found: list[tuple[Joint, list[Einsum]]] = []
    taken: set[str] = set()
    for j in c.joints:
        members = _members(c, j)
        if members is None or taken & {d.target for d in members}:
            continue
        taken |= {d.target for d in members}
        found.append((j, members))
    return found


def together(c: Cascade) -> tuple[list[tuple[Joint, list[Einsum]]], list[Definition]]:
    """The joints that can have kernels, with the definitions of these, and an order of all in which each kernel's are
    neighbours: of two that need each other only the first is left."""
    units: list[tuple[Joint, list[Einsum]]] = []
    order = list(c.definitions)
    for unit in walks(c):
        found = gathered(c, [members for _, members in (*units, unit)])
        if found is not None:
            units.append(unit)
            order = found
    return units, order


def _members(c: Cascade, j: Joint) -> list[Einsum] | None:
    outputs = {t.name for t in c.outputs}
    readers = _readers(c)
    inside = {id(d) for t in j.tensors for d in c.defining(t)}
    inside = _exclusive(c, inside, j.var, readers)
    inside |= _between(c, inside)
    members = [d for d in c.definitions if id(d) in inside]
    plain = [d for d in members if isinstance(d, Einsum) and len(c.defining(d.target)) == 1]
    fields = set(j.tensors)
    made = {d.target for d in plain}
    for d in plain:  # what depends on the fields during the walk may not be read after it
        late = {a.tensor for a in d.reads} & (fields | {x.target for x in plain if j.var in x.free})
        outside = d.target in outputs or any(id(r) not in inside for r in readers.get(d.target, []))
        if j.var in d.free and late and outside and d.target in made:
            return None
    return plain if len(plain) == len(members) else None


def exclusive(c: Cascade, fields: Iterable[Einsum], var: str) -> list[Einsum]:
    """Definitions and all those over `var` that only they need, in program order."""
    inside = _exclusive(c, {id(d) for d in fields}, var, _readers(c))
    return [d for d in c.definitions if id(d) in inside and isinstance(d, Einsum)]


def _readers(c: Cascade) -> dict[str, list[Definition]]:
    readers: dict[str, list[Definition]] = {}
    for d in c.definitions:
        for name in {a.tensor for a in d.reads}:
            readers.setdefault(name, []).append(d)
    return readers


def _exclusive(
    c: Cascade, inside: set[int], var: str, readers: dict[str, list[Definition]]
) -> set[int]:
    outputs = {t.name for t in c.outputs}
    while True:
        more = {
            id(d)
            for d in c.definitions
            if id(d) not in inside and isinstance(d, Einsum) and var in d.free
            and len(c.defining(d.target)) == 1 and d.target not in outputs
            and readers.get(d.target) and all(id(r) in inside for r in readers[d.target])
        }  # fmt: skip
        if not more:
            return inside
        inside = inside | more


def _between(c: Cascade, inside: set[int]) -> set[int]:
    """Definitions that need a member and that a member needs."""
    makes = {t: n for n, d in enumerate(c.definitions) for t in targets(d)}
    below: set[int] = set()  # positions that depend on a member
    for n, d in enumerate(c.definitions):
        needs = {makes[a.tensor] for a in d.reads if a.tensor in makes}
        if any(m in below or id(c.definitions[m]) in inside for m in needs):
            below.add(n)
    above: set[int] = set()
    for n in reversed(range(len(c.definitions))):
        d = c.definitions[n]
        if id(d) in inside or n in above:
            above |= {makes[a.tensor] for a in d.reads if a.tensor in makes}
    return {id(c.definitions[n]) for n in below & above} - inside


def gathered(c: Cascade, units: list[list[Einsum]]) -> list[Definition] | None:
    """The definitions with those of each unit next to each other and everything after what it reads: units as late as
    possible. None where two units need each other."""
    inside = {id(d) for unit in units for d in unit}
    nodes: list[list[Definition]] = []
    for s in steps(c):
        if isinstance(s, Recurrence):
            nodes.append(list(s.steps))
        elif id(s) not in inside:
            nodes.append([s])
    nodes += [list(unit) for unit in units]
    makers: dict[str, set[int]] = {}
    for n, node in enumerate(nodes):
        for t in (t for d in node for t in targets(d)):
            makers.setdefault(t, set()).add(n)
    needed = [
        set[int]().union(*(makers.get(a.tensor, set()) for d in node for a in d.reads)) - {n}
        for n, node in enumerate(nodes)
    ]
    order: list[int] = []
    while len(order) < len(nodes):
        done = set(order)
        ready = (n for n in range(len(nodes)) if n not in done and needed[n] <= done)
        found = next(ready, None)
        if found is None:
            return None
        order.append(found)
    return [d for n in order for d in nodes[n]]


def renamed_joint(j: Joint, fields: Iterable[Einsum]) -> Joint:
    """The joint over the variable that its fields reduce now."""
    reduced = {v for d in fields for v in d.reduced}
    return j if reduced == {j.var} or len(reduced) != 1 else replace(j, var=reduced.pop())
