"""LightNet in float (Qin et al., You Only Scan Once, 2024), with the parameter names of flash-linear-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import LinearRecurrence, RunningLogSumExp
from isobit.quant.zoo.blocks import GatedRMSNorm, SwiGLU, TransformerBlock


class LightNetAttention(nn.Module):
    """The additive linear recurrence (eq. 8 and 9), (B, T, d_model) -> (B, T, d_model).

    With z_t = log of the sum of e^k_s over s <= t: keys e^(k_t - z_t) and decays e^(z_{t-1} - z_t), which are
    1 - e^(k_t - z_t), so that every key's past values are averaged with weights e^k_s.
    """

    def __init__(self, d_model: int, heads: int, gate_rank: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (d_model // heads) ** -0.5
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.g_proj = nn.Sequential(
            nn.Linear(d_model, gate_rank, bias=False), nn.Linear(gate_rank, d_model, bias=False)
        )
        self.running_logsumexp, self.recurrence = RunningLogSumExp(), LinearRecurrence()
        self.g_norm = GatedRMSNorm(d_model)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        k = self.k_proj(x)
        share = torch.exp(k - self.running_logsumexp(k))
        parts = (functional.silu(self.q_proj(x)) * self.scale, share, self.v_proj(x), 1 - share)
        q, k, v, decay = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        o = self.recurrence(q, k, v, decay).flatten(-2)
        out: Tensor = self.o_proj(self.g_norm(o, self.g_proj(x)))
        return out


def lightnet(d_model: int, heads: int, layers: int, d_hidden: int, gate_rank: int) -> nn.Module:
    """`layers` blocks of attention and SwiGLU, (B, T, d_model) -> (B, T, d_model)."""
    blocks = (
        TransformerBlock(d_model, LightNetAttention(d_model, heads, gate_rank), SwiGLU(d_model, d_hidden))
        for _ in range(layers)
    )
    return nn.Sequential(*blocks)
