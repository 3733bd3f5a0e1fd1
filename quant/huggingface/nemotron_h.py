"""Nemotron-H (NVIDIA, 2025), Mamba-2, attention, MLPs and mixtures of experts: model type `nemotron_h`."""

from __future__ import annotations

import math

from torch import Tensor, nn

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.experts import Experts, SigmoidRouter
from isobit.quant.huggingface.language_model import BACKBONE, LanguageModel
from isobit.quant.huggingface.layers import Activation, Attention, activation, attention_window
from isobit.quant.huggingface.mamba2 import Mamba2Mixer, Mamba2Sizes
from isobit.quant.zoo.blocks import PreNorm

PATTERN = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
"""The kinds of layer by their letter in hybrid_override_pattern."""


class MLP(nn.Module):
    """down_proj(f(up_proj(x)))."""

    def __init__(self, width: int, inner: int, act: Activation, bias: bool) -> None:
        super().__init__()
        self.act = act
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.up_proj(x)))
        return out


class MixtureOfExperts(nn.Module):
    """Routed experts, in a latent space if `latent` is given, plus an MLP that all tokens share."""

    def __init__(
        self, router: SigmoidRouter, experts: Experts, shared: MLP, width: int, latent: int | None, bias: bool
    ) -> None:
        super().__init__()
        self.gate, self.experts, self.shared_experts = router, experts, shared
        self.fc1_latent_proj = nn.Identity() if latent is None else nn.Linear(width, latent, bias=bias)
        self.fc2_latent_proj = nn.Identity() if latent is None else nn.Linear(latent, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        routed = self.fc2_latent_proj(self.experts(self.fc1_latent_proj(x), self.gate(x)))
        out: Tensor = routed + self.shared_experts(x)
        return out


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of a `nemotron_h` configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("layer_norm_epsilon", 1e-5)

    def mixer(kind: str) -> nn.Module:
        match kind:
            case "linear_attention":
                return Mamba2Mixer(_sizes(config, width, eps))
            case "full_attention":
                return _attention(config, width, t_max)
            case "moe":
                return _mixture(config, width)
            case _:
                return _mlp(config, width, config.integer("intermediate_size"))

    layers = (PreNorm(nn.RMSNorm(width, eps), mixer(kind)) for kind in _kinds(config))
    return LanguageModel(BACKBONE, config.integer("vocab_size"), width, layers, nn.RMSNorm(width, eps), tied=False)


def _kinds(config: Config) -> list[str]:
    for key in ("layers_block_type", "layer_types"):
        value = config.values.get(key)
        if isinstance(value, list):
            return config.layer_types(key, tuple(PATTERN.values()), len(value))
    pattern = config.values.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or not set(pattern) <= set(PATTERN):
        raise config.error("hybrid_override_pattern", f"a string of {' '.join(PATTERN)}, or a list layers_block_type")
    return [PATTERN[letter] for letter in pattern]


def _sizes(config: Config, width: int, eps: float) -> Mamba2Sizes:
    heads = config.integer("mamba_num_heads", 128)
    return Mamba2Sizes(
        width,
        heads,
        config.integer("mamba_head_dim", 64),
        config.share(_either(config, "mamba_n_groups", "n_groups"), heads, "mamba_num_heads"),
        config.integer("ssm_state_size", 128),
        config.integer(_either(config, "mamba_d_conv", "conv_kernel"), 4),
        eps,
        activation(config, "mamba_hidden_act", "silu"),
        config.flag("use_bias", False),
        config.flag(_either(config, "mamba_conv_bias", "use_conv_bias"), True),
        (config.number(_either(config, "mamba_dt_min", "time_step_min"), 0.001), math.inf),
    )


def _either(config: Config, legacy: str, key: str) -> str:
    return legacy if config.has(legacy) else key


def _attention(config: Config, width: int, t_max: int | None) -> Attention:
    heads = config.integer("num_attention_heads")
    groups = config.share("num_key_value_heads", heads, "num_attention_heads")
    return Attention(width, heads, groups, config.integer("head_dim", 128), attention_window(config, t_max))


def _mlp(config: Config, width: int, inner: int) -> MLP:
    return MLP(width, inner, activation(config, "mlp_hidden_act", "relu2"), config.flag("mlp_bias", False))


def _mixture(config: Config, width: int) -> MixtureOfExperts:
    config.only("n_group", 1, 1)
    count, latent = config.integer("n_routed_experts"), None
    if config.has("moe_latent_size"):
        latent = config.integer("moe_latent_size")
    k = config.integer("num_experts_per_tok", 2)
    if k > count:
        raise config.error("num_experts_per_tok", f"at most n_routed_experts ({count})")
    factor, normalise = config.number("routed_scaling_factor", 1.0), config.flag("norm_topk_prob", True)
    inner, act = config.integer("moe_intermediate_size"), activation(config, "mlp_hidden_act", "relu2")
    return MixtureOfExperts(
        SigmoidRouter(count, width, k, normalise, factor),
        Experts(count, latent or width, inner, act, (None, "up_proj", "down_proj")),
        _mlp(config, width, config.integer("moe_shared_expert_intermediate_size")),
        width,
        latent,
        config.flag("mlp_bias", False),
    )
