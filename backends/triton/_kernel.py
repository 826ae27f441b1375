"""One kernel of a mapping as a `@triton.jit` function: the grid, loops over tiles, and register
tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcc.backends.triton import _leaf
from tcc.backends.triton._names import Lines, Names, quoted
from tcc.backends.triton._scalar import SUM, type_name
from tcc.backends.triton._tile import Register, Tile
from tcc.ir.cascade import Einsum
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Call, Expr, Size, Var, text, variables
from tcc.ir.index import Poly, poly
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
        self._check_memory()
        for v, _ in k.variables:
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
        for v, _ in self.k.variables:
            if v not in cut:
                t.start[v] = "0"
                shown = f"tl.arange(0, {t.block_name(v)})" if t.block[v] > 1 else "0"
                t.lines.add(f"{t.coordinate[v]} = {shown}")
        self._ignored()
        for n in self.body:
            self.node(n)
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
        """Four warps; eight where a tile or an exact product of computed operands is larger."""
        largest = 1
        for d in leaves(self.k.body):
            elements = 1
            for v in d.einsum.free:
                elements *= self.t.block[v]
            largest = max(largest, elements)
        exact = self.precision == "ieee" and (len(self.t.products) > 1 or self.t.computed)
        return 8 if largest >= 128 * 128 or exact else 4

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
        t, v = self.t, n.var
        t.place[v] = n
        if t.block[v] > 1:
            t.start[v] = start
            t.lines.add(f"{t.coordinate[v]} = {start} + tl.arange(0, {t.block_name(v)})")
        else:
            t.start[v] = t.coordinate[v]

    def _ignored(self) -> None:
        """A register tile needs no fill at points that all its readers leave out too."""
        found: dict[str, frozenset[str]] = {}
        for d in leaves(self.k.body):
            predicates = frozenset(text(p) for p in d.einsum.where)
            for a in d.einsum.reads:
                found[a.tensor] = found.get(a.tensor, predicates) & predicates
        self.t.ignored = found

    # ---- nodes

    def node(self, n: Node) -> None:
        if isinstance(n, Do):
            combine = any(v in self.open for v in n.einsum.reduced)
            _leaf.emit(self.t, n.einsum, combine, self.precision)
        elif isinstance(n, Alloc):
            self._alloc(n)
        else:
            self._loop(n)

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
        for child in n.body:
            self.node(child)
        del t.registers[b.name]

    def _loop(self, n: Loop) -> None:
        t = self.t
        outside = set(t.registers)
        for target, e in {d.einsum.target: d.einsum for d in leaves(n.body)}.items():
            if target in outside and n.var in e.reduced and not set(e.reduced) & set(self.open):
                self._clear(e)
        step = t.block_name(n.var) if t.block[n.var] > 1 else "1"
        start = f"{t.coordinate[n.var]}_start" if t.block[n.var] > 1 else t.coordinate[n.var]
        low, high = self._range(n, outside)
        span = f"{low}, {high}" if step != "1" or low != "0" else high
        t.lines.add(f"for {start} in range({span}{f', {step}' if step != '1' else ''}):")
        t.open(n.var)
        self.open.append(n.var)
        before = t.place.get(n.var), t.start.get(n.var)
        self._coordinates(n, start)
        for child in n.body:
            self.node(child)
        for target, e in {d.einsum.target: d.einsum for d in leaves(n.body)}.items():
            held = t.registers.get(target)
            if held is not None and held.following and n.var in variables(e.indices[held.position]):
                t.lines.add(f"{held.name} = {held.following}")
        self.open.pop()
        t.place[n.var] = before[0]
        t.start.pop(n.var)
        t.close()

    def _clear(self, e: Einsum) -> None:
        """The identity of the reduction, before its first tile."""
        t = self.t
        held, monoid = t.registers[e.target], e.monoid(e.reduced[0])
        value = _leaf.identity(t, monoid, e).text
        dtype = type_name(t.signature.tensors[e.target].dtype)
        t.lines.add(f"{held.name} = tl.full({t.shape(held.axes)}, {value}, {dtype})")

    # ---- loops that skip tiles without points

    def _range(self, n: Loop, outside: set[str]) -> tuple[str, str]:
        """First and last coordinate to visit: predicates `v <= w + c` and `v >= w + c` of all
        sinks cut the range.
        """
        high = self.t.size(self.t.extents[n.var]).text
        sinks = [
            d.einsum
            for d in leaves(n.body)
            if d.einsum.target in outside or d.einsum.target not in self._locals(n)
        ]
        if not sinks or any(n.var not in e.reduced for e in sinks):
            return "0", high
        ends = [self._bounds(n.var, e) for e in sinks]
        low = ends[0][0] if all(x[0] == ends[0][0] for x in ends) else None
        limit = ends[0][1] if all(x[1] == ends[0][1] for x in ends) else None
        first = "0"
        if low is not None:
            block = self.t.block_name(n.var) if self.t.block[n.var] > 1 else "1"
            first = (
                f"tl.maximum({low}, 0) // {block} * {block}"
                if block != "1"
                else f"tl.maximum({low}, 0)"
            )
        return first, high if limit is None else f"tl.minimum({high}, {limit})"

    def _locals(self, n: Loop) -> set[str]:
        return {x.buffer.name for x in walk_nodes(n.body) if isinstance(x, Alloc)}

    def _bounds(self, v: str, e: Einsum) -> tuple[str | None, str | None]:
        """Of the predicates of `e`, the least v and the v to stop at that they allow in the
        current tiles.
        """
        low: str | None = None
        high: str | None = None
        for p in e.where:
            if not (isinstance(p, Call) and p.op in ("le", "lt", "ge", "gt")):
                continue
            a, b = p.args if p.op in ("le", "lt") else (p.args[1], p.args[0])
            slack = poly(self.t.unfold(b)) - poly(
                self.t.unfold(a)
            )  # >= 0, or > 0, where the predicate holds
            sign = slack.terms.get((v,), 0)
            if abs(sign) != 1 or slack.coefficient(v) is None:
                continue
            rest = slack.without(v).scaled(-sign)  # v <= rest, or v >= rest
            strict = p.op in ("lt", "gt")
            if sign < 0:
                high = self._extreme(rest, 0 if strict else 1, upper=True) or high
            else:
                low = self._extreme(rest, 1 if strict else 0, upper=False) or low
        return low, high

    def _extreme(self, rest: Poly, plus: int, upper: bool) -> str | None:
        """The largest or least value of w + sizes over the current tile of w, plus a constant;
        None for other forms.
        """
        moving = [k for k in rest.terms if any(not isinstance(rest.atoms[a], Size) for a in k)]
        if not moving:
            return self.t.size((rest + Poly({(): plus})).expr()).text
        (key,) = moving if len(moving) == 1 else ((),)
        if len(key) != 1 or rest.terms[key] != 1 or key[0] not in self.t.start:
            return None
        (w,) = key
        others, shown = rest.without(w), self.t.start[w]
        if upper and self.t.block[w] > 1:
            shown, plus = f"{shown} + {self.t.block_name(w)}", plus - 1
        others = others + Poly({(): plus} if plus else {})
        return f"{shown} + {self.t.size(others.expr()).within(SUM + 1)}" if others.terms else shown


def _signature(parameters: tuple[Parameter, ...]) -> list[str]:
    """The parameters, one line per kind and tensor."""
    groups: dict[str, list[str]] = {}
    for p in parameters:
        group = p.of if p.kind == "stride" else p.kind
        groups.setdefault(f"{p.kind} {group}", []).append(
            f"{p.name}: tl.constexpr" if p.kind == "block" else p.name
        )
    return [f"    {', '.join(names)}," for names in groups.values()]
