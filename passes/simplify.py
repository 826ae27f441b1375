"""Fold, share, inline and drop: the same outputs from fewer and plainer definitions."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, targets
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, accesses, call, substitute, text, transform, variables, walk
from tcc.ir.index import Extents, is_size, poly, same, simplify_index, within
from tcc.ir.infer import build, expression_dtype
from tcc.ir.ops import OPS
from tcc.ir.target import Target
from tcc.passes._ranks import drop_unit_dimensions, split_ranks
from tcc.passes._algebra import contraction, is_copy, is_elementwise, neutral, operations


def simplify(c: Cascade, target: Target, *, recompute: float = 4.0) -> Cascade:
    """Definitions are folded, equal ones shared, cheap ones inlined, unused ones dropped, until nothing changes.

    `recompute` is the number of additions and reads up to which a value that is used more than once is computed again.
    """
    first = c
    for allowed in (-1.0, recompute):  # copies first: what they hide is then seen
        for _ in range(1000):
            before = c
            c = split_ranks(drop_unit_dimensions(_drop(_share(_inline(_fold(c), allowed)))))
            if c is before:
                break
    return first if c is first else _drop_ranks(build(c))


# ---- fold


def _fold(c: Cascade) -> Cascade:
    def fold(d: Definition) -> Definition:
        if isinstance(d, Extern):
            return d
        extents = c.extents(d)

        def rule(n: Expr) -> Expr:
            if isinstance(n, Access):
                shape, states = c.tensors[n.tensor].shape, len(c.defining(n.tensor)) > 1
                new = tuple(i if states and isinstance(i, Var) else _index(i, size, extents)
                            for i, size in zip(n.indices, shape, strict=True))  # fmt: skip
                return n if all(a is b for a, b in zip(new, n.indices, strict=True)) else Access(n.tensor, new, n.span)
            return _fold_node(c, n)

        body = _kept(d.body, transform(d.body, rule))
        where = tuple(p for p in (transform(p, rule) for p in d.where) if not _is_true(p))
        if body is d.body and len(where) == len(d.where) and all(a is b for a, b in zip(where, d.where, strict=True)):
            return d
        if [v for v in d.reduced if v not in _variables(body, where)]:
            return d  # a variable would vanish, and with it the number of times that a value is combined
        return replace(d, body=body, where=where)

    return _replaced(c, tuple(fold(d) for d in c.definitions))


def _index(i: Expr, size: Expr, extents: Extents) -> Expr:
    """The index folded; a variable that walks another extent than the dimension's stays `v + 0`: it is meant."""
    if isinstance(i, Const) or accesses(i):
        return i
    new = i if isinstance(i, Var) else _kept(i, simplify_index(i, extents))
    if isinstance(new, Var) and not same(extents[new.name], size):
        return call("add", new, Const(0))
    return new


def _kept(old: Expr, new: Expr) -> Expr:
    return old if text(old) == text(new) else new


def _variables(body: Expr, where: tuple[Expr, ...]) -> set[str]:
    return {n.name for n in walk(body, *where) if isinstance(n, Var)}


def _is_true(e: Expr) -> bool:
    return isinstance(e, Const) and e.value is True


def _fold_node(c: Cascade, n: Expr) -> Expr:
    """x + 0 --> x;  x · 1 --> x;  op(constants) --> constant;  select(true, a, b) --> a;  t(x) --> x for x of type t."""
    if isinstance(n, Cast):
        if not isinstance(n.arg, Const) and expression_dtype(c, n.arg) == n.dtype:
            return n.arg
        return n
    if not isinstance(n, Call):
        return n
    if n.op == "select" and isinstance(n.args[0], Const):
        return n.args[1] if n.args[0].value else n.args[2]
    if len(n.args) == 2 and OPS[n.op].identity is not None:
        a, b = n.args
        if neutral(b, n.op) and _keeps_type(c, a, n):
            return a
        if OPS[n.op].commutative and neutral(a, n.op) and _keeps_type(c, b, n):
            return b
    if n.op in ("add", "sub", "mul") and is_size(n) and not any(isinstance(x, Size) for x in walk(n)):
        value = poly(n).constant
        return n if value is None else Const(value)
    return n


