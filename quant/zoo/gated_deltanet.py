"""Gated DeltaNet in float (Yang et al., Gated Delta Networks, 2024), named as in flash-linear-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import DeltaRecurrence, L2Norm
from isobit.quant.zoo.blocks import GatedRMSNorm, ShortConvolution, SwiGLU, TransformerBlock, log_uniform_step_bias


class GatedDeltaNet(nn.Module):
    """The delta rule with a decay per head and step (eq. 10), (B, T, d_model) -> (B, T, d_model).

    heads queries and keys, each for value_heads // heads values.  Keys of head_dim, values of expand_v * head_dim.
    Convolution weights are (channels, kernel), where flash-linear-attention has (channels, 1, kernel).
    """

    def __init__(
        self, d_model: int, heads: int, head_dim: int, value_heads: int, expand_v: int = 2, kernel: int = 4
    ) -> None:
        super().__init__()
        self.heads, self.value_heads, self.scale = heads, value_heads, head_dim**-0.5
        d_key, d_value = heads * head_dim, value_heads * expand_v * head_dim
        self.q_proj = nn.Linear(d_model, d_key, bias=False)
        self.k_proj = nn.Linear(d_model, d_key, bias=False)
        self.v_proj = nn.Linear(d_model, d_value, bias=False)
        self.a_proj = nn.Linear(d_model, value_heads, bias=False)
        self.b_proj = nn.Linear(d_model, value_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(value_heads).uniform_(0, 16).log())
        self.dt_bias = nn.Parameter(log_uniform_step_bias(value_heads))
        self.q_conv1d = ShortConvolution(d_key, kernel)
        self.k_conv1d = ShortConvolution(d_key, kernel)
        self.v_conv1d = ShortConvolution(d_value, kernel)
        self.l2norm, self.recurrence = L2Norm(), DeltaRecurrence()
        self.g_proj = nn.Linear(d_model, d_value, bias=False)
        self.o_norm = GatedRMSNorm(expand_v * head_dim)
        self.o_proj = nn.Linear(d_value, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_conv1d(self.q_proj(x)).unflatten(-1, (self.heads, -1))
        k = self.k_conv1d(self.k_proj(x)).unflatten(-1, (self.heads, -1))
        v = self.v_conv1d(self.v_proj(x)).unflatten(-1, (self.value_heads, -1))
        decay = torch.exp(functional.softplus(self.a_proj(x) + self.dt_bias) * -torch.exp(self.A_log))
        beta = torch.sigmoid(self.b_proj(x))
        o = self.recurrence(self.l2norm(q) * self.scale, self.l2norm(k), v, beta, decay)
        gate = self.g_proj(x).unflatten(-1, (self.value_heads, -1))
        out: Tensor = self.o_proj(self.o_norm(o, gate).flatten(-2))
        return out


def gated_deltanet(
    d_model: int, heads: int, head_dim: int, value_heads: int, layers: int, d_hidden: int, kernel: int = 4
) -> nn.Module:
    """`layers` blocks of the gated delta rule and SwiGLU, (B, T, d_model) -> (B, T, d_model)."""
    blocks = (
        TransformerBlock(
            d_model,
            GatedDeltaNet(d_model, heads, head_dim, value_heads, kernel=kernel),
            SwiGLU(d_model, d_hidden),
        )
        for _ in range(layers)
    )
    return nn.Sequential(*blocks)
