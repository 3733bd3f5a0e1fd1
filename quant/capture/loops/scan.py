"""torch's higher-order operator `scan`: its step function becomes graph nodes, which read carries of the step before.

(carry, x_t, ...) -> (new carry, y_t): a carry is `previous` of the new carry; an x_t and a y_t are values.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from isobit.quant.calibrate.evaluate import FORWARD
from isobit.quant.capture.constants import uniform
from isobit.quant.capture.graph import GraphNode

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def scan(c: Capture, n: fx.Node) -> None:
    """Inlines the step function.  Its initial carries are numbers, the same in all elements."""
    body, initial, inputs, others = (_operands(n.args[0]), *(_operands(a) for a in n.args[1:4]))
    if not c.timed or c.inside:
        raise c.error(n, "a scan of anything but time, or inside another scan, is not supported")
    graph = c.bodies[str(body[0].target)]
    step = _step(c, n)
    places = [p for p in graph.nodes if p.op == "placeholder"]
    carries = places[: len(initial)]
    for p, start in zip(carries, initial, strict=True):
        dims = tuple(int(d) for d in p.meta["val"].shape[1:])
        step.add(p, "previous", ("",), "carry", dims, {"initial": _start(c, n, start)})
    for p, x in zip(places[len(initial) :], (*inputs, *others), strict=True):
        _enter(c, n, step, p, x, sliced=x in inputs)
    made = step.walk(graph)
    _close(c, n, step, carries, made[: len(initial)])
    for user in n.users:
        index = user.args[1]
        assert isinstance(index, int)
        if made[index] not in step.values:
            raise c.error(n, "the step of a scan has a result that does not depend on its input")
        c.values[user] = step.values[made[index]]
        if index < len(initial):
            c.finals.add(user)
    c.vocabulary = step.vocabulary


def _operands(argument: object) -> tuple[fx.Node, ...]:
    return tuple(argument) if isinstance(argument, list | tuple) else (argument,)  # type: ignore[return-value]


def _step(c: Capture, n: fx.Node) -> Capture:
    """The walk over the step function: it adds to the same graph, and its tensors have no time axis."""
    step = copy.copy(c)
    step.tensors, step.values, step.sizes, step.shaped, step.unusable = {}, {}, {}, {}, {}
    step.timed, step.one_step, step.inside, step.lead = False, True, n, c.lead[:1]
    return step


def _start(c: Capture, n: fx.Node, start: fx.Node) -> float:
    tensor = c.known(start)
    number = None if tensor is None else uniform(tensor)
    if number is None:
        raise c.error(
            n,
            "a loop over time starts from a value that depends on the input, or differs between elements; expected "
            "zeros, or one number for all",
        )
    return number


def _enter(c: Capture, n: fx.Node, step: Capture, place: fx.Node, given: fx.Node, sliced: bool) -> None:
    """What the step function's placeholder stands for."""
    if sliced:
        if given not in c.values or not c.time_first(given):
            raise c.error(n, "a scan of a value that is not (T, B, ...) with time moved first is not supported")
        step.values[place] = c.values[given]
    elif given in c.tensors:
        step.tensors[place] = c.tensors[given]
    elif given in c.sizes:
        step.sizes[place] = c.sizes[given]
    elif given in c.shaped:
        step.shaped[place] = c.shaped[given]
    else:
        raise c.error(n, f"the step of a scan reads {given.name}, which has all time steps: hand it over among xs")


def _close(c: Capture, n: fx.Node, step: Capture, carries: list[fx.Node], new: list[fx.Node]) -> None:
    """What reads a carry learns the new one's name: a `shift` of it, or `previous` where it comes back to the carry."""
    for p, made in zip(carries, new, strict=True):
        name, before = step.values[p], step.values.get(made)
        if before is None or before == name:
            raise c.error(n, "a loop over time whose carry never changes is not supported: use a parameter")
        node = c.nodes[name]
        if node.number("initial") == 0 and not _reads(c, before, name):
            c.nodes[name] = replace(node, op="shift", inputs=(before,), attrs=())
        elif before == c.input:
            raise c.error(n, "a loop over time that hands on the model's input starts from a number, expected zeros")
        else:
            c.nodes[name] = replace(node, inputs=(before,))
    _sort(c)


def _reads(c: Capture, value: str, name: str) -> bool:
    """Whether a value is computed from `name` within one step."""
    seen, todo = set[str](), [value]
    while todo:
        v = todo.pop()
        if v == name:
            return True
        if v in c.nodes and v not in seen:
            todo += _read_now(c.nodes[v])
        seen.add(v)
    return False


def _read_now(node: GraphNode) -> tuple[str, ...]:
    """The inputs that must stand before a node: not what it reads of the step before."""
    return node.inputs[:-1] if node.op in FORWARD else node.inputs


def _sort(c: Capture) -> None:
    """Nodes after those that they read, else as they were."""
    nodes, placed = dict(c.nodes), dict[str, GraphNode]()

    def place(node: GraphNode) -> None:
        todo = [node]
        while todo:
            missing = [i for i in _read_now(todo[-1]) if i in nodes and i not in placed]
            if missing:
                todo.append(nodes[missing[0]])
            else:
                done = todo.pop()
                placed.setdefault(done.output, done)

    for node in nodes.values():
        place(node)
    c.nodes.clear()
    c.nodes.update(placed)
