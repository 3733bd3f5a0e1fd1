"""Blocks of numbers that share a scale: OCP's MX, and groups of integers with an integer multiplier.

A block's scale is an integer multiple of its channel's unit, so that blocks are added as integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isobit.quant.capture.graph import Floats
from isobit.quant.formats.format import Format
from isobit.quant.program import Array, IntType
from isobit.quant.storage import storage

SCALE_BITS = 8
"""Of a block's scale: an exponent, or the integer multiplier of a channel's unit."""

WINDOW = 8
"""Powers of two between the largest and the smallest scale of a channel's blocks: smaller blocks take the smallest."""

NEGLIGIBLE = 2.0**-16
"""The unit of a row of zeros in a format without one, in that of the largest row."""


@dataclass(frozen=True)
class Blocks:
    """Of an output's weights `size` neighbours along the input, or as many whole channels where a kernel has several
    elements, share a scale; `rule`, a key of RULES, says which."""

    name: str
    element: Format
    size: int
    rule: str

    @property
    def bits(self) -> float:
        """Of an element, with its share of the scale."""
        return self.element.bits + storage(*self.scale).bits / self.size

    @property
    def scale(self) -> tuple[IntType, int | None]:
        """What the blocks' scales are: integers of SCALE_BITS bits, or powers of two, minifloats without mantissa."""
        return (
            (IntType(WINDOW + 1, signed=False), 0) if self.rule in RULES else (IntType(SCALE_BITS, signed=False), None)
        )

    @property
    def what(self) -> str:
        return f"blocks of {self.size} {self.element.name}, scale {self.rule}"


def exponent(x: Floats) -> Array:
    """floor(log2 x) of x > 0, from the exponent field: a rounded logarithm is wrong just below powers of two."""
    return np.frexp(x)[1].astype(np.int64) - 1


def exponent_above(x: Floats) -> Array:
    """ceil(log2 x) of x > 0."""
    whole = exponent(x)
    return whole + (x > np.ldexp(1.0, whole))


def _floor(peak: Floats, element: Format) -> Array:
    return exponent(peak) - exponent(np.asarray(element.largest * 2.0**-element.point))


def _ceil(peak: Floats, element: Format) -> Array:
    return exponent_above(peak) - exponent(np.asarray(element.largest * 2.0**-element.point))


def _rceil(peak: Floats, element: Format) -> Array:
    """The least power of two at which nothing saturates."""
    top, low = element.largest * 2.0**-element.point, _floor(peak, element)
    return low + (peak > np.ldexp(top, low))


def _even(peak: Floats, element: Format) -> Array:
    """As floor, of the peak rounded to the element's mantissa."""
    *_, below, top = element.magnitudes
    mantissa, whole = (top.bit_length() - (top - below).bit_length()), exponent(peak)
    return _floor(np.ldexp(np.rint(np.ldexp(peak, mantissa - whole)), whole - mantissa), element)


RULES: dict[str, Callable[[Floats, Format], Array]] = {
    "floor": _floor,
    "ceil": _ceil,
    "rceil": _rceil,
    "even": _even,
}
"""Exponents of blocks' scales, from their largest magnitudes and the element: OCP MX v1.0; ceil(log2 peak); NVIDIA's
ceil(log2(peak / largest)); torchao's rounding of the peak."""


def carry_of(rule: str, element: Format, width: int) -> int:
    """The same rules on integers: the least mantissa, in [2^(width-1), 2^width), at which a power is one more.

    The exponent of a block is floor(log2 peak) less that of the element's largest number, and so much more.
    """
    one = 1 << (width - 1)
    *_, below, top = element.magnitudes
    carries = {
        "floor": 2 * one,
        "ceil": one + 1,
        "rceil": (top << width >> top.bit_length()) + 1,
        "even": 2 * one - (one >> (top.bit_length() - (top - below).bit_length() + 1)),
    }
    return carries[rule]


FRACTIONS = tuple(1 - i / 32 for i in range(17))
"""Of the scale at which nothing saturates: those that are tried."""

