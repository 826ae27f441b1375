"""The operators `tcc::decode`, a scaled tensor from its parts as the arithmetic that its type means, `tcc::unpack` and
`tcc::expand`, a coded tensor.

Its operands keep the types of the parts (`u4` codes in uint8, scales of f16, …), which PyTorch cannot say, so that
whatever reads the tensor decodes it where it is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tcc.frontends._pytorch_builder import Builder, Lowering, NotLowered, Value
from tcc.ir.cascade import Tensor
from tcc.ir.dtype import DTYPES, Coded, DType
from tcc.ir.dtype_coded import coded_shape
from tcc.ir.dtype_text import coded_name, dtype
from tcc.ir.expr import Access, Cast, Const, Size, call
from tcc.ir.packed import BYTE, per_byte
from tcc.ir.scaled_parts import parts_of, value_at

DECODE, UNPACK, EXPAND = "tcc.decode", "tcc.unpack", "tcc.expand"


def role_in_expand(node: Any) -> tuple[Any, int] | None:
    """The call of `tcc::expand` that reads a graph's input, if all readers are equal calls: with its place among codes
    and parts, all of them inputs."""
    calls = [u for u in node.users if str(u.target).rpartition(".")[0] == EXPAND]
    if not calls or len(calls) != len(node.users) or any(c.args != calls[0].args for c in calls):
        return None
    codes, parts, *_ = calls[0].args
    given = [codes, *parts]
    if any(n.op != "placeholder" for n in given) or given.count(node) != 1:
        return None
    others = {u.args for n in given for u in n.users}
    return (calls[0], given.index(node)) if len(others) == 1 else None


def coded_input(b: Builder, name: str, call_: Any) -> Tensor:
    """The tensor that the parts of a call of `tcc::expand` are together, over ranks of its own."""
    codes, _, kind, axes = call_.args
    old = dtype(kind)
    assert isinstance(old.form, Coded)
    own = {a: f"{name}_{a}" for a in axes.split()}
    shape = coded_shape(codes.meta["val"], old, tuple(own))
    for a, size in zip(own.values(), shape, strict=True):
        b.declare_rank(a.upper(), Const(int(size)), a.upper())
    (run, length), lanes = old.form.run, old.form.lanes
    form = replace(old.form, run=(own[run], length), lanes=lanes and (own[lanes[0]], lanes[1]))
    return Tensor(name, dtype(coded_name(form)), tuple(Size(a.upper()) for a in own.values()), 0, b.span)  # fmt: skip


def _expand(b: Builder, stored: Value, parts: Value, kind: str, axes: str) -> Value:
    """A copy, which moves into the products that read it."""
    if not isinstance(stored, Tensor) or not isinstance(stored.dtype.form, Coded):
        raise NotLowered("parts of a coded tensor that are no inputs of the graph")
    out = b.out()
    index = b.scope().index(out.shape)
    return b.define(out, index, Access(stored.name, tuple(index)))


def packed_input(node: Any, t: Tensor) -> Tensor:
    """A graph's input that only `tcc::unpack` reads, in one way, as a packed tensor; any other as it is."""
    kinds = {u.args[1] if str(u.target).rpartition(".")[0] == UNPACK else None for u in node.users}
    if len(kinds) != 1 or None in kinds:
        return t
    t = replace(t, dtype=dtype(str(*kinds)), packed=True)
    return replace(t, shape=(*t.shape[:-1], call("mul", t.shape[-1], Const(per_byte(t)))))


def _unpack(b: Builder, stored: Value, kind: str) -> Value:
    """The elements of a packed input; of other bytes by division."""
    out, t = b.out(), dtype(kind)
    index = b.scope().index(out.shape)
    if isinstance(stored, Tensor) and stored.packed:
        return b.define(out, index, Access(stored.name, tuple(index)))
    if t.kind != "u":
        raise NotLowered("signed codes in bytes that are computed")
    per = BYTE // t.bits
    *others, last = index
    byte = Cast(DTYPES["i32"], Access(stored.name, (*others, call("floordiv", last, Const(per)))))
    value = call("floordiv", byte, Const(2 ** (t.bits * (per - 1))))
    for n in reversed(range(per - 1)):
        here = call("eq", call("mod", last, Const(per)), Const(n))
        value = call("select", here, call("floordiv", byte, Const(2 ** (t.bits * n))), value)
    return b.define(out, index, call("mod", value, Const(2**t.bits)))


def part_type(node: Any) -> DType | None:
    """The element type of a graph's input that only `tcc::decode` reads, in one role."""
    found: set[DType] = set()
    for user in node.users:
        if str(user.target).rpartition(".")[0] != DECODE:
            return None
        codes, parts, kind, axes = user.args
        names = tuple(axes.split())
        listed = parts_of(dtype(kind), names, (Const(1),) * len(names))
        found |= {p.dtype for p, n in zip(listed, (codes, *parts)) if n is node}
    return found.pop() if len(found) == 1 else None


def _decode(b: Builder, codes: Value, parts: Value, kind: str, axes: str) -> Value:
    t, names = dtype(kind), tuple(axes.split())
    out = b.out()
    operands = zip(parts_of(t, names, out.shape), (codes, *parts), strict=True)
    index = b.scope().index(out.shape)
    value = value_at(t, names, {p.path: o.name for p, o in operands}, tuple(index))
    return b.define(out, index, value)


LOWERINGS: dict[str, Lowering] = {DECODE: _decode, UNPACK: _unpack, EXPAND: _expand}

__all__ = ["LOWERINGS", "coded_input", "packed_input", "part_type", "role_in_expand"]
