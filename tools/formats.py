"""Number formats: exact on every target, and what they cost trained models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypedDict

from isobit.quant.formats import format_named
from isobit.quant.recipe import Recipe
from isobit.targets.target import TARGETS
from isobit.tools.accuracy import SEEDS, TASKS, is_here, mean, points
from isobit.tools.cells import Cell, gravest, markdown_table, text, verified
from isobit.tools.families import joined, quantized

STORED = Path(__file__).with_name("formats.json")
"""The Table that `make status` measured last."""

WEIGHTS = (
    "int8", "int8-tensor", "int6", "int4", "int4-g32", "int4-g16", "int3-g16", "int2-g32", "ternary", "ternary-tensor",
    "binary", "pot4", "csd8k2", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "mxfp8", "mxfp6", "mxfp4", "mxfp4-rceil",
    "mxint8",
)  # fmt: skip
"""With 8-bit activations."""

PAIRS = ("e4m3", "e5m2", "e3m2", "e2m3", "mxfp8", "mxfp6", "mxfp4", "mxint8")
"""Formats of weights and of activations."""

ROWS: Mapping[str, Recipe] = {
    **{f"{name} x int8": Recipe("row", weights=name) for name in WEIGHTS},
    "int4-g32 x int4": Recipe("row", weights="int4-g32", act_bits=4),
    **{f"{name} x {name}": Recipe("row", weights=name, activations=name) for name in PAIRS},
    **{f"{name} x {name}, l-mul": Recipe("row", name, name, "l-mul") for name in ("e4m3", "e5m2")},
}
"""Weights x activations."""

MODELS = ("Mamba", "GLA", "RWKV-7"), ("MobileNetV2",)
"""Groups that are verified as one Program; their odd sizes."""

STEPS = 64

EIGHT = ("int8", "e4m3", "e5m2", "mxfp8", "mxint8")
SIX = ("e3m2", "e2m3", "mxfp6")

BARS: Mapping[str, float] = {
    "int8-tensor x int8": 1.0,
    **{f"{w} x {a}": 1.0 for w in EIGHT for a in ("int8", w)},
    **{f"{w} x {a}": 1.5 for w in SIX for a in ("int8", w)},
    "int4-g32 x int8": 2.5,
}
"""Points of accuracy that the mean over SEEDS may lose."""

MISSED: Mapping[str, list[str]] = {}
"""Tasks on which a row misses its bar, as measured: neither more nor fewer."""


class Entry(TypedDict):
    """points: by task, accuracy in integers less that in float, by seed; bits: of a weight, with its scales."""

    targets: dict[str, Cell]
    points: dict[str, list[float]]
    bits: float


Table = dict[str, Entry]


def measure(progress: Callable[[str], None] = lambda _: None) -> Table:
    """Every row on every target, and the accuracy of trained models; a process a core.

    Of a task whose data is not here, what is stored stays.
    """
    table, stored = Table(), load() if STORED.exists() else Table()
    for task in filter(is_here, TASKS):
        progress(f"{task}: {len(SEEDS)} trained models")
        for seed in SEEDS:
            TASKS[task](seed)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for name, entry in zip(ROWS, pool.map(entry_of, ROWS), strict=True):
            kept = stored[name]["points"] if name in stored else {}
            table[name] = {**entry, "points": {task: entry["points"].get(task) or kept.get(task, []) for task in TASKS}}
            progress(f"{name}: {table[name]['points']} points")
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
    lost = {task: [points(task, recipe, seed) for seed in SEEDS] for task in filter(is_here, TASKS)}
    return {"targets": targets, "points": lost, "bits": round(float(format_named(recipe.weights).bits), 2)}


NUMBERS = ("bits a weight", *(f"{task}, points" for task in TASKS))
COLUMNS = ("weights x activations", *NUMBERS, *TARGETS)


def cells(table: Table) -> Iterator[list[str]]:
    """Rows of COLUMNS as text."""
    for name, entry in table.items():
        lost = (mean(found) if found else "not measured" for found in entry["points"].values())
        yield [name, f"{entry['bits']:g}", *lost, *map(text, entry["targets"].values())]


def markdown(table: Table) -> str:
    """The table for README.md."""
    return markdown_table(COLUMNS, cells(table))


def load() -> Table:
    """The stored Table."""
    table: Table = json.loads(STORED.read_text())
    return table
