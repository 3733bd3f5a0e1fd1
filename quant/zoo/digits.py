"""Handwritten digits, read row by row: the data set, the model, and its weights (made by tools/train_digits.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

from isobit.quant.zoo.mamba import MambaClassifier

WEIGHTS = Path(__file__).with_name("digits.safetensors")
INPUT_SCALE = 2.0**-4
"""The model reads pixel * INPUT_SCALE; a pixel is an integer in 0..16."""


@dataclass(frozen=True, eq=False)
class Samples:
    """x: int8 (n, 8, 8), sample, row (time), column (channel), pixels 0..16. y: int64 (n,), the digit 0..9."""

    x: npt.NDArray[np.int8]
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Digits:
    """A fixed split of the 1797 images, stratified by digit and disjoint, except that calibration is part of train."""

    train: Samples
    validation: Samples
    test: Samples
    calibration: Samples


def data() -> Digits:
    """scikit-learn's bundled digits (the test part of UCI Optical Recognition of Handwritten Digits), split 60/20/20.

    The split is random over images, so one writer can appear in several parts. Calibration has 16 images of each digit.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = pixels.astype(np.int8).reshape(-1, 8, 8)
    y = labels.astype(np.int64)
    random = np.random.RandomState(0)
    parts: dict[str, list[npt.NDArray[np.intp]]] = {"train": [], "validation": [], "test": [], "calibration": []}
    for digit in range(10):
        held_out = -(-np.count_nonzero(y == digit) // 5)
        order = random.permutation(np.flatnonzero(y == digit))
        parts["test"].append(order[:held_out])
        parts["validation"].append(order[held_out : 2 * held_out])
        parts["train"].append(order[2 * held_out :])
        parts["calibration"].append(order[2 * held_out :][:16])
    index = {name: random.permutation(np.concatenate(rows)) for name, rows in parts.items()}
    return Digits(**{name: Samples(x[rows], y[rows]) for name, rows in index.items()})


def model() -> MambaClassifier:
    """The classifier, untrained: float rows (B, T, 8) -> logits (B, T, 10)."""
    return MambaClassifier(d_input=8, n_classes=10, d_model=32, n_layers=2, d_state=16, d_conv=4, expand=2)


def load() -> MambaClassifier:
    """The classifier with its trained weights, in eval mode."""
    classifier = model()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval()
