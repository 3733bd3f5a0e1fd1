"""Nodes as model-local functions: for every structure the body that computes one, in plain integer ONNX.

A function's inputs are the node's operands, then its state; its outputs the node's value, then the new state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from inspect import signature
from itertools import product as indices

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from isobit.export.onnx import packed
from isobit.export.onnx.body import INT64_MAX, Body, Value, element
from isobit.export.onnx.moved import moved
from isobit.export.onnx.products import combined, partial_sums
from isobit.quant.check import Checked
from isobit.quant.ops import Structure
from isobit.quant.program import Constant, Node, Program

DOMAIN = "isobit"
OPSET = 21

NODE_ATTRIBUTES = ("index", "loc", "scale", "state")
"""Of a calling node, beside its op's parameters; strings."""


def operands(n: Node, program: Program) -> tuple[str, ...]:
    """What a call of `n` reads besides its state: its operands, and an input of the program where none has time."""
    return n.inputs if _has_time(n) else (*n.inputs, program.inputs[0].name)


def _has_time(n: Node) -> bool:
    return any("t" in k for k in n.labels.inputs)


def next_name(state: str) -> str:
    """The graph output that holds `state` after the last step."""
    return f"{state}.next"


@dataclass
class Functions:
    """The functions made so far; nodes whose functions are equal share one."""

    checked: Checked
    made: list[onnx.FunctionProto] = field(default_factory=list)
    _name: dict[bytes, str] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)

    def call(self, n: Node, read: list[str], written: list[str], one_step: bool = False) -> onnx.NodeProto:
        """The node that calls the function of `n`; `one_step`: a function that is for sequences of one step only."""
        call = helper.make_node(self._of(n, one_step), read, written, name=n.output, domain=DOMAIN)
        scale = "" if n.scale is None else repr(n.scale)
        strings = {"index": n.index, "loc": n.loc, "scale": scale, "state": n.state or ""}
        for name, value in sorted({**n.param, **strings}.items()):
            call.attribute.append(helper.make_attribute(name, value))
        return call

    def unpack(self, c: Constant) -> onnx.NodeProto:
        """The node that makes a packed constant from its codes."""
        function = helper.make_function(
            DOMAIN,
            packed.UNPACK,
            ["codes"],
            ["y"],
            packed.unpack(c).nodes,
            [helper.make_opsetid("", OPSET)],
            attributes=sorted(packed.ATTRIBUTES),
            doc_string=(c.storage.number[0].__doc__ or "").strip(),
        )
        own = packed.attributes(c)
        call = helper.make_node(
            self._named(function), [packed.codes_name(c.name)], [c.name], name=c.name, domain=DOMAIN
        )
        call.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(own.items()))
        return call

    def _of(self, n: Node, one_step: bool) -> str:
        return self._named(_function(n, self.checked, one_step))

    def _named(self, f: onnx.FunctionProto) -> str:
        """The name of this function, or of the one that is equal to it."""
        key = f.SerializeToString(deterministic=True)
        if key not in self._name:
            op = f.name
            self._count[op] = self._count.get(op, 0) + 1
            f.name = self._name[key] = f"{op}__{self._count[op]}"
            self.made.append(f)
        return self._name[key]


def _function(n: Node, c: Checked, one_step: bool) -> onnx.FunctionProto:
    build = BUILDERS[n.spec.structure]
    if one_step and n.state and n.spec.structure is Structure.RECURRENCE:
        build = _one_update
    names = list(_distinct(_operand_names(n, c)))
    formals = [*names, *["clock"] * (not _has_time(n)), *["state"] * bool(n.state)]
    given = zip(names, n.inputs, n.labels.inputs, strict=True)
    body = Body(["y", *formals])
    made = build(n, c, body, [Value(f, _batched(k), element(c.types[i])) for f, i, k in given])
    assert made.axes == "b" + n.labels.output
    body.cast(made.name, element(c.types[n.output]), "y")
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


def _operand_names(n: Node, c: Checked) -> Iterator[str]:
    """Names of a function's operands, after the parameters of the op's definition."""
    structure = n.spec.structure
    if structure in (Structure.LAYOUT, Structure.HISTORY):
        name = next(iter(signature(n.spec.define).parameters))
        yield from [name] if len(n.inputs) == 1 else (f"{name}{i}" for i in range(len(n.inputs)))
        return
    if structure is Structure.GATHER:
        yield "index"
    names = [o.name for o in c.bodies[n.output].operands]
    yield from names[1:] if structure is Structure.RECURRENCE else names
    if n.output in c.readouts:
        yield from (o.name for o in c.readouts[n.output].operands[1:])
    if n.spec.start:
        yield "start"


def _distinct(names: Iterable[str]) -> Iterator[str]:
    """Each name with as many underscores as it takes, not a name that the function itself gives."""
    seen = {"y", "clock", "state"}
    for name in names:
        while name in seen:
            name += "_"
        seen.add(name)
        yield name


def _batched(labels: str) -> str:
    return "b" + labels if "t" in labels else labels


