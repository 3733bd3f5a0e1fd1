"""Lowering of normalisations and of softmax: a reduction, a reciprocal, a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from isobit.quant.capture.graph import GraphNode
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.lower.dyadic import dyadic, dyadics
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.pointwise import LOG2_E, OCTAVE_BITS, divided
from isobit.quant.lower.quantity import Operand, Quantity, accumulator_bits, largest, letters, power_above
from isobit.quant.ops import OPS
from isobit.quant.ops.exp2 import FRAC
from isobit.quant.program import IntType

MOST_WIDTH = 60
"""Bits of a sum of squares, eps included."""

EPS_BITS = 12
"""Of the precision of eps beside the smallest sum of squares."""

CHANNEL_BITS = 17
"""Of a typical channel between the two multiplications of a norm."""

SUM_BITS = 12
"""The powers of a softmax, each rounded, sum up to within 2^-(SUM_BITS + 1) of the largest."""

ROOTS = {"quad": "rsqrt", "clz": "rsqrt_clz", "lut": "rsqrt_lut", "ivit": "rsqrt"}
"""By mode, the op of a norm's reciprocal root; `ivit` has norms of its own."""


def axes(x: Quantity, over: int) -> tuple[str, str]:
    """Labels of x, and of those that are kept when the last `over` are summed."""
    labels = letters(len(x.dims))
    return labels, labels[: len(labels) - over]


def rms_norm(low: Lowering, n: GraphNode) -> None:
    """x * 2^root/sqrt(sum x^2 + eps), shifted by `pre` to CHANNEL_BITS of a typical channel; then the gain."""
    x = low.need(n.inputs[0], low.recipe.wide_bits)
    count = math.prod(x.dims[len(x.dims) - n.integer("over") :])
    _scaled(low, n, x, count, 1, count * n.number("eps"), math.sqrt(count))


def l2norm(low: Lowering, n: GraphNode) -> None:
    """As rms_norm, of the sum of squares itself."""
    x = low.need(n.inputs[0], low.recipe.wide_bits)
    count = math.prod(x.dims[len(x.dims) - n.integer("over") :])
    _scaled(low, n, x, count, 1, n.number("eps"), 1.0)


def layer_norm(low: Lowering, n: GraphNode) -> None:
    """On n*x - sum(x), exact, so that a rounded mean costs nothing; then as rms_norm."""
    x, over = low.need(n.inputs[0], low.recipe.wide_bits), n.integer("over")
    count = math.prod(x.dims[len(x.dims) - over :])
    labels, kept = axes(x, over)
    params = {"acc": accumulator_bits(count * x.magnitude)}
    total = low.node("reduce_sum", f"t{labels}->t{kept}", (x,), f"{n.output}.total", n.loc, params, x.unit)
    index = f"t{labels},t{kept}->t{labels}"
    centred = low.node("centre", index, (x, total), f"{n.output}.centred", n.loc, {"n": count}, x.unit / count)
    reach = 2 * count * x.magnitude
    shifted = Quantity(centred, x.dims, np.asarray(x.unit / count), Interval(-reach, reach))
    _scaled(low, n, shifted, count, max(1, count * (count - 1)), count * n.number("eps"), math.sqrt(count))


@dataclass(frozen=True)
class _Energy:
    """A sum of squares and epsilon: in units of 2^-up of the squared unit, at least `least` where the squares are not
    all 0, and below 2^width; up and width even.
    """

    up: int
    eps: int
    least: int
    width: int

    @property
    def root(self) -> int:
        """`rsqrt` gives 2^root over the root of the sum, in units of x."""
        return 14 + (self.width - self.up) // 2

    @property
    def params(self) -> dict[str, int]:
        return {"up": self.up, "eps": self.eps, "least": self.least, "width": self.width}


def _energy(n: GraphNode, x: Quantity, squares: int, least: int, eps: float) -> _Energy:
    """squares, least: the largest sum of squares and the smallest one above 0, in squared units of x.

    Beside the latter, the rounding of eps is below 2^-EPS_BITS.
    """
    code, up = eps / x.unit**2, 0
    while eps and least << up < 1 << (EPS_BITS - 1) and (squares + round(code)) << up < 1 << (MOST_WIDTH - 2):
        up += 2
    code = round(code * (1 << up))
    width = max(16, ((squares << up) + code).bit_length())
    width += width % 2
    if width > MOST_WIDTH:
        raise InputError(
            f"{n.loc}: eps {n.number('eps'):g} is {code >> up} squared units of an input of at most "
            f"{x.magnitude} units: the calibration data leave this layer's input near zero; calibrate on real samples"
        )
    return _Energy(up, code, (least << up) + code, width)


