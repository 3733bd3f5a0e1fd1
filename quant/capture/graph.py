"""The float graph: a flat list of operators over values of shape (B, T, channels), with float64 parameters.

Operators and their operands (p: a parameter):
`linear` (x, p weight (N, K), p bias (N,) or absent); `causal_conv1d` (x, p weight (C, K), p bias (C,));
`rms_norm` (x, p weight (C,)), attribute eps; `silu` (x); `softplus` (x);
`selective_recurrence` (u, dt, p a (C, N), b, c); `mul` (x, y); `scale` (x, p of () or (C,)); `add` (x, y);
`running_mean` (x).  Their meaning is the float evaluator's, `isobit.quant.calibrate.observe`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GraphNode:
    """One operator; `loc` is the path of the user's module that called it, or the model's name."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: tuple[tuple[str, float], ...]
    loc: str

    @property
    def attr(self) -> dict[str, float]:
        return dict(self.attrs)


@dataclass(frozen=True, eq=False)
class Graph:
    """A model with one input and one output, (B, T, channels) each.

    channels: of the input and of every node's output.  parameters: float64, by the user's name, or, where it was
    computed from others, by its formula.
    """

    name: str
    input: str
    output: str
    nodes: tuple[GraphNode, ...]
    channels: dict[str, int]
    parameters: dict[str, Floats]

    @cached_property
    def uses(self) -> Counter[str]:
        """How many operands each value is; the model's output counts as one more."""
        return Counter([i for n in self.nodes for i in n.inputs] + [self.output])
