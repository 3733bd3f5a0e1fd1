"""The fusion plan, made once for all compiled targets: which pointwise nodes join which structure's loops."""

from __future__ import annotations

from dataclasses import dataclass, field

from isobit.quant.ops import Structure
from isobit.quant.program import Node, Program


@dataclass
class Group:
    """One loop nest over `labels` (time and batch dropped).

    prologue: pointwise nodes computed inside the structure, where it reads them; head: the structure, if any;
    epilogue: pointwise nodes computed from its result.
    """

    labels: str
    head: Node | None
    prologue: list[Node] = field(default_factory=list)
    epilogue: list[Node] = field(default_factory=list)

    @property
    def nodes(self) -> list[Node]:
        """In execution order."""
        return [*self.prologue, *([self.head] if self.head else []), *self.epilogue]

    @property
    def loc(self) -> str:
        """The user's layer of what the group is about."""
        return (self.head or self.epilogue[0]).loc


def plan(program: Program) -> list[Group]:
    """A pointwise node joins (a) the recurrence that it alone feeds, as prologue, if both have the same indices, so that no
    element is computed twice; else (b) the latest group that makes one of its operands over the same indices, as epilogue;
    else it is a group of its own."""
    consumers: dict[str, list[Node]] = {}
    for n in program.nodes:
        for i in n.inputs:
            consumers.setdefault(i, []).append(n)
    prologues: dict[str, list[Node]] = {}
    for n in program.nodes:
        users = consumers.get(n.output, [])
        if len(users) == 1 and _joins_as_prologue(n, users[0], program):
            prologues.setdefault(users[0].output, []).append(n)
    inside = {n.output for nodes in prologues.values() for n in nodes}

    groups: list[Group] = []
    maker: dict[str, int] = {}
    for n in program.nodes:
        if n.output in inside:
            continue
        latest = max((maker.get(i, -1) for i in n.inputs), default=-1)
        if n.spec.structure is not Structure.POINTWISE:
            groups.append(Group(_loops(n), n, prologue=prologues.get(n.output, [])))
        elif latest >= 0 and groups[latest].labels == _loops(n):
            groups[latest].epilogue.append(n)
            maker[n.output] = latest
            continue
        else:
            groups.append(Group(_loops(n), None, epilogue=[n]))
        maker[n.output] = len(groups) - 1
    return groups


def _joins_as_prologue(n: Node, user: Node, program: Program) -> bool:
    if n.spec.structure is not Structure.POINTWISE or user.spec.structure is not Structure.RECURRENCE:
        return False
    return set(_loops(n)) == set(user.labels.state) and n.output not in program.outputs


def _loops(n: Node) -> str:
    return n.labels.output.replace("t", "")