def _inverse_root(low: Lowering, n: GraphNode, x: Quantity, squares: int, energy: _Energy) -> str:
    """2^root / sqrt(sum of squares + eps), over the last axes."""
    labels, kept = axes(x, n.integer("over"))
    acc = {"acc": accumulator_bits(squares)}
    total = low.node("sum_squares", f"t{labels}->t{kept}", (x,), f"{n.output}.squares", n.loc, acc, x.unit**2)
    op = ROOTS[low.recipe.nonlinear]
    return low.node(op, f"t{kept}->t{kept}", (total,), f"{n.output}.inverse", n.loc, energy.params)


def _largest_inverse(low: Lowering, squares: int, energy: _Energy) -> int:
    """What `_inverse_root` can reach."""
    return int(OPS[ROOTS[low.recipe.nonlinear]].define(Interval(0, squares), **energy.params).hi)


def inverse_rms(low: Lowering, n: GraphNode) -> None:
    """1 / sqrt(mean x^2 + eps), from the exact sum of squares; of a row of zeros too, which may meet other values."""
    x, over = low.need(n.inputs[0], low.recipe.wide_bits), n.integer("over")
    count = math.prod(x.dims[len(x.dims) - over :])
    squares = count * x.magnitude**2
    energy = _energy(n, x, squares, 1, count * n.number("eps"))
    energy = replace(energy, least=max(1, energy.eps))
    inverse = _inverse_root(low, n, x, squares, energy)
    bits, dims = low.width(n.output), low.graph.dims[n.output]
    reach = _largest_inverse(low, squares, energy)
    ratio = math.sqrt(count) * 2.0**-energy.root / x.unit / low.scale_of(n.output, bits)
    m, s = dyadic(ratio, reach)
    made = Quantity(inverse, dims, np.asarray(1.0), Interval(0, reach))
    low.pointwise(n, "requantize", (made,), {"m": m, "s": s, **low.limits_of(n.output, bits)})


