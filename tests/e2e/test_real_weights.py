"""Published checkpoints, and classifiers trained here on real data: as good in integers as in float, on every target.

The data and the checkpoints lie in the folder that ISOBIT_DATA names.  Without it these tests are not run; with it, a
file that is missing fails them.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isobit.quant.calibrate.observe import float_outputs
from isobit.quant.capture.factory import load_model
from isobit.quant.capture.graph import Floats
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec
from isobit.quant.program import Array, IntType, Program
from isobit.quant.quantize import Quantized, program_inputs, quantize
from isobit.quant.recipe import Recipe
from isobit.quant.vectors import golden
from isobit.targets.verify import EXACT, verify
from isobit.tools.train_zoo import TASKS, Split, read, train

pytestmark = pytest.mark.skipif(
    not os.environ.get("ISOBIT_DATA"), reason="not run: ISOBIT_DATA does not name the folder of real data and weights"
)

TARGETS = ("interpret", "ort", "cpu", "c", "mcu", "hls")
TOOLS = ("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")

SIXTEEN = {"act_bits": 16}
REVERSING = {
    "w8a16": Recipe("w8a16", act_bits=16),
    "w8a13s15": Recipe("w8a13s15", act_bits=13, state_bits=15),
    "w8a8-16": Recipe(
        "w8a8-16", layers=dict.fromkeys(("rwkv1.*", "rwkv2.recurrence", "ffn1.*", "ffn2.value"), SIXTEEN)
    ),
}
"""Recipes that keep 99.9 % of the digits; the last has 16-bit operands only where 8 bits lose digits."""


def data(name: str) -> Path:
    return Path(os.environ["ISOBIT_DATA"]) / name


def in_integers(program: Program, x: Array) -> Array:
    """The output for every one of many sequences, (B, T, classes)."""
    return np.concatenate([interpret(program, {"x": part})[0]["y"] for part in np.array_split(x, -(-len(x) // 128))])


def assert_exact(q: Quantized, real: Array, steps: int = 8) -> None:
    """On golden vectors and on the Program's own inputs `real`, (B, T, *dims)."""
    vectors = list(golden(q.program, {q.program.inputs[0].name: real}, steps))
    for row in verify(q.program, TARGETS, vectors).rows:
        assert row.status == EXACT, f"{row.target}: {row.reason}\n{row.divergence}"


@cache
def reversal() -> tuple[nn.Module, dict[str, Array]]:
    """RWKV-7 that reverses numbers, and its 600 sequences."""
    model = load_model("isobit.quant.zoo.pretrained:RWKV7Reverse", data("rwkv7_reverse_L2D32.safetensors"))
    with np.load(data("rwkv7_reverse_cases.npz")) as cases:
        return model, {k: cases[k] for k in cases}


@cache
def reversing(recipe: str) -> Quantized:
    """Calibrated on every tenth sequence."""
    model, cases = reversal()
    return quantize(model, cases["tokens"][::10, :-1].astype(np.int64), REVERSING[recipe], name="rwkv7")


@cache
def keywords() -> tuple[nn.Module, Floats, Floats]:
    """The Mamba keyword spotter, its one input (1, 100, 40) and the logits (10,) that belong to it."""
    model = load_model("isobit.quant.zoo.pretrained:MambaKeywords", data("mambalite_kws10.safetensors"))
    with np.load(data("mambalite_kws10_case.npz")) as case:
        return model, case["input"][None].astype(np.float64), case["ref_logits"].astype(np.float64)


@cache
def spotting() -> Quantized:
    """W8A8, calibrated on 16 versions of the input: moved in time, louder or softer, with noise."""
    model, x, _ = keywords()
    random = np.random.RandomState(0)
    moved = [np.roll(x[0], random.randint(1, 100), axis=0) + random.normal(0, 1) for _ in range(16)]
    return quantize(model, np.stack(moved) + random.normal(0, 1, (16, *x.shape[1:])), "w8a8", name="keywords")


