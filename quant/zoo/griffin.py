"""Griffin's recurrent block in float (De et al., Griffin, 2024), with the parameter names of recurrentgemma."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import CausalConv1d, DiagonalRecurrence
from isobit.quant.zoo.blocks import BlockDiagonalLinear

DECAY_POWER = 8.0
"""The constant c of eq. 3."""

RADII = (0.9, 0.999)
"""The decays at r = 1 / c at initialisation (section 2.4)."""


class RGLRU(nn.Module):
    """The real-gated linear recurrent unit (eq. 1 to 4), (B, T, width) -> (B, T, width).

    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t), a_t = exp(-c softplus(a_param) r_t), r and i sigmoids of
    block-diagonal layers.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        low, high = RADII
        radius = torch.empty(width).uniform_(low**2, high**2).sqrt()
        self.a_param = nn.Parameter((-radius.log()).expm1().log())
        self.input_gate = BlockDiagonalLinear(width, heads, bias=True)
        self.a_gate = BlockDiagonalLinear(width, heads, bias=True)
        self.recurrence = DiagonalRecurrence()

    def forward(self, x: Tensor) -> Tensor:
        log_a = torch.sigmoid(self.a_gate(x)) * (-DECAY_POWER * functional.softplus(self.a_param))
        entering = torch.sqrt(1 - torch.exp(2 * log_a)) * (torch.sigmoid(self.input_gate(x)) * x)
        out: Tensor = self.recurrence(torch.exp(log_a), entering)
        return out


class RecurrentBlock(nn.Module):
    """linear_out(rg_lru(conv_1d(linear_x(x))) * gelu(linear_y(x))) (fig. 2c), (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, width: int, heads: int, kernel: int = 4) -> None:
        super().__init__()
        self.linear_y = nn.Linear(d_model, width)
        self.linear_x = nn.Linear(d_model, width)
        self.conv_1d = CausalConv1d(width, kernel)
        self.rg_lru = RGLRU(width, heads)
        self.linear_out = nn.Linear(width, d_model)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.linear_y(x), approximate="tanh")
        out: Tensor = self.linear_out(self.rg_lru(self.conv_1d(self.linear_x(x))) * y)
        return out


class GatedMLP(nn.Module):
    """ffw_down(gelu(gate) * up), gate and up the halves of ffw_up(x) (section 2.2)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.ffw_up = nn.Linear(d_model, 2 * d_hidden)
        self.ffw_down = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.ffw_up(x).chunk(2, dim=-1)
        out: Tensor = self.ffw_down(functional.gelu(gate, approximate="tanh") * up)
        return out


class GriffinBlock(nn.Module):
    """The residual block (fig. 2a), (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, width: int, heads: int, d_hidden: int, kernel: int = 4) -> None:
        super().__init__()
        self.temporal_pre_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.recurrent_block = RecurrentBlock(d_model, width, heads, kernel)
        self.channel_pre_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.mlp_block = GatedMLP(d_model, d_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.recurrent_block(self.temporal_pre_norm(x))
        out: Tensor = x + self.mlp_block(self.channel_pre_norm(x))
        return out


def griffin(d_model: int, width: int, heads: int, layers: int, d_hidden: int, kernel: int = 4) -> nn.Module:
    """`layers` recurrent residual blocks, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(*(GriffinBlock(d_model, width, heads, d_hidden, kernel) for _ in range(layers)))
