"""Classifiers of whole sequences, the same around every family, as tools/train_zoo.py trains them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from isobit.quant.nn import RunningMean
from isobit.quant.zoo.gla import gla
from isobit.quant.zoo.mamba import MambaBlock, ResidualBlock
from isobit.quant.zoo.mingru import mingru
from isobit.quant.zoo.rnn import GRU

LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "mamba": lambda d_model, n: nn.Sequential(*(ResidualBlock(d_model, MambaBlock(d_model)) for _ in range(n))),
    "gla": lambda d_model, n: gla(d_model, heads=2, d_key=d_model // 2, layers=n, d_hidden=2 * d_model),
    "mingru": lambda d_model, n: mingru(d_model, layers=n, d_hidden=2 * d_model),
    "gru": lambda d_model, n: GRU(d_model, d_model, layers=n),
}
"""Family -> its n layers, of d_model, a power of two: (B, T, d_model) -> same, causal."""


class SequenceClassifier(nn.Module):
    """(B, T, d_input) -> logits (B, T, n_classes); family: a key of LAYERS.

    The logits at step t are of the mean of the first t + 1 feature vectors; the last step classifies the sequence.
    """

    def __init__(self, d_input: int, n_classes: int, family: str, d_model: int = 32, n_layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(d_input, d_model)
        self.layers = LAYERS[family](d_model, n_layers)
        self.norm_f = nn.RMSNorm(d_model, eps=1e-5)
        self.mean = RunningMean()
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mean(self.norm_f(self.layers(self.embed(x)))))
        return logits


fsdd_mamba = partial(SequenceClassifier, 32, 10, "mamba")
fsdd_gla = partial(SequenceClassifier, 32, 10, "gla")
fsdd_mingru = partial(SequenceClassifier, 32, 10, "mingru")
fsdd_gru = partial(SequenceClassifier, 32, 10, "gru")
har_mamba = partial(SequenceClassifier, 6, 5, "mamba")
har_gla = partial(SequenceClassifier, 6, 5, "gla")
har_mingru = partial(SequenceClassifier, 6, 5, "mingru")
har_gru = partial(SequenceClassifier, 6, 5, "gru")
