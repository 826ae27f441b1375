"""Chains: reductions over one variable, of which later ones depend on earlier ones at the same coordinates.

Two reductions are linked when one reads the other through element-wise definitions alone. `chains` finds what is linked,
`align` gives the definitions of a chain the same names for the same variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Rank, Recurrence, steps
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    call,
    substitute,
    text,
    transform,
    variables,
    walk,
)
from tcc.ir.index import poly, same, within
from tcc.ir.infer import build, expression_dtype
from tcc.passes._algebra import is_copy, is_elementwise, renamed
from tcc.passes._inline import _inlined as inlined
from tcc.passes._ranks import split_ranks

LIMIT = 4096  # reads that are followed from one definition, so that no program takes forever


@dataclass(frozen=True)
class Chain:
    """Fields in dependence order; their definitions all reduce `var`, once aligned."""

    var: str
    fields: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Link:
    """`field` reads `other` at these coordinates, through these element-wise definitions at those coordinates."""

    other: str
    at: tuple[Expr, ...]
    through: tuple[tuple[str, tuple[Expr, ...]], ...]


def plain(d: Definition) -> bool:
    """Whether every index of the target is a variable of its own."""
    return (
        isinstance(d, Einsum)
        and all(isinstance(i, Var) for i in d.indices)
        and len(set(d.free)) == len(d.indices)
    )


def single(c: Cascade) -> dict[str, Einsum]:
    """The tensors with one definition, which is no call and no part of a recurrence."""
    repeated = {d.target for s in steps(c) if isinstance(s, Recurrence) for d in s.steps}
    count: dict[str, int] = {}
    for d in c.definitions:
        if isinstance(d, Einsum):
            count[d.target] = count.get(d.target, 0) + 1
    return {
        d.target: d
        for d in c.definitions
        if isinstance(d, Einsum) and count[d.target] == 1 and d.target not in repeated
    }


def is_field(d: Definition) -> bool:
    """Whether a definition can be one component of a joint reduction."""
    return isinstance(d, Einsum) and plain(d) and len(d.reduced) == 1


def chains(c: Cascade) -> tuple[Cascade, list[Chain]]:
    """The chains of a program, and the program with their definitions aligned."""
    taken = {f for j in c.joints for f in j.tensors}
    defs = single(c)
    fields = [n for n, d in defs.items() if is_field(d) and n not in taken]
    if len(fields) < 2:
        return c, []
    links = {n: [k for k in _links(defs, n) if k.other in fields] for n in fields}
    found: list[Chain] = []
    done: set[str] = set()
    for first in fields:
        if first in done:
            continue
        members = _component(first, fields, links)
        done |= set(members)
        if len(members) > 1:
            aligned = _align(c, members, links)
            if aligned is not None:
                c, chain = aligned
                if len(chain.fields) > 1:
                    found.append(chain)
    return c, found


def _component(first: str, fields: list[str], links: dict[str, list[_Link]]) -> list[str]:
    """Everything that is linked with `first`, in program order."""
    near: dict[str, set[str]] = {}
    for n, ks in links.items():
        for k in ks:
            near.setdefault(n, set()).add(k.other)
            near.setdefault(k.other, set()).add(n)
    seen = {first}
    stack = [first]
    while stack:
        for n in near.get(stack.pop(), ()):
            if n not in seen:
                seen.add(n)
                stack.append(n)
    return [f for f in fields if f in seen]


def _links(defs: dict[str, Einsum], name: str, grouped: bool = False) -> Iterator[_Link]:
    """The reductions that a definition reads through element-wise ones, at coordinates that are distinct variables.

    `grouped`: or at any others that the variable of the reduction does not walk.
    """
    d = defs[name]
    (var,) = d.reduced
    stack: list[tuple[Access, tuple[tuple[str, tuple[Expr, ...]], ...]]] = [
        (a, ()) for a in d.reads
    ]
    seen: set[str] = set()
    while stack and len(seen) < LIMIT:
        a, through = stack.pop()
        key = text(a)
        if key in seen or a.tensor not in defs:
            continue
        seen.add(key)
        inner = defs[a.tensor]
        if is_elementwise(inner):
            values = dict(zip(inner.free, a.indices, strict=True))
            path = (*through, (a.tensor, a.indices))
            stack += [(_at(r, values), path) for r in inner.reads]
        elif is_field(inner) and var not in variables(*a.indices):
            distinct = len(set(variables(*a.indices))) == len(a.indices)
            if grouped or (distinct and all(isinstance(i, Var) for i in a.indices)):
                yield _Link(a.tensor, a.indices, through)


def _at(a: Access, values: dict[str, Expr]) -> Access:
    found = substitute(a, values)
    assert isinstance(found, Access)
    return found


# ---- one name for one variable


def _align(
    c: Cascade, members: list[str], links: dict[str, list[_Link]]
) -> tuple[Cascade, Chain] | None:
    """The program with the members' variables renamed to those of the first; members that can not follow are left out."""
    ranks = list(c.ranks)
    defs = {d.target: d for d in c.definitions if isinstance(d, Einsum)}
    var = defs[members[0]].reduced[0]
    extent = c.extent(var)
    new: dict[str, Einsum] = {}
    kept: list[str] = []
    for name in members:
        d = defs[name]
        mine = d.reduced[0]
        if not c.same_size(c.extent(mine), extent):
            continue
        ks = [k for k in links[name] if k.other in kept]
        wanted: dict[str, str] | None = {mine: var}
        for k in ks:
            wanted = _joined(wanted, k.at, new[k.other].free)
            for tensor, at in k.through:
                if tensor in new:
                    wanted = _joined(wanted, at, new[tensor].free)
        if wanted is None:
            continue
        everything = variables(*d.indices, d.body, *d.where)
        if not ks and kept:
            wanted |= {v: v for v in everything if v not in wanted and v != var}
        names = _complete(c, ranks, wanted, everything)
        inner: dict[str, Einsum] = {}
        for k in ks:
            for tensor, at in k.through:
                if tensor not in new and tensor not in inner:
                    made = _inner(c, ranks, defs[tensor], at, names)
                    if made is not None:
                        inner[tensor] = made
        new |= inner
        new[name] = _with_names(d, names)
        kept.append(name)
    if len(kept) < 2:
        return None
    kept = _linked(kept, links)
    definitions = tuple(new.get(d.target, d) if isinstance(d, Einsum) else d for d in c.definitions)
    if any(a is not b for a, b in zip(definitions, c.definitions, strict=True)):
        c = replace(c, ranks=tuple(ranks), definitions=definitions)
    return c, Chain(var, tuple(kept))


