"""Matrix products, attention and convolution of PyTorch as Einsums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tcc.frontends._pytorch_builder import Builder, Index, Lowering, NotLowered, Value
from tcc.frontends._pytorch_pointwise import add, mul
from tcc.frontends._pytorch_reductions import exponentials, normalised
from tcc.frontends._pytorch_sizes import is_one, minus, plus, times
from tcc.ir.cascade import Einsum, Tensor
from tcc.ir.expr import Access, Call, Const, Expr, Var, call, substitute, text

_ZERO = Const(0)


def _product(b: Builder, out: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`Z[…,i,j] = X[…,i,k] * Y[…,k,j]` with the batch dimensions broadcast."""
    s = b.scope()
    index = s.index(out.shape)
    k = s.var(x.shape[-1])
    return b.define(
        out, index, mul(b.read(x, [*index[:-1], k]), b.read(y, [*index[:-2], k, index[-1]]))
    )


def _mm(b: Builder, x: Tensor, y: Tensor, *_: Any) -> Tensor:
    return _product(b, b.out(), x, y)


def _mv(b: Builder, x: Tensor, y: Tensor) -> Tensor:
    out, s = b.out(), b.scope()
    index = s.index(out.shape)
    k = s.var(y.shape[0])
    return b.define(out, index, mul(b.read(x, [*index, k]), b.read(y, [k])))


def _dot(b: Builder, x: Tensor, y: Tensor) -> Tensor:
    k = b.scope().var(x.shape[0])
    return b.define(b.out(), [], mul(b.read(x, [k]), b.read(y, [k])))


def _added(b: Builder, c: Value, product: Tensor, beta: Value, alpha: Value) -> Tensor:
    """alpha · product + beta · c."""
    out = b.out()
    index = b.scope().index(out.shape)
    value: Expr = b.read(product, index)
    if alpha != 1:
        value = mul(b.read(alpha, index, out.dtype), value)
    if beta == 0:
        return b.define(out, index, value)
    term = b.read(c, index, out.dtype)
    if beta != 1:
        term = mul(b.read(beta, index, out.dtype), term)
    return b.define(out, index, add(value, term))


def _addmm(
    b: Builder, c: Tensor, x: Tensor, y: Tensor, *_: Any, beta: Value = 1, alpha: Value = 1
) -> Tensor:
    product = b.temp("product", b.out_dtype(), b.out_shape())
    return _added(b, c, _product(b, product, x, y), beta, alpha)


def _addmv(
    b: Builder, c: Tensor, x: Tensor, y: Tensor, *, beta: Value = 1, alpha: Value = 1
) -> Tensor:
    s = b.scope()
    out = b.temp("product", b.out_dtype(), b.out_shape())
    index = s.index(out.shape)
    k = s.var(y.shape[0])
    return _added(
        b, c, b.define(out, index, mul(b.read(x, [*index, k]), b.read(y, [k]))), beta, alpha
    )


def _matmul(b: Builder, x: Tensor, y: Tensor) -> Tensor:
    if len(x.shape) == len(y.shape) == 1:
        return _dot(b, x, y)
    if len(y.shape) == 1:
        return _mv(b, x, y)
    if len(x.shape) == 1:
        out, s = b.out(), b.scope()
        index = s.index(out.shape)
        k = s.var(x.shape[0])
        return b.define(out, index, mul(b.read(x, [k]), b.read(y, [*index[:-1], k, index[-1]])))
    return _product(b, b.out(), x, y)


def _linear(b: Builder, x: Tensor, w: Tensor, bias: Value = None) -> Tensor:
    """`Y[…,o] = X[…,k] * W[o,k] + bias[o]`."""
    product = b.out() if bias is None else b.temp("product", b.out_dtype(), b.out_shape())
    s = b.scope()
    index = s.index(product.shape)
    k = s.var(x.shape[-1])
    head = index[-1:] if len(w.shape) == 2 else []
    lead = index[:-1] if head else index
    b.define(product, index, mul(b.read(x, [*lead, k]), b.read(w, [*head, k])))
    return product if bias is None else _added(b, bias, product, 1, 1)


# ---- attention


