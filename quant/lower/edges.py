"""Where floats meet the Program: how an input is declared, and the one rule that quantizes it on the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isobit.quant.calibrate.rounding import ROUNDINGS, to_minifloat
from isobit.quant.capture.graph import Floats
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.program import HALF_UP, Array, Input, IntType

MINIFLOAT = "minifloat"
"""What the rounding of an input to minifloats begins with, before the bits of their mantissa."""


@dataclass(frozen=True)
class InputSpec:
    """What the Program's input is.

    InputSpec(): floats, quantized on the host by `quantize_input` with a calibrated scale.
    InputSpec(elem, scale): the integers of a sensor, of which one unit is worth `scale`, a power of two, to the model.
    """

    elem: IntType | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if (self.elem is None) != (self.scale is None):
            raise InputError("an input of integers is declared by both its element type and its scale")
        if self.scale is not None and (self.scale <= 0 or math.frexp(self.scale)[0] != 0.5):
            raise InputError(f"input scale {self.scale}: expected a power of two, such as {2.0**-4}")
        if self.elem is not None and self.elem.bits > 16:
            raise InputError(f"input of {self.elem}: expected at most 16 bits")


def input_spec(samples: npt.ArrayLike, scale: float | None, source: str = "calibration") -> InputSpec:
    """Floats if `scale` is None; else integers of the smallest type that holds `samples`, an array of integers."""
    if scale is None:
        return InputSpec()
    codes = np.asarray(samples)
    if not np.issubdtype(codes.dtype, np.integer) or codes.size == 0:
        raise InputError(
            f"{source}: with an input scale, expected an array of integers, got {codes.dtype}, {codes.shape}"
        )
    known = Interval(int(codes.min()), int(codes.max()))
    return InputSpec(IntType(known.bits) if known.lo < 0 else IntType(max(1, known.bits - 1), signed=False), scale)


def trained_rounding(rounding: str) -> Callable[[Floats], Floats]:
    """What the `rounding` of an input means, which a trained quantizer asks for.  Raises InputError for another."""
    if rounding in ROUNDINGS and rounding != "none":
        return ROUNDINGS[rounding]
    mantissa = rounding.removeprefix(MINIFLOAT)
    if not rounding.startswith(MINIFLOAT) or mantissa not in tuple("0123456"):
        raise InputError(f"inputs are rounded by '{rounding}', expected {', '.join(ROUNDINGS)}, or {MINIFLOAT}3")
    return lambda u: to_minifloat(u, int(mantissa))


def quantize_for(entry: Input, x: npt.ArrayLike, source: str = "input") -> Array:
    """`quantize_input` for an input of a Program that has a scale."""
    assert entry.type.scale is not None
    return quantize_input(x, entry.type.scale, entry.type.elem, source, entry.rounding, entry.zero)


def quantize_input(
    x: npt.ArrayLike, scale: float, elem: IntType, source: str = "input", rounding: str = HALF_UP, zero: int = 0
) -> Array:
    """floor(x/scale + 0.5) in float64, saturated to `elem`; infinities saturate, NaN is an InputError.

    rounding: of a trained quantizer, a name in ROUNDINGS, or minifloat and the bits of its mantissa: of x/scale + zero
    in float32, less the zero, as in Brevitas.
    """
    values = np.asarray(x, np.float64)
    if bad := int(np.isnan(values).sum()):
        raise InputError(f"{source}: {bad} of {values.size} values are NaN, expected none")
    if rounding != HALF_UP:
        codes = values.astype(np.float32) / np.float32(scale) + np.float32(zero)
        whole = trained_rounding(rounding)(codes.astype(np.float64)) - zero
        return np.clip(whole, elem.range.lo, elem.range.hi).astype(np.int64)
    return np.clip(np.floor(values / scale + 0.5), elem.range.lo, elem.range.hi).astype(np.int64)
