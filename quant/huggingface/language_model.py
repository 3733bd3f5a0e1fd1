"""The frame of every architecture: token ids, an embedding, layers, a norm, a head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from isobit.quant.huggingface.layers import soft_cap


@dataclass(frozen=True)
class Names:
    """What a checkpoint calls the parts: `trunk.embedding`, `trunk.layers.N`, `trunk.norm`, `head`."""

    trunk: str
    embedding: str
    layers: str
    norm: str
    head: str = "lm_head"


MODEL = Names("model", "embed_tokens", "layers", "norm")
"""The names of most architectures."""

BACKBONE = Names("backbone", "embeddings", "layers", "norm_f")
"""The names of Mamba and its relatives."""


class LanguageModel(nn.Module):
    """Token ids, int64 (B, T), -> logits (B, T, vocabulary).

    tied: the head's weight is the embedding's.  cap: logits are cap * tanh(logits / cap), if given.
    """

    def __init__(
        self,
        names: Names,
        vocabulary: int,
        width: int,
        layers: Iterable[nn.Module],
        norm: nn.Module,
        tied: bool,
        cap: float | None = None,
    ) -> None:
        super().__init__()
        self.names, self.cap = names, cap
        trunk = nn.Module()
        trunk.add_module(names.embedding, nn.Embedding(vocabulary, width))
        trunk.add_module(names.layers, nn.ModuleList(layers))
        trunk.add_module(names.norm, norm)
        self.add_module(names.trunk, trunk)
        self.add_module(names.head, nn.Linear(width, vocabulary, bias=False))
        self.tied = {f"{names.head}.weight": f"{names.trunk}.{names.embedding}.weight"} if tied else {}

    def part(self, name: str) -> nn.Module:
        return self.get_submodule(f"{self.names.trunk}.{name}")

    def forward(self, ids: Tensor) -> Tensor:
        x = self.part(self.names.embedding)(ids)
        for layer in self.part(self.names.layers).children():
            x = layer(x)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Of the last layer's output."""
        out: Tensor = self.get_submodule(self.names.head)(self.part(self.names.norm)(x))
        return out if self.cap is None else soft_cap(out, self.cap)