def _keeps_type(c: Cascade, part: Expr, whole: Expr) -> bool:
    return expression_dtype(c, part) == expression_dtype(c, whole)


# ---- inline


def _inline(c: Cascade, recompute: float) -> Cascade:
    """One sweep in program order; a definition that was inlined everywhere is dropped later."""
    kept = {t.name for t in c.outputs} | {a.tensor for s in c.stops for a in accesses(s.condition)}
    writers: dict[str, int] = {}
    for d in c.definitions:
        for name in targets(d):
            writers[name] = writers.get(name, 0) + 1
            kept |= set(d.operands) if isinstance(d, Extern) else set()
    current: dict[int, Definition] = dict(enumerate(c.definitions))
    readers: dict[str, set[int]] = {}
    for n, d in current.items():
        for x in d.reads:
            readers.setdefault(x.tensor, set()).add(n)
    for n in range(len(c.definitions)):
        d = current[n]
        if not isinstance(d, Einsum) or d.target in kept or writers[d.target] != 1 or not is_elementwise(d):
            continue
        mine = sorted(readers.get(d.target, ()))
        for m in mine:
            r = current[m]
            if not isinstance(r, Einsum) or writers[r.target] != 1 or not _worth(c, d, r, len(mine), recompute):
                continue
            merged = _inlined(c, d, r)
            if merged is not None:
                current[m] = merged
                readers[d.target].discard(m)
                for x in merged.reads:
                    readers.setdefault(x.tensor, set()).add(m)
    return _replaced(c, tuple(current.values()))


def _replaced(c: Cascade, new: tuple[Definition, ...]) -> Cascade:
    """Other definitions of the same targets and types; verified at the end of the pass."""
    same_ones = len(new) == len(c.definitions) and all(a is b for a, b in zip(new, c.definitions, strict=True))
    return c if same_ones else replace(c, definitions=new)


def _worth(c: Cascade, d: Einsum, reader: Einsum, readers: int, recompute: float) -> bool:
    if is_copy(d):
        return True
    if recompute < 0:
        return False
    if is_copy(reader) and is_elementwise(reader) and all(t.name != reader.target for t in c.outputs):
        return False  # the copy itself goes into its readers
    uses = sum(a.tensor == d.target for a in reader.reads)
    cheap = operations(d.body) + len(accesses(d.body)) <= recompute
    old = contraction(reader)
    if old is not None:
        # only what leaves both factors plain reads costs nothing in the inner loop
        merged = _inlined(c, d, reader)
        new = contraction(merged) if merged is not None else None
        return new is not None and readers == 1 and _plain(new.row_factor) and _plain(new.column_factor)
    return _walks_once(d, reader) and ((readers == 1 and uses == 1) or cheap)


def _plain(e: Expr) -> bool:
    """Whether a factor is one read, perhaps under a guard of its definition's predicates."""
    while isinstance(e, Call) and e.op == "select":
        e = e.args[1]
    return isinstance(e, Access)


def _walks_once(d: Einsum, reader: Einsum) -> bool:
    """Whether the reader visits each element once: every variable of the reader occurs in each access."""
    every = set(reader.free + reader.reduced)
    return all(every <= set(variables(a)) for a in reader.reads if a.tensor == d.target)


def _inlined(c: Cascade, d: Einsum, reader: Einsum) -> Einsum | None:
    """`reader` with d's body in place of reads of d, or None when a read may lie outside."""
    names = [i.name for i in d.indices if isinstance(i, Var)]
    extents = c.extents(reader)
    shape = c.tensors[d.target].shape
    for a in reader.reads:
        if a.tensor == d.target:
            for i, s in zip(a.indices, shape, strict=True):
                if not (isinstance(i, Var) and same(extents[i.name], s)) and not within(i, s, extents):
                    return None

    def rule(n: Expr) -> Expr:
        if isinstance(n, Access) and n.tensor == d.target:
            value = substitute(d.body, dict(zip(names, n.indices, strict=True)))
            t = c.tensors[d.target].dtype
            return value if expression_dtype(c, d.body) == t and not _literal(value) else Cast(t, value)
        return n

    body = transform(reader.body, rule)
    lost = [v for v in reader.reduced if v not in _variables(body, reader.where)]
    if lost:
        return None
    where = tuple(transform(p, rule) for p in reader.where)
    indices = tuple(transform(i, rule) for i in reader.indices)
    return replace(reader, indices=indices, body=body, where=where)


