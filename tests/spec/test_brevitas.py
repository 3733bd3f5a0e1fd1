"""Brevitas as an oracle: its per-channel 8-bit weight quantizer and ours give the same integers."""

from __future__ import annotations

import numpy as np
import torch
from brevitas.nn import QuantLinear
from brevitas.quant import Int8WeightPerChannelFloat

from isobit.quant import nn as isobit_nn
from isobit.quant.quantize import quantize


class Model(torch.nn.Module):
    """A projection with a state behind it, so that it is a sequence model."""

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.mean = isobit_nn.RunningMean()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mean(self.linear(x))  # type: ignore[no-any-return]


def test_weights_equal_those_of_brevitas() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 16, bias=False)
    oracle = QuantLinear(24, 16, bias=False, weight_quant=Int8WeightPerChannelFloat)
    oracle.load_state_dict(linear.state_dict(), strict=False)
    x = np.random.default_rng(0).normal(size=(4, 6, 24))
    program = quantize(Model(linear), x, "w8a8", name="model").program
    expected = oracle.quant_weight().int().numpy()
    assert np.array_equal(program.constant["linear.weight"].array, expected)
