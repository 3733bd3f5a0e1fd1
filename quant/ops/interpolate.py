"""Functions of one variable by a table of their values and linear interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from isobit.quant.expr import clip, table
from isobit.quant.ops.requantize import rounding_shift


def tabulated(f: Callable[[float], float], step: float, entries: int, unit: int) -> tuple[int, ...]:
    """f at 0, step, 2 step, ... in units of 1/unit; one more than there are intervals, and a copy of it."""
    values = [round(unit * f(i * step)) for i in range(entries + 1)]
    return (*values, values[-1])


def interpolate(values: tuple[int, ...], x: Any, fraction: int) -> Any:
    """The table at x >= 0, whose lowest `fraction` bits lie between two entries; beyond its end, its last entry."""
    inside = clip(x, 0, (len(values) - 2) << fraction)
    i = inside >> fraction
    left = table(values, i)
    return left + rounding_shift((table(values, i + 1) - left) * (inside & ((1 << fraction) - 1)), fraction)


def normal_cdf(x: float) -> float:
    """The distribution function of the normal distribution."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def tanh_gate(x: float) -> float:
    """The factor of x in the tanh form of GELU."""
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
