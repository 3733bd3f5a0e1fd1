"""Every operator of the float graph on a tiny module: the noise of its integers against the float graph.

The floors are about 3 dB below what was measured: a wrong scale or shift costs far more.  `w8a8` has 8-bit operands of
matmuls, `w8a16` 16-bit ones; what 8 bits of weights lose is in both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant import nn as isobit_nn
from isobit.quant.calibrate.evaluate import EVALUATORS, FORWARD
from isobit.quant.calibrate.observe import check_samples, float_outputs
from isobit.quant.capture.graph import Graph
from isobit.quant.lower.edges import InputSpec
from isobit.quant.lower.lower import lower
from isobit.quant.lower.rules import RULES
from isobit.quant.quantize import layer_snr, quantize
from isobit.quant.recipe import recipe_named

C = 6
"""Channels of a sequence, and of an image after its first convolution."""

POSITIONS = 20
"""Of an image."""


class Call(nn.Module):
    """A function of the input, of two linear layers of it, and of parameters, N(0, 1), of the given shapes."""

    def __init__(self, f: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.f, self.a, self.b = f, nn.Linear(C, C), nn.Linear(C, C)
        self.p = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.a(x), self.b(x), *self.p).flatten(2)


class Image(nn.Module):
    """A function of layers and of a convolution of the image (B, 3, 5, 4)."""

    def __init__(self, f: Callable[..., Tensor], *layers: nn.Module, **options: int | str | tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, **{"kernel_size": 3, "padding": 1, **options})  # type: ignore[arg-type]
        self.f: Callable[..., Tensor] = f
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.f(self.conv(x), *self.layers)
        return y


class First(nn.Module):
    """The first result of a layer that returns its state too."""

    def __init__(self, layer: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def heads(x: Tensor) -> Tensor:
    """(B, T, 6) -> (B, T, 2, 3)."""
    return x.reshape(*x.shape[:2], 2, 3)


def one(x: Tensor) -> Tensor:
    """(B, T, 6) -> (B, T, 1, 3): the first head."""
    return heads(x)[:, :, :1]


def each(x: Tensor) -> Tensor:
    """(B, T, 6) -> (B, T, 2): a number per head."""
    return heads(x).mean(-1)


def gate(x: Tensor) -> Tensor:
    """In (0, 1), mostly near 1."""
    return torch.sigmoid(2 + x)


def unit(x: Tensor) -> Tensor:
    return isobit_nn.l2norm(heads(x), 1e-6)


def positions(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return image.flatten(2).transpose(1, 2)


def removed_and_written(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """RWKV-7's recurrence, which removes a share of what the state holds for a key."""
    key, share = unit(b), torch.sigmoid(heads(a))
    return isobit_nn.generalized_delta_recurrence(heads(a), gate(heads(x)), heads(b), heads(x), -key, key * share)


def learned_at_test_time(x: Tensor, a: Tensor, b: Tensor, gain: Tensor, bias: Tensor, start: Tensor) -> Tensor:
    rate = 0.1 * torch.sigmoid(each(x))
    return isobit_nn.ttt_linear(heads(a), heads(b), heads(x), rate, 1 + 0.1 * gain, 0.1 * bias, start)


def turned(x: Tensor, a: Tensor, b: Tensor, *p: Tensor) -> Tensor:
    return isobit_nn.complex_recurrence(x, 0.5 * p[0].tanh(), 0.5 * p[1].tanh(), p[2], p[3])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return isobit_nn.causal_attention(q, k, v, 4, 0.5)


def selective(x: Tensor, a: Tensor, b: Tensor, rate: Tensor) -> Tensor:
    return isobit_nn.selective_recurrence(x, functional.softplus(a), -rate.exp(), b[..., :3], b[..., 3:])


def with_bonus(x: Tensor, a: Tensor, b: Tensor, bonus: Tensor) -> Tensor:
    return isobit_nn.linear_recurrence(heads(a), heads(b), heads(x), gate(heads(b)), bonus)


Make = Callable[[], nn.Module]
Row = tuple[Make, float, float]
lin, delta = isobit_nn.linear_recurrence, isobit_nn.delta_recurrence


