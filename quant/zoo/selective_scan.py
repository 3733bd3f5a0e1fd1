"""One direction of a selective scan, which the vision models with several directions repeat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import selective_recurrence
from isobit.quant.zoo.blocks import log_uniform_step_bias


class SelectiveScan(nn.Module):
    """(B, L, channels) -> same: step size, B and C from the input, the recurrence along L, and the skip D.

    dt_rank is ceil(channels / 32) if None, which is mamba_ssm's ceil(d_model / 16) with expand = 2.  Parameters, their
    names and initial values are those of mamba_ssm.
    """

    def __init__(self, channels: int, d_state: int = 16, dt_rank: int | None = None) -> None:
        super().__init__()
        self.dt_rank = math.ceil(channels / 32) if dt_rank is None else dt_rank
        self.d_state = d_state
        self.x_proj = nn.Linear(channels, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(log_uniform_step_bias(channels))

    def forward(self, x: Tensor) -> Tensor:
        low_rank, b, c = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = functional.softplus(self.dt_proj(low_rank))
        return selective_recurrence(x, dt, -torch.exp(self.A_log), b, c) + self.D * x
