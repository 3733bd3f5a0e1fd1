"""The Program: a flat list of integer nodes, frozen.  Every value but a constant has a batch axis, then time.

An index signature such as `tk,nk,n->tn` names the axes of every operand and of the output; the batch axis is implied on
operands that have `t`.  A recurrence names its state's axes after a bar: `tcn,tc,tn,tn->tc|cn`; where its output has an
axis besides `t` that the state lacks, it scans that axis from zero in every time step, and no state outlives the step.

An operand may name a state: its value before the step, as one of shape (T, ...).  So a model feeds back; such readers
stand before the state's owner.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from isobit.quant.certificates.certificate import Certificate
from isobit.quant.errors import CheckError
from isobit.quant.expr.interval import Interval
from isobit.quant.ops import OPS, Op, Structure
from isobit.quant.storage import Storage, storage

Array = npt.NDArray[np.int64]
Arrays = dict[str, Array]

CONTAINERS = (8, 16, 32, 64)


@dataclass(frozen=True)
class IntType:
    """An integer of `bits` bits; stored in the smallest signed container of 8, 16, 32 or 64 bits that holds it.

    Two are of constants only.  zero: whether it can be 0; where not, one bit is -1 or 1: SIGN.  digits: whether it is a
    sum of at most two signed powers of two, of 8 bits: DIGITS.
    """

    bits: int
    signed: bool = True
    zero: bool = True
    digits: bool = False

    def __post_init__(self) -> None:
        if not self.zero and (self.bits, self.signed, self.digits) != (1, True, False):
            raise CheckError(f"an element of {self.bits} bits without 0, expected 1 bit: -1 or 1")
        if self.digits and (self.bits, self.signed) != (8, True):
            raise CheckError(f"an element of {self.bits} bits of signed digits, expected 8 bits with a sign")

    @property
    def of_constants(self) -> bool:
        """Whether only constants have such elements."""
        return self.digits or not self.zero

    @property
    def range(self) -> Interval:
        if not self.zero:
            return Interval(-1, 1)
        if self.digits:
            return Interval(-127, 127)
        if self.signed:
            return Interval(-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1)
        return Interval(0, (1 << self.bits) - 1)

    @property
    def container(self) -> int:
        return container(self.range)

    @property
    def dtype(self) -> np.dtype[np.signedinteger]:
        """The little-endian numpy type of the container."""
        return np.dtype(f"<i{self.container // 8}")

    def __str__(self) -> str:
        if self.of_constants:
            return "csd8k2" if self.digits else "s1"
        return f"{'i' if self.signed else 'u'}{self.bits}"


SIGN = IntType(1, zero=False)
"""-1 or 1."""

DIGITS = IntType(8, digits=True)
"""Sums of at most two signed powers of two."""


def int_type(text: str) -> IntType:
    """The inverse of str: `i8`, `u15`, `s1`, `csd8k2`."""
    for elem in (SIGN, DIGITS):
        if text == str(elem):
            return elem
    match = re.fullmatch(r"([iu])([1-9]\d?)", text)
    if not match:
        raise CheckError(f"element type '{text}': expected i or u and a width, such as i8 or u15")
    return IntType(int(match[2]), match[1] == "i")


def container(known: Interval) -> int:
    """Bits of the smallest signed machine integer that holds the interval."""
    for bits in CONTAINERS:
        if known.bits <= bits:
            return bits
    raise CheckError(f"{known} does not fit 64 bits")


def word(bits: int) -> int:
    """Width, 32 or 64, in which generated code computes a value of so many bits."""
    return 32 if bits <= 32 else 64


def smallest(known: Interval) -> IntType:
    """The machine integer that stores values of this interval."""
    return IntType(container(known))


@dataclass(frozen=True)
class TensorType:
    """Shape without the batch axis (`T` is time), element type, and the real value of one unit, for people only."""

    shape: tuple[int | str, ...]
    elem: IntType
    scale: float | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape without time."""
        return tuple(d for d in self.shape if isinstance(d, int))

    @property
    def size(self) -> int:
        """Elements per time step."""
        return int(np.prod(self.dims, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Of the elements of a time step in their containers."""
        return self.size * self.elem.container // 8

    def __str__(self) -> str:
        return f"{self.elem}[{', '.join(map(str, self.shape))}]"


HALF_UP = "half_up"


@dataclass(frozen=True)
class Input:
    """rounding, zero: how the host makes integers of real numbers (`isobit.quant.lower.edges.quantize_input`)."""

    name: str
    type: TensorType
    rounding: str = HALF_UP
    zero: int = 0

    @property
    def is_trained(self) -> bool:
        """Whether a quantizer of the model says how its numbers are rounded."""
        return self.rounding != HALF_UP


@dataclass(frozen=True)
class Constant:
    """A named tensor; `data` holds its containers, little endian, row-major.

    mantissa: where its integers are minifloats, in units of the smallest: bits of their mantissa.
    """

    name: str
    type: TensorType
    data: bytes
    mantissa: int | None = None

    @cached_property
    def array(self) -> Array:
        array = np.frombuffer(self.data, self.type.elem.dtype).reshape(self.type.dims).astype(np.int64)
        array.setflags(write=False)
        return array

    @property
    def storage(self) -> Storage:
        """Its codes, as targets store them."""
        return storage(self.type.elem, self.mantissa)


def constant(
    name: str, array: npt.ArrayLike, elem: IntType, scale: float | None = None, mantissa: int | None = None
) -> Constant:
    """A Constant of `array`, whose values must fit `elem`."""
    values = np.asarray(array, np.int64)
    if values.size and Interval(int(values.min()), int(values.max())) not in elem.range:
        raise CheckError(f"{name}: values in [{values.min()}, {values.max()}] do not fit {elem}")
    return Constant(name, TensorType(values.shape, elem, scale), values.astype(elem.dtype).tobytes(), mantissa)


@dataclass(frozen=True)
class State:
    """A named value that lives from one time step to the next; every element starts as `initial`."""

    name: str
    type: TensorType
    initial: int = 0


@dataclass(frozen=True)
class Labels:
    """A parsed index signature.

    slides: of a convolution, (axis of the operand, axis of the output, axis of the kernel), for every axis along which
    the kernel slides, as in tyxc,nijc,n->tvun: (y, v, i) and (x, u, j).
    """

    inputs: tuple[str, ...]
    output: str
    state: str
    slides: tuple[tuple[str, str, str], ...] = ()

    @property
    def reduced(self) -> str:
        """Indices that the output lacks, in order of appearance."""
        seen = "".join(self.inputs) + self.state
        slid = {y for y, _, _ in self.slides}
        return "".join(dict.fromkeys(k for k in seen if k not in self.output and k != "t" and k not in slid))

    @property
    def scanned(self) -> str:
        """The axes, besides time, that a recurrence scans: those of the output that its state lacks."""
        return "".join(k for k in self.output if k not in self.state and k != "t") if self.state else ""


def _slides(inputs: tuple[str, ...], output: str) -> tuple[tuple[str, str, str], ...]:
    """How the kernel of a convolution slides; empty where the signature is none of a convolution."""
    x, w = inputs[0], inputs[1] if len(inputs) > 1 else ""
    slid = [k for k in x if k not in output and k not in w]
    made = [k for k in output if k not in x and k not in w]
    kernel = [k for k in w if k not in output and k not in x]
    return tuple(zip(slid, made, kernel, strict=True)) if len(slid) == len(made) == len(kernel) else ()


@dataclass(frozen=True)
class Node:
    """One op: parameters, operands, output, index signature, the user's layer (`loc`), state, the output's scale."""

    op: str
    params: tuple[tuple[str, int], ...]
    inputs: tuple[str, ...]
    output: str
    index: str
    loc: str
    state: str | None = None
    scale: float | None = None

    @property
    def spec(self) -> Op:
        return OPS[self.op]

    @property
    def param(self) -> dict[str, int]:
        return dict(self.params)

    def step(self, axis: int) -> tuple[int, int]:
        """Stride and dilation of a convolution along the axis-th of those along which its kernel slides."""
        return self.param[f"stride{axis}"], self.param[f"dilation{axis}"]

    @cached_property
    def labels(self) -> Labels:
        inputs, _, output = self.index.partition("->")
        output, _, state = output.partition("|")
        operands = tuple(inputs.split(",")) if self.inputs else ()
        slides = _slides(operands, output) if operands and self.spec.structure is Structure.CONVOLUTION else ()
        return Labels(operands, output, state, slides)


@dataclass(frozen=True)
class Program:
    """An integer program over time.  `step` and `sequence` are two executions of it.

    certificates: what was found of the states of its nodes; no value depends on it.
    """

    name: str
    inputs: tuple[Input, ...]
    constants: tuple[Constant, ...]
    states: tuple[State, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    certificates: tuple[Certificate, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that the Program is."""

        def tensor(t: TensorType) -> list[object]:
            return [list(t.shape), str(t.elem), repr(t.scale)]

        content = [
            self.name,
            [[i.name, tensor(i.type), *([i.rounding, i.zero] if i.is_trained else [])] for i in self.inputs],
            [[c.name, tensor(c.type), c.mantissa, hashlib.sha256(c.data).hexdigest()] for c in self.constants],
            [[s.name, tensor(s.type), s.initial] for s in self.states],
            [[n.op, n.params, n.inputs, n.output, n.index, n.loc, n.state, repr(n.scale)] for n in self.nodes],
            self.outputs,
            [c.data() for c in self.certificates],
        ]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def constant(self) -> dict[str, Constant]:
        return {c.name: c for c in self.constants}

    @cached_property
    def state(self) -> dict[str, State]:
        return {s.name: s for s in self.states}

    @cached_property
    def regions(self) -> tuple[tuple[int, int], ...]:
        """Runs of nodes, [first, end), that only make sense one time step after the other: from the first node that
        reads a state to the node that owns it; overlapping ones are one."""
        owner = {n.state: i for i, n in enumerate(self.nodes) if n.state}
        spans = sorted((i, owner[name] + 1) for i, n in enumerate(self.nodes) for name in n.inputs if name in owner)
        merged: list[tuple[int, int]] = []
        for first, end in spans:
            if merged and first < merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((first, end))
        return tuple(merged)

    def initial_states(self, batch: int) -> Arrays:
        """States before the first step: name -> int64 (batch, *shape)."""
        return {s.name: np.full((batch, *s.type.dims), s.initial, np.int64) for s in self.states}
