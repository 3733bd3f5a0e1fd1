"""Prints a Nest as C: scalar functions, tables, one function per fused group."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from isobit.quant.check import carry_name
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.rewrite import high_products, tabulate
from isobit.quant.expr.symbols import Traced
from isobit.quant.ops import OPS
from isobit.quant.ops.moves import Affine, Place
from isobit.quant.program import Constant, TensorType, container, word
from isobit.quant.storage import Storage, is_packed
from isobit.targets.c.expression import RESERVED, Lines, expression, is_simple, literal, operations, unwrap
from isobit.targets.nest import (
    Accumulate,
    Accumulator,
    Apply,
    Element,
    Kernel,
    Let,
    Literal,
    Local,
    Loop,
    Nest,
    Operand,
    Statement,
    Store,
    Tap,
    identifier,
    row_major,
)


def ctype(known: Interval) -> str:
    """The C type that stores values of an interval."""
    return f"int{container(known)}_t"


def element_type(t: TensorType) -> str:
    return f"int{t.elem.container}_t"


def dims(t: TensorType) -> str:
    """Array dimensions of one time step; a scalar is an array of one."""
    return "".join(f"[{d}]" for d in t.dims) or "[1]"


def initializer(values: object) -> str:
    """A nested list as a C initializer."""
    if isinstance(values, list):
        return "{" + ", ".join(initializer(v) for v in values) + "}"
    assert isinstance(values, int)
    return literal(values)


WORTH_A_TABLE = 8
"""Operations from which a function of one 8-bit operand is printed as a table."""


WIDTH = 110
"""Columns of generated code."""


def signature(head: str, parameters: list[str]) -> str:
    """A function's head or call, one parameter a line where it would be too long."""
    line = f"{head}({', '.join(parameters)})"
    if len(line) < WIDTH - 2:
        return line
    pad = " " * (len(head) - len(head.lstrip()) + 4)
    return f"{head}(\n{pad}" + f",\n{pad}".join(parameters) + ")"


def wrapped(line: str) -> Iterator[str]:
    """A statement in lines of at most WIDTH columns, broken after commas and before operators."""
    pad = " " * (len(line) - len(line.lstrip()) + 4)
    while len(line) > WIDTH:
        at = max(
            line.rfind(", ", len(pad) + 20, WIDTH) + 1,
            line.rfind(" + ", len(pad) + 20, WIDTH),
            line.rfind(" = ", 0, WIDTH) + 2,
        )
        if at <= len(pad):
            break
        yield line[:at]
        line = pad + line[at:].lstrip()
    yield line


def comment(text: str) -> list[str]:
    """A block comment."""
    lines = textwrap.wrap(text or "No description.", WIDTH - 6)
    return [f"/* {lines[0]}", *(f" * {line}" for line in lines[1:])]


