"""Calls to PyTorch from a cascade: arguments as JSON, and back.

    ["%x", "$S0 // 2", {"dtype": "float32"}, {"text": "mean"}, {"keys": {"dim": 0}}]

`"%x"` is a tensor, `"$e"` a size expression; keyword arguments stand last, under `keys`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tcc.frontends._pytorch_builder import Builder, Value
from tcc.frontends._pytorch_sizes import Unsupported
from tcc.ir.cascade import Extern, Tensor
from tcc.ir.cascade_text import make_extern
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Call, Cast, Const, Expr, Size, Var, text
from tcc.ir.index import evaluate_size, is_size

_ENUMS = ("dtype", "layout", "memory_format")


def extern_call(
    b: Builder, function: str, args: Sequence[Value], kwargs: Mapping[str, Value]
) -> Value:
    """Adds the operator as a call to PyTorch; its results have the shapes that tracing found."""
    val = b.node.meta["val"]
    many = isinstance(val, (list, tuple))
    fakes = list(val) if many else [val]
    if any(not hasattr(f, "shape") for f in fakes if f is not None):
        raise Unsupported(f"`{function}` gives something else than tensors")
    kept = [k for k, f in enumerate(fakes) if f is not None]
    if not kept:
        raise Unsupported(f"`{function}` is called for its effect")
    targets = tuple(b.out(k) for k in kept)
    encoded = [_encode(a) for a in args]
    if kwargs:
        encoded.append({"keys": {k: _encode(v) for k, v in kwargs.items()}})
    arguments = json.dumps(encoded).replace("'", "\\u0027")
    b.definitions.append(make_extern(targets, function, arguments, b.span))
    for t in targets:
        b.tensors[t.name] = t
    if not many:
        return targets[0]
    found = dict(zip(kept, targets))
    return [found.get(k) for k in range(len(fakes))]


def _encode(value: Value) -> Any:
    import torch

    if isinstance(value, Tensor):
        return f"%{value.name}"
    if isinstance(value, (Const, Size, Call, Cast, Var)):
        if isinstance(value, Const):
            return value.value
        if not is_size(value):
            raise Unsupported("a scalar argument is no integer size")
        return f"${text(value)}"
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        kind = _ENUMS[(torch.dtype, torch.layout, torch.memory_format).index(type(value))]
        return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise Unsupported(f"an argument of type `{type(value).__name__}` can not be written down")


def run_extern(e: Extern, tensors: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Any]:
    """The results of the call on torch tensors, one per target of `e`, contiguous."""
    import torch

    packet, _, overload = e.function.rpartition(".")
    namespace, _, name = packet.partition(".")
    try:
        function = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except AttributeError:
        raise CompileError("T0301", f"PyTorch has no function `{e.function}`", e.span,
                           helps="the program was made with another version of PyTorch") from None  # fmt: skip
    args = json.loads(e.arguments)
    keys = args.pop()["keys"] if args and isinstance(args[-1], dict) and "keys" in args[-1] else {}

    def decode(value: Any) -> Any:
        if isinstance(value, str):
            return (
                tensors[value[1:]]
                if value.startswith("%")
                else evaluate_size(_size(value[1:]), sizes)
            )
        if isinstance(value, list):
            return [decode(v) for v in value]
        if isinstance(value, dict):
            ((kind, shown),) = value.items()
            if kind == "text":
                return shown
            return torch.device(shown) if kind == "device" else getattr(torch, shown)
        return value

    with torch.no_grad():
        result = function(*[decode(a) for a in args], **{k: decode(v) for k, v in keys.items()})
    results = list(result) if isinstance(result, (list, tuple)) else [result]
    return [r.contiguous() for r in results if r is not None][: len(e.targets)]


def _size(shown: str) -> Expr:
    from tcc.ir.diagnostics import Source
    from tcc.ir.expr_text import ExprBuilder, Names, parse_tree

    source = Source("<size>", shown)
    tree = parse_tree("start: expr", "start", source)
    return ExprBuilder(source, Names(set(), set())).build(tree.children[0])


__all__ = ["extern_call", "run_extern"]
