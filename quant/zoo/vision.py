"""What the vision families share: patches as tokens, tokens as an image, the feed-forward layer.

A grid (H, W) of patches has L = H * W tokens, row by row.  Linear layers start as torch has them: the deviation 0.02 of
most of the papers is meant for widths of several hundred, and at 16 to 64 the mixers would hardly change the output.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

Grid = tuple[int, int]
"""Height and width in patches."""


def to_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, L, C)."""
    return image.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, L, C) -> (B, C, H, W)."""
    image: Tensor = tokens.transpose(1, 2).unflatten(2, grid)
    return image


class PatchEmbed(nn.Module):
    """Images (B, channels, patch * H, patch * W) -> tokens (B, L, d_model), a linear map of each patch."""

    def __init__(self, channels: int, d_model: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, d_model, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.proj(x))


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) over the last axis; approximate: "none" (error function) or "tanh"."""

    def __init__(self, d_model: int, hidden: int, approximate: str = "none") -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, hidden)
        self.fc2 = nn.Linear(hidden, d_model)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate=self.approximate))
        return out


class Depthwise(nn.Conv2d):
    """A depthwise convolution of tokens on their grid, (B, L, channels) -> same, with zeros outside; kernel odd."""

    def __init__(self, channels: int, kernel: int, grid: Grid) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        return to_tokens(super().forward(to_image(tokens, self.grid)))
