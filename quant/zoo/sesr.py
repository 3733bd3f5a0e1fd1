"""SESR, super-resolution with linear blocks that collapse to one convolution each (Bhardwaj et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CollapsibleLinearBlock(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H, W): a kernel x kernel convolution to `hidden` channels, then a 1 x 1.

    Computed with the one collapsed kernel (algorithm 1), to which a residual around both adds the identity
    (algorithm 2); there is one where outputs equals inputs.
    """

    identity: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, hidden: int = 256) -> None:
        super().__init__()
        self.kernel = kernel
        self.expand = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden, inputs, kernel, kernel)))
        self.project = nn.Parameter(nn.init.xavier_uniform_(torch.empty(outputs, hidden)))
        identity = torch.zeros(outputs, inputs, kernel, kernel)
        if inputs == outputs:
            identity[range(outputs), range(inputs), kernel // 2, kernel // 2] = 1
        self.register_buffer("identity", identity, persistent=False)

    def collapsed(self) -> Tensor:
        """The kernel, (outputs, inputs, kernel, kernel)."""
        return torch.einsum("oh,hikl->oikl", self.project, self.expand) + self.identity

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.collapsed(), padding=self.kernel // 2)


class SESR(nn.Module):
    """Brightness (B, 1, H, W) in 0..1 -> (B, 1, scale * H, scale * W), with m blocks of 3 x 3."""

    def __init__(self, width: int = 16, m: int = 5, scale: int = 2, hidden: int = 256, outer_kernel: int = 5) -> None:
        super().__init__()
        self.scale = scale
        self.input_block = CollapsibleLinearBlock(1, width, outer_kernel, hidden)
        self.linear_blocks = nn.ModuleList(CollapsibleLinearBlock(width, width, 3, hidden) for _ in range(m))
        self.activations = nn.ModuleList(nn.PReLU(width) for _ in range(m))
        self.output_block = CollapsibleLinearBlock(width, scale**2, outer_kernel, hidden)

    def forward(self, x: Tensor) -> Tensor:
        first = features = self.input_block(x - 0.5)
        for block, activation in zip(self.linear_blocks, self.activations, strict=True):
            features = activation(block(features))
        planes = self.output_block(features + first) + x.expand(-1, self.scale**2, -1, -1)
        return functional.pixel_shuffle(planes, self.scale).clamp(0, 1)
