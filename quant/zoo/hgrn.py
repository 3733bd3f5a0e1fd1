"""The MatMul-free language model's blocks in float (Zhu et al., 2024): HGRN token mixer and gated channel mixer.

Every matrix multiplies a normalised input, as with the ternary weights of the paper, but is full here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import ConvexRecurrence


class BitLinear(nn.Linear):
    """weight @ norm(x), without a bias (eq. 1 and algorithm 1, before the weights are made ternary)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.norm = nn.RMSNorm(in_features, eps=1e-8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class HGRNBitAttention(nn.Module):
    """MLGRU (section 3.3.1), (B, T, d_model) -> (B, T, d_model).

    h_t = f_t * h_{t-1} + (1 - f_t) * silu(i_t), f_t between lower_bound, (d_model,), and 1; o = (sigmoid(g) * h) W_o.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.i_proj = BitLinear(d_model, d_model)
        self.f_proj = BitLinear(d_model, d_model)
        self.g_proj = BitLinear(d_model, d_model)
        self.o_proj = BitLinear(d_model, d_model)
        self.recurrence = ConvexRecurrence()

    def forward(self, x: Tensor, lower_bound: Tensor) -> Tensor:
        entering = torch.sigmoid(-self.f_proj(x)) * (1 - lower_bound)
        h = self.recurrence(entering, functional.silu(self.i_proj(x)))
        out: Tensor = self.o_proj(torch.sigmoid(self.g_proj(x)) * h)
        return out


class HGRNBitMLP(nn.Module):
    """The gated linear unit (section 3.3.2): down_proj(silu(gate) * up), gate and up the halves of gate_proj(x)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_proj = BitLinear(d_model, 2 * d_hidden)
        self.down_proj = BitLinear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(functional.silu(gate) * up)
        return out


class HGRNBitBlock(nn.Module):
    """Both mixers, each on a norm and residual, (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.attn_norm, self.attn = nn.RMSNorm(d_model, eps=1e-6), HGRNBitAttention(d_model)
        self.mlp_norm, self.mlp = nn.RMSNorm(d_model, eps=1e-6), HGRNBitMLP(d_model, d_hidden)

    def forward(self, x: Tensor, lower_bound: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), lower_bound)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class HGRNBit(nn.Module):
    """`layers` blocks, (B, T, d_model) -> (B, T, d_model).

    Forget gates have lower bounds that rise from layer to layer, from 0 (HGRN, Qin et al., 2023, section 3.2).
    """

    def __init__(self, d_model: int, layers: int, d_hidden: int) -> None:
        super().__init__()
        self.lower_bounds = nn.Parameter(torch.zeros(layers, d_model))
        self.layers = nn.ModuleList(HGRNBitBlock(d_model, d_hidden) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.lower_bounds.softmax(0)
        bounds = shares.cumsum(0) - shares[0]
        for i, layer in enumerate(self.layers):
            x = layer(x, bounds[i])
        return x
