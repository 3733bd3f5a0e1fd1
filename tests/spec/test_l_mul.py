"""L-Mul: codes and products against the paper's formula in exact fractions, its mean error, and layers of it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from isobit.quant.capture.graph import Floats
from isobit.quant.errors import InputError
from isobit.quant.formats import FORMATS
from isobit.quant.formats.format import Format
from isobit.quant.formats.multiplier import EXACT, OFFSETS, code_params, codes_of, gain, paper_offset
from isobit.quant.interpret import interpret
from isobit.quant.ops.l_mul import high_code, l_product, low_code, minifloat_code
from isobit.quant.program import Array, Arrays, Program
from isobit.quant.quantize import Quantized, program_inputs, quantize
from isobit.quant.recipe import RECIPES, Recipe, with_layers
from isobit.quant.storage import storage

CODED = [f for f in FORMATS.values() if f.mantissa is not None]
MULTIPLIED = ("e4m3", "e5m2", "e3m2")


def formula(a: int, b: int, mantissa: int, multiplier: str) -> Fraction:
    """(1 + x + y + 2^-l(m)) * 2^(ex + ey) of (1 + x) * 2^ex and (1 + y) * 2^ey, where a sum that reaches 2 carries."""
    places = {"l-mul": None, "l-mul-paper": mantissa if mantissa <= 3 else 3 if mantissa == 4 else 4}[multiplier]
    (x, ex), (y, ey) = ((Fraction(k, 1 << (k.bit_length() - 1)) - 1, k.bit_length() - 1) for k in (a, b))
    whole = 1 + x + y + (0 if places is None else Fraction(1, 1 << places))
    assert whole <= 3
    return (whole if whole < 2 else (whole - 1) * 2) * (1 << (ex + ey))


def magnitudes(f: Format, subnormal: bool) -> list[int]:
    assert f.mantissa is not None
    return [k for k in f.magnitudes if (k < 1 << f.mantissa) is subnormal]


@pytest.mark.parametrize("f", CODED, ids=lambda f: f.name)
def test_codes_are_those_that_are_stored(f: Format) -> None:
    numbers = np.array([sign * k for k in f.magnitudes for sign in (1, -1)])
    stored = storage(f.elem, f.mantissa).codes(numbers)
    sign, size = stored >> (f.bits - 1), stored & ((1 << (f.bits - 1)) - 1)
    codes, elem = codes_of(f, numbers)
    np.testing.assert_array_equal(codes, np.where(sign == 1, -size, size))
    assert elem.bits == f.bits


@pytest.mark.parametrize("multiplier", OFFSETS)
@pytest.mark.parametrize("name", MULTIPLIED)
def test_products_are_those_of_the_formula(name: str, multiplier: str) -> None:
    """Every pair of normal numbers, with every sign."""
    f = FORMATS[name]
    assert f.mantissa is not None
    offset = OFFSETS[multiplier](f.mantissa)
    normal = magnitudes(f, subnormal=False)
    codes = dict(zip(normal, codes_of(f, np.array(normal))[0].tolist(), strict=True))
    for a, b in product(normal, repeat=2):
        expected = formula(a, b, f.mantissa, multiplier)
        for s, t in product((1, -1), repeat=2):
            got = l_product(s * codes[a], t * codes[b], mantissa=f.mantissa, offset=offset)
            assert Fraction(got) * (1 << f.mantissa) == s * t * expected, (s * a, t * b)


@pytest.mark.parametrize("name", MULTIPLIED)
def test_zeros_and_subnormal_numbers_are_flushed(name: str) -> None:
    f = FORMATS[name]
    assert f.mantissa is not None
    small = codes_of(f, np.array(magnitudes(f, subnormal=True)))[0]
    every = codes_of(f, np.array(f.magnitudes))[0]
    assert len(small) == 1 << f.mantissa
    for offset in (0, 1):
        for a, b in ((small[:, None], every), (-small[:, None], every), (every[:, None], -small)):
            assert not l_product(a, b, mantissa=f.mantissa, offset=offset).any()


def test_mean_errors() -> None:
    """Over all pairs of mantissas; the numbers of the module's table."""

    def mean(mantissa: int, multiplier: str) -> Fraction:
        fields = range(1 << mantissa, 2 << mantissa)
        ratios = [formula(a, b, mantissa, multiplier) / (a * b) for a in fields for b in fields]
        return sum(ratios, Fraction(0)) / len(ratios)

    percent = {(2, "l-mul"): -3.6, (3, "l-mul"): -3.8, (4, "l-mul"): -3.8}
    percent |= {(2, "l-mul-paper"): 14.7, (3, "l-mul-paper"): 4.9, (4, "l-mul-paper"): 4.9}
    for (mantissa, multiplier), expected in percent.items():
        made = gain(mantissa, OFFSETS[multiplier](mantissa))
        assert made == mean(mantissa, multiplier)
        assert round(float(made - 1) * 100, 1) == expected


