"""Moves of elements as one Gather: of blocks of neighbours, out of all operands joined, by a constant table."""

from __future__ import annotations

import math

import numpy as np

from isobit.export.onnx.body import Body, Value, element
from isobit.quant.check import Checked
from isobit.quant.interpret import position
from isobit.quant.program import Array, Node


def moved(n: Node, c: Checked, body: Body, given: list[Value]) -> Value:
    """The output of a layout; batch and time stay where they are."""
    sizes, t = c.sizes[n.output], c.types[n.output]
    counts = [math.prod(sizes[k] for k in g.axes[2:]) for g in given]
    table, fills = _table(n, c, counts)
    block = _block(table, counts)
    blocks, total = table[::block], sum(counts) // block
    blocks = np.where(blocks < 0, total - 1 - blocks, blocks // block)
    stays = np.array_equal(blocks, np.arange(total + len(fills)))
    parts = [body.place(g, g.axes, element(t)) for g in given]
    if len(parts) > 1 or fills or not stays:
        shapes = (body.constant([0, 0, count // block, block]) for count in counts)
        parts = [body.op("Reshape", part, shape) for part, shape in zip(parts, shapes, strict=True)]
    if fills:
        outer = body.op("Shape", given[0].name, start=0, end=2)
        shape = body.op("Concat", outer, body.constant([len(fills), block]), axis=0)
        values = np.array(fills).reshape(1, 1, -1, 1)
        parts.append(body.op("Expand", body.constant(values, t.elem.dtype), shape))
    joined = body.op("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]
    chosen = joined if stays else body.op("Gather", joined, body.constant(blocks), axis=2)
    return Value(body.op("Reshape", chosen, body.constant([0, 0, *t.dims])), "b" + n.labels.output, element(t))


def _table(n: Node, c: Checked, counts: list[int]) -> tuple[Array, list[int]]:
    """For every element of the output, row-major: its place in the operands joined, or -1 - i where fill i goes."""
    assert n.spec.moves is not None
    sizes, first = c.sizes[n.output], np.cumsum([0, *counts])
    sources = [
        np.arange(start, start + count).reshape([sizes[k] for k in labels if k != "t"])
        for start, count, labels in zip(first[:-1], counts, n.labels.inputs, strict=True)
    ]
    out = np.empty(c.types[n.output].dims, np.int64)
    fills: list[int] = []
    for move in n.spec.moves(n.labels, sizes, **n.param):
        grid = dict(zip((k for k, _ in move.loops), np.indices([size for _, size in move.loops]), strict=True))
        target = tuple(position(p, grid) for p in move.target)
        if move.operand is None:
            if move.fill not in fills:
                fills.append(move.fill)
            out[target] = -1 - fills.index(move.fill)
        else:
            out[target] = sources[move.operand][tuple(position(p, grid) for p in move.source)]
    return out.ravel(), fills


def _block(table: Array, counts: list[int]) -> int:
    """The longest length in which the operands and the output are whole blocks, each moved or filled as one."""
    follows = np.diff(table) == np.where((table[1:] < 0) | (table[:-1] < 0), 0, 1)
    starts = np.flatnonzero(np.concatenate([[True], ~follows]))
    read = table[starts]
    return math.gcd(table.size, *counts, *(int(i) for i in starts), *(int(i) for i in read[read >= 0]))