class Functions:
    """The scalar functions and tables that the kernels of one Program use, each printed once."""

    def __init__(self, nest: Nest) -> None:
        self.nest = nest
        self.values = {identifier(v) for v in (*nest.checked.types, *nest.checked.states)}
        self.tables: dict[tuple[int, ...], str] = {}
        self.functions: dict[tuple[object, ...], str] = {}
        self.text: list[str] = []
        self.bodies: dict[tuple[str, str], Traced] = {}
        self.decoders: dict[Storage, str] = {}
        """By storage: the function that gives a code's integer."""
        kinds: dict[str, set[tuple[object, ...]]] = {}
        for kernel in nest.kernels:
            for apply in _applications(kernel.body):
                kinds.setdefault(self._family(apply), set()).add(self._lines(apply)[0])
        self.variants = {family: len(found) for family, found in kinds.items()}

    def names(self) -> set[str]:
        """What the locals of kernels must not hide: functions and tables."""
        numbered = {f"{f}_{i + 1}" for f, count in self.variants.items() for i in range(count)}
        stored = {c.storage for c in self.nest.program.constants}
        decoders = {name for s in stored for name in (s.name, self._numbers(s))}
        return set(OPS) | set(self.variants) | numbered | set(self.tables.values()) | decoders

    def call(self, apply: Apply, operands: list[str]) -> str:
        """The expression of one application: in place if it is one operation, else a call."""
        body = self._body(apply)
        if is_simple(body):
            return unwrap(expression(body, operands, {}).result)
        used = [text for text, o in zip(operands, body.operands, strict=True) if o in body.nodes]
        return f"{self._function(apply)}({', '.join(used)})"

    def element(self, c: Constant, position: str) -> str:
        """The integer at a position of a packed constant."""
        s = c.storage
        if s not in self.decoders:
            self.decoders[s] = f"{s.name}_scalar" if s.name in self.values else s.name
            body = self.bodies[s.name, "code"] = _tabulated(s.decoder) or s.decoder
            for values in body.tables:
                self.tables.setdefault(values, self._numbers(s))
            lines = expression(body, ["code"], self.tables)
            self.text += [
                *comment(f"{(s.number[0].__doc__ or '').strip()} Of {s.bits} bits."),
                " */",
                f"static inline int{word(body.range.bits)}_t {self.decoders[s]}(int32_t code) {{",
                *(part for d in lines.declarations for part in wrapped(f"  {d}")),
                *wrapped(f"  return {lines.result};"),
                "}",
                "",
            ]
        text = f"{self.decoders[s]}(isobit_code({identifier(c.name)}, {position}, {s.bits}))"
        narrow = word(s.decoder.range.bits) == 64 and word(self.nest.range(c.name).bits) == 32
        return f"(int32_t){text}" if narrow else text

    def _numbers(self, s: Storage) -> str:
        """The table of the integers of all codes."""
        name = f"{s.name}_numbers"
        return f"{name}_table" if name in self.values else name

    def _body(self, apply: Apply) -> Traced:
        """The definition as this target computes it: as a table of its 8-bit operand, or with high-half products."""
        key = (apply.node.output, apply.role)
        if key not in self.bodies:
            self.bodies[key] = _tabulated(apply.body) or high_products(apply.body)
        return self.bodies[key]

    def _family(self, apply: Apply) -> str:
        return apply.node.op if apply.role in ("value", "update") else f"{apply.node.op}_{apply.role}"

    def _lines(self, apply: Apply) -> tuple[tuple[object, ...], Lines]:
        body = self._body(apply)
        names = [f"{o.name}_" if o.name in RESERVED else o.name for o in body.operands]
        for values, name in body.tables.items():
            self.tables.setdefault(values, self._table_name(name, apply))
        lines = expression(body, names, self.tables)
        code = tuple(d.partition(" /*")[0] for d in lines.declarations)
        types = (*(word(o.bits) for o in body.operands), word(body.range.bits))
        return (types, code, lines.result), lines

    def _table_name(self, name: str, apply: Apply) -> str:
        base = f"{apply.node.op}_table" if name == "table" else name
        names = set(self.tables.values())
        return base if base not in names else f"{base}_{identifier(apply.node.output)}"

    def _function(self, apply: Apply) -> str:
        key, lines = self._lines(apply)
        family, body = self._family(apply), self._body(apply)
        if (family, *key) not in self.functions:
            made = sum(key[0] == family for key in self.functions)
            name = family if self.variants[family] == 1 else f"{family}_{made + 1}"
            name = f"{name}_scalar" if name in self.values | RESERVED else name
            self.functions[(family, *key)] = name
            self.text += self._definition(name, apply, body, lines)
        return self.functions[(family, *key)]

    def _definition(self, name: str, apply: Apply, body: Traced, lines: Lines) -> list[str]:
        op = apply.node.spec
        what = op.summary if apply.role != "readout" else (getattr(op.readout, "__doc__", "") or "").split("\n")[0]
        params = ", ".join(f"{k}={v}" for k, v in apply.node.params if k != "acc")
        arguments = ", ".join(
            f"int{word(o.bits)}_t {o.name}{'_' if o.name in RESERVED else ''}" for o in body.operands if o in body.nodes
        )
        return [
            *comment(what),
            f" * {params} */" if params else " */",
            f"static inline int{word(body.range.bits)}_t {name}({arguments}) {{",
            *(part for d in lines.declarations for part in wrapped(f"  {d}")),
            *wrapped(f"  return {lines.result};"),
            "}",
            "",
        ]

    def table_text(self) -> list[str]:
        used = {values for body in self.bodies.values() for values in body.tables}
        return [
            part
            for v, name in self.tables.items()
            if v in used
            for part in wrapped(
                f"static const {ctype(Interval(min(v), max(v)))} {name}[{len(v)}] = {initializer(list(v))};"
            )
        ]


