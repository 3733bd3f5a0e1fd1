"""Mixture of memories in float (Du et al., MoM, 2025), with the gated delta rule in every memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import DeltaRecurrence, L2Norm, top_k_mask
from isobit.quant.zoo.blocks import GatedRMSNorm, SwiGLU, TransformerBlock, log_uniform_step_bias


class MomAttention(nn.Module):
    """Each step writes and reads the `topk` memories that its router prefers, and a shared one (section 3.2).

    (B, T, d_model) -> (B, T, d_model). The memories are further heads of one recurrence: where a step is not routed,
    its decay is 1 and its beta 0, and the read is weighted by 0.  Memory 0 is the shared one.  k_proj, v_proj, a_proj
    and b_proj are of all memories, memory by memory.
    """

    def __init__(self, d_model: int, heads: int, memories: int, topk: int, expand_v: int = 2) -> None:
        super().__init__()
        self.heads, self.memories, self.topk, self.scale = heads, memories, topk, (d_model // heads) ** -0.5
        stores = 1 + memories
        self.gate = nn.Linear(d_model, memories, bias=False)
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, stores * d_model, bias=False)
        self.v_proj = nn.Linear(d_model, stores * expand_v * d_model, bias=False)
        self.a_proj = nn.Linear(d_model, stores * heads, bias=False)
        self.b_proj = nn.Linear(d_model, stores * heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(0, 16).log())
        self.dt_bias = nn.Parameter(log_uniform_step_bias(heads))
        self.l2norm, self.recurrence = L2Norm(), DeltaRecurrence()
        self.g_proj = nn.Linear(d_model, expand_v * d_model, bias=False)
        self.o_norm = GatedRMSNorm(expand_v * d_model // heads)
        self.o_proj = nn.Linear(expand_v * d_model, d_model, bias=False)

    def routes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights, which sum to 1, and the mask of the routed memories, (B, T, memories, 1) each (eq. 4 and 5)."""
        scores = self.gate(x).softmax(-1)
        mask = top_k_mask(scores, self.topk)
        chosen = scores * mask
        return (chosen / chosen.sum(-1, keepdim=True)).unsqueeze(-1), mask.unsqueeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        stores, heads = 1 + self.memories, self.heads
        weights, mask = self.routes(x)
        rate = functional.softplus(self.a_proj(x).unflatten(-1, (stores, heads)) + self.dt_bias)
        rate = rate * -torch.exp(self.A_log)
        beta = torch.sigmoid(self.b_proj(x)).unflatten(-1, (stores, heads))
        decay = torch.exp(torch.cat([rate[:, :, :1], rate[:, :, 1:] * mask], dim=2)).flatten(-2)
        beta = torch.cat([beta[:, :, :1], beta[:, :, 1:] * mask], dim=2).flatten(-2)
        q = self.l2norm(functional.silu(self.q_proj(x)).unflatten(-1, (1, heads, -1))) * self.scale
        q = q.expand(-1, -1, stores, -1, -1).flatten(2, 3)
        k = self.l2norm(functional.silu(self.k_proj(x)).unflatten(-1, (stores * heads, -1)))
        v = functional.silu(self.v_proj(x)).unflatten(-1, (stores * heads, -1))
        o = self.recurrence(q, k, v, beta, decay).unflatten(2, (stores, heads))
        o = o[:, :, 0] + (o[:, :, 1:] * weights.unsqueeze(-1)).sum(2)
        gate = self.g_proj(x).unflatten(-1, (heads, -1))
        out: Tensor = self.o_proj(self.o_norm(o, gate).flatten(-2))
        return out


def mom(d_model: int, heads: int, memories: int, topk: int, layers: int, d_hidden: int) -> nn.Module:
    """`layers` blocks of memories and SwiGLU, (B, T, d_model) -> (B, T, d_model)."""
    blocks = (
        TransformerBlock(d_model, MomAttention(d_model, heads, memories, topk), SwiGLU(d_model, d_hidden))
        for _ in range(layers)
    )
    return nn.Sequential(*blocks)
