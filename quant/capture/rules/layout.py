"""Operators that move elements: reshape, permute, slice, split, concatenate, pad, expand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import fx

from isobit.quant.capture.rules.products import repeated

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture

PART_ROLES = {
    ("isobit.selective_recurrence.default", 0): "u",
    ("isobit.selective_recurrence.default", 1): "dt",
    ("isobit.selective_recurrence.default", 3): "B",
    ("isobit.selective_recurrence.default", 4): "C",
    ("isobit.causal_conv1d.default", 0): "x",
    ("aten.silu.default", 0): "z",
}
"""What a part of a split projection is called, by the operand that it becomes."""


PARTS = ("aten.split_with_sizes.default", "aten.split.Tensor", "aten.chunk.default", "aten.unbind.int")
"""Operators whose items `part` takes."""


BROADCASTING = ("aten.mul.Tensor", "aten.add.Tensor", "aten.sub.Tensor", "aten.div.Tensor", "aten.maximum.default")


def reshape(c: Capture, n: fx.Node) -> None:
    x, dims = c.value(n, 0), c.shape(n)
    if math.prod(dims) != math.prod(c.dims[x]):
        raise c.error(n, f"{n.target} of {c.dims[x]} to {dims}: batch and time must stay axes of their own")
    if dims == c.dims[x]:
        c.values[n] = x
    else:
        c.emit(n, "reshape", (x,), "reshape", dims=dims)


def expand(c: Capture, n: fx.Node) -> None:
    """Nothing for operators that broadcast; else copies, joined."""
    x, dims = c.value(n, 0), c.shape(n)
    if all(str(user.target) in BROADCASTING for user in n.users):
        c.values[n] = x
        return
    c.values[n] = repeated(c, n, x, dims)


def _permuted(c: Capture, n: fx.Node, order: list[int]) -> None:
    source = n.args[0]
    assert isinstance(source, fx.Node)
    time = c.time_axis(source)
    lead = [0] if time is None else [1, 0] if time == 0 else [0, time]
    axes = [k for k in range(len(order)) if k not in lead]
    if order[0] not in lead or (time is not None and order.index(time) != c.time_axis(n)):
        raise c.error(n, f"{n.target} moves batch or time in a way that is not supported: expected (B, T, ...)")
    x, rest = c.value(n, 0), tuple(axes.index(k) for k in order if k in axes)
    if rest == tuple(range(len(rest))):
        c.values[n] = x
        c.shape(n)
    else:
        c.emit(n, "permute", (x,), "permute", order=rest)


def permute(c: Capture, n: fx.Node) -> None:
    order, rank = n.args[1], len(n.meta["val"].shape)
    assert isinstance(order, list)
    _permuted(c, n, [int(k) % rank for k in order])


def transpose(c: Capture, n: fx.Node) -> None:
    order = list(range(len(n.meta["val"].shape)))
    first, second = (int(k) % len(order) for k in n.args[1:3])  # type: ignore[arg-type]
    order[first], order[second] = order[second], order[first]
    _permuted(c, n, order)


def matrix_transpose(c: Capture, n: fx.Node) -> None:
    order = list(range(len(n.meta["val"].shape)))
    order[-2:] = order[-1], order[-2]
    _permuted(c, n, order)


def movedim(c: Capture, n: fx.Node) -> None:
    rank = len(n.meta["val"].shape)
    source, target = (int(k) % rank for k in n.args[1:3])  # type: ignore[arg-type]
    order = [k for k in range(rank) if k != source]
    order.insert(target, source)
    _permuted(c, n, order)


def sliced(c: Capture, n: fx.Node, x: str, axis: int, start: int, step: int, size: int, role: str = "part") -> str:
    """Elements start, start + step, ... of one axis of dims."""
    dims = (*c.dims[x][:axis], size, *c.dims[x][axis + 1 :])
    return c.add(n, "slice", (x,), role, dims, {"axis": axis, "start": start, "step": step, "size": size})


def flip(c: Capture, n: fx.Node) -> None:
    x, axes = c.value(n, 0), n.args[1]
    assert isinstance(axes, list)
    for axis in axes:
        within = c.axis(n, int(axis))
        size = c.dims[x][within]
        x = sliced(c, n, x, within, size - 1, -1, size, "flip")


def slice_axis(c: Capture, n: fx.Node) -> None:
    x, operand = c.value(n, 0), n.args[0]
    dim, start, end, step = (
        c.argument(n, i, k, d) for i, k, d in ((1, "dim", 0), (2, "start", None), (3, "end", None), (4, "step", 1))
    )
    assert isinstance(operand, fx.Node)
    if operand.meta["val"].shape == n.meta["val"].shape:
        c.values[n] = x
        return
    if (
        not all(isinstance(v, int | None) for v in (start, end))
        or not isinstance(dim, int)
        or not isinstance(step, int)
    ):
        raise c.error(n, f"{n.target} with limits that depend on the input is not supported")
    axis = c.axis(n, dim)
    first, last, stride = slice(start, end, step).indices(c.dims[x][axis])
    sliced(c, n, x, axis, first, stride, len(range(first, last, stride)))


def select(c: Capture, n: fx.Node) -> None:
    x, dim, index = c.value(n, 0), n.args[1], n.args[2]
    assert isinstance(dim, int)
    assert isinstance(index, int)
    axis = c.axis(n, dim)
    _item(c, n, x, axis, index % c.dims[x][axis])


def _item(c: Capture, n: fx.Node, x: str, axis: int, index: int) -> None:
    """One element of an axis, which disappears."""
    one = sliced(c, n, x, axis, index, 1, 1)
    dims = (*c.dims[x][:axis], *c.dims[x][axis + 1 :])
    c.add(n, "reshape", (one,), "item", dims, {"dims": dims})


def part(c: Capture, n: fx.Node) -> None:
    """One part of a split value."""
    split, index = n.args
    assert isinstance(split, fx.Node)
    assert isinstance(index, int)
    if str(split.target) not in PARTS:
        raise c.error(n, f"an item of {split.target} is not supported; supported: items of {', '.join(PARTS)}")
    x = c.value(split, 0)
    if str(split.target) == "aten.unbind.int":
        dim = c.argument(split, 1, "dim", 0)
        assert isinstance(dim, int)
        _item(c, n, x, c.axis(split, dim), index)
        return
    dim = c.argument(split, 2, "dim", 0)
    assert isinstance(dim, int)
    try:
        axis = c.axis(split, dim)
    except Exception:
        raise c.error(n, f"{split.target} along time or batch is not supported, only along channels") from None
    sizes = [int(part.shape[axis + (2 if c.timed else 1)]) for part in split.meta["val"]]
    user = next(iter(n.users))
    role = PART_ROLES.get((str(user.target), user.args.index(n) if n in user.args else -1), f"part{index}")
    if str(user.target) == "aten.linear.default" and c.loc(user) != c.name:
        role = f"{c.loc(user).rpartition('.')[2]}_input"
    source = split.args[0]
    assert isinstance(source, fx.Node)
    n.meta["nn_module_stack"] = source.meta.get("nn_module_stack")
    sliced(c, n, x, axis, sum(sizes[:index]), 1, sizes[index], role)


def cat(c: Capture, n: fx.Node) -> None:
    parts, dim = n.args[0], c.argument(n, 1, "dim", 0)
    assert isinstance(parts, list | tuple)
    assert isinstance(dim, int)
    if not all(c.is_value(p) for p in parts):
        raise c.error(n, f"{n.target} of a parameter and values is not supported")
    axis = c.axis(n, dim, len(n.meta["val"].shape))
    c.emit(n, "concat", [c.values[p] for p in parts], "concat", axis=axis)  # type: ignore[index]


def pad(c: Capture, n: fx.Node) -> None:
    x, pads, rank = c.value(n, 0), n.args[1], len(c.dims[c.value(n, 0)])
    assert isinstance(pads, list)
    if c.argument(n, 2, "mode", "constant") != "constant" or c.argument(n, 3, "value", 0) not in (None, 0, 0.0):
        raise c.error(n, "padding with anything but zeros is not supported")
    if len(pads) // 2 > rank:
        raise c.error(n, "padding of batch or time is not supported: use CausalConv1d, whose history starts at zero")
    for i in range(len(pads) // 2):
        before, after, axis = int(pads[2 * i]), int(pads[2 * i + 1]), rank - 1 - i
        if before or after:
            dims = (*c.dims[x][:axis], c.dims[x][axis] + before + after, *c.dims[x][axis + 1 :])
            x = c.add(n, "pad", (x,), "pad", dims, {"axis": axis, "before": before, "after": after})
    c.values[n] = x