def _attention(
    b: Builder, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, mask: Value, scale: Value
) -> list[Value]:
    """softmax(scale · Q Kᵀ + mask) V over the last two dimensions; also log Σ exp of the scores.

    Rows without any key give 0, as PyTorch's do. `causal` keeps the keys at n <= m alone.
    """
    lead, m, n, dtype = q.shape[:-2], q.shape[-2], k.shape[-2], q.dtype
    b.equate(n, v.shape[-2])
    if not isinstance(scale, (int, float, type(None))):
        raise NotLowered
    width = q.shape[-1]
    if scale is None and isinstance(width, Const):
        scale = float(width.value) ** -0.5
    s = b.scope()
    index = s.index([*lead, m, n])
    inner = s.var(q.shape[-1])
    left = b.read(q, [*index[:-1], inner])
    right = Access(k.name, (*_heads(b, index[:-2], lead, k), index[-1], inner))
    scores = b.define(b.temp("qk", dtype, (*lead, m, n)), index, mul(left, right))
    index = b.scope().index([*lead, m, n])
    score = b.read(scores, index)
    value: Expr = (
        mul(score, Const(float(scale)))
        if scale is not None
        else call("div", score, call("sqrt", width))
    )
    if mask is not None:
        kept = _kept(b, mask, b.read(mask, index))
        if kept is not None:
            value = call("select", kept, value, Const(-math.inf))
        else:
            value = add(value, b.read(mask, index, dtype))
    where = [call("le", index[-1], index[-2])] if causal and not is_one(n) else []
    masked = b.define(b.temp("scores", dtype, (*lead, m, n)), index, value, where=where)
    axis = [len(lead) + 1]
    top, e, total = exponentials(b, masked, axis, safe=mask is not None)
    weights = normalised(
        b, b.temp("weights", dtype, (*lead, m, n)), e, total, safe=mask is not None
    )
    out = b.out(0) if isinstance(b.node.meta["val"], (list, tuple)) else b.out()
    s = b.scope()
    index = s.index(out.shape)
    key = s.var(n)
    b.define(out, index, mul(b.read(weights, [*index[:-1], key]),
                             Access(v.name, (*_heads(b, index[:-2], lead, v), key, index[-1]))))  # fmt: skip
    if not isinstance(b.node.meta["val"], (list, tuple)):
        return [out]
    lse: Value = None
    if b.used(1):
        lse = b.out(1)
        index = b.scope().index(lse.shape)
        row = [*index, _ZERO]
        if mask is not None:
            empty = call("eq", b.read(total, row), _ZERO)
            b.define(lse, index, call("select", empty, Const(0.0),
                                      add(call("log", b.read(total, row)), b.read(top, row))))  # fmt: skip
        else:
            b.define(lse, index, add(call("log", b.read(total, row)), b.read(top, row)))
    return [out, lse] + [None] * (len(b.node.meta["val"]) - 2)


def _kept(b: Builder, mask: Tensor, read: Expr) -> Expr | None:
    """Which keys a mask keeps that is 0 or -inf by a condition, such as what PyTorch makes of masks of bool; None for any
    other."""

    def defined(name: str) -> Einsum | None:
        found = [d for d in b.definitions if isinstance(d, Einsum) and d.target == name]
        return found[0] if len(found) == 1 and not found[0].reduced and not found[0].where else None

    def value(e: Expr) -> float | None:
        d = defined(e.tensor) if isinstance(e, Access) and not e.indices else None
        e = e if d is None else d.body
        return float(e.value) if isinstance(e, Const) else None

    d = defined(mask.name)
    if (
        d is None
        or not isinstance(read, Access)
        or not isinstance(d.body, Call)
        or d.body.op != "select"
    ):
        return None
    condition, one, other = d.body.args
    if (value(one), value(other)) != (0.0, -math.inf):
        return None
    at = {i.name: e for i, e in zip(d.indices, read.indices, strict=True) if isinstance(i, Var)}
    return substitute(condition, at)


