"""Layouts as people see them: a summary, a coloured table for terminals, and the same table as SVG."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from tcc.ir.amounts import evaluated, expression, shown
from tcc.ir.expr import Expr, Var, text
from tcc.ir.index import simplify_index
from tcc.ir.layout import Layout
from tcc.ir.layout_table import Places, Table, keys

WIDEST = 64  # rows and columns of a printed table
LARGEST = 128  # rows and columns of a drawn one


def variables(layout: Layout) -> tuple[str, ...]:
    """Names for the coordinates: i, j, k, …, and b for the bits."""
    names = [("i", "j", "k", "l")[d] if d < 4 else f"i{d}" for d in range(layout.rank)]
    return (*names[:-1], "b") if layout.bits and names else tuple(names)


def index_text(layout: Layout, axis: str) -> str:
    """The place along an axis as an expression over the coordinates."""
    names = variables(layout)
    box: dict[str, Expr] = {v: expression(n) for v, n in zip(names, layout.known_shape())}
    return text(simplify_index(layout.index(axis, tuple(map(Var, names))), box))


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of a finite layout."""

    elements: int
    places: int  # of the box that its axes span
    used: int
    shared: int  # places that hold several elements
    copies: int  # places per element

    def __str__(self) -> str:
        many = f"{self.copies} places" if self.copies > 1 else "one place"
        out = f"{self.elements} elements, {many} each; {self.used} of {self.places} places used"
        return out + (f", {self.shared} of them by several elements" if self.shared else "")


def facts(layout: Layout, t: Table) -> Facts:
    """Counts over all elements and places."""
    key = keys(t.places)
    elements = int(np.prod(t.shape, dtype=np.int64))
    flat = key.reshape(elements, -1) if key.size else key.reshape(0, 1)
    pairs = np.unique(
        np.stack([np.repeat(np.arange(len(flat)), flat.shape[1]), flat.ravel()]), axis=1
    )
    counts = np.unique(pairs[1], return_counts=True)[1]
    box = int(np.prod([evaluated(layout.span(a), {}) for a in t.axes], dtype=object))
    copies = pairs.shape[1] // elements if elements else 1
    return Facts(elements, box, len(counts), int((counts > 1).sum()), copies)


def summary(layout: Layout) -> list[str]:
    """Lines that name each axis, its number of places, its digits and its index expression."""
    out = [str(layout)]
    bits = layout.rank - 1 if layout.bits else None
    strides, extents = layout.strides(), layout.extents()
    for axis in layout.axes:
        digits = [
            f"{d.text(bits).partition('*')[0] if d.stride is not None and not d.xor else d.text(bits)}"
            f" ({shown(e)} x {shown(s)})"
            for d, e, s in zip(layout.digits, extents, strides)
            if d.axis == axis
        ]
        out.append(f"  {axis}: {shown(layout.span(axis))} places = {index_text(layout, axis)}")
        out.append(f"    digits (values x stride): {', '.join(digits) or 'none'}")
    return out


# ---- tables


def _grids(t: Table, most: int) -> Iterator[tuple[str, Places, bool]]:
    """(title, places of rows x columns, whether cut) for each pair of the last two dimensions."""
    places = t.places
    if len(t.shape) < 2:
        places = places.reshape(-1, row_of(t), *places.shape[-2:])
    lead = places.shape[:-4]
    for at in np.ndindex(lead):
        if sum(at) and int(np.prod(lead)) > most:
            return
        title = f"[{', '.join(map(str, at))}, :, :]" if at else ""
        whole = places[at]
        yield title, whole[:most, :most], max(whole.shape[:2]) > most


def row_of(t: Table) -> int:
    """The number of elements in a row of the picture: one dimension is broken into rows of 16."""
    if len(t.shape) == 1:
        return 16 if t.shape[0] > 32 and t.shape[0] % 16 == 0 else max(1, t.shape[0])
    return t.shape[-1] if t.shape else 1


def _row_label(t: Table, n: int) -> int:
    return n * row_of(t) if len(t.shape) == 1 else n


def _cell(copies: Places) -> str:
    unique = np.unique(copies, axis=0)
    first = ".".join(str(int(p)) for p in unique[0])
    return f"{first}+{len(unique) - 1}" if len(unique) > 1 else first or "·"


def _colored(t: Table) -> list[int]:
    """The axes that tell elements apart best by colour: the first gives the hue, the second the lightness."""
    varied = [n for n in range(len(t.axes)) if t.places.size and np.ptp(t.places[..., n]) > 0]
    order = ["warp", "block", "core", "pe_y", "pe_x", "lane", "bank", "plane", "dev", "time"]
    return sorted(varied, key=lambda n: (order.index(t.axes[n]) if t.axes[n] in order else 99, n))


def color(place: Any, chosen: list[int], most: list[int]) -> tuple[int, int, int]:
    """A light colour, on which black text can be read: places near each other look alike."""
    if not chosen:
        return 255, 255, 255
    hue = float(place[chosen[0]]) / (most[chosen[0]] + 1)
    second = float(place[chosen[1]]) / max(1, most[chosen[1]]) if len(chosen) > 1 else 0.5
    r, g, b = colorsys.hls_to_rgb(hue, 0.88 - 0.22 * second, 0.75)
    return round(255 * r), round(255 * g), round(255 * b)


