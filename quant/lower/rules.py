"""RULES: for each op of the float graph, the widths that it asks of its operands, and the nodes that it becomes."""

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

OCTAVE_BITS = 15
"""Bits of the multiplier that turns a 16-bit value into octaves, so that the product fits 32 bits."""


UP_MAX = 7
"""The largest shift of v * k in a recurrence: an 8-bit k, shifted, stays in 16 bits."""


@dataclass(frozen=True)
class Rule:
    """wants: the class of width of each operand: act, wide, or parameter.  emit: adds the nodes to the Program."""

    wants: tuple[str, ...]
    emit: Callable[[Lowering, GraphNode], None]


def bits_of(recipe: Recipe, want: str) -> int:
    """Bits of a class of width, act or wide."""
    return {"act": recipe.act_bits, "wide": recipe.wide_bits}[want]


def linear(low: Lowering, n: GraphNode) -> None:
    """An accumulator with a scale per output channel; it is settled by whoever reads it."""
    _products(low, n, "matmul", "tk,nk,n->tn", None)


def causal_conv1d(low: Lowering, n: GraphNode) -> None:
    """As `linear`; the ring holds the quantized input and starts at 0."""
    x = low.need(n.inputs[0], low.recipe.act_bits)
    channels, kernel = low.graph.parameters[n.inputs[1]].shape
    elem = IntType(x.known.bits)
    ring = low.state(f"{n.output}.ring", (kernel - 1, channels), elem, x.unit)
    _products(low, n, "causal_conv1d", "tc,cj,c->tc", ring)


def _products(low: Lowering, n: GraphNode, op: str, index: str, ring: str | None) -> None:
    """Sums of x * weight over all but the weight's first axis; each of its channels has its own scale."""
    x = low.need(n.inputs[0], low.recipe.act_bits)
    weight = low.graph.parameters[n.inputs[1]]
    bias = low.graph.parameters[n.inputs[2]] if len(n.inputs) > 2 else np.zeros(len(weight))
    steps = np.maximum(
        np.abs(weight).max(1) / largest(low.recipe.weight_bits), np.abs(bias) / (x.unit * 2.0**BIAS_BITS)
    )
    steps[steps == 0] = steps.max() or 1.0
    weights = np.rint(weight / steps[:, None]).astype(np.int64)
    start = np.rint(bias / (x.unit * steps)).astype(np.int64)
    reach = int((np.abs(weights).sum(1) * x.magnitude + np.abs(start)).max())
    operands = (
        x.value,
        low.constant(f"{n.output}.weight", weights, IntType(low.recipe.weight_bits)),
        low.constant(f"{n.output}.bias", start, IntType(32)),
    )
    acc = low.node(op, index, operands, f"{n.output}.acc", n.loc, {"acc": accumulator_bits(reach)}, state=ring)
    low.quantities[n.output] = Quantity(acc, x.unit * steps, Interval(-reach, reach))


def silu(low: Lowering, n: GraphNode) -> None:
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    mx, sx = dyadic(x.unit * LOG2_E * (1 << FRAC), x.magnitude, OCTAVE_BITS)
    m, s = dyadic(x.unit / (low.scale_of(n.output, bits) * (1 << 15)), x.magnitude << 15)
    low.pointwise(n, "silu", "tc->tc", (x.value,), {"mx": mx, "sx": sx, "m": m, "s": s, **limits(bits)})


