"""Softmax attention on a window of the past, positions as rotations, and the norm of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn.operator import custom_op
from isobit.quant.nn.recurrence import per_head


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    k, v = per_head(k, q.shape[2]), per_head(v, q.shape[2])
    time = torch.arange(q.shape[1], device=q.device)
    age = time.unsqueeze(1) - time
    scores = torch.einsum("bthd,bshd->bhts", q, k) * scale
    weights = scores.masked_fill((age < 0) | (age >= window), -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v).contiguous()


def _attention_shape(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> tuple[int, ...]:
    return (*q.shape[:3], v.shape[3])


def _rotary(x: Tensor, theta: Tensor) -> Tensor:
    angle = (torch.arange(x.shape[1], dtype=x.dtype, device=x.device).unsqueeze(-1) * theta).unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _l2norm(x: Tensor, eps: float) -> Tensor:
    return (x / (x.square().sum(-1, keepdim=True) + eps).sqrt()).contiguous()


causal_attention = custom_op("causal_attention", _causal_attention, _attention_shape)
"""(q, k, v, window, scale) -> o, (B, T, H, V): the mean of v_s over the last `window` steps s <= t,
weighted by softmax(scale * q_t . k_s).

q: (B, T, H, D). k: (B, T, G, D), v: (B, T, G, V), H a multiple of G: head h reads group h // (H // G).
window: number of steps, t included, >= 1. scale: a number.
"""

rotary = custom_op("rotary", _rotary)
"""(x, theta) -> y, (B, T, H, D): at step t, rotates the pairs (i, i + D/2) by t * theta[i] (Su et al., RoPE, 2021).

x: (B, T, H, D), D even. theta: (D/2,), radians per step.
"""

l2norm = custom_op("l2norm", _l2norm)
"""(x, eps) -> x / sqrt(sum of x^2 + eps) over the last axis; x of any shape."""


class CausalAttention(nn.Module):
    """`causal_attention` of a window and a scale; it has no parameters."""

    def __init__(self, window: int, scale: float) -> None:
        super().__init__()
        self.window, self.scale = window, scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, self.window, self.scale)


class Rotary(nn.Module):
    """`rotary` of heads of size `size` with theta[i] = base^(-2i / size); it has no parameters."""

    theta: Tensor

    def __init__(self, size: int, base: float = 10000.0) -> None:
        super().__init__()
        self.register_buffer("theta", base ** (-torch.arange(0, size, 2) / size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return rotary(x, self.theta)


class L2Norm(nn.Module):
    """`l2norm` with `eps`; it has no parameters."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return l2norm(x, self.eps)
