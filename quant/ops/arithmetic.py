"""Sum and product of two quantized tensors, requantized with one rounding."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, INT16, rounding_shift


def add(a: Any, b: Any, *, ma: int, mb: int, s: int, lo: int, hi: int) -> Any:
    """a + b at one common scale 2^-s: sat((a*ma + b*mb + 2^(s-1)) >> s)."""
    return clip(rounding_shift(a * ma + b * mb, s), lo, hi)


def add_per_channel(acc: Any, m: Any, x: Any, *, mx: int, s: int, lo: int, hi: int) -> Any:
    """acc with a multiplier per channel, plus x with one for the tensor; one rounding."""
    return clip(rounding_shift(acc * m + x * mx, s), lo, hi)


def multiply(a: Any, b: Any, *, m: int, s: int, lo: int, hi: int) -> Any:
    """a * b: sat((a*b*m + 2^(s-1)) >> s)."""
    return clip(rounding_shift(a * b * m, s), lo, hi)


ADD_CASES = (
    Case("8 + 8 bits", "tn,tn->tn", {"n": 64}, ("i8", "i8"), {"ma": 1 << 14, "mb": 12345, "s": 15, **INT8}),
    Case("16 + 16 bits", "tn,tn->tn", {"n": 64}, ("i16", "i16"), {"ma": 1 << 29, "mb": 987654321, "s": 30, **INT16}),
)

ADD_PER_CHANNEL_CASES = (
    Case("residual", "tn,n,tn->tn", {"n": 64}, ("i22", "=i31", "i16"), {"mx": (1 << 30) - 1, "s": 34, **INT16}),
    Case("to 8 bits", "tn,n,tn->tn", {"n": 64}, ("i16", "=i16", "i16"), {"mx": 1, "s": 31, **INT8}),
)

MULTIPLY_CASES = (
    Case("16 x 16 to 8 bits", "tn,tn->tn", {"n": 64}, ("i16", "i16"), {"m": 1 << 30, "s": 53, **INT8}),
    Case("15 x 16 to 16 bits", "tn,tn->tn", {"n": 64}, ("u15", "i16"), {"m": 19661, "s": 30, **INT16}),
)
