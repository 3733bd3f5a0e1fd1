"""xLSTM 7B (Beck et al., 2025), mLSTM blocks: model type `xlstm`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import LanguageModel, Names
from isobit.quant.huggingface.layers import parameter, rounded_up, soft_cap
from isobit.quant.nn import mlstm


class RMSNorm(nn.Module):
    """RMS normalisation with a weight and, if asked, a bias."""

    def __init__(self, size: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(size)
        self.bias = parameter(size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return y if self.bias is None else y + self.bias


class HeadNorm(nn.Module):
    """Layer normalisation of each head, (B, T, heads, head_dim) -> (B, T, heads * head_dim), a weight, a bias."""

    def __init__(self, heads: int, head_dim: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(heads * head_dim)
        self.bias = parameter(heads * head_dim) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.layer_norm(x, x.shape[-1:], None, None, self.eps).flatten(2) * self.weight
        return y if self.bias is None else y + self.bias


class MLSTMLayer(nn.Module):
    """(B, T, width) -> (B, T, width): a matrix memory with capped gates, normed per head and gated.

    fused: the checkpoint has q, k, v and the output gate in one weight, and both gates in one.
    """

    def __init__(
        self, width: int, heads: int, keys: int, values: int, cap: float, eps: float, bias: bool, fused: bool
    ) -> None:
        super().__init__()
        self.heads, self.cap, self.scale = heads, cap, (keys // heads) ** -0.5
        self.parts, self.fused = (keys, keys, values, values), fused
        if fused:
            self.qkv_opreact = nn.Linear(width, sum(self.parts), bias=bias)
            self.ifgate_preact = nn.Linear(width, 2 * heads)
        else:
            self.q, self.k = nn.Linear(width, keys, bias=bias), nn.Linear(width, keys, bias=bias)
            self.v, self.ogate_preact = nn.Linear(width, values, bias=bias), nn.Linear(width, values, bias=bias)
            self.igate_preact, self.fgate_preact = nn.Linear(width, heads), nn.Linear(width, heads)
        self.multihead_norm = HeadNorm(heads, values // heads, eps, bias)
        self.out_proj = nn.Linear(values, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            q, k, v, o = self.qkv_opreact(x).split(self.parts, dim=-1)
            i, f = self.ifgate_preact(x).chunk(2, dim=-1)
        else:
            q, k, v, o = self.q(x), self.k(x), self.v(x), self.ogate_preact(x)
            i, f = self.igate_preact(x), self.fgate_preact(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q * self.scale, k, v))
        h = self.multihead_norm(mlstm(q, k, v, soft_cap(i, self.cap), soft_cap(f, self.cap)))
        out: Tensor = self.out_proj(torch.sigmoid(o) * h)
        return out


class FeedForward(nn.Module):
    """proj_down(silu(gate) * up). fused: the checkpoint has gate and up in one weight."""

    def __init__(self, width: int, inner: int, bias: bool, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.proj_up_gate_z = nn.Linear(width, 2 * inner, bias=bias)
        else:
            self.proj_up_gate, self.proj_up = nn.Linear(width, inner, bias=bias), nn.Linear(width, inner, bias=bias)
        self.proj_down = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.proj_up_gate_z(x).chunk(2, dim=-1) if self.fused else (self.proj_up_gate(x), self.proj_up(x))
        out: Tensor = self.proj_down(functional.silu(gate) * up)
        return out


class Block(nn.Module):
    """x + mlstm_layer(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, width: int, eps: float, bias: bool, layer: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.norm_mlstm, self.norm_ffn = RMSNorm(width, eps, bias), RMSNorm(width, eps, bias)
        self.mlstm_layer, self.ffn = layer, ffn

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlstm_layer(self.norm_mlstm(x))
        out: Tensor = x + self.ffn(self.norm_ffn(x))
        return out


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of an `xlstm` configuration, its parameters to be loaded."""
    width = config.integer("hidden_size" if config.has("hidden_size") else "embedding_dim")
    count = config.integer("num_hidden_layers" if config.has("num_hidden_layers") else "num_blocks")
    heads, eps, bias = config.integer("num_heads", 8), config.number("norm_eps", 1e-6), config.flag("use_bias", False)
    fused = config.choice("weight_mode", ("single", "fused"), "single") == "fused"
    keys = _head_channels(config, "qk_dim_factor", 0.5, width, heads)
    values = _head_channels(config, "v_dim_factor", 1.0, width, heads)
    cap = config.number("gate_soft_cap", 15.0, low=1e-3)
    multiple = config.integer("ffn_round_up_to_multiple_of", 64)
    inner = rounded_up(width * config.number("ffn_proj_factor", 2.667), multiple)
    blocks = (
        Block(
            width,
            eps,
            bias,
            MLSTMLayer(width, heads, keys, values, cap, eps, bias, fused),
            FeedForward(width, inner, bias, fused),
        )
        for _ in range(count)
    )
    names, vocabulary = Names("backbone", "embeddings", "blocks", "out_norm"), config.integer("vocab_size")
    logit_cap = config.number("output_logit_soft_cap", 30.0, low=1e-3)
    return LanguageModel(names, vocabulary, width, blocks, RMSNorm(width, eps, False), False, logit_cap)


def _head_channels(config: Config, key: str, default: float, width: int, heads: int) -> int:
    channels = int(width * config.number(key, default))
    if channels < heads or channels % heads:
        raise config.error("num_heads", f"a divisor of {key} * hidden_size ({channels})")
    return channels
