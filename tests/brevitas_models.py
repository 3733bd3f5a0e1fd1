"""Small Brevitas models, as users write them, with every kind of quantizer that is taken."""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int32Bias,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn

from isobit.quant import nn as isobit_nn


def fixed(scaling: float, **settings: Any) -> dict[str, Any]:
    """Of an activation's quantizer, a constant scale: `scaling` over the number of its codes on one side."""
    return {"scaling_impl_type": "const", "scaling_init": scaling, **settings}


def identity(scaling: float, **settings: Any) -> nn.Module:
    made: nn.Module = qnn.QuantIdentity(
        Int8ActPerTensorFloat, **{"return_quant_tensor": True, **fixed(scaling, **settings)}
    )
    return made


class Mlp(nn.Module):
    """Two layers between quantizers, as in Brevitas' own tutorials."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        weight: dict[str, Any] = {"weight_quant": Int8WeightPerChannelFloat, **settings}
        self.q = qnn.QuantIdentity(return_quant_tensor=True)
        self.fc1 = qnn.QuantLinear(6, 16, bias=True, bias_quant=Int32Bias, return_quant_tensor=True, **weight)
        self.act = qnn.QuantReLU(return_quant_tensor=True)
        self.fc2 = qnn.QuantLinear(16, 5, bias=True, output_quant=Int8ActPerTensorFloat, **weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(self.q(x))))
        return y


class PowersOfTwo(nn.Module):
    """Every scale is a power of two: float32 is exact, ties are frequent."""

    def __init__(self, rounding: str = "round", unit: float = 2.0**-4, top: int = 16, **settings: Any) -> None:
        """The second quantizer has 5 bits and the scale `unit`, where `top` is what Brevitas divides by."""
        super().__init__()
        own = {"float_to_int_impl_type": rounding}
        self.q = identity(4.0, **own)
        self.fc1 = qnn.QuantLinear(
            6,
            8,
            bias=True,
            weight_quant=Int8WeightPerTensorFixedPoint,
            weight_bit_width=4,
            bias_quant=Int32Bias,
            return_quant_tensor=True,
        )
        self.act = identity(unit * top, **{**own, "bit_width": 5, **settings})
        self.fc2 = qnn.QuantLinear(8, 7, bias=False, weight_quant=Int8WeightPerTensorFixedPoint, weight_bit_width=4)
        self.out = identity(8.0, **{**own, "bit_width": 4})
        self.out.return_quant_tensor = False  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.fc2(self.act(self.fc1(self.q(x)))))
        return y


class ConvNet(nn.Module):
    """Convolutions, one of them depthwise, batch normalisation, a flattened head; images (B, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity(return_quant_tensor=True)
        self.conv = qnn.QuantConv2d(3, 8, 3, padding=1, bias=False, weight_quant=Int8WeightPerChannelFloat)
        self.bn = nn.BatchNorm2d(8)
        self.act = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.depthwise = qnn.QuantConv2d(8, 8, 3, groups=8, stride=2, padding=1, weight_bit_width=4)
        self.act2 = qnn.QuantReLU(Uint8ActPerTensorFloat)
        self.head = qnn.QuantLinear(8 * 16, 4, bias=True, weight_bit_width=5, output_quant=Int8ActPerTensorFloat)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act2(self.depthwise(self.act(self.bn(self.conv(self.q(x))))))
        z: Tensor = self.head(y.flatten(1))
        return z


class Recurrent(nn.Module):
    """A causal convolution and a gated recurrence between Brevitas layers; (B, T, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity(return_quant_tensor=True)
        self.up = qnn.QuantLinear(5, 12, weight_quant=Int8WeightPerChannelFloat, output_quant=Int8ActPerTensorFloat)
        self.conv = qnn.QuantConv1d(12, 12, 3, groups=12, padding=2, weight_bit_width=4)
        self.act = qnn.QuantReLU()
        self.gate = qnn.QuantLinear(12, 12, bias=True)
        self.state = isobit_nn.ConvexRecurrence()
        self.hidden = qnn.QuantIdentity()
        self.down = qnn.QuantLinear(12, 3, bias=True, weight_bit_width=6)

    def forward(self, x: Tensor) -> Tensor:
        u = self.up(self.q(x))
        u = self.act(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        h = self.state(torch.sigmoid(self.gate(u)), u)
        y: Tensor = self.down(self.hidden(h))
        return y


class Pools(nn.Module):
    """Largest and mean values of windows, quantized again; images (B, 3, 10, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity(return_quant_tensor=True)
        self.conv1 = qnn.QuantConv2d(3, 4, 3, padding=1, bias=True, weight_quant=Int8WeightPerChannelFloat)
        self.act1 = qnn.QuantReLU()
        self.conv2 = qnn.QuantConv2d(4, 4, 3, bias=True, weight_quant=Int8WeightPerChannelFloat)
        self.act2 = qnn.QuantReLU()
        self.largest, self.mean = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.pooled = qnn.QuantIdentity()
        self.head = qnn.QuantLinear(4, 3, bias=True, output_quant=Int8ActPerTensorFloat)

    def forward(self, x: Tensor) -> Tensor:
        y = self.largest(self.act1(self.conv1(self.q(x))))
        y = self.act2(self.conv2(torch.maximum(y, y.flip(2))))
        z: Tensor = self.head(self.pooled(self.mean(y)).flatten(1))
        return z


class Last(nn.Module):
    """A dilated causal convolution, time behind the channels, and a head on the last step; (B, T, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity()
        self.conv = qnn.QuantConv1d(6, 8, 3, dilation=2, padding=4, bias=True, weight_quant=Int8WeightPerChannelFloat)
        self.act = qnn.QuantReLU()
        self.head = qnn.QuantLinear(8, 4, bias=True, output_quant=Int8ActPerTensorFloat)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(self.q(x.transpose(1, 2)))[..., : x.shape[1]])
        z: Tensor = self.head(y.transpose(1, 2)[:, -1])
        return z


def trained(model: nn.Module, x: Tensor, steps: int = 3) -> nn.Module:
    """The model after a few steps of training, with scales that its quantizers saw."""
    torch.manual_seed(1)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        made = model(x)
        made = made.value if hasattr(made, "value") else made
        loss = ((made - torch.roll(made.detach(), 1, -1)) ** 2).mean()
        loss.backward()
        optimizer.step()
    return model.eval()


class Residual(nn.Module):
    """Sums of quantized values, of one scale and of two; asymmetric activations; images (B, 4, 6, 6)."""

    def __init__(self, quantizer: Any = Int8ActPerTensorFloat) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity(quantizer, return_quant_tensor=True)
        self.conv1 = qnn.QuantConv2d(4, 4, 3, padding=1, bias=True, output_quant=quantizer)
        self.add1 = qnn.QuantEltwiseAdd(quantizer, quantizer)
        self.conv2 = qnn.QuantConv2d(4, 4, 1, bias=True, output_quant=quantizer)
        self.out = qnn.QuantReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.q(x)
        y = self.add1(x, self.conv1(x))
        z: Tensor = self.out(self.conv2(y) + y)
        return z


class Activations(nn.Module):
    """Functions with a quantizer of their own, joined and added; (B, T, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity()
        self.fc = qnn.QuantLinear(6, 8, bias=True)
        self.sigmoid, self.tanh = qnn.QuantSigmoid(), qnn.QuantTanh()
        self.limited = qnn.QuantHardTanh(max_val=1.0, min_val=-1.0)
        self.joined = qnn.QuantIdentity()
        self.out = qnn.QuantLinear(8, 4, bias=True, output_quant=Int8ActPerTensorFloat)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(self.q(x))
        z = torch.cat([self.sigmoid(y)[..., :4], self.tanh(y)[..., 4:]], -1)
        made: Tensor = self.out(self.joined(z + self.limited(y)))
        return made
