"""From one scale to another: a multiplier, one rounding half up, saturation.

Gholami et al. 2021, "A Survey of Quantization Methods", eq. 5 (dyadic requantization).
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip
from isobit.quant.ops.op import Case


def rounding_shift(x: Any, s: int) -> Any:
    """x / 2^s, rounded half up; s >= 1."""
    return (x + (1 << (s - 1))) >> s


def requantize(x: Any, *, m: int, s: int, lo: int, hi: int) -> Any:
    """sat((x*m + 2^(s-1)) >> s), one multiplier for the tensor."""
    return clip(rounding_shift(x * m, s), lo, hi)


def requantize_per_channel(acc: Any, m: Any, *, s: int, lo: int, hi: int) -> Any:
    """sat((acc*m + 2^(s-1)) >> s), one multiplier per channel."""
    return clip(rounding_shift(acc * m, s), lo, hi)


INT8 = {"lo": -127, "hi": 127}
INT16 = {"lo": -32767, "hi": 32767}

REQUANTIZE_CASES = (
    Case("16 to 8 bits, shift below 33", "tn->tn", {"n": 64}, ("i16",), {"m": 16449, "s": 22, **INT8}),
    Case(
        "32 to 16 bits through the high product", "tn->tn", {"n": 64}, ("i32",), {"m": (1 << 31) - 1, "s": 47, **INT16}
    ),
    Case("power of two", "tn->tn", {"n": 64}, ("i16",), {"m": 1, "s": 8, **INT8}),
    Case("smallest shift", "tn->tn", {"n": 64}, ("i8",), {"m": 3, "s": 1, **INT8}),
)

REQUANTIZE_PER_CHANNEL_CASES = (
    Case("24-bit accumulator to 8 bits", "tn,n->tn", {"n": 64}, ("i24", "=i32"), {"s": 46, **INT8}),
    Case("24-bit accumulator to 16 bits", "tn,n->tn", {"n": 64}, ("i24", "=i32"), {"s": 38, **INT16}),
)
