"""VMamba, a selective scan of an image along four paths (Liu et al., VMamba: Visual State Space Model, 2024)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.zoo.selective_scan import SelectiveScan
from isobit.quant.zoo.vision import Depthwise, Grid, Mlp, PatchEmbed


def transposed(tokens: Tensor, grid: Grid) -> Tensor:
    """The tokens (B, L, C) of a grid (H, W), row by row, column by column instead."""
    image: Tensor = tokens.unflatten(1, grid)
    return image.transpose(1, 2).flatten(1, 2)


class SS2D(nn.Module):
    """(B, L, d_model) -> same: the sum of the scans along rows, columns, and both backwards.

    Without the gating branch, as the released models are.
    """

    def __init__(self, d_model: int, grid: Grid, d_state: int = 16, d_conv: int = 3, expand: int = 2) -> None:
        super().__init__()
        self.grid = grid
        d_inner = expand * d_model
        self.in_proj = nn.Linear(d_model, d_inner, bias=False)
        self.conv2d = Depthwise(d_inner, d_conv, grid)
        self.scans = nn.ModuleList(SelectiveScan(d_inner, d_state) for _ in range(4))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        rows = functional.silu(self.conv2d(self.in_proj(hidden)))
        columns = transposed(rows, self.grid)
        along_rows = self.scans[0](rows) + self.scans[2](rows.flip(1)).flip(1)
        along_columns = self.scans[1](columns) + self.scans[3](columns.flip(1)).flip(1)
        y = along_rows + transposed(along_columns, (self.grid[1], self.grid[0]))
        out: Tensor = self.out_proj(self.out_norm(y))
        return out


class VSSBlock(nn.Module):
    """(B, L, d_model) -> same: SS2D and the feed-forward layer, each on a norm and residual."""

    def __init__(self, d_model: int, grid: Grid, d_state: int, d_conv: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.op = SS2D(d_model, grid, d_state, d_conv)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.mlp = Mlp(d_model, mlp_ratio * d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.op(self.norm(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VMamba(nn.Module):
    """Images (B, channels, patch * H, patch * W) -> tokens (B, L, d_model) of one stage; grid is (H, W)."""

    def __init__(
        self, channels: int, grid: Grid, patch: int, d_model: int, n_layers: int, d_state: int = 16, d_conv: int = 3
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, d_model, patch)
        self.patch_norm = nn.LayerNorm(d_model)
        self.layers = nn.Sequential(*(VSSBlock(d_model, grid, d_state, d_conv) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layers(self.patch_norm(self.patch_embed(x))))
        return out
