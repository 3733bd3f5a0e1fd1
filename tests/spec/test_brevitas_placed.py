"""Quantizers of Brevitas in other places than between the layers of a stack, and models trained with them."""

from __future__ import annotations

import brevitas.nn as qnn
import brevitas.quant as bq
import numpy as np
import pytest
import torch
from torch import nn

from isobit.quant import nn as isobit_nn
from isobit.quant.program import IntType
from isobit.quant.quantize import quantize
from tests.brevitas_codes import assert_agrees, assert_equal_everywhere, codes_of, samples, taps_of
from tests.brevitas_models import Mlp, identity, trained


class Shared(nn.Module):
    """One quantizer in two places, a layer in a loop's place, and a value that two consumers read."""

    def __init__(self) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity(return_quant_tensor=True)
        self.fc = qnn.QuantLinear(6, 6, bias=True, weight_bit_width=5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.q(x)
        b = self.fc(a)
        y: torch.Tensor = self.q(b) + torch.sigmoid(b)
        return y


def test_a_quantizer_in_two_places() -> None:
    torch.manual_seed(0)
    x = samples(32, 16, 6)
    model = trained(Shared(), x)
    made = quantize(model, x.numpy(), name="m")
    assert_agrees(made, 2)
    assert [r.quantizer for r in made.trained] == ["q.act_quant"] * 2


class Functional(nn.Module):
    """Brevitas' own advice for tied weights: the quantized weight itself in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity()
        self.fc = qnn.QuantLinear(6, 6, bias=False, weight_bit_width=3)
        self.out = qnn.QuantIdentity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.fc.quant_weight()
        y: torch.Tensor = self.out(nn.functional.linear(self.q(x), weight))
        return y


def test_a_quantized_weight_outside_its_layer() -> None:
    torch.manual_seed(0)
    x = samples(32, 16, 6)
    model = trained(Functional(), x)
    made = quantize(model, x.numpy(), name="m")
    assert_agrees(made, 2)
    assert_equal_everywhere(model, made, x)
    assert np.abs(next(c for c in made.program.constants if c.name.endswith(".weight")).array).max() == 3


class Loop(nn.Module):
    """A recurrent network written with Brevitas layers: its state has the scale of its quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity()
        self.wx, self.wh = (qnn.QuantLinear(n, 8, bias=n == 6, weight_bit_width=5) for n in (6, 8))
        self.u, self.v, self.h = (qnn.QuantIdentity() for _ in range(3))
        self.out = qnn.QuantLinear(8, 4, bias=True, output_quant=bq.Int8ActPerTensorFloat)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.u(self.wx(self.q(x)))
        h, made = u.new_zeros(u.shape[0], 8), []
        for t in range(u.shape[1]):
            h = self.h(u[:, t] + self.v(self.wh(h)))
            made.append(h)
        y: torch.Tensor = self.out(torch.stack(made, 1))
        return y


def test_a_loop_over_time_keeps_the_integers_of_its_quantizer() -> None:
    torch.manual_seed(0)
    x = samples(32, 11, 6)
    model = trained(Loop(), x)
    made = quantize(model, x.numpy(), name="m")
    assert_agrees(made, 5)
    (state,) = made.program.states
    assert state.type.elem == IntType(8)
    assert state.type.scale == made.program.nodes[-1].scale or state.name == "h.act_quant.state"
    codes, taps = codes_of(model, x), taps_of(made, x)
    assert np.array_equal(taps["h.act_quant"], np.stack(codes["h.act_quant"], 1))
    assert np.array_equal(taps["y"], codes["out.output_quant"][0])


@pytest.mark.slow
def test_quantization_aware_training_ends_in_these_integers() -> None:
    """A classifier trained with its quantizers, until it is right: what it learned is what the Program does."""
    torch.manual_seed(0)
    x = torch.randn(512, 8, 6)
    target = (x.cumsum(1)[..., :3].sum(-1) > 0).long()
    model = nn.Sequential(
        identity(4.0, return_quant_tensor=False), isobit_nn.RunningMean(), Mlp(weight_bit_width=4)
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x)[..., :2].reshape(-1, 2), target.reshape(-1))
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(x)[..., :2].argmax(-1) == target).double().mean()
    assert accuracy > 0.9
    made = quantize(model, x.numpy(), name="m")
    assert_agrees(made, 3)
