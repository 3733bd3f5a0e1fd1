"""Axes of one element: they broadcast, and a Program's values do not have them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant import nn as isobit_nn
from isobit.quant.check import check
from isobit.quant.quantize import layer_snr, quantize


class One(nn.Module):
    """A function of the input (B, T, 1), of layers of it, (B, T, 4) and (B, T, 1), and of parameters, N(0, 1)."""

    def __init__(self, f: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.f, self.a, self.b = f, nn.Linear(1, 4), nn.Linear(1, 1)
        self.p = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.a(x), self.b(x), *self.p).flatten(2)


def gate(x: Tensor) -> Tensor:
    return torch.sigmoid(2 + x)


def selective(u: Tensor, b: Tensor, c: Tensor, rate: Tensor) -> Tensor:
    return isobit_nn.selective_recurrence(u, functional.softplus(u), -rate.exp(), b, c)


def turned(x: Tensor, a: Tensor, b: Tensor, *p: Tensor) -> Tensor:
    return isobit_nn.complex_recurrence(b, 0.5 * p[0].tanh(), 0.5 * p[1].tanh(), p[2], p[3])


lin, delta, attention = isobit_nn.linear_recurrence, isobit_nn.delta_recurrence, isobit_nn.causal_attention

FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "linear": (lambda x, a, b: b, ()),
    "add": (lambda x, a, b: a + b, ()),
    "add of two": (lambda x, a, b: x + b, ()),
    "sub": (lambda x, a, b: b - a, ()),
    "mul": (lambda x, a, b: a * b, ()),
    "div": (lambda x, a, b: a / (b * b + 1), ()),
    "div by more": (lambda x, a, b: b / (a * a + 1), ()),
    "maximum": (lambda x, a, b: torch.maximum(a, b), ()),
    "scale": (lambda x, a, b, p: functional.silu(b) * p, ((4,),)),
    "offset": (lambda x, a, b, p: functional.silu(b) + p, ((4,),)),
    "offset of the input": (lambda x, a, b, p: x + p, ((5,),)),
    "offset of a column": (lambda x, a, b, p: a.unsqueeze(-1) + p, ((3,),)),
    "scale of a column": (lambda x, a, b, p: a.unsqueeze(-1) * p, ((4, 3),)),
    "softmax": (lambda x, a, b: torch.softmax(b, -1) * a, ()),
    "rms_norm": (lambda x, a, b: functional.rms_norm(b, (1,), eps=0.1), ()),
    "layer_norm": (lambda x, a, b: functional.layer_norm(b, (1,)) + a, ()),
    "reduce": (lambda x, a, b: a.sum(-1, keepdim=True) * a, ()),
    "reduce of one": (lambda x, a, b: b.unsqueeze(-1).sum(-1) * a, ()),
    "reduce, max": (lambda x, a, b: a.amax(-1, keepdim=True) - a, ()),
    "einsum over one": (lambda x, a, b: torch.einsum("btk,btj->btkj", b, a), ()),
    "matmul over one": (lambda x, a, b: a.unsqueeze(-1) @ b.unsqueeze(-1), ()),
    "grouped_linear of one": (lambda x, a, b, w: torch.einsum("bthk,hnk->bthn", a[..., None], w), ((4, 2, 1),)),
    "grouped_linear, one group": (lambda x, a, b, w: torch.einsum("bthk,hnk->bthn", a[:, :, None], w), ((1, 2, 4),)),
    "concat": (lambda x, a, b: torch.cat([b, a, x], -1), ()),
    "concat of single ones": (lambda x, a, b: torch.cat([b, x], -1), ()),
    "expand": (lambda x, a, b: torch.cat([b.expand(-1, -1, 3), a], -1), ()),
    "pad": (lambda x, a, b: functional.pad(b, (1, 1)), ()),
    "slice": (lambda x, a, b: functional.silu(a)[..., 2:3], ()),
    "flip": (lambda x, a, b: functional.silu(b).flip(-1), ()),
    "permute": (lambda x, a, b: functional.silu(a).unsqueeze(2).transpose(2, 3) * b.unsqueeze(-1), ()),
    "causal_conv1d": (lambda x, a, b, w, c: isobit_nn.causal_conv1d(b, w, c), ((1, 3), (1,))),
    "causal_fir from one": (lambda x, a, b, w, c: isobit_nn.causal_fir(b, w, c), ((2, 1, 3), (2,))),
    "causal_fir to one": (lambda x, a, b, w, c: isobit_nn.causal_fir(a, w, c), ((1, 4, 3), (1,))),
    "causal_fir of one": (lambda x, a, b, w, c: isobit_nn.causal_fir(b, w, c), ((1, 1, 3), (1,))),
    "diagonal_recurrence": (lambda x, a, b: isobit_nn.diagonal_recurrence(gate(b), b), ()),
    "selective_recurrence": (lambda x, a, b, p: selective(b, a, a, p), ((1, 4),)),
    "selective_recurrence, one state": (lambda x, a, b, p: selective(a, b, x, p), ((4, 1),)),
    "selective_recurrence of ones": (lambda x, a, b, p: selective(b, b, x, p), ((1, 1),)),
    "linear_recurrence of ones": (lambda x, a, b: lin(b[..., None], b[..., None], b[..., None], gate(b)), ()),
    "linear_recurrence, one value": (lambda x, a, b: lin(a[:, :, None], a[:, :, None], b[..., None], gate(b)), ()),
    "linear_recurrence, one key": (lambda x, a, b: lin(b[..., None], b[..., None], a[:, :, None], gate(b)), ()),
    "linear_recurrence, ones per head": (lambda x, a, b: lin(a[..., None], a[..., None], a[..., None], gate(a)), ()),
    "delta_recurrence": (lambda x, a, b: delta(a[:, :, None], gate(a[:, :, None]) / 2, b[..., None], gate(b)), ()),
    "causal_attention": (lambda x, a, b: attention(a[:, :, None], a[:, :, None], a[:, :, None], 3, 1.0), ()),
    "causal_attention of one step": (lambda x, a, b: attention(a[..., None], a[..., None], a[..., None], 1, 1.0), ()),
    "complex_recurrence": (turned, ((1, 1),) * 4),
    "mlstm": (lambda x, a, b: isobit_nn.mlstm(b[..., None], b[..., None], b[..., None], b, x), ()),
    "slstm": (lambda x, a, b, r: isobit_nn.slstm(*[b[..., None]] * 4, 0.3 * r), ((4, 1, 1, 1),)),
    "top_k": (lambda x, a, b: isobit_nn.top_k_mask(b, 1) * a, ()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_axes_of_one_element(name: str) -> None:
    f, shapes = FUNCTIONS[name]
    torch.manual_seed(0)
    first, other = np.random.default_rng(0).normal(size=(2, 64, 8, 1))
    made = quantize(One(f, *shapes).double(), first, "w8a16", name="tiny")
    assert layer_snr(made.program, made.graph, other)["y"] > 40
    types = [i.type for i in made.program.inputs] + [c.type for c in made.program.constants]
    assert all(1 not in t.shape for t in (*types, *check(made.program).types.values()))
