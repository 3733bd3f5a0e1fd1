"""Number formats: their sets of numbers, and rounding, against ml_dtypes, Brevitas and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.bit_width.float import ComputeMaxMantissa
from brevitas.core.function_wrapper import FloatClamp, Identity, TensorClamp
from brevitas.core.quant.float import FloatQuant
from brevitas.core.utils import StatelessBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.quant.capture.graph import Floats
from isobit.quant.errors import InputError
from isobit.quant.formats import FORMATS, MX, format_named
from isobit.quant.formats.blocks import RULES, SCALE_BITS, WINDOW, Blocks, exponent, quantized_rows
from isobit.quant.formats.format import WINDOW as WIDEST_MINIFLOAT
from isobit.quant.formats.format import Format, minifloat
from isobit.quant.ops.minifloat import to_minifloat
from isobit.quant.quantize import quantize
from isobit.quant.recipe import Recipe

OCP = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "e3m4": "float8_e3m4", "e3m2": "float6_e3m2fn",
       "e2m3": "float6_e2m3fn", "e2m1": "float4_e2m1fn"}  # fmt: skip
"""Formats that ml_dtypes has: their casts are equal where its result is finite."""

WITH_INFINITY = {"e3m4"}
"""In ml_dtypes its largest exponent is infinity and NaN, as in IEEE 754; here every code is a number."""


def real(f: Format, k: np.ndarray) -> Floats:
    return np.asarray(k * 2.0**-f.point)


def inputs() -> Floats:
    """Every finite float16, and the float32 on either side: all numbers, midpoints and their neighbours."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    exact = halves[np.isfinite(halves)].astype(np.float32)
    around = [np.nextafter(exact, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([exact, *around]).astype(np.float64)


@pytest.mark.parametrize("name", OCP)
def test_casts_equal_those_of_ml_dtypes(name: str) -> None:
    f, x = FORMATS[name], inputs()
    theirs = x.astype(np.float32).astype(getattr(ml_dtypes, OCP[name])).astype(np.float64)
    finite = np.isfinite(theirs)
    if name in WITH_INFINITY:
        finite &= np.abs(theirs) < 15.5
    assert finite.mean() > 0.5
    np.testing.assert_array_equal(real(f, f.rounded(x))[finite], theirs[finite])
    beyond = np.abs(x) > f.largest * 2.0**-f.point
    assert set(np.abs(f.rounded(x))[beyond]) == {f.largest}


@pytest.mark.parametrize("name", [n for n in OCP if n not in WITH_INFINITY])
def test_numbers_are_those_of_ml_dtypes(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, OCP[name]))
    numbers = np.arange(1 << FORMATS[name].bits, dtype=np.uint8).view(dtype).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    f = FORMATS[name]
    assert sorted(set(np.abs(numbers))) == list(real(f, np.array(f.magnitudes)))


@pytest.mark.parametrize(
    ("exponent", "mantissa", "bias", "name"),
    [
        (4, 3, 7, "e4m3full"),
        (3, 2, 3, "e3m2"),
        (2, 3, 1, "e2m3"),
        (2, 1, 1, "e2m1"),
        (3, 3, 5, "e3m3b5"),
        (5, 2, 15, ""),
    ],
)
def test_casts_equal_those_of_brevitas(exponent: int, mantissa: int, bias: int, name: str) -> None:
    f = format_named(name) if name else minifloat(5, 2)
    assert isinstance(f, Format)
    x = inputs()
    x = x[np.abs(x) > 2.0**-100]
    np.testing.assert_array_equal(real(f, f.rounded(x)), brevitas_cast(x, exponent, mantissa, bias))


def brevitas_cast(x: Floats, exponent: int, mantissa: int, bias: int) -> Floats:
    quantizer = FloatQuant(
        signed=True,
        exponent_bit_width_impl=BitWidthConst(exponent),
        mantissa_bit_width_impl=BitWidthConst(mantissa),
        exponent_bias_impl=StatelessBuffer(torch.tensor(float(bias))),
        float_clamp_impl=FloatClamp(tensor_clamp_impl=TensorClamp(), signed=True),
        input_view_impl=Identity(),
        compute_max_mantissa=ComputeMaxMantissa(),
    )
    cast: Floats = quantizer(torch.from_numpy(x).float())[0].double().numpy()
    return cast


@settings(deadline=None)
@given(st.sampled_from([f for f in FORMATS.values() if f.bits <= 8]), st.fractions(-600, 600, max_denominator=1 << 20))
def test_rounding_takes_the_nearest(f: Format, x: Fraction) -> None:
    x = Fraction(float(x))
    got = int(f.rounded(float(x)))
    target = min(abs(x) * 2**f.point, Fraction(f.largest))
    distances = [abs(m - target) for m in f.magnitudes]
    nearest = [i for i, d in enumerate(distances) if d == min(distances)]
    chosen = next((i for i in nearest if i % 2 == 0), nearest[0])
    assert got == (f.magnitudes[chosen] if x >= 0 else -f.magnitudes[chosen])


@settings(deadline=None)
@given(
    st.sampled_from([f for f in FORMATS.values() if f.mantissa is not None]),
    st.lists(st.integers(-(1 << 24), 1 << 24), min_size=1, max_size=50),
    st.integers(1, 1 << 16),
    st.integers(1, 24),
)
def test_the_op_rounds_as_the_format(f: Format, x: list[int], m: int, s: int) -> None:
    """Once, from the whole product."""
    assert f.mantissa is not None
    got = to_minifloat(np.array(x), m=m, s=s, mantissa=f.mantissa, most=f.largest)
    expected = [f.rounded(float(Fraction(k * m, 1 << s) / Fraction(2) ** f.point)) for k in x]
    assert got.tolist() == [int(k) for k in expected]


def test_integers_are_rounded_half_to_even() -> None:
    x = np.arange(-9, 10) / 2
    np.testing.assert_array_equal(FORMATS["int16"].rounded(x), np.rint(x))
    np.testing.assert_array_equal(FORMATS["int3"].rounded(x), np.clip(np.rint(x), -3, 3))


def test_signed_digits_are_sums_of_two_powers() -> None:
    """By the non-adjacent form, which has the fewest digits."""

    def digits(k: int) -> int:
        count = 0
        while k:
            if k % 2:
                k -= 2 - k % 4
                count += 1
            k //= 2
        return count

    found = [[k for k in range(128) if digits(k) <= terms] for terms in (1, 2, 3)]
    assert list(FORMATS["pot4"].magnitudes) == found[0]
    assert list(FORMATS["csd8k2"].magnitudes) == found[1]
    least = [(2 * len(magnitudes) - 2).bit_length() for magnitudes in found]
    assert least == [FORMATS[name].bits for name in ("pot4", "csd8k2", "int8")] == [4, 7, 8]


def test_not_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="e4m3 has no NaN, got 1 of 3 values"):
        FORMATS["e4m3"].rounded([1.0, float("nan"), 2.0])


