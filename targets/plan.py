"""The fusion plan, made once for all compiled targets: which pointwise nodes join which structure's loops."""

from __future__ import annotations

from dataclasses import dataclass, field

from isobit.quant.ops import Structure
from isobit.quant.program import Node, Program


@dataclass
class Group:
    """One loop nest over `labels` (time and batch dropped).

    prologue: pointwise nodes computed inside the structure, where it reads them; head: the structure, if any;
    epilogue: pointwise nodes computed from its result.  renamed: node -> its axes -> the group's names for them.
    """

    labels: str
    head: Node | None
    prologue: list[Node] = field(default_factory=list)
    epilogue: list[Node] = field(default_factory=list)
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        """In execution order."""
        return [*self.prologue, *([self.head] if self.head else []), *self.epilogue]

    @property
    def loc(self) -> str:
        """The user's layer of what the group is about."""
        return (self.head or self.epilogue[0]).loc


def plan(program: Program) -> list[Group]:
    """Groups in execution order.

    A pointwise node joins (a) the recurrence that it alone feeds, as prologue, if both have the same axes, so that no
    element is computed twice; else (b) the latest group that makes one of its operands over the same axes, as
    epilogue; else it is a group of its own.  A reader of a state never moves past the state's owner.
    """
    order = {n.output: i for i, n in enumerate(program.nodes)}
    owner = {n.state: n.output for n in program.nodes if n.state}
    consumers: dict[str, list[Node]] = {}
    for n in program.nodes:
        for i in n.inputs:
            consumers.setdefault(i, []).append(n)
    prologues: dict[str, list[tuple[Node, dict[str, str]]]] = {}
    for n in program.nodes:
        users = consumers.get(n.output, [])
        if len(users) == 1 and n.output not in program.outputs:
            names = _as_prologue(n, users[0])
            read = [owner[i] for i in n.inputs if i in owner]
            if names is not None and all(order[o] > order[users[0].output] for o in read):
                prologues.setdefault(users[0].output, []).append((n, names))
    inside = {n.output for rows in prologues.values() for n, _ in rows}

    groups: list[Group] = []
    maker: dict[str, int] = {}
    for n in program.nodes:
        if n.output in inside:
            continue
        latest = max((maker.get(i, -1) for i in n.inputs), default=-1)
        names = _as_epilogue(n, groups[latest], maker, latest) if latest >= 0 else None
        if names is not None:
            groups[latest].epilogue.append(n)
            groups[latest].renamed[n.output] = names
            maker[n.output] = latest
            continue
        if n.spec.structure is Structure.POINTWISE:
            groups.append(Group(_loops(n), None, epilogue=[n]))
        else:
            rows = prologues.get(n.output, [])
            groups.append(Group(_loops(n), n, [p for p, _ in rows], renamed={p.output: names for p, names in rows}))
        maker[n.output] = len(groups) - 1
    return groups


def _loops(n: Node) -> str:
    """Axes of the output without time."""
    return n.labels.output.replace("t", "")


def _as_prologue(n: Node, user: Node) -> dict[str, str] | None:
    """The user's names for the axes of `n`, where `n` makes one element for each element of the user's state."""
    if n.spec.structure is not Structure.POINTWISE or user.spec.structure is not Structure.RECURRENCE:
        return None
    position = user.inputs.index(n.output)
    if user.inputs.count(n.output) != 1 or (user.spec.reads_old and position >= len(user.inputs) - user.spec.queries):
        return None
    read = user.labels.inputs[position].replace("t", "")
    every = set(user.labels.state + user.labels.scanned)
    return dict(zip(_loops(n), read, strict=True)) if set(read) == every else None


def _as_epilogue(n: Node, group: Group, maker: dict[str, int], latest: int) -> dict[str, str] | None:
    """The group's names for the axes of `n`, where `n` reads what the group makes, element by element."""
    if n.spec.structure is not Structure.POINTWISE:
        return None
    if group.head and group.head.spec.structure in (Structure.LAYOUT, Structure.HISTORY):
        return None
    made = [k.replace("t", "") for i, k in zip(n.inputs, n.labels.inputs, strict=True) if maker.get(i) == latest]
    if any(k != _loops(n) for k in made):
        return None
    return dict(zip(_loops(n), group.labels, strict=True))
