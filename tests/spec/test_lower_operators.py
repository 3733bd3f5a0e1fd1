"""Every operator of the float graph on a tiny module: the noise of its integers against the float graph.

The floors are about 3 dB below what was measured: a wrong scale or shift costs far more.  `w8a8` has 8-bit operands of
matmuls, `w8a16` 16-bit ones; what 8 bits of weights lose is in both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant import nn as inn
from isobit.quant.calibrate.evaluate import EVALUATORS
from isobit.quant.capture.capture import capture
from isobit.quant.capture.graph import Floats
from isobit.quant.lower.rules import RULES
from isobit.quant.quantize import layer_snr, quantize

C = 6


class Call(nn.Module):
    """A function of the input and of two linear layers of it."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        super().__init__()
        self.f, self.a, self.b = f, nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.a(x), self.b(x))


class Own(nn.Module):
    """A function of the input and of parameters, N(0, 1), of the given shapes."""

    def __init__(self, f: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.f = f
        self.p = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, *self.p)


class Image(nn.Module):
    """A function of a convolution of the image, which has 6 channels and its height and width."""

    def __init__(self, f: Callable[[Tensor], Tensor], **options: int | str) -> None:
        super().__init__()
        self.conv, self.f = nn.Conv2d(3, C, 3, **{"padding": 1, **options}), f  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.conv(x))