def test_the_exponent_comes_from_the_bits() -> None:
    """Also just below a power of two, where float32's log2 gives the power above."""
    k = np.arange(-20, 20)
    powers = np.exp2(k.astype(np.float64))
    np.testing.assert_array_equal(exponent(powers), k)
    np.testing.assert_array_equal(exponent(np.nextafter(powers, 0)), k - 1)
    below = np.nextafter(np.float32(1024), np.float32(0))
    assert np.floor(np.log2(below)) == 10
    assert exponent(np.asarray(below, np.float64)) == 9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MX)
def test_scales_of_blocks(name: str, rule: str) -> None:
    """Against the definition of each rule in exact fractions; the least exponent that fits is found by trying."""
    element = MX[name].element
    peaks = np.abs(np.random.default_rng(0).normal(size=200)) * np.exp2(np.random.default_rng(1).integers(-8, 8, 200))
    peaks = np.concatenate([peaks, np.exp2(np.arange(-4.0, 5)), np.nextafter(np.exp2(np.arange(-4.0, 5)), 0)])
    got = RULES[rule](peaks, element)
    top = Fraction(element.largest) / Fraction(2) ** element.point
    whole = next(e for e in range(-20, 20) if Fraction(2) ** e <= top < Fraction(2) ** (e + 1))
    for peak, e in zip(map(Fraction, peaks), got, strict=True):
        floor = next(i for i in range(-40, 40) if Fraction(2) ** i <= peak < Fraction(2) ** (i + 1))
        match rule:
            case "floor":
                expected = floor - whole
            case "ceil":
                expected = (floor if peak == Fraction(2) ** floor else floor + 1) - whole
            case "rceil":
                expected = next(i for i in range(-60, 60) if Fraction(2) ** i * top >= peak)
            case _:
                mantissa = {"e4m3": 3, "e5m2": 2, "e3m2": 2, "e2m3": 3, "e2m1": 1, "int8": 6}[element.name]
                rounded = round(peak / Fraction(2) ** (floor - mantissa))
                expected = floor - whole + (rounded == 2 << mantissa)
        assert e == expected, (peak, rule)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8-rceil", "int4-g16", "e2m1-g32", "int8", "ternary", "binary", "pot4"])
