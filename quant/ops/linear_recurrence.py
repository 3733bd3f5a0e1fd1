"""The linear recurrence S = decay * S + v k, o = sum S q: Mamba, RetNet, GLA, linear attention.

Gu and Dao 2023, "Mamba", eq. 2; Yang et al. 2023, "Gated Linear Attention", eq. 3.
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import rounding_shift


def linear_recurrence(state: Any, decay: Any, v: Any, k: Any, *, up: int, lo: int, hi: int) -> Any:
    """sat((S*decay + ((v*k) << up) + 2^14) >> 15): decay in Q0.15, one rounding; `up` matches the scales."""
    return clip(rounding_shift(state * decay + ((v * k) << up), 15), lo, hi)


def state_times_query(state: Any, q: Any) -> Any:
    """S * q, one term of the readout."""
    return state * q


STATE16 = {"lo": -32768, "hi": 32767, "acc": 32}

LINEAR_RECURRENCE_CASES = (
    Case(
        "selective state space",
        "tcn,tc,tn,tn->tc|cn",
        {"c": 5, "n": 4},
        ("u15", "i16", "i8", "i8"),
        {"up": 7, **STATE16},
        "i16",
    ),
    Case(
        "decay per head",
        "c,tc,tn,tn->tc|cn",
        {"c": 3, "n": 7},
        ("=u15", "i16", "i8", "i8"),
        {"up": 0, **STATE16},
        "i16",
    ),
)
