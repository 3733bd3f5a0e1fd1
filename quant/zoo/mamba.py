"""Mamba in float, with the parameter names of mamba_ssm: the block (Gu and Dao, 2023, fig. 3) and a classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import CausalConv1d, RunningMean, SelectiveRecurrence

STEP_SIZE_RANGE = (1e-3, 1e-1)
"""The step sizes softplus(dt_proj.bias) at initialisation (Gu and Dao, section 3.6)."""


class MambaBlock(nn.Module):
    """(B, T, d_model) -> (B, T, d_model), causal. d_inner = expand * d_model; dt_rank is ceil(d_model / 16) if None.

    conv1d.weight is (d_inner, d_conv), where mamba_ssm has (d_inner, 1, d_conv).
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None
    ) -> None:
        super().__init__()
        self.d_state = d_state
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = CausalConv1d(self.d_inner, d_conv)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.recurrence = SelectiveRecurrence()
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self._initialise_step_size()

    def _initialise_step_size(self) -> None:
        """Step sizes log-uniform in STEP_SIZE_RANGE; dt_proj.weight uniform within +-dt_rank^-0.5, as in mamba_ssm."""
        low, high = (math.log(bound) for bound in STEP_SIZE_RANGE)
        step = torch.empty(self.d_inner).uniform_(low, high).exp()
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(step.expm1().log())

    def forward(self, hidden: Tensor) -> Tensor:
        x, z = self.in_proj(hidden).split([self.d_inner, self.d_inner], dim=-1)
        x = functional.silu(self.conv1d(x))
        low_rank, b, c = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = functional.softplus(self.dt_proj(low_rank))
        y = self.recurrence(x, dt, -torch.exp(self.A_log), b, c) + self.D * x
        out: Tensor = self.out_proj(y * functional.silu(z))
        return out


class ResidualBlock(nn.Module):
    """x + mixer(norm(x)), (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mixer = mixer

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.mixer(self.norm(hidden))
        return out


class MambaClassifier(nn.Module):
    """(B, T, d_input) -> logits (B, T, n_classes).

    Those at step t are of the mean of the first t + 1 feature vectors; the last step classifies the sequence.
    """

    def __init__(
        self,
        d_input: int,
        n_classes: int,
        d_model: int,
        n_layers: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(d_input, d_model)
        self.layers = nn.ModuleList(
            ResidualBlock(d_model, MambaBlock(d_model, d_state, d_conv, expand, dt_rank)) for _ in range(n_layers)
        )
        self.norm_f = nn.RMSNorm(d_model, eps=1e-5)
        self.mean = RunningMean()
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(self.mean(self.norm_f(hidden)))
        return logits
