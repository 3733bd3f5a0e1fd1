"""Parts that several sequence families share: residual blocks, a gated MLP, norms per head, short convolutions.

B is the batch, T the time, H heads of size V.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import causal_conv1d
from isobit.quant.zoo.mamba import STEP_SIZE_RANGE


def log_uniform_step_bias(size: int) -> Tensor:
    """(size,): biases b whose softplus(b) is log-uniform in STEP_SIZE_RANGE."""
    low, high = (torch.tensor(bound).log() for bound in STEP_SIZE_RANGE)
    return torch.empty(size).uniform_(float(low), float(high)).exp().expm1().log()


class PreNorm(nn.Module):
    """x + mixer(norm(x)), (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, norm: nn.Module, mixer: nn.Module) -> None:
        super().__init__()
        self.norm, self.mixer = norm, mixer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mixer(self.norm(x))
        return out


class TransformerBlock(nn.Module):
    """h = x + attn(attn_norm(x)); h + mlp(mlp_norm(h)), with RMSNorm and the names of flash-linear-attention."""

    def __init__(self, d_model: int, attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attn_norm, self.attn = nn.RMSNorm(d_model, eps=1e-5), attn
        self.mlp_norm, self.mlp = nn.RMSNorm(d_model, eps=1e-5), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class SwiGLU(nn.Module):
    """down_proj(silu(gate_proj(x)) * up_proj(x)) (Shazeer, GLU variants, 2020)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class GatedRMSNorm(nn.Module):
    """RMSNorm(x) * silu(gate) over the last axis, of size `size`; x and gate of any equal shape."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps) * functional.silu(gate)


class HeadLayerNorm(nn.Module):
    """LayerNorm of every head alone, (B, T, H, V) -> (B, T, H * V), with a weight and a bias per channel.

    What torch.nn.GroupNorm of H groups does to (B * T, H * V).
    """

    def __init__(self, channels: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out = functional.layer_norm(x, x.shape[-1:], eps=self.eps).flatten(-2) * self.weight
        return out if self.bias is None else out + self.bias


class ShortConvolution(nn.Module):
    """silu(causal depthwise convolution without a bias), (B, T, channels); weight is (channels, kernel)."""

    bias: Tensor

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel).uniform_(-(kernel**-0.5), kernel**-0.5))
        self.register_buffer("bias", torch.zeros(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(causal_conv1d(x, self.weight, self.bias))


class BlockDiagonalLinear(nn.Module):
    """(..., channels) -> (..., channels): `blocks` equal groups of channels, each by its own matrix.

    weight: (blocks, size out, size in). Initialised as nn.Linear of one block.
    """

    def __init__(self, channels: int, blocks: int, bias: bool = False) -> None:
        super().__init__()
        size = channels // blocks
        self.weight = nn.Parameter(torch.empty(blocks, size, size).uniform_(-(size**-0.5), size**-0.5))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, torch.block_diag(*(self.weight[i] for i in range(len(self.weight)))), self.bias)


def with_ones(projection: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """The weight and bias of `projection` to `heads` heads, each extended by one channel that is always 1.

    A recurrence of such values keeps sum of k beside sum of k v^T, so that o = S^T q holds z.q as its last channel.
    """
    weight = functional.pad(projection.weight.unflatten(0, (heads, -1)), (0, 0, 0, 1)).flatten(0, 1)
    bias = projection.weight.new_zeros(projection.out_features) if projection.bias is None else projection.bias
    return weight, functional.pad(bias.unflatten(0, (heads, -1)), (0, 1), value=1.0).flatten()
