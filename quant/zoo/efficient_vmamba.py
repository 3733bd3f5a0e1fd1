"""EfficientVMamba, a scan of every second row and column along each path (Pei et al., Atrous Selective Scan, 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.zoo.selective_scan import SelectiveScan
from isobit.quant.zoo.vision import Grid, Mlp, PatchEmbed, to_image, to_tokens


class AtrousSS2D(nn.Module):
    """(B, L, d_model) -> same: each of four scans takes the tokens with one parity of row and of column.

    Those with even rows go row by row, the others column by column.  An odd height or width gets one more line of
    zeros, which the convolution makes room for and `inside` writes, as the authors pad it.
    """

    inside: Tensor

    def __init__(self, d_model: int, grid: Grid, d_state: int = 16, d_conv: int = 3, expand: int = 2) -> None:
        super().__init__()
        self.grid, self.d_inner = grid, expand * d_model
        self.even = (grid[0] + grid[0] % 2, grid[1] + grid[1] % 2)
        self.margin = 0 if self.even == grid else 1
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv2d = nn.Conv2d(
            self.d_inner, self.d_inner, d_conv, padding=d_conv // 2 + self.margin, groups=self.d_inner
        )
        inside = torch.zeros(self.even)
        inside[: grid[0], : grid[1]] = 1
        self.register_buffer("inside", inside, persistent=False)
        self.scans = nn.ModuleList(SelectiveScan(self.d_inner, d_state) for _ in range(4))
        self.out_norm = nn.LayerNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        x, z = self.in_proj(hidden).split([self.d_inner, self.d_inner], dim=-1)
        x = functional.silu(self._convolve(to_image(x, self.grid)))
        if self.margin:
            x = x * self.inside
        y = self._merge([self._scan(x, 0, 0), self._scan(x, 1, 0), self._scan(x, 0, 1), self._scan(x, 1, 1)])
        y = y[:, : self.grid[0], : self.grid[1]].flatten(1, 2)
        out: Tensor = self.out_proj(self.out_norm(y) * functional.silu(z))
        return out

    def _convolve(self, x: Tensor) -> Tensor:
        """(B, d_inner, H, W) -> (B, d_inner, *even)."""
        y: Tensor = self.conv2d(x)
        return y[:, :, self.margin : self.margin + self.even[0], self.margin : self.margin + self.even[1]]

    def _scan(self, x: Tensor, row: int, column: int) -> Tensor:
        """The scan of rows 2i + row and columns 2j + column of (B, d_inner, *even): (B, rows, columns, d_inner)."""
        half, scan = (self.even[0] // 2, self.even[1] // 2), self.scans[row + 2 * column]
        part = x[:, :, row::2, column::2]
        if not row:
            along_rows: Tensor = scan(to_tokens(part)).unflatten(1, half)
            return along_rows
        along_columns: Tensor = scan(to_tokens(part.transpose(2, 3))).unflatten(1, (half[1], half[0]))
        return along_columns.transpose(1, 2)

    @staticmethod
    def _merge(parts: list[Tensor]) -> Tensor:
        """The parts with (row, column) parity (0, 0), (1, 0), (0, 1), (1, 1), interleaved to (B, *even, d_inner)."""
        even, odd = (
            torch.cat([parts[row].unsqueeze(3), parts[row + 2].unsqueeze(3)], dim=3).flatten(2, 3) for row in (0, 1)
        )
        return torch.cat([even.unsqueeze(2), odd.unsqueeze(2)], dim=2).flatten(1, 2)


class ChannelAttention(nn.Module):
    """(B, L, d_model) -> same: each channel times a gate that is computed from the mean over all tokens."""

    def __init__(self, d_model: int, reduction: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.global_reduce = nn.Linear(d_model, d_model // reduction)
        self.channel_select = nn.Linear(d_model // reduction, d_model)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.norm(x).transpose(1, 2).mean(-1)
        gate = self.channel_select(functional.gelu(self.global_reduce(mean))).sigmoid()
        out: Tensor = x * gate.unsqueeze(1)
        return out


class EVSSBlock(nn.Module):
    """(B, L, d_model) -> same: the scan and a local convolution side by side, then the feed-forward layer, residual."""

    def __init__(self, d_model: int, grid: Grid, d_state: int, d_conv: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.op = AtrousSS2D(d_model, grid, d_state, d_conv)
        self.conv_branch = nn.Sequential(
            nn.Conv2d(d_model, d_model, 3, padding=1, groups=d_model),
            nn.BatchNorm2d(d_model),
            nn.GELU(),
            nn.Conv2d(d_model, d_model, 1),
        )
        self.se = ChannelAttention(d_model)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.mlp = Mlp(d_model, mlp_ratio * d_model)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        local = to_tokens(self.conv_branch(to_image(normed, self.grid)))
        x = x + self.se(self.op(normed)) + self.se(local)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class EfficientVMamba(nn.Module):
    """Images (B, channels, patch * H, patch * W) -> tokens (B, L, d_model) of one stage; grid is (H, W)."""

    def __init__(
        self, channels: int, grid: Grid, patch: int, d_model: int, n_layers: int, d_state: int = 16, d_conv: int = 3
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, d_model, patch)
        self.layers = nn.Sequential(*(EVSSBlock(d_model, grid, d_state, d_conv) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layers(self.patch_embed(x)))
        return out
