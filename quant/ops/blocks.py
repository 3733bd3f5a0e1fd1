"""Blocks of activations that share a scale, a power of two: its exponent, their elements, and sums of their products.

The exponent comes from the largest magnitude of the block by its leading zeros.  A number of a block is
element * 2^exponent in units that the whole tensor shares.
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip, clz, select
from isobit.quant.ops.minifloat import nearest
from isobit.quant.ops.op import Case


def magnitude(x: Any) -> Any:
    """|x|, one term of the largest."""
    return select(x < 0, 0 - x, x)


def block_exponent(peak: Any, *, width: int, carry: int, lowest: int, window: int) -> Any:
    """floor(log2 peak) - lowest, one more where the mantissa of `peak` reaches `carry`, limited to 0 to `window`.

    peak >= 0, below 2^width; its mantissa is in [2^(width-1), 2^width).  Of 0 it is 0.
    """
    zeros = clz(peak, width)
    whole = width - 1 - zeros
    return clip(whole + select((peak << zeros) < carry, 0, 1) - lowest, 0, window)


def block_element(x: Any, exponent: Any, *, up: int, s: int, mantissa: int, most: int, width: int) -> Any:
    """x * 2^(up - s - exponent) to the nearest number of `mantissa` bits, ties to even, saturated at `most`.

    |x| * 2^up is below 2^width; s >= 1.
    """
    return nearest(x << up, exponent + s, mantissa=mantissa, most=most, limit=(1 << width) - 1)


def scale_block(total: Any, exponent: Any) -> Any:
    """total * 2^exponent, the sum of a block in units that all blocks share."""
    return total << exponent


REDUCE_ABSMAX_CASES = (Case("blocks", "tuv->tu", {"u": 3, "v": 8}, ("i16",), {"acc": 32}),)
BLOCK_EXPONENT_CASES = (
    Case("floor", "tu->tu", {"u": 64}, ("u15",), {"width": 15, "carry": 1 << 15, "lowest": 6, "window": 8}),
    Case("ceil", "tu->tu", {"u": 64}, ("u15",), {"width": 15, "carry": (1 << 14) + 1, "lowest": 7, "window": 8}),
)
BLOCK_ELEMENT_CASES = (
    Case(
        "e4m3", "tuv,tu->tuv", {"u": 8, "v": 8}, ("i16", "u3"),
        {"up": 9, "s": 1, "mantissa": 3, "most": 448 << 6, "width": 25},
    ),
    Case(
        "e2m1", "tuv,tu->tuv", {"u": 8, "v": 8}, ("i16", "u3"),
        {"up": 0, "s": 3, "mantissa": 1, "most": 12, "width": 16},
    ),
)  # fmt: skip
SCALE_BLOCK_CASES = (Case("wide sums", "tnu,tu->tnu", {"n": 4, "u": 8}, ("i50", "u3")),)
