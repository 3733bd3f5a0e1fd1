"""S4D in float (Gu et al., On the Parameterization and Initialization of Diagonal State Space Models, 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import ComplexRecurrence
from isobit.quant.zoo.blocks import PreNorm
from isobit.quant.zoo.mamba import STEP_SIZE_RANGE


class S4D(nn.Module):
    """A diagonal complex state space per channel, then GELU and a gated linear layer, with the authors' names.

    (B, T, d_model) -> (B, T, d_model). d_state complex states per channel, A = -1/2 + i pi n (S4D-Lin, eq. 10),
    discretised by zero-order hold (eq. 3): a = exp(dt A), b = (a - 1) / A, y = 2 Re(C b x) + D u.
    """

    def __init__(self, d_model: int, d_state: int = 32) -> None:
        super().__init__()
        low, high = (math.log(bound) for bound in STEP_SIZE_RANGE)
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(low, high))
        self.log_A_real = nn.Parameter(torch.full((d_model, d_state), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(d_state).repeat(d_model, 1))
        self.C = nn.Parameter(torch.randn(d_model, d_state, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.recurrence = ComplexRecurrence()
        self.output_linear = nn.Linear(d_model, 2 * d_model)

    def discretised(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Real and imaginary parts of a and of C b, (d_model, d_state) each."""
        dt = torch.exp(self.log_dt).unsqueeze(-1)
        re, im = -torch.exp(self.log_A_real), self.A_imag
        size = torch.exp(re * dt)
        a_re, a_im = size * torch.cos(im * dt), size * torch.sin(im * dt)
        squared = re.square() + im.square()
        b_re = ((a_re - 1) * re + a_im * im) / squared
        b_im = (a_im * re - (a_re - 1) * im) / squared
        c_re, c_im = self.C[..., 0], self.C[..., 1]
        return a_re, a_im, c_re * b_re - c_im * b_im, c_re * b_im + c_im * b_re

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.recurrence(x, *self.discretised()) + x * self.D)
        value, gate = self.output_linear(y).chunk(2, dim=-1)
        out: Tensor = value * torch.sigmoid(gate)
        return out


def s4d(d_model: int, layers: int, d_state: int) -> nn.Module:
    """`layers` residual blocks on LayerNorm, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(*(PreNorm(nn.LayerNorm(d_model), S4D(d_model, d_state)) for _ in range(layers)))
