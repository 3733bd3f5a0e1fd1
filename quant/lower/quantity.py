"""A value of the Program that stands for one of the float graph, and the forms that consumers ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isobit.quant.calibrate.observe import Range
from isobit.quant.capture.graph import Dims, Floats, GraphNode
from isobit.quant.errors import CheckError
from isobit.quant.expr.interval import Interval
from isobit.quant.formats.format import Format
from isobit.quant.formats.multiplier import Codes
from isobit.quant.lower.dyadic import MAX_SHIFT
from isobit.quant.program import IntType

HEADROOM = 2.0
"""Wide values and recurrent states saturate at this many times their calibrated magnitude: it costs them one bit."""

WIDE = 12
"""Bits from which a value has headroom; below, resolution matters more than an outlier that calibration missed."""

UNIT: Literal["unit"] = "unit"
"""The form of a value in [0, 1]: Q0.15, at most 32767, as decays and gates of recurrences take it."""

UNIT_SCALE = 2.0**-15

WIDE_BITS = 16
"""Of a UNIT, and of what a minifloat is rounded from."""

Form = int | Literal["unit"] | Format | Codes
"""What a consumer asks for: a width in bits, UNIT, or a minifloat, which is rounded from the widest of the others, and
whose codes may be asked for."""

LETTERS = "gfehdc"
"""Axes of a value, the last ones where it has fewer."""


def largest(bits: int) -> int:
    """The largest value of a symmetric signed type of `bits` bits."""
    return (1 << (bits - 1)) - 1


def symmetric_scale(known: Range, bits: int) -> float:
    """The unit that maps the largest magnitude seen, times HEADROOM for wide values, to `largest(bits)`.

    A value that was always 0 is taken to reach 1.
    """
    return (known.absmax or 1.0) * headroom(bits) / largest(bits)


def headroom(bits: int) -> float:
    """How far beyond its calibrated magnitude a value of `bits` bits reaches."""
    return HEADROOM if bits >= WIDE else 1.0


def only(scale: float | Floats) -> float | None:
    """The scale of a value that has one for the tensor, else None."""
    return float(scale) if np.ndim(scale) == 0 else None


def limits(bits: int) -> dict[str, int]:
    """Clip bounds of a symmetric type."""
    return {"lo": -largest(bits), "hi": largest(bits)}


def letters(rank: int) -> str:
    """Labels for the axes of a value of `rank` axes."""
    if rank > len(LETTERS):
        raise CheckError(f"a value with {rank} axes, expected at most {len(LETTERS)} besides batch and time")
    return LETTERS[len(LETTERS) - rank :]


@dataclass(frozen=True)
class Quantity:
    """A value of the Program that stands for one of the float graph: real = integer * scale.

    dims: of the float value.  scale: a scalar, or of the rank of dims with 1 for axes along which it is constant, where
    it may be negative or zero.  known: holds every integer.  trained: whether the model itself quantizes it so, and no
    consumer may ask for another width.
    """

    value: str
    dims: Dims
    scale: Floats
    known: Interval
    trained: bool = False

    @property
    def magnitude(self) -> int:
        return max(abs(self.known.lo), abs(self.known.hi))

    @property
    def unit(self) -> float:
        """The scale of a value that has one for the tensor."""
        return float(self.scale)

    @property
    def shown_scale(self) -> float | None:
        """Of the nodes that move it, for people."""
        return self.unit

    @property
    def settled(self) -> bool:
        """Whether it has one positive scale."""
        return self.scale.ndim == 0 and self.unit > 0

    def fits(self, form: Form) -> bool:
        """Whether it can be an operand of this form as it is."""
        if form == UNIT:
            return self.settled and self.unit == UNIT_SCALE and self.known in Interval(0, largest(16))
        if isinstance(form, Format | Codes):
            return False
        return self.settled and self.known in IntType(form).range


@dataclass(frozen=True, kw_only=True)
class Coded(Quantity):
    """A value of signed codes of minifloats; scale: of the format's smallest number; known: of the codes."""

    codes: Codes

    @property
    def shown_scale(self) -> None:
        """Codes are not proportional to what they stand for."""


Operand = Quantity | str
"""Of a node: a quantity, or the name of what `constant` or `node` made."""


def trained_range(n: GraphNode) -> Interval:
    """The integers of what a `fake_quantize` makes: its codes without their zero point."""
    return Interval(n.integer("lo") - n.integer("zero"), n.integer("hi") - n.integer("zero"))


def smallest_type(known: Interval) -> IntType:
    """Unsigned where nothing is negative."""
    return IntType(known.bits) if known.lo < 0 else IntType(max(1, known.bits - 1), signed=False)


def reduced(m: int, s: int) -> tuple[int, int]:
    """The same m * 2^-s with the smallest m and a shift of at least 1."""
    while m and m % 2 == 0 and s > 1:
        m, s = m // 2, s - 1
    return m, s


def accumulator_bits(magnitude: int) -> int:
    """32, or 64 where sums can leave 32 bits; CheckError for those that can leave 62."""
    if magnitude.bit_length() > MAX_SHIFT:
        raise CheckError(
            f"its sums take {magnitude.bit_length() + 1} bits, an accumulator of 64 rounds up to 63: choose a format "
            "of a narrower range for one operand, e4m3 instead of e5m2, or integers"
        )
    return 32 if magnitude <= largest(32) else 64


def power_above(x: float) -> int:
    """The least e with 2^e >= x > 0."""
    fraction, exponent = math.frexp(x)
    return exponent - 1 if fraction == 0.5 else exponent
