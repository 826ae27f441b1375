"""The text of the mapping level: printer and parser of one language (see tcc.ir.mapping for its meaning).

kernel scale over m: M, n: N {
  for m by 48 on core {
    do Y[m, n] = X[m, n] * 2.0 with n on lane
  }
}
"""

from __future__ import annotations

from typing import Any

from tcc.ir.cascade import Einsum, Extern, Rank, Tensor
from tcc.ir.cascade_text import GRAMMAR as CASCADE_GRAMMAR
from tcc.ir.cascade_text import Block, bare_names
from tcc.ir.diagnostics import CompileError, Source
from tcc.ir.dtype_text import dtype
from tcc.ir.expr import Expr, text
from tcc.ir.expr_text import parse_tree
from tcc.ir.layout import row_major
from tcc.ir.layout_text import LAYOUT_GRAMMAR, LayoutBuilder
from tcc.ir.mapping import Alloc, Buffer, Do, Kernel, Loop, Mapping, Node

GRAMMAR = (
    r"""
mapping: _NL* "mapping" NAME "for" TARGET _NL+ (item _NL+)*
TARGET: /[A-Za-z_][\w.-]*/
?item: ranks | inputs | outputs | memory | kernel | extern
memory: "memory" buffer
kernel: PREPARE? "kernel" NAME ["over" variable ("," variable)*] body
PREPARE: /prepare(?=\s)/
variable: NAME ":" expr
body: "{" _NL+ (node _NL+)* "}"
?node: loop | alloc | do
loop: "for" NAME "by" NUMBER [ON NAME] [when] [until] body
when: "when" expr
ON: /on(?=\s)/
until: "until" expr "hold" body
alloc: "buffer" buffer body
buffer: NAME ":" (NAME | DTYPE) "[" [expr ("," expr)*] "]" "@" NAME [PACKED] [layout] [CONSTANT]
layout: "layout" groups
do: DO definition ["with" binding ("," binding)*]
DO: /(do|update)(?=\s)/
binding: NAME "on" NAME
"""
    + LAYOUT_GRAMMAR
    + CASCADE_GRAMMAR
)


def print_mapping(m: Mapping) -> str:
    """The mapping as text that `parse_mapping` reads back."""
    lines = [f"mapping {m.name} for {m.target}"]
    ranks = [f"{r.name}={text(r.size)}" if r.size is not None else r.name for r in m.ranks]
    if ranks:
        lines.append(f"ranks {', '.join(ranks)}")
    lines += [f"in  {t}" for t in m.inputs] + [f"out {t}" for t in m.outputs]
    lines += [f"memory {b}" for b in m.memory]
    for k in m.kernels:
        lines.append("")
        if isinstance(k, Extern):
            lines.append(str(k))
            continue
        over = (
            f" over {', '.join(f'{v}: {text(e)}' for v, e in k.variables)}" if k.variables else ""
        )
        lines.append(f"{'prepare ' if k.prepare else ''}kernel {k.name}{over} {{")
        lines += print_nodes(k.body, 1)
        lines.append("}")
    return "\n".join(lines) + "\n"


def print_nodes(nodes: tuple[Node, ...], depth: int) -> list[str]:
    """The lines of a tree, indented."""
    pad, lines = "  " * depth, []
    for n in nodes:
        if isinstance(n, Do):
            bind = f" with {', '.join(f'{v} on {r}' for v, r in n.bind)}" if n.bind else ""
            lines.append(f"{pad}{'update' if n.update else 'do'} {n.einsum}{bind}")
        elif isinstance(n, Alloc):
            lines += [f"{pad}buffer {n.buffer} {{", *print_nodes(n.body, depth + 1), f"{pad}}}"]
        else:
            head = f"{pad}for {n.var} by {n.step}" + (f" on {n.on}" if n.on else "")
            head += f" when {text(n.when)}" if n.when is not None else ""
            if n.until is not None:
                lines += [
                    f"{head} until {text(n.until)} hold {{",
                    *print_nodes(n.hold, depth + 1),
                    f"{pad}}} {{",
                ]
            else:
                lines.append(f"{head} {{")
            lines += [*print_nodes(n.body, depth + 1), f"{pad}}}"]
    return lines


