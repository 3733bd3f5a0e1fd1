"""The state of one lowering: what each value of the float graph has become, and the Program built so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isobit.quant.calibrate.observe import Calibration, Range
from isobit.quant.capture.graph import Floats, Graph, GraphNode
from isobit.quant.expr.interval import Interval
from isobit.quant.lower.dyadic import dyadic, dyadics
from isobit.quant.lower.edges import InputSpec
from isobit.quant.program import Constant, Input, IntType, Node, Program, State, TensorType, constant
from isobit.quant.recipe import Recipe

OUTPUT = "y"
"""The Program's output."""

HEADROOM = 2.0
"""Wide values and recurrent states saturate at this many times their calibrated magnitude: it costs them one bit."""

WIDE = 12
"""Bits from which a value has headroom; below, resolution matters more than an outlier that calibration missed."""


def largest(bits: int) -> int:
    """The largest value of a symmetric signed type of `bits` bits."""
    return (1 << (bits - 1)) - 1


def symmetric_scale(known: Range, bits: int) -> float:
    """The unit that maps the largest magnitude seen, times HEADROOM for wide values, to `largest(bits)`.

    A value that was always 0 is taken to reach 1.
    """
    return (known.absmax or 1.0) * (HEADROOM if bits >= WIDE else 1.0) / largest(bits)


def limits(bits: int) -> dict[str, int]:
    """Clip bounds of a symmetric type."""
    return {"lo": -largest(bits), "hi": largest(bits)}


@dataclass(frozen=True)
class Quantity:
    """A value of the Program that stands for one of the float graph: real = integer * scale.

    scale: shape (), or (C,), one for each channel, where it may be negative or zero.  known: holds every integer.
    """

    value: str
    scale: Floats
    known: Interval

    @property
    def magnitude(self) -> int:
        return max(abs(self.known.lo), abs(self.known.hi))

    @property
    def unit(self) -> float:
        """The scale of a value that has one for the tensor."""
        return float(self.scale)

    def fits(self, bits: int) -> bool:
        """Whether it can be an operand of `bits` bits as it is."""
        return self.scale.ndim == 0 and self.unit > 0 and self.known in IntType(bits).range


class Lowering:
    """Emits nodes, and settles accumulators to the widths that consumers ask for, each once.

    asked: by value, the widths that its consumers ask for; the widest is made from the accumulator or by the op itself,
    the others from it.
    """

    def __init__(
        self, graph: Graph, calibration: Calibration, recipe: Recipe, t_max: int, asked: dict[str, set[int]]
    ) -> None:
        self.graph, self.calibration, self.recipe, self.t_max, self.asked = graph, calibration, recipe, t_max, asked
        self.constants: list[Constant] = []
        self.states: list[State] = []
        self.nodes: list[Node] = []
        self.quantities: dict[str, Quantity] = {}
        self.narrowed: dict[tuple[str, int], Quantity] = {}
        self.producer = {n.output: n for n in graph.nodes}

    def declare_input(self, spec: InputSpec) -> Input:
        name = self.graph.input
        if spec.elem is not None and spec.scale is not None:
            elem, scale = spec.elem, spec.scale
            self.asked[name].add(elem.range.bits)
        else:
            elem = IntType(self.width(name))
            scale = symmetric_scale(self.calibration.ranges[name], elem.bits)
        self.quantities[name] = Quantity(name, np.asarray(scale), elem.range)
        return Input(name, TensorType(("T", self.graph.channels[name]), elem, scale))

    def program(self, name: str, entry: Input) -> Program:
        """The Program of the nodes so far; its output is the graph's, settled at its widest and called OUTPUT."""
        held = self.need(self.graph.output, self.width(self.graph.output))
        if held.value != OUTPUT:
            self._requantize(self.graph.output, held, self.width(self.graph.output))
        return Program(name, (entry,), tuple(self.constants), tuple(self.states), tuple(self.nodes), (OUTPUT,))

    def width(self, v: str) -> int:
        """Bits of the widest form that is asked of a value."""
        return max(self.asked[v])

    def scale_of(self, v: str, bits: int) -> float:
        return symmetric_scale(self.calibration.ranges[v], bits)

    def constant(self, name: str, array: npt.ArrayLike, elem: IntType, scale: float | None = None) -> str:
        self.constants.append(constant(name, array, elem, scale))
        return name

    def state(self, name: str, shape: tuple[int, ...], elem: IntType, scale: float | None = None) -> str:
        self.states.append(State(name, TensorType(shape, elem, scale)))
        return name

    def node(
        self, op: str, index: str, inputs: tuple[str, ...], output: str, loc: str, params: dict[str, int],
        scale: float | None = None, state: str | None = None,
    ) -> str:  # fmt: skip
        self.nodes.append(Node(op, tuple(sorted(params.items())), inputs, output, index, loc, state, scale))
        return output

    def pointwise(self, n: GraphNode, op: str, index: str, inputs: tuple[str, ...], params: dict[str, int]) -> None:
        """The node that makes the value of `n` at the widest form asked, with clip bounds in `params`."""
        bits = self.width(n.output)
        scale = self.scale_of(n.output, bits)
        value = self.node(op, index, inputs, self.name(n.output, bits), n.loc, params, scale)
        self.quantities[n.output] = Quantity(value, np.asarray(scale), Interval(params.get("lo", 0), params["hi"]))

    def name(self, v: str, bits: int) -> str:
        """The widest form of a value has its name, others end in `.q<bits>`; the output's is OUTPUT."""
        if bits < self.width(v):
            return f"{v}.q{bits}"
        return OUTPUT if v == self.graph.output else v

    def need(self, v: str, bits: int) -> Quantity:
        """The value with one positive scale, in `bits` bits or fewer."""
        if (v, bits) in self.narrowed:
            return self.narrowed[v, bits]
        held = self.quantities[v]
        if not held.fits(self.width(v)):
            held = self.quantities[v] = self._requantize(v, held, self.width(v))
        if not held.fits(bits):
            held = self._requantize(v, held, bits)
        self.narrowed[v, bits] = held
        return held

    def direct(self, v: str) -> Quantity:
        """The value for a consumer that takes any scale: an accumulator that nobody else reads, or a wide integer."""
        held = self.quantities[v]
        if self.graph.uses[v] == 1 or held.known in IntType(self.recipe.wide_bits).range:
            return held
        return self.need(v, self.recipe.wide_bits)

    def _requantize(self, v: str, held: Quantity, bits: int) -> Quantity:
        scale, name = self.scale_of(v, bits), self.name(v, bits)
        loc = self.producer[v].loc if v in self.producer else self.graph.name
        ratio = held.scale / scale
        if ratio.ndim == 0:
            m, s = dyadic(float(ratio), held.magnitude)
            self.node("requantize", "tc->tc", (held.value,), name, loc, {"m": m, "s": s, **limits(bits)}, scale)
        else:
            ms, s = dyadics(ratio, held.magnitude)
            multiplier = self.constant(f"{name}.multiplier", ms, IntType(32))
            params = {"s": s, **limits(bits)}
            self.node("requantize_per_channel", "tc,c->tc", (held.value, multiplier), name, loc, params, scale)
        return Quantity(name, np.asarray(scale), Interval(-largest(bits), largest(bits)))


def accumulator_bits(magnitude: int) -> int:
    """32, or 64 where sums can leave 32 bits."""
    return 32 if magnitude <= largest(32) else 64


def power_above(x: float) -> int:
    """The least e with 2^e >= x > 0."""
    fraction, exponent = math.frexp(x)
    return exponent - 1 if fraction == 0.5 else exponent
