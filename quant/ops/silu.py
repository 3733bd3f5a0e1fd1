"""Sigmoid and SiLU without a division (mode `quad`)."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip, select, table
from isobit.quant.ops.exp2 import ONE, exp2_negative
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, INT16, rounding_shift

RECIPROCAL_SEED = tuple(round(ONE / (1 + (i + 0.5) / 64)) for i in range(64))
"""1/d in Q0.15 for d in [1, 2), by the top six bits after the point."""


def reciprocal(d: Any) -> Any:
    """1/d in Q0.15, d in Q1.15 and in [1, 2): a table, then one Newton step r (2 - d r).  Error below 2^-13."""
    r = table(RECIPROCAL_SEED, (d - ONE) >> 9)
    return rounding_shift(r * (2 * ONE - ((d * r) >> 15)), 15)


def sigmoid(t: Any) -> Any:
    """1 / (1 + 2^-t) in Q0.15, t in Q.12 octaves; computed on |t|, where nothing overflows."""
    e = exp2_negative(select(t < 0, -t, t))
    r = reciprocal(ONE + e)
    return select(t < 0, rounding_shift(e * r, 15), r)


def silu(x: Any, *, mx: int, sx: int, m: int, s: int, lo: int, hi: int) -> Any:
    """x * sigmoid(x).  (x*mx) >> sx is log2(e)*x in Q.12; m and s carry x * Q0.15 to the output's scale.

    Hendrycks and Gimpel 2016, section 2 (SiLU).
    """
    gate = sigmoid((x * mx) >> sx)
    return clip(rounding_shift(x * gate * m, s), lo, hi)


SILU_CASES = (
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"mx": 7562, "sx": 5, "m": 1 << 14, "s": 29, **INT8}),
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"mx": 23637, "sx": 14, "m": (1 << 31) - 9, "s": 46, **INT16}),
)
