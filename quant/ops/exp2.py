"""Powers of two with an integer program: 2^-f by a cubic, then a shift by the whole part (mode `quad`)."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import rounding_shift

ONE = 1 << 15
"""1.0 in Q0.15."""

FRAC = 12
"""Fraction bits of an exponent: the unit is 2^-12 octaves."""

CUBIC = {"a": 22653, "b": 7548, "i": 5, "j": 7}
"""What `tools/search_nonlinears.py` found: of the cubics that multiply twice, the one of the least relative error."""


def mantissa(f: Any, *, a: int, b: int, i: int, j: int) -> Any:
    """2^-f in Q0.15, f in Q.15 and in [0, 1): 1 - f (a - f (b - f (2^-i + 2^-j))), a and b in Q.15."""
    return ONE - rounding_shift(f * (a - ((f * (b - (f >> i) - (f >> j))) >> 15)), 15)


def _exp2(x: Any, bits: int) -> Any:
    """From bits + 2 octaves on it is 0; a shift limited to bits + 1 would round whole octaves up to a unit for ever."""
    n = clip(x >> FRAC, 0, bits + 2)
    f = (x & ((1 << FRAC) - 1)) << (15 - FRAC)
    m = mantissa(f, **CUBIC)
    m = m << (bits - 15) if bits > 15 else m
    return (m + ((1 << n) >> 1)) >> n


def exp2_scaled(x: Any, bits: int) -> Any:
    """2^-x for x >= 0 in Q.12; in units of 2^-bits, bits >= 15.  Relative error below 1.5e-4, and half a unit."""
    return clip(_exp2(x, bits), 0, 1 << bits)


def exp2_negative(x: Any) -> Any:
    """2^-x for x >= 0 in Q.12; Q0.15, at most 32767.  Error below 1.5e-4; it never rises."""
    return clip(_exp2(x, 15), 0, ONE - 1)


def decay(dt: Any, a: Any, *, s: int) -> Any:
    """exp(dt*A) in Q0.15 as 2^-(dt*a): dt >= 0 the step size, a >= 0 the rate -A*log2(e); (dt*a) >> s is in Q.12."""
    octaves = rounding_shift(dt * a, s)
    return exp2_negative(octaves)


DECAY_CASES = (
    Case("every step size", "tc,cn->tcn", {"c": 8, "n": 4}, ("u15", "=u15"), {"s": 10}),
    Case("slow decays", "tc,cn->tcn", {"c": 8, "n": 4}, ("u15", "=u6"), {"s": 12}),
)
