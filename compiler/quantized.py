"""Linear layers whose weights are stored encoded: `tcc.quantize`, and the operator `tcc::decode` behind it.

    weight[n, k] = (code[n, k] - zero) * scale[n, k / 128],   stored as u4[group k 128, scale f16, zero 8]

Compiled by tcc, the weight is decoded where the product reads it; eagerly, PyTorch decodes it and multiplies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcc.coded_linear import CodedLinear
from tcc.ir.cascade import Tensor as Declared
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded, DType, Scaled
from tcc.ir.dtype_coded import encode_coded
from tcc.ir.dtype_codes import integer_range
from tcc.ir.dtype_scaled import (
    Encoded,
    check_groups,
    encode_scaled,
    group_sizes,
    inner_type,
    part_shapes,
    scaled_form,
)
from tcc.ir.dtype_text import dtype
from tcc.ir.expr import Const
from tcc.ir.packed import check_packed, per_byte, unpacked
from tcc.ir.scaled_parts import Part, parts_of
from tcc.scales import encode_closely
from tcc.stored import as_tensor, torch_dtype

AXES = ("n", "k")  # of a weight: output features, input features
_CLAUSE = re.compile(r"\b(group|vector)\s*(\d+|(?=[,\]]))")

Weights = str | DType | Mapping[str, Encoded]
Layers = Callable[[str, nn.Linear], bool] | str | Iterable[str] | None


# ---- spellings


def weight_type(spelling: str | DType) -> DType:
    """The type of a weight [n, k]; what is left out is filled in.

    A group without a rank is along the input features; without any group, every output feature is one. Without a
    scale it is f16; unsigned integers without a zero point or offset are symmetric around the middle: u4 has `zero 8`.

    `u4[group 128]` is `u4[group k 128, scale f16, zero 8]`, `i8` is `i8[group k, scale f16]`.
    """
    if isinstance(spelling, DType):
        return spelling
    if re.search(r"\[\s*coded\b", spelling):
        return dtype(spelling)
    if spelling.count("[") != spelling.count("]"):
        raise CompileError("T0146", f"the brackets of `{spelling}` do not match",
                           helps="as in `u4[group 128, scale f16]`")  # fmt: skip
    text = _CLAUSE.sub(lambda m: f"{m[1]} k {m[2]}".rstrip(), spelling.strip())
    element, bracket, clauses = text.partition("[")
    if not bracket or (element.startswith("codebook") and not re.search(r"\]\s*\[", text)):
        element, clauses = text, ""
    elif element.startswith("codebook"):
        element, _, clauses = text.rpartition("][")
        element += "]"
    inside = clauses.strip().removesuffix("]")
    outer = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", inside))
    said = {c.split()[0] for c in outer.split(",") if c.strip()}
    more = [inside] if inside else []
    if not said & {"group", "table"}:
        more.insert(0, "group k")
    if not said & {"scale", "table"}:
        more.append("scale f16")
    kind = dtype(element)
    if kind.kind == "u" and kind.form is None and not said & {"zero", "offset", "table"}:
        more.append(f"zero {2 ** (kind.bits - 1)}")
    return dtype(f"{element}[{', '.join(more)}]")


def activation_type(spelling: str | DType) -> DType:
    """The type to which the inputs of a layer are rounded; T0147 for another than `iN[group k n, scale f32]`.

    `i8[group 128]` is `i8[group k 128, scale f32]`.
    """
    text = spelling.name if isinstance(spelling, DType) else spelling
    text = _CLAUSE.sub(lambda m: f"{m[1]} k {m[2]}".rstrip(), text.strip())
    if "[" not in text:
        text += "[group k]"
    if "scale" not in text:
        text = f"{text.removesuffix(']')}, scale f32]"
    t = dtype(text)
    form = scaled_form(t)
    wanted = Scaled(form.element, form.groups, dtype("f32"))
    if form != wanted or form.element.kind != "i" or form.element.bits > 8 or len(form.groups) != 1:
        raise CompileError("T0147", f"activations can not be {t}",
                           helps="they are signed integers of up to 8 bits, as in `i8[group 128]`")  # fmt: skip
    return t


# ---- the operator


def _listed(t: DType, axes: tuple[str, ...], shape: Sequence[int]) -> list[Part]:
    return parts_of(t, axes, tuple(Const(int(n)) for n in shape))


def _checked(parts: list[Tensor], t: DType, axes: tuple[str, ...]) -> list[int]:
    """The shape of the whole, of which these are the parts; T0147 and T0148 where they do not fit."""
    form = scaled_form(t)
    shape = list(parts[0].shape[1 if form.residual > 1 else 0 :])
    if form.vector is not None and len(shape) == len(axes):
        shape[axes.index(form.vector[0])] *= form.vector[1]
    check_groups(t, axes, tuple(shape))
    listed = _listed(t, axes, shape)
    for p, found in zip(listed, parts):
        wanted = [s.value for s in p.shape if isinstance(s, Const)]
        if list(found.shape) != wanted or found.dtype != torch_dtype(torch, p.dtype):
            raise CompileError("T0148", f"`{p.name}` is {found.dtype} {list(found.shape)}, not {p.dtype} {wanted}",
                               helps=f"pass the parts of {t}: {', '.join(q.name for q in listed)}")  # fmt: skip
    if len(listed) != len(parts):
        raise CompileError("T0148", f"{t} has {len(listed)} parts, not {len(parts)}",
                           helps=f"pass {', '.join(q.name for q in listed)}")  # fmt: skip
    return shape


def gathered(
    t: DType, axes: tuple[str, ...], parts: Sequence[Any], shape: Sequence[int]
) -> Encoded:
    """The `Encoded` of arrays in the order of `parts_of`."""
    made: dict[tuple[str, ...], Any] = dict(
        zip((p.path for p in _listed(t, axes, shape)), parts, strict=True)
    )
    return _gathered(t, axes, made, (), tuple(int(n) for n in shape))


def _gathered(t: DType, axes: tuple[str, ...], found: dict[tuple[str, ...], Any], path: tuple[str, ...],
              shape: tuple[int, ...]) -> Encoded:  # fmt: skip
    parts: dict[str, Any] = {}
    for name, (wanted, part) in part_shapes(t, axes, shape).items():
        if isinstance(part.form, Scaled):
            inner = inner_type(part, group_sizes(t, axes, shape), axes)
            parts[name] = _gathered(inner, axes, found, (*path, name), wanted)
        else:
            parts[name] = found[(*path, name)]
    return Encoded(t, axes, found[(*path, "codes")], parts)


@torch.library.custom_op("tcc::decode", mutates_args=())  # type: ignore[untyped-decorator]
def decode(codes: Tensor, parts: list[Tensor], kind: str, axes: str) -> Tensor:
    """The values of a tensor of the scaled type `kind` over `axes`, from its codes and what its groups share.

    Each value is exact, then rounded once into f32 (f64, where f32 does not hold the parts).
    """
    t, names = dtype(kind), tuple(axes.split())
    shape = _checked([codes, *parts], t, names)
    whole = gathered(t, names, [_array(p) for p in (codes, *parts)], shape)
    return torch.from_numpy(whole.decode()).to(torch_dtype(torch, t.compute))


@decode.register_fake  # type: ignore[untyped-decorator]
def _(codes: Tensor, parts: list[Tensor], kind: str, axes: str) -> Tensor:
    t, names = dtype(kind), tuple(axes.split())
    shape = _checked([codes, *parts], t, names)
    return codes.new_empty(shape, dtype=torch_dtype(torch, t.compute))


@torch.library.custom_op("tcc::unpack", mutates_args=())  # type: ignore[untyped-decorator]
def unpack_op(stored: Tensor, kind: str) -> Tensor:
    """The elements [..., N] of 1, 2 or 4 bits in bytes [..., N * bits / 8], the first in the lowest bits."""
    t = packed_tensor(kind)
    return torch.from_numpy(unpacked(t, stored.detach().numpy()))


@unpack_op.register_fake  # type: ignore[untyped-decorator]
def _(stored: Tensor, kind: str) -> Tensor:
    t = packed_tensor(kind)
    if stored.dtype is not torch.uint8 or not stored.dim():
        raise CompileError("T0150", f"bytes are unpacked, not {stored.dtype} of {stored.dim()} dimensions",
                           helps="pass a tensor of torch.uint8")  # fmt: skip
    shape = (*stored.shape[:-1], stored.shape[-1] * per_byte(t))
    return stored.new_empty(shape, dtype=torch_dtype(torch, t.dtype))


def packed_tensor(kind: str) -> Declared:
    """A packed tensor of a type of elements; T0150 where it cannot be packed."""
    t = Declared("bytes", dtype(kind), (Const(0),), packed=True)
    check_packed(t, None, False)
    if not t.dtype.is_integer:
        raise CompileError("T0150", f"`tcc::unpack` gives integers, not {t.dtype}",
                           helps="unpack unsigned codes, and decode them")  # fmt: skip
    return t


def _array(t: Tensor) -> Any:
    if t.dtype.is_floating_point and t.dtype not in (torch.float16, torch.float32, torch.float64):
        t = t.contiguous().view(torch.uint8 if t.itemsize == 1 else torch.uint16)
    return t.detach().numpy()


# ---- layers


class QuantizedLinear(nn.Module):  # type: ignore[misc]
    """y = x W^T + bias with W stored encoded; its codes, scales and the rest are buffers.

    In a state dict the codes of fewer than 8 bits are packed without gaps. Conversions of the module's dtype leave
    the parts of the weight as they are.
    """

    codes: Tensor
    bias: nn.Parameter | None

    def __init__(
        self, weight: Encoded, bias: Tensor | None = None, activations: DType | None = None
    ) -> None:
        super().__init__()
        if weight.axes != AXES:
            raise CompileError("T0148", f"a weight over `{' '.join(weight.axes)}`",
                               helps='encode weights [out_features, in_features] over `axes="n k"`')  # fmt: skip
        self.out_features, self.in_features = weight.shape
        self.weight_type, self.activation_type = weight.dtype, activations
        self._parts = _listed(weight.dtype, AXES, weight.shape)
        for p in self._parts:
            self.register_buffer(p.name, as_tensor(torch, _part(weight, p), p.dtype))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The values of the weight, [out_features, in_features]."""
        codes, *parts = (getattr(self, p.name) for p in self._parts)
        made: Tensor = torch.ops.tcc.decode(codes, parts, self.weight_type.name, " ".join(AXES))
        return made

    @property
    def bytes_stored(self) -> int:
        """Bytes of weight and bias where every part is stored without gaps."""
        bits: int = sum(getattr(self, p.name).numel() * p.dtype.bits for p in self._parts)
        bias: int = self.bias.nbytes if self.bias is not None else 0
        return (bits + 7) // 8 + bias

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_type is not None:
            x = rounded(x, self.activation_type)
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        more = f", activations {self.activation_type}" if self.activation_type else ""
        return f"{self.in_features}, {self.out_features}, {self.weight_type}{more}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        before = {p.name: getattr(self, p.name) for p in self._parts}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype != old.dtype:
                setattr(self, name, old.to(new.device))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for p in self._packed():
            stored = getattr(self, p.name)
            packed = pack(stored.numpy(), p.dtype)
            destination[prefix + p.name] = torch.from_numpy(packed)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        from tcc.dtypes import unpack

        for p in self._packed():
            found = state_dict.get(prefix + p.name)
            mine = getattr(self, p.name)
            if (
                found is not None
                and found.ndim == 1
                and found.numel() == -(-mine.numel() * p.dtype.bits // 8)
            ):
                codes = unpack(found.numpy(), p.dtype, tuple(mine.shape))
                state_dict = {**state_dict, prefix + p.name: torch.from_numpy(codes)}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _packed(self) -> list[Part]:
        return [p for p in self._parts if p.dtype.bits < 8 and p.dtype.kind != "b"]


def pack(codes: Any, t: DType) -> Any:
    """`tcc.dtypes.pack`, in steps of 2^20 codes: it takes 8 bytes for each bit."""
    from tcc import dtypes

    flat, step = np.ascontiguousarray(codes).ravel(), 1 << 20
    parts = [dtypes.pack(flat[n : n + step], t) for n in range(0, max(1, flat.size), step)]
    return np.concatenate(parts)


def _part(weight: Encoded, part: Part) -> Any:
    found: Any = weight
    for step in part.path:
        found = found.codes if step == "codes" else found.parts[step]
    return found


def rounded(x: Tensor, t: DType) -> Tensor:
    """`x` [..., K] rounded to integers with a scale per group of every token, and back to floats.

    scale = max |x| / (2^(bits - 1) - 1), code = round(x / scale): each value moves by at most scale / 2, for i8 by
    1/254 of the largest magnitude of its group. A group of zeros stays zero.
    """
    form = scaled_form(t)
    ((_, length),) = form.groups
    most = integer_range(form.element)[1]
    groups = x.unflatten(-1, (-1, length or x.shape[-1]))
    largest = groups.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / most
    codes = torch.round(groups / scale).to(torch.int8)
    return (codes.to(x.dtype) * scale).flatten(-2)


# ---- whole models


def quantize(
    module: nn.Module, weights: Weights, activations: str | None, layers: Layers, search: bool
) -> nn.Module:
    """What `tcc.quantize` does."""
    chosen = _chooser(layers)
    inputs = None if activations is None else activation_type(activations)
    given = None if isinstance(weights, (str, DType)) else dict(weights)
    t = weight_type(weights) if isinstance(weights, (str, DType)) else None
    found = [(name, m) for name, m in module.named_modules() if type(m) is nn.Linear]
    if given is not None:
        unknown = sorted(set(given) - {name for name, _ in found})
        if unknown:
            raise CompileError("T0148", f"there is no linear layer `{unknown[0]}`",
                               helps=f"layers: {', '.join(name for name, _ in found[:8])}, …")  # fmt: skip
    made: dict[str, nn.Module] = {}
    for name, layer in found:
        if not chosen(name, layer) or (given is not None and name not in given):
            continue
        try:
            weight = given[name] if given is not None else _encoded(layer.weight, t, search)
            made[name] = _layer(layer, weight, inputs)
        except CompileError as error:
            d = error.diagnostic
            where = f"layer `{name}`: " if name else ""
            helps = (*d.helps, "or leave the layer out with `layers=…`")
            raise CompileError(d.code, where + d.message, helps=helps) from None
    for name, new in made.items():
        if not name:
            return new
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, new)
    return module


