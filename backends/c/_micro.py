"""Register-tiled inner products: T[rows, columns] ⊕= Σ A[row, …] · B[…, column], with named accumulators."""

from __future__ import annotations

from tcc.backends.c._codes import word
from tcc.backends.c._masked import emit_masked
from tcc.backends.c._scope import C_TYPES, Interval, Scope, integer_text, plus, span_text
from tcc.backends.c._vector import CLASSES, vector_class
from tcc.ir.dtype import DTYPES, DType
from tcc.ir.expr import Access, Call, Const, Expr, Var, accesses, call, variables
from tcc.ir.index import Poly, poly
from tcc.ir.mapping import Do

MOST_SUMS = 32  # accumulators of a tile
WIDE_SUMS = 8  # a tile with fewer of them waits for each
AHEAD = 4096  # bytes of operand B that are fetched ahead of their use
LINE = 64  # bytes of a cache line


def emit_micro(s: Scope, leaf: Do) -> bool:
    """Prints the leaf as a call of a micro-kernel; False when its shape or storage does not allow one."""
    d = leaf.einsum
    lane, row = leaf.on("lane")[0], leaf.on("unroll")[0]
    body = d.body
    t = s.storage[d.target].dtype
    if t.name not in CLASSES or not d.reduced or any(d.monoid(v) != "sum" for v in d.reduced):
        return False
    if not (isinstance(body, Call) and body.op == "mul"):
        return False
    a, b = body.args
    if not (isinstance(a, Access) and isinstance(b, Access)):
        return False
    if lane in variables(a) or row in variables(b) or lane not in variables(b):
        return False
    stored = [s.storage[x].code for x in (b.tensor, d.target)]
    if any(code is not None for code in stored) or s.storage[a.tensor].packed:
        return False
    if any(s.storage[x.tensor].dtype != t for x in (a, b)) or s.unsafe(a) or s.unsafe(b):
        return False
    rows, columns = s.intervals[row].step, s.intervals[lane].step
    if rows is None or columns is None or columns % CLASSES[t.name][1]:
        return False
    width = tile_lanes(rows, columns, t, s.vector_bytes)
    if rows * (columns // width) > MOST_SUMS:
        return False
    others = [v for v in (*d.free,) if v not in (lane, row)]
    if any(s.intervals[v].step != 1 for v in others):
        return False
    if not _whole_tiles(s, Access(d.target, d.indices), lane, columns) or not _whole_tiles(
        s, b, lane, columns
    ):
        return False
    if not _whole_tiles(s, Access(d.target, d.indices), row, rows):
        return False
    plan = _Plan(s, d.target, d.indices, a, b, lane, row, list(d.reduced), leaf.update)
    if not plan.affine():
        return False
    if not d.where:
        plan.emit(rows, columns // width, width, t.name)
        return True
    kind = vector_class(s, [d], lane)
    masks = [x for p in d.where for x in accesses(p) if lane in variables(x)]
    if kind != t.name or not all(_whole_tiles(s, x, lane, columns) for x in masks):
        return False
    emit_masked(s, d, lane, row, columns // width, width, kind, leaf.update)
    return True


def tile_lanes(rows: int, columns: int, t: DType, vector_bytes: int) -> int:
    """Elements of a vector of such a tile: as many as a register of `vector_bytes` holds, if that leaves enough sums to
    hide the latency of one, else those of the mapping's vectors."""
    least = CLASSES[t.name][1]
    width = max(least, vector_bytes // t.itemsize)
    return width if columns % width == 0 and rows * (columns // width) >= WIDE_SUMS else least


def _whole_tiles(s: Scope, x: Access, v: str, tile: int) -> bool:
    """Whether storage is padded to whole tiles along a variable, or the variable's extent is a multiple of them."""
    layout = s.storage[x.tensor].layout
    at = [n for n, i in enumerate(x.indices) if isinstance(i, Var) and i.name == v]
    if len(at) != 1:
        return False
    if layout is not None:
        return layout.padding(at[0]) % tile == 0
    size = poly(s.signature.resolved(s.extents[v])).constant
    return size is not None and size % tile == 0 and s.intervals[v].step == tile


class _Plan:
    def __init__(self, s: Scope, target: str, indices: tuple[Expr, ...], a: Access, b: Access, lane: str, row: str,
                 reduced: list[str], update: bool) -> None:  # fmt: skip
        self.update = update
        self.s, self.a, self.b, self.lane, self.row = s, a, b, lane, row
        self.reduced = reduced
        self.c = Access(target, indices)
        self.old = {v: s.intervals[v] for v in (lane, row, *reduced)}
        self.counters = {v: f"{v}__k" for v in reduced}
        for v in reduced:
            if s.intervals[v].step != 1:
                step = s.intervals[v].step
                s.counters[self.counters[v]] = Const(step) if step else s.extents[v]
                s.intervals[v] = Interval(
                    plus(self.old[v].low, Var(self.counters[v])), self.old[v].high, None
                )
        s.counters["row__"] = Const(self.old[row].step or 1)
        s.counters["lane__"] = Const(self.old[lane].step or 1)
        s.intervals[row] = Interval(plus(self.old[row].low, Var("row__")), self.old[row].high, None)
        s.intervals[lane] = Interval(
            plus(self.old[lane].low, Var("lane__")), self.old[lane].high, None
        )
        self.at_a, self.at_b, self.at_c = (poly(s.address(x)) for x in (a, b, self.c))
        s.intervals.update(self.old)

    def affine(self) -> bool:
        """Whether every address is linear in the tile's own counters."""
        own = [*self.counters.values(), "row__", "lane__"]
        for p in (self.at_a, self.at_b, self.at_c):
            rest = p
            for c in own:
                k = p.coefficient(c)
                if k is None or k.mentions(own):
                    return False
                rest = rest.without(c)
            if rest.mentions(own):
                return False
        unit = self.at_b.coefficient("lane__"), self.at_c.coefficient("lane__")
        return all(u is not None and u.constant == 1 for u in unit)

    def _number(self, p: Poly | None) -> str:
        assert p is not None
        return integer_text(self.s, p.expr())

    def _start(self, p: Poly) -> str:
        for c in (*self.counters.values(), "row__", "lane__"):
            p = p.without(c)
        return self._number(p)

    def emit(self, rows: int, vectors: int, width: int, t: str) -> None:
        s = self.s
        loops = [v for v in self.reduced if self.old[v].step != 1]
        lengths = [span_text(s, self.old[v]) for v in loops]
        strides_a = [self.at_a.coefficient(self.counters[v]) for v in loops]
        strides_b = [self.at_b.coefficient(self.counters[v]) for v in loops]
        source = s.storage[self.a.tensor]
        of = "" if source.code is None else f"_{word(source.code)}"
        if source.code is not None:
            s.use(f"get{of}")
        name = f"tile{rows}x{vectors * width}_{len(loops)}_{t}{of}"
        s.functions.add(f"micro:{rows}:{vectors}:{width}:{len(loops)}:{t}:{of}:{source.element}")
        s.lines.open("{")
        last, base = s.names.fresh("last"), s.names.fresh("rows")
        s.lines.add(f"const int64_t {last} = {span_text(s, self.old[self.row])} - 1;")
        s.lines.add(
            f"const {source.element} *{base} = {s.storage[self.a.tensor].pointer} + {self._start(self.at_a)};"
        )
        stride = self._number(self.at_a.coefficient("row__"))
        starts = [
            base if not r else f"{base} + ({r} < {last} ? {r} : {last}) * ({stride})"
            for r in range(rows)
        ]
        from tcc.backends.c._leaves import first_visit
        from tcc.ir.cascade import Einsum

        first = (
            first_visit(s, Einsum(self.c.tensor, self.c.indices, call("mul", self.a, self.b)))
            or "1"
        )
        if self.update:
            first = "0"
        b = f"{s.storage[self.b.tensor].pointer} + {self._start(self.at_b)}"
        out = f"{s.storage[self.c.tensor].pointer} + {self._start(self.at_c)}"
        pitch = self._number(self.at_c.coefficient("row__"))
        numbers = [
            *lengths,
            *(self._number(x) for x in strides_a),
            *(self._number(x) for x in strides_b),
        ]
        s.lines.add(f"{name}({', '.join([*starts, b, *numbers])},")
        s.lines.add(f"    {out}, {pitch}, {first});")
        s.lines.close()


def micro_kernel(key: str) -> str:
    """The C text of a micro-kernel: `rows` x `vectors` accumulators that stay in registers.

    Operand A is read one element per row at a time, operand B one row of vectors, and fetched ahead: from memory and far
    caches it comes while the arithmetic goes on. `first` starts from zero.
    """
    _, r, v, w, n, t, of, element = key.split(":")
    rows, vectors, width, loops = int(r), int(v), int(w), int(n)
    vec, c = f"{t}x{width}", C_TYPES[t]
    args = [f"const {element} *restrict a{i}" for i in range(rows)] + [f"const {c} *restrict b"]
    args += [f"int64_t n{i}" for i in range(loops)]
    args += [f"int64_t sa{i}" for i in range(loops)] + [f"int64_t sb{i}" for i in range(loops)]
    args += [f"{c} *restrict out", "int64_t pitch", "int first"]
    lines = [f"/* out[{rows}][{vectors * width}] (+)= sum over k of a[row][k] * b[k][column] */",
             "static __attribute__((noinline)) "
             f"void tile{rows}x{vectors * width}_{loops}_{t}{of}({', '.join(args)}) {{"]  # fmt: skip
    for i in range(rows):
        lines.append(f"  {vec} " + ", ".join(f"c{i}_{j} = {{0}}" for j in range(vectors)) + ";")
    pad = "  "
    for k in range(loops):
        lines.append(f"{pad}for (int64_t k{k} = 0; k{k} < n{k}; k{k}++) {{")
        pad += "  "
    shift_b = " + ".join(["b", *(f"k{k} * sb{k}" for k in range(loops))])
    shift_a = " + ".join(f"k{k} * sa{k}" for k in range(loops)) or "0"
    lines.append(f"{pad}const {c} *row = {shift_b};")
    lines.append(f"{pad}const int64_t at = {shift_a};")
    columns, size = vectors * width, DTYPES[t].itemsize
    if loops:
        steps = max(1, AHEAD // (columns * size))
        lines.append(f"{pad}const {c} *ahead = row + {steps} * sb{loops - 1};")
        for at in range(0, columns, LINE // size):
            lines.append(f"{pad}__builtin_prefetch(ahead + {at}, 0, 2);")
    pin = rows * vectors + vectors + 1 <= (16 if width * size <= 32 else 32)
    for j in range(vectors):
        lines.append(
            f"{pad}{vec} b{j} = ld_{vec}(row + {j * width});" + (f" PIN(b{j});" if pin else "")
        )
    for i in range(rows):
        terms = " ".join(f"c{i}_{j} += x * b{j};" for j in range(vectors))
        read = f"get{of}(a{i}[at])" if of else f"a{i}[at]"
        lines.append(f"{pad}{{ {vec} x = bc_{vec}({read}); {terms} }}")
    for _ in range(loops):
        pad = pad[2:]
        lines.append(f"{pad}}}")
    lines.append(
        "  if (!first) {  /* after the sum: what it is added to does not lengthen its chain of roundings */"
    )
    for i in range(rows):
        adds = " ".join(
            f"c{i}_{j} += ld_{vec}(out + {i} * pitch + {j * width});" for j in range(vectors)
        )
        lines.append(f"    {adds}")
    lines.append("  }")
    for i in range(rows):
        stores = " ".join(
            f"st_{vec}(out + {i} * pitch + {j * width}, c{i}_{j});" for j in range(vectors)
        )
        lines.append(f"  {stores}")
    lines.append("}")
    return "\n".join(lines)
