"""Layouts as relations of integer points, in isl: what holds is proved for all sizes, what does not has a witness.

Places along an axis are kept in components: where a stride is the number of all faster places, which may be a product
of sizes, a new component begins. Two places are equal if their components are, and everything stays affine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcc.ir.amounts import Amount, minus, polynomial, quotient, same, shown
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Call, Expr, Size, text
from tcc.ir.layout import COPIES, Layout, Part
from tcc.ir.layout_table import Table, difference, keys, sizes_of, table

MOST_OPERATIONS = 1_500_000  # of isl in one proof


@dataclass(frozen=True, slots=True)
class Witness:
    """Coordinates at which a claim fails, and the sizes for which it does; true where there is none."""

    coordinates: tuple[tuple[int, ...], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        at = " and ".join(f"({', '.join(map(str, c))})" for c in self.coordinates)
        given = ", ".join(f"{k} = {v}" for k, v in self.sizes)
        return f"{at} for {given}" if given else at


def same_places(a: Layout, b: Layout, listed: bool = True) -> Witness | None:
    """None where both put every element at the same places, for all sizes; else an element that they do not.

    If `listed`, a counter-example is first sought among small sizes. T0274 where nothing can be proved, or not soon.
    """
    axes = tuple(dict.fromkeys((*a.axes, *b.axes)))
    for sizes in _small(a, b) if listed else ():
        at = difference(table(a, sizes, axes), table(b, sizes, axes))
        if at is not None:
            return Witness((at,), tuple(sizes.items()))
    ra, rb = _Relation(a, axes), _Relation(b, axes)
    if any(not same(x, y) for n in axes for x, y in zip(ra.bases(n), rb.bases(n))):
        raise _unknown(f"`{a}` and `{b}` count places in different steps")
    if any(len(ra.bases(n)) > 1 and not same(a.offset(n), b.offset(n)) for n in axes):
        raise _unknown(f"`{a}` and `{b}` count places from different ones")
    depth = {n: max(len(ra.bases(n)), len(rb.bases(n))) for n in axes}
    ma, mb = ra.map(depth), rb.map(depth)
    with _bounded():
        wrong = ma.subtract(mb).union(mb.subtract(ma))
        return None if wrong.is_empty() else _witness(wrong.domain(), 1)


def is_injective(a: Layout, listed: bool = True) -> Witness | None:
    """None where no two elements share a place, for all sizes; else two that do (see `same_places`)."""
    for sizes in _small(a) if listed else ():
        pair = _shared(table(a, sizes))
        if pair is not None:
            return Witness(pair, tuple(sizes.items()))
    relation = _Relation(a, a.axes)
    m = relation.map({n: len(relation.bases(n)) for n in a.axes})
    with _bounded():
        if m.is_injective():
            return None
        both = m.apply_range(m.reverse())
        return _witness(both.subtract(both.identity(both.get_space())).wrap(), 2)


def in_bounds(a: Layout) -> Witness | None:
    """None where every place is 0 or more and less than the span of its axis, for all sizes; else an element whose
    place is not."""
    relation = _Relation(a, a.axes)
    m = relation.map({n: len(relation.bases(n)) for n in a.axes}, bounded=True)
    with _bounded():
        return None if m.is_empty() else _witness(m.domain(), 1)


@contextmanager
def _bounded() -> Iterator[None]:
    """isl may work for some seconds only; T0274 after that."""
    import islpy as isl

    context = isl.DEFAULT_CONTEXT
    context.reset_operations()
    context.set_max_operations(MOST_OPERATIONS)
    try:
        yield
    except isl.Error:
        raise _unknown("the proof takes too long") from None
    finally:
        context.set_max_operations(0)


def _small(*layouts: Layout) -> Iterator[dict[str, int]]:
    """A few small sizes: what fails for them needs no proof."""
    names = sizes_of(*layouts)
    for values in ((1,), (2,), (3,), (5,), (8,), (3, 2), (2, 5), (17, 3)):
        sizes = {n: values[k % len(values)] for k, n in enumerate(names)}
        shapes = [x.bind(sizes).known_shape() for x in layouts]
        if all(math.prod(n for n in s if isinstance(n, int)) <= 1 << 14 for s in shapes):
            yield sizes
        if not names:
            return


def _shared(t: Table) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Two elements that share a place."""
    key = keys(t.places).reshape(-1, t.places.shape[-2])
    element = np.repeat(np.arange(len(key)), key.shape[1])
    order = np.lexsort((element, key.ravel()))
    place, element = key.ravel()[order], element[order]
    wrong = np.flatnonzero((place[1:] == place[:-1]) & (element[1:] != element[:-1]))
    if not len(wrong):
        return None
    one, two = (np.unravel_index(int(element[wrong[0] + k]), t.shape) for k in (0, 1))
    return tuple(int(i) for i in one), tuple(int(i) for i in two)


