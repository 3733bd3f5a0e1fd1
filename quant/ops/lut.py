"""Mode `lut`: tables of the true functions, read at inputs of at most 10 bits; a wider input is rounded to 10 first.

A table is a constant operand of `lookup`, made when a model is lowered; an index comes from one of the ops below.
"""

from __future__ import annotations

import math
from typing import Any

from isobit.quant.expr import bound, clip, clz, select, table
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import rounding_shift

INDEX_BITS = 10

LAST = (1 << INDEX_BITS) - 1
"""The last entry of a table of distances, which slots that no step has filled read."""

OCTAVE_FRACTION = 6
"""Fraction bits of the octaves by which a decay is read: 1024 entries reach over 16 octaves."""

RSQRT_TABLE = tuple(min(32767, round((1 << 14) / math.sqrt((i + 0.5) / 1024))) for i in range(256, 1024))
"""2^14 / sqrt(x) for x in [1/4, 1), by its top ten bits."""


def _rounded(x: Any, s: int) -> Any:
    return rounding_shift(x, s) if s else x


def table_index(x: Any, *, s: int, half: int) -> Any:
    """x / 2^s, rounded half up, within [-half, half), plus half."""
    return clip(_rounded(x, s), -half, half - 1) + half


def octave_index(dt: Any, a: Any, *, s: int) -> Any:
    """dt*a, in octaves with OCTAVE_FRACTION fraction bits after s, at most LAST; dt, a >= 0."""
    return clip(rounding_shift(dt * a, s), 0, LAST)


def distance_index(x: Any, top: Any, *, s: int) -> Any:
    """top - x >= 0, over 2^s, rounded half up, below LAST."""
    return clip(_rounded(top - x, s), 0, LAST - 1)


def distance_index_of_history(x: Any, top: Any, count: Any, slot: Any, *, length: int, s: int) -> Any:
    """As distance_index; LAST for a slot that no step has filled."""
    return select(slot + count < length, LAST, distance_index(x, top, s=s))


def rsqrt_lut(v: Any, *, up: int, eps: int, least: int, width: int) -> Any:
    """2^(14 + width/2) / sqrt(v*2^up + eps); its operands as those of `rsqrt`.

    A table of the mantissa, normalised to [1/4, 1) by leading zeros.  Relative error below 0.0011.
    """
    energy = clip((v << up) + eps, least, (1 << width) - 1)
    zeros = clz(energy, width) & 62
    mantissa = bound(energy << zeros, 1 << (width - 2), (1 << width) - 1) >> (width - INDEX_BITS)
    return table(RSQRT_TABLE, mantissa - (1 << (INDEX_BITS - 2))) << (zeros >> 1)


TABLE_INDEX_CASES = (
    Case("8 bits as they are", "tn->tn", {"n": 64}, ("i8",), {"s": 0, "half": 128}),
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"s": 6, "half": 512}),
)
LOOKUP_CASES = (
    Case("of one element", "tn,v->tn", {"n": 33, "v": 1024}, ("u10", "=i16")),
    Case("of a scalar", "t,v->t", {"v": 128}, ("u7", "=i8")),
)
OCTAVE_INDEX_CASES = (Case("every step size", "tc,cn->tcn", {"c": 8, "n": 4}, ("u15", "=u15"), {"s": 16}),)
DISTANCE_INDEX_CASES = (Case("16 bits", "tqk,tq->tqk", {"q": 4, "k": 7}, ("i16", "i16"), {"s": 5}),)
DISTANCE_INDEX_OF_HISTORY_CASES = (
    Case("first steps", "tw,t,t,w->tw", {"w": 6}, ("i16", "i16", "u3", "=u3"), {"length": 6, "s": 6}),
)
RSQRT_LUT_CASES = (
    Case("every width of sum", "tn->tn", {"n": 64}, ("u35",), {"up": 0, "eps": 3, "least": 1, "width": 36}),
)
