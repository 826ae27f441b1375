"""One kernel of a mapping as a `@triton.jit` function: the grid, loops over tiles, and register
tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from tcc.backends.triton import _leaf
from tcc.backends.triton._names import Lines, Names, quoted
from tcc.backends.triton._range import Ranges, ends
from tcc.backends.triton._scalar import type_name
from tcc.backends.triton._tile import Register, Tile
from tcc.ir.cascade import Einsum
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Expr, Var, text, variables
from tcc.ir.index import poly
from tcc.ir.mapping import Alloc, Do, Kernel, Loop, Mapping, Node, leaves, signature, walk_nodes
from tcc.ir.target import Target

GROUP = 8  # blocks of rows that share their columns in the L2 cache


@dataclass(frozen=True, slots=True)
class Parameter:
    """A kernel parameter: `pointer` of a tensor, `stride` of its dimension, `size` of a rank, or
    `block` of a variable.
    """

    name: str
    kind: str
    of: str
    dimension: int = 0
    value: int = 0


@dataclass(frozen=True, slots=True)
class KernelText:
    """A printed kernel: its source, what to launch it with, and the size of its grid as
    (variable's extent, tile).
    """

    name: str
    source: str
    parameters: tuple[Parameter, ...]
    grid: tuple[tuple[Expr, int, str], ...]
    warps: int
    stages: int


def emit_kernel(
    m: Mapping, k: Kernel, target: Target, name: str, helpers: dict[str, str], precision: str
) -> KernelText:
    """The text of kernel `k`; raises T0362 for loops and buffers that have no form in Triton."""
    return _Emitter(m, k, target, helpers, precision).emit(name)


class _Emitter:
    def __init__(
        self, m: Mapping, k: Kernel, target: Target, helpers: dict[str, str], precision: str
    ) -> None:
        self.m, self.k, self.target, self.precision = m, k, target, precision
        self.t = Tile(signature(m), dict(k.variables), {}, Lines(), Names(set(helpers)), helpers)
        self.grid, self.body = self._grid()
        self.open: list[str] = []
        self.ranges = Ranges(self.t)
        loops = [n for n in walk_nodes(k.body) if isinstance(n, Loop)]
        self.ends = {end for n in loops for end in ends(n.when)}  # of tiles, in conditions
        self._check_memory()
        for v, _ in k.variables:
            self.t.block[v] = self.t.block[f"{v}.low"] = self.t.block[f"{v}.high"] = 1
            self.t.block[v] = self._block(v)

    def _grid(self) -> tuple[list[Loop], tuple[Node, ...]]:
        """The loops that make the grid: the outermost ones, on `block`."""
        grid, body = [], self.k.body
        while len(body) == 1 and isinstance(body[0], Loop) and body[0].on == "block":
            grid.append(body[0])
            body = body[0].body
        for n in walk_nodes(body):
            if isinstance(n, Loop) and n.on is not None:
                raise CompileError(
                    "T0362",
                    f"kernel `{self.k.name}` has a loop on `{n.on}` inside a block",
                    n.span,
                    helps="only the outermost loops may run on `block`",
                )
            if isinstance(n, Loop) and n.until is not None:
                raise CompileError(
                    "T0362",
                    f"the loop over `{n.var}` has a stopping condition",
                    n.span,
                    helps="run it on the cpu target",
                )
            if isinstance(n, Do) and n.bind:
                raise CompileError(
                    "T0362",
                    f"`{n.einsum.target}` binds variables to `{n.bind[0][1]}`",
                    n.span,
                    helps="Triton spreads the elements of a tile over threads itself",
                )
        return grid, body

    def _check_memory(self) -> None:
        local = {n.buffer.name for n in walk_nodes(self.k.body) if isinstance(n, Alloc)}
        written = {d.einsum.target for d in leaves(self.k.body)} - local
        for d in leaves(self.k.body):
            for a in d.einsum.reads:
                if a.tensor in written:
                    raise CompileError(
                        "T0362",
                        f"kernel `{self.k.name}` writes `{a.tensor}` in memory and reads it",
                        d.span,
                        helps="keep it in a buffer at level `reg`, or use two kernels",
                    )

    def _block(self, v: str) -> int:
        """Coordinates of one tile: the step of its loop, or the power of two that holds its whole
        extent.
        """
        steps = {n.step: n for n in walk_nodes(self.k.body) if isinstance(n, Loop) and n.var == v}
        if len(steps) > 1:
            raise CompileError(
                "T0362",
                f"`{v}` is cut into tiles of {' and of '.join(map(str, steps))}",
                self.k.span,
                helps="use one step for all loops over a variable",
            )
        for step, loop in steps.items():
            if step & (step - 1):
                raise CompileError(
                    "T0362",
                    f"the step {step} of `{v}` is no power of two",
                    loop.span,
                    helps="tiles in Triton have powers of two as extents",
                )
            return step
        extent = poly(self.t.unfold(dict(self.k.variables)[v])).constant
        if extent is None:
            raise CompileError(
                "T0362",
                f"`{v}` has no loop and no fixed extent",
                self.k.span,
                helps=f"add a loop over `{v}`, or fix the size of its rank",
            )
        return 1 if extent == 1 else max(16, 1 << max(0, extent - 1).bit_length())

    # ---- the kernel's text

    def emit(self, name: str) -> KernelText:
        t = self.t
        extents = [(n.var, n.step) for n in self.grid]
        for v, _ in self.k.variables:
            t.coordinate[v] = t.names.fresh(v)
            t.names.taken |= {f"{t.coordinate[v]}_start", f"{t.coordinate[v]}_block"}
        self._program_ids()
        cut = {n.var for n in walk_nodes(self.k.body) if isinstance(n, Loop)}
        for v, extent in self.k.variables:
            if v not in cut:
                t.coordinate |= {f"{v}.low": "0", f"{v}.high": t.size(extent).text}
                shown = f"tl.arange(0, {t.block_name(v)})" if t.block[v] > 1 else "0"
                t.lines.add(f"{t.coordinate[v]} = {shown}")
        self.nodes(self.body)
        parameters = self._parameters()
        head = [f"@triton.jit\ndef {name}(", *_signature(parameters), "):", *self._docstring()]
        grid = tuple((self.t.unfold(dict(self.k.variables)[v]), step, v) for v, step in extents)
        return KernelText(
            name, "\n".join([*head, *t.lines.text]), parameters, grid, self._warps(), self._stages()
        )

    def _docstring(self) -> list[str]:
        shown = list(dict.fromkeys(str(d.einsum) for d in leaves(self.k.body)))
        return [
            f'    """{quoted(shown[0])}' + ('"""' if len(shown) == 1 else ""),
            *(f"    {quoted(s)}" for s in shown[1:]),
            *(['    """'] if len(shown) > 1 else []),
        ]

    def _parameters(self) -> tuple[Parameter, ...]:
        t = self.t
        out = [Parameter(name, "pointer", tensor) for tensor, name in t.pointers.items()]
        for tensor in t.pointers:
            mine = sorted((n, name) for (owner, n), name in t.strides.items() if owner == tensor)
            out += [Parameter(name, "stride", tensor, n) for n, name in mine]
        out += [Parameter(name, "size", rank) for rank, name in t.ranks.items()]
        out += [Parameter(name, "block", v, 0, t.block[v]) for v, name in t.block_names.items()]
        return tuple(out)

    def _warps(self) -> int:
        """Four warps; eight where a tile is larger, or where exact or masked products feed each other."""
        largest = 1
        for d in leaves(self.k.body):
            elements = 1
            for v in d.einsum.free:
                elements *= self.t.block[v]
            largest = max(largest, elements)
        chain = len(self.t.products) > 1
        exact = self.precision == "ieee" and (chain or self.t.computed)
        return 8 if largest >= 128 * 128 or exact or (chain and self.t.masked) else 4

    def _stages(self) -> int:
        return int(self.target.parameter("stages", 3))

    def _program_ids(self) -> None:
        """The blocks of the grid in one dimension, the last variable fastest."""
        t = self.t
        if not self.grid:
            return
        t.lines.add(
            f"{'pid' if len(self.grid) > 1 else self._block_of(self.grid[0])} = tl.program_id(0)"
        )
        for i, n in enumerate(reversed(self.grid)):
            count, last = self._count(n), i == len(self.grid) - 1
            if len(self.grid) > 1:
                t.lines.add(f"{self._block_of(n)} = pid" + ("" if last else f" % {count}"))
            if not last and i < len(self.grid) - 1:
                t.lines.add(f"pid = pid // {count}")
        wide = [n for n in self.grid if t.block[n.var] > 1]
        if len(wide) > 1 and wide == self.grid[-2:]:
            a, b = (self._block_of(n) for n in wide)
            sizes = ", ".join(self._count(n) for n in wide)
            t.lines.add(f"{a}, {b} = tl.swizzle2d({a}, {b}, {sizes}, {GROUP})")
        for n in self.grid:
            self._coordinates(
                n, f"{self._block_of(n)} * {t.block_name(n.var)}" if t.block[n.var] > 1 else ""
            )

    def _block_of(self, n: Loop) -> str:
        return (
            f"{self.t.coordinate[n.var]}_block"
            if self.t.block[n.var] > 1
            else self.t.coordinate[n.var]
        )

    def _count(self, n: Loop) -> str:
        size = self.t.size(self.t.extents[n.var])
        return (
            f"tl.cdiv({size.text}, {self.t.block_name(n.var)})" if n.step > 1 else size.within(12)
        )

    def _coordinates(self, n: Loop, start: str) -> None:
        """The coordinates of a tile, and its ends where a condition mentions them."""
        t, v = self.t, n.var
        t.place[v] = n
        name, block = t.coordinate[v], t.block_name(v) if t.block[v] > 1 else "1"
        if t.block[v] > 1 and f"{v}.low" in self.ends and start != f"{name}_start":
            t.lines.add(f"{name}_start = {start}")
            start = f"{name}_start"
        if t.block[v] > 1:
            t.lines.add(f"{name} = {start} + tl.arange(0, {block})")
        t.coordinate[f"{v}.low"] = start if t.block[v] > 1 else name
        if f"{v}.high" in self.ends:
            end = f"{t.coordinate[f'{v}.low']} + {block}"
            if t.ragged(v):
                end = f"tl.minimum({end}, {t.size(t.extents[v]).text})"
            t.coordinate[f"{v}.high"] = t.names.fresh(f"{name}_stop")
            t.lines.add(f"{t.coordinate[f'{v}.high']} = {end}")

    # ---- nodes

    def nodes(self, body: tuple[Node, ...]) -> None:
        for n, following in zip_longest(body, body[1:]):
            if isinstance(n, Do):
                combine = n.update or any(v in self.open for v in n.einsum.reduced)
                _leaf.emit(self.t, n.einsum, combine, self.precision)
            elif isinstance(n, Alloc):
                self._alloc(n)
            elif isinstance(n, Loop):
                self._loop(n, following if isinstance(following, Loop) else None)

    def _ignored(self, n: Alloc) -> frozenset[str]:
        """A register tile needs no fill at points that all its readers leave out too."""
        found: frozenset[str] | None = None
        for d in leaves(n.body):
            if any(a.tensor == n.buffer.name for a in d.einsum.reads):
                predicates = frozenset(text(p) for p in d.einsum.where)
                found = predicates if found is None else found & predicates
        return found or frozenset()

    def _alloc(self, n: Alloc) -> None:
        """A register tile is a Python name; its layout's digits give the order of its axes."""
        b, t = n.buffer, self.t
        dims = [d.name if isinstance(d, Var) else "" for d in b.dims]
        rings = [i for i, d in enumerate(b.dims) if not isinstance(d, Var)]
        if b.level != "reg" or len(rings) > 1 or any(poly(b.dims[i]).constant != 2 for i in rings):
            raise CompileError(
                "T0362",
                f"buffer `{b}` is no tile in registers",
                n.span,
                helps="give it level `reg` and a variable for each dimension",
            )
        order = [dims[d.dimension] for d in b.layout.digits]
        if len(order) != len(dims):
            raise CompileError(
                "T0362",
                f"the layout of `{b.name}` splits a dimension",
                n.span,
                helps="permute its dimensions only",
            )
        axes = tuple(v for v in order if v and t.block[v] > 1)
        name, place = t.names.fresh(b.name), tuple(t.place.get(v) for v in dims if v)
        following = t.names.fresh(f"{b.name}_next") if rings else ""
        t.registers[b.name] = Register(name, axes, place, following, rings[0] if rings else -1)
        t.ignored[b.name] = self._ignored(n)
        self.nodes(n.body)
        del t.registers[b.name]

    def _loop(self, n: Loop, following: Loop | None) -> None:
        t = self.t
        outside = set(t.registers)
        for target, d in {d.einsum.target: d for d in leaves(n.body)}.items():
            e = d.einsum
            inner = target in outside and n.var in e.reduced and not set(e.reduced) & set(self.open)
            if inner and not any(x.update for x in leaves(n.body) if x.einsum.target == target):
                self._clear(e)
        visit = self.ranges.visit(n, following)
        step = t.block_name(n.var) if t.block[n.var] > 1 else "1"
        start = f"{t.coordinate[n.var]}_start" if t.block[n.var] > 1 else t.coordinate[n.var]
        span = f"{visit.first}, {visit.stop}" if step != "1" or visit.first != "0" else visit.stop
        at = t.names.fresh(f"{n.var}_at") if visit.skip else start
        t.lines.add(f"for {at} in range({span}{f', {step}' if step != '1' else ''}):")
        t.open(n.var)
        self.open.append(n.var)
        place, before = t.place.get(n.var), dict(t.coordinate)
        if visit.skip:
            t.lines.add(f"{start} = {at} + tl.where({at} >= {visit.hole}, {visit.skip}, 0)")
        t.whole |= {n.var} if visit.complete else set()
        self._coordinates(n, start)
        if visit.condition is not None:
            t.lines.add(f"if {t.value(visit.condition, ()).text}:")
            t.open("")
        self.nodes(n.body)
        if visit.condition is not None:
            t.close()
        for target, e in {d.einsum.target: d.einsum for d in leaves(n.body)}.items():
            held = t.registers.get(target)
            if held is not None and held.following and n.var in variables(e.indices[held.position]):
                t.lines.add(f"{held.name} = {held.following}")
        self.open.pop()
        t.whole -= {n.var}
        t.place[n.var], t.coordinate = place, before
        t.close()

    def _clear(self, e: Einsum) -> None:
        """The identity of the reduction, before its first tile."""
        t = self.t
        held, monoid = t.registers[e.target], e.monoid(e.reduced[0])
        value = _leaf.identity(t, monoid, e).text
        dtype = type_name(t.signature.tensors[e.target].dtype)
        t.lines.add(f"{held.name} = tl.full({t.shape(held.axes)}, {value}, {dtype})")


def _signature(parameters: tuple[Parameter, ...]) -> list[str]:
    """The parameters, one line per kind and tensor."""
    groups: dict[str, list[str]] = {}
    for p in parameters:
        group = p.of if p.kind == "stride" else p.kind
        groups.setdefault(f"{p.kind} {group}", []).append(
            f"{p.name}: tl.constexpr" if p.kind == "block" else p.name
        )
    return [f"    {', '.join(names)}," for names in groups.values()]
