"""Loop nests: the one imperative form of each structure, which every compiled target prints.

A nest runs one time step for one batch element.  A target may replace the loops of a kernel with its own (a dot product
with vector instructions, say), as long as every value that has a Tap keeps its bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal as TypeLiteral

from isobit.quant.check import Checked, carry_name, check
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import Traced
from isobit.quant.ops import Structure
from isobit.quant.ops.moves import Place, affine
from isobit.quant.program import Node, Program, TensorType
from isobit.targets.plan import Group, plan


def row_major(indices: Iterable[str], sizes: Iterable[int]) -> str:
    """The position in memory of the element at `indices`, as an expression of C."""
    text = ""
    for k, size in zip(indices, sizes, strict=True):
        outer = f"({text})" if "+" in text or "-" in text else text
        text = f"{outer} * {size} + {k}" if text else k
    return text or "0"


@dataclass(frozen=True)
class Element:
    """One element of a stored value: an input, constant, state, scratch buffer or output."""

    value: str
    indices: tuple[Index, ...]


@dataclass(frozen=True)
class Local:
    """A scalar of the loop body that holds one element of `value`."""

    value: str


@dataclass(frozen=True)
class Literal:
    """A number."""

    value: int


Operand = Element | Local | Literal
Combine = TypeLiteral["sum", "max"]
Index = Place | Element | Local
"""A place inside one time step, or, for a row of a table, an operand that holds it."""


@dataclass(frozen=True)
class Apply:
    """A scalar definition applied to operands.  role tells which of the node's definitions it is."""

    node: Node
    role: TypeLiteral["value", "term", "update", "readout"]
    body: Traced
    operands: tuple[Operand, ...]

    @property
    def used(self) -> tuple[Operand, ...]:
        """The operands that the result depends on."""
        live = self.body.nodes
        return tuple(o for o, symbol in zip(self.operands, self.body.operands, strict=True) if symbol in live)


@dataclass(frozen=True)
class Loop:
    """for index in 0..extent-1.

    A reduction carries an accumulator, an ordered loop a state from one iteration to the next; the iterations of any
    other loop may run in any order.
    """

    index: str
    extent: int
    reduction: bool
    body: tuple[Statement, ...]
    ordered: bool = False


@dataclass(frozen=True)
class Accumulator:
    """Declares the scalar accumulator of `value`, in `range`."""

    value: str
    range: Interval
    start: Operand


@dataclass(frozen=True)
class Accumulate:
    """Adds a term to the accumulator of `value`, or, for `max`, keeps the larger of the two."""

    value: str
    term: Apply
    combine: Combine = "sum"


@dataclass(frozen=True)
class Let:
    """The scalar `value` of the loop body, in `range`."""

    value: str
    range: Interval
    apply: Apply


@dataclass(frozen=True)
class Store:
    """Writes an operand to a stored element."""

    to: Element
    operand: Operand


@dataclass(frozen=True)
class Tap:
    """Where a traced build reports an element of node `number`'s output; indices and sizes are those of the output."""

    number: int
    node: Node
    indices: tuple[Place, ...]
    sizes: tuple[int, ...]
    operand: Operand

    @property
    def position(self) -> str:
        """The row-major position of the element, as an expression of C."""
        return row_major(map(str, self.indices), self.sizes)


Statement = Loop | Accumulator | Accumulate | Let | Store | Tap


