"""Layout: axes merged, split, cut, padded, joined, inside one time step; time and batch stay where they are.

An op is its moves; the reference, ONNX and the loop nests are interpretations of them.  Axes are one letter each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isobit.quant.errors import CheckError
from isobit.quant.ops.moves import Move, affine
from isobit.quant.ops.op import Case

Sizes = Mapping[str, int]


def _new_axes(labels: Any) -> tuple[str, str]:
    """Axes of the only operand that the output lacks, and those of the output that the operand lacks."""
    x, out = labels.inputs[0], labels.output
    return "".join(k for k in x if k not in out), "".join(k for k in out if k not in x)


def _one_to_one(labels: Any, op: str, may_lack: int) -> tuple[str, str]:
    """The axis that is replaced and its successor, of which one may be missing: it has a single element."""
    pair = _new_axes(labels)
    both = labels.inputs[0].replace(pair[0], "") if pair[0] else labels.inputs[0]
    kept = labels.output.replace(pair[1], "") if pair[1] else labels.output
    fits = len(labels.inputs) == 1 and both == kept and len(pair[1 - may_lack]) == 1 and len(pair[may_lack]) <= 1
    if not fits:
        raise CheckError(f"{op} replaces one axis by another, as in tl->tm")
    return pair


def _loops(labels: str, sizes: Sizes) -> tuple[tuple[str, int], ...]:
    return tuple((k, sizes[k]) for k in labels if k != "t")


def merge_axes(x: Any) -> Any:
    """Two or more neighbouring axes as one, row-major: tyxc->tlc."""
    return x


def merge_sizes(labels: Any, sizes: Sizes) -> dict[str, int]:
    gone, made = _new_axes(labels)
    x = labels.inputs[0]
    if len(labels.inputs) != 1 or len(gone) < 2 or len(made) != 1 or x.replace(gone, made) != labels.output:
        raise CheckError("merge_axes makes one axis of neighbouring ones in their place, as in tyxc->tlc")
    total = 1
    for k in gone:
        total *= sizes[k]
    return {made: total}


def merge_moves(labels: Any, sizes: Sizes) -> tuple[Move, ...]:
    gone, made = _new_axes(labels)
    terms, stride = list[tuple[str, int]](), 1
    for k in reversed(gone):
        terms.append((k, stride))
        stride *= sizes[k]
    merged = affine(*reversed(terms))
    x = labels.inputs[0].replace("t", "")
    target = tuple(merged if k == made else k for k in labels.output if k != "t")
    return (Move(_loops(x, sizes), 0, tuple(x), target),)


def split_axis(x: Any, *, inner: int) -> Any:
    """One axis as two, row-major, the second of size `inner`: tl->tyx."""
    return x


def split_sizes(labels: Any, sizes: Sizes, *, inner: int) -> dict[str, int]:
    gone, made = _new_axes(labels)
    if (
        len(labels.inputs) != 1
        or len(gone) != 1
        or len(made) != 2
        or labels.inputs[0].replace(gone, made) != labels.output
    ):
        raise CheckError("split_axis makes two axes of one in its place, as in tlc->tyxc")
    if inner < 1 or sizes[gone] % inner:
        raise CheckError(f"split_axis: {sizes[gone]} elements are no multiple of {inner}")
    return {made[0]: sizes[gone] // inner, made[1]: inner}


def split_moves(labels: Any, sizes: Sizes, *, inner: int) -> tuple[Move, ...]:
    gone, made = _new_axes(labels)
    whole = affine((made[0], inner), (made[1], 1))
    source = tuple(whole if k == gone else k for k in labels.inputs[0] if k != "t")
    target = tuple(k for k in labels.output if k != "t")
    return (Move(_loops(labels.output, sizes), 0, source, target),)


def take(x: Any, *, start: int, step: int, size: int) -> Any:
    """`size` elements of one axis, from `start`, every `step`-th; step -1 reverses: tl->tm, or tl->t for one."""
    return x


def take_sizes(labels: Any, sizes: Sizes, *, start: int, step: int, size: int) -> dict[str, int]:
    gone, made = _one_to_one(labels, "take", 1)
    last = start + step * (size - 1)
    if size < 1 or (size > 1 and not made) or step == 0 or not (0 <= start < sizes[gone] and 0 <= last < sizes[gone]):
        raise CheckError(f"take: elements {start} to {last} of an axis of {sizes[gone]}")
    return {made: size} if made else {}


def take_moves(labels: Any, sizes: Sizes, *, start: int, step: int, size: int) -> tuple[Move, ...]:
    gone, made = _one_to_one(labels, "take", 1)
    place = affine((made, step), by=start) if made else start
    source = tuple(place if k == gone else k for k in labels.inputs[0] if k != "t")
    target = tuple(k for k in labels.output if k != "t")
    return (Move(_loops(labels.output, sizes), 0, source, target),)


def pad(x: Any, *, before: int, after: int, fill: int) -> Any:
    """One axis with `before` and `after` elements of value `fill` around it: tl->tm, or t->tm."""
    return x


def pad_sizes(labels: Any, sizes: Sizes, *, before: int, after: int, fill: int) -> dict[str, int]:
    gone, made = _one_to_one(labels, "pad", 0)
    if before < 0 or after < 0:
        raise CheckError(f"pad: {before} elements before and {after} after, expected none below 0")
    return {made: before + sizes.get(gone, 1) + after}


def pad_moves(labels: Any, sizes: Sizes, *, before: int, after: int, fill: int) -> tuple[Move, ...]:
    gone, made = _one_to_one(labels, "pad", 0)
    out = tuple(k for k in labels.output if k != "t")
    moves = []
    for size, by in ((before, 0), (after, before + sizes.get(gone, 1))):
        if size:
            loops = tuple((k, size if k == made else sizes[k]) for k in out)
            moves.append(Move(loops, None, (), tuple(affine((k, 1), by=by) if k == made else k for k in out), fill))
    x = tuple(k for k in labels.inputs[0] if k != "t")
    inside = affine((gone, 1), by=before) if gone else before
    target = tuple(inside if k == made else k for k in out)
    return (*moves, Move(_loops(labels.inputs[0], sizes), 0, x, target))


def concat(x: Any) -> Any:
    """Operands joined along one axis, which has a letter of its own in each, or none for one element: tlc,tc->tnc."""
    return x


def _joined(labels: Any) -> tuple[list[str], str]:
    gone = ["".join(k for k in x if k not in labels.output) for x in labels.inputs]
    made = [k for k in labels.output if not any(k in x for x in labels.inputs)]
    named = [g for g in gone if g]
    if len(made) != 1 or any(len(g) > 1 for g in gone) or len(set(named)) != len(named):
        raise CheckError("concat joins one axis, with a letter of its own in every operand, as in tlc,tmc->tnc")
    one = labels.output.replace(made[0], "")
    if any(
        (x.replace(g, made[0]) if g else x) != (labels.output if g else one)
        for x, g in zip(labels.inputs, gone, strict=True)
    ):
        raise CheckError("concat joins operands whose other axes are equal and in the same order")
    return gone, made[0]


def concat_sizes(labels: Any, sizes: Sizes) -> dict[str, int]:
    gone, made = _joined(labels)
    return {made: sum(sizes.get(k, 1) for k in gone)}


def concat_moves(labels: Any, sizes: Sizes) -> tuple[Move, ...]:
    gone, made = _joined(labels)
    moves, by = [], 0
    for i, (x, k) in enumerate(zip(labels.inputs, gone, strict=True)):
        inside = affine((k, 1), by=by) if k else by
        target = tuple(inside if axis == made else axis for axis in labels.output if axis != "t")
        moves.append(Move(_loops(x, sizes), i, tuple(axis for axis in x if axis != "t"), target))
        by += sizes.get(k, 1)
    return tuple(moves)


MERGE_CASES = (Case("rows and columns", "tyxc->tlc", {"y": 3, "x": 5, "c": 2}, ("i8",)),)
SPLIT_CASES = (Case("heads", "tk->thd", {"k": 12}, ("i16",), {"inner": 4}),)
TAKE_CASES = (
    Case("reversed", "tlc->tmc", {"l": 5, "c": 3}, ("i8",), {"start": 4, "step": -1, "size": 5}),
    Case("every second", "tlc->tmc", {"l": 7, "c": 2}, ("i32",), {"start": 1, "step": 2, "size": 3}),
    Case("one", "tlc->tc", {"l": 7, "c": 2}, ("i8",), {"start": 5, "step": 1, "size": 1}),
)
PAD_CASES = (
    Case("both ends", "tlc->tmc", {"l": 4, "c": 3}, ("i8",), {"before": 2, "after": 1, "fill": -7}),
    Case("one end", "tcl->tcm", {"l": 4, "c": 3}, ("i16",), {"before": 0, "after": 3, "fill": 0}),
    Case("after the last element", "tl->tm", {"l": 4}, ("i8",), {"before": 0, "after": 2, "fill": 3}),
    Case("one element", "tc->tmc", {"c": 3}, ("i8",), {"before": 1, "after": 1, "fill": 0}),
)
CONCAT_CASES = (
    Case("three", "tac,tdc,tec->tnc", {"a": 1, "d": 3, "e": 2, "c": 4}, ("i8", "i16", "i8")),
    Case("single elements", "tc,tac,tc->tnc", {"a": 2, "c": 3}, ("i8", "i8", "i8")),
)
