"""What one translation unit names: values, tables, scalar functions, kernels; and which arrays its loops split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import Traced, trace
from isobit.quant.facts import macs, shifts, sums
from isobit.quant.ops.moves import Affine
from isobit.quant.program import Constant
from isobit.quant.storage import Storage
from isobit.targets.hls import expression
from isobit.targets.hls.text import Names, ap, comment, dims
from isobit.targets.nest import (
    Accumulate,
    Accumulator,
    Apply,
    Element,
    Kernel,
    Let,
    Loop,
    Nest,
    Operand,
    Statement,
    Store,
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
    return loop.reduction and not loop.ordered and loop.extent <= UNROLLED and not inner_loops(loop)


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
    operands: list[Operand] = []
    match s:
        case Let():
            operands += s.apply.used
        case Accumulate():
            operands += s.term.used
        case Accumulator():
            operands.append(s.start)
        case Store():
            operands += [s.to, s.operand]
    for o in operands:
        if isinstance(o, Element):
            yield o
            yield from (i for i in o.indices if isinstance(i, Element))


class Unit:
    """Everything that one translation unit names."""

    def __init__(self, nest: Nest) -> None:
        self.nest = nest
        p = nest.program
        letters = {k for kernel in nest.kernels for k in kernel.group.axes}
        names = Names(letters | {"state", "reset"})
        values = [*(i.name for i in p.inputs), *p.constant, *nest.checked.states, *(n.output for n in p.nodes)]
        self.value = {v: names.fresh(identifier(v)) for v in values}
        """By value: the name of its array, or of its scalar."""
        self.tables = self._tables(names)
        self.functions = self._functions(names)
        self.decoders = self._decoders(names)
        """By storage: the function that gives a code's integer."""
        self.shifters = self._shifters(names)
        """By storage and range of x: the function that multiplies x by a code's number, by shifts."""
        self.kernel = self._kernels()
        """By kernel name: the name of its function."""
        self.names = Names({*letters, *self.tables.values(), *self.scalar_functions()})
        """What a kernel's own names must differ from, beside those of the values that it stores or reads."""

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
            for partition in self.walked(kernel):
                if partition not in found.setdefault(partition.value, []):
                    found[partition.value].append(partition)
        return found

    def declaration(self, value: str, name: str | None = None) -> str:
        """`ap_int<8> name[16][4]`."""
        return f"{ap(self.bits(value))} {name or self.value[value]}{dims(self.shape(value))}"

    def is_coded(self, value: str) -> bool:
        """Whether a value is a constant whose memory holds codes, not integers."""
        return value in self.nest.program.constant and self.nest.program.constant[value].storage.is_coded

    def coded_declaration(self, c: Constant) -> str:
        """`ap_uint<4> name[16][4]`."""
        return f"ap_uint<{c.storage.bits}> {self.value[c.name]}{dims(c.type.dims)}"

    def decoded(self, value: str, code: str) -> str:
        """The integer of a code, in a type of the width of the constant's integers."""
        f = self.decoders[self.nest.program.constant[value].storage]
        call, bits = f"{f.name}({code})", self.bits(value)
        return call if f.traced.range.bits == bits else f"{ap(bits)}({call})"

    def shifted(self, apply: Apply) -> tuple[Function, Element] | None:
        """The function of a product with a constant of few signed powers of two, and that constant's element."""
        if not shifts(self.nest.program, apply.node):
            return None
        code = apply.operands[1]
        assert isinstance(code, Element)
        storage = self.nest.program.constant[code.value].storage
        return self.shifters[storage, apply.body.operands[0].range], code

    def element(self, e: Element, places: Sequence[str]) -> str:
        """`name[i][j]`."""
        return self.value[e.value] + "".join(f"[{p}]" for p in places)

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

    def with_shape(self, value: str) -> str:
        """`name[16][4]`."""
        return f"{self.value[value]}{dims(self.shape(value))}"

    def function_of(self, apply: Apply) -> Function | None:
        """The function that computes a definition; None where it stands in its place as an expression."""
        return self.functions.get((_define(apply), apply.body.key))

    def function_text(self, f: Function) -> str:
        layers = ", ".join(dict.fromkeys(f.layers))
        notes = (comment(f.summary), comment(f"In {layers}."))
        return expression.function(f.name, notes, f.traced, self.tables)

    def macs(self, kernel: Kernel) -> int:
        """Multiply-accumulates per time step."""
        return sum(macs(self.nest.program, n) for n in kernel.group.nodes)

    def sums(self, kernel: Kernel) -> int:
        """Terms per time step that are summed without a multiplier."""
        return sum(sums(self.nest.program, n) for n in kernel.group.nodes)

    def scalar_functions(self) -> Iterator[str]:
        """Names of the functions that kernels call."""
        yield from (f.name for f in (*self.decoders.values(), *self.shifters.values(), *self.functions.values()))

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

    def _decoders(self, names: Names) -> dict[Storage, Function]:
        found: dict[Storage, list[str]] = {}
        program = self.nest.program
        read = {i for n in program.nodes if not shifts(program, n) for i in n.inputs}
        for c in program.constants:
            if self.is_coded(c.name) and c.name in read:
                found.setdefault(c.storage, []).append(c.name)
        return {
            s: Function(names.fresh(s.name), (s.number[0].__doc__ or "").strip(), s.decoder, layers)
            for s, layers in found.items()
        }

    def _shifters(self, names: Names) -> dict[tuple[Storage, Interval], Function]:
        found: dict[tuple[Storage, Interval], Function] = {}
        for apply in self._applied():
            if not shifts(self.nest.program, apply.node):
                continue
            storage = self.nest.program.constant[apply.node.inputs[1]].storage
            x = apply.body.operands[0].range
            if (storage, x) not in found and storage.product:
                define, params = storage.product
                traced = trace(define, [x, storage.decoder.operands[0].range], params)
                summary = (define.__doc__ or "").strip().split("\n")[0]
                found[storage, x] = Function(names.fresh(f"times_{storage.name}"), summary, traced, [])
            found[storage, x].layers.append(apply.node.loc)
        return found

    def _kernels(self) -> dict[str, str]:
        """Named after the layer, and after the output where several groups are of one layer."""
        names = Names({*self.tables.values(), *self.scalar_functions()})
        names.taken.update(self.value[c] for c in self.nest.program.constant)
        locs = [k.group.loc for k in self.nest.kernels]
        chosen = {}
        for k in self.nest.kernels:
            role = below(k.group.loc, k.name) if locs.count(k.group.loc) > 1 else ""
            chosen[k.name] = names.fresh(f"{k.group.loc}.{role}" if role else k.group.loc)
        return chosen

    def _applied(self) -> Iterator[Apply]:
        for kernel in self.nest.kernels:
            for s, _ in walk(kernel.body):
                apply = applied(s)
                if apply:
                    yield apply

    def walked(self, kernel: Kernel) -> Iterator[Partition]:
        """Dimensions that unrolled loops of the kernel walk."""
        for s, loops in walk(kernel.body):
            unrolled = {loop.index for loop in loops if is_unrolled(loop)}
            for e in elements(s):
                for dim, index in enumerate(e.indices):
                    labels = {k for k, _ in index.terms} if isinstance(index, Affine) else {index}
                    if labels & unrolled:
                        yield Partition(e.value, dim + 1)


def _define(apply: Apply) -> Callable[..., object]:
    """The Python function that an Apply stands for."""
    spec = apply.node.spec
    return spec.readout if apply.role == "readout" and spec.readout else spec.define


def _name(apply: Apply) -> str:
    """What its function is called: as the op, or as the term of the op."""
    return apply.node.op if apply.role in ("value", "update") else _define(apply).__name__


def below(layer: str, value: str) -> str:
    """What the path of a value adds to the path of a layer; empty if nothing."""
    path, own = layer.split("."), value.split(".")
    while path and own and path[0] == own[0]:
        path, own = path[1:], own[1:]
    return ".".join(own)
