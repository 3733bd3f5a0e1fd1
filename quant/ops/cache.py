"""Keys and values of attention as codes of few bits: asymmetric, rounded to nearest, several to a byte.

Liu et al. 2024, "KIVI", section 3: Q(x) = round((x - z) / s), x' = Q(x) s + z, with z the minimum and s the range over
2^b - 1; of keys per channel, of values per token.  Here z and s are integers, in units that the whole tensor shares.
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip, floordiv, table
from isobit.quant.ops.op import Case

MOST_STEP = 127
"""Units of the largest step of a token, which a signed byte holds."""

INVERSE_BITS = 20
"""Of the inverse of twice a token's step: codes of 4 bits and steps of 7 are exact."""


def inverse_of(step: int, s: int) -> int:
    """The multiplier with (x * it) >> s = floor(x / (2 * step)) for 0 <= x < 2^s / (2 * step)."""
    return (1 << s) // (2 * step) + 1


INVERSES = (0, *(inverse_of(step, INVERSE_BITS) for step in range(1, MOST_STEP + 1)))
"""By step, from 1."""


def cache_code(
    x: Any, zero: Any, step: Any, inverse: Any, *, up: int, down: int, coarse: int, s: int, bits: int
) -> Any:
    """round((x - zero) / step), half up, of `bits` bits: x' = zero + code * step is the level next to x.

    (x << up) >> down counts half units of step, as zero << coarse does.  inverse: `inverse_of` the step, exact where
    2^s >= (2 * step)^2 * 2^bits.
    """
    halves = ((x << up) >> down) - (zero << coarse) + step
    return clip((halves * inverse) >> s, 0, (1 << bits) - 1)


def negative(x: Any) -> Any:
    """-x, of which the largest is the least x with its sign turned."""
    return 0 - x


def token_zero(below: Any, *, s: int) -> Any:
    """The minimum, given as -minimum, in units of 2^s, rounded down, as a signed byte."""
    return clip((0 - below) >> s, -128, 127)


def token_step(top: Any, zero: Any, *, up: int, coarse: int, divisor: int) -> Any:
    """((top << up) - (zero << coarse)) / divisor, rounded up, 1 to 127: the least step whose levels reach `top`."""
    spread = clip((top << up) - (zero << coarse), 1, MOST_STEP * divisor)
    return floordiv(spread + (divisor - 1), divisor)


def step_inverse(step: Any) -> Any:
    """2^20 / (2 * step), rounded so that a product with it divides exactly; step in 1 to 127."""
    return table(INVERSES, step)


def join_codes(low: Any, high: Any, *, bits: int, offset: int) -> Any:
    """Two codes of `bits` bits as one of twice as many, less `offset`."""
    return low + (high << bits) - offset


def code_of_byte(byte: Any, shift: Any, *, bits: int) -> Any:
    """The code of `bits` bits that stands `shift` bits up in byte + 128."""
    return ((byte + 128) >> shift) & ((1 << bits) - 1)


CACHE_CODE_CASES = (
    Case(
        "4 bits per token", "tgv,tg,tg,tg->tgv", {"g": 3, "v": 16}, ("i16", "i8", "u7", "u20"),
        {"up": 0, "down": 4, "coarse": 3, "s": 20, "bits": 4},
    ),
    Case(
        "2 bits per channel", "tgd,gd,gd,gd->tgd", {"g": 2, "d": 16}, ("i16", "=i17", "=u14", "=u31"),
        {"up": 1, "down": 0, "coarse": 1, "s": 32, "bits": 2},
    ),
)  # fmt: skip
REDUCE_MAX_NEGATIVE_CASES = (Case("over the last axis", "tgv->tg", {"g": 2, "v": 7}, ("i16",), {"acc": 32}),)
TOKEN_ZERO_CASES = (Case("16 bits", "tg->tg", {"g": 64}, ("i16",), {"s": 7}),)
TOKEN_STEP_CASES = (
    Case("4 bits", "tg,tg->tg", {"g": 64}, ("i16", "i8"), {"up": 0, "coarse": 7, "divisor": 480}),
    Case("8-bit values", "tg,tg->tg", {"g": 64}, ("i8", "i8"), {"up": 2, "coarse": 2, "divisor": 15}),
)
STEP_INVERSE_CASES = (Case("7 bits", "tg->tg", {"g": 64}, ("u7",)),)
JOIN_CODES_CASES = (
    Case("two of 2 bits", "tn,tn->tn", {"n": 16}, ("u2", "u2"), {"bits": 2, "offset": 0}),
    Case("two of 4 bits as a signed byte", "tn,tn->tn", {"n": 16}, ("u4", "u4"), {"bits": 4, "offset": 128}),
)
CODE_OF_BYTE_CASES = (
    Case("4 bits", "twc,p->twpc", {"w": 3, "c": 16, "p": 2}, ("i8", "=u2"), {"bits": 4}),
    Case("2 bits", "twc,p->twpc", {"w": 3, "c": 16, "p": 4}, ("i8", "=u3"), {"bits": 2}),
)
