"""User names as Python identifiers: every name that reaches generated text is made here."""

from __future__ import annotations

import builtins
import keyword
import re
from dataclasses import dataclass, field

# names that generated modules use themselves
_MODULES = ("tl", "triton", "torch", "pid", "grid", "self")


def mangled(name: str) -> str:
    """`name` with every character that is no ASCII letter, digit or `_` spelled out; never a
    keyword or a builtin.

    >>> mangled("int"), mangled("K"), mangled('"; rm')
    ('int_', 'K', 'u_u22_u3b_u20rm')
    """
    out = re.sub(r"[^A-Za-z0-9_]", lambda m: f"_u{ord(m[0]):x}", name)
    if not out or not out[0].isalpha():  # helper functions of the generated module start with `_`
        out = f"u{out}"
    reserved = keyword.iskeyword(out) or keyword.issoftkeyword(out) or hasattr(builtins, out)
    return f"{out}_" if reserved or out in _MODULES else out


WIDTH = 110


@dataclass
class Names:
    """One Python namespace: `fresh` gives a name that nothing else in it has."""

    taken: set[str] = field(default_factory=set)

    def fresh(self, wanted: str) -> str:
        """An identifier like `wanted`."""
        name = base = mangled(wanted)
        count = 0
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name


def quoted(text: str) -> str:
    """`text` as it may stand inside a docstring: it cannot end it, and escapes mean themselves."""
    shown = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return f"{shown} " if shown.endswith('"') else shown


@dataclass
class Lines:
    """Text that grows line by line at a current indentation."""

    text: list[str] = field(default_factory=list)
    depth: int = 1

    def add(self, line: str) -> None:
        self.text.append(f"{'    ' * self.depth}{line}" if line else "")

    def insert(self, at: int, depth: int, head: str, arguments: list[str]) -> int:
        """Puts `head(arguments)` before line `at`, wrapped where too long; returns how many lines."""
        pad = "    " * depth
        lines = [f"{pad}{head}({', '.join(arguments)})"]
        if len(lines[0]) > WIDTH:
            lines = [f"{pad}{head}(", *(f"{pad}    {a}," for a in arguments), f"{pad})"]
        self.text[at:at] = lines
        return len(lines)
