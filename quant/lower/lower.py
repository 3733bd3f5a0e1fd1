"""Graph + ranges + recipe -> Program."""

from __future__ import annotations

from dataclasses import replace

from isobit.quant.calibrate.evaluate import FORWARD
from isobit.quant.calibrate.observe import Calibration
from isobit.quant.capture.graph import Graph, GraphNode
from isobit.quant.certificates.search import certified_bits, certify
from isobit.quant.check import check
from isobit.quant.errors import CheckError, InputError
from isobit.quant.lower.edges import InputSpec
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.modes import MODES
from isobit.quant.lower.quantity import UNIT, WIDE_BITS, Form, letters
from isobit.quant.lower.rules import RULES
from isobit.quant.program import Program
from isobit.quant.recipe import CERTIFIED, Recipe

MAX_STEPS = 1 << 16

OWN_STATE = ("diagonal_recurrence", "convex_recurrence")
"""Operators whose value is their state: nothing else needs to hold it for the next step."""


def lower(graph: Graph, calibration: Calibration, recipe: Recipe, name: str, input: InputSpec, t_max: int) -> Program:
    """The integer Program of a float graph, checked: input `x`, output `y` of `wide_bits` bits with one scale.

    t_max: steps for which running sums are exact and positions known, 1 to 65536.  A value is called by the path of the
    user's layer.
    Raises InputError, naming the layer, where the model or its ranges leave what the integers can do.
    """
    if not 1 <= t_max <= MAX_STEPS:
        raise InputError(f"t_max is {t_max}, expected 1 to {MAX_STEPS}")
    recipe.check_layers(n.loc for n in graph.nodes)
    program = _lowered(graph, calibration, recipe, name, input, t_max, {})
    certificates = certify(program)
    widths = certified_bits(program)
    if wider := {k: bits for k, (loc, bits) in widths.items() if recipe.at(loc).state_bits == CERTIFIED}:
        program = _lowered(graph, calibration, recipe, name, input, t_max, wider)
        certificates = certify(program)
    return replace(program, certificates=certificates)


def _lowered(
    graph: Graph,
    calibration: Calibration,
    recipe: Recipe,
    name: str,
    input: InputSpec,
    t_max: int,
    certified: dict[str, int],
) -> Program:
    """certified: widths of states that their certificates ask for."""
    low = Lowering(graph, calibration, recipe, t_max, _asked(graph, recipe), certified)
    entry = low.declare_input(input)
    last = _last_readers(graph)
    low.own_state = {n.output for i, n in enumerate(graph.nodes) if n.op in OWN_STATE and last.get(n.output, i) <= i}
    for i, n in enumerate(graph.nodes):
        low.recipe = recipe.at(n.loc)
        try:
            MODES[low.recipe.nonlinear].get(n.op, RULES[n.op].emit)(low, n)
            for v in (v for v in reversed(last) if last[v] == i and v not in low.own_state):
                _hold(low, low.producer[v])
        except CheckError as e:
            raise InputError(f"{n.loc} ({n.op}): {e}") from e
    low.recipe = recipe
    program = low.program(name, entry)
    check(program)
    return program


MOVES = ("scale", "reshape", "permute", "slice")
"""Operators whose result may be their operand itself, seen otherwise."""


def _last_readers(graph: Graph) -> dict[str, int]:
    """By value that the next step reads: the last node that reads it as it was before, or makes it.

    What is itself an older value comes later in the result, and of those with one last reader it is to be held first.
    """
    place = {n.output: i for i, n in enumerate(graph.nodes)}
    origin: dict[str, str] = {}
    last: dict[str, int] = {}
    for i, n in enumerate(graph.nodes):
        if n.op == "previous":
            origin[n.output] = n.inputs[0]
            last[n.inputs[0]] = max(last.get(n.inputs[0], 0), i, place[n.inputs[0]])
            continue
        for v in n.inputs:
            if v in origin:
                last[origin[v]] = max(last[origin[v]], i)
                if n.op in MOVES:
                    origin[n.output] = origin[v]
    return _older_first(graph, last, origin)


def _older_first(graph: Graph, last: dict[str, int], origin: dict[str, str]) -> dict[str, int]:
    """`last`, where a value that is an older one is held before this is."""
    age = {v: _age(graph, v, origin) for v in last}
    ordered = sorted(last, key=age.__getitem__)
    for v in reversed(ordered):
        if v in origin:
            last[origin[v]] = max(last[origin[v]], last[v])
    return {v: last[v] for v in ordered}


def _age(graph: Graph, v: str, origin: dict[str, str]) -> int:
    """How many steps ago the value was computed."""
    line = [v]
    while line[-1] in origin:
        if origin[line[-1]] in line:
            loc = next(n.loc for n in graph.nodes if n.output == v)
            raise InputError(
                f"{loc}: {len(line)} states of a loop over time change places at every step, and nothing new is "
                "computed, which is not supported: compute one of them from something else"
            )
        line.append(origin[line[-1]])
    return len(line) - 1


def _hold(low: Lowering, n: GraphNode) -> None:
    """The value becomes what the next step reads."""
    past, value = low.held[n.output], low.quantities[n.output]
    bits, axes = past.known.bits, letters(len(past.dims))
    if not value.settled or value.unit != past.unit or value.known not in past.known:
        value = low.at(n.output, past.unit, bits, f"{n.output}.kept", n.loc)
    index = f"t{axes}->t{axes}|{axes}"
    low.node("hold", index, (value,), f"{n.output}.held", n.loc, {"acc": 32}, past.unit, past.value)


def _asked(graph: Graph, recipe: Recipe) -> dict[str, set[Form]]:
    """By value, the forms that its consumers ask for; an operator that only moves values hands on what it is asked."""
    asked: dict[str, set[Form]] = {v: set() for v in graph.dims}
    asked[graph.output].add(recipe.wide_bits)
    for n in graph.nodes:
        if n.op in FORWARD:
            bits = _forms(recipe.at(n.loc))
            for v, want in zip(n.inputs, RULES[n.op].wants, strict=False):
                if want in bits:
                    asked[v].add(bits[want])
    for n in reversed(graph.nodes):
        wants, bits = RULES[n.op].wants, _forms(recipe.at(n.loc))
        for i, v in enumerate(n.inputs):
            want = wants[min(i, len(wants) - 1)]
            if want == "same" or (want == "cached" and not recipe.at(n.loc).cache_bits):
                asked[v] |= asked[n.output]
            elif want in bits and v in asked:
                asked[v].add(bits[want])
    return asked


def _forms(recipe: Recipe) -> dict[str, Form]:
    """What the words of a rule's `wants` mean."""
    widths = {"act": recipe.act_bits, "wide": recipe.wide_bits, "state": recipe.held_bits}
    operand = WIDE_BITS if recipe.blocks else recipe.operand
    return {**widths, "operand": operand, "unit": UNIT, "cached": recipe.wide_bits}