@pytest.mark.parametrize("mantissa", [2, 3, 4])
def test_no_offset_is_better_than_none_once_compensated(mantissa: int) -> None:
    def residual(offset: int) -> float:
        fields = np.arange(1 << mantissa, 2 << mantissa)
        ratio = l_product(fields[:, None], fields, mantissa=mantissa, offset=offset) / np.multiply.outer(fields, fields)
        return float(ratio.std() / ratio.mean())

    least = residual(0)
    assert round(least, 4) == {2: 0.0385, 3: 0.0329, 4: 0.0312}[mantissa]
    assert round(residual(paper_offset(mantissa)), 4) == {2: 0.0390, 3: 0.0330, 4: 0.0312}[mantissa]
    assert all(least < residual(offset) for offset in range(1, 1 << mantissa))


def recipe(multiplier: str, name: str = "e4m3") -> Recipe:
    return Recipe(multiplier, weights=name, activations=name, multiplier=multiplier)


def samples(*shape: int) -> Floats:
    return np.random.default_rng(0).normal(size=shape)


def layer(multiplier: str, name: str = "e4m3") -> tuple[Quantized, nn.Module, Floats]:
    torch.manual_seed(0)
    module, x = nn.Linear(80, 24), samples(8, 16, 80)
    return quantize(module, x, recipe(multiplier, name), name="linear"), module, x


@pytest.mark.parametrize("multiplier", OFFSETS)
@pytest.mark.parametrize("name", ["e4m3", "e3m2"])
def test_a_linear_layer_is_the_sum_of_the_formula(name: str, multiplier: str) -> None:
    q, _, x = layer(multiplier, name)
    f = FORMATS[name]
    assert f.mantissa is not None
    p, taps, first = q.program, Arrays(), 1 << f.mantissa
    interpret(p, program_inputs(p, x[:1, :3]), taps=taps)
    node = next(n for n in p.nodes if n.op == "l_matmul")
    coded = next(n for n in p.nodes if n.op == "minifloat_code")
    number = {int(c): int(k) for k, c in zip(f.magnitudes, codes_of(f, np.array(f.magnitudes))[0], strict=True)}
    weight, bias = p.constant[node.inputs[1]], p.constant[node.inputs[2]].array
    assert weight.type.elem.bits == f.bits
    assert node.inputs[0] == coded.output

    def term(a: int, b: int) -> Fraction:
        k, c = number[abs(a)], number[abs(b)]
        size = formula(k, c, f.mantissa or 0, multiplier) / first if min(k, c) >= first else Fraction(0)
        return size if (a < 0) is (b < 0) else -size

    for step, row in product(range(3), range(24)):
        operands = zip(taps[coded.output][0, step].tolist(), weight.array[row].tolist(), strict=True)
        assert taps[node.output][0, step, row] == int(bias[row]) + sum(term(a, b) for a, b in operands)


@pytest.mark.parametrize("multiplier", [EXACT, *OFFSETS])
def test_the_mean_error_is_not_in_the_result(multiplier: str) -> None:
    """Outputs in relation to those of float: of the mean error, at least 3.8 %, less than 1 % is left.

    The mantissas of these samples are not uniform.
    """
    q, module, x = layer(multiplier)
    outputs, _ = interpret(q.program, program_inputs(q.program, x))
    scale = next(n for n in q.program.nodes if n.output == "y").scale
    assert scale is not None
    y, want = outputs["y"] * scale, module(torch.from_numpy(x).float()).detach().double().numpy()
    assert abs((y * want).sum() / (want * want).sum() - 1) < 0.01
    ratio = 10 * np.log10((want**2).mean() / ((y - want) ** 2).mean())
    assert ratio > (28 if multiplier == EXACT else 26)


