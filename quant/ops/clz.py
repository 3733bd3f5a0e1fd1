"""Mode `clz`: the approximations of `ivit`, with reciprocals that keep 31 bits, exact roots, and gates of one element.

e^x is ShiftExp (x 1.4375 and a linear mantissa); a denominator is shifted by its leading zeros before it is divided by;
the sigmoid of x needs no row: it is e^min(x, 0) / (e^min(x, 0) + e^min(-x, 0)).
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import bound, clip, clz, floordiv, select
from isobit.quant.ops.ivit import EXP_BITS, LARGEST, shift_exp
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, INT16, rounding_shift

ONE = 1 << 15
"""1.0 in Q0.15."""

ROOT_BITS = 60
"""A sum of squares is shifted to this width before its root is taken."""

ROOT_STEPS = 5
"""Newton steps from 2^30, at most twice the root, until it is the root or one more."""


def shiftmax_clz(part: Any, total: Any, *, down: int) -> Any:
    """part / total in Q0.15, rounded down, 0 <= part <= total; total below 2^(31 + down)."""
    divisor = clip(total >> down, 1, LARGEST)
    zeros = clz(divisor, 31)
    inverse = floordiv(1 << 61, bound(divisor << zeros, 1 << 30, LARGEST))
    return clip((clip((part >> down) << zeros, 0, LARGEST) * inverse) >> 46, 0, ONE)


def sigmoid_of(x: Any, x0: int, down: int) -> Any:
    """1 / (1 + e^-x) in Q0.15, x0 one in units of x."""
    left, right = shift_exp(x, x0, EXP_BITS), shift_exp(-x, x0, EXP_BITS)
    return shiftmax_clz(left, left + right, down=down)


def sigmoid_clz(x: Any, *, x0: int, down: int, m: int, s: int, lo: int, hi: int) -> Any:
    """1 / (1 + e^-x) from ShiftExp of min(x, 0) and of min(-x, 0)."""
    return clip(rounding_shift(sigmoid_of(x, x0, down) * m, s), lo, hi)


def gated_clz(x: Any, *, x0: int, down: int, m: int, s: int, lo: int, hi: int) -> Any:
    """x times its gate: GELU where x0 is one of 1.702 S, SiLU where it is of S."""
    return clip(rounding_shift(x * sigmoid_of(x, x0, down) * m, s), lo, hi)


def tanh_clz(x: Any, *, x0: int, down: int, m: int, s: int, lo: int, hi: int) -> Any:
    """2 sigmoid(2x) - 1; x0 is one of 2 S."""
    return clip(rounding_shift((2 * sigmoid_of(x, x0, down) - ONE) * m, s), lo, hi)


def isqrt(v: Any) -> Any:
    """The root of v in [2^58, 2^60), rounded down."""
    k = ((1 << (ROOT_BITS // 2)) + (v >> (ROOT_BITS // 2))) >> 1
    for _ in range(ROOT_STEPS - 1):
        k = (k + floordiv(v, k)) >> 1
    k = clip(k, 1 << (ROOT_BITS // 2 - 1), 1 << (ROOT_BITS // 2))
    return k - select(v < k * k, 1, 0)


def rsqrt_clz(v: Any, *, up: int, eps: int, least: int, width: int) -> Any:
    """2^(14 + width/2) / sqrt(v*2^up + eps), rounded down; its operands as those of `rsqrt`, width at most 60.

    Relative error below 2^-14.
    """
    energy = clip((v << up) + eps, least, (1 << width) - 1)
    zeros = clz(energy, width) & 62
    mantissa = bound(energy << zeros, 1 << (width - 2), (1 << width) - 1) << (ROOT_BITS - width)
    return floordiv(1 << (14 + ROOT_BITS // 2), isqrt(mantissa)) << (zeros >> 1)


SHIFTMAX_CLZ_CASES = (
    Case("31 bits", "tqk,tq->tqk", {"q": 4, "k": 7}, ("u28", "u31"), {"down": 0}),
    Case("36 bits", "tqk,tq->tqk", {"q": 4, "k": 7}, ("u33", "u36"), {"down": 5}),
)
SIGMOID_CLZ_CASES = (
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"x0": 16, "down": 0, "m": 127 << 15, "s": 30, **INT8}),
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"x0": 70000, "down": 2, "m": 2, "s": 1, **INT16}),
)
GATED_CLZ_CASES = (
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"x0": 10, "down": 0, "m": 1 << 14, "s": 29, **INT8}),
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"x0": 2406, "down": 0, "m": (1 << 30) + 1, "s": 45, **INT16}),
)
TANH_CLZ_CASES = (
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"x0": 8, "down": 0, "m": 127 << 10, "s": 25, **INT8}),
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"x0": 2048, "down": 0, "m": 32767, "s": 15, **INT16}),
)
RSQRT_CLZ_CASES = (
    Case("every width of sum", "tn->tn", {"n": 64}, ("u35",), {"up": 0, "eps": 3, "least": 1, "width": 36}),
    Case("a fraction of epsilon", "tn->tn", {"n": 64}, ("u20",), {"up": 8, "eps": 77, "least": 333, "width": 30}),
)
