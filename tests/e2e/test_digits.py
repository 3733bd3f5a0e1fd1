"""The trained digits model, quantized: its accuracy, its noise, and that two runs give one Program."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.quant.calibrate.observe import float_outputs
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec
from isobit.quant.program import IntType
from isobit.quant.quantize import Quantized, layer_snr, quantize
from isobit.quant.zoo import digits

PIXELS = InputSpec(IntType(5, signed=False), digits.INPUT_SCALE)


def run(recipe: str) -> Quantized:
    return quantize(digits.load(), digits.data().calibration.x, recipe, name="digits", input=PIXELS)


@pytest.mark.parametrize(
    ("recipe", "points", "noise"),
    [("w8a8", 1.0, 22.0), pytest.param("w8a16", 1.0, 37.0, marks=pytest.mark.slow), ("w4a8", 2.0, 13.0)],
)
def test_integers_classify_as_well_as_floats(recipe: str, points: float, noise: float) -> None:
    test, q = digits.data().test, run(recipe)
    real = test.x.astype(np.float64) * digits.INPUT_SCALE
    expected = float_outputs(q.graph, real)[:, -1].argmax(1)
    logits = interpret(q.program, {"x": test.x.astype(np.int64)})[0]["y"][:, -1]
    accuracy, in_float = (100 * np.mean(guess == test.y) for guess in (logits.argmax(1), expected))
    ratio = layer_snr(q.program, q.graph, real)["y"]
    print(f"{recipe}: {accuracy:.2f} % of {len(test)} in integers, {in_float:.2f} % in float, logits {ratio:.1f} dB")
    assert accuracy >= in_float - points
    assert ratio > noise


def test_two_runs_give_one_program() -> None:
    first, second = run("w8a8"), run("w8a8")
    assert first.program == second.program
    assert first.program.digest == second.program.digest


def test_pixels_need_no_float_and_no_first_node() -> None:
    program = run("w8a8").program
    assert str(program.inputs[0].type) == "u5[T, 8]"
    assert program.nodes[0].op == "matmul"
    assert program.nodes[0].inputs[0] == "x"
    assert program.outputs == ("y",)
    identifiers = {n.output.replace(".", "_") for n in program.nodes}
    assert len(identifiers) == len(program.nodes)
    assert all(i.isidentifier() for i in identifiers)
