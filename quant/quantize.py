"""From a trained torch module and calibration samples to an integer Program."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from isobit.quant.calibrate.evaluate import evaluate
from isobit.quant.calibrate.observe import Calibration, check_array, check_samples, observe
from isobit.quant.capture.graph import Floats, Graph
from isobit.quant.errors import InputError
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec, input_spec, quantize_input
from isobit.quant.lower.lower import lower
from isobit.quant.lower.quantity import OUTPUT
from isobit.quant.program import Array, Arrays, Program
from isobit.quant.recipe import recipe_named

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "InputSpec",
    "Quantized",
    "input_spec",
    "layer_snr",
    "program_inputs",
    "quantize",
    "quantize_input",
    "real_samples",
    "snr",
]

Progress = Callable[[str], None]
"""Called with what is being done, for people."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """info: recipe, samples, t_max, and capture_error, max|graph - module| / max|module| on the calibration data."""

    program: Program
    graph: Graph
    calibration: Calibration
    info: dict[str, str | int | float]


def quantize(
    module: nn.Module,
    calibration: npt.ArrayLike,
    recipe: str = "w8a8",
    *,
    name: str,
    input: InputSpec | None = None,
    t_max: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Capture, calibrate and lower `module`: (B, T, channels) floats, (B, T) identifiers or (B, C, H, W) images.

    calibration: samples of that shape, in the model's own units; integers are codes of an `input` of integers.
    input: floats if None.  t_max: steps for which running sums are exact and positions known; the calibration's time if
    None.
    The same arguments give a Program with the same digest.  Raises InputError and CheckError.
    """
    from isobit.quant.capture.capture import capture, disagreement

    report = progress or (lambda stage: None)
    spec, bits = input or InputSpec(), recipe_named(recipe)
    report("capture the graph")
    shape = check_array(calibration, "calibration").shape
    graph = capture(module, shape, name, ids=len(shape) == 2)
    x = real_samples(calibration, graph, spec)
    ranges = observe(graph, x, lambda done: report(f"calibrate on {len(x)} samples: {done:.0%}"))
    error = disagreement(graph, module, x)
    report("lower and check")
    steps = x.shape[1] if t_max is None else t_max
    program = lower(graph, ranges, bits, name, spec, steps)
    return Quantized(
        program, graph, ranges, {"recipe": recipe, "samples": len(x), "t_max": steps, "capture_error": error}
    )


def real_samples(x: npt.ArrayLike, graph: Graph, spec: InputSpec, source: str = "calibration") -> Floats:
    """Samples in the model's own units, (B, T, *dims): codes of a declared input are multiplied by its scale."""
    codes, real = np.asarray(x), check_samples(x, graph, source)
    if spec.elem is None or spec.scale is None or not np.issubdtype(codes.dtype, np.integer):
        return real
    if codes.min() < spec.elem.range.lo or codes.max() > spec.elem.range.hi:
        raise InputError(
            f"{source}: values in [{codes.min()}, {codes.max()}], the input is declared {spec.elem}, {spec.elem.range}"
        )
    return real * spec.scale


def program_inputs(program: Program, x: Floats) -> Arrays:
    """The Program's input for samples x, (B, T, *dims), in the model's own units."""
    entry = program.inputs[0]
    assert entry.type.scale is not None
    codes = quantize_input(x, entry.type.scale, entry.type.elem)
    return {entry.name: codes.reshape(*x.shape[:2], *entry.type.dims)}


def layer_snr(program: Program, graph: Graph, x: Floats) -> dict[str, float]:
    """Signal-to-noise ratio in dB of every node that stands for a value of the float graph, in order.

    x: (B, T, *dims), in the model's own units.
    """
    taps: Arrays = {}
    interpret(program, program_inputs(program, x), taps=taps)
    values = evaluate(graph, x)
    result = {}
    for n in program.nodes:
        v = graph.output if n.output == OUTPUT else n.output
        v = v if v in values else re.sub(r"\.(acc|q\d+)$", "", v)
        if n.scale is not None and v in values:
            result[n.output] = snr(values[v], taps[n.output], n.scale)
    return result


def snr(real: Floats, codes: Array, scale: float) -> float:
    """10 log10 of the power of `real` over that of codes * scale - real, in dB."""
    noise = float(np.sum((codes.reshape(real.shape) * scale - real) ** 2))
    return float("inf") if noise == 0 else 10 * float(np.log10(np.sum(real**2) / noise))
