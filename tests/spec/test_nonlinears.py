"""Integer nonlinears against the real functions: the errors that their docstrings state, enumerated.

Every function of one operand is called with every 8-bit and every 16-bit value, at several scales.  What is measured
must be below the number in the docstring, and not so far below that the number says nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from isobit.quant.ops import activation, division, interpolate, silu, softmax
from isobit.quant.ops.exp2 import FRAC, ONE, exp2_negative, exp2_scaled
from isobit.quant.ops.mean import mean
from isobit.quant.ops.rmsnorm import rsqrt
from isobit.quant.ops.softplus import softplus
from isobit.quant.program import Array

Floats = npt.NDArray[np.float64]

LOG2_E = math.log2(math.e)

ANY = {"lo": -(1 << 62), "hi": 1 << 62}
"""Limits that nothing reaches."""

UNITS = {8: (2.0**-6, 2.0**-4, 2.0**-2), 16: (2.0**-14, 2.0**-12, 2.0**-10, 1.37 * 2.0**-13)}
"""By width, the real values of one: ranges of +-2, +-8, +-32, and one that is no power of two."""


def stated(function: Callable[..., Any]) -> float:
    """The number in a docstring's "error below ..."."""
    found = re.search(r"[Ee]rror below (?:(2\^-\d+)|([\d.]+e-\d+|[\d.]+\d))", function.__doc__ or "")
    assert found, f"{function.__name__} states no error"
    return 2.0 ** int(found[1].removeprefix("2^")) if found[1] else float(found[2])


def assert_as_stated(function: Callable[..., Any], worst: float) -> None:
    limit = stated(function)
    assert limit / 2.5 < worst < limit, f"{function.__name__}: {worst:.3e} measured, {limit:.3e} stated"


def codes(bits: int) -> Array:
    return np.arange(-(1 << (bits - 1)), 1 << (bits - 1))


def carried(unit: float, fixed: float) -> dict[str, int]:
    """mx and sx, of 15 bits, that turn an integer of this unit into one of the unit 1 / fixed."""
    sx = 15 - math.ceil(math.log2(unit * fixed))
    return {"mx": round(unit * fixed * 2.0**sx), "sx": sx}


def octaves(unit: float) -> dict[str, int]:
    return carried(unit, LOG2_E * (1 << FRAC))


def worst(error: Callable[[Array, float], Floats]) -> float:
    """The largest error, given codes and their unit, over all codes of 8 and of 16 bits at all UNITS."""
    return max(float(error(codes(bits), u).max()) for bits, units in UNITS.items() for u in units)


def real_sigmoid(x: npt.ArrayLike) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(np.divide(x, 2))))


normal_cdf = np.vectorize(interpolate.normal_cdf)
tanh_gate = np.vectorize(interpolate.tanh_gate)

Error = Callable[[Array, float], Floats]

ERRORS: dict[str, tuple[Callable[..., Any], Error]] = {
    "sigmoid": (
        activation.scaled_sigmoid,
        lambda x, u: activation.scaled_sigmoid(x, **octaves(u), m=2, s=1, **ANY) / 2.0**15 - real_sigmoid(x * u),
    ),
    "tanh": (
        activation.tanh,
        lambda x, u: activation.tanh(x, **carried(u, 1 << 14), m=2, s=1, **ANY) / 2.0**16 - np.tanh(x * u),
    ),
    "gelu": (
        activation.gelu,
        lambda x, u: (
            activation.gelu(x, **carried(u, 1 << 14), m=2, s=1, **ANY) * u / 2.0**15 - x * u * normal_cdf(x * u)
        ),
    ),
    "gelu_tanh": (
        activation.gelu_tanh,
        lambda x, u: (
            activation.gelu_tanh(x, **carried(u, 1 << 14), m=2, s=1, **ANY) * u / 2.0**15 - x * u * tanh_gate(x * u)
        ),
    ),
    "elu": (
        activation.elu,
        lambda x, u: (
            activation.elu(x, **octaves(u), mn=1 << 20, mp=round(u * 2.0**35), s=20, **ANY) / 2.0**15
            - np.where(x < 0, np.expm1(np.minimum(x * u, 0)), x * u)
        ),
    ),
    "log_sigmoid": (
        activation.log_sigmoid,
        lambda x, u: (
            activation.log_sigmoid(x, **octaves(u), m=2, s=1, lo=ANY["lo"]) / 2.0**20 * math.log(2)
            + np.logaddexp(0, -x * u)
        ),
    ),
    "exp": (
        division.exp,
        lambda x, u: (
            division.exp(x, **octaves(u), top=round((1 << FRAC) * LOG2_E * x.max() * u), m=2, s=1, hi=1 << 62) / 2.0**15
            - np.exp((x - x.max()) * u)
        ),
    ),
    "shifted_exp": (
        softmax.shifted_exp,
        lambda x, u: (
            softmax.shifted_exp(x, x.max() + 0 * x, **octaves(u), bits=20) / 2.0**20 - np.exp((x - x.max()) * u)
        ),
    ),
    "silu": (
        silu.silu,
        lambda x, u: silu.silu(x, **octaves(u), m=2, s=1, **ANY) * u / 2.0**15 - x * u * real_sigmoid(x * u),
    ),
}  # fmt: skip
"""By op: its definition, and its result minus the real one, for codes and their unit."""


