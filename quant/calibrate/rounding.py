"""How quantizers that came with the model round, in float64 numpy: as `isobit.quant.ops.requantize` does integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isobit.quant.capture.graph import Floats, GraphNode


def _half_even_or_up(x: Floats) -> Floats:
    return np.asarray(np.where((x < 0) & (x - np.floor(x) == 0.5), np.ceil(x), np.rint(x)))


ROUNDINGS: dict[str, Callable[[Floats], Floats]] = {
    "half_even": np.rint,
    "floor": np.floor,
    "ceil": np.ceil,
    "to_zero": np.trunc,
    "half_even_or_up": _half_even_or_up,
    "none": np.asarray,
}
"""What a quantizer's `rounding` means."""


def to_minifloat(u: Floats, mantissa: int) -> Floats:
    """The nearest numbers of `mantissa` bits, in units of the smallest one, ties to the even one."""
    unit = np.exp2(np.maximum(np.frexp(u)[1] - 1 - mantissa, 0))
    return np.asarray(np.rint(u / unit) * unit)


def rounded_to_codes(n: GraphNode, x: Floats) -> Floats:
    """The codes, of which a `fake_quantize` has [lo, hi] and one is worth `scale`, of values x."""
    u = x / n.number("scale")
    if n.integer("mantissa") < 0:
        u = ROUNDINGS[n.text("rounding")](u + n.integer("zero"))
    elif n.text("rounding") != "none":
        u = to_minifloat(u, n.integer("mantissa"))
    return np.asarray(np.clip(u, n.integer("lo"), n.integer("hi")))
