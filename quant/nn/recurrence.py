"""Recurrences that are linear in their state, with a decay of any form.

C is the number of channels, N the size of the state per channel; H heads, G groups of heads with common queries and
keys, K and V the sizes of a key and a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn.operator import custom_op, second_shape, third_shape

CHUNK = 64
"""Steps whose matrix states exist at the same time."""


def scan(decay: Tensor, drive: Tensor, state: Tensor | None = None) -> Tensor:
    """The states h_t = decay_t * h_{t-1} + drive_t along axis 1, all of them, in log2(T) rounds.

    decay: broadcasts to drive, with all T steps on axis 1.  drive: (B, T, ...).  state: (B, ...), h before the first
    step; zero if None.  Needs no logarithm or quotient of decays, so they may be 0.
    """
    if state is not None:
        drive = torch.cat([drive[:, :1] + decay[:, :1] * state.unsqueeze(1), drive[:, 1:]], dim=1)
    distance, steps = 1, drive.shape[1]
    while distance < steps:
        drive = torch.cat([drive[:, :distance], drive[:, distance:] + decay[:, distance:] * drive[:, :-distance]], 1)
        decay = torch.cat([decay[:, :distance], decay[:, distance:] * decay[:, :-distance]], dim=1)
        distance *= 2
    return drive


def selective_recurrence_states(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Selective state space, with all of its states (Gu and Dao, Mamba, 2023, eq. 2a and 2b; Euler rule for the input).

    h_t = exp(dt_t * a) * h_{t-1} + (dt_t * u_t) * b_t, and y_t = sum over n of h_t[n] * c_t[n].

    u: (B, T, C), the input. dt: (B, T, C), the step size, > 0. a: (C, N), the continuous decay rate, < 0.
    b, c: (B, T, N).
    state: (B, C, N), the state before the first step; zero if None.
    Returns y, (B, T, C), and the states h, (B, T, C, N), of which h[:, -1] continues the sequence.
    """
    decay = torch.exp(dt.unsqueeze(-1) * a)
    drive = (dt * u).unsqueeze(-1) * b.unsqueeze(-2)
    h = torch.zeros_like(drive[:, 0]) if state is None else state
    states = []
    for decay_t, drive_t in zip(decay.unbind(1), drive.unbind(1), strict=True):
        h = decay_t * h + drive_t
        states.append(h)
    stacked = torch.stack(states, dim=1)
    return torch.einsum("btcn,btn->btc", stacked, c).contiguous(), stacked


