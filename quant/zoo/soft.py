"""SOFT, attention with a Gaussian kernel in place of the softmax (Lu et al., Softmax-free Transformer, 2021)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.zoo.vision import Grid, Mlp, PatchEmbed, to_image, to_tokens


class SoftmaxFreeAttention(nn.Module):
    """(B, L, d_model) -> same: per head S = exp(-|q_i - q_j|^2 / 2), then D^-1/2 S D^-1/2 v + conv(v).

    q is divided by size^1/4, and is also the key; D is the diagonal of S's row sums (as in Lu et al., Softmax-free
    Linear Transformers, 2022).  S is whole, where the papers have its low-rank approximation with a Newton inverse.
    conv is depthwise, with one kernel per head.
    """

    def __init__(self, d_model: int, grid: Grid, heads: int, conv: int = 3) -> None:
        super().__init__()
        self.heads, self.size, self.grid = heads, d_model // heads, grid
        self.W_q = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.conv = nn.Conv2d(heads, heads, conv, padding=conv // 2, groups=heads, bias=False)
        self.ff = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        v = self.W_v(x)
        q, values = (part.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for part in (self.W_q(x), v))
        q = q * self.size**-0.25
        half = q.square().sum(-1, keepdim=True) * 0.5
        kernel = (q @ q.transpose(2, 3) - half - half.transpose(2, 3)).exp()
        root = kernel.sum(-1, keepdim=True).sqrt()
        y = (kernel @ (values / root) / root).transpose(1, 2).flatten(2)
        weight = self.conv.weight.repeat_interleave(self.size, dim=0)
        local = functional.conv2d(
            to_image(v, self.grid), weight, padding=self.conv.padding, groups=self.heads * self.size
        )
        out: Tensor = self.ff(y + to_tokens(local))
        return out


class SoftmaxFreeTransformer(nn.Module):
    """(B, L, d_model) -> same: attention and the feed-forward layer, each residual and then normalised."""

    def __init__(self, d_model: int, grid: Grid, heads: int, conv: int = 3, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.mha = SoftmaxFreeAttention(d_model, grid, heads, conv)
        self.norm1 = nn.LayerNorm(d_model)
        self.mlp = Mlp(d_model, mlp_ratio * d_model, approximate="tanh")
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.mha(x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class SOFT(nn.Module):
    """Images (B, channels, patch * H, patch * W) -> tokens (B, L, d_model) of one stage; grid is (H, W)."""

    def __init__(
        self, channels: int, grid: Grid, patch: int, d_model: int, n_layers: int, heads: int, conv: int = 3
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, d_model, patch)
        self.norm = nn.LayerNorm(d_model)
        self.blocks = nn.Sequential(*(SoftmaxFreeTransformer(d_model, grid, heads, conv) for _ in range(n_layers)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.norm(self.patch_embed(x)))
        return out
