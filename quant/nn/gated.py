"""Recurrences with exponential gates and normalised readouts: RWKV-4's WKV, and the sLSTM and mLSTM of xLSTM.

All keep the running maximum m of their exponents, so that no exponential exceeds 1; m starts at minus infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn.operator import custom_op, third_shape


def _wkv4(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    numerator = denominator = torch.zeros_like(k[:, 0])
    m = torch.full_like(k[:, 0], -torch.inf)
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        top = torch.maximum(m, bonus + k_t)
        past, now = torch.exp(m - top), torch.exp(bonus + k_t - top)
        outputs.append((past * numerator + now * v_t) / (past * denominator + now))
        top = torch.maximum(m - decay, k_t)
        past, now = torch.exp(m - decay - top), torch.exp(k_t - top)
        numerator, denominator, m = past * numerator + now * v_t, past * denominator + now, top
    return torch.stack(outputs, dim=1)


def _slstm(i: Tensor, f: Tensor, z: Tensor, o: Tensor, recurrent: Tensor) -> Tensor:
    h = c = n = torch.zeros_like(i[:, 0])
    m = torch.full_like(i[:, 0], -torch.inf)
    outputs = []
    for gates in torch.stack([i, f, z, o], dim=2).unbind(1):
        i_t, f_t, z_t, o_t = (gates + torch.einsum("ghde,bhe->bghd", recurrent, h)).unbind(1)
        f_t = nn.functional.logsigmoid(f_t)
        top = torch.maximum(f_t + m, i_t)
        past, now = torch.exp(f_t + m - top), torch.exp(i_t - top)
        c, n, m = past * c + now * torch.tanh(z_t), past * n + now, top
        h = torch.sigmoid(o_t) * c / n
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def _mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    c = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    n = torch.zeros_like(k[:, 0])
    m = torch.full_like(i[:, 0], -torch.inf)
    outputs = []
    log_f = nn.functional.logsigmoid(f)
    for q_t, k_t, v_t, i_t, f_t in zip(*(tensor.unbind(1) for tensor in (q, k, v, i, log_f)), strict=True):
        top = torch.maximum(f_t + m, i_t)
        past, now = torch.exp(f_t + m - top).unsqueeze(-1), torch.exp(i_t - top).unsqueeze(-1)
        n = past * n + now * k_t
        c = past.unsqueeze(-1) * c + (now * k_t).unsqueeze(-1) * v_t.unsqueeze(-2)
        m = top
        scale = torch.maximum((n * q_t).sum(-1).abs(), torch.exp(-m)).unsqueeze(-1)
        outputs.append(torch.einsum("bhkv,bhk->bhv", c, q_t) / scale)
    return torch.stack(outputs, dim=1)


wkv4 = custom_op("wkv4", _wkv4)
"""(k, v, decay, bonus) -> o, (B, T, C): RWKV-4's weighted average of values (Peng et al., 2023, eq. 16).

o_t = (sum over s < t of e^(k_s - (t-1-s) decay) v_s + e^(k_t + bonus) v_t) / (the same sums without v).
k, v: (B, T, C). decay: (C,), > 0. bonus: (C,).
"""

slstm = custom_op("slstm", _slstm)
"""(i, f, z, o, recurrent) -> h, (B, T, H, D): xLSTM's scalar memory (Beck et al., 2024, eq. 8 to 19).

With i', f', z', o' the inputs plus recurrent[0] to [3] times h_{t-1}, per head:
c_t = sigmoid(f') c_{t-1} + e^i' tanh(z'), n_t = sigmoid(f') n_{t-1} + e^i', h_t = sigmoid(o') c_t / n_t.
i, f, z, o: (B, T, H, D). recurrent: (4, H, D, D), for i, f, z, o, output by input.
"""

mlstm = custom_op("mlstm", _mlstm, third_shape)
"""(q, k, v, i, f) -> h, (B, T, H, V): xLSTM's matrix memory (Beck et al., 2024, eq. 19 to 27), before the output gate.

C_t = sigmoid(f_t) C_{t-1} + e^i_t k_t v_t^T, n_t = sigmoid(f_t) n_{t-1} + e^i_t k_t,
h_t = C_t^T q_t / max(|n_t . q_t|, 1).
q, k: (B, T, H, K), the caller has divided k (or q) by the square root of K. v: (B, T, H, V). i, f: (B, T, H).
"""


class WKV4(nn.Module):
    """`wkv4`; it has no parameters."""

    def forward(self, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
        return wkv4(k, v, decay, bonus)


class SLSTM(nn.Module):
    """`slstm`; it has no parameters."""

    def forward(self, i: Tensor, f: Tensor, z: Tensor, o: Tensor, recurrent: Tensor) -> Tensor:
        return slstm(i, f, z, o, recurrent)


class MLSTM(nn.Module):
    """`mlstm`; it has no parameters."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        return mlstm(q, k, v, i, f)
