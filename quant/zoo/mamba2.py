"""Mamba-2 in float (Dao and Gu, Transformers are SSMs, 2024), with the parameter names of mamba_ssm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import CausalConv1d, LinearRecurrence
from isobit.quant.zoo.blocks import log_uniform_step_bias


class GroupedGatedRMSNorm(nn.Module):
    """RMSNorm(x * silu(z)) over each of `groups` equal parts of (B, T, channels)."""

    def __init__(self, channels: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        gated = (x * functional.silu(z)).unflatten(-1, (self.groups, -1))
        return functional.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2) * self.weight


class Mamba2(nn.Module):
    """(B, T, d_model) -> (B, T, d_model), causal, without norm and residual.

    d_inner = expand * d_model channels in heads of headdim, with a scalar decay each; ngroups groups of B and C.
    conv1d.weight is (channels, d_conv), where mamba_ssm has (channels, 1, d_conv).
    """

    def __init__(
        self, d_model: int, d_state: int = 128, d_conv: int = 4, expand: int = 2, headdim: int = 64, ngroups: int = 1
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.ngroups = expand * d_model, d_state, ngroups
        self.nheads = self.d_inner // headdim
        self.d_conv_channels = self.d_inner + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + self.d_conv_channels + self.nheads, bias=False)
        self.conv1d = CausalConv1d(self.d_conv_channels, d_conv)
        self.dt_bias = nn.Parameter(log_uniform_step_bias(self.nheads))
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.recurrence = LinearRecurrence()
        self.norm = GroupedGatedRMSNorm(self.d_inner, ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        z, x_b_c, dt = self.in_proj(hidden).split([self.d_inner, self.d_conv_channels, self.nheads], dim=-1)
        state = self.ngroups * self.d_state
        x, b, c = functional.silu(self.conv1d(x_b_c)).split([self.d_inner, state, state], dim=-1)
        dt = functional.softplus(dt + self.dt_bias)
        decay = torch.exp(dt * -torch.exp(self.A_log))
        x, b, c = (part.unflatten(-1, (n, -1)) for part, n in ((x, self.nheads), (b, self.ngroups), (c, self.ngroups)))
        y = self.recurrence(c, b, x * dt.unsqueeze(-1), decay) + self.D.unsqueeze(-1) * x
        out: Tensor = self.out_proj(self.norm(y.flatten(-2), z))
        return out
