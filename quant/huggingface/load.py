"""A Hugging Face folder to a float module: the table of architectures, and `load_folder`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from isobit.quant.errors import InputError
from isobit.quant.huggingface import (
    bamba,
    fla,
    kimi_linear,
    lfm2,
    mamba,
    mamba2,
    mamba_ssm,
    minimax,
    nemotron_h,
    qwen3_next,
    recurrent_gemma,
    rwkv,
    xlstm,
)
from isobit.quant.huggingface.config import Config
from isobit.quant.huggingface.folder import Entry, fill, read_config, read_entries
from isobit.quant.huggingface.language_model import LanguageModel


@dataclass(frozen=True)
class Architecture:
    """build: the model of a configuration, for sequences of at most t_max steps where that matters.

    renames: (pattern, replacement) from names in a checkpoint to those of the model.  ignored: patterns of names, after
    renaming, that the model has no use for.
    """

    build: Callable[[Config, int | None], LanguageModel]
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


SINGULAR_EMBEDDING = (r"^backbone\.embedding\.", "backbone.embeddings.")

MULTI_TOKEN = (r"^mtp\.",)
"""Layers that predict several tokens ahead: for speculative decoding only."""

DECAY_TABLES = (r"\.(query|key|diagonal)_decay$",)
"""What follows from slope_rate."""

ARCHITECTURES = {
    "mamba": Architecture(mamba.build, (SINGULAR_EMBEDDING,)),
    "falcon_mamba": Architecture(mamba.build, (SINGULAR_EMBEDDING,)),
    "mamba2": Architecture(mamba2.build, (SINGULAR_EMBEDDING,)),
    "lfm2": Architecture(lfm2.build),
    "rwkv": Architecture(rwkv.build),
    "bamba": Architecture(bamba.build),
    "nemotron_h": Architecture(nemotron_h.build, ((r"^model\.", "backbone."),), MULTI_TOKEN),
    "recurrent_gemma": Architecture(recurrent_gemma.build),
    "minimax": Architecture(minimax.build, ((r"\.mlp\.", ".block_sparse_moe."),), DECAY_TABLES),
    "qwen3_next": Architecture(qwen3_next.build, ignored=MULTI_TOKEN),
    "xlstm": Architecture(xlstm.build),
    "kimi_linear": Architecture(kimi_linear.build, ((r"\.block_sparse_moe\.", ".mlp."),)),
    "gla": Architecture(fla.build),
    "retnet": Architecture(fla.build),
    "delta_net": Architecture(fla.build),
    "gated_deltanet": Architecture(fla.build),
}
"""By model_type."""

MAMBA_SSM = Architecture(mamba_ssm.build, (SINGULAR_EMBEDDING,))
"""Known by its tensors: its configurations have no model_type."""

ALWAYS_IGNORED = (r"\.rotary_emb\.inv_freq$",)
"""Constants that older versions of transformers saved."""


def load_folder(
    path: Path | str, t_max: int | None = None, note: Callable[[str], object] = warnings.warn
) -> LanguageModel:
    """The model in the folder `path`, in eval mode and float32: token ids, int64 (B, T), -> logits (B, T, vocabulary).

    t_max: the longest sequence, which bounds an attention that has no window; an architecture with one needs it.
    note: called with what was converted or left out.  Raises InputError; no pickle is opened, and nothing is fetched.
    """
    folder = Path(path)
    if t_max is not None and t_max < 1:
        raise InputError(f"t_max is {t_max}, expected a number of steps of at least 1")
    config = read_config(folder)
    entries = read_entries(folder)
    architecture = _architecture(config, entries)
    entries = _renamed(folder, entries, architecture)
    with torch.device("meta"):
        module = architecture.build(config, t_max)
    fill(module, folder, entries, module.tied, (*architecture.ignored, *ALWAYS_IGNORED), note)
    return module.eval()


def _architecture(config: Config, names: Iterable[str]) -> Architecture:
    kind = config.values.get("model_type")
    if kind is None and any(re.search(mamba_ssm.TENSORS, name) for name in names):
        return MAMBA_SSM
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise config.error("model_type", f"one of {', '.join(ARCHITECTURES)} (what isobit supports)")
    return ARCHITECTURES[kind]


def _renamed(folder: Path, entries: Mapping[str, Entry], architecture: Architecture) -> dict[str, Entry]:
    renamed: dict[str, Entry] = {}
    for name, entry in entries.items():
        for pattern, replacement in architecture.renames:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise InputError(f"{folder}: tensors {renamed[name].name} and {entry.name} are both {name}; keep one")
        renamed[name] = entry
    return renamed
