"""The command `tcc layout`: looks at a layout, and at what it takes to convert it into another."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from tcc.cli import UsageError
from tcc.commands import parse_sizes
from tcc.ir.layout_text import parse_layout


def do_layout(o: argparse.Namespace) -> int:
    """`tcc layout TEXT`: summary and table on stdout; with `--to` also the conversion."""
    from tcc.ir.layout_algebra import inverse, normal
    from tcc.ir.layout_convert import convert
    from tcc.ir.layout_table import sizes_of, table
    from tcc.layout_picture import as_json, facts, printed, summary, svg

    sizes = parse_sizes(o.size)
    layout = parse_layout(o.text).bind(sizes)
    layout.known_shape()
    layout = inverse(layout) if o.inverse else layout
    layout = normal(layout) if o.normal else layout
    open_ = sizes_of(layout)
    if open_ and o.svg:
        raise UsageError("a picture needs sizes", f"give them: `--size {open_[0]}=64`")
    data: dict[str, Any] = {"layout": str(layout), "sizes": list(open_)}
    lines = summary(layout)
    if o.to is not None:
        other = parse_layout(o.to).bind(sizes)
        other = other if other.shape is not None else other.on(layout.known_shape())
        found = convert(layout, other)
        lines.append(f"to {other}: {found}")
        data["conversion"] = found.json()
    if open_:
        lines.append(f"for a table, give sizes: --size {','.join(f'{s}=64' for s in open_)}")
    else:
        t = table(layout)
        data |= as_json(layout, t)
        if not o.json:
            lines += [f"  {facts(layout, t)}", "", *printed(t, _colors(o))]
        if o.svg:
            _write(o.svg, svg(layout, t))
    print(json.dumps(data) if o.json else "\n".join(lines))
    return 0


def _colors(o: argparse.Namespace) -> bool:
    wanted = getattr(o, "color", "auto")
    if wanted == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return bool(wanted == "always")


def _write(path: str, content: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"cannot write to `{path}`: {error.strerror or error}") from None
