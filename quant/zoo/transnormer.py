"""TransNormerLLM in float (Qin et al., 2023), whose attention Lightning Attention computes (Qin et al., 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import LinearRecurrence


class SimpleRMSNorm(nn.Module):
    """x / rms(x) over the last axis, without a weight (TransNormerLLM, eq. 9)."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.size, self.eps = size, eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (self.size,), eps=self.eps)


class NormLinearAttention(nn.Module):
    """norm(linear attention of silu queries and keys) * u (eq. 5 to 7), (B, T, d_model) -> (B, T, d_model).

    Head h of H in layer l of L decays by exp(-2^(-8 (h + 1) / H) (1 - l / L)) (section 3.1).
    """

    decay: Tensor

    def __init__(self, d_model: int, heads: int, layer: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.u_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.recurrence, self.norm = LinearRecurrence(), SimpleRMSNorm(d_model)
        slopes = 2 ** (-8 * torch.arange(1, heads + 1) / heads)
        self.register_buffer("decay", torch.exp(-slopes * (1 - layer / layers)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = (functional.silu(self.q_proj(x)), functional.silu(self.k_proj(x)), self.v_proj(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        o = self.norm(self.recurrence(q, k, v, self.decay).flatten(-2))
        out: Tensor = self.out_proj(o * self.u_proj(x))
        return out


class SimpleGatedLinearUnit(nn.Module):
    """(v * u) W_o, without an activation (SGLU, eq. 8)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.v_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.u_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.o_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o_proj(self.v_proj(x) * self.u_proj(x))
        return out


class TransNormerBlock(nn.Module):
    """h = x + attention(norm(x)); h + glu(norm(h)) (eq. 4), (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, heads: int, layer: int, layers: int, d_hidden: int) -> None:
        super().__init__()
        self.token_norm, self.token_mixer = SimpleRMSNorm(d_model), NormLinearAttention(d_model, heads, layer, layers)
        self.feature_norm, self.feature_mixer = SimpleRMSNorm(d_model), SimpleGatedLinearUnit(d_model, d_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixer(self.token_norm(x))
        out: Tensor = x + self.feature_mixer(self.feature_norm(x))
        return out


def transnormer(d_model: int, heads: int, layers: int, d_hidden: int) -> nn.Module:
    """`layers` blocks, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(*(TransNormerBlock(d_model, heads, layer, layers, d_hidden) for layer in range(layers)))
