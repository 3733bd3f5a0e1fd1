"""Graph + ranges + recipe -> Program."""

from __future__ import annotations

from isobit.quant.calibrate.observe import Calibration
from isobit.quant.capture.graph import Graph
from isobit.quant.check import check
from isobit.quant.errors import CheckError, InputError
from isobit.quant.lower.edges import InputSpec
from isobit.quant.lower.quantity import Lowering
from isobit.quant.lower.rules import RULES, bits_of
from isobit.quant.program import Program
from isobit.quant.recipe import Recipe

MAX_STEPS = 1 << 16


def lower(graph: Graph, calibration: Calibration, recipe: Recipe, name: str, input: InputSpec, t_max: int) -> Program:
    """The integer Program of a float graph, checked: input `x`, output `y` of `wide_bits` bits with one scale.

    t_max: steps for which a running mean is exact, 1 to 65536.  A value is called by the path of the user's layer.
    Raises InputError, naming the layer, where the model or its ranges leave what the integers can do.
    """
    if not 1 <= t_max <= MAX_STEPS:
        raise InputError(f"t_max is {t_max}, expected 1 to {MAX_STEPS}")
    low = Lowering(graph, calibration, recipe, t_max, _asked(graph, recipe))
    entry = low.declare_input(input)
    for n in graph.nodes:
        try:
            RULES[n.op].emit(low, n)
        except CheckError as e:
            raise InputError(f"{n.loc} ({n.op}): {e}") from e
    program = low.program(name, entry)
    check(program)
    return program


def _asked(graph: Graph, recipe: Recipe) -> dict[str, set[int]]:
    """By value, the widths that its consumers ask for."""
    asked: dict[str, set[int]] = {v: set() for v in graph.channels}
    asked[graph.output].add(recipe.wide_bits)
    for n in graph.nodes:
        for v, want in zip(n.inputs, RULES[n.op].wants, strict=False):
            if want != "parameter":
                asked[v].add(bits_of(recipe, want))
    return asked
