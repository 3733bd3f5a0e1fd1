"""Activations: sigmoid, tanh, GELU, ELU, Hardswish, PReLU, log-sigmoid.

In all of them (x*mx) >> sx is x in a fixed unit, and m and s carry the result to the output's scale.
"""

from __future__ import annotations

import math
from typing import Any

from isobit.quant.expr import clip, select
from isobit.quant.ops.exp2 import exp2_negative
from isobit.quant.ops.interpolate import interpolate, normal_cdf, tabulated, tanh_gate
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT8, INT16, rounding_shift
from isobit.quant.ops.silu import sigmoid
from isobit.quant.ops.softplus import log2_one_plus_exp2

TANH_CURVE = tabulated(math.tanh, 1 / 64, 512, 1 << 16)
"""tanh in Q.16 on [0, 8]."""

NORMAL_CDF = tabulated(normal_cdf, 1 / 64, 512, 1 << 15)
"""The gate of GELU in Q.15 on [0, 8]."""

TANH_GATE = tabulated(tanh_gate, 1 / 64, 512, 1 << 15)
"""The gate of GELU's tanh form in Q.15 on [0, 8]."""


def scaled_sigmoid(x: Any, *, mx: int, sx: int, m: int, s: int, lo: int, hi: int) -> Any:
    """1 / (1 + e^-x); x enters as log2(e)*x in Q.12, the sigmoid leaves as Q0.15.  Error below 1.2e-4."""
    return clip(rounding_shift(sigmoid((x * mx) >> sx) * m, s), lo, hi)


def tanh(x: Any, *, mx: int, sx: int, m: int, s: int, lo: int, hi: int) -> Any:
    """tanh x; x enters in Q.14, the table gives Q.16.  Error below 2^-13, most of it the rounding of x."""
    t = (x * mx) >> sx
    magnitude = interpolate(TANH_CURVE, select(t < 0, -t, t), 8)
    return clip(rounding_shift(select(t < 0, -magnitude, magnitude) * m, s), lo, hi)


def _gated(x: Any, gates: tuple[int, ...], mx: int, sx: int, m: int, s: int, lo: int, hi: int) -> Any:
    t = (x * mx) >> sx
    right = interpolate(gates, select(t < 0, -t, t), 8)
    gate = select(t < 0, (1 << 15) - right, right)
    return clip(rounding_shift(x * gate * m, s), lo, hi)


def gelu(x: Any, *, mx: int, sx: int, m: int, s: int, lo: int, hi: int) -> Any:
    """x * Phi(x); x enters the table in Q.14.  Error below 1e-4.  Hendrycks and Gimpel 2016, section 2."""
    return _gated(x, NORMAL_CDF, mx, sx, m, s, lo, hi)


def gelu_tanh(x: Any, *, mx: int, sx: int, m: int, s: int, lo: int, hi: int) -> Any:
    """GELU's tanh form; x enters the table in Q.14.  Error below 1e-4.  Hendrycks and Gimpel 2016, section 2."""
    return _gated(x, TANH_GATE, mx, sx, m, s, lo, hi)


def elu(x: Any, *, mx: int, sx: int, mn: int, mp: int, s: int, lo: int, hi: int) -> Any:
    """x for x >= 0, else e^x - 1: its power of two, in Q0.15, is carried by mn, x itself by mp.

    Clevert et al. 2015, eq. 15.  Error below 3e-4.
    """
    octaves = clip(-((x * mx) >> sx), 0, 1 << 17)
    below = exp2_negative(octaves) - (1 << 15)
    return clip(rounding_shift(select(x < 0, below * mn, x * mp), s), lo, hi)


def hardswish(x: Any, *, three: int, six: int, m: int, s: int, lo: int, hi: int) -> Any:
    """x * clip(x + 3, 0, 6) / 6, with 3 and 6 in units of x.  Howard et al. 2019, "MobileNetV3", eq. 5.2."""
    return clip(rounding_shift(x * clip(x + three, 0, six) * m, s), lo, hi)


def prelu(x: Any, slope: Any, *, m: int, s: int, lo: int, hi: int) -> Any:
    """x for x >= 0, else slope * x; slope has the unit of m.  He et al. 2015, "Delving Deep into Rectifiers", eq. 1."""
    return clip(rounding_shift(x * select(x < 0, slope, m), s), lo, hi)


def log_sigmoid(x: Any, *, mx: int, sx: int, m: int, s: int, lo: int) -> Any:
    """log(1 / (1 + e^-x)) <= 0: minus the softplus of -x.  Error below 2.5e-4."""
    t = (x * mx) >> sx
    return clip(-rounding_shift(log2_one_plus_exp2(-t) * m, s), lo, 0)


SIGMOID_CASES = (
    Case(
        "16 bits to Q0.15", "tn->tn", {"n": 64}, ("i16",), {"mx": 23637, "sx": 14, "m": 2, "s": 1, "lo": 0, "hi": 32767}
    ),
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"mx": 7562, "sx": 5, "m": 127 << 15, "s": 30, **INT8}),
)
TANH_CASES = (
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"mx": 1 << 14, "sx": 13, "m": (1 << 15) - 1, "s": 16, **INT16}),
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"mx": 1 << 9, "sx": 1, "m": 127 << 10, "s": 26, **INT8}),
)
GELU_CASES = (
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"mx": 20000, "sx": 13, "m": (1 << 30) + 1, "s": 45, **INT16}),
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"mx": 1 << 10, "sx": 2, "m": 1 << 14, "s": 29, **INT8}),
)
ELU_CASES = (
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"mx": 23637, "sx": 15, "mn": 8191, "mp": 16384, "s": 14, **INT16}),
)
HARDSWISH_CASES = (Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"three": 96, "six": 192, "m": 2731, "s": 19, **INT8}),)
PRELU_CASES = (Case("slope per channel", "tn,n->tn", {"n": 64}, ("i16", "=i16"), {"m": 16384, "s": 15, **INT16}),)
LOG_SIGMOID_CASES = (
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"mx": 5909, "sx": 12, "m": 1 << 22, "s": 34, "lo": -32767}),
)
