"""Hedgehog in float (Zhang et al., The Hedgehog & the Porcupine, 2024): linear attention that mimics softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import LinearRecurrence
from isobit.quant.zoo.blocks import BlockDiagonalLinear, SwiGLU, TransformerBlock, with_ones


class HedgehogFeatureMap(nn.Module):
    """(B, T, d_model) -> (B, T, heads, 2 * size): softmax(W x) and softmax(-W x) of every head (eq. 6, table 3).

    layer.weight is W, (heads, size, size), from the identity.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layer = BlockDiagonalLinear(d_model, heads, bias=True)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(d_model // heads))

    def forward(self, x: Tensor) -> Tensor:
        mapped = self.layer(x).unflatten(-1, (self.heads, -1))
        return torch.cat([mapped.softmax(-1), (-mapped).softmax(-1)], dim=-1)


class HedgehogAttention(nn.Module):
    """o = S^T phi(q) / z . phi(q), with sums S of phi(k) v^T and z of phi(k), (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, d_model // heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.feature_map_q = HedgehogFeatureMap(d_model, heads)
        self.feature_map_k = HedgehogFeatureMap(d_model, heads)
        self.recurrence = LinearRecurrence()
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        v = functional.linear(x, *with_ones(self.v_proj, self.heads)).unflatten(-1, (self.heads, -1))
        q, k = self.feature_map_q(self.q_proj(x)), self.feature_map_k(self.k_proj(x))
        total, weight = self.recurrence(q, k, v).split([self.size, 1], dim=-1)
        out: Tensor = self.o_proj((total / weight).flatten(-2))
        return out


def hedgehog(d_model: int, heads: int, layers: int, d_hidden: int) -> nn.Module:
    """`layers` blocks of attention and SwiGLU, (B, T, d_model) -> (B, T, d_model)."""
    blocks = (
        TransformerBlock(d_model, HedgehogAttention(d_model, heads), SwiGLU(d_model, d_hidden)) for _ in range(layers)
    )
    return nn.Sequential(*blocks)
