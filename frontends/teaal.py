"""TeAAL YAML: the `einsum` section (declaration, expressions) as a cascade.

    einsum:
      declaration: {A: [K, M], B: [K, N], Z: [M, N]}
      expressions:
        - Z[m, n] = A[k, m] * B[k, n]

Tensors that are declared but never defined are inputs; those that are defined but never read, and
those of an optional list `outputs`, are outputs. Other top-level sections (mapping, format, …) are
named in `unused`. An input rank that no variable walks alone gets its size from its index:
`I[e + r]` over H makes H = E + R - 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from tcc.ir.cascade import Cascade, Einsum, Tensor, targets
from tcc.ir.cascade_text import GRAMMAR, Block
from tcc.ir.diagnostics import CompileError, Source, Span, did_you_mean
from tcc.ir.dtype import F32
from tcc.ir.dtype_text import dtype as dtype_named
from tcc.ir.expr import Const, Expr, Size, Var, variables
from tcc.ir.expr_text import parse_tree
from tcc.ir.index import bounds, poly
from tcc.ir.infer import build

SECTIONS = ("einsum", "mapping", "format", "architecture", "binding", "bindings")
KEYS = ("declaration", "expressions", "outputs")


@dataclass(frozen=True)
class TeaalProgram:
    """A cascade, and the top-level sections of its file that were not used."""

    cascade: Cascade
    unused: tuple[str, ...]


def parse_teaal(text: str, name: str = "<teaal>", dtype: str = "f32") -> TeaalProgram:
    """The program of a TeAAL YAML text, all tensors of one dtype; errors point into the text."""
    source = Source(name, text)
    top = _mapping(source, _compose(source), "the file")
    if "einsum" not in top:
        raise CompileError(
            "T0134",
            f"{name} has no section `einsum`",
            _first_line(source),
            helps=did_you_mean("einsum", list(top))
            or "add `einsum:`, with `declaration` and `expressions`",
        )
    einsum = _mapping(source, top["einsum"][1], "`einsum`")
    for key, (mark, _) in einsum.items():
        if key not in KEYS:
            raise CompileError(
                "T0134",
                f"unknown key `{key}` in `einsum`",
                _span(source, mark),
                helps=(*did_you_mean(key, list(KEYS)), f"known: {', '.join(KEYS)}"),
            )
    for key in KEYS[:2]:
        if key not in einsum:
            raise CompileError(
                "T0134",
                f"`einsum` has no `{key}`",
                _span(source, top["einsum"][0]),
                helps=f"add `{key}:` below `einsum:`",
            )
    declared = _declaration(source, einsum["declaration"][1])
    definitions = _expressions(source, einsum["expressions"][1], set(declared))
    wanted = (
        [str(n.value) for n in _items(source, einsum["outputs"][1])] if "outputs" in einsum else []
    )
    unused = tuple(key for key in top if key != "einsum")
    return TeaalProgram(_cascade(_stem(name), declared, definitions, wanted, dtype), unused)


def _cascade(
    name: str, declared: dict[str, Tensor], definitions: list[Einsum], wanted: list[str], dtype: str
) -> Cascade:
    element = dtype_named(dtype)
    defined = list(dict.fromkeys(t for d in definitions for t in targets(d)))
    read = {a.tensor for d in definitions for a in d.reads}
    for d in definitions:
        t = declared.get(d.target)
        if t is not None and len(t.shape) != len(d.indices):
            raise CompileError(
                "T0113",
                f"`{d.target}` has {len(t.shape)} ranks, but {len(d.indices)} indices are given",
                d.span,
                helps="give one index per rank",
            )
    walked = {v.upper() for d in definitions for v in variables(*d.indices, d.body)}
    inputs = []
    for t in declared.values():
        if t.name not in defined and t.name in read:
            shape = [_walked(definitions, t.name, n, s, walked) for n, s in enumerate(t.shape)]
            inputs.append(replace(t, shape=tuple(shape), dtype=element))
    outputs = []
    for tensor in dict.fromkeys([*(t for t in defined if t not in read), *wanted]):
        if tensor in declared:
            outputs.append(replace(declared[tensor], dtype=element))
            continue
        first = next((d for d in definitions if d.target == tensor), None)
        raise CompileError(
            "T0103",
            f"output `{tensor}` is not declared",
            first.span if first else None,
            helps=did_you_mean(tensor, list(declared)) or f"add `{tensor}: […]` to `declaration`",
        )
    return build(Cascade(name, (), tuple(inputs), tuple(outputs), tuple(definitions)))


def _walked(
    definitions: list[Einsum], tensor: str, axis: int, size: Expr, walked: set[str]
) -> Expr:
    """A dimension's size: its rank, or what its index reaches if no variable walks the rank."""
    if not isinstance(size, Size) or size.rank in walked:
        return size
    for d in definitions:
        for a in d.reads:
            if (
                a.tensor == tensor
                and axis < len(a.indices)
                and not isinstance(a.indices[axis], Var)
            ):
                index = a.indices[axis]
                span = bounds(index, {v: Size(v.upper()) for v in variables(index)})
                if span is not None and span[0].constant == 0:
                    return (span[1] + poly(Const(1))).expr()
    return size


