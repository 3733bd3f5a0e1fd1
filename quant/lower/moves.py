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
        if inner == 1:
            return replace(x, dims=(*x.dims[: at + i], *wanted[i:], *x.dims[at + i + 1 :]))
        index = f"t{axes}->t{axes[: at + i]}yz{axes[at + i + 1 :]}"
        params, sizes = {"inner": inner}, {"y": wanted[i], "z": inner}
        value = low.node("split_axis", index, (x,), f"{name}{i or ''}", n.loc, params, x.unit, sizes=sizes)
        x = replace(x, value=value, dims=low.dims[value])
    return x


def merged(low: Lowering, n: GraphNode, x: Quantity, at: int, count: int, name: str) -> Quantity:
    """`count` axes, from axis `at` on, as one."""
    axes, size = letters(len(x.dims)), math.prod(x.dims[at : at + count])
    if size in x.dims[at : at + count]:
        return replace(x, dims=(*x.dims[:at], size, *x.dims[at + count :]))
    index = f"t{axes}->t{axes[:at]}z{axes[at + count :]}"
    value = low.node("merge_axes", index, (x,), name, n.loc, {}, x.unit, sizes={"z": size})
    return replace(x, value=value, dims=low.dims[value])


def recent(low: Lowering, n: GraphNode, x: Quantity, length: int, ring: str, name: str) -> Quantity:
    """The last values of x, oldest first, as (length, ...); ring: the state that holds all but the newest."""
    axes = letters(len(x.dims))
    index, params = f"t{axes}->tw{axes}", {"length": length}
    value = low.node("history", index, (x,), name, n.loc, params, x.unit, ring, sizes={"w": length})
    return Quantity(value, (length, *x.dims), x.scale, x.known)
