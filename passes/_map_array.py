"""Cascade to mapping, for a 2-D array of processing elements with a row of further ones beside it.

    kernel  ::= for each outer variable { copies of inputs, stages }
    stage   ::= leaves | for the walked variable { copies of inputs, leaves }
    leaf    ::= local loops { preload of the stationary operand, do … with v on pe_x, w on pe_y }

*Outer* variables are those over which every slice of the kernel is independent. One more variable,
the *walked* one, is cut into tiles; a definition that needs the whole result of a reduction along
it starts another walk.
"""

from __future__ import annotations

from tcc.ir.cascade import Cascade, Einsum, Extern, Recurrence, steps, targets
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.expr import Access, Var, variables
from tcc.ir.index import poly
from tcc.ir.layout import row_major
from tcc.ir.mapping import Buffer, Kernel, Mapping
from tcc.ir.mapping_verify import verify
from tcc.ir.target import Target, Unit
from tcc.ir.work import point_operations
from tcc.passes._algebra import TYPICAL, row_variables
from tcc.passes._array_emit import Leaf, Plan, emit
from tcc.passes._array_prepare import Prepared, Product, prepare

DATAFLOWS = ("output", "weight", "input")


def map_array(
    c: Cascade,
    target: Target,
    dataflow: str = "output",
    *,
    tile_reduction: int = 0,
    tile_stream: int = 0,
) -> Mapping:
    """One kernel per group; contractions keep the named operand still, all else runs where it can.

    Z[m,n] = A[m,k] * B[k,n]  -->  m, n on pe_x, pe_y (output)
                                 | k, n on pe_x, pe_y, B preloaded (weight)
                                 | k, m on pe_x, pe_y, A preloaded (input)

    `tile_reduction` cuts the reduced variable of an output-stationary contraction, `tile_stream`
    the variable that streams past a stationary input; 0 keeps them whole.
    """
    if dataflow not in DATAFLOWS:
        raise CompileError(
            "T0240",
            f"unknown dataflow `{dataflow}`",
            helps=(*did_you_mean(dataflow, list(DATAFLOWS)), f"one of {', '.join(DATAFLOWS)}"),
        )
    for u in target.units:
        for r in u.resources:
            if not target.resource(r).count:
                raise CompileError(
                    "T0240",
                    f"`{r}` of target `{target.name}` has no count",
                    helps="an array has a fixed number of elements: give `count`",
                )
    if not any(len(u.resources) == 2 for u in target.units) or not any(
        x.name == "buffer" for x in target.levels
    ):
        raise CompileError(
            "T0240",
            f"target `{target.name}` is no array",
            helps="list a level `buffer` and `units`, one "
            "of them over two dimensions: see docs/targets.md",
        )
    for given in (tile_reduction, tile_stream):
        if given < 0:
            raise CompileError(
                "T0240",
                f"a tile of {given} coordinates",
                helps="give a positive number, or 0 for no tiles",
            )
    tiles = {"tile_reduction": tile_reduction or None, "tile_stream": tile_stream or None}
    groups = _groups(c)
    outputs = {t.name for t in c.outputs}
    taken = {t.name for t in c.inputs} | {n for d in c.definitions for n in targets(d)}
    kernels, memory = [], []
    for name, members in groups:
        inside = {id(d) for d in members}
        read = {a.tensor for d in c.definitions if id(d) not in inside for a in d.reads}
        made = dict.fromkeys(d.target for d in members)
        leaving = {t for t in made if t in outputs or t in read}
        for t in made:
            if t in leaving and t not in outputs:
                shape = c.tensors[t].shape
                memory.append(
                    Buffer(
                        t,
                        c.tensors[t].dtype,
                        shape,
                        "memory",
                        row_major(len(shape)),
                        c.tensors[t].fill,
                    )
                )
        kernels.append(
            _Kernel(c, target, dataflow, tiles, prepare(c, members, taken), leaving, taken).kernel(
                name
            )
        )
    return verify(
        Mapping(c.name, target.name, c.ranks, c.inputs, c.outputs, tuple(memory), tuple(kernels))
    )


