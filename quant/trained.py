"""The Program's integers against those that Brevitas makes, at every quantizer of a Brevitas model.

Every quantizer of the Program gets what Brevitas had before it, so that each comparison is of one layer.  Brevitas
computes in float32: where its rounding errors reach the border between two integers it may choose the other one, and
each such difference is checked to be one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isobit.quant.calibrate.evaluate import EVALUATORS, Memory, evaluate
from isobit.quant.calibrate.rounding import rounded_to_codes
from isobit.quant.capture.graph import Floats, Graph, GraphNode
from isobit.quant.check import check
from isobit.quant.errors import InputError
from isobit.quant.interpret import interpret, run_node
from isobit.quant.lower.edges import quantize_for
from isobit.quant.lower.lowering import OUTPUT
from isobit.quant.program import Array, Arrays, Node, Program

if TYPE_CHECKING:
    from torch import nn

CHUNK = 1 << 12
"""Time steps, over all sequences, that are compared at once."""

FLOAT32 = 2.0**-24
"""The relative error of one operation in float32."""

OPERATIONS = 8
"""Of a quantizer, besides the terms of a sum: products with scales, a bias, a quotient, a zero point."""

SUMS = ("linear", "grouped_linear", "conv2d", "positions_conv1d", "causal_conv1d", "causal_fir")
MOVES = ("reshape", "permute", "slice", "pad", "shift", "history", "previous")
"""Operators that only move integers."""


@dataclass(frozen=True)
class Compared:
    """One quantizer: how many integers were compared, how many differ, by how much at most.

    exact: all that it reads is as in Brevitas, so that integers differ only where float32 is not enough; else a value
    before it was rounded as the recipe says, which Brevitas keeps in float.
    """

    quantizer: str
    layer: str
    values: int
    differ: int
    largest: int
    exact: bool

    @property
    def why(self) -> str:
        """The reason of differences, or of none having been looked for."""
        if not self.values:
            return "it cannot be compared: Brevitas calls it another number of times"
        return "float32 errs at borders" if self.exact else "a value before it was rounded as the recipe says"


def summary(rows: tuple[Compared, ...], weights: int) -> dict[str, str]:
    """Lines for people; weights: how many were compared, and are equal."""
    if not rows and not weights:
        return {}
    exact, rounded = ([r for r in rows if r.exact is kind] for kind in (True, False))
    lines = {"brevitas, weights": f"0 of {weights} integers differ"} if weights else {}
    if exact:
        lines["brevitas, activations"] = _sum(exact)
    if rounded:
        lines["brevitas, after values of the recipe"] = _sum(rounded)
    return lines


def _sum(rows: list[Compared]) -> str:
    differ, values, places = sum(r.differ for r in rows), sum(r.values for r in rows), len(rows)
    return f"{differ} of {values} integers differ, {places} quantizer{'s' * (places > 1)}"


def compare_weights(program: Program, graph: Graph, module: nn.Module) -> int:
    """How many weights of Brevitas layers are in the Program; InputError, naming the layer, where one differs."""
    from isobit.quant.capture.brevitas import weights

    compared = 0
    for path, codes in weights(module).items():
        for n in graph.nodes:
            of_it = n.op in SUMS and (n.loc == path or n.inputs[1].startswith(f"{path}.weight_quant.codes"))
            if not of_it or graph.parameters[n.inputs[1]].dtype.kind != "i":
                continue
            made = program.constant[f"{n.output}.weight"].array
            same = np.array_equal(made.ravel(), codes.ravel())
            if not same and not np.array_equal(_nonzero(made), _nonzero(codes)):
                raise InputError(
                    f"{path}: {made.size} weights of {n.output} are not the {codes.size} integers of Brevitas; "
                    "please report it with the layer's quantizer"
                )
            compared += codes.size
    return compared


def _nonzero(codes: Array) -> Array:
    """Of a kernel that was transposed, or spread by its dilation, what stays."""
    return np.sort(codes[codes != 0], axis=None)


def compare(program: Program, graph: Graph, module: nn.Module, x: Floats, integers: bool) -> tuple[Compared, ...]:
    """A row for every quantizer of an activation, in the order of the graph; x: (B, T, *dims), in the model's units.

    integers: whether the Program's input is declared as integers, of which x are multiples.
    Raises InputError, naming the layer, where integers differ and float32 does not explain it.
    """
    nodes = [n for n in graph.nodes if n.op == "fake_quantize"]
    if not nodes:
        return ()
    entry = program.inputs[0]
    exact = _exact(graph, entry.type.scale if integers or entry.is_trained else None)
    size = max(1, CHUNK // x.shape[1])
    parts = [_compared(program, graph, module, x[i : i + size], nodes, exact) for i in range(0, len(x), size)]
    return tuple(
        replace(rows[0], values=sum(r.values for r in rows), differ=sum(r.differ for r in rows),
                largest=max(r.largest for r in rows))
        for rows in zip(*parts, strict=True)
    )  # fmt: skip


def _exact(graph: Graph, input_scale: float | None) -> dict[str, tuple[float, ...]]:
    """Quantizers that read integers of quantizers, moved, compared, or in sums with integer weights: their scales.

    input_scale: of the Program's input, where the module's input is a multiple of it.
    """
    held = {n.output: n.number("scale") for n in graph.nodes if n.op == "fake_quantize"}
    held |= {graph.input: input_scale} if input_scale is not None else {}
    sums: set[str] = set()
    for n in graph.nodes:
        scales = {held[i] for i in n.inputs if i in held}
        values = [i for i in n.inputs if i not in graph.parameters]
        if not scales or not all(i in held for i in values) or n.op == "fake_quantize":
            continue
        if n.op in MOVES or (n.op in ("maximum", "concat") and len(scales) == 1) or n.attr.get("how") == "max":
            held[n.output] = min(scales)
        elif n.op in SUMS:
            if graph.parameters[n.inputs[1]].dtype.kind == "i":
                sums.add(n.output)
        elif n.op == "reduce" or (n.op in ("add", "sub") and _only_quantized(graph, n.output)):
            sums.add(n.output)
    reads = {
        n.output: n.inputs[0] for n in graph.nodes if n.op == "fake_quantize" and n.inputs[0] in held.keys() | sums
    }
    made = {n.output: n for n in graph.nodes}
    return {q: tuple(held[i] for i in (made[v].inputs if v in sums else (v,)) if i in held) for q, v in reads.items()}


def _only_quantized(graph: Graph, v: str) -> bool:
    return {n.op for n in graph.nodes if v in n.inputs} == {"fake_quantize"} and v != graph.output


def _compared(
    program: Program,
    graph: Graph,
    module: nn.Module,
    x: Floats,
    nodes: list[GraphNode],
    exact: dict[str, tuple[float, ...]],
) -> list[Compared]:
    expected = dict(_of_brevitas(graph, module, x, nodes))
    checked, entry = check(program), program.inputs[0]
    places = {n.output: OUTPUT if n.output == graph.output else n.output for n in nodes}
    made = {n.output: n for n in program.nodes}
    inputs = {entry.name: quantize_for(entry, x).reshape(*x.shape[:2], *entry.type.dims)}
    rows, forced = [], Arrays()
    for n in nodes:
        place, codes = places[n.output], expected[n.output]
        whole = codes is not None and codes.shape[1] == x.shape[1]
        if codes is not None and whole and place in made and not set(made[place].inputs) & set(program.state):
            forced[place] = codes.reshape(*x.shape[:2], *checked.types[place].dims)
    reads_input = [n for n in nodes if places[n.output] not in made]
    given = dict(inputs)
    for n in reads_input:
        codes = expected[n.output]
        assert codes is not None
        given[entry.name] = codes.reshape(inputs[entry.name].shape)
    taps = Arrays()
    interpret(program, given, taps=taps, forced=forced)
    values = given | taps
    for n in nodes:
        place, codes = places[n.output], expected[n.output]
        if codes is None:
            rows.append(Compared(n.text("quantizer"), n.loc, 0, 0, 0, n.output in exact))
            continue
        got = inputs[entry.name] if place not in made else run_node(checked, made[place], values)
        got = taps[place] if got is None else got
        got = got.reshape(*x.shape[:2], -1)[:, -codes.shape[1] :]
        codes = codes.reshape(got.shape)
        difference = np.abs(got - codes)
        differ = int((difference > 0).sum())
        if differ and n.output in exact and place in made:
            _explain(program, graph, n, made[place], values, x, got, codes, exact[n.output])
        largest = int(difference.max(initial=0))
        rows.append(Compared(n.text("quantizer"), n.loc, got.size, differ, largest, n.output in exact))
    return rows


def _of_brevitas(
    graph: Graph, module: nn.Module, x: Floats, nodes: list[GraphNode]
) -> Iterator[tuple[str, Array | None]]:
    """By value of the graph, Brevitas' codes without their zero point, (B, T or 1, n); None where there are none."""
    import torch

    from isobit.quant.capture.brevitas import recorded

    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    given = torch.from_numpy(x if graph.timed else x[:, 0])
    with recorded(module) as made, torch.no_grad():
        module.eval()(given.long() if graph.vocabulary else given.to(dtype))
    for n in nodes:
        same = [m.output for m in nodes if m.text("quantizer") == n.text("quantizer")]
        calls: list[Any] = made.get(n.text("quantizer"), [])[same.index(n.output) :: len(same)]
        arrays = [c.value.double().numpy() for c in calls]
        size, time = int(np.prod(graph.dims[n.output])), n.integer("time")
        if len(arrays) == 1 and arrays[0].size == len(x) * x.shape[1] * size and time >= 0:
            real = np.moveaxis(arrays[0], time, 1)
        elif len(arrays) == 1 and arrays[0].size == len(x) * size:
            real = arrays[0][:, None]
        elif len(arrays) == x.shape[1] and all(a.size == len(x) * size for a in arrays):
            real = np.stack(arrays, 1)
        else:
            yield n.output, None
            continue
        nearest = replace(n, attrs=tuple((k, "half_even" if k == "rounding" else v) for k, v in n.attrs))
        codes = rounded_to_codes(nearest, real).astype(np.int64) - n.integer("zero")
        yield n.output, codes.reshape(len(x), real.shape[1], -1)