def test_rows_are_close_and_their_scales_are_multiples(name: str) -> None:
    f = format_named(name)
    rows = np.random.default_rng(0).normal(size=(5, 70)) * np.exp2(np.arange(-2.0, 3))[:, None]
    q = quantized_rows(rows, f, size=f.size if isinstance(f, Blocks) else 0)
    element = f.element if isinstance(f, Blocks) else f
    assert q.codes.shape == (5, *((-(-70 // f.size), f.size) if isinstance(f, Blocks) else (1, 70)))
    assert set(np.unique(np.abs(q.codes))) <= set(element.magnitudes)
    assert 1 <= q.multipliers.min() <= q.multipliers.max() <= 1 << max(SCALE_BITS, WINDOW)
    assert not q.real[:, 70:].any()
    noise = ((q.real[:, :70] - rows) ** 2).sum() / (rows**2).sum()
    assert 10 * np.log10(1 / noise) > {"ternary": 4, "binary": 3, "pot4": 14, "int8": 38, "mxfp8-rceil": 28}.get(
        name, 17
    )


@pytest.mark.parametrize("name", ["int8", "ternary", "e3m2", "pot4"])
def test_one_scale_is_that_of_all_rows_as_one(name: str) -> None:
    """And the accumulator has one scale: what follows is one multiplier, none per channel."""
    rows = np.random.default_rng(0).normal(size=(5, 70)) * np.exp2(np.arange(-2.0, 3))[:, None]
    q, one = quantized_rows(rows, format_named(f"{name}-tensor")), quantized_rows(rows.reshape(1, -1), FORMATS[name])
    np.testing.assert_array_equal(q.real, one.real.reshape(rows.shape))
    assert set(q.steps) == set(one.steps)
    module = torch.nn.Linear(70, 5)
    for weights, count in ((name, 1), (f"{name}-tensor", 0)):
        p = quantize(module, rows[None], Recipe("r", weights=weights), name="linear").program
        assert [n.op for n in p.nodes].count("requantize_per_channel") == count


def test_binary_weights_are_signs_times_the_mean_magnitude() -> None:
    """Of a row, or of a block; a row of zeros is next to nothing, and zeros are ones of it."""
    f = FORMATS["binary"]
    assert (f.magnitudes, f.bits, f.zero) == ((1,), 1, False)
    assert f.rounded([-2.0, -1e-9, -0.0, 0.0, 1e-9, 0.4, 3.0]).tolist() == [-1, -1, 1, 1, 1, 1, 1]
    rows = np.random.default_rng(0).normal(size=(3, 70))
    rows[1] = 0
    q = quantized_rows(rows, f)
    np.testing.assert_array_equal(q.codes[:, 0], np.where(rows < 0, -1, 1))
    np.testing.assert_allclose(q.steps[[0, 2]], np.abs(rows[[0, 2]]).mean(1), rtol=1e-12)
    assert 0 < q.steps[1] < 1e-4 * q.steps.max()
    blocks = quantized_rows(rows, format_named("binary-g16"), size=16)
    assert set(np.unique(blocks.codes)) == {-1, 1}
    np.testing.assert_allclose(
        (blocks.multipliers * blocks.steps[:, None])[0, :4], np.abs(rows[0, :64]).reshape(4, 16).mean(1), rtol=0.01
    )


def test_blocks_of_very_different_sizes_stay_within_the_window() -> None:
    rows = np.concatenate([np.full((1, 32), 2.0**-30), np.full((1, 32), 4.0), np.zeros((1, 32))], axis=1)
    q = quantized_rows(rows, MX["mxfp4"], size=32)
    assert q.multipliers.max() == 1 << WINDOW
    assert q.real[0, 40] == 4.0
    assert not q.real[0, :32].any()


def test_steps_are_at_least_what_a_bias_asks_for() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 64))
    least = np.array([0.0, 0.3, 5.0])
    for name in ("int8", "int4-g32", "mxfp4"):
        q = quantized_rows(rows, format_named(name), least, size=32)
        assert (q.steps >= least).all()
        assert (np.log2(q.steps) % 1 == 0).all() or name != "mxfp4"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("int17", "int"),
        ("mxfp5", "mxfp"),
        ("e4m4", "e"),
        ("int4-g33", "int4"),
        ("int4-floor", "int"),
        ("mxfp4-tensor", "mx"),
        ("int8-tensor-g32", "int8"),
    ],
)
def test_unknown_formats_name_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"there is no format '{name}', the nearest is '{near}"):
        format_named(name)


@pytest.mark.parametrize(("name", "exponent", "mantissa"), [("e6m1", 6, 1), ("e7m0", 7, 0)])
def test_very_wide_minifloats_are_those_of_brevitas_within_the_window(name: str, exponent: int, mantissa: int) -> None:
    """Below, numbers are as far apart as the lowest exponent of the window has them."""
    f = format_named(name)
    assert isinstance(f, Format)
    assert f.largest.bit_length() == WIDEST_MINIFLOAT
    lowest = 2.0 ** (mantissa - f.point)
    x = np.abs(np.random.default_rng(0).normal(size=5000)) * np.exp2(np.random.default_rng(1).integers(0, 30, 5000))
    x = x * lowest + lowest
    np.testing.assert_array_equal(real(f, f.rounded(x)), brevitas_cast(x, exponent, mantissa, (1 << exponent - 1) - 1))
    assert f.rounded(lowest * 2.0**-mantissa * 0.4) == 0


def test_a_bias_that_no_minifloat_has_is_refused() -> None:
    with pytest.raises(InputError, match="there is no format 'e3m2b128'"):
        format_named("e3m2b128")
