"""The graph nodes of an exported node that is several of the graph's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from isobit.quant.capture.graph import Attribute, Dims

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture

Rule = Callable[["Capture", fx.Node], object]
"""Adds the graph nodes of an exported node."""


class Builder:
    """Adds the graph nodes of one exported node, all in its layer."""

    def __init__(self, c: Capture, n: fx.Node) -> None:
        self.c, self.n = c, n

    def value(self, position: int) -> str:
        return self.c.value(self.n, position)

    def dims(self, v: str) -> Dims:
        return self.c.dims[v]

    def named(self, role: str) -> str:
        """A name for a node that comes later."""
        return self.c.unique(f"{self.c.loc(self.n)}.{role}")

    def add(
        self, op: str, *inputs: str, role: str = "", name: str = "", dims: Dims | None = None, **attrs: Attribute
    ) -> str:
        """dims: those to which the values among the operands broadcast, where None."""
        if dims is None:
            dims = np.broadcast_shapes(*(self.c.dims[i] for i in inputs if i in self.c.dims))
        return self.c.add(self.n, op, inputs, role or op, dims, attrs, name)

    def previous(self, name: str, dims: Dims, initial: float = 0.0) -> str:
        return self.add("previous", name, role=f"{name.rpartition('.')[2]}_before", dims=dims, initial=initial)

    def linear(self, x: str, weight: str, *bias: str, role: str, contracted: int = 1) -> str:
        w, x_dims = self.c.parameters[weight], self.dims(x)
        dims = (*x_dims[: len(x_dims) - contracted], *w.shape[: w.ndim - contracted])
        return self.add("linear", x, weight, *bias, role=role, dims=dims, contracted=contracted)

    def parameter(self, name: str, array: np.ndarray) -> str:
        return self.c.enter(name, torch.from_numpy(np.ascontiguousarray(array)))

    def array(self, position: int) -> tuple[str, np.ndarray]:
        """A parameter of the exported node and its name."""
        name = self.c.parameter(self.n, position)
        return name, self.c.parameters[name]

    def negative(self, x: str) -> str:
        return self.add("scale", x, self.parameter("-1.0", np.array(-1.0)), role="neg")

    def reshaped(self, x: str, *dims: int) -> str:
        if self.dims(x) == dims:
            return x
        return self.c.add(self.n, "reshape", (x,), "reshape", dims, {"dims": dims})

    def done(self, name: str) -> None:
        self.c.values[self.n] = name
