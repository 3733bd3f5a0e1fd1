"""An integer rounded to a minifloat: to few significant bits, and to whole units near zero."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import bound, clip, clz, select
from isobit.quant.ops.op import Case


def to_minifloat(x: Any, *, m: int, s: int, mantissa: int, most: int) -> Any:
    """x * m * 2^-s to the nearest minifloat of `mantissa` bits, ties to the even one, saturated, as an integer.

    The result counts the format's smallest number, which `most`, its largest, is a multiple of.  s >= 1.
    """
    return nearest(x * m, s, mantissa=mantissa, most=most, limit=most << s)


def quantize_minifloat(x: Any, *, m: int, b: int, s: int, mantissa: int, lo: int, most: int) -> Any:
    """(x*m + b) * 2^-s to the nearest minifloat, as `to_minifloat`, not below `lo`: a trained float quantizer."""
    return clip(nearest(x * m + b, s, mantissa=mantissa, most=most, limit=most << s), lo, most)


def quantize_minifloat_per_channel(x: Any, m: Any, b: Any, *, s: int, mantissa: int, lo: int, most: int) -> Any:
    """(x*m + b) * 2^-s to the nearest minifloat, not below `lo`, a multiplier and an offset per channel."""
    return clip(nearest(x * m + b, s, mantissa=mantissa, most=most, limit=most << s), lo, most)


def nearest(product: Any, s: Any, *, mantissa: int, most: int, limit: int) -> Any:
    """product * 2^-s as `to_minifloat` rounds it; s >= 1; |product| above `limit` is taken as that."""
    size, width = clip(select(product < 0, 0 - product, product), 0, limit), limit.bit_length()
    beyond = clip(width - mantissa - 1 - clz(size, width) - s, 0, width)
    dropped = s + beyond
    odd = (size >> dropped) & 1
    kept = bound((size + (1 << (dropped - 1)) - 1 + odd) >> dropped, 0, 2 << mantissa)
    rounded = clip(kept << beyond, 0, most)
    return select(product < 0, 0 - rounded, rounded)


TO_MINIFLOAT_CASES = (
    Case("e4m3", "tn->tn", {"n": 64}, ("i16",), {"m": 57344, "s": 12, "mantissa": 3, "most": 448 << 9}),
    Case("e5m2", "tn->tn", {"n": 64}, ("i16",), {"m": 458752, "s": 2, "mantissa": 2, "most": 57344 << 16}),
    Case("e2m1 of 8 bits", "tn->tn", {"n": 64}, ("i8",), {"m": 6193, "s": 16, "mantissa": 1, "most": 12}),
    Case("no mantissa", "tn->tn", {"n": 64}, ("i24",), {"m": 3, "s": 20, "mantissa": 0, "most": 16}),
)

E4M3 = {"mantissa": 3, "most": 448 << 9}

QUANTIZE_MINIFLOAT_CASES = (
    Case("e4m3", "tn->tn", {"n": 64}, ("i24",), {"m": 5739, "b": 77, "s": 20, "lo": -E4M3["most"], **E4M3}),
    Case("ties, not negative", "tn->tn", {"n": 64}, ("i12",), {"m": 1, "b": 0, "s": 2, "lo": 0, **E4M3}),
)

QUANTIZE_MINIFLOAT_PER_CHANNEL_CASES = (
    Case(
        "e4m3", "tn,n,n->tn", {"n": 64}, ("i24", "=i16", "=i30"), {"s": 20, "lo": -E4M3["most"], **E4M3}
    ),
)  # fmt: skip
