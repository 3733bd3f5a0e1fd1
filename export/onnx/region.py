"""Nodes that feed back as a Scan over time: its body calls their functions on one step after the other.

A value `v` of the program is `v@t` in the body, (B, 1, *shape), and `v@steps` where the Scan stacks it, (T, B, 1,
*shape).  A state `s`, (B, *shape), is `s@old` before the step, `s@new` after it, and `s@t` as an operand.  Constants
come from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import helper

from isobit.export.onnx.body import Body, element
from isobit.export.onnx.functions import Functions, next_name, operands
from isobit.quant.program import Node, Program, TensorType

NOW, OLD, NEW, STEPS = "@t", "@old", "@new", "@steps"
MARK = "@"
"""In no name of a program that feeds back."""

PLUMBING = ("Constant", "Squeeze", "Transpose", "Unsqueeze")
"""What stands beside calls in a graph or in the body of a region."""


def append_region(graph: Body, nodes: Sequence[Node], functions: Functions) -> None:
    """Append the Scan of `nodes`; the values that the rest of the program reads come out under their own names."""
    program, types = functions.checked.program, functions.checked.types
    owned = [n.state for n in nodes if n.state]
    read = list(dict.fromkeys(i for n in nodes for i in operands(n, program)))
    inside = {n.output for n in nodes}
    outside = [i for i in read if not (i in inside or i in program.constant or i in program.state)]
    outside = outside or [program.inputs[0].name]
    later = {i for n in program.nodes if n.output not in inside for i in operands(n, program)} | set(program.outputs)
    used = [n.output for n in nodes if n.output in later]
    step = Body([], f"{MARK}t")
    for s in owned:
        if s in read:
            step.op("Unsqueeze", s + OLD, step.constant([1]), output=s + NOW)
    for n in nodes:
        names = [i if i in program.constant else i + NOW for i in operands(n, program)]
        held, left = ([n.state + OLD], [n.state + NEW]) if n.state else ([], [])
        step.nodes.append(functions.call(n, names + held, [n.output + NOW, *left], one_step=True))
    body = helper.make_graph(
        step.nodes,
        "step",
        [*(_held(s, OLD, program) for s in owned), *(_now(i, types[i]) for i in outside)],
        [*(_held(s, NEW, program) for s in owned), *(_now(i, types[i]) for i in used)],
        value_info=[_now(n.output, types[n.output]) for n in nodes if n.output not in used],
    )
    rows = [_time_first(graph, graph.op("Unsqueeze", i, graph.constant([2])), len(types[i].dims)) for i in outside]
    scan = helper.make_node(
        "Scan",
        [*owned, *rows],
        [*(next_name(s) for s in owned), *(name + STEPS for name in used)],
        name=f"{nodes[0].output}..{nodes[-1].output}",
        body=body,
        num_scan_inputs=len(rows),
    )
    graph.nodes.append(scan)
    for name in used:
        _come_out(graph, name, len(types[name].dims))


def _come_out(graph: Body, name: str, dims: int) -> None:
    """What the Scan stacked as a value of the graph, of so many axes besides batch and time."""
    graph.op("Squeeze", _time_first(graph, name + STEPS, dims), graph.constant([2]), output=name)


def _time_first(graph: Body, x: str, dims: int) -> str:
    """x (B, T, 1, ...) with its first two axes exchanged."""
    return graph.op("Transpose", x, perm=[1, 0, *range(2, 3 + dims)])


def _now(name: str, t: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name + NOW, element(t), ["B", 1, *t.dims])


def _held(state: str, when: str, program: Program) -> onnx.ValueInfoProto:
    t = program.state[state].type
    return helper.make_tensor_value_info(state + when, element(t), ["B", *t.dims])


def calls(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """The nodes of a graph, but for plumbing, and whether each stands in a region, whose Scan is opened."""
    for n in graph.node:
        body = _step(n)
        if body is not None:
            yield from ((inner, True) for inner in body.node if inner.domain or inner.op_type not in PLUMBING)
        elif n.domain or n.op_type not in PLUMBING:
            yield n, False


def _step(n: onnx.NodeProto) -> onnx.GraphProto | None:
    """The body of a region's Scan."""
    if n.domain == "" and n.op_type == "Scan":
        return next((a.g for a in n.attribute if a.name == "body"), None)
    return None


def outer_name(name: str) -> str:
    """The program's name of a value in a region's body."""
    return name.removesuffix(NOW)


def expose(model: onnx.ModelProto) -> None:
    """Make what only its region reads an output of the graph too, in place."""
    graph = Body([], MARK + MARK)
    for n in [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]:
        graph.nodes.append(n)
        if (body := _step(n)) is None:
            continue
        for info in body.value_info:
            t, name = info.type.tensor_type, outer_name(info.name)
            dims = [d.dim_value for d in t.shape.dim[2:]]
            body.output.append(info)
            n.output.append(name + STEPS)
            _come_out(graph, name, len(dims))
            model.graph.output.append(helper.make_tensor_value_info(name, t.elem_type, ["B", "T", *dims]))
    del model.graph.node[:]
    model.graph.node.extend(graph.nodes)
