"""From a trained torch module and calibration samples to an integer Program."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from isobit.quant.calibrate.evaluate import evaluate
from isobit.quant.calibrate.observe import Calibration, check_array, check_samples, observe
from isobit.quant.capture.graph import Floats, Graph
from isobit.quant.check import check
from isobit.quant.errors import InputError
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec, input_spec, quantize_for, quantize_input
from isobit.quant.lower.lower import lower
from isobit.quant.lower.lowering import OUTPUT
from isobit.quant.program import Array, Arrays, Program
from isobit.quant.recipe import Recipe, recipe_named
from isobit.quant.trained import Compared, compare, compare_weights, summary

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "InputSpec",
    "Quantized",
    "agreement",
    "input_spec",
    "layer_snr",
    "program_inputs",
    "quantize",
    "quantize_input",
    "real_samples",
    "snr",
]

NOISE = 3
"""Random samples on which the float graph is compared with the module, besides the calibration data."""

Progress = Callable[[str], None]
"""Called with what is being done, for people."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """info: recipe, samples, t_max, and capture_error, max|graph - module| / max|module|.

    The latter is the larger one of that on the calibration data and that on random inputs like them.
    trained: of a Brevitas model, for each of its quantizers, how its integers and the Program's compare.
    """

    program: Program
    graph: Graph
    calibration: Calibration
    info: dict[str, str | int | float]
    trained: tuple[Compared, ...] = ()


def quantize(
    module: nn.Module,
    calibration: npt.ArrayLike,
    recipe: str | Recipe = "w8a8",
    *,
    name: str,
    input: InputSpec | None = None,
    t_max: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Capture, calibrate and lower `module`: (B, T, channels) floats, (B, T) identifiers or (B, C, H, W) images.

    calibration: samples of that shape, in the model's own units; integers are codes of an `input` of integers.
    recipe: a name of RECIPES, or widths of your own.
    input: floats if None.  t_max: steps for which running sums are exact and positions known; the calibration's time if
    None.
    The same arguments give a Program with the same digest.  Raises InputError and CheckError.
    """
    from isobit.quant.capture.brevitas import example, without_quantizers
    from isobit.quant.capture.capture import capture, disagreement, random_inputs

    report = progress or (lambda stage: None)
    spec, bits = input or InputSpec(), recipe if isinstance(recipe, Recipe) else recipe_named(recipe)
    report("capture the graph")
    given = check_array(calibration, "calibration")
    shape = given.shape
    plain = without_quantizers(module, example(module, given))
    graph = capture(plain, shape, name, ids=len(shape) == 2)
    x = real_samples(calibration, graph, spec)
    ranges = observe(graph, x, lambda done: report(f"calibrate on {len(x)} samples: {done:.0%}"))
    noise = random_inputs(graph, (NOISE, x.shape[1]), like=x)
    error = max(disagreement(graph, plain, x), disagreement(graph, plain, noise, "random inputs like them"))
    report("lower and check")
    steps = x.shape[1] if t_max is None else t_max
    program = lower(graph, ranges, bits, name, spec, steps)
    report("compare with the model's quantizers")
    trained, weights = compare(program, graph, module, x, spec.elem is not None), compare_weights(program, graph, plain)
    info: dict[str, str | int | float] = {
        "recipe": bits.name, "samples": len(x), "t_max": steps, "capture_error": error, **summary(trained, weights),
    }  # fmt: skip
    return Quantized(program, graph, ranges, info, trained)


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
    codes = quantize_for(entry, x)
    return {entry.name: codes.reshape(*x.shape[:2], *entry.type.dims)}


DISCRETE = ("heaviside", "sign", "top_k")
"""Operators of the float graph that decide: a decision is 0 or 1, or, of a sign, -1."""


def decisions(graph: Graph, values: Mapping[str, Floats]) -> Arrays:
    """The float model's decisions, by the name of the Program's node that makes each: int64 (B, T, *dims)."""
    return {n.output: values[n.output].astype(np.int64) for n in graph.nodes if n.op in DISCRETE}


def agreement(program: Program, graph: Graph, x: Floats) -> float | None:
    """The share of the decisions that the Program makes as the float model does; None where there are none.

    x: (B, T, *dims), in the model's own units.
    """
    if not any(n.op in DISCRETE for n in graph.nodes):
        return None
    taps: Arrays = {}
    expected = decisions(graph, evaluate(graph, x))
    interpret(program, program_inputs(program, x), taps=taps)
    equal = [int(np.sum(taps[name].reshape(e.shape) == e)) for name, e in expected.items()]
    return sum(equal) / sum(e.size for e in expected.values())


def layer_snr(program: Program, graph: Graph, x: Floats, forced: bool = False) -> dict[str, float]:
    """Signal-to-noise ratio in dB of every node that stands for a value of the float graph, in order.

    x: (B, T, *dims), in the model's own units.  forced: decisions are the float model's.
    """
    taps: Arrays = {}
    values = evaluate(graph, x)
    given = {}
    if forced:
        shapes = check(program).types
        given = {k: v.reshape(*v.shape[:2], *shapes[k].dims) for k, v in decisions(graph, values).items()}
    interpret(program, program_inputs(program, x), taps=taps, forced=given)
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
