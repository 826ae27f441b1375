"""The tiles that a loop visits: its condition as the ends of a range, where it is linear in the
tile's start, else as an `if`.

    for m by 64 when m.low + 63 <= p.low        -->  for m_start in range(0, p_start - 62, 64)
    for m by 64 when m.low < p.high and not (…) -->  the same, from the end of the tiles of `…` on
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tcc.backends.triton._scalar import SUM, Code
from tcc.backends.triton._tile import Tile
from tcc.ir.expr import Call, Expr, Size, Var, text, variables
from tcc.ir.index import Poly, poly
from tcc.ir.mapping import Loop


@dataclass
class Bounds:
    """low <= tile's start <= high, for every one of the polynomials."""

    low: list[Poly] = field(default_factory=list)
    high: list[Poly] = field(default_factory=list)


@dataclass(frozen=True)
class Visit:
    """`for start in range(first, stop, block)`; of these tiles `skip` ones from `hole` on are left
    out, and those at which `condition` fails.
    """

    first: str
    stop: str
    hole: str = ""
    skip: str = ""
    condition: Expr | None = None
    complete: bool = False  # whether no tile reaches beyond the extent


@dataclass
class Ranges:
    """Prints the ranges of a kernel's loops; `full` are ends of tiles that were computed already."""

    t: Tile
    full: dict[str, str] = field(default_factory=dict)

    def visit(self, n: Loop, following: Loop | None = None) -> Visit:
        """How to visit the tiles of `n`; a loop after it over the tiles that it leaves shares an
        end with it.
        """
        t = self.t
        whole = Visit("0", t.size(t.extents[n.var]).text)
        if n.when is None:
            return whole
        parts = _conjuncts(n.when)
        inside = self._bounds(n.var, [p for p in parts if _inverse(p) is None])
        if inside is None:
            return replace(whole, condition=n.when)
        first, stop = self._first(n, inside.low), self._stop(n, inside.high)
        between: Bounds | None = None
        for hole in (h for p in parts if (h := _inverse(p)) is not None):
            bounds = self._bounds(n.var, _conjuncts(hole))
            if bounds is None or (bounds.low and bounds.high and between is not None):
                return replace(whole, condition=n.when)
            if not bounds.low:
                end = self._end(n, hole, bounds)
                first = f"tl.maximum({end}, {first})" if first != "0" else end
            elif not bounds.high:
                stop = f"tl.minimum({stop}, {self._joined('tl.maximum', bounds.low).text})"
            else:
                between = bounds
        if between is not None:
            return self._with_hole(n, first, stop, between)
        after = _hole(following, n.var)
        if after is not None and text(after) == text(n.when) and not inside.low:
            stop = self._end(n, after, inside)
        extent, block = self._extent(n), t.block[n.var]
        complete = any(self._below(p, extent, block) for p in inside.high)
        return Visit(first, stop, complete=complete)

    def _with_hole(self, n: Loop, low: str, high: str, hole: Bounds) -> Visit:
        t, step = self.t, self._step(n)
        names = [f"{n.var}_{end}" for end in ("first", "stop", "full", "rest", "skip")]
        first, stop, full, rest, skip = (t.names.fresh(name) for name in names)
        t.lines.add(f"{first} = {low}")
        t.lines.add(f"{stop} = {high}")
        t.lines.add(f"{full} = tl.maximum({self._first(n, hole.low)}, {first})")
        end = f"tl.minimum({self._aligned(n, hole.high)}, tl.cdiv({stop}, {step}) * {step})"
        t.lines.add(f"{rest} = {end}")
        t.lines.add(f"{skip} = tl.maximum({rest} - {full}, 0)")
        return Visit(first, f"{stop} - {skip}", full, skip)

    # ---- polynomials as code

    def _extent(self, n: Loop) -> Poly:
        return poly(self.t.unfold(self.t.extents[n.var]))

    def _step(self, n: Loop) -> str:
        return self.t.block_name(n.var) if self.t.block[n.var] > 1 else "1"

    def _code(self, p: Poly) -> Code:
        return self.t.size(p.expr()) if not p.atoms else self.t._integer(p.expr(), ())

    def _first(self, n: Loop, low: list[Poly]) -> str:
        """The first tile that starts at all of `low` or later, and not before 0."""
        if not low:
            return "0"
        bound = [p + Poly({(): self.t.block[n.var] - 1}) for p in _extreme(low, most=True)]
        return self._rounded(n, self._joined("tl.maximum", bound), all(map(_natural, bound)))

    def _aligned(self, n: Loop, high: list[Poly]) -> str:
        """The first tile that starts after one of `high`."""
        bound = [p + Poly({(): self.t.block[n.var]}) for p in _extreme(high, most=False)]
        return self._rounded(n, self._joined("tl.minimum", bound), all(map(_natural, bound)))

    def _rounded(self, n: Loop, bound: Code, natural: bool) -> str:
        bound = bound if natural else Code(f"tl.maximum({bound.text}, 0)")
        step = self._step(n)
        return bound.text if step == "1" else f"{bound.within(SUM + 1)} // {step} * {step}"

    def _stop(self, n: Loop, high: list[Poly]) -> str:
        bound = [self._extent(n), *(p + Poly({(): 1}) for p in high)]
        return self._joined("tl.minimum", _extreme(bound, most=False)).text

    def _end(self, n: Loop, hole: Expr, bounds: Bounds) -> str:
        """The name of the end of the tiles at which `hole` holds, which are the first ones."""
        key = f"{n.var} {text(hole)}"
        if key not in self.full:
            self.full[key] = self.t.names.fresh(f"{n.var}_full")
            self.t.lines.add(f"{self.full[key]} = {self._aligned(n, bounds.high)}")
        return self.full[key]

    def _joined(self, function: str, bounds: list[Poly]) -> Code:
        shown = self._code(bounds[0])
        for b in bounds[1:]:
            shown = Code(f"{function}({shown.text}, {self._code(b).text})")
        return shown

    def _below(self, high: Poly, extent: Poly, block: int) -> bool:
        """Whether a start of at most `high` means that the whole tile is inside the extent."""
        gap = (extent - high).constant
        return gap is not None and gap >= block

    # ---- conditions

    def _bounds(self, v: str, parts: list[Expr]) -> Bounds | None:
        """The bounds that comparisons put on the tile's start; None where one is not linear in it."""
        out = Bounds()
        for p in parts:
            gap = _gap(p)
            if gap is None:
                return None
            gap = poly(self.t.unfold(gap.expr()))
            sign = gap.terms.get((f"{v}.low",), 0)
            rest = gap.without(f"{v}.low")
            if (
                abs(sign) != 1
                or gap.coefficient(f"{v}.low") is None
                or rest.mentions([f"{v}.high"])
            ):
                return None
            if sign > 0:
                out.low.append(rest.scaled(-1))
            else:
                out.high.append(rest)
        return out


