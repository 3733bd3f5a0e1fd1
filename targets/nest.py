"""Loop nests: the one imperative form of each structure, which every compiled target prints.

A nest runs one time step for one batch element.  A target may replace the loops of a kernel with its own (a dot product
with vector instructions, say), as long as every value that has a Tap keeps its bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from isobit.quant.check import Checked, check
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import Traced
from isobit.quant.ops import Structure
from isobit.quant.program import Node, Program, TensorType
from isobit.targets.plan import Group, plan


@dataclass(frozen=True)
class Offset:
    """The index `label + by`."""

    label: str
    by: int


Index = str | int | Offset


@dataclass(frozen=True)
class Element:
    """One element of a stored value: an input, constant, state, scratch buffer or output."""

    value: str
    indices: tuple[Index, ...]


@dataclass(frozen=True)
class Local:
    """A scalar of the loop body that holds one element of `value`."""

    value: str


Operand = Element | Local


@dataclass(frozen=True)
class Apply:
    """A scalar definition applied to operands.  role tells which of the node's definitions it is."""

    node: Node
    role: Literal["value", "term", "update", "readout"]
    body: Traced
    operands: tuple[Operand, ...]

    @property
    def used(self) -> tuple[Operand, ...]:
        """The operands that the result depends on."""
        live = self.body.nodes
        return tuple(o for o, symbol in zip(self.operands, self.body.operands, strict=True) if symbol in live)


@dataclass(frozen=True)
class Loop:
    """for index in 0..extent-1.  A reduction carries an accumulator; other loops may run in any order."""

    index: str
    extent: int
    reduction: bool
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Accumulator:
    """Declares the scalar accumulator of `value`, in `range`, starting at an operand or at 0."""

    value: str
    range: Interval
    start: Operand | None


@dataclass(frozen=True)
class Accumulate:
    """Adds a term to the accumulator of `value`."""

    value: str
    term: Apply


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
    indices: tuple[str, ...]
    sizes: tuple[int, ...]
    operand: Operand

    @property
    def position(self) -> str:
        """The row-major position of the element, as an expression of C."""
        text = ""
        for k, size in zip(self.indices, self.sizes, strict=True):
            text = f"({text}) * {size} + {k}" if "+" in text else f"{text} * {size} + {k}" if text else k
        return text or "0"


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
        """Type of any stored value."""
        return self.program.state[value].type if value in self.program.state else self.checked.types[value]

    def range(self, value: str) -> Interval:
        """Proved interval of any stored value."""
        if value in self.program.state:
            return self.program.state[value].type.elem.range
        return self.checked.ranges[value]

    @property
    def order(self) -> list[Node]:
        """Nodes in the order in which their taps fire within a step."""
        return [n for k in self.kernels for n in k.group.nodes]


def identifier(name: str) -> str:
    """A value's name in generated code: letters, digits and underscores of ASCII, no digit first."""
    text = "".join(ch if ch.isascii() and ch.isalnum() else "_" for ch in name)
    return f"_{text}" if text[:1].isdigit() else text


