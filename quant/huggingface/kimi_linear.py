"""Kimi Linear (2025), Kimi delta attention, latent attention, mixtures of experts: model type `kimi_linear`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.experts import Experts, SigmoidRouter
from isobit.quant.huggingface.language_model import MODEL, LanguageModel
from isobit.quant.huggingface.layers import (
    Activation,
    CausalConv,
    GatedMLP,
    GroupedLinear,
    HeadLinear,
    RootMeanSquareGate,
    activation,
    attention_window,
    parameter,
)
from isobit.quant.nn import causal_attention, delta_recurrence, l2norm

KINDS = ("full_attention", "linear_attention")
MLP_KINDS = ("dense", "sparse")

L2_EPS = 1e-6
"""Added to the sum of squares of queries and keys."""

LATENT_EPS = 1e-6
"""Of the norms of latents, which do not follow rms_norm_eps."""


class DeltaAttention(nn.Module):
    """KDA: the delta rule with a decay per key, of convolved, normed queries and keys; normed and gated readout."""

    def __init__(self, width: int, heads: int, head_dim: int, kernel: int, eps: float, act: Activation) -> None:
        super().__init__()
        inner = heads * head_dim
        self.shape, self.act, self.scale = (heads, head_dim), act, head_dim**-0.5
        for name in ("q", "k", "v"):
            self.add_module(f"{name}_proj", nn.Linear(width, inner, bias=False))
            self.add_module(f"{name}_conv1d", CausalConv(inner, kernel, bias=False))
        self.f_a_proj, self.f_b_proj = nn.Linear(width, head_dim, bias=False), nn.Linear(head_dim, inner, bias=False)
        self.dt_bias, self.A_log = parameter(inner), parameter(1, 1, heads, 1)
        self.b_proj = nn.Linear(width, heads, bias=False)
        self.g_a_proj, self.g_b_proj = nn.Linear(width, head_dim, bias=False), nn.Linear(head_dim, inner, bias=False)
        self.o_norm = RootMeanSquareGate(head_dim, eps, torch.sigmoid)
        self.o_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._convolved(name, x) for name in ("q", "k", "v"))
        rate = -torch.exp(self.A_log.flatten().unsqueeze(-1))
        step = functional.softplus(self.f_b_proj(self.f_a_proj(x)) + self.dt_bias)
        decay = torch.exp(step.unflatten(-1, self.shape) * rate)
        q, k = l2norm(q, L2_EPS) * self.scale, l2norm(k, L2_EPS)
        y = delta_recurrence(q, k, v, torch.sigmoid(self.b_proj(x)), decay)
        gate = self.g_b_proj(self.g_a_proj(x)).unflatten(-1, self.shape)
        out: Tensor = self.o_proj(self.o_norm(y, gate).flatten(2))
        return out

    def _convolved(self, name: str, x: Tensor) -> Tensor:
        projected = self.get_submodule(f"{name}_proj")(x)
        out: Tensor = self.act(self.get_submodule(f"{name}_conv1d")(projected)).unflatten(-1, self.shape)
        return out


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1) without positions.

    Keys are `nope` channels from the latent and `shared` channels that all heads have in common.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        query_rank: int | None,
        rank: int,
        nope: int,
        shared: int,
        value: int,
        window: int,
        bias: bool,
    ) -> None:
        super().__init__()
        self.heads, self.parts = heads, (rank, shared)
        self.window, self.scale, self.query_rank = window, (nope + shared) ** -0.5, query_rank
        if query_rank is None:
            self.q_proj = HeadLinear(width, heads, nope + shared)
        else:
            self.q_a_proj = nn.Linear(width, query_rank, bias=bias)
            self.q_a_layernorm = nn.RMSNorm(query_rank, LATENT_EPS)
            self.q_b_proj = HeadLinear(query_rank, heads, nope + shared)
        self.kv_a_proj_with_mqa = nn.Linear(width, rank + shared, bias=bias)
        self.kv_a_layernorm = nn.RMSNorm(rank, LATENT_EPS)
        self.kv_b_proj = GroupedLinear(rank, heads, (nope, value))
        self.o_proj = nn.Linear(heads * value, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_proj(x) if self.query_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        latent, shared = self.kv_a_proj_with_mqa(x).split(self.parts, dim=-1)
        own, v = (part.unflatten(-1, (self.heads, -1)) for part in self.kv_b_proj(self.kv_a_layernorm(latent)))
        k = torch.cat((own, shared.unsqueeze(2).expand(-1, -1, self.heads, -1)), dim=-1)
        out: Tensor = self.o_proj(causal_attention(q, k, v, self.window, self.scale).flatten(2))
        return out


class MixtureOfExperts(nn.Module):
    """Routed experts w2(f(w1 x) * w3 x), plus an MLP that all tokens share."""

    def __init__(self, router: SigmoidRouter, experts: Experts, shared: GatedMLP) -> None:
        super().__init__()
        self.gate, self.experts, self.shared_experts = router, experts, shared

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.experts(x, self.gate(x)) + self.shared_experts(x)
        return out


class Layer(nn.Module):
    """x + self_attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, eps: float, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.self_attn, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of a `kimi_linear` configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("rms_norm_eps", 1e-5)
    count, act = config.integer("num_hidden_layers"), activation(config, "hidden_act", "silu")

    def layer(kind: str, mlp_kind: str) -> Layer:
        attention = _latent(config, width, t_max) if kind == "full_attention" else _delta(config, width, eps, act)
        dense = mlp_kind == "dense"
        mlp = GatedMLP(width, config.integer("intermediate_size"), act) if dense else _mixture(config, width, act)
        return Layer(width, eps, attention, mlp)

    kinds = zip(_kinds(config, count), _mlp_kinds(config, count), strict=True)
    layers = (layer(kind, mlp_kind) for kind, mlp_kind in kinds)
    return LanguageModel(MODEL, config.integer("vocab_size"), width, layers, nn.RMSNorm(width, eps), tied=False)


