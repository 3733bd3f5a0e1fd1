"""RULES: for each op of the float graph, the widths that it asks of its operands, and the integer nodes that it becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isobit.quant.capture.graph import GraphNode
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.lower.dyadic import dyadic, dyadics
from isobit.quant.lower.quantity import Lowering, Quantity, accumulator_bits, largest, limits, power_above
from isobit.quant.ops.exp2 import FRAC
from isobit.quant.ops.rmsnorm import rsqrt
from isobit.quant.program import IntType
from isobit.quant.recipe import Recipe

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

BIAS_BITS = 24
"""A channel's scale is never so fine that its bias leaves this many bits of the accumulator."""

HEADROOM = 2.0
"""A recurrent state saturates at this many times its calibrated magnitude."""

OCTAVE_BITS = 15
"""Bits of the multiplier that turns a 16-bit value into octaves, so that the product fits 32 bits."""


@dataclass(frozen=True)
class Rule:
    """wants: the class of width of each operand: act, wide, or parameter.  emit: adds the nodes to the Program."""

    wants: tuple[str, ...]
    emit: Callable[[Lowering, GraphNode], None]


def bits_of(recipe: Recipe, want: str) -> int:
    """Bits of a class of width, act or wide."""
    return {"act": recipe.act_bits, "wide": recipe.wide_bits}[want]


def linear(l: Lowering, n: GraphNode) -> None:
    """An accumulator with a scale per output channel; it is settled by whoever reads it."""
    _products(l, n, "matmul", "tk,nk,n->tn", None)


def causal_conv1d(l: Lowering, n: GraphNode) -> None:
    """As `linear`; the ring holds the quantized input and starts at 0."""
    x = l.need(n.inputs[0], l.recipe.act_bits)
    channels, kernel = l.graph.parameters[n.inputs[1]].shape
    elem = IntType(x.known.bits)
    ring = l.state(f"{n.output}.ring", (kernel - 1, channels), elem, x.unit)
    _products(l, n, "causal_conv1d", "tc,cj,c->tc", ring)


def _products(l: Lowering, n: GraphNode, op: str, index: str, ring: str | None) -> None:
    """Sums of x * weight over all but the weight's first axis; each of its channels has its own scale."""
    x = l.need(n.inputs[0], l.recipe.act_bits)
    weight = l.graph.parameters[n.inputs[1]]
    bias = l.graph.parameters[n.inputs[2]] if len(n.inputs) > 2 else np.zeros(len(weight))
    steps = np.maximum(np.abs(weight).max(1) / largest(l.recipe.weight_bits), np.abs(bias) / (x.unit * 2.0**BIAS_BITS))
    steps[steps == 0] = steps.max() or 1.0
    weights = np.rint(weight / steps[:, None]).astype(np.int64)
    start = np.rint(bias / (x.unit * steps)).astype(np.int64)
    reach = int((np.abs(weights).sum(1) * x.magnitude + np.abs(start)).max())
    operands = (
        x.value,
        l.constant(f"{n.output}.weight", weights, IntType(l.recipe.weight_bits)),
        l.constant(f"{n.output}.bias", start, IntType(32)),
    )
    acc = l.node(op, index, operands, f"{n.output}.acc", n.loc, {"acc": accumulator_bits(reach)}, state=ring)
    l.quantities[n.output] = Quantity(acc, x.unit * steps, Interval(-reach, reach))


def silu(l: Lowering, n: GraphNode) -> None:
    x, bits = l.need(n.inputs[0], l.recipe.wide_bits), l.width(n.output)
    mx, sx = dyadic(x.unit * LOG2_E * (1 << FRAC), x.magnitude, OCTAVE_BITS)
    m, s = dyadic(x.unit / (l.scale_of(n.output, bits) * (1 << 15)), x.magnitude << 15)
    l.pointwise(n, "silu", "tc->tc", (x.value,), {"mx": mx, "sx": sx, "m": m, "s": s, **limits(bits)})


def softplus(l: Lowering, n: GraphNode) -> None:
    """Never negative."""
    x, bits = l.need(n.inputs[0], l.recipe.wide_bits), l.width(n.output)
    mx, sx = dyadic(x.unit * LOG2_E * (1 << FRAC), x.magnitude, OCTAVE_BITS)
    octaves = (((x.magnitude * mx) >> sx) << 8) + (1 << 20)
    m, s = dyadic(LN_2 / (l.scale_of(n.output, bits) * (1 << 20)), octaves)
    l.pointwise(n, "softplus", "tc->tc", (x.value,), {"mx": mx, "sx": sx, "m": m, "s": s, "hi": largest(bits)})


