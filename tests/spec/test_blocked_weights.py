"""Weights in blocks, of every kind of layer: the Program's integers against the definition, written again here.

A block is a run of at most `size` weights of one output along its input, flattened, whole channels at a time where a
kernel has several elements, at least one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from isobit.quant.capture.graph import Floats
from isobit.quant.facts import node_facts
from isobit.quant.formats import format_named
from isobit.quant.interpret import interpret
from isobit.quant.nn import CausalFIR
from isobit.quant.program import Array, Arrays, Program
from isobit.quant.quantize import program_inputs, quantize
from isobit.quant.recipe import Recipe
from isobit.quant.storage import stored_bytes
from tests.layers import LAYERS, Grouped, Layer, layer_of, samples

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12])
"""Its magnitudes, in halves."""

SIZES = {"int4-g32": 32, "int3-g16": 16, "mxfp4-g16": 16}


def weights_of(layer: Layer, weight: Floats) -> Floats:
    """As (outputs, input channels, elements of the kernel)."""
    rows, split = weight.shape[: layer.rows], layer.rows + layer.channels
    channels, kernel = int(np.prod(weight.shape[layer.rows : split])), int(np.prod(weight.shape[split:]))
    return weight.reshape(int(np.prod(rows)), channels, kernel)


def blocks_of(weight: Floats, size: int) -> Iterator[Floats]:
    """Blocks of (outputs, channels, kernel), each (outputs, weights)."""
    _, channels, kernel = weight.shape
    step = max(size // kernel, 1)
    for first in range(0, channels, step):
        yield weight[:, first : first + step].reshape(len(weight), -1)


def nearest(x: float) -> int:
    """The number of E2M1, in halves, that is nearest to x halves; of two the one whose code is even."""
    distances = np.abs(E2M1 - min(abs(x), 12))
    best = [i for i in range(8) if distances[i] == distances.min()]
    return int(np.sign(x)) * int(E2M1[min(best, key=lambda i: i % 2)])


def mx_row(blocks: list[Floats]) -> tuple[list[Array], list[int], float]:
    """Codes and multipliers of a row's blocks, and its unit; OCP's powers of two, at which the largest is 4 to 8."""
    powers = [int(np.floor(np.log2(np.abs(b).max()))) - 2 for b in blocks]
    lowest = max(min(powers), max(powers) - 8)
    powers = [max(e, lowest) for e in powers]
    codes = [np.array([nearest(2 * w / 2.0**e) for w in b]) for b, e in zip(blocks, powers, strict=True)]
    return codes, [2 ** (e - lowest) for e in powers], 2.0**lowest / 2


def integer_row(blocks: list[Floats], counts: list[Floats], largest: int) -> tuple[list[Array], list[int], float]:
    """The same: of 17 fractions of the scale at which nothing saturates, the one whose squared error counts least, as
    a multiple of 1/255 of the row's largest, rounded up."""
    scales = []
    for b, c in zip(blocks, counts, strict=True):
        tried = [np.abs(b).max() / largest * (1 - i / 32) for i in range(17)]
        errors = [np.sum(c * (np.clip(np.rint(b / s), -largest, largest) * s - b) ** 2) for s in tried]
        scales.append(tried[int(np.argmin(errors))])
    unit = max(scales) / 255 if len(blocks) > 1 else max(scales)
    multipliers = [max(int(np.ceil(s / unit * (1 - 1e-9))), 1) for s in scales]
    codes = [
        np.clip(np.rint(b / (m * unit)), -largest, largest).astype(np.int64)
        for b, m in zip(blocks, multipliers, strict=True)
    ]
    return codes, multipliers, unit


