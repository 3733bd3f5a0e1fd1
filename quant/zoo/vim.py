"""Vision Mamba, a selective scan of the patches in both directions (Zhu et al., 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import CausalConv1d
from isobit.quant.zoo.mamba import ResidualBlock
from isobit.quant.zoo.selective_scan import SelectiveScan
from isobit.quant.zoo.vision import Grid, PatchEmbed


class BidirectionalMamba(nn.Module):
    """(B, L, d_model) -> same (algorithm 1): convolution and scan from the first token to the last and back."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = CausalConv1d(self.d_inner, d_conv)
        self.conv1d_b = CausalConv1d(self.d_inner, d_conv)
        self.scan = SelectiveScan(self.d_inner, d_state)
        self.scan_b = SelectiveScan(self.d_inner, d_state)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        x, z = self.in_proj(hidden).split([self.d_inner, self.d_inner], dim=-1)
        forward = self.scan(functional.silu(self.conv1d(x)))
        backward = self.scan_b(functional.silu(self.conv1d_b(x.flip(1)))).flip(1)
        out: Tensor = self.out_proj((forward + backward) * functional.silu(z))
        return out


class VisionMamba(nn.Module):
    """Images (B, channels, patch * H, patch * W) -> tokens (B, L, d_model), without a class token; grid is (H, W)."""

    def __init__(
        self, channels: int, grid: Grid, patch: int, d_model: int, n_layers: int, d_state: int = 16, d_conv: int = 4
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, d_model, patch)
        nn.init.kaiming_normal_(self.patch_embed.proj.weight, nonlinearity="linear")
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(grid[0] * grid[1], d_model), std=0.02))
        self.layers = nn.Sequential(
            *(ResidualBlock(d_model, BidirectionalMamba(d_model, d_state, d_conv)) for _ in range(n_layers))
        )
        self.norm_f = nn.RMSNorm(d_model, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm_f(self.layers(self.patch_embed(x) + self.pos_embed))
        return out
