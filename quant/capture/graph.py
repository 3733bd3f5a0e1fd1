"""The float graph: a flat list of operators over values of shape (B, T, *dims), with float64 parameters.

A model without a time axis (images) has T = 1.  An operator's name is that of its row in two tables: its meaning in
float (`isobit.quant.calibrate.evaluate`), and how it becomes integers (`isobit.quant.lower.rules`).  Values come before
parameters among its inputs; axes count within dims, without batch and time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Attribute = float | int | str | tuple[int, ...]
Dims = tuple[int, ...]


NEVER = -1e30
"""The logarithm of what has not happened yet: a state's initial value, which no range counts."""


@dataclass(frozen=True)
class GraphNode:
    """One operator; `loc` is the path of the user's module that called it, or the model's name."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: tuple[tuple[str, Attribute], ...]
    loc: str

    @cached_property
    def attr(self) -> Mapping[str, Attribute]:
        return dict(self.attrs)

    def number(self, name: str) -> float:
        """An attribute that is a number."""
        value = self.attr[name]
        assert isinstance(value, int | float)
        return value

    def integer(self, name: str) -> int:
        """An attribute that is an integer."""
        value = self.attr[name]
        assert isinstance(value, int)
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a tuple of integers."""
        value = self.attr[name]
        assert isinstance(value, tuple)
        return value

    def text(self, name: str) -> str:
        """An attribute that is a string."""
        value = self.attr[name]
        assert isinstance(value, str)
        return value


@dataclass(frozen=True, eq=False)
class Graph:
    """A model with one input and one output.

    dims: of the input and of every node's output.  parameters: float64, by the user's name, or, where it was computed
    from others, by its formula; int64 where they are a quantized layer's codes, which become integers as they are.
    timed: whether axis 1 of the user's input is time.  vocabulary: the number of integer identifiers that the input may
    hold; None for an input of real numbers.  last: whether the module returns the value of the last step only, where
    the graph has one of every step.
    """

    name: str
    input: str
    output: str
    nodes: tuple[GraphNode, ...]
    dims: dict[str, Dims]
    parameters: dict[str, Floats]
    timed: bool = True
    vocabulary: int | None = None
    last: bool = False

    @cached_property
    def uses(self) -> Counter[str]:
        """How many operands each value is; the model's output counts as one more."""
        return Counter([i for n in self.nodes for i in n.inputs] + [self.output])

    def live(self) -> Graph:
        """Without nodes, values and parameters that the output does not need."""
        made, needed, todo = {n.output: n for n in self.nodes}, {self.input}, [self.output]
        while todo:
            name = todo.pop()
            if name not in needed:
                needed.add(name)
                todo += made[name].inputs if name in made else ()
        return replace(
            self,
            nodes=tuple(n for n in self.nodes if n.output in needed),
            dims={k: v for k, v in self.dims.items() if k in needed},
            parameters={k: v for k, v in self.parameters.items() if k in needed},
        )


def unrounded(graph: Graph) -> Graph:
    """The graph where what quantizes only limits, so that near ties no rounding error becomes a step."""
    nodes = (
        replace(n, attrs=tuple((k, "none" if k == "rounding" else v) for k, v in n.attrs))
        if n.op == "fake_quantize"
        else n
        for n in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))
