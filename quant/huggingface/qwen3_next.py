"""Qwen3-Next (2025), gated delta networks, gated attention, mixtures of experts: model type `qwen3_next`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.experts import Experts, SoftmaxRouter
from isobit.quant.huggingface.language_model import MODEL, LanguageModel
from isobit.quant.huggingface.layers import (
    Activation,
    CausalConv,
    GatedMLP,
    GroupedLinear,
    HeadLinear,
    OffsetRMSNorm,
    RootMeanSquareGate,
    Rotation,
    activation,
    attention_window,
    parameter,
    rotation,
)
from isobit.quant.nn import causal_attention, delta_recurrence, l2norm, rotary

KINDS = ("full_attention", "linear_attention")

L2_EPS = 1e-6
"""Added to the sum of squares of queries and keys."""


class GatedAttention(nn.Module):
    """Rotary attention with norms on the heads of queries and keys, times the sigmoid of a gate beside the queries."""

    def __init__(
        self, width: int, heads: int, groups: int, head_dim: int, eps: float, turn: Rotation, window: int, bias: bool
    ) -> None:
        super().__init__()
        self.heads, self.window, self.scale = heads, window, head_dim**-0.5
        self.q_proj = GroupedLinear(width, heads, (head_dim, head_dim), (turn.order,), bias)
        self.k_proj = HeadLinear(width, groups, head_dim, turn.order, bias)
        self.v_proj = HeadLinear(width, groups, head_dim, None, bias)
        self.q_norm, self.k_norm = OffsetRMSNorm(head_dim, eps, turn.order), OffsetRMSNorm(head_dim, eps, turn.order)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=bias)
        self.theta: Tensor
        self.register_buffer("theta", turn.theta, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, gate = self.q_proj(x)
        q = rotary(self.q_norm(q.unflatten(-1, (self.heads, -1))), self.theta)
        k = rotary(self.k_norm(self.k_proj(x)), self.theta)
        y = causal_attention(q, k, self.v_proj(x), self.window, self.scale)
        out: Tensor = self.o_proj(y.flatten(2) * torch.sigmoid(gate))
        return out


class GatedDeltaNet(nn.Module):
    """The gated delta rule (Yang et al., 2024) on convolved, normed queries and keys; normed and gated readout."""

    def __init__(
        self, width: int, groups: int, heads: int, key: int, value: int, kernel: int, eps: float, act: Activation
    ) -> None:
        super().__init__()
        ratio = heads // groups
        self.heads, self.groups, self.act, self.scale = heads, groups, act, key**-0.5
        self.in_proj_qkvz = GroupedLinear(width, groups, (key, key, ratio * value, ratio * value))
        self.in_proj_ba = GroupedLinear(width, groups, (ratio, ratio))
        self.conv1d = CausalConv(2 * groups * key + heads * value, kernel, bias=False)
        self.dt_bias, self.A_log = parameter(heads), parameter(heads)
        self.norm = RootMeanSquareGate(value, eps, functional.silu)
        self.out_proj = nn.Linear(heads * value, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, z = self.in_proj_qkvz(x)
        b, a = self.in_proj_ba(x)
        keys = q.shape[-1]
        q = self.act(self.conv1d(q)).unflatten(-1, (self.groups, -1))
        k = self.act(self.conv1d(k, keys)).unflatten(-1, (self.groups, -1))
        v = self.act(self.conv1d(v, 2 * keys)).unflatten(-1, (self.heads, -1))
        decay = torch.exp(functional.softplus(a + self.dt_bias) * -torch.exp(self.A_log))
        q, k = l2norm(q, L2_EPS) * self.scale, l2norm(k, L2_EPS)
        y = delta_recurrence(q, k, v, torch.sigmoid(b), decay)
        out: Tensor = self.out_proj(self.norm(y, z.unflatten(-1, (self.heads, -1))).flatten(2))
        return out


class SparseBlock(nn.Module):
    """Routed experts, plus a shared one times the sigmoid of its gate."""

    def __init__(self, router: SoftmaxRouter, experts: Experts, shared: GatedMLP, width: int) -> None:
        super().__init__()
        self.gate, self.experts, self.shared_expert = router, experts, shared
        self.shared_expert_gate = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shared = torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        out: Tensor = self.experts(x, self.gate(x)) + shared
        return out


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); the mixer is called `name`."""

    def __init__(self, width: int, eps: float, name: str, mixer: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.mixer = name
        self.add_module(name, mixer)
        self.mlp = mlp
        self.input_layernorm, self.post_attention_layernorm = OffsetRMSNorm(width, eps), OffsetRMSNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.get_submodule(self.mixer)(self.input_layernorm(x))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of a `qwen3_next` configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("rms_norm_eps", 1e-6)
    count, act = config.integer("num_hidden_layers"), activation(config, "hidden_act", "silu")
    dense, every = config.integers("mlp_only_layers"), config.integer("decoder_sparse_step", 1)
    experts = config.integer("num_experts", 512, low=0)

    def layer(i: int, kind: str) -> Layer:
        sparse = i not in dense and experts > 0 and (i + 1) % every == 0
        mlp = _mixture(config, width, act) if sparse else GatedMLP(width, config.integer("intermediate_size"), act)
        if kind == "linear_attention":
            return Layer(width, eps, "linear_attn", _delta(config, width, eps, act), mlp)
        return Layer(width, eps, "self_attn", _attention(config, width, eps, t_max), mlp)

    layers = (layer(i, kind) for i, kind in enumerate(_kinds(config, count)))
    tied = config.flag("tie_word_embeddings", False)
    return LanguageModel(MODEL, config.integer("vocab_size"), width, layers, OffsetRMSNorm(width, eps), tied)


def _kinds(config: Config, count: int) -> list[str]:
    if config.has("layer_types"):
        return config.layer_types("layer_types", KINDS, count)
    interval = config.integer("full_attention_interval", 4)
    return ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)]


def _attention(config: Config, width: int, eps: float, t_max: int | None) -> GatedAttention:
    heads = config.integer("num_attention_heads")
    groups = config.share("num_key_value_heads", heads, "num_attention_heads")
    head_dim, window = config.integer("head_dim", 256), attention_window(config, t_max)
    turn, bias = rotation(config, head_dim, 1e4, 0.25), config.flag("attention_bias", False)
    return GatedAttention(width, heads, groups, head_dim, eps, turn, window, bias)


def _delta(config: Config, width: int, eps: float, act: Activation) -> GatedDeltaNet:
    heads = config.integer("linear_num_value_heads")
    return GatedDeltaNet(
        width,
        config.share("linear_num_key_heads", heads, "linear_num_value_heads"),
        heads,
        config.integer("linear_key_head_dim"),
        config.integer("linear_value_head_dim"),
        config.integer("linear_conv_kernel_dim", 4),
        eps,
        act,
    )


def _mixture(config: Config, width: int, act: Activation) -> SparseBlock:
    count, k = config.integer("num_experts", 512), config.integer("num_experts_per_tok", 10)
    if k > count:
        raise config.error("num_experts_per_tok", f"at most num_experts ({count})")
    inner, shared = config.integer("moe_intermediate_size"), config.integer("shared_expert_intermediate_size")
    return SparseBlock(
        SoftmaxRouter(count, width, k, config.flag("norm_topk_prob", True)),
        Experts(count, width, inner, act, ("gate_proj", "up_proj", "down_proj")),
        GatedMLP(width, shared, act),
        width,
    )
