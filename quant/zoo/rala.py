"""RALA, linear attention whose state and output regain rank (Fan et al., Breaking the Low-Rank Dilemma, 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.zoo.vision import Depthwise, Grid, PatchEmbed


def rotation(grid: Grid, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (L, size / 2), of the angles that rotate the pairs (i, i + size/2) of a head's features.

    The first half of the pairs turns with the row of a token, the second half with its column; size is a multiple of 4.
    """
    rate = 10000.0 ** -torch.linspace(0, 1, size // 4)
    rows = torch.arange(grid[0]).repeat_interleave(grid[1]).unsqueeze(-1) * rate
    columns = torch.arange(grid[1]).repeat(grid[0]).unsqueeze(-1) * rate
    angle = torch.cat([rows, columns], dim=-1)
    return angle.cos(), angle.sin()


class RankAugmentedLinearAttention(nn.Module):
    """(B, L, d_model) -> same, all tokens reading one common state.

    Per head, with q and k after elu + 1 and r( ) the rotation: keys get weights softmax(mean(q) . k / sqrt(size)) * L,
    then y_i = r(q_i) . (sum of r(k_j) v_j^T) / (q_i . sum of k_j + L * eps); last, proj((y + lepe(v)) * o).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, d_model: int, grid: Grid, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads, self.size, self.eps = heads, d_model // heads, eps
        self.tokens = grid[0] * grid[1]
        self.qkvo = nn.Linear(d_model, 4 * d_model)
        self.lepe = Depthwise(d_model, 5, grid)
        self.proj = nn.Linear(d_model, d_model)
        cos, sin = rotation(grid, self.size)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, o = self.qkvo(x).chunk(4, dim=-1)
        q, k, values = (part.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for part in (q, k, v))
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        scores = k @ q.transpose(2, 3).mean(-1, keepdim=True) * self.size**-0.5
        k = k * (scores.transpose(2, 3).softmax(-1).transpose(2, 3) * self.tokens)
        norm = q @ k.transpose(2, 3).mean(-1, keepdim=True) + self.eps
        state = self._rotate(k).transpose(2, 3) @ values * (1 / self.tokens)
        y = (self._rotate(q) @ state / norm).transpose(1, 2).flatten(2)
        out: Tensor = self.proj((y + self.lepe(v)) * o)
        return out

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=-1)


class ConvFeedForward(nn.Module):
    """(B, L, d_model) -> same: a feed-forward layer with a residual depthwise convolution of its hidden values."""

    def __init__(self, d_model: int, hidden: int, grid: Grid) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, hidden)
        self.dwconv = Depthwise(hidden, 3, grid)
        self.fc2 = nn.Linear(hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.fc1(x))
        out: Tensor = self.fc2(x + self.dwconv(x))
        return out


class RALABlock(nn.Module):
    """(B, L, d_model) -> same: a convolution for position, the attention and the feed-forward layer, residual."""

    def __init__(self, d_model: int, grid: Grid, heads: int, mlp_ratio: int = 3) -> None:
        super().__init__()
        self.pos = Depthwise(d_model, 3, grid)
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.attn = RankAugmentedLinearAttention(d_model, grid, heads)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.ffn = ConvFeedForward(d_model, mlp_ratio * d_model, grid)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos(x)
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class RALA(nn.Module):
    """Images (B, channels, patch * H, patch * W) -> tokens (B, L, d_model) of one stage; grid is (H, W)."""

    def __init__(self, channels: int, grid: Grid, patch: int, d_model: int, n_layers: int, heads: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, d_model, patch)
        self.blocks = nn.Sequential(*(RALABlock(d_model, grid, heads) for _ in range(n_layers)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.patch_embed(x))
        return out
