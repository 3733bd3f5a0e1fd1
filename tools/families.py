"""The zoo's families: exact on every target at W8A8, and how far their integers are from the float model.

A family is measured at two sizes, tiny and odd.  The signal is standard normal noise: SEQUENCES sequences of STEPS
steps, or as many pixels of images; the scales come from CALIBRATION sequences of other noise.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypedDict

import numpy as np

from isobit.quant.calibrate.observe import check_samples
from isobit.quant.capture.graph import Floats
from isobit.quant.ops import OPS, RECURRENCE
from isobit.quant.program import Arrays, Program
from isobit.quant.quantize import Quantized, agreement, layer_snr, program_inputs, quantize
from isobit.quant.recipe import Recipe
from isobit.quant.vectors import Vectors, golden, join, prefixed
from isobit.quant.zoo.families import FAMILIES
from isobit.quant.zoo.family import Shape
from isobit.targets.target import TARGETS
from isobit.tools.cells import Cell, gravest, markdown_table, text, verified

STORED = Path(__file__).with_name("families.json")
"""The Table that `make status` measured last."""

SIZES = ("tiny", "odd")
SEQUENCES, STEPS, SEEDS = 8, 256, (0, 1, 2)

BARS: Mapping[str, float] = {"w8a8": 15.0, "w8a16": 32.0}
"""Least signal-to-noise ratio in dB, over all outputs, by recipe."""

NARROW = "w8a8"
"""The recipe of the figures that the table shows once."""

CALIBRATION = 64
"""Sequences: a model may do on its first step what it never does again (TTT-Linear's largest update), once in each."""

OTHER = 1000
"""What is added to a seed for the noise that the scales come from."""

GOLDEN_STEPS = 8
"""Of a sequence's golden vectors; an image is one step and has a quarter of them."""


class Figures(TypedDict):
    """snr: of all outputs in dB, decisions as the float model makes them.  recurrence: the least of a recurrence's, for
    an output may hide one (Mamba's, at first, adds little to it).  agreement: the share of equal decisions.
    """

    snr: float
    recurrence: float | None
    agreement: float | None


class Entry(TypedDict):
    """By target, and by recipe: the least of each figure over SEEDS."""

    targets: dict[str, Cell]
    fidelity: dict[str, Figures]


Table = dict[str, dict[str, Entry]]
"""family -> size -> what was measured."""


def shape_of(family: str, size: str) -> Shape:
    return FAMILIES[family].sizes()[SIZES.index(size)][1]


def noise(shape: Shape, seed: int, steps: int = STEPS, sequences: int = SEQUENCES) -> Floats:
    """N(0, 1) in float32's values: (sequences, steps, channels), or images of as many pixels, `sequences` at least."""
    dims = tuple(int(d) for d in shape if d != "T")
    timed = dims != shape
    full = (sequences, steps, *dims) if timed else (sequences * max(1, steps // (dims[1] * dims[2])), *dims)
    return np.random.default_rng(seed).normal(size=full).astype(np.float32).astype(np.float64)


def slug(family: str) -> str:
    """A family's name in generated code."""
    return re.sub(r"[^a-z0-9]+", "_", family.lower())


def quantized(
    family: str,
    size: str,
    recipe: str | Recipe = "w8a8",
    seed: int = 0,
    steps: int = STEPS,
    calibration: int = CALIBRATION,
) -> Quantized:
    """The model of the zoo, with the weights that torch draws after `seed`, as integers; calibration: sequences."""
    import torch

    make, shape = FAMILIES[family].sizes()[SIZES.index(size)]
    torch.manual_seed(seed)
    return quantize(make().eval(), noise(shape, seed + OTHER, steps, calibration), recipe, name=slug(family))


def fidelity(made: Quantized, shape: Shape, seed: int = 0, steps: int = STEPS) -> Figures:
    """The integers against the float model, on noise that the scales do not come from."""
    x = check_samples(noise(shape, seed, steps), made.graph, "noise")
    ratios = layer_snr(made.program, made.graph, x, forced=True)
    made_by_recurrences = recurrences(made.program)
    return {
        "snr": ratios["y"],
        "recurrence": min((r for k, r in ratios.items() if _value(k) in made_by_recurrences), default=None),
        "agreement": agreement(made.program, made.graph, x),
    }


def recurrences(program: Program) -> set[str]:
    """The float model's values that recurrences make, and those that a step hands to the next one."""
    made = {n.output for n in program.nodes if OPS[n.op].structure is RECURRENCE}
    held = {n.inputs[0] for n in program.nodes if n.op == "hold"}
    return {_value(name) for name in made | held}


def _value(name: str) -> str:
    """Of which value of the float model a node's output is a form."""
    return re.sub(r"\.(acc|kept|q\d+)$", "", name)


def _least(figures: Iterable[float | None]) -> float | None:
    return min((f for f in figures if f is not None), default=None)


def worst(family: str, size: str, recipe: str) -> Figures:
    """The least of each figure over SEEDS, rounded."""
    found = [fidelity(quantized(family, size, recipe, seed), shape_of(family, size), seed) for seed in SEEDS]
    within, shares = (_least(f[figure] for f in found) for figure in ("recurrence", "agreement"))
    return {
        "snr": round(min(f["snr"] for f in found), 1),
        "recurrence": None if within is None else round(within, 1),
        "agreement": None if shares is None else round(shares, 4),
    }


def real_input(made: Quantized, shape: Shape) -> Arrays:
    """One sequence of noise, or one image, as the Program's integers."""
    return program_inputs(made.program, check_samples(noise(shape, 0, GOLDEN_STEPS)[:1], made.graph, "noise"))


def golden_steps(shape: Shape) -> int:
    return GOLDEN_STEPS if "T" in shape else GOLDEN_STEPS // 4


@dataclass(frozen=True)
class Joined:
    """One Program of a group's, every name led by its family's, and its golden vectors."""

    program: Program
    vectors: list[Vectors]


def joined(made: dict[str, Quantized], size: str) -> Joined:
    program = join("families", [prefixed(q.program, slug(family)) for family, q in made.items()])
    real: Arrays = {}
    for family, q in made.items():
        real |= {f"{slug(family)}.{k}": x for k, x in real_input(q, shape_of(family, size)).items()}
    steps = golden_steps(shape_of(next(iter(made)), size))
    return Joined(program, list(golden(program, real, steps)))


def measure(progress: Callable[[str], None] = lambda _: None) -> Table:
    """Both sizes of every family: verified on every target, and compared with the float model; a process a core."""
    cases = [(family, size) for family in FAMILIES for size in SIZES]
    table: Table = {family: {} for family in FAMILIES}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for (family, size), entry in zip(cases, pool.map(entry_of, *zip(*cases, strict=True)), strict=True):
            progress(f"{family}, {size}: {entry['fidelity']}")
            table[family][size] = entry
    return table


def entry_of(family: str, size: str) -> Entry:
    """What is measured of one model."""
    made, shape = quantized(family, size), shape_of(family, size)
    vectors = list(golden(made.program, real_input(made, shape), golden_steps(shape)))
    targets = {name: verified(made.program, name, vectors) for name in TARGETS}
    return {"targets": targets, "fidelity": {recipe: worst(family, size, recipe) for recipe in BARS}}


NUMBERS = (*(f"{recipe}, dB" for recipe in BARS), "recurrence, dB", "decisions")
COLUMNS = ("family", *NUMBERS, *TARGETS)


def cells(table: Table) -> Iterator[list[str]]:
    """Rows of COLUMNS as text: the worse of both sizes."""
    for family, sizes in table.items():
        entries = list(sizes.values())
        ratios = [f"{min(e['fidelity'][recipe]['snr'] for e in entries):.1f}" for recipe in BARS]
        within, shares = (
            _least(e["fidelity"][NARROW][figure] for e in entries) for figure in ("recurrence", "agreement")
        )
        numbers = (
            *ratios,
            "" if within is None else f"{within:.1f}",
            "" if shares is None else f"{100 * shares:.1f} %",
        )
        yield [family, *numbers, *(text(gravest(e["targets"][name] for e in entries)) for name in TARGETS)]


def markdown(table: Table) -> str:
    """The table for README.md."""
    return markdown_table(COLUMNS, cells(table))


def load() -> Table:
    """The stored Table."""
    table: Table = json.loads(STORED.read_text())
    return table