def _kinds(config: Config, count: int) -> list[str]:
    """From layer_types, or from the lists of layers, counted from 1, in linear_attn_config."""
    if config.has("layer_types"):
        return config.layer_types("layer_types", KINDS, count)
    section = config.section("linear_attn_config")
    full = section.integers("linear_attn_config.full_attn_layers")
    delta = section.integers("linear_attn_config.kda_layers")
    if sorted(full + delta) != list(range(1, count + 1)):
        raise section.error("linear_attn_config.kda_layers", f"with full_attn_layers, each of 1 to {count} once")
    return ["full_attention" if i + 1 in full else "linear_attention" for i in range(count)]


def _mlp_kinds(config: Config, count: int) -> list[str]:
    if config.has("mlp_layer_types"):
        return config.layer_types("mlp_layer_types", MLP_KINDS, count)
    config.only("moe_layer_freq", 1, 1)
    dense = config.integer("first_k_dense_replace", 1, low=0)
    return ["dense" if i < dense else "sparse" for i in range(count)]


def _delta(config: Config, width: int, eps: float, act: Activation) -> DeltaAttention:
    section = config.section("linear_attn_config")
    heads, head_dim, kernel = (
        section.integer(f"linear_attn_config.{old}", config.integer(key, default))
        for old, key, default in (
            ("num_heads", "linear_num_heads", 32),
            ("head_dim", "linear_head_dim", 128),
            ("short_conv_kernel_size", "linear_conv_kernel_dim", 4),
        )
    )
    return DeltaAttention(width, heads, head_dim, kernel, eps, act)


def _latent(config: Config, width: int, t_max: int | None) -> LatentAttention:
    heads = config.integer("num_attention_heads")
    config.only("num_key_value_heads", heads, heads)
    return LatentAttention(
        width,
        heads,
        config.integer("q_lora_rank") if config.has("q_lora_rank") else None,
        config.integer("kv_lora_rank", 512),
        config.integer("qk_nope_head_dim", 128),
        config.integer("qk_rope_head_dim", 64),
        config.integer("v_head_dim", 128),
        attention_window(config, t_max),
        config.flag("attention_bias", False),
    )


def _mixture(config: Config, width: int, act: Activation) -> MixtureOfExperts:
    config.only("num_expert_group", 1, 1)
    config.only("moe_router_activation_func", "sigmoid", "sigmoid")
    count = config.integer("num_experts", 256)
    k = config.integer("num_experts_per_token", 8)
    if k > count:
        raise config.error("num_experts_per_token", f"at most num_experts ({count})")
    inner, shared = config.integer("moe_intermediate_size"), config.integer("num_shared_experts", 1)
    factor, normalise = config.number("routed_scaling_factor", 2.446), config.flag("moe_renormalize", True)
    return MixtureOfExperts(
        SigmoidRouter(count, width, k, normalise, factor),
        Experts(count, width, inner, act, ("w1", "w3", "w2")),
        GatedMLP(width, shared * inner, act),
    )
