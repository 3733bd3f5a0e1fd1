"""MiniMax-01 (2025), lightning and softmax attention with mixtures of experts: model type `minimax`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.experts import Experts, SoftmaxRouter
from isobit.quant.huggingface.language_model import MODEL, LanguageModel
from isobit.quant.huggingface.layers import (
    CPU,
    Activation,
    Attention,
    GroupedLinear,
    activation,
    attention_window,
    rotation,
    scaled,
)
from isobit.quant.nn import linear_recurrence

KINDS = ("full_attention", "linear_attention")

LIGHTNING_NORM_EPS = 1e-6
"""Of the norm of lightning attention, which does not follow rms_norm_eps."""


class LightningAttention(nn.Module):
    """Linear attention of f(q), f(k), f(v) with a constant decay per head, normed and gated (Qin et al., 2024).

    The decay is e^-slope_rate.  depth: the layer's, from 0 for the first to 1 for the last.
    """

    def __init__(self, width: int, heads: int, head_dim: int, act: Activation, depth: float) -> None:
        super().__init__()
        self.act, self.heads = act, heads
        self.qkv_proj = GroupedLinear(width, heads, (head_dim,) * 3)
        self.norm = nn.RMSNorm(heads * head_dim, LIGHTNING_NORM_EPS)
        self.output_gate = nn.Linear(width, heads * head_dim, bias=False)
        self.out_proj = nn.Linear(heads * head_dim, width, bias=False)
        slopes = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, device=CPU)) * (1 - depth + 1e-5)
        self.slope_rate: Tensor
        self.register_buffer("slope_rate", slopes.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.act(part).unflatten(-1, (self.heads, -1)) for part in self.qkv_proj(x))
        y = linear_recurrence(q, k, v, torch.exp(-self.slope_rate.flatten()))
        out: Tensor = self.out_proj(torch.sigmoid(self.output_gate(x)) * self.norm(y.flatten(2)))
        return out


class SparseBlock(nn.Module):
    """Experts w2(f(w1 x) * w3 x) by the `k` largest of a softmax."""

    def __init__(self, experts: int, k: int, width: int, inner: int, act: Activation) -> None:
        super().__init__()
        self.gate = SoftmaxRouter(experts, width, k, normalise=True)
        self.experts = Experts(experts, width, inner, act, ("w1", "w3", "w2"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.experts(x, self.gate(x))
        return out


class Layer(nn.Module):
    """x = norm(x), x = alpha x + beta attention(x), and the same with the experts: the norms are on the residual."""

    def __init__(
        self,
        width: int,
        eps: float,
        attention: nn.Module,
        mixture: nn.Module,
        factors: tuple[tuple[float, float], tuple[float, float]],
    ) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.self_attn, self.block_sparse_moe, self.factors = attention, mixture, factors

    def forward(self, x: Tensor) -> Tensor:
        (alpha, beta), (mlp_alpha, mlp_beta) = self.factors
        x = self.input_layernorm(x)
        x = self.post_attention_layernorm(scaled(x, alpha) + scaled(self.self_attn(x), beta))
        return scaled(x, mlp_alpha) + scaled(self.block_sparse_moe(x), mlp_beta)


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of a `minimax` configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("rms_norm_eps", 1e-5)
    count, act = config.integer("num_hidden_layers"), activation(config, "hidden_act", "silu")
    inner, experts = config.integer("intermediate_size"), config.integer("num_local_experts", 8)
    k = config.integer("num_experts_per_tok", 2)
    if k > experts:
        raise config.error("num_experts_per_tok", f"at most num_local_experts ({experts})")
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", width // heads)

    def layer(i: int, kind: str) -> Layer:
        mixture = SparseBlock(experts, k, width, inner, act)
        if kind == "linear_attention":
            attention: nn.Module = LightningAttention(width, heads, head_dim, act, i / (count - 1 + 1e-5))
            return Layer(width, eps, attention, mixture, (_factors(config, "linear_attn"), _factors(config, "mlp")))
        groups = config.share("num_key_value_heads", heads, "num_attention_heads")
        sliding = config.integer("sliding_window") if config.has("sliding_window") else None
        window, turn = attention_window(config, t_max, sliding), rotation(config, head_dim, 1e6)
        attention = Attention(width, heads, groups, head_dim, window, turn)
        return Layer(width, eps, attention, mixture, (_factors(config, "full_attn"), _factors(config, "mlp")))

    layers = (layer(i, kind) for i, kind in enumerate(_kinds(config, count)))
    tied = config.flag("tie_word_embeddings", False)
    return LanguageModel(MODEL, config.integer("vocab_size"), width, layers, nn.RMSNorm(width, eps), tied)


def _kinds(config: Config, count: int) -> list[str]:
    if config.has("layer_types"):
        return config.layer_types("layer_types", KINDS, count)
    return [KINDS[i % 2] for i in range(count)]


def _factors(config: Config, name: str) -> tuple[float, float]:
    return config.number(f"{name}_alpha_factor", 1.0), config.number(f"{name}_beta_factor", 1.0)
