"""RWKV-4 (Peng et al., 2023): model type `rwkv`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import LanguageModel, Names
from isobit.quant.huggingface.layers import parameter
from isobit.quant.nn import shift, wkv4


class HalvedLinear(nn.Linear):
    """A linear layer without bias whose weight counts 2^-halvings times."""

    def __init__(self, d_in: int, d_out: int, halvings: int) -> None:
        super().__init__(d_in, d_out, bias=False)
        self.factor = 2.0**-halvings

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.factor)


class TimeMixing(nn.Module):
    """(B, T, width) -> (B, T, width): output(sigmoid(r) * wkv(k, v)) of lerps of x_t and x_{t-1} (section 3.1)."""

    def __init__(self, width: int, inner: int, halvings: int) -> None:
        super().__init__()
        self.time_decay, self.time_first = parameter(inner), parameter(inner)
        self.time_mix_key = parameter(1, 1, width)
        self.time_mix_value = parameter(1, 1, width)
        self.time_mix_receptance = parameter(1, 1, width)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.receptance = nn.Linear(width, inner, bias=False)
        self.output = HalvedLinear(inner, width, halvings)

    def forward(self, x: Tensor) -> Tensor:
        before = shift(x)
        k = self.key(_lerp(x, before, self.time_mix_key))
        v = self.value(_lerp(x, before, self.time_mix_value))
        r = self.receptance(_lerp(x, before, self.time_mix_receptance))
        y = wkv4(k, v, torch.exp(self.time_decay), self.time_first)
        out: Tensor = self.output(torch.sigmoid(r) * y)
        return out


class ChannelMixing(nn.Module):
    """(B, T, width) -> (B, T, width): sigmoid(r) * value(relu(k)^2) of lerps of x_t and x_{t-1} (section 3.1)."""

    def __init__(self, width: int, inner: int, halvings: int) -> None:
        super().__init__()
        self.time_mix_key = parameter(1, 1, width)
        self.time_mix_receptance = parameter(1, 1, width)
        self.key = nn.Linear(width, inner, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = HalvedLinear(inner, width, halvings)

    def forward(self, x: Tensor) -> Tensor:
        before = shift(x)
        k = functional.relu(self.key(_lerp(x, before, self.time_mix_key))).square()
        r = self.receptance(_lerp(x, before, self.time_mix_receptance))
        out: Tensor = torch.sigmoid(r) * self.value(k)
        return out


def _lerp(now: Tensor, before: Tensor, mix: Tensor) -> Tensor:
    mix = mix.flatten()
    return now * mix + before * (1 - mix)


class Block(nn.Module):
    """Time mixing, then channel mixing, each on a layer norm and added; the result is halved if `halve`.

    The first block normalises the embedding.  halvings: how often the blocks before have halved.
    """

    def __init__(
        self, width: int, attention: int, inner: int, eps: float, first: bool, halvings: int, halve: bool
    ) -> None:
        super().__init__()
        self.halve = halve
        self.pre_ln = nn.LayerNorm(width, eps) if first else nn.Identity()
        self.ln1, self.ln2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attention = TimeMixing(width, attention, halvings)
        self.feed_forward = ChannelMixing(width, inner, halvings)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_ln(x)
        x = x + self.attention(self.ln1(x))
        x = x + self.feed_forward(self.ln2(x))
        return x * 0.5 if self.halve else x


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of an `rwkv` configuration, its parameters to be loaded.

    As transformers does in inference, every `rescale_every` blocks the residual stream is halved, and the weights that
    add to it after that are halved as often; layer norms make it the same model but for their epsilon.
    """
    width, eps = config.integer("hidden_size"), config.number("layer_norm_epsilon", 1e-5)
    attention = config.integer("attention_hidden_size", width)
    inner = config.integer("intermediate_size", 4 * width)
    every, count = config.integer("rescale_every", 6, low=-1), config.integer("num_hidden_layers")
    blocks = (
        Block(width, attention, inner, eps, i == 0, i // every if every > 0 else 0, every > 0 and (i + 1) % every == 0)
        for i in range(count)
    )
    names = Names("rwkv", "embeddings", "blocks", "ln_out", "head")
    tied = config.flag("tie_word_embeddings", False)
    return LanguageModel(names, config.integer("vocab_size"), width, blocks, nn.LayerNorm(width), tied)
