"""The Legendre memory unit in float, in the form that trains in parallel (Chilkuri and Eliasmith, 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn import DenseRecurrence
from isobit.quant.zoo.legendre import delay_system


class LMU(nn.Module):
    """(B, T, d_model) -> (B, T, d_out), causal.

    u_t = tanh(W_u x_t), `channels` numbers; m_t = A m_{t-1} + B u_t, of `order` each, the last theta steps of u as
    Legendre polynomials (Voelker et al., 2019, eq. 1 and 19); o_t = tanh(W_h [m_t; x_t]) (eq. 18 to 20).
    """

    A: Tensor
    B: Tensor

    def __init__(self, d_model: int, d_out: int, channels: int, order: int, theta: float) -> None:
        super().__init__()
        self.W_u = nn.Linear(d_model, channels)
        self.W_h = nn.Linear(channels * order + d_model, d_out)
        self.recurrence = DenseRecurrence()
        a, b = delay_system(order, theta)
        self.register_buffer("A", a.float())
        self.register_buffer("B", b.float())

    def forward(self, x: Tensor) -> Tensor:
        u = torch.tanh(self.W_u(x))
        m = self.recurrence(u.unsqueeze(-1) * self.B, self.A).flatten(-2)
        return torch.tanh(self.W_h(torch.cat([m, x], dim=-1)))


def lmu(d_model: int, layers: int, channels: int, order: int, theta: float) -> nn.Module:
    """`layers` units, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(*(LMU(d_model, d_model, channels, order, theta) for _ in range(layers)))