def softplus(low: Lowering, n: GraphNode) -> None:
    """Never negative."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    mx, sx = dyadic(x.unit * LOG2_E * (1 << FRAC), x.magnitude, OCTAVE_BITS)
    octaves = (((x.magnitude * mx) >> sx) << 8) + (1 << 20)
    m, s = dyadic(LN_2 / (low.scale_of(n.output, bits) * (1 << 20)), octaves)
    low.pointwise(n, "softplus", "tc->tc", (x.value,), {"mx": mx, "sx": sx, "m": m, "s": s, "hi": largest(bits)})


def rms_norm(low: Lowering, n: GraphNode) -> None:
    """x * 2^root/sqrt(sum x^2 + eps), shifted by `pre` so that 15 bits remain of a typical channel; then the gain."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    channels = low.graph.channels[n.inputs[0]]
    squares = channels * x.magnitude**2
    eps = round(channels * n.attr["eps"] / x.unit**2)
    width = max(16, (squares + eps).bit_length())
    width += width % 2
    if width > 60:
        raise InputError(
            f"{n.loc}: eps {n.attr['eps']:g} is {eps} squared units of an input of at most {x.magnitude} units: "
            "the calibration data leave this layer's input near zero; calibrate on real samples"
        )
    root = 14 + width // 2
    peak = 2.0**root * x.magnitude / math.sqrt(x.magnitude**2 + eps)
    pre = max(1, power_above(peak) - 15 - (channels.bit_length() + 1) // 2)
    total = low.node(
        "sum_squares", "tc->t", (x.value,), f"{n.output}.squares", n.loc, {"acc": accumulator_bits(squares)}, x.unit**2
    )
    inverse = low.node("rsqrt", "t->t", (total,), f"{n.output}.inverse", n.loc, {"eps": eps, "width": width})
    reach = (x.magnitude * int(rsqrt(Interval(0, squares), eps=eps, width=width).hi) >> pre) + 1
    ratio = low.graph.parameters[n.inputs[1]] * (
        math.sqrt(channels) * 2.0 ** (pre - root) / low.scale_of(n.output, bits)
    )
    gains, s = dyadics(ratio, reach, 15)
    gain = low.constant(f"{n.output}.gain", gains, IntType(16))
    low.pointwise(n, "rmsnorm_scale", "tc,t,c->tc", (x.value, inverse, gain), {"pre": pre, "s": s, **limits(bits)})


def selective_recurrence(low: Lowering, n: GraphNode) -> None:
    """The decay of every state from the step size, the drive v = dt * u, and the recurrence, whose readout is exact.

    The state's unit is that of v * b, times 2^(15-up): `up` is the least that lets v keep all of its bits.
    """
    wide, act = low.recipe.wide_bits, low.recipe.act_bits
    u, dt, b, c = (low.need(n.inputs[i], bits) for i, bits in ((0, wide), (1, wide), (3, act), (4, act)))
    decay = _decay(low, n, dt)
    top = largest(low.recipe.state_bits)
    held = low.scale_of(f"{n.output}.state", low.recipe.state_bits)
    drive = low.scale_of(f"{n.output}.v", wide)
    room = largest(32) - top * largest(16) - (1 << 14)
    up_max = min((room // (largest(wide) * b.magnitude)).bit_length() - 1, UP_MAX)
    up = min(max(power_above(drive * b.unit * 2.0**15 / held), 0), up_max)
    drive = max(drive, held * 2.0 ** (up - 15) / b.unit)
    held = drive * b.unit * 2.0 ** (15 - up)
    m, s = dyadic(dt.unit * u.unit / drive, dt.magnitude * u.magnitude)
    params = {"m": m, "s": s, **limits(wide)}
    v = low.node("multiply", "tc,tc->tc", (dt.value, u.value), f"{n.output}.v", n.loc, params, drive)
    channels, size = low.graph.parameters[n.inputs[2]].shape
    state = low.state(f"{n.output}.state", (channels, size), IntType(low.recipe.state_bits), held)
    reach = size * top * c.magnitude
    params = {"up": up, "lo": -top, "hi": top, "acc": accumulator_bits(reach)}
    operands, scale = (decay, v, b.value, c.value), held * c.unit
    acc = low.node(
        "linear_recurrence", "tcn,tc,tn,tn->tc|cn", operands, f"{n.output}.acc", n.loc, params, scale, state
    )  # fmt: skip
    low.quantities[n.output] = Quantity(acc, np.asarray(scale), Interval(-reach, reach))


def _decay(low: Lowering, n: GraphNode, dt: Quantity) -> str:
    """exp(dt * a) in Q0.15, from rates -a * log2(e) as 15-bit constants."""
    rates = -LOG2_E * low.graph.parameters[n.inputs[2]]
    if rates.min() < 0:
        raise InputError(
            f"{n.loc}: the decay rate a reaches {-rates.min() / LOG2_E:g}, expected a <= 0: the state would grow"
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
    rate = low.constant(f"{n.output}.rate", codes, IntType(15, signed=False), 1 / (octaves * 2.0**s))
    return low.node("decay", "tc,cn->tcn", (dt.value, rate), f"{n.output}.decay", n.loc, {"s": s}, 2.0**-15)


def mul(low: Lowering, n: GraphNode) -> None:
    a, b = (low.need(i, low.recipe.wide_bits) for i in n.inputs)
    bits = low.width(n.output)
    m, s = dyadic(a.unit * b.unit / low.scale_of(n.output, bits), a.magnitude * b.magnitude)
    low.pointwise(n, "multiply", "tc,tc->tc", (a.value, b.value), {"m": m, "s": s, **limits(bits)})


def scale(low: Lowering, n: GraphNode) -> None:
    """No node: the same integers at another scale."""
    x = low.direct(n.inputs[0])
    low.quantities[n.output] = Quantity(x.value, x.scale * low.graph.parameters[n.inputs[1]], x.known)


def add(low: Lowering, n: GraphNode) -> None:
    """One rounding for the sum of two scales; at most one operand keeps a scale per channel."""
    a, b = (low.direct(i) for i in n.inputs)
    if a.scale.ndim and b.scale.ndim:
        b = low.need(n.inputs[1], low.recipe.wide_bits)
    if b.scale.ndim:
        a, b = b, a
    bits = low.width(n.output)
    unit, magnitude = low.scale_of(n.output, bits), 2 * max(a.magnitude, b.magnitude)
    m, s = dyadics([*np.atleast_1d(a.scale / unit), b.unit / unit], magnitude)
    if a.scale.ndim == 0:
        params = {"ma": int(m[0]), "mb": int(m[1]), "s": s, **limits(bits)}
        low.pointwise(n, "add", "tc,tc->tc", (a.value, b.value), params)
        return
    multiplier = low.constant(f"{n.output}.multiplier", m[:-1], IntType(32))
    params = {"mx": int(m[-1]), "s": s, **limits(bits)}
    low.pointwise(n, "add_per_channel", "tc,c,tc->tc", (a.value, multiplier, b.value), params)


def running_mean(low: Lowering, n: GraphNode) -> None:
    """A sum and a count, exact for t_max steps, and a table of reciprocals of the count."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    reach = Interval(low.t_max * x.known.lo, low.t_max * x.known.hi)
    held = low.state(f"{n.output}.sum_state", (low.graph.channels[n.output],), IntType(reach.bits), x.unit)
    params = {"lo": reach.lo, "hi": reach.hi, "acc": IntType(reach.bits).container}
    total = low.node("running_sum", "tc->tc|c", (x.value,), f"{n.output}.sum", n.loc, params, x.unit, held)
    steps = low.state(f"{n.output}.count_state", (), IntType(low.t_max.bit_length(), signed=False))
    params = {"t_max": low.t_max, "acc": 32}
    count = low.node("step_count", "->t|", (), f"{n.output}.count", n.loc, params, 1.0, steps)
    m, s = dyadic(x.unit / low.scale_of(n.output, bits), low.t_max * x.magnitude)
    params = {"t_max": low.t_max, "m": m, "s": s, **limits(bits)}
    low.pointwise(n, "mean", "tc,t->tc", (total, count), params)


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
