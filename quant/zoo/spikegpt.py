"""SpikeGPT, RWKV whose mixers speak through spiking neurons (Zhu et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn import LIF, Heaviside
from isobit.quant.zoo.rwkv4 import RWKV4ChannelMix, RWKV4TimeMix

MEMBRANE_LEAK = 0.5
"""1 / tau of the authors' neurons, tau = 2."""
SPIKE_GAIN = 16.0
"""Factor of the two matrices before the neurons at initialisation, with which about 10 % of the neurons spike.

The authors start these matrices at zero, and then no neuron does.
"""


class SpikeGPTBlock(nn.Module):
    """h = x + lif1(att(ln1(x))); h + lif2(ffn(ln2(h))): adds 0, 1 or 2 to its input, which layer 0 normalises first."""

    def __init__(self, d_model: int, layer: int, layers: int, d_hidden: int) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(d_model) if layer == 0 else nn.Identity()
        self.ln1, self.att = nn.LayerNorm(d_model), RWKV4TimeMix(d_model, layer, layers)
        self.ln2, self.ffn = nn.LayerNorm(d_model), RWKV4ChannelMix(d_model, layer, layers, d_hidden)
        self.lif1, self.lif2 = LIF(MEMBRANE_LEAK), LIF(MEMBRANE_LEAK)
        with torch.no_grad():
            self.att.output.weight *= SPIKE_GAIN
            self.ffn.value.weight *= SPIKE_GAIN

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln0(x)
        x = x + self.lif1(self.att(self.ln1(x)))
        out: Tensor = x + self.lif2(self.ffn(self.ln2(x)))
        return out


class SpikeGPT(nn.Module):
    """Embedded tokens (B, T, d_model) -> (B, T, d_model), causal; an embedding enters as its signs, 1 or 0."""

    def __init__(self, d_model: int, layers: int, d_hidden: int) -> None:
        super().__init__()
        self.heaviside = Heaviside()
        self.blocks = nn.Sequential(*(SpikeGPTBlock(d_model, layer, layers, d_hidden) for layer in range(layers)))
        self.ln_out = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ln_out(self.blocks(self.heaviside(x)))
        return out
