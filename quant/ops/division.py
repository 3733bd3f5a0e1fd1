"""Quotients, square roots and exponentials of values with one scale; no division is executed."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import bound, clip, clz, select
from isobit.quant.ops.exp2 import exp2_negative
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, INT16, rounding_shift
from isobit.quant.ops.rmsnorm import rsqrt
from isobit.quant.ops.silu import reciprocal_one_plus


def divide(x: Any, y: Any, *, width: int, m: int, s: int, lo: int, hi: int) -> Any:
    """x / y for y > 0 (0 taken as 1), y below 2^width: sat((x * r * m + half) >> (s - zeros)), r the reciprocal of y
    normalised by its leading zeros, in Q0.15; s > width.  Relative error below 2^-12.
    """
    divisor = clip(y, 1, (1 << width) - 1)
    zeros = clz(divisor, width)
    mantissa = bound(divisor << zeros, 1 << (width - 1), (1 << width) - 1)
    r = reciprocal_one_plus((mantissa >> (width - 16)) - (1 << 15))
    shift = s - zeros
    return clip((x * r * m + (1 << (shift - 1))) >> shift, lo, hi)


def sqrt(x: Any, *, width: int, m: int, s: int, hi: int) -> Any:
    """sqrt(x) for x >= 0, below 2^width, width even: x * rsqrt(x), 2^(width/2) sqrt(x), which m and s carry on.

    Error below 2^-13 of the value, and 2^-(width/2).
    """
    root = (clip(x, 0, (1 << width) - 1) * rsqrt(x, up=0, eps=0, least=1, width=width)) >> 14
    return clip(rounding_shift(root * m, s), 0, hi)


def exp(x: Any, *, mx: int, sx: int, top: int, m: int, s: int, hi: int) -> Any:
    """e^x: (x*mx) >> sx is log2(e)*x in Q.12, `top` the octaves of the largest result, 2^-(top - x) leaves as Q0.15.

    Error below 5e-4 of the largest result.
    """
    octaves = clip(top - ((x * mx) >> sx), 0, 1 << 17)
    return clip(rounding_shift(exp2_negative(octaves) * m, s), 0, hi)


def maximum(a: Any, b: Any, *, ma: int, mb: int, s: int, lo: int, hi: int) -> Any:
    """The larger of a and b at one common scale 2^-s."""
    p, q = a * ma, b * mb
    return clip(rounding_shift(select(p < q, q, p), s), lo, hi)


def heaviside(x: Any, *, threshold: int) -> Any:
    """1 where x > threshold, else 0."""
    return select(threshold < x, 1, 0)


def at_most(x: Any, *, threshold: int) -> Any:
    """1 where x <= threshold, else 0."""
    return select(threshold < x, 0, 1)


def sign(x: Any) -> Any:
    """-1, 0 or 1, as x is below, equal to or above 0."""
    return select(x > 0, 1, select(x < 0, -1, 0))


def comes_before(x: Any, other: Any, earlier: Any) -> Any:
    """1 where `other` is larger than x, or as large and stands earlier: x's rank is the sum."""
    return select(x < other, 1, select(other < x, 0, earlier))


DIVIDE_CASES = (
    Case("16 bits", "tn,tn->tn", {"n": 64}, ("i16", "u16"), {"width": 16, "m": 1 << 14, "s": 36, **INT16}),
    Case("a sum", "tnc,tn->tnc", {"n": 16, "c": 3}, ("i16", "u31"), {"width": 31, "m": 1 << 29, "s": 59, **INT8}),
)
SQRT_CASES = (
    Case("15 bits", "tn->tn", {"n": 64}, ("u15",), {"width": 16, "m": 181, "s": 15, "hi": 32767}),
    Case("31 bits", "tn->tn", {"n": 64}, ("u31",), {"width": 32, "m": 1 << 12, "s": 30, "hi": 32767}),
)
EXP_CASES = (
    Case(
        "16 bits",
        "tn->tn",
        {"n": 64},
        ("i16",),
        {"mx": 23637, "sx": 15, "top": 23000, "m": 1 << 14, "s": 14, "hi": 32767},
    ),
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"mx": 7562, "sx": 7, "top": 7502, "m": 127, "s": 15, "hi": 127}),
)
MAXIMUM_CASES = (
    Case("16 bits", "tn,tn->tn", {"n": 64}, ("i16", "i16"), {"ma": 1 << 14, "mb": 12345, "s": 14, **INT16}),
)
HEAVISIDE_CASES = (Case("spikes", "tn->tn", {"n": 64}, ("i16",), {"threshold": 100}),)
SIGN_CASES = (Case("binary codes", "tn->tn", {"n": 64}, ("i16",)),)
RANK_CASES = (Case("of eight", "te,tf,ef->te", {"e": 8, "f": 8}, ("i16", "i16", "=u1"), {"acc": 32}),)
