"""Shiftmax: powers of two of the distance to the largest score (Li and Gu 2023, "I-ViT", eq. 9 to 15)."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip, select
from isobit.quant.ops.exp2 import exp2_scaled
from isobit.quant.ops.op import Case


def shifted_exp(x: Any, top: Any, *, mx: int, sx: int, bits: int) -> Any:
    """e^(x - top), x <= top, in units of 2^-bits; (distance*mx) >> sx is log2(e) times it in Q.12.

    Error below 3.5e-4.
    """
    octaves = clip(((top - x) * mx) >> sx, 0, 1 << 17)
    return exp2_scaled(octaves, bits)


def mask_history(x: Any, count: Any, slot: Any, *, length: int, lowest: int) -> Any:
    """A score of a slot of a history, oldest first; `lowest` where the first `count` steps have not filled the slot."""
    return select(slot + count < length, lowest, x)


def shifted_exp_of_history(x: Any, top: Any, count: Any, slot: Any, *, length: int, mx: int, sx: int, bits: int) -> Any:
    """As shifted_exp; 0 for a slot that no step has filled."""
    return select(slot + count < length, 0, shifted_exp(x, top, mx=mx, sx=sx, bits=bits))


SHIFTED_EXP_CASES = (
    Case("16 bits", "tqk,tq->tqk", {"q": 5, "k": 7}, ("i16", "i16"), {"mx": 11819, "sx": 14, "bits": 15}),
    Case("long rows", "tqk,tq->tqk", {"q": 5, "k": 7}, ("i16", "i16"), {"mx": 11819, "sx": 14, "bits": 24}),
)
MASK_HISTORY_CASES = (
    Case("first steps", "tw,t,w->tw", {"w": 6}, ("i16", "u3", "=u3"), {"length": 6, "lowest": -32767}),
)
SHIFTED_EXP_OF_HISTORY_CASES = (
    Case(
        "first steps",
        "tw,t,t,w->tw",
        {"w": 6},
        ("i16", "i16", "u3", "=u3"),
        {"length": 6, "mx": 11819, "sx": 14, "bits": 18},
    ),
)