def _groups(c: Cascade) -> list[tuple[str, list[Einsum]]]:
    """The kernels: as grouped, else one per definition; who shares a recurrence is joined."""
    einsums: list[Einsum] = []
    for d in c.definitions:
        if isinstance(d, Extern):
            raise CompileError(
                "T0241",
                f"`{d.target}`: an array cannot call `{d.function}`",
                d.span,
                helps="map the parts before and after it by themselves",
            )
        einsums.append(d)
    given = c.groups or tuple(
        (f"{c.name}_{t}", (t,)) for t in dict.fromkeys(d.target for d in einsums)
    )
    grouped = [(name, set(names)) for name, names in given]
    recurrences = [s for s in steps(c) if isinstance(s, Recurrence)]
    state = {d.target for s in recurrences for d in s.steps} | {s.var for s in recurrences}
    sharing = [
        n for n, (_, names) in enumerate(grouped)
        if any(d.target in names and state & set(_touched(d)) for d in einsums)
    ]  # fmt: skip
    if len(sharing) > 1:
        joined = grouped[sharing[0] : sharing[-1] + 1]
        whole = (joined[-1][0], {t for _, names in joined for t in names})
        grouped[sharing[0] : sharing[-1] + 1] = [whole]
    for d in einsums:
        if not any(d.target in names for _, names in grouped):
            raise CompileError(
                "T0241",
                f"`{d.target}` belongs to no kernel",
                d.span,
                helps="add it to a `kernel` line, or give none",
            )
    return _in_order([(n, [d for d in einsums if d.target in names]) for n, names in grouped])


def _touched(d: Einsum) -> list[str]:
    """The tensors and the variables of a definition."""
    return [d.target, *(a.tensor for a in d.reads), *d.free, *d.reduced]


def _in_order(grouped: list[tuple[str, list[Einsum]]]) -> list[tuple[str, list[Einsum]]]:
    """Kernels such that each comes after those whose results it reads."""
    out: list[tuple[str, list[Einsum]]] = []
    left = list(grouped)
    while left:
        for n, (_, ds) in enumerate(left):
            later = {d.target for m, (_, others) in enumerate(left) if m != n for d in others}
            if not any(a.tensor in later for d in ds for a in d.reads):
                out.append(left.pop(n))
                break
        else:
            raise CompileError(
                "T0240",
                f"kernels `{left[0][0]}` and `{left[1][0]}` need each other's results",
                left[0][1][0].span,
                helps="group the definitions in another way",
            )
    return out


