"""Expression graphs and sums as plain integer ONNX, exact on every tensor that the Program's check admits.

ONNX Runtime bounds the choice of operators: int64 Clip, Min, Max, ReduceMax and Sign are wrong on large values, int64
ReduceSum from 2^53 on, BitShift takes unsigned integers only, and of 16 bits there is little more than copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from isobit.quant.errors import ExprError
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import Sym, Traced
from isobit.quant.program import TensorType

INT64_MAX = (1 << 63) - 1
REDUCE_SUM_EXACT = 1 << 53
"""ONNX Runtime's int64 ReduceSum is exact while every partial sum is smaller."""

CONTAINER_TYPES: dict[int, int] = {
    8: TensorProto.INT8,
    16: TensorProto.INT16,
    32: TensorProto.INT32,
    64: TensorProto.INT64,
}


def element(t: TensorType) -> int:
    """The ONNX type of a container."""
    return CONTAINER_TYPES[t.elem.container]


@dataclass(frozen=True)
class Value:
    """A tensor in a body: its name, its axes (b is the batch), its ONNX element type."""

    name: str
    axes: str
    element: int


class Body:
    """A growing list of ONNX nodes, every value with a new name: the body of a function or of a Scan.

    taken: names that are in use, so that none of them is given to a value. prefix: what new names start with.
    """

    def __init__(self, taken: Iterable[str], prefix: str = "v") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._taken, self._prefix = set(taken), prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns its name."""
        output = output or self._new_name()
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _new_name(self) -> str:
        name = next(k for i in range(len(self.nodes), INT64_MAX) if (k := f"{self._prefix}{i}") not in self._taken)
        self._taken.add(name)
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """A tensor; equal tensors are one."""
        array = np.asarray(value, dtype)
        array = array.astype(array.dtype.newbyteorder("<"))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def cast(self, x: str, to: int, output: str = "") -> str:
        """x as another element type; of an integer too wide the high bits are dropped."""
        return self.op("Cast", x, to=to, output=output)

    def place(self, x: Value, want: str, element: int = TensorProto.INT64) -> str:
        """x as `element`, aligned to `want`."""
        name = x.name if x.element == element else self.cast(x.name, element)
        return self.align(name, x.axes, want)

    def align(self, x: str, have: str, want: str) -> str:
        """x with axes `have`, transposed, and expanded by axes of size 1, so that it broadcasts along `want`."""
        order = [have.index(k) for k in want if k in have]
        if order != sorted(order):
            x = self.op("Transpose", x, perm=order)
        missing = [i for i, k in enumerate(want) if k not in have]
        return self.op("Unsqueeze", x, self.constant(missing)) if missing else x

    def sum(self, x: str, rank: int, sizes: Sequence[int], partial: Interval) -> str:
        """int64 x, of rank `rank`, summed over its last axes, of these sizes; every partial sum lies in `partial`."""
        if not sizes:
            return x
        if max(-partial.lo, partial.hi) < REDUCE_SUM_EXACT:
            return self.op("ReduceSum", x, self.constant(range(rank - len(sizes), rank)), keepdims=0)
        for size in reversed(sizes):
            x = self.op("MatMul", x, self.constant(np.ones(size)))
        return x

    def largest(self, x: str, size: int) -> str:
        """int64 x: the largest of the `size` elements along its last axis, which goes."""
        ends, last = self.constant([INT64_MAX]), self.constant([-1])
        while size > 1:
            size = (size + 1) // 2
            low = self.op("Slice", x, self.constant([0]), self.constant([size]), last)
            high = self.op("Slice", x, self.constant([-size]), ends, last)
            x = self.op("Where", self.op("Less", low, high), high, low)
        return self.op("Squeeze", x, last)

    def mapped(self, traced: Traced, operands: Sequence[Value], want: str) -> Value:
        """The traced definition, aligned to `want`: on int64, but for an element that stays as it is."""
        if traced.result is traced.operands[0] and len(operands) == 1:
            return Value(self.place(operands[0], want, operands[0].element), want, operands[0].element)
        name = self.expression(traced, [self.place(o, want) for o in operands])
        return Value(name, want, TensorProto.INT64)

    def expression(self, traced: Traced, operands: Sequence[str]) -> str:
        """The traced definition on int64 tensors; the result has the shape that all `operands` broadcast to."""
        values = {o.number: name for o, name in zip(traced.operands, operands, strict=True)}

        def name(n: Sym) -> str:
            return self.constant(n.values[0]) if n.op == "const" else values[n.number]

        for n in traced.nodes:
            if n.op not in ("const", "var"):
                if n.op not in PRINTERS:
                    raise ExprError(f"{n.op} has no ONNX form")
                values[n.number] = PRINTERS[n.op](self, n, name)
        result = name(traced.result)
        for o in traced.operands:
            if o not in traced.nodes:
                result = self.op("Add", result, self.op("Mul", values[o.number], self.constant(0)))
        return result


Name = Callable[[Sym], str]
"""The ONNX value that holds a symbol."""

Printer = Callable[[Body, Sym, Name], str]
"""Appends a symbol's primitive to a body, given the names of its arguments; returns the name of the result."""


