"""Mixtures of experts. Every expert is computed, times its routing weight, which is 0 for those that are not chosen."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.layers import Activation, parameter
from isobit.quant.nn import top_k_mask


class Experts(nn.ModuleList):
    """sum over experts of weight_e * down_e(f(gate_e(x)) * up_e(x)); without a gate, down_e(f(up_e(x))).

    (x (B, T, width), weights (B, T, experts)) -> (B, T, width). The parameters are `N.<name>.weight`, of which names is
    (gate or None, up, down). The weighted sum is one projection: of all experts' channels, each times its weight.
    """

    def __init__(
        self, experts: int, width: int, inner: int, act: Activation, names: tuple[str | None, str, str]
    ) -> None:
        gate, up, down = names
        super().__init__(
            nn.ModuleDict(
                {name: nn.Linear(width, inner, bias=False) for name in (gate, up) if name is not None}
                | {down: nn.Linear(inner, width, bias=False)}
            )
            for _ in range(experts)
        )
        self.inner, self.act, self.names = inner, act, names

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        gate, up, down = self.names
        hidden = functional.linear(x, self._weight(up, 0))
        hidden = self.act(hidden) if gate is None else self.act(functional.linear(x, self._weight(gate, 0))) * hidden
        weighted = hidden.unflatten(-1, (len(self), self.inner)) * weights.unsqueeze(-1)
        return functional.linear(weighted.flatten(2), self._weight(down, 1))

    def _weight(self, name: str, dim: int) -> Tensor:
        return torch.cat([self.get_parameter(f"{i}.{name}.weight") for i in range(len(self))], dim=dim)


class SoftmaxRouter(nn.Module):
    """x -> (B, T, experts): the softmax of `weight` x, 0 where not among the k largest, divided by its sum if asked."""

    def __init__(self, experts: int, width: int, k: int, normalise: bool) -> None:
        super().__init__()
        self.k, self.normalise = k, normalise
        self.weight = parameter(experts, width)

    def forward(self, x: Tensor) -> Tensor:
        probabilities = functional.linear(x, self.weight).softmax(dim=-1)
        chosen = probabilities * top_k_mask(probabilities, self.k)
        return chosen / chosen.sum(-1, keepdim=True) if self.normalise else chosen


class SigmoidRouter(nn.Module):
    """x -> (B, T, experts): the sigmoid s of `weight` x times `factor`, where s + bias is among the k largest, else 0.

    If asked, the chosen s are divided by their sum first (DeepSeek-V3, 2024, eq. 12 to 16, with one group of experts).
    """

    def __init__(self, experts: int, width: int, k: int, normalise: bool, factor: float) -> None:
        super().__init__()
        self.k, self.normalise, self.factor = k, normalise, factor
        self.weight = parameter(experts, width)
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", torch.empty(experts))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.sigmoid(functional.linear(x, self.weight))
        chosen = scores * top_k_mask(scores + self.e_score_correction_bias, self.k)
        if self.normalise:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        return chosen if self.factor == 1 else chosen * self.factor