def of(f: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Make:
    return lambda: Call(f, *shapes)


SEQUENCES: dict[str, Row] = {
    "linear": (lambda: nn.Linear(C, 9), 38, 47),
    "linear of heads": (of(lambda x, a, b, w: heads(a) @ w, (3, 2)), 31, 42),
    "linear of flat heads": (lambda: nn.Sequential(Call(lambda x, a, _: heads(x) * heads(a)), nn.Linear(C, 4)), 33, 47),
    "outer": (of(lambda x, a, b, w: x[..., :1] * w, (C,)), 38, 76),
    "grouped_linear": (of(lambda x, a, b, w: torch.einsum("bthk,hnk->bthn", heads(x), w), (2, 4, 3)), 37, 47),
    "causal_conv1d": (lambda: nn.Sequential(isobit_nn.CausalConv1d(C, 4), nn.Linear(C, C)), 31, 45),
    "causal_fir": (lambda: isobit_nn.CausalFIR(C, 4, 3), 37, 46),
    "einsum": (of(lambda x, a, b: torch.einsum("bthk,btgk->bthg", heads(a), heads(b))), 24, 44),
    "matmul": (of(lambda x, a, b: heads(a).transpose(2, 3) @ heads(b)), 26, 43),
    "reduce, mean": (of(lambda x, a, b: each(a)), 37, 43),
    "reduce, sum": (of(lambda x, a, b: heads(a).sum(2)), 37, 44),
    "reduce, max": (of(lambda x, a, b: heads(a).amax(-1)), 39, 47),
    "silu": (of(lambda x, a, b: functional.silu(a)), 37, 45),
    "sigmoid": (of(lambda x, a, b: torch.sigmoid(3 * a)), 43, 50),
    "tanh": (of(lambda x, a, b: torch.tanh(a)), 37, 46),
    "gelu": (of(lambda x, a, b: functional.gelu(a)), 37, 46),
    "gelu_tanh": (of(lambda x, a, b: functional.gelu(a, approximate="tanh")), 37, 46),
    "softplus": (of(lambda x, a, b: functional.softplus(a)), 46, 54),
    "log_sigmoid": (of(lambda x, a, b: functional.logsigmoid(a)), 45, 54),
    "exp": (of(lambda x, a, b: torch.exp(a)), 40, 42),
    "elu": (of(lambda x, a, b: functional.elu(a)), 37, 43),
    "hardswish": (of(lambda x, a, b: functional.hardswish(4 * a)), 37, 46),
    "prelu": (of(lambda x, a, b: functional.leaky_relu(a, 0.2)), 38, 46),
    "clamp": (of(lambda x, a, b: a.clamp(-0.5, 0.25)), 35, 44),
    "clamp of a sum": (of(lambda x, a, b: functional.relu6(a + x)), 43, 52),
    "abs": (of(lambda x, a, b: a.abs()), 37, 46),
    "sqrt": (of(lambda x, a, b: torch.sqrt(a * a + 0.01)), 38, 47),
    "rsqrt": (of(lambda x, a, b: torch.rsqrt(a * a + 0.5)), 48, 57),
    "add": (of(lambda x, a, b: a + b), 38, 49),
    "add of one per head": (of(lambda x, a, b: heads(a) + each(b)[..., None]), 37, 47),
    "sub": (of(lambda x, a, b: a - x), 43, 52),
    "sub of a column and a row": (of(lambda x, a, b: a[..., None] - b[..., None, :]), 38, 48),
    "mul": (of(lambda x, a, b: a * b), 35, 44),
    "mul by one per head": (of(lambda x, a, b: heads(a) * each(b)[..., None]), 35, 44),
    "mul of two numbers": (of(lambda x, a, b: a[..., :1] * b[..., :1]), 34, 44),
    "div": (of(lambda x, a, b: a / (b.abs() + 0.5)), 36, 44),
    "div by one per head": (of(lambda x, a, b: heads(a) / (heads(b).abs().sum(-1, keepdim=True) + 1)), 37, 46),
    "maximum": (of(lambda x, a, b: torch.maximum(a, b)), 38, 47),
    "maximum of one per head": (of(lambda x, a, b: torch.maximum(heads(a), each(b)[..., None])), 38, 47),
    "scale": (of(lambda x, a, b, p: functional.silu(a * p), (C,)), 36, 43),
    "scale per head": (of(lambda x, a, b, p: heads(functional.silu(a)) * p, (2, 1)), 37, 45),
    "offset": (of(lambda x, a, b, p: functional.silu(a) + p, (C,)), 41, 49),
    "offset per head": (of(lambda x, a, b, p: heads(functional.silu(a)) + p, (2, 1)), 43, 51),
    "heaviside": (of(lambda x, a, b: isobit_nn.heaviside(x) * b), 39, 48),
    "sign": (of(lambda x, a, b: torch.sign(x) * b), 38, 48),
    "top_k": (of(lambda x, a, b: isobit_nn.top_k_mask(x, 2) * b), 39, 49),
    "rotate": (of(turned, *[(C, 2)] * 4), 36, 48),
    "rotation": (lambda: nn.Sequential(nn.Unflatten(-1, (1, C)), isobit_nn.Rotary(C), nn.Flatten(2)), 74, 74),
    "running_mean": (lambda: nn.Sequential(nn.Linear(C, C), isobit_nn.RunningMean(), nn.Linear(C, C)), 33, 48),
    "running_logsumexp": (of(lambda x, a, b: isobit_nn.running_logsumexp(a)), 53, 60),
    "rms_norm": (lambda: nn.Sequential(nn.Linear(C, C), nn.RMSNorm(C), nn.Linear(C, C)), 36, 44),
    "rms_norm over two axes": (of(lambda x, a, b: functional.rms_norm(heads(a), (2, 3))), 36, 46),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, C)), 36, 44),
    "layer_norm of heads": (of(lambda x, a, b: functional.layer_norm(heads(a), (3,))), 33, 44),
    "l2norm": (of(lambda x, a, b: unit(a)), 35, 44),
    "softmax": (of(lambda x, a, b: torch.softmax(heads(4 * a), -1)), 39, 48),
    "history": (of(lambda x, a, b: attention(heads(a), heads(b), heads(x))), 33, 48),
    "history of one group": (of(lambda x, a, b: attention(heads(a), one(b), one(x))), 34, 48),
    "reshape": (of(lambda x, a, b: heads(a) * heads(b)), 35, 44),
    "permute": (of(lambda x, a, b: (heads(a) * heads(b)).transpose(2, 3)), 35, 44),
    "slice": (of(lambda x, a, b: functional.silu(a)[..., 1:5:2] * b.flip(-1)[..., :2]), 35, 44),
    "concat": (of(lambda x, a, b: torch.cat([a, functional.silu(b), x[..., :1]], -1)), 39, 48),
    "expand": (of(lambda x, a, b: torch.cat([heads(a), each(b)[..., None].expand(-1, -1, -1, 2)], -1)), 37, 47),
    "pad": (of(lambda x, a, b: functional.pad(functional.silu(a), (1, 2))), 37, 45),
    "previous, LSTM": (lambda: First(nn.LSTM(C, 5, 2, batch_first=True)), 47, 49),
    "previous, GRU": (lambda: First(nn.GRU(C, 5, batch_first=True)), 39, 48),
    "previous, dense": (of(lambda x, a, b, m: isobit_nn.dense_recurrence(x, 0.2 * m), (C, C)), 42, 50),
    "previous, spikes": (of(lambda x, a, b: isobit_nn.lif(3 * x, 0.5, 1.0)), 25, 25),
    "recall": (of(lambda x, a, b: delta(heads(a), unit(b), heads(x), torch.sigmoid(each(b)))), 27, 42),
    "recall, per head": (of(lambda x, a, b: delta(heads(a), unit(b), heads(x), gate(each(b)), gate(each(a)))), 26, 42),
    "recall, per key": (of(lambda x, a, b: delta(heads(a), unit(b), heads(x), gate(each(b)), gate(heads(a)))), 26, 42),
    "recall, one group": (of(lambda x, a, b: delta(one(a), unit(b)[:, :, :1], heads(x), gate(each(b)))), 28, 40),
    "delta_update": (of(removed_and_written), 23, 43),
    "inverse_rms": (lambda: Call(learned_at_test_time, (2, 3), (2, 3), (2, 3, 3)).double(), 17, 29),
    "shift": (lambda: nn.Sequential(nn.Linear(C, C), isobit_nn.Shift(), nn.Linear(C, C)), 33, 45),
    "linear_recurrence, no decay": (of(lambda x, a, b: lin(heads(a), heads(b), heads(x))), 21, 44),
    "linear_recurrence, constant": (of(lambda x, a, b, p: lin(heads(a), heads(b), heads(x), gate(p)), (2,)), 24, 44),
    "linear_recurrence, per head": (of(lambda x, a, b: lin(heads(a), heads(b), heads(x), gate(each(b)))), 22, 43),
    "linear_recurrence, per key": (of(lambda x, a, b: lin(heads(a), heads(b), heads(x), gate(heads(b)))), 24, 43),
    "linear_recurrence, one group": (of(lambda x, a, b: lin(one(a), one(b), heads(x), gate(each(b)))), 28, 42),
    "linear_recurrence, bonus": (of(with_bonus, (2, 3)), 23, 44),
    "mlstm": (of(lambda x, a, b: isobit_nn.mlstm(heads(a), heads(b), heads(x), each(a), each(b))), 27, 40),
    "slstm": (of(lambda x, a, b, r: isobit_nn.slstm(*map(heads, (x, a, b, x)), 0.3 * r), (4, 2, 3, 3)), 39, 46),
    "wkv4": (of(lambda x, a, b, d, u: isobit_nn.wkv4(a, b, d.exp(), u), (C,), (C,)), 38, 46),
    "diagonal_recurrence": (of(lambda x, a, b: isobit_nn.diagonal_recurrence(gate(a), b)), 41, 49),
    "convex_recurrence": (of(lambda x, a, b: isobit_nn.convex_recurrence(torch.sigmoid(a), b)), 39, 47),
    "selective_recurrence": (of(selective, (C, 3)), 28, 42),
}  # fmt: skip
"""By what they are about: modules of (B, T, C), and the least ratio, in dB, for the recipes w8a8 and w8a16."""

