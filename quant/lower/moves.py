"""Nodes that move elements of a quantity, for the rules that need them."""

from __future__ import annotations

import math
from dataclasses import replace

from isobit.quant.capture.graph import Dims, GraphNode
from isobit.quant.expr.interval import Interval
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.quantity import Quantity, letters


def padded(low: Lowering, n: GraphNode, x: Quantity, axis: int, before: int, after: int, name: str) -> Quantity:
    """x with zeros around one of its axes."""
    if before + after == 0:
        return x
    axes = letters(len(x.dims))
    size = x.dims[axis] + before + after
    made = axes.replace(axes[axis], "z")
    params = {"before": before, "after": after, "fill": 0}
    value = low.node("pad", f"t{axes}->t{made}", (x,), name, n.loc, params, x.shown_scale, sizes={"z": size})
    dims = (*x.dims[:axis], size, *x.dims[axis + 1 :])
    return replace(x, value=value, dims=dims, known=x.known.join(Interval(0, 0)))


def split(low: Lowering, n: GraphNode, x: Quantity, at: int, wanted: Dims, name: str) -> Quantity:
    """Axis `at` as the axes `wanted`."""
    for i in range(len(wanted) - 1):
        axes, inner = letters(len(x.dims)), math.prod(wanted[i + 1 :])
        index = f"t{axes}->t{axes[: at + i]}yz{axes[at + i + 1 :]}"
        params, sizes = {"inner": inner}, {"y": wanted[i], "z": inner}
        value = low.node("split_axis", index, (x,), f"{name}{i or ''}", n.loc, params, x.unit, sizes=sizes)
        x = replace(x, value=value, dims=low.dims[value])
    return x
