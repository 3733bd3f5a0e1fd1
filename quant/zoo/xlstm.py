"""xLSTM in float (Beck et al., xLSTM: Extended Long Short-Term Memory, 2024), with the parameter names of its package.

Gate matrices are initialised as nn.Linear, where the package starts those of the mLSTM's gates and the sLSTM's
recurrence at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import MLSTM, SLSTM, CausalConv1d
from isobit.quant.zoo.blocks import BlockDiagonalLinear, HeadLayerNorm


class MLSTMLayer(nn.Module):
    """The mLSTM between an up- and a down-projection (fig. 11), (B, T, d_model) -> (B, T, d_model).

    q, k, v come from blocks of `block` channels.  conv1d.weight is (channels, kernel).
    """

    def __init__(self, d_model: int, heads: int, kernel: int = 4, block: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner = expand * d_model
        self.heads, self.inner, self.scale = heads, inner, (inner // heads) ** -0.5
        self.proj_up = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = CausalConv1d(inner, kernel)
        self.q_proj = BlockDiagonalLinear(inner, inner // block)
        self.k_proj = BlockDiagonalLinear(inner, inner // block)
        self.v_proj = BlockDiagonalLinear(inner, inner // block)
        self.igate = nn.Linear(3 * inner, heads)
        self.fgate = nn.Linear(3 * inner, heads)
        self.cell = MLSTM()
        self.outnorm = HeadLayerNorm(inner, bias=False)
        self.learnable_skip = nn.Parameter(torch.ones(inner))
        self.proj_down = nn.Linear(inner, d_model, bias=False)
        nn.init.normal_(self.igate.bias, std=0.1)
        with torch.no_grad():
            self.fgate.bias.copy_(torch.linspace(3, 6, heads))

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.proj_up(x).split([self.inner, self.inner], dim=-1)
        smoothed = functional.silu(self.conv1d(x))
        parts = self.q_proj(smoothed), self.k_proj(smoothed), self.v_proj(x)
        gates = torch.cat(parts, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        h = self.outnorm(self.cell(q, k * self.scale, v, self.igate(gates), self.fgate(gates)))
        out: Tensor = self.proj_down((h + self.learnable_skip * smoothed) * functional.silu(z))
        return out


class SLSTMLayer(nn.Module):
    """The sLSTM with a head-wise recurrence (fig. 10), (B, T, d_model) -> (B, T, d_model).

    recurrent_kernel: (4, heads, size, size), bias: (4, heads, size), for the gates i, f, z, o.
    Forget biases fall from 5 to -7, as in the package's first block.
    """

    def __init__(self, d_model: int, heads: int, kernel: int = 4) -> None:
        super().__init__()
        size = d_model // heads
        self.heads = heads
        self.conv1d = CausalConv1d(d_model, kernel)
        self.igate = BlockDiagonalLinear(d_model, heads)
        self.fgate = BlockDiagonalLinear(d_model, heads)
        self.zgate = BlockDiagonalLinear(d_model, heads)
        self.ogate = BlockDiagonalLinear(d_model, heads)
        bound = d_model**-0.5
        self.recurrent_kernel = nn.Parameter(torch.empty(4, heads, size, size).uniform_(-bound, bound))
        bias = torch.zeros(4, heads, size)
        bias[1] = 5 - 12 * torch.linspace(0, 1, size) ** 0.3
        self.bias = nn.Parameter(bias)
        self.cell = SLSTM()
        self.group_norm = HeadLayerNorm(d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        smoothed = functional.silu(self.conv1d(x))
        gates = (self.igate(smoothed), self.fgate(smoothed), self.zgate(x), self.ogate(x))
        pre = (gate.unflatten(-1, (self.heads, -1)) + self.bias[i] for i, gate in enumerate(gates))
        out: Tensor = self.group_norm(self.cell(*pre, self.recurrent_kernel))
        return out


class GatedFeedForward(nn.Module):
    """proj_down(gelu(gate) * up), gate and up the halves of proj_up(x)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.proj_up = nn.Linear(d_model, 2 * d_hidden, bias=False)
        self.proj_down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.proj_up(x).chunk(2, dim=-1)
        out: Tensor = self.proj_down(functional.gelu(gate) * up)
        return out


class XLSTMBlock(nn.Module):
    """h = x + xlstm(xlstm_norm(x)); h + ffn(ffn_norm(h)), the second only with a feed-forward layer."""

    def __init__(self, d_model: int, xlstm: nn.Module, ffn: nn.Module | None = None) -> None:
        super().__init__()
        self.xlstm_norm, self.xlstm = nn.LayerNorm(d_model, bias=False), xlstm
        self.ffn_norm = None if ffn is None else nn.LayerNorm(d_model, bias=False)
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.xlstm(self.xlstm_norm(x))
        if self.ffn is not None and self.ffn_norm is not None:
            x = x + self.ffn(self.ffn_norm(x))
        return x


def xlstm(d_model: int, heads: int, d_hidden: int, kernel: int = 4, block: int = 4) -> nn.Module:
    """xLSTM[1:1]: one mLSTM and one sLSTM block, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(
        XLSTMBlock(d_model, MLSTMLayer(d_model, heads, kernel, block)),
        XLSTMBlock(d_model, SLSTMLayer(d_model, heads, kernel), GatedFeedForward(d_model, d_hidden)),
    )