IMAGES: dict[str, Row] = {
    "conv2d": (lambda: Image(nn.Identity()), 37, 45),
    "conv2d, strides and dilations": (lambda: Image(nn.Identity(), stride=(2, 1), dilation=(1, 2), padding=2), 37, 45),
    "conv2d, 1 x 1": (lambda: Image(nn.Identity(), kernel_size=1, padding=0), 39, 51),
    "conv2d, same": (lambda: Image(nn.Identity(), kernel_size=2, padding="same"), 38, 47),
    "conv2d, depthwise": (lambda: Image(lambda x, conv: conv(x.relu()), nn.Conv2d(C, C, 3, groups=C)), 37, 48),
    "conv2d, batch norm": (lambda: Image(lambda x, norm: norm(x).relu(), nn.BatchNorm2d(C)), 36, 45),
    "prelu per channel": (lambda: Image(lambda x, f: f(x), nn.PReLU(C)), 37, 45),
    "reduce, max pool": (lambda: Image(lambda x: functional.max_pool2d(x[:, :, :4], 2)), 38, 46),
    "reduce, average pool": (lambda: Image(lambda x: functional.avg_pool2d(x, (5, 2))), 38, 47),
    "reduce, all positions": (lambda: Image(lambda x: functional.adaptive_avg_pool2d(x.relu(), 1)), 44, 52),
    "pixel shuffle": (lambda: Image(lambda x: functional.pixel_shuffle(x[:, :4], 2)), 37, 45),
    "positions_conv1d": (lambda: Image(lambda x, conv: conv(positions(x)), isobit_nn.CausalConv1d(C, 3)), 39, 49),
    "selective_recurrence of positions": (
        lambda: Image(lambda x, scan: scan(positions(x)), Call(selective, (C, 3))), 28, 37,
    ),
}  # fmt: skip
"""As SEQUENCES, modules of (B, 3, 5, 4)."""