def _plain(kind: str) -> Printer:
    return lambda b, n, name: b.op(kind, *(name(a) for a in n.args))


def _shift_right(b: Body, n: Sym, name: Name) -> str:
    """Arithmetic, for any int64: of its bits u unsigned, ((u >> s) ^ m) - m, where m = 2^(63-s) is the sign's place."""
    x, amount = n.args
    if amount.fixed == 0:
        return name(x)
    if amount.fixed is not None:
        bits = b.constant(amount.fixed, np.uint64)
    else:
        bits = b.cast(name(amount), TensorProto.UINT64)
    shifted = b.op("BitShift", b.cast(name(x), TensorProto.UINT64), bits, direction="RIGHT")
    shifted = b.cast(shifted, TensorProto.INT64)
    if x.range.lo >= 0:
        return shifted
    if amount.fixed is not None:
        sign = b.constant(1 << (63 - amount.fixed))
    else:
        sign = b.cast(b.op("BitShift", b.constant(1 << 63, np.uint64), bits, direction="RIGHT"), TensorProto.INT64)
    return b.op("Sub", b.op("BitwiseXor", shifted, sign), sign)


def _shift_left(b: Body, n: Sym, name: Name) -> str:
    x, amount = n.args
    if amount.fixed is not None:
        return b.op("Mul", name(x), b.constant(1 << amount.fixed))
    bits = b.cast(name(x), TensorProto.UINT64), b.cast(name(amount), TensorProto.UINT64)
    return b.cast(b.op("BitShift", *bits, direction="LEFT"), TensorProto.INT64)


def _high_product(b: Body, n: Sym, name: Name) -> str:
    bits = b.cast(b.op("Mul", *(name(a) for a in n.args)), TensorProto.UINT64)
    high = b.cast(b.op("BitShift", bits, b.constant(32, np.uint64), direction="RIGHT"), TensorProto.INT64)
    sign = b.constant(1 << 31)
    return b.op("Sub", b.op("BitwiseXor", high, sign), sign)


def _select(b: Body, n: Sym, name: Name) -> str:
    condition, *arms = n.args
    fixed = condition.fixed
    chosen = name(condition) if fixed is None else b.constant(bool(fixed), np.bool_)
    return b.op("Where", chosen, *(name(a) for a in arms))


def _clip(b: Body, n: Sym, name: Name) -> str:
    x, lo, hi = (name(a) for a in n.args)
    at_least = b.op("Where", b.op("Less", x, lo), lo, x)
    return b.op("Where", b.op("Less", hi, at_least), hi, at_least)


def _leading_zeros(b: Body, n: Sym, name: Name) -> str:
    """The width less the number of powers of two that x reaches."""
    x, width = n.args
    powers = b.constant([1 << k for k in range(x.range.hi.bit_length())])
    reached = b.op("GreaterOrEqual", b.op("Unsqueeze", name(x), b.constant([-1])), powers)
    length = b.op("ReduceSum", b.cast(reached, TensorProto.INT64), b.constant([-1]), keepdims=0)
    return b.op("Sub", name(width), length)


PRINTERS: dict[str, Printer] = {
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "mulh": _high_product,
    "shl": _shift_left,
    "shr": _shift_right,
    "and": _plain("BitwiseAnd"),
    "or": _plain("BitwiseOr"),
    "xor": _plain("BitwiseXor"),
    "lt": _plain("Less"),
    "le": _plain("LessOrEqual"),
    "eq": _plain("Equal"),
    "select": _select,
    "clip": _clip,
    "floordiv": _plain("Div"),
    "clz": _leading_zeros,
    "table": lambda b, n, name: b.op("Gather", b.constant(n.values), name(n.args[0]), axis=0),
}
"""Every primitive that a symbol can have, on int64 tensors; comparisons give BOOL."""
