"""The order of execution: definitions after what they read, cycles as recurrences."""

from __future__ import annotations

from tcc.ir.cascade import Cascade, Einsum, Recurrence, Step, targets
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Expr, Var, accesses, text, variables
from tcc.ir.index import poly


def schedule(c: Cascade) -> list[Step]:
    """Definitions in dependence order, cycles along one rank as recurrences; T0108 on others."""
    writers: dict[str, list[int]] = {}
    for i, d in enumerate(c.definitions):
        for name in targets(d):
            writers.setdefault(name, []).append(i)
    edges = {
        i: sorted({j for a in d.reads for j in writers.get(a.tensor, [])})
        for i, d in enumerate(c.definitions)
    }
    if all(j < i for i, js in edges.items() for j in js):
        return list(c.definitions)
    _join_stops(c, edges, writers)
    return [_step(c, group, edges) for group in _components(edges)]


def _join_stops(c: Cascade, edges: dict[int, list[int]], writers: dict[str, list[int]]) -> None:
    """Makes what a stopping condition reads part of the recurrence that it stops."""
    for stop in c.stops:
        for name in dict.fromkeys(a.tensor for a in accesses(stop.condition)):
            for i in writers.get(name, []):
                for j in edges[i]:
                    d = c.definitions[j]
                    if (
                        isinstance(d, Einsum)
                        and stop.var in d.free
                        and i not in edges[j]
                        and j != i
                    ):
                        if any(j in edges[k] for k in edges[j]) or j in edges[j]:
                            edges[j] = sorted([*edges[j], i])


def _components(edges: dict[int, list[int]]) -> list[list[int]]:
    """Strongly connected components, dependences first, stable in program order."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(edges)
    graph.add_edges_from((j, i) for i, js in edges.items() for j in js)
    dag = nx.condensation(graph)
    order = nx.lexicographical_topological_sort(dag, key=lambda n: min(dag.nodes[n]["members"]))
    return [sorted(dag.nodes[n]["members"]) for n in order]


def _step(c: Cascade, group: list[int], edges: dict[int, list[int]]) -> Step:
    first = c.definitions[group[0]]
    if len(group) == 1 and group[0] not in edges[group[0]]:
        return first
    members = [d for i in group if isinstance(d := c.definitions[i], Einsum)]
    names = {d.target for d in members}
    steps = {
        v
        for d in members
        for i in d.indices
        for v in variables(i)
        if (k := (poly(i) - poly(Var(v))).constant) is not None and k > 0
    }
    if len(steps) != 1 or len(members) != len(group):
        cycle = ", ".join(f"`{d.target}`" for d in members)
        raise CompileError(
            "T0108",
            f"cyclic definitions: {cycle}",
            first.span,
            helps="a tensor may depend on itself only along an iterative rank: `S[t+1] = g(S[t])`",
        )
    (var,) = steps

    def offset(indices: tuple[Expr, ...]) -> int | None:
        for i in indices:
            if var in variables(i):
                return (poly(i) - poly(Var(var))).constant
        return None

    at = {d.target: offset(d.indices) for d in members}
    inner: dict[int, list[int]] = {i: [] for i in range(len(members))}
    for i, d in enumerate(members):
        mine = at[d.target]
        for a in d.reads:
            if a.tensor not in names:
                continue
            theirs = offset(a.indices)
            late = mine is None or theirs is None or theirs > (at[a.tensor] or 0)
            if late or (theirs == at[a.tensor] and a.tensor == d.target):
                raise CompileError(
                    "T0108",
                    f"`{d.target}` at step `{var}` reads `{text(a)}`, which is not computed yet",
                    a.span or d.span,
                    helps=f"read an earlier step along `{var}`",
                )
            if theirs == at[a.tensor]:
                inner[i] += [j for j, other in enumerate(members) if other.target == a.tensor]
    order = _components(inner)
    if any(len(g) > 1 for g in order):
        raise CompileError(
            "T0108",
            f"cyclic definitions within one step of `{var}`",
            first.span,
            helps=f"one of them has to read an earlier step along `{var}`",
        )
    stop = next(
        (
            s
            for s in c.stops
            if s.var == var and any(a.tensor in names for a in accesses(s.condition))
        ),
        None,
    )
    return Recurrence(var, tuple(members[g[0]] for g in order), stop)
