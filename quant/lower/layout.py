"""Lowering of operators that move values: nothing is computed, scales stay as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isobit.quant.capture.graph import Dims, Floats, GraphNode
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.moves import merged, padded, split
from isobit.quant.lower.quantity import Quantity, letters, symmetric_scale


def _source(low: Lowering, n: GraphNode) -> Quantity:
    """The operand in the widest form that is asked of it."""
    return low.need(n.inputs[0], low.width(n.inputs[0]))


def reshape(low: Lowering, n: GraphNode) -> None:
    """Equal but for axes of size 1, which a Program has not: the same value.  Else axes are merged, then split."""
    dims = n.integers("dims")
    if _squeezed(low.graph.dims[n.inputs[0]]) == _squeezed(dims):
        x = low.direct(n.inputs[0])
        low.quantities[n.output] = replace(x, dims=dims, scale=_scale_as(x, dims))
        return
    x = _source(low, n)
    now = replace(x, dims=_squeezed(x.dims))
    for i, (at, given, wanted) in enumerate(_blocks(now.dims, _squeezed(dims))):
        now = merged(low, n, now, at, len(given), f"{n.output}.merged{i or ''}")
        now = split(low, n, now, at, wanted, f"{n.output}.split{i or ''}")
    low.quantities[n.output] = replace(now, dims=dims)


def _scale_as(x: Quantity, dims: Dims) -> Floats:
    """The scale of x with its axes where `dims` has them."""
    if x.scale.ndim == 0:
        return x.scale
    kept = [s for d, s in zip(x.dims, x.scale.shape, strict=True) if d != 1]
    return x.scale.reshape([kept.pop(0) if d != 1 else 1 for d in dims])


def _squeezed(dims: Dims) -> Dims:
    return tuple(d for d in dims if d != 1)


def _blocks(have: Dims, want: Dims) -> list[tuple[int, Dims, Dims]]:
    """Runs of axes that become runs of other axes: (place in the result, those given, those wanted)."""
    blocks, i, j = list[tuple[int, Dims, Dims]](), 0, 0
    while i < len(have) or j < len(want):
        first, second = i, j
        a, b = have[i], want[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * have[i], i + 1
            else:
                b, j = b * want[j], j + 1
        if have[first:i] != want[second:j]:
            blocks.append((second, have[first:i], want[second:j]))
    return blocks


def permute(low: Lowering, n: GraphNode) -> None:
    x, order = _source(low, n), n.integers("order")
    axes = letters(len(x.dims))
    kept = [k for k in order if x.dims[k] != 1]
    value = x.value
    if kept != sorted(kept):
        made = "".join(axes[k] for k in order)
        value = low.node("transpose", f"t{axes}->t{made}", (x,), n.output, n.loc, {}, x.unit)
    low.quantities[n.output] = replace(x, value=value, dims=low.graph.dims[n.output])


def part(low: Lowering, n: GraphNode) -> None:
    """Elements of one axis."""
    x, axis = _source(low, n), n.integer("axis")
    axes, params = letters(len(x.dims)), {k: n.integer(k) for k in ("start", "step", "size")}
    value = x.value
    if x.dims[axis] > 1:
        index = f"t{axes}->t{axes.replace(axes[axis], 'z')}"
        value = low.node("take", index, (x,), n.output, n.loc, params, x.unit, sizes={"z": params["size"]})
    low.quantities[n.output] = replace(x, value=value, dims=low.graph.dims[n.output])


OWN_LETTERS = "jklmnopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWX"
"""Of the operands of a concat, along the joined axis."""


def concat(low: Lowering, n: GraphNode) -> None:
    """All operands at the scale of the coarsest; more than there are letters for are joined in turn.

    Quantizers of the model have few bits and scales of their own: where these differ, all get one in a wide form.
    """
    axis = n.integer("axis")
    bits = max(low.width(v) for v in n.inputs)
    given = [low.need(v, low.width(v)) for v in n.inputs]
    unit = max(q.unit for q in given)
    if any(q.trained and q.unit != unit for q in given):
        bits = low.recipe.wide_bits
        unit = symmetric_scale(low.calibration.ranges[n.output], bits)
    parts = [low.at(v, unit, bits, f"{n.output}.part{i}", n.loc) for i, v in enumerate(n.inputs)]
    level = 0
    while len(parts) > 1:
        runs = [parts[i : i + len(OWN_LETTERS)] for i in range(0, len(parts), len(OWN_LETTERS))]
        names = [f"{n.output}.joined{level}_{i}" if len(runs) > 1 else n.output for i in range(len(runs))]
        parts = [_join(low, n, run, axis, name) for run, name in zip(runs, names, strict=True)]
        level += 1
    low.quantities[n.output] = parts[0]


def _join(low: Lowering, n: GraphNode, parts: list[Quantity], axis: int, name: str) -> Quantity:
    axes = letters(len(parts[0].dims))
    labels = [f"t{axes.replace(axes[axis], k)}" for k, _ in zip(OWN_LETTERS, parts, strict=False)]
    index = f"{','.join(labels)}->t{axes.replace(axes[axis], 'Z')}"
    size = sum(p.dims[axis] for p in parts)
    value = low.node("concat", index, tuple(parts), name, n.loc, {}, parts[0].unit, sizes={"Z": size})
    known = parts[0].known
    for p in parts[1:]:
        known = known.join(p.known)
    trained = all(p.trained for p in parts)
    return Quantity(value, low.dims[value], np.asarray(parts[0].unit), known, trained)


def pad(low: Lowering, n: GraphNode) -> None:
    before, after = n.integer("before"), n.integer("after")
    low.quantities[n.output] = padded(low, n, _source(low, n), n.integer("axis"), before, after, n.output)