class Images(nn.Module):
    """A convolution and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.depthwise(self.dense(x))
        return y


class Products(nn.Module):
    """A product of two values, after a causal convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, groups=6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(nn.functional.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        b, t, _ = y.shape
        a = y.reshape(b, t, 2, 3)
        return torch.matmul(a, a.transpose(2, 3)).reshape(b, t, 4)


@pytest.mark.parametrize(
    ("module", "x", "ops"),
    [(Images, (2, 3, 6, 6), {"l_convolution"}), (Products, (2, 12, 6), {"l_causal_conv1d", "l_dot"})],
)
def test_every_structure_has_an_op(module: Callable[[], nn.Module], x: tuple[int, ...], ops: set[str]) -> None:
    torch.manual_seed(0)
    made = quantize(module(), samples(*x), recipe("l-mul"), name="model").program
    assert ops <= {n.op for n in made.nodes}
    assert not {"matmul", "dot", "convolution", "causal_conv1d"} & {n.op for n in made.nodes}


def ops_of(p: Program) -> set[str]:
    return {n.op for n in p.nodes if n.op.endswith("matmul")}


def test_single_layers_may_multiply_exactly() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    mixed = with_layers(RECIPES["fp8-e4m3-lmul"], ["1:multiplier=exact"])
    assert mixed.at("1").multiplier == EXACT
    made = quantize(module, samples(2, 8, 8), mixed, name="model").program
    assert {(n.loc, n.op) for n in made.nodes if n.op.endswith("matmul")} == {("0", "l_matmul"), ("1", "matmul")}


def number_of(code: int, mantissa: int) -> int:
    """In units of the smallest one, what a code without a sign stands for."""
    exponent, field = code >> mantissa, code & ((1 << mantissa) - 1)
    return field if exponent == 0 else (1 << mantissa | field) << (exponent - 1)


def test_a_code_is_its_limbs() -> None:
    """Of every code of E5M2, at every cut: one limb is 0, the other stands for the number, and both are short."""
    for h, code in product(range(1, 31), range(-127, 128)):
        high, low = (limb(code, h=h, mantissa=2) for limb in (high_code, low_code))
        assert 0 in (high, low)
        assert number_of(abs(high), 2) * 2**h + number_of(abs(low), 2) == number_of(abs(code), 2)
        assert all(limb == 0 or (limb < 0) is (code < 0) for limb in (high, low))
        assert abs(high) <= 127 - 4 * h
        assert abs(low) < 4 * (h + 1)


@pytest.mark.parametrize("multiplier", OFFSETS)
def test_a_sum_that_leaves_64_bits_is_two(multiplier: str) -> None:
    """Of E5M2, in whole numbers: the sum of the formula and the bias, rounded once."""
    q, _, x = layer(multiplier, "e5m2")
    p, taps, f = q.program, Arrays(), FORMATS["e5m2"]
    interpret(p, program_inputs(p, 1e4 * x[:1, :3]), taps=taps)
    node = {n.op: n for n in p.nodes}
    own, codes = node["join_limbs"].param, taps[node["minifloat_code"].output][0].tolist()
    matmul = next(n for n in p.nodes if n.op == "l_matmul")
    weight, bias = p.constant[matmul.inputs[1]].array.tolist(), p.constant[matmul.inputs[2]].array.tolist()
    drop, offset = own["h"] + own["s"], OFFSETS[multiplier](2)
    for step, row in product(range(3), range(24)):
        terms = [l_product(a, b, mantissa=2, offset=offset) for a, b in zip(codes[step], weight[row], strict=True)]
        total = sum(terms) + (bias[row] << own["h"])
        got = taps[node["join_limbs"].output][0, step, row]
        assert got == (total + (1 << (drop - 1))) >> drop
    assert f.bits == 8
    assert {n.op for n in p.nodes} >= {"high_code", "low_code"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"multiplier": "lmul"}, "multiplier is 'lmul', expected one of exact, l-mul, l-mul-paper"),
        ({"multiplier": "l-mul"}, "weights is 'int8' and activations is '', expected two minifloats"),
        ({"multiplier": "l-mul", "weights": "e4m3"}, "activations is '', expected two minifloats"),
        ({"multiplier": "l-mul", "weights": "e4m3", "activations": "e5m2"}, "as many bits of mantissa"),
        ({"multiplier": "l-mul", "weights": "mxfp8", "activations": "mxfp8"}, "expected two minifloats"),
        ({"multiplier": "l-mul", "weights": "int8", "activations": "e4m3"}, "expected two minifloats"),
    ],
)
def test_other_operands_are_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=f"recipe mine: .*{message}"):
        Recipe("mine", **fields)  # type: ignore[arg-type]


def test_codes_of_every_integer_of_a_format() -> None:
    """On Python's integers, as on arrays."""
    f = FORMATS["e4m3"]
    integers: Array = np.array(f.magnitudes)
    assert [minifloat_code(int(k), **code_params(f)) for k in integers] == codes_of(f, integers)[0].tolist()
