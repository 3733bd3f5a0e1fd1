"""VSSD, Vision Mamba with non-causal state space duality (Shi et al., 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.zoo.blocks import log_uniform_step_bias
from isobit.quant.zoo.vision import Depthwise, Grid, Mlp, PatchEmbed

DECAY_RATE_RANGE = (1.0, 16.0)
"""The decay rates exp(A_log) at initialisation, as in Mamba-2."""


class NonCausalSSD(nn.Module):
    """(B, L, d_model) -> same: all tokens read one common state.

    H = sum over l of w_l * B_l x_l^T, with w_l = dt_l * exp(A_log) per head; y_l = H^T C_l + D x_l; then
    out_proj(norm(y) * z).  Parameters are named as the authors' code names them, with conv2d.weight (C, 1, k, k).
    """

    def __init__(
        self, d_model: int, grid: Grid, heads: int, d_state: int = 64, d_conv: int = 3, expand: int = 2
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.heads = expand * d_model, d_state, heads
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + 2 * d_state + heads, bias=False)
        self.conv2d = Depthwise(self.d_inner + 2 * d_state, d_conv, grid)
        self.dt_bias = nn.Parameter(log_uniform_step_bias(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*DECAY_RATE_RANGE).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.LayerNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        z, xbc, dt = self.in_proj(hidden).split([self.d_inner, self.d_inner + 2 * self.d_state, self.heads], dim=-1)
        x, b, c = functional.silu(self.conv2d(xbc)).split([self.d_inner, self.d_state, self.d_state], dim=-1)
        weight = functional.softplus(dt + self.dt_bias) * self.A_log.exp()
        per_head = x.unflatten(-1, (self.heads, -1))
        state = b.transpose(1, 2) @ (per_head * weight.unsqueeze(-1)).flatten(2)
        y = c @ state + (per_head * self.D.unsqueeze(-1)).flatten(2)
        out: Tensor = self.out_proj(self.norm(y) * z)
        return out


class VSSDBlock(nn.Module):
    """(B, L, d_model) -> same: depthwise convolutions for position, the mixer and the feed-forward layer, residual."""

    def __init__(self, d_model: int, grid: Grid, heads: int, d_state: int, d_conv: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.cpe1 = Depthwise(d_model, 3, grid)
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = NonCausalSSD(d_model, grid, heads, d_state, d_conv)
        self.cpe2 = Depthwise(d_model, 3, grid)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = Mlp(d_model, mlp_ratio * d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.cpe1(x)
        x = x + self.attn(self.norm1(x))
        x = x + self.cpe2(x)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VSSD(nn.Module):
    """Images (B, channels, patch * H, patch * W) -> tokens (B, L, d_model) of one stage; grid is (H, W)."""

    def __init__(
        self,
        channels: int,
        grid: Grid,
        patch: int,
        d_model: int,
        n_layers: int,
        heads: int,
        d_state: int = 64,
        d_conv: int = 3,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, d_model, patch)
        self.blocks = nn.Sequential(*(VSSDBlock(d_model, grid, heads, d_state, d_conv) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.blocks(self.patch_embed(x)))
        return out
