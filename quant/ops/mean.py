"""Mean over time as a stateful op: a running sum, a count of steps up to a declared T_max, a table of reciprocals."""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip, table
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, rounding_shift


def step_count(count: Any, *, t_max: int) -> Any:
    """Steps since the reset; it stays at t_max."""
    return clip(count + 1, 0, t_max)


def running_sum(total: Any, x: Any, *, lo: int, hi: int) -> Any:
    """Sum since the reset; lo and hi are T_max times the range of x, so that it is exact for T_max steps."""
    return clip(total + x, lo, hi)


def mean(total: Any, count: Any, *, t_max: int, m: int, s: int, lo: int, hi: int) -> Any:
    """total / count at the output's scale: sat((total * (m/count) + 2^(s-1)) >> s)."""
    reciprocal = (0, *((2 * m + n) // (2 * n) for n in range(1, t_max + 1)))
    return clip(rounding_shift(total * table(reciprocal, count), s), lo, hi)


STEP_COUNT_CASES = (Case("saturates", "->t|", {}, (), {"t_max": 3, "acc": 32}, "u2"),)
RUNNING_SUM_CASES = (Case("saturates", "tc->tc|c", {"c": 3}, ("i16",), {"lo": -65534, "hi": 65534, "acc": 32}, "i18"),)
MEAN_CASES = (
    Case("every count", "tc,t->tc", {"c": 8}, ("i22", "u6"), {"t_max": 63, "m": (1 << 30) + 5, "s": 37, **INT8}),
)