@pytest.mark.parametrize("op", ERRORS)
def test_functions_of_one_operand(op: str) -> None:
    function, error = ERRORS[op]
    assert_as_stated(function, worst(lambda x, u: np.abs(error(x, u))))


def test_exp2_negative() -> None:
    x = np.arange(0, 40 << FRAC)
    error = np.abs(exp2_negative(x) / ONE - 2.0 ** (-x / (1 << FRAC)))
    assert_as_stated(exp2_negative, float(error.max()))
    steps = np.diff(exp2_negative(x))
    assert np.all((steps <= 0) & (steps >= -7)), "it falls, without jumps"
    assert [exp2_negative(n << FRAC) for n in range(1, 16)] == [ONE >> n for n in range(1, 16)]


@pytest.mark.parametrize("bits", [15, 20, 24])
def test_exp2_scaled(bits: int) -> None:
    """Relative to the value, and half a unit; powers of two are exact as long as they are whole."""
    x = np.arange(0, 40 << FRAC)
    got, real = exp2_scaled(x, bits), 2.0 ** (bits - x / (1 << FRAC))
    assert ((np.abs(got - real) - 0.5) / real).max() < stated(exp2_scaled)
    assert np.all(np.diff(got) <= 0)
    assert [exp2_scaled(n << FRAC, bits) for n in range(bits + 1)] == [1 << (bits - n) for n in range(bits + 1)]
    assert got[-1] == 0


def test_reciprocal() -> None:
    e = np.arange(0, ONE)
    error = np.abs(silu.reciprocal_one_plus(e) / ONE - 1 / (1 + e / ONE))
    assert_as_stated(silu.reciprocal_one_plus, float(error.max()))


def test_sigmoid() -> None:
    t = np.arange(-(1 << 16), 1 << 16)
    error = np.abs(silu.sigmoid(t) / ONE - 1 / (1 + 2.0 ** (-t / (1 << FRAC))))
    assert_as_stated(silu.sigmoid, float(error.max()))