def _tabulated(body: Traced) -> Traced | None:
    """A definition as a table, where that is less work."""
    return tabulate(body) if operations(body) >= WORTH_A_TABLE else None


def _applications(statements: tuple[Statement, ...]) -> Iterator[Apply]:
    for s in statements:
        match s:
            case Loop():
                yield from _applications(s.body)
            case Accumulate():
                yield s.term
            case Let():
                yield s.apply


class KernelPrinter:
    """Prints one kernel as a C function."""

    def __init__(self, nest: Nest, functions: Functions, kernel: Kernel) -> None:
        self.nest, self.functions, self.kernel = nest, functions, kernel
        program = nest.program
        self.uses_state = any(v in program.state for v in (*kernel.reads, *kernel.writes))
        unread = {*program.constant, *program.state, *kernel.writes}
        self.read = [v for v in kernel.reads if v not in unread]
        self.write = [v for v in kernel.writes if v not in program.state]
        self.names = self._local_names()

    @property
    def name(self) -> str:
        return f"{identifier(self.nest.program.name)}_{identifier(self.kernel.name)}"

    @property
    def arguments(self) -> list[str]:
        """What `step` passes."""
        return [*(["state"] if self.uses_state else []), *map(identifier, [*self.read, *self.write])]

    def _globals(self) -> set[str]:
        """What the file declares outside of functions, beside tables and scalar functions."""
        program = identifier(self.nest.program.name)
        kernels = {f"{program}_{identifier(k.name)}" for k in self.nest.kernels}
        return kernels | {f"{program}_{part}" for part in ("state", "reset", "step", "sequence")}

    def _local_names(self) -> dict[str, str]:
        """Short names for scalars: the role within the layer, or the layer's last name and the role."""
        layer_of = {n.output: n.loc for n in self.kernel.group.nodes}
        layer_of |= {n.state or carry_name(n): n.loc for n in self.kernel.group.nodes if n.spec.readout}
        stored = {identifier(v) for v in (*self.kernel.reads, *self.kernel.writes)}
        taken = {"state"} | RESERVED | stored | self.functions.names() | self._globals()
        roles = Counter(value.removeprefix(f"{loc}.") for value, loc in layer_of.items())
        names: dict[str, str] = {}
        for value, loc in layer_of.items():
            role = value.removeprefix(f"{loc}.")
            short = identifier(role)
            if roles[role] > 1 or len(short) == 1 or value == role:
                short = identifier(f"{loc.rpartition('.')[2]}.{value.rpartition('.')[2]}")
            free = (
                c for c in (short, f"{short}_now", f"{identifier(value)}_now") if c not in taken | set(names.values())
            )
            names[value] = next(free)
        return names

    def text(self) -> list[str]:
        k, program = self.kernel, self.nest.program
        parameters = [f"{identifier(program.name)}_state *restrict state"] if self.uses_state else []
        parameters += [f"const {self._parameter(v)}" for v in self.read]
        parameters += [self._parameter(v) for v in self.write]
        shapes = [
            f" *   {'reads' if v in self.read else 'writes'} {v} {_described(self.nest.type(v))}"
            for v in (*self.read, *self.write)
        ]
        return [
            f"/* {k.title}",
            *shapes,
            " */",
            signature(f"ISOBIT_KERNEL void {self.name}", parameters) + " {",
            *(part for line in self._statements(k.body, "  ") for part in wrapped(line)),
            "}",
            "",
        ]

    def _place(self, place: Place) -> Place:
        """An index, its labels renamed where an array of the program has the same name."""
        if isinstance(place, Affine):
            return replace(place, terms=tuple((self._index(k), c) for k, c in place.terms))
        return self._index(place) if isinstance(place, str) else place

    def _index(self, label: str) -> str:
        return f"{label}_index" if label in self.functions.values else label

    def _parameter(self, value: str) -> str:
        t = self.nest.type(value)
        return f"{element_type(t)} {identifier(value)}[restrict {dims(t)[1:]}"

    def _element(self, e: Element) -> str:
        base = f"state->{identifier(e.value)}" if e.value in self.nest.program.state else identifier(e.value)
        places = [self._operand(i) if isinstance(i, Element | Local) else str(self._place(i)) for i in e.indices]
        c = self.nest.program.constant.get(e.value)
        if c is not None and is_packed(c):
            return self.functions.element(c, row_major(places, c.type.dims))
        return base + ("".join(f"[{p}]" for p in places) or "[0]")

    def _operand(self, o: Operand) -> str:
        match o:
            case Element():
                return self._element(o)
            case Local():
                return self.names[o.value]
            case Literal():
                return literal(o.value)

    def _apply(self, apply: Apply) -> str:
        body = apply.body
        texts = []
        for o, symbol in zip(apply.operands, body.operands, strict=True):
            known = self.nest.range(o.value) if isinstance(o, Element) else symbol.range
            stored_wide = (container(known) if isinstance(o, Element) else word(known.bits)) == 64
            narrow = stored_wide and word(symbol.bits) == 32
            texts.append(f"(int32_t){self._operand(o)}" if narrow else self._operand(o))
        return self.functions.call(apply, texts)

    def _statements(self, statements: tuple[Statement, ...], pad: str) -> Iterator[str]:
        for s in statements:
            match s:
                case Loop():
                    k = self._index(s.index)
                    yield f"{pad}for (int32_t {k} = 0; {k} < {s.extent}; {k}++) {{"
                    yield from self._statements(s.body, pad + "  ")
                    yield pad + "}"
                case Accumulator():
                    start = self._start(s)
                    yield f"{pad}int{word(s.range.bits)}_t {self.names[s.value]} = {start}; /* {s.range} */"
                case Accumulate():
                    total, term = self.names[s.value], self._term(s)
                    if s.combine == "max":
                        bits = word(self.nest.range(s.value).bits)
                        yield f"{pad}{total} = isobit_max{bits}({total}, {term});"
                    else:
                        yield f"{pad}{total} += {term};"
                case Let():
                    yield f"{pad}const int{word(s.range.bits)}_t {self.names[s.value]} = {self._apply(s.apply)};"
                case Store():
                    yield f"{pad}{self._element(s.to)} = {self._stored(s)};"
                case Tap():
                    position = replace(s, indices=tuple(map(self._place, s.indices))).position
                    yield f"{pad}ISOBIT_TAP({s.number}, {position}, {self._operand(s.operand)});"

    def _start(self, s: Accumulator) -> str:
        if isinstance(s.start, Literal):
            return literal(s.start.value)
        wide = container(self.nest.range(s.start.value)) == 64 and word(s.range.bits) == 32
        return f"(int32_t){self._operand(s.start)}" if wide else self._operand(s.start)

    def _term(self, s: Accumulate) -> str:
        wide = word(s.term.body.range.bits) == 64 and word(self.nest.range(s.value).bits) == 32
        return f"(int32_t)({self._apply(s.term)})" if wide else self._apply(s.term)

    def _stored(self, s: Store) -> str:
        to, text = self.nest.type(s.to.value).elem.container, self._operand(s.operand)
        if isinstance(s.operand, Literal):
            return text
        if isinstance(s.operand, Element):
            return text if self.nest.type(s.operand.value).elem.container <= to else f"(int{to}_t){text}"
        return text if to >= 32 and to >= word(self._local_bits(s.operand)) else f"(int{to}_t){text}"

    def _local_bits(self, local: Local) -> int:
        return self.nest.range(local.value).bits


def _described(t: TensorType) -> str:
    return f"{t}" + (f", one unit is {t.scale:.6g}" if t.scale is not None else "")
