"""Checkpoints of flash-linear-attention: model types `gla`, `retnet`, `delta_net`, `gated_deltanet`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import LanguageModel, Names
from isobit.quant.huggingface.layers import ACTIVATIONS, CPU, CausalConv, GatedMLP, parameter, rounded_up
from isobit.quant.nn import delta_recurrence, l2norm, linear_recurrence, rotary

NAMES = Names("model", "embeddings", "layers", "norm")

GATE_RANK = 16
"""Of GLA's projection to decays."""

GATE_NORMALISER = 16.0
"""What GLA divides the logarithm of a decay by (Yang et al., 2023, section 4.4)."""

ROTARY_BASE = 1e4
"""Of RetNet's positions."""

L2_EPS = 1e-6
"""Added to the sum of squares of queries and keys."""


@dataclass(frozen=True)
class Sizes:
    """Of a mixer: `groups` heads of `key` channels for queries and keys, `heads` of `value` channels for values.

    kernel: of the short convolutions, None without them.  gate: whether the readout is gated.  norm: what the
    checkpoint calls the readout's norm, and whether that has a weight.
    """

    width: int
    groups: int
    heads: int
    key: int
    value: int
    kernel: int | None
    eps: float
    gate: bool
    norm: str
    affine: bool = True


class Mixer(nn.Module):
    """Queries, keys and values from projections and short convolutions, and the normed, gated readout."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.scale = sizes, sizes.key**-0.5
        keys, values = sizes.groups * sizes.key, sizes.heads * sizes.value
        for name, channels in (("q", keys), ("k", keys), ("v", values)):
            self.add_module(f"{name}_proj", nn.Linear(sizes.width, channels, bias=False))
            if sizes.kernel is not None:
                self.add_module(f"{name}_conv1d", CausalConv(channels, sizes.kernel, bias=False))
        if sizes.gate:
            self.g_proj = nn.Linear(sizes.width, values, bias=False)
        self.add_module(sizes.norm, nn.RMSNorm(sizes.value, sizes.eps, elementwise_affine=sizes.affine))
        self.o_proj = nn.Linear(values, sizes.width, bias=False)

    def projected(self, name: str, x: Tensor, act: Callable[[Tensor], Tensor] | None) -> Tensor:
        """(B, T, heads, channels) of the projection `name`, convolved if the checkpoint does, then `act`."""
        y: Tensor = self.get_submodule(f"{name}_proj")(x)
        if self.sizes.kernel is not None:
            y = self.get_submodule(f"{name}_conv1d")(y)
        heads = self.sizes.heads if name == "v" else self.sizes.groups
        out: Tensor = (y if act is None else act(y)).unflatten(-1, (heads, -1))
        return out

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        """o_proj(norm(y) * silu(g_proj(x)))."""
        y = self.get_submodule(self.sizes.norm)(y).flatten(2)
        out: Tensor = self.o_proj(y * functional.silu(self.g_proj(x)) if self.sizes.gate else y)
        return out


class GatedLinearAttention(Mixer):
    """GLA (Yang et al., 2023): a decay per key, the sigmoid of a low-rank projection to the power 1/16."""

    def __init__(self, sizes: Sizes, feature: Callable[[Tensor], Tensor] | None, least: float | None) -> None:
        super().__init__(sizes)
        self.feature, self.least = feature, least
        low, keys = nn.Linear(sizes.width, GATE_RANK, bias=False), nn.Linear(GATE_RANK, sizes.groups * sizes.key)
        self.gk_proj = nn.Sequential(low, keys)

    def forward(self, x: Tensor) -> Tensor:
        act = None if self.sizes.kernel is None else functional.silu
        q, k, v = (self.projected(name, x, act) for name in ("q", "k", "v"))
        if self.feature is not None:
            q, k = self.feature(q), self.feature(k)
        log_decay = functional.logsigmoid(self.gk_proj(x)) * (1 / GATE_NORMALISER)
        if self.least is not None:
            log_decay = log_decay.clamp(min=self.least)
        decay = torch.exp(log_decay).unflatten(-1, (self.sizes.groups, -1))
        return self.readout(linear_recurrence(q * self.scale, k, v, decay), x)


class Retention(Mixer):
    """RetNet (Sun et al., 2023): rotated queries and keys, the decay 1 - 2^(-5 - h) of head h."""

    def __init__(self, sizes: Sizes, feature: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__(sizes)
        self.feature = feature
        self.theta: Tensor
        self.decay: Tensor
        theta = ROTARY_BASE ** (-torch.arange(0, sizes.key, 2, dtype=torch.float32, device=CPU) / sizes.key)
        self.register_buffer("theta", theta, persistent=False)
        self.register_buffer("decay", 1 - 2.0 ** (-5.0 - torch.arange(sizes.heads, device=CPU)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.projected(name, x, None) for name in ("q", "k", "v"))
        if self.feature is not None:
            q, k = self.feature(q), self.feature(k)
        q, k = rotary(q, self.theta), rotary(k, self.theta)
        return self.readout(linear_recurrence(q * self.scale, k, v, self.decay), x)


class DeltaNet(Mixer):
    """DeltaNet (Yang et al., 2024): the delta rule with normed queries and keys and step sizes up to `most`."""

    def __init__(self, sizes: Sizes, act: Callable[[Tensor], Tensor] | None, most: float) -> None:
        super().__init__(sizes)
        self.act, self.most = act, most
        self.b_proj = nn.Linear(sizes.width, sizes.heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return self.readout(delta_recurrence(q, k, v, self.step(x)), x)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys of norm 1, the queries times key^-0.5; values."""
        q, k = (l2norm(self.projected(name, x, self.act), L2_EPS) for name in ("q", "k"))
        return q * self.scale, k, self.projected("v", x, functional.silu)

    def step(self, x: Tensor) -> Tensor:
        beta = torch.sigmoid(self.b_proj(x))
        return beta if self.most == 1 else beta * self.most


