"""DeltaNet in float (Yang et al., Parallelizing the Delta Rule, 2024), named as in flash-linear-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn import DeltaRecurrence, L2Norm
from isobit.quant.zoo.blocks import ShortConvolution, SwiGLU, TransformerBlock


class DeltaNet(nn.Module):
    """The delta rule on unit keys, after short convolutions (eq. 5), (B, T, d_model) -> (B, T, d_model).

    Convolution weights are (channels, kernel), where flash-linear-attention has (channels, 1, kernel).
    """

    def __init__(self, d_model: int, heads: int, kernel: int = 4) -> None:
        super().__init__()
        size = d_model // heads
        self.heads, self.size, self.scale = heads, size, size**-0.5
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.b_proj = nn.Linear(d_model, heads, bias=False)
        self.q_conv1d = ShortConvolution(d_model, kernel)
        self.k_conv1d = ShortConvolution(d_model, kernel)
        self.v_conv1d = ShortConvolution(d_model, kernel)
        self.l2norm, self.recurrence = L2Norm(), DeltaRecurrence()
        self.o_norm = nn.RMSNorm(size, eps=1e-5)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.q_conv1d(self.q_proj(x)), self.k_conv1d(self.k_proj(x)), self.v_conv1d(self.v_proj(x)))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        o = self.recurrence(self.l2norm(q) * self.scale, self.l2norm(k), v, torch.sigmoid(self.b_proj(x)))
        out: Tensor = self.o_proj(self.o_norm(o).flatten(-2))
        return out


def deltanet(d_model: int, heads: int, layers: int, d_hidden: int, kernel: int = 4) -> nn.Module:
    """`layers` blocks of the delta rule and SwiGLU, (B, T, d_model) -> (B, T, d_model)."""
    blocks = (
        TransformerBlock(d_model, DeltaNet(d_model, heads, kernel), SwiGLU(d_model, d_hidden)) for _ in range(layers)
    )
    return nn.Sequential(*blocks)