def rms_norm(l: Lowering, n: GraphNode) -> None:
    """x * 2^root/sqrt(sum x^2 + eps), shifted by `pre` so that 15 bits remain of a channel at the mean; then the gain."""
    x, bits = l.need(n.inputs[0], l.recipe.wide_bits), l.width(n.output)
    channels = l.graph.channels[n.inputs[0]]
    squares = channels * x.magnitude**2
    eps = round(channels * n.attr["eps"] / x.unit**2)
    width = max(16, (squares + eps).bit_length())
    width += width % 2
    if width > 60:
        raise InputError(
            f"{n.where}: eps {n.attr['eps']:g} is {eps} units of the squared input, of which the largest is {x.magnitude**2}: "
            "the calibration data leave this layer's input near zero; calibrate on real samples"
        )
    root = 14 + width // 2
    peak = 2.0**root * x.magnitude / math.sqrt(x.magnitude**2 + eps)
    pre = max(1, power_above(peak) - 15 - (channels.bit_length() + 1) // 2)
    total = l.node(
        "sum_squares", "tc->t", (x.value,), f"{n.output}.squares", n.loc, {"acc": accumulator_bits(squares)}, x.unit**2
    )
    inverse = l.node("rsqrt", "t->t", (total,), f"{n.output}.inverse", n.loc, {"eps": eps, "width": width})
    reach = (x.magnitude * int(rsqrt(Interval(0, squares), eps=eps, width=width).hi) >> pre) + 1
    ratio = l.graph.parameters[n.inputs[1]] * (math.sqrt(channels) * 2.0 ** (pre - root) / l.scale_of(n.output, bits))
    gains, s = dyadics(ratio, reach, 15)
    gain = l.constant(f"{n.output}.gain", gains, IntType(16))
    l.pointwise(n, "rmsnorm_scale", "tc,t,c->tc", (x.value, inverse, gain), {"pre": pre, "s": s, **limits(bits)})


def selective_recurrence(l: Lowering, n: GraphNode) -> None:
    """The decay of every state from the step size, the drive v = dt * u, and the recurrence, whose readout is exact.

    The state's unit is that of v * b, times 2^(15-up): `up` is the least that lets v keep all of its bits.
    """
    wide, act = l.recipe.wide_bits, l.recipe.act_bits
    u, dt, b, c = (l.need(n.inputs[i], bits) for i, bits in ((0, wide), (1, wide), (3, act), (4, act)))
    decay = _decay(l, n, dt)
    top = largest(l.recipe.state_bits)
    held = HEADROOM * (l.calibration.ranges[f"{n.output}.state"].absmax or 1.0) / top
    drive = (l.calibration.ranges[f"{n.output}.v"].absmax or 1.0) / largest(wide)
    room = largest(32) - top * largest(16) - (1 << 14)
    up_max = (room // (largest(wide) * b.magnitude)).bit_length() - 1
    up = min(max(power_above(drive * b.unit * 2.0**15 / held), 0), up_max)
    drive = max(drive, held * 2.0 ** (up - 15) / b.unit)
    held = drive * b.unit * 2.0 ** (15 - up)
    m, s = dyadic(dt.unit * u.unit / drive, dt.magnitude * u.magnitude)
    params = {"m": m, "s": s, **limits(wide)}
    v = l.node("multiply", "tc,tc->tc", (dt.value, u.value), f"{n.output}.v", n.loc, params, drive)
    channels, size = l.graph.parameters[n.inputs[2]].shape
    state = l.state(f"{n.output}.state", (channels, size), IntType(l.recipe.state_bits), held)
    reach = size * top * c.magnitude
    params = {"up": up, "lo": -top, "hi": top, "acc": accumulator_bits(reach)}
    operands, scale = (decay, v, b.value, c.value), held * c.unit
    acc = l.node(
        "linear_recurrence", "tcn,tc,tn,tn->tc|cn", operands, f"{n.output}.acc", n.loc, params, scale, state
    )  # fmt: skip
    l.quantities[n.output] = Quantity(acc, np.asarray(scale), Interval(-reach, reach))


def _decay(l: Lowering, n: GraphNode, dt: Quantity) -> str:
    """exp(dt * a) in Q0.15, from rates -a * log2(e) as 15-bit constants."""
    rates = -LOG2_E * l.graph.parameters[n.inputs[2]]
    if rates.min() < 0:
        raise InputError(
            f"{n.where}: the decay rate a has positive values, up to {-rates.min() / LOG2_E:g}: the state would grow; expected a <= 0"
        )
    if dt.known.lo < 0:
        raise InputError(f"{n.where}: the step size dt is not proved to be >= 0: make it with softplus")
    octaves = dt.unit * (1 << FRAC)
    s = min(-power_above(octaves * (float(rates.max()) or 1.0) / largest(16)), 62)
    if s < 1:
        raise InputError(
            f"{n.where}: dt * a reaches {dt.unit * dt.magnitude * rates.max():g} octaves; nothing is remembered"
        )
    codes = np.rint(rates * (octaves * 2.0**s)).astype(np.int64)
    rate = l.constant(f"{n.output}.rate", codes, IntType(15, signed=False), 1 / (octaves * 2.0**s))
    return l.node("decay", "tc,cn->tcn", (dt.value, rate), f"{n.output}.decay", n.loc, {"s": s}, 2.0**-15)


def mul(l: Lowering, n: GraphNode) -> None:
    a, b = (l.need(i, l.recipe.wide_bits) for i in n.inputs)
    bits = l.width(n.output)
    m, s = dyadic(a.unit * b.unit / l.scale_of(n.output, bits), a.magnitude * b.magnitude)
    l.pointwise(n, "multiply", "tc,tc->tc", (a.value, b.value), {"m": m, "s": s, **limits(bits)})


def scale(l: Lowering, n: GraphNode) -> None:
    """No node: the same integers at another scale."""
    x = l.direct(n.inputs[0])
    l.quantities[n.output] = Quantity(x.value, x.scale * l.graph.parameters[n.inputs[1]], x.known)


def add(l: Lowering, n: GraphNode) -> None:
    """One rounding for the sum of two scales; at most one operand keeps a scale per channel."""
    a, b = (l.direct(i) for i in n.inputs)
    if a.scale.ndim and b.scale.ndim:
        b = l.need(n.inputs[1], l.recipe.wide_bits)
    if b.scale.ndim:
        a, b = b, a
    bits = l.width(n.output)
    unit, magnitude = l.scale_of(n.output, bits), 2 * max(a.magnitude, b.magnitude)
    m, s = dyadics([*np.atleast_1d(a.scale / unit), b.unit / unit], magnitude)
    if a.scale.ndim == 0:
        params = {"ma": int(m[0]), "mb": int(m[1]), "s": s, **limits(bits)}
        l.pointwise(n, "add", "tc,tc->tc", (a.value, b.value), params)
        return
    multiplier = l.constant(f"{n.output}.multiplier", m[:-1], IntType(32))
    params = {"mx": int(m[-1]), "s": s, **limits(bits)}
    l.pointwise(n, "add_per_channel", "tc,c,tc->tc", (a.value, multiplier, b.value), params)


def running_mean(l: Lowering, n: GraphNode) -> None:
    """A sum and a count, exact for t_max steps, and a table of reciprocals of the count."""
    x, bits = l.need(n.inputs[0], l.recipe.wide_bits), l.width(n.output)
    reach = Interval(l.t_max * x.known.lo, l.t_max * x.known.hi)
    held = l.state(f"{n.output}.sum_state", (l.graph.channels[n.output],), IntType(reach.bits), x.unit)
    params = {"lo": reach.lo, "hi": reach.hi, "acc": IntType(reach.bits).container}
    total = l.node("running_sum", "tc->tc|c", (x.value,), f"{n.output}.sum", n.loc, params, x.unit, held)
    steps = l.state(f"{n.output}.count_state", (), IntType(l.t_max.bit_length(), signed=False))
    params = {"t_max": l.t_max, "acc": 32}
    count = l.node("step_count", "->t|", (), f"{n.output}.count", n.loc, params, 1.0, steps)
    m, s = dyadic(x.unit / l.scale_of(n.output, bits), l.t_max * x.magnitude)
    params = {"t_max": l.t_max, "m": m, "s": s, **limits(bits)}
    l.pointwise(n, "mean", "tc,t->tc", (total, count), params)


RULES = {
    "linear": Rule(("act", "parameter", "parameter"), linear),
    "causal_conv1d": Rule(("act", "parameter", "parameter"), causal_conv1d),
    "rms_norm": Rule(("wide", "parameter"), rms_norm),
    "silu": Rule(("wide",), silu),
    "softplus": Rule(("wide",), softplus),
    "selective_recurrence": Rule(("wide", "wide", "parameter", "act", "act"), selective_recurrence),
    "mul": Rule(("wide", "wide"), mul),
    "scale": Rule(("wide", "parameter"), scale),
    "add": Rule(("wide", "wide"), add),
    "running_mean": Rule(("wide",), running_mean),
}
