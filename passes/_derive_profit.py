"""Whether one walk pays: what it reads is expensive to read again, and its state stays near a core."""

from __future__ import annotations

from tcc.ir.cascade import Cascade, Einsum
from tcc.ir.expr import Expr, Size, Var, variables, walk
from tcc.ir.index import evaluate_size
from tcc.ir.target import Target
from tcc.passes._algebra import is_elementwise, size_estimate
from tcc.passes._derive_scope import Program
from tcc.passes.split import RESOURCES

STATE = 256  # elements of a row's state that stay near a core in any case


def worth(program: Program, var: str, fields: list[str], target: Target) -> bool:
    """Whether one walk that computes these components saves more than it costs.

    They do when a tensor along the walk is computed in the program (then it is never stored), or when a row is larger
    than what fits near a core; unless something walks the row again afterwards and the row stays near.
    """
    if not fields:
        return True  # what was a walk is none
    c, defs = program.c, program.defs
    one = target.kind in RESOURCES and any(not defs[f].free for f in fields)
    if any(defs[f].free for f in fields) and not one and not _shared(defs, fields):
        return False  # without common rows the walk is one task, unless it is one row, which `split` cuts
    sources = _sources(defs, fields, var)
    row = _known(c, c.extent(var))
    large = row is not None and row * 4 > _near(target) // 4
    again = _walked_again(program, fields, sources)
    if again:
        return large
    if row is None or large:
        return True
    if _state(c, defs, fields) > max(STATE, row):
        return False
    return any(s in defs and defs[s].reduced for s in sources)


def _near(target: Target) -> int:
    """Bytes of the memory level next to a core."""
    inner = [level.bytes for level in target.levels[1:] if level.bytes]
    return max(inner[1:], default=1 << 19)


def _known(c: Cascade, size: Expr) -> int | None:
    size = c.resolved(size)
    if any(isinstance(n, Size) for n in walk(size)):
        return None
    return evaluate_size(size, {})


def _state(c: Cascade, defs: dict[str, Einsum], fields: list[str]) -> int:
    """Elements of the state per row, the variables that all components share."""
    shared = _shared(defs, fields)
    total = 0
    for f in fields:
        one = 1
        for v in defs[f].free:
            one *= 1 if v in shared else size_estimate(c, c.extent(v))
        total += one
    return total


def _shared(defs: dict[str, Einsum], fields: list[str]) -> set[str]:
    return set.intersection(*(set(defs[f].free) for f in fields))


def _sources(defs: dict[str, Einsum], fields: list[str], var: str) -> dict[str, None]:
    """The tensors that a walk reads along its variable and does not compute element by element."""
    out: dict[str, None] = {}
    seen: set[str] = set()
    stack = [(a, var) for f in fields for a in defs[f].reads if var in variables(a)]
    while stack:
        a, v = stack.pop()
        inner = defs.get(a.tensor)
        if inner is None or not is_elementwise(inner):
            out[a.tensor] = None
            continue
        if a.tensor in seen:
            continue
        seen.add(a.tensor)
        for own, i in zip(inner.free, a.indices, strict=True):
            if v in variables(i):
                stack += [(b, own) for b in inner.reads if own in variables(b)]
    return out


def _walked_again(program: Program, fields: list[str], sources: dict[str, None]) -> bool:
    """Whether something that depends on the components reads along the walk what they read."""
    defs = program.defs
    needed = set(fields)  # what the components themselves are computed from
    stack = list(fields)
    while stack:
        for a in defs[stack.pop()].reads:
            if a.tensor not in needed and a.tensor in defs:
                needed.add(a.tensor)
                stack.append(a.tensor)
    outputs = {t.name for t in program.c.outputs}
    live = set(outputs)
    stack = list(outputs)
    while stack:
        for name in program.reads.get(stack.pop(), ()):
            if name not in live:
                live.add(name)
                stack.append(name)
    seen = set(fields)
    stack = list(fields)
    while stack:
        for name in program.readers.get(stack.pop(), ()):
            if name in seen or name not in defs or name not in live:
                continue
            seen.add(name)
            stack.append(name)
            if name not in needed and _leaves(defs, defs[name]) & set(sources):
                return True
    return False


def _leaves(defs: dict[str, Einsum], d: Einsum) -> set[str]:
    """What a definition reads, through element-wise ones."""
    out: set[str] = set()
    stack = [a.tensor for a in d.reads if a.indices and any(isinstance(i, Var) for i in a.indices)]
    seen: set[str] = set()
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        out.add(name)
        inner = defs.get(name)
        if inner is not None and is_elementwise(inner):
            stack += [a.tensor for a in inner.reads]
    return out
