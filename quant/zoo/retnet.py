"""RetNet in float (Sun et al., Retentive Network, 2023), with the parameter names of flash-linear-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn import LinearRecurrence, Rotary
from isobit.quant.zoo.blocks import GatedRMSNorm, SwiGLU, TransformerBlock


class MultiScaleRetention(nn.Module):
    """Linear attention with rotary positions and a constant decay per head (eq. 6 to 8).

    (B, T, d_model) -> (B, T, d_model). Keys of d_model / heads, values of twice that; decays 1 - 2^(-5 - head).
    Projections are initialised as in torchscale: Xavier-uniform, gain 2^-2.5, and 2^-1 at the output.
    """

    decay: Tensor

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (d_model // heads) ** -0.5
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, 2 * d_model, bias=False)
        self.g_proj = nn.Linear(d_model, 2 * d_model, bias=False)
        self.o_proj = nn.Linear(2 * d_model, d_model, bias=False)
        self.rotary, self.recurrence = Rotary(d_model // heads), LinearRecurrence()
        self.g_norm_swish_gate = GatedRMSNorm(2 * d_model // heads)
        self.register_buffer("decay", 1 - 2 ** (-5.0 - torch.arange(heads)), persistent=False)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.o_proj.weight, gain=2**-1)

    def forward(self, x: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        q, k, v, g = (projection(x).unflatten(-1, (self.heads, -1)) for projection in projections)
        o = self.recurrence(self.rotary(q) * self.scale, self.rotary(k), v, self.decay)
        out: Tensor = self.o_proj(self.g_norm_swish_gate(o, g).flatten(-2))
        return out


def retnet(d_model: int, heads: int, layers: int, d_hidden: int) -> nn.Module:
    """`layers` blocks of retention and SwiGLU, (B, T, d_model) -> (B, T, d_model)."""
    blocks = (
        TransformerBlock(d_model, MultiScaleRetention(d_model, heads), SwiGLU(d_model, d_hidden)) for _ in range(layers)
    )
    return nn.Sequential(*blocks)