@cache
def measured(name: str) -> tuple[list[float], Graph]:
    """The ratios of a row's module, calibrated on 32 samples and measured on others, and its graph."""
    make, *_ = (SEQUENCES | IMAGES)[name]
    rng = np.random.default_rng(0)
    shape = (32, 12, C) if name in SEQUENCES else (32, 3, 5, 4)
    torch.manual_seed(0)
    made = quantize(make(), rng.normal(size=shape), "w8a8", name="tiny")
    samples = check_samples(rng.normal(size=shape), made.graph)
    wide = lower(made.graph, made.calibration, recipe_named("w8a16"), "tiny", InputSpec(), 12)
    ratios = [layer_snr(program, made.graph, samples)["y"] for program in (made.program, wide)]
    return ratios, made.graph


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", SEQUENCES | IMAGES)
def test_noise_against_float(name: str) -> None:
    ratios, floors = measured(name)[0], (SEQUENCES | IMAGES)[name][1:]
    assert all(ratio > floor for ratio, floor in zip(ratios, floors, strict=True)), f"{ratios}, expected {floors}"


@pytest.mark.parametrize("name", SEQUENCES)
def test_what_is_still_to_come_changes_nothing(name: str) -> None:
    graph, x = measured(name)[1], np.random.default_rng(2).normal(size=(2, 9, C))
    whole = float_outputs(graph, x)
    np.testing.assert_allclose(float_outputs(graph, x[:, :5]), whole[:, :5], rtol=1e-9, atol=1e-9)


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(11, C), nn.Linear(C, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.embed(x))
        return y


def test_noise_of_an_embedding() -> None:
    torch.manual_seed(0)
    ids = np.arange(22).reshape(2, 11) % 11
    for recipe, floor in (("w8a8", 42), ("w8a16", 46)):
        made = quantize(Ids(), ids, recipe, name="tiny")
        assert str(made.program.inputs[0].type) == "u4[T]"
        assert layer_snr(made.program, made.graph, ids.astype(float))["y"] > floor


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_operator_has_a_row() -> None:
    """A model's own quantizers are exact, not close: `tests/spec/test_brevitas.py`."""
    found = {n.op for name in SEQUENCES | IMAGES for n in measured(name)[1].nodes} | {"embedding", "fake_quantize"}
    assert found == set(RULES) == set(EVALUATORS) | set(FORWARD)
