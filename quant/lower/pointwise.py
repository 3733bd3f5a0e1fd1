"""Lowering of functions of one element."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from isobit.quant.capture.graph import GraphNode
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.lower.dyadic import dyadic, dyadics
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.quantity import Operand, Quantity, largest, letters, limits, reduced
from isobit.quant.lower.quantizers import exact_addition
from isobit.quant.ops.exp2 import FRAC
from isobit.quant.ops.rmsnorm import rsqrt as integer_rsqrt
from isobit.quant.program import IntType

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

OCTAVE_BITS = 15
"""Bits of the multiplier that turns a 16-bit value into a fixed unit, so that the product fits 32 bits."""

Emit = Callable[[Lowering, GraphNode], None]


def _octaves(x: Quantity) -> dict[str, int]:
    """Parameters that turn x into log2(e)*x in Q.12."""
    mx, sx = dyadic(x.unit * LOG2_E * (1 << FRAC), x.magnitude, OCTAVE_BITS)
    return {"mx": mx, "sx": sx}


def _carried(ratio: float, magnitude: int) -> dict[str, int]:
    m, s = reduced(*dyadic(ratio, magnitude))
    return {"m": m, "s": s}


def silu(low: Lowering, n: GraphNode) -> None:
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    m, s = dyadic(x.unit / (low.scale_of(n.output, bits) * (1 << 15)), x.magnitude << 15)
    low.pointwise(n, "silu", (x,), {**_octaves(x), "m": m, "s": s, **low.limits_of(n.output, bits)})


def sigmoid(low: Lowering, n: GraphNode) -> None:
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    carried = _carried(1 / (low.scale_of(n.output, bits) * (1 << 15)), 1 << 15)
    low.pointwise(n, "sigmoid", (x,), {**_octaves(x), **carried, "lo": 0, "hi": largest(bits)})


def _tabulated(op: str, gated: bool, unit: int) -> Emit:
    """A function whose table is read in Q.14; `unit` is that of the table."""

    def rule(low: Lowering, n: GraphNode) -> None:
        x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
        mx, sx = dyadic(x.unit * (1 << 14), x.magnitude, OCTAVE_BITS)
        scale = low.scale_of(n.output, bits) * unit
        carried = _carried((x.unit if gated else 1.0) / scale, (x.magnitude if gated else 1) * unit)
        low.pointwise(n, op, (x,), {"mx": mx, "sx": sx, **carried, **low.limits_of(n.output, bits)})

    return rule


tanh = _tabulated("tanh", gated=False, unit=1 << 16)
gelu = _tabulated("gelu", gated=True, unit=1 << 15)
gelu_tanh = _tabulated("gelu_tanh", gated=True, unit=1 << 15)


def _softplus_carried(low: Lowering, n: GraphNode, x: Quantity, bits: int) -> dict[str, int]:
    octaves = _octaves(x)
    reach = (((x.magnitude * octaves["mx"]) >> octaves["sx"]) << 8) + (1 << 20)
    m, s = dyadic(LN_2 / (low.scale_of(n.output, bits) * (1 << 20)), reach)
    return {**octaves, "m": m, "s": s}


def softplus(low: Lowering, n: GraphNode) -> None:
    """Never negative."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    low.pointwise(n, "softplus", (x,), {**_softplus_carried(low, n, x, bits), "hi": largest(bits)})


def log_sigmoid(low: Lowering, n: GraphNode) -> None:
    """Never positive."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    low.pointwise(n, "log_sigmoid", (x,), {**_softplus_carried(low, n, x, bits), "lo": -largest(bits)})


def exp(low: Lowering, n: GraphNode) -> None:
    """Relative to the largest value that the output holds."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    scale = low.scale_of(n.output, bits)
    octaves = _octaves(x)
    top = 0 if low.is_unit(n.output) else round((1 << FRAC) * math.log2(scale * largest(bits)))
    carried = _carried(2.0 ** (top / (1 << FRAC) - 15) / scale, 1 << 15)
    low.pointwise(n, "exp", (x,), {**octaves, "top": top, **carried, "hi": largest(bits)})