def _unknown(fact: str) -> CompileError:
    return CompileError("T0274", f"this cannot be proved: {fact}",
                        helps="give sizes: finite layouts are compared place by place")  # fmt: skip


def _witness(found: Any, count: int) -> Witness:
    import islpy as isl

    point = found.sample_point()
    sizes = [(found.get_dim_name(isl.dim_type.param, n),
              int(point.get_coordinate_val(isl.dim_type.param, n).to_python()))
             for n in range(found.dim(isl.dim_type.param))]  # fmt: skip
    total = point.get_space().dim(isl.dim_type.set)
    values = [int(point.get_coordinate_val(isl.dim_type.set, n).to_python()) for n in range(total)]
    each = total // count
    return Witness(tuple(tuple(values[k * each : k * each + each]) for k in range(count)), tuple(sizes))  # fmt: skip


class _Relation:
    """Collects the constraints of one layout."""

    def __init__(self, a: Layout, axes: tuple[str, ...]) -> None:
        self.a, self.axes = a, axes
        self.constraints: list[str] = []
        self.fresh = itertools.count()
        self.variables: list[str] = []
        self.components: dict[str, list[tuple[Amount, list[str]]]] = {}
        for d, size in enumerate(a.known_shape()):
            self.constraints.append(f"0 <= x{d} < {self._affine(size)}")
        for axis in axes:
            self.components[axis] = self._components(axis)

    def bases(self, axis: str) -> list[Amount]:
        return [base for base, _ in self.components[axis]]

    def map(self, depth: dict[str, int], bounded: bool = False) -> Any:
        """{ [coordinate] -> [components of places] }, or, `bounded`, only where a component is out of bounds."""
        import islpy as isl

        outputs: list[str] = []
        outside: list[str] = []
        constraints = list(self.constraints)
        for axis in self.axes:
            found = self.components[axis] + [(1, ["0"])] * (depth[axis] - len(self.components[axis]))  # fmt: skip
            for n, (base, terms) in enumerate(found):
                name = f"p{len(outputs)}"
                outputs.append(name)
                constraints.append(f"{name} = {' + '.join(terms)}")
                if bounded:
                    own = n < len(self.components[axis])
                    limit = self._affine(self._limit(axis, n, base)) if own else "1"
                    outside.append(f"{name} < 0 or {name} >= {limit}")
        if bounded:
            constraints.append(f"({' or '.join(outside) or '1 = 0'})")
        sizes = sizes_of(self.a)
        inputs = [f"x{d}" for d in range(self.a.rank)]
        some = f"exists {', '.join(self.variables)}: " if self.variables else ""
        positive = [f"{s} >= 1" for s in sizes]
        body = " and ".join((*positive, *constraints)) or "0 = 0"
        return isl.Map(
            f"[{', '.join(sizes)}] -> {{ [{', '.join(inputs)}] -> [{', '.join(outputs)}] : {some}{body} }}"
        )

    def _limit(self, axis: str, n: int, base: Amount) -> Amount:
        """The number of values of a component."""
        bases = self.bases(axis)
        above = bases[n + 1] if n + 1 < len(bases) else self.a.span(axis)
        if n + 1 == len(bases) > 1:
            above = minus(above, self.a.offset(axis))
        found = quotient(above, base)
        if found is None:
            raise _unknown(f"the places of `{self.a}` along `{axis}` are no multiple of a step")
        return found

    def _components(self, axis: str) -> list[tuple[Amount, list[str]]]:
        own = [(n, d) for n, d in enumerate(self.a.digits) if d.axis == axis]
        strides, extents, implied = self.a.strides(), self.a.extents(), self.a.implied()
        found: list[tuple[Amount, list[str]]] = [(1, ["0"])]
        for n, d in reversed(own):
            value = self._copy(extents[n]) if d.dimension == COPIES else self._part(d.part)
            if d.xor:
                extent = extents[n]
                assert isinstance(extent, int)
                value = self._xor([(value, extent)] + [(self._part(p), p.modulus) for p in d.xor])
            times = quotient(strides[n], found[-1][0])
            if isinstance(times, int):
                found[-1][1].append(f"{times} * {value}")
            elif same(strides[n], implied[n]):
                found.append((strides[n], [value]))
            else:
                raise _unknown(f"the stride {shown(strides[n])} of `{d}` is not known")
        if len(found) == 1:  # else what is added to all places stays outside
            found[0][1].append(self._affine(self.a.offset(axis)))
        return found

    def _new(self) -> str:
        name = f"e{next(self.fresh)}"
        self.variables.append(name)
        return name

    def _affine(self, a: Amount) -> str:
        p = polynomial(a)
        terms = []
        for key, factor in p.terms.items():
            if len(key) > 1:
                raise _unknown(f"`{text(p.expr())}` is no sum of sizes")
            terms.append(f"{factor} * {self._atom(p.atoms[key[0]])}" if key else str(factor))
        return " + ".join(terms) or "0"

    def _atom(self, e: Expr) -> str:
        if isinstance(e, Size):
            return e.rank
        if isinstance(e, Call) and e.op == "floordiv":
            divisor = polynomial(e.args[1]).constant
            if divisor is not None and divisor > 0:
                return f"floor(({self._affine(e.args[0])}) / {divisor})"
        raise _unknown(f"`{text(e)}` is no sum of sizes")

    def _copy(self, extent: Amount) -> str:
        name = self._new()
        self.constraints.append(f"0 <= {name} < {self._affine(extent)}")
        return name

    def _part(self, p: Part) -> str:
        """A variable that is (x // divisor) % modulus."""
        if not isinstance(p.divisor, int) or not isinstance(p.modulus, int | None):
            raise _unknown(f"`{p.text()}` divides by a size")
        value, x = self._new(), f"x{p.dimension}"
        if p.divisor == 1 and p.modulus is None:
            self.constraints.append(f"{value} = {x}")
            return value
        terms, rest = [f"{p.divisor} * {value}"], self._new()
        self.constraints.append(f"0 <= {rest} < {p.divisor}")
        terms.append(rest)
        if p.modulus is not None:
            high = self._new()
            terms.append(f"{p.divisor * p.modulus} * {high}")
            self.constraints.append(f"0 <= {value} < {p.modulus}")
        self.constraints.append(f"{x} = {' + '.join(terms)}")
        return value

    def _xor(self, values: list[tuple[str, Any]]) -> str:
        """A variable that is the xor of variables, each with its power of two of values."""
        bits: dict[int, list[str]] = {}
        for value, extent in values:
            own = []
            for k in range(extent.bit_length() - 1):
                bit = self._new()
                self.constraints.append(f"0 <= {bit} <= 1")
                bits.setdefault(k, []).append(bit)
                own.append(f"{1 << k} * {bit}")
            self.constraints.append(f"{value} = {' + '.join(own) or '0'}")
        out, terms = self._new(), []
        for k, those in bits.items():
            odd, half = self._new(), self._new()
            self.constraints.append(f"0 <= {odd} <= 1 and {' + '.join(those)} = {odd} + 2 * {half}")
            terms.append(f"{1 << k} * {odd}")
        self.constraints.append(f"{out} = {' + '.join(terms) or '0'}")
        return out