def _linked(kept: list[str], links: dict[str, list[_Link]]) -> list[str]:
    """Those that still depend on another, or are depended on."""
    used = {k.other for n in kept for k in links[n]}
    return [n for n in kept if n in used or any(k.other in kept for k in links[n])]


def _joined(
    wanted: dict[str, str] | None, at: tuple[Expr, ...], names: list[str]
) -> dict[str, str] | None:
    """The renaming with one more access; None when one variable would need two names, or two variables one."""
    if wanted is None:
        return None
    wanted = dict(wanted)
    for i, name in zip(at, names, strict=True):
        if not isinstance(i, Var):
            return None
        if wanted.setdefault(i.name, name) != name:
            return None
    return wanted if len(set(wanted.values())) == len(wanted) else None


def _complete(
    c: Cascade, ranks: list[Rank], wanted: dict[str, str], everything: list[str]
) -> dict[str, str]:
    """Names for all variables: those that are wanted, the old ones where they are free, else new ones."""
    names = dict(wanted)
    taken = set(names.values())
    for v in everything:
        if v in names:
            continue
        name, n = v, 1
        while name in taken or (name != v and any(r.name == name.upper() for r in ranks)):
            if any(r.name == name.upper() and name not in taken and _fits(r, c.extent(v)) for r in ranks):  # fmt: skip
                break
            n += 1
            name = f"{v}_{n}"
        names[v] = name
        taken.add(name)
        if not any(r.name == name.upper() for r in ranks):
            ranks.append(Rank(name.upper(), c.extent(v)))
    return names


