"""Sigmoid and SiLU without a division (mode `quad`)."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip, select, table
from isobit.quant.ops.exp2 import ONE, exp2_negative
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, INT16, rounding_shift

RECIPROCAL_SEED = tuple(round(ONE / (1 + (i + 0.5) / 64)) for i in range(64))
"""1/(1 + e) in Q0.15 by the top six bits of e in [0, 1)."""


def reciprocal_one_plus(e: Any) -> Any:
    """1/(1 + e) in Q0.15, e in Q0.15 and in [0, 1): a table, then one Newton step r (2 - d r).  Error below 2^-13."""
    d = ONE + e
    r = table(RECIPROCAL_SEED, e >> 9)
    return rounding_shift(r * (2 * ONE - ((d * r) >> 15)), 15)


def sigmoid(t: Any) -> Any:
    """1 / (1 + 2^-t) in Q0.15, t in Q.12 octaves; computed on |t|, where nothing overflows.  Error below 0.002."""
    magnitude = select(t < 0, -t, t)
    e = exp2_negative(magnitude)
    right = reciprocal_one_plus(e)
    return select(t < 0, rounding_shift(e * right, 15), right)


def silu(x: Any, *, mx: int, sx: int, m: int, s: int, lo: int, hi: int) -> Any:
    """x * sigmoid(x).  (x*mx) >> sx is log2(e)*x in Q.12; m and s carry x * Q0.15 to the output's scale.

    Hendrycks and Gimpel 2016, section 2 (SiLU).  Error below 0.002.
    """
    t = (x * mx) >> sx
    gate = sigmoid(t)
    return clip(rounding_shift(x * gate * m, s), lo, hi)


SILU_CASES = (
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"mx": 7562, "sx": 5, "m": 1 << 14, "s": 29, **INT8}),
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"mx": 23637, "sx": 14, "m": (1 << 31) - 9, "s": 46, **INT16}),
)