class Last(nn.Module):
    """The first result of a layer that returns its state too."""

    def __init__(self, layer: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def heads(x: Tensor, size: int = 3) -> Tensor:
    """(B, T, C) -> (B, T, C / size, size)."""
    return x.unflatten(-1, (-1, size))


def per_head(x: Tensor) -> Tensor:
    return heads(x).mean(-1)


sigmoid = torch.sigmoid
Make = Callable[[], nn.Module]


def of(f: Callable[..., Tensor]) -> Make:
    return lambda: Call(f)


SEQUENCES: dict[str, tuple[Make, float, float]] = {
    "linear": (lambda: nn.Linear(C, 9), 0, 0),
    "linear of heads": (of(lambda x, a, b: heads(a) @ torch.ones(3, 2)), 0, 0),
    "grouped_linear": (lambda: Own(lambda x, w: torch.einsum("bthk,hnk->bthn", heads(x), w).flatten(2), (2, 4, 3)), 0, 0),
    "causal_conv1d": (lambda: nn.Sequential(inn.CausalConv1d(C, 4), nn.Linear(C, C)), 0, 0),
    "causal_fir": (lambda: inn.CausalFIR(C, 4, 3), 0, 0),
    "einsum": (of(lambda x, a, b: torch.einsum("bthk,btgk->bthg", heads(a), heads(b)).flatten(2)), 0, 0),
    "matmul": (of(lambda x, a, b: (heads(a).transpose(2, 3) @ heads(b)).flatten(2)), 0, 0),
    "reduce, mean": (of(lambda x, a, b: heads(a).mean(-1)), 0, 0),
    "reduce, sum": (of(lambda x, a, b: heads(a).sum(2)), 0, 0),
    "reduce, max": (of(lambda x, a, b: heads(a).amax(-1)), 0, 0),
    "silu": (of(lambda x, a, b: functional.silu(a)), 0, 0),
    "sigmoid": (of(lambda x, a, b: sigmoid(3 * a)), 0, 0),
    "tanh": (of(lambda x, a, b: torch.tanh(a)), 0, 0),
    "gelu": (of(lambda x, a, b: functional.gelu(a)), 0, 0),
    "gelu_tanh": (of(lambda x, a, b: functional.gelu(a, approximate="tanh")), 0, 0),
    "softplus": (of(lambda x, a, b: functional.softplus(a)), 0, 0),
    "log_sigmoid": (of(lambda x, a, b: functional.logsigmoid(a)), 0, 0),
    "exp": (of(lambda x, a, b: torch.exp(a)), 0, 0),
    "elu": (of(lambda x, a, b: functional.elu(a)), 0, 0),
    "hardswish": (of(lambda x, a, b: functional.hardswish(4 * a)), 0, 0),
    "prelu": (of(lambda x, a, b: functional.leaky_relu(a, 0.2)), 0, 0),
    "clamp": (of(lambda x, a, b: a.clamp(-0.5, 0.25)), 0, 0),
    "clamp of an accumulator": (of(lambda x, a, b: functional.relu(a + x)), 0, 0),
    "abs": (of(lambda x, a, b: a.abs()), 0, 0),
    "sqrt": (of(lambda x, a, b: torch.sqrt(a * a + 0.01)), 0, 0),
    "rsqrt": (of(lambda x, a, b: torch.rsqrt(a * a + 0.5)), 0, 0),
    "add": (of(lambda x, a, b: a + b), 0, 0),
    "sub": (of(lambda x, a, b: a - x), 0, 0),
    "mul": (of(lambda x, a, b: a * b), 0, 0),
    "mul by one per head": (of(lambda x, a, b: (heads(a) * per_head(b)[..., None]).flatten(2)), 0, 0),
    "add of one per head": (of(lambda x, a, b: (heads(a) + per_head(b)[..., None]).flatten(2)), 0, 0),
    "sub of a column and a row": (of(lambda x, a, b: (a[..., None] - b[..., None, :]).flatten(2)), 0, 0),
    "div": (of(lambda x, a, b: a / (b.abs() + 0.5)), 0, 0),
    "div by one per head": (of(lambda x, a, b: (heads(a) / (heads(b).abs().sum(-1, keepdim=True) + 1)).flatten(2)), 0, 0),
    "maximum": (of(lambda x, a, b: torch.maximum(a, b)), 0, 0),
    "maximum of one per head": (of(lambda x, a, b: torch.maximum(heads(a), per_head(b)[..., None]).flatten(2)), 0, 0),
    "scale": (lambda: Own(lambda x, p: functional.silu(x * p), (C,)), 0, 0),
    "scale of heads": (lambda: Own(lambda x, p: (heads(x) * p).flatten(2), (2, 1)), 0, 0),
    "offset": (lambda: Own(lambda x, p: functional.silu(x) + p, (C,)), 0, 0),
    "offset of heads": (lambda: Own(lambda x, p: (heads(functional.silu(x)) + p).flatten(2), (2, 3)), 0, 0),
    "heaviside": (of(lambda x, a, b: inn.heaviside(a) * b), 0, 0),
    "top_k": (of(lambda x, a, b: inn.top_k_mask(x, 2) * b), 0, 0),
    "rotate": (lambda: Own(lambda x, *p: inn.complex_recurrence(x, 0.5 * p[0].tanh(), 0.5 * p[1].tanh(), *p[2:]), *[(C, 2)] * 4), 0, 0),
    "rotation": (lambda: nn.Sequential(nn.Unflatten(-1, (1, C)), inn.Rotary(C), nn.Flatten(2)), 0, 0),
    "running_mean": (lambda: nn.Sequential(nn.Linear(C, C), inn.RunningMean(), nn.Linear(C, C)), 0, 0),
    "running_logsumexp": (lambda: nn.Sequential(nn.Linear(C, C), inn.RunningLogSumExp()), 0, 0),
    "rms_norm": (lambda: nn.Sequential(nn.Linear(C, C), nn.RMSNorm(C), nn.Linear(C, C)), 0, 0),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, C)), 0, 0),
    "layer_norm of heads": (of(lambda x, a, b: functional.layer_norm(heads(a), (3,)).flatten(2)), 0, 0),
    "rms_norm over two axes": (of(lambda x, a, b: functional.rms_norm(heads(a), (2, 3)).flatten(2)), 0, 0),
    "l2norm": (of(lambda x, a, b: inn.l2norm(heads(a), 1e-6).flatten(2)), 0, 0),
    "softmax": (of(lambda x, a, b: torch.softmax(heads(4 * a), -1).flatten(2)), 0, 0),
    "history": (of(lambda x, a, b: inn.causal_attention(heads(a), heads(b), heads(x), 4, 0.5).flatten(2)), 0, 0),
    "history of grouped heads": (of(lambda x, a, b: inn.causal_attention(heads(a), per_head(b)[..., None].expand(-1, -1, -1, 3)[:, :, :1], heads(x)[:, :, :1], 3, 0.5).flatten(2)), 0, 0),
    "reshape": (of(lambda x, a, b: (heads(a) * heads(b)).flatten(2)), 0, 0),
    "permute": (of(lambda x, a, b: (heads(a) * heads(b)).transpose(2, 3).flatten(2)), 0, 0),
    "slice": (of(lambda x, a, b: functional.silu(a)[..., 1:5:2] * b.flip(-1)[..., :2]), 0, 0),
    "concat": (of(lambda x, a, b: torch.cat([a, functional.silu(b), x[..., :1]], -1)), 0, 0),
    "pad": (of(lambda x, a, b: functional.pad(functional.silu(a), (1, 2))), 0, 0),
    "previous, LSTM": (lambda: Last(nn.LSTM(C, 5, 2, batch_first=True)), 0, 0),
    "previous, GRU": (lambda: Last(nn.GRU(C, 5, batch_first=True)), 0, 0),
    "previous, dense": (lambda: Own(lambda x, a: inn.dense_recurrence(x, 0.2 * a), (C, C)), 0, 0),
    "previous, LIF": (lambda: nn.Sequential(nn.Linear(C, C), inn.LIF()), 0, 0),
    "recall": (of(lambda x, a, b: inn.delta_recurrence(heads(a), inn.l2norm(heads(b), 1e-6), heads(x), sigmoid(per_head(b))).flatten(2)), 0, 0),
    "recall with a decay per head": (of(lambda x, a, b: inn.delta_recurrence(heads(a), inn.l2norm(heads(b), 1e-6), heads(x), sigmoid(per_head(b)), sigmoid(2 + per_head(a))).flatten(2)), 0, 0),
    "recall with a decay per key": (of(lambda x, a, b: inn.delta_recurrence(heads(a), inn.l2norm(heads(b), 1e-6), heads(x), sigmoid(per_head(b)), sigmoid(2 + heads(a))).flatten(2)), 0, 0),
    "delta_update": (of(lambda x, a, b: inn.generalized_delta_recurrence(heads(a), sigmoid(2 + heads(x)), heads(b), heads(x), -inn.l2norm(heads(b), 1e-6), inn.l2norm(heads(b), 1e-6) * sigmoid(heads(a))).flatten(2)), 0, 0),
    "ttt": (lambda: Own(lambda x, w, b, m: inn.ttt_linear(heads(x), heads(x @ m), heads(x), 0.1 * sigmoid(per_head(x)), 1 + 0.1 * w, 0.1 * b).flatten(2), (2, 3), (2, 3), (C, C)), 0, 0),
    "shift": (lambda: nn.Sequential(nn.Linear(C, C), inn.Shift(), nn.Linear(C, C)), 0, 0),
    "linear_recurrence": (of(lambda x, a, b: inn.linear_recurrence(heads(a), heads(b), heads(x), sigmoid(2 + heads(b))).flatten(2)), 0, 0),
    "linear_recurrence without decay": (of(lambda x, a, b: inn.linear_recurrence(heads(a), heads(b), heads(x)).flatten(2)), 0, 0),
    "linear_recurrence, constant decay": (lambda: Own(lambda x, p: inn.linear_recurrence(heads(x), heads(x), heads(x), sigmoid(2 + p)).flatten(2), (2,)), 0, 0),
    "linear_recurrence, decay per head": (of(lambda x, a, b: inn.linear_recurrence(heads(a), heads(b), heads(x), sigmoid(2 + per_head(b))).flatten(2)), 0, 0),
    "linear_recurrence of groups": (of(lambda x, a, b: inn.linear_recurrence(heads(a)[:, :, :1], heads(b)[:, :, :1], heads(x), sigmoid(2 + per_head(b))).flatten(2)), 0, 0),
    "linear_recurrence with a bonus": (lambda: Own(lambda x, u: inn.linear_recurrence(heads(x), heads(x), heads(x), sigmoid(2 + heads(x)), u).flatten(2), (2, 3)), 0, 0),
    "mlstm": (of(lambda x, a, b: inn.mlstm(heads(a), heads(b), heads(x), per_head(a), per_head(b)).flatten(2)), 0, 0),
    "slstm": (lambda: Own(lambda x, r: inn.slstm(heads(x), heads(x), heads(x), heads(x), 0.3 * r).flatten(2), (4, 2, 3, 3)), 0, 0),
    "wkv4": (lambda: Own(lambda x, d, u: inn.wkv4(x, x, d.exp(), u), (C,), (C,)), 0, 0),
    "diagonal_recurrence": (of(lambda x, a, b: inn.diagonal_recurrence(sigmoid(2 + a), b)), 0, 0),
    "convex_recurrence": (of(lambda x, a, b: inn.convex_recurrence(sigmoid(a), b)), 0, 0),
    "selective_recurrence": (lambda: Own(lambda x, a: inn.selective_recurrence(x, functional.softplus(x), -a.exp(), x[..., :3], x[..., 3:]), (C, 3)), 0, 0),
}  # fmt: skip
"""By what they are about: modules of (B, T, C), and the least ratio, in dB, for the recipes w8a8 and w8a16."""
