"""LFM2 (Liquid AI, 2025), gated short convolutions and attention: model type `lfm2`."""

from __future__ import annotations

from torch import Tensor, nn

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import LanguageModel, Names
from isobit.quant.huggingface.layers import (
    ACTIVATIONS,
    CausalConv,
    GatedMLP,
    HeadLinear,
    Rotation,
    attention_window,
    rotation,
    rounded_up,
)
from isobit.quant.nn import causal_attention, rotary

KINDS = ("full_attention", "conv")


class ShortConvolution(nn.Module):
    """out_proj(c * conv(b * x)), with b, c and x from one projection."""

    def __init__(self, width: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 3 * width, bias=bias)
        self.conv = CausalConv(width, kernel, bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        b, c, x = self.in_proj(hidden).chunk(3, dim=-1)
        out: Tensor = self.out_proj(c * self.conv(b * x))
        return out


class NormedAttention(nn.Module):
    """Rotary attention with RMS norms on the heads of queries and keys."""

    def __init__(
        self, width: int, heads: int, groups: int, head_dim: int, eps: float, turn: Rotation, window: int
    ) -> None:
        super().__init__()
        self.window, self.scale = window, head_dim**-0.5
        self.q_proj = HeadLinear(width, heads, head_dim)
        self.k_proj = HeadLinear(width, groups, head_dim)
        self.v_proj = HeadLinear(width, groups, head_dim)
        self.q_layernorm, self.k_layernorm = nn.RMSNorm(head_dim, eps), nn.RMSNorm(head_dim, eps)
        self.out_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.theta: Tensor
        self.register_buffer("theta", turn.theta, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q = rotary(self.q_layernorm(self.q_proj(x)), self.theta)
        k = rotary(self.k_layernorm(self.k_proj(x)), self.theta)
        out: Tensor = self.out_proj(causal_attention(q, k, self.v_proj(x), self.window, self.scale).flatten(2))
        return out


class Layer(nn.Module):
    """x + operator(norm(x)), then x + mlp(norm(x)); the operator is called `name`."""

    def __init__(self, width: int, eps: float, name: str, operator: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.operator = name
        self.add_module(name, operator)
        self.feed_forward = mlp
        self.operator_norm, self.ffn_norm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.get_submodule(self.operator)(self.operator_norm(x))
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of an `lfm2` configuration, its parameters to be loaded."""
    width, eps, count = config.integer("hidden_size"), config.number("norm_eps", 1e-5), _layers(config)
    inner = _inner(config)

    def layer(kind: str) -> Layer:
        if kind == "conv":
            mixer: nn.Module = ShortConvolution(
                width, config.integer("conv_L_cache", 3), config.flag("conv_bias", False)
            )
        else:
            heads = config.integer("num_attention_heads")
            head_dim = config.integer("head_dim", width // heads)
            groups = config.share("num_key_value_heads", heads, "num_attention_heads")
            turn = rotation(config, head_dim, 1e6)
            mixer = NormedAttention(width, heads, groups, head_dim, eps, turn, attention_window(config, t_max))
        mlp = GatedMLP(width, inner, ACTIVATIONS["silu"], names=("w1", "w3", "w2"))
        return Layer(width, eps, "conv" if kind == "conv" else "self_attn", mixer, mlp)

    tied = config.flag("tie_embedding" if config.has("tie_embedding") else "tie_word_embeddings", True)
    names = Names("model", "embed_tokens", "layers", "embedding_norm")
    layers = (layer(kind) for kind in count)
    return LanguageModel(names, config.integer("vocab_size"), width, layers, nn.RMSNorm(width, eps), tied)


def _layers(config: Config) -> list[str]:
    layers = config.integer("num_hidden_layers")
    if config.has("layer_types"):
        return config.layer_types("layer_types", KINDS, layers)
    attention = config.integers("full_attn_idxs") if config.has("full_attn_idxs") else range(layers)
    return ["full_attention" if i in attention else "conv" for i in range(layers)]


def _inner(config: Config) -> int:
    inner = config.integer("block_ff_dim" if config.has("block_ff_dim") else "intermediate_size")
    if config.flag("block_auto_adjust_ff_dim", True):
        adjusted = int(config.number("block_ffn_dim_multiplier", 1.0) * int(2 * inner / 3))
        inner = rounded_up(adjusted, config.integer("block_multiple_of", 256))
    return inner
