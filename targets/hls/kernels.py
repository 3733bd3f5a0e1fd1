"""Loop nests as HLS C++: one function per fused group.

Policy.  A reduction (or the shift of a ring) of at most 8 iterations that holds no other loop is unrolled, and the
arrays that it walks are partitioned along its index.  Every other loop that is innermost, or holds unrolled loops only,
is a pipeline with an initiation interval of 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from isobit.quant.check import carry_name
from isobit.quant.ops import Structure
from isobit.targets.hls import expression
from isobit.targets.hls.text import Names, ap, comment, commented, literal, wrapped
from isobit.targets.hls.unit import Unit, below, is_pipelined, is_unrolled
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
    Operand,
    Statement,
    Store,
    Tap,
)


def kernel_text(unit: Unit, kernel: Kernel) -> str:
    """The function of a kernel, with comments that name the layer, its ops, shapes and scales."""
    return "\n".join(_KernelPrinter(unit, kernel).lines())


class _KernelPrinter:
    def __init__(self, unit: Unit, kernel: Kernel) -> None:
        self.unit, self.kernel = unit, kernel
        self.scalar = self._scalars()

    def lines(self) -> Iterator[str]:
        unit, kernel = self.unit, self.kernel
        params = ", ".join(unit.parameter(v, v in kernel.writes) for v in unit.arguments(kernel))
        yield from self._comment()
        yield wrapped(f"static void {unit.kernel[kernel.name]}({params}) {{")
        yield "#pragma HLS INLINE off"
        constants = [p for p in unit.walked(kernel) if p.value in unit.nest.program.constant]
        yield from dict.fromkeys(p.pragma(unit.value[p.value]) for p in constants)
        yield from self._statements(kernel.body, 1)
        yield "}"

    def _scalars(self) -> dict[str, str]:
        """By value of the loop body: what its path adds to the layer's, where no other name is so."""
        unit, kernel = self.unit, self.kernel
        names = Names([*unit.names.taken, *(unit.value[v] for v in (*kernel.reads, *kernel.writes))])
        scalars = {}
        for n in kernel.group.nodes:
            values = {n.output: _role(n.loc, n.output)}
            if n.spec.structure is Structure.RECURRENCE and n.spec.readout:
                state = n.state or carry_name(n)
                values[state] = f"{_role(n.loc, state)}_new"
            for value, role in values.items():
                scalars[value] = names.fresh(f"{role}_now" if names.has(role) else role)
        return scalars

    def _comment(self) -> Iterator[str]:
        """The user's layer, then every node: output, op, operands with their shapes, signature and scale."""
        yield comment(self.kernel.title)
        for n in self.kernel.group.nodes:
            operands = ", ".join(self.unit.with_shape(v) for v in n.inputs)
            scale = "" if n.scale is None else f"; a unit of the result is {n.scale:.6g}"
            yield comment(f"  {self.unit.with_shape(n.output)} = {n.op}({operands})", 6)
            yield f"//   {n.index}{scale}"

    def _statements(self, statements: tuple[Statement, ...], depth: int) -> Iterator[str]:
        pad = "  " * depth
        for s in statements:
            match s:
                case Loop():
                    if s.extent > 0:
                        yield from self._loop(s, depth)
                case Accumulator():
                    start = self._operand(s.start)
                    line = f"{pad}{ap(s.range.bits)} {self.scalar[s.value]} = {start};"
                    yield commented(line, f"partial sums in {s.range}")
                case Accumulate():
                    total, term = self.scalar[s.value], self._apply(s.term)
                    if s.combine == "max":
                        bits = self.unit.bits(s.value)
                        yield wrapped(f"{pad}{total} = isobit::max<{bits}>({total}, {ap(bits)}({term}));")
                    else:
                        yield wrapped(f"{pad}{total} += {term};")
                case Let():
                    yield wrapped(f"{pad}const {ap(s.range.bits)} {self.scalar[s.value]} = {self._apply(s.apply)};")
                case Store():
                    yield wrapped(f"{pad}{self._operand(s.to)} = {self._operand(s.operand)};")
                case Tap():
                    yield f"{pad}ISOBIT_TAP({s.number}, {s.position}, {self._operand(s.operand)});"

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
        if (found := self.unit.shifted(apply)) is not None:
            return f"{found[0].name}({self._operand(apply.operands[0])}, {self._code(found[1])})"
        function = self.unit.function_of(apply)
        if function is None:
            operands = [self._operand(o) for o in apply.operands]
            return expression.inline(apply.body, operands, self.unit.tables)
        return f"{function.name}({', '.join(self._operand(o) for o in apply.used)})"

    def _code(self, e: Element) -> str:
        """What the array of a value holds, which of a coded constant is a code."""
        places = [self._operand(i) if isinstance(i, Element | Local) else str(i) for i in e.indices]
        return self.unit.element(e, places)

    def _operand(self, operand: Operand) -> str:
        match operand:
            case Element():
                element = self._code(operand)
                return self.unit.decoded(operand.value, element) if self.unit.is_coded(operand.value) else element
            case Local():
                return self.scalar[operand.value]
            case Literal():
                return literal(operand.value)


def _role(layer: str, value: str) -> str:
    """What the value is within its layer."""
    return below(layer, value) or value.rpartition(".")[2]
