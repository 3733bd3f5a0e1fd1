"""A Python loop over time, which torch.export unrolls over a fixed number of steps, rolled up again as a `scan`.

Every step of the loop leaves the same nodes, in the same order, which differ in the step that they read only.  What a
step reads of the one before it is a carry; what follows from the loop's results, one of every step, is left as it is.
Where the first step is another (it has no step before it), its carries are taken for zeros, and the last step, which
may lack what only a next one needs, is taken to be like the others: compare with the module.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, fx

from isobit.quant.capture.constants import concrete
from isobit.quant.capture.lines import user_line
from isobit.quant.capture.loops.unrolled import (
    Collected,
    axis,
    collect_last,
    first,
    form,
    insert,
    is_read,
    make_plain,
    next_loop,
    number,
    swap,
)

aten = torch.ops.aten

FEWEST = 4
"""Steps of a loop that show what is the same in each."""

Item = TypeVar("Item")


class CannotRoll(Exception):
    """Why the steps of a loop are no step function."""


@dataclass(frozen=True)
class Read:
    """One step of a value of all steps, `source`, with time on axis `dim`: `distance` steps ago."""

    source: fx.Node
    dim: int
    distance: int = 0


@dataclass(frozen=True)
class Now:
    """The node of this step at a place."""

    place: int


@dataclass(frozen=True)
class Before:
    """The node of the step before at a place."""

    place: int


@dataclass(frozen=True)
class Same:
    """A node outside of the loop, the same in every step."""

    node: fx.Node


Leaf = Read | Now | Before | Same
"""What an operand of a step is."""


def roll(graph: fx.Graph, bodies: dict[str, fx.Graph], steps: int) -> None:
    """Rolls up the loops of a graph, traced for `steps` steps; their step functions join `bodies`.

    Raises CannotRoll.
    """
    make_plain(graph, steps)
    tried = set[tuple[fx.Node, int]]()
    while (results := next_loop(graph, steps)) or collect_last(graph, steps, tried):
        if not results:
            continue
        line = user_line(results[0].rows[-1]) or user_line(results[0].node)
        try:
            if steps < FEWEST:
                raise CannotRoll(f"{steps} steps are too few to see what is the same in each, expected {FEWEST}")
            _roll(graph, bodies, _Loop(graph, results, steps))
        except CannotRoll as e:
            raise CannotRoll(f"{e}, in the loop that makes {results[0].rows[-1].name} ({line})") from None


@dataclass
class _Loop:
    """blocks: of every step but the first and the last, the nodes that results need, in order.  first: of the first."""

    graph: fx.Graph
    results: list[Collected]
    steps: int
    blocks: list[list[fx.Node]] = field(init=False)
    first: list[fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        ends = [max(_end(r.rows[t]) for r in self.results) for t in range(self.steps)]
        needed, todo = set[fx.Node](), [row for r in self.results for row in r.rows]
        while todo:
            n = todo.pop()
            if n not in needed and n.op == "call_function":
                needed.add(n)
                todo += n.all_input_nodes
        inside = sorted(n for n in needed if not is_read(n, self.steps))
        self.blocks = [[n for n in inside if a < n and not b < n] for a, b in pairwise(ends[:-1])]
        before = [n for n in inside if not ends[0] < n]
        size = len(self.blocks[0])
        self.first = before[len(before) - size :] if len(before) >= size else []

    def body(self) -> tuple[list[list[Leaf]], list[fx.Node]]:
        """The operands of a step, by node, and its nodes.  Raises CannotRoll where the steps differ."""
        places = [{n: i for i, n in enumerate(block)} for block in self.blocks]
        last = len(self.blocks) - 1
        leaves, forms = self._leaves(last, places), [form(n) for n in self.blocks[last]]
        for t in range(last):
            if [form(n) for n in self.blocks[t]] != forms or (t and self._leaves(t, places) != leaves):
                raise CannotRoll(f"step {t + 1} is not the same as step {last + 1}, counted from 0")
        return leaves, self.blocks[last]

    def _leaves(self, t: int, places: Sequence[dict[fx.Node, int]]) -> list[list[Leaf]]:
        return [[self._leaf(t, i, places) for i in n.all_input_nodes] for n in self.blocks[t]]

    def _leaf(self, t: int, operand: fx.Node, places: Sequence[dict[fx.Node, int]]) -> Leaf:
        """t: the number of the block, which computes step t + 1."""
        if operand in places[t]:
            return Now(places[t][operand])
        if t and operand in places[t - 1]:
            return Before(places[t - 1][operand])
        if is_read(operand, self.steps):
            return Read(first(operand), axis(operand), t + 1 - number(operand, 2) % self.steps)
        if any(operand in older for older in places[:t]):
            raise CannotRoll("a step reads further back than the step before it")
        return Same(operand)

    def result(self, r: Collected, block: list[fx.Node]) -> Leaf:
        """What a step gives to a result."""
        row = r.rows[-2]
        if row in block:
            return Now(block.index(row))
        if not is_read(row, self.steps):
            raise CannotRoll(f"{row.name} is not computed in the step that it is a result of")
        return Read(first(row), axis(row), self.steps - 2 - number(row, 2) % self.steps)

    def starts(self, leaves: list[list[Leaf]]) -> dict[int, fx.Node]:
        """By the place of a carry, what the first step reads instead; nothing where that is another step."""
        if [form(n) for n in self.first] != [form(n) for n in self.blocks[0]]:
            return {}
        found: dict[int, fx.Node] = {}
        for n, row in zip(self.first, leaves, strict=True):
            for operand, leaf in zip(n.all_input_nodes, row, strict=True):
                if isinstance(leaf, Before) and found.setdefault(leaf.place, operand) is not operand:
                    raise CannotRoll("the first step starts from different values where the others have one")
        return found


def _end(n: fx.Node) -> fx.Node:
    """The last of the items to which one belongs: all are of the same step."""
    return max(u for u in first(n).users if u.target is operator.getitem) if n.target is operator.getitem else n


def _unique(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))


def _roll(graph: fx.Graph, bodies: dict[str, fx.Graph], loop: _Loop) -> None:
    """Replaces the loop's results by those of a scan."""
    leaves, block = loop.body()
    results = [loop.result(r, block) for r in loop.results]
    every = [*(leaf for row in leaves for leaf in row), *results]
    if any(isinstance(leaf, Read) and leaf.distance not in (0, 1) for leaf in every):
        raise CannotRoll("a step reads an input of another step than its own and the one before")
    late = _unique(leaf for leaf in every if isinstance(leaf, Read) and leaf.distance == 1)
    sources = _unique(Read(leaf.source, leaf.dim) for leaf in every if isinstance(leaf, Read))
    carried = _unique(leaf for leaf in every if isinstance(leaf, Before))
    same = _unique(leaf for leaf in every if isinstance(leaf, Same))

    body = fx.Graph()
    value: dict[Leaf, fx.Node] = {}
    for i, carry in enumerate(carried):
        value[carry] = _placeholder(body, f"carry{i}", block[carry.place])
    for i, read in enumerate(late):
        value[read] = _placeholder(body, f"late{i}", _step(read, loop))
    for i, source in enumerate(sources):
        value[source] = _placeholder(body, f"x{i}", _step(source, loop))
    for i, other in enumerate(same):
        value[other] = _placeholder(body, f"other{i}", other.node)
    for i, n in enumerate(block):
        operands = {o: value[leaf] for o, leaf in zip(n.all_input_nodes, leaves[i], strict=True)}
        value[Now(i)] = body.node_copy(n, operands.__getitem__)
    new: list[Leaf] = [*(Now(c.place) for c in carried), *(Read(r.source, r.dim) for r in late)]
    body.output([value[leaf] for leaf in (*new, *results)])

    name = next(k for i in range(len(bodies) + 1) if (k := f"rolled_{i}") not in bodies)
    bodies[name] = body
    starts = loop.starts(leaves)
    initial = [starts.get(c.place) or value[c].meta["val"] for c in carried] + [value[r].meta["val"] for r in late]
    _call(graph, name, loop, initial, sources, [s.node for s in same])


