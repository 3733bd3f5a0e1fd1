"""Checkpoints of the mamba_ssm library (Gu and Dao): Mamba and Mamba-2.  Its config.json has no model_type."""

from __future__ import annotations

import math

from torch import nn

from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.language_model import BACKBONE, LanguageModel
from isobit.quant.huggingface.layers import ACTIVATIONS
from isobit.quant.huggingface.mamba import MambaMixer
from isobit.quant.huggingface.mamba2 import Mamba2Mixer, Mamba2Sizes
from isobit.quant.zoo.blocks import PreNorm

TENSORS = r"^backbone\.layers\.\d+\.mixer\.A_log$"
"""A tensor that every checkpoint of the library has."""

EPS = 1e-5
"""Of all norms: the library's default, which its configurations do not change."""


def build(config: Config, t_max: int | None) -> LanguageModel:
    """The model of a mamba_ssm configuration, its parameters to be loaded; the vocabulary is padded."""
    width, multiple = config.integer("d_model"), config.integer("pad_vocab_size_multiple", 8)
    config.only("d_intermediate", 0, 0)
    config.only("attn_layer_idx", [], [])
    norm = nn.RMSNorm if config.flag("rms_norm", True) else nn.LayerNorm
    ssm = config.section("ssm_cfg")
    second = ssm.choice("ssm_cfg.layer", ("Mamba1", "Mamba2"), "Mamba1") == "Mamba2"
    mixer = _mamba2 if second else _mamba
    layers = (PreNorm(norm(width, EPS), mixer(ssm, width)) for _ in range(config.integer("n_layer")))
    vocabulary = math.ceil(config.integer("vocab_size") / multiple) * multiple
    tied = config.flag("tie_embeddings", True)
    return LanguageModel(BACKBONE, vocabulary, width, layers, norm(width, EPS), tied)


def _mamba(ssm: Config, width: int) -> MambaMixer:
    rank = math.ceil(width / 16)
    if ssm.values.get("ssm_cfg.dt_rank") != "auto":
        rank = ssm.integer("ssm_cfg.dt_rank", rank)
    return MambaMixer(
        width,
        int(ssm.number("ssm_cfg.expand", 2) * width),
        ssm.integer("ssm_cfg.d_state", 16),
        ssm.integer("ssm_cfg.d_conv", 4),
        rank,
        ACTIVATIONS["silu"],
        ssm.flag("ssm_cfg.bias", False),
        ssm.flag("ssm_cfg.conv_bias", True),
    )


def _mamba2(ssm: Config, width: int) -> Mamba2Mixer:
    inner = int(ssm.number("ssm_cfg.expand", 2) * width)
    head_dim = ssm.share("ssm_cfg.headdim", inner, "expand * d_model", 64)
    heads = inner // head_dim
    ssm.only("ssm_cfg.d_ssm", inner, inner)
    ssm.only("ssm_cfg.rmsnorm", True, True)
    ssm.only("ssm_cfg.norm_before_gate", False, False)
    ssm.only("ssm_cfg.D_has_hdim", False, False)
    sizes = Mamba2Sizes(
        width,
        heads,
        head_dim,
        ssm.share("ssm_cfg.ngroups", heads, "the number of heads", 1),
        ssm.integer("ssm_cfg.d_state", 128),
        ssm.integer("ssm_cfg.d_conv", 4),
        EPS,
        ACTIVATIONS["silu"],
        ssm.flag("ssm_cfg.bias", False),
        ssm.flag("ssm_cfg.conv_bias", True),
        ssm.interval("ssm_cfg.dt_limit"),
    )
    return Mamba2Mixer(sizes)
