"""Number formats: exact on every target, and what they cost the demo's model, by plain post-training quantization."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypedDict

import numpy as np

from isobit.quant.formats import format_named
from isobit.quant.recipe import RECIPES, Recipe
from isobit.targets.target import TARGETS
from isobit.tools.cells import Cell, gravest, markdown_table, text, verified
from isobit.tools.families import joined, quantized

STORED = Path(__file__).with_name("formats.json")
"""The Table that `make status` measured last."""

WEIGHTS = (
    "int8", "int6", "int4", "int4-g16", "int3-g16", "int2-g16", "ternary", "pot4", "csd8k2", "e4m3", "e5m2", "e3m2",
    "e2m3", "e2m1", "mxfp8", "mxfp6", "mxfp4", "mxfp4-rceil", "mxint8",
)  # fmt: skip
"""With 8-bit activations."""

ROWS: Mapping[str, Recipe] = {name: Recipe(name, weights=name) for name in WEIGHTS} | {
    name: RECIPES[name] for name in ("w4a4", "fp8-e4m3", "fp6-e3m2")
}

MODELS = ("Mamba", "GLA", "RWKV-7"), ("MobileNetV2",)
"""Groups that are verified as one Program; their odd sizes."""

SEEDS, CALIBRATION = (0, 1, 2), 160
"""Of the training samples that the scales come from, and how many."""

STEPS = 64

STUDENT = 4.303
"""Of a 95 % interval of the mean of three."""

BARS: Mapping[str, float] = {
    **dict.fromkeys(("int8", "e4m3", "e5m2", "mxfp8", "mxint8", "fp8-e4m3"), 1.0),
    **dict.fromkeys(("e3m2", "e2m3", "mxfp6", "fp6-e3m2"), 1.5),
    "int4-g16": 2.5,
}
"""Points of accuracy that the mean over SEEDS may lose."""


class Entry(TypedDict):
    """points: accuracy in integers less that in float, by seed; bits: of a weight, with its share of the scales."""

    targets: dict[str, Cell]
    points: list[float]
    bits: float


Table = dict[str, Entry]


def measure(progress: Callable[[str], None] = lambda _: None) -> Table:
    """Every row on every target, and the accuracy of the demo's model; a process a core."""
    table: Table = {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for name, entry in zip(ROWS, pool.map(entry_of, ROWS), strict=True):
            progress(f"{name}: {entry['points']} points")
            table[name] = entry
    return table


def entry_of(name: str) -> Entry:
    """What is measured of one row."""
    recipe, found = ROWS[name], dict[str, list[Cell]]()
    for families in MODELS:
        made = {f: quantized(f, "odd", recipe, steps=STEPS, calibration=8) for f in families}
        one = joined(made, "odd")
        for target in TARGETS:
            found.setdefault(target, []).append(verified(one.program, target, one.vectors))
    targets = {target: gravest(cells) for target, cells in found.items()}
    bits = round(float(format_named(recipe.weights).bits), 2)
    return {"targets": targets, "points": [points(recipe, seed) for seed in SEEDS], "bits": bits}


def points(recipe: Recipe, seed: int) -> float:
    """Of the digits' test set: accuracy in integers less that of the float model."""
    from isobit.quant.calibrate.observe import float_outputs
    from isobit.quant.interpret import interpret
    from isobit.quant.quantize import input_spec, quantize
    from isobit.quant.zoo import digits
    from isobit.tools.commands import correct

    data = digits.data()
    rows = np.random.RandomState(seed).permutation(len(data.train))[:CALIBRATION]
    x, test = data.train.x[rows], data.test
    made = quantize(digits.load(), x, recipe, name="digits", input=input_spec(x, digits.INPUT_SCALE, "digits"), t_max=8)
    integers = interpret(made.program, {made.program.inputs[0].name: test.x.astype(np.int64)})[0]["y"]
    real = float_outputs(made.graph, test.x.astype(np.float64) * digits.INPUT_SCALE)
    return round(100 * (correct(integers, test.y) - correct(real, test.y)) / len(test), 2)


NUMBERS = ("bits a weight", "digits, points")
COLUMNS = ("format", *NUMBERS, *TARGETS)


def cells(table: Table) -> Iterator[list[str]]:
    """Rows of COLUMNS as text; the mean of the points and its 95 % interval."""
    for name, entry in table.items():
        mean, spread = np.mean(entry["points"]), np.std(entry["points"], ddof=1) * STUDENT / len(SEEDS) ** 0.5
        yield [name, f"{entry['bits']:g}", f"{mean:+.2f} ± {spread:.2f}", *map(text, entry["targets"].values())]


def markdown(table: Table) -> str:
    """The table for README.md."""
    return markdown_table(COLUMNS, cells(table))


def load() -> Table:
    """The stored Table."""
    table: Table = json.loads(STORED.read_text())
    return table