def _encoded(weight: Tensor, t: DType | None, search: bool) -> Encoded:
    assert t is not None
    if isinstance(t.form, Coded):
        encoded: Encoded = encode_coded(weight.detach().float().numpy(), t, AXES)
        return encoded
    encode = encode_closely if search else encode_scaled
    return encode(weight.detach().double().numpy(), t, AXES)


def _layer(layer: nn.Linear, weight: Encoded, activations: DType | None) -> nn.Module:
    if weight.shape != tuple(layer.weight.shape):
        raise CompileError("T0148", f"a weight of shape {list(weight.shape)}, not {list(layer.weight.shape)}",
                           helps="give [out_features, in_features]")  # fmt: skip
    if activations is not None:
        ((_, length),) = scaled_form(activations).groups
        if length and layer.in_features % length:
            raise CompileError("T0147", f"groups of {length} do not divide the {layer.in_features} input features",
                               helps="choose a divisor")  # fmt: skip
    made: nn.Module
    if isinstance(weight.dtype.form, Coded):
        if activations is not None:
            raise CompileError("T0147", f"activations of {activations} with weights of {weight.dtype}",
                               helps="coded weights are multiplied in f32: leave out `activations`")  # fmt: skip
        made = CodedLinear(weight, layer.bias)
    else:
        made = QuantizedLinear(weight, layer.bias, activations)
    made.train(layer.training)
    return made


def _chooser(layers: Layers) -> Callable[[str, nn.Linear], bool]:
    if layers is None:
        return lambda name, layer: True
    if isinstance(layers, str):
        pattern = re.compile(layers)
        return lambda name, layer: pattern.search(name) is not None
    if callable(layers):
        return layers
    names = set(layers)
    return lambda name, layer: name in names
