"""An unrolled loop over time made plain: every read of one step is a `select`, and every collection a `stack`."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from isobit.quant.capture.constants import used

aten = torch.ops.aten


@dataclass(frozen=True)
class Collected:
    """A node that joins one value of every step, along axis `dim`."""

    node: fx.Node
    rows: tuple[fx.Node, ...]
    dim: int


def first(n: fx.Node) -> fx.Node:
    """The first operand."""
    operand = n.args[0]
    assert isinstance(operand, fx.Node)
    return operand


def number(n: fx.Node, position: int) -> int:
    """An argument that is an integer; 0 where it is left out."""
    value = n.args[position] if len(n.args) > position else 0
    assert isinstance(value, int)
    return value


def axis(n: fx.Node) -> int:
    """The second argument as an axis of the first operand, counted from the front."""
    return number(n, 1) % len(shape(first(n)))


def shape(n: fx.Node) -> tuple[object, ...]:
    value = n.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def form(n: fx.Node) -> str:
    """Everything of a node but which its operands are."""
    names: dict[fx.Node, str] = {}
    shown = fx.node.map_arg((n.args, n.kwargs), lambda i: names.setdefault(i, f"%{len(names)}"))
    return f"{n.target} {shown} {shape(n)}"


def is_read(n: fx.Node, steps: int) -> bool:
    """Whether it is one step of a value of all steps."""
    return n.target is aten.select.int and shape(first(n))[axis(n)] == steps


def insert(graph: fx.Graph, after: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A node in the layer and line of the one that it follows, with a value computed from those of its operands."""
    with graph.inserting_after(after):
        made = graph.call_function(target, args)
    made.meta = {k: v for k, v in after.meta.items() if k in ("stack_trace", "nn_module_stack")}
    made.meta["val"] = target(*fx.node.map_arg(args, lambda i: i.meta["val"]))
    return made


