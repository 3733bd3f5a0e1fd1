"""Real ratios of scales as m * 2^-s with integers m and s, as `requantize` takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from isobit.quant.errors import CheckError
from isobit.quant.program import Array

MULTIPLIER_BITS = 31
MAX_SHIFT = 62


def dyadic(ratio: float, magnitude: int = 1, bits: int = MULTIPLIER_BITS) -> tuple[int, int]:
    """(m, s) with m * 2^-s nearest to `ratio`, |m| < 2^bits as large as it can be; see `dyadics`."""
    m, s = dyadics((ratio,), magnitude, bits)
    return int(m[0]), s


def dyadics(ratios: Sequence[float] | np.ndarray, magnitude: int = 1, bits: int = MULTIPLIER_BITS) -> tuple[Array, int]:
    """Multipliers m, one per ratio, and one shift s, 1 <= s <= 62: m = ratio * 2^s, rounded half away from zero.

    |m| < 2^bits, and the largest |m| is at least 2^(bits-1), but where s would leave 1..62: below 1, m takes up to 31
    bits; above 62, m has fewer.  Where `magnitude`, the largest |x| that is multiplied, asks for it, m has fewer bits,
    so that |x|*|m| < 2^62, and adding 2^(s-1) cannot leave 64 bits.  Ratios of 0 give m = 0.  Exact: no float is
    rounded.  Raises CheckError for a ratio that is not finite or too large, or a magnitude that leaves m below 8 bits.
    """
    values = [float(r) for r in ratios]
    if not all(math.isfinite(r) for r in values):
        raise CheckError(f"the ratio of two scales is not finite: {values}; a scale is zero or infinite")
    room = min(MULTIPLIER_BITS, MAX_SHIFT - magnitude.bit_length())
    if room < 8:
        raise CheckError(
            f"a value of up to {magnitude} leaves {room} bits for a multiplier in 62, at least 8 are needed"
        )
    largest = max((abs(r) for r in values), default=0.0)
    if largest == 0.0:
        return np.zeros(len(values), np.int64), 1
    bits = min(bits, room)
    s = min(max(bits - math.frexp(largest)[1], 1), MAX_SHIFT)
    if s > 1 and _scaled(largest, s) >= 1 << bits:
        s -= 1
    if _scaled(largest, s) >= 1 << room:
        raise CheckError(
            f"the ratio of two scales is {largest:.3g}, a multiplier of {room} bits reaches {2.0 ** (room - 1):.3g}; "
            "the output's range is far below the input's resolution: does the layer amplify, or is its output constant?"
        )
    return np.array([_scaled(r, s) for r in values], np.int64), s


def _scaled(ratio: float, s: int) -> int:
    """ratio * 2^s, rounded half away from zero."""
    numerator, denominator = abs(ratio).as_integer_ratio()
    magnitude = ((numerator << (s + 1)) + denominator) // (2 * denominator)
    return -magnitude if ratio < 0 else magnitude
