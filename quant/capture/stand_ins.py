"""What stands for the quantizers of a Brevitas model while it is exported: modules that call operators of isobit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from isobit.quant.calibrate.rounding import ROUNDINGS, to_minifloat

INTEGERS = -1
"""As a mantissa: the numbers are integers, not minifloats."""


@dataclass(frozen=True)
class Quantizer:
    """Of an activation: clip(round(x / scale + zero), lo, hi), or the nearest minifloat, in units of `scale`.

    scale: exactly Brevitas' float32; of a minifloat, times its smallest number.  lo, hi: of the codes, in these units.
    """

    name: str
    scale: float
    lo: int
    hi: int
    zero: int = 0
    rounding: str = "half_even"
    mantissa: int = INTEGERS


@torch.library.custom_op("isobit::fake_quantize", mutates_args=())
def _fake_quantize(
    x: Tensor, name: str, scale: float, zero: int, lo: int, hi: int, rounding: str, mantissa: int
) -> Tensor:
    """Its limits only: an exported graph is compared with its module where both are continuous."""
    return x.clamp((lo - zero) * scale, (hi - zero) * scale)


@_fake_quantize.register_fake
def _(x: Tensor, name: str, scale: float, zero: int, lo: int, hi: int, rounding: str, mantissa: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("isobit::exact", mutates_args=())
def _exact(parameter: Tensor, like: Tensor) -> Tensor:
    """A parameter in the element type of `like`, which the graph gets in float64."""
    return parameter.to(like.dtype, copy=True)


@_exact.register_fake
def _(parameter: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=like.dtype)


@torch.library.custom_op("isobit::codes_times_scale", mutates_args=())
def _codes_times_scale(codes: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """A weight, int64 codes times one scale or one per row; the graph gets the codes, and the scale behind the sum."""
    real = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
    return real.to(like.dtype)


@_codes_times_scale.register_fake
def _(codes: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=like.dtype)


class Quantize(nn.Module):
    """In place of an activation's proxy: the activation that it has inside, then `fake_quantize`.

    rounds: whether it quantizes, as Brevitas in float32; else it only limits, and can be exported.
    """

    is_quant_enabled = rounds = False

    def __init__(self, quantizer: Quantizer | None, activation: nn.Module | None) -> None:
        super().__init__()
        self.quantizer, self.activation = quantizer, activation

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.activation is None else self.activation(x)
        q = self.quantizer
        if q is None:
            return x
        if self.rounds:
            return _rounded(q, x)
        y: Tensor = _fake_quantize(x, q.name, q.scale, q.zero, q.lo, q.hi, q.rounding, q.mantissa)
        return y


def _rounded(q: Quantizer, x: Tensor) -> Tensor:
    scale = torch.tensor(q.scale, dtype=x.dtype)
    u = (x / scale + q.zero).double().numpy()
    codes = ROUNDINGS[q.rounding](u) if q.mantissa == INTEGERS else to_minifloat(u, q.mantissa)
    return (torch.from_numpy(np.clip(codes, q.lo, q.hi) - q.zero)).to(x.dtype) * scale


class Weight(nn.Module):
    """In place of a weight's proxy: its codes times their scale, whatever the parameter is."""

    is_quant_enabled, requires_quant_input = True, False

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        real: Tensor = _codes_times_scale(self.codes, self.scale, weight)
        return real


class Bias(nn.Module):
    """In place of a bias' proxy: the bias as it is added."""

    is_quant_enabled = requires_input_scale = False

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def forward(self, bias: Tensor, *others: object) -> Tensor:
        real: Tensor = _exact(self.bias, bias)
        return real