def elu(low: Lowering, n: GraphNode) -> None:
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    scale = low.scale_of(n.output, bits)
    (mn, mp), s = dyadics((2.0**-15 / scale, x.unit / scale), max(x.magnitude, 1 << 15))
    params = {**_octaves(x), "mn": int(mn), "mp": int(mp), "s": s, **limits_of(low, n, bits)}
    low.pointwise(n, "elu", (x,), params)


def limits_of(low: Lowering, n: GraphNode, bits: int) -> dict[str, int]:
    return low.limits_of(n.output, bits)


def hardswish(low: Lowering, n: GraphNode) -> None:
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    six = max(1, round(6 / x.unit))
    carried = _carried(x.unit**2 / (6 * low.scale_of(n.output, bits)), x.magnitude * six)
    params = {"three": round(3 / x.unit), "six": six, **carried, **limits_of(low, n, bits)}
    low.pointwise(n, "hardswish", (x,), params)


def prelu(low: Lowering, n: GraphNode) -> None:
    """The slope of negative values, per channel or for the tensor."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    slopes = low.graph.parameters[n.inputs[1]]
    ratio = x.unit / low.scale_of(n.output, bits)
    m, s = dyadics([ratio, *(slopes.ravel() * ratio)], x.magnitude)
    slope = low.constant(f"{n.output}.slope", m[1:].reshape(slopes.shape), IntType(32))
    low.pointwise(n, "prelu", (x,), {"m": int(m[0]), "s": s, **limits_of(low, n, bits)}, (slope,))


def clamp(low: Lowering, n: GraphNode) -> None:
    """The requantization that its operand needs anyway, with other limits."""
    x, bits = low.direct(n.inputs[0]), low.width(n.output)
    scale, bounds = low.scale_of(n.output, bits), limits_of(low, n, bits)
    lo, hi = n.number("lo"), n.number("hi")
    bounds["lo"] = max(bounds["lo"], -largest(32) if math.isinf(lo) else round(lo / scale))
    bounds["hi"] = min(bounds["hi"], largest(32) if math.isinf(hi) else round(hi / scale))
    ratio = x.scale / scale
    if ratio.ndim == 0:
        m, s = dyadic(float(ratio), x.magnitude)
        low.pointwise(n, "requantize", (x,), {"m": m, "s": s, **bounds})
        return
    ms, s = dyadics(ratio.ravel(), x.magnitude)
    multiplier = low.constant(f"{n.output}.multiplier", ms.reshape(ratio.shape), IntType(32))
    low.pointwise(n, "requantize_per_channel", (x,), {"s": s, **bounds}, (multiplier,))


def mul(low: Lowering, n: GraphNode) -> None:
    a, b = (low.need(i, low.recipe.wide_bits) for i in n.inputs)
    bits = low.width(n.output)
    m, s = dyadic(a.unit * b.unit / low.scale_of(n.output, bits), a.magnitude * b.magnitude)
    low.pointwise(n, "multiply", (a, b), {"m": m, "s": s, **limits_of(low, n, bits)})


def scale(low: Lowering, n: GraphNode) -> None:
    """No node: the same integers at another scale."""
    x, factor = low.direct(n.inputs[0]), low.graph.parameters[n.inputs[1]]
    if factor.ndim:
        factor = factor.reshape((1,) * (len(x.dims) - factor.ndim) + factor.shape)
        factor = factor.reshape(()) if factor.size == 1 else factor
    low.quantities[n.output] = Quantity(x.value, x.dims, x.scale * factor, x.known)


def offset(low: Lowering, n: GraphNode) -> None:
    """A parameter is added at the value's own scale, as a constant operand."""
    shift, bits = low.graph.parameters[n.inputs[1]], low.width(n.output)
    x = low.direct(n.inputs[0])
    x = x if x.scale.ndim == 0 else low.need(n.inputs[0], low.recipe.wide_bits)
    unit = low.scale_of(n.output, bits)
    step = (float(np.abs(shift).max()) or 1.0) / largest(16)
    codes = low.constant(f"{n.output}.shift", np.rint(shift / step).astype(np.int64), IntType(16), step)
    (ma, mb), s = dyadics((x.unit / unit, step / unit), 2 * max(x.magnitude, largest(16)))
    params = {"ma": int(ma), "mb": int(mb), "s": s, **limits_of(low, n, bits)}
    low.pointwise(n, "add", (x,), params, (codes,))


