"""Sums of more than 64 bits: the limbs of an operand, and two sums as one."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip
from isobit.quant.ops.op import Case


def high_limb(x: Any, *, h: int) -> Any:
    """The bits of x from 2^h on, with its sign: x = high_limb * 2^h + low_limb."""
    return x >> h


def low_limb(x: Any, *, h: int) -> Any:
    """The h lowest bits of x, as a number from 0 on."""
    return x & ((1 << h) - 1)


def join_limbs(high: Any, low: Any, *, h: int, s: int, lo: int, hi: int) -> Any:
    """sat((high * 2^h + low + 2^(h+s-1)) >> (h + s)), which needs no more bits than the two; s >= 1."""
    return clip((high + (low >> h) + (1 << (s - 1))) >> s, lo, hi)


HIGH_LIMB_CASES = (Case("half of 33 bits", "tn->tn", {"n": 64}, ("i33",), {"h": 16}),)
LOW_LIMB_CASES = (Case("half of 33 bits", "tn->tn", {"n": 64}, ("i33",), {"h": 16}),)
JOIN_LIMBS_CASES = (
    Case(
        "70 bits", "tn,tn->tn", {"n": 64}, ("i54", "i53"), {"h": 16, "s": 22, "lo": -(1 << 31) + 1, "hi": (1 << 31) - 1}
    ),
)