def expected(name: str, weight: Floats, format: str) -> tuple[list[list[Array]], list[list[int]], Floats]:
    """By output: codes of its blocks, their multipliers, and its unit."""
    layer, size = LAYERS[name], SIZES[format]
    counts = np.broadcast_to(moment(name, 2), weight.shape)
    blocks, shares = (list(blocks_of(weights_of(layer, a), size)) for a in (weight, counts))
    rows = []
    for r in range(len(blocks[0])):
        row, share = [b[r] for b in blocks], [c[r] for c in shares]
        rows.append(mx_row(row) if format.startswith("mx") else integer_row(row, share, 2 ** int(format[3]) // 2 - 1))
    codes, multipliers, units = zip(*rows, strict=True)
    return list(codes), list(multipliers), np.array(units)


def moment(name: str, power: int) -> Floats:
    """The mean of a power of what each weight multiplies, of a shape that broadcasts to the weight."""
    x = samples(name)
    if name == "positions_conv1d":
        x = np.pad(x.reshape(*x.shape[:2], -1, 1), ((0, 0), (0, 0), (36, 0), (0, 0)))
    return np.asarray((x**power).mean(LAYERS[name].over).reshape(LAYERS[name].seen))


def parameters(model: nn.Module) -> tuple[str, Floats, str, Floats]:
    """The name and the values of its weight and, 0 where it has none, of its bias."""
    (weight, w), *rest = sorted(model.named_parameters(), key=lambda p: -p[1].ndim)
    bias, b = rest[0] if rest else ("", torch.zeros(()))
    return weight, w.detach().double().numpy(), bias, b.detach().double().numpy()


def constants(program: Program) -> dict[str, Array]:
    return {c.name.rpartition(".")[2]: c.array for c in program.constants}


def whole(name: str, weight: Floats, codes: list[list[Array]], multipliers: list[list[int]]) -> Array:
    """Codes times multipliers, in the weight's shape: the integers that a row counts in its unit."""
    shape = weights_of(LAYERS[name], weight).shape[1:]
    rows = [np.concatenate([c * m for c, m in zip(*row, strict=True)]) for row in zip(codes, multipliers, strict=True)]
    return np.stack([row.reshape(shape) for row in rows]).reshape(weight.shape)


def limbs(x: Array) -> list[Floats]:
    """Whole numbers of up to 51 bits as sums of these times powers of 2^17."""
    return [(np.sign(x) * (np.abs(x) >> s & 0x1FFFF)).astype(np.float64) for s in (0, 17, 34)]


def sums(model: nn.Module, weight: Array, x: Array) -> Array:
    """What the float model without its bias makes of whole numbers, exactly: (B, ...) Python integers."""
    label, _, bias, b = parameters(model)
    total = np.zeros((), object)
    for i, w in enumerate(limbs(weight)):
        for j, part in enumerate(limbs(x)):
            own = {label: torch.from_numpy(w)} | ({bias: torch.zeros(b.shape).double()} if bias else {})
            made = functional_call(model, own, (torch.from_numpy(part),)).numpy()
            assert np.abs(made).max() < 2**53
            total = total + made.astype(np.int64).astype(object) * 2 ** (17 * (i + j))
    return np.asarray(total)


def run(name: str, program: Program) -> Arrays:
    """The values of all nodes, and of the input, on the samples."""
    x, taps = samples(name), Arrays()
    given = program_inputs(program, x[:, None] if LAYERS[name].is_image else x)
    interpret(program, given, taps=taps)
    return taps | given


@pytest.mark.parametrize("format", SIZES)
@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_those_of_the_definition(name: str, format: str) -> None:
    """Elements and multipliers, and the bias with what they lose on the mean; then the sums, which are those of the
    float model with these integers as weights."""
    layer, (model, made) = LAYERS[name], layer_of(name, Recipe("r", weights=format))
    _, weight, _, b = parameters(model)
    codes, multipliers, units = expected(name, weight, format)
    held, count = constants(made.program), len(codes[0])
    assert ("multipliers" in held) == (count > 1)
    if count > 1:
        np.testing.assert_array_equal(held["multipliers"].reshape(-1, count), multipliers)
    for got, wanted in zip(held["weight"].reshape(len(codes), count, -1), codes, strict=True):
        assert [block.tolist() for block in got] == [[*w, *[0] * (got.shape[1] - len(w))] for w in wanted]

    integers, units = whole(name, weight, codes, multipliers), units.reshape(weight.shape[: layer.rows])
    inner = tuple(range(layer.rows, weight.ndim))
    lost = ((weight - integers * np.expand_dims(units, inner)) * moment(name, 1)).sum(inner)
    scale = made.program.inputs[0].type.scale
    assert scale is not None
    start = np.rint((b + lost) / (scale * units)).astype(np.int64)
    np.testing.assert_array_equal(held["bias"], start)

    value = run(name, made.program)
    total = sums(model, integers, value["x"].reshape(samples(name).shape)) + start.reshape(layer.biased)
    (acc,) = (k for v, k in value.items() if v.endswith(".acc"))
    np.testing.assert_array_equal(acc.ravel(), total.ravel())


@pytest.mark.parametrize("name", ["linear of an image", "grouped_linear", "3x3", "causal_fir"])
def test_sums_of_blocks_may_have_two_limbs(name: str) -> None:
    layer, (model, made) = LAYERS[name], layer_of(name, Recipe("r", weights="mxfp8-e5m2-g16", activations="e5m2"))
    value, held = run(name, made.program), constants(made.program)
    (joined,) = (n for n in made.program.nodes if n.op == "join_limbs")
    (operand,) = (n for n in made.program.nodes if n.op == "to_minifloat")
    _, weight, _, _ = parameters(model)
    outputs, channels, kernel = weights_of(layer, weight).shape
    blocks = held["weight"].reshape(*held["multipliers"].shape, -1) * held["multipliers"][..., None]
    integers = blocks.reshape(outputs, -1, kernel)[:, :channels].reshape(weight.shape)
    h, drop = joined.param["h"], joined.param["h"] + joined.param["s"]
    total = sums(model, integers, value[operand.output].reshape(samples(name).shape))
    total = total + held["bias"].astype(object).reshape(layer.biased) * 2**h
    assert max(abs(k) for k in total.ravel()).bit_length() > 50
    np.testing.assert_array_equal(value[joined.output].ravel(), (total.ravel() + (1 << (drop - 1))) >> drop)


@pytest.mark.parametrize("name", ["1x1", "1x1, stride"])
def test_a_pixel_is_the_sum_of_its_blocks(name: str) -> None:
    """In a 1x1 convolution operands are in blocks of channels too, at every pixel with exponents of their own."""
    _, made = layer_of(name, Recipe("r", weights="mxfp4-g16", activations="mxfp4-g16"))
    taps, held = run(name, made.program), constants(made.program)
    value = {n.op: taps[n.output] for n in made.program.nodes}
    elements, exponents = value["block_element"], value["block_exponent"]
    assert exponents.shape == (*elements.shape[:3], *elements.shape[4:])
    assert (exponents.min(2) < exponents.max(2)).any()
    scaled = np.einsum("btuvyx,nuv->btnuyx", elements, held["weight"]) * 2 ** exponents[:, :, None]
    total = np.einsum("btnuyx,nu->btnyx", scaled, held["multipliers"]) + held["bias"][:, None, None]
    np.testing.assert_array_equal(value["matmul"], total)


def test_a_kernel_of_several_elements_has_one_scale_of_its_operand() -> None:
    _, made = layer_of("3x3", Recipe("r", weights="mxfp4-g16", activations="mxfp4-g16"))
    ops = {n.op for n in made.program.nodes}
    assert "to_minifloat" in ops
    assert not ops & {"block_exponent", "scale_block"}
    assert "multipliers" in constants(made.program)


WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear of an image": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 32)), (8, 4, 8)),
    "grouped_linear": (lambda: Grouped(4, 64, 32), (3, 256)),
    "4x4": (lambda: nn.Conv2d(32, 16, 4), (32, 5, 5)),
    "1x1": (lambda: nn.Conv2d(128, 64, 1), (128, 2, 2)),
    "whole image": (lambda: nn.Conv2d(32, 32, (2, 4)), (32, 2, 4)),
    "causal_fir": (lambda: CausalFIR(64, 32, 4), (5, 64)),
}
"""Layers whose blocks are whole, and the shapes of their samples."""


@pytest.mark.parametrize("format", ["int4-g32", "int3-g16", "mxfp8"])
@pytest.mark.parametrize("name", WHOLE)
def test_weights_take_the_bits_of_their_format(name: str, format: str) -> None:
    """Bits times parameters, and the scales of blocks, within 2 %; `inspect` counts the same."""
    make, shape = WHOLE[name]
    torch.manual_seed(0)
    model = make()
    x = np.random.default_rng(0).normal(size=(2, *shape))
    program = quantize(model, x, Recipe("r", weights=format), name="layer").program
    held = [c for c in program.constants if c.name.endswith((".weight", ".multipliers", ".zero"))]
    bound = format_named(format).bits * parameters(model)[1].size / 8
    assert bound <= sum(map(stored_bytes, held)) <= 1.02 * bound
    held += [c for c in program.constants if c.name.endswith(".bias")]
    assert sum(f.weights for f in node_facts(program) if f.op != "requantize_per_channel") == sum(
        map(stored_bytes, held)
    )