def _conjuncts(e: Expr) -> list[Expr]:
    if isinstance(e, Call) and e.op == "and":
        return [*_conjuncts(e.args[0]), *_conjuncts(e.args[1])]
    return [e]


def _inverse(e: Expr) -> Expr | None:
    """What is negated."""
    return e.args[0] if isinstance(e, Call) and e.op == "not" else None


def _hole(n: Loop | None, v: str) -> Expr | None:
    """The tiles that a loop over `v` leaves to another one."""
    if n is None or n.var != v or n.when is None:
        return None
    return next((h for p in reversed(_conjuncts(n.when)) if (h := _inverse(p)) is not None), None)


def _gap(p: Expr) -> Poly | None:
    """What is 0 or more exactly where a comparison of integers holds."""
    if not isinstance(p, Call) or p.op not in ("le", "lt", "ge", "gt"):
        return None
    a, b = p.args if p.op in ("le", "lt") else (p.args[1], p.args[0])
    return poly(b) - poly(a) - Poly({(): 1} if p.op in ("lt", "gt") else {})


def _extreme(bounds: list[Poly], most: bool) -> list[Poly]:
    """The bounds without those that another one is certainly as tight as."""
    kept: list[Poly] = []
    for b in bounds:
        gaps = [(b - k).constant for k in kept]
        if any(g is not None and (g <= 0 if most else g >= 0) for g in gaps):
            continue
        kept = [k for k, g in zip(kept, gaps) if g is None]
        kept.append(b)
    return kept


def _natural(p: Poly) -> bool:
    """Whether a polynomial in sizes and starts of tiles is certainly 0 or more."""
    plain = all(isinstance(p.atoms[a], Var | Size) for k in p.terms for a in k)
    return plain and all(v >= 0 for v in p.terms.values())


def ends(when: Expr | None) -> list[str]:
    """The variables whose starts or ends a condition mentions, as `v.low` and `v.high`."""
    return variables(when) if when is not None else []
