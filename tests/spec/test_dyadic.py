"""Ratios as multiplier and shift, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest

from isobit.quant.errors import CheckError
from isobit.quant.lower.dyadic import dyadic, dyadics

RATIOS = [2.0**k * f for k in range(-30, 29) for f in (1.0, 1.0 - 2.0**-53, 1.0 - 2.0**-32, 1 / 3, 1.5, 0.7071)]


@pytest.mark.parametrize("bits", [8, 15, 31])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_multiplier_is_the_nearest_and_normalised(bits: int, sign: int) -> None:
    for ratio in RATIOS:
        m, s = dyadic(sign * ratio, bits=bits)
        assert 1 <= s <= 62
        assert abs(Fraction(sign * ratio) * 2**s - m) <= Fraction(1, 2)
        if 1 < s < 62:
            assert 1 << (bits - 1) <= abs(m) < 1 << bits


def test_channels_share_the_shift_of_the_largest() -> None:
    m, s = dyadics([0.75, -0.75, 0.0, 0.75 * 2.0**-20, 2.0**-60])
    assert s == 31
    assert m.tolist() == [3 << 29, -(3 << 29), 0, 3 << 9, 0]


def test_products_stay_below_2_to_the_62() -> None:
    for magnitude in (1, 127, (1 << 31) - 1, 1 << 31, (1 << 40) + 1, (1 << 53) - 1):
        m, s = dyadic(0.9999, magnitude)
        assert m.bit_length() == min(31, 62 - magnitude.bit_length())
        assert magnitude * m + (1 << (s - 1)) < 1 << 63


def test_zero_has_no_shift() -> None:
    assert dyadic(0.0) == (0, 1)


def test_tiny_ratios_keep_the_largest_shift() -> None:
    assert dyadic(2.0**-60) == (4, 62)
    assert dyadic(2.0**-70) == (0, 62)


def test_large_ratios_may_exceed_the_wished_bits() -> None:
    assert dyadic(100_000.0, bits=15) == (200_000, 1)


@pytest.mark.parametrize("ratio", [float("inf"), float("nan"), 2.0**30, 1e300])
def test_what_no_multiplier_reaches_is_an_error(ratio: float) -> None:
    with pytest.raises(CheckError, match="ratio of two scales"):
        dyadic(ratio)


def test_a_magnitude_without_room_is_an_error() -> None:
    with pytest.raises(CheckError, match="at least 8"):
        dyadic(0.5, 1 << 54)