@dataclass(frozen=True)
class Kernel:
    """The loops of one fused group.  reads, writes: stored values, constants included, in order of appearance."""

    name: str
    group: Group
    body: tuple[Statement, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def title(self) -> str:
        """For comments: the user's layer and the fused ops."""
        return f"{self.group.loc}: {', '.join(n.op for n in self.group.nodes)}"


@dataclass(frozen=True)
class Nest:
    """A Program as kernels in execution order, and the buffers between them."""

    program: Program
    checked: Checked
    kernels: tuple[Kernel, ...]
    scratch: tuple[str, ...]

    def type(self, value: str) -> TensorType:
        """Type of any stored value, without time for a state."""
        return self.checked.states[value] if value in self.checked.states else self.checked.types[value]

    def range(self, value: str) -> Interval:
        """Proved interval of any stored value."""
        if value in self.checked.states:
            return self.checked.states[value].elem.range
        return self.checked.ranges[value]

    @property
    def order(self) -> list[Node]:
        """Nodes in the order in which their taps fire within a step."""
        return [n for k in self.kernels for n in k.group.nodes]


MATERIALISED = (Structure.LAYOUT, Structure.HISTORY)
"""Structures whose output is always a stored value."""


@cache
def identifier(name: str) -> str:
    """A value's name in generated code: letters, digits and underscores of ASCII, no digit first."""
    text = "".join(ch if ch.isascii() and ch.isalnum() else "_" for ch in name)
    return f"_{text}" if text[:1].isdigit() else text


def nest(program: Program, inside: bool = True) -> Nest:
    """Check, plan and lower to loops; inside: as `plan` takes it."""
    checked = check(program)
    _refuse_equal_identifiers(program)
    groups = plan(program, inside)
    group_of = {n.output: i for i, g in enumerate(groups) for n in g.nodes}
    crossing = {n.output for n in program.nodes if n.spec.structure in MATERIALISED} - set(program.outputs)
    crossing |= {i for n in program.nodes for i in n.inputs if group_of.get(i, -1) not in (-1, group_of[n.output])}
    stored = crossing | set(program.outputs)
    kernels = tuple(_Builder(program, checked, g, stored).kernel() for g in groups)
    scratch = [n.output for n in program.nodes if n.output in crossing - set(program.outputs)]
    carried = [carry_name(n) for n in program.nodes if n.labels.scanned]
    return Nest(program, checked, kernels, (*scratch, *carried))


def _refuse_equal_identifiers(program: Program) -> None:
    names = [i.name for i in program.inputs] + [n.output for n in program.nodes] + [*program.constant, *program.state]
    same = [k for k, count in Counter(identifier(x) for x in names).items() if count > 1]
    if same:
        both = [x for x in names if identifier(x) == same[0]]
        raise InputError(f"{' and '.join(both)} are both '{same[0]}' in generated code: rename one of the modules")


class _Builder:
    """Writes the statements of one group."""

    def __init__(self, program: Program, checked: Checked, group: Group, stored: set[str]) -> None:
        self.program, self.checked, self.group, self.stored = program, checked, group, stored
        self.numbers = {n.output: i for i, n in enumerate(program.nodes)}
        self.local = {n.output for n in group.nodes}
        self.renamed = _renamed(group)
        self.sizes = {self._axis(n, k): d for n in group.nodes for k, d in checked.sizes[n.output].items()}

    def kernel(self) -> Kernel:
        statements = tuple(self._statements())
        reads, writes = dict[str, None](), dict[str, None]()
        for used, written in _uses(statements):
            (writes if written else reads)[used] = None
        name = self.group.nodes[-1].output
        return Kernel(name, self.group, statements, tuple(reads), tuple(writes))

    def _statements(self) -> list[Statement]:
        head, labels = self.group.head, self.group.labels
        if head and head.spec.structure is Structure.LAYOUT:
            return self._layout(head)
        if head and head.spec.structure is Structure.HISTORY:
            return self._history(head)
        body = self._computed(self.group)
        if head and (scanned := head.labels.scanned):
            body = [*self._reset(head), Loop(scanned, self.sizes[scanned], False, tuple(body), ordered=True)]
            labels = labels.replace(scanned, "")
        loops = self._loops(labels, body, reduction=False)
        if head and head.spec.structure is Structure.WINDOW and not self._shifts_inside(head):
            loops += self._loops(head.labels.inputs[0][1:], self._shift(head), reduction=False)
        return loops

    def _reset(self, n: Node) -> list[Statement]:
        """The part of a state inside the step that the loops around it share, set to zero."""
        cell = Element(carry_name(n), tuple(n.labels.state))
        return self._loops(n.labels.reduced, [Store(cell, Literal(0))], reduction=False)

    def _layout(self, n: Node) -> list[Statement]:
        assert n.spec.moves is not None
        statements: list[Statement] = []
        for move in n.spec.moves(n.labels, self.checked.sizes[n.output], **n.param):
            source: Operand = Literal(move.fill)
            if move.operand is not None:
                source = Element(n.inputs[move.operand], move.source)
            body: list[Statement] = [Store(Element(n.output, move.target), source), self._tap(n, move.target, source)]
            for k, extent in reversed(move.loops):
                body = [Loop(k, extent, False, tuple(body))]
            statements += body
        return statements

    def _history(self, n: Node) -> list[Statement]:
        """The ring and the new value are written out, then the ring moves on."""
        assert n.state is not None
        slot, x, length = n.labels.output[1], tuple(k for k in n.labels.inputs[0] if k != "t"), n.param["length"]

        def ring(index: Place) -> Element:
            assert n.state is not None
            return Element(n.state, (index, *x))

        def written(index: Place, source: Operand) -> list[Statement]:
            return [Store(Element(n.output, (index, *x)), source), self._tap(n, (index, *x), source)]

        new = Element(n.inputs[0], x)
        older = [
            Loop(slot, length - 1, False, tuple(written(slot, ring(slot)))),
            Loop(slot, length - 2, True, (Store(ring(slot), ring(affine((slot, 1), by=1))),)),
        ]
        return self._loops("".join(x), [*older, *written(length - 1, new), Store(ring(length - 2), new)], False)

    def _tap(self, n: Node, indices: tuple[Place, ...], operand: Operand) -> Tap:
        return Tap(self.numbers[n.output], n, indices, self.checked.types[n.output].dims, operand)

    def _loops(self, labels: str, body: list[Statement], reduction: bool) -> list[Statement]:
        for k in reversed(labels):
            body = [Loop(k, self.sizes[k], reduction, tuple(body))]
        return body

    def _axis(self, n: Node, label: str) -> str:
        """The group's name for an axis of a node."""
        return self.renamed.get(n.output, {}).get(label, label)

    def _axes(self, n: Node, labels: str) -> tuple[str, ...]:
        return tuple(self._axis(n, k) for k in labels if k != "t")

    def _operands(self, n: Node) -> list[Operand]:
        return [
            Local(v) if v in self.local else Element(v, self._axes(n, k))
            for v, k in zip(n.inputs, n.labels.inputs, strict=True)
        ]

    def _value(self, n: Node) -> list[Statement]:
        """A pointwise node."""
        apply = Apply(n, "value", self.checked.bodies[n.output], tuple(self._operands(n)))
        return [Let(n.output, self.checked.ranges[n.output], apply), *self._finish(n)]

    def _finish(self, n: Node) -> list[Statement]:
        """Report a node's element, and store it where something outside the group reads it."""
        indices = self._axes(n, n.labels.output)
        tap = self._tap(n, indices, Local(n.output))
        if n.output in self.stored:
            return [Store(Element(n.output, indices), Local(n.output)), tap]
        return [tap]

    def _computed(self, group: Group) -> list[Statement]:
        """One element of everything that a group makes."""
        inner = [s for g in group.prologue for s in self._computed(g)]
        made = self._structure(group.head, inner) if group.head else []
        return [*made, *(s for n in group.epilogue for s in self._value(n))]

    def _structure(self, n: Node, inner: list[Statement]) -> list[Statement]:
        """inner: what computes those of its operands that are not stored."""
        match n.spec.structure:
            case Structure.CONTRACTION | Structure.CONVOLUTION:
                return self._contraction(n, inner)
            case Structure.WINDOW:
                return self._window(n)
            case Structure.RECURRENCE:
                return self._recurrence(n, inner)
            case Structure.GATHER:
                return self._gather(n)
            case _:
                return self._value(n)

    def _contraction(self, n: Node, inner: list[Statement]) -> list[Statement]:
        operands, known = self._operands(n), self.checked.ranges[n.output]
        start: Operand = Literal(0 if n.spec.combine == "sum" else known.lo)
        if n.spec.start:
            start = operands.pop()
        if n.labels.slides:
            operands[0] = self._slid(n)
        term = Apply(n, "term", self.checked.bodies[n.output], tuple(operands))
        body = [*inner, Accumulate(n.output, term, n.spec.combine)]
        loops = self._loops("".join(self._axes(n, n.labels.reduced)), body, reduction=True)
        return [Accumulator(n.output, known, start), *loops, *self._finish(n)]

    def _slid(self, n: Node) -> Element:
        """The element of the operand that an element of the kernel meets."""
        place: dict[str, Place] = {}
        for i, (slid, made, kernel) in enumerate(n.labels.slides):
            stride, dilation = n.step(i)
            place[slid] = affine((made, stride), (kernel, dilation))
        return Element(n.inputs[0], tuple(place.get(k, k) for k in n.labels.inputs[0] if k != "t"))

    def _window(self, n: Node) -> list[Statement]:
        assert n.state is not None
        x, _, bias = self._operands(n)
        weight, last = n.inputs[1], self.sizes["j"] - 1
        rows, state = tuple(k for k in n.labels.inputs[1] if k != "j"), n.state

        def term(operand: Operand, j: Place) -> list[Statement]:
            apply = Apply(n, "term", self.checked.bodies[n.output], (operand, Element(weight, (*rows, j))))
            return self._loops(n.labels.reduced.replace("j", ""), [Accumulate(n.output, apply)], reduction=True)

        return [
            Accumulator(n.output, self.checked.ranges[n.output], bias),
            Loop("j", last, True, tuple(term(Element(state, ("j", *n.labels.inputs[0][1:])), "j"))),
            *term(x, last),
            *(self._shift(n) if self._shifts_inside(n) else []),
            *self._finish(n),
        ]

    @staticmethod
    def _shifts_inside(n: Node) -> bool:
        """Whether the loops of a window's output are those of its channels: then each channel's ring moves in them."""
        return n.labels.output == n.labels.inputs[0] and n.labels.inputs[1] == f"{n.labels.inputs[0][1:]}j"

    def _shift(self, n: Node) -> list[Statement]:
        """The ring of one channel moves on by one step."""
        assert n.state is not None
        ring, last, next_ = n.state, self.sizes["j"] - 1, affine(("j", 1), by=1)
        channel = tuple(n.labels.inputs[0][1:])
        older = Store(Element(ring, ("j", *channel)), Element(ring, (next_, *channel)))
        return [
            Loop("j", last - 1, True, (older,)),
            Store(Element(ring, (last - 1, *channel)), Element(n.inputs[0], channel)),
        ]

    def _gather(self, n: Node) -> list[Statement]:
        index, rows = self._operands(n)
        assert isinstance(rows, Element)
        assert not isinstance(index, Literal)
        row = Element(rows.value, (index, *rows.indices[1:]))
        apply = Apply(n, "value", self.checked.bodies[n.output], (row,))
        return [Let(n.output, self.checked.ranges[n.output], apply), *self._finish(n)]

    def _recurrence(self, n: Node, inner: list[Statement]) -> list[Statement]:
        name, operands, queries = n.state or carry_name(n), self._operands(n), n.spec.queries
        cell = Element(name, tuple(n.labels.state))
        updates, asked = operands[: len(operands) - queries], operands[len(operands) - queries :]
        body = self.checked.bodies[n.output]
        update = Apply(n, "update", body, (cell, *updates))
        if n.spec.readout is None:
            return [*inner, Let(n.output, body.range, update), Store(cell, Local(n.output)), *self._finish(n)]
        seen: Operand = cell if n.spec.reads_old else Local(name)
        readout = Accumulate(n.output, Apply(n, "readout", self.checked.readouts[n.output], (seen, *asked)))
        new: list[Statement] = [Let(name, body.range, update)]
        if n.spec.reads_old:
            inner = [*inner, readout, *new, Store(cell, Local(name))]
        else:
            inner = [*inner, *new, Store(cell, Local(name)), readout]
        loops = self._loops(n.labels.reduced, inner, reduction=True)
        return [Accumulator(n.output, self.checked.ranges[n.output], Literal(0)), *loops, *self._finish(n)]


def _renamed(group: Group) -> dict[str, dict[str, str]]:
    """`renamed` of the group and of those inside it."""
    found = dict(group.renamed)
    for g in group.prologue:
        found |= _renamed(g)
    return found


def _uses(statements: tuple[Statement, ...]) -> Iterator[tuple[str, bool]]:
    """(stored value, is it written), in order."""

    def read(*operands: Operand | Index) -> Iterator[tuple[str, bool]]:
        for o in operands:
            if isinstance(o, Element):
                yield o.value, False
                yield from read(*o.indices)

    for s in statements:
        match s:
            case Loop():
                yield from _uses(s.body)
            case Accumulator():
                yield from read(s.start)
            case Accumulate():
                yield from read(*s.term.used)
            case Let():
                yield from read(*s.apply.used)
            case Store():
                yield from read(s.operand)
                yield s.to.value, True