def test_rsqrt_at_every_magnitude() -> None:
    found = []
    for width in (16, 36, 58):
        v = magnitudes(width)
        found.append(
            np.abs(rsqrt(v, up=0, eps=0, least=1, width=width) / 2.0 ** (14 + width // 2) * np.sqrt(v) - 1).max()
        )
    assert_as_stated(rsqrt, float(max(found)))


def magnitudes(width: int) -> Array:
    """All values of 16 bits but 0, and 20000 of each width up to `width`."""
    rng = np.random.default_rng(0)
    return np.concatenate([np.arange(1, 1 << 16), *(rng.integers(1 << k, 2 << k, 20_000) for k in range(16, width))])


def test_softplus() -> None:
    x = np.arange(-(1 << 15), 1 << 15)
    real = np.log2(1 + 2.0 ** (x / (1 << FRAC)))
    got = softplus(x, mx=1, sx=0, m=1 << 10, s=10, hi=1 << 40) / 2.0**20
    assert_as_stated(softplus, float(((np.abs(got - real) - 2.0**-20) / real).max()))


def test_divide_by_every_divisor() -> None:
    """Of 8 and 16 bits, and of every width up to 31; 0 is taken as 1."""
    assert division.divide(5, 0, width=16, m=1 << 12, s=26, **ANY) == division.divide(
        5, 1, width=16, m=1 << 12, s=26, **ANY
    )
    found = []
    for width in (16, 17, 24, 31):
        y, s = magnitudes(width), width + 1
        got = division.divide(np.full_like(y, 1 << 20), y, width=width, m=1 << 10, s=s, **ANY)
        found.append(np.abs(got * y / 2.0 ** (20 + 14 + width + 10 - s) - 1).max())
    assert_as_stated(division.divide, float(max(found)))


def test_sqrt_of_every_value() -> None:
    """Of 16 bits, and of every width up to 32: the error beyond the 2^-(width/2) that one unit of the root is."""
    found = []
    for width in (16, 20, 32):
        x = np.append(magnitudes(width), 0)
        unit = 2.0 ** -(width // 2)
        got = division.sqrt(x, width=width, m=1 << 10, s=10, hi=1 << 62) * unit
        found.append(((np.abs(got - np.sqrt(x)) - unit) / np.sqrt(np.maximum(x, 1))).max())
    assert_as_stated(division.sqrt, float(max(found)))


def test_hardswish_is_exact_where_3_and_6_are() -> None:
    for bits, unit in ((8, 2.0**-4), (16, 2.0**-12)):
        x, three = codes(bits), round(3 / unit)
        got = activation.hardswish(x, three=three, six=2 * three, m=2, s=1, **ANY)
        real = x * np.clip(x * unit + 3, 0, 6) / 6
        assert np.array_equal(got, np.rint(real * 2 * three).astype(np.int64))


def test_prelu_is_exact() -> None:
    x = codes(16)
    for slope in (-70000, -1, 0, 5, 32768, 40000):
        got = activation.prelu(x, slope, m=1 << 15, s=15, **ANY)
        assert np.array_equal(got, np.where(x < 0, (x * slope + (1 << 14)) >> 15, x))


def test_comparisons_are_exact() -> None:
    a, b = (g.ravel() for g in np.meshgrid(codes(8), codes(8)))
    assert np.array_equal(division.maximum(a, b, ma=2, mb=2, s=1, **ANY), np.maximum(a, b))
    assert np.array_equal(division.maximum(a, a, ma=2, mb=-2, s=1, **ANY), np.abs(a))
    for threshold in (-128, -1, 0, 126, 127):
        assert np.array_equal(division.heaviside(a, threshold=threshold), (a > threshold).astype(int))
        assert np.array_equal(division.at_most(a, threshold=threshold), (a <= threshold).astype(int))
    assert np.array_equal(division.sign(a), np.sign(a))
    for earlier in (0, 1):
        assert np.array_equal(division.comes_before(a, b, earlier), (b > a) | ((a == b) & bool(earlier)))


def test_ranks_order_equal_values_by_their_place() -> None:
    x = np.array([3, 9, 3, 9, -1])
    earlier = np.tril(np.ones((5, 5), np.int64), -1)
    assert division.comes_before(x[:, None], x[None, :], earlier).sum(1).tolist() == [2, 0, 3, 1, 4]


def test_slots_of_a_history_that_no_step_has_filled() -> None:
    """After `count` steps the last `count` slots of 6 hold a score; the others count as the lowest, and weigh 0."""
    slot = np.arange(6)
    for count in range(8):
        filled = slot >= 6 - count
        scores = softmax.mask_history(np.full(6, 7), count, slot, length=6, lowest=-99)
        assert scores.tolist() == np.where(filled, 7, -99).tolist()
        weights = softmax.shifted_exp_of_history(np.full(6, 7), 7, count, slot, length=6, mx=1, sx=0, bits=15)
        assert weights.tolist() == np.where(filled, ONE, 0).tolist()


def test_mean_of_every_count() -> None:
    """The error of a reciprocal is at most half a unit of m / count."""
    for t_max, m in ((63, (1 << 30) + 5), (1 << 16, 1 << 30)):
        count = np.arange(1, t_max + 1)
        got = mean(np.full_like(count, 1 << 30), count, t_max=t_max, m=m, s=1, **ANY) * 2 / (1 << 30)
        assert np.all(np.abs(got - m / count) <= 0.5 + 2.0**-29)
    assert mean(5, 0, t_max=9, m=1 << 30, s=20, **ANY) == 0


@pytest.mark.parametrize(
    ("values", "function", "unit"),
    [
        (activation.TANH_CURVE, math.tanh, 1 << 16),
        (activation.NORMAL_CDF, interpolate.normal_cdf, 1 << 15),
        (activation.TANH_GATE, interpolate.tanh_gate, 1 << 15),
    ],
)
def test_tables_meet_their_functions(values: tuple[int, ...], function: Callable[[float], float], unit: int) -> None:
    """At every entry exactly rounded; between and beyond them within three units; never falling."""
    entries = [interpolate.interpolate(values, i << 8, 8) for i in range(513)]
    assert entries == [round(unit * function(i / 64)) for i in range(513)]
    x = np.arange(0, 1 << 18)
    got = interpolate.interpolate(values, x, 8)
    assert np.abs(got - unit * np.vectorize(function)(x / (1 << 14))).max() < 3
    assert np.all(np.diff(got) >= 0)
