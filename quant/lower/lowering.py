"""The state of one lowering: what each value of the float graph has become, and the Program built so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from isobit.quant.calibrate.observe import Calibration
from isobit.quant.capture.graph import Dims, Floats, Graph, GraphNode
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.formats.blocks import nearest_scale
from isobit.quant.formats.format import Format
from isobit.quant.formats.multiplier import Codes, code_params
from isobit.quant.lower.dyadic import MAX_SHIFT, dyadic, dyadics
from isobit.quant.lower.edges import MINIFLOAT, InputSpec
from isobit.quant.lower.quantity import (
    UNIT,
    UNIT_SCALE,
    WIDE_BITS,
    Coded,
    Form,
    Operand,
    Quantity,
    largest,
    letters,
    limits,
    only,
    smallest_type,
    symmetric_scale,
    trained_range,
)
from isobit.quant.program import Constant, Input, IntType, Node, Program, State, TensorType, constant
from isobit.quant.recipe import Recipe

OUTPUT = "y"
"""The Program's output."""

CENTRES = 17
"""Of a range, that are tried."""


class Lowering:
    """Emits nodes, and settles accumulators to the forms that consumers ask for, each once.

    certified: widths of states, by name, that their certificates ask for; their scales are those of the recipe's width.
    asked: by value, the forms that its consumers ask for; the widest is made from the accumulator or by the op itself,
    the others from it.  A Program's values have no axes of size 1: `node` drops them from index signatures.
    sums: accumulators, which stay what they are when a consumer asks for another form.  remainders: what these lack of
    their bias, which starts them as an integer.
    """

    def __init__(
        self, graph: Graph, calibration: Calibration, recipe: Recipe, t_max: int, asked: dict[str, set[Form]],
        certified: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.graph, self.calibration, self.recipe, self.t_max, self.asked = graph, calibration, recipe, t_max, asked
        self.constants: list[Constant] = []
        self.states: list[State] = []
        self.nodes: list[Node] = []
        self.dims: dict[str, Dims] = {}
        self.quantities: dict[str, Quantity] = {}
        self.narrowed: dict[tuple[str, Form], Quantity] = {}
        self.rounded: dict[tuple[str, Format], Quantity] = {}
        self.centres: dict[tuple[str, Format], tuple[Quantity, float]] = {}
        self.producer = {n.output: n for n in graph.nodes}
        self.held: dict[str, Quantity] = {}
        self.own_state: set[str] = set()
        self.plans: dict[str, Any] = {}
        self.sums: dict[str, Quantity] = {}
        self.remainders: dict[str, Floats] = {}
        self.certified = certified
        self.clock = ""

    def declare_input(self, spec: InputSpec) -> Input:
        name, dims = self.graph.input, self.graph.dims[self.graph.input]
        trained: tuple[str, int] | tuple[()] = ()
        if self.graph.vocabulary is not None:
            elem, scale = IntType(max(1, (self.graph.vocabulary - 1).bit_length()), signed=False), 1.0
        elif spec.elem is not None and spec.scale is not None:
            elem, scale = spec.elem, spec.scale
            self.asked[name].add(elem.range.bits)
        else:
            elem = IntType(self.width(name))
            scale = symmetric_scale(self.calibration.ranges[name], elem.bits)
            if quantizer := self._only_quantizer(name):
                elem, scale = smallest_type(trained_range(quantizer)), quantizer.number("scale")
                minifloat = f"{MINIFLOAT}{quantizer.integer('mantissa')}" if quantizer.integer("mantissa") >= 0 else ""
                trained = minifloat or quantizer.text("rounding"), quantizer.integer("zero")
        self.quantities[name] = Quantity(name, dims, np.asarray(scale), elem.range)
        self.dims[name] = dims
        return Input(name, TensorType(("T", *(d for d in dims if d != 1)), elem, scale), *trained)

    def only_quantized(self, v: str) -> bool:
        """Whether only quantizers of the model read a value."""
        readers = {n.op for n in self.graph.nodes if v in n.inputs}
        return readers == {"fake_quantize"} and v != self.graph.output

    def _only_quantizer(self, v: str) -> GraphNode | None:
        """The quantizer that alone reads a value as it is; None where there is none."""
        readers = [n for n in self.graph.nodes if v in n.inputs]
        alone = len(readers) == 1 and readers[0].op == "fake_quantize" and v != self.graph.output
        return readers[0] if alone and as_it_is(self, readers[0]) else None

    def program(self, name: str, entry: Input) -> Program:
        """The Program of the nodes so far; its output is the graph's, settled at its widest and called OUTPUT."""
        held = self.need(self.graph.output, self.width(self.graph.output))
        if held.value != OUTPUT and held.trained:
            bounds = {"lo": held.known.lo, "hi": held.known.hi}
            self._converted(held, held.scale, bounds, OUTPUT, self.producer[self.graph.output].loc)
        elif held.value != OUTPUT:
            self._requantize(self.graph.output, held, self.width(self.graph.output))
        return Program(name, (entry,), tuple(self.constants), tuple(self.states), tuple(self.nodes), (OUTPUT,))

    def width(self, v: str) -> int:
        """Bits of the widest form that is asked of a value."""
        return max(form if isinstance(form, int) else WIDE_BITS for form in self.asked[v])

    def is_unit(self, v: str) -> bool:
        """Whether the widest form of a value is UNIT."""
        return UNIT in self.asked.get(v, ())

    def scale_of(self, v: str, bits: int) -> float:
        """The unit of a value's form of `bits` bits."""
        if self.is_unit(v) and bits == self.width(v):
            return UNIT_SCALE
        return symmetric_scale(self.calibration.ranges[v], bits)

    def limits_of(self, v: str, bits: int) -> dict[str, int]:
        """Clip bounds of a value's form of `bits` bits."""
        return {"lo": 0, "hi": largest(16)} if self.is_unit(v) and bits == self.width(v) else limits(bits)

    def constant(
        self, name: str, array: npt.ArrayLike, elem: IntType, scale: float | None = None, mantissa: int | None = None
    ) -> str:
        values = np.asarray(array, np.int64)
        taken = {c.name for c in self.constants}
        name = next(k for i in range(len(taken) + 1) if (k := f"{name}_{i + 1}" if i else name) not in taken)
        self.constants.append(constant(name, np.squeeze(values), elem, scale, mantissa))
        self.dims[name] = values.shape
        return name

    def state(self, name: str, dims: Dims, elem: IntType, scale: float | None = None, initial: int = 0) -> str:
        self.states.append(State(name, TensorType(tuple(d for d in dims if d != 1), elem, scale), initial))
        self.dims[name] = dims
        return name

    def node(
        self, op: str, index: str, inputs: tuple[Operand, ...], output: str, loc: str, params: dict[str, int],
        scale: float | None = None, state: str | None = None, sizes: Mapping[str, int] | None = None,
    ) -> str:  # fmt: skip
        """inputs: quantities, or names of what `constant` and `node` made.  index: with all axes of the float values.

        sizes: of axes that only the output has.
        """
        operands, _, rest = index.partition("->")
        made, bar, kept = rest.partition("|")
        found, labels = dict(sizes or {}), []
        for operand, label in zip(inputs, operands.split(",") if inputs else (), strict=True):
            axes, dims = label.removeprefix("t"), self.dims_of(operand)
            assert len(axes) == len(dims), f"{op} {index}: {operand} has dims {dims}"
            for k, d in zip(axes, dims, strict=True):
                found[k] = max(found.get(k, 1), d)
            labels.append("t" * label.startswith("t") + "".join(k for k, d in zip(axes, dims, strict=True) if d != 1))
        if state and kept:
            found |= dict(zip(kept, self.dims[state], strict=True))

        def without_units(axes: str) -> str:
            return "".join(k for k in axes if k == "t" or found[k] != 1)

        text = f"{','.join(labels)}->{without_units(made)}{bar}{without_units(kept)}"
        names = tuple(i if isinstance(i, str) else i.value for i in inputs)
        self.nodes.append(Node(op, tuple(sorted(params.items())), names, output, text, loc, state, scale))
        self.dims[output] = tuple(found[k] for k in made if k != "t")
        return output

    def dims_of(self, operand: Operand) -> Dims:
        return self.dims[operand] if isinstance(operand, str) else operand.dims

    def pointwise(
        self, n: GraphNode, op: str, operands: tuple[Operand, ...], params: dict[str, int],
        constants: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """The node that makes the value of `n` at the widest form asked, with clip bounds in `params`."""
        bits, dims = self.width(n.output), self.graph.dims[n.output]
        scale = self.scale_of(n.output, bits)
        index = ",".join(f"t{letters(len(self.dims_of(o)))}" for o in operands)
        index += "".join(f",{letters(len(self.dims[c]))}" for c in constants)
        full = f"{index}->t{letters(len(dims))}"
        value = self.node(op, full, (*operands, *constants), self.name(n.output, bits), n.loc, params, scale)
        self.quantities[n.output] = Quantity(
            value, dims, np.asarray(scale), Interval(params.get("lo", 0), params.get("hi", 0))
        )

    def name(self, v: str, bits: int) -> str:
        """The widest form of a value has its name, others end in `.q<bits>`; the output's is OUTPUT."""
        if bits < self.width(v):
            return f"{v}.q{bits}"
        return OUTPUT if v == self.graph.output else v

    def settled(self, v: str) -> Quantity:
        """The value in its widest form, or as the model itself quantizes it."""
        held, widest = self.quantities[v], self.width(v)
        if not held.trained and not held.fits(UNIT if self.is_unit(v) else widest):
            held = self.quantities[v] = self._requantize(v, held, widest)
        return held

    def need(self, v: str, form: Form) -> Quantity:
        """The value with one positive scale, in this form; where a minifloat is asked of an integer that takes no more
        bits, as it is."""
        if (v, form) in self.narrowed:
            return self.narrowed[v, form]
        if form == UNIT:
            self._refuse_outside_unit(v)
        held = self.settled(v)
        if isinstance(form, Codes):
            held = self._coded(v, self._minifloat(v, held, form.format), form)
        elif held.trained and form == UNIT and not held.fits(form):
            loc = self.producer[v].loc if v in self.producer else self.graph.name
            held = self._converted(held, UNIT_SCALE, {"lo": 0, "hi": largest(16)}, f"{v}.unit", loc)
        elif isinstance(form, Format) and not (held.trained or held.fits(form.bits)):
            held = self._minifloat(v, held, form)
        elif not (held.trained or isinstance(form, Format) or held.fits(form)):
            assert form != UNIT
            held = self._requantize(v, held, form)
        self.narrowed[v, form] = held
        return held

    def _minifloat(self, v: str, held: Quantity, form: Format) -> Quantity:
        """At the scale of least squared error, up to the one at which nothing saturates; once."""
        if (v, form) in self.rounded:
            return self.rounded[v, form]
        assert form.mantissa is not None
        scale, _ = self._scale_about(v, 0.0, form)
        m, s = dyadic(held.unit / scale, held.magnitude << 1, min(24, MAX_SHIFT - form.largest.bit_length()))
        axes, loc = letters(len(held.dims)), self.producer[v].loc if v in self.producer else self.graph.name
        params = {"m": m, "s": s, "mantissa": form.mantissa, "most": form.largest}
        name = self.node("to_minifloat", f"t{axes}->t{axes}", (held,), f"{v}.{form.name}", loc, params, scale)
        known = Interval(-form.largest, form.largest)
        self.rounded[v, form] = Quantity(name, held.dims, np.asarray(scale), known)
        return self.rounded[v, form]

    def _scale_about(self, v: str, centre: float, form: Format) -> tuple[float, float]:
        """Of a minifloat for a value less `centre`: the scale of least squared error, and that error."""
        known = self.calibration.ranges[v]
        reach = max(known.hi - centre, centre - known.lo) or 1.0
        return nearest_scale(self.calibration.seen[v] - centre, reach / form.largest, form)

    def centred(self, v: str, form: Format) -> tuple[Quantity, float]:
        """As `need`, and what the integers lack: of the model's input a centre, where that halves its error, or 0.

        Raw features may lie far from zero, where minifloats are coarse.
        """
        held, known = self.settled(v), self.calibration.ranges[v]
        if v != self.graph.input or held.trained or held.fits(form.bits):
            return self.need(v, form), 0.0
        if (v, form) not in self.centres:
            tried = {float(c): self._scale_about(v, float(c), form) for c in np.linspace(known.lo, known.hi, CENTRES)}
            best = min(tried, key=lambda c: tried[c][1])
            if 2 * tried[best][1] > self._scale_about(v, 0.0, form)[1]:
                self.centres[v, form] = self.need(v, form), 0.0
            else:
                zero = round(best / held.unit)
                self.centres[v, form] = self._less(v, held, zero, tried[best][0], form), zero * held.unit
        return self.centres[v, form]

    def _less(self, v: str, held: Quantity, zero: int, scale: float, form: Format) -> Quantity:
        """A minifloat of held - zero."""
        assert form.mantissa is not None
        m, s = dyadic(held.unit / scale, held.magnitude << 2, min(24, MAX_SHIFT - form.largest.bit_length()))
        axes, known = letters(len(held.dims)), Interval(-form.largest, form.largest)
        params = {"m": m, "b": -zero * m, "s": s, "mantissa": form.mantissa, "lo": known.lo, "most": known.hi}
        index, name = f"t{axes}->t{axes}", f"{v}.{form.name}.centred"
        self.node("quantize_minifloat", index, (held,), name, self.graph.name, params)
        return Quantity(name, held.dims, np.asarray(scale), known)

    def _coded(self, v: str, held: Quantity, form: Codes) -> Coded:
        axes, loc = letters(len(held.dims)), self.producer[v].loc if v in self.producer else self.graph.name
        name, params = f"{held.value}.codes", code_params(form.format)
        value = self.node("minifloat_code", f"t{axes}->t{axes}", (held,), name, loc, params)
        return Coded(value, held.dims, held.scale, IntType(form.format.bits).range, codes=form)

    def _refuse_outside_unit(self, v: str) -> None:
        known, loc = self.calibration.ranges[v], self.producer[v].loc if v in self.producer else self.graph.name
        if known.lo < -UNIT_SCALE / 2 or known.hi > 1 + UNIT_SCALE / 2:
            raise InputError(
                f"{loc}: a decay or gate of a recurrence lies in [{known.lo:g}, {known.hi:g}] on the calibration data, "
                "expected 0 to 1: make it with a sigmoid, or as exp of what is never above 0"
            )

    def direct(self, v: str) -> Quantity:
        """The value for a consumer that takes any scale: an accumulator that nobody else reads, or a wide integer."""
        held = self.quantities[v]
        if self.graph.uses[v] == 1 or held.known in IntType(self.recipe.wide_bits).range:
            return held
        return self.need(v, self.recipe.wide_bits)

    def at(self, v: str, scale: float | Floats, bits: int, name: str, loc: str) -> Quantity:
        """The value as integers of `bits` bits at a scale that the consumer sets, or at one per element of its dims."""
        held = self.direct(v)
        if held.settled and np.all(held.unit == scale) and held.known in IntType(bits).range:
            return held
        return self._converted(held, scale, limits(bits), name, loc)

    def _requantize(self, v: str, held: Quantity, bits: int) -> Quantity:
        scale, name, bounds = self.scale_of(v, bits), self.name(v, bits), self.limits_of(v, bits)
        if name == held.value or name in self.dims:
            name = f"{name}.{'unit' if self.is_unit(v) else f'q{bits}'}"
        loc = self.producer[v].loc if v in self.producer else self.graph.name
        return self._converted(held, scale, bounds, name, loc)

    def _converted(
        self, held: Quantity, scale: float | Floats, bounds: dict[str, int], name: str, loc: str
    ) -> Quantity:
        """A requantize node."""
        ratio, axes = np.asarray(held.scale / scale), letters(len(held.dims))
        unit = only(scale)
        if ratio.ndim == 0:
            m, s = dyadic(float(ratio), held.magnitude)
            self.node("requantize", f"t{axes}->t{axes}", (held,), name, loc, {"m": m, "s": s, **bounds}, unit)
        else:
            ms, s = dyadics(ratio.ravel(), held.magnitude)
            multiplier = self.constant(f"{name}.multiplier", ms.reshape(ratio.shape), IntType(32))
            params = {"s": s, **bounds}
            index = f"t{axes},{axes}->t{axes}"
            self.node("requantize_per_channel", index, (held, multiplier), name, loc, params, unit)
        return Quantity(name, held.dims, np.asarray(scale), Interval(bounds["lo"], bounds["hi"]))

    def accumulator(self, n: GraphNode, value: str, scale: npt.ArrayLike, known: Interval) -> None:
        """The value of `n` is an accumulator, to be settled by whoever reads it."""
        self.quantities[n.output] = Quantity(value, self.graph.dims[n.output], np.asarray(scale, np.float64), known)

    def steps(self, loc: str) -> str:
        """The number of the step, from 1, which stays at t_max; one for the Program."""
        if not self.clock:
            held = self.state("clock.count_state", (), IntType(self.t_max.bit_length(), signed=False))
            params = {"t_max": self.t_max, "acc": 32}
            self.clock = self.node("step_count", "->t|", (), "clock.count", loc, params, 1.0, held)
        return self.clock

    def past(self, v: str, initial: float = 0.0) -> Quantity:
        """The state that holds a value from one step to the next, in its widest form or in as many bits as states have.

        It is settled before the value is made.
        """
        if v not in self.held and self.producer[v].op == "fake_quantize":
            known, unit = trained_range(self.producer[v]), self.producer[v].number("scale")
            start = max(known.lo, min(known.hi, round(initial / unit)))
            self.state(f"{v}.state", self.graph.dims[v], IntType(known.bits), unit, start)
            self.held[v] = Quantity(f"{v}.state", self.graph.dims[v], np.asarray(unit), known, trained=True)
        elif v not in self.held:
            bits, dims = min(self.width(v), self.recipe.held_bits), self.graph.dims[v]
            scale, name = self.scale_of(v, bits), f"{v}.state"
            bits = self.certified.get(name, bits)
            start = max(-largest(bits), min(largest(bits), round(initial / scale)))
            self.state(name, dims, IntType(bits), scale, start)
            self.held[v] = Quantity(name, dims, np.asarray(scale), IntType(bits).range)
        return self.held[v]


def as_it_is(low: Lowering, n: GraphNode) -> bool:
    """Whether a `fake_quantize` has no factor and no offset."""
    gain, shift = (low.graph.parameters[i] for i in n.inputs[1:])
    return bool(np.all(gain == 1) and np.all(shift == 0))
