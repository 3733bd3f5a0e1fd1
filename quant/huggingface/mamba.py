"""Mamba (Gu and Dao, 2023) and Falcon Mamba (Zuo et al., 2024): model types `mamba` and `falcon_mamba`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import BACKBONE, LanguageModel
from isobit.quant.huggingface.layers import Activation, CausalConv, activation, parameter
from isobit.quant.nn import selective_recurrence
from isobit.quant.zoo.blocks import PreNorm


class MambaMixer(nn.Module):
    """(B, T, width) -> (B, T, width). inner: channels of the state space. rank: that of the step size's projection.

    parts_eps: epsilon of the norms without weight of Falcon Mamba, on the step size's input, B and C; None for Mamba.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        state: int,
        kernel: int,
        rank: int,
        act: Activation,
        bias: bool = False,
        conv_bias: bool = True,
        parts_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.sizes, self.act, self.parts_eps = (rank, state, state), act, parts_eps
        self.in_proj = nn.Linear(width, 2 * inner, bias=bias)
        self.conv1d = CausalConv(inner, kernel, conv_bias)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = parameter(inner, state)
        self.D = parameter(inner)
        self.out_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        x = self.act(self.conv1d(x))
        low, b, c = self.x_proj(x).split(self.sizes, dim=-1)
        if self.parts_eps is not None:
            low, b, c = (functional.rms_norm(part, part.shape[-1:], None, self.parts_eps) for part in (low, b, c))
        dt = functional.softplus(self.dt_proj(low))
        y = selective_recurrence(x, dt, -torch.exp(self.A_log), b, c) + self.D * x
        out: Tensor = self.out_proj(y * functional.silu(z))
        return out


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of a `mamba` or `falcon_mamba` configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("layer_norm_epsilon", 1e-5)
    rank = math.ceil(width / 16)
    if config.values.get("time_step_rank") != "auto":
        rank = config.integer("time_step_rank", rank)
    falcon = config.values["model_type"] == "falcon_mamba"
    layers = (
        PreNorm(
            nn.RMSNorm(width, eps),
            MambaMixer(
                width,
                int(config.number("expand", 2) * width),
                config.integer("state_size", 16),
                config.integer("conv_kernel", 4),
                rank,
                activation(config, "hidden_act", "silu"),
                config.flag("use_bias", False),
                config.flag("use_conv_bias", True),
                config.number("mixer_rms_eps", 1e-6) if falcon else None,
            ),
        )
        for _ in range(config.integer("num_hidden_layers"))
    )
    tied = config.flag("tie_word_embeddings", True)
    return LanguageModel(BACKBONE, config.integer("vocab_size"), width, layers, nn.RMSNorm(width, eps), tied)
