"""Bounds of values of the float graph that hold for every input, as far as single operators tell."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from isobit.quant.capture.graph import Graph, GraphNode

Bounds = tuple[float, float]

UNKNOWN = (-math.inf, math.inf)

FIXED: dict[str, Bounds] = {
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "heaviside": (0.0, 1.0),
    "top_k": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "sign": (-1.0, 1.0),
    "softplus": (0.0, math.inf),
    "abs": (0.0, math.inf),
    "sqrt": (0.0, math.inf),
    "log_sigmoid": (-math.inf, 0.0),
}
"""Of operators whatever their operand."""


def bounds(graph: Graph) -> Callable[[str], Bounds]:
    """The function from a value or parameter to limits that it never leaves; computed once each."""
    made = {n.output: n for n in graph.nodes}
    known: dict[str, Bounds] = {}

    def of(name: str) -> Bounds:
        if name not in known:
            known[name] = UNKNOWN
            if name in graph.parameters:
                known[name] = float(graph.parameters[name].min()), float(graph.parameters[name].max())
            elif name in made:
                known[name] = _of_node(made[name], of)
        return known[name]

    return of


def _of_node(n: GraphNode, of: Callable[[str], Bounds]) -> Bounds:
    if n.op in FIXED:
        return FIXED[n.op]
    if n.op not in RULES:
        return UNKNOWN
    return RULES[n.op](n, [of(i) for i in n.inputs])


def _product(n: GraphNode, args: list[Bounds]) -> Bounds:
    a, b = args
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    lo, hi = min(ends), max(ends)
    return (max(lo, 0.0), hi) if len(set(n.inputs)) == 1 else (lo, hi)


def _exp(n: GraphNode, args: list[Bounds]) -> Bounds:
    with np.errstate(over="ignore"):
        return float(np.exp(args[0][0])), float(np.exp(args[0][1]))


RULES: dict[str, Callable[[GraphNode, list[Bounds]], Bounds]] = {
    "mul": _product,
    "scale": _product,
    "add": lambda n, a: (a[0][0] + a[1][0], a[0][1] + a[1][1]),
    "offset": lambda n, a: (a[0][0] + a[1][0], a[0][1] + a[1][1]),
    "sub": lambda n, a: (a[0][0] - a[1][1], a[0][1] - a[1][0]),
    "maximum": lambda n, a: (max(a[0][0], a[1][0]), max(a[0][1], a[1][1])),
    "clamp": lambda n, a: (
        min(max(a[0][0], n.number("lo")), n.number("hi")),
        max(min(a[0][1], n.number("hi")), n.number("lo")),
    ),
    "exp": _exp,
    "concat": lambda n, a: (min(x[0] for x in a), max(x[1] for x in a)),
    "pad": lambda n, a: (min(a[0][0], 0.0), max(a[0][1], 0.0)),
    "shift": lambda n, a: (min(a[0][0], 0.0), max(a[0][1], 0.0)),
    **dict.fromkeys(("reshape", "permute", "slice", "running_mean"), lambda n, a: a[0]),
}
