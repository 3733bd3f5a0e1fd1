"""Powers of two with an integer program: 2^-f by a quadratic, then a shift by the whole part (mode `quad`)."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import rounding_shift

ONE = 1 << 15
"""1.0 in Q0.15."""

FRAC = 12
"""Fraction bits of an exponent: the unit is 2^-12 octaves."""


def exp2_negative(x: Any) -> Any:
    """2^-x for x >= 0 in Q.12; Q0.15, at most 32767.

    1 - f (0.6874 - 0.1874 f) on [0, 1): exact at 0 and continuous at 1, error below 0.0051.
    """
    n = clip(x >> FRAC, 0, 16)
    f = (x & ((1 << FRAC) - 1)) << (15 - FRAC)
    mantissa = ONE - rounding_shift(f * (22525 - ((f * 6141) >> 15)), 15)
    return clip((mantissa + ((1 << n) >> 1)) >> n, 0, ONE - 1)


def decay(dt: Any, a: Any, *, s: int) -> Any:
    """exp(dt*A) in Q0.15 as 2^-(dt*a): dt >= 0 the step size, a >= 0 the rate -A*log2(e); (dt*a) >> s is in Q.12."""
    octaves = rounding_shift(dt * a, s)
    return exp2_negative(octaves)


DECAY_CASES = (
    Case("every step size", "tc,cn->tcn", {"c": 8, "n": 4}, ("u15", "=u15"), {"s": 10}),
    Case("slow decays", "tc,cn->tcn", {"c": 8, "n": 4}, ("u15", "=u6"), {"s": 12}),
)