def _scaled(low: Lowering, n: GraphNode, x: Quantity, count: int, least: int, eps: float, factor: float) -> None:
    """factor * x / sqrt(sum x^2 + eps) * gain + shift; eps in real units of x^2, least as in `_energy`."""
    bits, over = low.width(n.output), n.integer("over")
    squares = count * x.magnitude**2
    energy = _energy(n, x, squares, least, eps)
    root = energy.root
    peak = 2.0**root * x.magnitude / math.sqrt(x.magnitude**2 + energy.eps * 2.0**-energy.up)
    pre = max(1, power_above(peak) - CHANNEL_BITS - (count.bit_length() + 1) // 2)
    labels, kept = axes(x, over)
    inverse = _inverse_root(low, n, x, squares, energy)
    reach = (x.magnitude * _largest_inverse(low, squares, energy) >> pre) + 1
    unit = low.scale_of(n.output, bits)
    weights = [low.graph.parameters[i] for i in n.inputs[1:]] or [np.ones(x.dims[len(x.dims) - over :])]
    ratio = weights[0] * (factor * 2.0 ** (pre - root) / unit)
    gains, s = dyadics(ratio.ravel(), reach, 15)
    gain = low.constant(f"{n.output}.gain", gains.reshape(ratio.shape), IntType(16))
    params = {"pre": pre, "s": s, **low.limits_of(n.output, bits)}
    inner = labels[len(labels) - weights[0].ndim :]
    operands: tuple[Operand, ...] = (x, inverse, gain)
    index, op = f"t{labels},t{kept},{inner}", "rmsnorm_scale"
    if len(weights) > 1:
        codes = np.rint(weights[1] / unit * 2.0**s).astype(np.int64)
        shift = low.constant(f"{n.output}.shift", codes, IntType(Interval(int(codes.min()), int(codes.max())).bits))
        operands, index, op = (*operands, shift), f"{index},{inner}", "layernorm_scale"
    name = low.name(n.output, bits)
    value = low.node(op, f"{index}->t{labels}", operands, name, n.loc, params, unit)
    known = Interval(params["lo"], params["hi"])
    low.quantities[n.output] = Quantity(value, low.graph.dims[n.output], np.asarray(unit), known)


@dataclass(frozen=True)
class Row:
    """Scores along the last axis and their largest; extra: of a history, the step's number and the slots."""

    scores: Quantity
    top: str
    extra: tuple[str, ...]

    @property
    def labels(self) -> str:
        return letters(len(self.scores.dims))

    @property
    def kept(self) -> str:
        return self.labels[:-1]

    @property
    def size(self) -> int:
        return self.scores.dims[-1]


def scores(low: Lowering, n: GraphNode, x: Quantity) -> Row:
    """With `masked`, slots of a history that no step has filled get the lowest score."""
    labels, kept = axes(x, 1)
    extra: tuple[str, ...] = ()
    if n.attr.get("masked"):
        slots = low.constant(f"{n.output}.slots", np.arange(x.dims[-1]), IntType(32))
        extra = (low.steps(n.loc), slots)
        lowest = -largest(low.recipe.wide_bits)
        index, params = f"t{labels},t,{labels[-1]}->t{labels}", {"length": x.dims[-1], "lowest": lowest}
        name = low.node("mask_history", index, (x, *extra), f"{n.output}.scores", n.loc, params, x.unit)
        x = replace(x, value=name, known=x.known.join(Interval(lowest, 0)))
    top = low.node("reduce_max", f"t{labels}->t{kept}", (x,), f"{n.output}.top", n.loc, {"acc": 32}, x.unit)
    return Row(x, top, extra)


def powers(
    low: Lowering, n: GraphNode, row: Row, op: str, mode: str, params: dict[str, int], unit: float | None,
    role: str = "powers",
) -> str:  # fmt: skip
    """A function of every score and the largest: `op` and mode; of a history, its sibling that knows empty slots."""
    operands: tuple[Operand, ...] = (row.scores, row.top, *row.extra)
    index = f"t{row.labels},t{row.kept}"
    if row.extra:
        op, index, params = f"{op}_of_history", f"{index},t,{row.labels[-1]}", params | {"length": row.size}
    return low.node(f"{op}{mode}", f"{index}->t{row.labels}", operands, f"{n.output}.{role}", n.loc, params, unit)


def total(low: Lowering, n: GraphNode, row: Row, powers: str, most: int, unit: float) -> tuple[str, int]:
    """The sum of powers of at most `most`, and what it can reach."""
    reach = row.size * most
    acc = {"acc": accumulator_bits(reach)}
    name = f"{n.output}.total"
    return low.node("reduce_sum", f"t{row.labels}->t{row.kept}", (powers,), name, n.loc, acc, unit), reach


def fraction_bits(size: int) -> int:
    """Of the powers of a row: SUM_BITS beyond what its sum carries, at least 15."""
    return max(15, SUM_BITS + (size - 1).bit_length())


def softmax(low: Lowering, n: GraphNode) -> None:
    """Powers of two of the distance to the largest score, over their sum (Li and Gu 2023, "I-ViT", section 3.3)."""
    x = low.need(n.inputs[0], low.recipe.wide_bits)
    row, fraction = scores(low, n, x), fraction_bits(x.dims[-1])
    mx, sx = dyadic(x.unit * LOG2_E * (1 << FRAC), 2 * x.magnitude, OCTAVE_BITS)
    made = powers(low, n, row, "shifted_exp", "", {"mx": mx, "sx": sx, "bits": fraction}, 2.0**-fraction)
    divided_by_total(low, n, row, made, fraction)


def divided_by_total(low: Lowering, n: GraphNode, row: Row, powers: str, fraction: int) -> None:
    """Powers of at most 1, in units of 2^-fraction, over their sum."""
    unit, dims = 2.0**-fraction, row.scores.dims
    name, reach = total(low, n, row, powers, 1 << fraction, unit)
    above = Quantity(powers, dims, np.asarray(unit), Interval(0, 1 << fraction))
    below = Quantity(name, (*dims[:-1], 1), np.asarray(unit), Interval(0, reach))
    bits = low.width(n.output)
    bounds = low.limits_of(n.output, bits) | {"lo": 0}
    divided(low, n, above, below, 1 / low.scale_of(n.output, bits), max(16, reach.bit_length()), bounds)
