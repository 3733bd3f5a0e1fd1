"""What linear layers read in minifloats: few bits as they are, raw features about a centre, all else rounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from isobit.quant.capture.graph import Floats
from isobit.quant.formats import FORMATS
from isobit.quant.interpret import interpret
from isobit.quant.program import Array, Arrays, IntType, Program
from isobit.quant.quantize import InputSpec, Quantized, program_inputs, quantize
from isobit.quant.recipe import Recipe

CHANNELS = 40


def layers(
    x: Floats | Array, weights: str, activations: str, input: InputSpec | None = None, multiplier: str = "exact"
) -> Quantized:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(CHANNELS, 12), nn.Linear(12, 5))
    return quantize(module, x, Recipe("r", weights, activations, multiplier), name="layers", input=input)


def readers(p: Program, v: str) -> set[str]:
    """The ops that read a value."""
    return {n.op for n in p.nodes if v in n.inputs}


@pytest.mark.parametrize(
    ("bits", "weights", "activations", "ops"),
    [
        (5, "e5m2", "e5m2", {"matmul"}),
        (8, "e4m3", "e4m3", {"matmul"}),
        (9, "e4m3", "e4m3", {"to_minifloat"}),
        (5, "e2m1", "e2m1", {"to_minifloat"}),
        (5, "mxfp8", "mxfp8", {"pad"}),
        (9, "mxfp8-g16", "mxfp8-g16", {"pad"}),
    ],
)
def test_an_integer_that_takes_no_more_bits_is_read_as_it_is(
    bits: int, weights: str, activations: str, ops: set[str]
) -> None:
    most = (1 << bits - 1) - 1
    x = np.random.default_rng(0).integers(-most, most + 1, (3, 8, CHANNELS))
    p = layers(x, weights, activations, InputSpec(IntType(bits), 2.0**-bits)).program
    assert readers(p, "x") == ops
    assert ("block_exponent" in {n.op for n in p.nodes if n.loc == "0"}) is (bits == 9 and "mx" in weights)


def test_l_mul_reads_codes_of_minifloats_even_so() -> None:
    x = np.random.default_rng(0).integers(-15, 16, (3, 8, CHANNELS))
    p = layers(x, "e4m3", "e4m3", InputSpec(IntType(5), 2.0**-5), multiplier="l-mul").program
    assert readers(p, "x") == {"to_minifloat"}


def features(seed: int) -> Floats:
    """Far from zero, unlike what layers make."""
    return np.random.default_rng(seed).normal(6, 0.5, (4, 16, CHANNELS))


def relative_noise(q: Quantized, x: Floats) -> float:
    """Of the sum of the first layer, in its unit: the power of the error over that of what varies in it."""
    taps: Arrays = {}
    interpret(q.program, program_inputs(q.program, x), taps=taps)
    torch.manual_seed(0)
    with torch.no_grad():
        real = nn.Linear(CHANNELS, 12)(torch.tensor(x, dtype=torch.float32)).double().numpy()
    total = taps[next(n.output for n in q.program.nodes if n.op == "matmul")].astype(np.float64)
    unit = (total * real).sum((0, 1)) / (total * total).sum((0, 1))
    return float(np.sum((total * unit - real) ** 2) / np.sum((real - real.mean((0, 1))) ** 2))


def test_raw_features_are_centred() -> None:
    """The sum is one of whole numbers, and about as near to the layer as if its features lay about zero."""
    q, x = layers(features(0), "int8", "e5m2"), features(1)
    p, taps, f = q.program, Arrays(), FORMATS["e5m2"]
    interpret(p, program_inputs(p, x), taps=taps)
    node, first = next(n for n in p.nodes if "x" in n.inputs), next(n for n in p.nodes if n.op == "matmul")
    assert (node.op, first.inputs[0]) == ("quantize_minifloat", node.output)
    assert set(np.unique(np.abs(taps[node.output]))) <= set(f.magnitudes)
    weight, bias = (p.constant[i].array for i in first.inputs[1:])
    np.testing.assert_array_equal(taps[first.output], taps[node.output] @ weight.T + bias)
    about_zero = layers(features(0) - 6, "int8", "e5m2")
    print(relative_noise(q, x), relative_noise(about_zero, x - 6))
    assert relative_noise(q, x) < 2 * relative_noise(about_zero, x - 6)


def test_what_lies_about_zero_and_what_layers_make_is_not_centred() -> None:
    x = np.random.default_rng(0).normal(size=(4, 16, CHANNELS))
    assert readers(layers(x, "int8", "e5m2").program, "x") == {"to_minifloat"}
    ops = [n.op for n in layers(features(0), "int8", "e5m2").program.nodes if "minifloat" in n.op]
    assert ops == ["quantize_minifloat", "to_minifloat"]
