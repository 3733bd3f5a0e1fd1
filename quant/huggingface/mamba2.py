"""Mamba-2 (Dao and Gu, 2024): model type `mamba2`, and the mixer of the hybrids Bamba and Nemotron-H."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import BACKBONE, LanguageModel
from isobit.quant.huggingface.layers import Activation, CausalConv, activation, parameter
from isobit.quant.nn import linear_recurrence
from isobit.quant.zoo.blocks import PreNorm


@dataclass(frozen=True)
class Mamba2Sizes:
    """Of a mixer. state: keys per group. steps: the interval that a step size is clamped to."""

    width: int
    heads: int
    head_dim: int
    groups: int
    state: int
    kernel: int
    eps: float
    act: Activation
    bias: bool = False
    conv_bias: bool = True
    steps: tuple[float, float] = (0.0, math.inf)


class GatedGroupNorm(nn.Module):
    """weight * rms_norm(x * silu(gate)), normalised over each of the `groups` equal parts of the channels."""

    def __init__(self, size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = parameter(size)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = x * functional.silu(gate)
        if self.groups == 1:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        parts = x.unflatten(-1, (self.groups, -1))
        return functional.rms_norm(parts, parts.shape[-1:], None, self.eps).flatten(2) * self.weight


class Mamba2Mixer(nn.Module):
    """(B, T, width) -> (B, T, width): h = exp(dt A) h + dt B x^T per head, read by C (Dao and Gu, section 7)."""

    def __init__(self, sizes: Mamba2Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.inner, self.keys = sizes.heads * sizes.head_dim, sizes.groups * sizes.state
        self.in_proj = nn.Linear(sizes.width, 2 * self.inner + 2 * self.keys + sizes.heads, bias=sizes.bias)
        self.conv1d = CausalConv(self.inner + 2 * self.keys, sizes.kernel, sizes.conv_bias)
        self.dt_bias = parameter(sizes.heads)
        self.A_log = parameter(sizes.heads)
        self.D = parameter(sizes.heads)
        self.norm = GatedGroupNorm(self.inner, sizes.groups, sizes.eps)
        self.out_proj = nn.Linear(self.inner, sizes.width, bias=sizes.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        sizes, inner, keys = self.sizes, self.inner, self.keys
        z, x, b, c, dt = self.in_proj(hidden).split((inner, inner, keys, keys, sizes.heads), dim=-1)
        x = sizes.act(self.conv1d(x)).unflatten(-1, (sizes.heads, sizes.head_dim))
        b = sizes.act(self.conv1d(b, inner)).unflatten(-1, (sizes.groups, sizes.state))
        c = sizes.act(self.conv1d(c, inner + keys)).unflatten(-1, (sizes.groups, sizes.state))
        dt = self._clamped(functional.softplus(dt + self.dt_bias))
        decay = torch.exp(dt * -torch.exp(self.A_log))
        y = linear_recurrence(c, b, x * dt.unsqueeze(-1), decay) + self.D.unsqueeze(-1) * x
        out: Tensor = self.out_proj(self.norm(y.flatten(2), z))
        return out

    def _clamped(self, dt: Tensor) -> Tensor:
        low, high = self.sizes.steps
        if low <= 0 and high == math.inf:
            return dt
        return dt.clamp(min=low if low > 0 else None, max=high if high < math.inf else None)


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of a `mamba2` configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("layer_norm_epsilon", 1e-5)
    heads, head_dim = config.integer("num_heads", 128), config.integer("head_dim", 64)
    if heads * head_dim != config.number("expand", 2) * width:
        raise config.error("num_heads", f"expand * hidden_size / head_dim, the number of heads of {head_dim} channels")
    sizes = Mamba2Sizes(
        width,
        heads,
        head_dim,
        config.share("n_groups", heads, "num_heads", 8),
        config.integer("state_size", 128),
        config.integer("conv_kernel", 4),
        eps,
        activation(config, "hidden_act", "silu"),
        config.flag("use_bias", False),
        config.flag("use_conv_bias", True),
        config.interval("time_step_limit"),
    )
    count = config.integer("num_hidden_layers")
    layers = (PreNorm(nn.RMSNorm(width, eps), Mamba2Mixer(sizes)) for _ in range(count))
    tied = config.flag("tie_word_embeddings", False)
    return LanguageModel(BACKBONE, config.integer("vocab_size"), width, layers, nn.RMSNorm(width, eps), tied)
