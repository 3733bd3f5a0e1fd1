"""Layers of every kind that has weights, each as a model of its own, with sizes that are multiples of no block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from isobit.quant.capture.graph import Floats
from isobit.quant.nn import CausalConv1d, CausalFIR
from isobit.quant.quantize import Quantized, quantize
from isobit.quant.recipe import Recipe


class Grouped(nn.Module):
    """A matrix for each group of channels, (B, T, groups * inputs) -> (B, T, groups, outputs)."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(groups, outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btgk,gnk->btgn", x.unflatten(-1, self.weight.shape[::2]), self.weight)


class AlongPositions(nn.Module):
    """A causal convolution along the pixels of an image, (B, C, H, W) -> (B, H * W, C)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.along = CausalConv1d(channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.along(x.flatten(2).transpose(1, 2))
        return made


@dataclass(frozen=True)
class Layer:
    """shape: of a sample, (time, channels) or (channels, height, width).  rows, channels: how many axes of its weight
    are outputs, and input channels; a kernel's follow.  over, seen: axes of samples along which what its weights
    multiply is alike, and the shape of the others beside the weight.  biased: the bias's, beside the output.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: int = 1
    channels: int = 1
    over: tuple[int, ...] = (0, 1)
    seen: tuple[int, ...] = (-1,)
    biased: tuple[int, ...] = (-1,)

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3


def image(make: Callable[[], nn.Module], shape: tuple[int, int, int], channels: int = 1) -> Layer:
    """A two-dimensional convolution; channels: as of a Layer."""
    seen = (-1, 1, 1) if channels else (-1, 1, 1, 1)
    return Layer(make, shape, 1, channels, (0, 2, 3), seen, (-1, 1, 1))


LAYERS = {
    "linear": Layer(lambda: nn.Linear(70, 5), (6, 70)),
    "linear of an image": Layer(lambda: nn.Sequential(nn.Flatten(), nn.Linear(105, 4)), (7, 3, 5), over=(0,)),
    "linear of a pixel": Layer(lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 4)), (50, 1, 1), over=(0,)),
    "grouped_linear": Layer(lambda: Grouped(3, 37, 4), (6, 111), rows=2, seen=(3, 1, 37), biased=(3, 4)),
    "3x3": image(lambda: nn.Conv2d(10, 4, 3, padding=1), (10, 5, 4)),
    "3x2, strides, dilation": image(lambda: nn.Conv2d(7, 3, (3, 2), stride=(2, 1), dilation=(1, 2)), (7, 7, 5)),
    "5x5": image(lambda: nn.Conv2d(3, 2, 5, padding=2, bias=False), (3, 6, 5)),
    "1x1": image(lambda: nn.Conv2d(37, 4, 1), (37, 3, 2)),
    "1x1, stride": image(lambda: nn.Conv2d(37, 4, 1, stride=2, padding=1), (37, 3, 4)),
    "whole image": image(lambda: nn.Conv2d(9, 4, (3, 2)), (9, 3, 2)),
    "whole rows": image(lambda: nn.Conv2d(9, 4, (2, 3)), (9, 5, 3)),
    "depthwise": image(lambda: nn.Conv2d(5, 5, 5, padding=2, groups=5), (5, 6, 5), channels=0),
    "causal_fir": Layer(lambda: CausalFIR(23, 4, 3), (6, 23), seen=(-1, 1)),
    "causal_conv1d": Layer(lambda: CausalConv1d(5, 37), (40, 5), channels=0, seen=(-1, 1)),
    "positions_conv1d": Layer(lambda: AlongPositions(3, 37), (3, 8, 5), channels=0, over=(0, 2, 3), seen=(-1, 1)),
}
"""By name: a layer."""


def samples(name: str, count: int = 4) -> Floats:
    """Noise with a mean, its channels of different scales."""
    shape, rng = LAYERS[name].shape, np.random.default_rng(crc32(name.encode()))
    channels = (shape[0], 1, 1) if LAYERS[name].is_image else shape[1:]
    x = (rng.normal(size=(count, *shape)) + 0.3) * np.exp2(rng.integers(-4, 3, channels))
    return np.asarray(x.astype(np.float32).astype(np.float64))


def layer_of(name: str, recipe: Recipe) -> tuple[nn.Module, Quantized]:
    """The float model, whose weights differ in scale too, and its integers."""
    torch.manual_seed(0)
    model = LAYERS[name].make().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(torch.exp2(torch.randint(-3, 3, p.shape)) if p.ndim > 1 else 1)
    return model, quantize(model, samples(name), recipe, name="layer")
