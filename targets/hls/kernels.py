"""Loop nests as HLS C++: one function per fused group, scalar definitions as inlined functions, and their pragmas.

Policy.  A reduction (or the shift of a ring) of at most 8 iterations that holds no other loop is unrolled, and the
arrays that it walks are partitioned along its index.  Every other loop that is innermost, or holds unrolled loops only,
is a pipeline with an initiation interval of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from isobit.quant.expr.symbols import Traced
from isobit.targets.hls import expression
from isobit.targets.hls.text import Names, ap, comment, commented, dims, wrapped
from isobit.targets.nest import (
    Accumulate,
    Accumulator,
    Apply,
    Element,
    Index,
    Kernel,
    Let,
    Loop,
    Nest,
    Offset,
    Operand,
    Statement,
    Store,
    Tap,
    identifier,
)

Graph = tuple[Callable[..., object], tuple[object, ...]]
"""A definition and the key of its graph."""

UNROLLED = 8
"""The longest reduction that is unrolled."""


@dataclass
class Function:
    """A scalar definition specialised to its intervals, and the layers whose kernels call it."""

    name: str
    summary: str
    traced: Traced
    layers: list[str]


@dataclass(frozen=True)
class Partition:
    """Dimension `dim` (from 1) of the array `value` is walked by an unrolled loop."""

    value: str
    dim: int

    def pragma(self, variable: str) -> str:
        return f"#pragma HLS ARRAY_PARTITION variable={variable} complete dim={self.dim}"


def inner_loops(loop: Loop) -> list[Loop]:
    return [s for s in loop.body if isinstance(s, Loop) and s.extent > 0]


def is_unrolled(loop: Loop) -> bool:
    return loop.reduction and loop.extent <= UNROLLED and not inner_loops(loop)


def is_pipelined(loop: Loop) -> bool:
    return not is_unrolled(loop) and all(is_unrolled(inner) for inner in inner_loops(loop))


Nested = tuple[Statement, tuple[Loop, ...]]
"""A statement and the loops around it, outermost first."""


def walk(statements: tuple[Statement, ...], outer: tuple[Loop, ...] = ()) -> Iterator[Nested]:
    """Every statement that runs at least once."""
    for s in statements:
        if isinstance(s, Loop) and s.extent < 1:
            continue
        yield s, outer
        if isinstance(s, Loop):
            yield from walk(s.body, (*outer, s))


def applied(s: Statement) -> Apply | None:
    """The definition that a statement applies."""
    match s:
        case Let():
            return s.apply
        case Accumulate():
            return s.term
    return None


def elements(s: Statement) -> Iterator[Element]:
    """Elements that a statement reads or writes."""
    operands: list[Operand | None] = []
    match s:
        case Let():
            operands += s.apply.operands
        case Accumulate():
            operands += s.term.operands
        case Accumulator():
            operands.append(s.start)
        case Store():
            operands += [s.to, s.operand]
    yield from (o for o in operands if isinstance(o, Element))


class Unit:
    """Everything that one translation unit names, and its kernels' text."""

    def __init__(self, nest: Nest) -> None:
        self.nest = nest
        p = nest.program
        letters = {k for n in p.nodes for k in n.index if k.isalpha()}
        names = Names(letters | {"state", "reset"})
        values = [*(i.name for i in p.inputs), *p.constant, *p.state, *(n.output for n in p.nodes)]
        self.value = {v: names.fresh(identifier(v)) for v in values}
        """By value: the name of its array, or of its scalar."""
        stored = {*nest.scratch, *p.outputs, *p.state}
        self.scalar = {v: names.fresh(f"{self.value[v]}_new") if v in stored else self.value[v] for v in values}
        """By value: the name of the loop body's scalar that holds one element of it."""
        self.tables = self._tables(names)
        self.functions = self._functions(names)
        self.kernel = self._kernels()
        """By kernel name: the name of its function."""

    def bits(self, value: str) -> int:
        """Width of a stored value's elements."""
        return self.nest.range(value).bits

    def shape(self, value: str) -> tuple[int, ...]:
        return self.nest.type(value).dims

    @cached_property
    def partitions(self) -> dict[str, list[Partition]]:
        """By value: dimensions of its array that unrolled loops walk."""
        found: dict[str, list[Partition]] = {}
        for kernel in self.nest.kernels:
            for partition in self._walked(kernel):
                if partition not in found.setdefault(partition.value, []):
                    found[partition.value].append(partition)
        return found

    def declaration(self, value: str, name: str | None = None) -> str:
        """`ap_int<8> name[16][4]`."""
        return f"{ap(self.bits(value))} {name or self.value[value]}{dims(self.shape(value))}"

    def parameter(self, value: str, written: bool, used: bool = True) -> str:
        """A stored value as a parameter: scalars by value, or by reference where they are written."""
        name = self.value[value] if used else ""
        kind = ap(self.bits(value))
        if self.shape(value):
            return f"{'' if written else 'const '}{kind} {name}{dims(self.shape(value))}"
        return f"{kind}& {name}".rstrip() if written else f"{kind} {name}".rstrip()

    def arguments(self, kernel: Kernel) -> list[str]:
        """Stored values that a kernel's function takes: those it reads, then those it only writes; no constants."""
        return [v for v in dict.fromkeys((*kernel.reads, *kernel.writes)) if v not in self.nest.program.constant]

    def function_text(self, f: Function) -> str:
        layers = ", ".join(dict.fromkeys(f.layers))
        notes = (comment(f.summary), comment(f"In {layers}."))
        return expression.function(f.name, notes, f.traced, self.tables)

    def kernel_text(self, kernel: Kernel) -> str:
        writes = set(kernel.writes)
        params = ", ".join(self.parameter(v, v in writes) for v in self.arguments(kernel))
        constants = [
            p.pragma(self.value[p.value]) for p in self._walked(kernel) if p.value in self.nest.program.constant
        ]
        lines = [
            *self._comment(kernel),
            wrapped(f"static void {self.kernel[kernel.name]}({params}) {{"),
            "#pragma HLS INLINE off",
            *dict.fromkeys(constants),
        ]
        return "\n".join([*lines, *self._statements(kernel.body, 1), "}"])

    def macs(self, kernel: Kernel) -> int:
        """Products summed per time step."""
        total = 0
        for s, loops in walk(kernel.body):
            if isinstance(s, Accumulate) and any(n.op == "mul" for n in s.term.body.nodes):
                count = 1
                for loop in loops:
                    count *= loop.extent
                total += count
        return total

    def _tables(self, names: Names) -> dict[tuple[int, ...], str]:
        tables: dict[tuple[int, ...], str] = {}
        for apply in self._applied():
            for values, name in apply.body.tables.items():
                if values not in tables:
                    tables[values] = names.fresh(name)
        return tables

    def _functions(self, names: Names) -> dict[Graph, Function]:
        """By graph: the definitions that are functions; equal graphs are one."""
        found: dict[Graph, tuple[Apply, list[str]]] = {}
        for apply in self._applied():
            if not expression.is_inline(apply.body):
                found.setdefault((_define(apply), apply.body.key), (apply, []))[1].append(apply.node.loc)
        bases = [_name(apply) for apply, _ in found.values()]
        functions = {}
        for (define, key), (apply, layers) in found.items():
            base = _name(apply)
            wanted = base if bases.count(base) == 1 else f"{base}_{identifier(layers[0])}"
            summary = (define.__doc__ or base).strip().split("\n")[0]
            functions[define, key] = Function(names.fresh(wanted), summary, apply.body, layers)
        return functions

    def _kernels(self) -> dict[str, str]:
        """Named after the layer, and after the output where several groups are of one layer."""
        names = Names({*self.tables.values(), *(f.name for f in self.functions.values())})
        names.taken.update(self.value[c] for c in self.nest.program.constant)
        locs = [k.group.loc for k in self.nest.kernels]
        return {
            k.name: names.fresh(k.group.loc if locs.count(k.group.loc) == 1 else _below(k.group.loc, k.name))
            for k in self.nest.kernels
        }

    def _applied(self) -> Iterator[Apply]:
        for kernel in self.nest.kernels:
            for s, _ in walk(kernel.body):
                apply = applied(s)
                if apply:
                    yield apply

    def _walked(self, kernel: Kernel) -> Iterator[Partition]:
        for s, loops in walk(kernel.body):
            unrolled = {loop.index for loop in loops if is_unrolled(loop)}
            for e in elements(s):
                for dim, index in enumerate(e.indices):
                    label = index.label if isinstance(index, Offset) else index
                    if label in unrolled:
                        yield Partition(e.value, dim + 1)

    def _comment(self, kernel: Kernel) -> Iterator[str]:
        """The user's layer, then every node: output, op, operands with their shapes, signature and scale."""
        yield comment(kernel.title)
        for n in kernel.group.nodes:
            operands = ", ".join(self._with_shape(v) for v in n.inputs)
            scale = "" if n.scale is None else f"; a unit of the result is {n.scale:.6g}"
            yield comment(f"  {self._with_shape(n.output)} = {n.op}({operands})", 6)
            yield f"//   {n.index}{scale}"

    def _with_shape(self, value: str) -> str:
        return f"{self.value[value]}{dims(self.shape(value))}"

    def _statements(self, statements: tuple[Statement, ...], depth: int) -> Iterator[str]:
        pad = "  " * depth
        for s in statements:
            match s:
                case Loop():
                    if s.extent > 0:
                        yield from self._loop(s, depth)
                case Accumulator():
                    start = self._operand(s.start) if s.start else "0"
                    line = f"{pad}{ap(s.range.bits)} {self.scalar[s.value]} = {start};"
                    yield commented(line, f"partial sums in {s.range}")
                case Accumulate():
                    yield wrapped(f"{pad}{self.scalar[s.value]} += {self._apply(s.term)};")
                case Let():
                    yield wrapped(f"{pad}const {ap(s.range.bits)} {self.scalar[s.value]} = {self._apply(s.apply)};")
                case Store():
                    yield wrapped(f"{pad}{self._operand(s.to)} = {self._operand(s.operand)};")
                case Tap():
                    yield f"{pad}ISOBIT_TAP({s.number}, {self._flat(s)}, {self._operand(s.operand)});"

    def _loop(self, loop: Loop, depth: int) -> Iterator[str]:
        pad, k = "  " * depth, loop.index
        yield f"{pad}for (int {k} = 0; {k} < {loop.extent}; {k}++) {{"
        if is_unrolled(loop):
            yield "#pragma HLS UNROLL"
        elif is_pipelined(loop):
            yield "#pragma HLS PIPELINE II=1"
        yield from self._statements(loop.body, depth + 1)
        yield f"{pad}}}"

    def _apply(self, apply: Apply) -> str:
        operands = [self._operand(o) for o in apply.operands]
        function = self.functions.get((_define(apply), apply.body.key))
        if function is None:
            return expression.inline(apply.body, operands, self.tables)
        return f"{function.name}({', '.join(operands)})"

    def _operand(self, operand: Operand) -> str:
        if isinstance(operand, Element):
            return self.value[operand.value] + "".join(f"[{_index(i)}]" for i in operand.indices)
        return self.scalar[operand.value]

    def _flat(self, tap: Tap) -> str:
        """The position of an element within the node's output of one time step."""
        sizes = self.nest.checked.sizes[tap.node.output]
        text = ""
        for k in tap.indices:
            text = f"({text}) * {sizes[k]} + {k}" if "+" in text else f"{text} * {sizes[k]} + {k}" if text else k
        return text or "0"


def _define(apply: Apply) -> Callable[..., object]:
    """The Python function that an Apply stands for."""
    spec = apply.node.spec
    return spec.readout if apply.role == "readout" and spec.readout else spec.define


def _name(apply: Apply) -> str:
    """What its function is called: as the op, or as the term of the op."""
    return apply.node.op if apply.role in ("value", "update") else _define(apply).__name__


def _below(layer: str, value: str) -> str:
    """The layer's path, then what the value's path adds to it."""
    path, own = layer.split("."), value.split(".")
    while path and own and path[0] == own[0]:
        path, own = path[1:], own[1:]
    return ".".join([layer, *own])


def _index(index: Index) -> str:
    if isinstance(index, Offset):
        return f"{index.label} + {index.by}"
    return str(index)
