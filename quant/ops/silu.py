"""Sigmoid and SiLU without a division (mode `quad`)."""

from __future__ import annotations

from functools import cache
from typing import Any

from isobit.quant.expr import clip, select, table
from isobit.quant.ops.exp2 import ONE, exp2_negative
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, INT16, rounding_shift

RECIPROCAL = {"bits": 6, "at": 31, "up": 0}
"""What `tools/search_nonlinears.py` found, of the reciprocals by a table of 64 entries and one Newton step."""


@cache
def reciprocal_seed(bits: int, at: int) -> tuple[int, ...]:
    """1/(1 + e) in Q0.15 by the top `bits` bits of e in [0, 1), at the place at/64 of every interval."""
    return tuple(round(ONE / (1 + (i + at / 64) / (1 << bits))) for i in range(1 << bits))


def newton_reciprocal(e: Any, *, bits: int, at: int, up: int) -> Any:
    """1/(1 + e) in Q0.15, e in Q0.15 and in [0, 1): a table, then one Newton step r (2 + up - d r)."""
    d, reciprocals = ONE + e, reciprocal_seed(bits, at)
    r = table(reciprocals, e >> (15 - bits))
    return rounding_shift(r * (2 * ONE + up - ((d * r) >> 15)), 15)


def reciprocal_one_plus(e: Any) -> Any:
    """1/(1 + e) in Q0.15, e in Q0.15 and in [0, 1).  Error below 2^-13."""
    return newton_reciprocal(e, **RECIPROCAL)


def sigmoid(t: Any) -> Any:
    """1 / (1 + 2^-t) in Q0.15, t in Q.12 octaves; that of -|t|, or 1 less it, so that far out it is exact.

    Error below 1.2e-4.
    """
    magnitude = select(t < 0, -t, t)
    e = exp2_negative(magnitude)
    left = rounding_shift(e * reciprocal_one_plus(e), 15)
    return select(t < 0, left, ONE - left)


def silu(x: Any, *, mx: int, sx: int, m: int, s: int, lo: int, hi: int) -> Any:
    """x * sigmoid(x).  (x*mx) >> sx is log2(e)*x in Q.12; m and s carry x * Q0.15 to the output's scale.

    Hendrycks and Gimpel 2016, section 2 (SiLU).  Error below 4e-4.
    """
    t = (x * mx) >> sx
    gate = sigmoid(t)
    return clip(rounding_shift(x * gate * m, s), lo, hi)


SILU_CASES = (
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"mx": 7562, "sx": 5, "m": 1 << 14, "s": 29, **INT8}),
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"mx": 23637, "sx": 14, "m": (1 << 31) - 9, "s": 46, **INT16}),
)