def _selective_recurrence(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return selective_recurrence_states(u, dt, a, b, c)[0]


def per_head(x: Tensor, heads: int) -> Tensor:
    """(B, T, G, K) -> (B, T, heads, K): head h reads group h // (heads // G)."""
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def state_decay(decay: Tensor | None, v: Tensor) -> Tensor:
    """A decay of None, (H,), (B, T, H) or (B, T, H, K) as a factor of the states (B, T, H, K, V) of values v."""
    if decay is None:
        decay = v.new_ones(v.shape[2])
    if decay.dim() == 1:
        decay = decay.expand(1, v.shape[1], -1)
    return decay[..., None, None] if decay.dim() == 3 else decay.unsqueeze(-1)


def _linear_recurrence(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, bonus: Tensor | None) -> Tensor:
    q, k = per_head(q, v.shape[2]), per_head(k, v.shape[2])
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    outputs = []
    parts = (tensor.split(CHUNK, dim=1) for tensor in (q, k, v, state_decay(decay, v)))
    for q_c, k_c, v_c, decay_c in zip(*parts, strict=True):
        drive = k_c.unsqueeze(-1) * v_c.unsqueeze(-2)
        states = scan(decay_c, drive, state)
        read = states
        if bonus is not None:
            read = torch.cat([state.unsqueeze(1), states[:, :-1]], dim=1) + bonus.unsqueeze(-1) * drive
        outputs.append(torch.einsum("bthkv,bthk->bthv", read, q_c))
        state = states[:, -1]
    return torch.cat(outputs, dim=1).contiguous()


def _diagonal_recurrence(decay: Tensor, x: Tensor) -> Tensor:
    return scan(decay.expand_as(x), x).clone(memory_format=torch.contiguous_format)


def _convex_recurrence(gate: Tensor, x: Tensor) -> Tensor:
    return scan(1 - gate, gate * x).contiguous()


def _complex_recurrence(u: Tensor, a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor) -> Tensor:
    a, c = torch.complex(a_re, a_im), torch.complex(c_re, c_im)
    state = u.new_zeros(u.shape[0], *a.shape).to(a.dtype)
    outputs = []
    for u_c in u.split(CHUNK, dim=1):
        drive = u_c.unsqueeze(-1).to(a.dtype).expand(-1, -1, -1, a.shape[1])
        states = scan(a.expand(1, u_c.shape[1], *a.shape), drive, state)
        outputs.append(2 * (states * c).sum(-1).real)
        state = states[:, -1]
    return torch.cat(outputs, dim=1).contiguous()


def _dense_recurrence(x: Tensor, a: Tensor) -> Tensor:
    states, power, distance = x, a, 1
    while distance < x.shape[1]:
        moved = nn.functional.linear(states[:, :-distance], power)
        states = torch.cat([states[:, :distance], states[:, distance:] + moved], dim=1)
        power, distance = power @ power, 2 * distance
    return states.clone(memory_format=torch.contiguous_format)


selective_recurrence = custom_op("selective_recurrence", _selective_recurrence)
"""(u, dt, a, b, c) -> y of `selective_recurrence_states`, from the zero state."""

_linear_recurrence_op = custom_op("linear_recurrence", _linear_recurrence, third_shape)


def linear_recurrence(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None = None, bonus: Tensor | None = None
) -> Tensor:
    """Linear attention with a decay (RetNet, Sun et al., 2023, eq. 6; GLA, Yang et al., 2023, eq. 3).

    S_t = decay_t * S_{t-1} + k_t v_t^T, (K, V) per head; o_t = S_t^T q_t.  A decay per key scales the rows of S.
    With a bonus, o_t = (S_{t-1} + (bonus * k_t) v_t^T)^T q_t (RWKV-6, Peng et al., 2024, eq. 18 and 19).

    q, k: (B, T, G, K). v: (B, T, H, V), H a multiple of G: head h reads group h // (H // G).
    decay: None for 1, or (H,), (B, T, H), (B, T, H, K), in [0, 1]. bonus: (H, K).  Returns (B, T, H, V).
    """
    return _linear_recurrence_op(q, k, v, decay, bonus)


diagonal_recurrence = custom_op("diagonal_recurrence", _diagonal_recurrence, second_shape)
"""(decay, x) -> h, all (B, T, C): h_t = decay_t * h_{t-1} + x_t.  A decay that never changes may be (C,)."""

convex_recurrence = custom_op("convex_recurrence", _convex_recurrence)
"""(gate, x) -> h, all (B, T, C): h_t = h_{t-1} + gate_t * (x_t - h_{t-1}), with gates in [0, 1].

(minGRU, Feng et al., 2024, section 3.1; HGRN, Qin et al., 2023; QRNN, Bradbury et al., 2016.)
"""

complex_recurrence = custom_op("complex_recurrence", _complex_recurrence)
"""(u, a_re, a_im, c_re, c_im) -> y, (B, T, C): a diagonal state space with complex states (S4D, Gu et al., 2022).

h_t[c, n] = a[c, n] * h_{t-1}[c, n] + u_t[c], and y_t[c] = 2 Re sum over n of c[c, n] * h_t[c, n].
u: (B, T, C), real. a, c: (C, N), by real and imaginary parts, after discretisation; |a| <= 1.
"""

dense_recurrence = custom_op("dense_recurrence", _dense_recurrence)
"""(x, a) -> m, (B, T, ..., N): m_t = a m_{t-1} + x_t over the last axis (LMU, Voelker et al., 2019, eq. 19).

x: (B, T, ..., N), any axes between. a: (N, N).
"""


class SelectiveRecurrence(nn.Module):
    """`selective_recurrence`; it has no parameters."""

    def forward(self, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return selective_recurrence(u, dt, a, b, c)


class LinearRecurrence(nn.Module):
    """`linear_recurrence`; it has no parameters."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None = None, bonus: Tensor | None = None
    ) -> Tensor:
        return linear_recurrence(q, k, v, decay, bonus)


class DiagonalRecurrence(nn.Module):
    """`diagonal_recurrence`; it has no parameters."""

    def forward(self, decay: Tensor, x: Tensor) -> Tensor:
        return diagonal_recurrence(decay, x)


class ConvexRecurrence(nn.Module):
    """`convex_recurrence`; it has no parameters."""

    def forward(self, gate: Tensor, x: Tensor) -> Tensor:
        return convex_recurrence(gate, x)


class ComplexRecurrence(nn.Module):
    """`complex_recurrence`; it has no parameters."""

    def forward(self, u: Tensor, a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor) -> Tensor:
        return complex_recurrence(u, a_re, a_im, c_re, c_im)


class DenseRecurrence(nn.Module):
    """`dense_recurrence`; it has no parameters."""

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return dense_recurrence(x, a)