INTEGER = "integer"
"""The rule of groups: an integer of SCALE_BITS bits times the channel's unit, at which nothing saturates."""


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix, (R, n): real = codes * multipliers * steps; after the last column, what zeros are rounded to.

    codes: (R, G, size), integers of the element.  multipliers: (R, G).  steps: (R,).
    """

    codes: Array
    multipliers: Array
    steps: Floats

    @property
    def real(self) -> Floats:
        """(R, G * size)."""
        return (self.codes * self.multipliers[..., None] * self.steps[:, None, None]).reshape(len(self.codes), -1)


def quantized_rows(
    rows: Floats, format: Format | Blocks, least: Floats | float = 0.0, size: int = 0,
    importance: Floats | float = 1.0,
) -> Rows:  # fmt: skip
    """Every row with a scale of its own, or all with one, in blocks of `size` columns, all of them where 0.

    least: (R,), steps are at least these.  importance: (R, n), what the squared error of each element counts where
    scales are chosen by it.
    """
    element, rule = (format, "") if isinstance(format, Format) else (format.element, format.rule)
    if element.shared and len(rows) > 1:
        of_all = np.broadcast_to(importance, rows.shape).reshape(1, -1)
        q = quantized_rows(rows.reshape(1, -1), format, np.max(least), importance=of_all)
        ones = np.ones((len(rows), 1), np.int64)
        return Rows(q.codes.reshape(len(rows), 1, -1), ones, np.repeat(q.steps, len(rows)))
    size = size or rows.shape[1]
    count = -(-rows.shape[1] // size)
    blocks, counts = (
        np.pad(a, ((0, 0), (0, count * size - rows.shape[1]))).reshape(len(rows), count, size)
        for a in (rows, np.broadcast_to(importance, rows.shape))
    )
    peaks = _peaks(blocks, element)
    if rule in RULES:
        scales = np.where(
            peaks > 0, np.ldexp(1.0, RULES[rule](np.where(peaks > 0, peaks, 1.0), element) - element.point), 0
        )
    else:
        scales, _ = _nearest_scales(blocks, peaks / element.largest, element, counts)
    steps = _steps(scales, rule, least, element.zero)
    multipliers = np.maximum(np.ceil(scales / steps[:, None] * (1 - 1e-9)), 1).astype(np.int64)
    wide = (multipliers * steps[:, None])[..., None] * 2.0**element.point
    return Rows(element.rounded(blocks / wide), multipliers, steps)


def _peaks(blocks: Floats, element: Format) -> Floats:
    """What the largest number of a block stands for: its largest magnitude; the mean one where that is the only
    number beside 0 (BitNet b1.58, and XNOR-Net, Rastegari et al. 2016)."""
    magnitudes = np.abs(blocks)
    return np.asarray(magnitudes.mean(-1) if element.largest == 1 else magnitudes.max(-1))


def nearest_scale(values: Floats, scale: float, element: Format) -> tuple[float, float]:
    """Of FRACTIONS of a scale, the one at which these values, rounded, have the least squared error, and that error."""
    blocks = values.reshape(1, 1, -1)
    chosen, error = _nearest_scales(blocks, np.full((1, 1), scale), element, np.ones_like(blocks))
    return float(chosen[0, 0]), float(error[0, 0])


def _nearest_scales(blocks: Floats, scales: Floats, element: Format, counts: Floats) -> tuple[Floats, Floats]:
    """Of FRACTIONS of these scales, every block's with the least squared error, and that error; of ternary ones 1."""
    best, chosen = np.full(scales.shape, np.inf), scales
    for fraction in FRACTIONS if len(element.magnitudes) > 2 else ():
        tried = np.where(scales > 0, scales * fraction, 1.0)
        wide = tried[..., None] * 2.0**element.point
        error = (counts * (element.rounded(blocks / wide) * tried[..., None] - blocks) ** 2).sum(-1)
        chosen = np.where(error < best, scales * fraction, chosen)
        best = np.minimum(error, best)
    return chosen, best


def _steps(scales: Floats, rule: str, least: Floats | float, zero: bool) -> Floats:
    """The unit of each row, of which its blocks' scales are multiples; zero: whether a row can be zeros."""
    top, several = scales.max(-1), scales.shape[1] > 1
    if rule in RULES:
        smallest = np.where(scales > 0, scales, top[:, None]).min(-1)
        finest = np.maximum(smallest, top * 2.0**-WINDOW)
        asked = np.broadcast_to(least, finest.shape)
        coarsest = np.ldexp(1.0, exponent_above(np.where(asked > 0, asked, finest)))
        steps = np.maximum(finest, np.where(asked > 0, coarsest, 0.0))
    else:
        steps = np.maximum(top / ((1 << SCALE_BITS) - 1) if several else top, least)
    unseen = (steps.max() or 1.0) * (1.0 if zero else NEGLIGIBLE)
    return np.asarray(np.where(steps == 0, unseen, steps))