def _sum(sign: float) -> Emit:
    def rule(low: Lowering, n: GraphNode) -> None:
        """One rounding for the sum of two scales; at most one operand keeps a scale per channel."""
        a, b = (low.direct(i) for i in n.inputs)
        if a.trained and b.trained and low.only_quantized(n.output) and exact_addition(low, n, a, b, sign):
            return
        if a.scale.ndim and b.scale.ndim:
            b = low.need(n.inputs[1], low.recipe.wide_bits)
        factors = [1.0, sign]
        if b.scale.ndim:
            a, b, factors = b, a, factors[::-1]
        bits = low.width(n.output)
        unit, magnitude = low.scale_of(n.output, bits), 2 * max(a.magnitude, b.magnitude)
        m, s = dyadics([*(factors[0] * a.scale / unit).ravel(), factors[1] * b.unit / unit], magnitude)
        if a.scale.ndim == 0:
            params = {"ma": int(m[0]), "mb": int(m[1]), "s": s, **limits_of(low, n, bits)}
            low.pointwise(n, "add", (a, b), params)
            return
        multiplier = low.constant(f"{n.output}.multiplier", m[:-1].reshape(a.scale.shape), IntType(32))
        params = {"mx": int(m[-1]), "s": s, **limits_of(low, n, bits)}
        full, axes = low.graph.dims[n.output], letters(len(low.graph.dims[n.output]))
        index = f"t{letters(len(a.dims))},{letters(a.scale.ndim)},t{letters(len(b.dims))}->t{axes}"
        name, unit = low.name(n.output, bits), low.scale_of(n.output, bits)
        value = low.node("add_per_channel", index, (a, multiplier, b), name, n.loc, params, unit)
        known = Interval(params["lo"], params["hi"])
        low.quantities[n.output] = Quantity(value, full, np.asarray(unit), known)

    return rule


add, sub = _sum(1.0), _sum(-1.0)


def maximum(low: Lowering, n: GraphNode) -> None:
    a, b = (low.need(i, low.recipe.wide_bits) for i in n.inputs)
    _larger(low, n, a, b, 1.0)


def absolute(low: Lowering, n: GraphNode) -> None:
    """The larger of x and -x."""
    x = low.need(n.inputs[0], low.recipe.wide_bits)
    _larger(low, n, x, x, -1.0)


def _larger(low: Lowering, n: GraphNode, a: Quantity, b: Quantity, sign: float) -> None:
    bits = low.width(n.output)
    unit = low.scale_of(n.output, bits)
    if a.trained and b.trained and a.unit == b.unit and sign == 1:
        known, axes = a.known.join(b.known), letters(len(low.graph.dims[n.output]))
        params = {"ma": 2, "mb": 2, "s": 1, "lo": known.lo, "hi": known.hi}
        index, name = f"t{axes},t{axes}->t{axes}", f"{n.output}.acc"
        value = low.node("maximum", index, (a, b), name, n.loc, params, a.unit)
        low.quantities[n.output] = Quantity(value, low.graph.dims[n.output], a.scale, known, trained=True)
        return
    (ma, mb), s = dyadics((a.unit / unit, sign * b.unit / unit), max(a.magnitude, b.magnitude))
    params = {"ma": int(ma), "mb": int(mb), "s": s, **limits_of(low, n, bits)}
    low.pointwise(n, "maximum", (a, b), params)


def div(low: Lowering, n: GraphNode) -> None:
    """The divisor may be an accumulator."""
    x, y, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.direct(n.inputs[1]), low.width(n.output)
    if not y.settled or y.known.hi >= 1 << 31:
        y = low.need(n.inputs[1], low.recipe.wide_bits)
    if low.calibration.ranges[n.inputs[1]].lo < 0:
        raise InputError(
            f"{n.loc}: its divisor reaches {low.calibration.ranges[n.inputs[1]].lo:g}, expected values > 0"
        )
    width = max(16, y.known.hi.bit_length())
    divided(low, n, x, y, x.unit / (y.unit * low.scale_of(n.output, bits)), width, limits_of(low, n, bits))


