"""Values move into the definitions that read them, where that costs nothing or little."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, targets
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    accesses,
    call,
    substitute,
    text,
    transform,
    variables,
    walk,
)
from tcc.ir.index import bounds, nonnegative, poly, simplify_index, within
from tcc.ir.infer import expression_dtype
from tcc.passes._algebra import contraction, is_copy, is_elementwise, operations

_DECODING = 8  # additions and the like that one value may take


def inline(c: Cascade, recompute: float) -> Cascade:
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
        if (
            not isinstance(d, Einsum)
            or d.target in kept
            or writers[d.target] != 1
            or not is_elementwise(d)
        ):
            continue
        mine = sorted(readers.get(d.target, ()))
        for m in mine:
            r = current[m]
            if (
                not isinstance(r, Einsum)
                or writers[r.target] != 1
                or not _worth(c, d, r, len(mine), recompute)
            ):
                continue
            merged = _inlined(c, d, r)
            if merged is not None:
                current[m] = merged
                readers[d.target].discard(m)
                for x in merged.reads:
                    readers.setdefault(x.tensor, set()).add(m)
    return replaced(c, tuple(current.values()))


def replaced(c: Cascade, new: tuple[Definition, ...]) -> Cascade:
    """Other definitions of the same targets and types; verified at the end of the pass."""
    same_ones = len(new) == len(c.definitions) and all(
        a is b for a, b in zip(new, c.definitions, strict=True)
    )
    return c if same_ones else replace(c, definitions=new)


def _worth(c: Cascade, d: Einsum, reader: Einsum, readers: int, recompute: float) -> bool:
    if encodes(c, d):
        return False  # codes are stored: whoever reads them reads less
    if is_copy(d) or (_is_region(c, d) and is_elementwise(reader)):
        return True
    if recompute < 0:
        return False
    if (
        is_copy(reader)
        and not encodes(c, reader)
        and is_elementwise(reader)
        and all(t.name != reader.target for t in c.outputs)
    ):
        return False  # the copy itself goes into its readers
    uses = sum(a.tensor == d.target for a in reader.reads)
    cheap = operations(d.body) + len(accesses(d.body)) <= recompute
    old = contraction(reader)
    if old is not None:
        # only what leaves both factors plain reads costs nothing in the inner loop
        merged = _inlined(c, d, reader)
        new = contraction(merged) if merged is not None else None
        if new is None:
            return False
        if decodes(c, d) and _walked_plainly(d, reader):
            return True
        return readers == 1 and _plain(new.row_factor) and _plain(new.column_factor)
    if _chooses(d.body):
        return True
    return _walks_once(d, reader) and ((readers == 1 and uses == 1) or cheap)


def _is_region(c: Cascade, d: Einsum) -> bool:
    """Whether a definition says which coordinates count, and reads nothing: known as such, loops skip the others."""
    return c.tensors[d.target].dtype.kind == "b" and not d.reads and not d.reduced


def encodes(c: Cascade, d: Definition) -> bool:
    """Whether a definition rounds real numbers to integers of at most 8 bits."""
    if not isinstance(d, Einsum) or not isinstance(d.body, Cast) or d.reduced:
        return False
    t = d.body.dtype
    return t.is_integer and t.bits <= 8 and expression_dtype(c, d.body.arg).is_float


def decodes(c: Cascade, d: Einsum) -> bool:
    """Whether values are cheap arithmetic on fewer bits than they have themselves, and on what groups of them share."""
    names = set(d.free)
    own = [a for a in d.reads if set(variables(a)) >= names]
    read = sum(c.tensors[a.tensor].dtype.bits for a in own)
    return 0 < read < c.tensors[d.target].dtype.bits and operations(d.body) <= _DECODING


def _walked_plainly(d: Einsum, reader: Einsum) -> bool:
    """Whether the reader reads d at variables alone, perhaps shifted, so that windows are not decoded again and again."""
    reads = (a for a in reader.reads if a.tensor == d.target)
    return all(len(variables(i)) <= 1 and _shifted(i) for a in reads for i in a.indices)


def _shifted(i: Expr) -> bool:
    """Whether an index is a number, or a variable plus one."""
    names = variables(i)
    return all(poly(i).without(v).constant is not None for v in names) and all(
        (one := poly(i).coefficient(v)) is not None and one.constant == 1 for v in names
    )


def _chooses(e: Expr) -> bool:
    """Whether a value is one of two constants by what is read, so that it costs no more than the read itself."""
    if not isinstance(e, Call) or e.op != "select" or not isinstance(e.args[0], Access):
        return False
    return all(isinstance(b.arg if isinstance(b, Cast) else b, Const) for b in e.args[1:])


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
    """`reader` with d's body in place of reads of d, or None when a read may lie outside; what is decoded is then chosen
    where the read lies inside."""
    names = [i.name for i in d.indices if isinstance(i, Var)]
    guards = {text(a): _guard(c, a, reader) for a in reader.reads if a.tensor == d.target}
    if any(g is not None for g in guards.values()) and not decodes(c, d):
        return None

    def rule(n: Expr) -> Expr:
        if isinstance(n, Call) and n.op == "select":
            held = text(n.args[0])
            return replace(
                n, args=(n.args[0], transform(n.args[1], partial(_known, held)), n.args[2])
            )
        if isinstance(n, Access) and n.tensor == d.target:
            value = substitute(d.body, dict(zip(names, n.indices, strict=True)))
            t, guard = c.tensors[d.target].dtype, guards[text(n)]
            if expression_dtype(c, d.body) != t or _literal(value):
                value = Cast(t, value)
            fill = Cast(t, Const(c.tensors[d.target].fill))
            return value if guard is None else call("select", guard, value, fill)
        return n

    body = transform(reader.body, rule)
    lost = [v for v in reader.reduced if v not in set(variables(body, *reader.where))]
    if lost:
        return None
    where = tuple(transform(p, rule) for p in reader.where)
    indices = tuple(transform(i, rule) for i in reader.indices)
    return replace(reader, indices=indices, body=body, where=where)


def _known(held: str, n: Expr) -> Expr:
    """select(p, a, b) --> a where p holds."""
    return n.args[1] if isinstance(n, Call) and n.op == "select" and text(n.args[0]) == held else n


def _guard(c: Cascade, a: Access, reader: Einsum) -> Expr | None:
    """That a read lies inside its tensor, where that is not certain."""
    extents, held = c.extents(reader), list[Expr]()
    for i, s in zip(a.indices, c.tensors[a.tensor].shape, strict=True):
        if (isinstance(i, Var) and c.same_size(extents[i.name], s)) or within(i, s, extents):
            continue
        plain = simplify_index(i, extents)
        span = bounds(plain, extents)
        if span is None or not nonnegative(span[0]):
            held.append(call("le", Const(0), plain))
        held.append(call("lt", plain, s))
    return reduce(lambda x, y: call("and", x, y), held) if held else None


def _literal(e: Expr) -> bool:
    """Whether the type of an expression would adapt to its neighbours."""
    return not any(isinstance(n, Access | Var | Size | Cast) for n in walk(e))