def printed(t: Table, colors: bool) -> list[str]:
    """The table of places as lines; each cell shows the place along each axis, joined by points."""
    out = [f"cells: {'.'.join(t.axes) or 'one place'}" + (
        "; +n: so many further copies" if t.places.shape[-2] > 1 else "")]  # fmt: skip
    chosen, most = _colored(t), _most(t)
    for title, places, cut in _grids(t, WIDEST):
        cells = [[_cell(c) for c in row] for row in places]
        wide = max((len(c) for row in cells for c in row), default=1)
        wide = max(wide, len(str(places.shape[1])))
        margin = len(str(_row_label(t, places.shape[0])))
        out += [title] if title else []
        out.append(" " * margin + " ".join(["", *(f"{n:>{wide}}" for n in range(places.shape[1]))]))
        for n, row in enumerate(cells):
            shown_row = []
            for m, cell in enumerate(row):
                padded = f"{cell:>{wide}}"
                if colors:
                    r, g, b = color(places[n, m, 0], chosen, most)
                    padded = f"\x1b[48;2;{r};{g};{b}m\x1b[38;2;0;0;0m{padded}\x1b[0m"
                shown_row.append(padded)
            out.append(f"{_row_label(t, n):>{margin}} " + " ".join(shown_row))
        if cut:
            out.append(f"… cut to {WIDEST} rows and columns")
    return out


def _most(t: Table) -> list[int]:
    if not t.places.size:
        return [0] * len(t.axes)
    return [int(m) for m in t.places.reshape(-1, len(t.axes)).max(0)]


def svg(layout: Layout, t: Table) -> str:
    """The table of places as one SVG document."""
    chosen, most = _colored(t), _most(t)
    lines = max(1, len(t.axes))
    high, wide = 12 * lines + 8, 58
    body: list[str] = []
    top, right = 34, 200
    for title, places, cut in _grids(t, LARGEST):
        rows, columns = places.shape[:2]
        if title:
            body.append(f'<text x="34" y="{top + 4}">{escape(title)}</text>')
            top += 10
        right = max(right, 40 + columns * wide)
        for m in range(columns):
            body.append(f'<text class="h" x="{34 + m * wide + wide // 2}" y="{top + 10}">{m}</text>')  # fmt: skip
        top += 16
        for n in range(rows):
            y = top + n * high
            body.append(f'<text class="h" x="16" y="{y + high // 2 + 4}">{_row_label(t, n)}</text>')
            for m in range(columns):
                r, g, b = color(places[n, m, 0], chosen, most)
                x = 34 + m * wide
                box = f'x="{x}" y="{y}" width="{wide - 2}" height="{high - 2}" rx="3"'
                body.append(f'<rect {box} fill="#{r:02x}{g:02x}{b:02x}"/>')
                for k, axis in enumerate(t.axes):
                    found = np.unique(places[n, m, :, k])
                    value = ",".join(str(int(p)) for p in found[:3]) + ("…" if len(found) > 3 else "")  # fmt: skip
                    where = f'x="{x + wide // 2 - 1}" y="{y + 13 + 12 * k}"'
                    body.append(f'<text class="c" {where}>{axis} {value}</text>')
        top += rows * high + 14
        if cut:
            body.append(f'<text x="34" y="{top}">cut to {LARGEST} rows and columns</text>')
            top += 16
    style = ("text{font:11px system-ui,sans-serif;fill:#222}.h{text-anchor:middle;fill:#777}"
             ".c{text-anchor:middle;font-size:10px}.t{font:13px ui-monospace,monospace}")  # fmt: skip
    title = str(layout)
    right = max(right, 40 + 8 * len(title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{right}" height="{top + 4}" viewBox="0 0 {right} {top + 4}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="t" x="16" y="20">{escape(title)}</text>{"".join(body)}</svg>\n'
    )


def as_json(layout: Layout, t: Table) -> dict[str, Any]:
    """Everything that is shown, as data; `places` (coordinate …, copy, axis) for up to 65,536 numbers."""
    strides, extents = layout.strides(), layout.extents()
    f = facts(layout, t)
    small = t.places.size <= 65_536
    return {
        "layout": str(layout),
        "shape": list(t.shape),
        "elements": f.elements,
        "places_used": f.used,
        "places_spanned": f.places,
        "places_shared": f.shared,
        "copies": f.copies,
        "axes": [
            {
                "axis": axis,
                "span": evaluated(layout.span(axis), {}),
                "index": index_text(layout, axis),
                "digits": [
                    {"digit": d.text(), "extent": evaluated(e, {}), "stride": evaluated(s, {})}
                    for d, e, s in zip(layout.digits, extents, strides)
                    if d.axis == axis
                ],
            }
            for axis in t.axes
        ],
        "places": t.places.tolist() if small else None,
    }
