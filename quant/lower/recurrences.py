"""Lowering of recurrences: scales of the state and of what drives it, decays, readouts, and reads of the past."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isobit.quant.capture.graph import Dims, Floats, GraphNode
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.lower.dyadic import dyadic
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.pointwise import LOG2_E
from isobit.quant.lower.quantity import (
    UNIT,
    UNIT_SCALE,
    Quantity,
    accumulator_bits,
    headroom,
    largest,
    letters,
    limits,
    only,
    power_above,
    symmetric_scale,
)
from isobit.quant.ops.exp2 import FRAC
from isobit.quant.ops.lut import LAST, OCTAVE_FRACTION
from isobit.quant.program import Array, IntType
from isobit.quant.recipe import STATE_BITS

UP_MAX = 7
"""The largest shift of v * k in a recurrence: an 8-bit k, shifted, stays in 16 bits."""

DIAGONAL_UP = 14
"""The shift of what drives a diagonal recurrence: a 16-bit value, shifted, and a decayed state together fit 32 bits."""

LEAST_ROW = 6
"""Octaves between the scales of a matrix state's rows, at most: what calibration saw little of may grow."""

SUM_BITS = 31, 24
"""Of a sum over t_max steps that nothing fades: with operands of up to 8 bits, and of more; else terms are rounded."""

CONVEX_BITS = 15
"""Of a convex recurrence: a gate times a difference of two such values fits 32 bits."""

DECAYS = {
    "quad": ("decay", LOG2_E),
    "ivit": ("decay_ivit", 1.0),
    "clz": ("decay_ivit", 1.0),
    "lut": ("octave_index", LOG2_E),
}
"""By mode, the op of a selective decay, and the rate in its units of a = -1."""


@dataclass(frozen=True)
class Plan:
    """The scales of a recurrence S = decay*S + ((v*k) << up), in 2^-15 of a unit of S.

    held: the unit of S, one for all or one per row, (..., V, 1).  product: the unit of v*k, held * 2^(up-15).  down:
    where nothing decays, a shift to the right instead.  update: magnitude of the sums that the update shifts back.
    """

    state: str
    dims: Dims
    held: Floats
    product: Floats
    up: int
    down: int
    bits: int
    update: int

    def drive(self, k_unit: float) -> Floats:
        """The unit of v, which meets a key of this unit."""
        return _of_rows(self.product) / k_unit

    @property
    def quantity(self) -> Quantity:
        return Quantity(self.state, self.dims, self.held, IntType(self.bits).range)

    def accumulator(self, reach: int) -> int:
        """Bits for sums of this magnitude that are read out, and for the update."""
        return accumulator_bits(max(reach, self.update))


def _of_rows(scale: Floats) -> Floats:
    """A state's scales as those of a value that has an element for every row."""
    return np.asarray(scale[..., 0] if scale.ndim else scale)


