"""What it takes to bring elements from one layout into another: the class of the conversion, and its cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from tcc.ir.amounts import same, shown
from tcc.ir.diagnostics import CompileError
from tcc.ir.layout import Layout
from tcc.ir.layout_algebra import normal
from tcc.ir.layout_table import Places, Table, is_listable, keys, table

KINDS = ("free", "registers", "shuffle", "memory")
WITHIN_THREAD = ("reg", "vec")
STORAGE = ("addr", "bank", "plane")


@dataclass(frozen=True, slots=True)
class Conversion:
    """`kind`: *free*, all elements lie where they should; *registers*, they move between registers of a thread;
    *shuffle*, between lanes of a warp; *memory*, beyond. `moved` of `places` places of the result get their element from
    elsewhere. `cost` counts instructions per thread: moves, shuffles, or stores and loads; for layouts of memory, loads
    and stores of `run` adjacent elements. The counts are None where sizes are unknown, or too large to list: then `kind`
    is what is certain."""

    kind: str
    moved: int | None = None
    places: int | None = None
    run: int | None = None
    cost: int | None = None

    def __str__(self) -> str:
        if self.cost is None:
            return self.kind
        runs = f", runs of {self.run}" if self.run is not None else ""
        return f"{self.kind}: {self.moved} of {self.places} places move{runs}, cost {self.cost}"

    def json(self) -> dict[str, str | int | None]:
        return asdict(self)


def convert(a: Layout, b: Layout) -> Conversion:
    """What it takes to go from A to B, layouts of one shape (T0272): the cheapest class that reaches all places of B."""
    sa, sb = a.known_shape(), b.known_shape()
    if len(sa) != len(sb) or not all(map(same, sa, sb)):
        shapes = [f"({', '.join(map(shown, s))})" for s in (sa, sb)]
        raise CompileError("T0272", f"conversion: the shapes {shapes[0]} and {shapes[1]} differ",
                           helps="reshape one of them first")  # fmt: skip
    if not is_listable(a, b):
        return Conversion(_symbolic(a, b))
    axes = tuple(dict.fromkeys((*a.axes, *b.axes)))
    ta, tb = table(a, axes=axes), table(b, axes=axes)
    kind = next((k for k in KINDS[:-1] if _reached(ta, tb, _seen(k, axes)).all()), KINDS[-1])
    stays = _reached(ta, tb, list(range(len(axes))))
    moved = int((~stays).sum())
    if not moved:
        return Conversion("free", 0, stays.size, None, 0)
    if any(axis in STORAGE for axis in axes):
        run = _run(ta, tb)
        return Conversion("memory", moved, stays.size, run, 2 * stays.size // run)
    threads = [n for n, axis in enumerate(axes) if axis not in WITHIN_THREAD]
    if kind == "memory":
        return Conversion(kind, moved, stays.size, None, _most(ta, threads) + _most(tb, threads))
    return Conversion(kind, moved, stays.size, None, _most(tb, threads, ~stays))


def _seen(kind: str, axes: tuple[str, ...]) -> list[int]:
    """The axes along which an element may not move in a class of conversion."""
    free = {"free": (), "registers": WITHIN_THREAD, "shuffle": (*WITHIN_THREAD, "lane")}[kind]
    return [n for n, axis in enumerate(axes) if axis not in free]


def _reached(ta: Table, tb: Table, axes: list[int]) -> NDArray[np.bool_]:
    """For each place of B whether A has the element there, as far as the given axes tell."""
    pa, pb = ta.places[..., axes], tb.places[..., axes]
    if not pa.size or not pb.size:
        return np.ones(pb.shape[:-1], bool)
    return np.asarray((pa[..., :, None, :] == pb[..., None, :, :]).all(-1).any(-2))


def _most(t: Table, threads: list[int], only: NDArray[np.bool_] | None = None) -> int:
    """The largest number of places in one thread."""
    places = t.places if only is None else t.places[only]
    flat = np.unique(places.reshape(-1, t.places.shape[-1]), axis=0)[:, threads]
    return int(np.unique(flat, axis=0, return_counts=True)[1].max()) if len(flat) else 0


def _run(ta: Table, tb: Table) -> int:
    """How many elements with adjacent places in A have adjacent ones in B, everywhere."""
    a, b = (_first(t) for t in (ta, tb))
    if len(a) != len(b) or not len(a):
        return 1
    b = b[np.argsort(a, kind="stable")]
    a = np.sort(a)
    breaks = np.flatnonzero((np.diff(a) != 1) | (np.diff(b) != 1)) + 1
    return int(reduce(np.gcd, (*breaks.tolist(), len(a))))


def _first(t: Table) -> Places:
    return keys(t.places)[..., 0].ravel() if t.places.size else np.zeros(0, np.int64)


def _symbolic(a: Layout, b: Layout) -> str:
    na, nb = normal(a), normal(b)
    if na == nb:
        return "free"
    axes = tuple(dict.fromkeys((*na.axes, *nb.axes)))
    differ = {x for x in axes if _along(na, x) != _along(nb, x)}
    if differ <= set(WITHIN_THREAD):
        return "registers"
    return "shuffle" if differ <= {*WITHIN_THREAD, "lane"} else "memory"


def _along(a: Layout, axis: str) -> tuple[object, ...]:
    own = sorted(replace(d, stride=None).text() + f"*{shown(s)}"
                 for d, s in zip(a.digits, a.strides()) if d.axis == axis)  # fmt: skip
    return (*own, shown(a.offset(axis)))