class _Kernel:
    """Chooses outer and walked variables, tile sizes, stages, units and bindings of one kernel."""

    def __init__(
        self,
        c: Cascade,
        target: Target,
        dataflow: str,
        tiles: dict[str, int | None],
        p: Prepared,
        leaving: set[str],
        taken: set[str],
    ) -> None:
        self.c, self.target, self.dataflow, self.tiles, self.p = c, target, dataflow, tiles, p
        self.leaving, self.taken = leaving, taken
        self.count = {r.name: r.count for r in target.resources}
        self.array = next(u for u in target.units if len(u.resources) == 2)
        defs = p.definitions
        last = defs[-1].free
        rows = [v for v in row_variables(defs) if v != p.iterative and self._in_place(v)]
        self.outer = sorted(rows, key=lambda v: last.index(v) if v in last else -1)
        self.binds = {
            id(d): self._product_bind(p.products[id(d)]) for d in defs if id(d) in p.products
        }
        self.primary: dict[str, str] = next(iter(self.binds.values()), {})
        self.walked = p.iterative or self._most_walked()
        self.step = {v: s for v in [*self.outer, self.walked] if v and (s := self._step(v))}

    def _in_place(self, v: str) -> bool:
        """Whether every access in the kernel has the variable where its tensor's writer has it."""
        at: dict[str, list[int]] = {}
        for d in self.p.definitions:
            for a in (Access(d.target, d.indices), *d.reads):
                if a.tensor in self.p.made:
                    mine = [
                        n for n, i in enumerate(a.indices) if isinstance(i, Var) and i.name == v
                    ]
                    if at.setdefault(a.tensor, mine) != mine or len(mine) != 1:
                        return False
        return True

    def _most_walked(self) -> str | None:
        found: dict[str, int] = {}
        for d in self.p.definitions:
            for v in [*d.free, *d.reduced]:
                if v not in self.outer:
                    found[v] = found.get(v, 0) + 1
        return max(found, key=lambda v: found[v]) if found else None

    def _product_bind(self, x: Product) -> dict[str, str]:
        if self.array.cost("mul_add") is None:
            raise CompileError(
                "T0242",
                f"unit `{self.array.name}` of target `{self.target.name}` cannot do `mul_add`",
                helps="list it under `operators`",
            )
        pe_x, pe_y = self.array.resources
        if self.dataflow == "output":
            return {x.row: pe_x, x.column: pe_y}
        return {x.reduced: pe_x, (x.column if self.dataflow == "weight" else x.row): pe_y}

    def _step(self, v: str) -> int | None:
        """The tile size of an outer or the walked variable; None leaves it whole."""
        products, (pe_x, pe_y) = self.p.products.values(), self.array.resources
        if v == self.p.iterative:
            return 1
        for bind in self.binds.values():
            if v in bind:
                return self.count[bind[v]]
        if v == self.walked:
            only = any(v == x.reduced for x in products)
            return self.tiles["tile_reduction"] if only else self.count[pe_x]
        if products:
            if any(v in (x.row, x.column) for x in products):
                if len(products) == 1:
                    return self.tiles["tile_stream"]
                return self.count[pe_y]
            return 1
        if v == self.outer[-1]:
            return self.count[pe_y]
        return self.count[pe_x] if self.walked is None and v == self.outer[-2] else 1

    # ---- stages: even keys stand between walks, odd ones are walks

    def _stages(self) -> list[int]:
        keys: list[int] = []
        for n, d in enumerate(self.p.definitions):
            walks = self._walks(d)
            key = 1 if walks else 0
            for a in d.reads:
                for j, producer in enumerate(self.p.definitions[:n]):
                    if producer.target != a.tensor:
                        continue
                    later = keys[j] + (2 if walks else 1)
                    if not self._walks(producer):
                        key = max(key, keys[j] + walks)
                    elif walks and self._follows(producer, a):
                        key = max(key, keys[j])
                    else:
                        key = max(key, later)
            if walks and not key % 2:
                key += 1
            keys.append(key)
        self._check_states(keys)
        return keys

    def _check_states(self, keys: list[int]) -> None:
        """Only the walk that computes a state sees its steps; later ones see the last."""
        for d, key in zip(self.p.definitions, keys, strict=True):
            for a in d.reads:
                if a.tensor not in self.p.states or self.walked not in variables(*a.indices):
                    continue
                made = [
                    k for e, k in zip(self.p.definitions, keys, strict=True) if e.target == a.tensor
                ]
                if key != max(made):
                    raise CompileError(
                        "T0241",
                        f"`{d.target}` reads steps of `{a.tensor}` after its walk ended",
                        d.span,
                        helps="copy the steps that it needs into a tensor of their own",
                    )

    def _walks(self, d: Einsum) -> bool:
        return self.walked is not None and self.walked in (*d.free, *d.reduced)

    def _follows(self, producer: Einsum, a: Access) -> bool:
        """Whether the producer's tile is all that a reader in the same tile needs."""
        if producer.target in self.p.states:
            return self.walked in variables(*a.indices)
        if self.walked in producer.reduced:
            return False
        return all(
            (isinstance(i, Var) and i.name == self.walked)
            == (isinstance(own, Var) and own.name == self.walked)
            for i, own in zip(a.indices, producer.indices, strict=True)
        )

    # ---- units and bindings

    def _leaf(self, d: Einsum, stage: int) -> Leaf:
        if id(d) in self.p.products:
            x, bind = self.p.products[id(d)], self.binds[id(d)]
            still = {"output": Access(d.target, d.indices), "weight": x.second, "input": x.first}[
                self.dataflow
            ]
            local = self._local(bind)
            local += [
                (v, 1)
                for v in variables(*still.indices)
                if v not in bind and self._length(v, stage) != 1
            ]
            return Leaf(
                d, stage, self.array, bind, local, None if self.dataflow == "output" else still
            )
        work = point_operations(d)
        best: tuple[tuple[float, int], Unit, dict[str, str]] | None = None
        for u in self.target.units:
            costs = [(n, u.cost(op)) for op, n in work.items()]
            if any(cost is None for _, cost in costs):
                continue
            cycles = max(1.0, sum(n * cost.cycles for n, cost in costs if cost))
            bind = self._bind(u, d, stage)
            rank = (self._estimate(d, bind, cycles, stage), len(u.resources))
            if best is None or rank < best[0]:
                best = (rank, u, bind)
        if best is None:
            able = {op for op in work if any(u.cost(op) for u in self.target.units)}
            missing = [op for op in work if op not in able]
            what = (
                f"no unit of `{self.target.name}` can do `{missing[0]}`"
                if missing
                else (f"no unit of `{self.target.name}` can do all of `{', '.join(work)}`")
            )
            raise CompileError(
                "T0242",
                f"`{d.target}`: {what}",
                d.span,
                helps="list it under `operators` of a unit, or split the definition"
                if not missing
                else "list it under `operators` of a unit",
            )
        return Leaf(d, stage, best[1], best[2], self._local(best[2]), None)

    def _estimate(self, d: Einsum, bind: dict[str, str], cycles: float, stage: int) -> float:
        """About how long one tile of a definition takes: its steps in time, and what moves."""
        runs, steps = 1, cycles
        for v in dict.fromkeys([*d.free, *d.reduced]):
            length = self._length(v, stage) or TYPICAL
            if v in bind:
                runs *= -(-length // self.count[bind[v]])
            else:
                steps *= length
        moving = {
            r for v, r in bind.items()
            if v in d.reduced or any(a.indices and v not in variables(*a.indices) for a in d.reads)
        }  # fmt: skip
        skew = sum(self.count[r] - 1 for r in moving) * self.target.parameter("hop_cycles", 1)
        return runs * (steps + skew)

    def _bind(self, u: Unit, d: Einsum, stage: int) -> dict[str, str]:
        """Variables for a unit's dimensions: as in the first contraction, then tiled, then free."""
        plain = [i.name for i in d.indices if isinstance(i, Var)]
        usable = [v for v in [*plain, *d.reduced] if self._length(v, stage) != 1]
        bind = {v: self.primary[v] for v in usable if self.primary.get(v) in u.resources}
        order = [v for v in reversed(plain) if v in self.step] + [
            v for v in reversed(plain) if v not in self.step
        ]
        if len(u.resources) > 1 or not order:
            order += d.reduced
        rest = [v for v in order if v in usable and v not in bind]
        for r, v in zip([r for r in reversed(u.resources) if r not in bind.values()], rest):
            bind[v] = r
        return dict(sorted(bind.items(), key=lambda pair: u.resources.index(pair[1])))

    def _length(self, v: str, stage: int) -> int | None:
        """The largest interval of a variable in a stage, where it is known."""
        whole = poly(self.c.extent(v)).constant
        if v in self.step and (v != self.walked or stage % 2):
            return self.step[v] if whole is None else min(whole, self.step[v])
        return whole

    def _local(self, bind: dict[str, str]) -> list[tuple[str, int]]:
        """Loops that cut bound variables to what their dimension holds."""
        out = []
        for v, r in bind.items():
            whole = poly(self.c.extent(v)).constant
            if self.step.get(v, whole if whole is not None else self.count[r] + 1) > self.count[r]:
                out.append((v, self.count[r]))
        return out

    def kernel(self, name: str) -> Kernel:
        leaves = [self._leaf(d, s) for d, s in zip(self.p.definitions, self._stages(), strict=True)]
        names = dict.fromkeys(v for d in self.p.definitions for v in [*d.free, *d.reduced])
        plan = Plan(
            self.c,
            self.target,
            self.p.made,
            leaves,
            self.outer,
            self.walked,
            self.step,
            self.leaving,
            self.taken,
            self._length,
        )
        return Kernel(name, tuple((v, self.c.extent(v)) for v in names), emit(plan))
