"""RWKV-6 in float (Peng et al., Eagle and Finch, 2024), with the parameter names of RWKV-LM (x060).

RWKV-LM's (1, 1, C) parameters are (C,) here.  Matrices are initialised as nn.Linear, where RWKV-LM starts some at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import LinearRecurrence, Shift
from isobit.quant.zoo.blocks import HeadLayerNorm
from isobit.quant.zoo.rwkv4 import depth_ratios, zigzag

MIXED = "wkvrg"
"""The five mixtures of two steps, in the order of time_maa_w1's and time_maa_w2's parts."""

GROUP_NORM_EPS = 64e-5
"""RWKV-LM's 1e-5 times its head_size_divisor of 8, squared."""


def low_rank(rows: int, columns: int) -> nn.Parameter:
    """(rows, columns), uniform as nn.Linear of `rows` inputs."""
    return nn.Parameter(torch.empty(rows, columns).uniform_(-(rows**-0.5), rows**-0.5))


class RWKV6TimeMix(nn.Module):
    """Data-dependent mixtures and a decay per key and step (eq. 11 to 20), (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, heads: int, layer: int, layers: int, mix_rank: int, decay_rank: int) -> None:
        super().__init__()
        self.heads = heads
        deep, shallow = depth_ratios(layer, layers)
        place, ramp = torch.arange(d_model) / d_model, torch.arange(d_model) / (d_model - 1)
        self.time_maa_x = nn.Parameter(1 - place**shallow)
        self.time_maa_w = nn.Parameter(1 - place**shallow)
        self.time_maa_k = nn.Parameter(1 - place**shallow)
        self.time_maa_v = nn.Parameter(1 - (place**shallow + 0.3 * deep))
        self.time_maa_r = nn.Parameter(1 - place ** (0.5 * shallow))
        self.time_maa_g = nn.Parameter(1 - place ** (0.5 * shallow))
        self.time_maa_w1 = low_rank(d_model, len(MIXED) * mix_rank)
        self.time_maa_w2 = nn.Parameter(torch.empty(len(MIXED), mix_rank, d_model).uniform_(-0.01, 0.01))
        self.time_decay = nn.Parameter(-6 + 5 * ramp ** (0.7 + 1.3 * deep))
        self.time_decay_w1 = low_rank(d_model, decay_rank)
        self.time_decay_w2 = nn.Parameter(torch.empty(decay_rank, d_model).uniform_(-0.01, 0.01))
        self.time_faaaa = nn.Parameter((deep * (1 - ramp) + 0.1 * zigzag(d_model)).view(heads, -1))
        self.time_shift, self.recurrence = Shift(), LinearRecurrence()
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.ln_x = HeadLayerNorm(d_model, eps=GROUP_NORM_EPS)

    def mixtures(self, x: Tensor) -> list[Tensor]:
        """x and its predecessor, mixed in five ways that depend on both (eq. 11 to 14)."""
        change = self.time_shift(x) - x
        hidden = torch.tanh(functional.linear(x + change * self.time_maa_x, self.time_maa_w1.T))
        mixed = []
        for i, part in enumerate(hidden.chunk(len(MIXED), dim=-1)):
            share = functional.linear(part, self.time_maa_w2[i].T, getattr(self, f"time_maa_{MIXED[i]}"))
            mixed.append(x + change * share)
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        x_w, x_k, x_v, x_r, x_g = self.mixtures(x)
        low = torch.tanh(functional.linear(x_w, self.time_decay_w1.T))
        decay = torch.exp(-torch.exp(functional.linear(low, self.time_decay_w2.T, self.time_decay)))
        split = (self.heads, -1)
        r, k, v = (y.unflatten(-1, split) for y in (self.receptance(x_r), self.key(x_k), self.value(x_v)))
        o = self.ln_x(self.recurrence(r, k, v, decay.unflatten(-1, split), self.time_faaaa))
        out: Tensor = self.output(o * functional.silu(self.gate(x_g)))
        return out


class RWKV6ChannelMix(nn.Module):
    """sigmoid(R x) * (V relu(K x)^2) of two steps' mixtures."""

    def __init__(self, d_model: int, layer: int, layers: int, d_hidden: int) -> None:
        super().__init__()
        share = 1 - (torch.arange(d_model) / d_model) ** depth_ratios(layer, layers)[1]
        self.time_maa_k, self.time_maa_r = nn.Parameter(share), nn.Parameter(share.clone())
        self.time_shift = Shift()
        self.key = nn.Linear(d_model, d_hidden, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        change = self.time_shift(x) - x
        k = functional.relu(self.key(x + change * self.time_maa_k)).square()
        out: Tensor = torch.sigmoid(self.receptance(x + change * self.time_maa_r)) * self.value(k)
        return out


class RWKV6Block(nn.Module):
    """h = x + att(ln1(x)); h + ffn(ln2(h)).  Layer 0 normalises its input first."""

    def __init__(
        self, d_model: int, heads: int, layer: int, layers: int, d_hidden: int, mix_rank: int, decay_rank: int
    ) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(d_model) if layer == 0 else nn.Identity()
        self.ln1 = nn.LayerNorm(d_model)
        self.att = RWKV6TimeMix(d_model, heads, layer, layers, mix_rank, decay_rank)
        self.ln2, self.ffn = nn.LayerNorm(d_model), RWKV6ChannelMix(d_model, layer, layers, d_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln0(x)
        x = x + self.att(self.ln1(x))
        out: Tensor = x + self.ffn(self.ln2(x))
        return out


def rwkv6(d_model: int, heads: int, layers: int, d_hidden: int, mix_rank: int = 32, decay_rank: int = 64) -> nn.Module:
    """`layers` blocks of RWKV-6, (B, T, d_model) -> (B, T, d_model)."""
    blocks = (RWKV6Block(d_model, heads, layer, layers, d_hidden, mix_rank, decay_rank) for layer in range(layers))
    return nn.Sequential(*blocks)
