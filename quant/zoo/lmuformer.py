"""LMUFormer, a sequential model with a convolutional embedding and a Legendre memory as token mixer (Liu et al., 2024).

The convolutions over time are causal here, where the authors' look one step ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import causal_fir, dense_recurrence
from isobit.quant.zoo.legendre import delay_system


class TimeBatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, T, channels) over batch and time; in eval mode a scale and a shift per channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            normed: Tensor = super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return normed
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight / (self.running_var + self.eps).sqrt()
        return x * scale + (self.bias - self.running_mean * scale)


class CausalConv(nn.Module):
    """`causal_fir` without a bias, (B, T, inputs) -> (B, T, outputs); initialised as torch.nn.Conv1d."""

    no_bias: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        bound = (inputs * kernel) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel).uniform_(-bound, bound))
        self.register_buffer("no_bias", torch.zeros(outputs), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return causal_fir(x, self.weight, self.no_bias)


class Tokenizer(nn.Module):
    """(B, T, inputs) -> (B, T, d_model): convolution, ReLU and norm, n_convs times, then a residual convolution."""

    def __init__(self, inputs: int, d_model: int, kernel: int = 3, n_convs: int = 4) -> None:
        super().__init__()
        widths = [inputs] + [d_model] * n_convs
        self.convs = nn.ModuleList(CausalConv(widths[i], widths[i + 1], kernel) for i in range(n_convs))
        self.norms = nn.ModuleList(TimeBatchNorm(d_model) for _ in range(n_convs))
        self.rpe_conv = CausalConv(d_model, d_model, kernel)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(functional.relu(conv(x)))
        out: Tensor = x + self.rpe_conv(x)
        return out


class LMU(nn.Module):
    """(B, T, d_model) -> same (the parallel LMU of Chilkuri and Eliasmith, 2021, eq. 18 to 20, then proj and norm).

    u = relu(W_u x), one number per step; m_t = A m_{t-1} + B u_t; h = relu(W_h [m; x]).
    """

    A: Tensor
    B: Tensor

    def __init__(self, d_model: int, memory: int, theta: float) -> None:
        super().__init__()
        self.W_u = nn.Linear(d_model, 1)
        self.W_h = nn.Linear(memory + d_model, d_model)
        self.proj = nn.Linear(d_model, d_model)
        self.norm = TimeBatchNorm(d_model)
        a, b = delay_system(memory, theta)
        self.register_buffer("A", a.float())
        self.register_buffer("B", b.float())

    def forward(self, x: Tensor) -> Tensor:
        u = functional.relu(self.W_u(x))
        m = dense_recurrence(u * self.B, self.A)
        h = functional.relu(self.W_h(torch.cat([m, x], dim=-1)))
        out: Tensor = self.norm(self.proj(h))
        return out


class ChannelMixer(nn.Module):
    """(B, T, d_model) -> same: 1 x 1 convolutions with norms, GELU between and ReLU after them."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, hidden)
        self.norm1 = TimeBatchNorm(hidden)
        self.fc2 = nn.Linear(hidden, d_model)
        self.norm2 = TimeBatchNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm1(self.fc1(x)))
        return functional.relu(self.norm2(self.fc2(x)))


class LMUFormerBlock(nn.Module):
    """(B, T, d_model) -> same: both mixers, residual."""

    def __init__(self, d_model: int, memory: int, theta: float, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.attn = LMU(d_model, memory, theta)
        self.mlp = ChannelMixer(d_model, mlp_ratio * d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        out: Tensor = x + self.mlp(x)
        return out


class LMUFormer(nn.Module):
    """(B, T, inputs) -> (B, T, d_model), causal.

    memory: size of each block's memory, d_model if None. theta: how many steps it spans.
    """

    def __init__(
        self,
        inputs: int,
        d_model: int,
        n_layers: int = 1,
        kernel: int = 3,
        memory: int | None = None,
        theta: float = 128.0,
    ) -> None:
        super().__init__()
        size = d_model if memory is None else memory
        self.patch_embed = Tokenizer(inputs, d_model, kernel)
        self.block = nn.Sequential(*(LMUFormerBlock(d_model, size, theta) for _ in range(n_layers)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(self.patch_embed(x))
        return out
