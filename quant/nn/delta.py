"""Recurrences whose state learns online: the delta rule, its generalisation in RWKV-7, and TTT-Linear.

H heads, G groups of heads with common queries and keys, K and V the sizes of a key and a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn.operator import custom_op, third_shape
from isobit.quant.nn.recurrence import per_head, state_decay

INNER_NORM_EPS = 1e-6
"""Added to the variance in TTT-Linear's inner LayerNorm."""


def _delta_recurrence(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None) -> Tensor:
    q, k = per_head(q, v.shape[2]), per_head(k, v.shape[2])
    factors = state_decay(decay, v).expand(v.shape[0], -1, -1, -1, -1)
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    outputs = []
    steps = zip(*(tensor.unbind(1) for tensor in (q, k, v, beta, factors)), strict=True)
    for q_t, k_t, v_t, beta_t, factor in steps:
        state = factor * state
        error = beta_t.unsqueeze(-1) * (v_t - torch.einsum("bhkv,bhk->bhv", state, k_t))
        state = state + k_t.unsqueeze(-1) * error.unsqueeze(-2)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q_t))
    return torch.stack(outputs, dim=1)


def _generalized_delta_recurrence(r: Tensor, decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    state = v.new_zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3])
    outputs = []
    for r_t, w_t, k_t, v_t, a_t, b_t in zip(*(tensor.unbind(1) for tensor in (r, decay, k, v, a, b)), strict=True):
        removed = torch.einsum("bhvk,bhk->bhv", state, a_t)
        state = state * w_t.unsqueeze(-2) + removed.unsqueeze(-1) * b_t.unsqueeze(-2)
        state = state + v_t.unsqueeze(-1) * k_t.unsqueeze(-2)
        outputs.append(torch.einsum("bhvk,bhk->bhv", state, r_t))
    return torch.stack(outputs, dim=1)


def _ttt_linear(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, weight: Tensor, bias: Tensor, initial: Tensor) -> Tensor:
    def normalised(z: Tensor) -> tuple[Tensor, Tensor]:
        centred = z - z.mean(-1, keepdim=True)
        inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + INNER_NORM_EPS)
        return centred * inverse, inverse

    inner = initial.unsqueeze(0)
    outputs = []
    for q_t, k_t, v_t, eta_t in zip(*(tensor.unbind(1) for tensor in (q, k, v, eta)), strict=True):
        z, inverse = normalised(torch.einsum("bhij,bhj->bhi", inner, k_t))
        slope = (k_t + z * weight + bias - v_t) * weight
        slope = slope - slope.mean(-1, keepdim=True) - z * (slope * z).mean(-1, keepdim=True)
        inner = inner - (eta_t.unsqueeze(-1) * slope * inverse).unsqueeze(-1) * k_t.unsqueeze(-2)
        z, _ = normalised(torch.einsum("bhij,bhj->bhi", inner, q_t))
        outputs.append(q_t + z * weight + bias)
    return torch.stack(outputs, dim=1)


def _fourth_shape(r: Tensor, decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[int, ...]:
    return tuple(v.shape)


_delta_recurrence_op = custom_op("delta_recurrence", _delta_recurrence, third_shape)


def delta_recurrence(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None) -> Tensor:
    """The delta rule (DeltaNet, Yang et al., 2024, eq. 5), gated (gated DeltaNet, Yang et al., 2024, eq. 10).

    S' = decay_t * S_{t-1}; S_t = S' + beta_t k_t (v_t - S'^T k_t)^T, (K, V) per head; o_t = S_t^T q_t.

    q, k: (B, T, G, K). v: (B, T, H, V), H a multiple of G: head h reads group h // (H // G). beta: (B, T, H).
    decay: None for 1, or (B, T, H), (B, T, H, K), in [0, 1].  Returns (B, T, H, V).
    """
    return _delta_recurrence_op(q, k, v, beta, decay)


generalized_delta_recurrence = custom_op("generalized_delta_recurrence", _generalized_delta_recurrence, _fourth_shape)
"""(r, decay, k, v, a, b) -> o, (B, T, H, V): RWKV-7's generalised delta rule (Peng et al., 2025, eq. 17).

S_t = S_{t-1} diag(decay_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T, (V, K) per head; o_t = S_t r_t.
r, decay, k, a, b: (B, T, H, K). v: (B, T, H, V).
"""

ttt_linear = custom_op("ttt_linear", _ttt_linear)
"""(q, k, v, eta, weight, bias, initial) -> o, (B, T, H, D): TTT-Linear with an inner batch of 1 (Sun et al., 2024).

Each head fits f(x) = x + LN(W x), from W = initial, by one step of gradient descent per time step on
|f(k_t) - v_t|^2 / 2 with the step size eta_t; o_t = f(q_t) with the new W (section 2).  LN has the parameters weight
and bias and adds INNER_NORM_EPS.  q, k, v: (B, T, H, D). eta: (B, T, H), >= 0. weight, bias: (H, D).
initial: (H, D, D).
"""


class DeltaRecurrence(nn.Module):
    """`delta_recurrence`; it has no parameters."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None) -> Tensor:
        return delta_recurrence(q, k, v, beta, decay)


class GeneralizedDeltaRecurrence(nn.Module):
    """`generalized_delta_recurrence`; it has no parameters."""

    def forward(self, r: Tensor, decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return generalized_delta_recurrence(r, decay, k, v, a, b)
