"""Walks the tree of one kernel: loops, parallel tiles, buffers; leaves are printed by `_leaves`."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from tcc.backends.c._coded_near import emit_times
from tcc.backends.c._dots_near import emit_near
from tcc.backends.c._leaves import emit_do, vector_loop
from tcc.backends.c._scalar import scalar
from tcc.backends.c._scope import (
    LINE,
    Interval,
    Scope,
    integer_text,
    plus,
    span_text,
    storage_of,
)
from tcc.backends.c._streams import read_by_row
from tcc.ir.expr import Access, Const, Expr, Var, call, transform
from tcc.ir.mapping import Alloc, Do, Kernel, Loop, Node

if TYPE_CHECKING:
    from tcc.backends.c.emit import Emitter

PARALLEL_POINTS = 1 << 15  # below about 20 us of work, threads cost more than they save
GRAIN_POINTS = 1 << 18  # tasks of as much work are handed out one by one


class Tree:
    """Walks one kernel's tree."""

    def __init__(self, emitter: Emitter, s: Scope, k: Kernel) -> None:
        self.emitter, self.s, self.k = emitter, s, k
        self.parallel = False
        self.sizes: list[str] = []  # bytes of the tile buffers, in order of allocation
        self.walked: dict[str, Loop] = {}  # the first walk over a row, by its variable

    def fence(self) -> None:
        """Other threads see what was stored past the caches."""
        if self.s.streams:
            self.s.lines.add(f"{self.s.use('fence_streams')}();")
            self.s.streams = False

    def nodes(self, nodes: tuple[Node, ...], loops: tuple[Loop, ...]) -> None:
        for n in nodes:
            if isinstance(n, Do):
                emit_do(self.s, n)
            elif isinstance(n, Alloc):
                if not emit_times(self.s, n, partial(self._alloc, n, loops)):
                    self._alloc(n, loops)
            elif n.on is not None and not self.parallel:
                self._parallel(n)
            else:
                self._loop(n, loops)

    def _alloc(self, n: Alloc, loops: tuple[Loop, ...]) -> None:
        s, b = self.s, n.buffer
        shape, base = [], []
        for d in b.dims:
            if isinstance(d, Var):
                interval = s.intervals[d.name]
                shape.append(Const(interval.step) if interval.step else s.extents[d.name])
                base.append(interval.low)
            else:
                shape.append(d)
                base.append(Const(0))
        pointer = self.emitter.names.fresh(b.name)
        size = f"({self.emitter.bytes_of(b, tuple(shape))} + {LINE - 1}) / {LINE} * {LINE}"
        s.storage[b.name] = place = storage_of(b, pointer, tuple(shape), tuple(base))
        c = place.element
        s.lines.add(f"{c} *restrict {pointer} = ({c} *)local;  /* {b.name} @{b.level} */")
        s.lines.add(f"local += {size};")
        self.sizes.append(size)
        self.nodes(n.body, loops)
        s.lines.add(f"local -= {size};")
        del s.storage[b.name]

    def scratch_function(self, name: str) -> str:
        lines = [f"  total += {size};" for size in self.sizes]
        return "static " + self.emitter._size_function(f"{name}_scratch", lines)

    # ---- loops

    def _parallel(self, n: Loop) -> None:
        """Directly nested loops on the same resource become one loop over their tiles."""
        chain = [n]
        while (
            len(chain[-1].body) == 1
            and isinstance(inner := chain[-1].body[0], Loop)
            and inner.on == n.on
        ):
            chain.append(inner)
        s, names = self.s, self.emitter.names
        counts, counters = [], []
        for loop in chain:
            interval = s.intervals[loop.var]
            count = names.fresh(f"{loop.var}_tiles")
            s.lines.add(f"const int64_t {count} = {_ceiling(span_text(s, interval), loop.step)};")
            counts.append(count)
            counters.append(names.fresh(loop.var))
        total = names.fresh("tiles")
        s.lines.add(f"const int64_t {total} = {' * '.join(counts)};")
        points = (
            " * ".join(f"(double){_grouped(integer_text(s, e))}" for _, e in self.k.variables)
            or "1.0"
        )
        s.lines.open("{")
        s.lines.add("const ptrdiff_t used = local - scratch;")
        most = f"n[{self._scratch_index() + 1}]"
        s.lines.add(
            f"#pragma omp parallel num_threads(omp_get_max_threads() < {most} ? "
            f"omp_get_max_threads() : (int){most}) if ({total} > 1 && {points} > {PARALLEL_POINTS})"
        )
        s.lines.open("{")
        s.lines.add("#ifdef _OPENMP")
        s.lines.add(
            f"char *local = scratch + omp_get_thread_num() * n[{self._scratch_index()}] + used;"
        )
        s.lines.add(f"const int64_t few = {total} / (8 * omp_get_num_threads());")
        s.lines.add(f"const double enough = {GRAIN_POINTS} * (double){total} / ({points} + 1);")
        s.lines.add("const int64_t grain = 1 + ((double)few < enough ? few : (int64_t)enough);")
        s.lines.add("#else")
        s.lines.add("char *local = scratch + used;")
        s.lines.add("#endif")
        s.lines.add("(void)local;")
        s.lines.add("#pragma omp for schedule(dynamic, grain)")
        task = names.fresh("task_")
        s.lines.open(f"for (int64_t {task} = 0; {task} < {total}; {task}++) {{")
        rest = task
        for loop, count, counter in reversed(list(zip(chain, counts, counters, strict=True))):
            outermost = loop is chain[0]
            s.lines.add(f"const int64_t {counter} = {rest}{'' if outermost else f' % {count}'};")
            if not outermost:
                rest = f"({rest} / {count})" if rest == task else f"({rest[1:-1]} / {count})"
        saved = []
        for loop, counter in zip(chain, counters, strict=True):
            saved.append((loop.var, s.intervals[loop.var]))
            self._enter(loop, counter)
        self.parallel = True
        self._body(chain[-1], tuple(chain))
        self.parallel = False
        for var, old in reversed(saved):
            s.intervals[var] = old
        s.lines.close()
        self.fence()
        s.lines.close()
        s.lines.close()

    def _scratch_index(self) -> int:
        return len(self.emitter.m.ranks) + len(self.emitter._strides())

    def _enter(self, loop: Loop, counter: str) -> None:
        """Inside the loop the variable's interval is one tile."""
        s = self.s
        old = s.intervals[loop.var]
        scaled = Var(counter) if loop.step == 1 else call("mul", Var(counter), Const(loop.step))
        low = plus(old.low, scaled)
        if old.step is not None:
            s.counters[counter] = Const(-(-old.step // loop.step))
        elif loop.step == 1:
            s.counters[counter] = s.extents[loop.var]
        if loop.step == 1:
            s.intervals[loop.var] = Interval(low, integer_text(s, plus(low, Const(1))), 1, False)
            s.row = loop.var
            return
        high = s.names.fresh(f"{loop.var}_end")
        top = integer_text(s, plus(low, Const(loop.step)))
        s.lines.add(f"const int64_t {high} = {top} < {old.high} ? {top} : {old.high};")
        s.intervals[loop.var] = Interval(low, high, loop.step, False)

    def _loop(self, n: Loop, loops: tuple[Loop, ...]) -> None:
        s = self.s
        if self._is_vector_loop(n):
            self._vector_loop(n)
        elif not emit_near(s, n, partial(self._tiles, n, loops)):
            self._tiles(n, loops)

    def _tiles(self, n: Loop, loops: tuple[Loop, ...]) -> None:
        s = self.s
        old = s.intervals[n.var]
        counter = s.names.fresh(n.var)
        length = span_text(s, old)
        stopped = s.names.fresh("stopped") if n.until is not None else ""
        if stopped:
            s.lines.add(f"int {stopped} = 0;")
        s.lines.open(
            f"for (int64_t {counter} = 0; {counter} < {_ceiling(length, n.step)}; {counter}++) {{"
        )
        self._enter(n, counter)
        if n.when is not None:
            s.lines.add(f"if (!({self._condition(n.when)})) continue;")
        if n.until is None:
            self._body(n, (*loops, n))
        else:
            s.lines.open(f"if ({stopped}) {{")
            self.nodes(n.hold, (*loops, n))
            s.lines.close("} else {")
            s.lines.depth += 1
            self._body(n, (*loops, n))
            s.lines.add(f"{stopped} = {scalar(s, n.until)};")
            s.lines.close()
        s.lines.close()
        s.intervals[n.var] = old

    def _vector_loop(self, n: Loop) -> None:
        leaves_ = [leaf for leaf in n.body if isinstance(leaf, Do)]
        self.s.updates |= {id(leaf.einsum) for leaf in leaves_ if leaf.update}
        first = self.walked.setdefault(n.var, n)
        ahead = self._read_first(first, n) if first is not n else ()
        vector_loop(self.s, n.var, [leaf.einsum for leaf in leaves_], {}, ahead=ahead)

    def _read_first(self, walk: Loop, n: Loop) -> list[Access]:
        """What the first walk over a row reads from memory, where `n` walks the same row again."""
        einsums = [leaf.einsum for leaf in walk.body if isinstance(leaf, Do)]
        return read_by_row(self.s, einsums, n.var)

    def _condition(self, when: Expr) -> str:
        """C text of a condition on the ends of the current intervals."""
        s = self.s
        tops: dict[str, str] = {}

        def rule(n: Expr) -> Expr:
            if not isinstance(n, Var):
                return n
            v, _, end = n.name.rpartition(".")
            if end == "low":
                return s.intervals[v].low
            name = f"high__{v}"
            tops[name] = _grouped(s.intervals[v].high)
            return Var(name)

        shown = scalar(s, transform(when, rule))
        for name, high in tops.items():
            shown = re.sub(rf"\b{name}\b", high, shown)
        return shown

    def _body(self, n: Loop, loops: tuple[Loop, ...]) -> None:
        outside = self.walked
        if n.step == 1:  # a row of its own
            self.walked = {}
        self.nodes(n.body, loops)
        self.walked = outside

    def _is_vector_loop(self, n: Loop) -> bool:
        """A loop whose leaves all put its variable on lanes, every other variable being a point."""
        s = self.s
        if not n.body or not all(
            isinstance(x, Do) and x.on("lane") == [n.var] and not x.on("unroll") for x in n.body
        ):
            return False
        return all(
            v == n.var or s.intervals[v].step == 1
            for x in n.body
            if isinstance(x, Do)
            for v in (*x.einsum.free, *x.einsum.reduced)
        )


def _ceiling(length: str, step: int) -> str:
    if step == 1:
        return _grouped(length) if " " in length else length
    if length.isdigit():
        return str(-(-int(length) // step))
    return f"({length} + {step - 1}) / {step}"


def _grouped(shown: str) -> str:
    return f"({shown})" if " " in shown else shown
