"""Rewrites of the float graph that change no value: parts and shapes are taken from weights instead of from results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from isobit.quant.calibrate.rounding import rounded_to_codes
from isobit.quant.capture.graph import Attribute, Dims, Floats, Graph, GraphNode


@dataclass
class _Pass:
    """A graph while it is rewritten.  made: by name, the nodes that stay, in their order."""

    graph: Graph
    made: dict[str, GraphNode] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)

    def source(self, n: GraphNode) -> GraphNode | None:
        """The node of the first operand, if there is one."""
        return self.made.get(n.inputs[0])

    def parameter(self, name: str, array: Floats) -> str:
        self.graph.parameters[name] = np.ascontiguousarray(array)
        return name


Rewrite = Callable[[_Pass, GraphNode], GraphNode | None]


def simplify(graph: Graph) -> Graph:
    """The same model: its output has the same value for every input."""
    graph = replace(graph, parameters=dict(graph.parameters), dims=dict(graph.dims))
    state = _Pass(graph)
    for n in graph.nodes:
        n = replace(n, inputs=tuple(state.alias.get(i, i) for i in n.inputs))
        rewrite = REWRITES.get(n.op)
        state.made[n.output] = (rewrite(state, n) if rewrite else None) or n
    return replace(graph, nodes=tuple(state.made.values())).live()


def _slice_of_linear(p: _Pass, n: GraphNode) -> GraphNode | None:
    """Some rows of a linear layer are a linear layer of those rows."""
    layer = p.source(n)
    if layer is None or layer.op != "linear":
        return None
    weight = p.graph.parameters[layer.inputs[1]]
    rows_axis = n.integer("axis") - (len(p.graph.dims[layer.output]) - (weight.ndim - layer.integer("contracted")))
    if rows_axis != 0:
        return None
    start, step, size = n.integer("start"), n.integer("step"), n.integer("size")
    rows = start + step * np.arange(size)
    tag = f"[{start}:{start + size}]" if step == 1 else f"[{start}::{step}]"
    kept = [p.parameter(f"{i}{tag}", p.graph.parameters[i][rows]) for i in layer.inputs[1:]]
    return GraphNode("linear", (layer.inputs[0], *kept), n.output, layer.attrs, n.loc)


def _reshape(p: _Pass, n: GraphNode) -> GraphNode | None:
    source, dims = p.source(n), n.integers("dims")
    if source is None:
        return None
    if source.op == "reshape":
        return replace(n, inputs=source.inputs)
    if source.op == "linear" and p.graph.uses[source.output] == 1:
        return _reshaped_linear(p, n, source, dims)
    return None


def _reshaped_linear(p: _Pass, n: GraphNode, layer: GraphNode, dims: Dims) -> GraphNode | None:
    """The rows of a linear layer in the shape that is asked of its result."""
    weight, axes = p.graph.parameters[layer.inputs[1]], layer.integer("contracted")
    rows, columns = weight.shape[: weight.ndim - axes], weight.shape[weight.ndim - axes :]
    lead = p.graph.dims[layer.output][: len(p.graph.dims[layer.output]) - len(rows)]
    if dims[: len(lead)] != lead or int(np.prod(dims[len(lead) :])) != int(np.prod(rows)) or len(dims) == len(lead):
        return None
    shape = dims[len(lead) :]
    tag = f".as({', '.join(map(str, shape))})"
    kept = [p.parameter(f"{layer.inputs[1]}{tag}", weight.reshape(*shape, *columns))]
    kept += [p.parameter(f"{i}{tag}", p.graph.parameters[i].reshape(shape)) for i in layer.inputs[2:]]
    return GraphNode("linear", (layer.inputs[0], *kept), n.output, layer.attrs, layer.loc)


def _linear_of_reshape(p: _Pass, n: GraphNode) -> GraphNode | None:
    """A linear layer of flattened heads contracts the heads themselves."""
    source = p.source(n)
    if source is None or source.op != "reshape" or n.integer("contracted") != 1:
        return None
    flat, dims = p.graph.dims[source.output], p.graph.dims[source.inputs[0]]
    lead = len(flat) - 1
    if flat[:lead] != dims[:lead] or len(dims) <= len(flat):
        return None
    weight = p.graph.parameters[n.inputs[1]]
    inner = dims[lead:]
    name = p.parameter(f"{n.inputs[1]}.of({', '.join(map(str, inner))})", weight.reshape(*weight.shape[:-1], *inner))
    attrs: Mapping[str, object] = {**n.attr, "contracted": len(inner)}
    return replace(n, inputs=(source.inputs[0], name, *n.inputs[2:]), attrs=tuple(sorted(attrs.items())))  # type: ignore[arg-type]


def _into_weights(p: _Pass, n: GraphNode) -> GraphNode | None:
    """A factor or an offset per channel, folded into the layer that it follows."""
    layer, array = p.source(n), p.graph.parameters[n.inputs[1]]
    if layer is None or layer.op not in ("linear", "conv2d") or p.graph.uses[layer.output] > 1:
        return None
    weight = p.graph.parameters[layer.inputs[1]]
    if weight.dtype.kind == "i":
        return None
    dims = p.graph.dims[layer.output]
    rows = (
        (len(dims) - weight.ndim + layer.integer("contracted"), weight.ndim - layer.integer("contracted"))
        if layer.op == "linear"
        else (0, 1)
    )
    full = np.broadcast_to(array.reshape((1,) * (len(dims) - array.ndim) + array.shape), dims)
    index = tuple(slice(None) if rows[0] <= i < rows[0] + rows[1] else 0 for i in range(len(dims)))
    per_row = full[index]
    if not np.array_equal(
        np.broadcast_to(
            per_row.reshape([d if rows[0] <= i < rows[0] + rows[1] else 1 for i, d in enumerate(dims)]), dims
        ),
        full,
    ):
        return None
    bias = p.graph.parameters[layer.inputs[2]] if len(layer.inputs) > 2 else np.zeros(per_row.shape)
    if n.op == "offset":
        name = p.parameter(f"{n.output}.bias", bias + per_row)
        return GraphNode(layer.op, (*layer.inputs[:2], name), n.output, layer.attrs, layer.loc)
    scaled = weight * per_row.reshape(*per_row.shape, *[1] * (weight.ndim - per_row.ndim))
    kept = [p.parameter(f"{n.output}.weight", scaled)]
    if len(layer.inputs) > 2:
        kept.append(p.parameter(f"{n.output}.bias", bias * per_row))
    return GraphNode(layer.op, (layer.inputs[0], *kept), n.output, layer.attrs, layer.loc)


def _into_quantizer(p: _Pass, n: GraphNode) -> GraphNode | None:
    """Factors, offsets and limits before a quantizer, in the quantizer, which then rounds once."""
    while (source := p.source(n)) and (taken := _absorbed(p, n, source)):
        n = taken
    return n


def _absorbed(p: _Pass, n: GraphNode, source: GraphNode) -> GraphNode | None:
    x, gain, shift = source.inputs[0], p.graph.parameters[n.inputs[1]], p.graph.parameters[n.inputs[2]]
    if source.op == "clamp" and np.all(gain == 1) and np.all(shift == 0):
        lo, hi = (float(rounded_to_codes(n, np.asarray(source.number(k)))) for k in ("lo", "hi"))
        if lo > hi:
            return None
        attrs: dict[str, Attribute] = {
            **n.attr,
            "lo": max(n.integer("lo"), int(lo)),
            "hi": min(n.integer("hi"), int(hi)),
        }
        return replace(n, inputs=(x, *n.inputs[1:]), attrs=tuple(sorted(attrs.items())))
    if source.op not in ("scale", "offset"):
        return None
    array = p.graph.parameters[source.inputs[1]]
    if source.op == "offset":
        return replace(n, inputs=(x, n.inputs[1], p.parameter(f"{n.output}.shift", shift + gain * array)))
    return replace(n, inputs=(x, p.parameter(f"{n.output}.gain", gain * array), n.inputs[2]))


REWRITES: dict[str, Rewrite] = {
    "slice": _slice_of_linear,
    "reshape": _reshape,
    "linear": _linear_of_reshape,
    "scale": lambda p, n: _into_weights(p, n) if (s := p.source(n)) and s.op == "conv2d" else None,
    "offset": _into_weights,
    "fake_quantize": _into_quantizer,
}
