"""TTT-Linear, a layer whose state is a linear model that trains on the sequence (Sun et al., 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn import ttt_linear
from isobit.quant.zoo.blocks import SwiGLU, TransformerBlock

INITIAL_STD = 0.02
"""Of the inner model that a sequence starts from, as the authors initialise it."""


class TTTLinear(nn.Module):
    """(B, T, d_model) -> same: `ttt_linear` per head, a norm, a linear layer.

    The inner batch is one step, at which the authors' rotary positions are all 0.  The inner step size is
    base_rate * sigmoid(learnable_ttt_lr(x)) / head size.
    """

    def __init__(self, d_model: int, heads: int, base_rate: float = 1.0) -> None:
        super().__init__()
        self.heads, self.rate = heads, base_rate * heads / d_model
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.learnable_ttt_lr = nn.Linear(d_model, heads)
        self.ttt_norm_weight = nn.Parameter(torch.ones(heads, d_model // heads))
        self.ttt_norm_bias = nn.Parameter(torch.zeros(heads, d_model // heads))
        self.W1 = nn.Parameter(torch.empty(heads, d_model // heads, d_model // heads).normal_(std=INITIAL_STD))
        self.post_norm = nn.LayerNorm(d_model, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        eta = self.learnable_ttt_lr(x).sigmoid() * self.rate
        y = ttt_linear(q, k, v, eta, self.ttt_norm_weight, self.ttt_norm_bias, self.W1)
        out: Tensor = self.o_proj(self.post_norm(y.flatten(2)))
        return out


class TTTBlock(TransformerBlock):
    """(B, T, d_model) -> same, causal: TTT-Linear and a SwiGLU, each on a norm and residual."""

    def __init__(self, d_model: int, heads: int, hidden: int) -> None:
        super().__init__(d_model, TTTLinear(d_model, heads), SwiGLU(d_model, hidden))
