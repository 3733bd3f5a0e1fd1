"""The integer language: intervals are sound, claims are proved or refused, rewrites equal what they replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.quant.errors import ExprError
from isobit.quant.expr import bound, clip, clz, floordiv, select, table
from isobit.quant.expr.interval import INTERVALS, Interval
from isobit.quant.expr.prove import prove_claims
from isobit.quant.expr.rewrite import high_products, tabulate
from isobit.quant.expr.symbols import trace
from isobit.quant.ops import OPS
from isobit.quant.ops.silu import silu

BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "lt": lambda a, b: int(a < b),
    "le": lambda a, b: int(a <= b),
    "eq": lambda a, b: int(a == b),
}

numbers = st.integers(-(1 << 40), 1 << 40)


@st.composite
def interval_and_member(draw: st.DrawFn) -> tuple[Interval, int]:
    ends = sorted((draw(numbers), draw(numbers)))
    return Interval(*ends), draw(st.integers(*ends))


@pytest.mark.parametrize("name", BINARY)
@given(a=interval_and_member(), b=interval_and_member())
def test_intervals_hold_every_value(name: str, a: tuple[Interval, int], b: tuple[Interval, int]) -> None:
    assert BINARY[name](a[1], b[1]) in INTERVALS[name](a[0], b[0])


@given(a=st.integers(-(1 << 31), (1 << 31) - 1), b=st.integers(-(1 << 31), (1 << 31) - 1), w=st.integers(0, 1 << 20))
def test_mulh_interval_holds_every_value(a: int, b: int, w: int) -> None:
    known = Interval(max(a - w, -(1 << 31)), a)
    assert (a * b) >> 32 in INTERVALS["mulh"](known, Interval(b, b))


def test_mulh_of_wide_operands_is_refused() -> None:
    with pytest.raises(ExprError, match="do not both fit 32 bits"):
        INTERVALS["mulh"](Interval(0, 1 << 40), Interval(0, 1))


@given(x=interval_and_member(), n=st.integers(0, 62))
def test_shift_intervals_hold_every_value(x: tuple[Interval, int], n: int) -> None:
    amount = Interval(max(0, n - 3), n)
    assert x[1] >> n in INTERVALS["shr"](x[0], amount)
    assert x[1] << n in INTERVALS["shl"](x[0], amount)


@given(x=interval_and_member(), limits=st.tuples(numbers, numbers))
def test_clip_interval_holds_every_value(x: tuple[Interval, int], limits: tuple[int, int]) -> None:
    lo, hi = sorted(limits)
    assert max(lo, min(hi, x[1])) in INTERVALS["clip"](x[0], Interval(lo, lo), Interval(hi, hi))


def test_a_definition_takes_intervals_directly() -> None:
    got = silu(Interval(-128, 127), mx=7562, sx=5, m=1 << 14, s=29, lo=-127, hi=127)
    assert all(silu(x, mx=7562, sx=5, m=1 << 14, s=29, lo=-127, hi=127) in got for x in range(-128, 128))


def test_locals_name_the_symbols() -> None:
    def definition(x: Any) -> Any:
        doubled = x + x
        return doubled * doubled

    traced = trace(definition, [Interval(-8, 7)], {})
    assert [n.name for n in traced.nodes] == ["x", "doubled", ""]
    assert traced.range == Interval(0, 256)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (lambda x: x if x > 0 else -x, "branches on a value"),
        (lambda x: x >> 63, "outside 0..62"),
        (lambda x: x >> (x & 127), "outside 0..62"),
        (lambda x: floordiv(x, 3), "not proved non-negative"),
        (lambda x: floordiv(5, x & 3), "not proved positive"),
        (lambda x: table((1, 2, 3), x), "a table of 3 is read at"),
        (lambda x: clz(x, 8), "does not fit 8 unsigned bits"),
        (lambda x: (x > 0) + 1, "only select may"),
        (lambda x: select(x, 1, 2), "select wants a comparison"),
        (lambda x: x > 0, "the result is a condition"),
        (lambda x: (x << 40) * (x << 40), "needs 96 bits"),
    ],
)
def test_what_leaves_the_language_is_refused(definition: Any, message: str) -> None:
    with pytest.raises(ExprError, match=message):
        trace(definition, [Interval(-128, 127)], {})


def normalise(x: Any) -> Any:
    zeros = clz(x, 34) & 62
    return bound(x << zeros, 1 << 32, (1 << 34) - 1)


def square_in_range(x: Any) -> Any:
    return bound((x * x + 7 * x) & 255, 0, 254)


@pytest.mark.parametrize(
    ("definition", "operand", "method"),
    [
        (normalise, Interval(1, (1 << 34) - 1), "cases"),
        (square_in_range, Interval(-1000, 1000), "enumeration"),
        (lambda x, y: bound(x * y - y * x, 0, 0), None, "z3"),
    ],
)
def test_true_claims_are_proved(definition: Any, operand: Interval | None, method: str) -> None:
    operands = [operand] if operand is not None else [Interval(-1000, 1000), Interval(-1000, 1000)]
    proofs = prove_claims(trace(definition, operands, {}))
    assert [p.method for p in proofs] == [method]


@pytest.mark.parametrize(
    ("definition", "operands"),
    [
        (lambda x: bound(x << (clz(x, 34) & 62), 1 << 33, (1 << 34) - 1), [Interval(1, (1 << 34) - 1)]),
        (lambda x: bound((x * x) & 255, 0, 248), [Interval(-1000, 1000)]),
        (lambda x, y: bound(x * y - y * x + x, 0, 0), [Interval(-1000, 1000), Interval(-1000, 1000)]),
    ],
)
def test_false_claims_are_refused(definition: Any, operands: list[Interval]) -> None:
    with pytest.raises(ExprError, match="is false"):
        prove_claims(trace(definition, operands, {}))


def test_high_product_equals_the_whole_product() -> None:
    requantize = OPS["requantize"].define
    params = {"m": (1 << 31) - 1, "s": 47, "lo": -32767, "hi": 32767}
    traced = trace(requantize, [Interval(-(1 << 31), (1 << 31) - 1)], params)
    rewritten = high_products(traced)
    assert "mulh" in {n.op for n in rewritten.nodes}
    assert max(n.bits for n in rewritten.nodes) <= 32
    x = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 100_000)
    assert np.array_equal(rewritten.evaluate(x), traced.evaluate(x))


def test_a_table_replaces_a_function_of_eight_bits() -> None:
    params = {"mx": 7562, "sx": 5, "m": 1 << 14, "s": 29, "lo": -127, "hi": 127}
    traced = trace(silu, [Interval(-128, 127)], params)
    tabulated = tabulate(traced)
    assert tabulated is not None
    assert {n.op for n in tabulated.nodes} <= {"var", "const", "add", "sub", "table"}
    assert [tabulated.evaluate(x) for x in range(-128, 128)] == [silu(x, **params) for x in range(-128, 128)]
    assert tabulate(trace(silu, [Interval(-300, 300)], params)) is None


def test_clip_on_ints() -> None:
    assert [clip(x, -1, 1) for x in (-5, 0, 5)] == [-1, 0, 1]
