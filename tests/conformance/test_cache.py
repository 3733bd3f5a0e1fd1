"""Caches of 4 and 2 bits: the same integers on every target, rings of fewer bytes, and what the bits cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isobit.quant.calibrate.observe import check_samples
from isobit.quant.huggingface.load import load_folder
from isobit.quant.program import Arrays, Program
from isobit.quant.quantize import Quantized, layer_snr, program_inputs, quantize
from isobit.quant.recipe import Recipe
from isobit.quant.vectors import golden
from isobit.targets.gpu.driver import NO_GPU
from isobit.targets.target import TARGETS
from isobit.targets.verify import EXACT, NOT_RUN, verify
from isobit.tools.families import SIZES, noise, quantized, shape_of
from tests.families import assert_exact
from tests.spec.test_huggingface import CASES, T_MAX, VOCABULARY, silent, written

TOOLS = pytest.mark.needs("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")
QUICK = ["interpret", "ort", "c"]
STEPS = 64
HYBRIDS = ("bamba", "qwen3_next odd")
"""Folders with layers of attention; the second with groups of 7 channels, no multiple of a byte's codes."""

both_widths = pytest.mark.parametrize("bits", [4, 2])
each_size = pytest.mark.parametrize("size", SIZES)


def hybrid(size: str, bits: int, **own: str | int) -> Quantized:
    recipe = Recipe(f"kv{bits}", cache_bits=bits, **own)  # type: ignore[arg-type]
    return quantized("Hybrid", size, recipe, steps=STEPS, calibration=8)


def ring_bytes(program: Program) -> int:
    """Of the keys and values of attention."""
    rings = [s.type for s in program.states if ".attention." in s.name]
    return sum(t.bytes for t in rings)


@pytest.mark.needs("gcc")
@both_widths
@each_size
def test_the_hybrid_is_exact(size: str, bits: int) -> None:
    assert_exact({"Hybrid": hybrid(size, bits)}, size, QUICK)


@pytest.mark.slow
@TOOLS
@both_widths
@each_size
def test_the_hybrid_is_exact_on_every_target(size: str, bits: int) -> None:
    assert_exact({"Hybrid": hybrid(size, bits)}, size, [*TARGETS])


@pytest.mark.slow
@TOOLS
@both_widths
@pytest.mark.parametrize("own", [{"act_bits": 16}, {"activations": "e5m2"}, {"wide_bits": 8}], ids=str)
def test_other_operands_are_exact_on_every_target(own: dict[str, str | int], bits: int) -> None:
    """Sums of 64 bits, windows of 34 bits, and values of 8 bits before they are codes."""
    assert_exact({"Hybrid": hybrid("odd", bits, **own)}, "odd", [*TARGETS])


FLOORS = {"tiny": {0: 28, 4: 21, 2: 9}, "odd": {0: 28, 4: 20, 2: 8}}
"""Of what attention gives, in dB, 1 to 2 below what was measured."""

BYTES = {"tiny": {0: 240, 4: 150, 2: 90}, "odd": {0: 504, 4: 288, 2: 180}}
"""tiny: 15 steps of one group of 8 channels; odd: 6 steps of 3 groups of 14; with 2 bytes per token and group."""


@pytest.mark.parametrize("bits", [0, 4, 2])
@each_size
def test_bytes_of_the_rings_and_noise(size: str, bits: int) -> None:
    q = hybrid(size, bits)
    assert ring_bytes(q.program) == BYTES[size][bits]
    x = check_samples(noise(shape_of("Hybrid", size), 0, STEPS), q.graph, "noise")
    ratios = layer_snr(q.program, q.graph, x)
    attention = ratios["_1.attn.attention.mixed"]
    print(f"{size}, {bits} bits: {ring_bytes(q.program)} B, attention {attention:.1f} dB, output {ratios['y']:.1f} dB")
    assert attention >= FLOORS[size][bits]


def folder(name: str, bits: int, path: Path) -> tuple[Program, list[Arrays]]:
    """A folder's Program, and real identifiers."""
    _, kind, settings = next(c for c in CASES if c[0] == name)
    written(path, kind, settings)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (4, 16))
    made = quantize(load_folder(path, T_MAX, silent), ids, Recipe("r", cache_bits=bits), name="model")
    return made.program, [program_inputs(made.program, ids[:1].astype(np.float64))]


def assert_folder_exact(name: str, bits: int, targets: list[str], path: Path) -> None:
    program, (real,) = folder(name, bits, path)
    assert any(n.op == "cache_code" for n in program.nodes)
    for r in verify(program, targets, list(golden(program, real, steps=6))).rows:
        compiled = r.target == "gpu" and (r.status, r.reason) == (NOT_RUN, NO_GPU)
        assert compiled or r.status == EXACT, f"{r.target}: {r.reason}\n{r.divergence}"


@pytest.mark.needs("gcc")
@both_widths
def test_a_folder_is_exact(bits: int, tmp_path: Path) -> None:
    assert_folder_exact(HYBRIDS[0], bits, QUICK, tmp_path)


@pytest.mark.slow
@TOOLS
@both_widths
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_folder_is_exact_on_every_target(name: str, bits: int, tmp_path: Path) -> None:
    assert_folder_exact(name, bits, [*TARGETS], tmp_path)
