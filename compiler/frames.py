"""A function around a module at whose own frames dynamo does not look."""

from __future__ import annotations

from typing import Any


def framed(fn: Any) -> Any:
    """`fn`, or where it is a module of torch's own a function that calls it, with code of its own: dynamo skips frames
    of `torch.nn`, and counts compilations per code object."""
    import torch
    from torch._dynamo import trace_rules

    if not isinstance(fn, torch.nn.Module) or not trace_rules.check(fn.forward):
        return fn

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    call.__code__ = call.__code__.replace()
    return call
