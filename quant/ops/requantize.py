"""From one scale to another: a multiplier, one rounding half up, saturation.

Gholami et al. 2021, "A Survey of Quantization Methods", eq. 5 (dyadic requantization).
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip, select
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


def half_even(x: Any, s: int) -> Any:
    """x / 2^s to the nearest integer, ties to the even one; s >= 1."""
    return (x + (1 << (s - 1)) - 1 + ((x >> s) & 1)) >> s


def floor(x: Any, s: int) -> Any:
    """x / 2^s rounded down."""
    return x >> s


def ceil(x: Any, s: int) -> Any:
    """x / 2^s rounded up."""
    return (x + (1 << s) - 1) >> s


def to_zero(x: Any, s: int) -> Any:
    """x / 2^s rounded towards zero."""
    return (x + select(x < 0, (1 << s) - 1, 0)) >> s


def half_even_or_up(x: Any, s: int) -> Any:
    """x / 2^s to the nearest integer, ties to the even one, and up where x is below zero; s >= 1."""
    return (x + (1 << (s - 1)) - 1 + select(x < 0, 1, (x >> s) & 1)) >> s


ROUNDINGS = (half_even, floor, ceil, to_zero, half_even_or_up)
"""What `rounding` counts in `quantize`: the ways in which Brevitas turns numbers into integers."""


def quantize(x: Any, *, m: int, b: int, s: int, zero: int, lo: int, hi: int, rounding: int) -> Any:
    """clip(round((x*m + b) / 2^s + zero), lo, hi) - zero, rounded as ROUNDINGS[rounding] says: a trained quantizer."""
    return clip(ROUNDINGS[rounding](x * m + b + (zero << s), s), lo, hi) - zero


def quantize_per_channel(x: Any, m: Any, b: Any, *, s: int, zero: int, lo: int, hi: int, rounding: int) -> Any:
    """clip(round((x*m + b) / 2^s + zero), lo, hi) - zero, as `quantize`, a multiplier and an offset per channel."""
    return clip(ROUNDINGS[rounding](x * m + b + (zero << s), s), lo, hi) - zero


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

UINT8 = {"lo": 0, "hi": 255}

QUANTIZE_CASES = (
    *(
        Case(
            f"ties, {f.__name__}", "tn->tn", {"n": 64}, ("i10",),
            {"m": 1, "b": 0, "s": 2, "zero": 0, **INT8, "rounding": i},
        )
        for i, f in enumerate(ROUNDINGS)
    ),
    Case(
        "odd zero point", "tn->tn", {"n": 64}, ("i10",),
        {"m": 3, "b": -5, "s": 3, "zero": 127, **UINT8, "rounding": 0},
    ),
    Case(
        "32 bits by a long multiplier", "tn->tn", {"n": 64}, ("i32",),
        {"m": (1 << 28) - 3, "b": 1 << 50, "s": 50, "zero": 0, **INT8, "rounding": 0},
    ),
)  # fmt: skip

QUANTIZE_PER_CHANNEL_CASES = (
    *(
        Case(
            f"24 bits, {f.__name__}", "tn,n,n->tn", {"n": 64}, ("i24", "=i31", "=i50"),
            {"s": 46, "zero": 0, **INT8, "rounding": i},
        )
        for i, f in enumerate(ROUNDINGS)
    ),
    Case(
        "ties with a zero point", "tn,n,n->tn", {"n": 64}, ("i10", "=i4", "=i6"),
        {"s": 3, "zero": 3, **UINT8, "rounding": 0},
    ),
)  # fmt: skip
