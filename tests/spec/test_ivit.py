"""Mode `ivit` against the published formulas, written here in rationals: equal, defects included.

Li and Gu 2023, "I-ViT", sections 3.3 to 3.5: x0 is floor(-1/S), negative, and everything is floored as published.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isobit.quant.errors import InputError
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec
from isobit.quant.nn import l2norm
from isobit.quant.ops import ivit
from isobit.quant.program import Array, Arrays, IntType
from isobit.quant.quantize import Quantized, quantize
from isobit.quant.recipe import Recipe

TOP = (1 << 31) - 1
SCALES = tuple(map(Fraction, ("1/4", "1/16", "1/32", "1/256", "1/10", "7/1000", "3/2")))


def shift_exp(i: int, scale: Fraction, n: int) -> int:
    octaves = i + (i >> 1) - (i >> 4)
    x0 = floor(-1 / scale)
    octaves = max(octaves, n * x0)
    q = floor(Fraction(octaves, x0))
    r = octaves - x0 * q
    return max(0, floor((Fraction(r, 2) - x0) * Fraction(2) ** (n - q)))


def shiftmax(row: list[int], scale: Fraction, bits: int) -> list[int]:
    powers = [shift_exp(i - max(row), scale, 15) for i in row]
    factor = TOP // min(sum(powers), TOP)
    return [floor(Fraction(e * factor, 1 << (31 - bits + 1))) for e in powers]


def gates(row: list[int], scale: Fraction) -> list[int]:
    found = []
    for i in row:
        mine, other = shift_exp(i - max(row), scale, 23), shift_exp(-max(row), scale, 23)
        found.append(floor(Fraction(mine * (TOP // min(mine + other, TOP)), 1 << 24)))
    return found


def root(v: int) -> int:
    k = 1 << 16
    for _ in range(10):
        k = floor((k + floor(Fraction(v, k))) / Fraction(2))
    return k


def normalised(y: list[int]) -> list[int]:
    factor = TOP // root(sum(i * i for i in y))
    return [floor(Fraction(i * factor, 2)) for i in y]


def centred(row: list[int]) -> list[int]:
    return [i - round(Fraction(sum(row), len(row))) for i in row]


def rows(bits: int, size: int, count: int = 40) -> Array:
    """Random rows of every spread, one of equal values, and the ends of the range."""
    rng, top = np.random.default_rng(bits), (1 << (bits - 1)) - 1
    spread = 2.0 ** rng.uniform(0, bits - 1, (count, 1))
    drawn = np.clip(np.rint(rng.normal(0, spread, (count, size)) + rng.normal(0, top / 4, (count, 1))), -top, top)
    ends = np.where(rng.random((4, size)) < 0.5, -top - 1, top)
    return np.concatenate([drawn, ends, np.full((1, size), -3), np.zeros((1, size))]).astype(np.int64)


each_width = pytest.mark.parametrize("bits", [8, 16])
each_scale = pytest.mark.parametrize("scale", SCALES, ids=str)


@each_width
@each_scale
def test_shift_exp_of_every_distance(bits: int, scale: Fraction) -> None:
    """Of 8 bits, and 3000 of 16; positive exponents as far as sums need them."""
    every = np.arange(-255, 1) if bits == 8 else np.unique(np.random.default_rng(0).integers(-65535, 1, 3000))
    x0 = -floor(-1 / scale)
    for n in (15, 23):
        assert ivit.shift_exp(every, x0, n).tolist() == [shift_exp(int(i), scale, n) for i in every]
    up = np.arange(0, 8 * x0, max(1, x0 // 40))
    got = np.minimum(ivit.shift_exp(up, x0, 23, ivit.BEYOND), TOP)
    assert got.tolist() == [min(shift_exp(int(i), scale, 23), TOP) for i in up]


@each_width
@each_scale
def test_shiftmax(bits: int, scale: Fraction) -> None:
    x, x0 = rows(bits, 9), -floor(-1 / scale)
    powers = ivit.shifted_exp_ivit(x, x.max(1, keepdims=True), x0=x0)
    for b in (8, 16):
        got = ivit.shiftmax_ivit(powers, powers.sum(1, keepdims=True), x0=x0, s=32 - b)
        assert got.tolist() == [shiftmax(row, scale, b) for row in x.tolist()]


@each_width
@each_scale
def test_shift_gelu(bits: int, scale: Fraction) -> None:
    """With the scale of 1.702 x; the gate is the sigmoid, and 2 gate - 1 is tanh."""
    x, x0 = rows(bits, 9), -floor(-1 / scale)
    top, expected = x.max(1, keepdims=True), np.array([gates(row, scale) for row in x.tolist()])
    assert np.array_equal(ivit.sigmoid_ivit(x, top, x0=x0), expected)
    assert np.array_equal(ivit.gated_ivit(x, top, x0=x0), x * expected)
    assert np.array_equal(ivit.tanh_ivit(x, top, x0=x0), 2 * expected - 128)


@each_width
@pytest.mark.parametrize("size", [4, 9, 64])
def test_layer_norm_and_its_kin(bits: int, size: int) -> None:
    x = rows(bits, size)
    total, most = x.sum(1, keepdims=True), 1 << (bits - 1)
    y = ivit.centre_ivit(x, total, n=size, most=most)
    assert y.tolist() == [centred(row) for row in x.tolist()]
    for values in (x, y):
        factor = ivit.factor_ivit((values**2).sum(1, keepdims=True))
        assert ivit.norm_ivit(values, factor, 5).tolist() == [
            [i + 5 for i in normalised(row)] for row in values.tolist()
        ]


def test_the_root_stops_where_the_paper_says_it_does() -> None:
    """Ten steps from 2^16 are too few below about 200: the published defect."""
    found = [root(v**2) for v in (3, 10, 60, 100, 200, 5000)]
    assert found[:2] == [64, 64]
    assert found[2] > 75
    assert found[3] > 103
    assert found[4:] == [200, 5000]
    v = np.array([i * i for i in range(1 << 12)])
    assert ivit.factor_ivit(v).tolist() == [TOP // root(int(i)) for i in v]


def test_a_bias_that_would_be_divided_by_zero_is_refused() -> None:
    layer = affine(nn.LayerNorm(6))
    with torch.no_grad():
        layer.get_parameter("weight")[2] = 0
    with pytest.raises(InputError, match=r"a gain of 0 and a bias.*choose another nonlinear mode"):
        lowered(layer, rows(8, 6), Fraction(1, 16))


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def affine(layer: nn.LayerNorm | nn.RMSNorm) -> nn.Module:
    """Its gains, some negative, and biases."""
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-2, 2.5, len(layer.weight)))
        if isinstance(layer, nn.LayerNorm):
            layer.bias.copy_(torch.linspace(1, -0.5, len(layer.bias)))
    return layer


def lowered(layer: nn.Module, x: Array, scale: Fraction) -> tuple[Quantized, Arrays]:
    """The layer in this mode on codes of 8 bits, (rows, size), and the values of all nodes."""
    spec = InputSpec(IntType(8), float(scale))
    made = quantize(layer, x[None].astype(np.int64), Recipe("r", nonlinear="ivit"), name="layer", input=spec)
    taps: Arrays = {}
    interpret(made.program, {"x": x[None]}, taps=taps)
    return made, taps


def result_of(op: str, made: Quantized, taps: Arrays) -> list[list[int]]:
    (node,) = (n for n in made.program.nodes if n.op == op)
    values: list[list[int]] = taps[node.output][0].tolist()
    return values


@pytest.mark.parametrize("scale", [Fraction(1, 16), Fraction(1, 1024)], ids=str)
def test_layers_of_a_model_are_the_published_formulas(scale: Fraction) -> None:
    x = rows(8, 6)
    listed = x.tolist()
    expected: dict[str, tuple[nn.Module, str, list[list[int]]]] = {
        "softmax": (nn.Softmax(-1), "shiftmax_ivit", [shiftmax(row, scale, 16) for row in listed]),
        "gelu": (
            nn.GELU(),
            "gated_ivit",
            [[i * g for i, g in zip(row, gates(row, scale * Fraction("1.702")), strict=True)] for row in listed],
        ),
        "silu": (
            nn.SiLU(),
            "gated_ivit",
            [[i * g for i, g in zip(row, gates(row, scale), strict=True)] for row in listed],
        ),
        "sigmoid": (nn.Sigmoid(), "sigmoid_ivit", [gates(row, scale) for row in listed]),
        "tanh": (nn.Tanh(), "tanh_ivit", [[2 * g - 128 for g in gates(row, 2 * scale)] for row in listed]),
        "layer_norm": (
            affine(nn.LayerNorm(6)),
            "norm_ivit",
            [
                [
                    i + floor(b / g / (sqrt(6) / 2**30))
                    for i, g, b in zip(
                        normalised(centred(row)),
                        torch.linspace(-2, 2.5, 6).double().tolist(),
                        torch.linspace(1, -0.5, 6).double().tolist(),
                        strict=True,
                    )
                ]
                for row in listed
            ],
        ),
        "rms_norm": (affine(nn.RMSNorm(6)), "norm_ivit", [normalised(row) for row in listed]),
        "l2norm": (Of(lambda v: l2norm(v, 1e-6)), "norm_ivit", [normalised(row) for row in listed]),
    }
    for name, (layer, op, values) in expected.items():
        assert result_of(op, *lowered(layer, x, scale)) == values, name
