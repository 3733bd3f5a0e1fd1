"""The vision transformer that I-ViT takes to integers (Li and Gu, I-ViT, 2022; DeiT, Touvron et al., 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.zoo.vision import Grid, Mlp, PatchEmbed


class Attention(nn.Module):
    """(B, L, d_model) -> same: softmax attention of every token on all tokens."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, d_model // heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = (q @ k.transpose(2, 3) * self.size**-0.5).softmax(-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """(B, L, d_model) -> same: attention and the feed-forward layer, each on a norm and residual."""

    def __init__(self, d_model: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.attn = Attention(d_model, heads)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.mlp = Mlp(d_model, mlp_ratio * d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """Images (B, channels, patch * H, patch * W) -> tokens (B, L, d_model), without a class token; grid is (H, W)."""

    def __init__(self, channels: int, grid: Grid, patch: int, d_model: int, n_layers: int, heads: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, d_model, patch)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(grid[0] * grid[1], d_model), std=0.02))
        self.blocks = nn.Sequential(*(Block(d_model, heads) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(d_model, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.blocks(self.patch_embed(x) + self.pos_embed))
        return out
