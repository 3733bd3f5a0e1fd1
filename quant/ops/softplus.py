"""Softplus by a table of log2(1 + 2^-x) with linear interpolation (mode `quad`)."""

from __future__ import annotations

import math
from typing import Any

from isobit.quant.expr import clip, select, table
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import rounding_shift

LOG2_TAIL = tuple(round((1 << 20) * math.log2(1 + 2 ** (-i / 16))) for i in range(257))
"""log2(1 + 2^-x) in Q.20 at x = i/16, up to 16 octaves."""


def log2_one_plus_exp2(t: Any) -> Any:
    """log2(1 + 2^t) in Q.20, t in Q.12: max(t, 0) + log2(1 + 2^-|t|), the latter by linear interpolation."""
    magnitude = clip(select(t < 0, -t, t), 0, (1 << 16) - 1)
    i = magnitude >> 8
    left = table(LOG2_TAIL, i)
    tail = left - rounding_shift((left - table(LOG2_TAIL, i + 1)) * (magnitude & 255), 8)
    return select(t < 0, 0, t << 8) + tail


def softplus(x: Any, *, mx: int, sx: int, m: int, s: int, hi: int) -> Any:
    """ln(1 + e^x) >= 0.  (x*mx) >> sx is log2(e)*x in Q.12; m and s carry log2(1 + 2^t) in Q.20 to the output's scale.

    Error below 2.4e-4 of the value and 2^-20.
    """
    return clip(rounding_shift(log2_one_plus_exp2((x * mx) >> sx) * m, s), 0, hi)


SOFTPLUS_CASES = (
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"mx": 5909, "sx": 12, "m": 1 << 22, "s": 34, "hi": 32767}),
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"mx": 5909, "sx": 4, "m": (1 << 30) + 7, "s": 43, "hi": 32767}),
)
