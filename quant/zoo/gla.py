"""Gated linear attention in float (Yang et al., GLA, 2023), with the parameter names of flash-linear-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import LinearRecurrence
from isobit.quant.zoo.blocks import GatedRMSNorm, SwiGLU, TransformerBlock

GATE_LOGIT_NORMALIZER = 16
"""A decay is sigmoid(gate)^(1/16): near 1 for any gate (section 4.4)."""


class GatedLinearAttention(nn.Module):
    """Linear attention with a decay per key and step, of a low-rank gate (eq. 3 and 4, section 4.4).

    (B, T, d_model) -> (B, T, d_model). Keys of d_key / heads, values of d_model / heads.
    """

    def __init__(self, d_model: int, heads: int, d_key: int, gate_rank: int = 16) -> None:
        super().__init__()
        self.heads, self.scale = heads, (d_key // heads) ** -0.5
        self.q_proj = nn.Linear(d_model, d_key, bias=False)
        self.k_proj = nn.Linear(d_model, d_key, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.g_proj = nn.Linear(d_model, d_model, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(d_model, gate_rank, bias=False), nn.Linear(gate_rank, d_key))
        self.recurrence = LinearRecurrence()
        self.g_norm_swish_gate = GatedRMSNorm(d_model // heads)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        decay = torch.exp(functional.logsigmoid(self.gk_proj(x)) * (1 / GATE_LOGIT_NORMALIZER))
        parts = (self.q_proj(x) * self.scale, self.k_proj(x), self.v_proj(x), self.g_proj(x), decay)
        q, k, v, g, decay = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        o = self.recurrence(q, k, v, decay)
        out: Tensor = self.o_proj(self.g_norm_swish_gate(o, g).flatten(-2))
        return out


def gla(d_model: int, heads: int, d_key: int, layers: int, d_hidden: int, gate_rank: int = 16) -> nn.Module:
    """`layers` blocks of gated linear attention and SwiGLU, (B, T, d_model) -> (B, T, d_model)."""
    blocks = (
        TransformerBlock(d_model, GatedLinearAttention(d_model, heads, d_key, gate_rank), SwiGLU(d_model, d_hidden))
        for _ in range(layers)
    )
    return nn.Sequential(*blocks)