# ---- the parts of the YAML tree


def _compose(source: Source) -> Any:
    import yaml

    try:
        return yaml.compose(source.text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        span = Span(source, mark.line + 1, mark.column + 1, mark.column + 2) if mark else None
        raise CompileError(
            "T0134",
            f"not YAML: {error.problem or 'malformed'}",
            span,
            helps="check indentation, colons and brackets",
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = (
            "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        )
        raise CompileError(
            "T0134",
            f"not YAML: {reason}",
            _first_line(source),
            helps="check indentation, colons and brackets",
        ) from None


def _mapping(source: Source, node: Any, what: str) -> dict[str, tuple[Any, Any]]:
    """Key to (key node, value node)."""
    if type(node).__name__ != "MappingNode":
        raise CompileError(
            "T0134", f"{what} is no mapping", _span(source, node), helps="write `key: value` lines"
        )
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in node.value:
        if str(key.value) in found:
            raise CompileError(
                "T0134",
                f"`{key.value}` is given twice in {what}",
                _span(source, key),
                helps="keep one of them",
            )
        found[str(key.value)] = (key, value)
    return found


def _items(source: Source, node: Any) -> list[Any]:
    if type(node).__name__ == "ScalarNode" and node.value in ("", "null", "~"):
        return []
    if type(node).__name__ != "SequenceNode" or any(
        type(n).__name__ != "ScalarNode" for n in node.value
    ):
        raise CompileError(
            "T0134",
            "a list of texts is expected here",
            _span(source, node),
            helps="write `[K, M]`, or lines that begin with `- `",
        )
    return list(node.value)


def _declaration(source: Source, node: Any) -> dict[str, Tensor]:
    found = {}
    for name, (key, value) in _mapping(source, node, "`declaration`").items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise CompileError(
                "T0134",
                f"`{name}` is no tensor name",
                _span(source, key),
                helps="a name begins with a letter",
            )
        shape: list[Expr] = []
        for rank in _items(source, value):
            if not re.fullmatch(r"[A-Z]\w*", rank.value):
                raise CompileError(
                    "T0120",
                    f"`{rank.value}` is no rank name",
                    _span(source, rank),
                    helps="ranks are upper case, their variables lower case",
                )
            shape.append(Size(rank.value, _span(source, rank)))
        found[name] = Tensor(name, F32, tuple(shape), 0, _span(source, key))
    return found


def _expressions(source: Source, node: Any, tensors: set[str]) -> list[Einsum]:
    if type(node).__name__ == "SequenceNode":
        for at, n in enumerate(node.value):
            node.value[at] = _as_text(source, n)
    nodes = _items(source, node)
    trees = [_definition(source, n) for n in nodes]
    block = Block(source, tensors | {str(t.children[0]) for t in trees}, set())
    return [block.definition(t) for t in trees]


def _as_text(source: Source, node: Any) -> Any:
    """The text of an expression with `:: max(m)`, which YAML takes for a key and its value."""
    import yaml

    start, end = node.start_mark, node.end_mark
    if type(node).__name__ != "MappingNode" or node.flow_style or len(node.value) != 1:
        return node
    if not str(node.value[0][0].value).endswith(":"):
        return node
    text = source.line(start.line + 1)[start.column :]
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, start, end)


def _definition(source: Source, node: Any) -> Any:
    """The syntax tree of one expression, its places those of the YAML text."""
    mark, quoted = node.start_mark, node.style in ("'", '"')
    block = node.style in ("|", ">")
    line, column = (mark.line + 1, 0) if block else (mark.line, mark.column + quoted)
    padded = "\n" * line + " " * column + " ".join(str(node.value).splitlines())
    try:
        tree = parse_tree(GRAMMAR, "program", Source(source.name, padded))
    except CompileError as error:
        d = error.diagnostic
        span = replace(d.span, source=source) if d.span else None
        raise CompileError(d.code, d.message, span, helps=d.helps) from None
    statements = [s for unit in tree.children for s in unit.children]
    if len(statements) != 1 or statements[0].data != "definition":
        raise CompileError(
            "T0134",
            "an expression defines one tensor",
            _span(source, node),
            helps="write `Z[m, n] = A[k, m] * B[k, n]`",
        )
    return statements[0]


def _span(source: Source, node: Any) -> Span:
    if node is None:
        return _first_line(source)
    start, end = node.start_mark, node.end_mark
    last = end.column if end.line == start.line else len(source.line(start.line + 1))
    return Span(source, start.line + 1, start.column + 1, max(last, start.column + 1) + 1)


def _first_line(source: Source) -> Span:
    return Span(source, 1, 1, 2)


def _stem(name: str) -> str:
    stem = re.sub(r"\W", "_", name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return stem if re.fullmatch(r"[A-Za-z_]\w*", stem) else f"teaal_{stem.strip('_')}".rstrip("_")


__all__ = ["TeaalProgram", "parse_teaal"]
