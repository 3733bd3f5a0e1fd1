"""A Program as an ONNX model: one model-local function of domain `isobit` per specialised node.

The graph's inputs are the Program's inputs, (B, T, *shape), then its states, (B, *shape); its outputs are the Program's
outputs, then each state after the last step as `<state>.next`.  B and T are symbolic, weights are initializers.  A node
carries its op's parameters, its index signature, state, layer (`loc`) and scale as attributes, so that `load` needs
nothing else; what ONNX cannot say of tensors stands in the metadata.  Nodes that feed back stand in a Scan over time.
"""

from __future__ import annotations

import json

import onnx
from onnx import helper, numpy_helper

from isobit.export.onnx.body import INT64_MAX, Body, element
from isobit.export.onnx.functions import DOMAIN, NODE_ATTRIBUTES, OPSET, Functions, next_name, operands
from isobit.export.onnx.packed import codes_name, initializer
from isobit.export.onnx.region import MARK, append_region
from isobit.quant.check import check
from isobit.quant.errors import CheckError
from isobit.quant.program import CONTAINERS, Constant, Program, TensorType
from isobit.quant.storage import is_packed, stored_bytes

PRODUCER = "isobit"
FORMAT_VERSION = "4"
"""Changes whenever the emission of some Program changes: `load` compares bytes."""
IR_VERSION = 10

MOST_BYTES = (1 << 31) - (1 << 20)
"""A protobuf message stays below 2 GiB; the rest is for nodes and functions."""


def emit(program: Program) -> onnx.ModelProto:
    """The model of `program`, equal for equal Programs.  Raises CheckError as `check`, and if ONNX cannot hold it."""
    checked = check(program)
    _refuse_unstorable(program)
    functions, body = Functions(checked), Body([], MARK)
    body.nodes += [functions.unpack(c) for c in program.constants if is_packed(c)]
    first, count = 0, len(program.nodes)
    for start, end in (*program.regions, (count, count)):
        for n in program.nodes[first:start]:
            held, left = ([n.state], [next_name(n.state)]) if n.state else ([], [])
            body.nodes.append(functions.call(n, [*operands(n, program), *held], [n.output, *left]))
        if start < end:
            append_region(body, program.nodes[start:end], functions)
        first = end
    states = [_value_info(s.name, s.type) for s in program.states]
    made = {name for n in body.nodes for name in n.output}
    inner = [n.output for n in program.nodes if n.output in made and n.output not in program.outputs]
    graph = helper.make_graph(
        body.nodes,
        program.name,
        [*(_value_info(i.name, i.type) for i in program.inputs), *states],
        [
            *(_value_info(o, checked.types[o]) for o in program.outputs),
            *(_value_info(next_name(s.name), s.type) for s in program.states),
        ],
        [_initializer(c) for c in program.constants],
        value_info=[_value_info(name, checked.types[name]) for name in inner],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=functions.made,
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
    )
    helper.set_model_props(model, _metadata(program))
    return model


def to_bytes(program: Program) -> bytes:
    """The file's content: equal Programs give equal bytes, in every process."""
    return serialized(emit(program))


def serialized(message: onnx.ModelProto | onnx.FunctionProto) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def _initializer(c: Constant) -> onnx.TensorProto:
    return initializer(c) if is_packed(c) else numpy_helper.from_array(c.array.astype(c.type.elem.dtype), c.name)


def _refuse_unstorable(program: Program) -> None:
    names = _tensors(program).keys() | {n.output for n in program.nodes}
    if taken := sorted(c.name for c in program.constants if is_packed(c) and codes_name(c.name) in names):
        raise CheckError(f"{codes_name(taken[0])} is what holds {taken[0]}: rename the value of this name")
    if taken := sorted(s.name for s in program.states if next_name(s.name) in names):
        raise CheckError(f"{next_name(taken[0])} is the new value of state {taken[0]}: rename the value of this name")
    if program.regions and (marked := sorted(name for name in names if MARK in name)):
        raise CheckError(f"{marked[0]}: '{MARK}' marks values inside of a feedback loop: rename it")
    for n in program.nodes:
        for name, value in n.params:
            if name in NODE_ATTRIBUTES or not -INT64_MAX - 1 <= value <= INT64_MAX:
                raise CheckError(f"{n.loc} ({n.op}): parameter {name} = {value} cannot be an integer attribute in ONNX")
    if (size := sum(map(stored_bytes, program.constants))) > MOST_BYTES:
        raise CheckError(f"{program.name}: {size} bytes of weights, an ONNX file holds {MOST_BYTES}")


def _tensors(program: Program) -> dict[str, TensorType]:
    """What no node makes."""
    inputs, constants = ({x.name: x.type for x in many} for many in (program.inputs, program.constants))
    return inputs | constants | {s.name: s.type for s in program.states}


def _metadata(program: Program) -> dict[str, str]:
    """JSON where it is not a plain string: what tensors of ONNX do not hold."""
    tensors = _tensors(program)
    coded = {c.name for c in program.constants if is_packed(c)}
    odd = {k: t.elem for k, t in tensors.items() if not t.elem.signed or t.elem.bits not in CONTAINERS}
    elements = {k: str(elem) for k, elem in odd.items() if k not in coded}
    scales = {k: repr(t.scale) for k, t in tensors.items() if t.scale is not None}
    trained = {i.name: [i.rounding, i.zero] for i in program.inputs if i.is_trained}
    return {
        **({"isobit.roundings": json.dumps(trained, sort_keys=True)} if trained else {}),
        "isobit.certificates": json.dumps([c.data() for c in program.certificates], sort_keys=True),
        "isobit.digest": program.digest,
        "isobit.elements": json.dumps(elements, sort_keys=True),
        "isobit.initial": json.dumps({s.name: s.initial for s in program.states}, sort_keys=True),
        "isobit.scales": json.dumps(scales, sort_keys=True),
        "isobit.version": FORMAT_VERSION,
    }


def _value_info(name: str, t: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element(t), ["B", *t.shape])
