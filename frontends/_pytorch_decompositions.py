"""Fused operators of PyTorch's own, written out in its plain ones."""

from __future__ import annotations

from typing import Any

Tensor = Any  # torch.Tensor


def own_decompositions() -> dict[Any, Any]:
    """Decompositions for what PyTorch fuses in evaluation mode behind the user's back."""
    import torch

    return {
        torch.ops.aten._transformer_encoder_layer_fwd.default: _encoder_layer,
        torch.ops.aten._native_multi_head_attention.default: _multi_head_attention,
    }


def _encoder_layer(
    src: Tensor, embed_dim: int, num_heads: int, qkv_weight: Tensor, qkv_bias: Tensor, proj_weight: Tensor,
    proj_bias: Tensor, use_gelu: bool, norm_first: bool, eps: float, norm_weight_1: Tensor, norm_bias_1: Tensor,
    norm_weight_2: Tensor, norm_bias_2: Tensor, ffn_weight_1: Tensor, ffn_bias_1: Tensor, ffn_weight_2: Tensor,
    ffn_bias_2: Tensor, mask: Tensor | None = None, mask_type: int | None = None,
) -> Tensor:  # fmt: skip
    """`nn.TransformerEncoderLayer`: attention and two linear layers, each with its norm before or after."""
    import torch.nn.functional as F

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), weight, bias, eps)

    def attention(x: Tensor) -> Tensor:
        joined = _attention(x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, mask, mask_type)[0]
        return F.linear(joined, proj_weight, proj_bias)

    def network(x: Tensor) -> Tensor:
        inner = F.linear(x, ffn_weight_1, ffn_bias_1)
        return F.linear(F.gelu(inner) if use_gelu else F.relu(inner), ffn_weight_2, ffn_bias_2)

    if norm_first:
        x = src + attention(norm(src, norm_weight_1, norm_bias_1))
        return x + network(norm(x, norm_weight_2, norm_bias_2))
    x = norm(src + attention(src), norm_weight_1, norm_bias_1)
    return norm(x + network(x), norm_weight_2, norm_bias_2)


def _multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_head: int, qkv_weight: Tensor,
    qkv_bias: Tensor, proj_weight: Tensor, proj_bias: Tensor, mask: Tensor | None = None,
    need_weights: bool = True, average_attn_weights: bool = True, mask_type: int | None = None,
) -> Any:  # fmt: skip
    import torch
    import torch.nn.functional as F

    heads, weights = _attention(
        query, key, value, embed_dim, num_head, qkv_weight, qkv_bias, mask, mask_type
    )
    if not need_weights:
        weights = torch.empty(0, dtype=query.dtype)
    elif average_attn_weights:
        weights = weights.mean(1)
    return F.linear(heads, proj_weight, proj_bias), weights


def _attention(
    query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, weight: Tensor, bias: Tensor,
    mask: Tensor | None, mask_type: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Joined heads, and the weights of each. A mask is true, or added, where keys are left out.

    Mask types: 0 is [queries, keys], 1 is [batch, keys], 2 is both, [batch, heads, queries, keys].
    """
    import torch.nn.functional as F

    batch, length = query.shape[0], query.shape[1]

    def project(x: Tensor, part: int) -> Tensor:
        rows = slice(part * width, (part + 1) * width)
        return (
            F.linear(x, weight[rows], bias[rows])
            .view(batch, -1, heads, width // heads)
            .transpose(1, 2)
        )

    q, k, v = (project(x, n) for n, x in enumerate((query, key, value)))
    scores = (q * (width // heads) ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        shaped = mask[:, None, None, :] if mask_type == 1 else mask
        left_out = float("-inf")
        scores = (
            scores.masked_fill(shaped, left_out)
            if mask.dtype.is_floating_point is False
            else scores + shaped
        )
    weights = scores.softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, length, width), weights


__all__ = ["own_decompositions"]
