"""A number format: the finite set of numbers that a code of few bits can be.

Every format here is symmetric: it is a list of magnitudes, integers times one power of two.  So rounding has one
definition for integers, powers of two and minifloats, and a sum of products of such numbers is an integer.  One format
has no zero, `binary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.program import DIGITS, SIGN, Array, IntType
from isobit.quant.storage import storage

WINDOW = 34
"""Bits of the integers that the numbers of a minifloat are: those of its products are summed in at most two limbs."""


@dataclass(frozen=True)
class Format:
    """Numbers k * 2^-point, and -k * 2^-point, for k in `magnitudes`: integers in ascending order, from 0 on; or 1.

    mantissa: of a minifloat, its bits: k has at most one more that are significant; of powers of two, 0.
    digits: whether they are the sums of two signed powers of two.  shared: whether all outputs of a weight share one
    scale.
    """

    name: str
    what: str
    magnitudes: Sequence[int]
    point: int = 0
    mantissa: int | None = None
    digits: bool = False
    shared: bool = False

    @property
    def bits(self) -> int:
        """Of a code, as it is stored."""
        return storage(self.elem, self.mantissa).bits

    @property
    def significant(self) -> int:
        """Bits below the leading one of a number: the mantissa; of integers, all."""
        return self.largest.bit_length() if self.mantissa is None else self.mantissa

    @property
    def elem(self) -> IntType:
        """The integers that its numbers are."""
        if not self.zero:
            return SIGN
        if self.digits:
            return DIGITS
        return IntType(Interval(-self.largest, self.largest).bits)

    @property
    def zero(self) -> bool:
        """Whether 0 is one of its numbers."""
        return self.magnitudes[0] == 0

    @property
    def largest(self) -> int:
        return self.magnitudes[-1]

    def rounded(self, x: npt.ArrayLike) -> Array:
        """The integers k of the numbers nearest to x, of any shape; beyond the largest, the largest.

        Halfway between two magnitudes, the one with an even place in their list is taken: of integers the even one, of
        minifloats the one whose mantissa is even.  These are rounded by their significant bits, which gives the same as
        the list, faster.  Of 0, where it is no number, the positive one.  Raises InputError for NaN.
        """
        real = np.asarray(x, np.float64)
        if np.isnan(real).any():
            raise InputError(f"{self.name} has no NaN, got {int(np.isnan(real).sum())} of {real.size} values")
        scaled = np.minimum(np.ldexp(np.abs(real), self.point), float(self.largest))
        if self.mantissa or isinstance(self.magnitudes, range):
            apart = np.ldexp(1.0, np.maximum(np.frexp(scaled)[1] - 1 - self.significant, 0))
            return np.asarray(np.copysign(np.rint(scaled / apart) * apart, real).astype(np.int64))
        grid = np.array(self.magnitudes, np.float64)
        above = np.clip(np.searchsorted(grid, scaled), len(grid) > 1, len(grid) - 1)
        below = np.maximum(above - 1, 0)
        half = (grid[below] + grid[above]) / 2
        up = (scaled > half) | ((scaled == half) & (above % 2 == 0))
        size: Array = grid[np.where(up, above, below)].astype(np.int64)
        return np.asarray(np.where(real < 0, -size, size))


def integer(bits: int) -> Format:
    """Symmetric integers of 2 to 16 bits."""
    return Format(f"int{bits}", f"integers of {bits} bits, symmetric", range(1 << (bits - 1)))


def powers(bits: int) -> Format:
    """Zero and 2^(bits-1) - 1 powers of two, with both signs: multiplication is a shift."""
    count = (1 << (bits - 1)) - 1
    return Format(f"pot{bits}", f"zero and {count} powers of two", (0, *(1 << p for p in range(count))), mantissa=0)


def signed_digits() -> Format:
    """8-bit integers that are sums of at most two signed powers of two (QFX's K-hot weights): two shifts, one addition.

    Sums of one are `powers`; sums of three take 8 bits, as all integers do.
    """
    found = {abs((1 << p) + (sign << q)) for p in range(8) for q in range(8) for sign in (1, -1)}
    magnitudes = tuple(sorted(k for k in found if k < 128))
    return Format(str(DIGITS), "8-bit integers, sums of two signed powers of two", magnitudes, digits=True)


def minifloat(
    exponent: int, mantissa: int, bias: int | None = None, largest: float | None = None, name: str = ""
) -> Format:
    """Saturating floats of a sign, `exponent` and `mantissa` bits, with subnormals (Brevitas' FloatQuant; OCP MX v1.0).

    bias: 2^(exponent-1) - 1 where None.  largest: the largest number, where some codes above it mean infinity or NaN;
    every code is a number where None.  Of exponents there are so many, the highest, that the largest number has at most
    WINDOW bits as an integer; below, numbers are as far apart as the lowest of them.
    """
    bias = (1 << (exponent - 1)) - 1 if bias is None else bias
    exponents = min((1 << exponent) - 1, WINDOW - mantissa)
    point, lead = bias - 1 + mantissa - ((1 << exponent) - 1 - exponents), 1 << mantissa
    normal = [(lead + m) << (e - 1) for e in range(1, exponents + 1) for m in range(lead)]
    magnitudes = (*range(lead), *normal)
    if largest is not None:
        magnitudes = tuple(k for k in magnitudes if k <= largest * 2.0**point)
    top = magnitudes[-1] * 2.0**-point
    return Format(
        name or f"e{exponent}m{mantissa}",
        f"minifloat, largest {top:g}, smallest {2.0**-point:g}",
        magnitudes,
        point,
        mantissa,
    )
