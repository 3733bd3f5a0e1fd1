"""RWKV-7 in float (Peng et al., Goose, 2025), with the parameter names of RWKV-LM (x070).

RWKV-LM's (1, 1, C) parameters are (C,) here.  Matrices are initialised as nn.Linear, where RWKV-LM starts some at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import GeneralizedDeltaRecurrence, Shift, l2norm
from isobit.quant.zoo.blocks import HeadLayerNorm
from isobit.quant.zoo.rwkv4 import depth_ratios
from isobit.quant.zoo.rwkv6 import GROUP_NORM_EPS, low_rank

SLOWEST = math.exp(-0.5)
"""A decay is exp(-SLOWEST * sigmoid(w)), so at least exp(-SLOWEST) = 0.545 (eq. 12)."""

KEY_NORM_EPS = 1e-12


@dataclass(frozen=True)
class Ranks:
    """Of the low-rank parts: decay w, in-context learning rate a, value residual v, output gate g."""

    w: int
    a: int
    v: int
    g: int


def _orthogonal(rows: int, columns: int) -> nn.Parameter:
    matrix = torch.empty(rows, columns)
    return nn.Parameter(nn.init.orthogonal_(matrix, gain=0.1 * max(1, rows / columns) ** 0.5))


class RWKV7TimeMix(nn.Module):
    """(B, T, d_model) and the first layer's values, or None in the first layer -> the output and these values."""

    def __init__(self, d_model: int, heads: int, layer: int, layers: int, ranks: Ranks) -> None:
        super().__init__()
        self.heads = heads
        deep, shallow = depth_ratios(layer, layers)
        size, place = d_model // heads, torch.arange(d_model) / d_model
        ramp = torch.arange(d_model) / (d_model - 1)
        zigzag = 2 * (torch.arange(d_model) % size) / (size - 1) - 1
        zigzag = zigzag * zigzag.abs()
        for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            self.register_parameter(f"x_{name}", nn.Parameter(1 - place ** (power * shallow)))
        self.w0 = nn.Parameter(-6 + 6 * ramp ** (1 + deep**0.3) + 0.5 + 2.5 * zigzag)
        self.a0 = nn.Parameter(-0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5))
        self.w1, self.w2 = low_rank(d_model, ranks.w), _orthogonal(ranks.w, d_model)
        self.a1, self.a2 = low_rank(d_model, ranks.a), _orthogonal(ranks.a, d_model)
        self.g1, self.g2 = low_rank(d_model, ranks.g), _orthogonal(ranks.g, d_model)
        if layer > 0:
            self.v0 = nn.Parameter(0.73 - 0.4 * (ramp - 0.5))
            self.v1, self.v2 = low_rank(d_model, ranks.v), _orthogonal(ranks.v, d_model)
        self.k_k = nn.Parameter(0.71 - 0.1 * (ramp - 0.5))
        self.k_a = nn.Parameter(torch.full((d_model,), 1.02))
        self.r_k = nn.Parameter(torch.full((heads, size), -0.04))
        self.time_shift, self.recurrence = Shift(), GeneralizedDeltaRecurrence()
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.ln_x = HeadLayerNorm(d_model, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        linear, split = functional.linear, (self.heads, -1)
        change = self.time_shift(x) - x
        x_r, x_w, x_k, x_v, x_a, x_g = (x + change * getattr(self, f"x_{name}") for name in "rwkvag")
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        w = linear(torch.tanh(linear(x_w, self.w1.T)), self.w2.T, self.w0)
        decay = torch.exp(torch.sigmoid(w) * -SLOWEST)
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(linear(linear(x_v, self.v1.T), self.v2.T, self.v0))
        a = torch.sigmoid(linear(linear(x_a, self.a1.T), self.a2.T, self.a0))
        g = linear(torch.sigmoid(linear(x_g, self.g1.T)), self.g2.T)
        removal = l2norm((k * self.k_k).unflatten(-1, split), KEY_NORM_EPS)
        k = k * (1 + (a - 1) * self.k_a)
        r, decay, k, v_heads, a = (y.unflatten(-1, split) for y in (r, decay, k, v, a))
        o = self.ln_x(self.recurrence(r, decay, k, v_heads, -removal, removal * a))
        o = o + ((r * k * self.r_k).sum(-1, keepdim=True) * v_heads).flatten(-2)
        out: Tensor = self.output(o * g)
        return out, v_first


class RWKV7ChannelMix(nn.Module):
    """value(relu(key(x))^2) of two steps' mixture."""

    def __init__(self, d_model: int, layer: int, layers: int, d_hidden: int) -> None:
        super().__init__()
        self.x_k = nn.Parameter(1 - (torch.arange(d_model) / d_model) ** (depth_ratios(layer, layers)[1] ** 4))
        self.time_shift = Shift()
        self.key = nn.Linear(d_model, d_hidden, bias=False)
        self.value = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x + (self.time_shift(x) - x) * self.x_k
        out: Tensor = self.value(functional.relu(self.key(mixed)).square())
        return out


class RWKV7Block(nn.Module):
    """h = x + att(ln1(x)); h + ffn(ln2(h)), with the first layer's values.  Layer 0 normalises its input first."""

    def __init__(self, d_model: int, heads: int, layer: int, layers: int, d_hidden: int, ranks: Ranks) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(d_model) if layer == 0 else nn.Identity()
        self.ln1, self.att = nn.LayerNorm(d_model), RWKV7TimeMix(d_model, heads, layer, layers, ranks)
        self.ln2, self.ffn = nn.LayerNorm(d_model), RWKV7ChannelMix(d_model, layer, layers, d_hidden)

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.ln0(x)
        mixed, v_first = self.att(self.ln1(x), v_first)
        x = x + mixed
        return x + self.ffn(self.ln2(x)), v_first


class RWKV7(nn.Module):
    """`layers` blocks of RWKV-7, (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, heads: int, layers: int, d_hidden: int, ranks: Ranks) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            RWKV7Block(d_model, heads, layer, layers, d_hidden, ranks) for layer in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        v_first: Tensor | None = None
        for block in self.blocks:
            x, v_first = block(x, v_first)
        return x
