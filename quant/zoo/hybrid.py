"""A hybrid in float: a Mamba-2 block, then softmax attention on a sliding window (as in Samba, Ren et al., 2024)."""

from __future__ import annotations

from torch import Tensor, nn

from isobit.quant.nn import CausalAttention, Rotary
from isobit.quant.zoo.blocks import SwiGLU, TransformerBlock
from isobit.quant.zoo.mamba import ResidualBlock
from isobit.quant.zoo.mamba2 import Mamba2


class SlidingWindowAttention(nn.Module):
    """Grouped-query softmax attention with rotary positions, (B, T, d_model) -> (B, T, d_model).

    `heads` queries, `groups` keys and values, on the last `window` steps.
    """

    def __init__(self, d_model: int, heads: int, groups: int, window: int) -> None:
        super().__init__()
        size = d_model // heads
        self.heads, self.groups = heads, groups
        self.q_proj = nn.Linear(d_model, heads * size, bias=False)
        self.k_proj = nn.Linear(d_model, groups * size, bias=False)
        self.v_proj = nn.Linear(d_model, groups * size, bias=False)
        self.rotary, self.attention = Rotary(size), CausalAttention(window, size**-0.5)
        self.o_proj = nn.Linear(heads * size, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = self.rotary(self.q_proj(x).unflatten(-1, (self.heads, -1)))
        k = self.rotary(self.k_proj(x).unflatten(-1, (self.groups, -1)))
        v = self.v_proj(x).unflatten(-1, (self.groups, -1))
        out: Tensor = self.o_proj(self.attention(q, k, v).flatten(-2))
        return out


def hybrid(
    d_model: int, d_state: int, headdim: int, heads: int, groups: int, window: int, d_hidden: int, kernel: int = 4
) -> nn.Module:
    """Mamba-2 on RMSNorm, then attention and SwiGLU, residual, (B, T, d_model) -> (B, T, d_model)."""
    mamba = Mamba2(d_model, d_state, kernel, headdim=headdim)
    attention = SlidingWindowAttention(d_model, heads, groups, window)
    return nn.Sequential(ResidualBlock(d_model, mamba), TransformerBlock(d_model, attention, SwiGLU(d_model, d_hidden)))
