"""Operands in blocks: exponents and elements from integers, against the formats' own rules; sums of two limbs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isobit.quant.errors import InputError
from isobit.quant.formats import MX, format_named
from isobit.quant.formats.blocks import RULES, WINDOW, Blocks
from isobit.quant.interpret import interpret
from isobit.quant.ops.blocks import block_element, block_exponent
from isobit.quant.ops.limbs import high_limb, join_limbs, low_limb
from isobit.quant.program import Arrays
from isobit.quant.quantize import Quantized, program_inputs, quantize
from isobit.quant.recipe import Recipe

CODES = np.arange(-32767, 32768)
NAMES = [*MX, *(f"{name}-{rule}" for name in ("mxfp8", "mxfp6", "mxfp4") for rule in RULES)]


def quantized(name: str) -> Quantized:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(3, 8, 80)) * np.exp2(np.random.default_rng(1).integers(-6, 3, 80))
    return quantize(nn.Linear(80, 5), x, Recipe("r", weights=name, activations=name), name="linear")


def parameters(q: Quantized, op: str) -> dict[str, Any]:
    return next(n for n in q.program.nodes if n.op == op).param


def blocks_of(name: str) -> Blocks:
    f = format_named(name)
    assert isinstance(f, Blocks)
    return f


@pytest.mark.parametrize("name", NAMES)
def test_exponents_are_those_of_the_rule(name: str) -> None:
    """For every largest magnitude that 16 bits hold, as for weights."""
    f, peaks = blocks_of(name), np.arange(1, 1 << 15)
    got = block_exponent(peaks, **parameters(quantized(name), "block_exponent"))
    powers = RULES[f.rule](peaks.astype(np.float64), f.element)
    np.testing.assert_array_equal(got, np.clip(powers - (powers.max() - WINDOW), 0, WINDOW))
    assert block_exponent(0, **parameters(quantized(name), "block_exponent")) == 0


@pytest.mark.parametrize("name", NAMES)
def test_elements_are_those_of_the_format(name: str) -> None:
    """Every 16-bit integer, in a block of every exponent."""
    f = blocks_of(name)
    element, own = f.element, parameters(quantized(name), "block_element")
    top = int(RULES[f.rule](np.array([32767.0]), element)[0])
    for e in range(WINDOW + 1):
        got = block_element(CODES, e, **own)
        expected = element.rounded(np.ldexp(CODES.astype(np.float64), WINDOW - top - e))
        coarser = element.largest // own["most"]
        np.testing.assert_array_equal(got * coarser, expected)


@pytest.mark.parametrize("name", ["mxfp8", "mxfp6", "mxfp4", "mxint8", "mxfp8-e5m2"])
def test_a_layer_is_the_sum_of_its_blocks(name: str) -> None:
    """In whole numbers: products of elements, times the blocks' scales."""
    q, taps = quantized(name), Arrays()
    x = np.random.default_rng(2).normal(size=(2, 4, 80))
    interpret(q.program, program_inputs(q.program, x), taps=taps)
    value = {n.op: taps[n.output].astype(object) for n in q.program.nodes}
    held = {c.name.rpartition(".")[2]: c.array.astype(object) for c in q.program.constants}
    elements, exponents = value["block_element"], value["block_exponent"]
    sums = np.einsum("btuv,nuv->btnu", elements, held["weight"])
    scaled = sums * 2 ** exponents[:, :, None]
    total = np.einsum("btnu,nu->btn", scaled, held["multipliers"])
    if "join_limbs" in value:
        own = parameters(q, "join_limbs")
        drop = own["h"] + own["s"]
        expected = (total + (held["bias"] << own["h"]) + (1 << (drop - 1))) >> drop
        np.testing.assert_array_equal(value["join_limbs"], expected)
    else:
        np.testing.assert_array_equal(value["matmul"], total + held["bias"])


def test_a_layer_of_wide_minifloats_is_two_limbs() -> None:
    torch.manual_seed(0)
    samples = np.random.default_rng(0).normal(size=(3, 8, 40))
    q = quantize(nn.Linear(40, 5), samples, Recipe("r", weights="e5m2", activations="e5m2"), name="linear")
    taps: Arrays = {}
    interpret(q.program, program_inputs(q.program, samples), taps=taps)
    value = {n.op: taps[n.output].astype(object) for n in q.program.nodes}
    held = {c.name.rpartition(".")[2]: c.array.astype(object) for c in q.program.constants}
    own = parameters(q, "join_limbs")
    drop = own["h"] + own["s"]
    total = value["to_minifloat"] @ held["weight"].T + (held["bias"] << own["h"])
    assert max(abs(k) for k in total.ravel()).bit_length() > 50
    np.testing.assert_array_equal(value["join_limbs"], (total + (1 << (drop - 1))) >> drop)


@settings(deadline=None)
@given(st.integers(-(1 << 80), 1 << 80), st.integers(1, 30), st.integers(1, 40))
def test_limbs_are_the_number(x: int, h: int, s: int) -> None:
    high, low = high_limb(x, h=h), low_limb(x, h=h)
    assert high * 2**h + low == x
    joined = join_limbs(high, low, h=h, s=s, lo=-(1 << 90), hi=1 << 90)
    assert joined == (x + (1 << (h + s - 1))) >> (h + s)


@pytest.mark.parametrize(
    ("weights", "activations", "message"),
    [
        ("int8", "mxfp8", "activations is 'mxfp8', blocks of 32, and weights is 'int8', expected blocks of 32 too"),
        ("mxfp8-g16", "mxfp8", "blocks of 32, and weights is 'mxfp8-g16', expected blocks of 32 too"),
        ("int8", "int4-g32", "activations is 'int4-g32', expected a minifloat, as e4m3, or blocks, as mxfp8"),
    ],
)
def test_blocks_that_do_not_meet_are_refused(weights: str, activations: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe("r", weights=weights, activations=activations)
