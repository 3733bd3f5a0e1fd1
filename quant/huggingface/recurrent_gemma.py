"""RecurrentGemma (Botev et al., 2024), which is Griffin (De et al., 2024): model type `recurrent_gemma`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import LanguageModel, Names
from isobit.quant.huggingface.layers import (
    CPU,
    Activation,
    Attention,
    CausalConv,
    GatedMLP,
    OffsetRMSNorm,
    activation,
    attention_window,
    parameter,
    rotation,
)
from isobit.quant.nn import diagonal_recurrence, shift

DECAY_POWER = 8.0
"""c of De et al., eq. 6."""


class RGLRU(nn.Module):
    """The real-gated linear recurrent unit (De et al., eq. 3 to 6), its gates' weights block-diagonal over heads.

    (x (B, T, inner), started (B, T, 1)) -> h: h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t, without the root at the
    first step, where started is 0; it is 1 from then on.
    """

    def __init__(self, inner: int, heads: int) -> None:
        super().__init__()
        block = inner // heads
        self.recurrent_param = parameter(inner)
        self.input_gate_weight = parameter(heads, block, block)
        self.input_gate_bias = parameter(heads, block)
        self.recurrent_gate_weight = parameter(heads, block, block)
        self.recurrent_gate_bias = parameter(heads, block)

    def forward(self, x: Tensor, started: Tensor) -> Tensor:
        i = torch.sigmoid(_per_head(x, self.input_gate_weight, self.input_gate_bias))
        r = torch.sigmoid(_per_head(x, self.recurrent_gate_weight, self.recurrent_gate_bias))
        log_decay = r * (-DECAY_POWER * functional.softplus(self.recurrent_param))
        root = torch.sqrt(1 - torch.exp(2 * log_decay))
        return diagonal_recurrence(torch.exp(log_decay), x * i * (1 - started * (1 - root)))


def _per_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B, T, heads * block) times one matrix (block in, block out) per head, plus bias (heads, block)."""
    whole = torch.block_diag(*(weight[i].T for i in range(len(weight))))
    return functional.linear(x, whole, bias.flatten())


class RecurrentBlock(nn.Module):
    """linear_out(rg_lru(conv(linear_x(x))) * f(linear_y(x)))."""

    def __init__(self, width: int, inner: int, heads: int, kernel: int, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.linear_x, self.linear_y = nn.Linear(width, inner), nn.Linear(width, inner)
        self.conv_1d = CausalConv(inner, kernel, bias=True)
        self.rg_lru = RGLRU(inner, heads)
        self.linear_out = nn.Linear(inner, width)

    def forward(self, x: Tensor, started: Tensor) -> Tensor:
        h = self.rg_lru(self.conv_1d(self.linear_x(x)), started)
        out: Tensor = self.linear_out(h * self.act(self.linear_y(x)))
        return out


class Layer(nn.Module):
    """x + temporal_block(norm(x)), then x + mlp_block(norm(x)), both with the first-step mark if they recur."""

    def __init__(self, width: int, eps: float, temporal: RecurrentBlock | Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.recurs = isinstance(temporal, RecurrentBlock)
        self.temporal_pre_norm, self.channel_pre_norm = OffsetRMSNorm(width, eps), OffsetRMSNorm(width, eps)
        self.temporal_block, self.mlp_block = temporal, mlp

    def forward(self, x: Tensor, started: Tensor) -> Tensor:
        normed = self.temporal_pre_norm(x)
        x = x + (self.temporal_block(normed, started) if self.recurs else self.temporal_block(normed))
        out: Tensor = x + self.mlp_block(self.channel_pre_norm(x))
        return out


class RecurrentGemma(LanguageModel):
    """With the embedding scaled and a mark for the first step: an embedding whose rows are all 1, delayed by one."""

    def __init__(
        self, vocabulary: int, width: int, layers: Iterable[nn.Module], norm: nn.Module, tied: bool, cap: float
    ):
        names = Names("model", "embed_tokens", "layers", "final_norm")
        super().__init__(names, vocabulary, width, layers, norm, tied, cap)
        self.scale = float(torch.tensor(width**0.5, dtype=torch.bfloat16, device=CPU))
        self.ones: Tensor
        self.register_buffer("ones", torch.ones(vocabulary, 1, device=CPU), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        started = shift(functional.embedding(ids, self.ones))
        x = self.part(self.names.embedding)(ids) * self.scale
        for layer in self.part(self.names.layers).children():
            x = layer(x, started)
        return self.logits(x)


def build(config: Config, t_max: int | None) -> RecurrentGemma:
    """The model of a `recurrent_gemma` configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("rms_norm_eps", 1e-6)
    act, count = activation(config, "hidden_activation", "gelu_pytorch_tanh"), config.integer("num_hidden_layers")
    mlp_width = config.integer("intermediate_size") // 2

    def layer(kind: str) -> Layer:
        temporal = _attention(config, width, t_max) if kind == "attention" else _recurrent(config, width, act)
        return Layer(width, eps, temporal, GatedMLP(width, mlp_width, act, bias=True))

    layers = (layer(kind) for kind in _kinds(config, count))
    cap, tied = config.number("logits_soft_cap", 30.0, low=1e-3), config.flag("tie_word_embeddings", True)
    return RecurrentGemma(config.integer("vocab_size"), width, layers, OffsetRMSNorm(width, eps), tied, cap)


def _kinds(config: Config, count: int) -> list[str]:
    kinds = config.values.get("block_types", ["recurrent", "recurrent", "attention"])
    if not isinstance(kinds, list) or not kinds or not all(kind in ("recurrent", "attention") for kind in kinds):
        raise config.error("block_types", "a list of recurrent, attention")
    return [kinds[i % len(kinds)] for i in range(count)]


def _recurrent(config: Config, width: int, act: Activation) -> RecurrentBlock:
    inner = config.integer("lru_width", width)
    heads = config.share("num_attention_heads", inner, "lru_width")
    return RecurrentBlock(width, inner, heads, config.integer("conv1d_width", 4), act)


def _attention(config: Config, width: int, t_max: int | None) -> Attention:
    heads = config.share("num_attention_heads", width, "hidden_size")
    groups = config.share("num_key_value_heads", heads, "num_attention_heads", heads)
    window = attention_window(config, t_max, config.integer("attention_window_size", 2048))
    turn, bias = rotation(config, width // heads, 1e4, 0.5), config.flag("attention_bias", False)
    return Attention(width, heads, groups, width // heads, window, turn, bias, out_bias=True)