def swap(graph: fx.Graph, old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    graph.erase_node(old)


def make_plain(graph: fx.Graph, steps: int) -> None:
    """The same graph, of a model traced for `steps` steps, in the forms that a loop is looked for."""
    for n in [n for n in graph.nodes if n.target in READS]:
        READS[n.target](graph, n, steps)
    for n in [n for n in graph.nodes if n.target is operator.getitem]:
        earlier = [u for u in first(n).users if u.target is operator.getitem and u < n]
        max([first(n), *earlier]).append(n)
    for n in list(graph.nodes):
        _assigned(graph, n, steps)
    for n in [n for n in graph.nodes if n.target is aten.cat.default]:
        _concatenated(graph, n, steps)


def _slice(graph: fx.Graph, n: fx.Node, steps: int) -> None:
    """Of everything: nothing.  Of one step: a select."""
    if shape(n) == shape(first(n)):
        swap(graph, n, first(n))
    elif shape(n)[axis(n)] == 1 and shape(first(n))[axis(n)] == steps:
        _one(graph, n, first(n), axis(n), number(n, 2) % steps)


def _one(graph: fx.Graph, n: fx.Node, source: fx.Node, dim: int, step: int) -> None:
    """A slice of one step, such as (B, 1, ...), is a select that keeps its axis."""
    read = insert(graph, n, aten.select.int, source, dim, step)
    swap(graph, n, insert(graph, read, aten.unsqueeze.default, read, dim))


def _unbind(graph: fx.Graph, n: fx.Node, steps: int) -> None:
    dim = axis(n)
    if shape(first(n))[dim] == steps:
        for item in list(n.users):
            swap(graph, item, insert(graph, item, aten.select.int, first(n), dim, number(item, 1)))
        graph.erase_node(n)


def _split(graph: fx.Graph, n: fx.Node, steps: int) -> None:
    dim = number(n, 2) % len(shape(first(n)))
    if shape(first(n))[dim] == steps and all(shape(item)[dim] == 1 for item in n.users):
        for item in list(n.users):
            _one(graph, item, first(n), dim, number(item, 1))
        graph.erase_node(n)


READS = {
    aten.slice.Tensor: _slice,
    aten.unbind.int: _unbind,
    aten.split.Tensor: _split,
    aten.chunk.default: _split,
}
"""Operators that may read single steps."""


def _assigned(graph: fx.Graph, base: fx.Node, steps: int) -> None:
    """`y[:, t] = ...` for every step, into a tensor made for it, is a stack."""
    places = [u for u in base.users if u.target is aten.select.int and axis(u) == 1]
    writes = {number(u, 2) % steps: w for u in places for w in u.users if w.target is aten.copy_.default}
    if sorted(writes) != list(range(steps)) or len(places) != steps or shape(base)[1:2] != (steps,):
        return
    rows = [w.args[1] for _, w in sorted(writes.items())]
    last = max(writes.values())
    readers = [u for u in base.users if u not in places]
    if (
        any(len(p.users) != 1 for p in places)
        or any(u < last for u in readers)
        or any(not isinstance(r, fx.Node) or shape(r) != shape(p) for r, p in zip(rows, places, strict=True))
    ):
        return
    stacked = insert(graph, last, aten.stack.default, rows, 1)
    base.replace_all_uses_with(stacked, delete_user_cb=lambda user: user in readers)
    for w in writes.values():
        place = first(w)
        graph.erase_node(w)
        graph.erase_node(place)


def _concatenated(graph: fx.Graph, n: fx.Node, steps: int) -> None:
    """Values (B, 1, ...) joined along time are a stack of values (B, ...)."""
    rows, dim = _rows(n), number(n, 1) % len(shape(n))
    if len(rows) != steps or any(shape(r)[dim] != 1 for r in rows):
        return
    flat = [insert(graph, r, aten.squeeze.dim, r, dim) for r in rows]
    swap(graph, n, insert(graph, n, aten.stack.default, flat, dim))


def _rows(n: fx.Node) -> tuple[fx.Node, ...]:
    """What a stack or a concatenation joins."""
    rows = n.args[0]
    assert isinstance(rows, list | tuple)
    return tuple(r for r in rows if isinstance(r, fx.Node))


def next_loop(graph: fx.Graph, steps: int) -> list[Collected]:
    """The first loop's results: those that are made in turns, step by step.  None if nothing is collected."""
    stacks = [(n, _rows(n)) for n in graph.nodes if n.target is aten.stack.default]
    found = [Collected(n, rows, number(n, 1) % len(shape(n))) for n, rows in stacks if len(set(rows)) == steps]
    group = found[:1]
    for other in found[1:]:
        ends = [max(g.rows[t] for g in group) for t in range(steps)]
        starts = [min(g.rows[t] for g in group) for t in range(steps)]
        turns = zip(other.rows, other.rows[1:], ends, starts[1:], strict=False)
        if all(end < after and now < start for now, after, end, start in turns) and other.rows[-1] < group[0].node:
            group.append(other)
    return group


def collect_last(graph: fx.Graph, steps: int, tried: set[tuple[fx.Node, int]]) -> bool:
    """Where only the last step's values of a loop are used: collects those of all steps, and takes the last.

    tried: values whose reads were looked at; one more when there is a result.
    """
    needed = used(graph)
    inside = [n for n in graph.nodes if n in needed and n.op == "call_function" and not is_read(n, steps)]
    place = {n: i for i, n in enumerate(inside)}
    reads: dict[tuple[fx.Node, int], dict[int, fx.Node]] = {}
    for n in graph.nodes:
        if n in needed and is_read(n, steps):
            reads.setdefault((first(n), axis(n)), {}).setdefault(number(n, 2) % steps, n)
    for key, at in reads.items():
        if key in tried or len(at) != steps:
            continue
        tried.add(key)
        starts = [min(place[u] for u in at[t].users if u in place) for t in range(steps)]
        size = starts[-1] - starts[-2]
        if size < 1 or starts[1:] != list(range(starts[1], starts[-1] + 1, size)):
            continue
        run = [n for n in inside[starts[-1] :][:size] if form(n) == form(inside[place[n] - size])]
        for n in run:
            after = [u for u in n.users if u not in run]
            at_step = [place[n] - size * (steps - 1 - t) for t in range(steps)]
            if after:
                rows = [inside[i] if i >= 0 else at[t] for t, i in enumerate(at_step)]
                stacked = insert(graph, run[-1], aten.stack.default, rows, 1)
                last = insert(graph, stacked, aten.select.int, stacked, 1, -1)
                n.replace_all_uses_with(last, delete_user_cb=after.__contains__)
        return True
    return False
