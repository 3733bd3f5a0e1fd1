"""A Program as an ONNX model: one model-local function of domain `isobit` per specialised node.

The graph's inputs are the Program's inputs, (B, T, *shape), then its states, (B, *shape); its outputs are the Program's
outputs, then each state after the last step as `<state>.next`.  B and T are symbolic, weights are initializers.  A node
carries its op's parameters, its index signature, state, layer (`loc`) and scale as attributes, so that `load` needs
nothing else; what ONNX cannot say of tensors stands in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from isobit.export.onnx.body import INT64_MAX, Body
from isobit.quant.check import Checked, check
from isobit.quant.errors import CheckError
from isobit.quant.expr.interval import Interval
from isobit.quant.ops import Structure
from isobit.quant.ops.matmul import product
from isobit.quant.program import CONTAINERS, IntType, Node, Program, TensorType

DOMAIN = PRODUCER = "isobit"
FORMAT_VERSION = "1"
"""Changes whenever the emission of some Program changes: `load` compares bytes."""
OPSET, IR_VERSION = 21, 10

CONTAINER_TYPES: dict[int, int] = {
    8: TensorProto.INT8,
    16: TensorProto.INT16,
    32: TensorProto.INT32,
    64: TensorProto.INT64,
}
INT32 = IntType(32).range
MOST_BYTES = (1 << 31) - (1 << 20)
"""A protobuf message stays below 2 GiB; the rest is for nodes and functions."""

NODE_ATTRIBUTES = ("index", "loc", "scale", "state")
"""Of a calling node, beside its op's parameters; strings."""


def emit(program: Program) -> onnx.ModelProto:
    """The model of `program`, equal for equal Programs.  Raises CheckError as `check`, and if ONNX cannot hold it."""
    checked = check(program)
    _refuse_unstorable(program)
    functions, nodes = _Functions(checked), list[onnx.NodeProto]()
    for n in program.nodes:
        nodes.append(_call(n, functions.of(n), program))
    states = [_value_info(s.name, s.type) for s in program.states]
    inner = [n.output for n in program.nodes if n.output not in program.outputs]
    graph = helper.make_graph(
        nodes,
        program.name,
        [*(_value_info(i.name, i.type) for i in program.inputs), *states],
        [
            *(_value_info(o, checked.types[o]) for o in program.outputs),
            *(_value_info(next_name(s.name), s.type) for s in program.states),
        ],
        [numpy_helper.from_array(c.array.astype(c.type.elem.dtype), c.name) for c in program.constants],
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


def next_name(state: str) -> str:
    """The graph output that holds `state` after the last step."""
    return f"{state}.next"


def _refuse_unstorable(program: Program) -> None:
    names = _tensors(program).keys() | {n.output for n in program.nodes}
    if taken := sorted(s.name for s in program.states if next_name(s.name) in names):
        raise CheckError(f"{next_name(taken[0])} is the new value of state {taken[0]}: rename the value of this name")
    for n in program.nodes:
        for name, value in n.params:
            if name in NODE_ATTRIBUTES or not -INT64_MAX - 1 <= value <= INT64_MAX:
                raise CheckError(f"{n.loc} ({n.op}): parameter {name} = {value} cannot be an integer attribute in ONNX")
    if (size := sum(len(c.data) for c in program.constants)) > MOST_BYTES:
        raise CheckError(f"{program.name}: {size} bytes of weights, an ONNX file holds {MOST_BYTES}")


def _tensors(program: Program) -> dict[str, TensorType]:
    """What no node makes."""
    inputs, constants = ({x.name: x.type for x in many} for many in (program.inputs, program.constants))
    return inputs | constants | {s.name: s.type for s in program.states}


def _metadata(program: Program) -> dict[str, str]:
    """JSON where it is not a plain string: what tensors of ONNX do not hold."""
    tensors = _tensors(program)
    elements = {k: str(t.elem) for k, t in tensors.items() if not t.elem.signed or t.elem.bits not in CONTAINERS}
    scales = {k: repr(t.scale) for k, t in tensors.items() if t.scale is not None}
    return {
        "isobit.digest": program.digest,
        "isobit.elements": json.dumps(elements, sort_keys=True),
        "isobit.initial": json.dumps({s.name: s.initial for s in program.states}, sort_keys=True),
        "isobit.scales": json.dumps(scales, sort_keys=True),
        "isobit.version": FORMAT_VERSION,
    }


def _value_info(name: str, t: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, CONTAINER_TYPES[t.elem.container], ["B", *t.shape])


def _call(n: Node, function: str, program: Program) -> onnx.NodeProto:
    state_in, state_out = ([n.state], [next_name(n.state)]) if n.state else ([], [])
    operands = n.inputs if n.inputs else (program.inputs[0].name,)
    call = helper.make_node(function, [*operands, *state_in], [n.output, *state_out], name=n.output, domain=DOMAIN)
    scale = "" if n.scale is None else repr(n.scale)
    strings = {"index": n.index, "loc": n.loc, "scale": scale, "state": n.state or ""}
    for name, value in sorted({**n.param, **strings}.items()):
        call.attribute.append(helper.make_attribute(name, value))
    return call


@dataclass
class _Functions:
    """The functions made so far; nodes whose functions are equal share one."""

    checked: Checked
    made: list[onnx.FunctionProto] = field(default_factory=list)
    _name: dict[bytes, str] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)

    def of(self, n: Node) -> str:
        f = _function(n, self.checked)
        key = serialized(f)
        if key not in self._name:
            self._count[n.op] = self._count.get(n.op, 0) + 1
            f.name = self._name[key] = f"{n.op}__{self._count[n.op]}"
            self.made.append(f)
        return self._name[key]


