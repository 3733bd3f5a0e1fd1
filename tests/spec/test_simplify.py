"""Rewrites of the float graph: fewer nodes, and no value of the output changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.calibrate.observe import float_outputs
from isobit.quant.capture.capture import Capture, disagreement
from isobit.quant.capture.export import export_module
from isobit.quant.capture.graph import Graph
from isobit.quant.capture.simplify import simplify

C = 6


def raw(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    """The graph as it is captured, before any rewrite."""
    return Capture(export_module(module, shape, ids=False), "model", len(shape) == 3).run()


def assert_unchanged(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    """The rewritten graph, whose outputs are those of the graph before, and of the module."""
    module = module.double()
    before = raw(module, shape)
    after = simplify(before)
    x = np.random.default_rng(0).normal(size=shape)
    x = x if before.timed else x[:, None]
    np.testing.assert_allclose(float_outputs(after, x), float_outputs(before, x), rtol=0, atol=1e-12)
    assert disagreement(after, module, x) < 1e-6
    assert len(after.nodes) <= len(before.nodes)
    assert all(i in after.dims or i in after.parameters for n in after.nodes for i in n.inputs)
    assert simplify(after).nodes == after.nodes
    return after


KINDS = ("slice", "split", "merge", "scale", "offset", "linear", "halves", "swap", "silu", "double")


class Steps(nn.Module):
    """A linear layer and random operators after it; every third value is also an operand of the output.

    Values have one or two axes after time.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng, self.parts, self.steps = (
            np.random.default_rng(seed),
            nn.ParameterList(),
            list[Callable[..., Tensor]](),
        )
        self.shape = [12]
        self.weight(12, C)
        self.steps.append(functional.linear)
        for _ in range(int(self.rng.integers(3, 9))):
            self.steps.append(self.choose())

    def weight(self, *shape: int) -> None:
        self.parts.append(nn.Parameter(torch.from_numpy(self.rng.normal(size=shape) / 2)))

    def choose(self) -> Callable[..., Tensor]:
        kind = self.rng.choice(
            ["slice", "split", "merge", "scale", "offset", "linear", "halves", "swap", "silu", "double"]
        )
        *lead, last = self.shape
        if kind == "slice" and last > 2:
            start, step = int(self.rng.integers(0, 2)), int(self.rng.integers(1, 3))
            self.shape = [*lead, len(range(start, last, step))]
            self.weight(1)
            return lambda x, _: x[..., start::step]
        if kind == "split" and not lead and last % 2 == 0:
            self.shape = [2, last // 2]
            self.weight(1)
            return lambda x, _: x.reshape(*x.shape[:2], 2, last // 2)
        if kind == "merge" and lead:
            self.shape = [lead[0] * last]
            self.weight(1)
            return lambda x, _: x.flatten(2)
        if kind in ("scale", "offset"):
            self.weight(*self.shape[int(self.rng.integers(0, len(self.shape))) :])
            return (lambda x, p: x * p) if kind == "scale" else (lambda x, p: p + x)
        if kind == "linear":
            self.shape = [*lead, int(self.rng.choice([4, 6]))]
            self.weight(self.shape[-1], last)
            return functional.linear
        self.weight(1)
        if kind == "halves" and last % 2 == 0:
            self.shape = [*lead, last // 2]
            return lambda x, _: x.chunk(2, dim=-1)[0] - x.chunk(2, dim=-1)[1]
        if kind == "swap" and lead:
            self.shape = self.shape[::-1]
            return lambda x, _: x.transpose(2, 3)
        return (lambda x, _: x + x) if kind == "double" else (lambda x, _: functional.silu(x))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, (step, p) in enumerate(zip(self.steps, self.parts, strict=True)):
            x = step(x, p)
            if i % 3 == 1:
                kept.append(x.flatten(2))
        return torch.cat([*kept, x.flatten(2)], dim=-1)


@pytest.mark.parametrize("seed", range(24))
def test_random_modules(seed: int) -> None:
    assert_unchanged(Steps(seed), (2, 4, C))


class Layers(nn.Module):
    """A function of layers and of the input."""

    def __init__(self, f: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.f, self.layers = f, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.f(x, *self.layers)
        return y


def two(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Both results of a layer whose rows are split, one of them through another layer."""
    first, second = a(x).split([4, 2], dim=-1)
    return torch.cat([b(first), second], dim=-1)


def normalised(channels: int = 4) -> nn.Module:
    """A batch norm with statistics of its own."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for p in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert p is not None
            p.copy_(torch.rand(channels) + 0.1)
    return norm


def heads(x: Tensor, *sizes: int) -> Tensor:
    return x.reshape(*x.shape[:2], *sizes)


def read_twice(x: Tensor, a: nn.Module) -> Tensor:
    """A layer's result as it is, and some of it in another shape."""
    y = a(x)
    return torch.cat([y, heads(y, 4, 2)[..., 0]], dim=-1)


def biased(x: Tensor, a: nn.Module) -> Tensor:
    y: Tensor = a(x)
    return (y + 1.5) * y


def through_heads(x: Tensor, a: nn.Module) -> Tensor:
    y: Tensor = a(functional.silu(heads(x, 2, 3)).flatten(2))
    return y


def beside(x: Tensor, a: nn.Module, norm: nn.Module) -> Tensor:
    """A convolution's result with a norm, and without."""
    y = a(x)
    z: Tensor = norm(y)
    return z + functional.relu(y)


BESIDE = ["scale", "offset", "clamp", "add"]

REWRITES: list[tuple[str, Callable[[], nn.Module], list[str]]] = [
    ("rows", lambda: Layers(lambda x, a: a(x)[..., 1:5:2], nn.Linear(C, 8)), ["linear"]),
    ("parts", lambda: Layers(two, nn.Linear(C, 6), nn.Linear(4, 3)), ["linear"] * 3 + ["concat"]),
    ("heads", lambda: Layers(lambda x, a: heads(a(x), 2, 4), nn.Linear(C, 8)), ["linear"]),
    ("heads of a part", lambda: Layers(lambda x, a: heads(a(x)[..., :6], 2, 3), nn.Linear(C, 8)), ["linear"]),
    ("flat heads", lambda: Layers(through_heads, nn.Linear(C, 8)), ["reshape", "silu", "linear"]),
    ("reshapes", lambda: Layers(lambda x: heads(heads(x, 2, 3).flatten(2), 3, 2).relu()), ["reshape", "clamp"]),
    ("a bias", lambda: Layers(lambda x, a: a(x) + 1.5, nn.Linear(C, 8, bias=False)), ["linear"]),
    ("a bias of one of two", lambda: Layers(biased, nn.Linear(C, 8)), ["linear", "offset", "mul"]),
    ("two readers", lambda: Layers(read_twice, nn.Linear(C, 8)), ["linear", "reshape", "slice", "reshape", "concat"]),
    ("batch norm", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), normalised(), nn.ReLU()), ["conv2d", "clamp"]),
    ("depthwise", lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3, bias=False), normalised(3)), ["conv2d"]),
    ("norm of one of two", lambda: Layers(beside, nn.Conv2d(3, 4, 3), normalised()), ["conv2d", *BESIDE]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "ops"), [r[1:] for r in REWRITES], ids=[r[0] for r in REWRITES])
def test_rewrites(make: Callable[[], nn.Module], ops: list[str]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    shape = (2, 3, 5, 4) if any(isinstance(m, nn.Conv2d) for m in module.modules()) else (2, 4, C)
    assert [n.op for n in assert_unchanged(module, shape).nodes] == ops