def worst(got: Floats, expected: Floats) -> float:
    """Largest difference over largest value."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_rwkv7_has_the_published_logits() -> None:
    model, cases = reversal()
    ids = torch.from_numpy(cases["tokens"][cases["ref_rows"], :-1].astype(np.int64))
    with torch.no_grad():
        assert worst(model(ids).double().numpy(), cases["ref_logits"].astype(np.float64)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", REVERSING)
def test_rwkv7_reverses_in_integers(recipe: str) -> None:
    _, cases = reversal()
    tokens, mask = cases["tokens"].astype(np.int64), cases["score_mask"]
    right = in_integers(reversing(recipe).program, tokens[:, :-1]).argmax(-1) == tokens[:, 1:]
    fresh = np.arange(len(tokens)) % 10 != 0
    share, of_fresh = right[mask].mean(), right[fresh][mask[fresh]].mean()
    print(f"{recipe}: {share:.3%} of {mask.sum()} digits, {of_fresh:.3%} of those that calibration did not see")
    assert min(share, of_fresh) >= 0.999


@pytest.mark.slow
@pytest.mark.needs(*TOOLS)
@pytest.mark.parametrize("recipe", REVERSING)
def test_rwkv7_is_exact(recipe: str) -> None:
    _, cases = reversal()
    assert_exact(reversing(recipe), cases["tokens"][[311, 555], :-1].astype(np.int64))


def test_mamba_spots_keywords_in_integers() -> None:
    model, x, expected = keywords()
    with torch.no_grad():
        in_float = model(torch.from_numpy(x).float())[0, -1].double().numpy()
    assert worst(in_float, expected) <= 1e-4
    program = spotting().program
    codes = interpret(program, program_inputs(program, x))[0]["y"][0, -1]
    scale = next(n.scale for n in program.nodes if n.output == "y")
    assert scale is not None
    error = float(np.linalg.norm(codes * scale - expected) / np.linalg.norm(expected))
    print(f"W8A8: relative error of the logits {error:.2%}")
    assert codes.argmax() == expected.argmax()
    assert max(error, worst(codes * scale, expected)) < 0.05


@pytest.mark.needs(*TOOLS)
def test_mamba_keyword_spotter_is_exact() -> None:
    _, x, _ = keywords()
    q = spotting()
    assert_exact(q, program_inputs(q.program, x)["x"])


EPOCHS = {
    "har": {"gru": 3, "mingru": 3, "gla": 2, "mamba": 1},
    "fsdd": {"gru": 12, "mingru": 12, "gla": 10, "mamba": 8},
}
"""Of a short training, 10 to 60 s each on one core; tools/train_zoo.py trains longer."""

CLASSIFIERS = [(task, family) for task in EPOCHS for family in EPOCHS[task]]


def codes(task: str, *splits: Split) -> Array:
    """The sensor's integers, (n, 64, channels)."""
    real = np.concatenate([split.x.numpy().astype(np.float64) for split in splits])
    return np.rint(real / TASKS[task].scale).astype(np.int64)


@cache
def trained(task: str, family: str) -> tuple[Quantized, Array, Array]:
    """The classifier at W8A8, calibrated on 256 training sequences; the integers of the other data; their labels."""
    torch.set_num_threads(1)
    learning, validation, test = read(TASKS[task])
    model = train(family, TASKS[task], learning, validation, EPOCHS[task][family])
    rows = np.random.RandomState(0).permutation(len(learning.x))[:256]
    sensor = InputSpec(IntType(16), TASKS[task].scale)
    q = quantize(model, codes(task, learning)[rows], "w8a8", name=f"{task}_{family}", input=sensor)
    return q, codes(task, validation, test), torch.cat([validation.y, test.y]).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "family"), CLASSIFIERS)
def test_integers_classify_as_well_as_floats(task: str, family: str) -> None:
    q, x, y = trained(task, family)
    guesses = float_outputs(q.graph, x.astype(np.float64) * TASKS[task].scale), in_integers(q.program, x)
    real, integer = (100 * float(np.mean(guess[:, -1].argmax(1) == y)) for guess in guesses)
    print(f"{task} {family}: {real:.2f} % in float, {integer:.2f} % in integers, of {len(y)} samples")
    assert real >= 50
    assert integer >= real - 1.0


@pytest.mark.slow
@pytest.mark.needs(*TOOLS)
@pytest.mark.parametrize(("task", "family"), CLASSIFIERS)
def test_classifiers_are_exact(task: str, family: str) -> None:
    q, x, _ = trained(task, family)
    assert_exact(q, x[:: len(x) // 8][:8])