def _order(n: Node) -> str:
    """Axes of the output, batch first."""
    return "b" + n.labels.output


def _pointwise(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    return body.mapped(c.bodies[n.output], given, _order(n))


def _contraction(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    if not n.spec.start:
        return combined(n, c, body, given)
    return _started(n, body, combined(n, c, body, given[:-1]), given[-1])


def _started(n: Node, body: Body, total: Value, start: Value) -> Value:
    """total + start."""
    return Value(body.op("Add", total.name, body.place(start, _order(n), total.element)), total.axes, total.element)


def _convolution(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    """Every element of the kernel meets its own slice of x; with several outputs for each, as one matrix product."""
    x, weight, start = given
    sizes = c.sizes[n.output]
    kernel = "".join(k for _, _, k in n.labels.slides)
    if n.labels.reduced == kernel:
        return _taps(n, c, body, list(_meetings(n, c, body, x, weight)), start)
    for i, (slid, made, k) in enumerate(n.labels.slides):
        stride, dilation = n.step(i)
        places = body.constant(stride * np.arange(sizes[made])[:, None] + dilation * np.arange(sizes[k]))
        axis = x.axes.index(slid)
        x = Value(body.op("Gather", x.name, places, axis=axis), x.axes.replace(slid, made + k), x.element)
    return _started(n, body, combined(n, c, body, [x, weight]), start)


def _meetings(n: Node, c: Checked, body: Body, x: Value, weight: Value) -> Iterator[tuple[Value, Value]]:
    """For every element of a kernel, the slice of x and the part of the weight that meet there."""
    sizes, slides = c.sizes[n.output], n.labels.slides
    strides, dilations = zip(*(n.step(i) for i in range(len(slides))), strict=True)
    wide = Value(body.place(x, x.axes), x.axes, TensorProto.INT64)
    weight = Value(body.place(weight, weight.axes), weight.axes, TensorProto.INT64)
    axes, steps = body.constant([x.axes.index(y) for y, _, _ in slides]), body.constant(strides)
    slid = x.axes
    for y, v, _ in slides:
        slid = slid.replace(y, v)
    for at in indices(*(range(sizes[k]) for _, _, k in slides)):
        first = [d * i for d, i in zip(dilations, at, strict=True)]
        end = [f + s * (sizes[v] - 1) + 1 for f, s, (_, v, _) in zip(first, strides, slides, strict=True)]
        window = body.op("Slice", wide.name, body.constant(first), body.constant(end), axes, steps)
        one, left = weight.name, weight.axes
        for i, (_, _, k) in zip(at, slides, strict=True):
            one, left = body.op("Gather", one, body.constant(i), axis=left.index(k)), left.replace(k, "")
        yield Value(window, slid, TensorProto.INT64), Value(one, left, TensorProto.INT64)


def _taps(n: Node, c: Checked, body: Body, meetings: Iterable[tuple[Value, Value]], start: Value) -> Value:
    """One term for every pair of values, all of them added to the start."""
    total = Value(body.place(start, _order(n)), _order(n), TensorProto.INT64)
    for pair in meetings:
        total = _started(n, body, body.mapped(c.bodies[n.output], pair, _order(n)), total)
    return total


def _window(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    """x (B, T, C), weight (C, K) or (N, C, K), start (C) or (N), ring (B, K-1, C), oldest first; C and N may lack."""
    x, weight, start = given
    steps = _last_steps(n, c, body, x, c.sizes[n.output]["j"])
    if n.labels.reduced != "j":
        stacked = Value(_stacked(body, steps), f"btj{n.labels.inputs[0][1:]}", steps[0].element)
        return _started(n, body, combined(n, c, body, [stacked, weight]), start)
    wide = Value(body.place(weight, weight.axes), weight.axes, TensorProto.INT64)
    channels = weight.axes[:-1]
    taps = (
        Value(body.op("Gather", wide.name, body.constant(j), axis=len(channels)), channels, wide.element)
        for j in range(len(steps))
    )
    return _taps(n, c, body, zip(steps, taps, strict=True), start)


def _history(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    """x (B, T, ...) -> (B, T, K, ...), ring (B, K-1, ...), oldest first."""
    steps = _last_steps(n, c, body, given[0], n.param["length"])
    return Value(_stacked(body, steps), _order(n), steps[0].element)


def _last_steps(n: Node, c: Checked, body: Body, x: Value, length: int) -> list[Value]:
    """x of so many steps ago, for every step, oldest first; the ring of all but the last moves on."""
    assert n.state is not None
    held, time = element(c.program.state[n.state].type), body.constant([1])
    padded = body.op("Concat", "state", body.place(x, x.axes, held), axis=1)
    end = body.constant([INT64_MAX])
    body.op("Slice", padded, body.constant([1 - length]), end, time, output="state.next")
    ends = [*(body.constant([j - length + 1]) for j in range(length - 1)), end]
    return [Value(body.op("Slice", padded, body.constant([j]), ends[j], time), x.axes, held) for j in range(length)]


def _stacked(body: Body, steps: list[Value]) -> str:
    """Along a new axis after time."""
    after = body.constant([2])
    return body.op("Concat", *(body.op("Unsqueeze", s.name, after) for s in steps), axis=2)


def _gather(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    index, table = given
    rows = body.op("Gather", table.name, body.place(index, index.axes), axis=0)
    return body.mapped(c.bodies[n.output], [Value(rows, index.axes + table.axes[1:], table.element)], _order(n))


def _recurrence(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    """A Scan over time, or over an axis inside the steps: one update and one readout per element of it.

    Operands without the scanned axis come from outside of the Scan.
    """
    axes, over, lead = n.labels.state, n.labels.scanned or "t", "bt" if n.labels.scanned else "b"
    step, rows, scanned, read = Body(["y", *(g.name for g in given)], "s"), list[onnx.ValueInfoProto](), [], []
    for g in given:
        if over not in g.axes:
            read.append(body.place(g, lead + axes))
            continue
        without = g.axes.replace(over, "")
        scanned.append(body.align(g.name, g.axes, over + without))
        rows.append(_any_shape(f"{g.name}.t", g.element, len(without)))
        read.append(step.place(Value(f"{g.name}.t", without, g.element), lead + axes))
    if not scanned:
        clock = c.program.inputs[0].type
        scanned.append(body.op("Transpose", "clock", perm=[1, 0, *range(2, 1 + len(clock.shape))]))
        rows.append(_any_shape("clock.t", element(clock), len(clock.shape)))
    new, total = _update(n, c, step, "state.t", read, lead)
    step.op("Identity", new, output="state.new")
    step.op("Identity", total.name, output="y.t")
    states = [_any_shape(name, TensorProto.INT64, len(lead + axes)) for name in ("state.t", "state.new")]
    graph = helper.make_graph(
        step.nodes, "step", [states[0], *rows], [states[1], _any_shape("y.t", total.element, len(total.axes))]
    )
    start = _held(n, c, body, given)
    scan = helper.make_node(
        "Scan", [start, *scanned], ["state.last", "y.all"], body=graph, num_scan_inputs=len(scanned)
    )
    body.nodes.append(scan)
    if n.state:
        body.cast("state.last", element(c.program.state[n.state].type), "state.next")
    return Value(body.align("y.all", over + total.axes, _order(n)), _order(n), total.element)


def _held(n: Node, c: Checked, body: Body, given: list[Value]) -> str:
    """The state before the first element: the one handed in, or zeros for every batch and time."""
    axes = n.labels.state
    if n.state:
        return body.place(Value("state", "b" + axes, element(c.program.state[n.state].type)), "b" + axes)
    timed = next((g.name for g in given if "t" in g.axes), "clock")
    outer = body.op("Shape", timed, start=0, end=2)
    inner = [c.sizes[n.output][k] for k in axes]
    shape = body.op("Concat", outer, body.constant(inner), axis=0) if inner else outer
    return body.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, "<i8")))


def _one_update(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    """The recurrence for a sequence of one step: the state as a value of that step, updated once."""
    assert n.state is not None
    axes, held, time = n.labels.state, element(c.program.state[n.state].type), body.constant([1])
    state = body.op("Unsqueeze", _held(n, c, body, given), time)
    read = [body.place(g, "bt" + axes) for g in given]
    new, total = _update(n, c, body, state, read, "bt")
    body.cast(body.op("Squeeze", new, time), held, "state.next")
    return Value(body.align(total.name, total.axes, _order(n)), _order(n), total.element)


def _update(n: Node, c: Checked, body: Body, state: str, read: list[str], lead: str) -> tuple[str, Value]:
    """The new state, axes `lead` and the state's, and the output of this element, axes `lead` and those it keeps."""
    axes, queries = n.labels.state, n.spec.queries
    new = body.expression(c.bodies[n.output], [state, *read[: len(read) - queries]])
    if n.output not in c.readouts:
        return new, Value(new, lead + axes, TensorProto.INT64)
    kept, inner = ("".join(k for k in axes if (k in n.labels.output) == stays) for stays in (True, False))
    seen = state if n.spec.reads_old else new
    term = body.expression(c.readouts[n.output], [seen, *read[len(read) - queries :]])
    term = body.align(term, lead + axes, lead + kept + inner)
    total = body.sum(term, len(lead + axes), [c.sizes[n.output][k] for k in inner], partial_sums(n, c))
    return new, Value(total, lead + kept, TensorProto.INT64)


def _any_shape(name: str, element: int, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, [None] * rank)


BUILDERS: dict[Structure, Callable[[Node, Checked, Body, list[Value]], Value]] = {
    Structure.POINTWISE: _pointwise,
    Structure.CONTRACTION: _contraction,
    Structure.CONVOLUTION: _convolution,
    Structure.WINDOW: _window,
    Structure.HISTORY: _history,
    Structure.RECURRENCE: _recurrence,
    Structure.LAYOUT: moved,
    Structure.GATHER: _gather,
}
"""By structure: appends to a body what computes a node from its operands; the state is `state`, then `state.next`."""
