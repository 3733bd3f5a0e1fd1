"""The fusion plan, made once for all compiled targets: which nodes share a loop nest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from string import ascii_lowercase

from isobit.quant.check import Checked, check
from isobit.quant.ops import Structure
from isobit.quant.program import Node, Program

CHEAP = {"var", "const", "add", "sub", "shl", "shr", "and", "or", "xor", "bound"}
"""Primitives of which a value is sooner computed again than stored."""

MOST_TIMES = 4
"""How often it may be computed."""

Readers = Mapping[str, list[tuple[Node, int]]]
"""By value: nodes, and at which of their operands they read it."""


@dataclass
class Group:
    """One loop nest over `labels` (time and batch dropped).

    prologue: groups computed inside the structure, where it reads what they make; head: the structure, if any;
    epilogue: pointwise nodes computed from its result.  renamed: node -> its axes -> the nest's names for them.
    """

    labels: str
    head: Node | None
    prologue: list[Group] = field(default_factory=list)
    epilogue: list[Node] = field(default_factory=list)
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def own(self) -> list[Node]:
        """Those without the prologue's."""
        return [*([self.head] if self.head else []), *self.epilogue]

    @property
    def nodes(self) -> list[Node]:
        """In execution order."""
        return [*(n for g in self.prologue for n in g.nodes), *self.own]

    @property
    def loc(self) -> str:
        """The user's layer of what the group is about."""
        return self.own[0].loc

    def axis(self, n: Node, label: str) -> str:
        """The nest's name for an axis of one of `own`."""
        return self.renamed.get(n.output, {}).get(label, label)

    @property
    def axes(self) -> set[str]:
        """The nest's names for all axes, time included."""
        own = {self.axis(n, k) for n in self.own for k in n.index if k.isalpha()}
        return own.union(*(g.axes for g in self.prologue))


@dataclass(frozen=True)
class Read:
    """`reader` reads what `made` makes, as its operand at `position`.  axes: of `made`, without time -> of `reader`."""

    made: Node
    reader: Node
    position: int

    @property
    def axes(self) -> dict[str, str]:
        read = self.reader.labels.inputs[self.position].replace("t", "")
        return dict(zip(_loops(self.made), read, strict=True))


def plan(program: Program, inside: bool = True) -> list[Group]:
    """Groups in execution order.

    A pointwise node joins (a) the recurrence that it alone feeds, as prologue, if both have the same axes, so that no
    element is computed twice; else (b) the latest group that makes one of its operands over the same axes, as
    epilogue; else it is a group of its own.

    A group that makes one value, read by one contraction only, then moves into the contraction's innermost loop, as
    prologue, and the value is not stored.  It does so if it is pointwise and (c) every element is read once, or (d) an
    element is read at most MOST_TIMES times, of CHEAP primitives, and the value takes more bytes than what it is made
    of, as codes unpacked from bytes do; or (e) if it is a contraction whose operands have all axes that its reader sums
    over, and every element is read once: then both are one sum, in blocks.  inside: whether groups move so; not for
    compilers that make vectors or threads of plain loops.

    A reader of a state never moves past the state's owner.
    """
    readers: dict[str, list[tuple[Node, int]]] = {}
    for n in program.nodes:
        for position, i in enumerate(n.inputs):
            readers.setdefault(i, []).append((n, position))
    groups = _along_axes(program, readers)
    return _into_contractions(program, groups, readers) if inside else groups


def _along_axes(program: Program, readers: Readers) -> list[Group]:
    """Groups of nodes with the same axes: (a) and (b)."""
    prologues: dict[str, list[Group]] = {}
    for n in program.nodes:
        users = readers.get(n.output, [])
        if len(users) == 1 and n.output not in program.outputs:
            names = _as_prologue(n, *users[0])
            if names is not None and _may_move(program, [n], users[0][0]):
                inner = Group(_loops(n), None, epilogue=[n], renamed={n.output: names})
                prologues.setdefault(users[0][0].output, []).append(inner)
    inside = {n.output for rows in prologues.values() for g in rows for n in g.nodes}

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
            groups.append(Group(_loops(n), n, prologues.get(n.output, [])))
        maker[n.output] = len(groups) - 1
    return groups


