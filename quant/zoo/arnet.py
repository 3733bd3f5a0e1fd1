"""AR-Net, an autoregressive model as a network over the last values of a series (Triebe et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from isobit.quant.nn import CausalFIR


class ARNet(nn.Module):
    """Series (B, T, channels) -> forecasts (B, T, horizon * channels), of the steps t + 1 to t + horizon, at every t.

    order: how many values, the current one included, a forecast sees; those before the first step are 0.
    hidden: widths of the hidden layers, with ReLU; without any this is the linear model AR(order).
    """

    def __init__(self, order: int, horizon: int = 1, hidden: Sequence[int] = (), channels: int = 1) -> None:
        super().__init__()
        widths = [*hidden, horizon * channels]
        self.ar = CausalFIR(channels, widths[0], order)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.ReLU(), nn.Linear(inputs, outputs)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(self.ar(x))
        return out