def _fits(r: Rank, extent: Expr) -> bool:
    return same(r.size if r.size is not None else Size(r.name), extent)


def _inner(
    c: Cascade, ranks: list[Rank], d: Einsum, at: tuple[Expr, ...], names: dict[str, str]
) -> Einsum | None:
    """An element-wise definition with the names that its reader gives to its dimensions."""
    wanted: dict[str, str] = {}
    for own, i in zip(d.free, at, strict=True):
        if isinstance(i, Var) and i.name in names:
            wanted[own] = names[i.name]
    if len(set(wanted.values())) != len(wanted):
        return None
    return _with_names(d, _complete(c, ranks, wanted, variables(*d.indices, d.body, *d.where)))


def _with_names(d: Einsum, names: dict[str, str]) -> Einsum:
    changed = {k: v for k, v in names.items() if k != v}
    return renamed(d, changed) if changed else d


# ---- preparations


def unplaced(c: Cascade) -> Cascade:
    """A reduction into a slice of one coordinate gets plain indices, and a copy to where its target has it.

    T[0, p] = X[k, p] …;  Y = f(T[0, p])  -->  S[p] = X[k, p] …;  T[0, p] = S[p];  Y = f(S[p])
    """
    defs = single(c)
    taken = set(c.tensors)
    new: dict[str, tuple[str, list[int]]] = {}
    definitions: list[Definition] = []
    for d in c.definitions:
        if not isinstance(d, Einsum) or d.target not in defs or len(d.reduced) != 1 or plain(d):
            definitions.append(d)
            continue
        kept = [n for n, i in enumerate(d.indices) if isinstance(i, Var)]
        slices = all(isinstance(i, Const) for n, i in enumerate(d.indices) if n not in kept)
        sizes = c.tensors[d.target].shape
        units = all(
            poly(c.resolved(sizes[n])).constant == 1 for n in range(len(sizes)) if n not in kept
        )
        if not slices or not units or len(set(d.free)) != len(kept):
            definitions.append(d)
            continue
        name, n = f"{d.target}_slice", 1
        while name in taken:
            n += 1
            name = f"{d.target}_slice{n}"
        taken.add(name)
        new[d.target] = (name, kept)
        at = tuple(d.indices[n] for n in kept)
        held = tuple(p for p in d.where if set(variables(p)) <= set(d.free))
        definitions += [
            replace(d, target=name, indices=at),
            Einsum(d.target, d.indices, Access(name, at), (), held, d.span),
        ]
    if not new:
        return c

    def rule(n: Expr) -> Expr:
        if not isinstance(n, Access) or n.tensor not in new:
            return n
        name, kept = new[n.tensor]
        return Access(name, tuple(n.indices[k] for k in kept), n.span)

    moved = [
        replace(d, body=transform(d.body, rule), where=tuple(transform(p, rule) for p in d.where))
        if isinstance(d, Einsum)
        else d
        for d in definitions
    ]
    return c.with_definitions(tuple(moved))


def ungrouped(c: Cascade) -> Cascade:
    """A reduction over grouped values is computed by groups, then copied to where its target has them.

    T[v] = X[v // n, v % n, k] …  or  T[a * n + b] = X[a, b, k] …  -->  G[a, b] = X[a, b, k] …;  T[…] = G[…]
    """
    outputs = {t.name for t in c.outputs}
    defs = single(c)
    definitions: list[Definition] = []
    for d in c.definitions:
        made = None
        if isinstance(d, Einsum) and d.target in defs and len(d.reduced) == 1:
            if not plain(d) or (d.target in outputs and _grouped(d)):
                made = _apart(c, defs, d)
        definitions += [d] if made is None else made
    if len(definitions) == len(c.definitions):
        return c
    return build(split_ranks(c.with_definitions(tuple(definitions))))


def _apart(c: Cascade, defs: dict[str, Einsum], d: Einsum) -> list[Definition] | None:
    """A reduction under another name and plain indices, and its copy; None when it depends on no other reduction."""
    name, n = f"{d.target}_grouped", 1
    while name in c.tensors:
        n += 1
        name = f"{d.target}_grouped{n}"
    at = tuple(Var(v) for v in d.free)
    first = replace(d, target=name, indices=at)
    known = {**defs, name: first}
    if not any(is_field(known[k.other]) for k in _links(known, name, grouped=True)):
        return None
    held = tuple(p for p in d.where if set(variables(p)) <= set(d.free))
    return [first, Einsum(d.target, d.indices, Access(name, at), (), held, d.span)]


