"""Functions of the recent or the whole past: convolutions, the previous step, running mean and logsumexp.

C is the number of channels; an axis marked ... is any number of trailing axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn.operator import custom_op


def _causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels, kernel = weight.shape
    padded = nn.functional.pad(x.transpose(1, 2), (kernel - 1, 0))
    return nn.functional.conv1d(padded, weight.unsqueeze(1), bias, groups=channels).transpose(1, 2).contiguous()


def _causal_fir(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded = nn.functional.pad(x.transpose(1, 2), (weight.shape[2] - 1, 0))
    return nn.functional.conv1d(padded, weight, bias).transpose(1, 2).contiguous()


def _shift(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def _running_mean(x: Tensor) -> Tensor:
    count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    return (x.cumsum(1) / count.view(-1, *(1,) * (x.dim() - 2))).contiguous()


def _running_logsumexp(x: Tensor) -> Tensor:
    return x.logcumsumexp(1).contiguous()


def _fir_shape(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], weight.shape[0])


causal_conv1d = custom_op("causal_conv1d", _causal_conv1d)
"""(x, weight, bias) -> y, (B, T, C): y_t = bias + sum over j of weight[:, j] * x_{t-K+1+j}, with x_s = 0 for s < 0.

x: (B, T, C). weight: (C, K), of which column K-1 meets the current step. bias: (C,). Depthwise: channels do not mix.
"""

causal_fir = custom_op("causal_fir", _causal_fir, _fir_shape)
"""(x, weight, bias) -> y, (B, T, O): y_t = bias + sum over j of weight[:, :, j] x_{t-K+1+j}, with x_s = 0 for s < 0.

x: (B, T, C). weight: (O, C, K), of which the slice K-1 meets the current step. bias: (O,).
"""

shift = custom_op("shift", _shift)
"""x, (B, T, ...) -> y, (B, T, ...): y_t = x_{t-1}, and 0 at the first step."""

running_mean = custom_op("running_mean", _running_mean)
"""x, (B, T, ...) -> y, (B, T, ...): y_t is the mean of x_0 to x_t."""

running_logsumexp = custom_op("running_logsumexp", _running_logsumexp)
"""x, (B, T, ...) -> y, (B, T, ...): y_t = log of the sum of e^x_0 to e^x_t, elementwise."""


class CausalConv1d(nn.Module):
    """`causal_conv1d` of `channels` channels with parameters weight, (channels, kernel), and bias, (channels,).

    Initialised as torch.nn.Conv1d: uniform within +-1/sqrt(kernel).
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel).uniform_(-(kernel**-0.5), kernel**-0.5))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-(kernel**-0.5), kernel**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv1d(x, self.weight, self.bias)


class CausalFIR(nn.Module):
    """`causal_fir` with parameters weight, (channels_out, channels_in, kernel), and bias, (channels_out,).

    Initialised as torch.nn.Conv1d: uniform within +-1/sqrt(channels_in * kernel).
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        bound = (channels_in * kernel) ** -0.5
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return causal_fir(x, self.weight, self.bias)


class Shift(nn.Module):
    """`shift`; it has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return shift(x)


class RunningMean(nn.Module):
    """`running_mean`; it has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return running_mean(x)


class RunningLogSumExp(nn.Module):
    """`running_logsumexp`; it has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return running_logsumexp(x)