def _step(read: Read, loop: _Loop) -> fx.Node:
    return next(u for u in read.source.users if is_read(u, loop.steps) and axis(u) == read.dim)


def _placeholder(body: fx.Graph, name: str, like: fx.Node) -> fx.Node:
    made = body.placeholder(name)
    made.meta = dict(like.meta)
    return made


def _call(
    graph: fx.Graph, name: str, loop: _Loop, initial: list[fx.Node | Tensor], sources: list[Read], same: list[fx.Node]
) -> None:
    """The scan before the first result, and its results in the places of the loop's.

    initial: nodes, or tensors like the zeros that are to be made.
    """
    where = min(r.node for r in loop.results)
    with graph.inserting_before(where):
        anchor = graph.get_attr(name)
    anchor.meta = {k: v for k, v in where.meta.items() if k in ("stack_trace", "nn_module_stack")}
    starts = [i if isinstance(i, fx.Node) else _zeros(graph, anchor, i) for i in initial]
    xs = [r.source if r.dim == 0 else insert(graph, anchor, aten.movedim.int, r.source, r.dim, 0) for r in sources]
    with graph.inserting_after(max([anchor, *starts, *xs])):
        scan = graph.call_function(torch.ops.higher_order.scan, (anchor, starts, xs, same))
    scan.meta = dict(anchor.meta)
    for i, r in enumerate(loop.results):
        with graph.inserting_after(scan):
            item = graph.call_function(operator.getitem, (scan, len(starts) + i))
        value = r.node.meta["val"]
        item.meta = {**anchor.meta, "val": value if r.dim == 0 else value.movedim(r.dim, 0)}
        swap(graph, r.node, item if r.dim == 0 else insert(graph, item, aten.movedim.int, item, 0, r.dim))
    graph.eliminate_dead_code()


def _zeros(graph: fx.Graph, after: fx.Node, like: Tensor) -> fx.Node:
    with graph.inserting_after(after):
        made = graph.call_function(aten.zeros.default, ([concrete(d) for d in like.shape],))
    made.meta = {"val": like}
    return made