class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet (Yang et al., 2024): the delta rule with the decay of Mamba-2."""

    def __init__(self, sizes: Sizes, most: float) -> None:
        super().__init__(sizes, functional.silu, most)
        self.a_proj = nn.Linear(sizes.width, sizes.heads, bias=False)
        self.A_log, self.dt_bias = parameter(sizes.heads), parameter(sizes.heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        decay = torch.exp(functional.softplus(self.a_proj(x) + self.dt_bias) * -torch.exp(self.A_log))
        return self.readout(delta_recurrence(q, k, v, self.step(x), decay), x)


class Layer(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, eps: float, mixer: Mixer, inner: int) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.attn, self.mlp = mixer, GatedMLP(width, inner, ACTIVATIONS["swish"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of the configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("norm_eps", 1e-6)
    config.only("attn", None)
    config.only("attnres_block_size", None)
    config.choice("hidden_act", ("swish", "silu"), "swish")
    make = MIXERS[str(config.values["model_type"])]
    inner = rounded_up(int(width * config.number("hidden_ratio", _ratio(config)) * 2 / 3), 256)
    inner = config.integer("intermediate_size", inner)
    layers = (Layer(width, eps, make(config, width, eps), inner) for _ in range(config.integer("num_hidden_layers")))
    tied = config.flag("tie_word_embeddings", False)
    return LanguageModel(NAMES, config.integer("vocab_size"), width, layers, nn.RMSNorm(width, eps), tied)


def _ratio(config: Config) -> float:
    return 2 if config.values["model_type"] == "retnet" else 4


def _gla(config: Config, width: int, eps: float) -> Mixer:
    least = config.number("clamp_min") if config.has("clamp_min") else None
    return GatedLinearAttention(
        _expanded(config, width, eps, 0.5, 1.0, _kernel(config, False)), _feature(config), least
    )


def _retention(config: Config, width: int, eps: float) -> Mixer:
    sizes = _expanded(config, width, eps, 1.0, 2.0, None)
    if sizes.key % 2:
        raise config.error("expand_k", f"heads with an even number of key channels ({sizes.key})")
    return Retention(sizes, _feature(config))


def _delta(config: Config, width: int, eps: float) -> Mixer:
    config.only("use_beta", True, True)
    config.only("qk_norm", "l2", "l2")
    act = config.choice("qk_activation", ("silu", "relu", "identity"), "silu")
    gate = config.flag("use_gate", False)
    heads, keys, values = _heads(config, width, 1.0, 1.0)
    sizes = Sizes(width, heads, heads, keys, values, _kernel(config, True), eps, gate, "o_norm")
    return DeltaNet(sizes, ACTIVATIONS.get(act), _most(config))


def _gated_delta(config: Config, width: int, eps: float) -> Mixer:
    groups, key = config.integer("num_heads", 6), config.integer("head_dim", 256)
    heads = config.integer("num_v_heads", groups)
    if heads % groups:
        raise config.error("num_v_heads", f"a multiple of num_heads ({groups})")
    value, gate = int(key * config.number("expand_v", 2.0)), config.flag("use_gate", True)
    return GatedDeltaNet(
        Sizes(width, groups, heads, key, value, _kernel(config, True), eps, gate, "o_norm"), _most(config)
    )


MIXERS = {"gla": _gla, "retnet": _retention, "delta_net": _delta, "gated_deltanet": _gated_delta}
"""By model_type."""


def _most(config: Config) -> float:
    return 2.0 if config.flag("allow_neg_eigval", False) else 1.0


def _kernel(config: Config, default: bool) -> int | None:
    return config.integer("conv_size", 4) if config.flag("use_short_conv", default) else None


def _feature(config: Config) -> Callable[[Tensor], Tensor] | None:
    return ACTIVATIONS[config.choice("feature_map", ("relu", "silu", "swish"))] if config.has("feature_map") else None


def _heads(config: Config, width: int, expand_k: float, expand_v: float) -> tuple[int, int, int]:
    """The number of heads, and their channels of keys and of values."""
    heads = config.integer("num_heads")
    sizes = []
    for key, default in (("expand_k", expand_k), ("expand_v", expand_v)):
        channels = int(width * config.number(key, default))
        if channels < heads or channels % heads:
            raise config.error("num_heads", f"a divisor of {key} * hidden_size ({channels})")
        sizes.append(channels // heads)
    return heads, sizes[0], sizes[1]


def _expanded(config: Config, width: int, eps: float, expand_k: float, expand_v: float, kernel: int | None) -> Sizes:
    """Of GLA and RetNet, whose readout's norm has two names."""
    heads, keys, values = _heads(config, width, expand_k, expand_v)
    config.only("num_kv_heads", heads, heads)
    gate = config.flag("use_output_gate", True)
    norm = "g_norm_swish_gate" if gate and config.flag("fuse_norm", True) else "g_norm"
    affine = config.flag("elementwise_affine", True)
    return Sizes(width, heads, heads, keys, values, kernel, eps, gate, norm, affine)
