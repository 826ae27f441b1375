"""A function around what has no frame of its own that dynamo would look at."""

from __future__ import annotations

from typing import Any


def framed(fn: Any) -> Any:
    """`fn`, or where it is a module or function of torch's own, or no Python function, one that calls it, with code of its
    own: dynamo skips frames of torch, and counts compilations per code object."""
    import torch
    from torch._dynamo import trace_rules

    inner = fn.forward if isinstance(fn, torch.nn.Module) else fn
    if hasattr(inner, "__code__") and not trace_rules.check(inner):
        return fn

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    call.__code__ = call.__code__.replace()
    return call