def _heads(b: Builder, index: Index, lead: Sequence[Expr], t: Tensor) -> Index:
    """Batch coordinates of keys or values: fewer heads than queries are shared by neighbouring ones."""
    out: Index = []
    for i, wanted, given in zip(index, lead, t.shape[:-2], strict=True):
        if is_one(given):
            out.append(_ZERO)
        elif text(wanted) == text(given):
            out.append(i)
        elif isinstance(wanted, Const) and isinstance(given, Const):
            if int(wanted.value) % int(given.value):
                raise NotLowered
            out.append(call("floordiv", i, Const(int(wanted.value) // int(given.value))))
        else:  # sizes that are not known: PyTorch has checked that one divides the other
            out.append(call("floordiv", i, call("floordiv", wanted, given)))
    return out


def _flash_for_cpu(b: Builder, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
                   attn_mask: Value = None, scale: Value = None) -> list[Value]:  # fmt: skip
    if dropout_p:
        raise NotLowered
    return _attention(b, q, k, v, causal=is_causal, mask=attn_mask, scale=scale)


def _sdpa(b: Builder, q: Tensor, k: Tensor, v: Tensor, attn_mask: Value = None, dropout_p: float = 0.0,
          is_causal: bool = False, *, scale: Value = None, enable_gqa: bool = False) -> Value:  # fmt: skip
    if dropout_p or (attn_mask is not None and not attn_mask.dtype.is_float):
        raise NotLowered
    return _attention(b, q, k, v, causal=is_causal, mask=attn_mask, scale=scale)[0]


# ---- convolution


def _per_axis(value: Value, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _convolution(b: Builder, x: Tensor, w: Tensor, bias: Value, stride: Any, padding: Any, dilation: Any,
                 transposed: bool, output_padding: Any, groups: int) -> Tensor:  # fmt: skip
    """`Y[n,o,p…] = X[n, c, p·stride + k·dilation - padding] * W[o,c,k…]`; outside X reads 0.

    Transposed: X at (p + padding - k·dilation) / stride where that is whole.
    """
    space = len(w.shape) - 2
    stride, padding, dilation = (_per_axis(v, space) for v in (stride, padding, dilation))
    out = b.out()
    batched = len(x.shape) == space + 2
    y = out if bias is None else b.temp("product", out.dtype, out.shape)
    s = b.scope()
    index = s.index(y.shape)
    o, places = index[-space - 1], index[-space:]
    outer, per = (w.shape[0], w.shape[1]) if not transposed else (x.shape[-space - 1], w.shape[1])
    channels = y.shape[-space - 1]
    if not (isinstance(outer, Const) and isinstance(per, Const) and isinstance(channels, Const)):
        raise NotLowered
    outputs = int(channels.value) // groups  # output channels of a group
    inputs = int(per.value) if not transposed else int(outer.value) // groups
    c = s.var(Const(inputs))
    kernel = s.index(w.shape[2:])
    group: Expr = _ZERO
    if groups > 1:
        group = o if outputs == 1 else call("floordiv", o, Const(outputs))
    channel = plus(times(group, inputs), c)
    at: Index = []
    where: list[Expr] = []
    for p, k, st, pad, d in zip(places, kernel, stride, padding, dilation):
        if not transposed:
            at.append(minus(plus(times(p, st), times(k, d)), pad))
            continue
        whole = minus(plus(p, pad), times(k, d))
        if st != 1:
            where.append(call("eq", call("mod", whole, Const(st)), _ZERO))
        at.append(whole if st == 1 else call("floordiv", whole, Const(st)))
    source = Access(x.name, (*(index[:1] if batched else []), channel, *at))
    if not transposed:
        weight = Access(w.name, (o, c, *kernel))
    else:
        inner = o if groups == 1 else _ZERO if outputs == 1 else call("mod", o, Const(outputs))
        weight = Access(w.name, (channel, inner, *kernel))
    if where and not all(_moves(k) for k in kernel):
        raise NotLowered  # a predicate over the output alone would leave holes
    b.define(y, index, mul(source, weight), where=where)
    if bias is None:
        return y
    index = b.scope().index(out.shape)
    return b.define(out, index, add(b.read(y, index), Access(bias.name, (index[-space - 1],))))


def _moves(e: Expr) -> bool:
    return not isinstance(e, Const)


LOWERINGS: dict[str, Lowering] = {
    "aten.mm": _mm,
    "aten.bmm": _mm,
    "aten.mv": _mv,
    "aten.dot": _dot,
    "aten.addmm": _addmm,
    "aten.baddbmm": _addmm,
    "aten.addmv": _addmv,
    "aten.matmul": _matmul,
    "aten.linear": _linear,
    "aten._scaled_dot_product_flash_attention_for_cpu": _flash_for_cpu,
    "aten.scaled_dot_product_attention": _sdpa,
    "aten.convolution": _convolution,
}  # fmt: skip

__all__ = ["LOWERINGS"]