def _literal(e: Expr) -> bool:
    """Whether the type of an expression would adapt to its neighbours."""
    return not any(isinstance(n, Access | Var | Size | Cast) for n in walk(e))


# ---- share and drop


def _share(c: Cascade) -> Cascade:
    """Two definitions of the same right side become one; a copy of a whole tensor becomes that tensor."""
    outputs = {t.name for t in c.outputs}
    seen: dict[str, str] = {}
    other: dict[str, str] = {}
    for d in c.definitions:
        if not isinstance(d, Einsum) or len(c.defining(d.target)) != 1 or d.target in {a.tensor for a in d.reads}:
            continue
        key = str(replace(d, target="_"))
        if key in seen and d.target not in outputs:
            other[d.target] = seen[key]
        elif key not in seen:
            seen[key] = d.target
    if not other:
        return c

    def rule(n: Expr) -> Expr:
        return Access(other[n.tensor], n.indices, n.span) if isinstance(n, Access) and n.tensor in other else n

    kept: list[Definition] = []
    for d in c.definitions:
        if d.target in other:
            continue
        if isinstance(d, Extern) and not set(d.operands).isdisjoint(other):
            return c
        kept.append(d if isinstance(d, Extern) else _map(d, rule))
    return _replaced(c, tuple(kept))


def _map(d: Einsum, rule: object) -> Einsum:
    body = transform(d.body, rule)  # type: ignore[arg-type]
    where = tuple(transform(p, rule) for p in d.where)  # type: ignore[arg-type]
    indices = tuple(transform(i, rule) for i in d.indices)  # type: ignore[arg-type]
    if body is d.body and all(a is b for a, b in zip((*where, *indices), (*d.where, *d.indices), strict=True)):
        return d
    return replace(d, body=body, where=where, indices=indices)


def _drop(c: Cascade) -> Cascade:
    """Definitions that no output needs go."""
    needed = {t.name for t in c.outputs} | {a.tensor for s in c.stops for a in accesses(s.condition)}
    kept: list[Definition] = []
    pending = list(c.definitions)
    while True:
        chosen = [d for d in pending if needed & set(targets(d))]
        if not chosen:
            break
        kept += chosen
        needed |= {a.tensor for d in chosen for a in d.reads}
        pending = [d for d in pending if not any(d is x for x in chosen)]
    if len(kept) == len(c.definitions):
        return c
    order = {id(d): i for i, d in enumerate(c.definitions)}
    return _replaced(c, tuple(sorted(kept, key=lambda d: order[id(d)])))


def _drop_ranks(c: Cascade) -> Cascade:
    """Ranks with a size of their own that nothing mentions any more go."""
    used: set[str] = {t for r in c.ranks if r.size is None for t in [r.name]}
    for t in c.tensors.values():
        used |= {n.rank for s in t.shape for n in walk(s) if isinstance(n, Size)}
    for d in c.definitions:
        if isinstance(d, Einsum):
            used |= {n.rank for n in walk(d.body, *d.where, *d.indices) if isinstance(n, Size)}
            used |= {n.name.upper() for n in walk(d.body, *d.where, *d.indices) if isinstance(n, Var)}
    ranks = c.ranks
    for r in reversed(ranks):
        if r.name in used and r.size is not None:
            used |= {n.rank for n in walk(r.size) if isinstance(n, Size)}
    kept = tuple(r for r in ranks if r.name in used)
    return c if len(kept) == len(ranks) else replace(c, ranks=kept)