def _explain(
    program: Program, graph: Graph, n: GraphNode, node: Node, values: Arrays, x: Floats, got: Array, expected: Array,
    scales: tuple[float, ...],
) -> None:  # fmt: skip
    """Raises InputError unless every difference lies at a border between two integers, as near as float32 errs.

    scales: of what is summed; where all are powers of two, and sums short, it does not err.
    """
    operand = values[node.inputs[0]].astype(np.float64)
    per_channel = len(node.inputs) > 1
    m, b = (
        (program.constant[i].array.astype(np.float64) for i in node.inputs[1:])
        if per_channel
        else (np.float64(node.param["m"]), np.float64(node.param["b"]))
    )
    axes = [node.labels.inputs[0].index(k) + 1 for k in node.labels.inputs[1]] if per_channel else []
    shape = [operand.shape[a] if a in axes else 1 for a in range(operand.ndim)] if per_channel else []
    m, b = (np.reshape(v, shape) for v in (m, b))
    unit = 2.0 ** -node.param["s"]
    u = ((operand * m + b) * unit).reshape(*x.shape[:2], -1)[:, -got.shape[1] :]
    error = (
        _magnitude(graph, n, x)[:, -got.shape[1] :] * FLOAT32
        + np.abs(operand).reshape(u.shape[0], -1, u.shape[2])[:, -got.shape[1] :] * unit
    )
    border = {
        "floor": np.maximum(got, expected),
        "ceil": np.minimum(got, expected),
        "to_zero": np.where(np.abs(got) > np.abs(expected), got, expected),
    }.get(n.text("rounding"), (got + expected) / 2)
    errs = not _is_exact_in_float32(m, b, (*scales, n.number("scale")), operand)
    excused = errs & (np.abs(u - border) <= error)
    wrong = np.argwhere((got != expected) & ~excused)
    if len(wrong):
        first = tuple(wrong[0])
        raise InputError(
            f"{n.loc}: {len(wrong)} of {got.size} integers differ from Brevitas' and are not at a border between two; "
            f"the first at {tuple(map(int, first))}: {expected[first]} in Brevitas, {got[first]} here, of "
            f"{u[first]:.9g} steps. Please report it with the layer's quantizers"
        )