def divided(
    low: Lowering, n: GraphNode, x: Quantity, y: Quantity, ratio: float, width: int, bounds: dict[str, int]
) -> None:
    """x / y times `ratio`, as the value of n; y below 2^width."""
    m, s = dyadic(ratio * 2.0 ** -(14 + width), x.magnitude << 15)
    if s <= width:
        raise InputError(f"{n.loc}: its quotient is far larger than its dividend: {ratio:g} per unit")
    low.pointwise(n, "divide", (x, y), {"width": width, "m": m, "s": s, **bounds})


def sqrt(low: Lowering, n: GraphNode) -> None:
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    if low.calibration.ranges[n.inputs[0]].lo < 0:
        raise InputError(f"{n.loc}: the square root of {low.calibration.ranges[n.inputs[0]].lo:g}")
    width = 16
    carried = _carried(math.sqrt(x.unit) * 2.0 ** -(width // 2) / low.scale_of(n.output, bits), 1 << width)
    low.pointwise(n, "sqrt", (x,), {"width": width, **carried, "hi": largest(bits)})


def rsqrt(low: Lowering, n: GraphNode) -> None:
    """1 / sqrt(x + eps), of an accumulator where it can be."""
    x, bits = low.direct(n.inputs[0]), low.width(n.output)
    if not x.settled or x.known.hi >= 1 << 58:
        x = low.need(n.inputs[0], low.recipe.wide_bits)
    eps = max(round(n.number("eps") / x.unit), 0)
    width = max(16, (max(x.known.hi, 0) + eps).bit_length())
    width += width % 2
    axes = letters(len(x.dims))
    index, params = f"t{axes}->t{axes}", {"up": 0, "eps": eps, "least": 1, "width": width}
    inverse = low.node("rsqrt", index, (x,), f"{n.output}.inverse", n.loc, params)
    reach = integer_rsqrt(Interval(min(x.known.lo, 0), max(x.known.hi, 0)), up=0, eps=eps, least=1, width=width).hi
    ratio = 2.0 ** -(14 + width // 2) / math.sqrt(x.unit) / low.scale_of(n.output, bits)
    m, s = dyadic(ratio, int(reach))
    low.pointwise(n, "requantize", (inverse,), {"m": m, "s": s, **limits_of(low, n, bits)})


def heaviside(low: Lowering, n: GraphNode) -> None:
    """A comparison of integers: x > threshold, or x >= threshold, or its opposite."""
    x = low.need(n.inputs[0], low.recipe.wide_bits)
    edge = n.number("threshold") / x.unit
    code = math.ceil(edge) - 1 if n.attr.get("at_least") else math.floor(edge)
    params = {"threshold": code}
    decision(low, n, "at_most" if n.attr.get("negated") else "heaviside", x, params, Interval(0, 1))


def sign(low: Lowering, n: GraphNode) -> None:
    """Of the integer: -1, 0 or 1."""
    decision(low, n, "sign", low.need(n.inputs[0], low.recipe.wide_bits), {}, Interval(-1, 1))


def decision(low: Lowering, n: GraphNode, op: str, value: Operand, params: dict[str, int], known: Interval) -> None:
    """A small integer, at a scale of 1."""
    axes = letters(len(low.dims_of(value)))
    made = low.node(op, f"t{axes}->t{axes}", (value,), n.output, n.loc, params, 1.0)
    low.quantities[n.output] = Quantity(made, low.graph.dims[n.output], np.asarray(1.0), known)


def top_k(low: Lowering, n: GraphNode) -> None:
    """Every element counts those before it in order of size."""
    x = low.need(n.inputs[0], low.recipe.wide_bits)
    axes, size = letters(len(x.dims)), x.dims[-1]
    lead, mine = axes[:-1], axes[-1]
    earlier = np.tril(np.ones((size, size), np.int64), -1)
    before = low.constant(f"{n.output}.before", earlier, IntType(2))
    index = f"t{axes},t{lead}z,{mine}z->t{axes}"
    rank = low.node("rank", index, (x, x, before), f"{n.output}.rank", n.loc, {"acc": 32}, 1.0)
    decision(low, n, "at_most", rank, {"threshold": n.integer("k") - 1}, Interval(0, 1))


def rotate(low: Lowering, n: GraphNode) -> None:
    """x*p + y*q + u with p, q in Q.14 and one rounding: the turn of a complex state, whose parts are x and y."""
    x, y = (low.quantities[i] for i in n.inputs[:2])
    drive = [low.need(i, low.recipe.wide_bits) for i in n.inputs[2:-2]]
    p, q = (low.graph.parameters[i] for i in n.inputs[-2:])
    bits, unit = low.held[n.output].known.bits, low.held[n.output].unit
    names = []
    s = 14
    for role, array, value in (("p", p, x), ("q", q, y)):
        codes = np.rint(array * value.unit / unit * (1 << s)).astype(np.int64)
        if np.abs(codes).max() > largest(32):
            raise InputError(f"{n.loc}: a complex state grows by {np.abs(array).max():g} per step, expected at most 1")
        names.append(low.constant(f"{n.output}.{role}", codes, IntType(32), unit / (value.unit * (1 << s))))
    axes = letters(len(x.dims))
    if drive:
        m = round(drive[0].unit / unit * (1 << s))
        params = {"mu": m, "s": s, **limits(bits)}
        index = f"t{axes},{axes},t{axes},{axes},t{letters(len(drive[0].dims))}->t{axes}"
        operands: tuple[Operand, ...] = (x, names[0], y, names[1], drive[0])
        op = "rotate_and_add"
    else:
        params, index = {"s": s, **limits(bits)}, f"t{axes},{axes},t{axes},{axes}->t{axes}"
        operands, op = (x, names[0], y, names[1]), "rotate"
    name = low.name(n.output, bits) if bits <= low.width(n.output) else f"{n.output}.acc"
    made = low.node(op, index, operands, name, n.loc, params, unit)
    known = Interval(params["lo"], params["hi"])
    low.quantities[n.output] = Quantity(made, low.graph.dims[n.output], np.asarray(unit), known)


def rotation(low: Lowering, n: GraphNode) -> None:
    """cos or sin of the step's number times theta, from a table of t_max rows, in Q.14."""
    theta = low.graph.parameters[n.inputs[1]]
    angles = np.maximum(np.arange(low.t_max + 1) - 1, 0)[:, None] * theta
    turned = np.cos(angles) if n.text("how") == "cos" else np.sin(angles)
    unit = 2.0**-14
    codes = np.rint(turned / unit).astype(np.int64)
    table = low.constant(f"{n.output}.table", codes, IntType(16), unit)
    value = low.node("embedding", "t,vc->tc", (low.steps(n.loc), table), n.output, n.loc, {}, unit)
    known = Interval(int(codes.min()), int(codes.max()))
    low.quantities[n.output] = Quantity(value, low.graph.dims[n.output], np.asarray(unit), known)


def running_mean(low: Lowering, n: GraphNode) -> None:
    """A sum and a count, exact for t_max steps, and a table of reciprocals of the count."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.width(n.output)
    reach = Interval(low.t_max * x.known.lo, low.t_max * x.known.hi)
    held = low.state(f"{n.output}.sum_state", x.dims, IntType(reach.bits), x.unit)
    axes = letters(len(x.dims))
    params = {"lo": reach.lo, "hi": reach.hi, "acc": IntType(reach.bits).container}
    index = f"t{axes}->t{axes}|{axes}"
    total = low.node("running_sum", index, (x,), f"{n.output}.sum", n.loc, params, x.unit, held)
    m, s = dyadic(x.unit / low.scale_of(n.output, bits), low.t_max * x.magnitude)
    params = {"t_max": low.t_max, "m": m, "s": s, **limits_of(low, n, bits)}
    name, unit = low.name(n.output, bits), low.scale_of(n.output, bits)
    value = low.node("mean", f"t{axes},t->t{axes}", (total, low.steps(n.loc)), name, n.loc, params, unit)
    low.quantities[n.output] = Quantity(value, x.dims, np.asarray(unit), Interval(params["lo"], params["hi"]))