def _into_contractions(program: Program, groups: list[Group], readers: Readers) -> list[Group]:
    """The groups that are left, those that a contraction reads inside it: (c), (d) and (e)."""
    kept, around = list[Group](), dict[str, tuple[Group, Group]]()
    for g in reversed(groups):
        nest, read = g, _only_read(program, g, readers)
        if read and read.reader.output in around:
            user, whole = around[read.reader.output]
            if _is_operand(check(program), g, read) and _may_move(program, g.nodes, whole.own[0]):
                g.renamed = _names(g, read, user, whole.axes)
                user.prologue.insert(0, g)
                nest = whole
        if nest is g:
            kept.insert(0, g)
        if g.head and g.head.spec.structure is Structure.CONTRACTION:
            around[g.head.output] = g, nest
    return kept


def _may_move(program: Program, nodes: list[Node], reader: Node) -> bool:
    """Whether the states that the nodes read are still those before the step when `reader` runs."""
    order = {n.output: i for i, n in enumerate(program.nodes)}
    owner = {n.state: n.output for n in program.nodes if n.state}
    return all(order[owner[i]] > order[reader.output] for n in nodes for i in n.inputs if i in owner)


def _loops(n: Node) -> str:
    """Axes of the output without time."""
    return n.labels.output.replace("t", "")


def _as_prologue(n: Node, user: Node, position: int) -> dict[str, str] | None:
    """The user's names for the axes of `n`, where `n` makes one element for each element of the user's state."""
    if n.spec.structure is not Structure.POINTWISE or user.spec.structure is not Structure.RECURRENCE:
        return None
    if user.spec.reads_old and position >= len(user.inputs) - user.spec.queries:
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


def _only_read(program: Program, g: Group, readers: Readers) -> Read | None:
    """The read of all that a group makes, where that is one value, read at one place."""
    own = {n.output for n in g.nodes}
    seen = [
        Read(n, reader, position)
        for n in g.own
        for reader, position in readers.get(n.output, [])
        if reader.output not in own
    ]
    return seen[0] if len(seen) == 1 and not own & set(program.outputs) else None


def _is_operand(checked: Checked, g: Group, read: Read) -> bool:
    """Whether a contraction computes what `g` makes where it reads it: (c), (d) and (e)."""
    reader, summed = read.reader, read.reader.labels.reduced
    if reader.spec.start and read.position == len(reader.inputs) - 1:
        return False
    sizes = checked.sizes[reader.output]
    times = prod(sizes[k] for k in {*_loops(reader), *summed} - set(read.axes.values()))
    if g.head is None:
        return times == 1 or (times <= MOST_TIMES and _unpacks(checked, g, read.made))
    if g.head.spec.structure is not Structure.CONTRACTION:
        return False
    blocks = {g.axis(read.made, k) for k, other in read.axes.items() if other in summed}
    terms = g.head.labels.inputs[: -1 if g.head.spec.start else None]
    return times == 1 and all(blocks <= set(k) for k in terms)


def _unpacks(checked: Checked, g: Group, made: Node) -> bool:
    """Whether a pointwise group is of CHEAP primitives and makes more bytes than it reads, constants aside."""
    stored = {i for n in g.own for i in n.inputs} - {n.output for n in g.own} - set(checked.program.constant)
    cheap = all(s.op in CHEAP for n in g.own for s in checked.bodies[n.output].nodes)
    types = checked.types | checked.states
    return cheap and types[made.output].bytes > sum(types[i].bytes for i in stored)


def _names(g: Group, read: Read, user: Group, taken: set[str]) -> dict[str, dict[str, str]]:
    """`renamed` of a group inside the loops of its reader: an axis that it sums over gets a name that is free."""
    loops = {g.axis(read.made, k): user.axis(read.reader, other) for k, other in read.axes.items()}
    summed = g.head.labels.reduced if g.head else ""
    free = (k for k in ascii_lowercase if k not in {"b", *taken, *summed})
    loops |= {k: next(free) if k in taken else k for k in summed}
    return {n.output: {k: loops[g.axis(n, k)] for k in n.index if k.isalpha() and k != "t"} for n in g.own}
