"""Functions that decide: a step, spikes with a membrane potential, a mask of the largest."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from isobit.quant.nn.operator import custom_op

SURROGATE_SLOPE = 2.0
"""Twice the gradient at the step of the arctangent that stands in for it (SpikeGPT, Zhu et al., 2023, section 3)."""


def _with_surrogate(hard: Tensor, x: Tensor) -> Tensor:
    """`hard`, with the gradient of atan(pi/2 * SURROGATE_SLOPE * x) / pi."""
    soft = torch.atan(math.pi / 2 * SURROGATE_SLOPE * x) / math.pi
    return hard + (soft - soft.detach())


def _heaviside(x: Tensor) -> Tensor:
    return _with_surrogate((x > 0).to(x.dtype), x).contiguous()


def _lif(x: Tensor, leak: float, threshold: float) -> Tensor:
    potential = torch.zeros_like(x[:, 0])
    spikes = []
    for x_t in x.unbind(1):
        potential = potential + (x_t - potential) * leak
        spike = _with_surrogate((potential >= threshold).to(x.dtype), potential - threshold)
        potential = potential * (1 - spike.detach())
        spikes.append(spike)
    return torch.stack(spikes, dim=1)


def _top_k_mask(x: Tensor, k: int) -> Tensor:
    largest = x.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device).scatter(-1, largest, 1.0)


heaviside = custom_op("heaviside", _heaviside)
"""x -> 1.0 where x > 0, else 0.0; x of any shape.  The gradient is that of an arctangent."""

lif = custom_op("lif", _lif)
"""(x, leak, threshold) -> spikes 0.0 or 1.0, (B, T, ...): leaky integrate-and-fire neurons (SpikeGPT, eq. 1 to 3).

u' = u_{t-1} + (x_t - u_{t-1}) * leak; s_t = 1 where u' >= threshold; u_t = u' * (1 - s_t).
The gradient is that of an arctangent in place of the step, and none through the reset.
"""

top_k_mask = custom_op("top_k_mask", _top_k_mask)
"""(x, k) -> 1.0 at the k largest of the last axis, else 0.0; of equals the lower index first.  The gradient is 0."""


class Heaviside(nn.Module):
    """`heaviside`; it has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return heaviside(x)


class LIF(nn.Module):
    """`lif` with a leak and a threshold; it has no parameters."""

    def __init__(self, leak: float = 0.5, threshold: float = 1.0) -> None:
        super().__init__()
        self.leak, self.threshold = leak, threshold

    def forward(self, x: Tensor) -> Tensor:
        return lif(x, self.leak, self.threshold)
