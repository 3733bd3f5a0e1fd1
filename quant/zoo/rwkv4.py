"""RWKV-4 in float (Peng et al., 2023), with the parameter names of RWKV-LM; its (1, 1, C) parameters are (C,) here.

Matrices are initialised as nn.Linear, where RWKV-LM starts most of them at zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import WKV4, Shift


def depth_ratios(layer: int, layers: int) -> tuple[float, float]:
    """How deep a layer is, from 0 to 1, and how shallow, from 1 to nearly 0."""
    return layer / max(layers - 1, 1), 1 - layer / layers


def zigzag(channels: int) -> Tensor:
    """(channels,): 0, 1, -1, 0, 1, -1, ..."""
    return (torch.arange(channels) + 1) % 3 - 1.0


class RWKV4TimeMix(nn.Module):
    """The WKV of two steps' mixtures (eq. 11 to 17), (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, layer: int, layers: int) -> None:
        super().__init__()
        deep, shallow = depth_ratios(layer, layers)
        place = torch.arange(d_model) / d_model
        self.time_decay = nn.Parameter(-5 + 8 * (torch.arange(d_model) / (d_model - 1)) ** (0.7 + 1.3 * deep))
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * zigzag(d_model))
        self.time_mix_k = nn.Parameter(place**shallow)
        self.time_mix_v = nn.Parameter(place**shallow + 0.3 * deep)
        self.time_mix_r = nn.Parameter(place ** (0.5 * shallow))
        self.time_shift, self.wkv = Shift(), WKV4()
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        last = self.time_shift(x)
        k = self.key(x * self.time_mix_k + last * (1 - self.time_mix_k))
        v = self.value(x * self.time_mix_v + last * (1 - self.time_mix_v))
        r = self.receptance(x * self.time_mix_r + last * (1 - self.time_mix_r))
        wkv = self.wkv(k, v, torch.exp(self.time_decay), self.time_first)
        out: Tensor = self.output(torch.sigmoid(r) * wkv)
        return out


class RWKV4ChannelMix(nn.Module):
    """sigmoid(R x) * (V relu(K x)^2) of two steps' mixtures (eq. 18 to 20)."""

    def __init__(self, d_model: int, layer: int, layers: int, d_hidden: int) -> None:
        super().__init__()
        place = (torch.arange(d_model) / d_model) ** depth_ratios(layer, layers)[1]
        self.time_mix_k, self.time_mix_r = nn.Parameter(place), nn.Parameter(place.clone())
        self.time_shift = Shift()
        self.key = nn.Linear(d_model, d_hidden, bias=False)
        self.value = nn.Linear(d_hidden, d_model, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        last = self.time_shift(x)
        k = self.key(x * self.time_mix_k + last * (1 - self.time_mix_k))
        r = self.receptance(x * self.time_mix_r + last * (1 - self.time_mix_r))
        out: Tensor = torch.sigmoid(r) * self.value(functional.relu(k).square())
        return out


class RWKV4Block(nn.Module):
    """h = x + att(ln1(x)); h + ffn(ln2(h)).  Layer 0 normalises its input first."""

    def __init__(self, d_model: int, layer: int, layers: int, d_hidden: int) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(d_model) if layer == 0 else nn.Identity()
        self.ln1, self.att = nn.LayerNorm(d_model), RWKV4TimeMix(d_model, layer, layers)
        self.ln2, self.ffn = nn.LayerNorm(d_model), RWKV4ChannelMix(d_model, layer, layers, d_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln0(x)
        x = x + self.att(self.ln1(x))
        out: Tensor = x + self.ffn(self.ln2(x))
        return out


def rwkv4(d_model: int, layers: int, d_hidden: int) -> nn.Module:
    """`layers` blocks of RWKV-4, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(*(RWKV4Block(d_model, layer, layers, d_hidden) for layer in range(layers)))