def _plan(
    low: Lowering, state: str, dims: Dims, drives: list[tuple[Floats, Quantity]], decays: bool, exact: bool
) -> Plan:
    """drives: the unit that v would like, for all or per row, and the key that it meets; several products are added."""
    bits = low.recipe.held_bits
    wanted = np.asarray(np.maximum.reduce([v * k.unit for v, k in drives]))
    if exact:
        wanted = np.asarray(wanted.max())
        reach = low.t_max * sum(largest(low.recipe.wide_bits) * k.magnitude for _, k in drives)
        most = SUM_BITS[low.recipe.act_bits > 8]
        down = max(0, Interval(-reach, reach).bits - most)
        bits = min(Interval(-reach, reach).bits, most)
        name = low.state(state, dims, IntType(bits), float(wanted) * 2.0**down)
        return Plan(name, dims, wanted * 2.0**down, wanted, 0, down, bits, 0)
    held = np.asarray(low.scale_of(state, min(bits, STATE_BITS)) * _finer(bits))
    most = sum(largest(low.recipe.wide_bits) * k.magnitude for _, k in drives)
    if wanted.ndim:
        held, wanted = _per_row(low, state, dims, min(bits, STATE_BITS)) * _finer(bits), wanted[..., None]
    if not decays:
        down = max(1, power_above(float((held / wanted).max())))
        product = np.maximum(wanted, held * 2.0**-down)
        held = product * 2.0**down
        name = low.state(state, dims, IntType(bits), only(held))
        return Plan(name, dims, held, product, 0, down, bits, most + (1 << (down - 1)))
    word = 32 if bits <= 16 else 64
    room = largest(min(word, 62)) - (largest(bits) << 15) - (1 << 14)
    up_max = min(max((room // most).bit_length() - 1, 0), UP_MAX if bits <= 16 else 32)
    ratio = wanted * 2.0**15 / held
    up = power_above(float(ratio.max())) if bits <= 16 else power_above(float(ratio.min())) - 1
    up = min(max(up, 0), up_max)
    product = np.maximum(wanted, held * 2.0 ** (up - 15))
    held, bits = product * 2.0 ** (15 - up), low.certified.get(state, bits)
    name = low.state(state, dims, IntType(bits), only(held))
    return Plan(name, dims, held, product, up, 0, bits, (largest(bits) << 15) + (most << up) + (1 << 14))


def _finer(bits: int) -> float:
    """Of a state's bits beyond STATE_BITS, half refine it; the other half are headroom."""
    return 2.0 ** -(max(bits - STATE_BITS, 0) // 2)


def _per_row(low: Lowering, state: str, dims: Dims, bits: int) -> Floats:
    """The unit of every row of a matrix state, (..., V, 1), from the largest magnitude seen in the row."""
    peaks = low.calibration.peaks(state).reshape(dims).max(-1, keepdims=True)
    return _row_units(peaks, bits)


def _row_units(peaks: Floats, bits: int) -> Floats:
    """A row that stays far below the others is taken to reach 2^-LEAST_ROW of the largest."""
    largest_peak = float(peaks.max()) or 1.0
    return np.asarray(np.maximum(peaks, largest_peak * 2.0**-LEAST_ROW) * (headroom(bits) / largest(bits)))


def _wide_units(low: Lowering, v: str) -> Floats:
    """The unit that every element of a value would like."""
    bits = low.recipe.wide_bits
    if low.is_unit(v):
        return np.full(low.graph.dims[v], UNIT_SCALE)
    return _row_units(low.calibration.peaks(v).reshape(low.graph.dims[v]), bits)


def _at(low: Lowering, n: GraphNode, v: str, unit: Floats, role: str) -> Quantity:
    return low.at(v, unit, low.recipe.wide_bits, f"{n.output}.{role}", n.loc)


@dataclass(frozen=True)
class _Heads:
    """Labels of a matrix state: those of heads, h, or g and r for groups with common keys; then v, then k."""

    key: str
    value: str

    @property
    def state(self) -> str:
        return f"{self.value}k"


def _heads(low: Lowering, k: str, v: str) -> _Heads:
    groups = len(low.graph.dims[k]) - 1
    of_value = len(low.graph.dims[v]) - 1
    lead = "ghr"[:of_value] if of_value > 1 else "h"[:of_value]
    return _Heads(f"{lead[:groups]}k", f"{lead}v")


def _planned(low: Lowering, n: GraphNode) -> Plan:
    """Of a linear_recurrence or delta_update, settled when it is first asked for, which a `recall` may do."""
    plans: dict[str, Plan] = low.plans
    if n.output not in plans:
        _, k, v, *rest = n.inputs
        drives = [(_wide_units(low, v), low.need(k, low.recipe.act_bits))]
        if n.op == "delta_update":
            b, u, *rest = rest
            drives.append((_wide_units(low, u), low.need(b, low.recipe.act_bits)))
        recalled = any(m.op == "recall" and m.inputs[1] == n.output for m in low.graph.nodes)
        exact = not rest and not recalled
        dims = (*low.graph.dims[v], low.graph.dims[k][-1])
        plans[n.output] = _plan(low, f"{n.output}.state", dims, drives, bool(rest), exact)
    return plans[n.output]


def linear_recurrence(low: Lowering, n: GraphNode) -> None:
    """S = decay*S + v k, o = S q; the readout is exact.  `delta_update` adds u b."""
    act, plan = low.recipe.act_bits, _planned(low, n)
    q_name, k_name, v_name, *rest = n.inputs
    q, k = low.need(q_name, act), low.need(k_name, act)
    v = _at(low, n, v_name, plan.drive(k.unit), "v")
    axes = _heads(low, k_name, v_name)
    operands: list[Quantity | str] = [v, k]
    labels = [f"t{axes.value}", f"t{axes.key}"]
    op = "linear_recurrence_before" if n.attr.get("reads_old") else "linear_recurrence"
    if n.op == "delta_update":
        b_name, u_name, *rest = rest
        b = low.need(b_name, act)
        operands += [_at(low, n, u_name, plan.drive(b.unit), "u"), b]
        labels += [f"t{axes.value}", f"t{axes.key}"]
        op = "delta_recurrence"
    top = largest(plan.bits)
    size = low.graph.dims[k_name][-1]
    reach = size * top * q.magnitude
    params = {"lo": -top, "hi": top, "acc": plan.accumulator(reach)}
    if rest:
        decay, label = _decay_operand(low, n, rest[0], axes)
        operands.insert(0, decay)
        labels.insert(0, label)
        params["up"] = plan.up
    elif plan.down:
        op = "outer_step"
        params["down"] = plan.down
    else:
        op = "outer_sum"
    index = f"{','.join(labels)},t{axes.key}->t{axes.value}|{axes.state}"
    scale = _of_rows(plan.held) * q.unit
    acc = low.node(op, index, (*operands, q), f"{n.output}.acc", n.loc, params, only(scale), plan.state)
    low.accumulator(n, acc, scale, Interval(-reach, reach))


def _decay_operand(low: Lowering, n: GraphNode, decay: str, axes: _Heads) -> tuple[Quantity | str, str]:
    """A decay per head, constant or not, or per key: Q0.15."""
    heads = axes.value[:-1]
    if decay in low.graph.parameters:
        codes = _decay_codes(low, n, decay)
        dims = low.graph.dims[n.output][: len(heads)]
        codes = np.broadcast_to(codes.reshape(codes.shape if codes.ndim else (1,) * len(heads)), dims)
        return low.constant(f"{n.output}.decay", codes, IntType(16), UNIT_SCALE), heads
    held = low.need(decay, UNIT)
    return held, f"t{heads}" if len(held.dims) == len(heads) else f"t{heads}k"


def _decay_codes(low: Lowering, n: GraphNode, decay: str) -> Array:
    """A decay that is a parameter, in Q0.15."""
    array = low.graph.parameters[decay]
    if array.min() < 0 or array.max() > 1:
        raise InputError(f"{n.loc}: its decay lies in [{array.min():g}, {array.max():g}], expected 0 to 1")
    return np.minimum(np.rint(array / UNIT_SCALE), largest(16)).astype(np.int64)


def recall(low: Lowering, n: GraphNode) -> None:
    """S k with the state that the step starts from."""
    key_name, source = n.inputs
    node = low.producer[source]
    plan, key = _planned(low, node), low.need(key_name, low.recipe.act_bits)
    axes = _heads(low, node.inputs[1], node.inputs[2])
    reach = low.graph.dims[key_name][-1] * largest(plan.bits) * key.magnitude
    params, scale = {"acc": accumulator_bits(reach)}, _of_rows(plan.held) * key.unit
    index = f"t{axes.state},t{axes.key}->t{axes.value}"
    acc = low.node("dot", index, (plan.quantity, key), f"{n.output}.acc", n.loc, params, only(scale))
    low.accumulator(n, acc, scale, Interval(-reach, reach))


def previous(low: Lowering, n: GraphNode) -> None:
    """No node: the state of the value that it reads, of which the value's own rule takes care."""
    low.quantities[n.output] = low.past(n.inputs[0], n.number("initial"))


def shift(low: Lowering, n: GraphNode) -> None:
    """The value of the step before."""
    x = low.need(n.inputs[0], low.width(n.output))
    axes = letters(len(x.dims))
    held = low.state(f"{n.output}.state", x.dims, IntType(x.known.bits), x.unit)
    index = f"t{axes}->t{axes}|{axes}"
    value = low.node("delay", index, (x,), low.name(n.output, low.width(n.output)), n.loc, {"acc": 32}, x.unit, held)
    low.quantities[n.output] = Quantity(value, x.dims, x.scale, IntType(x.known.bits).range)


def diagonal_recurrence(low: Lowering, n: GraphNode) -> None:
    """h = decay*h + x; h is the state and the output."""
    decay, x = n.inputs
    past = _diagonal_state(low, n)
    axes, bits = letters(len(past.dims)), past.known.bits
    up = DIAGONAL_UP
    if (wanted := float(_wide_units(low, x).max())) > past.unit * 2.0 ** (up - 15):
        up = 15 + power_above(wanted / past.unit)
    v = _at(low, n, x, np.asarray(past.unit * 2.0 ** (up - 15)), "x")
    a, label = _elementwise_decay(low, n, decay)
    top = largest(bits)
    params = {"up": up, "lo": -top, "hi": top, "acc": 32 if up <= DIAGONAL_UP and bits <= 16 else 64}
    index = f"{label},t{letters(len(v.dims))}->t{axes}|{axes}"
    name = low.name(n.output, low.width(n.output)) if bits <= low.width(n.output) else f"{n.output}.acc"
    value = low.node("diagonal_recurrence", index, (a, v), name, n.loc, params, past.unit, past.value)
    low.quantities[n.output] = Quantity(value, past.dims, past.scale, Interval(-top, top))


def _diagonal_state(low: Lowering, n: GraphNode) -> Quantity:
    """The state that the next step reads, or, where that is none or still read after this node, one of its own."""
    if n.output in low.own_state and n.output in low.held:
        return low.held[n.output]
    name, bits = f"{n.output}.{'inner_state' if n.output in low.held else 'state'}", low.recipe.held_bits
    unit, dims = low.scale_of(n.output, min(bits, STATE_BITS)) * _finer(bits), low.graph.dims[n.output]
    bits = low.certified.get(name, bits)
    return Quantity(low.state(name, dims, IntType(bits), unit), dims, np.asarray(unit), IntType(bits).range)


def _elementwise_decay(low: Lowering, n: GraphNode, decay: str) -> tuple[Quantity | str, str]:
    if decay in low.graph.parameters:
        codes = _decay_codes(low, n, decay)
        return low.constant(f"{n.output}.decay", codes, IntType(16), UNIT_SCALE), letters(codes.ndim)
    held = low.need(decay, UNIT)
    return held, f"t{letters(len(held.dims))}"


def convex_recurrence(low: Lowering, n: GraphNode) -> None:
    """h = h + gate*(x - h): inside the interval of its inputs, so that nothing saturates."""
    gate, x = low.need(n.inputs[0], UNIT), n.inputs[1]
    dims = low.graph.dims[n.output]
    axes = letters(len(dims))
    if n.output in low.held and n.output in low.own_state:
        past = low.held[n.output]
        unit, name, bits = past.unit, past.value, past.known.bits
    else:
        bits = CONVEX_BITS if low.recipe.held_bits == STATE_BITS else low.recipe.held_bits
        unit = symmetric_scale(low.calibration.ranges[x], bits)
        name = low.state(f"{n.output}.state", dims, IntType(bits), unit)
    top = largest(bits)
    v = low.at(x, unit, bits, f"{n.output}.x", n.loc)
    params = {"lo": -top, "hi": top, "acc": 32 if bits <= CONVEX_BITS else 64}
    index = f"t{letters(len(gate.dims))},t{letters(len(v.dims))}->t{axes}|{axes}"
    made = low.node(
        "convex_recurrence", index, (gate, v), low.name(n.output, low.width(n.output)), n.loc, params, unit, name
    )
    low.quantities[n.output] = Quantity(made, dims, np.asarray(unit), Interval(-top, top))


def selective_recurrence(low: Lowering, n: GraphNode) -> None:
    """The decay of every state from the step size, the drive v = dt * u, and the recurrence, whose readout is exact.

    The state's unit is that of v * b, times 2^(15-up): `up` is the least that lets v keep all of its bits.  In an image
    model the recurrence runs along positions, from a state of zeros.
    """
    wide, act, inner = low.recipe.wide_bits, low.recipe.act_bits, bool(n.attr.get("inner"))
    u, dt, b, c = (low.need(i, bits) for i, bits in zip(n.inputs, (wide, wide, act, act), strict=False))
    along = "l" if inner else ""
    decay = _selective_decay(low, n, dt, along)
    channels, size = low.graph.parameters[n.inputs[4]].shape
    drives = [(np.asarray(low.scale_of(f"{n.output}.v", wide)), b)]
    plan = _plan(low, f"{n.output}.state", (channels, size), drives, decays=True, exact=False)
    if inner:
        low.states.pop()
    drive = float(plan.drive(b.unit))
    m, s = dyadic(dt.unit * u.unit / drive, dt.magnitude * u.magnitude)
    index = f"t{along}c,t{along}c->t{along}c"
    v = low.node("multiply", index, (dt, u), f"{n.output}.v", n.loc, {"m": m, "s": s, **limits(wide)}, drive)
    top = largest(plan.bits)
    reach = size * top * c.magnitude
    params = {"up": plan.up, "lo": -top, "hi": top, "acc": plan.accumulator(reach)}
    scale = float(plan.held) * c.unit
    index = f"t{along}cn,t{along}c,t{along}n,t{along}n->t{along}c|cn"
    state = None if inner else plan.state
    acc = low.node("linear_recurrence", index, (decay, v, b, c), f"{n.output}.acc", n.loc, params, scale, state)
    low.accumulator(n, acc, scale, Interval(-reach, reach))


def _selective_decay(low: Lowering, n: GraphNode, dt: Quantity, along: str) -> str:
    """exp(dt * a) in Q0.15, from rates -a * log2(e), or in mode `ivit` -a, as 15-bit constants."""
    op, base = DECAYS[low.recipe.nonlinear]
    rates = -base * low.graph.parameters[n.inputs[4]]
    if rates.min() < 0:
        raise InputError(
            f"{n.loc}: the decay rate a reaches {-rates.min() / base:g}, expected a <= 0: the state would grow"
        )
    if dt.known.lo < 0:
        raise InputError(f"{n.loc}: the step size dt is not proved to be >= 0: make it with softplus")
    octaves = dt.unit * (1 << FRAC)
    s = min(-power_above(octaves * (float(rates.max()) or 1.0) / largest(16)), 62)
    if s < 1:
        raise InputError(
            f"{n.loc}: dt * a reaches {dt.unit * dt.magnitude * rates.max():g} octaves; nothing is remembered"
        )
    codes = np.rint(rates * (octaves * 2.0**s)).astype(np.int64)
    rate = low.constant(f"{n.output}.rate", codes, IntType(16), 1 / (octaves * 2.0**s))
    index = f"t{along}c,cn->t{along}cn"
    if op == "octave_index":
        down = FRAC - OCTAVE_FRACTION
        found = low.node(op, index, (dt, rate), f"{n.output}.index", n.loc, {"s": s + down})
        values = np.minimum(np.rint(np.exp2(15 - np.arange(LAST + 1) * 2.0**-OCTAVE_FRACTION)), largest(16))
        powers = low.constant(f"{n.output}.powers", values.astype(np.int64), IntType(16), UNIT_SCALE)
        index = f"t{along}cn,v->t{along}cn"
        return low.node("lookup", index, (found, powers), f"{n.output}.decay", n.loc, {}, UNIT_SCALE)
    return low.node(op, index, (dt, rate), f"{n.output}.decay", n.loc, {"s": s}, UNIT_SCALE)
