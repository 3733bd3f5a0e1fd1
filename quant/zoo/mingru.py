"""minGRU in float (Feng et al., Were RNNs All We Needed?, 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn import ConvexRecurrence
from isobit.quant.zoo.mamba import ResidualBlock


class MinGRU(nn.Module):
    """h_t = (1 - z_t) * h_{t-1} + z_t * linear_h(x_t), z = sigmoid(linear_z(x)) (section 3.1), then a linear layer.

    (B, T, d_model) -> (B, T, d_model), with d_hidden states.
    """

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.linear_z = nn.Linear(d_model, d_hidden)
        self.linear_h = nn.Linear(d_model, d_hidden)
        self.recurrence = ConvexRecurrence()
        self.linear_out = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        h = self.recurrence(torch.sigmoid(self.linear_z(x)), self.linear_h(x))
        out: Tensor = self.linear_out(h)
        return out


def mingru(d_model: int, layers: int, d_hidden: int) -> nn.Module:
    """`layers` residual blocks on RMSNorm, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(*(ResidualBlock(d_model, MinGRU(d_model, d_hidden)) for _ in range(layers)))
