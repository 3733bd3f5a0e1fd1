"""Bamba (Chu et al., 2024), Mamba-2 and attention: model type `bamba`."""

from __future__ import annotations

from torch import Tensor, nn

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import LanguageModel, Names
from isobit.quant.huggingface.layers import Attention, GatedMLP, activation, attention_window, rotation
from isobit.quant.huggingface.mamba2 import Mamba2Mixer, Mamba2Sizes


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); the mixer is called `name`."""

    def __init__(self, width: int, eps: float, name: str, mixer: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.mixer = name
        self.add_module(name, mixer)
        self.feed_forward = mlp
        self.input_layernorm, self.pre_ff_layernorm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.get_submodule(self.mixer)(self.input_layernorm(x))
        out: Tensor = x + self.feed_forward(self.pre_ff_layernorm(x))
        return out


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of a `bamba` configuration, its parameters to be loaded."""
    width, eps = config.integer("hidden_size"), config.number("rms_norm_eps", 1e-5)
    act, inner = activation(config, "hidden_act", "silu"), config.integer("intermediate_size")
    attention = config.integers("attn_layer_indices")

    def layer(i: int) -> Layer:
        mlp = GatedMLP(width, inner, act, config.flag("mlp_bias", False))
        if i in attention:
            return Layer(width, eps, "self_attn", _attention(config, width, t_max), mlp)
        return Layer(width, eps, "mamba", Mamba2Mixer(_sizes(config, width, eps)), mlp)

    layers = (layer(i) for i in range(config.integer("num_hidden_layers")))
    names = Names("model", "embed_tokens", "layers", "final_layernorm")
    tied = config.flag("tie_word_embeddings", False)
    return LanguageModel(names, config.integer("vocab_size"), width, layers, nn.RMSNorm(width, eps), tied)


def _attention(config: Config, width: int, t_max: int | None) -> Attention:
    heads = config.integer("num_attention_heads")
    groups = config.share("num_key_value_heads", heads, "num_attention_heads", heads)
    head_dim = config.integer("head_dim", width // heads)
    bias, turn = config.flag("attention_bias", False), rotation(config, head_dim, 1e4, 0.5)
    return Attention(width, heads, groups, head_dim, attention_window(config, t_max), turn, bias, bias)


def _sizes(config: Config, width: int, eps: float) -> Mamba2Sizes:
    inner = int(config.number("mamba_expand", 2) * width)
    heads = config.share("mamba_n_heads", inner, "mamba_expand * hidden_size")
    if config.values.get("mamba_d_head", "auto") != "auto" and config.integer("mamba_d_head") * heads != inner:
        raise config.error("mamba_d_head", f"{inner // heads}, mamba_expand * hidden_size / mamba_n_heads")
    groups = config.share("mamba_n_groups", heads, "mamba_n_heads", 1)
    return Mamba2Sizes(
        width,
        heads,
        inner // heads,
        groups,
        config.integer("mamba_d_state", 256),
        config.integer("mamba_d_conv", 4),
        eps,
        activation(config, "hidden_act", "silu"),
        config.flag("mamba_proj_bias", False),
        config.flag("mamba_conv_bias", True),
        config.interval("time_step_limit"),
    )
