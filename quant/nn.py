"""Float operators and modules that `torch.export` keeps whole, as custom operators of the namespace `isobit`.

B is the batch, T >= 1 the number of time steps, C the channels, N the size of the state per channel. Every operator is
causal and starts from zero history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def selective_recurrence_states(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Selective state space, with all of its states (Gu and Dao, Mamba, 2023, eq. 2a and 2b; Euler rule for the input).

    h_t = exp(dt_t * a) * h_{t-1} + (dt_t * u_t) * b_t, and y_t = sum over n of h_t[n] * c_t[n].

    u: (B, T, C), the input. dt: (B, T, C), the step size, > 0. a: (C, N), the continuous decay rate, < 0.
    b, c: (B, T, N).
    state: (B, C, N), the state before the first step; zero if None.
    Returns y, (B, T, C), and the states h, (B, T, C, N), of which h[:, -1] continues the sequence.
    """
    decay = torch.exp(dt.unsqueeze(-1) * a)
    drive = (dt * u).unsqueeze(-1) * b.unsqueeze(-2)
    h = torch.zeros_like(drive[:, 0]) if state is None else state
    states = []
    for decay_t, drive_t in zip(decay.unbind(1), drive.unbind(1), strict=True):
        h = decay_t * h + drive_t
        states.append(h)
    stacked = torch.stack(states, dim=1)
    return torch.einsum("btcn,btn->btc", stacked, c).contiguous(), stacked


def _selective_recurrence(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return selective_recurrence_states(u, dt, a, b, c)[0]


def _causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels, kernel = weight.shape
    padded = nn.functional.pad(x.transpose(1, 2), (kernel - 1, 0))
    return nn.functional.conv1d(padded, weight.unsqueeze(1), bias, groups=channels).transpose(1, 2).contiguous()


def _running_mean(x: Tensor) -> Tensor:
    count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    return (x.cumsum(1) / count.unsqueeze(-1)).contiguous()


def _custom_op(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The custom operator isobit::`name`, computed by `function`, a differentiable function of tensors only.

    The result has the shape of the first argument. The gradient is that of `function`, evaluated again.
    """

    def fake(first: Tensor, *rest: Tensor) -> Tensor:
        return first.new_empty(first.shape)

    def save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        inputs = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
        with torch.enable_grad():
            output = function(*inputs)
        return torch.autograd.grad(output, inputs, gradient)

    operator = torch.library.custom_op(f"isobit::{name}", function, mutates_args=())
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=save)
    return operator


selective_recurrence = _custom_op("selective_recurrence", _selective_recurrence)
"""(u, dt, a, b, c) -> y of `selective_recurrence_states`, from the zero state."""

causal_conv1d = _custom_op("causal_conv1d", _causal_conv1d)
"""(x, weight, bias) -> y, (B, T, C): y_t = bias + sum over j of weight[:, j] * x_{t-K+1+j}, with x_s = 0 for s < 0.

x: (B, T, C). weight: (C, K), of which column K-1 meets the current step. bias: (C,). Depthwise: channels do not mix.
"""

running_mean = _custom_op("running_mean", _running_mean)
"""x, (B, T, C) -> y, (B, T, C): y_t is the mean of x_0 to x_t."""


class SelectiveRecurrence(nn.Module):
    """`selective_recurrence`; it has no parameters."""

    def forward(self, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return selective_recurrence(u, dt, a, b, c)


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


class RunningMean(nn.Module):
    """`running_mean`; it has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return running_mean(x)
