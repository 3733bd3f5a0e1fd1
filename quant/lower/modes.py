"""Lowering in the modes `ivit`, `clz` and `lut`: MODES has, by mode and operator, what replaces the rule of `quad`.

What a mode does not name stays as in `quad`; log-sigmoid and ELU are named in `lut` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from isobit.quant.calibrate.evaluate import EVALUATORS
from isobit.quant.capture.graph import Floats, GraphNode
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.lower import norms
from isobit.quant.lower.dyadic import dyadic
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.quantity import Operand, Quantity, accumulator_bits, largest, letters
from isobit.quant.ops.ivit import EXP_BITS, GATE_UNIT, LARGEST, NEWTON_START, NEWTON_STEPS
from isobit.quant.ops.lut import INDEX_BITS, LAST
from isobit.quant.program import IntType

Emit = Callable[[Lowering, GraphNode], None]

GELU = 1.702
"""x times the sigmoid of GELU x is close to GELU (Hendrycks and Gimpel 2016, section 2)."""

FACTOR_LARGEST = LARGEST // (NEWTON_START >> NEWTON_STEPS)
"""Of `factor_ivit`: no step halves its root more than once."""


def one_in(unit: float) -> int:
    """x0 = ceil(1/S) of I-ViT: one, in units of S."""
    return -math.floor(-1 / unit)


def _wide(low: Lowering, n: GraphNode) -> Quantity:
    return low.need(n.inputs[0], low.recipe.wide_bits)


def _row_gate(op: str, factor: float) -> Emit:
    """A gate, in units of 2^-7, of x and the largest value of its row; with `gated_ivit`, times x."""

    def rule(low: Lowering, n: GraphNode) -> None:
        x = _wide(low, n)
        labels, x0 = letters(len(x.dims)), one_in(factor * x.unit)
        most = max(1 << GATE_UNIT, x0 >> 1)
        scale, reach = (x.unit, x.magnitude * most) if op == "gated_ivit" else (1.0, 2 * most)
        scale *= 2.0**-GATE_UNIT
        top, kept = _row_top(low, n, x)
        index = f"t{labels},t{kept}->t{labels}"
        value = low.node(op, index, (x, top), f"{n.output}.acc", n.loc, {"x0": x0}, scale)
        low.accumulator(n, value, scale, Interval(-reach, reach))

    return rule


def _row_top(low: Lowering, n: GraphNode, x: Quantity) -> tuple[Operand, str]:
    """The largest along the last axis, and its labels; of a scalar or an axis of 1, itself."""
    labels = letters(len(x.dims))
    if not x.dims or x.dims[-1] == 1:
        return x, labels
    kept, name = labels[:-1], f"{n.output}.top"
    return low.node("reduce_max", f"t{labels}->t{kept}", (x,), name, n.loc, {"acc": 32}, x.unit), kept


def _exp_ivit(low: Lowering, n: GraphNode) -> None:
    """Relative to the largest value that the output holds."""
    x, bits = _wide(low, n), low.width(n.output)
    peak = 1.0 if low.is_unit(n.output) else low.scale_of(n.output, bits) * largest(bits)
    top, x0, labels = round(math.log(peak) / x.unit), one_in(x.unit), letters(len(x.dims))
    scale = math.exp(top * x.unit) * x.unit * 2.0**-EXP_BITS
    params = {"top": top, "x0": x0}
    value = low.node("exp_ivit", f"t{labels}->t{labels}", (x,), f"{n.output}.acc", n.loc, params, scale)
    low.accumulator(n, value, scale, Interval(0, x0 << EXP_BITS))


def _softplus_ivit(low: Lowering, n: GraphNode) -> None:
    x, bits = _wide(low, n), low.width(n.output)
    x0 = one_in(x.unit)
    m, s = dyadic(x.unit * 2.0**-EXP_BITS / low.scale_of(n.output, bits), (x.magnitude + x0) << EXP_BITS)
    low.pointwise(n, "softplus_ivit", (x,), {"x0": x0, "m": m, "s": s, "hi": largest(bits)})


def _softmax_ivit(low: Lowering, n: GraphNode) -> None:
    x, bits = _wide(low, n), low.width(n.output)
    row, x0 = norms.scores(low, n, x), one_in(x.unit)
    scale = x.unit * 2.0**-EXP_BITS
    powers = norms.powers(low, n, row, "shifted_exp", "_ivit", {"x0": x0}, scale)
    total, _ = norms.total(low, n, row, powers, x0 << EXP_BITS, scale)
    s = 32 - bits
    index, params = f"t{row.labels},t{row.kept}->t{row.labels}", {"x0": x0, "s": s}
    value = low.node("shiftmax_ivit", index, (powers, total), f"{n.output}.acc", n.loc, params, 2.0 ** (1 - bits))
    low.accumulator(n, value, 2.0 ** (1 - bits), Interval(0, max(LARGEST, x0 << EXP_BITS) >> s))


def _softmax_clz(low: Lowering, n: GraphNode) -> None:
    x = _wide(low, n)
    row, x0 = norms.scores(low, n, x), one_in(x.unit)
    scale = x.unit * 2.0**-EXP_BITS
    powers = norms.powers(low, n, row, "shifted_exp", "_ivit", {"x0": x0}, scale)
    total, reach = norms.total(low, n, row, powers, x0 << EXP_BITS, scale)
    params, index = {"down": max(0, reach.bit_length() - 31)}, f"t{row.labels},t{row.kept}->t{row.labels}"
    value = low.node("shiftmax_clz", index, (powers, total), f"{n.output}.acc", n.loc, params, 2.0**-15)
    low.accumulator(n, value, 2.0**-15, Interval(0, 1 << 15))


def _softmax_lut(low: Lowering, n: GraphNode) -> None:
    """The exponential by a table of the distance to the largest; the quotient as in `quad`."""
    x = _wide(low, n)
    row, fraction = norms.scores(low, n, x), norms.fraction_bits(x.dims[-1])
    reach = min(2 * x.magnitude, math.ceil(fraction * math.log(2) / x.unit))
    s = max(0, (reach // (LAST - 1)).bit_length())
    index = norms.powers(low, n, row, "distance_index", "", {"s": s}, None, "index")
    values = np.rint(np.exp(-np.arange(LAST + 1) * (x.unit * 2.0**s)) * 2.0**fraction)
    values[LAST] = 0
    unit = 2.0**-fraction
    powers = _lookup(low, n, index, row.labels, values, IntType(fraction + 1, signed=False), f"{n.output}.powers", unit)
    norms.divided_by_total(low, n, row, powers, fraction)


def _lookup(
    low: Lowering, n: GraphNode, index: Operand, labels: str, values: np.ndarray, elem: IntType, name: str,
    scale: float,
) -> str:  # fmt: skip
    table = low.constant(f"{name}.table", values.astype(np.int64), elem, scale)
    return low.node("lookup", f"t{labels},v->t{labels}", (index, table), name, n.loc, {}, scale)


def tabulated(low: Lowering, n: GraphNode) -> None:
    """Any function of one element: what it means in float, at every input of at most INDEX_BITS."""
    x, bits = _wide(low, n), low.width(n.output)
    s, labels = max(0, x.known.bits - INDEX_BITS), letters(len(x.dims))
    half = 1 << (min(x.known.bits, INDEX_BITS) - 1)
    params = {"s": s, "half": half}
    index = low.node("table_index", f"t{labels}->t{labels}", (x,), f"{n.output}.index", n.loc, params)
    inputs: Floats = np.arange(-half, half, dtype=np.float64) * (x.unit * 2.0**s)
    scale, bounds = low.scale_of(n.output, bits), low.limits_of(n.output, bits)
    with np.errstate(over="ignore"):
        real = EVALUATORS[n.op](n, [inputs], {}, lambda name, value: None)
        values = np.clip(np.rint(real / scale), bounds["lo"], bounds["hi"])
    value = _lookup(low, n, index, labels, values, IntType(bits), low.name(n.output, bits), scale)
    known = Interval(int(values.min()), int(values.max()))
    low.quantities[n.output] = Quantity(value, low.graph.dims[n.output], np.asarray(scale), known)


def _gate_clz(op: str, factor: float) -> Emit:
    def rule(low: Lowering, n: GraphNode) -> None:
        x, bits = _wide(low, n), low.width(n.output)
        x0 = one_in(factor * x.unit)
        unit, magnitude = (x.unit, x.magnitude) if op == "gated_clz" else (1.0, 1)
        m, s = dyadic(unit * 2.0**-15 / low.scale_of(n.output, bits), magnitude << 16)
        params = {"x0": x0, "down": max(0, (x0 << (EXP_BITS + 1)).bit_length() - 31), "m": m, "s": s}
        low.pointwise(n, op, (x,), params | low.limits_of(n.output, bits))

    return rule


def _norm_ivit(centred: bool, mean: bool) -> Emit:
    """I-LayerNorm, or without its centring; `mean` is whether squares are averaged."""

    def rule(low: Lowering, n: GraphNode) -> None:
        x, over = _wide(low, n), n.integer("over")
        labels, kept = norms.axes(x, over)
        count = math.prod(x.dims[len(x.dims) - over :])
        y, magnitude = x, x.magnitude
        if centred:
            params = {"acc": accumulator_bits(count * x.magnitude)}
            total = low.node("reduce_sum", f"t{labels}->t{kept}", (x,), f"{n.output}.total", n.loc, params, x.unit)
            index, params = f"t{labels},t{kept}->t{labels}", {"n": count, "most": x.magnitude}
            name = low.node("centre_ivit", index, (x, total), f"{n.output}.centred", n.loc, params, x.unit)
            magnitude = 2 * x.magnitude
            y = Quantity(name, x.dims, x.scale, Interval(-magnitude, magnitude))
        factor = _factor(low, n, y, count * magnitude**2)
        unit = (math.sqrt(count) if mean else 1.0) * 2.0**-30
        weights = [low.graph.parameters[i] for i in n.inputs[1:]]
        gain = weights[0] if weights else np.ones(x.dims[len(x.dims) - over :])
        bias = weights[1] if len(weights) > 1 else np.zeros(gain.shape)
        if np.any((gain == 0) & (bias != 0)):
            raise InputError(
                f"{n.loc}: a channel has a gain of 0 and a bias, which I-LayerNorm divides by it: choose another "
                "nonlinear mode for this layer, quad, clz or lut"
            )
        codes = np.floor(np.divide(bias, gain, out=np.zeros(gain.shape), where=gain != 0) / unit).astype(np.int64)
        bound = Interval(min(int(codes.min()), 0), max(int(codes.max()), 0))
        shift = low.constant(f"{n.output}.shift", codes, IntType(bound.bits), unit)
        index = f"t{labels},t{kept},{labels[len(labels) - codes.ndim :]}->t{labels}"
        value = low.node("norm_ivit", index, (y, factor, shift), f"{n.output}.acc", n.loc, {})
        reach = (magnitude * FACTOR_LARGEST >> 1) + 1
        scale = gain.reshape((1,) * (len(x.dims) - gain.ndim) + gain.shape) * unit
        scale = np.asarray(scale if weights else unit)
        low.accumulator(n, value, scale, Interval(bound.lo - reach, bound.hi + reach))

    return rule


def _factor(low: Lowering, n: GraphNode, y: Quantity, squares: int) -> str:
    """(2^31 - 1) over the root of the sum of squares, by ten Newton steps."""
    labels, kept = norms.axes(y, n.integer("over"))
    acc = {"acc": accumulator_bits(squares)}
    total = low.node("sum_squares", f"t{labels}->t{kept}", (y,), f"{n.output}.squares", n.loc, acc, y.unit**2)
    return low.node("factor_ivit", f"t{kept}->t{kept}", (total,), f"{n.output}.factor", n.loc, {})


def _inverse_rms_ivit(low: Lowering, n: GraphNode) -> None:
    x = _wide(low, n)
    count = math.prod(x.dims[len(x.dims) - n.integer("over") :])
    factor = _factor(low, n, x, count * x.magnitude**2)
    low.accumulator(n, factor, math.sqrt(count) * 2.0**-31 / x.unit, Interval(0, FACTOR_LARGEST))


LINEAR_POWERS: dict[str, Emit] = {"exp": _exp_ivit, "softplus": _softplus_ivit}
"""What divides nothing, and is one in `ivit` and `clz`."""

TABULATED = ("silu", "sigmoid", "tanh", "gelu", "gelu_tanh", "softplus", "log_sigmoid", "exp", "elu")

MODES: dict[str, dict[str, Emit]] = {
    "quad": {},
    "ivit": {
        **LINEAR_POWERS,
        "silu": _row_gate("gated_ivit", 1.0),
        "gelu": _row_gate("gated_ivit", GELU),
        "gelu_tanh": _row_gate("gated_ivit", GELU),
        "sigmoid": _row_gate("sigmoid_ivit", 1.0),
        "tanh": _row_gate("tanh_ivit", 2.0),
        "softmax": _softmax_ivit,
        "layer_norm": _norm_ivit(centred=True, mean=True),
        "rms_norm": _norm_ivit(centred=False, mean=True),
        "l2norm": _norm_ivit(centred=False, mean=False),
        "inverse_rms": _inverse_rms_ivit,
    },
    "clz": {
        **LINEAR_POWERS,
        "silu": _gate_clz("gated_clz", 1.0),
        "gelu": _gate_clz("gated_clz", GELU),
        "gelu_tanh": _gate_clz("gated_clz", GELU),
        "sigmoid": _gate_clz("sigmoid_clz", 1.0),
        "tanh": _gate_clz("tanh_clz", 2.0),
        "softmax": _softmax_clz,
    },
    "lut": {**dict.fromkeys(TABULATED, tabulated), "softmax": _softmax_lut},
}
"""Norms in `clz` and `lut` are those of `quad` with another root: `norms.ROOTS`; decays, `recurrences.DECAYS`."""
