"""Norms in three nodes: sum of squares, reciprocal square root, scale.

RMSNorm: Zhang and Sennrich 2019, eq. 4.  LayerNorm: Ba et al. 2016, eq. 4.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from isobit.quant.expr import bound, clip, clz, table
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, rounding_shift

RSQRT = {"bits": 8, "at": 25, "up": 0}
"""What `tools/search_nonlinears.py` found, of the roots by a table of 192 entries and one Newton step."""


@cache
def rsqrt_seed(bits: int, at: int) -> tuple[int, ...]:
    """2^14 / sqrt(x) for x in [1/4, 1) by its top `bits` bits, at the place at/64 of every interval; at most 32767."""
    quarter, unit = 1 << (bits - 2), 1 << bits
    return tuple(min(32767, round(16384 / math.sqrt((i + at / 64) / unit))) for i in range(quarter, unit))


def newton_rsqrt(mantissa: Any, *, bits: int, at: int, up: int) -> Any:
    """2^22 / sqrt(mantissa), which is in [2^14, 2^16): a table, then one Newton step r (3 - x r^2) / 2."""
    inverse_roots = rsqrt_seed(bits, at)
    r = table(inverse_roots, (mantissa >> (16 - bits)) - (1 << (bits - 2)))
    nearly_one = bound(mantissa * ((r * r) >> 14), 0, (1 << 31) - 1) >> 16
    return (r * (49152 + up - nearly_one)) >> 15


def square(x: Any) -> Any:
    """x * x, one term of the sum of squares."""
    return x * x


def rsqrt(v: Any, *, up: int, eps: int, least: int, width: int) -> Any:
    """2^(14 + width/2) / sqrt(v*2^up + eps); the sum is taken as at least `least`, and below 2^width, width even.

    Normalised to a mantissa in [1/4, 1) by leading zeros.  Relative error below 2^-13.
    """
    energy = clip((v << up) + eps, least, (1 << width) - 1)
    zeros = clz(energy, width) & 62
    mantissa = bound(energy << zeros, 1 << (width - 2), (1 << width) - 1) >> (width - 16)
    return newton_rsqrt(mantissa, **RSQRT) << (zeros >> 1)


def rmsnorm_scale(x: Any, inverse_rms: Any, gain: Any, *, pre: int, s: int, lo: int, hi: int) -> Any:
    """x * inverse_rms * gain: the inverse from `rsqrt`, the gain per channel with the scales folded in."""
    normalised = (x * inverse_rms) >> pre
    return clip(rounding_shift(normalised * gain, s), lo, hi)


def layernorm_scale(x: Any, inverse: Any, gain: Any, shift: Any, *, pre: int, s: int, lo: int, hi: int) -> Any:
    """As rmsnorm_scale, plus a shift per channel in units of 2^-s."""
    normalised = (x * inverse) >> pre
    return clip(rounding_shift(normalised * gain + shift, s), lo, hi)


def centre(x: Any, total: Any, *, n: int) -> Any:
    """n*x - total, n times the distance from the mean, exact."""
    return x * n - total


SUM_SQUARES_CASES = (
    Case("16 bits", "tk->t", {"k": 7}, ("i16",), {"acc": 64}),
    Case("8 bits", "tk->t", {"k": 33}, ("i8",), {"acc": 32}),
)
RSQRT_CASES = (
    Case("every width of sum", "tn->tn", {"n": 64}, ("u35",), {"up": 0, "eps": 3, "least": 1, "width": 36}),
    Case("no epsilon", "tn->tn", {"n": 64}, ("u20",), {"up": 0, "eps": 0, "least": 1, "width": 20}),
    Case("a fraction of epsilon", "tn->tn", {"n": 64}, ("u20",), {"up": 8, "eps": 77, "least": 333, "width": 30}),
)
RMSNORM_SCALE_CASES = (
    Case("full range", "tn,t,n->tn", {"n": 16}, ("i16", "u32", "=i16"), {"pre": 17, "s": 18, **INT8}),
)
LAYERNORM_SCALE_CASES = (
    Case(
        "full range",
        "tn,t,n,n->tn",
        {"n": 16},
        ("i16", "u32", "=i16", "=i30"),
        {"pre": 17, "s": 18, **INT8},
    ),
)
CENTRE_CASES = (Case("16 bits", "tn,t->tn", {"n": 9}, ("i16", "i20"), {"n": 9}),)
