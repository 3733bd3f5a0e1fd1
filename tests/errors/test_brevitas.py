"""What of Brevitas is refused: each message names the layer, what it has, what is expected and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import numpy as np
import pytest
import torch
from brevitas.quant.experimental.mx_quant_ocp import MXInt8Act, MXInt8Weight
from brevitas_examples.common.generative.quantizers import Int8DynamicActPerTensorFloat
from torch import Tensor, nn

from isobit.quant.errors import InputError
from isobit.quant.quantize import quantize
from tests.brevitas_models import Mlp, identity, trained


class Held(nn.Module):
    """A layer between a quantizer and the end."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.q, self.inner = qnn.QuantIdentity(return_quant_tensor=True), inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.q(x))
        return y


class Reads(Held):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.q(x).value)
        return y


class LastOfLstm(Held):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.q(x))[0]
        return y


def linear(**settings: Any) -> nn.Module:
    made: nn.Module = qnn.QuantLinear(32, 8, bias=False, **settings)
    return made


REFUSED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "weights with a zero point": (
        lambda: Held(linear(weight_quant=bq.ShiftedUint8WeightPerTensorFloat)),
        ["inner (QuantLinear)", "zero point", "expected 0", "symmetric quantizer, as Int8WeightPerChannelFloat"],
    ),
    "wide weights": (
        lambda: Held(linear(weight_bit_width=12)),
        ["inner (QuantLinear)", "12 bits", "expected at most 8"],
    ),
    "groups of weights": (
        lambda: Held(linear(weight_quant=MXInt8Weight)),
        ["inner (QuantLinear)", "GroupwiseIntQuantTensor", "groups and MX of Brevitas are not supported"],
    ),
    "groups of activations": (
        lambda: Held(qnn.QuantIdentity(MXInt8Act, group_dim=-1)),
        ["inner.act_quant", "GroupwiseIntQuantTensor", "expected integers or minifloats with one scale"],
    ),
    "a dynamic scale": (
        lambda: Held(qnn.QuantIdentity(Int8DynamicActPerTensorFloat)),
        ["inner.act_quant", "depends on the input", "expected a trained or calibrated one"],
    ),
    "scales per channel of activations": (
        lambda: Held(
            qnn.QuantIdentity(
                scaling_per_output_channel=True,
                per_channel_broadcastable_shape=(1, 1, 32),
                scaling_stats_permute_dims=(2, 0, 1),
            )
        ),
        ["inner.act_quant", "32 scales, expected one for the tensor", "scaling_per_output_channel=False"],
    ),
    "stochastic rounding": (
        lambda: Held(identity(4.0, float_to_int_impl_type="stochastic_round")),
        ["inner.act_quant", "rounds by StochasticRoundSte", "ROUND, FLOOR, CEIL, ROUND_TO_ZERO, DPU"],
    ),
    "one bit": (
        lambda: Held(qnn.QuantIdentity(bq.SignedBinaryActPerTensorConst)),
        ["inner.act_quant", "not supported for activations", "expected 2 to 16 bits"],
    ),
    "a recurrent layer": (
        lambda: LastOfLstm(qnn.QuantLSTM(32, 8)),
        ["inner: QuantLSTM of Brevitas is not supported", "write its cells with QuantLinear"],
    ),
    "a transposed convolution": (
        lambda: Held(qnn.QuantConvTranspose1d(6, 4, 1)),
        ["inner: QuantConvTranspose1d with a quantized weight is not supported, expected QuantLinear, QuantConv1d"],
    ),
    "a value read from a QuantTensor": (
        lambda: Reads(linear()),
        ["has no attribute 'value'", "return_quant_tensor=False"],
    ),
}  # fmt: skip


def samples() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(8, 6, 32)).astype(np.float32))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, words = REFUSED[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
        model.train()(samples())
        with pytest.raises(InputError) as e:
            quantize(model.eval(), samples().numpy(), name="m")
    missing = [w for w in words if w not in str(e.value)]
    assert not missing, f"{missing}\n{e.value}"


def test_a_model_without_scales_is_refused() -> None:
    with pytest.raises(InputError, match=r"q\.act_quant .* has no value yet, .* train or calibrate the model"):
        quantize(Mlp().eval(), np.zeros((2, 3, 6), np.float32), name="m")


def test_a_model_that_fails_says_why() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 6, 6)).astype(np.float32))
    with pytest.raises(InputError, match=r"the model fails on an input \(1, 6, 5\): RuntimeError"):
        quantize(trained(Mlp(), x), np.zeros((2, 6, 5), np.float32), name="m")