def _function(n: Node, c: Checked) -> onnx.FunctionProto:
    build = {
        Structure.POINTWISE: _pointwise,
        Structure.CONTRACTION: _contraction,
        Structure.WINDOW: _window,
        Structure.RECURRENCE: _recurrence,
    }[n.spec.structure]
    formals = _formals(n, c)
    body = Body(["y", *formals])
    build(n, c, formals, body)
    return helper.make_function(
        DOMAIN,
        n.op,
        formals,
        ["y", "state.next"] if n.state else ["y"],
        body.nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=sorted([*n.param, *NODE_ATTRIBUTES]),
        doc_string=n.spec.summary,
    )


def _formals(n: Node, c: Checked) -> list[str]:
    """Names of a function's inputs, after the parameters of the op's definition; the state is the last."""
    names = [o.name for o in c.bodies[n.output].operands]
    if n.spec.structure is Structure.RECURRENCE:
        names = names[1:] or ["clock"]
        if n.output in c.readouts:
            names.append(c.readouts[n.output].operands[1].name)
    if n.spec.start:
        names.append("start")
    if n.state:
        names.append("state")
    return list(_distinct(names))


def _distinct(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        while name in seen or name == "y":
            name += "_"
        seen.add(name)
        yield name


def _batched(labels: str) -> str:
    return "b" + labels if "t" in labels else labels


def _output_type(n: Node, c: Checked) -> int:
    return CONTAINER_TYPES[c.types[n.output].elem.container]


def _cast(body: Body, name: str, t: TensorType, to: int = TensorProto.INT64) -> str:
    return name if CONTAINER_TYPES[t.elem.container] == to else body.cast(name, to)


def _operands(n: Node, c: Checked, formals: list[str], body: Body, order: str) -> list[str]:
    """Operands as int64, aligned to batch and `order`; formals may be fewer than the node's operands."""
    given = zip(formals, n.inputs, n.labels.inputs, strict=False)
    return [body.align(_cast(body, f, c.types[i]), _batched(k), "b" + order) for f, i, k in given]


def _pointwise(n: Node, c: Checked, formals: list[str], body: Body) -> None:
    operands = _operands(n, c, formals, body, n.labels.output)
    body.cast(body.expression(c.bodies[n.output], operands), _output_type(n, c), "y")


def _sums(n: Node, c: Checked) -> Interval:
    """Every partial sum of the terms alone; `check` knows the accumulator with the value that starts it."""
    known = c.ranges[n.output]
    start = c.ranges[n.inputs[-1]] if n.spec.start else Interval(0, 0)
    return Interval(min(0, known.lo - start.lo), max(0, known.hi - start.hi))


def _contraction(n: Node, c: Checked, formals: list[str], body: Body) -> None:
    labels, out, reduced = n.labels.inputs, n.labels.output, n.labels.reduced
    terms = len(labels) - n.spec.start
    if n.spec.define is product and _is_plain(labels, out):
        total, wide = _matmul(n, c, formals, body)
    else:
        wide = int(TensorProto.INT64)
        term = body.expression(c.bodies[n.output], _operands(n, c, formals[:terms], body, out + reduced))
        sizes = [c.sizes[n.output][k] for k in reduced]
        total = body.sum(term, 1 + len(out) + len(sizes), sizes, _sums(n, c))
    if n.spec.start:
        start = _cast(body, formals[-1], c.types[n.inputs[-1]], wide)
        total = body.op("Add", total, body.align(start, _batched(labels[-1]), "b" + out))
    body.cast(total, _output_type(n, c), "y")


def _is_plain(labels: tuple[str, ...], out: str) -> bool:
    """`tk,nk->tn` up to letters: rows of x times rows of constant w, a matrix product."""
    x, w = labels[:2]
    return len(w) == 2 and "t" not in w and w[1] == x[-1] and w[1] not in out and x[:-1] + w[0] == out


def _matmul(n: Node, c: Checked, formals: list[str], body: Body) -> tuple[str, int]:
    """x w^T and its element type.

    MatMulInteger takes both operands as unsigned with zero point 128, as signed ones flipped in their highest bit: its
    unsigned by signed kernel saturates pairs of products to 16 bits on x86 with AVX2 and no VNNI, its signed by signed
    kernel is slow.
    """
    types = [c.types[i] for i in n.inputs[:2]]
    fits = _sums(n, c) in INT32 and c.ranges[n.output] in INT32
    if fits and all(t.elem.container == 8 for t in types):
        sign = body.constant(128, np.uint8)
        x, w = (body.op("BitwiseXor", body.cast(f, TensorProto.UINT8), sign) for f in formals[:2])
        return body.op("MatMulInteger", x, body.op("Transpose", w, perm=[1, 0]), sign, sign), TensorProto.INT32
    wide = TensorProto.INT32 if fits and all(t.elem.container <= 32 for t in types) else TensorProto.INT64
    x, w = (_cast(body, f, t, wide) for f, t in zip(formals, types, strict=False))
    return body.op("MatMul", x, body.op("Transpose", w, perm=[1, 0])), wide


def _window(n: Node, c: Checked, formals: list[str], body: Body) -> None:
    """x (B, T, C), weight (C, K), start (C), ring (B, K-1, C), oldest first: of K time steps one term each."""
    assert n.state is not None
    x, weight, start, ring = formals
    held, types = c.program.state[n.state].type, [c.types[i] for i in n.inputs]
    taps, time = c.sizes[n.output]["j"], body.constant([1])
    padded = body.op("Concat", ring, _cast(body, x, types[0], CONTAINER_TYPES[held.elem.container]), axis=1)
    kept = body.constant([1 - taps if taps > 1 else INT64_MAX])
    body.op("Slice", padded, kept, body.constant([INT64_MAX]), time, output="state.next")
    padded, weight, total = _cast(body, padded, held), _cast(body, weight, types[1]), _cast(body, start, types[2])
    for j in range(taps):
        end = body.constant([j - taps + 1 if j + 1 < taps else INT64_MAX])
        window = body.op("Slice", padded, body.constant([j]), end, time)
        term = body.expression(c.bodies[n.output], [window, body.op("Gather", weight, body.constant(j), axis=1)])
        total = body.op("Add", total, term)
    body.cast(total, _output_type(n, c), "y")


def _recurrence(n: Node, c: Checked, formals: list[str], body: Body) -> None:
    """A Scan over time: one update and one readout per step; constants come from outside of it."""
    assert n.state is not None
    *names, state = formals
    axes, held = n.labels.state, c.program.state[n.state].type
    out = n.labels.output.replace("t", "")
    step, rows, scanned, operands = Body(formals, prefix="s"), list[onnx.ValueInfoProto](), list[str](), list[str]()
    for name, labels, i in zip(names, n.labels.inputs, n.inputs, strict=False):
        t = c.types[i]
        if "t" not in labels:
            operands.append(body.align(_cast(body, name, t), labels, "b" + axes))
            continue
        without = "b" + labels.replace("t", "")
        scanned.append(body.align(name, "b" + labels, "t" + without))
        rows.append(_any_shape(f"{name}.t", CONTAINER_TYPES[t.elem.container], len(labels)))
        operands.append(step.align(_cast(step, f"{name}.t", t), without, "b" + axes))
    if not scanned:
        clock = c.program.inputs[0].type
        scanned.append(body.op("Transpose", names[0], perm=[1, 0, *range(2, 1 + len(clock.shape))]))
        rows.append(_any_shape(f"{names[0]}.t", CONTAINER_TYPES[clock.elem.container], len(clock.shape)))
    readout = c.readouts.get(n.output)
    updates = operands[:-1] if readout else operands
    new = total = step.expression(c.bodies[n.output], ["state.t", *updates])
    if readout:
        inner = [k for k in axes if k not in out]
        term = step.align(step.expression(readout, [new, operands[-1]]), "b" + axes, "b" + out + "".join(inner))
        total = step.sum(term, 1 + len(axes), [c.sizes[n.output][k] for k in inner], _sums(n, c))
    step.op("Identity", new, output="state.new")
    step.op("Identity", total, output="y.t")
    graph = helper.make_graph(
        step.nodes,
        "step",
        [_any_shape("state.t", TensorProto.INT64, 1 + len(axes)), *rows],
        [_any_shape("state.new", TensorProto.INT64, 1 + len(axes)), _any_shape("y.t", TensorProto.INT64, 1 + len(out))],
    )
    operands = [_cast(body, state, held), *scanned]
    scan = helper.make_node("Scan", operands, ["state.last", "y.all"], body=graph, num_scan_inputs=len(scanned))
    body.nodes.append(scan)
    body.cast(body.align("y.all", "tb" + out, "bt" + out), _output_type(n, c), "y")
    body.cast("state.last", CONTAINER_TYPES[held.elem.container], "state.next")


def _any_shape(name: str, element: int, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, [None] * rank)
