"""Accumulators: what starts them, how they are settled, and sums that leave 64 bits.

Such a sum is two: x = high * 2^h + low, so that sum(x * w) = sum(high * w) * 2^h + sum(low * w), exactly, on every
target; the two are rounded once, together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isobit.quant.capture.graph import Floats, GraphNode
from isobit.quant.expr.interval import Interval
from isobit.quant.formats.blocks import SCALE_BITS, Blocks, Rows
from isobit.quant.formats.format import Format
from isobit.quant.lower.dyadic import MAX_SHIFT
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.quantity import Quantity, accumulator_bits, letters
from isobit.quant.lower.terms import limbs
from isobit.quant.program import IntType

BIAS_BITS = 24
"""A channel's unit is never so fine that its bias leaves this many bits of the accumulator, more where blocks, weights
of more than 8 bits or operands of more than 16 have a finer unit."""

WIDE_SUM = 36
"""Bits up to which an accumulator is requantized as it is."""

KEPT = 32
"""Bits of a wider one that are requantized."""

Emit = Callable[[Quantity, str, dict[str, int], str], str]
"""Emits the sum of an operand's products: from the operand, the suffix of its names, the accumulator's width as a
parameter, and the constant that starts it."""

Ring = Callable[[Quantity, str], str]
"""Declares the state that holds the last values of an operand; the suffix of its name."""


def element_of(format: Format | Blocks) -> Format:
    return format.element if isinstance(format, Blocks) else format


def least_steps(starts: Floats, x: Quantity, format: Format | Blocks) -> Floats:
    """The units that BIAS_BITS allows."""
    finer = (
        max(element_of(format).elem.bits - 8, 0) + max(x.known.bits - 16, 0) + SCALE_BITS * isinstance(format, Blocks)
    )
    return np.asarray(np.abs(starts) / (x.unit * 2.0 ** (BIAS_BITS + finer)))


@dataclass(frozen=True)
class Moments:
    """Mean and mean square of an operand on the calibration data, of a shape that broadcasts to the weight's.

    centre: what its integers lack of it.
    """

    mean: Floats
    square: Floats
    centre: float = 0.0

    @property
    def power(self) -> Floats:
        """The mean square of what its integers stand for."""
        return np.asarray(self.square - 2 * self.centre * self.mean + self.centre**2)


def importance(weight: Floats, rows: Floats, moments: Moments | None) -> Floats | float:
    """What a squared error of each weight counts: the mean square of what it multiplies; of the shape of `rows`."""
    return 1.0 if moments is None else np.broadcast_to(moments.power, weight.shape).reshape(rows.shape)


def corrected(bias: Floats, weight: Floats, q: Rows, moments: Moments | None) -> Floats:
    """The bias, with what rounding the weight takes from the output on the mean (Nagel et al. 2019, "Data-Free
    Quantization", section 4.2), and the products with the operand's centre."""
    if moments is None:
        return bias
    rows = weight.reshape(len(q.codes), -1)
    real = q.real[:, : rows.shape[1]].reshape(weight.shape)
    lost = (weight - real) * moments.mean + real * moments.centre
    return np.asarray(bias + lost.reshape(*bias.shape, -1).sum(-1))


@dataclass(frozen=True)
class Start:
    """What starts accumulators: a bias, at the unit of each."""

    bias: Floats
    units: Floats

    @property
    def magnitudes(self) -> Floats:
        return np.asarray(np.rint(np.abs(self.bias.ravel() / self.units)))

    @property
    def most(self) -> int:
        return int(self.magnitudes.max())

    def lacking(self, unit: float) -> Floats:
        """What rounding to `unit` of these units takes from the bias."""
        units = self.units * unit
        return np.asarray(self.bias.ravel() - np.rint(self.bias.ravel() / units) * units)

    def constant(self, low: Lowering, n: GraphNode, unit: float = 1.0) -> str:
        """At `unit` of these units."""
        codes = np.rint(self.bias.ravel() / (self.units * unit)).astype(np.int64)
        bits = max(32, Interval(int(codes.min()), int(codes.max())).bits)
        return low.constant(f"{n.output}.bias", codes.reshape(self.bias.shape), IntType(bits))

    def zero(self, low: Lowering, n: GraphNode) -> str:
        return low.constant(f"{n.output}.zero", np.zeros(self.bias.shape), IntType(8))


def settle(low: Lowering, n: GraphNode, acc: str, scale: Floats, reach: int) -> None:
    """The accumulator of `n`; of one that is very wide, the high 32 bits, for a multiplier must fit beside it in 64."""
    low.sums[n.output] = Quantity(acc, low.graph.dims[n.output], np.asarray(scale), Interval(-reach, reach))
    if Interval(-reach, reach).bits > WIDE_SUM and not low.only_quantized(n.output):
        acc, scale, reach = high_bits(low, acc, f"{n.output}.high", n.loc, scale, reach)
    low.accumulator(n, acc, scale, Interval(-reach, reach))


def settle_sum(
    low: Lowering, n: GraphNode, acc: str, unit: float, reach: int, start: Start, channels: tuple[int, ...]
) -> None:
    """An accumulator that `start` started, in `unit` of its units; channels: their shape, if not the bias's."""
    scale, shape = np.asarray(start.units * unit), channels or start.bias.shape
    low.remainders[n.output] = start.lacking(unit).reshape(shape)
    settle(low, n, acc, scale.reshape(shape) if scale.ndim else scale, reach)


def high_bits(low: Lowering, acc: str, name: str, loc: str, scale: Floats, reach: int) -> tuple[str, Floats, int]:
    """The high KEPT bits of a value up to `reach`: its name, scale and reach."""
    axes, shift = letters(len(low.dims[acc])), Interval(-reach, reach).bits - KEPT
    reach = (reach >> shift) + 1
    params = {"m": 1, "s": shift, "lo": -reach, "hi": reach}
    return low.node("requantize", f"t{axes}->t{axes}", (acc,), name, loc, params), scale * 2.0**shift, reach


def exact_sum(
    low: Lowering, n: GraphNode, x: Quantity, products: int, start: Start | None, emit: Emit
) -> tuple[str, float, int]:
    """The sum of x's products: its value, what a unit of it is in units of a product, and its largest magnitude.

    products: the largest magnitude of their sum.  Of a sum that fits, a unit is 1; of two limbs it is larger: a bias
    starts the high one, and the sum of the two is rounded half up to KEPT bits.
    """
    most = products + (start.most if start else 0)
    if most.bit_length() <= MAX_SHIFT:
        return emit(x, "", {"acc": accumulator_bits(most)}, start.constant(low, n) if start else ""), 1.0, most
    h, (high, rest), reaches = limbs(low, n, x, products)
    reaches[0] += (most - products >> h) + 1
    began = (start.constant(low, n, 2.0**h), start.zero(low, n)) if start else ("", "")
    upper, lower = (
        emit(part, f".{role}", {"acc": accumulator_bits(reach)}, first)
        for part, role, reach, first in zip((high, rest), ("high", "low"), reaches, began, strict=True)
    )
    s = most.bit_length() + 1 - KEPT - h
    reach = (most >> (h + s)) + 1
    axes = letters(len(low.dims[upper]))
    params = {"h": h, "s": s, "lo": -reach, "hi": reach}
    acc = low.node("join_limbs", f"t{axes},t{axes}->t{axes}", (upper, lower), f"{n.output}.joined", n.loc, params)
    return acc, 2.0 ** (h + s), reach