def _grouped(d: Einsum) -> bool:
    """Whether a free variable is read divided."""
    return any(
        isinstance(n, Call) and n.op in ("floordiv", "mod") and isinstance(n.args[0], Var)
        and n.args[0].name in d.free
        for a in d.reads
        for n in walk(*a.indices)
    )  # fmt: skip


def settled(c: Cascade, names: Iterable[str]) -> Cascade:
    """Element-wise definitions of these tensors move into the copies that are their only readers."""
    outputs = {t.name for t in c.outputs}
    for name in names:
        readers = c.readers(name)
        found = c.defining(name)
        if name in outputs or len(readers) != 1 or len(found) != 1:
            continue
        d, r = found[0], readers[0]
        if isinstance(d, Einsum) and isinstance(r, Einsum) and is_elementwise(d) and is_copy(r):
            merged = inlined(c, d, r)
            if merged is not None:
                c = replace(c, definitions=tuple(
                    merged if x is r else x for x in c.definitions if x is not d))  # fmt: skip
    return c


# ---- element-wise values that are read at single places


def gathered(c: Cascade) -> Cascade:
    """Element-wise definitions that are read only at constant or indirect coordinates move into their readers.

    They would be walked in full, for a few of their elements.
    """
    defs = single(c)
    outputs = {t.name for t in c.outputs}
    operands = {o for d in c.definitions if isinstance(d, Extern) for o in d.operands}
    for name, d in list(defs.items()):
        if not is_elementwise(d) or d.where or name in outputs or name in operands:
            continue
        if not any(is_elementwise_source(defs, a) for a in d.reads):
            continue
        readers = c.readers(name)
        if not readers or not all(isinstance(r, Einsum) and _single_places(r, d) for r in readers):  # fmt: skip
            continue
        rewritten = {id(r): _inlined(c, d, r) for r in readers if isinstance(r, Einsum)}
        c = c.with_definitions(tuple(rewritten.get(id(x), x) for x in c.definitions if x is not d))
        defs = single(c)
    return c


def is_elementwise_source(defs: dict[str, Einsum], a: Access) -> bool:
    """Whether an access reads a reduction of one variable."""
    return a.tensor in defs and is_field(defs[a.tensor])


def _single_places(r: Einsum, d: Einsum) -> bool:
    """Whether a reader visits few of a tensor's elements: in each read some coordinate is walked by no variable."""
    if len(variables(*r.indices, r.body, *r.where)) >= len(d.indices):
        return False
    return all(any(not _walks(i) for i in a.indices) for a in r.reads if a.tensor == d.target)


def _walks(i: Expr) -> bool:
    return isinstance(i, Var) or (not any(isinstance(n, Access) for n in walk(i)) and bool(variables(i)))  # fmt: skip


def _inlined(c: Cascade, d: Einsum, reader: Einsum) -> Einsum:

    extents = c.extents(reader)
    shape = c.tensors[d.target].shape
    fill = c.tensors[d.target].fill

    def rule(n: Expr) -> Expr:
        if not (isinstance(n, Access) and n.tensor == d.target):
            return n
        value = substitute(d.body, dict(zip(d.free, n.indices, strict=True)))
        inside: Expr | None = None
        for i, size in zip(n.indices, shape, strict=True):
            if isinstance(i, Var) and c.same_size(extents[i.name], size):
                continue
            if within(i, size, extents):
                continue
            here = call("and", call("ge", i, Const(0)), call("lt", i, size))
            inside = here if inside is None else call("and", inside, here)
        t = c.tensors[d.target].dtype
        if expression_dtype(c, value) != t:
            value = Cast(t, value)
        return value if inside is None else call("select", inside, value, Const(fill))

    return replace(reader, body=transform(reader.body, rule),
                   where=tuple(transform(p, rule) for p in reader.where))  # fmt: skip