def parse_mapping(program: str, name: str = "<string>") -> Mapping:
    """The mapping of a text, verified; raises `CompileError` at the place of the first mistake."""
    from tcc.ir.mapping_verify import verify

    source = Source(name, program)
    tree = parse_tree(GRAMMAR, "mapping", source)
    return verify(_Builder(source, tree).mapping())


class _Builder:
    def __init__(self, source: Source, tree: Any) -> None:
        self.name, self.target, *self.items = tree.children
        found, ranks = bare_names(self.items)
        for node in tree.iter_subtrees():
            if node.data == "buffer":
                found.add(str(node.children[0]))
        self.b = Block(source, found, ranks)

    def mapping(self) -> Mapping:
        ranks: list[Rank] = []
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        memory: list[Buffer] = []
        kernels: list[Kernel | Extern] = []
        for item in self.items:
            if item.data == "ranks":
                ranks += [self.b.rank(r) for r in item.children]
            elif item.data == "inputs":
                inputs += [self.b.tensor(t) for t in item.children]
            elif item.data == "outputs":
                outputs += [self.b.tensor(t) for t in item.children]
            elif item.data == "memory":
                memory.append(self.buffer(item.children[0]))
            elif item.data == "extern":
                kernels.append(self.b.extern(item))
            else:
                kernels.append(self.kernel(item))
        return Mapping(str(self.name), str(self.target), tuple(ranks), tuple(inputs), tuple(outputs),
                       tuple(memory), tuple(kernels))  # fmt: skip

    def kernel(self, node: Any) -> Kernel:
        parts = [p for p in node.children if p is not None]
        prepare = getattr(parts[0], "type", "") == "PREPARE"
        name, *variables, body = parts[1:] if prepare else parts
        pairs = tuple((str(v.children[0]), self.b.expr.build(v.children[1])) for v in variables)
        return Kernel(str(name), pairs, self.nodes(body), prepare, self.b.span(name))

    def nodes(self, body: Any) -> tuple[Node, ...]:
        return tuple(self.node(n) for n in body.children)

    def node(self, n: Any) -> Node:
        if n.data == "do":
            return self.do(n)
        if n.data == "alloc":
            return Alloc(
                self.buffer(n.children[0]), self.nodes(n.children[1]), self.b.span(n.children[0])
            )
        var, step, _, on, when, until, body = n.children
        condition: Expr | None = None
        hold: tuple[Do, ...] = ()
        if until is not None:
            condition = self.b.expr.build(until.children[0])
            hold = tuple(d for d in self.nodes(until.children[1]) if isinstance(d, Do))
        if "." in step or int(step) < 1:
            raise CompileError("T0202", f"the step {step} is no positive integer", self.b.span(step),
                               helps="a tile has at least one coordinate")  # fmt: skip
        return Loop(str(var), int(step), self.nodes(body), str(on) if on is not None else None,
                    condition, hold, self.condition(when), self.b.span(var))  # fmt: skip

    def condition(self, when: Any) -> Expr | None:
        if when is None:
            return None
        self.b.expr.ends = True
        found = self.b.expr.build(when.children[0])
        self.b.expr.ends = False
        return found

    def do(self, n: Any) -> Do:
        word, definition, *bindings = [c for c in n.children if c is not None]
        einsum: Einsum = self.b.definition(definition)
        bind = tuple((str(b.children[0]), str(b.children[1])) for b in bindings)
        return Do(einsum, bind, self.b.span(definition), update=str(word) == "update")

    def buffer(self, n: Any) -> Buffer:
        name, spelling, *rest = [c for c in n.children if c is not None]
        constant = getattr(rest[-1], "type", "") == "CONSTANT"
        rest = rest[:-1] if constant else rest
        layout = None
        if getattr(rest[-1], "data", "") == "layout":
            layout = LayoutBuilder(self.b.expr).layout(rest[-1].children[0])
            rest = rest[:-1]
        packed = getattr(rest[-1], "type", "") == "PACKED"
        *dims, level = rest[:-1] if packed else rest
        element = dtype(str(spelling), self.b.span(spelling))
        shape = tuple(self.b.expr.build(d) for d in dims)
        return Buffer(str(name), element, shape, str(level), layout or row_major(len(shape)),
                      0, constant, self.b.span(name), packed=packed)  # fmt: skip
