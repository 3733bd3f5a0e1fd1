"""Recurrences that were written out, as one operator each: the state is exact where it is decayed, driven and read.

h = a h + x, with 0 <= a <= 1, is a diagonal_recurrence; h = h + z (x - h), 0 <= z <= 1, a convex_recurrence; and
S = a S + k v^T, o = S^T q, a linear_recurrence.  Anything else stays as it is, with a state of its own per value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from isobit.quant.capture.bounds import bounds
from isobit.quant.capture.graph import Attribute, Dims, Graph, GraphNode


def recognise(graph: Graph) -> Graph:
    """The same model: its output has the same value for every input."""
    for n in graph.nodes:
        if n.op == "previous" and n.number("initial") == 0:
            graph = _Recurrence(graph, n.output).rewritten()
    return graph


@dataclass(frozen=True)
class _Term:
    """A product of the state before the step with `factor`: a value, a parameter, or "" for 1."""

    factor: str
    nodes: tuple[str, ...]


class _Recurrence:
    """One state: `before` reads it, and `after` makes it, as a sum if it is one that is known here."""

    def __init__(self, graph: Graph, before: str) -> None:
        self.graph, self.before = graph, before
        self.made = {n.output: n for n in graph.nodes}
        self.added: list[GraphNode] = []
        self.dims = dict(graph.dims)
        self.parameters = dict(graph.parameters)
        node = self.made.get(before)
        self.after = self.made.get(node.inputs[0]) if node else None

    def rewritten(self) -> Graph:
        if self.after is None or self.after.op != "add":
            return self.graph
        return self._convex() or self._matrix() or self._diagonal() or self.graph

    def _diagonal(self) -> Graph | None:
        for decayed, drive in self._orders():
            term = self._decayed(decayed)
            if term and term.factor and self._fades(term.factor) and self._full(drive):
                return self._with("diagonal_recurrence", (term.factor, drive))
        return None

    def _convex(self) -> Graph | None:
        for first, second in self._orders():
            gate, x = self._step_towards(first, second) or self._blend(first, second) or ("", "")
            if gate and self._unit(gate) and self._full(x):
                return self._with("convex_recurrence", (gate, x))
        return None

    def _orders(self) -> tuple[tuple[str, str], tuple[str, str]]:
        assert self.after
        a, b = self.after.inputs
        return (a, b), (b, a)

    def _step_towards(self, first: str, second: str) -> tuple[str, str] | None:
        """h + z (x - h), or x + f (h - x) with z = 1 - f."""
        for gate, difference in self._factors(second):
            sub = self.made.get(difference)
            if sub is None or sub.op != "sub" or gate in self.parameters:
                continue
            if first == self.before == sub.inputs[1]:
                return gate, sub.inputs[0]
            if sub.inputs == (self.before, first):
                return self._complement(gate), first
        return None

    def _blend(self, first: str, second: str) -> tuple[str, str] | None:
        """f h + z x, with f = 1 - z or z = 1 - f."""
        term = self._decayed(first)
        if term is None or term.factor in ("", *self.parameters):
            return None
        for gate, x in self._factors(second):
            if gate not in self.parameters and (self._is_complement(gate, term.factor)):
                return gate, x
        return None

    def _factors(self, name: str) -> tuple[tuple[str, str], ...]:
        node = self.made.get(name)
        if node is None or node.op != "mul":
            return ()
        a, b = node.inputs
        return (a, b), (b, a)

    def _decayed(self, name: str) -> _Term | None:
        if name == self.before:
            return _Term("", ())
        node = self.made.get(name)
        if node is None or node.op not in ("mul", "scale") or self.before not in node.inputs:
            return None
        a, b = node.inputs
        return _Term(b if a == self.before else a, (name,)) if a != b else None

    def _is_complement(self, a: str, b: str) -> bool:
        return self._one_minus(a) == b or self._one_minus(b) == a

    def _one_minus(self, name: str) -> str | None:
        """x where a value is 1 - x."""
        node = self.made.get(name)
        if node is None or node.op != "offset" or not np.all(self.parameters[node.inputs[1]] == 1):
            return None
        negative = self.made.get(node.inputs[0])
        if negative is None or negative.op != "scale" or not np.all(self.parameters[negative.inputs[1]] == -1):
            return None
        return negative.inputs[0]

    def _complement(self, name: str) -> str:
        if found := self._one_minus(name):
            return found
        self.parameters |= {"-1.0": np.array(-1.0), "1.0": np.array(1.0)}
        negative = self._add("scale", (name, "-1.0"), f"{name}.negative", self.dims[name])
        return self._add("offset", (negative, "1.0"), f"{name}.complement", self.dims[name])

    def _unit(self, name: str) -> bool:
        extended = replace(self.graph, nodes=(*self.graph.nodes, *self.added), parameters=self.parameters)
        lo, hi = bounds(extended)(name)
        return lo >= 0 and hi <= 1

    def _fades(self, name: str) -> bool:
        """Whether it is a decay; a constant one of 1 would not be kept exactly."""
        return self._unit(name) and not (name in self.parameters and self.parameters[name].max() == 1)

    def _full(self, name: str) -> bool:
        """Whether a value has as many elements as the state, and does not read it in another way."""
        assert self.after
        return name in self.dims and self.dims[name] == self.dims[self.after.output] and name != self.before

    def _add(
        self, op: str, inputs: tuple[str, ...], name: str, dims: Dims, attrs: tuple[tuple[str, Attribute], ...] = ()
    ) -> str:
        assert self.after
        taken = {k.replace(".", "_") for k in self.dims}
        name = next(
            k
            for i in range(1, len(taken) + 2)
            if (k := name if i == 1 else f"{name}_{i}").replace(".", "_") not in taken
        )
        self.dims[name] = dims
        self.added.append(GraphNode(op, inputs, name, attrs, self.after.loc))
        return name

    def _with(self, op: str, inputs: tuple[str, ...]) -> Graph:
        """The graph where the state's own node is this operator."""
        assert self.after
        return self._replaced(self.after, GraphNode(op, inputs, self.after.output, (), self.after.loc))

    def _replaced(self, old: GraphNode, new: GraphNode) -> Graph:
        nodes = []
        for n in self.graph.nodes:
            nodes += [*self.added, new] if n is old else [n]
        return replace(self.graph, nodes=tuple(nodes), dims=self.dims, parameters=self.parameters).live()

    def _matrix(self) -> Graph | None:
        """Where the state is used for its next step and for one readout only."""
        assert self.after
        dims, uses = self.dims[self.after.output], self.graph.uses
        if len(dims) not in (2, 3) or 1 in dims[-2:] or uses[self.after.output] != 2 or uses[self.before] != 1:
            return None
        readout = next((n for n in self.graph.nodes if self.after.output in n.inputs and n.output != self.before), None)
        found = self._readout(readout) if readout else None
        for decayed, drive in self._orders():
            term = self._decayed(decayed)
            if found is None or term is None:
                continue
            q, key, last = found
            pair, decay = self._outer(drive, key), self._heads_decay(term.factor, key)
            if pair is None or decay is None:
                continue
            heads = dims[0] if len(dims) == 3 else 1
            size, width = dims[key], dims[-3 - key]
            q, k = (self._shaped(i, (heads, size)) for i in (q, pair[0]))
            inputs = (q, k, self._shaped(pair[1], (heads, width)), *decay)
            name = f"{self.after.output}.read"
            read = self._add("linear_recurrence", inputs, name, (heads, width))
            shape = self.dims[last.output]
            return self._replaced(last, GraphNode("reshape", (read,), last.output, (("dims", shape),), last.loc))
        return None

    def _shaped(self, name: str, dims: Dims) -> str:
        """A value of these elements in these dims."""
        node = self.made.get(name)
        if self.dims[name] == dims:
            return name
        if node and node.op == "reshape" and self.dims[node.inputs[0]] == dims:
            return node.inputs[0]
        return self._add("reshape", (name,), f"{name}.as_heads", dims, (("dims", dims),))

    def _readout(self, n: GraphNode) -> tuple[str, int, GraphNode] | None:
        """q, the axis of the state along which it is contracted, -1 or -2, and the node that is the result."""
        assert self.after
        state, dims = self.after.output, self.dims[self.after.output]
        other = next((i for i in n.inputs if i != state), None)
        if other is None or other not in self.dims:
            return None
        if n.op == "einsum":
            operands, _, output = n.text("index").partition("->")
            labels = dict(zip(n.inputs, operands.split(","), strict=True))
            own, q = labels[state], [k for k in labels[other] if self._size(n, other, labels, k) != 1]
            gone = [k for k in own if k not in output]
            kept = "".join(k for k in output if k in own)
            if len(gone) != 1 or q != [*own[:-2], *gone] or gone[0] not in own[-2:] or kept != own.replace(gone[0], ""):
                return None
            return other, own.index(gone[0]) - len(own), n
        if n.op != "mul" or self.graph.uses[n.output] != 1:
            return None
        reduce = next(m for m in self.graph.nodes if n.output in m.inputs)
        axes = reduce.integers("axes") if reduce.op == "reduce" and reduce.text("how") == "sum" else ()
        if len(axes) != 1 or axes[0] - len(dims) not in (-1, -2):
            return None
        key = axes[0] - len(dims)
        return (other, key, reduce) if self._vector(other, key) else None

    def _size(self, n: GraphNode, name: str, labels: dict[str, str], k: str) -> int:
        return self.dims[name][labels[name].index(k)]

    def _vector(self, name: str, axis: int) -> bool:
        """Whether a value broadcasts to the state as one of its heads and of this axis."""
        assert self.after
        dims = self.dims[self.after.output]
        wanted = [*dims[:-2], *((d if i == axis + 2 else 1) for i, d in enumerate(dims[-2:]))]
        have = self.dims.get(name, ())
        return len(have) <= len(wanted) and [1] * (len(wanted) - len(have)) + list(have) == wanted

    def _outer(self, drive: str, key: int) -> tuple[str, str] | None:
        """k and v whose outer product the drive is."""
        assert self.after
        node = self.made.get(drive)
        if node is None or self.graph.uses[drive] != 1:
            return None
        a, b = (*node.inputs, "", "")[:2]
        if node.op == "mul":
            return next(
                ((k, v) for k, v in ((a, b), (b, a)) if self._vector(k, key) and self._vector(v, -3 - key)), None
            )
        if node.op != "einsum":
            return None
        operands, _, output = node.text("index").partition("->")
        labels = dict(zip(node.inputs, operands.split(","), strict=True))
        heads, rest = output[:-2], output[-2:]
        wanted = heads + rest[key], heads + rest[-3 - key]
        squeezed = {
            i: "".join(k for k in labels[i] if k in output and self._size(node, i, labels, k) != 1) for i in (a, b)
        }
        return next(((k, v) for k, v in ((a, b), (b, a)) if (squeezed[k], squeezed[v]) == wanted), None)

    def _heads_decay(self, factor: str, key: int) -> tuple[str, ...] | None:
        """The decay operand: none, one of every head, or one of every key; None where it is neither."""
        assert self.after
        dims = self.dims[self.after.output]
        if not factor:
            return ()
        if not self._unit(factor):
            return None
        heads = dims[0] if len(dims) == 3 else 1
        if factor in self.parameters:
            array = self.parameters[factor]
            full = (1,) * (len(dims) - array.ndim) + array.shape
            if full[-2:] != (1, 1):
                return None
            name = f"{factor}.per_head"
            self.parameters[name] = np.ascontiguousarray(np.broadcast_to(array.reshape(full[:-2] or (1,)), (heads,)))
            return (name,)
        have = self.dims[factor]
        per_head = math.prod(have) == heads and have[-2:] in ((1, 1), (1,), ())
        if per_head:
            return (self._shaped(factor, (heads,)),)
        return (self._shaped(factor, (heads, dims[key])),) if self._vector(factor, key) else None