def nest(program: Program) -> Nest:
    """Check, plan and lower to loops."""
    checked = check(program)
    _refuse_equal_identifiers(program)
    groups = plan(program)
    group_of = {n.output: i for i, g in enumerate(groups) for n in g.nodes}
    crossing = {i for n in program.nodes for i in n.inputs if group_of.get(i, -1) not in (-1, group_of[n.output])}
    stored = crossing | set(program.outputs)
    kernels = tuple(_Builder(program, checked, g, stored).kernel() for g in groups)
    return Nest(
        program, checked, kernels, tuple(n.output for n in program.nodes if n.output in crossing - set(program.outputs))
    )


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
        self.sizes = {self._axis(n, k): d for n in group.nodes for k, d in checked.sizes[n.output].items()}

    def kernel(self) -> Kernel:
        body: list[Statement] = []
        if self.group.head:
            body += self._structure(self.group.head)
        for n in self.group.epilogue:
            body += self._value(n)
        statements = tuple(self._loops(self.group.labels, body, reduction=False))
        reads, writes = dict[str, None](), dict[str, None]()
        for used, written in _uses(statements):
            (writes if written else reads)[used] = None
        name = self.group.nodes[-1].output
        return Kernel(name, self.group, statements, tuple(reads), tuple(writes))

    def _loops(self, labels: str, body: list[Statement], reduction: bool) -> list[Statement]:
        for k in reversed(labels):
            body = [Loop(k, self.sizes[k], reduction, tuple(body))]
        return body

    def _axis(self, n: Node, label: str) -> str:
        """The group's name for an axis of a node."""
        return self.group.renamed.get(n.output, {}).get(label, label)

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
        tap = Tap(self.numbers[n.output], n, indices, self.checked.types[n.output].dims, Local(n.output))
        if n.output in self.stored:
            return [Store(Element(n.output, indices), Local(n.output)), tap]
        return [tap]

    def _structure(self, n: Node) -> list[Statement]:
        match n.spec.structure:
            case Structure.CONTRACTION:
                return self._contraction(n)
            case Structure.WINDOW:
                return self._window(n)
            case Structure.RECURRENCE:
                return self._recurrence(n)
            case Structure.POINTWISE:
                return self._value(n)

    def _contraction(self, n: Node) -> list[Statement]:
        operands = self._operands(n)
        start = operands.pop() if n.spec.start else None
        term = Apply(n, "term", self.checked.bodies[n.output], tuple(operands))
        loops = self._loops(n.labels.reduced, [Accumulate(n.output, term)], reduction=True)
        return [Accumulator(n.output, self.checked.ranges[n.output], start), *loops, *self._finish(n)]

    def _window(self, n: Node) -> list[Statement]:
        assert n.state is not None
        x, _, bias = self._operands(n)
        weight, last = n.inputs[1], self.sizes["j"] - 1

        def term(operand: Operand, j: Index) -> Accumulate:
            apply = Apply(n, "term", self.checked.bodies[n.output], (operand, Element(weight, ("c", j))))
            return Accumulate(n.output, apply)

        def ring(j: Index) -> Element:
            assert n.state is not None
            return Element(n.state, (j, "c"))

        return [
            Accumulator(n.output, self.checked.ranges[n.output], bias),
            Loop("j", last, True, (term(ring("j"), "j"),)),
            term(x, last),
            Loop("j", last - 1, True, (Store(ring("j"), ring(Offset("j", 1))),)),
            Store(ring(last - 1), x),
            *self._finish(n),
        ]

    def _recurrence(self, n: Node) -> list[Statement]:
        assert n.state is not None
        cell, operands = Element(n.state, tuple(n.labels.state)), self._operands(n)
        query = operands.pop() if n.spec.readout else None
        body = self.checked.bodies[n.output]
        inner: list[Statement] = [s for p in self.group.prologue for s in self._value(p)]
        update = Apply(n, "update", body, (cell, *operands))
        if query is None:
            return [*inner, Let(n.output, body.range, update), Store(cell, Local(n.output)), *self._finish(n)]
        readout = Apply(n, "readout", self.checked.readouts[n.output], (Local(n.state), query))
        inner += [Let(n.state, body.range, update), Store(cell, Local(n.state)), Accumulate(n.output, readout)]
        loops = self._loops(n.labels.reduced, inner, reduction=True)
        return [Accumulator(n.output, self.checked.ranges[n.output], None), *loops, *self._finish(n)]


def _uses(statements: tuple[Statement, ...]) -> Iterator[tuple[str, bool]]:
    """(stored value, is it written), in order."""

    def read(*operands: Operand | None) -> Iterator[tuple[str, bool]]:
        return ((o.value, False) for o in operands if isinstance(o, Element))

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
