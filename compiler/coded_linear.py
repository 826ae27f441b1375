"""Linear layers whose weights are entropy-coded, bit for bit: the operator `tcc::expand`, and the layer around it.

    weight[n, k] = the bf16 with the sign and mantissa in codes[n / 16, k, n % 16] and the next exponent of its run

Compiled by tcc, the weight is decoded block by block next to the product; eagerly, PyTorch decodes it and multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype_coded import PARTS, coded_shape
from tcc.ir.dtype_scaled import Encoded
from tcc.ir.dtype_text import dtype
from tcc.stored import as_tensor, torch_dtype

AXES = ("n", "k")  # of a weight: output features, input features


@torch.library.custom_op("tcc::expand", mutates_args=())  # type: ignore[untyped-decorator]
def expand(codes: Tensor, parts: list[Tensor], kind: str, axes: str) -> Tensor:
    """The values of a tensor of the coded type `kind` over `axes`, exactly; `parts` are words, starts and table."""
    t, names = dtype(kind), tuple(axes.split())
    if len(parts) != len(PARTS):
        raise CompileError("T0148", f"{t} has {len(PARTS)} parts beside its codes, not {len(parts)}",
                           helps=f"pass {', '.join(PARTS)}")  # fmt: skip
    found = dict(zip(PARTS, (p.detach().numpy() for p in parts)))
    whole = Encoded(t, names, codes.detach().numpy(), found)
    return torch.from_numpy(whole.decode()).to(torch_dtype(torch, t.compute))


@expand.register_fake  # type: ignore[untyped-decorator]
def _(codes: Tensor, parts: list[Tensor], kind: str, axes: str) -> Tensor:
    t = dtype(kind)
    shape = coded_shape(codes, t, tuple(axes.split()))
    return codes.new_empty(shape, dtype=torch_dtype(torch, t.compute))


class CodedLinear(nn.Module):  # type: ignore[misc]
    """y = x W^T + bias with every bit of W in fewer: its sign and mantissa bits, words, starts and table are buffers.

    Conversions of the module's dtype leave them as they are.
    """

    codes: Tensor
    words: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Encoded, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.axes != AXES:
            raise CompileError("T0148", f"a weight over `{' '.join(weight.axes)}`",
                               helps='encode weights [out_features, in_features] over `axes="n k"`')  # fmt: skip
        self.out_features, self.in_features = weight.shape
        self.weight_type = weight.dtype
        for name in ("codes", *PARTS):
            part: Any = weight.codes if name == "codes" else weight.parts[name]
            self.register_buffer(name, as_tensor(torch, part, dtype(str(part.dtype).replace("uint", "u"))))  # fmt: skip
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The values of the weight, [out_features, in_features]."""
        parts = [getattr(self, name) for name in PARTS]
        made: Tensor = torch.ops.tcc.expand(
            self.codes, parts, self.weight_type.name, " ".join(AXES)
        )
        return made

    @property
    def bytes_stored(self) -> int:
        """Bytes of weight and bias."""
        stored: int = sum(getattr(self, name).nbytes for name in ("codes", *PARTS))
        return stored + (self.bias.nbytes if self.bias is not None else 0)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.weight_type}, bias={self.bias is not None}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        found = state_dict.get(prefix + "words")
        if found is not None and found.dtype == self.words.dtype and found.ndim == 1:
            self.words = torch.empty_like(found)  # other weights take another number of words
        super()._load_from_state_dict(state_dict, prefix, *rest)