def _is_exact_in_float32(m: Floats, b: Floats, scales: tuple[float, ...], operand: Floats) -> bool:
    """Whether scales and multipliers are powers of two, nothing is added, and all integers fit 24 bits."""
    powers = np.frexp(np.abs(np.concatenate([np.ravel(m), scales])))[0] == 0.5
    return bool(powers.all() and not b.any() and np.abs(operand).max(initial=0) < 1 << 24)


def _magnitude(graph: Graph, n: GraphNode, x: Floats) -> Floats:
    """How many errors of float32, in steps of the quantizer, a value before it may have: the sum of its terms'
    magnitudes times their number; (B, T, n)."""
    real, unit = evaluate(graph, x), n.number("scale")
    source = next((m for m in graph.nodes if m.output == n.inputs[0]), None)
    size, terms = real[n.inputs[0]], 1
    if source is not None and source.op in SUMS:
        weight, *bias = (np.abs(graph.parameters[i]) for i in source.inputs[1:])
        terms += weight.size // weight.shape[0]
        size = EVALUATORS[source.op](source, [np.abs(real[source.inputs[0]]), weight, *bias], Memory(), _ignore)
    elif source is not None and source.op == "reduce":
        terms += int(np.prod(graph.dims[source.inputs[0]])) // int(np.prod(graph.dims[source.output]))
        size = EVALUATORS[source.op](source, [np.abs(real[source.inputs[0]])], Memory(), _ignore)
    elif source is not None and source.op in ("add", "sub"):
        size = np.abs(real[source.inputs[0]]) + np.abs(real[source.inputs[1]])
    gain, shift = (np.abs(graph.parameters[i]) for i in n.inputs[1:])
    steps = (np.abs(size) * gain + shift) / unit + abs(n.integer("zero")) + 1
    return np.asarray(steps * (terms + OPERATIONS)).reshape(*x.shape[:2], -1)


def _ignore(name: str, array: Floats) -> None:
    pass
