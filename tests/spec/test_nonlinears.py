"""Integer nonlinears against the real functions: the errors that their docstrings state, enumerated."""

from __future__ import annotations

import numpy as np

from isobit.quant.ops.exp2 import FRAC, ONE, exp2_negative
from isobit.quant.ops.rmsnorm import rsqrt
from isobit.quant.ops.silu import reciprocal_one_plus, sigmoid
from isobit.quant.ops.softplus import softplus


def test_exp2_negative() -> None:
    x = np.arange(0, 17 << FRAC)
    error = np.abs(exp2_negative(x) / ONE - 2.0 ** (-x / (1 << FRAC)))
    assert error.max() < 0.0051
    assert np.all(np.diff(exp2_negative(x)) <= 0)


def test_reciprocal() -> None:
    e = np.arange(0, ONE)
    error = np.abs(reciprocal_one_plus(e) / ONE - 1 / (1 + e / ONE))
    assert error.max() < 2.0**-13


def test_sigmoid() -> None:
    t = np.arange(-(1 << 16), 1 << 16)
    error = np.abs(sigmoid(t) / ONE - 1 / (1 + 2.0 ** (-t / (1 << FRAC))))
    assert error.max() < 0.002


def test_rsqrt_at_every_magnitude() -> None:
    rng = np.random.default_rng(0)
    v = np.concatenate([np.arange(1, 1 << 16), *(rng.integers(1 << k, 2 << k, 20_000) for k in range(16, 35))])
    error = np.abs(rsqrt(v, eps=0, width=36) / 2.0**32 * np.sqrt(v) - 1)
    assert error.max() < 2.0**-12


def test_softplus() -> None:
    x = np.arange(-(1 << 15), 1 << 15)
    real = np.log2(1 + 2.0 ** (x / (1 << FRAC)))
    got = softplus(x, mx=1, sx=0, m=1 << 10, s=10, hi=1 << 40) / 2.0**20
    assert np.all(np.abs(got - real) < 2.4e-4 * real + 2.0**-20)
